"""The suite of storage drivers: layers keep what was written, stack as the contract says, and survive being killed.

The numbers in the docstrings are those of the catalogue of storage cases that the suite grows towards; they stay
the same from release to release. Every case works through `transom.services.snapshots.Snapshots`, as the engine
does, or calls the driver's own operations, and mounts in a namespace of its own, so that a failed case leaves no
mount.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest

from transom.contract.storage import Change, ChangeKind, State, Storage, StorageCapability
from transom.errors import ConfigError, Conflict, DriverError, NotFound, NotSupported, TransomError
from transom.services.snapshots import Snapshots
from transom_conformance.suite import Suite, World, undeclared

T = TypeVar("T")
Fill = Callable[[Path], object]

DEEPEST = 1000
"""A driver that says it goes deeper than this is taken at its word."""


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

    def inside(self, key: str, function: Callable[[Path], T]) -> T:
        """Call `function` with the mounted layer, in a thread whose mounts nobody else sees."""
        from transom.services.mounts import mount_all, privately, unmount

        layer = self.snapshots.stat(key)
        mounts = self.snapshots.mounts(key)
        place = self.world.path / "mounted" / layer.id
        place.mkdir(parents=True, exist_ok=True)
        claim = self.snapshots.claim(key) if layer.state is State.ACTIVE else None

        def run() -> T:
            mount_all(mounts, str(place))
            try:
                return function(place)
            finally:
                for mount in reversed(mounts):
                    unmount(str(place / mount.target) if mount.target else str(place))

        try:
            return privately(run)
        finally:
            if claim:
                claim.release()

    def tree(self, key: str, *, times: bool = True) -> dict[bytes, Node]:
        """Describe the layer; see `tree_of`."""
        return self.inside(key, lambda top: tree_of(top, times=times))

    def diff(self, key: str) -> bytes:
        """Return the layer's tar."""
        out = io.BytesIO()
        size = self.snapshots.diff(key, out)
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


def scribble(top: Path, seed: int, *, steps: int = 60) -> None:
    """Change a tree at random in all the ways that containers do; the same seed does the same."""
    dice = random.Random(seed)
    for step in range(steps):
        walked = list(os.walk(top))
        directories = sorted(Path(d) for d, _, _ in walked)
        others = sorted(path for d, names, files in walked for f in (*names, *files) if _is_leaf(path := Path(d) / f))
        place = dice.choice(directories)
        new = place / dice.choice(["a", "b", "c", "d-e", "f.g", "\udcff", f"n{step}"])
        _STEPS[dice.randrange(len(_STEPS))](dice, new, dice.choice(others) if others else None)


def _is_leaf(path: Path) -> bool:
    return path.is_symlink() or not path.is_dir()


def _clear(path: Path) -> None:
    from transom.services.trees import remove_tree

    remove_tree(path)


def _write(dice: random.Random, new: Path, _old: Path | None) -> None:
    if new.is_symlink() or not new.is_file():
        _clear(new)
    new.write_bytes(dice.randbytes(dice.choice([0, 3, 5000])))


def _append(dice: random.Random, _new: Path, old: Path | None) -> None:
    if old and old.is_file() and not old.is_symlink():
        with open(old, "ab") as file:
            file.write(dice.randbytes(10))


def _touch(_dice: random.Random, _new: Path, old: Path | None) -> None:
    if old and old.is_file() and not old.is_symlink():
        os.close(os.open(old, os.O_RDWR))


def _make_directory(_dice: random.Random, new: Path, _old: Path | None) -> None:
    if new.is_symlink() or not new.is_dir():
        _clear(new)
        new.mkdir()


def _delete(_dice: random.Random, new: Path, old: Path | None) -> None:
    _clear(old or new)


def _delete_tree(dice: random.Random, new: Path, _old: Path | None) -> None:
    _clear(new)
    if dice.random() < 0.5:
        new.mkdir()


def _rename(_dice: random.Random, new: Path, old: Path | None) -> None:
    if old and old != new:
        _clear(new)
        if os.path.lexists(old):
            old.rename(new)


def _link(dice: random.Random, new: Path, old: Path | None) -> None:
    if old and old != new:
        _clear(new)
        if os.path.lexists(old) and dice.random() < 0.6:
            os.link(old, new, follow_symlinks=False)
        else:
            new.symlink_to(dice.choice(["a", "/etc", "../gone"]))


def _metadata(dice: random.Random, new: Path, old: Path | None) -> None:
    path = old if old and not old.is_symlink() else new.parent
    kind = dice.randrange(4)
    if kind == 0:
        path.chmod(dice.choice([0o600, 0o644, 0o755, 0o4711, 0o1777]))
    elif kind == 1:
        os.chown(path, dice.choice([0, 1000, 2**31]), dice.choice([0, 7]))
    elif kind == 2:
        os.setxattr(path, "trusted.scribble", dice.randbytes(4))
    elif path.is_file():
        os.utime(path, ns=(0, dice.choice([-5_000_000_001, 1, 4_200_000_000_000_000_009])))


def _special(dice: random.Random, new: Path, _old: Path | None) -> None:
    _clear(new)
    kind = dice.choice([stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK])
    os.mknod(new, kind | 0o640, os.makedev(12, dice.randrange(1, 2**20)))


_STEPS: tuple[Callable[[random.Random, Path, Path | None], None], ...] = (
    _write, _write, _append, _touch, _make_directory, _make_directory, _delete, _delete_tree, _rename, _link,
    _metadata, _metadata, _special,
)  # fmt: skip


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


