"""The resource-limit driver on the unified hierarchy, cgroup v2 (admin-guide/cgroup-v2.rst).

A group is the directory ``PARENT/ID`` of the hierarchy. The parents are made when first needed, with every
controller switched on for what is below them, and stay. No process is ever in a parent, so none is in the way of
controllers ("No Internal Process Constraint"). All else is in `transom.services.unified`.

Joining
    Write ``0`` to the file that `Cgroup2.create` returns: the writer and what it forks are in the group.
"""

from __future__ import annotations

import os

import msgspec

from transom.contract.limits import LimitsCapability, Resources
from transom.services import cgroups
from transom.services.cgroups import Undo, read, write
from transom.services.unified import EVERYTHING, UnifiedLimits


class Options(cgroups.Options, frozen=True, forbid_unknown_fields=True):
    """The driver's options; see `Cgroup2.option_docs`."""

    oom_group: bool = msgspec.field(default=False, name="oom-group")


class _PerHost:
    """The capabilities: of the class all that v2 has, of an instance those that this host offers."""

    def __get__(self, driver: Cgroup2 | None, owner: type) -> frozenset[LimitsCapability]:
        return EVERYTHING if driver is None else driver.unified.capabilities


class Cgroup2(UnifiedLimits):
    """Limits by cgroup v2 controllers; see the module's text."""

    name = "cgroup2"
    api = 1
    Options = Options
    option_docs = {
        "parent": "the group below which containers' groups are made, a path from the root of the hierarchy",
        "oom-group": "kill the whole container when one of its processes is killed for want of memory "
        "(memory.oom.group)",
    }
    # What a host offers is in its mounts, which a constructor must not look at.
    capabilities = _PerHost()

    def _set_defaults(self, group: str) -> None:
        super()._set_defaults(group)
        if self.options.oom_group and "memory" in self.unified.controllers:
            write(f"{group}/memory.oom.group", "1")

    def _apply(self, id: str, resources: Resources) -> None:
        super()._apply(id, resources)
        if resources.memory_reservation is not None:
            self._pass_reservations_up()

    def _restore(self, undo: Undo) -> None:
        super()._restore(undo)
        if any(path.endswith("/memory.low") for path, _ in undo):
            self._pass_reservations_up()

    def remove(self, id: str) -> None:
        super().remove(id)
        self._pass_reservations_up()

    def _pass_reservations_up(self) -> None:
        """Have the parents reserve what their groups do together: a group has no more than its share of that.

        See cgroup-v2.rst, "memory.low".
        """
        path = f"{self.unified.point}/{self._parent}"
        while path != self.unified.point:
            try:
                for _ in range(10):  # another process may be at it too: who writes last has seen all
                    old, new = int(read(path, "memory.low")), _reserved(path)
                    if old == new:
                        break
                    write(f"{path}/memory.low", str(new))
            except (OSError, ValueError):  # not made yet, without the controller, or "max" by somebody's hand
                return
            path = os.path.dirname(path)


def _reserved(parent: str) -> int:
    """Return what the groups in one reserve together, in bytes."""
    total = 0
    for entry in os.scandir(parent):
        try:
            total += int(read(entry.path, "memory.low")) if entry.is_dir() else 0
        except FileNotFoundError:  # removed meanwhile
            continue
    return total


__all__ = ["Cgroup2", "Options"]
