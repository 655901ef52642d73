"""Unpacking: verified, in order, and nothing is kept that is not what the image says."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from transom.contract.storage import Mount, State, Storage, Usage
from transom.errors import Conflict, ContractError, DriverError, NotFound
from transom.services.snapshots import Snapshots
from transom_engine.images import spec
from transom_engine.images.store import Image
from transom_engine.images.unpack import SnapshotTarget, unpack


@pytest.fixture
def image(content, tar):
    """An image of two layers; the uncompressed tars go with it."""
    tars = [tar({"a": b"1"}), tar({"b": b"2"})]
    chain = spec.chain_ids([spec.digest_of(one) for one in tars])
    layers = tuple(
        spec.Layer(digest=content.ingest(one), diff_id=spec.digest_of(one), chain_id=name, size=len(one), media_type="")
        for one, name in zip(tars, chain, strict=True)
    )
    return Image(id=spec.digest_of(b"c"), manifest=spec.digest_of(b"m"), layers=layers, raw_config=b"{}"), tars


def test_only_missing_layers_are_unpacked_upon_their_parents(image, content, layers):
    made, tars = image
    layers.kept[made.layers[0].chain_id] = tars[0]
    told, measured = [], {}
    top = unpack(
        made, layers=layers, content=content, progress=lambda *line: told.append(line), measured=measured.__setitem__
    )
    assert top == made.chain_id
    assert layers.kept[top] == tars[1]
    assert told == [(made.layers[1].digest, "Extracting"), (made.layers[1].digest, "Pull complete")]
    assert measured == {made.layers[1].diff_id: len(tars[1])}


def test_content_other_than_the_configuration_says_is_not_kept(image, content, layers, tar):
    made, _ = image
    with open(content.path(made.layers[1].digest), "wb") as file:
        file.write(tar({"evil": b""}))
    with pytest.raises(DriverError) as raised:
        unpack(made, layers=layers, content=content)
    assert str(raised.value) == (
        f"image layer: unpack {made.layers[1].diff_id} failed: digest mismatch: the uncompressed content's is"
        f" {spec.digest_of(tar({'evil': b''}))}; the image is damaged where it comes from; the layer was not kept"
    )
    assert list(layers.kept) == [made.layers[0].chain_id]


def test_damaged_compressed_content_is_said_and_not_kept(image, content, layers):
    made, _ = image
    with open(content.path(made.layers[0].digest), "wb") as file:
        file.write(b"\x1f\x8b\x08" + b"\xff" * 100)
    with pytest.raises(
        DriverError, match=f"image layer: decompress {made.layers[0].digest} failed: the gzip data is damaged"
    ):
        unpack(made, layers=layers, content=content)
    assert layers.kept == {}


def test_a_blob_that_is_gone_is_said(image, content, layers):
    made, _ = image
    content.delete(made.layers[0].digest)
    with pytest.raises(NotFound, match="is not here; pull its image again"):
        unpack(made, layers=layers, content=content)


def test_whoever_comes_second_finds_the_layer_there(image, content, layers):
    made, _ = image

    class Racing(type(layers)):
        def apply(self, *, chain_id, parent, stream):
            self.kept[chain_id] = b"by another process"
            raise Conflict("exists")

    racing = Racing()
    assert unpack(made, layers=racing, content=content) == made.chain_id
    assert set(racing.kept) == {layer.chain_id for layer in made.layers}


def test_a_target_that_keeps_what_was_not_verified_breaks_the_contract(image, content, layers):
    made, _ = image

    class Careless(type(layers)):
        def apply(self, *, chain_id, parent, stream):
            self.kept[chain_id] = stream.read(10)

    with pytest.raises(ContractError, match=r"before stream.finish\(\) verified it"):
        unpack(made, layers=Careless(), content=content)


def test_trailing_bytes_count_towards_the_digest(content, layers, tar):
    data = tar({"a": b""}) + b"trailer"
    layer = spec.Layer(
        digest=content.ingest(io.BytesIO(data)),
        diff_id=spec.digest_of(data),
        chain_id=spec.digest_of(data),
        size=1,
        media_type="",
    )
    made = Image(id="sha256:" + "0" * 64, manifest="", layers=(layer,), raw_config=b"{}")
    assert unpack(made, layers=layers, content=content) == layer.chain_id


# Into a real storage driver


class Plain(Storage):
    """The contract's worked example: a driver that copies."""

    name = "plain"
    api = 1

    def prepare(self, id, parents, size, idmap):
        if parents:
            shutil.copytree(self.root / parents[0], self.root / id, symlinks=True)
        else:
            (self.root / id).mkdir(parents=True)

    def mounts(self, id, parents, state):
        return (Mount(type="bind", source=str(self.root / id), readonly=state is not State.ACTIVE),)

    def remove(self, id):
        shutil.rmtree(self.root / id, ignore_errors=True)

    def owned(self):
        return frozenset(os.listdir(self.root)) if self.root.exists() else frozenset()

    def usage(self, id, parents):
        return Usage(size=0, inodes=0)


