"""What the benchmarks share: both engines below a directory of our own, in namespaces and control groups of our own.

dockerd is one that is started and stopped here, with paths, a socket and a pid file of its own. Nothing on the host is
changed, and nothing is left.
"""

import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from transom.services.mounts import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unmount, unshare
from transom.services.netns import CLONE_NEWNET, loopback_up

TRANSOM = str(Path(sys.executable).with_name("transom"))
IMAGE = "bench:latest"
SETTLE = 0.04
"""Seconds after which what a command left to others to do has been done and its CPU time is counted."""


@contextmanager
def place_of_our_own():
    """Give this process namespaces of its own, and a directory that goes in the end, with an image's root in it."""
    if os.geteuid() != 0:
        raise SystemExit("the benchmark mounts, makes interfaces and runs containers: run it as root")
    print(machine() + "\n", flush=True)
    unshare(CLONE_NEWNET | CLONE_NEWNS)
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    loopback_up()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended before the end"))
    place = Path(tempfile.mkdtemp(prefix="transom-bench-"))
    try:
        make_root(place / "root")
        yield place
    finally:
        for line in Path("/proc/self/mounts").read_text().splitlines()[::-1]:
            if line.split()[1].startswith(f"{place}/"):  # dockerd's own namespace of the network, say
                unmount(line.split()[1])
        shutil.rmtree(place, ignore_errors=True)
    print("\n" + machine())


@contextmanager
def both(place, *, docker=True):
    """Set both engines up: yields ours with its command line, and dockerd, or None where there is none."""
    name = f"transom-bench-{os.getpid()}"
    groups = [Group(f"{name}-transom"), Group(f"{name}-docker")]
    engine, daemon = None, None
    try:
        transom, engine = transom_side(place, groups[0])
        if docker and shutil.which("dockerd") and shutil.which("docker"):
            daemon = Dockerd(place, groups[1])
        else:
            print("No dockerd here: our figures only.\n" if docker else "")
        yield transom, engine, daemon
    finally:
        if engine:
            engine.close()
        if daemon:
            daemon.stop()
        base = "/sys/fs/cgroup/cpuacct/cgroup.procs" if groups[0].v1 else "/sys/fs/cgroup/cgroup.procs"
        Path(base).write_text("0")
        for group in groups:
            group.remove()


class Group:
    """A control group that counts the CPU time of an engine: its commands, daemons and containers together."""

    def __init__(self, name):
        self.name = name
        self.v1 = os.path.isdir("/sys/fs/cgroup/cpuacct")
        self.path = f"/sys/fs/cgroup/{'cpuacct/' if self.v1 else ''}{name}"
        os.makedirs(f"{self.path}/commands")

    @property
    def containers(self):
        """The parent of the containers' own groups."""
        return f"{self.name}/containers"

    def enter(self):
        """Move this process, and so what it starts from now on, into the group."""
        Path(self.path, "commands/cgroup.procs").write_text("0")

    def cpu(self):
        """Return the CPU time used so far in milliseconds."""
        if self.v1:
            return int(Path(self.path, "cpuacct.usage").read_text()) / 1e6
        lines = Path(self.path, "cpu.stat").read_text().split()
        return int(lines[lines.index("usage_usec") + 1]) / 1e3

    def processes(self):
        """Return the pids in the group itself, containers left out."""
        return [int(pid) for pid in Path(self.path, "commands/cgroup.procs").read_text().split()]

    def remove(self):
        """Remove the group from every hierarchy; this process has left it."""
        for top in [*glob.glob(f"/sys/fs/cgroup/*/{self.name}"), f"/sys/fs/cgroup/{self.name}"]:
            for path, _, _ in os.walk(top, topdown=False):
                os.rmdir(path)


class Side:
    """One engine: its command line, environment and group."""

    def __init__(self, title, command, environment, group):
        self.title, self.command, self.environment, self.group = title, command, environment, group
        self.held = ""

    def __call__(self, *words):
        """Run the command; return what it printed."""
        self.group.enter()
        done = subprocess.run(
            [*self.command, *words], env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{self.title} {' '.join(words)} failed with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def measure(self, operation):
        """Return wall-clock and CPU milliseconds of `operation`, called with this side."""
        self.group.enter()
        used, start = self.group.cpu(), time.perf_counter()
        operation(self)
        wall = (time.perf_counter() - start) * 1000
        time.sleep(SETTLE)
        return wall, self.group.cpu() - used


def transom_side(place, group):
    """Set our engine up over roots of its own, with the image."""
    from transom.config import load
    from transom_engine.engine import Engine
    from transom_engine.images.importer import import_tar

    config = place / "daemon.json"
    parents = {"cgroup1": {"parent": group.containers}, "cgroup2": {"parent": group.containers}}
    config.write_text(json.dumps({"transom": {"driver-opts": {"limits": parents}}}))
    environment = {**clean_environment(), "TRANSOM_CONFIG": str(config), "TRANSOM_DATA_ROOT": str(place / "data"),
                   "TRANSOM_EXEC_ROOT": str(place / "exec")}  # fmt: skip
    engine = Engine(load(path=None, environ=environment, overrides={}))
    changes = ["ENV PATH=/bin"]
    import_tar(str(place / "root"), content=engine.content, store=engine.images, reference=IMAGE, changes=changes)
    engine.close()
    return Side("transom", [TRANSOM], environment, group), engine


class Dockerd:
    """A docker daemon of our own; `side` is its command line."""

    def __init__(self, place, group):
        self.group = group
        (place / "docker.json").write_text("{}")
        socket = f"unix://{place}/docker.sock"
        environment = {**clean_environment(), "DOCKER_HOST": socket, "DOCKER_CONFIG": str(place / "client")}
        self.side = Side("docker", ["docker"], environment, self.group)
        self.group.enter()
        self.log = open(place / "dockerd.log", "wb")
        self.process = subprocess.Popen(
            ["dockerd", "-H", socket, "--data-root", place / "docker", "--exec-root", place / "docker-exec",
             "--pidfile", place / "dockerd.pid", "--bip", "10.213.77.1/24", "--storage-driver", "overlay2",
             "--cgroup-parent", f"/{self.group.containers}", "--config-file", place / "docker.json"],
            stdout=self.log, stderr=self.log,
        )  # fmt: skip
        end = time.monotonic() + 60
        while subprocess.run(["docker", "version"], env=environment, capture_output=True, check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise SystemExit("dockerd does not start:\n" + Path(self.log.name).read_text()[-2000:])
            time.sleep(0.2)
        archive = place / "image.tar"
        subprocess.run(["tar", "-C", place / "root", "-cf", archive, "."], check=True)
        self.side("import", "-c", "ENV PATH=/bin", str(archive), IMAGE)

    def stop(self):
        """Stop the daemon and, should one have outlived it, every process in its group."""
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for pid in set(self.group.processes()) - {os.getpid()}:
            os.kill(pid, signal.SIGKILL)
        self.log.close()


def clean_environment():
    """Return the environment without variables of either engine or of the interpreter."""
    ours = ("TRANSOM_", "DOCKER_", "PYTHON")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


def make_root(root):
    """Lay out a root file system of the host's static busybox."""
    for name in ("bin", "etc", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for applet in ("sh", "sleep", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


def machine():
    """Describe the machine in a line."""
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "?")
    load = " ".join(Path("/proc/loadavg").read_text().split()[:3])
    kernel = os.uname().release
    return f"kernel {kernel}, {os.cpu_count()} CPUs ({model}), python {sys.version.split()[0]}, load {load}"
