"""A bound on what a layer holds: project quotas of the backing file system (quotactl_fd(2), ext4(5), xfs(5)).

A layer with a size is a directory with a project id of its own, which all that is made below it inherits.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct

from transom.services.files import closing

_NR_QUOTACTL_FD = 443  # Linux 5.14; the number is the same on every architecture
_PROJECT = 2
_SET_LIMIT, _GET_QUOTA, _GET_STATE = 0x5804, 0x5803, 0x5808
_ENFORCED = 1 << 5
_INODES, _BLOCKS = 0b0011, 0b1100
"""Soft and hard limits of either, as `struct fs_disk_quota` names the fields that count (dqblk_xfs.h)."""
_BLOCK = 512
_GET_XATTR, _SET_XATTR = 0x801C581F, 0x401C5820
_INHERIT = 0x200
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OWN = 3
"""Inodes in a layer that are not its files: work/work, the whiteout that all deletions are links of, our note."""
_OURS = 1 << 30
"""Our project ids are at random above it: far from those that people write into /etc/projid."""


def lacking(place: str, filesystem: str) -> str:
    """Say why layers below the directory cannot be bounded; empty when they can."""
    hint = f"mount {filesystem} with prjquota" if filesystem == "ext4" else "ext4 and xfs have them (prjquota, pquota)"
    if filesystem == "ext4":
        hint += " (tune2fs -O quota,project -Q prjquota)"
    try:
        state = bytearray(struct.pack("=b255x", 1))
        with closing(os.open(place, _DIRECTORY)) as fd:
            _quotactl(fd, _GET_STATE, 0, state)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return f"{filesystem} at {place} has no project quotas on this kernel; {hint}"
        return f"{filesystem} at {place} has no project quotas ({error.strerror}); {hint}"
    if not struct.unpack_from("=H", state, 2)[0] & _ENFORCED:
        return f"{filesystem} at {place} does not enforce project quotas; {hint}"
    return ""


def bound(directory: str, *, size: int | None = None, inodes: int | None = None) -> None:
    """Let the new directory, with what is made in it from now on, hold at most `size` bytes, or so many inodes.

    Of the inodes, those that are there already are not counted, nor `OWN` that overlay makes.
    """
    with closing(os.open(directory, _DIRECTORY)) as fd:
        project = _project(fd)
        if project < _OURS:
            project = _free_project(fd)
            _limit(fd, project, size=size)
            _set_project(fd, project)
        if inodes is not None:
            present = [name for name in os.listdir(fd) if os.path.isdir(f"{directory}/{name}")]
            for name in present:
                with closing(os.open(name, _DIRECTORY, dir_fd=fd)) as inner:
                    _set_project(inner, project)
            _limit(fd, project, inodes=inodes + 1 + len(present) + OWN)


def unbound(directory: str) -> None:
    """Forget the directory's bound, if it has one: done before it is removed, so that no quota outlives it."""
    try:
        fd = os.open(directory, _DIRECTORY)
    except FileNotFoundError:
        return
    with closing(fd):
        try:
            project = _project(fd)
            if project >= _OURS:
                _limit(fd, project, size=0, inodes=0)
        except OSError as error:
            if error.errno not in {errno.ENOTTY, errno.EOPNOTSUPP, errno.ENOSYS, errno.ESRCH, errno.EINVAL}:
                raise  # these say that there are no projects here, or quotas no more


def _free_project(fd: int) -> int:
    """Choose an id at random that has neither limit nor files."""
    while True:
        project = _OURS | int.from_bytes(os.urandom(4)) >> 3
        quota = bytearray(112)
        try:
            _quotactl(fd, _GET_QUOTA, project, quota)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.ESRCH}:
                raise
            return project
        if not any(struct.unpack_from("=6Q", quota, 8)):
            return project


def _limit(fd: int, project: int, *, size: int | None = None, inodes: int | None = None) -> None:
    blocks, fields = -(-(size or 0) // _BLOCK), 0
    if size is not None:
        fields |= _BLOCKS
    if inodes is not None:
        fields |= _INODES
    # struct fs_disk_quota: version, flags (project), which fields, id, hard and soft limits of blocks, of inodes ...
    quota = struct.pack("=bbHIQQQQ72x", 1, 2, fields, project, blocks, blocks, inodes or 0, inodes or 0)
    _quotactl(fd, _SET_LIMIT, project, bytearray(quota))


def _attributes(fd: int) -> tuple[int, ...]:
    return struct.unpack("=5I", fcntl.ioctl(fd, _GET_XATTR, bytes(28))[:20])


def _project(fd: int) -> int:
    return _attributes(fd)[3]


def _set_project(fd: int, project: int) -> None:
    flags, extent, extents, _, cow = _attributes(fd)
    fcntl.ioctl(fd, _SET_XATTR, struct.pack("=5I8x", flags | _INHERIT, extent, extents, project, cow))


def _quotactl(fd: int, command: int, project: int, buffer: bytearray) -> None:
    area = (ctypes.c_char * len(buffer)).from_buffer(buffer)
    call = ctypes.CDLL(None, use_errno=True).syscall
    call.restype = ctypes.c_long
    result = call(
        ctypes.c_long(_NR_QUOTACTL_FD), ctypes.c_long(fd), ctypes.c_long(command << 8 | _PROJECT),
        ctypes.c_long(project), ctypes.byref(area),
    )  # fmt: skip
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), "quotactl")
