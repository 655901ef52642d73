"""Transom beside docker on this machine: `make bench`. What is measured and how to read it is in README.md.

Both engines work in a network and a mount namespace that this program made for itself, below a directory of its
own, with control groups of their own; dockerd is one that it starts and stops. Nothing on the host is changed.
"""

import argparse
import glob
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tracing import phases, traced

from transom.services.mounts import CLONE_NEWNS, MS_REC, mount, unmount, unshare
from transom.services.netns import CLONE_NEWNET, loopback_up

TRANSOM = str(Path(sys.executable).with_name("transom"))
IMAGE = "bench:latest"
MS_PRIVATE = 1 << 18
SETTLE = 0.04
"""Seconds after which what a command left to others to do has been done and its CPU time is counted."""


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


def run_on(network):
    """Make the operation of running one container that ends at once."""
    return lambda side: side("run", "--rm", "--network", network, IMAGE, "true")


def create_and_remove(side):
    """Make a container and remove it; it is never started."""
    side("rm", side("create", "--network", "none", IMAGE, "true").strip())


def running(side):
    """Return the container that cases work on; it is started by the first that asks."""
    side.held = side.held or side("run", "-d", "--network", "none", "-m", "64m", IMAGE, "sleep", "100000").strip()
    return side.held


CASES = {
    "run --rm, network none": run_on("none"),
    "run --rm, network host": run_on("host"),
    "run --rm, network bridge": run_on("bridge"),
    "create + rm, never started": create_and_remove,
    "update of a running one": lambda side: side("update", "--pids-limit", "100", running(side)),
    "stats --no-stream of one": lambda side: side("stats", "--no-stream", running(side)),
    "--version": lambda side: side("--version"),
    "--help": lambda side: side("--help"),
}


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


def compare(sides, pairs):
    """Run every case on every side in turn, `pairs` times; return the figures by case and side."""
    figures = {case: {side.title: [] for side in sides} for case in CASES}
    for count in range(-1, pairs):
        for case, operation in CASES.items():
            for side in sides:
                figure = side.measure(operation)
                if count >= 0:  # the first round warms up
                    figures[case][side.title].append(figure)
    for side in sides:
        side("rm", "-f", running(side))
    return figures


def floors(transom, engine, place, pairs):
    """Measure what nobody gets below: the OCI runtime alone, the interpreter alone, and what click costs."""
    bundle = make_bundle(transom, place)
    runtime = engine.runtime

    def hide():
        unshare(CLONE_NEWNS)
        for path in runtime.hide:
            unmount(path)

    def crun(_side):
        words = runtime.run(id="floor", root=str(place / "floor"), bundle=str(bundle))
        subprocess.run(words, check=True, preexec_fn=hide, stdout=subprocess.DEVNULL)

    def python(*words):
        return lambda _side: subprocess.run([sys.executable, *words], check=True)

    cases = {
        f"{runtime.name} run of the same bundle": crun,
        "python -I -c pass": python("-I", "-c", "pass"),
        "python -c 'import click'": python("-c", "import click"),
    }
    figures = {case: [] for case in cases}
    for count in range(-1, pairs):
        for case, operation in cases.items():
            figure = transom.measure(operation)
            if count >= 0:
                figures[case].append(figure)
    return figures


def make_bundle(transom, place):
    """Take the bundle of a running container, and let it end at once in a network namespace of its own."""
    id = transom("run", "-d", "--network", "none", IMAGE, "sleep", "1000").strip()
    spec = json.loads((place / "exec/transom/containers" / id / "config.json").read_text())
    keep = place / "bundle"
    shutil.copytree(place / "data/transom/containers" / id, keep / "files")
    shutil.copytree(place / "root", keep / "rootfs", symlinks=True)
    spec["root"]["path"], spec["process"]["args"] = "rootfs", ["true"]
    spec["linux"].pop("cgroupsPath", None)
    for namespace in spec["linux"]["namespaces"]:
        namespace.pop("path", None)
    for item in spec["mounts"]:
        item["source"] = item.get("source", "").replace(
            str(place / "data/transom/containers" / id), str(keep / "files")
        )
    (keep / "config.json").write_text(json.dumps(spec))
    transom("rm", "-f", id)
    return keep