@pytest.fixture
def snapshots(tmp_path):
    opened = Snapshots(Plain(options=Plain.Options(), root=tmp_path / "storage", run=tmp_path / "run"))
    yield opened
    opened.close()


def tree(snapshots, chain_id):
    return set(os.listdir(snapshots.driver.root / snapshots.stat(chain_id).id))


def test_layers_land_in_a_storage_driver_under_their_chain_ids(image, content, snapshots):
    made, _ = image
    measured = {}
    top = unpack(made, layers=SnapshotTarget(snapshots), content=content, measured=measured.__setitem__)
    assert top == made.chain_id
    assert tree(snapshots, made.layers[0].chain_id) == {"a"}
    assert tree(snapshots, top) == {"a", "b"}
    assert [layer.key for layer in snapshots.walk()] == [layer.chain_id for layer in made.layers]
    assert list(measured.values()) == [1, 1]


def test_a_storage_driver_keeps_nothing_of_a_layer_that_is_not_what_it_should_be(image, content, snapshots, tar):
    made, _ = image
    with open(content.path(made.layers[0].digest), "wb") as file:
        file.write(tar({"evil": b""}))
    with pytest.raises(DriverError, match="digest mismatch"):
        unpack(made, layers=SnapshotTarget(snapshots), content=content)
    assert list(snapshots.walk()) == []
    assert snapshots.driver.owned() == set()


UNPACK = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
import msgspec
from test_unpack import Plain
from transom.services.snapshots import Snapshots
from transom_engine.images.content import ContentStore
from transom_engine.images.store import Image
from transom_engine.images.unpack import SnapshotTarget, unpack
root = pathlib.Path(sys.argv[2])
commit = Snapshots.commit
def slow(self, key, name):
    (root / "unpacked").touch()
    time.sleep(60)
Snapshots.commit = slow
snapshots = Snapshots(Plain(options=Plain.Options(), root=root / "storage", run=root / "run"))
image = msgspec.json.decode(sys.argv[3], type=Image)
unpack(image, layers=SnapshotTarget(snapshots), content=ContentStore(root / "images" / "content"))
"""


def test_what_a_killed_unpacking_left_goes_by_recovery_and_by_unpacking_again(image, content, snapshots, tmp_path):
    import msgspec

    made, _ = image
    target = SnapshotTarget(snapshots)
    arguments = [os.path.dirname(__file__), str(tmp_path), msgspec.json.encode(made).decode()]
    for again in (lambda: target.recover(content=content), lambda: unpack(made, layers=target, content=content)):
        child = subprocess.Popen([sys.executable, "-c", UNPACK, *arguments])
        deadline = time.monotonic() + 30
        while not (tmp_path / "unpacked").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert target.recover(content=content) == []
        assert len(list(snapshots.walk())) == 1
        child.send_signal(signal.SIGKILL)
        child.wait()
        (tmp_path / "unpacked").unlink()
        told = again()
        assert not [layer for layer in snapshots.walk() if layer.key.startswith("unpack-")]
        if isinstance(told, list):
            assert told == [f"images: removed the half-unpacked layer {made.layers[0].digest[7:19]}"]
            assert target.recover(content=content) == []
    assert tree(snapshots, made.chain_id) == {"a", "b"}
