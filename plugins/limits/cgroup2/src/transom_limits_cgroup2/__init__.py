"""The resource-limit driver on the unified hierarchy, cgroup v2 (admin-guide/cgroup-v2.rst).

A group is the directory ``PARENT/ID`` of the hierarchy. The parents are made when first needed, with every
controller switched on for what is below them, and stay. No process is ever in a parent, so none is in the way of
controllers ("No Internal Process Constraint"). All else is in `transom.services.unified`.

Joining
    Write ``0`` to the file that `Cgroup2.create` returns: the writer and what it forks are in the group.
"""

from __future__ import annotations

import msgspec

from transom.contract.limits import LimitsCapability
from transom.services import cgroups
from transom.services.cgroups import write
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


__all__ = ["Cgroup2", "Options"]
