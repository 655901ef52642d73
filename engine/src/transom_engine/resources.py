"""From the limits that a user writes to what the contract of limits drivers calls resources."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from transom.contract.limits import HugepageLimit, Limits, Resources, Throttle, Weight
from transom.contract.limits import LimitsCapability as Has
from transom.errors import ConfigError
from transom.services.options import write_size
from transom_engine.model import HostConfig, ThrottleDevice
from transom_engine.oci.devices import rules


def resources_of(host: HostConfig) -> Resources:
    """Collect a container's limits; what was not asked for stays None."""
    from transom.services.resources import from_cpus

    period, quota = from_cpus(nano=host.nano_cpus) if host.nano_cpus else (host.cpu_period, host.cpu_quota)
    swap = host.memory_swap or usual_swap(host.memory)
    return Resources(
        memory=host.memory or None,
        memory_swap=swap or None,
        memory_reservation=host.memory_reservation or None,
        memory_swappiness=None if host.memory_swappiness in {None, -1} else host.memory_swappiness,
        kernel_memory=host.kernel_memory or None,
        oom_kill_disable=host.oom_kill_disable or None,
        cpu_shares=host.cpu_shares or None,
        cpu_period=period or None,
        cpu_quota=max(quota, -1) or None,  # Docker takes any negative number for none
        cpu_rt_period=host.cpu_realtime_period or None,
        cpu_rt_runtime=host.cpu_realtime_runtime or None,
        cpuset_cpus=host.cpuset_cpus or None,
        cpuset_mems=host.cpuset_mems or None,
        pids=None if host.pids_limit is None else host.pids_limit if host.pids_limit > 0 else -1,
        blkio_weight=host.blkio_weight or None,
        blkio_weight_devices=tuple(
            Weight(device=d.path, weight=d.weight) for d in host.blkio_weight_device if d.weight
        ),
        device_read_bps=_throttles(host.blkio_device_read_bps),
        device_write_bps=_throttles(host.blkio_device_write_bps),
        device_read_iops=_throttles(host.blkio_device_read_iops),
        device_write_iops=_throttles(host.blkio_device_write_iops),
        hugepages=tuple(HugepageLimit(size=item.page_size, limit=item.limit) for item in host.hugepage_limits),
        devices=None if host.privileged else rules(host_config=host),
    )


def usual_swap(memory: int) -> int:
    """Return memory-swap where only memory was given, as Docker has it: as much swap as memory."""
    return memory * 2


def check(host: HostConfig, limits: Limits) -> list[str]:
    """Refuse limits that no host accepts; return warnings, a line each, about what will not act as it was meant.

    Raises:
        ConfigError: the first value that is out of range or contradicts another.
    """
    import os

    from transom.services import resources as services

    cpus = os.cpu_count() or 1
    for other, value in (("--cpu-period", host.cpu_period), ("--cpu-quota", host.cpu_quota)):
        if host.nano_cpus and value:
            raise ConfigError(f"conflicting options: --cpus and {other} cannot both be set, --cpus is both at once")
    services.check_cpus(nano=host.nano_cpus, cpus=cpus)
    resources = resources_of(host)
    _check_numbers(resources)
    return services.check(resources, cpus=cpus) + without_effect(host, limits)


def _check_numbers(r: Resources) -> None:
    """Refuse MAJOR:MINOR of no device: the kernel would, at each start, and would not say of which (sysfs(5))."""
    import os

    throttles = (*r.device_read_bps, *r.device_write_bps, *r.device_read_iops, *r.device_write_iops)
    for device in [*(weight.device for weight in r.blkio_weight_devices), *(item.device for item in throttles)]:
        if not device.startswith("/") and not os.path.exists(f"/sys/dev/block/{device}"):
            raise ConfigError(f"device {device!r}: no block device has these numbers; `lsblk` lists those here")


def without_effect(host: HostConfig, limits: Limits) -> list[str]:
    """Say, a line each, what was asked for and does not act as it was meant on this host."""
    resources = resources_of(host)
    refused = limits.unsupported_resources(resources=resources)
    found = [f"{field.replace('_', '-')} has no effect: {reason}" for field, reason in refused.items()]
    writes = resources.device_write_bps or resources.device_write_iops
    if writes and Has.IO_MAX in limits.capabilities and Has.IO_BUFFERED not in limits.capabilities:
        found.append(
            f"device-write limits hold for direct and synchronous I/O only: {limits.name} cannot limit buffered writes"
        )
    return found


def updated(host: HostConfig, changes: Mapping[str, object]) -> HostConfig:
    """Return limits with changes to a container, fields by name, in force.

    Raises:
        ConfigError: they contradict what the container has, by Docker's rules.
    """
    asked = msgspec.structs.replace(HostConfig(), **changes)
    if asked.nano_cpus and (host.cpu_period or host.cpu_quota):
        had = "--cpu-period" if host.cpu_period else "--cpu-quota"
        raise ConfigError(f"conflicting options: --cpus cannot be updated, as {had} has been set already; update that")
    if host.nano_cpus and (asked.cpu_period or asked.cpu_quota):
        given = "--cpu-period" if asked.cpu_period else "--cpu-quota"
        raise ConfigError(
            f"conflicting options: {given} cannot be updated, as --cpus has been set already; update that"
        )
    if asked.memory and not asked.memory_swap and 0 <= host.memory_swap < asked.memory:
        has = f"is above the memory-swap {write_size(host.memory_swap)} that the container has"
        if not host.memory_swap:
            has = "is the first of a container that has none, nor one of memory-swap"
        raise ConfigError(f"the memory limit {write_size(asked.memory)} {has}: give --memory-swap at the same time")
    changed = msgspec.structs.replace(host, **changes)
    changed.memory_swap = changed.memory_swap or usual_swap(changed.memory)
    return changed


def _throttles(devices: Iterable[ThrottleDevice]) -> tuple[Throttle, ...]:
    return tuple(Throttle(device=d.path, rate=d.rate) for d in devices)
