"""The storage contract: layers that stack, and what to mount to see them.

Glossary
    layer       a tree of files, stored as its difference from a parent layer or as a whole copy of it:
                the driver's choice.
    id          the layer's name on disk, given by core: 1 to 64 characters of ``[a-z0-9-]``, never reused.
                Names that mean something (a container's id, a chain of digests) are core's: it keeps them,
                the layers' parents and their states in one durable record beside the driver's data, so a
                driver needs no records of its own.
    parents     the ids of all ancestors, nearest first. A driver that clones (btrfs, zfs, devicemapper,
                vfs) looks at ``parents[0]`` only; one that stacks (overlay2, aufs) uses them all.
    active      a layer that can be written.
    view        a layer that can only be read, made over a committed parent.
    committed   a layer that never changes again; only committed layers are parents.

Life cycle of a layer (the model is containerd's, snapshots/snapshotter.go)::

    prepare(id, parents) -> active ---- commit(id) ----> committed ---- remove(id) ----> gone
    view(id, parents) ----> view                             (only when no layer has it as a parent)
         both: mounts(id, parents, state) -> what to mount; remove(id) -> gone

The driver never mounts a layer for its caller: `Storage.mounts` returns data, and the engine mounts it in
the mount namespace of the container's supervisor, so that a crash leaves no mount on the host. A driver may
mount for its own purposes (an aufs branch, a btrfs loop file); those are its to recover.

What core does around every driver (`transom.services.snapshots.Snapshots`): checks names, states and
parents, keeps the journal, locks between processes, compares `Storage.owned` with its records and removes
orphans, makes and applies tar diffs through the mounts, refuses tars that escape. A minimal driver is
`prepare`, `mounts`, `remove`, `owned` and `usage`. One that stacks can have `transom.services.archive.extract` unpack
in the layer's own directory, with the whiteouts of its own form (`transom.services.stacks.Marks`).

A worked example, a driver that copies::

    class Plain(Storage):
        name = "plain"
        api = 1

        def prepare(self, id, parents, size, idmap):
            source = self.root / parents[0] if parents else None
            copy_tree(source, self.root / id)

        def mounts(self, id, parents, state):
            return (Mount(type="bind", source=str(self.root / id), readonly=state is not State.ACTIVE),)

        def remove(self, id):
            remove_tree(self.root / id)

        def owned(self):
            return frozenset(os.listdir(self.root))

        def usage(self, id, parents):
            return measure_tree(self.root / id)
"""

from __future__ import annotations

import enum
from abc import abstractmethod
from collections.abc import Iterator
from typing import IO, ClassVar

import msgspec

from transom.contract import Capability, Driver, operation
from transom.errors import ConfigError, DriverError

ID_MAX = 2**32 - 2
"""The largest id that a file can have: 2**32 - 1 means none (user_namespaces(7))."""
ID_RANGES = 120
"""As many runs as surely fit into the page that the kernel reads a map from."""


class StorageCapability(Capability):
    """What a storage driver can do beyond the minimum."""

    DIFF = "diff"
    """`Storage.changes`: lists what a layer changed without reading both trees."""
    APPLY = "apply"
    """`Storage.apply`: unpacks a layer's tar into the layer's own store, without a mount."""
    QUOTA = "quota"
    """`Storage.prepare` honours `size`: writes past it fail with EDQUOT or ENOSPC."""
    QUOTA_INODES = "quota-inodes"
    """`Storage.limit_inodes`: making one file too many fails with EDQUOT or ENOSPC."""
    CLONE = "clone"
    """`Storage.clone`: copies an active layer, changes included, without reading it."""
    IDMAP = "idmap"
    """What `Storage.mounts` returns can be mounted with a `Mount.idmap`, if the kernel and the file system can."""
    RENAME_DIRECTORY = "rename-directory"
    """rename(2) of a directory that comes from a parent works; else it fails with EXDEV, half-done never."""
    SHARED_PARENT = "shared-parent"
    """A child takes no space for what its parent holds (not so for a driver that copies)."""
    STABLE_INODES = "stable-inodes"
    """An inode number and an open descriptor stay valid when a parent's file is first written."""


class State(enum.StrEnum):
    """The state of a layer."""

    ACTIVE = "active"
    VIEW = "view"
    COMMITTED = "committed"


