"""What drivers on the unified hierarchy share (admin-guide/cgroup-v2.rst): everything but how a group is made.

`UnifiedLimits` is a driver whose groups are directories of one cgroup2 mount. One that asks another to make them (a
service manager that delegates) overrides `UnifiedLimits._path`, `_groups`, `_make` and `remove`.

Conversions
    cpu-shares      cpu.weight = 1 + (shares - 2) * 9999 / 262142 (KEP-2254, crun(1)), also for the 1024 of a group
                    that asks for none: so 1024 is what it is on v1, the usual share
    memory-swap     memory.swap.max = memory-swap - memory
    memory-reservation  memory.low
    blkio-weight    io.bfq.weight as it is, or io.weight = 1 + (weight - 10) * 9999 / 990, by what the kernel has
    pids, quota     -1 is max
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from typing import Any

from transom.contract import Probe
from transom.contract.limits import IoStats, LimitEvent, Resources, Stats, Watch
from transom.contract.limits import LimitsCapability as Has
from transom.errors import ConfigError
from transom.services import cgroups
from transom.services.cgroups import (
    CgroupLimits,
    Refused,
    Undo,
    asked,
    bfq_in_use,
    mount_points,
    names_below,
    read,
    signal_all,
    table,
    wait,
    write,
)
from transom.services.resources import PERIOD, device_numbers, parse_list

CONTROLLERS = ("cpu", "cpuset", "memory", "io", "pids", "hugetlb")
"""Those that drivers use, in the order in which they are switched on."""

_FIELDS = {
    "memory": Has.MEMORY,
    "memory_swap": Has.SWAP,
    "memory_reservation": Has.RESERVATION,
    "memory_swappiness": Has.SWAPPINESS,
    "oom_kill_disable": Has.OOM_DISABLE,
    "cpu_shares": Has.CPU_SHARES,
    "cpu_period": Has.CPU_QUOTA,
    "cpu_quota": Has.CPU_QUOTA,
    "cpu_rt_period": Has.CPU_REALTIME,
    "cpu_rt_runtime": Has.CPU_REALTIME,
    "cpuset_cpus": Has.CPUSET,
    "cpuset_mems": Has.CPUSET,
    "pids": Has.PIDS,
    "blkio_weight": Has.IO_WEIGHT,
    "blkio_weight_devices": Has.IO_WEIGHT,
    "device_read_bps": Has.IO_MAX,
    "device_write_bps": Has.IO_MAX,
    "device_read_iops": Has.IO_MAX,
    "device_write_iops": Has.IO_MAX,
    "hugepages": Has.HUGETLB,
    "devices": Has.DEVICES,
}
_CONTROLLER = {
    Has.MEMORY: "memory",
    Has.SWAP: "memory",
    Has.RESERVATION: "memory",
    Has.OOM_EVENTS: "memory",
    Has.CPU_SHARES: "cpu",
    Has.CPU_QUOTA: "cpu",
    Has.CPUSET: "cpuset",
    Has.PIDS: "pids",
    Has.IO_WEIGHT: "io",
    Has.IO_MAX: "io",
    Has.IO_BUFFERED: "io",
    Has.HUGETLB: "hugetlb",
}
_NEVER = {
    "memory_swappiness": "cgroup v2 has no swappiness of a group: the host's holds, see vm.swappiness in sysctl",
    "oom_kill_disable": "cgroup v2 cannot keep the kernel from killing for want of memory",
    "kernel_memory": "cgroup v2 does not limit kernel memory by itself: memory includes it",
    "cpu_rt_period": "cgroup v2 has no share of real-time processes",
    "cpu_rt_runtime": "cgroup v2 has no share of real-time processes",
}
_THROTTLES = {
    "device_read_bps": "rbps",
    "device_write_bps": "wbps",
    "device_read_iops": "riops",
    "device_write_iops": "wiops",
}
_USUAL_SHARES = 1024
_IN_MODIFY = 2

EVERYTHING = frozenset(Has) - {Has.SWAPPINESS, Has.OOM_DISABLE, Has.CPU_REALTIME, Has.KERNEL_MEMORY}
"""What a driver on the unified hierarchy can offer at best."""


class Unified:
    """The unified hierarchy of this host: where it is mounted and what it offers there.

    Args:
        point: its mount point; empty when there is none.
        without: capabilities that are had elsewhere, on a hybrid host.
    """

    def __init__(self, point: str, *, without: frozenset[Has] = frozenset()) -> None:
        self.point, self._without = point, without
        present = read(point, "cgroup.controllers").split() if point else []
        self.controllers = tuple(name for name in CONTROLLERS if name in present)
        self.capabilities = frozenset(self._offered()) - without

    @classmethod
    def of_this_host(cls, *, without: frozenset[Has] = frozenset()) -> Unified:
        """Look where it is mounted: whole rather than a part of it, and the latest."""
        places = [(root == "/", place) for root, place, _ in mount_points(read("/proc/self/mountinfo"), "cgroup2")]
        whole = [place for is_whole, place in places if is_whole]
        return cls((whole or [place for _, place in places] or [""])[-1], without=without)

    def _offered(self) -> Iterable[Has]:
        if not self.point:
            return
        lacking = {
            Has.SWAP: not os.path.exists("/proc/swaps") or "swapaccount=0" in read("/proc/cmdline").split(),
            Has.IO_WEIGHT: "io" in self.controllers and not self._weighs(),
            Has.IO_BUFFERED: "memory" not in self.controllers,
        }
        for capability, controller in _CONTROLLER.items():
            if controller in self.controllers and not lacking.get(capability):
                yield capability
        yield Has.FREEZE
        if Has.DEVICES not in self._without:
            from transom.services.device_program import supported

            if supported():
                yield Has.DEVICES

    def _weighs(self) -> bool:
        """Say whether some device heeds weights: by bfq, or by io.cost where an administrator enabled it."""
        if os.path.exists(f"{self.point}/io.cost.qos") and "enable=1" in read(self.point, "io.cost.qos"):
            return True
        # A kernel may have bfq and not its groups (CONFIG_BFQ_GROUP_IOSCHED); the file is in no root.
        limited = [entry.path for entry in os.scandir(self.point) if os.path.exists(f"{entry.path}/io.max")]
        return bfq_in_use() and all(os.path.exists(f"{path}/io.bfq.weight") for path in limited[:1])

    def unsupported(self, resources: Resources) -> dict[str, str]:
        """Say which of the fields that were asked for will not act, and why."""
        reasons = {field: reason for field, reason in _NEVER.items() if asked(resources, field)}
        for field, capability in _FIELDS.items():
            if field not in reasons and asked(resources, field) and capability not in self.capabilities:
                reasons[field] = self._reason(capability)
        if "hugepages" not in reasons:
            for page in resources.hugepages:
                if page.size not in (sizes := _hugepage_sizes()):
                    reasons["hugepages"] = f"no huge pages of {page.size} on this host, it has {', '.join(sizes)}"
        return reasons

    def _reason(self, capability: Has) -> str:
        if capability is Has.DEVICES:
            return "this kernel or its caller cannot load a device program (CONFIG_CGROUP_BPF, CAP_SYS_ADMIN)"
        controller = _CONTROLLER[capability]
        if controller not in self.controllers:
            return f"the unified hierarchy has no controller {controller}: {elsewhere(controller)}"
        if capability is Has.IO_WEIGHT:
            return "no block device heeds weights: use the I/O scheduler bfq, or enable io.cost.qos"
        return "this kernel does not account swap"


def elsewhere(controller: str) -> str:
    """Say where a controller is that the unified hierarchy lacks (proc(5), /proc/cgroups)."""
    name = {"io": "blkio"}.get(controller, controller)
    for line in read("/proc/cgroups").splitlines():
        words = line.split()
        if words[0] == name:
            return "a v1 hierarchy has it" if words[1] != "0" else "it is switched off (cgroup_disable=)"
    return "this kernel was built without it"


def _hugepage_sizes() -> list[str]:
    """Return the sizes of huge pages, as in "2MB" and as the control files have them."""
    try:
        names = os.listdir("/sys/kernel/mm/hugepages")
    except FileNotFoundError:
        return []
    return sorted(_size(int(name.removeprefix("hugepages-").removesuffix("kB"))) for name in names)


def _size(kilobytes: int) -> str:
    for unit, factor in (("GB", 1 << 20), ("MB", 1 << 10)):
        if kilobytes >= factor:
            return f"{kilobytes // factor}{unit}"
    return f"{kilobytes}KB"


def weight_of_shares(shares: int) -> int:
    """Convert Docker's cpu-shares, 2 to 262144, to cpu.weight, 1 to 10000; see the module's text."""
    return 1 + (shares - 2) * 9999 // 262142


def io_weight(weight: int) -> int:
    """Convert Docker's blkio-weight, 10 to 1000, to io.weight, 1 to 10000."""
    return 1 + (weight - 10) * 9999 // 990


