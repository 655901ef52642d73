"""Where the cgroup v1 hierarchies are mounted."""

from __future__ import annotations

from transom.services.cgroups import mount_points

CONTROLLERS = ("freezer", "pids", "memory", "cpuset", "cpu", "cpuacct", "blkio", "devices", "hugetlb")
"""Those that this driver uses, in the order in which a process joins: once it is in any, it can be frozen."""


def hierarchies(mountinfo: str) -> dict[str, str]:
    """Return the mount point of each controller, in the order of `CONTROLLERS` (proc(5), /proc/PID/mountinfo).

    Controllers mounted together share one. Named hierarchies (systemd's) have no controller and are left
    alone; a mount of a whole hierarchy is preferred to one of a part of it, and a later mount to an earlier.
    """
    found: dict[str, tuple[bool, str]] = {}
    for root, point, names in mount_points(mountinfo, "cgroup"):
        place = (root == "/", point)
        for name in names:
            if name in CONTROLLERS and place[0] >= found.get(name, place)[0]:
                found[name] = place
    return {name: found[name][1] for name in CONTROLLERS if name in found}


def others(mountinfo: str) -> list[str]:
    """Return the mount points of hierarchies that this driver does not use: named ones, net_cls and the like."""
    used = set(hierarchies(mountinfo).values())
    return sorted({point for _, point, _ in mount_points(mountinfo, "cgroup")} - used)
