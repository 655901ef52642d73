"""From resources to control files: what this host offers, what is written in which order, how it is taken back."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from functools import cached_property

from transom.contract.limits import LimitsCapability as Has
from transom.contract.limits import Resources
from transom.services.cgroups import Refused, asked, bfq_in_use, read, write
from transom_limits_cgroup1._devices import current, set_devices

_FIELDS = {
    "memory": (Has.MEMORY, "memory.limit_in_bytes"),
    "memory_swap": (Has.SWAP, "memory.memsw.limit_in_bytes"),
    "kernel_memory": (Has.KERNEL_MEMORY, "memory.kmem.limit_in_bytes"),
    "memory_reservation": (Has.RESERVATION, "memory.soft_limit_in_bytes"),
    "memory_swappiness": (Has.SWAPPINESS, "memory.swappiness"),
    "oom_kill_disable": (Has.OOM_DISABLE, "memory.oom_control"),
    "cpu_shares": (Has.CPU_SHARES, "cpu.shares"),
    "cpu_period": (Has.CPU_QUOTA, "cpu.cfs_period_us"),
    "cpu_quota": (Has.CPU_QUOTA, "cpu.cfs_quota_us"),
    "cpu_rt_period": (Has.CPU_REALTIME, "cpu.rt_period_us"),
    "cpu_rt_runtime": (Has.CPU_REALTIME, "cpu.rt_runtime_us"),
    "cpuset_cpus": (Has.CPUSET, "cpuset.cpus"),
    "cpuset_mems": (Has.CPUSET, "cpuset.mems"),
    "pids": (Has.PIDS, "pids.max"),
    "blkio_weight": (Has.IO_WEIGHT, "blkio.bfq.weight"),
    "blkio_weight_devices": (Has.IO_WEIGHT, "blkio.bfq.weight_device"),
    "device_read_bps": (Has.IO_MAX, "blkio.throttle.read_bps_device"),
    "device_write_bps": (Has.IO_MAX, "blkio.throttle.write_bps_device"),
    "device_read_iops": (Has.IO_MAX, "blkio.throttle.read_iops_device"),
    "device_write_iops": (Has.IO_MAX, "blkio.throttle.write_iops_device"),
    "hugepages": (Has.HUGETLB, ""),
    "devices": (Has.DEVICES, "devices.list"),
}
"""Each field's capability and control file, in the order of writing; the file's first word is the controller."""

# What shows, in the root of a hierarchy, that the kernel was built with it (some files exist below the root only).
_EVIDENCE = {
    Has.MEMORY: "memory.limit_in_bytes",
    Has.SWAP: "memory.memsw.limit_in_bytes",
    Has.RESERVATION: "memory.soft_limit_in_bytes",
    Has.SWAPPINESS: "memory.swappiness",
    Has.KERNEL_MEMORY: "memory.kmem.limit_in_bytes",
    Has.OOM_DISABLE: "memory.oom_control",
    Has.OOM_EVENTS: "memory.oom_control",
    Has.CPU_SHARES: "cpu.shares",
    Has.CPU_QUOTA: "cpu.cfs_quota_us",
    Has.CPU_REALTIME: "cpu.rt_runtime_us",
    Has.CPUSET: "cpuset.cpus",
    Has.PIDS: "pids.",
    Has.IO_WEIGHT: "blkio.bfq.io_serviced",
    Has.IO_MAX: "blkio.throttle.read_bps_device",
    Has.HUGETLB: "hugetlb.",
    Has.DEVICES: "devices.list",
    Has.FREEZE: "freezer.",
}

_WITHOUT = {
    Has.KERNEL_MEMORY: "kernels from 5.16 on do not limit kernel memory by itself: memory includes it",
    Has.SWAP: "this kernel does not account swap: boot with swapaccount=1",
    Has.IO_WEIGHT: "no block device uses the I/O scheduler bfq, see /sys/block/DEVICE/queue/scheduler",
    Has.CPU_REALTIME: "this kernel has no groups of real-time processes (CONFIG_RT_GROUP_SCHED)",
    Has.CPU_QUOTA: "this kernel has no CPU quotas (CONFIG_CFS_BANDWIDTH)",
}

_HINTS = {
    ("memory", errno.EBUSY): "the group uses more than that and cannot give it back",
    ("memory_swap", errno.EBUSY): "the group uses more than that and cannot give it back",
    ("memory", errno.EINVAL): "it would exceed memory_swap, change both",
    ("memory_swap", errno.EINVAL): "it would be below memory, change both",
    ("cpuset_cpus", errno.EACCES): "the group's parent does not have all of these CPUs",
    ("cpuset_mems", errno.EACCES): "the group's parent does not have all of these memory nodes",
    ("cpu_rt_runtime", errno.EINVAL): "the parent group has less real-time runtime to give, or the period is shorter",
    ("devices", errno.EPERM): "the parent group does not allow these devices",
}


class Offered:
    """What the mounted hierarchies offer.

    Args:
        points: the mount point of each controller.
        release: the kernel's, as uname(2) has it.
    """

    def __init__(self, points: dict[str, str], *, release: str = "") -> None:
        self.points = points
        major, minor, *_ = (release or os.uname().release).split(".")
        self._counts_kernel_memory = (int(major), int(minor)) < (5, 16)

    @cached_property
    def capabilities(self) -> frozenset[Has]:
        return frozenset(capability for capability in _EVIDENCE if self._offers(capability))

    @cached_property
    def hugepage_sizes(self) -> frozenset[str]:
        """The sizes that can be limited, as in "2MB"."""
        names = os.listdir(self.points["hugetlb"]) if "hugetlb" in self.points else []
        return frozenset(name.split(".")[1] for name in names if re.fullmatch(r"hugetlb\.\w+\.limit_in_bytes", name))

    def _offers(self, capability: Has) -> bool:
        file = _EVIDENCE[capability]
        controller = file.split(".")[0]
        present = controller in self.points and (
            file.endswith(".") or os.path.exists(f"{self.points[controller]}/{file}")
        )
        if capability is Has.KERNEL_MEMORY:  # later kernels keep the file and refuse what is written
            return present and self._counts_kernel_memory
        return present and (capability is not Has.IO_WEIGHT or bfq_in_use())


def controller_of(field: str) -> str:
    """Return the controller that limits what a field asks for."""
    return (_FIELDS[field][1] or "hugetlb.").split(".")[0]


def unsupported(resources: Resources, offered: Offered) -> dict[str, str]:
    """Say which of the fields that were asked for will not act, and why."""
    reasons = {}
    for field, (capability, file) in _FIELDS.items():
        if asked(resources, field) and capability not in offered.capabilities:
            reasons[field] = f"the cgroup controller {controller_of(field)} is not mounted"
            if controller_of(field) in offered.points:
                reasons[field] = _WITHOUT.get(capability, f"this kernel has no {file}")
    if "hugepages" not in reasons:
        for page in resources.hugepages:
            if page.size not in offered.hugepage_sizes:
                sizes = ", ".join(sorted(offered.hugepage_sizes))
                reasons["hugepages"] = f"no huge pages of {page.size} on this host, it has {sizes}"
    return reasons


_Setting = tuple[str, str, str]
"""A field, its control file in the group, the value."""


def apply(id: str, resources: Resources, offered: Offered, parent: str) -> None:
    """Write what was asked, in an order that the kernel accepts.

    Raises:
        Refused: a value was not accepted; those before it are in force.
    """
    for field, path, value in _ordered(_settings(id, resources, offered, parent)):
        try:
            if field == "cpu_rt_runtime":
                _grant_realtime(path, int(value))
            write(path, value)
        except OSError as error:
            raise _refused(field, value, error) from error
    if resources.devices is not None and Has.DEVICES in offered.capabilities:
        try:
            set_devices(f"{offered.points['devices']}/{parent}/{id}", resources.devices)
        except OSError as error:
            raise _refused("devices", f"{len(resources.devices)} rules", error) from error


def _refused(field: str, value: str, error: OSError) -> Refused:
    return Refused(field, value, error, hint=_HINTS.get((field, error.errno or 0), ""))


def old_values(id: str, resources: Resources, offered: Offered, parent: str) -> list[tuple[str, str]]:
    """Return what to write where, in order, to take an update back; see `restore`."""
    undo = [(path, _old(path, value)) for _, path, value in _settings(id, resources, offered, parent)]
    if resources.devices is not None and Has.DEVICES in offered.capabilities:
        path = f"{offered.points['devices']}/{parent}/{id}/devices.list"
        undo.append((path, read(path)))
    return undo


def restore(undo: list[tuple[str, str]]) -> None:
    """Put values back as far as the kernel lets us; groups that are gone are passed over."""
    listed = {os.path.basename(path): (path, value) for path, value in undo}
    settings = [(_field_of(path), path, value) for path, value in undo if not path.endswith("devices.list")]
    for _, path, value in _ordered(settings):
        try:
            write(path, value)
        except OSError:
            continue
    if "devices.list" in listed:
        path, value = listed["devices.list"]
        try:
            set_devices(os.path.dirname(path), current(value))
        except OSError:
            pass


def _field_of(path: str) -> str:
    name = os.path.basename(path)
    return next((field for field, (_, file) in _FIELDS.items() if file == name), "hugepages")


def _settings(id: str, resources: Resources, offered: Offered, parent: str) -> list[_Setting]:
    """Return each file and value, in the order of the fields, for all but the device list."""
    found = []
    for field, (capability, file) in _FIELDS.items():
        if field == "devices" or not asked(resources, field) or capability not in offered.capabilities:
            continue
        for name, value in _values(field, file, getattr(resources, field), offered):
            found.append((field, f"{offered.points[name.split('.')[0]]}/{parent}/{id}/{name}", value))
    return found


def _values(field: str, file: str, value: object, offered: Offered) -> Iterable[tuple[str, str]]:
    if field == "hugepages":
        for page in value:  # type: ignore[attr-defined]  # the field's type says so
            if page.size in offered.hugepage_sizes:
                yield f"hugetlb.{page.size}.limit_in_bytes", str(page.limit)
    elif isinstance(value, tuple):
        from transom.services.resources import device_numbers

        for item in value:
            amount = item.weight if field == "blkio_weight_devices" else item.rate
            yield file, f"{device_numbers(item.device)} {amount}"
    elif field == "pids":
        yield file, "max" if value in (0, -1) else str(value)
    else:
        yield file, str(int(value)) if isinstance(value, bool) else str(value)


def _ordered(settings: list[_Setting]) -> list[_Setting]:
    """Swap the two pairs in which the kernel compares a new value with the other's present one."""
    order = {setting[0]: setting for setting in settings}
    for first, second in (("memory", "memory_swap"), ("cpu_rt_period", "cpu_rt_runtime")):
        if first in order and second in order:
            a, b = order[first], order[second]
            wanted, now = _number(a[2]), _number(read(b[1]))
            # Memory may not rise above memory and swap; a period may not fall below its runtime.
            if (first == "memory" and 0 <= now < wanted) or (first != "memory" and now > wanted):
                i, j = settings.index(a), settings.index(b)
                settings[i], settings[j] = b, a
    return settings


