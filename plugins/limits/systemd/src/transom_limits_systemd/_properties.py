"""A group's control files as the properties of its unit (systemd.resource-control(5))."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transom.services.cgroups import read
from transom.services.resources import parse_list
from transom_limits_systemd._manager import Property

_INFINITY = (1 << 64) - 1
_SECOND = 1_000_000
_RATES = {
    "rbps": "IOReadBandwidthMax",
    "wbps": "IOWriteBandwidthMax",
    "riops": "IOReadIOPSMax",
    "wiops": "IOWriteIOPSMax",
}


def of_group(group: str) -> list[Property]:
    """Return the properties that say what the control files say; a file that is not there has none."""
    found: list[Property] = []
    for file, properties in _OF_FILE.items():
        try:
            text = read(group, file)
        except FileNotFoundError:
            continue
        found += properties(text)
    return found


def _number(name: str) -> Callable[[str], list[Property]]:
    return lambda text: [(name, ("t", _INFINITY if text == "max" else int(text)))]


def _quota(text: str) -> list[Property]:
    quota, period = text.split()
    each_second = _INFINITY if quota == "max" else int(quota) * _SECOND // int(period)
    return [("CPUQuotaPerSecUSec", ("t", each_second)), ("CPUQuotaPeriodUSec", ("t", int(period)))]


def _list(name: str) -> Callable[[str], list[Property]]:
    def property(text: str) -> list[Property]:
        mask = sum(1 << number for number in parse_list(text)) if text else 0
        return [(name, ("ay", mask.to_bytes((mask.bit_length() + 7) // 8, "little")))]

    return property


def _rates(text: str) -> list[Property]:
    """Return each rate twice: empty, which forgets all devices, and with the devices that have one."""
    rates: dict[str, list[tuple[str, int]]] = {name: [] for name in _RATES}
    for line in text.splitlines():
        numbers, *words = line.split()
        for name, _, rate in (word.partition("=") for word in words):
            if rate != "max":
                rates[name].append((_node(numbers), int(rate)))
    empty: list[Property] = [(_RATES[name], ("a(st)", [])) for name in rates]
    return empty + [(_RATES[name], ("a(st)", devices)) for name, devices in rates.items() if devices]


def _weights(text: str) -> list[Property]:
    devices = []
    found: list[Property] = []
    for line in text.splitlines():
        device, weight = line.split()
        if device == "default":
            found.append(("IOWeight", ("t", int(weight))))
        else:
            devices.append((_node(device), int(weight)))
    return [*found, ("IODeviceWeight", ("a(st)", [])), *([("IODeviceWeight", ("a(st)", devices))] if devices else [])]


def _bfq_weight(text: str) -> list[Property]:
    """Return the IOWeight for which systemd writes this default weight (its 1 to 10000 on bfq's 1 to 1000)."""
    weight = int(text.splitlines()[0].split()[1])
    return [("IOWeight", ("t", weight if weight <= 100 else 100 + (weight - 100) * 11))]


def _node(numbers: str) -> str:
    """Return the path of a block device, which systemd wants; the link that udev makes when sysfs has no name."""
    try:
        table = dict(line.split("=", 1) for line in read(f"/sys/dev/block/{numbers}/uevent").splitlines())
        return f"/dev/{table['DEVNAME']}"
    except (OSError, KeyError):
        return f"/dev/block/{numbers}"


_OF_FILE: dict[str, Callable[[str], Any]] = {
    "memory.max": _number("MemoryMax"),
    "memory.swap.max": _number("MemorySwapMax"),
    "memory.low": _number("MemoryLow"),
    "cpu.weight": _number("CPUWeight"),
    "cpu.max": _quota,
    "cpuset.cpus": _list("AllowedCPUs"),
    "cpuset.mems": _list("AllowedMemoryNodes"),
    "pids.max": _number("TasksMax"),
    "io.max": _rates,
    "io.weight": _weights,
    "io.bfq.weight": _bfq_weight,
}
