"""The resource-limit driver on cgroup v1 hierarchies (cgroups(7), kernel's admin-guide/cgroup-v1).

A group is the directory ``PARENT/ID`` in every mounted hierarchy of a controller that the driver uses. The
parents are made when first needed and stay, as docker's do. What survives a crash is told in
`transom.services.cgroups`.

Hybrid hosts
    A controller that no v1 hierarchy has may be on the unified hierarchy that is mounted beside. The group is
    ``PARENT/ID`` there too, the last to join, and what v1 does not limit is limited there, by
    `transom.services.unified`. It is left alone where it has nothing that v1 lacks.

Joining
    Write a pid, or ``0`` for the writer itself, to each file that `Cgroup1.create` returns. From inside another
    pid namespace only ``0`` is safe: a number is looked up in the writer's own namespace.
    A fork after the last write is in the group; threads that exist already are moved too.
"""

from __future__ import annotations

import os
import time

from transom.contract import Probe
from transom.contract.limits import LimitsCapability, Resources, Stats, Watch
from transom.services import cgroups
from transom.services.cgroups import Options, Undo, below, names_below, read, signal_all, wait, write
from transom.services.unified import Unified, UnifiedLimits
from transom.services.unified import collect as collect_unified
from transom_limits_cgroup1._hierarchy import CONTROLLERS, hierarchies, others
from transom_limits_cgroup1._settings import Offered, apply, controller_of, old_values, restore, unsupported


class _PerHost:
    """The capabilities: of the class all that there are, of an instance those that this host offers."""

    def __get__(self, driver: Cgroup1 | None, owner: type) -> frozenset[LimitsCapability]:
        if driver is None:
            return frozenset(LimitsCapability)
        return driver.offered.capabilities | driver.unified.capabilities