class UnifiedLimits(CgroupLimits):
    """A driver on the unified hierarchy; see the module's text."""

    _unified: Unified | None = None

    @property
    def unified(self) -> Unified:
        """What this host has mounted; looked up once."""
        if self._unified is None:
            self._unified = Unified.of_this_host()
        return self._unified

    def _path(self, id: str) -> str:
        """Return the directory that has the limits; `_groups` has the one with the processes, here the same."""
        return f"{self.unified.point}/{self._parent}/{id}"

    @property
    def _parent(self) -> str:
        parent: str = self.options.parent
        return parent.strip("/")

    def probe(self) -> Probe:
        unified = self.unified
        if not unified.point:
            return Probe(usable=False, reason="no cgroup v2 hierarchy is mounted: use the limits driver cgroup1")
        if not {"memory", "cpu", "pids"} & set(unified.controllers):
            where = elsewhere("memory")
            return Probe(
                usable=False,
                reason=f"the unified hierarchy at {unified.point} has none of the controllers memory, cpu and pids "
                f"(memory: {where}): use the limits driver cgroup1, or boot with systemd.unified_cgroup_hierarchy=1",
            )
        if "memory" not in unified.controllers and elsewhere("memory").startswith("a v1"):
            reason = (
                "a v1 hierarchy has the controller memory: use the limits driver cgroup1, which limits on both sides"
            )
            return Probe(usable=False, reason=reason)
        if not os.access(unified.point, os.W_OK):
            return Probe(usable=False, reason=f"{unified.point} cannot be written: run as root, with it mounted rw")
        if not self._delegates():
            return Probe(
                usable=False,
                reason=f"the group at {unified.point} has processes of its own, so that none below it can be limited: "
                "move them into a group nested in it first",
            )
        missing = [name for name in CONTROLLERS if name not in unified.controllers]
        return Probe(usable=True, reason=f"no controllers {', '.join(missing)}" if missing else "")

    def _delegates(self) -> bool:
        """Say whether groups below the mount can have controllers: not beside processes, but for the host's root."""
        point = self.unified.point
        if not os.path.exists(f"{point}/cgroup.type"):
            return True
        needed = {"memory", "cpu", "pids"} & set(self.unified.controllers)
        return needed <= set(read(point, "cgroup.subtree_control").split()) or not read(point, "cgroup.procs")

    def status(self) -> dict[str, str]:
        return {"Cgroup Version": "2", "Controllers": ", ".join(self.unified.controllers), "Parent": f"/{self._parent}"}

    def runtime_path(self, id: str) -> str:
        return self._path(id).removeprefix(self.unified.point)

    def unsupported_resources(self, resources: Resources) -> dict[str, str]:
        return self.unified.unsupported(resources)

    def stats(self, id: str) -> Stats:
        self._present(id)
        try:
            return collect(self._path(id))
        except OSError as error:
            self._present(id)  # removed meanwhile?
            self._fail("stats", id, error)

    def watch(self, id: str) -> Watch:
        self._needs(id, Has.OOM_EVENTS)
        return OomWatch(self._path(id))

    def freeze(self, id: str) -> None:
        self._needs(id, Has.FREEZE)
        group = self._groups(id)[-1]
        write(f"{group}/cgroup.freeze", "1")
        if not wait(lambda: table(read(group, "cgroup.events"))["frozen"], seconds=cgroups.FREEZE_SECONDS):
            write(f"{group}/cgroup.freeze", "0")
            self._fail("freeze", id, "not every process stopped in time; it runs on, try again")

    def thaw(self, id: str) -> None:
        self._needs(id, Has.FREEZE)
        write(f"{self._groups(id)[-1]}/cgroup.freeze", "0")

    def owned(self) -> frozenset[str]:
        return names_below([os.path.dirname(self._path("-"))])

    def _groups(self, id: str) -> list[str]:
        return [self._path(self._plain(id))]

    def _make(self, group: str) -> None:
        self._make_parents(os.path.dirname(group))
        if self._make_empty(group):
            self._set_defaults(group)

    def _set_defaults(self, group: str) -> None:
        """Give a new group what one has that asks for nothing."""
        if Has.CPU_SHARES in self.unified.capabilities:
            write(f"{group}/cpu.weight", str(weight_of_shares(_USUAL_SHARES)))

    def _make_parents(self, parent: str) -> None:
        """Make the groups above, and let what is below them have controllers."""
        os.makedirs(parent, exist_ok=True)
        path = self.unified.point
        for name in ("", *parent.removeprefix(f"{path}/").split("/")):
            path = f"{path}/{name}".rstrip("/")
            enable(path, self.unified.controllers)

    def _kill_once(self, id: str) -> None:
        group = self._groups(id)[-1]
        try:
            write(f"{group}/cgroup.kill", "1")
        except FileNotFoundError:  # before Linux 5.14, or gone: frozen processes die too, forking ones wait
            self._kill_frozen(id)
        wait(lambda: not self.processes(id), seconds=0.1)

    def _kill_frozen(self, id: str) -> None:
        switch = f"{self._groups(id)[-1]}/cgroup.freeze"
        try:
            write(switch, "1")
            signal_all(self.processes(id))
            write(switch, "0")
        except FileNotFoundError:
            return

    def _apply(self, id: str, resources: Resources) -> None:
        group = self._path(id)
        for field, file, value in self._settings(group, resources):
            try:
                if file == "memory.max":
                    _make_room(group, value)
                write(f"{group}/{file}", value)
            except OSError as error:
                raise self._refused(group, field, value, error) from error
        self._check_cpus(group, resources)
        if resources.devices is not None and Has.DEVICES in self.unified.capabilities:
            from transom.services.device_program import set_devices

            try:
                set_devices(group, resources.devices)
            except OSError as error:
                raise Refused("devices", f"{len(resources.devices)} rules", error) from error

    def _undo(self, id: str, resources: Resources) -> Undo:
        group = self._path(id)
        files = dict.fromkeys((file, value) for _, file, value in self._settings(group, resources))
        undo = [(f"{group}/{file}", _old(read(group, file), value)) for file, value in files]
        if resources.devices is not None and Has.DEVICES in self.unified.capabilities:
            import msgspec

            from transom.services.device_program import devices_of

            undo.append((f"{group}/devices", msgspec.json.encode(devices_of(group)).decode()))
        return undo

    def _restore(self, undo: Undo) -> None:
        for path, value in undo:
            try:
                if path.endswith("/devices"):
                    from transom.services.device_program import restore_devices

                    restore_devices(os.path.dirname(path), value)
                else:
                    write(path, value or "\n")  # an empty list is a line without anything
            except OSError:
                continue

    def _settings(self, group: str, resources: Resources) -> list[tuple[str, str, str]]:
        """Return field, file and value of what was asked and acts here, but for the device list."""
        acts = {f for f, capability in _FIELDS.items() if capability in self.unified.capabilities}
        found = []
        for field in _FIELDS:
            if field in acts and asked(resources, field):
                found += [(field, file, value) for file, value in self._values(group, field, resources)]
        return found

    def _values(self, group: str, field: str, resources: Resources) -> Iterable[tuple[str, str]]:
        value: Any = getattr(resources, field)
        if field in _THROTTLES:
            for item in value:
                yield "io.max", f"{device_numbers(item.device)} {_THROTTLES[field]}={item.rate}"
        elif field == "hugepages":
            for page in value:
                if page.size in _hugepage_sizes():
                    yield f"hugetlb.{page.size}.max", str(page.limit)
        elif field in {"blkio_weight", "blkio_weight_devices"}:
            yield from _weights(group, value)
        elif field in {"cpu_period", "cpu_quota"}:
            if field == "cpu_quota" or resources.cpu_quota is None:  # one file for both
                yield "cpu.max", _cpu_max(group, resources)
        elif field == "memory_swap":
            yield "memory.swap.max", _swap(group, resources)
        elif field == "cpu_shares":
            yield "cpu.weight", str(weight_of_shares(value))
        elif field == "pids":
            yield "pids.max", "max" if value in (0, -1) else str(value)
        elif field != "devices":
            file = {"memory": "memory.max", "memory_reservation": "memory.low"}.get(field, field.replace("_", ".", 1))
            yield file, str(value)

    def _check_cpus(self, group: str, resources: Resources) -> None:
        """Refuse CPUs and memory nodes that were accepted but not granted (cgroup-v2.rst, "Cpuset")."""
        for field, file in (("cpuset_cpus", "cpuset.cpus"), ("cpuset_mems", "cpuset.mems")):
            if asked(resources, field) and Has.CPUSET in self.unified.capabilities:
                text = getattr(resources, field)
                if not parse_list(text) <= parse_list(read(group, f"{file}.effective")):
                    hint = "the group's parent does not have all of these"
                    raise Refused(field, text, OSError(errno.EACCES, os.strerror(errno.EACCES)), hint=hint)

    def _refused(self, group: str, field: str, value: str, error: OSError) -> Refused:
        hint = ""
        if error.errno == errno.ENOENT and self._controller_is_off(group, field):
            parent = os.path.dirname(group)
            hint = f"its controller could not be switched on in {parent}/cgroup.subtree_control"
        elif error.errno == errno.EBUSY and field == "memory":
            hint = "the group uses more than that and cannot give it back"
        return Refused(field, value, error, hint=hint)

    def _controller_is_off(self, group: str, field: str) -> bool:
        try:
            return _CONTROLLER[_FIELDS[field]] not in read(group, "cgroup.controllers").split()
        except OSError:
            return False