def fork(function: Callable[[], object]) -> int:
    """Run `function` in a forked child that leaves nothing of the test run behind; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Wait for a child: its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _on_each_call(tell: Callable[[int], object]) -> None:
    """Call `tell` with a running number before each call into the system that this process makes from now on.

    Python announces such calls (audit events, PEP 578): every change to files, and every program started.
    """
    seen = 0

    def count(event: str, _args: object) -> None:
        nonlocal seen
        if event == "open" or event.startswith(_CALLS):
            seen += 1
            tell(seen)

    sys.addaudithook(count)


_CALLS = ("os.", "fcntl.", "subprocess.", "sqlite3.", "ctypes.")


def calls_of(function: Callable[[], object]) -> int:
    """Count the calls into the system that `function` makes, in a child."""
    ready, tell = os.pipe()

    def run() -> None:
        counts = [0]
        _on_each_call(lambda seen: counts.__setitem__(0, seen))
        function()
        os.write(tell, str(counts[0]).encode())

    code = wait(fork(run))
    os.close(tell)
    with os.fdopen(ready) as answer:
        text = answer.read()
    assert code == 0, "the operation failed in the child, see its trace"
    return int(text)


def killed_at(function: Callable[[], object], step: int) -> bool:
    """Run `function` in a child that is killed at its `step`-th call into the system; say whether it got that far."""

    def die(seen: int) -> None:
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        _on_each_call(die)
        function()

    code = wait(fork(run))
    assert code in {0, -signal.SIGKILL}, f"the operation failed in the child (exit code {code}), see its trace"
    return code != 0


def faulted_at(function: Callable[[], object], step: int, code: int) -> tuple[bool, int]:
    """Run `function` in a child in which the `step`-th call into the system fails with errno `code`, once.

    Returns whether it got that far, and how `function` took it: 0 without an error, 2 with a `TransomError`, 3 with
    an `OSError`.
    """
    ready, tell = os.pipe()

    def fail(seen: int) -> None:
        if seen == step:
            os.write(tell, b"!")
            raise OSError(code, os.strerror(code))

    def run() -> None:
        _on_each_call(fail)
        try:
            function()
        except TransomError:
            os._exit(2)
        except OSError:
            os._exit(3)

    outcome = wait(fork(run))
    os.close(tell)
    with os.fdopen(ready, "rb") as answer:
        return answer.read() == b"!", outcome


def _wait_for_detached(image: Path) -> None:
    """Wait until no loop device has the file any more: the kernel lets go a moment after the unmount."""
    end = time.monotonic() + 10
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


class StorageSuite(Suite):
    """What every storage driver must do. Derive from it and set `driver`, and `options` where it needs some."""

    kind: ClassVar[str] = "storage"

    @pytest.fixture
    def layers(self, world: World) -> Iterator[Layers]:
        """Layers over a fresh root; afterwards all are removed and nothing of them may be left."""
        with fresh_layers(world) as layers:
            yield layers

    # Life cycle

    def test_an_empty_layer_is_an_empty_directory_of_root(self, layers: Layers) -> None:
        """1: root:root 0755, whatever the umask."""
        before = os.umask(0o077)
        try:
            layers.active("empty")
        finally:
            os.umask(before)

        def check(top: Path) -> None:
            found = top.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o755, 0, 0)
            assert names_in(top) == []

        layers.inside("empty", check)
        assert layers.driver.owned() == {layers.snapshots.stat("empty").id}
        layers.snapshots.remove("empty")
        assert layers.driver.owned() == frozenset()

    def test_odd_owners_and_modes_survive_a_remount(self, layers: Layers) -> None:
        """2: setuid, setgid, sticky, no permissions at all."""

        def fill(top: Path) -> None:
            for name, mode, uid, gid in (("d", 0o1705, 1, 2), ("f", 0o4222, 3, 4), ("g", 0o2755, 0, 5), ("n", 0, 6, 0)):
                path = top / name
                path.mkdir() if name == "d" else path.write_text(name)
                os.chown(path, uid, gid)
                path.chmod(mode)

        layers.active("base", fill=fill)
        before = layers.tree("base")
        assert [oct(before[name].mode & 0o7777) for name in (b"d", b"f", b"g", b"n")] == [
            "0o1705", "0o4222", "0o2755", "0o0",
        ]  # fmt: skip
        assert before[b"f"].owner == (3, 4)
        layers.snapshots.commit("base", "committed")
        assert layers.tree("committed") == before

    def test_a_child_begins_equal_to_its_parent(self, layers: Layers) -> None:
        """3: and mode, owner and attributes of the root directory are inherited down to the grandchild."""

        def fill(top: Path) -> None:
            scribble(top, 3)
            os.chown(top, 10, 20)
            top.chmod(0o1711)
            os.setxattr(top, "trusted.root", b"inherited")

        layers.committed("base", fill=fill)
        base = layers.tree("base")
        layers.active("child", "base")
        assert layers.tree("child") == base
        layers.snapshots.commit("child", "child")
        layers.active("grandchild", "child")
        assert layers.tree("grandchild") == base
        layers.snapshots.view("view", "child")
        assert layers.tree("view") == base

    def test_states_follow_the_life_cycle(self, layers: Layers) -> None:
        """4: commit ends the active key; only active layers are committed, only committed ones are parents."""
        snapshots = layers.snapshots
        layers.active("a")
        with pytest.raises(Conflict):
            snapshots.prepare("child", "a")
        snapshots.commit("a", "base")
        with pytest.raises(NotFound):
            snapshots.stat("a")
        with pytest.raises(Conflict):
            snapshots.commit("base", "again")
        snapshots.view("view", "base")
        with pytest.raises(Conflict):
            snapshots.commit("view", "again")
        with pytest.raises(Conflict):
            snapshots.prepare("child", "view")
        states = {layer.key: (layer.state, layer.parent) for layer in snapshots.walk()}
        assert states == {"base": (State.COMMITTED, None), "view": (State.VIEW, "base")}

    def test_a_taken_name_is_refused_and_its_layer_stays_as_it_was(self, layers: Layers) -> None:
        """5: for prepare, view and commit alike."""
        layers.committed("base", fill=put(file="1"))
        layers.active("taken", "base", put(own="2"))
        owned, before = layers.driver.owned(), layers.tree("taken")
        attempts: tuple[Callable[[], object], ...] = (
            lambda: layers.snapshots.prepare("taken", "base"),
            lambda: layers.snapshots.prepare("taken", None),
            lambda: layers.snapshots.view("taken", "base"),
            lambda: layers.snapshots.commit("taken", "base"),
        )
        for attempt in attempts:
            with pytest.raises(Conflict):
                attempt()
        assert layers.driver.owned() == owned
        assert layers.tree("taken") == before

    def test_a_missing_parent_is_refused_and_leaves_nothing(self, layers: Layers) -> None:
        """6."""
        for make in (layers.snapshots.prepare, layers.snapshots.view):
            with pytest.raises(NotFound):
                make("child", "absent")
        assert list(layers.snapshots.walk()) == []
        assert layers.driver.owned() == frozenset()

    def test_views_and_committed_layers_refuse_every_write(self, layers: Layers) -> None:
        """7: with EROFS, over one parent and over several."""
        layers.committed("one", fill=put(file="1", d__inner="1"))
        layers.committed("two", "one", put(other="2"))
        layers.snapshots.view("of-one", "one")
        layers.snapshots.view("of-two", "two")

        def check(top: Path) -> None:
            for write in (
                lambda: (top / "new").touch(),
                lambda: (top / "file").write_text("x"),
                lambda: (top / "file").chmod(0o600),
                lambda: os.setxattr(top / "file", "trusted.x", b"1"),
                lambda: (top / "file").unlink(),
                lambda: (top / "d" / "inner").rename(top / "moved"),
                lambda: (top / "dir").mkdir(),
            ):
                with pytest.raises(OSError) as caught:
                    write()
                assert caught.value.errno == errno.EROFS

        for view in ("one", "two"):
            assert layers.tree(f"of-{view}") == layers.tree(view)
        for key in ("one", "two", "of-one", "of-two"):
            before = layers.tree(key)
            layers.inside(key, check)
            assert layers.tree(key) == before

    def test_a_parent_is_not_removable_and_names_are_reusable(self, layers: Layers) -> None:
        """8: removal works from the top down; afterwards the name is free."""
        layers.committed("base", fill=put(file="1"))
        layers.committed("middle", "base")
        layers.active("top", "middle")
        for key in ("base", "middle"):
            with pytest.raises(Conflict):
                layers.snapshots.remove(key)
        for key in ("top", "middle", "base"):
            layers.snapshots.remove(key)
        assert layers.driver.owned() == frozenset()
        layers.active("base", fill=put(other="2"))
        assert layers.inside("base", names_in) == ["other"]

    def test_removing_what_is_absent_succeeds(self, layers: Layers) -> None:
        """9: by name and, in the driver itself, by id; twice too."""
        layers.snapshots.remove("absent")
        layers.driver.remove(id="absent-0")
        layers.active("gone")
        id = layers.snapshots.stat("gone").id
        layers.snapshots.remove("gone")
        layers.snapshots.remove("gone")
        layers.driver.remove(id=id)

    def test_the_list_is_exact_and_may_change_while_it_is_read(self, layers: Layers) -> None:
        """10: parents come first; removing during the walk does not block."""
        layers.committed("base")
        layers.active("a", "base")
        layers.active("b", "base")
        assert [layer.key for layer in layers.snapshots.walk()] == ["base", "a", "b"]
        seen = []
        for layer in layers.snapshots.walk():
            seen.append(layer.key)
            if layer.key == "a":
                assert layers.snapshots.stat("a") == layer
                layers.snapshots.remove("b")
        assert seen == ["base", "a", "b"]
        assert [layer.key for layer in layers.snapshots.walk()] == ["base", "a"]

    def test_closing_twice_is_harmless(self, layers: Layers) -> None:
        """13."""
        layers.active("a")
        for _ in range(2):
            layers.close()

    def test_everything_is_there_after_a_restart(self, layers: Layers) -> None:
        """14: states, parents, contents and sizes, seen by a new instance of the driver."""
        layers.committed("base", fill=lambda top: scribble(top, 14))
        layers.active("child", "base", lambda top: scribble(top, 15))
        layers.snapshots.view("view", "base")

        def facts(layers: Layers) -> object:
            keys = ("base", "child", "view")
            trees = [layers.tree(key) for key in keys]
            return list(layers.snapshots.walk()), trees, [layers.snapshots.usage(key) for key in ("base", "child")]

        before = facts(layers)
        again = layers.reopen()
        try:
            assert again.snapshots.recover() == []
            assert facts(again) == before
        finally:
            again.close()

    def test_mounts_can_be_asked_for_again_and_again(self, layers: Layers) -> None:
        """15: ten mounts and unmounts, then the layer is removable."""
        layers.committed("base", fill=put(file="1"))
        layers.active("child", "base")
        for n in range(10):
            layers.inside("child", lambda top, n=n: (top / str(n)).touch())  # type: ignore[misc]
        assert len(layers.inside("child", names_in)) == 11
        layers.snapshots.remove("child")

    def test_usage_counts_what_was_written(self, layers: Layers) -> None:
        """16: within block rounding, without the parent where the driver shares it; hard links count once."""
        mebibyte = 1 << 20

        def fill(top: Path) -> None:
            (top / "big").write_bytes(os.urandom(4 * mebibyte))
            os.link(top / "big", top / "same")

        layers.active("base", fill=fill)
        base = layers.snapshots.usage("base")
        assert 4 * mebibyte <= base.size < 5 * mebibyte
        layers.snapshots.commit("base", "base")
        layers.active("empty", "base")
        empty = layers.snapshots.usage("empty")
        layers.active("child", "base", lambda top: (top / "more").write_bytes(os.urandom(mebibyte)))
        child = layers.snapshots.usage("child")
        assert mebibyte <= child.size - empty.size < 2 * mebibyte
        assert child.inodes == empty.inodes + 1
        if StorageCapability.SHARED_PARENT in layers.driver.capabilities:
            assert empty.size < mebibyte
            assert empty.inodes <= 4

    def test_capabilities_are_honest(self, layers: Layers) -> None:
        """17: what the driver does not declare it refuses with `NotSupported`, and core does before any effect."""
        layers.committed("base", fill=put(file="1"))
        layers.active("child", "base")
        layer = layers.snapshots.stat("child")
        parents, driver = layers.parents("child"), layers.driver
        calls: dict[StorageCapability, Callable[[], Any]] = {
            StorageCapability.DIFF: lambda: list(driver.changes(id=layer.id, parents=parents)),
            StorageCapability.APPLY: lambda: driver.apply(id=layer.id, parents=parents, stream=io.BytesIO(bytes(1024))),
            StorageCapability.CLONE: lambda: driver.clone(id="c" * 20, source=layer.id, parents=parents),
            StorageCapability.QUOTA: lambda: layers.snapshots.prepare("q", "base", size=1 << 20),
        }
        owned = driver.owned()
        for capability in undeclared(driver, StorageCapability):
            if capability in calls:
                with pytest.raises(NotSupported) as caught:
                    calls[StorageCapability(capability)]()
                assert driver.name in str(caught.value)
        assert driver.owned() == owned
        assert not layers.snapshots.exists("q")

    # What a layer shows

    def test_writing_in_a_child_changes_neither_parent_nor_sibling(self, layers: Layers) -> None:
        """18: both are compared whole, by digest."""
        layers.committed("base", fill=lambda top: scribble(top, 18))
        base = layers.tree("base")
        layers.active("sibling", "base")
        layers.active("child", "base", lambda top: scribble(top, 180, steps=120))
        assert layers.tree("child") != base
        assert layers.tree("base") == base
        assert layers.tree("sibling") == base
        layers.snapshots.remove("child")
        assert layers.tree("base") == base

    @pytest.mark.parametrize("depth", range(6))
    def test_what_was_deleted_stays_deleted_and_comes_back_new(self, layers: Layers, depth: int) -> None:
        """19: a path deleted at any depth, through an empty layer; then made again."""
        path = Path(*[f"d{n}" for n in range(depth)], "last")

        def old(top: Path) -> None:
            (top / path / "below").mkdir(parents=True)
            (top / path / "below" / "old").write_text("old")
            (top / path.parent / "neighbour").touch()

        def new(top: Path) -> None:
            (top / path).mkdir()
            (top / path / "new").write_text("new")

        layers.committed("one", fill=old)
        layers.committed("two", "one", lambda top: _clear(top / path))
        layers.committed("three", "two")
        for key in ("two", "three"):
            assert layers.inside(key, lambda top: names_in(top / path.parent)) == ["neighbour"]
        layers.committed("four", "three", new)
        assert layers.inside("four", lambda top: names_in(top / path)) == ["new"]
        assert layers.inside("one", lambda top: (top / path / "below" / "old").read_text()) == "old"

    def test_a_directory_removed_and_made_again_hides_the_old_one(self, layers: Layers) -> None:
        """20: also when a third layer adds to it, and when the old contents come back one by one."""
        layers.committed("one", fill=put(d__a="1", d__b="1", d__e__f="1"))

        def replace(top: Path) -> None:
            _clear(top / "d")
            (top / "d").mkdir()
            (top / "d" / "b").write_text("2")

        layers.committed("two", "one", replace)
        assert layers.inside("two", lambda top: names_in(top / "d")) == ["b"]
        layers.committed("three", "two", put(d__c="3", d__e__g="3"))
        assert layers.inside("three", lambda top: names_in(top / "d")) == ["b", "c", "e"]
        assert layers.inside("three", lambda top: names_in(top / "d" / "e")) == ["g"]
        assert layers.inside("three", lambda top: (top / "d" / "b").read_text()) == "2"

    def test_a_path_may_change_its_type_from_layer_to_layer(self, layers: Layers) -> None:
        """21: every type over every other."""
        makers: dict[str, Callable[[Path], Any]] = {
            "file": lambda path: path.write_text("x"),
            "directory": lambda path: (path / "inner").mkdir(parents=True),
            "link": lambda path: path.symlink_to("target"),
            "device": lambda path: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
            "fifo": os.mkfifo,
        }
        pairs = [(a, b) for a in makers for b in makers]

        def old(top: Path) -> None:
            for a, b in pairs:
                makers[a](top / f"{a}-{b}")

        def new(top: Path) -> None:
            for a, b in pairs:
                _clear(top / f"{a}-{b}")
                makers[b](top / f"{a}-{b}")

        layers.committed("old", fill=old)
        layers.active("new", "old", new)
        found = layers.tree("new")
        for a, b in pairs:
            pattern = found[f"{b}-{b}".encode()]
            node = found[f"{a}-{b}".encode()]
            assert (stat.S_IFMT(node.mode), node.content, node.device) == (
                stat.S_IFMT(pattern.mode), pattern.content, pattern.device,
            )  # fmt: skip
            assert (f"{a}-{b}/inner".encode() in found) == (b == "directory")

    def test_files_of_the_parent_can_be_renamed_and_renamed_over(self, layers: Layers) -> None:
        """22: the parent keeps its own."""
        layers.committed("base", fill=put(a="a", b="b", d__c="c"))

        def change(top: Path) -> None:
            (top / "new").write_text("new")
            (top / "new").rename(top / "a")
            (top / "b").rename(top / "d" / "c")

        layers.active("child", "base", change)
        assert layers.inside("child", lambda top: (names_in(top), names_in(top / "d"))) == (["a", "d"], ["c"])
        assert layers.inside("child", lambda top: (top / "a").read_text() + (top / "d" / "c").read_text()) == "newb"
        assert layers.inside("base", lambda top: (top / "a").read_text() + (top / "b").read_text()) == "ab"

    def test_renaming_a_directory_of_the_parent_works_or_leaves_it_whole(self, layers: Layers) -> None:
        """22: with `RENAME_DIRECTORY` it works; without, EXDEV and nothing has moved."""
        layers.committed("base", fill=put(d__e__f="1", d__g="2"))
        works = StorageCapability.RENAME_DIRECTORY in layers.driver.capabilities

        def check(top: Path) -> None:
            before = tree_of(top / "d")
            if works:
                (top / "d").rename(top / "moved")
            else:
                with pytest.raises(OSError) as caught:
                    (top / "d").rename(top / "moved")
                assert caught.value.errno == errno.EXDEV
            assert names_in(top) == ["moved" if works else "d"]
            after = tree_of(top / ("moved" if works else "d"))
            assert after.keys() == before.keys()
            assert after[b"e/f"].content == b"1"

        layers.active("child", "base")
        layers.inside("child", check)

    def test_owner_and_mode_alone_can_change(self, layers: Layers) -> None:
        """23: recursively; content and setuid bits stay."""

        def fill(top: Path) -> None:
            put(d__e__f="1", d__g="2")(top)
            (top / "d" / "g").chmod(0o4755)

        def change(top: Path) -> None:
            for directory, _, files in os.walk(top / "d"):
                for path in (Path(directory), *(Path(directory) / name for name in files)):
                    mode = stat.S_IMODE(path.stat().st_mode)
                    os.chown(path, 500, 600)
                    path.chmod(mode)

        layers.committed("base", fill=fill)
        layers.committed("child", "base", change)
        found = layers.tree("child")
        assert {found[name].owner for name in found if name.startswith(b"d")} == {(500, 600)}
        assert stat.S_IMODE(found[b"d/g"].mode) == 0o4755
        assert found[b"d/e/f"].content == b"1"
        assert {node.owner for node in layers.tree("base").values()} == {(0, 0)}

    def test_a_file_of_the_parent_can_be_linked_and_its_first_name_removed(self, layers: Layers) -> None:
        """24."""
        layers.committed("base", fill=put(d__a="content"))

        def change(top: Path) -> None:
            (top / "n").mkdir()
            os.link(top / "d" / "a", top / "n" / "b")
            (top / "d" / "a").unlink()

        layers.committed("child", "base", change)
        assert layers.inside("child", lambda top: (top / "n" / "b").read_text()) == "content"
        assert layers.inside("child", lambda top: names_in(top / "d")) == []
        assert layers.inside("base", lambda top: (top / "d" / "a").read_text()) == "content"

    def test_every_way_of_writing_works_on_a_file_of_the_parent(self, layers: Layers) -> None:
        """25: append, truncate, pwrite, mmap, fallocate, O_DIRECT."""
        import mmap

        ways = ("append", "truncate", "pwrite", "mmap", "fallocate", "direct")

        def fill(top: Path) -> None:
            for way in ways:
                (top / way).write_bytes(b"." * 8192)

        def change(top: Path) -> None:
            with open(top / "append", "ab") as end:
                end.write(b"+")
            os.truncate(top / "truncate", 5)
            fd = os.open(top / "pwrite", os.O_WRONLY)
            os.pwrite(fd, b"+", 4096)
            os.close(fd)
            with open(top / "mmap", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
                view[0:1] = b"+"
            fd = os.open(top / "fallocate", os.O_WRONLY)
            os.posix_fallocate(fd, 0, 16384)
            os.close(fd)
            fd = os.open(top / "direct", os.O_WRONLY | os.O_DIRECT)
            with mmap.mmap(-1, 4096) as page:
                page[:] = b"+" * 4096
                os.pwrite(fd, page, 4096)
            os.close(fd)

        layers.committed("base", fill=fill)
        layers.committed("child", "base", change)
        dots = b"." * 8192
        expected = {
            "append": dots + b"+",
            "truncate": dots[:5],
            "pwrite": dots[:4096] + b"+" + dots[4097:],
            "mmap": b"+" + dots[1:],
            "fallocate": dots + bytes(8192),
            "direct": dots[:4096] + b"+" * 4096,
        }
        assert layers.inside("child", lambda top: {way: (top / way).read_bytes() for way in ways}) == expected
        assert layers.inside("base", lambda top: {(top / way).read_bytes() for way in ways}) == {dots}

    @pytest.mark.requires(StorageCapability.STABLE_INODES)
    def test_inode_and_descriptor_survive_the_first_write(self, layers: Layers) -> None:
        """26."""
        layers.committed("base", fill=put(file="old"))

        def check(top: Path) -> None:
            with open(top / "file") as reader:
                before = os.fstat(reader.fileno()).st_ino
                with open(top / "file", "a") as writer:
                    writer.write("+")
                assert (top / "file").stat().st_ino == before
                assert reader.read() == "old+"

        layers.active("child", "base")
        layers.inside("child", check)

    def test_fifos_and_sockets_work_in_a_layer(self, layers: Layers) -> None:
        """27: a fifo of the parent, a socket bound in the child."""
        layers.committed("base", fill=lambda top: os.mkfifo(top / "fifo"))

        def check(top: Path) -> None:
            fifo = os.open(top / "fifo", os.O_RDWR | os.O_NONBLOCK)
            os.write(fifo, b"through")
            assert os.read(fifo, 100) == b"through"
            os.close(fifo)
            here = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
            address = f"/proc/self/fd/{here}/s"  # a socket's address is at most 107 bytes
            with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
                listener.bind(address)
                listener.listen()
                client.connect(address)
            os.close(here)

        layers.active("child", "base")
        layers.inside("child", check)

    def test_any_name_that_a_file_can_have_is_kept(self, layers: Layers) -> None:
        """28: newlines, bytes that are not UTF-8, 255 bytes, leading dashes; and in the tar as well."""
        names = [b"new\nline", b"\xff\xfe", b"n" * 255, b"-rf", b" ", b"a\\b", b"\xc3\xa9", b"*", b"x=y,z:w"]

        def fill(top: Path) -> None:
            for name in names:
                Path(os.path.join(top, os.fsdecode(name))).write_bytes(name)

        layers.committed("base")
        layers.active("child", "base", fill)
        found = layers.tree("child")
        assert sorted(found) == sorted([b".", *names])
        layers.active("copy", "base")
        layers.snapshots.apply("copy", io.BytesIO(layers.diff("child")))
        assert layers.tree("copy") == found

    def test_names_that_mean_deletion_in_a_tar_are_plain_names_in_a_layer(self, layers: Layers) -> None:
        """28: a file called .wh.x hides nothing, here or in a child; only a tar cannot hold it, and says so."""
        layers.committed("base", fill=put(x="1", d__y="1"))

        def fill(top: Path) -> None:
            (top / ".wh.x").write_text("2")
            (top / "d" / ".wh..wh..opq").write_text("2")

        layers.committed("child", "base", fill)
        layers.active("grandchild", "child")
        for key in ("child", "grandchild"):
            found = layers.inside(key, lambda top: (names_in(top), names_in(top / "d")))
            assert found == ([".wh.x", "d", "x"], [".wh..wh..opq", "y"])
        with pytest.raises(ConfigError, match=r"\.wh\."):
            layers.diff("child")

    # Differences

    @pytest.mark.parametrize("seed", range(8))
    def test_a_diff_applied_to_a_sibling_makes_it_equal(self, layers: Layers, seed: int) -> None:
        """29: after random changes of every kind, times included; the size is that of the files."""
        layers.committed("base", fill=lambda top: scribble(top, seed))
        layers.active("child", "base", lambda top: scribble(top, 1000 + seed))
        wanted = layers.tree("child")
        tar = layers.diff("child")
        layers.active("sibling", "base")
        size = layers.snapshots.apply("sibling", io.BytesIO(tar))
        assert layers.tree("sibling") == wanted
        assert 0 <= size <= len(tar)

    @pytest.mark.parametrize("seed", range(4))
    def test_the_diffs_of_a_chain_make_the_same_tree_in_a_plain_directory(self, layers: Layers, seed: int) -> None:
        """34: so they do with any other driver."""
        from transom.services.archive import extract

        plain = layers.world.path / "plain"
        plain.mkdir()
        parent = None
        for n in range(4):
            name = f"layer-{n}"
            layers.committed(name, parent, lambda top, n=n: scribble(top, 100 * seed + n, steps=40))  # type: ignore[misc]
            extract(stream=io.BytesIO(layers.diff(name)), root=str(plain))
            parent = name
        assert tree_of(plain) == layers.tree("layer-3")

    def test_changes_are_listed_exactly(self, layers: Layers) -> None:
        """30: sorted, parents first, nothing below a deleted path, nothing that was merely opened."""
        layers.committed("base", fill=put(
            etc__hosts="1", etc__passwd="1", etc__deep__er__file="1", gone__a="1", gone__b="1", kept="1", touched="1",
            was_file="1", was_dir__x="1",
        ))  # fmt: skip

        def change(top: Path) -> None:
            (top / "etc" / "hosts").write_text("22")
            (top / "etc" / "deep" / "er" / "file").write_text("333")
            (top / "etc" / "new").write_text("2")
            (top / "etc" / "passwd").unlink()
            _clear(top / "gone")
            (top / "fresh").mkdir()
            (top / "fresh" / "file").touch()
            os.close(os.open(top / "touched", os.O_RDWR))
            (top / "was_file").unlink()
            (top / "was_file").mkdir()
            _clear(top / "was_dir")
            (top / "was_dir").touch()

        layers.active("child", "base", change)
        added, modified, deleted = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED
        assert layers.snapshots.changes("child") == [
            Change(b"etc/deep/er/file", modified),
            Change(b"etc/hosts", modified),
            Change(b"etc/new", added),
            Change(b"etc/passwd", deleted),
            Change(b"fresh", added),
            Change(b"fresh/file", added),
            Change(b"gone", deleted),
            Change(b"was_dir", modified),
            Change(b"was_file", modified, opaque=True),
        ]

    def test_without_a_parent_everything_is_an_addition(self, layers: Layers) -> None:
        """30: and an empty child has no changes."""
        layers.committed("base", fill=put(a="1", d__b="2"))
        assert layers.snapshots.changes("base") == [
            Change(name, ChangeKind.ADDED) for name in (b"a", b"d", b"d/b")
        ]  # fmt: skip
        layers.active("child", "base", lambda top: os.listdir(top / "d"))
        assert layers.snapshots.changes("child") == []

    def test_a_change_of_the_same_size_is_seen_however_soon(self, layers: Layers) -> None:
        """31: at once, and with the old time put back."""

        def rewrite(top: Path) -> None:
            (top / "soon").write_text("new")
            times = (top / "sly").stat()
            (top / "sly").write_text("new")
            os.utime(top / "sly", ns=(times.st_atime_ns, times.st_mtime_ns))

        layers.committed("base", fill=put(soon="old", sly="old", same="old"))
        layers.active("child", "base", rewrite)
        assert layers.snapshots.changes("child") == [Change(name, ChangeKind.MODIFIED) for name in (b"sly", b"soon")]

    @pytest.mark.parametrize("what", ["attribute", "owner", "group", "mode", "mtime"])
    def test_a_change_of_metadata_alone_is_a_change(self, layers: Layers, what: str) -> None:
        """32: of files and of directories; the diff carries it."""

        def change(top: Path) -> None:
            for path in (top / "f", top / "d"):
                match what:
                    case "attribute":
                        os.setxattr(path, "trusted.x", b"1")
                    case "owner":
                        os.chown(path, 77, -1)
                    case "group":
                        os.chown(path, -1, 77)
                    case "mode":
                        path.chmod(0o1700)
                    case _:
                        os.utime(path, ns=(1, 1))

        layers.committed("base", fill=put(f="1", d__inner="1"))
        layers.active("child", "base", change)
        assert layers.snapshots.changes("child") == [Change(name, ChangeKind.MODIFIED) for name in (b"d", b"f")]
        layers.active("sibling", "base")
        layers.snapshots.apply("sibling", io.BytesIO(layers.diff("child")))
        assert layers.tree("sibling") == layers.tree("child")

    def test_a_diff_is_the_same_bytes_every_time(self, layers: Layers) -> None:
        """33: again, after a commit, after a restart."""
        layers.committed("base", fill=lambda top: scribble(top, 33))
        layers.active("child", "base", lambda top: scribble(top, 330))
        first = layers.diff("child")
        assert layers.diff("child") == first
        layers.snapshots.commit("child", "child")
        assert layers.diff("child") == first
        again = layers.reopen()
        try:
            assert again.diff("child") == first
        finally:
            again.close()

    def test_a_diff_applied_twice_is_as_if_once(self, layers: Layers) -> None:
        """36."""
        layers.committed("base", fill=put(a="1", d__b="1", d__c="1"))

        def change(top: Path) -> None:
            _clear(top / "d")
            put(d__new="2", a="2")(top)

        layers.active("child", "base", change)
        tar = layers.diff("child")
        layers.active("sibling", "base")
        for _ in range(2):
            layers.snapshots.apply("sibling", io.BytesIO(tar))
        assert layers.tree("sibling") == layers.tree("child")

    def test_a_damaged_or_hostile_tar_is_refused_in_words(self, layers: Layers) -> None:
        """37, 38: cut, garbage, and leading out of the layer; the layer stays removable."""
        import tarfile

        layers.committed("base", fill=put(a="1" * 2000))
        outside = layers.world.path / "outside"
        outside.mkdir()
        hostile = io.BytesIO()
        with tarfile.open(fileobj=hostile, mode="w") as tar:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "../" * 30 + str(outside).lstrip("/")
            tar.addfile(link)
            tar.addfile(tarfile.TarInfo("link/file"))
        escape = io.BytesIO()
        with tarfile.open(fileobj=escape, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("../../outside/file"))
        for n, bad in enumerate((layers.diff("base")[:1536], os.urandom(4096), escape.getvalue())):
            layers.active(f"bad-{n}", "base")
            with pytest.raises(ConfigError):
                layers.snapshots.apply(f"bad-{n}", io.BytesIO(bad))
            layers.snapshots.remove(f"bad-{n}")
        layers.active("hostile", "base")
        try:
            layers.snapshots.apply("hostile", io.BytesIO(hostile.getvalue()))
        except ConfigError:
            pass
        assert os.listdir(outside) == []

    def test_a_tar_may_lean_on_what_the_parent_has(self, layers: Layers) -> None:
        """39: a directory that it does not hold keeps its metadata, a link may go to a file of the parent."""
        import tarfile

        def fill(top: Path) -> None:
            (top / "private").mkdir(mode=0o700)
            os.chown(top / "private", 5, 6)
            (top / "file").write_text("content")
            (top / "usr" / "lib").mkdir(parents=True)
            (top / "lib").symlink_to("usr/lib")

        layers.committed("base", fill=fill)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            tar.addfile(tarfile.TarInfo("private/new"))
            link = tarfile.TarInfo("linked")
            link.type, link.linkname = tarfile.LNKTYPE, "file"
            tar.addfile(link)
            tar.addfile(tarfile.TarInfo("lib/library"))
        layers.active("child", "base")
        layers.snapshots.apply("child", io.BytesIO(out.getvalue()))
        found = layers.tree("child")
        assert (stat.S_IMODE(found[b"private"].mode), found[b"private"].owner) == (0o700, (5, 6))
        assert found[b"linked"].content == b"content"
        assert found[b"lib"].content == b"usr/lib"
        assert b"usr/lib/library" in found

    # What files carry

    def _survives(self, layers: Layers, fill: Fill) -> dict[bytes, Node]:
        """Follow a base through commit, child, copy-up of all its files, diff and apply; return the base."""
        layers.committed("base", fill=fill)
        base = layers.tree("base")
        layers.active("child", "base")
        assert layers.tree("child") == base

        def open_all(top: Path) -> None:
            for directory, _, files in os.walk(top):
                for path in (Path(directory) / name for name in files):
                    if path.is_file() and not path.is_symlink():
                        os.close(os.open(path, os.O_RDWR))

        layers.inside("child", open_all)
        touched = layers.tree("child")
        assert touched.keys() == base.keys()
        for name, node in base.items():
            now = touched[name]
            assert (now.mode, now.owner, now.device, now.content, now.attributes, now.mtime) == (
                node.mode, node.owner, node.device, node.content, node.attributes, node.mtime,
            ), name  # fmt: skip
        layers.active("rebuilt")
        layers.snapshots.apply("rebuilt", io.BytesIO(layers.diff("base")))
        rebuilt = layers.tree("rebuilt")
        assert rebuilt == base
        return base

    def test_extended_attributes_are_kept(self, layers: Layers) -> None:
        """40: user, trusted, file capabilities and POSIX ACLs, of files, directories and links."""
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        acl = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000400ffffffff")

        def fill(top: Path) -> None:
            put(f="1", d__inner="1")(top)
            (top / "l").symlink_to("f")
            os.chown(top / "f", 1, 1)
            os.setxattr(top / "f", "security.capability", capability)
            os.setxattr(top / "f", "user.text", b"a\0b=c\n")
            os.setxattr(top / "f", "system.posix_acl_access", acl)
            os.setxattr(top / "d", "trusted.bytes", bytes(range(256)))
            os.setxattr(top / "d", "system.posix_acl_default", acl)
            os.setxattr(top / "l", "trusted.link", b"1", follow_symlinks=False)

        base = self._survives(layers, fill)
        assert base[b"f"].attributes["security.capability"] == capability
        assert set(base[b"f"].attributes) == {"security.capability", "user.text", "system.posix_acl_access"}
        assert set(base[b"d"].attributes) == {"trusted.bytes", "system.posix_acl_default"}
        assert set(base[b"l"].attributes) == {"trusted.link"}

    def test_hard_links_stay_one_file(self, layers: Layers) -> None:
        """42: across directories, with more than two names, links of fifos and of symbolic links too."""

        def fill(top: Path) -> None:
            put(a="one", d__keep="x")(top)
            for name in ("b", "d/c"):
                os.link(top / "a", top / name)
            os.mkfifo(top / "fifo")
            os.link(top / "fifo", top / "d" / "fifo")
            (top / "s").symlink_to("a")
            os.link(top / "s", top / "d" / "s", follow_symlinks=False)

        layers.committed("base", fill=fill)
        layers.active("rebuilt")
        layers.snapshots.apply("rebuilt", io.BytesIO(layers.diff("base")))
        layers.snapshots.commit("rebuilt", "rebuilt")
        layers.active("child", "rebuilt")
        for key in ("base", "rebuilt", "child"):
            found = layers.tree(key)
            assert found[b"a"].links == {b"a", b"b", b"d/c"}, key
            assert found[b"fifo"].links == {b"fifo", b"d/fifo"}, key
            assert found[b"s"].links == {b"s", b"d/s"}, key
            assert layers.inside(key, lambda top: (top / "a").stat().st_nlink) == 3, key

    def test_holes_stay_holes(self, layers: Layers) -> None:
        """43: in a child, through copy-up, and through diff and apply."""
        size = 256 << 20

        def fill(top: Path) -> None:
            with open(top / "sparse", "wb") as file:
                file.seek(size // 2)
                file.write(b"middle")
                file.truncate(size)

        def blocks(top: Path) -> int:
            found = (top / "sparse").stat()
            assert found.st_size == size
            return found.st_blocks * 512

        layers.committed("base", fill=fill)
        layers.active("child", "base")
        layers.active("rebuilt")
        tar = layers.diff("base")
        assert len(tar) < 1 << 20
        layers.snapshots.apply("rebuilt", io.BytesIO(tar))
        layers.inside("child", lambda top: os.utime(top / "sparse"))
        for key in ("base", "child", "rebuilt"):
            # Overlay copies up in pieces of a mebibyte, whole where they have any data.
            assert layers.inside(key, blocks) <= 4 << 20, key

    def test_devices_are_kept_with_their_numbers(self, layers: Layers) -> None:
        """44: 12 bits of major, 20 of minor."""

        def fill(top: Path) -> None:
            for n, (major, minor) in enumerate([(1, 3), (4095, 1048575), (0, 1), (259, 65537)]):
                os.mknod(top / f"c{n}", stat.S_IFCHR | 0o620, os.makedev(major, minor))
                os.mknod(top / f"b{n}", stat.S_IFBLK | 0o660, os.makedev(major, minor))

        base = self._survives(layers, fill)
        assert base[b"c1"].device == os.makedev(4095, 1048575)

    def test_times_are_kept_to_the_nanosecond(self, layers: Layers) -> None:
        """45: of files, filled directories and links, before 1970 and after 2038."""
        moments = (1, -1_000_000_001, 4_102_444_800_123_456_789, 1_700_000_000_000_000_001)

        def fill(top: Path) -> None:
            for n, moment in enumerate(moments):
                (top / f"d{n}").mkdir()
                (top / f"d{n}" / "f").touch()
                (top / f"l{n}").symlink_to("f")
                for path in (top / f"d{n}" / "f", top / f"d{n}", top / f"l{n}"):
                    os.utime(path, ns=(0, moment), follow_symlinks=False)

        base = self._survives(layers, fill)
        for n, moment in enumerate(moments):
            assert {base[f"{name}{n}".encode()].mtime for name in "dl"} == {moment}
            assert base[f"d{n}/f".encode()].mtime == moment

    def test_owners_are_kept_over_the_whole_range(self, layers: Layers) -> None:
        """46: up to 2**32 - 2, of links too."""
        ids = (65535, 65536, 2**31, 2**32 - 2)

        def fill(top: Path) -> None:
            for owner in ids:
                (top / f"f{owner}").touch()
                (top / f"l{owner}").symlink_to("f")
                for name in "fl":
                    os.lchown(top / f"{name}{owner}", owner, owner)

        base = self._survives(layers, fill)
        for owner in ids:
            assert base[f"f{owner}".encode()].owner == base[f"l{owner}".encode()].owner == (owner, owner)

    # Limits

    def test_a_hundred_and_twenty_eight_layers_are_one_tree(self, layers: Layers) -> None:
        """47: each overwrites, adds, and removes what an earlier one made; every tenth is compared with the model."""
        if layers.driver.max_depth < 128:
            pytest.skip(f"the driver allows {layers.driver.max_depth} layers on this host")
        model: dict[str, str] = {}
        parent = None
        for n in range(129):
            gone = f"layer-{n - 7}"

            def fill(top: Path, n: int = n, gone: str = gone) -> None:
                put(top=str(n), **{f"layer-{n}__id": str(n)})(top)
                if n % 3 == 0:
                    _clear(top / gone)

            model |= {"top": str(n), f"layer-{n}/id": str(n)}
            if n % 3 == 0:
                model.pop(f"{gone}/id", None)
            parent = layers.committed(f"l{n}", parent, fill)
            if n % 32 == 0 or n == 128:
                found = {os.fsdecode(k): v.content.decode() for k, v in layers.tree(parent).items() if k[-2:] != b"."}
                assert {k: v for k, v in found.items() if v} == model

    def test_the_deepest_chain_works_and_one_more_is_refused(self, layers: Layers) -> None:
        """48: with `NotSupported`, before anything is made."""
        depth = layers.driver.max_depth
        if depth > DEEPEST:
            pytest.skip(f"the driver allows {depth} layers, more than the suite makes ({DEEPEST})")
        parent = layers.committed("l0", fill=put(first="0"))
        for n in range(1, depth):
            layers.active(f"a{n}", parent)
            layers.snapshots.commit(f"a{n}", f"l{n}")
            parent = f"l{n}"
        layers.active("deepest", parent, put(last="1"))
        assert layers.inside("deepest", names_in) == ["first", "last"]
        layers.snapshots.commit("deepest", "deepest")
        assert layers.inside("deepest", names_in) == ["first", "last"]
        owned = layers.driver.owned()
        with pytest.raises(NotSupported, match=str(depth)):
            layers.snapshots.prepare("more", "deepest")
        assert layers.driver.owned() == owned

    @pytest.mark.parametrize("name", ["co:lon", "com,ma", "back\\slash", "sp ace", "\u00fcml\u00e4ut", "x" * 200])
    def test_the_root_may_have_any_name(self, world: World, name: str) -> None:
        """50."""
        world.path = world.path / name
        world.path.mkdir()
        layers = Layers(world)
        world.defer(layers.close)
        layers.committed("one", fill=put(a="1"))
        layers.committed("two", "one", put(b="2"))
        layers.active("three", "two", put(c="3"))
        assert layers.inside("three", names_in) == ["a", "b", "c"]
        layers.snapshots.view("view", "two")
        assert layers.inside("view", names_in) == ["a", "b"]
        layers.remove_all()

    @pytest.mark.requires(StorageCapability.QUOTA)
    def test_a_quota_holds(self, layers: Layers) -> None:
        """51: half of it can be written, twice as much cannot; a sibling is not affected; so after a restart."""
        mebibyte = 1 << 20
        layers.committed("base", fill=put(a="1"))
        layers.snapshots.prepare("limited", "base", size=32 * mebibyte)
        layers.active("free", "base")
        layers.inside("limited", lambda top: (top / "half").write_bytes(os.urandom(16 * mebibyte)))

        def write(path: Path) -> None:
            with open(path, "wb", buffering=0) as file:
                for _ in range(64):
                    file.write(os.urandom(mebibyte))
                    os.fsync(file.fileno())

        def too_much(top: Path) -> None:
            with pytest.raises(OSError) as caught:
                write(top / "rest")
            assert caught.value.errno in {errno.EDQUOT, errno.ENOSPC}
            (top / "rest").unlink()

        layers.inside("limited", too_much)
        layers.inside("free", lambda top: (top / "all").write_bytes(os.urandom(64 * mebibyte)))
        again = layers.reopen()
        try:
            again.inside("limited", too_much)
        finally:
            again.close()

    def test_a_large_directory_and_a_deep_one_are_handled(self, layers: Layers) -> None:
        """53: 20,000 names in one directory, 300 directories below each other, through diff, apply and remove."""

        def fill(top: Path) -> None:
            (top / "wide").mkdir()
            for n in range(20_000):
                os.mknod(top / "wide" / str(n))
            place = top
            for _ in range(300):
                place = place / "d"
                place.mkdir()

        layers.committed("base", fill=fill)

        def thin(top: Path) -> None:
            for n in range(0, 20_000, 2):
                (top / "wide" / str(n)).unlink()

        layers.active("child", "base", thin)
        assert layers.inside("child", lambda top: len(os.listdir(top / "wide"))) == 10_000
        layers.active("sibling", "base")
        layers.snapshots.apply("sibling", io.BytesIO(layers.diff("child")))
        assert layers.tree("sibling") == layers.tree("child")

    # Many at once

    def test_many_threads_make_children_of_one_parent(self, layers: Layers) -> None:
        """54: each child has what its own thread wrote."""
        layers.committed("base", fill=put(shared="1"))
        errors: list[BaseException] = []

        def work(n: int) -> None:
            own = Layers(layers.world)
            try:
                for round in range(3):
                    own.active(f"t{n}-{round}", "base", put(own=f"{n}.{round}"))
                    own.snapshots.commit(f"t{n}-{round}", f"c{n}-{round}")
                    if round == 1:
                        own.snapshots.remove(f"c{n}-0")
            except BaseException as error:
                errors.append(error)
            finally:
                own.close()

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        expected = {f"c{n}-{round}" for n in range(16) for round in (1, 2)}
        assert {layer.key for layer in layers.snapshots.walk()} == expected | {"base"}
        for key in sorted(expected):
            assert layers.inside(key, lambda top: (top / "own").read_text()) == key[1:].replace("-", ".")

    def test_a_race_for_one_name_has_one_winner(self, layers: Layers) -> None:
        """55: the others get `Conflict`, and leave nothing."""
        layers.committed("base")
        for round in range(5):
            outcomes: list[object] = []
            gate = threading.Barrier(8)

            def work(round: int = round, gate: threading.Barrier = gate, outcomes: list[object] = outcomes) -> None:
                own = Layers(layers.world)
                try:
                    gate.wait()
                    outcomes.append(own.snapshots.prepare(f"prize-{round}", "base").key)
                except BaseException as error:
                    outcomes.append(error)
                finally:
                    own.close()

            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            won = [outcome for outcome in outcomes if isinstance(outcome, str)]
            assert len(won) == 1
            assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome not in won)
        assert len(layers.driver.owned()) == 6

    def test_removing_a_parent_while_children_are_made_never_orphans_one(self, layers: Layers) -> None:
        """56: one of the two loses."""
        for round in range(10):
            base = layers.committed(f"base-{round}", fill=put(a="1"))
            gate = threading.Barrier(2)

            def make(base: str = base, gate: threading.Barrier = gate) -> None:
                own = Layers(layers.world)
                try:
                    gate.wait()
                    own.snapshots.prepare(f"child-of-{base}", base)
                except NotFound:
                    pass
                finally:
                    own.close()

            thread = threading.Thread(target=make)
            thread.start()
            gate.wait()
            try:
                layers.snapshots.remove(base)
            except Conflict:
                pass
            thread.join()
            child = layers.snapshots.exists(f"child-of-{base}")
            assert child == layers.snapshots.exists(base)
            if child:
                assert layers.inside(f"child-of-{base}", names_in) == ["a"]

    def test_several_processes_share_one_root(self, layers: Layers) -> None:
        """57: each makes, fills, commits and removes its own."""
        layers.committed("base", fill=put(shared="1"))
        layers.close()

        def work(n: int) -> None:
            own = Layers(layers.world)
            for round in range(5):
                own.committed(f"p{n}-{round}", "base", put(own=f"{n}-{round}"))
                assert own.inside(f"p{n}-{round}", lambda top: (top / "own").read_text()) == f"{n}-{round}"
                if round % 2:
                    own.snapshots.remove(f"p{n}-{round}")

        children = [fork(lambda n=n: work(n)) for n in range(4)]  # type: ignore[misc]
        assert [wait(pid) for pid in children] == [0] * 4
        again = Layers(layers.world)
        try:
            keys = {layer.key for layer in again.snapshots.walk()}
            assert keys == {"base", *(f"p{n}-{round}" for n in range(4) for round in (0, 2, 4))}
            assert again.snapshots.check() == []
        finally:
            again.close()

    def test_an_active_layer_has_one_user_at_a_time(self, layers: Layers) -> None:
        """58: who has it claimed keeps it from being claimed again, committed or removed; death frees it."""
        layers.active("mine")
        claim = layers.snapshots.claim("mine")
        for attempt in (
            lambda: layers.snapshots.claim("mine"),
            lambda: layers.snapshots.commit("mine", "other"),
            lambda: layers.snapshots.remove("mine"),
        ):
            with pytest.raises(Conflict, match="in use"):
                attempt()
        claim.release()

        ready, tell = os.pipe()

        def hold() -> None:
            lock = layers.snapshots.claim("mine")
            os.write(tell, b"!")
            time.sleep(60)
            lock.release()

        pid = fork(hold)
        os.close(tell)
        assert os.read(ready, 1) == b"!"
        os.close(ready)
        with pytest.raises(Conflict, match="in use"):
            layers.snapshots.claim("mine")
        os.kill(pid, signal.SIGKILL)
        wait(pid)
        layers.snapshots.remove("mine")

    @pytest.mark.requires(StorageCapability.CLONE)
    def test_a_clone_is_equal_and_independent(self, layers: Layers) -> None:
        """12: of an active layer, its changes included."""
        layers.committed("base", fill=lambda top: scribble(top, 12))
        layers.active("source", "base", lambda top: scribble(top, 120))
        layers.snapshots.clone("copy", "source")
        before = layers.tree("source")
        assert layers.tree("copy") == before
        layers.inside("copy", lambda top: scribble(top, 121))
        assert layers.tree("source") == before

    # Crashes and repair

    def test_killed_at_any_step_a_layer_is_absent_or_whole(self, layers: Layers) -> None:
        """59: prepare, view, commit and remove, killed at each call into the system in turn."""
        layers.committed("base", fill=put(**{f"f{n}": str(n) for n in range(5)}, d__e="1"))
        base, files = layers.tree("base"), layers.files()
        layers.close()

        def prepare() -> None:
            Snapshots(layers.world.open()).prepare("child", "base")

        def commit() -> None:
            Snapshots(layers.world.open()).commit("child", "done")

        def remove() -> None:
            Snapshots(layers.world.open()).remove("child")

        for operation in (prepare, commit, remove):
            # Opening the driver and its records changes nothing: no use in dying there.
            step = calls_of(lambda: Snapshots(layers.world.open()).exists("base"))
            while True:
                step += 1
                if operation is not prepare:
                    fresh = Layers(layers.world)
                    for key in ("child", "done"):
                        fresh.snapshots.remove(key)
                    fresh.active("child", "base")
                    fresh.close()
                died = killed_at(operation, step)
                again = Layers(layers.world)
                try:
                    again.snapshots.recover()
                    assert again.snapshots.recover() == [], "a second recovery found more to do"
                    assert again.snapshots.check() == []
                    for key in ("base", "child", "done"):
                        if again.snapshots.exists(key):
                            assert again.tree(key) == base, f"{key} after {operation.__name__} died at step {step}"
                    if operation is commit:
                        assert again.snapshots.exists("child") != again.snapshots.exists("done")
                    assert again.driver.owned() == {layer.id for layer in again.snapshots.walk()}
                    again.snapshots.remove("child")
                    again.snapshots.remove("done")
                    assert again.files() == files, f"left behind after {operation.__name__} died at step {step}"
                finally:
                    again.close()
                if not died:
                    break
            assert step > 1

    def test_killed_at_random_what_was_committed_is_whole(self, layers: Layers) -> None:
        """59: a process that makes, fills, commits and removes layers without pause, killed again and again."""
        layers.committed("base", fill=put(shared="1"))
        layers.close()
        dice = random.Random(59)
        for round in range(12):
            ready, tell = os.pipe()

            def work(round: int = round, tell: int = tell) -> None:
                own = Layers(layers.world)
                os.write(tell, b"!")
                for n in range(1000):
                    name = f"r{round}-{n}"
                    own.committed(name, "base", put(**{f"f{m}": name for m in range(20)}))
                    own.active(f"{name}-applied", "base")
                    own.snapshots.apply(f"{name}-applied", io.BytesIO(own.diff(name)))
                    if n % 2:
                        own.snapshots.remove(name)

            pid = fork(work)
            os.close(tell)
            assert os.read(ready, 1) == b"!"
            os.close(ready)
            time.sleep(dice.uniform(0, 0.15))
            os.kill(pid, signal.SIGKILL)
            wait(pid)
            again = Layers(layers.world)
            try:
                again.snapshots.recover()
                assert again.snapshots.recover() == []
                assert again.snapshots.check() == []
                for layer in again.snapshots.walk():
                    if layer.state is State.COMMITTED and layer.key != "base":
                        found = again.inside(layer.key, lambda top: {(top / f"f{m}").read_text() for m in range(20)})
                        assert found == {layer.key}
                    if layer.key != "base":
                        again.snapshots.remove(layer.key)
                assert len(again.driver.owned()) == 1
            finally:
                again.close()

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
    def test_whatever_fails_once_the_layer_is_absent_or_whole(self, layers: Layers, code: int) -> None:
        """61: each call into the system fails in turn; the error is in words and everything goes on."""
        layers.committed("base", fill=put(**{f"f{n}": str(n) for n in range(3)}, d__e="1"))
        base = layers.tree("base")
        layers.active("child", "base")
        layers.snapshots.commit("child", "done")
        layers.snapshots.remove("done")
        layers.close()

        def prepare() -> None:
            Snapshots(layers.world.open()).prepare("child", "base")

        def commit() -> None:
            Snapshots(layers.world.open()).commit("child", "done")

        def remove() -> None:
            Snapshots(layers.world.open()).remove("child")

        for operation in (prepare, commit, remove):
            step = calls_of(lambda: Snapshots(layers.world.open()).exists("base"))
            reached = True
            while reached:
                step += 1
                again = Layers(layers.world)
                if operation is not prepare:
                    again.active("child", "base")
                reached, outcome = faulted_at(operation, step, code)
                where = f"{operation.__name__}, failed at step {step}"
                assert outcome in {0, 2, 3}, where
                try:
                    again.snapshots.recover()
                    assert again.snapshots.check() == [], where
                    whole = {layer.key for layer in again.snapshots.walk()}
                    expected = {prepare: {"child"}, commit: {"done"}, remove: set()}[operation]
                    assert outcome != 0 or whole == expected | {"base"}, where
                    for key in sorted(whole):
                        assert again.tree(key) == base, f"{key} after {where}"
                    for key in ("child", "done"):
                        again.snapshots.remove(key)
                    assert len(again.driver.owned()) == 1, where
                finally:
                    again.close()

    def test_a_driver_tells_failures_in_words(self, layers: Layers) -> None:
        """72: whatever fails inside prepare, commit or remove arrives as a `TransomError`, and remove clears up."""
        layers.committed("base", fill=put(a="1", d__b="2"))
        base = layers.snapshots.stat("base").id
        driver = layers.driver
        id = "e" * 20

        def prepare() -> None:
            driver.prepare(id=id, parents=(base,), size=None, idmap=None)

        def commit() -> None:
            driver.commit(id=id, parents=(base,))

        def remove() -> None:
            driver.remove(id=id)

        for operation in (prepare, commit, remove):  # what they import is imported now
            operation()
        inherited = type(driver).commit is Storage.commit  # core's own body, and core's to put into words
        for operation in (prepare, remove) if inherited else (prepare, commit, remove):
            step, reached = 0, True
            while reached:
                step += 1
                if operation is not prepare:
                    prepare()
                reached, outcome = faulted_at(operation, step, errno.EIO)
                assert outcome in {0, 2}, f"{operation.__name__} let an OSError through at step {step}"
                driver.remove(id=id)
                assert driver.owned() == {base}
                assert layers.remains([id]) == []

    def test_a_full_disk_is_survived(self, world: World) -> None:
        """52: what does not fit fails; everything is removable while it is full; then there is space again."""
        from transom.services.mounts import mount, privately

        mebibyte = 1 << 20
        small = world.path / "small"
        small.mkdir()

        def fill(top: Path) -> None:
            with open(top / "large", "wb", buffering=0) as file:
                for _ in range(64):
                    if file.write(bytes(mebibyte)) != mebibyte:
                        file.write(b"x")

        def run() -> bool:
            mount("tmpfs", str(small), "tmpfs", data="size=24m")
            world.path = small
            layers = Layers(world)
            try:
                layers.committed("base", fill=put(a="1"))
                layers.active("large", "base")
                try:
                    layers.inside("large", fill)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                else:
                    return False
                base, large = (layers.snapshots.stat(key).id for key in ("base", "large"))
                refused = []
                try:
                    layers.driver.prepare(id="f" * 20, parents=(base,), size=None, idmap=None)
                except DriverError as error:
                    refused.append(error.errno)
                assert refused in ([], [errno.ENOSPC])
                for id in ("f" * 20, large):
                    layers.driver.remove(id=id)
                layers.snapshots.remove("large")
                layers.active("again", "base", lambda top: (top / "f").write_bytes(bytes(mebibyte)))
                layers.snapshots.commit("again", "again")
                assert layers.inside("again", names_in) == ["a", "f"]
                layers.remove_all()
            finally:
                layers.close()
            return True

        if not privately(run):
            pytest.skip("the driver does not keep its layers on the file system of its root")

    def test_what_was_committed_survives_a_power_loss(self, world: World) -> None:
        """60: only what had reached the disk when commit returned is there afterwards, and it is whole."""
        import shutil
        import subprocess

        from transom.services.mounts import privately, unmount

        if not shutil.which("mkfs.ext4") or not os.path.exists("/dev/loop-control"):
            pytest.skip("needs mkfs.ext4 and loop devices")
        disk, copy = world.path / "disk.img", world.path / "copy.img"
        place = world.path / "disk"
        place.mkdir()
        with open(disk, "wb") as file:
            file.truncate(128 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", disk], check=True)
        home = world.path

        def attach(image: Path) -> None:
            subprocess.run(["mount", "-o", "loop", image, place], check=True)

        def run() -> None:
            attach(disk)
            try:
                world.path = place
                layers = Layers(world)
                layers.committed("base", fill=lambda top: scribble(top, 60))
                layers.committed("child", "base", lambda top: scribble(top, 600))
                layers.active("unfinished", "child", put(lost="1"))
                trees = {key: layers.tree(key) for key in ("base", "child")}
                shutil.copyfile(disk, copy)
                layers.close()
            finally:
                unmount(str(place), detach=False)
            attach(copy)
            try:
                layers = Layers(world)
                layers.snapshots.recover()
                lines = layers.snapshots.check()
                assert all("unfinished" in line for line in lines), lines
                assert {key: layers.tree(key) for key in trees} == trees
                layers.remove_all()
                layers.close()
            finally:
                world.path = home
                unmount(str(place), detach=False)

        privately(run)
        for image in (disk, copy):
            _wait_for_detached(image)

    def test_a_layer_without_a_record_is_removed_and_strangers_are_left_alone(self, layers: Layers) -> None:
        """62."""
        layers.committed("base", fill=put(a="1"))
        base = layers.snapshots.stat("base").id
        layers.driver.prepare(id="f" * 20, parents=(base,), size=None, idmap=None)
        stranger = Path(layers.driver.root) / "Not.A.Layer"
        stranger.mkdir()
        (stranger / "precious").write_text("x")
        assert layers.driver.owned() == {base, "f" * 20}
        assert any("f" * 20 in line for line in layers.snapshots.check())
        assert any("f" * 20 in line for line in layers.snapshots.recover())
        assert layers.snapshots.recover() == []
        assert layers.driver.owned() == {base}
        assert (stranger / "precious").read_text() == "x"
        _clear(stranger)

    def test_a_record_without_data_is_reported_and_removable(self, layers: Layers) -> None:
        """63: the other layers go on working."""
        layers.committed("base", fill=put(a="1"))
        layers.active("lost", "base")
        layers.driver.remove(id=layers.snapshots.stat("lost").id)
        assert any("lost" in line for line in layers.snapshots.check())
        layers.snapshots.remove("lost")
        assert layers.snapshots.check() == []
        assert layers.inside("base", names_in) == ["a"]

    def test_a_removal_that_was_interrupted_is_finished(self, layers: Layers) -> None:
        """64: killed again and again, the driver reports the layer until it is wholly gone, and each time goes on."""

        def fill(top: Path) -> None:
            for n in range(6):
                (top / f"d{n}").mkdir()
                for m in range(6):
                    os.mknod(top / f"d{n}" / str(m))

        layers.active("large", fill=fill)
        id, driver = layers.snapshots.stat("large").id, layers.driver
        driver.remove(id="absent-0")  # what it imports is imported now
        step = 1
        while killed_at(lambda: driver.remove(id=id), step):  # a step further each time, so that it comes to an end
            step += 1
            assert driver.owned() == ({id} if layers.remains([id]) else frozenset())
            assert step < 1000
        assert layers.remains([id]) == []
        assert driver.owned() == frozenset()
        layers.snapshots.remove("large")

    def test_a_mount_leaked_elsewhere_does_not_block_removal(self, layers: Layers) -> None:
        """65: another process still has the layer mounted in a namespace of its own."""
        from transom.services.mounts import mount_all, private_namespace

        layers.committed("base", fill=put(a="1"))
        layers.active("child", "base")
        mounts = layers.snapshots.mounts("child")
        place = layers.world.path / "leaked"
        place.mkdir()
        ready, tell = os.pipe()

        def hold() -> None:
            private_namespace()
            mount_all(mounts, str(place))
            os.write(tell, b"!")
            time.sleep(60)

        pid = fork(hold)
        os.close(tell)
        try:
            assert os.read(ready, 1) == b"!"
            layers.snapshots.remove("child")
            assert len(layers.driver.owned()) == 1
        finally:
            os.close(ready)
            os.kill(pid, signal.SIGKILL)
            wait(pid)

    # Input

    @pytest.mark.parametrize(
        "key", ["", ".", "..", "/", "a/b", "../x", "nul\0", "x" * 4096, "-rf", "--option=value", "new\nline", "\udcff"]
    )
    def test_a_bad_name_is_refused_and_nothing_is_made(self, layers: Layers, key: str) -> None:
        """67: nothing outside the driver's root either."""
        layers.committed("base")
        owned, beside = layers.driver.owned(), sorted(os.listdir(layers.world.path / "state" / "storage"))
        attempts: tuple[Callable[[], object], ...] = (
            lambda: layers.snapshots.prepare(key, None),
            lambda: layers.snapshots.prepare(key, "base"),
            lambda: layers.snapshots.view(key, "base"),
        )
        for attempt in attempts:
            with pytest.raises(ConfigError):
                attempt()
        layers.active("good", "base")
        with pytest.raises(ConfigError):
            layers.snapshots.commit("good", key)
        layers.snapshots.remove("good")
        assert layers.driver.owned() == owned
        assert sorted(os.listdir(layers.world.path / "state" / "storage")) == beside

    def test_an_unknown_option_is_refused_before_anything_is_made(self, world: World) -> None:
        """68."""
        with pytest.raises(ConfigError, match="no-such-option"):
            world.open(**{"no-such-option": "1"})
        assert not (world.path / "state").exists()

    def test_the_probe_answers_and_changes_nothing(self, world: World) -> None:
        """69: usable here, and the root is not even made."""
        driver = world.open()
        before = sorted(os.listdir(world.path))
        probe = driver.probe()
        assert probe.usable, probe.reason
        assert sorted(os.listdir(world.path)) == before

    def test_status_and_errors_are_texts(self, layers: Layers) -> None:
        """72: status is JSON-able, an error names driver, operation and id."""
        assert msgspec.json.encode(layers.driver.status())
        assert all(isinstance(text, str) for pair in layers.driver.status().items() for text in pair)
