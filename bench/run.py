"""Transom beside docker on this machine: `make bench`. What is measured and how to read it is in README.md.

Both engines work in a network and a mount namespace that this program made for itself, below a directory of its
own, with control groups of their own; dockerd is one that it starts and stops. Nothing on the host is changed.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from engines import IMAGE, both, machine, place_of_our_own
from tracing import phases, traced

from transom.services.mounts import CLONE_NEWNS, unmount, unshare


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


def measure(place, options):
    """Set both engines up, measure, print, and take them down."""
    with both(place, docker=options.docker) as (transom, engine, docker):
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


def main():
    """Read the options and measure in namespaces and a directory of our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="how often each case runs on each side (default 15)")
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="measure ours only")
    parser.add_argument("--json", metavar="FILE", help="write every single figure to FILE as well")
    options = parser.parse_args()
    with place_of_our_own() as place:
        figures = measure(place, options)
        if options.json:
            Path(options.json).write_text(json.dumps({"machine": machine(), "figures": figures}))


if __name__ == "__main__":
    main()
