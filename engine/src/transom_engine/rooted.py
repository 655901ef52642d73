"""Open what a path names with some directory as the root, as a process in the container would find it."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

_NR_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10
_TRIES = 1000
_libc = ctypes.CDLL(None, use_errno=True)


def open_rooted(root: int, path: str, flags: int) -> int:
    """Open `path` below the directory `root`; symbolic links and ``..`` do not lead out, whoever swaps them meanwhile.

    openat2(2), RESOLVE_IN_ROOT, Linux 5.6. It gives up (EAGAIN) on a ``..`` while anything on the host is renamed or
    mounted, and is asked again then.

    Raises:
        OSError: as openat2(2).
    """
    name = os.fsencode(path.lstrip("/") or ".")
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
    for _ in range(_TRIES):
        fd: int = _libc.syscall(_NR_OPENAT2, root, name, how, len(how))
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EAGAIN:
            break
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
