"""The layers of a case, and what a tree holds."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from transom.contract.storage import IdMap, Mount, State, Storage
from transom.services.snapshots import Snapshots
from transom_conformance.faults import fork, wait
from transom_conformance.suite import World

T = TypeVar("T")
Fill = Callable[[Path], object]


class Node(msgspec.Struct, frozen=True):
    """All that a layer must keep about one path; `links` are the names of the same file."""

    mode: int
    owner: tuple[int, int]
    device: int
    content: bytes
    attributes: dict[str, bytes]
    links: frozenset[bytes]
    mtime: int


def tree_of(top: Path, *, times: bool = True) -> dict[bytes, Node]:
    """Describe a mounted tree, ``b"."`` being its root. Two layers are equal when this is."""
    paths = {b".": os.fsencode(top)}
    for directory, names, files in os.walk(os.fsencode(top)):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            paths[os.path.relpath(path, os.fsencode(top))] = path
    found = {name: os.lstat(path) for name, path in paths.items()}
    groups: dict[tuple[int, int], set[bytes]] = {}
    for name, status in found.items():
        groups.setdefault((status.st_dev, status.st_ino), set()).add(name)
    return {
        name: Node(
            mode=status.st_mode,
            owner=(status.st_uid, status.st_gid),
            device=status.st_rdev,
            content=_content(paths[name], status),
            attributes=_attributes(paths[name]),
            links=frozenset() if stat.S_ISDIR(status.st_mode) else frozenset(groups[status.st_dev, status.st_ino]),
            mtime=status.st_mtime_ns if times else 0,
        )
        for name, status in found.items()
    }


def _content(path: bytes, status: os.stat_result) -> bytes:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode):
        return b""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest() if status.st_size > 64 else file.read()


def _attributes(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in names
        if not name.startswith(("trusted.overlay.", "security.selinux"))
    }


def prepare(driver: Storage, id: str, *parents: str, size: int | None = None) -> None:
    """Have the driver itself make an active layer, without core's records."""
    driver.prepare(id=id, parents=parents, size=size, idmap=None)


def inside(
    driver: Storage, place: Path, id: str, function: Callable[[Path], T], *parents: str, state: State = State.ACTIVE
) -> T:
    """Call `function` with a layer of the driver's own, mounted at `place`; see `mounted`."""
    return mounted(driver.mounts(id=id, parents=parents, state=state), place, function)


def mounted(mounts: Sequence[Mount], place: Path, function: Callable[[Path], T]) -> T:
    """Call `function` with these mounted at `place`, in a thread whose mounts nobody else sees."""
    from transom.services.mounts import mount_all, privately, unmount

    place.mkdir(parents=True, exist_ok=True)

    def run() -> T:
        mount_all(mounts, str(place))
        try:
            return function(place)
        finally:
            for mount in reversed(mounts):
                unmount(str(place / mount.target) if mount.target else str(place))

    return privately(run)


