"""What every driver on control groups does alike (cgroups(7)): the tree, notes for recovery, killing, removing.

A group is a directory, in one hierarchy or in several. `CgroupLimits` has its life cycle; where the directories are
and what is written into them is the driver's.

After a crash
    A group that `CgroupLimits.create` left half-made has no process; `CgroupLimits.owned` names it and
    `CgroupLimits.remove` removes it, which is for the engine to decide. `CgroupLimits.recover` completes an
    interrupted `CgroupLimits.kill` (whose processes might stay frozen) and takes back an interrupted
    `CgroupLimits.update`.
"""

from __future__ import annotations

import errno
import os
import re
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from signal import SIGKILL
from typing import Any, NoReturn

import msgspec

from transom.contract.limits import Limits, LimitsCapability, Resources
from transom.errors import DriverError, NotFound

KILL_SECONDS = 10.0
REMOVE_SECONDS = 2.0
FREEZE_SECONDS = 10.0

Undo = list[tuple[str, str]]
"""What to write where, in order, to take an update back."""

_UNDO = msgspec.json.Decoder(Undo)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a driver that makes its groups itself."""

    parent: str = "transom"

    def __post_init__(self) -> None:
        if not all(part.strip(".") for part in self.parent.strip("/").split("/")):
            raise ValueError(f"parent={self.parent!r} is not the path of a group, such as transom or system/transom")


class Refused(OSError):
    """The kernel refused a value: the text names the field, `hint` says what may help."""

    def __init__(self, field: str, value: str, error: OSError, *, hint: str = "") -> None:
        super().__init__(error.errno, f"{field}={value}: {error.strerror or error}")
        self.hint = hint


class CgroupLimits(Limits):
    """The life of groups that are directories; see the module's text."""

    @abstractmethod
    def _groups(self, id: str) -> list[str]:
        """Return the group's directories, one for each hierarchy, in the order of joining."""

    @abstractmethod
    def _make(self, group: str) -> None:
        """Make one of the group's directories, empty and with default values; keep one that has processes."""

    @abstractmethod
    def _apply(self, id: str, resources: Resources) -> None:
        """Write what was asked, in an order that the kernel accepts.

        Raises:
            Refused: a value was not accepted; those before it are in force.
        """

    @abstractmethod
    def _undo(self, id: str, resources: Resources) -> Undo:
        """Return what takes back `_apply` of the same resources."""

    @abstractmethod
    def _restore(self, undo: Undo) -> None:
        """Put values back as far as the kernel lets us; groups that are gone are passed over."""

    @abstractmethod
    def _kill_once(self, id: str) -> None:
        """Signal every process, and wait a little for them to go."""

    def create(self, id: str, resources: Resources) -> tuple[str, ...]:
        groups = self._groups(id)
        try:
            for group in groups:
                self._make(group)
            self._apply(id, resources)
        except BaseException as error:
            if not self.processes(id):
                self.remove(id)
            if isinstance(error, OSError):
                self._fail("create", id, error)
            raise
        return tuple(f"{group}/cgroup.procs" for group in groups)

    def update(self, id: str, resources: Resources) -> None:
        self._present(id)
        undo = self._undo(id, resources)
        journal = self._note("update", id, undo)
        try:
            self._apply(id, resources)
            forget(journal)
        except BaseException as error:
            self._restore(undo)
            forget(journal)
            if isinstance(error, OSError):
                self._fail("update", id, error)
            raise

    def processes(self, id: str) -> tuple[int, ...]:
        found: set[int] = set()
        for group in self._groups(id):
            found |= members(group)
        return tuple(sorted(found - {0}))

    def kill(self, id: str) -> None:
        if not self.processes(id):
            return
        # Should this process die here, the group might stay frozen: recover() sees the note and goes on.
        note = self._note("kill", id, [])
        deadline = time.monotonic() + KILL_SECONDS
        while left := self.processes(id):
            if time.monotonic() > deadline:
                pids = ", ".join(map(str, left))
                hint = "a process that hangs in the kernel (state D) cannot die"
                self._fail("kill", id, f"still alive: {pids}", hint)
            self._kill_once(id)
        forget(note)

    def remove(self, id: str) -> None:
        for group in reversed(self._groups(id)):
            self._remove_tree(id, group)
        for what in ("update", "kill"):
            forget(self._journal(what, id))

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
                self._restore(_UNDO.decode(read(path)))
                done.append(f"{id}: took back an update that was not complete")
            forget(path)
        return done

    def _plain(self, id: str) -> str:
        if not id.strip(".") or "/" in id:
            self._fail("find", repr(id), "an id is a plain name")
        return id

    def _present(self, id: str) -> None:
        if not all(map(os.path.isdir, self._groups(id))):
            raise NotFound(f"limits {self.name}: no group {id!r}; `create` makes it")

    def _needs(self, id: str, capability: LimitsCapability) -> None:
        if capability not in self.capabilities:
            raise self.unsupported(capability)
        self._present(id)

    def _journal(self, what: str, id: str) -> str:
        return f"{self.run}/{what}-{id}"

    def _note(self, what: str, id: str, content: Undo) -> str:
        from transom.services.files import write_atomic

        os.makedirs(self.run, exist_ok=True)
        write_atomic(self._journal(what, id), msgspec.json.encode(content), durable=False)
        return self._journal(what, id)

    def _make_empty(self, group: str) -> bool:
        """Make a directory with default values; False when it has processes and was kept.

        Raises:
            FileNotFoundError: its parent is missing.
        """
        try:
            os.mkdir(group)
        except FileExistsError:
            if members(group):
                return False
            self._remove_tree(os.path.basename(group), group)
            os.mkdir(group)
        return True

    def _remove_tree(self, id: str, group: str) -> None:
        deadline = time.monotonic() + REMOVE_SECONDS
        for path in below(group):
            self._rmdir(id, path, deadline)

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
        hint = getattr(cause, "hint", hint)
        raise DriverError(operation, driver=f"limits {self.name}", subject=id, cause=cause, hint=hint) from (
            cause if isinstance(cause, BaseException) else None
        )


