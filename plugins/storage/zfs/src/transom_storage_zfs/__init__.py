"""The storage driver on ZFS: a layer is a dataset, a child the clone of its parent's snapshot."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import ClassVar

import msgspec

from transom.contract import Probe
from transom.contract.storage import IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import DriverError
from transom.services.files import Lock

SNAPSHOT = "committed"
"""The snapshot of a committed layer, which children are cloned from: one name, so that no two are ever made."""
PROPERTY = "transom:layer"
"""Set on each dataset of ours, to the identity of the driver's root: what does not have it is somebody else's."""
REMOVED = "transom:removed"
"""Set on a layer that was removed while it was mounted elsewhere."""
_DATASET = r"[A-Za-z][A-Za-z0-9_.:-]*(/[A-Za-z0-9_.:-]+)*"
"""zfsconcepts(7), zpool-create(8); without the space, which mount tables write otherwise."""
PATIENCE = 10.0
"""Seconds for an unmount in a namespace that ends to have its effect."""


class ZfsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user can set; see `Zfs.option_docs`."""

    fsname: str = msgspec.field(default="", name="zfs.fsname")
    mountopt: tuple[str, ...] = msgspec.field(default=(), name="zfs.mountopt")

    def __post_init__(self) -> None:
        """Refuse what would be an option of zfs(8), or a snapshot."""
        if self.fsname and not re.fullmatch(_DATASET, self.fsname):
            raise ValueError(f"zfs.fsname must be the name of a dataset such as tank/layers, not {self.fsname!r}")