class Layers:
    """The layers of a case: core's service around the driver under test, with a place to mount.

    Attributes:
        driver: the driver under test.
        snapshots: `Snapshots` over it.
    """

    def __init__(self, world: World) -> None:
        self.world, self.driver = world, world.open()
        self.snapshots = Snapshots(self.driver)

    def reopen(self) -> Layers:
        """Begin anew, as after a restart."""
        self.close()
        return Layers(self.world)

    def close(self) -> None:
        """Close what was opened."""
        self.snapshots.close()
        self.driver.close()

    def active(self, key: str, parent: str | None = None, fill: Fill | None = None) -> str:
        """Prepare a layer, and fill it through its mount."""
        self.snapshots.prepare(key, parent)
        if fill:
            self.inside(key, fill)
        return key

    def committed(self, name: str, parent: str | None = None, fill: Fill | None = None) -> str:
        """Prepare, fill and commit a layer."""
        self.snapshots.commit(self.active(f"{name}-active", parent, fill), name)
        return name

    def inside(self, key: str, function: Callable[[Path], T], *, idmap: IdMap | None = None) -> T:
        """Call `function` with the mounted layer, in a thread whose mounts nobody else sees."""
        layer = self.snapshots.stat(key)
        mounts = self.snapshots.mounts(key, idmap=idmap)
        claim = self.snapshots.claim(key) if layer.state is State.ACTIVE else None

        def run(place: Path) -> T:
            result = function(place)
            self.snapshots.unmounting(key, str(place))
            return result

        try:
            return mounted(mounts, self.world.path / "mounted" / layer.id, run)
        finally:
            if claim:
                claim.release()

    def tree(self, key: str, *, times: bool = True, idmap: IdMap | None = None) -> dict[bytes, Node]:
        """Describe the layer; see `tree_of`."""
        return self.inside(key, lambda top: tree_of(top, times=times), idmap=idmap)

    def diff(self, key: str, *, since: str | None = None) -> bytes:
        """Return the layer's tar."""
        out = io.BytesIO()
        size = self.snapshots.diff(key, out, since=since)
        assert size == len(out.getvalue())
        return out.getvalue()

    def parents(self, key: str) -> tuple[str, ...]:
        """Return the ids of the layer's ancestors, nearest first."""
        chain = []
        parent = self.snapshots.stat(key).parent
        while parent is not None:
            layer = self.snapshots.stat(parent)
            chain.append(layer.id)
            parent = layer.parent
        return tuple(chain)

    def remove_all(self) -> None:
        """Remove every layer, children first, and make sure that nothing of any is left."""
        ids = set()
        for layer in reversed(list(self.snapshots.walk())):
            ids.add(layer.id)
            self.snapshots.remove(layer.key)
        assert self.driver.owned() == frozenset(), "the driver still owns layers that were removed"
        assert self.snapshots.check() == []
        assert self.remains(ids) == [], "something of removed layers is left on disk"

    def files(self) -> set[str]:
        """List everything in the driver's directories, layers and whatever it keeps beside them."""
        walked = [step for place in (self.driver.root, self.driver.run) for step in os.walk(place)]
        return {os.path.join(directory, name) for directory, names, files in walked for name in (*names, *files)}

    def remains(self, ids: Iterable[str]) -> list[str]:
        """List what has one of these ids in its name, anywhere in the driver's directories."""
        return sorted(path for path in self.files() if any(id in os.path.basename(path) for id in ids))


@contextmanager
def held_elsewhere(mounts: Sequence[Mount], place: Path) -> Iterator[None]:
    """Have another process mount these in a namespace of its own, for as long as the ``with`` lasts."""
    from transom.services.mounts import mount_all, private_namespace

    place.mkdir()
    ready, tell = os.pipe()

    def hold() -> None:
        private_namespace()
        mount_all(mounts, str(place))
        os.write(tell, b"!")
        time.sleep(3600)

    pid = fork(hold)
    os.close(tell)
    try:
        assert os.read(ready, 1) == b"!", "it could not be mounted"
        yield
    finally:
        os.close(ready)
        os.kill(pid, signal.SIGKILL)
        wait(pid)


def put(**files: str) -> Fill:
    """Make a filler that writes small files; ``a__b`` is ``a/b``."""

    def fill(top: Path) -> None:
        for name, text in files.items():
            path = top / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return fill


def names_in(top: Path) -> list[str]:
    """List a directory, sorted, without what a file system puts there itself."""
    return sorted(set(os.listdir(top)) - {"lost+found"})


def clear(path: Path) -> None:
    """Remove a file or a whole directory; absent is success."""
    from transom.services.trees import remove_tree

    remove_tree(path)


def wait_for_detached(image: Path) -> None:
    """Wait until no loop device has the file any more: the kernel lets go a moment after the unmount."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        backing = [file for file in Path("/sys/block").glob("loop*/loop/backing_file") if _read(file) == str(image)]
        if not backing:
            return
        time.sleep(0.01)


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


@contextmanager
def fresh_layers(world: World) -> Iterator[Layers]:
    """Layers over a fresh root; in the end all are removed, and it is an error if anything of them is left."""
    layers = Layers(world)
    try:
        yield layers
    finally:
        layers.close()
    last = Layers(world)
    try:
        last.snapshots.recover()
        last.remove_all()
    finally:
        last.close()
