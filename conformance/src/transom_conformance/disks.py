"""File systems for drivers that need one of a certain kind: images in files, mounted by loop devices.

One is made when it is first asked for and goes with the process. What a killed process left, the next one clears away.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

_PREFIX = "transom-disk-"


def lacking(kind: str) -> str:
    """Say what a disk of the kind needs that this host has not; empty when nothing is missing."""
    if os.geteuid() != 0:
        return "needs root, to mount"
    if not shutil.which(f"mkfs.{kind}"):
        return f"needs mkfs.{kind}"
    if not os.path.exists("/dev/loop-control"):
        return "needs loop devices"
    known = [line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines()]
    return "" if kind in known else f"needs a kernel with {kind}"


@cache
def disk(kind: str, *, size: int = 1 << 30, mkfs: tuple[str, ...] = (), options: str = "loop") -> Path:
    """Return the mounted root of a fresh file system; `lacking` says beforehand whether that is possible.

    Args:
        kind: of file system: btrfs, ext4, xfs.
        size: in bytes; the image is sparse.
        mkfs: more arguments for mkfs.
        options: of mount(8).
    """
    import subprocess

    _sweep()
    work = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))
    image, place = work / "image", work / "root"
    place.mkdir()
    atexit.register(_forget, work, os.getpid())
    with open(image, "wb") as file:
        file.truncate(size)
    subprocess.run([f"mkfs.{kind}", "-q", *mkfs, image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", options, "-t", kind, image, place], check=True)
    return place


def _forget(work: Path, owner: int) -> None:
    from transom.services.mounts import unmount

    if os.getpid() == owner:  # not in a forked child
        unmount(str(work / "root"))
        shutil.rmtree(work, ignore_errors=True)


def _sweep() -> None:
    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*-*"):
        owner = left.name.removeprefix(_PREFIX).partition("-")[0]
        if owner.isdigit() and not os.path.exists(f"/proc/{owner}"):
            _forget(left, os.getpid())