class Zfs(Storage):
    """A layer is the dataset ``FSNAME/ID``, mounted by whoever needs it (mountpoint=legacy)."""

    name: ClassVar[str] = "zfs"
    api: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = ZfsOptions
    option_docs: ClassVar[dict[str, str]] = {
        "zfs.fsname": "The dataset that layers are made in; by default the one that the driver's root is on.",
        "zfs.mountopt": "More mount options for layers.",
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
    """A clone is as good as what it was cloned from; only the nearest parent is ever looked at."""

    def probe(self) -> Probe:
        """Ask for the module, the program and the dataset; nothing is made."""
        from transom_storage_zfs.probe import missing

        reason = missing(self.options.fsname, os.fspath(self.root))
        return Probe(usable=not reason, reason=reason)

    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Make an empty dataset, or a clone of the parent's snapshot."""
        with self._telling("prepare", id):
            if not parents:
                self._change("create", *self._properties(size), self._dataset(id))
            else:
                origin = f"{self._dataset(parents[0])}@{SNAPSHOT}"
                self._change("clone", *self._properties(size), origin, self._dataset(id))

    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """The dataset, or of what is committed the snapshot, which nothing can change; a view shows its parent's."""
        readonly = state is not State.ACTIVE
        options = (*self.options.mountopt, *(("ro",) if readonly else ()))
        with self._telling("mounts", id):
            shown = self._dataset(parents[0] if state is State.VIEW else id)
            source = f"{shown}@{SNAPSHOT}" if readonly else shown
            return (Mount(type="zfs", source=source, options=options, readonly=readonly),)

    def commit(self, id: str, parents: tuple[str, ...]) -> None:
        """Take the snapshot: on return it is on disk (zfs-snapshot(8)).

        One that is there already is of a commit that was killed before core knew of it: what was written since belongs
        to the layer, so it is taken anew.
        """
        with self._telling("commit", id):
            snapshot = f"{self._dataset(id)}@{SNAPSHOT}"
            try:
                self._change("snapshot", snapshot)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise
                self._change("destroy", snapshot)
                self._change("snapshot", snapshot)

    def remove(self, id: str) -> None:
        """Destroy the dataset; one that is still mounted somewhere is marked, and goes when it no longer is."""
        with self._telling("remove", id):
            try:
                self._destroy(id)
            except OSError as error:
                if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                    raise
                self._change("set", f"{REMOVED}=on", self._dataset(id))

    def clone(self, id: str, source: str, parents: tuple[str, ...]) -> None:
        """Clone a snapshot of the active layer; either can go first, and the snapshot goes with the clone."""
        with self._telling("clone", id):
            snapshot = f"{self._dataset(source)}@{id}"
            self._change("snapshot", snapshot)
            try:
                self._change("clone", *self._properties(None), snapshot, self._dataset(id))
            finally:
                self._change("destroy", "-d", snapshot)

    def owned(self) -> frozenset[str]:
        """Every dataset of ours in FSNAME that is not merely waiting for its last user."""
        if not os.path.isdir(self.root):
            return frozenset()
        with self._telling("owned", ""):
            return frozenset(id for id, removed in self._layers().items() if not removed)

    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Ask what was written since the parent's snapshot, once that is on disk; files are counted by statfs(2)."""
        from transom_storage_zfs.usage import inodes

        with self._telling("usage", id):
            if id not in self._layers():  # a view
                return Usage(size=0, inodes=0)
            self._run("sync", self._fsname.partition("/")[0], program="zpool")
            shown = [self.mounts(id=id, parents=parents, state=State.ACTIVE)[0]]
            written = "referenced"
            if parents:
                shown.append(self.mounts(id=parents[0], parents=parents[1:], state=State.COMMITTED)[0])
                written = f"written@{shown[1].source}"
            size = int(self._value(written, self._dataset(id)))
            return Usage(size=size, inodes=inodes(shown, os.fspath(self.run)))

    def recover(self) -> list[str]:
        """Destroy what was in use when it was removed, once programs of killed processes have ended."""
        if not os.path.isdir(self.root):
            return []
        with self._telling("recover", ""):
            with Lock(self._lock):
                pass
            layers = self._layers()
            self._drop_snapshots(layers)
            left = sorted(id for id, removed in layers.items() if removed)
            said: list[str] = []
            while left and (gone := [id for id in left if self._destroyed(id)]):  # clones pin what they are made of
                said += [f"storage zfs: destroyed {id}, which was in use when it was removed" for id in gone]
                left = [id for id in left if id not in gone]
            return said

    def status(self) -> dict[str, str]:
        """What ``docker info`` shows for this driver."""
        try:
            fsname = self._fsname
            pool = fsname.partition("/")[0]
            health = self._run("list", "-H", "-o", "health", pool, program="zpool").strip()
            names = ("used", "available", "quota", "compression")
            values = self._run("get", "-H", "-p", "-o", "value", ",".join(names), fsname).split("\n")
        except OSError as error:
            return {"Zpool": str(error.strerror)}
        used, available, quota, compression = values[:4]
        return {
            "Zpool": pool,
            "Zpool Health": health,
            "Parent Dataset": fsname,
            "Space Used By Parent": used,
            "Space Available": available,
            "Parent Quota": quota,
            "Compression": compression,
        }

    # Datasets

    @cached_property
    def _fsname(self) -> str:
        from transom_storage_zfs.probe import dataset_of

        name = self.options.fsname or dataset_of(os.fspath(self.root))
        if not name:
            raise OSError(errno.ENOENT, f"{self.root} is not on ZFS; name a dataset with zfs.fsname")
        return name

    def _dataset(self, id: str) -> str:
        return f"{self._fsname}/{id}"

    @property
    def _lock(self) -> str:
        return f"{self.root}/lock"

    @cached_property
    def _identity(self) -> str:
        """What our datasets are marked with; in the root, so that it is moved with it."""
        path = f"{self.root}/identity"
        os.makedirs(self.root, mode=0o711, exist_ok=True)
        with Lock(f"{self.root}/identity.lock"):
            try:
                with open(path, encoding="ascii") as file:
                    return file.read()
            except FileNotFoundError:
                from transom.services.files import write_atomic

                identity = os.urandom(8).hex()
                write_atomic(path, identity.encode())
                return identity

    def _properties(self, size: int | None) -> list[str]:
        """Say what each dataset is made with: a clone inherits from FSNAME, not from what it is cloned from."""
        wanted = {"mountpoint": "legacy", "xattr": "sa", "acltype": "posixacl", PROPERTY: self._identity}
        if size is not None:
            wanted["refquota"] = str(size)
        return [word for name, value in wanted.items() for word in ("-o", f"{name}={value}")]

    def _layers(self) -> dict[str, bool]:
        """List our datasets, and whether they are marked as removed."""
        names = f"name,{PROPERTY},{REMOVED}"
        try:
            text = self._run("list", "-H", "-p", "-r", "-d", "1", "-t", "filesystem", "-o", names, self._fsname)
        except OSError as error:
            if error.errno != errno.ENOENT or self._fsname not in str(error.strerror):
                raise
            return {}
        rows = [line.split("\t") for line in text.splitlines()]
        return {name.rpartition("/")[2]: removed == "on" for name, mine, removed in rows if mine == self._identity}

    def _destroy(self, id: str) -> None:
        """Destroy a dataset with its snapshots. Absent is success; who was cloned from it live stands by itself then.

        Raises:
            OSError: EBUSY, it is mounted somewhere; ENOTEMPTY, a removed child that is mounted somewhere pins it.
        """
        from transom.services.mounts import once_unmounted

        dataset = self._dataset(id)
        busy: OSError | None = None

        def destroyed(*, promoted: bool = False) -> bool:
            nonlocal busy
            try:
                self._change("destroy", "-r", dataset)
            except OSError as error:
                if error.errno == errno.ENOTEMPTY and not promoted and self._promote(id):
                    return destroyed(promoted=True)
                if error.errno not in {errno.ENOENT, errno.EBUSY}:
                    raise
                busy = error if error.errno == errno.EBUSY else None
            return busy is None

        if not once_unmounted(destroyed, f" - zfs {dataset}", patience=PATIENCE) and busy:
            raise busy

    def _drop_snapshots(self, layers: Collection[str]) -> None:
        """Have what a killed `clone` took of a live layer go, with its clone if it came to that."""
        if not layers:
            return
        names = self._run("list", "-H", "-r", "-d", "2", "-t", "snapshot", "-o", "name", self._fsname).split()
        for dataset, _, snapshot in (name.partition("@") for name in names):
            if snapshot != SNAPSHOT and dataset.rpartition("/")[2] in layers:
                self._change("destroy", "-d", f"{dataset}@{snapshot}")

    def _destroyed(self, id: str) -> bool:
        try:
            self._destroy(id)
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                raise
            return False
        return True

    def _promote(self, id: str) -> bool:
        """Have the clones of a live layer take over its snapshots; say whether there were any."""
        text = self._run("list", "-H", "-r", "-d", "1", "-t", "snapshot", "-o", "name,clones", self._dataset(id))
        found = False
        for name, clones in (line.split("\t") for line in text.splitlines()):
            if not name.endswith(f"@{SNAPSHOT}") and clones not in {"", "-"}:
                self._change("promote", clones.split(",")[0])
                found = True
        return found

    def _value(self, name: str, dataset: str) -> str:
        return self._run("get", "-H", "-p", "-o", "value", name, dataset).strip()

    def _run(self, *arguments: str, program: str = "zfs") -> str:
        from transom_storage_zfs.command import zfs

        return zfs(*arguments, program=program)

    def _change(self, *arguments: str) -> None:
        """Run what changes something, so that `recover` can wait for it should we be killed meanwhile."""
        from transom_storage_zfs.command import zfs

        os.makedirs(self.root, mode=0o711, exist_ok=True)
        with Lock(self._lock, shared=True) as lock:
            zfs(*arguments, keep=(lock.fd,))

    @contextmanager
    def _telling(self, operation: str, id: str) -> Iterator[None]:
        """Put what zfs and the kernel refuse into words."""
        try:
            yield
        except OSError as error:
            hint = ""
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                hint = "free space in the pool (zpool list), or raise the dataset's quota"
            elif error.errno == errno.EPERM:
                hint = "run as root"
            raise DriverError(operation, driver="storage zfs", subject=id, cause=error, hint=hint) from error
