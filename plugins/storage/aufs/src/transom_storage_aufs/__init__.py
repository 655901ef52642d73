"""The storage driver on aufs (aufs(5); what that leaves open is as fs/aufs of the aufs kernel trees has it)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import cached_property
from typing import IO, ClassVar

import msgspec

from transom.contract import Probe
from transom.contract.storage import Change, IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import DriverError

SHM = "/dev/shm"  # every process's own random names in it
ROOT = "transom-aufs-"
"""How a link there to a root begins whose path aufs cannot read."""
BASE, PLINKS, ORPHANS = ".wh..wh.aufs", ".wh..wh.plnk", ".wh..wh.orph"
"""What aufs keeps at the top of a writable branch: the file that whiteouts are links to, pseudo-links, and directories
that were removed while in use (whout.c, `au_wh_init`)."""
MOST = 64
"""As many branches and options are given in one call. aufs has room for 84: 48 bytes each, in one page (opts.h,
`struct au_opt`), and refuses more with E2BIG."""
OPTIONAL = ("dirperm1", "acl")
"""Mount options that not every kernel takes. ``dirperm1``: a directory's mode in a lower branch does not count.
``acl``: POSIX ACLs can be set, which aufs refuses by default even where the branches keep them."""
_SEPARATORS = frozenset(":,=")
"""aufs splits its options at these and knows no way to escape them."""


class AufsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user can set; see `Aufs.option_docs`."""

    mountopt: tuple[str, ...] = msgspec.field(default=(), name="aufs.mountopt")


class _Capabilities(frozenset[StorageCapability]):
    """What the class declares, and for an instance what the kernel lets it do of that."""

    def __get__(self, driver: Aufs | None, _owner: type | None = None) -> frozenset[StorageCapability]:
        # Attributes that aufs does not show must not be unpacked behind its back.
        return self if driver is None or driver.keeps_attributes else self - {StorageCapability.APPLY}


