"""Storage drivers beside their floor on this machine: bare mount(2) and GNU tar; and docker where it is installed.

    .venv/bin/python bench/storage.py [--driver NAME ...] [--files N ...] [--rounds N] [--json FILE]

Each figure is the median of interleaved rounds, as a ratio to its floor measured in the same rounds, so that what else
the machine does hits both alike. Everything is below a temporary directory and in a mount namespace of this process.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from transom.drivers import Drivers
from transom.services.archive import extract, write_tree
from transom.services.mounts import mount, mount_all, private_namespace, unmount
from transom.services.snapshots import Snapshots

KIB = 1024


def timed(function, *args):
    """Return how many milliseconds a call takes."""
    begin = time.perf_counter()
    function(*args)
    return (time.perf_counter() - begin) * 1e3


def interleaved(cases, rounds):
    """Run each case once a round; return the medians by name, in milliseconds."""
    seen = {name: [] for name in cases}
    for _ in range(rounds):
        for name, function in cases.items():
            seen[name].append(timed(function))
    return {name: statistics.median(values) for name, values in seen.items()}


def make_tree(top, files, size):
    """Make so many files of `size` bytes, a hundred in a directory."""
    data = os.urandom(size)
    for n in range(files):
        if n % 100 == 0:
            directory = top / f"d{n // 100}"
            directory.mkdir(parents=True)
        (directory / f"file-{n}").write_bytes(data)


def tar_sample(place, rounds):
    """Compare writing and unpacking a tree of 200 MB, as many files as an image has, with GNU tar."""
    tree, packed = place / "tree", place / "tree.tar"
    make_tree(tree, 16_000, 12_800)
    with open(packed, "wb") as out:
        write_tree(root=str(tree), out=out)

    def ours_writes():
        with open(place / "ours.tar", "wb") as out:
            write_tree(root=str(tree), out=out)

    def theirs_writes():
        command = ["tar", "-C", tree, "--format=pax", "--xattrs", "-cf", place / "theirs.tar", "."]
        subprocess.run(command, check=True)

    def ours_unpacks(target):
        with open(packed, "rb", buffering=0) as stream:
            extract(stream=stream, root=str(target))

    def theirs_unpacks(target):
        subprocess.run(["tar", "-C", target, "--xattrs", "-xpf", packed], check=True)

    theirs_writes()
    found = interleaved({"ours": ours_writes, "GNU tar": theirs_writes}, rounds)
    yield "write a tar of 200 MB, 16,000 files", found["ours"], found["GNU tar"], "GNU tar"
    spent = {"ours": [], "GNU tar": []}
    for _ in range(rounds):
        for name, function in (("ours", ours_unpacks), ("GNU tar", theirs_unpacks)):
            target = place / "target"
            target.mkdir()
            spent[name].append(timed(function, target))
            shutil.rmtree(target)
    ours, theirs = (statistics.median(values) for values in spent.values())
    yield "unpack the same", ours, theirs, "GNU tar"


class Bench:
    """One driver at work below a directory of its own."""

    def __init__(self, driver, place):
        self.place = place / driver
        self.place.mkdir()
        drivers = Drivers(state=self.place / "state", run=self.place / "run")
        self.driver = drivers.storage(driver, {}, where="bench")
        self.snapshots = Snapshots(self.driver)
        self.target = self.place / "target"
        self.target.mkdir()
        self.count = 0

    def key(self):
        self.count += 1
        return f"k{self.count}"

    def inside(self, key, function):
        """Call the function on the mounted layer."""
        mount_all(self.snapshots.mounts(key), str(self.target))
        try:
            return function(self.target)
        finally:
            unmount(str(self.target))

    def committed(self, parent, fill=None):
        key = self.key()
        self.snapshots.prepare(key, parent)
        if fill:
            self.inside(key, fill)
        self.snapshots.commit(key, f"{key}c")
        return f"{key}c"

    def life(self, base):
        """Make a layer, mount it, write a file, unmount and remove it."""
        key = self.key()
        self.snapshots.prepare(key, base)
        self.inside(key, lambda top: (top / "new").write_bytes(bytes(4 * KIB)))
        self.snapshots.remove(key)

    def differ(self, base, files):
        """Return functions that write the diff of so many changed files, and that apply it."""
        child = self.key()
        self.snapshots.prepare(child, base)
        self.inside(child, lambda top: make_tree(top / "changed", files, 100))
        out = io.BytesIO()
        self.snapshots.diff(child, out)

        def apply():
            key = self.key()
            self.snapshots.prepare(key, base)
            self.snapshots.apply(key, io.BytesIO(out.getvalue()))
            self.snapshots.remove(key)

        return (lambda: self.snapshots.diff(child, io.BytesIO())), apply, out.getvalue()

    def at_once(self, base, threads):
        """Let so many threads each make and remove a child of one parent."""

        def work(n):
            own = Snapshots(self.driver)
            own.prepare(f"at-once-{n}", base)
            own.remove(f"at-once-{n}")
            own.close()

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def bare_overlay(place):
    """Return the floor of a layer's life: two directories, mount(2), a file, umount(2), and the directories gone."""
    lower = place / "lower"
    lower.mkdir()
    (lower / "file").touch()

    def life():
        for name in ("upper", "work", "merged"):
            (place / name).mkdir()
        data = f"lowerdir={lower},upperdir={place}/upper,workdir={place}/work,index=off,metacopy=off,redirect_dir=off"
        mount("overlay", str(place / "merged"), "overlay", data=data)
        (place / "merged" / "new").write_bytes(bytes(4 * KIB))
        unmount(str(place / "merged"))
        for name in ("upper", "work", "merged"):
            shutil.rmtree(place / name)

    return life


