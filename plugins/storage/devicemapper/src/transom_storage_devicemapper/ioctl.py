"""The device mapper's ioctls (linux/dm-ioctl.h): devices, tables and messages, without dmsetup or udev.

A fork of dmsetup for each step would cost more than the step, and its cookies wait for a udev that containers and
guests do not have. Device nodes are the kernel's own ``/dev/dm-N``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

import msgspec

CONTROL = "/dev/mapper/control"
SECTOR = 512

_HEADER_SIZE = 312
_TARGET = struct.Struct("=QQiI16s")
_VERSION = (4, 0, 0)
_CREATE, _REMOVE, _RESUME, _STATUS, _LOAD, _TABLE, _MESSAGE, _TARGET_VERSION = 3, 4, 6, 7, 9, 12, 14, 17
_LIST = 2
_READONLY, _SUSPEND, _STATUS_TABLE, _ACTIVE, _DEFERRED = 1 << 0, 1 << 1, 1 << 4, 1 << 5, 1 << 17
_UDEV_FLAGS = 0x17 << 16
"""libdm's DM_UDEV_DISABLE_*: udev leaves our devices alone, so that no scan holds one open when it is to go."""
_NO_DEVICE = {errno.ENXIO, errno.ENODEV}


class Device(msgspec.Struct, frozen=True):
    """What the kernel says of a mapped device: `number` as ``major:minor``, and how many have it open."""

    number: str
    opened: int
    readonly: bool
    suspended: bool
    started: bool
    """Whether it has a table: one whose making was interrupted has none."""

    @property
    def node(self) -> str:
        """The kernel's own node; made where no devtmpfs makes it."""
        major, minor = (int(part) for part in self.number.split(":"))
        path, wanted = f"/dev/dm-{minor}", os.makedev(major, minor)
        try:
            found = os.stat(path)
            if stat.S_ISBLK(found.st_mode) and found.st_rdev == wanted:
                return path
            os.unlink(path)
        except FileNotFoundError:
            pass
        try:
            os.mknod(path, stat.S_IFBLK | 0o600, wanted)
        except FileExistsError:
            pass
        return path


class Mapper:
    """The control device, open; one for each call is cheap, and nothing is left to close."""

    def _call(
        self, command: int, name: str = "", *, flags: int = 0, data: bytes = b"", targets: int = 0, room: int = 16384
    ) -> tuple[bytes, tuple[int, ...]]:
        size = _HEADER_SIZE + max(len(data), room)
        event = _UDEV_FLAGS if command in {_REMOVE, _RESUME} else 0
        uuid = f"TRANSOM-{name}".encode() if command == _CREATE else b""
        buffer = bytearray(size)
        struct.pack_into("=3IIIIiIIIQ128s129s", buffer, 0, *_VERSION, size, _HEADER_SIZE, targets, 0, flags, event, 0,
                         0, name.encode(), uuid)  # fmt: skip
        buffer[_HEADER_SIZE : _HEADER_SIZE + len(data)] = data
        fd = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, (3 << 30) | (_HEADER_SIZE << 16) | (0xFD << 8) | command, buffer)
        finally:
            os.close(fd)
        head = struct.unpack_from("=3IIIIiIIIQ", buffer, 0)
        return bytes(buffer[head[4] : head[3]]), head

    def device(self, name: str) -> Device | None:
        """Look a device up by name."""
        try:
            _, head = self._call(_STATUS, name)
        except OSError as error:
            if error.errno not in _NO_DEVICE:
                raise
            return None
        return _described(head)

    def names(self) -> list[str]:
        """List the names of all mapped devices."""
        data, _ = self._call(_LIST, room=1 << 18)
        found, at = [], 0
        while at + 12 < len(data):
            device, step = struct.unpack_from("=QI", data, at)
            if device:
                found.append(data[at + 12 : data.index(b"\0", at + 12)].decode())
            if not step:
                break
            at += step
        return found

    def create(self, name: str, target: str, sectors: int, parameters: str, *, readonly: bool = False) -> Device:
        """Make a device of one target and start it; a name that is there gets the new table instead.

        Killed in between, it is left without a table; made again, it is completed.
        """
        try:
            self._call(_CREATE, name)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        try:
            self.load(name, target, sectors, parameters, readonly=readonly)
        except OSError:
            self.remove(name)
            raise
        return self.resume(name)

    def load(self, name: str, target: str, sectors: int, parameters: str, *, readonly: bool = False) -> None:
        """Give a device a new table, which `resume` puts in place of the old one."""
        text = parameters.encode() + b"\0"
        text += bytes(-len(text) % 8)
        spec = _TARGET.pack(0, sectors, 0, _TARGET.size + len(text), target.encode())
        self._call(_LOAD, name, flags=_READONLY if readonly else 0, data=spec + text, targets=1)

    def resume(self, name: str) -> Device:
        """Start a device, with its new table if one is loaded: in one call, so that none is ever left suspended."""
        _, head = self._call(_RESUME, name)
        return _described(head)

    def remove(self, name: str, *, deferred: bool = False) -> bool:
        """Remove a device; say whether it is gone. `deferred` has the kernel remove it when nobody has it open."""
        try:
            self._call(_REMOVE, name, flags=_DEFERRED if deferred else 0)
        except OSError as error:
            if error.errno in _NO_DEVICE:
                return True
            if error.errno == errno.EBUSY:
                return False
            raise
        return not deferred or self.device(name) is None

    def message(self, name: str, text: str) -> None:
        """Send a message to the device's target."""
        self._call(_MESSAGE, name, data=struct.pack("=Q", 0) + text.encode() + b"\0")

    def status(self, name: str, *, table: bool = False) -> str:
        """Return the target's status line, or its table line."""
        data, head = self._call(_TABLE, name, flags=_STATUS_TABLE if table else 0)
        return data[_TARGET.size :].split(b"\0", 1)[0].decode() if head[5] else ""

    def has_target(self, target: str) -> bool:
        """Say whether the kernel has a target, loading its module if there is one."""
        try:
            self._call(_TARGET_VERSION, target)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTTY, *_NO_DEVICE}:
                raise
            return False
        return True


def _described(head: tuple[int, ...]) -> Device:
    _, _, _, _, _, _, opened, flags, _, _, device = head
    number = f"{os.major(device)}:{os.minor(device)}"
    return Device(
        number=number,
        opened=opened,
        readonly=bool(flags & _READONLY),
        suspended=bool(flags & _SUSPEND),
        started=bool(flags & _ACTIVE),
    )