class Cgroup1(UnifiedLimits):
    """Limits by cgroup v1 controllers; see the module's text."""

    name = "cgroup1"
    api = 1
    Options = Options
    option_docs = {
        "parent": "the group below which containers' groups are made, a path from the root of each hierarchy"
    }
    # What a host offers is in its mounts, which a constructor must not look at.
    capabilities = _PerHost()

    _found: Offered | None = None

    @property
    def offered(self) -> Offered:
        """What this host has mounted of v1; looked up once."""
        if self._found is None:
            self._found = Offered(hierarchies(read("/proc/self/mountinfo")))
        return self._found

    @property
    def unified(self) -> Unified:
        """The unified hierarchy of a hybrid host, of which only what v1 lacks is used; looked up once."""
        if self._unified is None:
            found = Unified.of_this_host(without=self.offered.capabilities)
            self._unified = found if os.access(found.point, os.W_OK) else Unified("")
        return self._unified

    def probe(self) -> Probe:
        points = self.offered.points
        if not {"memory", "cpu", "pids"} & set(points):
            return Probe(
                usable=False,
                reason="no cgroup v1 hierarchy of memory, cpu or pids is mounted: use the limits driver cgroup2, "
                "or boot with systemd.unified_cgroup_hierarchy=0",
            )
        closed = [point for point in points.values() if not os.access(point, os.W_OK)]
        if closed:
            return Probe(usable=False, reason=f"{closed[0]} cannot be written: run as root, with /sys/fs/cgroup rw")
        missing = [name for name in CONTROLLERS if name not in {*points, *self._beside()}]
        return Probe(usable=True, reason=f"controllers not mounted: {', '.join(missing)}" if missing else "")

    def _beside(self) -> list[str]:
        """Return the controllers that the unified hierarchy serves, by their names on v1."""
        served = self.unified.controllers if self.unified.capabilities else ()
        return ["blkio" if name == "io" else name for name in served]

    def status(self) -> dict[str, str]:
        unified = [f"{name} (unified)" for name in self._beside()]
        controllers = ", ".join([*self.offered.points, *unified])
        return {"Cgroup Version": "1", "Controllers": controllers, "Parent": f"/{self._parent}"}

    def runtime_path(self, id: str) -> str:
        return f"/{self._parent}/{id}"

    def unsupported_resources(self, resources: Resources) -> dict[str, str]:
        beside = self.unified.unsupported(resources)
        return {
            field: beside[field] if controller_of(field) in self._beside() else reason
            for field, reason in unsupported(resources, self.offered).items()
            if field in beside
        }

    def stats(self, id: str) -> Stats:
        from transom_limits_cgroup1._stats import collect, joined

        self._present(id)
        try:
            stats = collect({name: self._group(point, id) for name, point in self.offered.points.items()})
            return joined(stats, collect_unified(self._path(id))) if self.unified.capabilities else stats
        except OSError as error:
            self._present(id)  # removed meanwhile?
            self._fail("stats", id, error)

    def watch(self, id: str) -> Watch:
        from transom_limits_cgroup1._watch import OomWatch

        if LimitsCapability.OOM_EVENTS not in self.offered.capabilities:
            return super().watch(id)
        self._present(id)
        return OomWatch(self._group(self.offered.points["memory"], id))

    def freeze(self, id: str) -> None:
        if "freezer" not in self.offered.points:
            super().freeze(id)
            return
        state = self._freezer(id)
        if not _freeze(state, seconds=cgroups.FREEZE_SECONDS):
            write(state, "THAWED")
            self._fail("freeze", id, "not every process stopped in time; it runs on, try again")

    def thaw(self, id: str) -> None:
        if "freezer" not in self.offered.points:
            super().thaw(id)
            return
        write(self._freezer(id), "THAWED")

    def remove(self, id: str) -> None:
        super().remove(id)
        for point in others(read("/proc/self/mountinfo")):  # runc makes its group in every hierarchy that there is
            self._remove_tree(id, self._group(point, id))

    def owned(self) -> frozenset[str]:
        return names_below({os.path.dirname(group) for group in self._groups("-")})

    def _group(self, point: str, id: str) -> str:
        return f"{point}/{self._parent}/{id}"

    def _groups(self, id: str) -> list[str]:
        points = list(dict.fromkeys(self.offered.points.values()))
        if self.unified.capabilities:
            points.append(self.unified.point)
        return [self._group(point, self._plain(id)) for point in points]

    def _apply(self, id: str, resources: Resources) -> None:
        apply(id, resources, self.offered, self._parent)
        super()._apply(id, resources)

    def _undo(self, id: str, resources: Resources) -> Undo:
        return old_values(id, resources, self.offered, self._parent) + super()._undo(id, resources)

    def _restore(self, undo: Undo) -> None:
        beside = [(path, value) for path, value in undo if self._is_unified(path)]
        restore([item for item in undo if item not in beside])
        super()._restore(beside)

    def _is_unified(self, path: str) -> bool:
        return bool(self.unified.capabilities) and path.startswith(f"{self.unified.point}/")

    def _make(self, group: str) -> None:
        if self._is_unified(group):
            super()._make(group)
            return
        try:
            made = self._make_empty(group)
        except FileNotFoundError:
            self._make_parents_of_v1(os.path.dirname(group))
            made = self._make_empty(group)
        if made and group.startswith(self.offered.points.get("cpuset", "\0") + "/"):
            self._inherit(group)

    def _make_parents_of_v1(self, parent: str) -> None:
        os.makedirs(parent, exist_ok=True)
        try:
            # Before Linux 5.11 a memory group counts what is nested in it only when its parent says so.
            write(f"{parent}/memory.use_hierarchy", "1")
        except OSError:
            pass

    def _inherit(self, group: str) -> None:
        """Fill cpuset's CPUs and memory nodes from above: with either empty no process can join (cpuset(7))."""
        for file in ("cpuset.cpus", "cpuset.mems"):
            self._inherited(group, file)

    def _inherited(self, group: str, file: str) -> str:
        value = read(group, file)
        if not value:
            value = self._inherited(os.path.dirname(group), file)
            write(f"{group}/{file}", value)
        return value

    def _freezer(self, id: str) -> str:
        self._present(id)
        return f"{self._group(self.offered.points['freezer'], id)}/freezer.state"

    def _kill_once(self, id: str) -> None:
        if "freezer" not in self.offered.points and self.unified.capabilities:
            super()._kill_once(id)
        state = f"{self._group(self.offered.points.get('freezer', ''), id)}/freezer.state"
        try:
            _freeze(state, seconds=0.2)
        except OSError:
            pass  # no freezer here, or the group is half-made: repetition has to do
        signal_all(self.processes(id))
        for group in reversed(list(below(os.path.dirname(state)))):
            try:
                write(f"{group}/freezer.state", "THAWED")
            except OSError:
                continue
        wait(lambda: not self.processes(id), seconds=0.1)


def _freeze(state: str, *, seconds: float) -> bool:
    """Freeze and wait for it; a group that a fork or vfork holds half-frozen is asked again."""
    deadline = time.monotonic() + seconds
    write(state, "FROZEN")
    while not wait(lambda: read(state) == "FROZEN", seconds=min(0.05, seconds)):
        if time.monotonic() > deadline:
            return False
        write(state, "THAWED")
        write(state, "FROZEN")
    return True


__all__ = ["Cgroup1", "Options"]