def gnu_tar(place, packed):
    """Return functions in which GNU tar writes and unpacks the same files."""
    source, target = place / "source", place / "unpacked"
    source.mkdir()
    subprocess.run(["tar", "-C", source, "-xf", "-"], input=packed, check=True)

    def write():
        # Not to /dev/null: GNU tar knows it, and reads no file then.
        subprocess.run(["tar", "-C", source, "--format=pax", "--xattrs", "-cf", place / "written.tar", "."], check=True)

    def unpack():
        target.mkdir()
        subprocess.run(["tar", "-C", target, "-xpf", "-"], input=packed, check=True)
        shutil.rmtree(target)

    return write, unpack


def driver_sample(name, place, files, rounds):
    """Measure one driver; yields a line's facts each."""
    bench, floor = Bench(name, place), place / f"floor-{name}"
    floor.mkdir()
    base = bench.committed(None, lambda top: make_tree(top, 1000, 4 * KIB))
    found = interleaved({"ours": lambda: bench.life(base), "floor": bare_overlay(floor)}, rounds * 5)
    yield "prepare, mount, write, unmount, remove", found["ours"], found["floor"], "bare overlay"
    for count in files:
        ours_write, ours_apply, packed = bench.differ(base, count)
        place_of_tar = floor / str(count)
        place_of_tar.mkdir()
        tar_write, tar_unpack = gnu_tar(place_of_tar, packed)
        found = interleaved({"d": ours_write, "td": tar_write, "a": ours_apply, "ta": tar_unpack}, rounds)
        yield f"diff of {count:,} files", found["d"], found["td"], "GNU tar"
        yield f"prepare, apply and remove of {count:,} files", found["a"], found["ta"], "GNU tar"
    top = base
    for n in range(127 if bench.driver.max_depth >= 128 else bench.driver.max_depth - 1):
        top = bench.committed(top, lambda tree, n=n: (tree / f"layer-{n}").write_text(str(n)))
    plain = floor / "plain"

    def read(tree):
        for directory, _, names in os.walk(tree):
            for file in names:
                Path(directory, file).read_bytes()

    bench.inside(top, lambda tree: shutil.copytree(tree, plain, dirs_exist_ok=True))
    found = interleaved({"ours": lambda: bench.inside(top, read), "floor": lambda: read(plain)}, rounds)
    yield "read a tree of 128 layers, mounting it", found["ours"], found["floor"], "a plain directory"
    found = interleaved({"64": lambda: bench.at_once(base, 64), "1": lambda: bench.at_once(base, 1)}, rounds)
    yield "prepare and remove, 64 threads on one parent", found["64"], found["1"] * 64, "64 times one"
    bench.snapshots.close()


def docker_sample(rounds):
    """Measure docker's making and removing of a container that is not started, where a daemon answers."""
    if not shutil.which("docker") or subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        return
    tar = io.BytesIO()
    with tempfile.TemporaryDirectory() as empty:
        write_tree(root=empty, out=tar)
    subprocess.run(["docker", "import", "-", "bench-empty"], input=tar.getvalue(), check=True, capture_output=True)

    def life():
        id = subprocess.run(["docker", "create", "bench-empty", "x"], check=True, capture_output=True, text=True).stdout
        subprocess.run(["docker", "rm", id.strip()], check=True, capture_output=True)

    yield "docker create and rm, for comparison", statistics.median(timed(life) for _ in range(rounds)), None, ""


def main():
    """Measure what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--driver", action="append", help="a storage driver (overlay2)")
    parser.add_argument("--files", type=int, action="append", help="how many files a diff has (1, 10000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write the figures here")
    asked = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("bench: run as root: layers are mounted")
    private_namespace()
    rows = []
    with tempfile.TemporaryDirectory(prefix="transom-bench-") as work:
        place = Path(work)
        samples = [("tar", tar_sample(place, asked.rounds))]
        for name in asked.driver or ["overlay2"]:
            samples.append((name, driver_sample(name, place, asked.files or [1, 10_000], asked.rounds)))
        samples.append(("docker", docker_sample(asked.rounds)))
        for name, sample in samples:
            for what, ours, floor, of in sample:
                ratio = f"{floor / ours:6.2f} x the speed of {of}" if floor else ""
                print(f"{name:10}{what:48}{ours:10.1f} ms  {ratio}", flush=True)
                rows.append({"subject": name, "what": what, "ms": ours, "floor_ms": floor, "floor": of})
    if asked.json:
        Path(asked.json).write_text(json.dumps({"load": os.getloadavg(), "rows": rows}, indent=1))
    print(f"load of the machine meanwhile: {' '.join(f'{value:.1f}' for value in os.getloadavg())}")


if __name__ == "__main__":
    main()
