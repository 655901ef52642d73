"""The storage driver on the device mapper's thin volumes: a layer is a snapshot of its parent, a whole file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import msgspec

from transom.contract import Probe
from transom.contract.storage import IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import DriverError, NotFound, NotSupported
from transom.services.options import Size

if TYPE_CHECKING:
    from transom_storage_devicemapper.pool import Pool, Volume

_Percent = Annotated[str, msgspec.Meta(pattern=r"^[0-9]{1,2}%?$")]
_PLACE = "inside"
_SMALLEST = {"ext4": 16 << 20, "xfs": 300 << 20}
"""What mkfs.xfs insists on, and an ext4 that holds something."""


class DevicemapperOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user can set; see `Devicemapper.option_docs`."""

    thinpooldev: str = msgspec.field(default="", name="dm.thinpooldev")
    datadev: str = msgspec.field(default="", name="dm.datadev")
    metadatadev: str = msgspec.field(default="", name="dm.metadatadev")
    loopdatasize: Size = msgspec.field(default=100 << 30, name="dm.loopdatasize")
    loopmetadatasize: Size = msgspec.field(default=128 << 20, name="dm.loopmetadatasize")
    blocksize: Size = msgspec.field(default=64 << 10, name="dm.blocksize")
    basesize: Size = msgspec.field(default=10 << 30, name="dm.basesize")
    fs: Literal["ext4", "xfs"] = msgspec.field(default="ext4", name="dm.fs")
    mkfsarg: str = msgspec.field(default="", name="dm.mkfsarg")
    mountopt: tuple[str, ...] = msgspec.field(default=(), name="dm.mountopt")
    blkdiscard: bool | None = msgspec.field(default=None, name="dm.blkdiscard")
    min_free_space: _Percent = msgspec.field(default="10%", name="dm.min_free_space")
    extend_at: _Percent = msgspec.field(default="80%", name="dm.thinp_autoextend_threshold")
    extend_by: _Percent = msgspec.field(default="20%", name="dm.thinp_autoextend_percent")

    def __post_init__(self) -> None:
        """Check what one type cannot say."""
        block = self.blocksize
        if not 64 << 10 <= block <= 1 << 30 or block % (64 << 10):
            raise ValueError("dm.blocksize must be a multiple of 64k, from 64k to 1g")
        if self.basesize < _SMALLEST[self.fs]:
            raise ValueError(f"dm.basesize must be at least {_SMALLEST[self.fs] >> 20}m for {self.fs}")
        if self.thinpooldev and (self.datadev or self.metadatadev):
            raise ValueError("dm.thinpooldev names a whole pool: leave dm.datadev and dm.metadatadev out")
        for name in ("datadev", "metadatadev"):
            if (path := getattr(self, name)) and not path.startswith("/dev/"):
                raise ValueError(f"dm.{name} must be a block device below /dev, not {path!r}")


def _ratio(percent: str) -> float:
    return int(percent.rstrip("%")) / 100