def enable(group: str, controllers: Iterable[str]) -> None:
    """Switch controllers on for what is below `group`, each by itself: one refused name fails a whole write.

    A refusal is left to who needs the controller: the control files of what is below tell.
    """
    present = read(group, "cgroup.subtree_control").split()
    for name in controllers:
        if name not in present:
            try:
                write(f"{group}/cgroup.subtree_control", f"+{name}")
            except OSError:
                continue


def _cpu_max(group: str, resources: Resources) -> str:
    quota, period = read(group, "cpu.max").split()
    if resources.cpu_quota is not None:
        quota = "max" if resources.cpu_quota == -1 else str(resources.cpu_quota)
    return f"{quota} {resources.cpu_period or period or PERIOD}"


def _swap(group: str, resources: Resources) -> str:
    """Return the limit of swap alone."""
    if resources.memory_swap is None or resources.memory_swap == -1:
        return "max"
    memory = resources.memory if resources.memory is not None else _number(read(group, "memory.max"))
    if memory is None or resources.memory_swap < memory:
        raise ConfigError("memory-swap counts memory and swap: set memory too, at most as high")
    return str(resources.memory_swap - memory)


def _weights(group: str, value: Any) -> Iterable[tuple[str, str]]:
    """Return file and value of a weight, or of each device's."""
    bfq = os.path.exists(f"{group}/io.bfq.weight")
    if not bfq and not os.path.exists(f"{group}/io.weight"):
        return
    items = [("default", value)] if isinstance(value, int) else [(device_numbers(i.device), i.weight) for i in value]
    for device, weight in items:
        yield ("io.bfq.weight", f"{device} {weight}") if bfq else ("io.weight", f"{device} {io_weight(weight)}")


