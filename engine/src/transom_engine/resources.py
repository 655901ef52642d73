"""From the limits that a user writes to what the contract of limits drivers calls resources."""

from __future__ import annotations

from collections.abc import Iterable

from transom.contract.limits import Resources, Throttle, Weight
from transom_engine.model import HostConfig, ThrottleDevice
from transom_engine.oci.devices import rules


def resources_of(host: HostConfig) -> Resources:
    """Collect a container's limits; what was not asked for stays None."""
    from transom.services.resources import from_cpus

    period, quota = from_cpus(nano=host.nano_cpus) if host.nano_cpus else (host.cpu_period, host.cpu_quota)
    swap = host.memory_swap
    if host.memory and not swap:
        swap = host.memory * 2  # Docker's default: as much swap as memory
    return Resources(
        memory=host.memory or None,
        memory_swap=swap or None,
        memory_reservation=host.memory_reservation or None,
        memory_swappiness=None if host.memory_swappiness in {None, -1} else host.memory_swappiness,
        kernel_memory=host.kernel_memory or None,
        oom_kill_disable=host.oom_kill_disable or None,
        cpu_shares=host.cpu_shares or None,
        cpu_period=period or None,
        cpu_quota=quota or None,
        cpu_rt_period=host.cpu_realtime_period or None,
        cpu_rt_runtime=host.cpu_realtime_runtime or None,
        cpuset_cpus=host.cpuset_cpus or None,
        cpuset_mems=host.cpuset_mems or None,
        pids=host.pids_limit or None,
        blkio_weight=host.blkio_weight or None,
        blkio_weight_devices=tuple(Weight(device=d.path, weight=d.weight) for d in host.blkio_weight_device),
        device_read_bps=_throttles(host.blkio_device_read_bps),
        device_write_bps=_throttles(host.blkio_device_write_bps),
        device_read_iops=_throttles(host.blkio_device_read_iops),
        device_write_iops=_throttles(host.blkio_device_write_iops),
        devices=None if host.privileged else rules(host_config=host),
    )


def _throttles(devices: Iterable[ThrottleDevice]) -> tuple[Throttle, ...]:
    return tuple(Throttle(device=d.path, rate=d.rate) for d in devices)
