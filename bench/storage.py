"""Storage drivers beside their floor on this machine: bare mount(2) and GNU tar; and docker where it is installed.

    .venv/bin/python bench/storage.py [--driver NAME ...] [--files N ...] [--rounds N] [--no-docker] [--json FILE]

Each figure is the median of interleaved rounds, as a ratio to its floor measured in the same rounds, so that what else
the machine does hits both alike; beside it the ratio of the CPU times, which it hits less. Everything is below a
temporary directory and in namespaces of this process. Nobody syncs what he wrote inside the time that is measured.
"""

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import threading
import time
from pathlib import Path

from engines import both, machine, place_of_our_own

from transom.drivers import Drivers
from transom.services.archive import extract, write_tree
from transom.services.files import sync_filesystem
from transom.services.mounts import mount, mount_all, unmount
from transom.services.snapshots import Snapshots
from transom.services.trees import remove_tree

KIB = 1024


def processor():
    """Return the milliseconds of CPU time of this process and of those that it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) * 1e3


def timed(function, *args):
    """Return how many milliseconds a call takes, and how many of CPU time."""
    used, begin = processor(), time.perf_counter()
    function(*args)
    return (time.perf_counter() - begin) * 1e3, processor() - used


def interleaved(cases, rounds, *, before=None, after=None):
    """Run each case once a round; return the medians of both times by name. `before` and `after` are not timed."""
    seen = {name: [] for name in cases}
    for count in range(rounds):
        for name, function in list(cases.items())[:: -1 if count % 2 else 1]:
            if before:
                before()
            seen[name].append(timed(function))
            if after:
                after()
    return {name: tuple(statistics.median(part) for part in zip(*values, strict=True)) for name, values in seen.items()}


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
    place.mkdir()
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
    found = interleaved({"ours": ours_writes, "GNU tar": theirs_writes}, rounds, before=lambda: sync_filesystem(place))
    yield "write a tar of 200 MB, 16,000 files", found["ours"], found["GNU tar"], "GNU tar"
    target = place / "target"

    def fresh():
        target.mkdir()
        sync_filesystem(place)

    cases = {"ours": lambda: ours_unpacks(target), "GNU tar": lambda: theirs_unpacks(target)}
    found = interleaved(cases, rounds, before=fresh, after=lambda: remove_tree(target))
    yield "unpack the same", found["ours"], found["GNU tar"], "GNU tar"


class Bench:
    """One driver at work below a directory of its own."""

    def __init__(self, driver, place):
        self.place = home_of(driver, place)
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

        def write():
            with open(self.place / "diff.tar", "wb") as file:
                self.snapshots.diff(child, file)

        return write, apply, out.getvalue()

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


def home_of(driver, place):
    """Make a directory for the driver, on a file system in a file where the driver needs one of its own kind."""
    from transom_conformance.disks import disk, lacking

    home = place / driver
    if driver == "btrfs" and not (reason := lacking("btrfs")):
        home = disk("btrfs", size=8 << 30) / driver
    elif driver == "btrfs":
        print(f"btrfs: {reason}")
    home.mkdir()
    return home


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
    once = tuple(64 * part for part in found["1"])
    yield "prepare and remove, 64 threads on one parent", found["64"], once, "64 times one"
    bench.snapshots.close()


def docker_sample(place, rounds):
    """Compare what the command does with layers with docker's, where dockerd is installed."""
    tree, packed, kept = place / "image", place / "image.tar", place / "kept.tar"
    make_tree(tree, 16_000, 12_800)
    subprocess.run(["tar", "-C", tree, "-cf", kept, "."], check=True)
    (tree / "another").touch()  # an image whose layer nobody has yet
    subprocess.run(["tar", "-C", tree, "-cf", packed, "."], check=True)
    with both(place) as (transom, _engine, docker):
        if not docker:
            return
        for side in (transom, docker.side):
            side("import", str(kept), "sample")
            side("create", "--name", "kept", "sample", "x")

        def taken_in(side):
            side("import", str(packed), "again")
            side("rm", side("create", "again", "x").strip())
            side("rmi", "again")

        def given_out(side):
            with open(place / "out.tar", "wb") as out:
                subprocess.run([*side.command, "cp", "kept:/", "-"], env=side.environment, stdout=out, check=True)

        cases = {
            "create and rm of a container": lambda side: side("rm", side("create", "sample", "x").strip()),
            "import, create, rm and rmi of 200 MB": taken_in,
            "cp of 200 MB to a tar": given_out,
        }
        for what, act in cases.items():
            pairs = [[side.measure(act) for side in (transom, docker.side)] for _ in range(rounds)]
            ours, theirs = (
                tuple(statistics.median(part) for part in zip(*seen, strict=True)) for seen in zip(*pairs, strict=True)
            )
            yield what, ours, theirs, "docker"


def main():
    """Measure what the command line asks for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--driver", action="append", help="a storage driver (overlay2, vfs and btrfs)")
    parser.add_argument("--files", type=int, action="append", help="how many files a diff has (1, 10000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="measure ours and the floors only")
    parser.add_argument("--json", help="write the figures here")
    asked = parser.parse_args()
    rows = []
    with place_of_our_own() as place:
        samples = [("tar", tar_sample(place / "tar", asked.rounds))]
        for name in asked.driver or ["overlay2", "vfs", "btrfs"]:
            samples.append((name, driver_sample(name, place, asked.files or [1, 10_000], asked.rounds)))
        if asked.docker:
            samples.append(("command", docker_sample(place, asked.rounds)))
        for name, sample in samples:
            for what, ours, floor, of in sample:
                wall, cpu = (theirs / max(mine, 0.01) for mine, theirs in zip(ours, floor, strict=True))
                ratio = f"{wall:6.2f} x the speed of {of}, {cpu:.2f} x by CPU time"
                print(f"{name:10}{what:48}{ours[0]:10.1f} ms  {ratio}", flush=True)
                rows.append({"subject": name, "what": what, "ms": ours, "floor_ms": floor, "floor": of})
    if asked.json:
        Path(asked.json).write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
