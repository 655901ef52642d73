"""The storage driver on btrfs: a layer is a subvolume, a child a snapshot of its parent (btrfs(5))."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, ClassVar

import msgspec

from transom.contract import Probe
from transom.contract.storage import Change, IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import ConfigError, DriverError
from transom.services.options import Size

_MARK = ".quota-"
"""Before the number of a subvolume with a limit, in `root`: its quota group outlives the subvolume a while."""
_SMALLEST = 1 << 20


class BtrfsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user can set; see `Btrfs.option_docs`."""

    size: Size | None = msgspec.field(default=None, name="btrfs.size")
    min_space: Size = msgspec.field(default=_SMALLEST, name="btrfs.min_space")


class Btrfs(Storage):
    """A layer is the subvolume ``root/ID``; a committed one is read-only."""

    name: ClassVar[str] = "btrfs"
    api: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = BtrfsOptions
    option_docs: ClassVar[dict[str, str]] = {
        "btrfs.size": "The most bytes of its own that a container may hold, where it does not say so itself.",
        "btrfs.min_space": "The smallest size that a container may ask for.",
    }
    capabilities = frozenset(StorageCapability) - {StorageCapability.QUOTA_INODES}
    max_depth = 1_000_000
    """Only the nearest parent is ever looked at, and a snapshot of a snapshot is as quick as one of the first."""

    @property
    def container_size(self) -> int | None:  # type: ignore[override]  # the contract's is a plain attribute
        """The option ``btrfs.size``."""
        size: int | None = self.options.size
        return size

    def probe(self) -> Probe:
        """Usable where `root` is, or will be, on btrfs, by root."""
        from transom_storage_btrfs.ioctls import is_btrfs

        place = os.fspath(self.root)
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        if not is_btrfs(place):
            return Probe(usable=False, reason=f"{place} is not on btrfs: put the data root on one (mkfs.btrfs)")
        if os.geteuid() != 0:
            return Probe(usable=False, reason="subvolumes of others are removed and mounted by root only: run as root")
        return Probe(usable=True)

    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Make a subvolume, or a snapshot of the parent; `size` becomes the limit of its quota group."""
        if size is not None and size < self.options.min_space:
            from transom.services.options import write_size

            least = write_size(self.options.min_space)
            raise ConfigError(f"storage btrfs: a size of {size} bytes is too small: at least {least} (btrfs.min_space)")
        self._make(id, parents[0] if parents else None, size)

    def clone(self, id: str, source: str, parents: tuple[str, ...]) -> None:
        """Make a snapshot of the other layer, without its limit."""
        self._make(id, source, None)

    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """A bind mount: of the layer, or of the parent that a view shows.

        An active layer is writable again if a commit was killed before core knew of it.
        """
        from transom_storage_btrfs.ioctls import set_readonly

        if state is State.ACTIVE:
            with self._in_words("mounts", id), _opened(f"{self.root}/{id}") as layer:
                set_readonly(layer, False)
        shown = parents[0] if state is State.VIEW else id
        return (Mount(type="bind", source=f"{self.root}/{shown}", readonly=state is not State.ACTIVE),)

    def commit(self, id: str, parents: tuple[str, ...]) -> None:
        """Make the subvolume read-only, and sync."""
        from transom_storage_btrfs.ioctls import set_readonly

        with self._in_words("commit", id):
            with _opened(f"{self.root}/{id}") as layer:
                set_readonly(layer, True)
            super().commit(id=id, parents=parents)

    def remove(self, id: str) -> None:
        """Remove the subvolume with those nested in it; it goes as a whole, and last."""
        from transom_storage_btrfs import subvolumes

        with self._in_words("remove", id):
            if subvolumes.remove(os.fspath(self.root), id):
                self._drop_groups()

    def owned(self) -> frozenset[str]:
        """Every directory of `root` whose name can be an id."""
        from transom.services.trees import layer_directories

        return layer_directories(self.root)

    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Measure what the parent does not have just so; a file that was changed counts whole."""
        from transom_storage_btrfs.subvolumes import usage

        with self._in_words("usage", id):
            return usage(f"{self.root}/{id}", f"{self.root}/{parents[0]}" if parents else None)

    def changes(self, id: str, parents: tuple[str, ...]) -> Iterator[Change]:
        """Compare with the parent what was written since the snapshot."""
        from transom_storage_btrfs.subvolumes import changes

        with self._in_words("changes", id):
            return iter(changes(f"{self.root}/{id}", f"{self.root}/{parents[0]}" if parents else None))

    def apply(self, id: str, parents: tuple[str, ...], stream: IO[bytes]) -> int:
        """Unpack into the subvolume, which shows all that the parent has."""
        from transom.services.archive import extract

        with self._in_words("apply", id):
            return extract(stream=stream, root=f"{self.root}/{id}")

    def content(self, id: str) -> str:
        """The subvolume."""
        return f"{self.root}/{id}"

    def recover(self) -> list[str]:
        """Remove quota groups of subvolumes that are gone; layers are core's to judge."""
        return [f"storage btrfs: removed the quota group 0/{number}" for number in self._drop_groups()]

    def status(self) -> dict[str, str]:
        """What ``docker info`` shows for this driver."""
        return {"Build Version": os.uname().release, "Quota Groups": str(len(self._marks()))}

    def _make(self, id: str, source: str | None, size: int | None) -> None:
        from transom_storage_btrfs import ioctls

        with self._in_words("prepare", id):
            os.makedirs(self.root, mode=0o711, exist_ok=True)
            with _opened(self.root) as root:
                if source is None:
                    ioctls.create(root, id)
                    os.chmod(f"{self.root}/{id}", 0o755)  # the kernel heeds the umask
                else:
                    with _opened(f"{self.root}/{source}") as parent:
                        ioctls.snapshot(root, id, parent)
                if size is not None:
                    with _opened(f"{self.root}/{id}") as layer:
                        number = ioctls.subvolume_id(layer)
                        os.close(
                            os.open(f"{self.root}/{_MARK}{number}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
                        )
                        ioctls.limit(layer, number, size)

    def _marks(self) -> list[int]:
        try:
            names = os.listdir(self.root)
        except FileNotFoundError:
            return []
        return [int(name.removeprefix(_MARK)) for name in names if name.startswith(_MARK)]

    def _drop_groups(self) -> list[int]:
        """Remove the quota groups of deleted subvolumes, as far as the kernel lets go of them; say which."""
        from transom_storage_btrfs import ioctls

        dropped = []
        for number in self._marks():
            with _opened(self.root) as root:
                if not ioctls.exists(root, number) and ioctls.drop_group(root, number):
                    os.unlink(f"{self.root}/{_MARK}{number}")
                    dropped.append(number)
        return dropped

    @contextmanager
    def _in_words(self, operation: str, id: str) -> Iterator[None]:
        import errno

        try:
            yield
        except OSError as error:
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            hint = f"free space on the file system of {self.root} (btrfs filesystem usage)" if full else ""
            raise DriverError(operation, driver="storage btrfs", subject=id, cause=error, hint=hint) from error


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
