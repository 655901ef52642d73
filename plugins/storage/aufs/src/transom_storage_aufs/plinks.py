"""Pseudo-links: several names of one file, of which some are in the branch and some still in a parent's.

A file of a parent that has several names is copied up under the one through which it is written. The others aufs finds
by its table of inode numbers, which is gone with the mount, and it keeps a link to the copy in ``.wh..wh.plnk``, named
``INODE.INODE-IN-THE-BRANCH`` (plink.c). So before each unmount the other names have to be made in the branch, as
``auplink MOUNT flush`` of the aufs utilities does. After a kill they are what they are in the parent.
"""

from __future__ import annotations

import os
import stat

from transom.services.files import closing
from transom.services.trees import Tree, join
from transom_storage_aufs import PLINKS

_MAINTENANCE = "/proc/fs/aufs/plink_maint"


def flush(branch: str, place: str) -> None:
    """Make every name of a pseudo-linked file in the branch `branch`, uppermost of the aufs mounted at `place`."""
    linked = {int(name.partition(".")[0]) for name in _entries(branch)}
    if linked:
        _touch(place, linked)
        _forget(branch, place)


def clear(branch: str) -> None:
    """Remove what an unmounted branch has of pseudo-links."""
    for name in _entries(branch):
        os.unlink(f"{branch}/{PLINKS}/{name}")


def _entries(branch: str) -> list[str]:
    try:
        return os.listdir(f"{branch}/{PLINKS}")
    except FileNotFoundError:
        return []


def _touch(place: str, inodes: set[int]) -> None:
    """Change the files of these inode numbers under each of their names: to do it, aufs links the copy there.

    Their times are set to what they are. chown(2), as auplink has it, takes set-id bits and capabilities away.
    """
    with Tree(place) as tree:
        device = os.fstat(tree.directory(b"")).st_dev
        todo = [b""]
        while todo:
            path = todo.pop()
            at = tree.directory(path)
            for name in map(os.fsencode, os.listdir(at)):
                found = os.stat(name, dir_fd=at, follow_symlinks=False)
                if found.st_dev != device:
                    continue
                if stat.S_ISDIR(found.st_mode):
                    todo.append(join(path, name))
                elif found.st_ino in inodes:
                    times = (found.st_atime_ns, found.st_mtime_ns)
                    os.utime(name, ns=times, dir_fd=at, follow_symlinks=False)


def _forget(branch: str, place: str) -> None:
    """Let aufs forget its pseudo-links, and remove them from the branch while it makes no new ones (procfs.c)."""
    try:
        fd = os.open(_MAINTENANCE, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    with closing(fd):
        os.write(fd, f"si={_instance(place)}".encode())
        os.write(fd, b"clean")
        clear(branch)


def _instance(place: str) -> str:
    """Return how the kernel numbers the aufs mounted there: ``si=`` of its options."""
    device = os.stat(place).st_dev
    with open("/proc/thread-self/mountinfo") as file:
        for line in file:
            words = line.split()
            if words[2] == f"{os.major(device)}:{os.minor(device)}":
                return next(word[3:] for word in words[-1].split(",") if word.startswith("si="))
    raise FileNotFoundError(f"{place} is no mount")
