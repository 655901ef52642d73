"""The thin pool (Documentation/admin-guide/device-mapper/thin-provisioning.rst) and the record of what is in it.

Below the driver's root::

    pool.json          what the pool is made of; written last when it is made, so that without it there is no pool
    transaction.json   the newest transaction: its number, and the volume and record that it makes or removes
    layers/ID.json     the volume of a layer; bases/NAME.json of an empty file system; deferred/ID.json of a layer
                       that was removed while somebody still had it mounted
    data, metadata     sparse files behind loop devices, where no block devices were given

The pool keeps a transaction number of its own, which changes only from a value that is named (`set_transaction_id`).
A transaction is written down, its message is sent, then the pool's number is moved on: so the two differ by one
exactly if the transaction was interrupted, and it is then undone (a volume made) or done again (removed). Any other
difference means that the pool is not the one that the records tell of, and nothing is touched.

Nothing of it outlives its users: loop devices are detached by the kernel when the pool lets go of them, and the pool
is marked to be removed when nobody has it open, neither a process, by the descriptor that each holds, nor a volume.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from typing import Literal

import msgspec

from transom.errors import DriverError
from transom.services.files import Lock, closing, sync_directory, write_atomic
from transom.services.mounts import once_unmounted
from transom_storage_devicemapper import loops
from transom_storage_devicemapper.ioctl import SECTOR, Device, Mapper

WHO = "storage devicemapper"
PATIENCE = 10.0
"""Seconds for what the kernel does a moment later: an unmount in a namespace that ends, a device's last close."""
_LARGEST = 1 << 24
"""Volumes have numbers of 24 bits."""
_BLKFLSBUF = 0x1261
_METADATA_MAX = 16 << 30
"""The kernel uses no more of a metadata device (drivers/md/dm-thin-metadata.h, THIN_METADATA_MAX_SECTORS)."""


class Volume(msgspec.Struct, frozen=True):
    """The record of a thin volume: its number in the pool, its size in bytes, its file system, and if it is final."""

    device: int
    size: int
    filesystem: str
    committed: bool = False


class Made(msgspec.Struct, frozen=True):
    """Of what a pool was made: names of files in the driver's root or paths of block devices, and 512-byte sectors."""

    name: str
    data: str
    metadata: str
    block: int
    given: bool = False
    """A pool of somebody else's: it is neither started nor stopped here."""


class Transaction(msgspec.Struct, frozen=True):
    """The newest transaction: what becomes of `device`, whose record is `path`, relative to the driver's root."""

    number: int
    operation: Literal["none", "create", "delete"] = "none"
    device: int = 0
    path: str = ""


class Status(msgspec.Struct, frozen=True):
    """The pool's status line: used and total blocks of 4 KiB of metadata, and of the pool's block size of data."""

    transaction: int
    metadata: tuple[int, int]
    data: tuple[int, int]
    mode: str
    needs_check: bool


class Wanted(msgspec.Struct, frozen=True):
    """What a new pool is to be made of: bytes, or paths of block devices; ratios are between 0 and 1."""

    pool: str
    data: str
    metadata: str
    data_size: int
    metadata_size: int
    block: int
    free: float
    extend_at: float
    extend_by: float


_volume = msgspec.json.Decoder(Volume)
_made = msgspec.json.Decoder(Made)
_transaction = msgspec.json.Decoder(Transaction)


