"""The content store: blobs are whole or absent, whatever is killed and whoever writes at the same time."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.errors import ConfigError, DriverError, NotFound
from transom_engine.images.content import ContentStore
from transom_engine.images.spec import digest_of


def ingest_names(content):
    return os.listdir(f"{content.root}/ingest")


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    "wrap", [bytes, io.BytesIO, lambda data: iter([data[:3], data[3:]])], ids=["bytes", "file", "pieces"]
)
def test_a_blob_is_stored_under_its_digest(content, wrap, known):
    digest = digest_of(b"some content")
    assert not content.has(digest)
    assert content.ingest(wrap(b"some content"), digest=digest if known else "") == digest
    assert content.read(digest) == b"some content"
    assert content.size(digest) == 12
    assert list(content.walk()) == [digest]
    assert ingest_names(content) == []


def test_the_directory_is_an_oci_layout(content):
    digest = content.ingest(b"x")
    with open(f"{content.root}/oci-layout") as file:
        assert json.load(file) == {"imageLayoutVersion": "1.0.0"}
    with open(f"{content.root}/index.json") as file:
        assert json.load(file) == {"schemaVersion": 2, "manifests": []}
    assert content.path(digest) == f"{content.root}/blobs/sha256/{digest[7:]}"


def test_storing_again_reads_nothing(content):
    digest = content.ingest(b"x")

    def never():
        raise AssertionError
        yield b""

    assert content.ingest(never(), digest=digest) == digest


def test_an_absent_blob_is_said(content):
    digest = digest_of(b"absent")
    for call in (content.open, content.read, content.size):
        with pytest.raises(NotFound) as raised:
            call(digest)
        assert str(raised.value) == f"blob {digest} is not here; pull its image again"
    content.delete(digest)
    assert list(content.walk()) == []


@pytest.mark.parametrize("digest", ["sha256:../../../etc/passwd", "x", "sha512:" + "0" * 128])
def test_what_is_no_digest_never_becomes_a_path(content, digest):
    with pytest.raises(ConfigError, match="digest"):
        content.open(digest)


def test_wrong_content_is_refused_and_not_kept(content):
    digest, found = digest_of(b"good"), digest_of(b"evil")
    with pytest.raises(DriverError) as raised:
        content.ingest(b"evil", digest=digest)
    assert str(raised.value) == (
        f"image content: verify {digest} failed: digest mismatch: the content's is {found}; nothing"
        " of it was kept; pull"
        " again, and if that fails too its source is damaged"
    )
    assert ingest_names(content) == [] == list(content.walk())


@pytest.mark.parametrize(
    ("size", "reason"), [(3, "it is longer than the 3 bytes announced"), (5, "it has 4 of 5 bytes")]
)
def test_a_wrong_size_is_refused(content, size, reason):
    with pytest.raises(DriverError, match=reason):
        content.ingest(b"good", digest=digest_of(b"good"), size=size)
    assert ingest_names(content) == []


def test_a_broken_source_leaves_what_came_and_the_next_goes_on(content):
    digest = digest_of(b"abcdef")

    def broken():
        yield b"abc"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        content.ingest(broken(), digest=digest)
    with content.writer(digest=digest, size=6) as writer:
        assert writer.offset == 3
        writer.write(b"def")
        assert writer.commit() == digest
    assert content.read(digest) == b"abcdef"


def test_a_broken_source_of_unknown_digest_leaves_nothing(content):
    def broken():
        yield b"abc"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        content.ingest(broken())
    assert ingest_names(content) == []


def test_threads_that_store_the_same_blob_at_once_do_not_disturb_each_other(content):
    data = os.urandom(500_000)
    digest, failures = digest_of(data), []

    def work():
        try:
            content.ingest((data[at : at + 1000] for at in range(0, len(data), 1000)), digest=digest)
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert content.read(digest) == data
    assert ingest_names(content) == []


WRITE = """
import sys
from transom_engine.images.content import ContentStore
root, digest, path = sys.argv[1:]
with open(path, "rb") as file:
    ContentStore(root).ingest(iter(lambda: file.read(4096), b""), digest=digest)
"""


@pytest.mark.timeout(120)
def test_killed_at_any_moment_the_blob_is_absent_or_whole_and_the_next_attempt_finishes_it(tmp_path):
    data = os.urandom(3_000_000)
    digest, path = digest_of(data), tmp_path / "data"
    path.write_bytes(data)
    seen = set()
    for delay in range(10):
        content = ContentStore(tmp_path / f"content-{delay}")
        child = subprocess.Popen([sys.executable, "-c", WRITE, content.root, digest, str(path)])
        partial = f"{content.root}/ingest/sha256-{digest[7:]}.partial"
        while child.poll() is None and not os.path.exists(partial):
            time.sleep(0.001)
        time.sleep(delay * 0.002)
        child.send_signal(signal.SIGKILL)
        child.wait()
        if content.has(digest):
            assert content.read(digest) == data
        seen.add(content.has(digest))
        assert content.ingest(data, digest=digest) == digest
        assert content.read(digest) == data
        assert ingest_names(content) == []


def test_collecting_keeps_what_is_named_and_removes_the_rest(content):
    kept, gone = content.ingest(b"kept"), content.ingest(b"gone")
    assert content.collect([kept]) == [gone]
    assert list(content.walk()) == [kept]
    assert content.collect([kept]) == []


def test_collecting_leaves_everything_while_a_lease_is_held(content):
    digest = content.ingest(b"not yet recorded")
    with content.lease():
        assert content.collect([]) is None
        assert content.has(digest)
    assert content.collect([]) == [digest]


def test_collecting_an_untouched_store_makes_nothing(tmp_path):
    assert ContentStore(tmp_path / "none").collect([]) == []
    assert not (tmp_path / "none").exists()


def test_collecting_removes_dead_partials_but_not_those_being_written_or_worth_continuing(content):
    content._prepare()
    for name in ("anonymous-dead", f"sha256-{'0' * 64}", f"sha256-{'1' * 64}"):
        with open(f"{content.root}/ingest/{name}.partial", "wb") as file:
            file.write(b"x")
    os.utime(f"{content.root}/ingest/sha256-{'1' * 64}.partial", (0, 0))
    with content.writer() as writer:
        writer.write(b"alive")
        content.collect([])
        assert len(ingest_names(content)) == 2
        assert f"sha256-{'0' * 64}.partial" in ingest_names(content)
        digest = writer.commit()
    assert content.read(digest) == b"alive"


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 3000), max_size=4))
def test_however_often_it_breaks_off_the_blob_is_the_same(tmp_path_factory, data, cuts):
    content = ContentStore(tmp_path_factory.mktemp("content"))
    digest = digest_of(data)
    for cut in cuts:
        with content.writer(digest=digest, size=len(data)) as writer:
            writer.write(data[writer.offset : writer.offset + cut])
    assert content.ingest(data, digest=digest, size=len(data)) == digest
    assert content.read(digest) == data
