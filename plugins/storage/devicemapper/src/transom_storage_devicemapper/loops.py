"""Loop devices that go by themselves (loop(4), linux/loop.h).

Each is attached with LO_FLAGS_AUTOCLEAR: it lasts as long as somebody has it open, which is the pool, or we. Killed
at any moment, no loop device is left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time

from transom.services.files import closing

CONTROL = "/dev/loop-control"
_GET_FREE, _CONFIGURE, _SET_CAPACITY, _GET_STATUS64 = 0x4C82, 0x4C0A, 0x4C07, 0x4C05
_AUTOCLEAR = 4
_INFO_SIZE, _CONFIG_SIZE, _FLAGS_AT, _NAME_AT = 232, 304, 52, 56
_MAJOR = 7


def attach(path: str) -> tuple[int, str]:
    """Attach a file; return a descriptor that keeps it attached, and the device's number, ``7:N``."""
    info = bytearray(_INFO_SIZE)
    struct.pack_into("=I", info, _FLAGS_AT, _AUTOCLEAR)
    name = os.fsencode(path)[-63:]
    info[_NAME_AT : _NAME_AT + len(name)] = name
    with closing(os.open(path, os.O_RDWR | os.O_CLOEXEC)) as file:
        config = bytearray(struct.pack("=II", file, 0) + info).ljust(_CONFIG_SIZE, b"\0")
        while True:
            with closing(os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)) as control:
                number = fcntl.ioctl(control, _GET_FREE)
            fd = _open(number, os.O_RDWR)
            try:
                fcntl.ioctl(fd, _CONFIGURE, config)
                return fd, f"{_MAJOR}:{number}"
            except OSError as error:
                os.close(fd)
                if error.errno != errno.EBUSY:  # somebody was quicker
                    raise
            except BaseException:
                os.close(fd)
                raise


def _open(number: int, flags: int) -> int:
    node = f"/dev/loop{number}"
    try:
        return os.open(node, flags | os.O_CLOEXEC)
    except FileNotFoundError:
        os.mknod(node, stat.S_IFBLK | 0o660, os.makedev(_MAJOR, number))
        return os.open(node, flags | os.O_CLOEXEC)


def backing(number: int) -> tuple[int, int] | None:
    """Say which file the device ``/dev/loopN`` shows, as device and inode; None when it is free."""
    status = bytearray(_INFO_SIZE)
    try:
        with closing(_open(number, os.O_RDONLY)) as fd:
            fcntl.ioctl(fd, _GET_STATUS64, status)
    except OSError as error:
        if error.errno in {errno.ENXIO, errno.ENODEV, errno.ENOENT, errno.EBUSY}:
            return None
        raise
    device, inode = struct.unpack_from("=QQ", status)
    return device, inode


def attached(path: str) -> list[int]:
    """List the loop devices that show this file."""
    found = os.stat(path)
    wanted = (found.st_dev, found.st_ino)
    numbers = [int(name[4:]) for name in os.listdir("/sys/block") if name.startswith("loop")]
    return [n for n in numbers if os.path.exists(f"/sys/block/loop{n}/loop") and backing(n) == wanted]


def wait_until_free(path: str, seconds: float) -> list[int]:
    """Wait until no loop device shows the file; return those that still do at the end."""
    end = time.monotonic() + seconds
    while (left := attached(path)) and time.monotonic() < end:
        time.sleep(0.01)
    return left


def grow(number: str) -> None:
    """Have the loop device ``7:N`` take the file's new size."""
    with closing(_open(int(number.partition(":")[2]), os.O_RDONLY)) as fd:
        fcntl.ioctl(fd, _SET_CAPACITY)