class IdRange(msgspec.Struct, frozen=True):
    """A run of user or group ids: `size` ids from `container` on are `host` and following on the host."""

    container: int
    host: int
    size: int


class IdMap(msgspec.Struct, frozen=True):
    """How ids in the layer's files appear outside (user_namespaces(7)).

    Raises:
        ConfigError: a map is empty, has too many runs or empty ones, ids beyond 2**32 - 2, or the same id twice.
    """

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]

    def __post_init__(self) -> None:
        """Refuse what the kernel would, but in words."""
        for what, ranges in (("uid", self.uids), ("gid", self.gids)):
            if not 0 < len(ranges) <= ID_RANGES:
                raise ConfigError(f"id map: {len(ranges)} runs of {what}s: 1 to {ID_RANGES} are allowed")
            for side in ("container", "host"):
                end = -1
                for first, size in sorted((getattr(r, side), r.size) for r in ranges):
                    if size < 1:
                        raise ConfigError(f"id map: a run of {size} {what}s from {first}: it must have one at least")
                    if first < 0 or first + size > ID_MAX + 1:
                        raise ConfigError(f"id map: the {what}s {first} to {first + size - 1} leave 0 to {ID_MAX}")
                    if first <= end:
                        raise ConfigError(
                            f"id map: the {side} {what} {first} is in two runs: {side} ids are mapped once"
                        )
                    end = first + size - 1


class Mount(msgspec.Struct, frozen=True):
    """One thing to mount, as data; several are mounted in order, later ones inside earlier ones.

    Attributes:
        type: a file-system type of mount(2), or ``bind``.
        source: the device, the directory to bind, or a word such as ``overlay``.
        options: options of the file system, one each. ``lowerdir+=PATH`` adds one overlay layer (fsconfig(2),
            Linux 6.8); the mounter joins them, escaped, where the kernel only has mount(2). In ``upperdir`` and
            ``workdir`` the kernel undoes backslashes, so a driver escapes ``\\`` and ``,`` there itself.
        readonly: mount it read-only.
        target: where, relative to the root of the layer; empty for the root itself.
        remount: give what the previous one mounted at `target` more options (mount(2), MS_REMOUNT), for a file system
            whose options do not fit into one call.
    """

    type: str
    source: str
    options: tuple[str, ...] = ()
    readonly: bool = False
    target: str = ""
    remount: bool = False
    idmap: IdMap | None = None


class Usage(msgspec.Struct, frozen=True):
    """What a layer takes on disk of its own, its parents not counted.

    `size` is in bytes, block rounding included (st_blocks * 512); `inodes` counts files of every type.
    """

    size: int
    inodes: int


class ChangeKind(enum.StrEnum):
    """What happened to a path; the letters are those of ``docker diff``."""

    ADDED = "A"
    MODIFIED = "C"
    DELETED = "D"


class Change(msgspec.Struct, frozen=True, order=True):
    """One changed path, relative to the layer's root, without a leading slash, as raw bytes.

    `opaque` on an ADDED or MODIFIED directory says that nothing of the parents shows through it.
    """

    path: bytes
    kind: ChangeKind
    opaque: bool = False


