"""The storage driver on the kernel's overlay file system (Documentation/filesystems/overlayfs.rst)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from typing import IO, ClassVar

import msgspec

from transom.contract import Capability, Probe
from transom.contract.storage import Change, IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import DriverError, NotSupported
from transom.services.options import Size

_OFF = ("index", "metacopy", "redirect_dir")
"""Kept off whatever the kernel's default: with them on, an upper directory is not the whole difference."""
_PARAMETERS = "/sys/module/overlay/parameters"
_QUOTAS = frozenset({StorageCapability.QUOTA, StorageCapability.QUOTA_INODES})


class Overlay2Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user can set; see `Overlay2.option_docs`."""

    size: Size | None = msgspec.field(default=None, name="overlay2.size")


class _Capabilities(frozenset[StorageCapability]):
    """What the class declares, and for an instance what the file system of its `root` lets it do of that."""

    def __get__(self, driver: Overlay2 | None, _owner: type | None = None) -> frozenset[StorageCapability]:
        if driver is None:
            return self
        return self - _QUOTAS if driver.lacking_quota else frozenset(self)


class Overlay2(Storage):
    """A layer is ``root/ID/diff``, an overlay's upper directory; an active one has ``root/ID/work`` beside it."""

    name: ClassVar[str] = "overlay2"
    api: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = Overlay2Options
    option_docs: ClassVar[dict[str, str]] = {
        "overlay2.size": "The most bytes that a container may write, where it does not say so itself: a project quota.",
    }
    capabilities = _Capabilities(
        {StorageCapability.SHARED_PARENT, StorageCapability.DIFF, StorageCapability.APPLY, StorageCapability.IDMAP}
        | _QUOTAS
    )

    @cached_property
    def max_depth(self) -> int:  # type: ignore[override]  # asks the kernel when first needed
        """How many lower directories the kernel takes.

        From Linux 6.8 on each is passed alone, and a layer with its own directory may be one of 500
        (OVL_MAX_STACK). Before, all share the one page of mount(2)'s data.
        """
        release = os.uname().release.split(".")
        if (int(release[0]), int(release[1].partition("-")[0])) >= (6, 8):
            return 499
        each, fixed = len(os.fsencode(self._diff("x" * 20))) + 1, 256
        return min(128, (os.sysconf("SC_PAGE_SIZE") - fixed) // each - 3)

    @property
    def container_size(self) -> int | None:  # type: ignore[override]  # the contract's is a plain attribute
        """The option ``overlay2.size``."""
        size: int | None = self.options.size
        return size

    @cached_property
    def lacking_quota(self) -> str:
        """Why layers cannot have a size here; empty when they can."""
        from transom_storage_overlay2.probe import existing, filesystem_of
        from transom_storage_overlay2.quota import lacking

        place = existing(os.fspath(self.root))
        return lacking(place, filesystem_of(place))

    def unsupported(self, needs: Capability) -> NotSupported:
        """Say why there are no sizes here."""
        if needs not in _QUOTAS:
            return super().unsupported(needs)
        what = "sizes" if needs is StorageCapability.QUOTA else "limits of inodes"
        return NotSupported(f"storage driver overlay2 does not support {what} here: {self.lacking_quota}")

    def probe(self) -> Probe:
        """Mount a real overlay on the file system that will hold `root`, in a namespace of its own, and use it."""
        if self.options.size is not None and self.lacking_quota:
            return Probe(usable=False, reason=f"overlay2.size cannot be kept: {self.lacking_quota}")
        from transom_storage_overlay2.probe import probe

        return probe(os.fspath(self.root))

    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Make the two directories; the root of the layer looks like its parent's."""
        from transom.services.trees import copy_attributes

        layer = f"{self.root}/{id}"
        try:
            os.makedirs(self.root, mode=0o711, exist_ok=True)
            os.mkdir(layer, 0o700)
            if size is not None:
                self._bound(id, size=size)
            os.mkdir(f"{layer}/work", 0o700)
            os.mkdir(f"{layer}/diff", 0o755)
            if parents:
                copy_attributes(self._diff(parents[0]), self._diff(id))
            else:
                os.chmod(self._diff(id), 0o755)  # mkdir(2) heeds the umask
        except OSError as error:
            raise self._failed("prepare", id, error) from error

    def limit_inodes(self, id: str, inodes: int) -> None:
        """Set it on the layer's project, which a layer with a size has already."""
        if self.lacking_quota:
            raise self.unsupported(StorageCapability.QUOTA_INODES)
        try:
            self._bound(id, inodes=inodes)
        except OSError as error:
            raise self._failed("limit_inodes", id, error) from error

    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """An overlay; a bind mount where there is but one directory to show."""
        lowers = parents if state is not State.COMMITTED else (id, *parents)
        if state is not State.ACTIVE:
            if len(lowers) == 1:
                return (Mount(type="bind", source=self._diff(lowers[0]), readonly=True),)
            options = self._lower_options(lowers)
            return (Mount(type="overlay", source="overlay", options=options, readonly=True),)
        if not parents:
            return (Mount(type="bind", source=self._diff(id)),)
        work = f"{self.root}/{id}/work"
        try:
            os.mkdir(work, 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise self._failed("mounts", id, error) from error
        upper = (f"upperdir={_escape(self._diff(id))}", f"workdir={_escape(work)}")
        options = (*self._lower_options(lowers), *upper, *self._switches)
        return (Mount(type="overlay", source="overlay", options=options),)

    def commit(self, id: str, parents: tuple[str, ...]) -> None:
        """Sync, and drop the work directory."""
        from transom.services.trees import remove_tree

        try:
            remove_tree(f"{self.root}/{id}/work")
            super().commit(id=id, parents=parents)
        except OSError as error:
            raise self._failed("commit", id, error) from error

    def remove(self, id: str) -> None:
        """Remove the layer's directory, which goes last: until then `owned` reports it."""
        from transom.services.trees import remove_tree

        try:
            if any(os.path.exists(f"{self.root}/{id}/{what}") for what in ("size", "inodes")):
                from transom_storage_overlay2.quota import unbound

                unbound(f"{self.root}/{id}")
            remove_tree(f"{self.root}/{id}")
        except OSError as error:
            raise self._failed("remove", id, error) from error

    def owned(self) -> frozenset[str]:
        """Every directory of `root` whose name can be an id."""
        from transom.services.trees import layer_directories

        return layer_directories(self.root)

    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Measure the upper directory."""
        from transom.services.trees import measure_tree

        return measure_tree(self._diff(id))

    def changes(self, id: str, parents: tuple[str, ...]) -> Iterator[Change]:
        """Read the changes off the upper directory."""
        from transom.services.stacks import Stack
        from transom_storage_overlay2.marks import OverlayMarks

        with Stack(self._diff(id), [self._diff(parent) for parent in parents], OverlayMarks()) as stack:
            return iter(stack.changes())

    def apply(self, id: str, parents: tuple[str, ...], stream: IO[bytes]) -> int:
        """Unpack into the upper directory, with overlay's marks for what is deleted."""
        from transom.services.archive import extract
        from transom_storage_overlay2.marks import OverlayMarks

        below = [self._diff(parent) for parent in parents]
        try:
            return extract(stream=stream, root=self._diff(id), below=below, marks=OverlayMarks())
        except OSError as error:
            raise self._failed("apply", id, error) from error

    def content(self, id: str) -> str:
        """The upper directory: what changed is there whole, since metacopy is off."""
        return self._diff(id)

    def recover(self) -> list[str]:
        """Remove what killed probes left; layers are core's to judge."""
        from transom_storage_overlay2.probe import sweep

        return [f"storage overlay2: removed {name}, left by a killed probe" for name in sweep(os.fspath(self.root))]

    def status(self) -> dict[str, str]:
        """What ``docker info`` shows for this driver, and how deep layers may go."""
        from transom_storage_overlay2.probe import existing, filesystem_of

        return {
            "Backing Filesystem": filesystem_of(existing(os.fspath(self.root))),
            "Native Overlay Diff": "true",
            "Mount Options": ", ".join(self._switches),
            "Maximum Depth": str(self.max_depth),
            "Project Quota": self.lacking_quota or "true",
        }

    def _bound(self, id: str, **limits: int) -> None:
        """Set limits, each noted before in a file of its own: a quota would outlive the layer unseen."""
        from transom_storage_overlay2.quota import bound

        layer = f"{self.root}/{id}"
        for what, limit in limits.items():
            with open(f"{layer}/{what}", "w") as file:
                file.write(f"{limit}\n")
        bound(layer, **limits)

    def _diff(self, id: str) -> str:
        return f"{self.root}/{id}/diff"

    def _lower_options(self, ids: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"lowerdir+={self._diff(id)}" for id in ids)

    @cached_property
    def _switches(self) -> tuple[str, ...]:
        """The kernel's newer features, switched off where it has them."""
        loaded = os.path.exists(_PARAMETERS)
        return tuple(f"{name}=off" for name in _OFF if not loaded or os.path.exists(f"{_PARAMETERS}/{name}"))

    def _failed(self, operation: str, id: str, error: OSError) -> DriverError:
        import errno

        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = f"free space on the file system of {self.root}" if full else ""
        return DriverError(operation, driver="storage overlay2", subject=id, cause=error, hint=hint)


def _escape(path: str) -> str:
    """Write a path as overlay reads upperdir and workdir; it takes ``lowerdir+`` as it is (fs/overlayfs/params.c)."""
    return path.replace("\\", "\\\\").replace(",", "\\,")
