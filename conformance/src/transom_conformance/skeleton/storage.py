"""A storage driver that copies: a layer is a directory."""

import os

from transom.contract.storage import IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import DriverError
from transom.services.trees import copy_tree, measure_tree, remove_tree


class Sample(Storage):
    """Core keeps names, states and parents; what is left is to copy, to remove, and to say what to mount."""

    name = "sample"
    api = 1
    capabilities = frozenset({StorageCapability.RENAME_DIRECTORY, StorageCapability.STABLE_INODES})

    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Copy the nearest parent, which holds everything of the others."""
        try:
            os.makedirs(self.root, mode=0o711, exist_ok=True)
            os.mkdir(self.root / id)
            os.chmod(self.root / id, 0o755)  # mkdir(2) heeds the umask
            if parents:
                copy_tree(self.root / parents[0], self.root / id)
        except OSError as error:
            raise DriverError("prepare", driver="storage sample", subject=id, cause=error) from error

    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """Bind the directory; a view has none of its own and shows its parent's."""
        shown = parents[0] if state is State.VIEW else id
        return (Mount(type="bind", source=str(self.root / shown), readonly=state is not State.ACTIVE),)

    def remove(self, id: str) -> None:
        """Remove the directory, its top last, so that `owned` reports it until then."""
        try:
            remove_tree(self.root / id)
        except OSError as error:
            raise DriverError("remove", driver="storage sample", subject=id, cause=error) from error

    def owned(self) -> frozenset[str]:
        """Every directory whose name can be an id."""
        try:
            return frozenset(name for name in os.listdir(self.root) if set(name) <= _OF_AN_ID)
        except FileNotFoundError:
            return frozenset()

    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Measure the whole copy."""
        return measure_tree(self.root / id)


_OF_AN_ID = set("abcdefghijklmnopqrstuvwxyz0123456789-")
