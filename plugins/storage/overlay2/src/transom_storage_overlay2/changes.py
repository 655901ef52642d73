"""What a layer changed, read from its upper directory (overlayfs.rst, "whiteouts and opaque directories").

Only what was touched is looked at, and beside it the same path in the layers below, as the kernel would look it up.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence

import msgspec

from transom.contract.storage import Change, ChangeKind
from transom_storage_overlay2.marks import INTERNAL, is_opaque, is_whiteout

_CHUNK = 1 << 20


def changes(upper: str, lowers: Sequence[str]) -> list[Change]:
    """List the changes in `upper` against the stack `lowers`, nearest first; sorted."""
    found: list[Change] = []
    # Explicit, not recursive: a layer may be deeper than the interpreter's stack.
    todo = [_Directory(path=b"", place=os.fsencode(upper), below=[os.fsencode(lower) for lower in lowers])]
    while todo:
        directory = todo.pop()
        touched = False
        for name in os.listdir(directory.place):
            change, inner = _examine(directory, name)
            if change:
                found.append(change)
                touched = True
            if inner:
                todo.append(inner)
        if directory.below and not directory.fresh:
            new, old = directory.place, directory.below[0]
            moved = os.lstat(new).st_mtime_ns != os.lstat(old).st_mtime_ns and directory.path and not touched
            if moved or _metadata_differs(new, old):
                found.append(Change(directory.path, ChangeKind.MODIFIED))
    return sorted(found)


class _Directory(msgspec.Struct):
    """A directory of the upper layer, and those that merge below it; `fresh` when nothing of them shows through."""

    path: bytes
    place: bytes
    below: list[bytes]
    fresh: bool = False


def _examine(parent: _Directory, name: bytes) -> tuple[Change | None, _Directory | None]:
    """Judge one name: its change, and the directory to go into. Merged directories are judged when gone through."""
    path, place = os.path.join(parent.path, name), os.path.join(parent.place, name)
    old = list(_look_up(parent.below, name))
    status = os.lstat(place)
    if is_whiteout(status):
        return (Change(path, ChangeKind.DELETED) if old else None), None
    if not stat.S_ISDIR(status.st_mode):
        if not old:
            return Change(path, ChangeKind.ADDED), None
        return (Change(path, ChangeKind.MODIFIED) if parent.fresh or _differs(place, old[0]) else None), None
    fresh = parent.fresh or not old or not _is_directory(old[0]) or is_opaque(place)
    inner = _Directory(path=path, place=place, below=old, fresh=fresh)
    if not old:
        return Change(path, ChangeKind.ADDED), inner
    return (Change(path, ChangeKind.MODIFIED, opaque=True) if fresh else None), inner


def _look_up(places: Sequence[bytes], name: bytes) -> Iterator[bytes]:
    """Yield what merges under `name`, nearest first: one thing that is no directory, or directories."""
    merging = False
    for place in places:
        path = os.path.join(place, name)
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if is_whiteout(status):
            return
        if not stat.S_ISDIR(status.st_mode):
            if not merging:
                yield path
            return
        yield path
        merging = True
        if is_opaque(path):
            return


def _is_directory(path: bytes) -> bool:
    return stat.S_ISDIR(os.lstat(path).st_mode)


def _attributes(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {n: os.getxattr(path, n, follow_symlinks=False) for n in names if not n.startswith(INTERNAL)}


def _metadata_differs(new: bytes, old: bytes) -> bool:
    now, was = os.lstat(new), os.lstat(old)
    if (now.st_mode, now.st_uid, now.st_gid) != (was.st_mode, was.st_uid, was.st_gid):
        return True
    return _attributes(new) != _attributes(old)


def _differs(new: bytes, old: bytes) -> bool:
    """Compare metadata, then content: the kernel copies a file up when it is merely opened for writing."""
    if _metadata_differs(new, old):
        return True
    now, was = os.lstat(new), os.lstat(old)
    if (now.st_size, now.st_mtime_ns, now.st_rdev, now.st_nlink) != (
        was.st_size,
        was.st_mtime_ns,
        was.st_rdev,
        was.st_nlink,
    ):
        return True
    if stat.S_ISLNK(now.st_mode):
        return os.readlink(new) != os.readlink(old)
    return stat.S_ISREG(now.st_mode) and not _same_content(new, old)


def _same_content(one: bytes, two: bytes) -> bool:
    with open(one, "rb", buffering=0) as first, open(two, "rb", buffering=0) as second:
        while True:
            chunk = first.read(_CHUNK)
            if chunk != second.read(_CHUNK):
                return False
            if not chunk:
                return True
