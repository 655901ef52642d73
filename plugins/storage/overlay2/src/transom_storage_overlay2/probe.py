"""Can this host run overlay2? A real overlay is mounted and used; nothing of it stays."""

from __future__ import annotations

import errno
import os
from threading import get_native_id

from transom.contract import Probe
from transom.contract.storage import Mount
from transom.services.mounts import mount_all, privately
from transom.services.trees import remove_tree

PREFIX = ".overlay2-probe-"
_NO_ATTRIBUTES = "does not keep extended attributes (trusted.*), which overlay needs: use ext4, xfs or btrfs"


def probe(root: str) -> Probe:
    """Try on the file system that holds, or will hold, `root`."""
    place = existing(root)
    scratch = os.path.join(place, f"{PREFIX}{get_native_id()}")
    try:
        sweep(place)
        try:
            fault = privately(lambda: _try(scratch))
        finally:
            remove_tree(scratch)
    except OSError as error:
        return Probe(usable=False, reason=_explain(error, place))
    return Probe(usable=not fault, reason=fault and f"{filesystem_of(place)} at {place} {fault}")


def sweep(place: str) -> list[str]:
    """Remove what killed probes left; say which."""
    left: list[str] = []
    if not os.path.isdir(place):
        return left
    for name in os.listdir(place):
        if name.startswith(PREFIX) and not os.path.exists(f"/proc/{name.removeprefix(PREFIX)}"):
            remove_tree(os.path.join(place, name))
            left.append(name)
    return left


def _try(scratch: str) -> str:
    """Delete through an overlay of two layers; return what came out wrong, in words."""
    for path in ("", "upper", "work", "merged", "one", "one/kept", "two", "two/emptied", "two/emptied/old"):
        os.mkdir(os.path.join(scratch, path), 0o700)
    os.mknod(f"{scratch}/two/deleted")
    options = ("lowerdir+={0}/one", "lowerdir+={0}/two", "upperdir={0}/upper", "workdir={0}/work")
    merged = f"{scratch}/merged"
    mount_all([Mount(type="overlay", source="overlay", options=tuple(o.format(scratch) for o in options))], merged)
    os.unlink(f"{merged}/deleted")
    os.rmdir(f"{merged}/emptied/old")
    os.rmdir(f"{merged}/emptied")
    os.mkdir(f"{merged}/emptied")
    if sorted(os.listdir(merged)) != ["emptied", "kept"]:
        return "does not tell file types in directories (d_type); XFS does when made with: mkfs.xfs -n ftype=1"
    if os.listdir(f"{merged}/emptied"):
        return _NO_ATTRIBUTES
    return ""


def _explain(error: OSError, place: str) -> str:
    if error.errno == errno.ENODEV:
        return "the kernel has no overlay file system: load the module (modprobe overlay), or use the driver vfs"
    if error.errno in {errno.EPERM, errno.EACCES}:
        return "overlay mounts need CAP_SYS_ADMIN: run as root"
    if error.errno == errno.EINVAL:
        return (
            f"{filesystem_of(place)} at {place} cannot hold an overlay's upper directory ({error.strerror}):"
            " put the root on ext4, xfs or btrfs, or use the driver vfs"
        )
    if error.errno in {errno.EIO, errno.EOPNOTSUPP}:
        return f"{filesystem_of(place)} at {place} {_NO_ATTRIBUTES}"
    return f"a trial mount at {place} failed: {error.strerror}"


def existing(path: str) -> str:
    """Return the nearest directory above `path`, or itself, that exists."""
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def filesystem_of(path: str) -> str:
    """Name the type of the file system that holds `path` (proc_pid_mountinfo(5))."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with open("/proc/thread-self/mountinfo") as lines:
        for line in lines:
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return "the file system"
