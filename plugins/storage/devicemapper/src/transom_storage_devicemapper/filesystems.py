"""The file systems in the volumes: made once, snapshots after that; ext4 and xfs by their own tools."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from transom.contract.storage import Mount
from transom.services.files import closing

T = TypeVar("T")

NAMES = ("ext4", "xfs")
TOOLS = {"ext4": ("mkfs.ext4", "resize2fs", "e2fsck"), "xfs": ("mkfs.xfs", "xfs_growfs")}
PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs"}
_FITRIM = 0xC0185879
_MAKE = {
    # Not initialized later in the background: each snapshot would then store zeros of its own. A new volume reads
    # as zeros, so that nothing needs to be written (from e2fsprogs 1.47 on).
    "ext4": ("mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"),
    "xfs": ("mkfs.xfs", "-q", "-f", "-K"),
}
_ZEROED = "assume_storage_prezeroed=1"


class ToolError(Exception):
    """A tool failed; the text is what it said."""


def run(*command: str, good: Sequence[int] = (0,)) -> None:
    """Run a tool of a file system."""
    import subprocess

    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError:
        raise ToolError(f"{command[0]} is not installed") from None
    if done.returncode not in good:
        said = " ".join((done.stderr or done.stdout).split())
        raise ToolError(f"{command[0]}: {said or f'exit code {done.returncode}'}")


def make(filesystem: str, node: str, arguments: Sequence[str]) -> None:
    """Make an empty file system on a volume that reads as zeros."""
    command = [*_MAKE[filesystem], *arguments]
    if filesystem == "ext4":
        zeroed = [word + f",{_ZEROED}" if word.startswith("nodiscard") else word for word in command]
        try:
            run(*zeroed, node)
            return
        except ToolError as error:
            if "extended option" not in str(error):
                raise
    run(*command, node)


def options(filesystem: str, mine: Sequence[str]) -> tuple[str, ...]:
    """Say how a volume is mounted: snapshots of one xfs have the same UUID, which is only taken with nouuid."""
    return (*(("nouuid",) if filesystem == "xfs" else ()), *mine)


def shrink(node: str, size: int, mount: Mount, place: str) -> None:
    """Make the ext4 on a device smaller; what is in it stays.

    Raises:
        ToolError: more than that is in it.
    """
    lost = f"{place}/lost+found"
    had = inside(mount, place, lambda: os.path.isdir(lost))
    run("e2fsck", "-f", "-y", node, good=(0, 1))
    run("resize2fs", node, f"{size // 1024}K")
    if not had:  # e2fsck makes it, and it is no part of the layer
        inside(mount, place, lambda: os.rmdir(lost) if os.path.isdir(lost) else None)


def grow(filesystem: str, node: str, mount: Mount, place: str) -> None:
    """Make the file system as large as its device; mounted, so that no check need come before it."""
    command = ("resize2fs", node) if filesystem == "ext4" else ("xfs_growfs", place)
    inside(mount, place, lambda: run(*command))


def inside(mount: Mount, place: str, function: Callable[[], T]) -> T:
    """Call `function` with the file system mounted at `place` where nobody else sees it."""
    from transom.services.mounts import mount_all, privately, unmount

    def within() -> T:
        mount_all([mount], place)
        try:
            return function()
        finally:
            unmount(place)

    os.makedirs(place, mode=0o700, exist_ok=True)
    return privately(within)


def trim(place: str) -> None:
    """Tell the pool which blocks the mounted file system does not use (fstrim(8)); without discard there is none."""
    with closing(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        try:
            fcntl.ioctl(fd, _FITRIM, struct.pack("=QQQ", 0, 2**64 - 1, 0))
        except OSError:
            return


def discard(node: str, size: int) -> None:
    """Give all blocks of a device back (blkdiscard(8), BLKDISCARD); where it cannot, they wait to be used again."""
    with closing(os.open(node, os.O_RDWR | os.O_CLOEXEC)) as fd:
        try:
            fcntl.ioctl(fd, 0x1277, struct.pack("=QQ", 0, size))
        except OSError:
            return
