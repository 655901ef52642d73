"""The layers below a container's own: an image's, unpacked when first used, and one with the places of mounts.

An image belongs to no storage driver. When a container is made with a driver that does not hold the image's layers
yet, they are unpacked from the content store; so changing the driver in the config keeps every image.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from transom.services.files import Lock
from transom.services.mounts import mount_all, privately, unmount

if TYPE_CHECKING:
    from transom.services.snapshots import Snapshots
    from transom_engine.engine import Engine
    from transom_engine.images.store import Image

T = TypeVar("T")

_DIRECTORIES = ("dev/pts", "dev/shm", "proc", "sys", "etc")
_FILES = ("etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv")


def init_layer(engine: Engine, image: Image, snapshots: Snapshots) -> str:
    """Return the key of the layer that containers of the image are made over, unpacking what is missing.

    It holds the empty files and directories that the engine mounts over, so that ``diff`` of a fresh container
    shows none of them.
    """
    key = f"init-{image.chain_id or 'scratch'}"
    if snapshots.exists(key):
        return key
    locks = engine.run_dir / "locks"
    locks.mkdir(exist_ok=True)
    with Lock(locks / f"unpack-{snapshots.driver.name}"):
        if not snapshots.exists(key):
            _make_init_layer(key, unpack(engine, image, snapshots), snapshots)
    return key


def unpack(engine: Engine, image: Image, snapshots: Snapshots) -> str | None:
    """Unpack those layers of the image that the driver does not hold; return the name of the topmost."""
    from transom_engine.images.unpack import SnapshotTarget
    from transom_engine.images.unpack import unpack as unpack_layers

    return unpack_layers(
        image, layers=SnapshotTarget(snapshots), content=engine.content, measured=engine.images.note_unpacked
    )


def _make_init_layer(key: str, parent: str | None, snapshots: Snapshots) -> None:
    draft = f"{key}.{os.urandom(6).hex()}"
    snapshots.prepare(draft, parent)
    try:
        inside(snapshots, draft, _make_places)
        snapshots.commit(draft, key)
    except BaseException:
        snapshots.remove(draft)
        raise


def _make_places() -> None:
    for directory in _DIRECTORIES:
        os.makedirs(f"/{directory}", mode=0o755, exist_ok=True)
    for file in _FILES:
        try:
            os.close(os.open(f"/{file}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755 if file[0] == "." else 0o644))
        except FileExistsError:
            continue
    try:
        os.symlink("/proc/mounts", "/etc/mtab")
    except FileExistsError:
        pass


def mounted(snapshots: Snapshots, key: str, function: Callable[[str], T]) -> T:
    """Run `function` with the path at which the layer is mounted; only the throw-away thread it runs in sees that."""
    place = f"{snapshots.driver.root}.layers/inside"
    os.makedirs(place, exist_ok=True)
    claim = snapshots.claim(key)
    mounts = snapshots.mounts(key)

    def run() -> T:
        mount_all(mounts, place)
        try:
            result = function(place)
            snapshots.unmounting(key, place)
            return result
        finally:  # the namespace would go too, but a moment after the thread
            unmount(place)

    try:
        return privately(run)
    finally:
        claim.release()


def inside(snapshots: Snapshots, key: str, function: Callable[[], T]) -> T:
    """Run `function` with the layer as its root directory, so that no link in the layer leads out of it."""

    def run(place: str) -> T:
        host = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.chroot(place)  # unshare(CLONE_NEWNS) gave the thread a root of its own
        os.chdir("/")
        try:
            return function()
        finally:
            os.fchdir(host)
            os.chroot(".")
            os.close(host)

    return mounted(snapshots, key, run)