def _number(text: str) -> int:
    return int(text) if text.lstrip("-").isdigit() else -1


def _grant_realtime(path: str, runtime: int) -> None:
    """Raise the parents' real-time runtime to what this group and its siblings need (scheduler/sched-rt-group.rst).

    A new group has none, and the shares of the period of all children must fit into that of their parent.
    """
    group, share = os.path.dirname(path), runtime / int(read(os.path.dirname(path), "cpu.rt_period_us"))
    grants = []
    while os.path.exists(f"{os.path.dirname(os.path.dirname(group))}/cpu.rt_runtime_us"):  # the root is left alone
        parent = os.path.dirname(group)
        siblings = [entry.path for entry in os.scandir(parent) if entry.is_dir() and entry.path != group]
        share += sum(map(_realtime_share, siblings))
        if share > _realtime_share(parent):
            grants.append((parent, int(share * int(read(parent, "cpu.rt_period_us"))) + 1))
        group = parent
    for parent, needed in reversed(grants):
        write(f"{parent}/cpu.rt_runtime_us", str(needed))


def _realtime_share(group: str) -> float:
    return int(read(group, "cpu.rt_runtime_us")) / int(read(group, "cpu.rt_period_us"))


def _old(path: str, value: str) -> str:
    """Return what to write to `path` to undo the writing of `value`."""
    text = read(path)
    if path.endswith("memory.oom_control"):
        return text.split()[1]
    if ":" not in value:
        return text
    device = value.split()[0]
    for line in text.splitlines():
        if line.startswith(f"{device} "):
            return line
    return f"{device} {'default' if path.endswith('weight_device') else 0}"