class Pool:
    """The pool of one root; opened by the first operation that needs it, closed by `close`."""

    def __init__(self, root: str, run: str, wanted: Wanted) -> None:
        self._root, self._run, self._wanted = root, run, wanted
        self._mapper = Mapper()
        self._fd = -1
        self._users: Lock | None = None

    # Records

    def path(self, place: str, id: str) -> str:
        """Name the record of `id` in ``layers``, ``bases`` or ``deferred``."""
        return f"{self._root}/{place}/{id}.json"

    def find(self, place: str, id: str) -> Volume | None:
        """Read a record."""
        try:
            with open(self.path(place, id), "rb") as file:
                return _volume.decode(file.read())
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise self._damaged(self.path(place, id), error) from error

    def list(self, place: str) -> frozenset[str]:
        """List the ids that have a record."""
        try:
            names = os.listdir(f"{self._root}/{place}")
        except FileNotFoundError:
            return frozenset()
        return frozenset(name.removesuffix(".json") for name in names if name.endswith(".json"))

    def note(self, path: str, volume: Volume) -> None:
        """Write a record, durably."""
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        write_atomic(path, msgspec.json.encode(volume), mode=0o600)

    def defer(self, id: str) -> None:
        """Turn a layer's record into that of a volume that goes when its last user does."""
        os.makedirs(f"{self._root}/deferred", mode=0o700, exist_ok=True)
        os.rename(self.path("layers", id), self.path("deferred", id))
        for place in ("deferred", "layers"):
            sync_directory(f"{self._root}/{place}")

    def sweep(self) -> None:
        """Remove half-written files of killed processes; nobody else is at work."""
        for place in (self._root, *(f"{self._root}/{name}" for name in ("layers", "bases", "deferred"))):
            with suppress(FileNotFoundError):
                for name in os.listdir(place):
                    if name.endswith(".tmp"):
                        os.unlink(f"{place}/{name}")

    def _damaged(self, path: str, error: Exception) -> DriverError:
        hint = "restore it from a backup; nothing was changed"
        return DriverError("reading", driver=WHO, subject=path, cause=error, hint=hint)

    # Volumes

    def add(self, path: str, origin: Volume | None, *, size: int, filesystem: str) -> Volume:
        """Make a volume, empty or a snapshot of `origin`, with its record at `path`.

        `origin` is not written to meanwhile: it is committed, or nobody has it mounted.
        """
        with self.working():
            while True:
                transaction = self._begin("create", path)
                volume = Volume(device=transaction.device, size=size, filesystem=filesystem)
                self.note(path, volume)
                words = f"create_snap {volume.device} {origin.device}" if origin else f"create_thin {volume.device}"
                try:
                    self._mapper.message(self._name, words)
                except OSError as error:
                    os.unlink(path)
                    self._end(transaction)
                    if error.errno != errno.EEXIST:  # a number that somebody else uses, in a pool that was given
                        raise
                else:
                    self._end(transaction)
                    return volume

    def delete(self, path: str, device: int) -> None:
        """Remove a volume that is not active, and its record. Absent is success."""
        with self.working():
            transaction = self._begin("delete", path, device)
            self._drop(device)
            self._end(transaction)
            self._unlink(path)

    def device(self, volume: Volume) -> Device | None:
        """Look the volume's mapped device up."""
        return self._mapper.device(self._volume_name(volume))

    def activate(self, volume: Volume, *, readonly: bool = False) -> Device:
        """Have the volume's device there, of the volume's size."""
        self.start()
        device = self.device(volume)
        if device and device.started and not device.suspended and (device.opened or device.readonly == readonly):
            return device
        name, parameters = self._volume_name(volume), f"{self._number} {volume.device}"
        return self._mapper.create(name, "thin", volume.size // SECTOR, parameters, readonly=readonly)

    def resize(self, volume: Volume) -> None:
        """Give the active volume's device the volume's size."""
        name = self._volume_name(volume)
        self._mapper.load(name, "thin", volume.size // SECTOR, f"{self._number} {volume.device}")
        self._mapper.resume(name)

    def deactivate(self, volume: Volume) -> bool:
        """Remove the volume's device; say whether it is gone. The last unmount may be a moment ago."""
        name, device = self._volume_name(volume), self.device(volume)
        if device is None:
            return True
        return once_unmounted(lambda: self._mapper.remove(name), f" {device.number} ", patience=PATIENCE)

    def let_go(self, volume: Volume) -> bool:
        """Have the kernel remove the volume's device when its last user has gone; say whether it went at once."""
        return self._mapper.remove(self._volume_name(volume), deferred=True)

    def _volume_name(self, volume: Volume) -> str:
        return f"{self._name}-{volume.device}"

    def _drop(self, device: int) -> None:
        try:
            self._mapper.message(self._name, f"delete {device}")
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise

    def _unlink(self, path: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(path)
            sync_directory(os.path.dirname(path))

    # Transactions

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be the only one that changes the pool, with everything interrupted put right."""
        self.start()
        with Lock(f"{self._root}/lock"):
            self._settle()
            yield

    def settle(self) -> bool:
        """Undo or end an interrupted transaction; say whether there was one."""
        self.start()
        with Lock(f"{self._root}/lock"):
            return self._settle()

    def _settle(self) -> bool:
        newest, reached = self._newest(), self.status().transaction
        if reached == newest.number:
            return False
        if reached != newest.number - 1:
            raise self._conflict(reached, newest.number)
        if newest.operation != "none":
            self._drop(newest.device)
            self._unlink(f"{self._root}/{newest.path}")
        self._end(newest)
        return True

    def _newest(self) -> Transaction:
        path = f"{self._root}/transaction.json"
        try:
            with open(path, "rb") as file:
                return _transaction.decode(file.read())
        except (OSError, msgspec.DecodeError) as error:
            raise self._damaged(path, error) from error

    def _begin(self, operation: Literal["create", "delete"], path: str, device: int = 0) -> Transaction:
        number = self._newest().number + 1
        # A new volume has its transaction's number, and the base the first: none is in use twice.
        device = number % _LARGEST if operation == "create" else device
        transaction = Transaction(number, operation, device, os.path.relpath(path, self._root))
        self._write("transaction.json", transaction)
        return transaction

    def _end(self, transaction: Transaction) -> None:
        number = transaction.number
        try:
            self._mapper.message(self._name, f"set_transaction_id {number - 1} {number}")
        except OSError as error:
            if error.errno != errno.EINVAL or (reached := self.status().transaction) == number - 1:
                raise
            raise self._conflict(reached, number) from error

    def _conflict(self, reached: int, number: int) -> DriverError:
        return DriverError(
            "opening", driver=WHO, subject=f"pool {self._name}",
            cause=f"the pool is at transaction {reached}, its records at {number}",
            hint=f"another tool changed the pool, or {self._root} was restored without it; restore both together,"
            " nothing more was changed",
        )  # fmt: skip

    def _write(self, name: str, record: msgspec.Struct) -> None:
        write_atomic(f"{self._root}/{name}", msgspec.json.encode(record), mode=0o600)

    # The pool itself

    @cached_property
    def _record(self) -> Made:
        made = self.made()
        assert made, "the pool was started"
        return made

    @property
    def _name(self) -> str:
        return self._record.name

    @property
    def _number(self) -> str:
        device = self._mapper.device(self._name)
        return device.number if device else ""

    def made(self) -> Made | None:
        """Read what the pool was made of; None before it is made."""
        path = f"{self._root}/pool.json"
        try:
            with open(path, "rb") as file:
                return _made.decode(file.read())
        except FileNotFoundError:
            return None
        except msgspec.DecodeError as error:
            raise self._damaged(path, error) from error

    def start(self) -> None:
        """Have the pool there, made if it is new, and keep it there until `close`."""
        if self._fd >= 0:
            return
        for place in (self._root, self._run):
            os.makedirs(place, mode=0o711, exist_ok=True)
        users = Lock(f"{self._run}/users", shared=True)
        users.acquire()
        try:
            with Lock(f"{self._root}/lock"):
                made = self.made() or self._make()
                self._fd = self._given(made) if made.given else self._started(made)
        except BaseException:
            users.release()
            raise
        self._users = users

    def _make(self) -> Made:
        """Make a pool: empty files, or the devices that were given. Its own record comes last."""
        if self.list("layers"):
            raise DriverError(
                "opening", driver=WHO, subject=self._root, cause="layers have records but the pool has none",
                hint="restore pool.json from a backup; nothing was changed",
            )  # fmt: skip
        wanted, number = self._wanted, 0
        if wanted.pool:
            name = os.path.basename(wanted.pool)
            number = _parse(self._mapper.status(name)).transaction if self._mapper.device(name) else 0
            made = Made(name, "", "", 0, given=True)
        else:
            metadata = self._room("metadata", wanted.metadata, wanted.metadata_size, allocate=True)
            # A pool that is full says so; a disk that is full below it breaks what is in it.
            place = os.statvfs(self._root)
            most = int(0.9 * place.f_bavail * place.f_frsize) // wanted.block * wanted.block
            size = min(wanted.data_size, most) if place.f_blocks else wanted.data_size  # ramfs does not say
            data = self._room("data", wanted.data, size, allocate=False)
            made = Made(f"transom-{os.urandom(6).hex()}", data, metadata, wanted.block // SECTOR)
        self._write("transaction.json", Transaction(number))
        self._write("pool.json", made)
        return made

    def _room(self, name: str, device: str, size: int, *, allocate: bool) -> str:
        """Return the device that was given, or make a file; what a killed process made of it is made anew."""
        if device:
            _check_empty(device)
            return device
        path = self.place(name)
        with suppress(FileNotFoundError):
            os.unlink(path)
        with closing(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)) as fd:
            os.posix_fallocate(fd, 0, size) if allocate else os.ftruncate(fd, size)
            os.fsync(fd)
        return name

    def place(self, name: str) -> str:
        """Say where the pool's data or metadata is: the root may have been moved since it was made."""
        return os.path.join(self._root, name)

    def _given(self, made: Made) -> int:
        device = self._mapper.device(made.name)
        target = self._mapper.status(made.name, table=True) if device else ""
        if device is None or len(target.split()) < 4:
            raise DriverError(
                "opening", driver=WHO, subject=f"pool {made.name}", cause="there is no such thin pool",
                hint="make it (lvcreate --type thin-pool), or leave dm.thinpooldev out",
            )  # fmt: skip
        return os.open(device.node, os.O_RDONLY | os.O_CLOEXEC)

    def _started(self, made: Made) -> int:
        """Open the pool, started first if it is not there."""
        end = time.monotonic() + PATIENCE
        while True:
            device = self._mapper.device(made.name)
            if device is None or not device.started:
                self._mapper.remove(made.name)  # killed before it was started, a loaded table holds the files
                self._start_anew(made)
                continue
            try:
                fd = os.open(device.node, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:  # it was just going
                if time.monotonic() > end or error.errno not in {errno.ENXIO, errno.ENODEV, errno.ENOENT}:
                    raise
                continue
            try:
                if device.suspended:
                    self._mapper.resume(made.name)
                self._mapper.remove(made.name, deferred=True)
                self._check(made)
            except BaseException:
                os.close(fd)
                raise
            return fd

    def _start_anew(self, made: Made) -> None:
        with ExitStack() as held:
            numbers = []
            for path in map(self.place, (made.metadata, made.data)):
                if _is_block(path):
                    numbers.append(_number_of(path))
                    continue
                # The old pool may still be writing its last metadata: two at once would destroy it.
                if left := loops.wait_until_free(path, PATIENCE):
                    devices = ", ".join(f"/dev/loop{n}" for n in left)
                    raise DriverError(
                        "starting", driver=WHO, subject=f"pool {made.name}", cause=f"{path} is in use by {devices}",
                        hint="stop what uses it (dmsetup ls --tree), then losetup -d",
                    )  # fmt: skip
                fd, number = loops.attach(path)
                held.callback(os.close, fd)
                numbers.append(number)
            sectors = _sectors(self.place(made.data))
            parameters = f"{numbers[0]} {numbers[1]} {made.block} 0 1 error_if_no_space"
            device = self._mapper.create(made.name, "thin-pool", sectors, parameters)
            # From here on the pool holds the loop devices; what holds the pool is opened before they are let go.
            held.callback(os.close, os.open(device.node, os.O_RDONLY | os.O_CLOEXEC))
            self._mapper.remove(made.name, deferred=True)

    def _check(self, made: Made) -> None:
        """Make sure that the pool of this name is over our files, and healthy."""
        table = self._mapper.status(made.name, table=True).split()
        for path, number in zip(map(self.place, (made.metadata, made.data)), table, strict=False):
            if not _is_block(path):
                found = os.stat(path)
                if loops.backing(int(number.partition(":")[2])) != (found.st_dev, found.st_ino):
                    raise DriverError(
                        "opening", driver=WHO, subject=f"pool {made.name}", cause=f"it is not over {path}",
                        hint=f"{self._root} is a copy of a root in use: stop that one first (dmsetup ls --tree)",
                    )  # fmt: skip

    def status(self) -> Status:
        """Read the pool's status; a pool that failed is an error with what to do."""
        line = self._mapper.status(self._name)
        try:
            return _parse(line)
        except ValueError:
            raise DriverError(
                "opening", driver=WHO, subject=f"pool {self._name}", cause=f"the pool has failed ({line})",
                hint="stop all containers, then check it: thin_check, thin_repair",
            ) from None  # fmt: skip

    def make_room(self) -> None:
        """Extend files that fill up, then refuse if too little is free for another layer.

        Raises:
            DriverError: less than dm.min_free_space of data, of metadata or of the disk below is free, or the pool
                takes no writes; with what to do.
        """
        self.start()
        with self.working():
            status = self.status()
            if self._extend(status):
                status = self.status()
        problem = self._problem(status)
        if problem:
            cause = OSError(errno.ENOSPC, problem[0])
            raise DriverError("prepare", driver=WHO, subject=f"pool {self._name}", cause=cause, hint=problem[1])

    def _problem(self, status: Status) -> tuple[str, str] | None:
        if status.needs_check or status.mode == "ro":
            return "the pool is read-only and needs a check", "stop all containers, then: thin_check, thin_repair"
        more = "remove containers and images, or enlarge the pool"
        for what, (used, total) in (("data", status.data), ("metadata", status.metadata)):
            free = 1 - used / total
            if free < self._wanted.free:
                return (
                    f"only {free:.0%} of the pool's {what} is free, dm.min_free_space is {self._wanted.free:.0%}",
                    more,
                )
        if not self._record.given and not _is_block(self._record.data):
            place = os.statvfs(self._root)
            total = status.data[1] * self._record.block * SECTOR
            if place.f_bavail * place.f_frsize < min(self._wanted.free * total, 0.02 * place.f_blocks * place.f_frsize):
                return f"the disk below {self._root} is full", "free space there, or remove containers and images"
        return None

    def _extend(self, status: Status) -> bool:
        """Enlarge the files of the pool that are fuller than they should be; say whether any was."""
        made, done = self._record, False
        if made.given:
            return False
        table = self._mapper.status(made.name, table=True).split()
        for path, number, (used, total), most in (
            (self.place(made.metadata), table[0], status.metadata, _METADATA_MAX),
            (self.place(made.data), table[1], status.data, 1 << 62),
        ):
            if _is_block(path) or used < self._wanted.extend_at * total:
                continue
            size = os.stat(path).st_size
            larger = min(int(size * (1 + self._wanted.extend_by)), most) // (made.block * SECTOR) * made.block * SECTOR
            if larger > size:
                with closing(os.open(path, os.O_WRONLY | os.O_CLOEXEC)) as fd:
                    os.posix_fallocate(fd, size, larger - size) if most == _METADATA_MAX else os.ftruncate(fd, larger)
                loops.grow(number)
                done = True
        if done:
            self._mapper.load(made.name, "thin-pool", _sectors(self.place(made.data)), " ".join(table))
            self._mapper.resume(made.name)
        return done

    def close(self) -> None:
        """Let go of the pool. The last user stops idle volumes and the pool, and waits until its files are free."""
        if self._fd < 0 or self._users is None:
            return
        self._users.release()
        alone = Lock(f"{self._run}/users")
        last, given = alone.acquire(wait=False), self._record.given
        try:
            if last:
                self._stop_idle()
            if last and not given:
                # Removed by a worker of the kernel's, the files would be let go of at a time that nobody can know.
                self._mapper.message(self._name, "@cancel_deferred_remove")
            os.close(self._fd)
            self._fd, self._users = -1, None
            if last and not given:
                self._stop()
        finally:
            alone.release()

    def _stop_idle(self) -> None:
        for name in self._mapper.names():
            if name.startswith(f"{self._name}-"):
                self._mapper.remove(name)

    def _stop(self) -> None:
        """Remove the pool, or have the kernel do so when the last container ends."""
        made = self._record
        if self._mapper.remove(made.name) or self._mapper.remove(made.name, deferred=True):
            for path in map(self.place, (made.metadata, made.data)):
                if not _is_block(path):
                    loops.wait_until_free(path, PATIENCE)


def _parse(line: str) -> Status:
    """Read a thin pool's status line; raise `ValueError` for "Fail" and "Error"."""
    words = line.split()
    metadata, data = (tuple(map(int, pair.split("/"))) for pair in words[1:3])
    return Status(
        transaction=int(words[0]),
        metadata=(metadata[0], metadata[1]),
        data=(data[0], data[1]),
        mode=words[4],
        needs_check="needs_check" in words[5:],
    )


def _is_block(path: str) -> bool:
    return path.startswith("/dev/")


def _number_of(path: str) -> str:
    device = os.stat(path).st_rdev
    return f"{os.major(device)}:{os.minor(device)}"


def _sectors(path: str) -> int:
    with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
        return os.lseek(fd, 0, os.SEEK_END) // SECTOR


def _check_empty(path: str) -> None:
    """Make sure that nothing is on a block device that was given: its first 64 KiB are zeros."""
    try:
        with closing(os.open(path, os.O_RDONLY | os.O_CLOEXEC)) as fd:
            fcntl.ioctl(fd, _BLKFLSBUF)  # the device mapper writes past what reads of the device have cached
            used = any(os.pread(fd, 1 << 16, 0))
    except OSError as error:
        raise DriverError("opening", driver=WHO, subject=path, cause=error, hint="name a block device") from error
    if used:
        raise DriverError(
            "making the pool", driver=WHO, subject=path, cause="the device is not empty",
            hint=f"if nothing on it is needed: blkdiscard -z {path}",
        )  # fmt: skip
