"""The resource-limit driver by transient scopes of systemd (org.freedesktop.systemd1(5), systemd.scope(5)).

A group is the scope ``transom-ID.scope`` in a slice, made through systemd's D-Bus interface, so that systemd knows what
runs, stops it at shutdown and writes nothing of its own over what was asked. The scope is delegated: what is below it
is the driver's.

    transom-ID.scope            has the limits, and a process that keeps it
    transom-ID.scope/container  has the container's processes

Why a keeper
    systemd takes away a scope without processes, and a group is to exist before its first process and after its last.
    The keeper is ``sleep infinity``, outside the group that is killed, frozen and listed; it is left out of the counts
    of processes, and cannot be killed for want of memory.

Two writers
    Values are written to the control files first, whose refusals are exact, and then systemd is told the same, read
    back from these files: it would write what it knows at the next ``systemctl daemon-reload``. The device list is a
    program of the driver's, of which systemd knows nothing and which it leaves alone.

After a crash
    A creation leaves a note while it is at work. Its keeper holds the driver's lock until the scope is there or will
    never be; `Systemd.remove` and a second `Systemd.create` wait for that.
"""

from __future__ import annotations

import errno
import os
import re

import msgspec

from transom.contract import Probe
from transom.contract.limits import LimitsCapability as Has
from transom.contract.limits import Resources, Stats
from transom.services.cgroups import Undo, forget, names_below, wait, write
from transom.services.files import Lock
from transom.services.unified import EVERYTHING, Unified, UnifiedLimits
from transom_limits_systemd._manager import BUS, SECONDS, SOCKET, Manager, reachable, start_kept
from transom_limits_systemd._properties import of_group

_PAYLOAD = "container"
_BOOTED = "/run/systemd/system"
_HUGETLB = "systemd does not delegate the controller hugetlb: use the limits driver cgroup2"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The driver's options; see `Systemd.option_docs`."""

    slice: str = "system.slice"

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w:.\\]+(-[\w:.\\]+)*\.slice|-\.slice", self.slice, re.ASCII):
            raise ValueError(
                f"slice={self.slice!r} is not the name of a slice, such as system.slice or web-front.slice"
            )


class _PerHost:
    """The capabilities: of the class all that systemd delegates, of an instance those that this host offers."""

    def __get__(self, driver: Systemd | None, owner: type) -> frozenset[Has]:
        return EVERYTHING - {Has.HUGETLB} if driver is None else driver.unified.capabilities