def _old(text: str, value: str) -> str:
    """Return what to write to a file with `text` to undo the writing of `value`."""
    device, _, rest = value.partition(" ")
    if ":" not in device and device != "default":
        return text
    for line in text.splitlines():
        if line.startswith(f"{device} "):
            return line
    limits = " ".join(f"{part.partition('=')[0]}=max" for part in rest.split())
    return f"{device} {limits if '=' in rest else 'default'}"


def _make_room(group: str, limit: str) -> None:
    """Have the kernel reclaim down to a memory limit that is to come: it would kill to get there.

    Raises:
        OSError: EBUSY, the group cannot give back so much.
    """
    for _ in range(5):
        excess = int(read(group, "memory.current")) - int(limit)
        if excess <= 0:
            return
        try:
            write(f"{group}/memory.reclaim", str(excess))
        except FileNotFoundError:  # before Linux 5.19: the cache can go, the rest counts
            cache = table(read(group, "memory.stat"))["file"]
            if excess <= cache:
                return
            break
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise
    if int(read(group, "memory.current")) > int(limit):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _number(text: str) -> int | None:
    return None if text == "max" else int(text)


def _read(group: str, file: str) -> str:
    try:
        return read(group, file)
    except FileNotFoundError:
        if os.path.isdir(group):
            return ""  # no such controller, or an older kernel
        raise


