"""What no host accepts of resource limits, said before a driver is asked; and the conversions every driver needs.

Rules and units are Docker's (``docker run --help``, its reference of resource constraints).
"""

from __future__ import annotations

import os
import re
import stat

from transom.contract.limits import Resources
from transom.errors import ConfigError
from transom.services.options import write_size

MEMORY_MIN = 6 << 20
"""Bytes; below it no container starts."""
PERIOD = 100_000
"""Microseconds: the kernel's usual CFS period (CFS bandwidth control, sched-bwc)."""


def check(resources: Resources, *, cpus: int) -> list[str]:
    """Refuse what no host accepts; return warnings about what is accepted and unwise.

    Args:
        cpus: how many CPUs this host has.

    Raises:
        ConfigError: the first value that is out of range or contradicts another.
    """
    _check_memory(resources)
    _check_cpu(resources)
    if resources.cpuset_cpus is not None:
        _check_list("cpuset-cpus", resources.cpuset_cpus, _online("cpu", otherwise=cpus), "CPUs")
    if resources.cpuset_mems is not None:  # without NUMA there is one node
        _check_list("cpuset-mems", resources.cpuset_mems, _online("node", otherwise=1), "memory nodes")
    if resources.pids is not None and resources.pids < -1:
        raise ConfigError(f"pids limit {resources.pids} is out of range: use 1 or more; 0 and -1 are no limit")
    _check_io(resources)
    if resources.oom_kill_disable and resources.memory is None:
        return ["oom-kill-disable without a memory limit lets the container hang the host: set memory too"]
    return []


def _check_memory(r: Resources) -> None:
    _enough("memory limit", r.memory)
    if r.memory_swap is not None and r.memory_swap < -1:
        raise ConfigError(f"memory-swap {r.memory_swap} is out of range: use a size, or -1 for no limit on swap")
    if r.memory_swap not in (None, -1) and r.memory is None:
        raise ConfigError("memory-swap needs a memory limit too: set memory")
    limit = f"the memory limit {write_size(r.memory or 0)}"
    if r.memory is not None and r.memory_swap is not None and 0 <= r.memory_swap < r.memory:
        raise ConfigError(f"memory-swap {write_size(r.memory_swap)} is below {limit}: it counts memory and swap")
    _enough("memory reservation", r.memory_reservation)
    if r.memory is not None and r.memory_reservation is not None and r.memory_reservation > r.memory:
        raise ConfigError(f"memory reservation {write_size(r.memory_reservation)} is above {limit}")
    _range("memory-swappiness", r.memory_swappiness, 0, 100)
    _enough("kernel memory limit", r.kernel_memory)
    for page in r.hugepages:
        if page.limit < 0 or not re.fullmatch(r"\d+[KMG]B", page.size):
            raise ConfigError(f"huge page limit {page.size}:{page.limit} is not of the form 2MB:BYTES")


def _enough(what: str, value: int | None) -> None:
    if value is not None and value < MEMORY_MIN:
        raise ConfigError(f"{what} {write_size(value)} is below the minimum of 6 MB")


def _check_cpu(r: Resources) -> None:
    _range("cpu-shares", r.cpu_shares, 2, 262144)
    _range("cpu-period", r.cpu_period, 1000, 1_000_000, "us")
    if r.cpu_quota is not None and r.cpu_quota != -1 and r.cpu_quota < 1000:
        least = "the minimum of 1000 us, 0.01 CPU of the usual period"
        raise ConfigError(f"cpu-quota {r.cpu_quota} us is below {least}; -1 is no limit")
    for name, value in (("cpu-rt-period", r.cpu_rt_period), ("cpu-rt-runtime", r.cpu_rt_runtime)):
        if value is not None and value < 0:
            raise ConfigError(f"{name} {value} is negative: use microseconds")
    period = r.cpu_rt_period or 1_000_000
    if r.cpu_rt_runtime is not None and r.cpu_rt_runtime > period:
        raise ConfigError(f"cpu-rt-runtime {r.cpu_rt_runtime} us is longer than its period, {period} us")


def _check_list(name: str, text: str, available: set[int], what: str) -> None:
    numbers = parse_list(text, name=name)
    if lacking := write_list(numbers - available):
        lacking += f"; available: {write_list(available)}"
        raise ConfigError(f"{name} {text!r}: requested {what} are not available: {lacking}")


def _online(what: str, *, otherwise: int) -> set[int]:
    try:
        with open(f"/sys/devices/system/{what}/online", encoding="ascii") as file:
            return parse_list(file.read().strip())
    except OSError:
        return set(range(otherwise))


def _check_io(r: Resources) -> None:
    _range("blkio-weight", r.blkio_weight, 10, 1000)
    for weight in r.blkio_weight_devices:
        _range(f"blkio-weight of {weight.device}", weight.weight, 10, 1000)
        device_numbers(weight.device)
    for throttle in (*r.device_read_bps, *r.device_write_bps, *r.device_read_iops, *r.device_write_iops):
        if throttle.rate < 1:
            what = f"I/O rate {throttle.rate} of {throttle.device}"
            raise ConfigError(f"{what} is out of range: use 1 or more per second")
        device_numbers(throttle.device)


def _range(name: str, value: int | None, low: int, high: int, unit: str = "") -> None:
    if value is not None and not low <= value <= high:
        unit = f" {unit}" if unit else ""
        raise ConfigError(f"{name} {value}{unit} is out of range: use {low} to {high}{unit}")


def check_cpus(nano: int, *, cpus: int) -> None:
    """Refuse more CPUs, in billionths, than this host has, as Docker does. A quota may be higher: it limits nothing.

    Raises:
        ConfigError: out of range.
    """
    if not 0 <= nano <= cpus * 1_000_000_000:
        known = f"range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"
        raise ConfigError(f"{known}, not {nano / 1_000_000_000:g}")


def from_cpus(nano: int) -> tuple[int, int]:
    """Return (period, quota) in microseconds for `nano` billionths of a CPU, Docker's ``--cpus``."""
    return PERIOD, nano * PERIOD // 1_000_000_000


def parse_list(text: str, *, name: str = "list") -> set[int]:
    """Return the numbers of a list such as "0-2,4" (cpuset(7), "List format").

    Raises:
        ConfigError: it is not such a list, or a range runs backwards.
    """
    numbers: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part, re.ASCII)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(f"{name} {text!r} is not a list such as 0-2,4")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers


def write_list(numbers: set[int]) -> str:
    """Write numbers as the shortest list: ``0-2,4``."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def device_numbers(device: str) -> str:
    """Return "major:minor" of a block device given by path or already so.

    Raises:
        ConfigError: no such path, or it is no block device.
    """
    if re.fullmatch(r"\d+:\d+", device, re.ASCII):
        return device
    try:
        status = os.stat(device)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"device {device!r}: {reason}; give a block device's path or MAJOR:MINOR") from None
    if not stat.S_ISBLK(status.st_mode):
        raise ConfigError(f"device {device!r} is not a block device; give a block device's path or MAJOR:MINOR")
    return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