def mount_points(mountinfo: str, type: str) -> Iterator[tuple[str, str, list[str]]]:
    """Yield root, mount point and super options of each mount of a type (proc(5), /proc/PID/mountinfo)."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        found, _, options = rest.split(" ", 2)
        if found == type:
            _, _, _, root, point, *_ = fields.split(" ")
            yield root, re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), point), options.split(",")


def read(*path: str) -> str:
    """Return a control file's text, without the end of line."""
    fd = os.open("/".join(path), os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
    finally:
        os.close(fd)
    return b"".join(parts).decode().rstrip("\n")


def write(path: str, value: str) -> None:
    """Write a value to a control file in one call, as the kernel wants it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def table(text: str) -> dict[str, int]:
    """Return the numbers of a flat keyed file (admin-guide/cgroup-v2.rst, "Interface Files")."""
    return {name: int(value) for name, value in (line.split() for line in text.splitlines())}


def below(group: str) -> Iterator[str]:
    """Yield the groups nested in `group` and then itself, children before parents; gone ones are left out."""
    try:
        # A directory's link count is 2 plus its subdirectories: most groups have none and need no listing.
        children = [e.path for e in os.scandir(group) if e.is_dir()] if os.stat(group).st_nlink > 2 else []
    except FileNotFoundError:
        return
    for child in children:
        yield from below(child)
    yield group


def members(group: str) -> set[int]:
    """Return the pids in `group` and below; 0 stands for processes that this pid namespace cannot name."""
    pids: set[int] = set()
    for path in below(group):
        try:
            pids.update(map(int, read(path, "cgroup.procs").split()))
        except OSError:  # gone, or threaded (EOPNOTSUPP): its processes are listed above it
            continue
    return pids


def names_below(parents: Iterable[str]) -> frozenset[str]:
    """Return the names of all groups directly in one of `parents`."""
    found: set[str] = set()
    for parent in parents:
        try:
            found.update(entry.name for entry in os.scandir(parent) if entry.is_dir())
        except FileNotFoundError:
            continue
    return frozenset(found)


def signal_all(pids: Iterable[int]) -> None:
    """Send SIGKILL to each of `pids`; those that are gone are passed over."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, SIGKILL)


def forget(path: str) -> None:
    """Remove a file. Absent is success."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def wait(done: Callable[[], Any], *, seconds: float) -> bool:
    """Poll with growing pauses; say whether it came true in time."""
    deadline, pause = time.monotonic() + seconds, 0.0002
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.01)
    return True


def asked(resources: Resources, field: str) -> bool:
    """Say whether a field was asked for; an empty device list was."""
    value = getattr(resources, field)
    return value is not None and (value != () or field == "devices")


def bfq_in_use() -> bool:
    """Say whether a block device has the I/O scheduler bfq, without which weights do not act."""
    for device in os.listdir("/sys/block"):
        try:
            if "[bfq]" in read("/sys/block", device, "queue/scheduler"):
                return True
        except OSError:
            continue
    return False
