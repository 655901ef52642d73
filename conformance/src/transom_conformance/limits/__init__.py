"""The suite of resource-limit drivers: what a limit does to processes is measured, not what a file says.

An author's own run::

    from transom_conformance.limits import LimitsSuite

    class TestMine(LimitsSuite):
        driver = "mine"
"""

from __future__ import annotations

from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.cpu import Cpu
from transom_conformance.limits.crashes import Crashes
from transom_conformance.limits.ending import Ending
from transom_conformance.limits.io import Io
from transom_conformance.limits.lifecycle import LifeCycle
from transom_conformance.limits.memory import Memory
from transom_conformance.limits.site import DIRECT, HOLD, MB, SLEEP, Group, Groups, enter, loop_device, memory
from transom_conformance.limits.updates import Updates

__all__ = [
    "DIRECT",
    "HOLD",
    "MB",
    "SLEEP",
    "Group",
    "Groups",
    "LimitsCases",
    "LimitsSuite",
    "enter",
    "loop_device",
    "memory",
]


class LimitsSuite(Crashes, Updates, Ending, Io, Cpu, Memory, LifeCycle):
    """What every resource-limit driver must do; see `transom.contract.limits`. Derive from it and set `driver`.

    pytest runs the groups from the last base class to the first.
    """
