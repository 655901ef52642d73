"""Logs beside docker's: writing, reading back and following two million lines of 100 bytes of a real container.

    python bench/logs.py [--pairs N] [--lines N] [--no-docker]

Both engines run the same container in turn, in control groups of their own; every line is counted on both sides. What
dockerd has no file for (the time above the command's own start, in a log of 1 GB) is shown for ours alone.
"""

import argparse
import os
import statistics
import subprocess
import time
from datetime import datetime

from engines import IMAGE, both, place_of_our_own

PLAIN = "".join(chr(ord("a") + number % 26) for number in range(99))
ESCAPED = '{"level":"info","msg":"<b>größe & maß</b>","path":"C:\\\\temp","ok":"ünïcödé"}'
ESCAPED += "." * (99 - len(ESCAPED.encode()))
GIGABYTE = 6_000_000
"""Lines of 100 bytes whose records fill 1 GB."""


def written(side, name, lines, *options):
    """Run a container that writes a file of lines, to its end; return the seconds of its life and of CPU time."""
    used = side.group.cpu()
    side(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        name,
        "-v",
        f"{lines.parent}:/lines:ro",
        *options,
        IMAGE,
        "cat",
        f"/lines/{lines.name}",
    )
    side("wait", name)
    words = side("inspect", "-f", "{{.State.StartedAt}} {{.State.FinishedAt}}", name).split()
    begin, end = (datetime.fromisoformat(f"{word[:26].rstrip('Z')}+00:00") for word in words)
    return (end - begin).total_seconds(), (side.group.cpu() - used) / 1000


def make_lines(path, line, count):
    """Write a file of equal lines of 100 bytes."""
    block = line.encode() + b"\n"
    assert len(block) == 100
    with open(path, "wb") as file:
        for _ in range(count // 10_000):
            file.write(block * 10_000)


def timed(side, *words):
    """Run a command whose output is counted by wc; return seconds and lines."""
    side.group.enter()
    start = time.perf_counter()
    with subprocess.Popen([*side.command, *words], env=side.environment, stdout=subprocess.PIPE) as process:
        counted = subprocess.run(["wc", "-l"], stdin=process.stdout, capture_output=True, text=True, check=True)
    return time.perf_counter() - start, int(counted.stdout)


def measure(side, place, lines):
    """Return by case lines a second, of wall-clock and of CPU time."""
    rates = {}
    options = ["--log-driver", "json-file"]
    options += [] if side.title == "docker" else ["--log-opt", "max-size=-1"]  # docker's default has no word there
    _, idle = written(side, "log", place / "lines/empty", *options)
    side("rm", "log")
    for case in ("plain", "escapes"):
        name = "write, escapes and UTF-8" if case == "escapes" else "write"
        spent, used = written(side, "log", place / "lines" / case, *options)
        rates[name], rates[f"{name}: of CPU"] = lines / spent, lines / max(used - idle, 0.001)
        spent, count = timed(side, "logs", "log")
        if count != lines:
            raise SystemExit(f"{side.title} kept {count} of {lines} lines")
        rates[name.replace("write", "read")] = lines / spent
        side("rm", "log")
    mount_lines = ("-v", f"{place / 'lines'}:/lines:ro")
    side(
        "run",
        "-d",
        "--network",
        "none",
        "--name",
        "log",
        *mount_lines,
        *options,
        IMAGE,
        "sh",
        "-c",
        "sleep 1; cat /lines/plain",
    )
    spent, count = timed(side, "logs", "-f", "log")
    if count != lines:
        print(f"{side.title} showed a follower {count} of {lines} lines")
    rates["follow"] = count / (spent - 1)
    side("rm", "-f", "log")
    return rates


def least(side, *words, times=7):
    """Return the least of some seconds that a command takes."""
    return min(timed(side, *words)[0] for _ in range(times))


def positions(side, place, lines):
    """Show what --tail and --since take above the command's start, in a log of 1 GB."""
    repeat = f"for i in {' '.join(map(str, range(GIGABYTE // lines)))}; do cat /lines/plain; done"
    words = ("--log-opt", "max-size=-1", "-v", f"{place / 'lines'}:/lines:ro", IMAGE, "sh", "-c", repeat)
    side("run", "-d", "--network", "none", "--name", "log", *words)
    side("wait", "log")
    side("run", "-d", "--network", "none", "--name", "empty", IMAGE, "true")
    side("wait", "empty")
    size = os.stat(side("inspect", "-f", "{{.LogPath}}", "log").strip()).st_size
    last = side("logs", "-t", "--tail", "1", "log").split()[0]
    start = least(side, "logs", "empty")
    print(f"\nA log of {size / 1e9:.2f} GB; `logs` of an empty one takes {start * 1000:.0f} ms. Above that:")
    for words in (("--tail", "10"), ("--since", last, "--tail", "10"), ("--tail", "1000")):
        print(f"  logs {' '.join(words):60}{(least(side, 'logs', *words, 'log') - start) * 1000:8.1f} ms")
    side("rm", "log", "empty")


def main():
    """Read the options and measure in namespaces and a directory of our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="how often each side is measured (default 5)")
    parser.add_argument("--lines", type=int, default=2_000_000, help="lines of a container (default 2000000)")
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="measure ours only")
    options = parser.parse_args()
    with place_of_our_own() as place:
        (place / "root/bin/cat").symlink_to("busybox")
        (place / "lines").mkdir()
        make_lines(place / "lines/empty", PLAIN, 0)
        make_lines(place / "lines/plain", PLAIN, options.lines)
        make_lines(place / "lines/escapes", ESCAPED, options.lines)
        with both(place, docker=options.docker) as (transom, _engine, docker):
            sides = [transom] + ([docker.side] if docker else [])
            found = {side.title: [] for side in sides}
            for _ in range(options.pairs):
                for side in sides:
                    found[side.title].append(measure(side, place, options.lines))
            show(found)
            positions(transom, place, options.lines)


def show(found):
    """Print medians in thousand lines a second, and the median of the pairs' ratios."""
    ours, *theirs = found.values()
    print(f"{'json-file, thousand lines a second':40}{'transom':>10}{'docker':>10}{'ratio':>8}   (least - most)")
    for case in ours[0]:
        row = f"{case:40}{statistics.median(f[case] for f in ours) / 1000:10.0f}"
        if theirs:
            pairs = sorted(a[case] / b[case] for a, b in zip(ours, theirs[0], strict=True))
            row += f"{statistics.median(f[case] for f in theirs[0]) / 1000:10.0f}{statistics.median(pairs):7.1f}x"
            row += f"   ({pairs[0]:.1f} - {pairs[-1]:.1f})"
        print(row)


if __name__ == "__main__":
    main()
