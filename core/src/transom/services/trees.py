"""Whole directory trees: copy, remove, measure.

All three walk with one directory descriptor, a step at a time: no path grows with the depth, so a tree deeper than
PATH_MAX, the descriptor limit or the recursion limit is as good as any, and no symbolic link is ever followed.
"""

from __future__ import annotations

import errno
import os
import stat

from transom.contract.storage import Usage

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
Path = str | bytes | os.PathLike[str]


class _Moved(OSError):
    """The directory left the place where the walk came upon it."""


class _Walk:
    """A descriptor that walks: into a directory and back, sure of being back where it came from."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, _DIRECTORY)
        self.here = os.fstat(self.fd)
        self._above: list[tuple[bytes, list[bytes], tuple[int, int]]] = []

    def down(self, name: bytes, siblings: list[bytes]) -> None:
        """Enter `name`; `siblings` is what is still to be done in the directory we leave."""
        inner = os.open(name, _DIRECTORY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd = inner
        self._above.append((name, siblings, (self.here.st_dev, self.here.st_ino)))
        self.here = os.fstat(inner)

    def up(self) -> tuple[bytes, list[bytes]] | None:
        """Return to the directory above; say which name we were in and what is left to do. At the top: None."""
        if not self._above:
            return None
        name, siblings, identity = self._above.pop()
        outer = os.open(b"..", _DIRECTORY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd, self.here = outer, os.fstat(outer)
        if (self.here.st_dev, self.here.st_ino) != identity:
            raise _Moved(errno.EBUSY, "a directory was moved during the walk", os.fsdecode(name))
        return name, siblings

    def close(self) -> None:
        os.close(self.fd)


def copy_attributes(source: str | int, target: str | int, *, follow_symlinks: bool = True) -> None:
    """Give `target` the owner, extended attributes, mode and nanosecond times of `source`; paths or descriptors.

    In this order: chown(2) clears set-id bits and file capabilities. What overlay keeps for itself
    (``trusted.overlay.*``) stays where it is.
    """
    found = os.stat(source, follow_symlinks=follow_symlinks)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=follow_symlinks)
    for name in os.listxattr(source, follow_symlinks=follow_symlinks):
        if not name.startswith("trusted.overlay."):
            value = os.getxattr(source, name, follow_symlinks=follow_symlinks)
            os.setxattr(target, name, value, follow_symlinks=follow_symlinks)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=follow_symlinks)


def remove_tree(path: Path) -> None:
    """Remove the file or directory with everything below it. Absent is success; interrupted, call it again.

    The top directory itself goes last.

    Raises:
        OSError: EBUSY where something is mounted inside, which is never emptied, or a directory moves meanwhile.
    """
    try:
        walk = _Walk(path)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise
        os.unlink(path)
        return
    device = walk.here.st_dev
    try:
        below = _empty(walk.fd)
        while True:
            if below:
                walk.down(below.pop(), below)
                if walk.here.st_dev != device:
                    raise OSError(errno.EBUSY, "something is mounted inside", os.fsdecode(path))
                below = _empty(walk.fd)
                continue
            back = walk.up()
            if back is None:
                break
            name, below = back
            _discard(walk.fd, name, directory=True)
    finally:
        walk.close()
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _empty(fd: int) -> list[bytes]:
    """Remove what a single call removes from the directory; return the names of the directories that are left."""
    with os.scandir(fd) as entries:
        found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
    return [name for name, directory in found if not _discard(fd, name, directory=directory)]


def _discard(fd: int, name: bytes, *, directory: bool) -> bool:
    try:
        if directory:
            os.rmdir(name, dir_fd=fd)
        else:
            os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
            raise
        return False
    return True


def measure_tree(path: Path) -> Usage:
    """Add up what the tree takes on disk, the top directory included, each hard-linked file once (as du(1) does).

    Safe on a tree in use: what vanishes meanwhile is passed over. Absent is nothing.
    """
    while True:
        try:
            return _measure(path)
        except _Moved:
            continue


def _measure(path: Path) -> Usage:
    try:
        walk = _Walk(path)
    except FileNotFoundError:
        return Usage(size=0, inodes=0)
    size, inodes = walk.here.st_blocks * 512, 1
    linked: set[tuple[int, int]] = set()
    below: list[bytes] = []
    try:
        entered = True
        while True:
            if entered:
                entered, below = False, []
                for name in os.listdir(walk.fd):
                    try:
                        found = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    if stat.S_ISDIR(found.st_mode):
                        below.append(os.fsencode(name))
                    elif found.st_nlink > 1:
                        identity = (found.st_dev, found.st_ino)
                        if identity in linked:
                            continue
                        linked.add(identity)
                    size, inodes = size + found.st_blocks * 512, inodes + 1
            elif below:
                try:
                    walk.down(below.pop(), below)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                entered = True
            else:
                back = walk.up()
                if back is None:
                    return Usage(size=size, inodes=inodes)
                below = back[1]
    finally:
        walk.close()
