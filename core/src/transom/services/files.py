"""Files that survive: atomic writes, syncs, locks between processes."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

_SYNC_FILE_RANGE_WRITE = 2  # linux/fs.h


@contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close a descriptor at the end of a ``with``."""
    try:
        yield fd
    finally:
        os.close(fd)


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in the directory durable (fsync(2), NOTES: a directory needs its own fsync)."""
    with closing(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        os.fsync(fd)


def sync_filesystem(path: str | os.PathLike[str]) -> None:
    """Make everything on the file system that holds `path` durable (syncfs(2)).

    Raises:
        OSError: a write-back failed since the last sync (reported from Linux 5.8 on).
    """
    from transom.services.mounts import syncfs

    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        syncfs(fd)


def write_back(fd: int, offset: int, length: int) -> None:
    """Have the kernel begin to write a part of a file to the disk; waits for nothing (sync_file_range(2))."""
    import ctypes

    range_of = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if range_of is not None:  # musl and others may lack it: it is a favour to later syncs only
        range_of(fd, ctypes.c_int64(offset), ctypes.c_int64(length), ctypes.c_uint(_SYNC_FILE_RANGE_WRITE))


def write_atomic(path: str | os.PathLike[str], data: bytes, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace the file as a whole: a reader, a crash and a full disk see the old content or the new.

    Args:
        durable: survive a power loss too; without it only a crash of the process.
    """
    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.tmp"
    opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with closing(opened) as fd:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if durable:
                os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if durable:
        sync_directory(os.path.dirname(path) or ".")


class Lock:
    """An flock(2) on a file, as a context, held before or not; released by the kernel when the process dies.

    The file stays: removing a lock file while others wait on it would let two in.
    """

    def __init__(self, path: str | os.PathLike[str], *, shared: bool = False) -> None:
        self._path, self._mode = os.fspath(path), fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        self.fd = -1

    def acquire(self, *, wait: bool = True) -> bool:
        """Take the lock; without `wait`, say whether it could be had at once."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, self._mode | (0 if wait else fcntl.LOCK_NB))
        except BaseException as error:
            os.close(fd)
            if isinstance(error, BlockingIOError):
                return False
            raise
        self.fd = fd
        return True

    def release(self) -> None:
        """Give the lock back. Not held is harmless."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Lock:
        if self.fd < 0:
            self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