def collect(group: str) -> Stats:
    """Read what a group uses.

    Raises:
        OSError: it is gone.
    """
    now = time.time_ns()
    cpu, stat = table(_read(group, "cpu.stat")), table(_read(group, "memory.stat"))
    events = table(_read(group, "memory.events"))
    memory, peak, limit = (_read(group, f"memory.{name}") for name in ("current", "peak", "max"))
    pids, pids_limit = _read(group, "pids.current"), _read(group, "pids.max")
    return Stats(
        time=now,
        cpu=_nano(cpu, "usage_usec"),
        cpu_user=_nano(cpu, "user_usec"),
        cpu_system=_nano(cpu, "system_usec"),
        cpu_periods=cpu.get("nr_periods", 0),
        cpu_throttled_periods=cpu.get("nr_throttled", 0),
        cpu_throttled=_nano(cpu, "throttled_usec") or 0,
        memory=int(memory) if memory else None,
        memory_cache=min(stat.get("inactive_file", 0), int(memory or 0)),
        memory_max=int(peak or memory) if memory else None,
        memory_limit=_number(limit) if limit else None,
        memory_failures=events.get("max", 0),
        oom_kills=events.get("oom_kill") if memory else None,
        pids=int(pids) if pids else None,
        pids_limit=_number(pids_limit) if pids_limit else None,
        io=_io(_read(group, "io.stat")),
        details=stat,
    )


