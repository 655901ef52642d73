"""What is asked of whole subvolumes: their removal with all that is nested in them, their size and their changes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable

from transom.contract.storage import Change, Usage
from transom.services.files import closing
from transom.services.trees import remove_tree
from transom_storage_btrfs import ioctls

_FULL = 64 << 20
"""With less than so many bytes free, removing waits for the space to come back."""
_PATIENCE = 60.0
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(root: str, id: str) -> bool:
    """Remove the subvolume ``root/ID``, or the directory if it is none; say whether anything was there."""
    try:
        directory = os.open(root, _DIRECTORY)
    except FileNotFoundError:
        return False
    with closing(directory):
        number = _number(f"{root}/{id}") if _is_full(directory) else None
        try:
            ioctls.destroy(directory, os.fsencode(id))
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno == errno.ENOTEMPTY:
                _remove_nested(f"{root}/{id}")
                ioctls.destroy(directory, os.fsencode(id))
            elif error.errno in {errno.EINVAL, errno.ENOTDIR}:  # no subvolume: made by no operation of ours
                remove_tree(f"{root}/{id}")
            else:
                raise
        if number is not None:
            _wait_until_freed(directory, number)
    return True


def _number(path: str) -> int | None:
    try:
        with closing(os.open(path, _DIRECTORY)) as fd:
            return ioctls.subvolume_id(fd)
    except FileNotFoundError:
        return None


def _is_full(fd: int) -> bool:
    found = os.fstatvfs(fd)
    return found.f_bavail * found.f_frsize < _FULL


def _wait_until_freed(fd: int, number: int) -> None:
    """Wait for the space of a deleted subvolume: on a full disk, who removes has need of it now."""
    end = time.monotonic() + _PATIENCE
    while ioctls.exists(fd, number) and time.monotonic() < end:
        ioctls.sync(fd)
        time.sleep(0.01)


def _remove_nested(top: str) -> None:
    """Remove the subvolumes that a container made in its own, the innermost first; they may be read-only."""
    with closing(os.open(top, _DIRECTORY)) as fd:
        ioctls.set_readonly(fd, False)
        for path in reversed(_nested(fd)):
            parent, _, name = path.rpartition(b"/")
            with closing(os.open(parent or b".", _DIRECTORY, dir_fd=fd)) as above:
                ioctls.destroy(above, name)


def _nested(top: int) -> list[bytes]:
    """List the subvolumes below a directory, outer ones first, and make them writable."""
    found = []
    todo = [b""]
    while todo:
        path = todo.pop()
        with closing(os.open(path or b".", _DIRECTORY, dir_fd=top)) as fd:
            if path and os.fstat(fd).st_ino == ioctls.ROOT_INODE:
                ioctls.set_readonly(fd, False)
                found.append(path)
            with os.scandir(fd) as entries:
                names = [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
        todo += [path + b"/" + name if path else name for name in names]
    return found


def usage(layer: str, parent: str | None) -> Usage:
    """Add up what the layer's tree holds and the parent's does not hold just so."""
    from transom.services.trees import Tree, join, measure_tree

    if parent is None:
        return measure_tree(layer)
    touched = _touched(layer, parent)
    if touched is None:
        return measure_tree(layer)
    blocks, inodes = 0, 0
    seen: set[int] = set()
    with Tree(layer) as tree:
        for path in {*touched, b""}:
            try:
                name, at = tree.entry(join(b"", path))
                found = os.stat(name, dir_fd=at, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue
            if found.st_ino not in seen:
                seen.add(found.st_ino)
                blocks, inodes = blocks + found.st_blocks, inodes + 1
    return Usage(size=blocks * 512, inodes=inodes)


def changes(layer: str, parent: str | None) -> Iterable[Change]:
    """List what changed against the parent; only what was written since the snapshot is looked at."""
    from transom.services.differ import compare

    return compare(lower=parent, upper=layer, only=_touched(layer, parent) if parent else None)


def _touched(layer: str, parent: str) -> frozenset[bytes] | None:
    """Return the paths in the layer of all that was written since the parent was last; None when there are too many."""
    with closing(os.open(layer, _DIRECTORY)) as fd, closing(os.open(parent, _DIRECTORY)) as old:
        ioctls.sync(fd)
        number = ioctls.subvolume_id(fd)
        _, made = ioctls.generations(fd, number)
        last, _ = ioctls.generations(fd, ioctls.subvolume_id(old))
        paths: set[bytes] = set()
        # A clone was made later than its source was changed, and the parent may be set read-only after its child.
        for inode in ioctls.changed_inodes(fd, number, since=min(made, last)):
            names = [b""] if inode == ioctls.ROOT_INODE else ioctls.paths_of(fd, inode)
            if names is None:
                return None
            paths.update(names)
    return frozenset(paths)
