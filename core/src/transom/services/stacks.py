"""Layers that stack, as the one tree that the kernel makes of them, without a mount.

For drivers whose layers lie above one another (overlay, aufs): `Stack` is written as the mounted tree would be, and
what is to be deleted or hidden below gets the marks that the kernel looks for, which each file system has of its own
form (`Marks`). The merging is that of overlayfs.rst, "Upper and Lower" and "whiteouts and opaque directories".
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Sequence
from typing import Protocol

from transom.contract.storage import Change, ChangeKind
from transom.services.differ import ancestors, same
from transom.services.trees import Path, Tree, copy_attributes, copy_file, join

_OPEN = 100
"""As many of the lower layers are held open: each takes two descriptors, of 1,024 that a process often has."""
_VANISHED = (FileNotFoundError, NotADirectoryError)


Inner = tuple[bytes, tuple[int, ...], bool]
"""A directory of the upper layer, what merges below it, and whether nothing of that shows through."""


class Marks(Protocol):
    """How a layer says that something of the layers below is gone. `at` is the descriptor of one of its directories."""

    keeps_times: bool
    """Whether a directory keeps its modification time when something in it is copied up."""

    def own(self, name: bytes) -> bool:
        """Say whether a name in a layer belongs to the file system itself, and is none of the tree's."""

    def meant(self, name: bytes) -> bytes | None:
        """Return what an own name is a whiteout of, if it is one."""

    def hidden(self, at: int, name: bytes, found: os.stat_result | None) -> bool:
        """Say whether the directory has a whiteout of the name; `found` is what lstat(2) says of that name there."""

    def hide(self, at: int, name: bytes) -> None:
        """Make a whiteout of the name, of which the directory has nothing but perhaps a whiteout."""

    def reveal(self, at: int, name: bytes) -> None:
        """Remove a whiteout beside the name, before something is made under it. Absent is success.

        One that lies under the name itself is left alone: it is removed as any file would be.
        """

    def opaque(self, at: int) -> bool:
        """Say whether the directory hides all that lies below it."""

    def make_opaque(self, at: int) -> None:
        """Let the directory hide all that lies below it. Repeating it is harmless."""


