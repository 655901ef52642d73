"""Where the cgroup v1 hierarchies are mounted, and the tree of groups in each."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

CONTROLLERS = ("freezer", "pids", "memory", "cpuset", "cpu", "cpuacct", "blkio", "devices", "hugetlb")
"""Those that this driver uses, in the order in which a process joins: once it is in any, it can be frozen."""


def hierarchies(mountinfo: str) -> dict[str, str]:
    """Return the mount point of each controller, in the order of `CONTROLLERS` (proc(5), /proc/PID/mountinfo).

    Controllers mounted together share one. Named hierarchies (systemd's) have no controller and are left
    alone; a mount of a whole hierarchy is preferred to one of a part of it, and a later mount to an earlier.
    """
    found: dict[str, tuple[bool, str]] = {}
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        type_, _, super_options = rest.split(" ", 2)
        if type_ != "cgroup":
            continue
        _, _, _, root, point, *_ = fields.split(" ")
        place = (root == "/", re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point))
        for name in super_options.split(","):
            if name in CONTROLLERS and place[0] >= found.get(name, place)[0]:
                found[name] = place
    return {name: found[name][1] for name in CONTROLLERS if name in found}


def read(*path: str) -> str:
    """Return a control file's text, without the end of line."""
    fd = os.open("/".join(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode().rstrip("\n")


def write(path: str, value: str) -> None:
    """Write a value to a control file in one call, as the kernel wants it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def below(group: str) -> Iterator[str]:
    """Yield the groups nested in `group` and then itself, children before parents; gone ones are left out."""
    try:
        # A directory's link count is 2 plus its subdirectories: most groups have none and need no listing.
        children = [e.path for e in os.scandir(group) if e.is_dir()] if os.stat(group).st_nlink > 2 else []
    except FileNotFoundError:
        return
    for child in children:
        yield from below(child)
    yield group


def members(group: str) -> set[int]:
    """Return the pids in `group` and below; 0 stands for processes that this pid namespace cannot name."""
    pids: set[int] = set()
    for path in below(group):
        try:
            pids.update(map(int, read(path, "cgroup.procs").split()))
        except (FileNotFoundError, OSError):
            continue
    return pids
