"""Directory trees, reached by descriptors one name at a time, so that no symbolic link is ever followed.

`Tree` opens what a path names. `copy_tree`, `remove_tree` and `measure_tree` walk a whole tree with one descriptor:
no path grows with the depth, so a tree deeper than PATH_MAX, the descriptor limit or the recursion limit is as
good as any.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Collection
from typing import TypeVar

from transom.contract.storage import Usage
from transom.services.files import closing

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CANNOT = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS}
"""What a file system answers that cannot share or copy blocks by itself."""
_LOOKS = 20
Path = str | bytes | os.PathLike[str]
K = TypeVar("K")
V = TypeVar("V")


class Tree:
    """A directory tree reached through descriptors; paths are bytes relative to its root, `b""` being the root.

    No component of a path may be a symbolic link, and a path may be longer than PATH_MAX.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _DIRECTORY & ~os.O_NOFOLLOW)
        self._fd, self._path = self._root, b""

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        os.close(self._root)

    def _forget(self) -> None:
        if self._fd != self._root:
            os.close(self._fd)
        self._fd, self._path = self._root, b""

    def directory(self, path: bytes) -> int:
        """Open a directory. The descriptor is ours and good until the next call: neighbours cost nothing."""
        if path == self._path:
            return self._fd
        if self._path and not path.startswith(self._path + b"/"):
            self._forget()
        for name in path[len(self._path) :].lstrip(b"/").split(b"/") if path else ():
            fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
            if self._fd != self._root:
                os.close(self._fd)
            self._fd, self._path = fd, join(self._path, name)
        return self._fd

    def entry(self, path: bytes) -> tuple[bytes, int]:
        """Say how system calls reach what is at `path`: its name in a directory, and that directory's descriptor."""
        parent, _, name = path.rpartition(b"/")
        return name or b".", self.directory(parent)

    def at(self, path: bytes) -> bytes:
        """Name what is at `path` for calls that take no directory's descriptor, provided they follow no link."""
        name, fd = self.entry(path)
        return b"/proc/self/fd/%d/%s" % (fd, name)

    def is_directory(self, path: bytes) -> bool:
        """Say whether there is a directory; a symbolic link to one is not."""
        try:
            name, fd = self.entry(path)
            return stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False

    def readlink(self, path: bytes) -> bytes:
        """Read a symbolic link; EINVAL says that it is none."""
        name, fd = self.entry(path)
        return os.readlink(name, dir_fd=fd)

    def listed(self, path: bytes, read: Callable[[int], dict[K, V]]) -> dict[K, V]:
        """Have `read` list a directory, by its descriptor, and again while names came or went meanwhile.

        A name that is given to another file during readdir(3) can be missed in both places. Where names never cease to
        move, all that were met are returned.
        """
        fd, met = self.directory(path), dict[K, V]()
        for _ in range(_LOOKS):
            before = os.fstat(fd).st_mtime_ns
            os.lseek(fd, 0, os.SEEK_SET)  # btrfs shows no name younger than this or the opening
            found = read(fd)
            if os.fstat(fd).st_mtime_ns == before:
                return found
            met |= found
        return met

    def remove(self, path: bytes, keep: Collection[bytes]) -> None:
        """Remove what is at `path` with all below it, but the paths to `keep`. Absent is success."""
        doomed = [path]
        for above in doomed:
            if self.is_directory(above):
                doomed += [join(above, os.fsencode(name)) for name in os.listdir(self.directory(above))]
        for path in reversed(doomed):
            if path in keep:
                continue
            try:
                name, fd = self.entry(path)
                os.unlink(name, dir_fd=fd)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=fd)
            except (FileNotFoundError, NotADirectoryError):
                pass

    def clear(self, path: bytes) -> None:
        """Remove what is at `path`, with all below it, for something else to take its place."""
        self.remove(path, ())

    def empty(self, path: bytes, keep: Collection[bytes]) -> None:
        """Remove what is in a directory, but the paths to `keep`."""
        for name in os.listdir(self.directory(path)):
            self.remove(join(path, os.fsencode(name)), keep)

    def bring(self, path: bytes) -> None:
        """Have a file here to make a hard link to: it is, in a tree of one layer."""

    def made(self, path: bytes) -> None:
        """Be told of a directory that was made where there was none: nothing more to do in a tree of one layer."""


