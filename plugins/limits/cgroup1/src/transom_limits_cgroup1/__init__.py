"""The resource-limit driver on cgroup v1 hierarchies (cgroups(7), kernel's admin-guide/cgroup-v1).

A group is the directory ``PARENT/ID`` in every mounted hierarchy of a controller that the driver uses. The
parents are made when first needed and stay, as docker's do.

Joining
    Write a pid, or ``0`` for the writer itself, to each file that `Cgroup1.create` returns. From inside another
    pid namespace only ``0`` is safe: a number is looked up in the writer's own namespace.
    A fork after the last write is in the group; threads that exist already are moved too.

After a crash
    A group that `Cgroup1.create` left half-made has no process; `Cgroup1.owned` names it and `Cgroup1.remove`
    removes it, which is for the engine to decide. `Cgroup1.recover` completes an interrupted `Cgroup1.kill`
    (whose processes would stay frozen) and undoes an interrupted `Cgroup1.update`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from signal import SIGKILL
from typing import Any, NoReturn

import msgspec

from transom.contract import Probe
from transom.contract.limits import Limits, LimitsCapability, Resources, Stats, Watch
from transom.errors import DriverError, NotFound
from transom_limits_cgroup1._hierarchy import CONTROLLERS, below, hierarchies, members, read, write
from transom_limits_cgroup1._settings import Offered, Refused, apply, old_values, restore, unsupported

_FREEZE_SECONDS = 10.0
_KILL_SECONDS = 10.0
_REMOVE_SECONDS = 2.0


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The driver's options; see `Cgroup1.option_docs`."""

    parent: str = "transom"

    def __post_init__(self) -> None:
        if not all(part.strip(".") for part in self.parent.strip("/").split("/")):
            raise ValueError(f"parent={self.parent!r} is not the path of a group, such as transom or system/transom")


class _PerHost:
    """The capabilities: of the class all that v1 has, of an instance those that this host offers."""

    def __get__(self, driver: Cgroup1 | None, owner: type) -> frozenset[LimitsCapability]:
        everything = frozenset(LimitsCapability) - {LimitsCapability.IO_BUFFERED}
        return everything if driver is None else driver.offered.capabilities


