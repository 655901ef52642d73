"""Docker's daemon and Transom's drivers of files read what the other wrote."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from transom.contract.logging import Chunk, LogContainer, Partial, Query, Stream
from transom.drivers import Drivers

SCRIPT = r"""printf 'plain\n\n<b>&"\\\t\033[31m\r\n'; head -c 40000 /dev/zero | tr '\0' x
printf '\303\237\342\200\250\360\237\232\200\n'
sleep 0.1; echo error >&2; sleep 0.1; printf 'no end'"""


@pytest.fixture
def docker(tmp_path, busybox_tree):
    """A docker daemon of our own without any network; a function that calls its command."""
    if not (shutil.which("dockerd") and shutil.which("docker") and shutil.which("containerd")):
        pytest.skip("no dockerd on this host: Debian's docker.io brings it")
    base = Path("/tmp") / f"transom-docker-{os.getpid()}"  # a unix address holds 107 bytes
    base.mkdir()
    environment = {**os.environ, "DOCKER_HOST": f"unix://{base}/d.sock", "DOCKER_CONFIG": str(base / "client")}
    (base / "daemon.json").write_text("{}")
    words = ["dockerd", "-H", f"unix://{base}/d.sock", "--data-root", base / "data", "--exec-root", base / "exec",
             "--pidfile", base / "pid", "--bridge", "none", "--iptables=false", "--ip6tables=false",
             "--ip-forward=false", "--storage-driver", "vfs", "--config-file", base / "daemon.json"]  # fmt: skip
    log = (tmp_path / "dockerd.log").open("wb")
    daemon = subprocess.Popen(words, stdout=log, stderr=log)

    def call(*words, **more):
        return subprocess.run(["docker", *words], env=environment, capture_output=True, check=True, **more).stdout

    try:
        end = time.monotonic() + 60
        while subprocess.run(["docker", "version"], env=environment, capture_output=True, check=False).returncode:
            if daemon.poll() is not None or time.monotonic() > end:
                pytest.skip("dockerd does not start here: " + (tmp_path / "dockerd.log").read_text()[-300:])
            time.sleep(0.2)
        with subprocess.Popen(["tar", "-C", busybox_tree, "-c", "."], stdout=subprocess.PIPE) as tar:
            call("import", "-c", "ENV PATH=/bin", "-", "busybox", stdin=tar.stdout)
        call.root = base / "data"
        yield call
    finally:
        daemon.terminate()
        daemon.wait(60)
        log.close()
        shutil.rmtree(base, ignore_errors=True)


def contents(driver, container, **query):
    reader = driver.read(container=container, query=Query(**query))
    chunks = []
    while batch := reader.next(30):
        chunks += batch
    reader.close()
    return chunks


def text(chunks, stream):
    return b"".join(chunk.data for chunk in chunks if chunk.stream is stream)


@pytest.mark.parametrize("name", ["json-file", "local"])
def test_dockerd_and_transom_read_each_others_logs(docker, tmp_path, name):
    """Case F6."""
    id = docker("create", "--network", "none", "--log-driver", name, "busybox", "sh", "-c", SCRIPT).decode().strip()
    wrote = docker("start", "-a", id)
    place = docker.root / "containers" / id
    driver = Drivers(state=tmp_path / "state", run=tmp_path / "run").logging(name)
    theirs = LogContainer(id=id, name="c", directory=str(place))
    shown = streams(docker, id)
    found = contents(driver, theirs)
    # What it wrote, not what docker shows: version 20.10 leaves the newline out behind a line of several fragments.
    assert (text(found, Stream.STDOUT), text(found, Stream.STDERR)) == (wrote, b"error\n")
    assert text(contents(driver, theirs, tail=1), Stream.STDOUT) == b"no end"
    file = Path(driver.location(container=theirs))
    before = file.read_bytes()
    ours = LogContainer(id=id, name="c", directory=str(tmp_path))
    writer = driver.open(container=ours)
    writer.write([reworked for chunk in found if (reworked := plain(chunk))])
    writer.close(timeout=5)
    written = Path(driver.location(container=ours)).read_bytes()
    if name == "json-file":
        assert written == before, "byte for byte what dockerd wrote"
    file.write_bytes(written)
    assert streams(docker, id) == shown


def plain(chunk):
    """A chunk as the supervisor gives it: pieces without a newline are fragments."""
    return chunk if chunk.data.endswith(b"\n") or chunk.partial else Chunk(
        chunk.stream, chunk.time, chunk.data, partial=Partial(id="f", ordinal=1, last=False)
    )  # fmt: skip


def streams(docker, id):
    environment = {"DOCKER_HOST": f"unix://{docker.root.parent}/d.sock", "PATH": os.environ["PATH"]}
    done = subprocess.run(["docker", "logs", id], env=environment, capture_output=True, check=True)
    return done.stdout, done.stderr