class Devicemapper(Storage):
    """A layer is a thin volume with a file system; its record is ``root/layers/ID.json``. See `pool`."""

    name: ClassVar[str] = "devicemapper"
    api: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = DevicemapperOptions
    option_docs: ClassVar[dict[str, str]] = {
        "dm.thinpooldev": "A thin pool that is there already and used by nobody else, by its name or path.",
        "dm.datadev": "An empty block device for the data of a new pool; by default a sparse file.",
        "dm.metadatadev": "An empty block device for the metadata of a new pool; by default a sparse file.",
        "dm.loopdatasize": "The size of the data file of a new pool, at most 90% of what is free; it is sparse.",
        "dm.loopmetadatasize": "The size of the metadata file of a new pool; it is allocated, and grows as it fills.",
        "dm.blocksize": "The unit in which a new pool gives out and shares space.",
        "dm.basesize": "The size of the file system that a layer has, at least; it takes space as it fills.",
        "dm.fs": "The file system of new base layers.",
        "dm.mkfsarg": "More arguments for mkfs, separated by spaces.",
        "dm.mountopt": "More mount options for layers.",
        "dm.blkdiscard": "Give the blocks of removed layers back to the disk; by default where the pool is a file.",
        "dm.min_free_space": "How much of the pool must be free for a layer to be made.",
        "dm.thinp_autoextend_threshold": "How full a pool's file may get before it is enlarged.",
        "dm.thinp_autoextend_percent": "By how much a pool's file is enlarged.",
    }
    capabilities = frozenset(
        {
            StorageCapability.CLONE,
            StorageCapability.QUOTA,
            StorageCapability.RENAME_DIRECTORY,
            StorageCapability.SHARED_PARENT,
            StorageCapability.STABLE_INODES,
        }
    )
    max_depth = 1_000_000
    """A snapshot is as good as what it was taken of; only the nearest parent is ever looked at."""

    @cached_property
    def _pool(self) -> Pool:
        from transom_storage_devicemapper.pool import Pool, Wanted

        wanted = Wanted(
            pool=self.options.thinpooldev,
            data=self.options.datadev,
            metadata=self.options.metadatadev,
            data_size=self.options.loopdatasize,
            metadata_size=self.options.loopmetadatasize,
            block=self.options.blocksize,
            free=_ratio(self.options.min_free_space),
            extend_at=_ratio(self.options.extend_at) or 1.0,
            extend_by=_ratio(self.options.extend_by),
        )
        return Pool(os.fspath(self.root), os.fspath(self.run), wanted)

    def probe(self) -> Probe:
        """Ask the kernel for its thin targets, and look for the tools; nothing is made."""
        from transom_storage_devicemapper.probe import missing

        reason = missing(self.options)
        return Probe(usable=not reason, reason=reason)

    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Take a snapshot of the parent, or of an empty file system, and fit it to `size`."""
        with self._telling("prepare", id):
            self._pool.make_room()
            origin = self._volume(parents[0]) if parents else self._base()
            wanted = self._size(origin, size, id)
            path = self._pool.path("layers", id)
            volume = self._pool.add(path, origin, size=origin.size, filesystem=origin.filesystem)
            if wanted != origin.size:
                self._fit(path, volume, wanted)

    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """The volume's file system; a view shows its parent's."""
        with self._telling("mounts", id):
            volume = self._volume(parents[0] if state is State.VIEW else id)
            readonly = state is not State.ACTIVE
            device = self._pool.activate(volume, readonly=readonly)
            return (self._mount(volume, device.node, readonly=readonly),)

    def commit(self, id: str, parents: tuple[str, ...]) -> None:
        """Sync the file system, give back what it does not use, and have no journal left to replay.

        A volume may be committed already: killed before core knew of it, and written to since.
        """
        with self._telling("commit", id):
            from transom.services.files import sync_filesystem
            from transom_storage_devicemapper.filesystems import inside, trim

            volume = self._volume(id)
            place = f"{self.run}/{_PLACE}"

            def finish() -> None:
                trim(place)
                sync_filesystem(place)

            mount = self._mount(volume, self._pool.activate(volume).node)
            inside(mount, place, finish)
            if not self._pool.deactivate(volume):
                raise OSError(errno.EBUSY, "the layer is still mounted somewhere")
            self._pool.note(self._pool.path("layers", id), msgspec.structs.replace(volume, committed=True))

    def remove(self, id: str) -> None:
        """Remove the volume; one that is still mounted somewhere goes when it no longer is."""
        with self._telling("remove", id):
            volume = self._pool.find("layers", id)
            if volume is None:
                return
            self._pool.start()
            if not self._pool.deactivate(volume):
                self._pool.defer(id)
                if not self._pool.let_go(volume):
                    return
                self._delete("deferred", id, volume)
            else:
                self._delete("layers", id, volume)

    def clone(self, id: str, source: str, parents: tuple[str, ...]) -> None:
        """Take a snapshot of the active layer, which nobody has mounted."""
        with self._telling("clone", id):
            self._pool.make_room()
            origin = self._volume(source)
            if not self._pool.deactivate(origin):
                raise OSError(errno.EBUSY, f"{source} is still mounted somewhere")
            path = self._pool.path("layers", id)
            self._pool.add(path, origin, size=origin.size, filesystem=origin.filesystem)

    def owned(self) -> frozenset[str]:
        """Every layer that has a record."""
        return self._pool.list("layers")

    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Add up the files that differ from the parent's: the pool does not say which blocks are a volume's own."""
        from transom_storage_devicemapper.usage import measure

        with self._telling("usage", id):
            volume = self._pool.find("layers", id)
            if volume is None:  # a view
                return Usage(size=0, inodes=0)
            state = State.COMMITTED if volume.committed else State.ACTIVE
            shown = [self.mounts(id=id, parents=parents, state=state)[0]]
            if parents:
                shown.append(self.mounts(id=parents[0], parents=parents[1:], state=State.COMMITTED)[0])
            return measure(shown, os.fspath(self.run))

    def recover(self) -> list[str]:
        """End an interrupted transaction, and delete volumes that were in use when they were removed."""
        if not os.path.isdir(self.root):
            return []
        said = []
        with self._telling("recover", ""):
            self._pool.sweep()
            if self._pool.made() is None:
                return []
            if self._pool.settle():
                said.append("storage devicemapper: finished an interrupted transaction of the pool")
            for id in sorted(self._pool.list("deferred")):
                volume = self._pool.find("deferred", id)
                if volume and self._pool.deactivate(volume):
                    self._delete("deferred", id, volume)
                    said.append(f"storage devicemapper: deleted {id}, which was in use when it was removed")
        return said

    def status(self) -> dict[str, str]:
        """What ``docker info`` shows for this driver."""
        found = {"Base Device Size": f"{self.options.basesize} B", "Backing Filesystem": self.options.fs}
        made = self._pool.made() if os.path.isdir(self.root) else None
        if made is None:
            return found
        self._pool.start()
        status = self._pool.status()
        found |= {"Pool Name": made.name, "Data file": self._pool.place(made.data)}
        found["Metadata file"] = self._pool.place(made.metadata)
        for what, (used, total), block in (
            ("Data", status.data, made.block * 512 or self.options.blocksize),
            ("Metadata", status.metadata, 4096),
        ):
            found[f"{what} Space Used"], found[f"{what} Space Total"] = f"{used * block} B", f"{total * block} B"
        found["Transaction"] = str(status.transaction)
        found["Deferred Deleted Device Count"] = str(len(self._pool.list("deferred")))
        return found

    def close(self) -> None:
        """Let go of the pool, which is gone on return if nobody else uses it."""
        if "_pool" in self.__dict__:
            self._pool.close()

    def _volume(self, id: str) -> Volume:
        volume = self._pool.find("layers", id)
        if volume is None:
            raise NotFound(f"storage devicemapper: layer {id} has no volume; remove it, and pull or create it again")
        return volume

    def _base(self) -> Volume:
        """Return the empty file system that layers without a parent begin with, made when it is first needed."""
        from transom.services.files import Lock
        from transom_storage_devicemapper.filesystems import inside, make

        arguments = self.options.mkfsarg.split()
        id = "-".join([self.options.fs, str(self.options.basesize), *(w.strip("-") for w in arguments)])
        id = id.replace("/", "_")[:200]
        path, place = self._pool.path("bases", id), f"{self.run}/{_PLACE}"

        def finish() -> None:
            try:
                os.rmdir(f"{place}/lost+found")  # e2fsck(8) makes it again where it needs it
            except FileNotFoundError:
                pass
            os.chmod(place, 0o755)

        with Lock(f"{self.root}/base.lock"):
            volume = self._pool.find("bases", id)
            if volume and volume.committed:
                return volume
            if volume:  # half-made
                self._pool.deactivate(volume)
                self._pool.delete(path, volume.device)
            volume = self._pool.add(path, None, size=self.options.basesize // 512 * 512, filesystem=self.options.fs)
            node = self._pool.activate(volume).node
            make(volume.filesystem, node, arguments)
            inside(self._mount(volume, node), place, finish)
            self._pool.deactivate(volume)
            done = msgspec.structs.replace(volume, committed=True)
            self._pool.note(path, done)
            return done

    def _size(self, origin: Volume, size: int | None, id: str) -> int:
        """Say how large a layer over `origin` is to be, in bytes."""
        if size is None:
            return max(origin.size, self.options.basesize // 512 * 512) if origin.committed else origin.size
        smallest = _SMALLEST[origin.filesystem]
        if size < smallest or (origin.filesystem == "xfs" and size < origin.size):
            least = max(smallest, origin.size if origin.filesystem == "xfs" else 0)
            raise NotSupported(
                f"storage devicemapper: layer {id} cannot be limited to {size} bytes: its {origin.filesystem} needs at"
                f" least {least >> 20}m" + ("; xfs cannot shrink, use dm.fs=ext4" if origin.filesystem == "xfs" else "")
            )
        return size // 4096 * 4096

    def _fit(self, path: str, volume: Volume, size: int) -> None:
        """Give the new volume and its file system another size."""
        from transom_storage_devicemapper.filesystems import grow, shrink

        fitted, place = msgspec.structs.replace(volume, size=size), f"{self.run}/{_PLACE}"
        node = self._pool.activate(volume).node
        if size < volume.size:
            shrink(node, size, self._mount(volume, node), place)
            self._pool.resize(fitted)
        else:
            self._pool.resize(fitted)
            grow(volume.filesystem, node, self._mount(volume, node), place)
        self._pool.note(path, fitted)
        self._pool.deactivate(fitted)

    def _mount(self, volume: Volume, node: str, *, readonly: bool = False) -> Mount:
        from transom_storage_devicemapper.filesystems import options

        mine = (*options(volume.filesystem, self.options.mountopt), *(("ro",) if readonly else ()))
        return Mount(type=volume.filesystem, source=node, options=mine, readonly=readonly)

    def _delete(self, place: str, id: str, volume: Volume) -> None:
        """Give the blocks of a volume that nobody uses back, then remove it and its record."""
        from transom_storage_devicemapper.filesystems import discard

        made, wanted = self._pool.made(), self.options.blkdiscard
        if wanted if wanted is not None else bool(made and not made.given and not made.data.startswith("/dev/")):
            try:
                discard(self._pool.activate(volume).node, volume.size)
            except OSError:  # a volume that is gone already
                pass
            self._pool.deactivate(volume)
        self._pool.delete(self._pool.path(place, id), volume.device)

    @contextmanager
    def _telling(self, operation: str, id: str) -> Iterator[None]:
        """Put what the kernel and the tools refuse into words."""
        from transom_storage_devicemapper.filesystems import ToolError

        try:
            yield
        except (OSError, ToolError) as error:
            hint, code = "", getattr(error, "errno", None)
            if code in {errno.ENOSPC, errno.EDQUOT}:
                hint = f"free space on the file system of {self.root}"
            elif code == errno.EBUSY:
                hint = "see who has it mounted: grep dm- /proc/*/mountinfo"
            raise DriverError(operation, driver="storage devicemapper", subject=id, cause=error, hint=hint) from error
