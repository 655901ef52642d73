"""The naive differ: what changed between two mounted trees, by walking both.

It needs nothing of the storage driver and serves every one that cannot tell by itself (`Storage.changes`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import IO

from transom.contract.storage import Change, ChangeKind
from transom.services.trees import Tree, join, read_xattrs

Entries = dict[bytes, os.stat_result]
Inode = tuple[int, int]


def compare(
    *, lower: str | None, upper: str, only: frozenset[bytes] | None = None, directory_times: bool = True
) -> Iterator[Change]:
    """List what changed from the tree `lower` to the tree `upper`, by the rules of `Storage.changes`.

    Sorted by path, bytewise, so that a directory comes before what it holds; everything is ADDED if `lower` is None.

    A file is MODIFIED when type, mode, owner, size, mtime (ns), device number, extended attributes or content
    differ. Content is read only where it could differ unseen: size and mtime are equal but inode number or ctime are
    not, since an mtime can be set back and a ctime cannot. Where both are equal (a snapshot, an overlay's untouched
    file) it is the same file. A file is also MODIFIED when it is no longer, or only now, one file with another
    name, and rewriting the changed names would not bring that about: a layer can then be rebuilt from its changes.

    A directory is MODIFIED when its mode, owner or extended attributes differ, or its mtime while no name in it was
    added, removed or changed (which alone moves the mtime). The root, the path ``b""``, never by its mtime. A
    directory where there was none is MODIFIED and `opaque` if something else was there, else ADDED.

    Args:
        only: the paths in `upper` of everything that can differ, a directory where names went or came included, and
            every name of a file that has several. Nothing else is looked at. None when nobody knows.
        directory_times: look at the mtimes of directories.

    Raises:
        OSError: a tree cannot be read. What vanishes during the walk is listed as DELETED or MODIFIED.
    """
    with Tree(upper) as new:
        if lower is None:
            found = _Comparison(new=new, old=new).additions()
        else:
            with Tree(lower) as old:
                found = _Comparison(new=new, old=old, only=only, directory_times=directory_times).differences()
    return iter(sorted(found, key=lambda change: change.path))


def _entries(tree: Tree, path: bytes) -> Entries:
    """Read a directory: names and what stat(2) says, without following links."""
    try:
        return tree.listed(path, _statuses)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _statuses(fd: int) -> Entries:
    found = {}
    with os.scandir(fd) as listing:
        for entry in listing:
            try:
                found[os.fsencode(entry.name)] = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
    return found


def _kinds(fd: int) -> dict[bytes, bool]:
    """Read a directory: names, and whether each is a directory."""
    with os.scandir(fd) as listing:
        return {os.fsencode(entry.name): entry.is_dir(follow_symlinks=False) for entry in listing}


class _Comparison:
    def __init__(
        self, *, new: Tree, old: Tree, only: frozenset[bytes] | None = None, directory_times: bool = True
    ) -> None:
        self._new, self._old, self._directory_times = new, old, directory_times
        self._only = only if only is None else only | {above for path in only for above in ancestors(path)}
        self._changes: dict[bytes, Change] = {}
        self._old_links: dict[bytes, Inode] = {}
        self._new_links: dict[bytes, Inode] = {}

    def additions(self) -> list[Change]:
        todo = [b""]
        while todo:
            path = todo.pop()
            for name, is_directory in self._new.listed(path, _kinds).items():
                self._note(child := join(path, name), ChangeKind.ADDED)
                if is_directory:
                    todo.append(child)
        return list(self._changes.values())

    def differences(self) -> list[Change]:
        todo = [(b"", os.stat(self._old.directory(b"")), os.stat(self._new.directory(b"")))]
        while todo:
            path, was, now = todo.pop()
            before, after = _entries(self._old, path), _entries(self._new, path)
            if self._only is not None:
                before, after = self._worth_looking(path, before, after)
            touched = before.keys() != after.keys()
            for name in before.keys() - after.keys():
                self._note(join(path, name), ChangeKind.DELETED)
            for name in sorted(after, reverse=True):
                child, new, old = join(path, name), after[name], before.get(name)
                if old is None:
                    self._add(child, new)
                elif stat.S_ISDIR(old.st_mode) and stat.S_ISDIR(new.st_mode):
                    todo.append((child, old, new))
                else:
                    if old.st_nlink > 1 or new.st_nlink > 1:
                        self._old_links[child] = (old.st_dev, old.st_ino)
                        self._new_links[child] = (new.st_dev, new.st_ino)
                    if not self._same(child, old, new):
                        self._add(child, new)
                        self._note(child, ChangeKind.MODIFIED, opaque=stat.S_ISDIR(new.st_mode))
                        touched = True
            if not self._same(path, was, now, mtime=self._directory_times and bool(path) and not touched):
                self._note(path, ChangeKind.MODIFIED)
        self._relink()
        return list(self._changes.values())

    def _worth_looking(self, path: bytes, before: Entries, after: Entries) -> tuple[Entries, Entries]:
        """Leave out the names that are what they were: the same inode, with nothing that can differ in or below it."""
        same = {
            name
            for name, found in after.items()
            if name in before and before[name].st_ino == found.st_ino and join(path, name) not in (self._only or ())
        }
        old, new = ({name: s for name, s in both.items() if name not in same} for both in (before, after))
        return old, new

    def _note(self, path: bytes, kind: ChangeKind, *, opaque: bool = False) -> None:
        self._changes[path] = Change(path=path, kind=kind, opaque=opaque)

    def _add(self, path: bytes, found: os.stat_result) -> None:
        todo = [(path, found)]
        while todo:
            path, found = todo.pop()
            self._note(path, ChangeKind.ADDED)
            if stat.S_ISDIR(found.st_mode):
                todo += [(join(path, name), inner) for name, inner in _entries(self._new, path).items()]
            elif found.st_nlink > 1:
                self._new_links[path] = (found.st_dev, found.st_ino)

    def _relink(self) -> None:
        """Note the names that are one file with others than before, where nothing else tells."""
        old, new = _groups(self._old_links), _groups(self._new_links)
        for group in new.values():
            for path in group:
                known = old.get(self._old_links.get(path, (-1, -1)), set())
                if path not in self._changes and not group <= known | {path}:
                    self._note(path, ChangeKind.MODIFIED)
        for group in old.values():
            kept = sorted(path for path in group if path not in self._changes)
            for path in kept:
                if self._new_links[path] != self._new_links[kept[0]]:
                    self._note(path, ChangeKind.MODIFIED)

    def _same(self, path: bytes, was: os.stat_result, now: os.stat_result, *, mtime: bool = True) -> bool:
        return same(self._old, self._new, path, was, now, mtime=mtime)


def same(old: Tree, new: Tree, path: bytes, was: os.stat_result, now: os.stat_result, *, mtime: bool = True) -> bool:
    """Say whether a path is in two trees what `compare` takes for the same."""
    if _facts(was) != _facts(now) or (mtime and was.st_mtime_ns != now.st_mtime_ns):
        return False
    if (was.st_ino, was.st_ctime_ns) == (now.st_ino, now.st_ctime_ns):
        return True
    try:
        if stat.S_ISLNK(now.st_mode) and os.readlink(old.at(path)) != os.readlink(new.at(path)):
            return False
        if read_xattrs(old.at(path), follow_symlinks=False) != read_xattrs(new.at(path), follow_symlinks=False):
            return False
        return not stat.S_ISREG(now.st_mode) or _same_content(old, new, path)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _same_content(old: Tree, new: Tree, path: bytes) -> bool:
    with _reader(old, path) as before, _reader(new, path) as after:
        while (piece := before.read(1 << 20)) == after.read(1 << 20):
            if not piece:
                return True
    return False


def ancestors(path: bytes) -> Iterator[bytes]:
    """Yield the directories above a path of a `Tree`, the root last."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


def _facts(found: os.stat_result) -> tuple[int, ...]:
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return found.st_mode, found.st_uid, found.st_gid, found.st_rdev, size


def _groups(links: dict[bytes, Inode]) -> dict[Inode, set[bytes]]:
    groups: dict[Inode, set[bytes]] = {}
    for path, inode in links.items():
        groups.setdefault(inode, set()).add(path)
    return groups


def _reader(tree: Tree, path: bytes) -> IO[bytes]:
    return open(os.open(tree.at(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
