"""A root file system of busybox, records to run in it, and the place where a supervisor would call a runtime."""

import os
import shlex
import shutil
import subprocess
import uuid
from pathlib import Path

import pytest

from transom.errors import NotSupported
from transom_engine.model import Config, Container, HostConfig
from transom_engine.oci import runtime as runtimes
from transom_engine.oci import spec
from transom_engine.oci.host import CAPABILITIES, Host

APPLETS = "sh true cat sleep id env ls grep mount hostname ps stat echo touch tty test unshare mkdir kill head".split()
PASSWD = "root:x:0:0:root:/root:/bin/sh\nsvc:x:1000:1001:a service:/home/svc:/bin/sh\nbare:x:1002\n"
GROUP = "root:x:0:\nsvc:x:1001:\naudio:x:29:svc\nvideo:x:44:root,svc\n"


def record_of(*args, mounts=(), config=None, **host_config):
    """A container's record that runs `args`."""
    identity = uuid.uuid4().hex * 2
    return Container(
        id=identity,
        name=identity[:8],
        created="",
        image="",
        config=Config(cmd=list(args) or ["true"], **(config or {})),
        host_config=HostConfig(**host_config),
        mounts=list(mounts),
    )


@pytest.fixture
def record():
    return record_of


@pytest.fixture
def rootfs(tmp_path):
    root = tmp_path / "rootfs"
    for directory in ("bin", "etc", "root", "home/svc", "tmp"):
        (root / directory).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text(PASSWD)
    (root / "etc/group").write_text(GROUP)
    return root


@pytest.fixture
def full_host():
    """A host whose engine lacks nothing."""
    return Host(capabilities=frozenset(CAPABILITIES), machine="x86_64")


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    return str(path)


@pytest.fixture(params=runtimes.NAMES)
def runtime(request, run_dir):
    try:
        return runtimes.choose(run_dir=run_dir, names=(request.param,))
    except NotSupported as error:
        pytest.skip(str(error))


class Place:
    """Runs the runtime's commands as pid 1 of a pid namespace, with mounts of its own, as a supervisor does."""

    def __init__(self, runtime, rootfs: Path, directory: Path):
        self.runtime, self.rootfs, self.directory = runtime, rootfs, directory
        self.root = str(directory / "state")
        self.cgroup = f"/transom-test-{uuid.uuid4().hex}" if runtime.manages_cgroups else ""
        self.options = {"id": "it", "root": self.root}

    def bundle(self, container, **options):
        options = {"netns": None, "cgroups_path": self.cgroup} | options
        built = spec.build(container=container, rootfs=str(self.rootfs), **options)
        (self.directory / "config.json").write_bytes(built.encode())
        return built

    def popen(self, *commands, **options):
        words = [["umount", place] for place in self.runtime.hide] + list(commands)
        script = " && ".join(word if isinstance(word, str) else shlex.join(word) for word in words)
        arguments = ["unshare", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script]
        return subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
        )

    def sh(self, *commands):
        """Return exit status, output and errors of commands, each an argument list or a line of shell."""
        process = self.popen(*commands)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        return process.returncode, out, err

    def run(self, container, **options):
        """Run a container to its end and return what it wrote; it must succeed."""
        self.bundle(container, **options)
        status, out, err = self.sh(self.runtime.run(bundle=str(self.directory), **self.options))
        assert status == 0, err
        return out


@pytest.fixture
def place(runtime, rootfs, tmp_path):
    place = Place(runtime, rootfs, tmp_path)
    yield place
    place.sh(runtime.delete(**place.options))
    left = [top for top, names, _ in os.walk("/sys/fs/cgroup") if place.cgroup[1:] in names] if place.cgroup else []
    assert not left