def idle_memory(side, count=5):
    """Return the proportional set size in KiB of what supervises one idle container, and of the daemons."""
    ids = [side("run", "-d", "--network", "none", IMAGE, "sleep", "1000").strip() for _ in range(count)]
    try:
        time.sleep(0.5)
        supervisors, daemons = [], 0
        for pid in set(side.group.processes()) - {os.getpid()}:
            comm = Path(f"/proc/{pid}/comm").read_text().strip()
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
            size = int(rollup[rollup.index("Pss:") + 1])
            if comm in ("dockerd", "containerd"):
                daemons += size
            else:
                supervisors.append(size)
        return sum(supervisors) / count, daemons
    finally:
        side("rm", "-f", *ids)


def machine():
    """Describe the machine in a line."""
    with open("/proc/cpuinfo") as file:
        model = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "?")
    load = " ".join(Path("/proc/loadavg").read_text().split()[:3])
    kernel = os.uname().release
    return f"kernel {kernel}, {os.cpu_count()} CPUs ({model}), python {sys.version.split()[0]}, load {load}"


def middle(figures, index):
    """Return the median of one of the two figures."""
    return statistics.median(figure[index] for figure in figures)


def show(figures, ratios):
    """Print the table of the comparison, or of ours alone."""
    print(f"{'':34}{'transom ms':>11}{'least':>7}{'CPU':>6}", end="")
    print(f"{'docker ms':>12}{'least':>7}{'CPU':>6}{'ratio':>9}{'of CPU':>8}" if ratios else "")
    for case, by_side in figures.items():
        print(f"{case:34}", end="")
        for side in by_side.values():
            print(f"{middle(side, 0):11.0f}{min(f[0] for f in side):7.0f}{middle(side, 1):6.0f}", end=" ")
        if ratios:
            ours, theirs = by_side.values()
            pairs = list(zip(ours, theirs, strict=True))
            for index in (0, 1):
                ratio = statistics.median(b[index] / max(a[index], 0.1) for a, b in pairs)
                print(f"{ratio:7.1f}x", end="")
        print()


def measure(place, name, options):
    """Set both engines up, measure, print, and take them down."""
    groups = [Group(f"{name}-transom"), Group(f"{name}-docker")]
    transom, engine, docker = None, None, None
    try:
        transom, engine = transom_side(place, groups[0])
        if options.docker and shutil.which("dockerd") and shutil.which("docker"):
            docker = Dockerd(place, groups[1])
        else:
            print("No dockerd here: our figures only.\n" if options.docker else "")
        sides = [transom] + ([docker.side] if docker else [])
        figures = compare(sides, options.pairs)
        show(figures, bool(docker))
        print()
        show({case: {"": found} for case, found in floors(transom, engine, place, options.pairs).items()}, False)
        print("\nMemory for one idle container (PSS, KiB), and of daemons")
        for side in sides:
            each, daemons = idle_memory(side)
            print(f"  {side.title:10}{each:8.0f}{daemons:10}")
        transom.group.enter()
        print("\nWhere the milliseconds of `transom run --rm --network none` go (medians, traced)")
        print(f"{'':50}{'ms':>9}{'CPU':>8}")
        traces = [traced(transom, ["run", "--rm", "--network", "none", IMAGE, "true"]) for _ in range(options.pairs)]
        for phase, wall, cpu in phases(traces):
            print(f"  {phase:48}{wall:9.1f}{cpu:8.1f}")
        return figures
    finally:
        if engine:
            engine.close()
        if docker:
            docker.stop()
        base = "/sys/fs/cgroup/cpuacct/cgroup.procs" if groups[0].v1 else "/sys/fs/cgroup/cgroup.procs"
        Path(base).write_text("0")
        for group in groups:
            group.remove()


def main():
    """Read the options and measure in namespaces and a directory of our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="how often each case runs on each side (default 15)")
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="measure ours only")
    parser.add_argument("--json", metavar="FILE", help="write every single figure to FILE as well")
    options = parser.parse_args()
    if os.geteuid() != 0:
        raise SystemExit("the benchmark runs containers: run it as root")
    print(machine() + "\n", flush=True)
    unshare(CLONE_NEWNET | CLONE_NEWNS)
    mount("", "/", flags=MS_REC | MS_PRIVATE)
    loopback_up()
    place = Path(tempfile.mkdtemp(prefix="transom-bench-"))
    try:
        make_root(place / "root")
        figures = measure(place, f"transom-bench-{os.getpid()}", options)
        if options.json:
            Path(options.json).write_text(json.dumps({"machine": machine(), "figures": figures}))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print("\n" + machine())


def make_root(root):
    """Lay out a root file system of the host's static busybox."""
    for name in ("bin", "etc", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox"), root / "bin/busybox")
    for applet in ("sh", "sleep", "true"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")


if __name__ == "__main__":
    main()