class Aufs(Storage):
    """A layer is ``root/ID``, a branch of aufs; a mount unites it with those of its parents."""

    name: ClassVar[str] = "aufs"
    api: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = AufsOptions
    option_docs: ClassVar[dict[str, str]] = {"aufs.mountopt": "More mount options for aufs, aufs(5)."}
    capabilities = _Capabilities({StorageCapability.SHARED_PARENT, StorageCapability.DIFF, StorageCapability.APPLY})
    max_depth = 126
    """aufs takes 127 branches as it is usually configured (AUFS_BRANCH_MAX_127), one being the layer's own."""
    name_max = 242
    """Beside its whiteout, aufs makes room for a temporary name with thirteen bytes more (AUFS_MAX_NAMELEN)."""
    reserved_prefix = ".wh."

    def probe(self) -> Probe:
        """Mount a real aufs on the file system that will hold `root`, in a namespace of its own, and use it."""
        from transom_storage_aufs.probe import probe

        return probe(os.fspath(self.root))

    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Make the branch; the root of the layer looks like its parent's."""
        from transom.services.trees import copy_attributes

        layer = self._branch(id)
        try:
            os.makedirs(self.root, mode=0o711, exist_ok=True)
            os.mkdir(layer, 0o755)
            furnish(layer)
            if parents:
                copy_attributes(self._branch(parents[0]), layer)
            else:
                os.chmod(layer, 0o755)  # mkdir(2) heeds the umask
        except OSError as error:
            raise self._failed("prepare", id, error) from error

    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """An aufs of as many branches as fit into a page, and remounts that append the others."""
        shown = parents if state is State.VIEW else (id, *parents)
        try:
            base, options = self._base(), self._mount_options()
        except OSError as error:
            raise self._failed("mounts", id, error) from error
        return plan([f"{base}/{branch}" for branch in shown], writable=state is State.ACTIVE, options=options)

    def unmounting(self, id: str, place: str) -> None:
        """Make the names of one file that aufs holds together only while mounted one file in the branch."""
        from transom_storage_aufs.plinks import flush

        try:
            flush(self._branch(id), place)
        except OSError as error:
            raise self._failed("unmounting", id, error) from error

    def commit(self, id: str, parents: tuple[str, ...]) -> None:
        """Remove the pseudo-links that a kill left, and sync."""
        from transom_storage_aufs.plinks import clear

        try:
            clear(self._branch(id))
        except OSError as error:
            raise self._failed("commit", id, error) from error
        super().commit(id=id, parents=parents)

    def remove(self, id: str) -> None:
        """Remove the branch, whose own directory goes last: until then `owned` reports it."""
        from transom.services.trees import remove_tree

        try:
            remove_tree(self._branch(id))
        except OSError as error:
            raise self._failed("remove", id, error) from error

    def owned(self) -> frozenset[str]:
        """Every directory of `root` whose name can be an id."""
        from transom.services.trees import layer_directories

        return layer_directories(self.root)

    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Measure the branch, without what aufs keeps at its top for itself; whiteouts count with what they link to."""
        from transom.services.trees import measure_tree

        layer = self._branch(id)
        whole = measure_tree(layer)
        own = [os.lstat(path) for name in (BASE, PLINKS, ORPHANS) if os.path.lexists(path := f"{layer}/{name}")]
        return Usage(size=whole.size - 512 * sum(found.st_blocks for found in own), inodes=whole.inodes - len(own))

    def changes(self, id: str, parents: tuple[str, ...]) -> Iterator[Change]:
        """Read the changes off the branch."""
        from transom.services.stacks import Stack
        from transom_storage_aufs.marks import AufsMarks

        with Stack(self._branch(id), [self._branch(parent) for parent in parents], AufsMarks()) as stack:
            return iter(stack.changes())

    def content(self, id: str) -> str:
        """The branch, also because aufs does not tell where files have holes."""
        return self._branch(id)

    def apply(self, id: str, parents: tuple[str, ...], stream: IO[bytes]) -> int:
        """Unpack into the branch, with aufs's marks for what is deleted."""
        if StorageCapability.APPLY not in self.capabilities:
            raise self.unsupported(StorageCapability.APPLY)
        from transom.services.archive import extract
        from transom_storage_aufs.marks import AufsMarks

        below = [self._branch(parent) for parent in parents]
        try:
            return extract(stream=stream, root=self._branch(id), below=below, marks=AufsMarks())
        except OSError as error:
            raise self._failed("apply", id, error) from error

    def recover(self) -> list[str]:
        """Remove what killed probes left; layers are core's to judge."""
        from transom_storage_aufs.probe import sweep

        return [f"storage aufs: removed {name}, left by a killed probe" for name in sweep(os.fspath(self.root))]

    def status(self) -> dict[str, str]:
        """What ``docker info`` shows for this driver."""
        return {
            "Root Dir": os.fspath(self.root),
            "Dirs": str(len(self.owned())),
            "Dirperm1 Supported": str(self._can("dirperm1")).lower(),
            "Extended Attributes": str(self.keeps_attributes).lower(),
            "Maximum Depth": str(self.max_depth),
        }

    def _branch(self, id: str) -> str:
        return f"{self.root}/{id}"

    def _base(self) -> str:
        """Name the root in a way that aufs can read, by a symbolic link if its path has separators in it."""
        root = os.path.abspath(self.root)
        if _SEPARATORS.isdisjoint(root):
            return root
        from hashlib import sha256

        link = f"{SHM}/{ROOT}{sha256(os.fsencode(root)).hexdigest()[:16]}"
        try:
            os.symlink(root, link)
        except FileExistsError:
            if os.readlink(link) != root:
                raise
        return link

    def _mount_options(self) -> tuple[str, ...]:
        """Say what each mount has besides branches.

        ``xino``: the table of inode numbers, unlinked as soon as it is made; two mounts must not make the same.
        ``dio``: O_DIRECT works as on the branch.
        """
        place = SHM if os.path.isdir(SHM) else self._base()
        fixed = ("dio", f"xino={place}/.transom-{os.urandom(8).hex()}.xino")
        return (*fixed, *(word for word in OPTIONAL if word in self._found), *self.options.mountopt)

    @property
    def keeps_attributes(self) -> bool:  # type: ignore[override]  # asks the kernel when first needed
        """Whether the kernel's aufs has extended attributes (CONFIG_AUFS_XATTR); else it shows and takes none."""
        return self._can("attributes")

    def _can(self, ability: str) -> bool:
        try:
            return ability in self._found
        except OSError:
            return False

    @cached_property
    def _found(self) -> frozenset[str]:
        """What this kernel and file system can, of what not all can. Asked once after each boot: it takes mounts."""
        answer = f"{self.run}/found"
        try:
            with open(answer, encoding="ascii") as file:
                return frozenset(file.read().split())
        except FileNotFoundError:
            pass
        from transom.services.files import write_atomic
        from transom_storage_aufs.probe import abilities

        found = abilities(os.fspath(self.root))
        os.makedirs(self.run, mode=0o711, exist_ok=True)
        write_atomic(answer, " ".join(sorted(found)).encode(), durable=False)
        return found

    def _failed(self, operation: str, id: str, error: OSError) -> DriverError:
        import errno

        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = f"free space on the file system of {self.root}" if full else ""
        return DriverError(operation, driver="storage aufs", subject=id, cause=error, hint=hint)


def furnish(branch: str) -> None:
    """Make what aufs would make in a new branch: its own doing so changes the time of the layer's root directory."""
    os.mknod(f"{branch}/{BASE}", stat.S_IFREG | 0o444)
    for name in (PLINKS, ORPHANS):
        os.mkdir(f"{branch}/{name}", 0o700)


def plan(branches: list[str], *, writable: bool, options: tuple[str, ...], page: int = 0) -> tuple[Mount, ...]:
    """Divide a mount over many branches: the data of mount(2) is one page, and is cut off there without a word.

    Args:
        branches: paths, uppermost first.
        page: how many bytes the data may take, its final NUL included; by default what a page of this host takes.
    """
    page = page or os.sysconf("SC_PAGE_SIZE")
    # A lower branch's whiteouts count only with +wh.
    words = [f"{branch}={'rw' if writable and not n else 'ro+wh'}" for n, branch in enumerate(branches)]
    room = page - 1 - len(os.fsencode(",".join(("", *options))))
    first = _fitting(words, "br:", ":", room, MOST - len(options))
    mounts = [Mount(type="aufs", source="none", options=("br:" + ":".join(first), *options), readonly=not writable)]
    rest = [f"append:{word}" for word in words[len(first) :]]
    while rest:
        some = _fitting(rest, "", ",", page - 1, MOST)
        mounts.append(Mount(type="aufs", source="none", options=tuple(some), readonly=not writable, remount=True))
        rest = rest[len(some) :]
    return tuple(mounts)


def _fitting(words: list[str], before: str, between: str, room: int, most: int) -> list[str]:
    """Return as many of the first words as fit into `room` bytes, at least one."""
    taken, size = 1, len(os.fsencode(before + words[0]))
    while taken < min(len(words), most):
        size += len(os.fsencode(between + words[taken]))
        if size > room:
            break
        taken += 1
    return words[:taken]