def _nano(cpu: dict[str, int], name: str) -> int | None:
    return cpu[name] * 1000 if name in cpu else None


def _io(text: str) -> tuple[IoStats, ...]:
    found = []
    for line in text.splitlines():
        device, *words = line.split()
        counts = {name: int(number) for name, _, number in (word.partition("=") for word in words) if number.isdigit()}
        found.append(
            IoStats(
                device=device,
                read_bytes=counts.get("rbytes", 0),
                write_bytes=counts.get("wbytes", 0),
                read_operations=counts.get("rios", 0),
                write_operations=counts.get("wios", 0),
            )
        )
    return tuple(found)


class OomWatch(Watch):
    """One group's kills, and those of groups nested in it, by inotify(7) on ``memory.events``."""

    def __init__(self, group: str) -> None:
        from transom.services.mounts import libc

        self._file = os.open(f"{group}/memory.events", os.O_RDONLY | os.O_CLOEXEC)
        self._event = -1
        try:
            self._event = libc("inotify_init1", os.O_CLOEXEC | os.O_NONBLOCK)
            libc("inotify_add_watch", self._event, os.fsencode(f"{group}/memory.events"), _IN_MODIFY)
            self._seen = self._kills()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._event

    def read(self) -> tuple[LimitEvent, ...]:
        try:
            os.read(self._event, 1 << 16)
        except BlockingIOError:
            return ()
        kills = self._kills()
        new, self._seen = kills - self._seen, kills
        return (LimitEvent.OOM,) * new

    def close(self) -> None:
        for fd in {self._file, self._event} - {-1}:
            os.close(fd)
        self._file = self._event = -1

    def _kills(self) -> int:
        try:
            return table(os.pread(self._file, 4096, 0).decode())["oom_kill"]
        except OSError:  # the group was removed
            return self._seen