class Systemd(UnifiedLimits):
    """Limits by scopes of systemd; see the module's text."""

    name = "systemd"
    api = 1
    Options = Options
    option_docs = {"slice": "the slice that containers' scopes are in, as docker's cgroup-parent; made when needed"}
    # What a host offers is in its mounts, which a constructor must not look at.
    capabilities = _PerHost()

    @property
    def unified(self) -> Unified:
        if self._unified is None:
            found = Unified.of_this_host()
            found.controllers = tuple(name for name in found.controllers if name != "hugetlb")
            found.capabilities -= {Has.HUGETLB}
            self._unified = found
        return self._unified

    def probe(self) -> Probe:
        if not os.path.isdir(_BOOTED):
            return Probe(
                usable=False,
                reason=f"systemd does not manage this host (no {_BOOTED}): use the limits driver cgroup2 or cgroup1",
            )
        if not reachable():
            reason = f"neither {SOCKET} nor {BUS} can be written: run as root, in the host's mount namespace"
            return Probe(usable=False, reason=reason)
        return super().probe()

    def runtime_path(self, id: str) -> str:
        return f"{super().runtime_path(id)}/{_PAYLOAD}"

    def unsupported_resources(self, resources: Resources) -> dict[str, str]:
        reasons = super().unsupported_resources(resources)
        return reasons | ({"hugepages": _HUGETLB} if resources.hugepages else {})

    def stats(self, id: str) -> Stats:
        stats = super().stats(id)
        limit = stats.pids_limit
        return msgspec.structs.replace(
            stats, pids=stats.pids and stats.pids - 1, pids_limit=None if limit is None else limit - 1
        )

    def create(self, id: str, resources: Resources) -> tuple[str, ...]:
        try:
            self._start(self._plain(id))
        except OSError as error:
            self._fail("create", id, error)
        return super().create(id, resources)

    def remove(self, id: str) -> None:
        self._await_creation(id)
        super().remove(id)
        try:
            self._stop(id)
        except OSError as error:
            self._fail("remove", id, error)
        forget(self._journal("create", id))

    def recover(self) -> list[str]:
        for name in self._notes():
            self._await_creation(name.partition("-")[2])
        return super().recover()

    def owned(self) -> frozenset[str]:
        scopes = names_below([os.path.dirname(self._path("-"))])
        return frozenset(filter(None, map(_id_of, scopes))) | {name.partition("-")[2] for name in self._notes()}

    @property
    def _parent(self) -> str:
        return "/".join(_above(self.options.slice))

    def _path(self, id: str) -> str:
        return "/".join(filter(None, (self.unified.point, self._parent, _unit(id))))

    def _groups(self, id: str) -> list[str]:
        return [f"{self._path(self._plain(id))}/{_PAYLOAD}"]

    def _make(self, group: str) -> None:
        if self._make_empty(group):
            self._set_defaults(os.path.dirname(group))

    def _settings(self, group: str, resources: Resources) -> list[tuple[str, str, str]]:
        if resources.pids is not None and resources.pids > 0:  # beside the keeper
            resources = msgspec.structs.replace(resources, pids=resources.pids + 1)
        return super()._settings(group, resources)

    def _apply(self, id: str, resources: Resources) -> None:
        super()._apply(id, resources)
        self._tell(self._path(id))

    def _restore(self, undo: Undo) -> None:
        super()._restore(undo)
        for scope in {os.path.dirname(path) for path, _ in undo}:
            try:
                self._tell(scope)
            except OSError:
                continue  # gone, with its values

    def _tell(self, scope: str) -> None:
        """Have systemd know the values that are in force."""
        with Manager() as manager:
            manager.set(os.path.basename(scope), of_group(scope))

    def _start(self, id: str) -> None:
        """Have a scope for the group: a new one, unless the present one has processes."""
        self._await_creation(id)
        if self.processes(id):
            return
        self._stop(id)
        note = self._note("create", id, [])
        try:
            with self._lock(shared=True):
                start_kept(
                    _unit(id),
                    [
                        ("Description", ("s", f"Transom container {id}")),
                        ("Slice", ("s", self.options.slice)),
                        ("Delegate", ("b", True)),
                        ("CollectMode", ("s", "inactive-or-failed")),
                        ("TasksMax", ("t", (1 << 64) - 1)),  # systemd's own default is 15 % of what the host can have
                    ],
                )
        finally:
            forget(note)

    def _stop(self, id: str) -> None:
        """End the scope with its keeper and whatever went from the group to beside it; wait until it is gone."""
        scope = self._path(id)
        if not os.path.isdir(scope):
            return
        try:
            write(f"{scope}/cgroup.kill", "1")
        except OSError:
            pass  # before Linux 5.14, or gone: systemd ends it as it ends any unit
        with Manager() as manager:
            manager.stop(_unit(id))
        if not wait(lambda: not os.path.isdir(scope), seconds=SECONDS):
            raise OSError(errno.EBUSY, f"systemd has not removed {scope}")

    def _await_creation(self, id: str) -> None:
        """Wait until nobody is about to make this group: neither a living creation nor the keeper of a dead one."""
        if os.path.exists(self._journal("create", id)):
            self._lock(shared=False).release()

    def _lock(self, *, shared: bool) -> Lock:
        """Take the lock that creations share, and their keepers until the scope is there."""
        lock = Lock(f"{self.run}.lock", shared=shared)
        lock.acquire()
        return lock

    def _notes(self) -> list[str]:
        names = os.listdir(self.run) if self.run.is_dir() else []
        return [name for name in names if name.startswith("create-") and not name.endswith(".tmp")]


def _unit(id: str) -> str:
    """Return the name of a group's scope; what a unit's name may not have is escaped (systemd.unit(5))."""
    plain = "".join(
        c if re.fullmatch(r"[\w:.-]", c, re.ASCII) else rf"\x{ord(c):02x}" for c in id.encode().decode("latin-1")
    )
    return f"transom-{plain}.scope"


def _id_of(unit: str) -> str:
    """Return the id of a scope's group; empty for a scope that is not ours."""
    match = re.fullmatch(r"transom-(.+)\.scope", unit)
    plain = re.sub(r"\\x([0-9a-f]{2})", lambda code: chr(int(code[1], 16)), match[1]) if match else ""
    return plain.encode("latin-1").decode()


def _above(slice: str) -> list[str]:
    """Return the slices from the root to one: ``a-b.slice`` is in ``a.slice`` (systemd.slice(5))."""
    parts = slice.removesuffix(".slice").split("-")
    return ["-".join(parts[: n + 1]) + ".slice" for n in range(len(parts))] if slice != "-.slice" else []


__all__ = ["Options", "Systemd"]