class Storage(Driver):
    """The contract of a storage driver. Paths of layers lie below `root`; see the module's text."""

    kind: ClassVar[str] = "storage"
    max_depth: int = 128
    """How many ancestors a layer may have. Core refuses the next with `NotSupported` before any side effect."""

    name_max: int = 255
    """The most bytes that the name of a file may have; a longer one is refused with ENAMETOOLONG."""
    reserved_prefix: str = ""
    """Names that begin so are the file system's own, which refuses with EPERM to make them; none in general."""
    keeps_attributes: bool = True
    """Whether files keep extended attributes; where not, setting one is refused with ENOTSUP."""

    container_size: int | None = None
    """The most bytes a container's layer may hold that does not say so itself, by the driver's options; core gives it
    to `prepare` as `size`, for containers and not for layers of images."""

    @operation()
    @abstractmethod
    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Make an active layer over the committed `parents`.

        Core never calls it twice with one id. Interrupted, it leaves at most what `remove` clears and
        `owned` reports. The root directory of a layer without parents is ``root:root 0755``; else it is
        like the parent's.

        Args:
            size: the most bytes the layer may hold, with `StorageCapability.QUOTA`; otherwise always None.
            idmap: None: ids are mapped where a layer is mounted, and what is on disk stays as it is.

        Raises:
            DriverError: out of space, or the kernel refused; nothing is left that `owned` would not report.
        """

    @operation(needs=StorageCapability.QUOTA_INODES)
    def limit_inodes(self, id: str, inodes: int) -> None:
        """Let the active layer, which was just prepared, hold at most so many files of its own, of every type.

        What it does not hold itself does not count: its parents' files, its own root, what the driver makes beside it.
        """
        raise self.unsupported(StorageCapability.QUOTA_INODES)

    @operation()
    def view(self, id: str, parents: tuple[str, ...]) -> None:
        """Make a read-only layer over the committed `parents` (at least one).

        The inherited body does nothing: right for drivers whose `mounts` can show a parent by itself.
        """
        return None

    @operation()
    @abstractmethod
    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """Say what to mount to see the layer: writable when `state` is ACTIVE, read-only otherwise.

        Makes whatever the mount needs and a crash or reboot may have taken away (a device node, a work
        directory), and may be called again at any time. The same active layer is never mounted twice at
        once; core sees to that.
        """

    @operation()
    def unmounting(self, id: str, place: str) -> None:
        """Finish an active layer that is mounted at `place`, in the calling thread's mount namespace, and will not be.

        For what the driver's file system knows only while mounted. A kill may come instead: without it the layer is
        good, if not the best. The inherited body does nothing.

        Raises:
            DriverError: out of space, or the kernel refused; the layer is unmounted all the same.
        """
        return None

    @operation()
    def commit(self, id: str, parents: tuple[str, ...]) -> None:
        """Make the active layer immutable, and durable: on return its data and directories are synced.

        The layer is not mounted. Repeating it is harmless. The inherited body syncs the file system that
        holds `root` (syncfs(2)).
        """
        from transom.services.files import sync_filesystem

        try:
            sync_filesystem(self.root)
        except OSError as error:
            raise DriverError("commit", driver=f"storage {self.name}", subject=id, cause=error) from error

    @operation()
    @abstractmethod
    def remove(self, id: str) -> None:
        """Remove the layer, whatever its state and however little of it is left. Absent is success.

        Interrupted, `owned` still reports the layer until it is wholly gone.
        """

    @operation()
    @abstractmethod
    def owned(self) -> frozenset[str]:
        """Return the ids of all layers of which anything is on disk, half-made and half-removed ones too."""

    @operation()
    @abstractmethod
    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Measure what the layer itself takes on disk.

        A driver that copies its parent whole reports the whole copy. Safe while the layer is in use.
        """

    @operation(needs=StorageCapability.DIFF)
    def changes(self, id: str, parents: tuple[str, ...]) -> Iterator[Change]:
        """List what the layer changed against its nearest parent, sorted by the bytes of the path.

        A directory is MODIFIED when its own metadata changed; one that merely holds changes, and whose
        modification time says no more than that, is not listed. The root itself has the empty path. A path that
        was removed and made again is MODIFIED, `opaque` if it is a directory. What lies below a DELETED path is
        not listed.
        """
        raise self.unsupported(StorageCapability.DIFF)

    @operation()
    def content(self, id: str) -> str | None:
        """Return a directory that has every path that the layer changed, as it is now, to be read without a mount.

        Others may be missing from it; deletions may be marked in it as the driver likes. None, as the inherited body
        says: there is none, the layer is mounted.
        """
        return None

    @operation(needs=StorageCapability.APPLY)
    def apply(self, id: str, parents: tuple[str, ...], stream: IO[bytes]) -> int:
        """Unpack an uncompressed layer tar (OCI image-spec, layer.md) into the active, unmounted layer.

        Args:
            stream: read to its end.

        Returns:
            the sum of the sizes of the regular files, in bytes.

        Raises:
            ConfigError: the tar is damaged or would escape the layer; the layer is then removed by core.
            NotSupported: the file system cannot keep an extended attribute of it.
            DriverError: out of space, or the kernel refused.
        """
        raise self.unsupported(StorageCapability.APPLY)

    @operation(needs=StorageCapability.CLONE)
    def clone(self, id: str, source: str, parents: tuple[str, ...]) -> None:
        """Make the active layer `id` equal to the active layer `source`; both have the same `parents`."""
        raise self.unsupported(StorageCapability.CLONE)
