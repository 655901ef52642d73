"""The storage driver on aufs (aufs(5), Documentation/filesystems/aufs of the aufs kernel trees)."""

from __future__ import annotations

import os
from functools import cached_property
from typing import ClassVar

import msgspec

from transom.contract import Probe
from transom.contract.storage import IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import DriverError

INTERNAL = ".wh..wh."
"""What aufs keeps in a branch for itself begins so: .wh..wh.aufs, .wh..wh.plnk, .wh..wh.orph."""
SHM = "/dev/shm"  # every process's own random names in it
_SEPARATORS = frozenset(":,=")
"""aufs splits its options at these and knows no way to escape them."""


class AufsOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user can set; see `Aufs.option_docs`."""

    mountopt: tuple[str, ...] = msgspec.field(default=(), name="aufs.mountopt")


class Aufs(Storage):
    """A layer is ``root/ID``, a branch of aufs; a mount unites it with those of its parents."""

    name: ClassVar[str] = "aufs"
    api: ClassVar[int] = 1
    Options: ClassVar[type[msgspec.Struct]] = AufsOptions
    option_docs: ClassVar[dict[str, str]] = {"aufs.mountopt": "More mount options for aufs, aufs(5)."}
    capabilities = frozenset({StorageCapability.SHARED_PARENT})
    max_depth = 126
    """aufs takes 127 branches as it is usually configured (AUFS_BRANCH_MAX_127), one being the layer's own."""

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
            base = self._base()
        except OSError as error:
            raise self._failed("mounts", id, error) from error
        branches = [f"{base}/{branch}" for branch in shown]
        return plan(branches, writable=state is State.ACTIVE, options=self._mount_options())

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
        """Measure the branch, without what aufs keeps there for itself."""
        from transom.services.trees import measure_tree

        layer = self._branch(id)
        whole = measure_tree(layer)
        try:
            own = [measure_file(f"{layer}/{name}") for name in os.listdir(layer) if name.startswith(INTERNAL)]
        except FileNotFoundError:
            return whole
        size = whole.size - sum(usage.size for usage in own)
        return Usage(size=max(size, 0), inodes=max(whole.inodes - sum(usage.inodes for usage in own), 0))

    def recover(self) -> list[str]:
        """Remove what killed probes left; layers are core's to judge."""
        from transom_storage_aufs.probe import sweep

        return [f"storage aufs: removed {name}, left by a killed probe" for name in sweep(os.fspath(self.root))]

    def status(self) -> dict[str, str]:
        """What ``docker info`` shows for this driver."""
        from transom_storage_aufs.probe import has_dirperm1

        supported = os.path.isdir(self.root) and has_dirperm1(os.fspath(self.root))
        return {
            "Root Dir": os.fspath(self.root),
            "Dirs": str(len(self.owned())),
            "Dirperm1 Supported": str(supported).lower(),
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

        link = f"{SHM}/transom-aufs-{sha256(os.fsencode(root)).hexdigest()[:16]}"
        try:
            os.symlink(root, link)
        except FileExistsError:
            if os.readlink(link) != root:
                raise
        return link

    def _mount_options(self) -> tuple[str, ...]:
        """Say what each mount has besides branches.

        ``noplink``: a file of a parent that gets another name is copied up first, and so is one file with two names
        in the layer's own directory. With pseudo-links it would not be before `auplink flush`, which would have to be
        run each time before aufs is unmounted, also after a crash. ``dio``: O_DIRECT works as on the branch.
        ``xino``: the table of inode numbers, unlinked as soon as it is made; two mounts must not make the same.
        """
        place = SHM if os.path.isdir(SHM) else self._base()
        fixed = ("dio", "noplink", f"xino={place}/.transom-{os.urandom(8).hex()}.xino")
        return (*fixed, *(("dirperm1",) if self._dirperm1 else ()), *self.options.mountopt)

    @cached_property
    def _dirperm1(self) -> bool:
        """Whether the kernel can leave the permissions of a directory in the lower branches out of account.

        Asked once after each boot: it takes a mount.
        """
        answer = f"{self.run}/dirperm1"
        try:
            with open(answer, encoding="ascii") as file:
                return file.read() == "yes"
        except FileNotFoundError:
            pass
        from transom.services.files import write_atomic
        from transom_storage_aufs.probe import has_dirperm1

        found = has_dirperm1(os.fspath(self.root))
        os.makedirs(self.run, mode=0o711, exist_ok=True)
        write_atomic(answer, b"yes" if found else b"no", durable=False)
        return found

    def _failed(self, operation: str, id: str, error: OSError) -> DriverError:
        import errno

        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        hint = f"free space on the file system of {self.root}" if full else ""
        return DriverError(operation, driver="storage aufs", subject=id, cause=error, hint=hint)


def plan(branches: list[str], *, writable: bool, options: tuple[str, ...], page: int = 0) -> tuple[Mount, ...]:
    """Divide a mount over many branches: the data of mount(2) is one page, and is cut off there without a word.

    Args:
        branches: paths, uppermost first.
        page: how many bytes the data may take, its final NUL included; by default what a page of this host takes.
    """
    page = page or os.sysconf("SC_PAGE_SIZE")
    text = f"br:{branches[0]}={'rw' if writable else 'ro+wh'}"
    room = page - 1 - len(os.fsencode(",".join(("", *options))))
    rest = 1
    # A lower branch's whiteouts count only with +wh.
    while rest < len(branches) and len(os.fsencode(more := f"{text}:{branches[rest]}=ro+wh")) <= room:
        text, rest = more, rest + 1
    first = Mount(type="aufs", source="none", options=(text, *options), readonly=not writable)
    return (first, *_appended(branches[rest:], page - 1, writable=writable))


def _appended(branches: list[str], room: int, *, writable: bool) -> list[Mount]:
    remounts: list[Mount] = []
    pending: list[str] = []
    for word in (f"append:{branch}=ro+wh" for branch in branches):
        if pending and len(os.fsencode(",".join((*pending, word)))) > room:
            remounts.append(_remount(pending, writable=writable))
            pending = []
        pending.append(word)
    return [*remounts, _remount(pending, writable=writable)] if pending else remounts


def _remount(words: list[str], *, writable: bool) -> Mount:
    return Mount(type="aufs", source="none", options=tuple(words), readonly=not writable, remount=True)


def measure_file(path: str) -> Usage:
    """Measure what `measure_tree` counted for one of aufs's own names; a base of whiteouts counts with these."""
    from transom.services.trees import measure_tree

    found = os.lstat(path)
    return measure_tree(path) if os.path.isdir(path) else Usage(size=found.st_blocks * 512, inodes=1)
