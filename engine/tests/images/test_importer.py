"""Importing tars and directories, and making images of changes."""

import bz2
import gzip
import io
import json
import lzma
import os
import random
import subprocess
import tarfile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.errors import ConfigError, DriverError
from transom_engine.images.changes import apply_changes
from transom_engine.images.importer import commit, import_tar
from transom_engine.images.spec import digest_of
from transom_engine.images.tarcheck import check_tar
from transom_engine.images.unpack import unpack


class Pipe(io.RawIOBase):
    """A stream that cannot seek and gives little at a time, as standard input does."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        piece = self._data.read(min(len(buffer), 700))
        buffer[: len(piece)] = piece
        return len(piece)


@pytest.fixture
def bring(content, store):
    def call(data, **options):
        return import_tar(Pipe(data) if isinstance(data, bytes) else data, content=content, store=store, **options)

    return call


@pytest.mark.parametrize(
    ("compress", "suffix", "as_it_came"),
    [
        (bytes, "", True),
        (gzip.compress, "+gzip", True),
        (zstandard.ZstdCompressor().compress, "+zstd", True),
        (bz2.compress, "", False),
        (lzma.compress, "", False),
    ],
    ids=["plain", "gzip", "zstd", "bzip2", "xz"],
)
def test_a_tar_of_each_compression_becomes_one_layer(bring, content, layers, tar, compress, suffix, as_it_came):
    plain = tar({"bin/sh": b"#!" * 50_000, "etc/passwd": b"root"})
    packed = compress(plain)
    image = bring(packed, reference="app")
    (layer,) = image.layers
    assert layer.media_type == "application/vnd.oci.image.layer.v1.tar" + suffix
    assert layer.diff_id == layer.chain_id == digest_of(plain)
    assert content.read(layer.digest) == (packed if as_it_came else plain)
    unpack(image, layers=layers, content=content)
    assert layers.kept == {layer.chain_id: plain}


def test_configuration_and_manifest_are_oci_documents(bring, content, store, tar):
    image = bring(
        tar({}),
        reference="app:1",
        message="hello",
        platform="linux/arm/v7",
        changes=[
            'ENTRYPOINT ["/init"]',
            "cmd echo $HOME",
            "ENV A=1 B='two words'",
            "ENV C three words",
            "EXPOSE 80 53/udp",
            "LABEL x.y=z",
            "USER 1:2",
            'VOLUME ["/data"]',
            "WORKDIR srv",
            "WORKDIR www",
            "STOPSIGNAL SIGINT",
        ],
    )
    config = json.loads(content.read(image.id))
    assert config == {
        "architecture": "arm",
        "os": "linux",
        "variant": "v7",
        "created": config["created"],
        "author": "",
        "config": {
            "Entrypoint": ["/init"],
            "Cmd": ["/bin/sh", "-c", "echo $HOME"],
            "Env": ["A=1", "B=two words", "C=three words"],
            "ExposedPorts": {"80/tcp": {}, "53/udp": {}},
            "Labels": {"x.y": "z"},
            "User": "1:2",
            "Volumes": {"/data": {}},
            "WorkingDir": "/srv/www",
            "StopSignal": "SIGINT",
        },
        "rootfs": {"type": "layers", "diff_ids": [image.layers[0].diff_id]},
        "history": [{"created": config["created"], "comment": "hello"}],
        "docker_version": "",
        "os.version": "",
        "comment": "",
    }
    manifest = json.loads(content.read(image.manifest))
    assert manifest["schemaVersion"] == 2
    assert manifest["config"] == {
        "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": image.id,
        "size": len(content.read(image.id)),
    }
    assert manifest["layers"][0]["digest"] == image.layers[0].digest
    assert store.resolve("app:1") == image
    assert image.container_config().exposed_ports == {"80/tcp": {}, "53/udp": {}}


def test_a_directory_becomes_a_layer(bring, content, layers, tmp_path):
    pytest.importorskip("transom.services.archive")
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "sh").write_bytes(b"#!")
    (root / "bin" / "ash").symlink_to("sh")
    image = bring(str(root), reference="app")
    unpack(image, layers=layers, content=content)
    with tarfile.open(fileobj=io.BytesIO(layers.kept[image.chain_id])) as tar:
        assert {member.name.strip("/") for member in tar} - {"", "."} == {"bin", "bin/sh", "bin/ash"}
    assert image.config.history[0].comment == "Imported from root"


def test_a_file_is_read_by_its_path(bring, tar, tmp_path):
    (tmp_path / "x.tar").write_bytes(tar({"a": b""}))
    assert bring(str(tmp_path / "x.tar")).layers[0].diff_id == digest_of(tar({"a": b""}))
    with pytest.raises(ConfigError) as raised:
        bring(str(tmp_path / "absent"))
    assert str(raised.value) == f"cannot read {tmp_path}/absent: No such file or directory; give a tar or a directory"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_of_every_format_are_read(bring, tar, format):
    name = "/".join(["d" * 90] * 2)
    bring(tar({name: b"x" * 5000, "second": b""}, format=format))


def test_gnu_tar_s_sparse_files_are_read(bring, tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        for at in range(0, 100_000_000, 1_000_000):
            file.seek(at)
            file.write(b"x")
    for format in ("gnu", "pax"):
        packed = subprocess.run(
            ["tar", f"--format={format}", "-S", "-c", "-C", tmp_path, "sparse"], check=True, capture_output=True
        ).stdout
        assert len(packed) < 10_000_000
        bring(packed)


def test_an_empty_archive_is_an_image(bring, tar):
    assert bring(tar({})).layers[0].size == 10240


def nothing_is_left(content, store):
    return list(content.walk()) == [] and os.listdir(f"{content.root}/ingest") == [] and list(store.walk()) == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "the tar is empty: nothing was read; give a tar, plain or compressed with gzip, zstd, bzip2 or xz"),
        (b"x" * 600, "this is not a tar; it must be one, plain or compressed with gzip, zstd, bzip2 or xz"),
        (b"x", "the tar is cut short after 1 bytes; make or fetch it again"),
        (
            gzip.compress(b"x" * 600),
            "this is not a tar; it must be one, plain or compressed with gzip, zstd, bzip2 or xz",
        ),
    ],
    ids=["empty", "text", "one byte", "compressed text"],
)
def test_what_is_no_tar_is_refused_and_leaves_nothing(bring, content, store, data, text):
    with pytest.raises(ConfigError) as raised:
        bring(data, reference="app")
    assert str(raised.value) == text
    assert nothing_is_left(content, store)


def test_a_tar_cut_at_any_block_is_refused_and_leaves_nothing(bring, content, store, tar):
    whole = tar({"a": b"1" * 2000, "b": b"2" * 600})
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(512, end + 1, 512):
        with pytest.raises(ConfigError, match=f"^the tar is cut short after {cut} bytes; make or fetch it again$"):
            bring(whole[:cut])
    assert nothing_is_left(content, store)


def test_a_tar_damaged_in_the_middle_is_refused(bring, content, store, tar):
    whole = bytearray(tar({"a": b"1" * 2000, "b": b""}, format=tarfile.USTAR_FORMAT))
    whole[2560 + 10] ^= 255
    with pytest.raises(ConfigError) as raised:
        bring(bytes(whole))
    assert str(raised.value) == "the tar is damaged at byte 2560: bad checksum; make or fetch it again"
    assert nothing_is_left(content, store)


@pytest.mark.parametrize(
    ("compress", "kind"),
    [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")],
)
def test_cut_compressed_data_is_refused(bring, content, store, tar, compress, kind):
    packed = compress(tar({"a": random.Random(1).randbytes(100_000)}))
    with pytest.raises((DriverError, ConfigError), match=f"the {kind} data is damaged: |is cut short"):
        bring(packed[: len(packed) // 2])
    assert nothing_is_left(content, store)


def test_damaged_zstd_is_refused(bring, content, store, tar):
    packed = bytearray(zstandard.ZstdCompressor(level=1).compress(tar({"a": random.Random(1).randbytes(100_000)})))
    packed[6:12] = b"\xff" * 6
    with pytest.raises((DriverError, ConfigError), match=r"the zstd data is damaged: |is cut short|not a tar"):
        bring(bytes(packed))
    assert nothing_is_left(content, store)


def test_a_bad_word_is_refused_before_anything_is_read(bring, content):
    class Untouchable(io.RawIOBase):
        def read(self, size=-1):
            raise AssertionError

    for options in (
        {"reference": "A"},
        {"changes": ["RUN x"]},
        {"platform": "a/b/c/d"},
        {"reference": f"x@sha256:{'0' * 64}"},
    ):
        with pytest.raises(ConfigError):
            bring(Untouchable(), **options)
    assert not os.path.exists(content.root)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            "RUN x",
            "unknown instruction 'RUN' in --change; there are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, SHELL,"
            " STOPSIGNAL, USER, VOLUME, WORKDIR",
        ),
        (
            "ENTRYPIONT x",
            "unknown instruction 'ENTRYPIONT' in --change (did you mean ENTRYPOINT?); there are CMD, ENTRYPOINT,"
            " ENV, EXPOSE, LABEL, ONBUILD, SHELL, STOPSIGNAL, USER, VOLUME, WORKDIR",
        ),
        ("CMD", '--change CMD needs a value, for example CMD ["echo", "hello"]'),
        ("ENV x", "--change ENV x: a value is missing, ENV NAME=value"),
        ("ENV a=1 b", "--change ENV a=1 b: b is not KEY=VALUE"),
        ("LABEL a='x", "--change LABEL a='x: no closing quotation"),
        ("EXPOSE 70000", "--change EXPOSE 70000: it reads PORT[-PORT][/tcp|udp|sctp], with ports 1 to 65535"),
        ("SHELL sh", '--change SHELL sh: it takes a JSON array of strings, SHELL ["/bin/sh", "-c"]'),
        ("STOPSIGNAL SIGFOO", "--change STOPSIGNAL SIGFOO: no such signal; write it as SIGTERM or as its number"),
    ],
)
def test_bad_instructions_are_refused_in_words(change, text):
    with pytest.raises(ConfigError) as raised:
        apply_changes({}, [change])
    assert str(raised.value) == text


def test_an_entry_point_takes_away_an_inherited_command_but_not_a_new_one():
    assert apply_changes({"Cmd": ["x"]}, ['ENTRYPOINT ["a"]']) == {"Entrypoint": ["a"]}
    assert apply_changes({}, ['CMD ["b"]', 'ENTRYPOINT ["a"]']) == {"Entrypoint": ["a"], "Cmd": ["b"]}
    assert apply_changes({}, ['SHELL ["bash"]', "CMD x y", "ONBUILD RUN true", "EXPOSE 1-3"]) == {
        "Shell": ["bash"],
        "Cmd": ["bash", "x y"],
        "OnBuild": ["RUN true"],
        "ExposedPorts": {"1/tcp": {}, "2/tcp": {}, "3/tcp": {}},
    }


def test_a_change_leaves_the_configuration_that_was_given_as_it_was():
    given_config = {"Env": ["A=1"], "Labels": {"a": "b"}}
    assert apply_changes(given_config, ["ENV A=2 B=3", "LABEL c=d"])["Env"] == ["A=2", "B=3"]
    assert given_config == {"Env": ["A=1"], "Labels": {"a": "b"}}


def test_a_commit_puts_a_layer_upon_its_parent(bring, content, store, layers, tar):
    base = bring(tar({"a": b"1"}), reference="base", changes=["ENV A=1"])
    image = commit(
        io.BytesIO(tar({"b": b"2"})),
        parent=base,
        config={"Cmd": ["sh"]},
        content=content,
        store=store,
        reference="app",
        author="Ann",
        message="b",
        created_by="touch b",
        changes=["USER nobody"],
    )
    assert image.layers[:1] == base.layers
    assert image.layers[1].chain_id == digest_of(f"{base.chain_id} {image.layers[1].diff_id}".encode())
    assert image.parent == base.id
    assert image.config.config == {"Cmd": ["sh"], "User": "nobody"}
    assert image.config.author == "Ann"
    assert unpack(image, layers=layers, content=content) == image.chain_id
    assert list(layers.kept.values()) == [tar({"a": b"1"}), tar({"b": b"2"})]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_damage_is_refused_or_is_none(data):
    whole = bytearray(_SAMPLE)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    seen = bytearray()
    try:
        check_tar(io.BytesIO(bytes(whole)), seen=seen.extend)
    except ConfigError:
        return
    assert seen == whole


def _sample():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, size in (("a", 700), ("ä" * 60, 3), ("l" * 150, 0)):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = size, 1.5
            tar.addfile(member, io.BytesIO(b"x" * size))
    return out.getvalue()


_SAMPLE = _sample()
