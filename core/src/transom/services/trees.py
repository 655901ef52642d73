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
_FICLONE = 0x40049409
_CANNOT = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
"""What a file system answers that cannot share or copy blocks by itself."""
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

    @property
    def path(self) -> bytes:
        """Where we are, relative to the top, with a slash behind it."""
        return b"".join(name + b"/" for name, _, _ in self._above)

    def close(self) -> None:
        """Give the descriptor back."""
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


def copy_tree(source: Path, target: Path) -> None:
    """Make `target` a whole copy of the tree `source`, which must not change meanwhile.

    Kept: data (shared by reflink where the file system can, ioctl_ficlone(2)), holes, hard links, sockets, fifos,
    devices, and what `copy_attributes` keeps. `target` may exist as a directory; entries in it that are also in
    `source` are an error. Interrupted, what is there is a part: `remove_tree` it.

    Raises:
        OSError: as the kernel refuses; EOPNOTSUPP where the target's file system keeps no extended attributes.
    """
    try:
        os.mkdir(target, 0o700)
    except FileExistsError:
        pass
    reader, writer = _Walk(source), _Walk(target)
    links = _Links(writer.fd)
    try:
        below = _copy_entries(reader.fd, writer.fd, links, b"")
        while True:
            if below:
                name = below.pop()
                os.mkdir(name, 0o700, dir_fd=writer.fd)
                reader.down(name, below)
                writer.down(name, [])
                below = _copy_entries(reader.fd, writer.fd, links, writer.path)
                continue
            copy_attributes(reader.fd, writer.fd)  # last: filling a directory changes its times
            back = reader.up()
            if back is None:
                return
            writer.up()
            below = back[1]
    finally:
        links.close()
        reader.close()
        writer.close()


class _Links:
    """Where in the copy the first name of each hard-linked file is."""

    def __init__(self, top: int) -> None:
        self._top = os.dup(top)
        self._first: dict[tuple[int, int], bytes] = {}

    def join(self, found: os.stat_result, fd: int, path: bytes, name: bytes) -> bool:
        """Link `name` to its first name; when it is the first itself, note it and return False."""
        if found.st_nlink == 1:
            return False
        first = self._first.setdefault((found.st_dev, found.st_ino), path + name)
        if first == path + name:
            return False
        *directories, last = first.split(b"/")
        walk = os.dup(self._top)
        try:
            for start in range(0, len(directories), 15):  # 15 names stay below PATH_MAX
                walk = _step(walk, b"/".join(directories[start : start + 15]))
            os.link(last, name, src_dir_fd=walk, dst_dir_fd=fd, follow_symlinks=False)
        finally:
            os.close(walk)
        return True

    def close(self) -> None:
        os.close(self._top)


def _step(fd: int, name: bytes) -> int:
    inner = os.open(name, _DIRECTORY, dir_fd=fd)
    os.close(fd)
    return inner


def _copy_entries(source: int, target: int, links: _Links, path: bytes) -> list[bytes]:
    """Copy what is not a directory; return the names of the directories."""
    directories = []
    for entry in os.listdir(source):
        name = os.fsencode(entry)
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            directories.append(name)
        elif not links.join(found, target, path, name):
            _copy_file(source, target, name, found)
    return directories


def _copy_file(source: int, target: int, name: bytes, found: os.stat_result) -> None:
    if stat.S_ISREG(found.st_mode):
        reader = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME, dir_fd=source)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            writer = os.open(name, flags, 0o600, dir_fd=target)
            try:
                _copy_data(reader, writer, found)
                copy_attributes(reader, writer)
            finally:
                os.close(writer)
        finally:
            os.close(reader)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=target)
    # The calls for extended attributes know no dir_fd.
    text = os.fsdecode(name)
    copy_attributes(f"/proc/self/fd/{source}/{text}", f"/proc/self/fd/{target}/{text}", follow_symlinks=False)


def _copy_data(reader: int, writer: int, found: os.stat_result) -> None:
    if not found.st_size:
        return
    if _reflink(reader, writer):
        return
    size = found.st_size
    if found.st_blocks * 512 >= size:
        _copy_range(reader, writer, 0, size)
        return
    os.ftruncate(writer, size)
    offset = 0
    while offset < size:
        try:
            start = os.lseek(reader, offset, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # a hole up to the end
                return
            raise
        offset = os.lseek(reader, start, os.SEEK_HOLE)
        _copy_range(reader, writer, start, offset)


def _reflink(reader: int, writer: int) -> bool:
    """Let the copy share the blocks of the original until one is written; say whether the file system can."""
    import fcntl

    try:
        fcntl.ioctl(writer, _FICLONE, reader)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def _copy_range(reader: int, writer: int, start: int, end: int) -> None:
    while start < end:
        try:
            count = os.copy_file_range(reader, writer, end - start, start, start)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            count = os.pwrite(writer, os.pread(reader, min(end - start, 1 << 20), start), start)
        if not count:
            raise OSError(errno.EIO, "a file became shorter while it was copied")
        start += count


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
