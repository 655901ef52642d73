"""The resource-limit contract: groups of processes, and what they may use.

Glossary
    group       a control group, or whatever the driver uses for one: it holds every process of a container
                and whatever they fork. Named by an id that core gives (a container's id).
    resources   what was asked, in Docker's units; None always means "not asked, leave as it is".
    controller  a part of the kernel that limits one thing (memory, cpu, pids, ...). A host may lack some.

Life cycle::

    create(id, resources) -> join paths -> [update | stats | freeze | thaw | kill]* -> remove(id)

The driver owns the group: the OCI runtime is told not to manage cgroups. A process joins by writing its pid
to each of the files that `create` returns, before it executes the runtime, so that nothing of the container
ever runs outside its group.

What the host cannot do
    `unsupported_resources(resources)` names what was asked and will not act here, with the reason, so that
    the engine can warn once and go on as Docker does. Values that no host accepts are refused by core before
    the driver is called (`transom.services.resources.check`).

A worked example, a driver that limits nothing::

    class Unlimited(Limits):
        name = "unlimited"
        api = 1

        def unsupported_resources(self, resources):
            return {name: "this driver limits nothing" for name in asked(resources)}
        def create(self, id, resources):
            (self.run / id).mkdir(parents=True, exist_ok=True)
            return ()
        ...
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from typing import ClassVar

import msgspec

from transom.contract import Capability, Driver, operation


class LimitsCapability(Capability):
    """What can be limited or done; an instance declares what this host's kernel really offers."""

    MEMORY = "memory"
    SWAP = "swap"
    """`Resources.memory_swap` acts: the kernel accounts swap."""
    RESERVATION = "reservation"
    SWAPPINESS = "swappiness"
    KERNEL_MEMORY = "kernel-memory"
    """`Resources.kernel_memory` acts: cgroup v1 before Linux 5.16."""
    OOM_DISABLE = "oom-disable"
    OOM_EVENTS = "oom-events"
    """`Limits.watch` reports kills by the kernel's out-of-memory killer."""
    CPU_SHARES = "cpu-shares"
    CPU_QUOTA = "cpu-quota"
    CPU_REALTIME = "cpu-realtime"
    CPUSET = "cpuset"
    PIDS = "pids"
    IO_WEIGHT = "io-weight"
    IO_MAX = "io-max"
    """Bytes and operations per second and device, of direct and synchronous I/O at least."""
    IO_BUFFERED = "io-buffered"
    """`IO_MAX` holds for buffered writes too (cgroup v2 only, cgroups(7))."""
    HUGETLB = "hugetlb"
    DEVICES = "devices"
    """The device allow list is enforced."""
    FREEZE = "freeze"


class Weight(msgspec.Struct, frozen=True):
    """A device's share of I/O, 10 to 1000. `device` is a path or "major:minor"."""

    device: str
    weight: int


class Throttle(msgspec.Struct, frozen=True):
    """A device's ceiling: bytes or operations per second. `device` is a path or "major:minor"."""

    device: str
    rate: int


class HugepageLimit(msgspec.Struct, frozen=True):
    """At most `limit` bytes in pages of `size` ("2MB")."""

    size: str
    limit: int


class DeviceRule(msgspec.Struct, frozen=True):
    """A rule of the device list (cgroup-v1/devices.rst): the last that matches decides.

    `type` is ``a``, ``b`` or ``c``; `major` and `minor` None mean all; `access` is out of ``rwm``.
    """

    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


