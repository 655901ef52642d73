"""Can this host run aufs? A real one is mounted and used; nothing of it stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from threading import get_native_id
from typing import TypeVar

from transom.contract import Probe
from transom.services.mounts import mount_all, privately, unmount
from transom.services.trees import remove_tree
from transom_storage_aufs import OPTIONAL, ROOT, SHM, plan

T = TypeVar("T")

PREFIX, LINK = ".aufs-probe-", f"{ROOT}probe-"
_ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000400ffffffff")
"""u::rw,u:1000:r,g::r,m::rw,o::r (linux/posix_acl_xattr.h): more than a mode can say."""


def probe(root: str) -> Probe:
    """Try on the file system that holds, or will hold, `root`."""
    place = _existing(root)
    try:
        sweep(place)
        fault = _in_scratch(place, _try)
    except OSError as error:
        return Probe(usable=False, reason=_explain(error, place))
    return Probe(usable=not fault, reason=fault)


def abilities(root: str) -> frozenset[str]:
    """Say what works of what not every kernel and file system can, or raise OSError: ENODEV where there is no aufs.

    Mount options: those of `OPTIONAL`. ``attributes``: extended attributes can be set through the mount.
    """

    def attempt(scratch: str) -> frozenset[str]:
        found = {option for option in OPTIONAL if _mounts(scratch, option)}
        if not _keeps(f"{scratch}/upper", "system.posix_acl_access", _ACL):
            found.discard("acl")
        _mount(scratch)
        if _keeps(f"{scratch}/merged", "trusted.transom", b"1"):
            found.add("attributes")
        unmount(f"{scratch}/merged")
        return frozenset(found)

    return _in_scratch(_existing(root), attempt)


def _keeps(directory: str, name: str, value: bytes) -> bool:
    path = f"{directory}/attributes"
    try:
        os.mknod(path)
        os.setxattr(path, name, value)
        return os.getxattr(path, name) == value
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise
        return False
    finally:
        os.unlink(path)


def sweep(place: str) -> list[str]:
    """Remove what killed probes left, and links to roots that are gone; say which."""
    left: list[str] = []
    for directory, prefix in ((place, PREFIX), (SHM, LINK)):
        for name in os.listdir(directory) if os.path.isdir(directory) else ():
            if name.startswith(prefix) and not os.path.exists(f"/proc/{name.removeprefix(prefix)}"):
                remove_tree(os.path.join(directory, name))
                left.append(name)
    for name in os.listdir(SHM) if os.path.isdir(SHM) else ():
        if name.startswith(ROOT) and not name.startswith(LINK) and not os.path.exists(f"{SHM}/{name}"):
            os.unlink(f"{SHM}/{name}")
    return left


def _in_scratch(place: str, function: Callable[[str], T]) -> T:
    # A path that aufs can read, whatever the place is called.
    link = f"{SHM}/{LINK}{get_native_id()}"
    scratch = os.path.join(place, f"{PREFIX}{get_native_id()}")
    try:
        for path in ("", "upper", "lower", "merged"):
            os.mkdir(os.path.join(scratch, path), 0o755)
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink(scratch, link)
        return privately(lambda: function(link))
    finally:
        if os.path.lexists(link):
            os.unlink(link)
        remove_tree(scratch)


def _mounts(scratch: str, *options: str) -> bool:
    try:
        _mount(scratch, *options)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return unmount(f"{scratch}/merged")


def _mount(scratch: str, *options: str) -> None:
    xino = f"xino={SHM}/.transom-{os.urandom(8).hex()}.xino"
    branches = [f"{scratch}/upper", f"{scratch}/lower"]
    mount_all(plan(branches, writable=True, options=("dio", xino, *options)), f"{scratch}/merged")


def _try(scratch: str) -> str:
    """Delete through an aufs of two branches; return what came out wrong, in words."""
    os.mknod(f"{scratch}/lower/deleted")
    _mount(scratch)
    os.unlink(f"{scratch}/merged/deleted")
    hidden = os.path.exists(f"{scratch}/upper/.wh.deleted") and not os.listdir(f"{scratch}/merged")
    unmount(f"{scratch}/merged")
    return "" if hidden else "aufs does not hide what was deleted: this kernel's aufs cannot be used"


def _explain(error: OSError, place: str) -> str:
    if error.errno == errno.ENODEV:
        return (
            "the kernel has no aufs (no kernel of Debian's has): load the module (modprobe aufs) of a kernel that does,"
            " or use the driver overlay2"
        )
    if error.errno in {errno.EPERM, errno.EACCES}:
        return "aufs mounts need CAP_SYS_ADMIN: run as root"
    return (
        f"a trial mount at {place} failed: {error.strerror}; put the root on ext4, xfs or tmpfs, and see what aufs says"
        " in the kernel's log (dmesg)"
    )


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