def join(parent: bytes, name: bytes) -> bytes:
    """Append a name to a path of a `Tree`."""
    return parent + b"/" + name if parent else name


def carried(xattr: str) -> bool:
    """Say whether an extended attribute belongs to the layer: not SELinux's label, not overlay's own marks."""
    return not xattr.startswith(("security.selinux", "trusted.overlay."))


def read_xattrs(target: int | str | bytes, *, follow_symlinks: bool = True) -> dict[str, bytes]:
    """Read the extended attributes that layers carry, sorted by name; none where the file system has none."""
    try:
        names = os.listxattr(target, follow_symlinks=follow_symlinks)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return {}
    return {name: os.getxattr(target, name, follow_symlinks=follow_symlinks) for name in sorted(names) if carried(name)}


class _Moved(OSError):
    """The directory left the place where the walk came upon it."""


class _Walk:
    """A descriptor that walks: into a directory and back, sure of being back where it came from."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, _DIRECTORY)
        self.here = os.fstat(self.fd)
        self._above: list[tuple[bytes, tuple[int, int]]] = []

    def __enter__(self) -> _Walk:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def _step(self, name: bytes) -> None:
        fd = os.open(name, _DIRECTORY, dir_fd=self.fd)
        os.close(self.fd)
        self.fd, self.here = fd, os.fstat(fd)

    def down(self, name: bytes) -> None:
        """Enter the directory `name`."""
        identity = _identity(self.here)
        self._step(name)
        self._above.append((name, identity))

    def up(self) -> bytes:
        """Return to the directory above, and say which name of it we were in."""
        name, identity = self._above.pop()
        self._step(b"..")
        if _identity(self.here) != identity:
            raise _Moved(errno.EBUSY, "a directory was moved during the walk", os.fsdecode(name))
        return name

    @property
    def path(self) -> bytes:
        """Where we are, relative to the top, with a slash behind it."""
        return b"".join(name + b"/" for name, _ in self._above)

    def through(
        self, enter: Callable[[bytes], list[bytes]], leave: Callable[[bytes], object], *, in_use: bool = False
    ) -> None:
        """Walk the whole tree.

        Args:
            enter: called in each directory with its name, the top's being empty; returns which names to go into.
            leave: called with the name of each directory but the top, in the one above, when it is done with.
            in_use: pass over directories that vanish.
        """
        todo = [enter(b"")]
        while todo:
            if todo[-1]:
                name = todo[-1].pop()
                try:
                    self.down(name)
                except (FileNotFoundError, NotADirectoryError):
                    if not in_use:
                        raise
                else:
                    todo.append(enter(name))
            else:
                todo.pop()
                if todo:
                    leave(self.up())


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def copy_attributes(source: str | int, target: str | int, *, follow_symlinks: bool = True) -> None:
    """Give `target` the owner, extended attributes, mode and nanosecond times of `source`; paths or descriptors.

    In this order: chown(2) clears set-id bits and file capabilities. Of the attributes, those that `carried` names.
    """
    found = os.stat(source, follow_symlinks=follow_symlinks)
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=follow_symlinks)
    for name, value in read_xattrs(source, follow_symlinks=follow_symlinks).items():
        os.setxattr(target, name, value, follow_symlinks=follow_symlinks)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=follow_symlinks)


def copy_tree(source: Path, target: Path) -> None:
    """Make `target` a whole copy of the tree `source`, which must not change meanwhile.

    Kept: data (as shared blocks where the file system can, copy_file_range(2)), holes, hard links, sockets, fifos,
    devices, and what `copy_attributes` keeps. `target` may exist as a directory; entries in it that are also in
    `source` are an error. Interrupted, what is there is a part: `remove_tree` it.

    Raises:
        OSError: as the kernel refuses; EOPNOTSUPP where the target's file system keeps no extended attributes.
    """
    try:
        os.mkdir(target, 0o700)
    except FileExistsError:
        pass
    links: dict[tuple[int, int], bytes] = {}
    with _Walk(source) as reader, _Walk(target) as writer, Tree(target) as done:

        def enter(here: bytes) -> list[bytes]:
            if here:
                os.mkdir(here, 0o700, dir_fd=writer.fd)
                writer.down(here)
            directories, above = [], writer.path
            for name in map(os.fsencode, os.listdir(reader.fd)):
                found = os.stat(name, dir_fd=reader.fd, follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    directories.append(name)
                elif found.st_nlink > 1 and (first := links.setdefault(_identity(found), above + name)) != above + name:
                    old, fd = done.entry(first)
                    os.link(old, name, src_dir_fd=fd, dst_dir_fd=writer.fd, follow_symlinks=False)
                else:
                    copy_file(reader.fd, writer.fd, name, found)
            return directories

        def leave(name: bytes) -> None:
            writer.up()
            _copy_attributes_of(reader.fd, writer.fd, name)  # now: filling a directory changes its times

        reader.through(enter, leave)
        copy_attributes(reader.fd, writer.fd)


def _copy_attributes_of(source: int, target: int, name: bytes) -> None:
    """Copy the attributes of a name: the calls for extended ones know no dir_fd."""
    text = os.fsdecode(name)
    copy_attributes(f"/proc/self/fd/{source}/{text}", f"/proc/self/fd/{target}/{text}", follow_symlinks=False)


def copy_file(source: int, target: int, name: bytes, found: os.stat_result) -> None:
    """Copy what is no directory from one directory to the other, both open, under its name; see `copy_tree`."""
    if stat.S_ISREG(found.st_mode):
        old = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME, dir_fd=source)
        with closing(old) as reader:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with closing(os.open(name, flags, 0o600, dir_fd=target)) as writer:
                os.ftruncate(writer, found.st_size)
                for start, size in data_pieces(reader, found.st_size):
                    _copy_range(reader, writer, start, start + size)
                copy_attributes(reader, writer)
        return
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    else:
        os.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=target)
    _copy_attributes_of(source, target, name)


def data_pieces(fd: int, size: int) -> list[tuple[int, int]]:
    """List where a file has data, offset and size; at its end an empty one if it ends with a hole, as GNU tar does."""
    pieces: list[tuple[int, int]] = []
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return [*pieces, (size, 0)]
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        pieces.append((start, end - start))
    return pieces


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
    with walk:
        device = walk.here.st_dev

        def empty(_name: bytes) -> list[bytes]:
            """Remove what a single call removes; the directories that are left need more."""
            if walk.here.st_dev != device:
                raise OSError(errno.EBUSY, "something is mounted inside", os.fsdecode(path))
            with os.scandir(walk.fd) as entries:
                found = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in entries]
            return [name for name, directory in found if not _discard(walk.fd, name, directory=directory)]

        walk.through(empty, lambda name: _discard(walk.fd, name, directory=True))
    try:
        os.rmdir(path)
    except FileNotFoundError:
        pass


def _discard(fd: int, name: bytes, *, directory: bool) -> bool:
    try:
        (os.rmdir if directory else os.unlink)(name, dir_fd=fd)
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
            walk = _Walk(path)
        except FileNotFoundError:
            return Usage(size=0, inodes=0)
        try:
            with walk:
                return _measure(walk)
        except _Moved:
            continue


def _measure(walk: _Walk) -> Usage:
    blocks, inodes = walk.here.st_blocks, 1
    linked: set[tuple[int, int]] = set()

    def enter(_name: bytes) -> list[bytes]:
        nonlocal blocks, inodes
        below = []
        for name in os.listdir(walk.fd):
            try:
                found = os.stat(name, dir_fd=walk.fd, follow_symlinks=False)
            except FileNotFoundError:
                continue
            if stat.S_ISDIR(found.st_mode):
                below.append(os.fsencode(name))
            elif found.st_nlink > 1:
                if _identity(found) in linked:
                    continue
                linked.add(_identity(found))
            blocks, inodes = blocks + found.st_blocks, inodes + 1
        return below

    walk.through(enter, lambda _name: None, in_use=True)
    return Usage(size=blocks * 512, inodes=inodes)


_ID = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")


def layer_directories(root: Path) -> frozenset[str]:
    """Return the directories of `root` whose names can be layers' ids: a driver's `owned`, where each is one layer."""
    try:
        with os.scandir(os.fsdecode(root)) as entries:
            return frozenset(e.name for e in entries if _ID.issuperset(e.name) and e.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return frozenset()