class Stack:
    """A layer over others that never change: it answers as a `Tree` of the mounted layer would, for who unpacks.

    Args:
        upper: the layer's own directory, mounted nowhere.
        lowers: those of its parents, nearest first.
    """

    def __init__(self, upper: Path, lowers: Sequence[Path], marks: Marks) -> None:
        self._upper, self._lowers, self._marks = Tree(upper), lowers, marks
        self._opened: dict[int, Tree] = {}
        self._merged: dict[bytes, tuple[int, ...]] = {b"": tuple(range(len(lowers)))}

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self._upper.__exit__()
        self._close_lowers()

    def _close_lowers(self) -> None:
        for tree in self._opened.values():
            tree.__exit__()
        self._opened.clear()

    def _lower(self, number: int) -> Tree:
        """Open a lower layer. What it returns is good until the next call."""
        if number not in self._opened:
            if len(self._opened) >= _OPEN:
                self._close_lowers()
            self._opened[number] = Tree(self._lowers[number])
        return self._opened[number]

    # Looking

    def _below(self, path: bytes) -> list[tuple[int, os.stat_result]]:
        """List what of the lower layers merges at `path`: a file, or directories; nearest first."""
        return self._look_up(path, self._below_directory(path.rpartition(b"/")[0]))

    def _look_up(self, path: bytes, places: Sequence[int]) -> list[tuple[int, os.stat_result]]:
        parent, _, name = path.rpartition(b"/")
        merging: list[tuple[int, os.stat_result]] = []
        for number in places:
            tree = self._lower(number)
            found = _status(tree, path)
            if self._marks.hidden(tree.directory(parent), name, found):
                break
            if found is None:
                continue
            directory = stat.S_ISDIR(found.st_mode)
            if directory or not merging:
                merging.append((number, found))
            if not directory or (number != places[-1] and self._marks.opaque(tree.directory(path))):
                break
        return merging

    def _below_directory(self, path: bytes) -> tuple[int, ...]:
        """Say which lower layers show through a directory."""
        todo, above = [], path
        while (found := self._merged.get(above)) is None:
            todo.append(above)
            above = above.rpartition(b"/")[0]
        for here in reversed(todo):
            found = self._merged[here] = () if self._hides(here) else self._directories(here, found)
        return found

    def _directories(self, path: bytes, places: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(number for number, found in self._look_up(path, places) if stat.S_ISDIR(found.st_mode))

    def _hides(self, path: bytes) -> bool:
        """Say whether the upper layer lets nothing through at `path`."""
        try:
            return self._marks.opaque(self._upper.directory(path))
        except NotADirectoryError:
            return True
        except FileNotFoundError:
            return self._whiteout(path)

    def _whiteout(self, path: bytes) -> bool:
        try:
            name, at = self._upper.entry(path)
            return self._marks.hidden(at, name, None)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _find(self, path: bytes) -> tuple[int, os.stat_result] | None:
        """Say in which layer the path is found, -1 being the upper one, and what it is there."""
        try:
            name, at = self._upper.entry(path)
            found = os.lstat(name, dir_fd=at)
        except NotADirectoryError:
            return None
        except FileNotFoundError:
            return None if self._whiteout(path) else next(iter(self._below(path)), None)
        return None if self._marks.hidden(at, name, found) else (-1, found)

    def is_directory(self, path: bytes) -> bool:
        """See `Tree.is_directory`."""
        found = self._find(path)
        return found is not None and stat.S_ISDIR(found[1].st_mode)

    def readlink(self, path: bytes) -> bytes:
        """See `Tree.readlink`."""
        found = self._find(path)
        if found is None:
            code = errno.ENOENT if self.is_directory(path.rpartition(b"/")[0]) else errno.ENOTDIR
            raise OSError(code, os.strerror(code))
        return (self._upper if found[0] < 0 else self._lower(found[0])).readlink(path)

    def changes(self) -> list[Change]:
        """List what the upper layer changed, by the rules of `Storage.changes`. Only what it holds is looked at."""
        found: list[Change] = []
        moved: list[bytes] = []
        todo = [(b"", tuple(range(len(self._lowers))), False)]
        while todo:
            path, below, fresh = todo.pop()
            try:
                touched = False
                for name in self._names(path):
                    try:
                        change, inner = self._judge(join(path, name), below, fresh)
                    except _VANISHED:
                        continue
                    if change:
                        found.append(change)
                        touched = True
                    if inner:
                        todo.append(inner)
                if not below or fresh:
                    continue
                if not self._same(path, below[0], mtime=False):
                    found.append(Change(path, ChangeKind.MODIFIED))
                elif path and not touched and not self._same(path, below[0]):
                    moved.append(path)
            except _VANISHED:  # what a running container removes meanwhile is not there
                if not path:
                    raise
        # A time that a copy made deeper down may have changed says nothing where a change there says it all.
        told = set() if self._marks.keeps_times else {above for change in found for above in ancestors(change.path)}
        found += [Change(path, ChangeKind.MODIFIED) for path in moved if path not in told]
        return sorted(found, key=lambda change: change.path)

    def _names(self, path: bytes) -> set[bytes]:
        """List the names in a directory of the upper layer, those that are but marked there too."""
        listed = set(_names(self._upper, path))
        own = {name for name in listed if self._marks.own(name)}
        return (listed - own) | {meant for name in own if (meant := self._marks.meant(name)) is not None}

    def _judge(self, path: bytes, places: tuple[int, ...], fresh: bool) -> tuple[Change | None, Inner | None]:
        """Judge one path: its change, and the directory to go into. Merged directories are judged when gone through."""
        now, old = _status(self._upper, path), self._look_up(path, places)
        name, at = self._upper.entry(path)
        if now is None or self._marks.hidden(at, name, now):
            return (Change(path, ChangeKind.DELETED) if old else None), None
        if not stat.S_ISDIR(now.st_mode):
            if not old:
                return Change(path, ChangeKind.ADDED), None
            changed = fresh or old[0][1].st_nlink != now.st_nlink or not self._same(path, old[0][0])
            return (Change(path, ChangeKind.MODIFIED) if changed else None), None
        below = tuple(number for number, found in old if stat.S_ISDIR(found.st_mode))
        fresh = fresh or not below or self._marks.opaque(self._upper.directory(path))
        if not old:
            return Change(path, ChangeKind.ADDED), (path, below, fresh)
        return (Change(path, ChangeKind.MODIFIED, opaque=True) if fresh else None), (path, below, fresh)

    def _same(self, path: bytes, number: int, *, mtime: bool = True) -> bool:
        lower = self._lower(number)
        was, now = _status(lower, path), _status(self._upper, path)
        return was is not None and now is not None and same(lower, self._upper, path, was, now, mtime=mtime)

    # Changing: what is to be written is copied up before, as the kernel does (overlayfs.rst, "Non-directories")

    def directory(self, path: bytes) -> int:
        """Open a directory of the upper layer, made there like the lower one that it merges with; see `Tree`."""
        try:
            return self._upper.directory(path)
        except FileNotFoundError:
            above = path.split(b"/")
            for depth in range(1, len(above) + 1):
                self._bring_directory(b"/".join(above[:depth]))
        return self._upper.directory(path)

    def _bring_directory(self, path: bytes) -> None:
        if _status(self._upper, path) is not None:
            return
        below = self._below_directory(path)
        if not below:
            code = errno.ENOENT if self._find(path) is None else errno.ENOTDIR
            raise OSError(code, os.strerror(code), os.fsdecode(path))
        name, at = self._upper.entry(path)
        before = os.fstat(at)
        os.mkdir(name, 0o700, dir_fd=at)
        copy_attributes(self._lower(below[0]).directory(path), self._upper.directory(path))
        self._restore(path, before)

    def _restore(self, path: bytes, before: os.stat_result) -> None:
        """Give the directory above its times back: bringing something into it changes nothing of the tree."""
        _, at = self._upper.entry(path)
        os.utime(at, ns=(before.st_atime_ns, before.st_mtime_ns))

    def bring(self, path: bytes) -> None:
        """Have a file, to which a hard link is to be made, in the upper layer.

        Raises:
            FileNotFoundError: there is none.
            PermissionError: it is a directory.
        """
        found = self._find(path)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        number, status = found
        if stat.S_ISDIR(status.st_mode):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        if number >= 0:
            parent, _, name = path.rpartition(b"/")
            at = self.directory(parent)
            before = os.fstat(at)
            copy_file(self._lower(number).directory(parent), at, name, status)
            self._restore(path, before)

    def entry(self, path: bytes) -> tuple[bytes, int]:
        """Say where in the upper layer something is to be made."""
        parent, _, name = path.rpartition(b"/")
        at = self.directory(parent)
        self._marks.reveal(at, name)
        return name or b".", at

    def made(self, path: bytes) -> None:
        """Be told of a directory that was made where there was none: what lies below is not to show through it."""
        if self._below(path):
            self._marks.make_opaque(self._upper.directory(path))
        self._merged[path] = ()

    def clear(self, path: bytes) -> None:
        """Make room for something else at `path`."""
        self._upper.clear(path)
        self._forget(path)

    def remove(self, path: bytes, keep: Collection[bytes]) -> None:
        """See `Tree.remove`."""
        self._upper.remove(path, keep)
        self._forget(path)
        if not self._below(path):
            return
        found = _status(self._upper, path)
        if found is None:
            parent, _, name = path.rpartition(b"/")
            self._marks.hide(self.directory(parent), name)
        elif stat.S_ISDIR(found.st_mode):
            self._close(path)

    def empty(self, path: bytes, keep: Collection[bytes]) -> None:
        """See `Tree.empty`. A root cannot be opaque: what lies below it is hidden name by name."""
        below = self._below_directory(path)
        names = set(_names(self._upper, path))
        for number in () if path else below:
            names.update(_names(self._lower(number), path))
        for name in names:
            if not self._marks.own(name):
                (self._upper if path else self).remove(join(path, name), keep)
        if below and path:
            self.directory(path)
            self._close(path)

    def _close(self, path: bytes) -> None:
        """Let nothing show through a directory any more, which changes times as if that were removed there."""
        directories = [path]
        for here in directories:
            kept = set(_names(self._upper, here))
            lower = {name for number in self._below_directory(here) for name in _names(self._lower(number), here)}
            if any(self._below(join(here, name)) for name in lower - kept if not self._marks.own(name)):
                os.utime(self._upper.directory(here))
            directories += [inner for name in kept if self._upper.is_directory(inner := join(here, name))]
        self._marks.make_opaque(self._upper.directory(path))
        self._forget(path)

    def _forget(self, path: bytes) -> None:
        """Look again at what merges where a directory changed that others may lie in."""
        if path in self._merged:
            self._merged = {b"": self._merged[b""]}


def _status(tree: Tree, path: bytes) -> os.stat_result | None:
    try:
        name, at = tree.entry(path)
        return os.lstat(name, dir_fd=at)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _names(tree: Tree, path: bytes) -> list[bytes]:
    try:
        return [os.fsencode(name) for name in tree.listed(path, lambda fd: dict.fromkeys(os.listdir(fd)))]
    except FileNotFoundError:
        return []