class Resources(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a group may use. None: not asked. The units are Docker's.

    Attributes:
        memory: bytes.
        memory_swap: bytes of memory and swap together; -1 for no limit on swap.
        memory_reservation: bytes; reclaimed down to under pressure.
        memory_swappiness: 0 to 100.
        kernel_memory: bytes; kernels from 5.16 on have no such limit.
        oom_kill_disable: processes wait for memory and are not killed.
        cpu_shares: relative weight, 1024 being the usual; 2 to 262144.
        cpu_period: microseconds, 1,000 to 1,000,000.
        cpu_quota: microseconds of CPU time each period, at least 1,000; -1 for no limit.
        cpu_rt_period, cpu_rt_runtime: microseconds.
        cpuset_cpus, cpuset_mems: lists such as "0-2,4".
        pids: the most processes and threads; -1 for no limit.
        blkio_weight: 10 to 1000.
        devices: the allow list; the driver starts from "deny all". None leaves all devices allowed.
    """

    memory: int | None = None
    memory_swap: int | None = None
    memory_reservation: int | None = None
    memory_swappiness: int | None = None
    kernel_memory: int | None = None
    oom_kill_disable: bool | None = None
    cpu_shares: int | None = None
    cpu_period: int | None = None
    cpu_quota: int | None = None
    cpu_rt_period: int | None = None
    cpu_rt_runtime: int | None = None
    cpuset_cpus: str | None = None
    cpuset_mems: str | None = None
    pids: int | None = None
    blkio_weight: int | None = None
    blkio_weight_devices: tuple[Weight, ...] = ()
    device_read_bps: tuple[Throttle, ...] = ()
    device_write_bps: tuple[Throttle, ...] = ()
    device_read_iops: tuple[Throttle, ...] = ()
    device_write_iops: tuple[Throttle, ...] = ()
    hugepages: tuple[HugepageLimit, ...] = ()
    devices: tuple[DeviceRule, ...] | None = None


class IoStats(msgspec.Struct, frozen=True):
    """I/O of a group on one device, "major:minor": bytes and operations since it was made."""

    device: str
    read_bytes: int = 0
    write_bytes: int = 0
    read_operations: int = 0
    write_operations: int = 0


class Stats(msgspec.Struct, frozen=True):
    """What a group uses now. None: the host has no such controller.

    Attributes:
        time: nanoseconds since the epoch, when it was read.
        cpu: nanoseconds of CPU time since the group was made; `cpu_user` and `cpu_system` are parts of it.
        cpu_periods, cpu_throttled_periods, cpu_throttled: enforcement periods, those throttled, nanoseconds lost.
        memory: bytes in use, page cache included.
        memory_cache: of them, inactive page cache, which Docker's MEM USAGE column leaves out.
        memory_max: bytes at the highest.
        memory_limit: bytes; None when there is no limit.
        memory_failures: how often the limit was hit.
        oom_kills: processes killed for want of memory.
        pids, pids_limit: counts.
        details: the kernel's own counters by name, for ``stats`` through an API.
    """

    time: int
    cpu: int | None = None
    cpu_user: int | None = None
    cpu_system: int | None = None
    cpu_periods: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled: int = 0
    memory: int | None = None
    memory_cache: int = 0
    memory_max: int | None = None
    memory_limit: int | None = None
    memory_failures: int = 0
    oom_kills: int | None = None
    pids: int | None = None
    pids_limit: int | None = None
    io: tuple[IoStats, ...] = ()
    details: dict[str, int] = {}


class LimitEvent(enum.StrEnum):
    """Something that happened to a group."""

    OOM = "oom"
    """The kernel's out-of-memory killer killed a process of the group."""


class Watch(ABC):
    """A source of events of one group, for a poll loop."""

    @abstractmethod
    def fileno(self) -> int:
        """Return a descriptor that polls readable when there is something to read."""

    @abstractmethod
    def read(self) -> tuple[LimitEvent, ...]:
        """Return what happened since the last call, without blocking; nothing: empty."""

    @abstractmethod
    def close(self) -> None:
        """Release the descriptor. Twice is harmless."""


class Limits(Driver):
    """The contract of a resource-limit driver; see the module's text."""

    kind: ClassVar[str] = "limits"

    @operation()
    @abstractmethod
    def unsupported_resources(self, resources: Resources) -> dict[str, str]:
        """Name each field of `resources` that was asked for and will not act here, with the reason."""

    @operation()
    @abstractmethod
    def create(self, id: str, resources: Resources) -> tuple[str, ...]:
        """Make the group, empty, with its limits set; return the files to join it by, in order.

        Creating an existing group sets its limits again and succeeds (a start after a crash).

        Raises:
            DriverError: the kernel refused a value, named by its field; no group is left.
        """

    @operation()
    def runtime_path(self, id: str) -> str:
        """Return the group's path as OCI's ``linux.cgroupsPath``, for a runtime that insists on knowing it."""
        return ""

    @operation()
    @abstractmethod
    def update(self, id: str, resources: Resources) -> None:
        """Set what `resources` asks for, in an order that the kernel accepts: all of it or none of it.

        Raises:
            NotFound: no such group.
            DriverError: the kernel refused (usage above the new limit); the old values are in force again.
        """

    @operation()
    @abstractmethod
    def stats(self, id: str) -> Stats:
        """Read what the group uses.

        Raises:
            NotFound: no such group.
        """

    @operation()
    @abstractmethod
    def processes(self, id: str) -> tuple[int, ...]:
        """Return the pids in the group and below it, as the caller's pid namespace sees them; none: empty."""

    @operation(needs=LimitsCapability.OOM_EVENTS)
    def watch(self, id: str) -> Watch:
        """Report events of the group as they happen.

        Raises:
            NotFound: no such group.
        """
        raise self.unsupported(LimitsCapability.OOM_EVENTS)

    @operation(needs=LimitsCapability.FREEZE)
    def freeze(self, id: str) -> None:
        """Stop every process of the group where it is; return when all are stopped. Twice is harmless."""
        raise self.unsupported(LimitsCapability.FREEZE)

    @operation(needs=LimitsCapability.FREEZE)
    def thaw(self, id: str) -> None:
        """Let a frozen group go on. Not frozen is success."""
        raise self.unsupported(LimitsCapability.FREEZE)

    @operation()
    @abstractmethod
    def kill(self, id: str) -> None:
        """Kill (SIGKILL) every process in the group and below, frozen ones and those that fork meanwhile too.

        Returns when none is left; an absent group is success.

        Raises:
            DriverError: a process did not die (it hangs in the kernel); its pid is named.
        """

    @operation()
    @abstractmethod
    def remove(self, id: str) -> None:
        """Remove the group and what is nested in it. It has no processes. Absent is success."""

    @operation()
    @abstractmethod
    def owned(self) -> frozenset[str]:
        """Return the ids of all groups of which anything is on this host."""
