"""Can this host run aufs? A real one is mounted and used; nothing of it stays."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from threading import get_native_id
from typing import TypeVar

from transom.contract import Probe
from transom.contract.storage import Mount
from transom.services.mounts import mount_all, privately, unmount
from transom.services.trees import remove_tree

T = TypeVar("T")

PREFIX = ".aufs-probe-"


def probe(root: str) -> Probe:
    """Try on the file system that holds, or will hold, `root`."""
    place = _existing(root)
    try:
        sweep(place)
        fault = _in_scratch(place, _try)
    except OSError as error:
        return Probe(usable=False, reason=_explain(error, place))
    return Probe(usable=not fault, reason=fault)


def has_dirperm1(root: str) -> bool:
    """Say whether a mount with dirperm1 works; not where there is no aufs."""

    def attempt(scratch: str) -> bool:
        return _mounts(scratch, "dirperm1")

    try:
        return _in_scratch(_existing(root), attempt)
    except OSError:
        return False


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


def _in_scratch(place: str, function: Callable[[str], T]) -> T:
    from transom_storage_aufs import SHM

    # A path that aufs can read, whatever the place is called.
    link = f"{SHM}/transom-aufs-probe-{get_native_id()}"
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
    from transom_storage_aufs import SHM

    branches = f"br:{scratch}/upper=rw:{scratch}/lower=ro+wh"
    xino = f"xino={SHM}/.transom-{os.urandom(8).hex()}.xino"
    mount_all([Mount(type="aufs", source="none", options=(branches, "noplink", xino, *options))], f"{scratch}/merged")


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
    return f"a trial mount at {place} failed: {error.strerror}; put the root on ext4, xfs or tmpfs"


def _existing(path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path