class Cgroup1(Limits):
    """Limits by cgroup v1 controllers; see the module's text."""

    name = "cgroup1"
    api = 1
    Options = Options
    option_docs = {
        "parent": "the group below which containers' groups are made, a path from the root of each hierarchy"
    }
    # What a host offers is in its mounts, which a constructor must not look at.
    capabilities = _PerHost()

    def __init__(self, *, options: Any, root: Any, run: Any) -> None:
        super().__init__(options=options, root=root, run=run)
        self._parent = options.parent.strip("/")
        self._found: Offered | None = None

    @property
    def offered(self) -> Offered:
        """What this host has mounted; looked up once."""
        if self._found is None:
            self._found = Offered(hierarchies(read("/proc/self/mountinfo")))
        return self._found

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
        missing = [name for name in CONTROLLERS if name not in points]
        return Probe(usable=True, reason=f"controllers not mounted: {', '.join(missing)}" if missing else "")

    def status(self) -> dict[str, str]:
        return {"Cgroup Version": "1", "Controllers": ", ".join(self.offered.points), "Parent": f"/{self._parent}"}

    def runtime_path(self, id: str) -> str:
        return f"/{self._parent}/{id}"

    def unsupported_resources(self, resources: Resources) -> dict[str, str]:
        return unsupported(resources, self.offered)

    def create(self, id: str, resources: Resources) -> tuple[str, ...]:
        groups = self._groups(id)
        try:
            for group in groups:
                self._make(group)
            apply(id, resources, self.offered, self._parent)
        except BaseException as error:
            if not self.processes(id):
                self.remove(id)
            if isinstance(error, OSError):
                self._fail("create", id, error)
            raise
        return tuple(f"{group}/cgroup.procs" for group in groups)

    def update(self, id: str, resources: Resources) -> None:
        self._present(id)
        undo = old_values(id, resources, self.offered, self._parent)
        journal = self._note("update", id, undo)
        try:
            apply(id, resources, self.offered, self._parent)
        except BaseException as error:
            restore(undo)
            if isinstance(error, OSError):
                self._fail("update", id, error)
            raise
        finally:
            _forget(journal)

    def stats(self, id: str) -> Stats:
        from transom_limits_cgroup1._stats import collect

        self._present(id)
        try:
            return collect({name: self._group(point, id) for name, point in self.offered.points.items()})
        except OSError as error:
            self._present(id)  # removed meanwhile?
            self._fail("stats", id, error)

    def processes(self, id: str) -> tuple[int, ...]:
        found: set[int] = set()
        for group in self._groups(id):
            found |= members(group)
        return tuple(sorted(found - {0}))

    def watch(self, id: str) -> Watch:
        from transom_limits_cgroup1._watch import OomWatch

        if LimitsCapability.OOM_EVENTS not in self.capabilities:
            raise self.unsupported(LimitsCapability.OOM_EVENTS)
        self._present(id)
        return OomWatch(self._group(self.offered.points["memory"], id))

    def freeze(self, id: str) -> None:
        state = self._freezer(id)
        if not _freeze(state, seconds=_FREEZE_SECONDS):
            write(state, "THAWED")
            self._fail("freeze", id, "not every process stopped in time; it runs on, try again")

    def thaw(self, id: str) -> None:
        write(self._freezer(id), "THAWED")

    def kill(self, id: str) -> None:
        if not self.processes(id):
            return
        # Should this process die here, the group would stay frozen: recover() sees the note and goes on.
        note = self._note("kill", id, [])
        deadline = time.monotonic() + _KILL_SECONDS
        while left := self.processes(id):
            if time.monotonic() > deadline:
                pids = ", ".join(map(str, left))
                self._fail(
                    "kill", id, f"still alive: {pids}", "a process that hangs in the kernel (state D) cannot die"
                )
            self._kill_once(id)
        _forget(note)

    def remove(self, id: str) -> None:
        deadline = time.monotonic() + _REMOVE_SECONDS
        for group in reversed(self._groups(id)):
            for path in below(group):
                self._rmdir(id, path, deadline)
        for what in ("update", "kill"):
            _forget(self._journal(what, id))

    def owned(self) -> frozenset[str]:
        found: set[str] = set()
        for point in set(self.offered.points.values()):
            try:
                found.update(entry.name for entry in os.scandir(f"{point}/{self._parent}") if entry.is_dir())
            except FileNotFoundError:
                continue
        return frozenset(found)

    def recover(self) -> list[str]:
        done = []
        for name in sorted(os.listdir(self.run)) if self.run.is_dir() else ():
            what, _, id = name.partition("-")
            path = f"{self.run}/{name}"
            if name.endswith(".tmp"):
                pass  # a note that was not finished: what it announces had not begun
            elif what == "kill":
                self.kill(id)
                done.append(f"{id}: killed its processes, as was begun")
            elif what == "update" and id in self.owned():
                restore(msgspec.json.decode(read(path), type=list[tuple[str, str]]))
                done.append(f"{id}: took back an update that was not complete")
            _forget(path)
        return done

    def _group(self, point: str, id: str) -> str:
        return f"{point}/{self._parent}/{id}"

    def _groups(self, id: str) -> list[str]:
        """Return the group's directories, one for each hierarchy, in the order of joining."""
        if not id.strip(".") or "/" in id:
            self._fail("find", repr(id), "an id is a plain name")
        return [self._group(point, id) for point in dict.fromkeys(self.offered.points.values())]

    def _present(self, id: str) -> None:
        if not all(map(os.path.isdir, self._groups(id))):
            raise NotFound(f"limits {self.name}: no group {id!r}; `create` makes it")

    def _journal(self, what: str, id: str) -> str:
        return f"{self.run}/{what}-{id}"

    def _note(self, what: str, id: str, content: list[tuple[str, str]]) -> str:
        from transom.services.files import write_atomic

        os.makedirs(self.run, exist_ok=True)
        write_atomic(self._journal(what, id), msgspec.json.encode(content), durable=False)
        return self._journal(what, id)

    def _make(self, group: str) -> None:
        """Make an empty group with default values; keep one that has processes."""
        try:
            os.mkdir(group)
        except FileNotFoundError:
            self._make_parents(os.path.dirname(group))
            os.mkdir(group)
        except FileExistsError:
            if members(group):
                return
            for path in below(group):
                self._rmdir(os.path.basename(group), path, time.monotonic() + _REMOVE_SECONDS)
            os.mkdir(group)
        if group.startswith(self.offered.points.get("cpuset", "\0") + "/"):
            self._inherit(group)

    def _make_parents(self, parent: str) -> None:
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
        if LimitsCapability.FREEZE not in self.capabilities:
            raise self.unsupported(LimitsCapability.FREEZE)
        self._present(id)
        return f"{self._group(self.offered.points['freezer'], id)}/freezer.state"

    def _kill_once(self, id: str) -> None:
        """Signal every process while none can fork, then wait a little for them to go."""
        state = f"{self._group(self.offered.points.get('freezer', ''), id)}/freezer.state"
        try:
            _freeze(state, seconds=0.2)
        except OSError:
            pass  # no freezer here, or the group is half-made: repetition has to do
        for pid in self.processes(id):
            try:
                os.kill(pid, SIGKILL)
            except ProcessLookupError:
                continue
        for group in reversed(list(below(os.path.dirname(state)))):
            try:
                write(f"{group}/freezer.state", "THAWED")
            except OSError:
                continue
        _wait(lambda: not self.processes(id), seconds=0.1)

    def _rmdir(self, id: str, path: str, deadline: float) -> None:
        while True:
            try:
                os.rmdir(path)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                # A process that has just died holds its group for a moment.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    pids = ", ".join(map(str, self.processes(id))) or "none that this process can see"
                    self._fail("remove", id, error, f"kill its processes first: {pids}")
                time.sleep(0.001)

    def _fail(self, operation: str, id: str, cause: object, hint: str = "") -> NoReturn:
        if isinstance(cause, Refused):
            hint = cause.hint
        raise DriverError(operation, driver=f"limits {self.name}", subject=id, cause=cause, hint=hint) from (
            cause if isinstance(cause, BaseException) else None
        )


def _forget(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _wait(done: Callable[[], bool], *, seconds: float) -> bool:
    """Poll with growing pauses; say whether it came true in time."""
    deadline, pause = time.monotonic() + seconds, 0.0002
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.01)
    return True


def _freeze(state: str, *, seconds: float) -> bool:
    """Freeze and wait for it; a group that a fork or vfork holds half-frozen is asked again."""
    deadline = time.monotonic() + seconds
    write(state, "FROZEN")
    while not _wait(lambda: read(state) == "FROZEN", seconds=min(0.05, seconds)):
        if time.monotonic() > deadline:
            return False
        write(state, "THAWED")
        write(state, "FROZEN")
    return True


__all__ = ["Cgroup1", "Options"]
