"""Reading what a group uses."""

from __future__ import annotations

import os
import time

import msgspec

from transom.contract.limits import IoStats, Stats
from transom.services.cgroups import below, read, table
from transom_limits_cgroup1._watch import oom_kills

_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_UNLIMITED = 1 << 62
"""Memory limits at or above this are the kernel's way to say none: LONG_MAX rounded down to pages."""


def collect(groups: dict[str, str]) -> Stats:
    """Read the counters; `groups` has the group's directory for each controller."""
    values: dict[str, object] = {"time": time.time_ns()}
    details: dict[str, int] = {}
    if "cpuacct" in groups:
        values |= _cpu(groups["cpuacct"])
    if "cpu" in groups:
        stat = table(read(groups["cpu"], "cpu.stat"))
        values |= {
            "cpu_periods": stat.get("nr_periods", 0),
            "cpu_throttled_periods": stat.get("nr_throttled", 0),
            "cpu_throttled": stat.get("throttled_time", 0),
        }
    if "memory" in groups:
        details = table(read(groups["memory"], "memory.stat"))
        values |= _memory(groups["memory"], details)
    if "pids" in groups:
        limit = read(groups["pids"], "pids.max")
        values |= {
            "pids": int(read(groups["pids"], "pids.current")),
            "pids_limit": None if limit == "max" else int(limit),
        }
    if "blkio" in groups:
        values["io"] = _io(groups["blkio"])
    return Stats(details=details, **values)  # type: ignore[arg-type]  # each function above names its fields


def joined(stats: Stats, beside: Stats) -> Stats:
    """Fill in what v1 does not count from the unified side of a hybrid host."""
    counted = msgspec.structs.asdict(beside).items()
    lacking = {name: value for name, value in counted if value and not getattr(stats, name)}
    return msgspec.structs.replace(stats, **lacking)


def _cpu(group: str) -> dict[str, object]:
    values: dict[str, object] = {"cpu": int(read(group, "cpuacct.usage"))}
    try:
        user, system = int(read(group, "cpuacct.usage_user")), int(read(group, "cpuacct.usage_sys"))
    except FileNotFoundError:  # before Linux 4.6
        stat = table(read(group, "cpuacct.stat"))
        user, system = stat["user"] * _TICK, stat["system"] * _TICK
    return values | {"cpu_user": user, "cpu_system": system}


def _memory(group: str, stat: dict[str, int]) -> dict[str, object]:
    limit = int(read(group, "memory.limit_in_bytes"))
    return {
        "memory": int(read(group, "memory.usage_in_bytes")),
        "memory_cache": stat.get("total_inactive_file", 0),
        "memory_max": int(read(group, "memory.max_usage_in_bytes")),
        "memory_limit": None if limit >= _UNLIMITED else limit,
        # With both limits equal, which is how "no swap" is said, only the second one is ever hit.
        "memory_failures": int(read(group, "memory.failcnt")) + _swap_failures(group),
        # Kills are counted where the killed process was, and not in the groups above.
        "oom_kills": sum(oom_kills(read(path, "memory.oom_control")) for path in below(group)),
    }


def _swap_failures(group: str) -> int:
    try:
        return int(read(group, "memory.memsw.failcnt"))
    except FileNotFoundError:
        return 0


def _io(group: str) -> tuple[IoStats, ...]:
    found: dict[str, dict[str, int]] = {}
    for file, suffix in (("io_service_bytes", "bytes"), ("io_serviced", "operations")):
        for line in _either(group, f"blkio.throttle.{file}_recursive", f"blkio.throttle.{file}").splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in {"Read", "Write"}:
                found.setdefault(words[0], {})[f"{words[1].lower()}_{suffix}"] = int(words[2])
    return tuple(IoStats(device=device, **counts) for device, counts in sorted(found.items()))


def _either(group: str, file: str, otherwise: str) -> str:
    try:
        return read(group, file)
    except FileNotFoundError:
        return read(group, otherwise)
