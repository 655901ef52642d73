"""The kernel's interface of btrfs (include/uapi/linux/btrfs.h, btrfs_tree.h; btrfs-ioctl(2)), as far as layers need it.

Every function takes descriptors, so that no name is looked up twice. All raise OSError as the kernel refuses.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Iterator

MAGIC = 0x9123683E
"""statfs(2)'s f_type of btrfs."""
ROOT_INODE = 256
"""The inode number of every subvolume's root directory, and the smallest of any file (BTRFS_FIRST_FREE_OBJECTID)."""

_SUBVOL_CREATE, _SNAP_DESTROY = 0x5000940E, 0x5000940F
_SNAP_CREATE_V2, _SUBVOL_SETFLAGS, _SUBVOL_GETFLAGS = 0x50009417, 0x4008941A, 0x80089419
_INO_LOOKUP, _INO_PATHS, _TREE_SEARCH_V2, _SYNC = 0xD0009412, 0xC0389423, 0xC0709411, 0x9408
_QUOTA_CTL, _QGROUP_CREATE, _QGROUP_LIMIT, _RESCAN_WAIT = 0xC0109428, 0x4010942A, 0x8030942B, 0x942E
_READ_ONLY = 2
_QUOTA_ENABLE = 1
_LIMIT_EXCLUSIVE = 2
_INODE_ITEM, _ROOT_ITEM = 1, 132
_ROOT_TREE = 1
_LAST = 2**64 - 1


def is_btrfs(path: str | os.PathLike[str]) -> bool:
    """Say whether the path is on btrfs (statfs(2))."""
    buffer = ctypes.create_string_buffer(256)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), os.fspath(path))
    return int(ctypes.c_long.from_buffer(buffer).value) == MAGIC


def create(directory: int, name: str) -> None:
    """Make an empty subvolume in the directory."""
    fcntl.ioctl(directory, _SUBVOL_CREATE, _named(os.fsencode(name)))


def snapshot(directory: int, name: str, source: int) -> None:
    """Make a writable snapshot of the subvolume `source` in the directory; what was written to it is in."""
    encoded = os.fsencode(name)
    fcntl.ioctl(directory, _SNAP_CREATE_V2, bytearray(struct.pack("=qQQ32x4040s", source, 0, 0, encoded)))


def destroy(directory: int, name: bytes) -> None:
    """Delete a subvolume, by its name in the directory; its space comes back later.

    Raises:
        OSError: ENOTEMPTY when subvolumes are nested in it, ENOENT when it is gone, EINVAL when it is none.
    """
    fcntl.ioctl(directory, _SNAP_DESTROY, _named(name))


def set_readonly(subvolume: int, readonly: bool) -> None:
    """Let nothing in the subvolume change, or let it again."""
    flags = struct.unpack("=Q", fcntl.ioctl(subvolume, _SUBVOL_GETFLAGS, bytes(8)))[0]
    wanted = flags | _READ_ONLY if readonly else flags & ~_READ_ONLY
    if wanted != flags:
        fcntl.ioctl(subvolume, _SUBVOL_SETFLAGS, struct.pack("=Q", wanted))


def subvolume_id(fd: int) -> int:
    """Return the number of the subvolume that the file or directory is in."""
    buffer = bytearray(struct.pack("=QQ4080x", 0, ROOT_INODE))
    fcntl.ioctl(fd, _INO_LOOKUP, buffer)
    return int(struct.unpack_from("=Q", buffer)[0])


def sync(fd: int) -> None:
    """Commit the current transaction, so that `search` sees everything."""
    fcntl.ioctl(fd, _SYNC)


def limit(fd: int, subvolume: int, size: int) -> None:
    """Let the subvolume hold at most `size` bytes that it shares with no other; quotas are switched on for that."""
    try:
        fcntl.ioctl(fd, _QUOTA_CTL, bytearray(struct.pack("=QQ", _QUOTA_ENABLE, 0)))
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.EALREADY}:
            raise
    fcntl.ioctl(fd, _RESCAN_WAIT)
    fcntl.ioctl(fd, _QGROUP_LIMIT, struct.pack("=QQQQQQ", subvolume, _LIMIT_EXCLUSIVE, 0, size, 0, 0))


