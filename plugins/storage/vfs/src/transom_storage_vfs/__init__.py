"""The storage driver that copies: every layer is a whole directory tree, on any file system."""

from __future__ import annotations

import os
from typing import ClassVar

from transom.contract import Probe
from transom.contract.storage import IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import DriverError


class Vfs(Storage):
    """A layer is ``root/ID``: a copy of its parent, shared by reflink where the file system can."""

    name: ClassVar[str] = "vfs"
    api: ClassVar[int] = 1
    capabilities = frozenset(
        {StorageCapability.RENAME_DIRECTORY, StorageCapability.STABLE_INODES, StorageCapability.IDMAP}
    )
    max_depth = 1_000_000
    """Only the nearest parent is ever looked at."""

    def probe(self) -> Probe:
        """Usable everywhere; says what a copy costs here."""
        place = os.fspath(self.root)
        while not os.path.isdir(place):
            place = os.path.dirname(place)
        if can_reflink(place):
            return Probe(usable=True, reason=f"copies every layer; {place} shares the blocks of copies (reflink)")
        return Probe(
            usable=True,
            reason=f"copies every layer whole, and {place} cannot share blocks (no reflink):"
            " prefer overlay2 where the host has it",
        )

    def prepare(self, id: str, parents: tuple[str, ...], size: int | None, idmap: IdMap | None) -> None:
        """Copy the parent."""
        layer = f"{self.root}/{id}"
        try:
            os.makedirs(self.root, mode=0o711, exist_ok=True)
            os.mkdir(layer, 0o700)
            if parents:
                from transom.services.trees import copy_tree

                copy_tree(f"{self.root}/{parents[0]}", layer)
            else:
                os.chmod(layer, 0o755)  # mkdir(2) heeds the umask
        except OSError as error:
            raise self._failed("prepare", id, error) from error

    def mounts(self, id: str, parents: tuple[str, ...], state: State) -> tuple[Mount, ...]:
        """A bind mount: of the layer, or of the parent that a view shows."""
        shown = parents[0] if state is State.VIEW else id
        return (Mount(type="bind", source=f"{self.root}/{shown}", readonly=state is not State.ACTIVE),)

    def remove(self, id: str) -> None:
        """Remove the copy; its top directory goes last: until then `owned` reports it."""
        from transom.services.trees import remove_tree

        try:
            remove_tree(f"{self.root}/{id}")
        except OSError as error:
            raise self._failed("remove", id, error) from error

    def owned(self) -> frozenset[str]:
        """Every directory of `root` whose name can be an id."""
        from transom.services.trees import layer_directories

        return layer_directories(self.root)

    def usage(self, id: str, parents: tuple[str, ...]) -> Usage:
        """Measure the whole copy; blocks shared by reflink count in full."""
        from transom.services.trees import measure_tree

        return measure_tree(f"{self.root}/{id}")

    def _failed(self, operation: str, id: str, error: OSError) -> DriverError:
        import errno

        hint = ""
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            hint = f"free space on the file system of {self.root}; vfs copies every layer whole"
        elif error.errno == errno.EOPNOTSUPP:
            hint = f"the file system of {self.root} does not keep what the layer holds (extended attributes, devices)"
        return DriverError(operation, driver="storage vfs", subject=id, cause=error, hint=hint)


def can_reflink(place: str) -> bool:
    """Try FICLONE (ioctl_ficlone(2)) between two nameless files; without O_TMPFILE the answer is no."""
    import fcntl

    fds: list[int] = []
    try:
        for _ in range(2):
            fds.append(os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))
        os.write(fds[0], b"x" * 4096)
        fcntl.ioctl(fds[1], 0x40049409, fds[0])
    except OSError:
        return False
    finally:
        for fd in fds:
            os.close(fd)
    return True
