"""A storage driver whose layers are copies that share their blocks with the parent.

Core's `copy_tree` copies by copy_file_range(2), which shares blocks where the file system can. Another program, such as
cp(1), would go on copying after a SIGKILL of ours, into what is being cleared away: no part of a driver may.
"""

import fcntl
import os
import tempfile

from transom.contract import Probe
from transom.contract.storage import IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import DriverError
from transom.services.trees import copy_tree, measure_tree, remove_tree

FICLONE = 0x40049409
_OF_AN_ID = set("abcdefghijklmnopqrstuvwxyz0123456789-")


class Reflink(Storage):
    """A layer is a directory; a copy of one costs its names and attributes, not its data."""

    name = "reflink"
    api = 1
    capabilities = frozenset(
        {StorageCapability.RENAME_DIRECTORY, StorageCapability.STABLE_INODES, StorageCapability.CLONE}
    )

    def probe(self) -> Probe:
        """Clone a file where the layers will be."""
        place = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        try:
            with tempfile.TemporaryFile(dir=place) as source, tempfile.TemporaryFile(dir=place) as target:
                source.write(b"x" * 4096)
                source.flush()
                fcntl.ioctl(target, FICLONE, source.fileno())
        except OSError as error:
            reason = f"files at {place} cannot share blocks ({error.strerror}): put the root on btrfs, or on xfs"
            return Probe(usable=False, reason=f"{reason} made with reflink=1")
        return Probe(usable=True)

    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Copy the nearest parent, which holds everything of the others."""
        try:
            os.makedirs(self.root, mode=0o711, exist_ok=True)
            if parents:
                copy_tree(self.root / parents[0], self.root / id)
            else:
                os.mkdir(self.root / id)
                os.chmod(self.root / id, 0o755)  # mkdir(2) heeds the umask
        except OSError as error:
            raise DriverError("prepare", driver="storage reflink", subject=id, cause=error) from error

    def clone(self, id: str, source: str, parents: tuple[str, ...]) -> None:
        """Copy a layer that is being written as it is now."""
        try:
            copy_tree(self.root / source, self.root / id)
        except OSError as error:
            raise DriverError("clone", driver="storage reflink", subject=id, cause=error) from error

    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """Bind the directory; a view has none of its own and shows its parent's."""
        shown = parents[0] if state is State.VIEW else id
        return (Mount(type="bind", source=str(self.root / shown), readonly=state is not State.ACTIVE),)

    def remove(self, id: str) -> None:
        """Remove the directory, its top last, so that `owned` reports it until then."""
        try:
            remove_tree(self.root / id)
        except OSError as error:
            raise DriverError("remove", driver="storage reflink", subject=id, cause=error) from error

    def owned(self) -> frozenset[str]:
        """Every directory whose name can be an id."""
        try:
            return frozenset(name for name in os.listdir(self.root) if set(name) <= _OF_AN_ID)
        except FileNotFoundError:
            return frozenset()

    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Measure the whole copy: which of its blocks are shared is not asked."""
        return measure_tree(self.root / id)