def drop_group(fd: int, subvolume: int) -> bool:
    """Remove the quota group of a deleted subvolume; say whether it is gone.

    The kernel refuses (EBUSY) while the subvolume's blocks are still being freed, and does it itself from 6.12 on.
    """
    try:
        fcntl.ioctl(fd, _QGROUP_CREATE, struct.pack("=QQ", 0, subvolume))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        if error.errno not in {errno.ENOENT, errno.ENOTCONN}:
            raise
    return True


def generations(fd: int, subvolume: int) -> tuple[int, int]:
    """Return the transactions in which a subvolume was last changed, and in which it was made."""
    for _, item in _search(fd, _ROOT_TREE, (subvolume, _ROOT_ITEM), (subvolume, _ROOT_ITEM), since=0):
        # struct btrfs_root_item: an inode item (160), seven u64, u32, key (17), two u8, u64 and the uuids before.
        return struct.unpack_from("=QQ", item, 160 + 7 * 8 + 4 + 17 + 2 + 8 + 3 * 16)
    raise FileNotFoundError(errno.ENOENT, "no such subvolume", str(subvolume))


def exists(fd: int, subvolume: int) -> bool:
    """Say whether the subvolume is there, deleted ones whose blocks are still being freed included."""
    try:
        generations(fd, subvolume)
    except FileNotFoundError:
        return False
    return True


def changed_inodes(fd: int, subvolume: int, *, since: int) -> Iterator[int]:
    """Yield the inodes of a subvolume that were made or changed after the transaction `since`.

    Only blocks of the tree that were written since are read.
    """
    for inode, item in _search(fd, subvolume, (ROOT_INODE, _INODE_ITEM), (_LAST - 256, _INODE_ITEM), since=since + 1):
        if struct.unpack_from("=Q", item, 8)[0] > since:  # struct btrfs_inode_item: generation, transid
            yield inode


def paths_of(fd: int, inode: int) -> list[bytes] | None:
    """Return all names of an inode of the subvolume whose root is `fd`; none when it has none, None for too many."""
    room = 1 << 16
    container = ctypes.create_string_buffer(room)
    request = bytearray(struct.pack("=QQ32xQ", inode, room, ctypes.addressof(container)))
    try:
        fcntl.ioctl(fd, _INO_PATHS, request)
    except FileNotFoundError:
        return []
    _, missing, count, missed = struct.unpack_from("=IIII", container)
    if missing or missed:
        return None
    offsets = struct.unpack_from(f"={count}Q", container, 16)
    return [ctypes.string_at(ctypes.addressof(container) + 16 + offset) for offset in offsets]


def _named(name: bytes) -> bytearray:
    return bytearray(struct.pack("=q4088s", 0, name))  # ioctl takes no more than 1,024 bytes but in place


def _search(
    fd: int, tree: int, first: tuple[int, int], last: tuple[int, int], *, since: int
) -> Iterator[tuple[int, bytes]]:
    """Yield object number and content of the tree's items of the type that `first` and `last` have, in key order."""
    object, type, offset, room = first[0], first[1], 0, 1 << 16
    while True:
        key = struct.pack(
            "=QQQQQQQIIII32x", tree, object, last[0], offset, _LAST, since, _LAST, type, last[1], 2**32 - 1, 0
        )
        buffer = bytearray(key + struct.pack("=Q", room) + bytes(room))
        fcntl.ioctl(fd, _TREE_SEARCH_V2, buffer)
        found, at = struct.unpack_from("=I", buffer, 64)[0], 112
        if not found:
            return
        for _ in range(found):
            _, object, offset, type, length = struct.unpack_from("=QQQII", buffer, at)
            if type == first[1]:
                yield object, bytes(buffer[at + 32 : at + 32 + length])
            at += 32 + length
        if type >= first[1]:  # what follows of this object is of other types
            object, type, offset = object + 1, first[1], 0
        elif offset < _LAST:
            offset += 1
        else:
            type, offset = type + 1, 0
        if object > last[0]:
            return
