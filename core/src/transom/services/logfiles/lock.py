"""How readers know whether a log is still being written, and how often it was rotated.

The writer holds an open-file-description lock (fcntl(2), F_OFD_SETLK) of one byte on the current file. Its place says
the generation of the file: how many rotations came before it. The kernel drops the lock when the writer dies,
whatever kills it. Readers ask with F_OFD_GETLK, which takes nothing, so that they can never hinder a writer.
"""

from __future__ import annotations

import fcntl
import os
from struct import Struct

import msgspec

# struct flock: l_type, l_whence, l_start, l_len, l_pid, with the padding of the C structure.
_FLOCK = Struct("@hhqqi0q")
_ROTATING = 2


class Holder(msgspec.Struct, frozen=True):
    """The writer of a file: the file's generation, and whether it is being replaced at this moment."""

    generation: int
    rotating: bool


def hold(fd: int, *, generation: int, rotating: bool = False) -> None:
    """Take the writer's lock, or say that the file is now being replaced.

    Raises:
        BlockingIOError: another writer holds it.
    """
    _set(fd, fcntl.F_WRLCK, generation, _ROTATING if rotating else 1)


def settle(fd: int, *, generation: int) -> None:
    """Say that the file is not being replaced after all."""
    _set(fd, fcntl.F_UNLCK, generation + 1, 1)


def release(fd: int) -> None:
    """Give the lock back, also where a forked child still has the descriptor."""
    _set(fd, fcntl.F_UNLCK, 0, 0)


def holder(fd: int) -> Holder | None:
    """Say who writes to the file; None when nobody does."""
    ask = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, generation, length, _ = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, ask))
    return None if kind == fcntl.F_UNLCK else Holder(generation=generation, rotating=length == _ROTATING)


def _set(fd: int, kind: int, start: int, length: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
