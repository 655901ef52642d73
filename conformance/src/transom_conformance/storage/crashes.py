"""What is left when a process is killed, a call fails, the disk is full or the power goes; and its repair."""

from __future__ import annotations

import errno
import io
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from transom.contract.storage import Change, ChangeKind, State, Storage, StorageCapability
from transom.errors import DriverError, TransomError
from transom.services.files import sync_filesystem
from transom.services.snapshots import Snapshots
from transom_conformance.faults import (
    Announcement,
    SystemCall,
    announcements,
    calls_of,
    failed_at,
    faulted_at,
    fork,
    killed_at,
    killed_before,
    needs_strace,
    sample,
    system_calls,
    wait,
)
from transom_conformance.plugin import NOT_CLAIMED
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.disk import Disk
from transom_conformance.storage.layers import Layers, Node, clear, held_elsewhere, mounted, names_in, put
from transom_conformance.storage.scribbles import scribble
from transom_conformance.suite import World


class _Scene:
    """One operation on the layer "child" over "base", and the model: what is there before it and after it."""

    def __init__(self, layers: Layers, operation: str, suite: Crashes) -> None:
        needs = {"clone": StorageCapability.CLONE}.get(operation)
        if needs and needs not in layers.driver.capabilities:
            pytest.skip(f"{NOT_CLAIMED}: {layers.driver.name} does not declare {needs}")
        if not suite.seam and (reason := needs_strace()):
            pytest.skip(reason)
        self._world, self._operation, self._suite = layers.world, operation, suite
        layers.committed("base", fill=put(**{f"f{n}": str(n) for n in range(4)}, d__e="1"))
        self._base = layers.tree("base")
        layers.active("child", "base", put(own="1"))
        self._child, self._tar = layers.tree("child"), layers.diff("child")
        layers.snapshots.remove("child")
        self._files = layers.files()
        layers.close()
        if suite.seam:
            layers.world.open().status()  # what the driver starts for its first user stays
        made, begun = operation in {"prepare", "view"}, {"base", "child"}
        self._before = {"base"} if made else begun
        self.after = {"commit": {"base", "done"}, "remove": {"base"}, "clone": {*begun, "copy"}}.get(operation, begun)

    def calls(self, most: int) -> Sequence[SystemCall | Announcement]:
        """List the calls of the operation, one run of it on a scene of its own: all at a seam, else a sample."""
        self.arrange()
        try:
            if self._suite.seam:
                return announcements(self.act, self._suite.seam)
            return sample(system_calls(self.act, touching=[self._world.path]), max(most // self._suite.stride, 2))
        finally:
            self.judge(self._operation, expected=self.after)

    def arrange(self) -> None:
        """Make what is there before."""
        if "child" in self._before:
            layers = Layers(self._world)
            layers.active("child", "base", None if self._operation == "apply" else put(own="1"))
            layers.close()

    def act(self) -> None:
        """Do it, as a process of its own would."""
        snapshots = Snapshots(self._world.open())
        match self._operation:
            case "prepare":
                snapshots.prepare("child", "base")
            case "view":
                snapshots.view("child", "base")
            case "apply":
                snapshots.apply("child", io.BytesIO(self._tar))
            case "commit":
                snapshots.commit("child", "done")
            case "clone":
                snapshots.clone("copy", "child")
            case _:
                snapshots.remove("child")

    def judge(self, where: str, *, expected: set[str] | None) -> None:
        """Recover, compare with the model, and remove all but the base.

        Args:
            expected: the layers that must be there; None for those of before or of after.
        """
        layers = Layers(self._world)
        try:
            layers.snapshots.recover()
            assert layers.snapshots.recover() == [], f"{where}: a second recovery found more to do"
            assert layers.snapshots.check() == [], where
            found = {layer.key for layer in layers.snapshots.walk()}
            assert found in ([expected] if expected else [self._before, self.after]), where
            for key in sorted(found):
                assert self._is_whole(key, layers.tree(key, times=False), done=bool(expected)), f"{key} after {where}"
            if self._operation == "commit" and "child" in found:  # as good as if nobody had begun to commit it
                layers.inside("child", put(late="1"))
                layers.snapshots.commit("child", "child")
                assert "late" in layers.inside("child", names_in), where
            for key in sorted(found - {"base"}, reverse=True):
                layers.snapshots.remove(key)
            assert layers.files() == self._files, f"left behind after {where}"
            assert self._suite.strays(layers.driver) == [], f"left in the kernel after {where}"
        finally:
            layers.close()

    def _is_whole(self, key: str, tree: dict[bytes, Node], *, done: bool) -> bool:
        fresh, filled = (_timeless(wanted) for wanted in (self._base, self._child))
        if key == "base" or self._operation in {"prepare", "view"}:
            return tree == fresh
        if self._operation == "apply" and not done:  # half of a tar is there: nothing was said to be done
            return all(tree[name] == node for name, node in fresh.items() if name != b".")
        return tree == filled


def _timeless(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    return {name: msgspec.structs.replace(node, mtime=0) for name, node in tree.items()}


class Crashes(StorageCases):
    """What is left when a process is killed, a call fails, the disk is full or the power goes; and its repair."""

    stride: ClassVar[int] = 1
    """Each so-many-th call into the system is one to die or to fail at: more where a run of each takes too long."""
    seam: ClassVar[tuple[str, ...]] = ()
    """Audit events that stand for all that the driver does to the system, each of which is then one to die and to fail
    at: for a driver whose system calls are made by other programs, or are too many to be traced one by one."""
    disk: ClassVar[type[Disk]] = Disk
    """What cases put the driver's root on when they fill it, or take its power away."""
    full: ClassVar[frozenset[int]] = frozenset({errno.ENOSPC})
    """With what a write fails when the disk is full; where a layer is a file system of its own, its journal may too."""

    def strays(self, driver: Storage) -> list[str]:
        """Name what is in the kernel of layers that are no more, for a driver that keeps something there."""
        return []

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
                step += self.stride
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

    @pytest.mark.parametrize("operation", ["prepare", "view", "apply", "commit", "clone", "remove"])
    def test_killed_before_any_system_call_what_is_there_is_whole(self, layers: Layers, operation: str) -> None:
        """59: each call that touches the layers, those of SQLite and of other programs too; 40 of them when more."""
        scene = _Scene(layers, operation, self)
        for call in scene.calls(40):
            scene.arrange()
            died = killed_before(scene.act, call)
            scene.judge(f"{operation}, killed before {call.text}", expected=None if died else scene.after)

    @pytest.mark.parametrize("operation", ["prepare", "apply", "commit", "remove"])
    def test_whatever_system_call_fails_once_what_is_there_is_whole(self, layers: Layers, operation: str) -> None:
        """61: with ENOSPC, EIO, EBUSY and EINTR in turn; what is reported done is done, what is not is in words."""
        scene = _Scene(layers, operation, self)
        codes = cycle((errno.ENOSPC, errno.EIO, errno.EBUSY, errno.EINTR))
        for call, code in zip(scene.calls(28), codes, strict=False):
            scene.arrange()
            outcome = failed_at(scene.act, call, code)
            where = f"{operation}, {errno.errorcode[code]} at {call.text}: {outcome.error or 'no error'}"
            assert outcome.in_words or not outcome.error, where
            scene.judge(where, expected=None if outcome.error else scene.after)

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
                step += self.stride
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
                step += self.stride
                if operation is not prepare:
                    prepare()
                reached, outcome = faulted_at(operation, step, errno.EIO)
                assert outcome in {0, 2}, f"{operation.__name__} let an OSError through at step {step}"
                driver.remove(id=id)
                assert driver.owned() == {base}
                assert layers.remains([id]) == []

    def test_a_full_disk_is_survived(self, world: World) -> None:
        """52: what does not fit fails; everything is removable while it is full; then there is space again."""
        mebibyte = 1 << 20

        def fill(top: Path) -> None:
            with open(top / "large", "wb", buffering=0) as file:
                for _ in range(256):
                    if file.write(os.urandom(mebibyte)) != mebibyte:
                        file.write(b"x")
                    os.fsync(file.fileno())

        def run(layers: Layers) -> None:
            layers.committed("base", fill=put(a="1"))
            layers.active("large", "base")
            try:
                layers.inside("large", fill)
            except OSError as error:
                if error.errno not in self.full:
                    raise
            else:
                pytest.skip("the driver does not keep its layers on the file system of its root")
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
            sync_filesystem(layers.driver.root)  # what is freed in the background is free now
            layers.active("again", "base", lambda top: (top / "f").write_bytes(bytes(mebibyte)))
            layers.snapshots.commit("again", "again")
            assert layers.inside("again", names_in) == ["a", "f"]
            layers.remove_all()

        with self.disk(world, self.filesystem) as disk:
            disk.using(run)

    def test_what_was_committed_survives_a_power_loss(self, world: World) -> None:
        """60: only what had reached the disk when commit returned is there afterwards, and it is whole."""
        trees = {}

        def run(layers: Layers) -> None:
            layers.committed("base", fill=lambda top: scribble(top, 60))
            layers.committed("child", "base", lambda top: scribble(top, 600))
            layers.active("unfinished", "child", put(lost="1"))
            trees.update({key: layers.tree(key) for key in ("base", "child")})
            disk.copy()

        def judge(layers: Layers) -> None:
            layers.snapshots.recover()
            lines = layers.snapshots.check()
            assert all("unfinished" in line for line in lines), lines
            assert {key: layers.tree(key) for key in trees} == trees
            layers.remove_all()

        with self.disk(world, self.filesystem) as disk:
            disk.using(run)
            disk.using(judge, after_the_loss=True)

    def test_a_power_loss_at_any_system_call_leaves_what_was_reported(self, world: World) -> None:
        """60: a commit is killed and the power goes, before ten of its calls; nothing half-made has a record."""
        if not self.seam and (reason := needs_strace()):
            pytest.skip(reason)
        before: dict[bytes, Node] = {}

        def commit() -> None:
            snapshots = Snapshots(world.open())
            snapshots.commit("child", "done")

        def begin(layers: Layers) -> None:
            layers.committed("base", fill=lambda top: scribble(top, 61, steps=20))
            layers.active("child", "base", put(**{f"d__f{n}": str(n) * 5000 for n in range(8)}))
            before.update(layers.tree("child"))
            layers.close()

        def list_calls(layers: Layers) -> None:
            begin(layers)
            every = announcements(commit, self.seam) if self.seam else system_calls(commit, touching=[world.path])
            calls.extend(sample(every, max(10 // self.stride, 4), seed=60))

        calls: list[SystemCall | Announcement] = []
        with self.disk(world, self.filesystem) as disk:
            disk.using(list_calls)
        for call in calls:

            def lose(layers: Layers, call: SystemCall | Announcement = call) -> None:
                begin(layers)
                killed_before(commit, call)
                disk.copy()
                again = layers.reopen()
                again.snapshots.recover()  # what the killed one holds must not keep the disk
                again.close()

            def judge(layers: Layers, call: SystemCall | Announcement = call) -> None:
                layers.snapshots.recover()
                assert layers.snapshots.check() == [], call.text
                found = {layer.key: layer.state for layer in layers.snapshots.walk()}
                assert found.get("base") is State.COMMITTED, call.text
                if "done" in found:
                    assert layers.tree("done") == before, call.text
                for key in found.keys() - {"base"}:
                    layers.snapshots.remove(key)
                layers.remove_all()

            with self.disk(world, self.filesystem) as disk:
                disk.using(lose)
                disk.using(judge, after_the_loss=True)

    def test_lost_records_make_layers_refused_not_removed(self, layers: Layers) -> None:
        """63: with the database gone, nobody can say what is an orphan; the data stays until somebody decides."""
        layers.committed("base", fill=put(precious="1"))
        owned = layers.driver.owned()
        layers.close()
        home, kept = Path(f"{layers.driver.root}.layers"), layers.world.path / "kept"
        kept.mkdir()
        for path in home.glob("layers.db*"):
            path.rename(kept / path.name)
        again = Layers(layers.world)
        try:
            for attempt in (
                again.snapshots.recover,
                lambda: again.snapshots.stat("base"),
                lambda: again.snapshots.prepare("new", None),
            ):
                with pytest.raises(DriverError, match="records of its layers are lost"):
                    attempt()
            assert again.driver.owned() == owned
        finally:
            again.close()
        for path in home.glob("layers.db*"):
            path.unlink()
        for path in kept.iterdir():
            path.rename(home / path.name)
        assert layers.inside("base", names_in) == ["precious"]

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
        clear(stranger)

    def test_a_record_without_data_is_reported_and_removable(self, layers: Layers) -> None:
        """63: the other layers go on working."""
        layers.committed("base", fill=put(a="1"))
        layers.active("lost", "base")
        layers.driver.remove(id=layers.snapshots.stat("lost").id)
        assert any("lost" in line for line in layers.snapshots.check())
        layers.snapshots.remove("lost")
        assert layers.snapshots.check() == []
        assert layers.inside("base", names_in) == ["a"]

    def test_a_layer_that_was_changed_from_outside_is_told_from_its_tar(self, layers: Layers) -> None:
        """66: path by path, also where size and time are as before; unless the driver lets nobody change it."""

        def child(top: Path) -> None:
            (top / "gone").unlink()
            put(file="2", d__x="1", d__y="1", sly="old")(top)
            if layers.driver.keeps_attributes:
                os.setxattr(top / "file", "trusted.x", b"1")

        tars: dict[str, bytes] = {}
        for name, parent, fill in (("base", None, put(gone="1", kept="1", d__k="1")), ("child", "base", child)):
            layers.active("draft", parent, fill)
            tars[name] = layers.diff("draft")
            layers.snapshots.remove("draft")
            layers.active("draft", parent)
            layers.snapshots.apply("draft", io.BytesIO(tars[name]))
            layers.snapshots.commit("draft", name)
        layers.active("user", "child", put(own="1"))
        before = layers.driver.owned()

        def verify(key: str) -> list[Change]:
            return layers.snapshots.verify(key, io.BytesIO(tars[key]))

        def meddle(top: Path) -> None:
            times = (top / "sly").stat()
            (top / "sly").write_text("new")
            os.utime(top / "sly", ns=(times.st_atime_ns, times.st_mtime_ns))
            if layers.driver.keeps_attributes:
                os.setxattr(top / "file", "trusted.x", b"2")
            else:
                (top / "file").chmod(0o600)
            (top / "d" / "x").unlink()
            (top / "d" / "y").chmod(0o4755)
            (top / "gone").write_text("back")

        assert verify("base") == verify("child") == []
        protected = not self._meddled(layers, "child", meddle)
        added, modified, deleted = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED
        wanted = [
            Change(b"d/x", deleted), Change(b"d/y", modified), Change(b"file", modified), Change(b"gone", added),
            Change(b"sly", modified),
        ]  # fmt: skip
        assert verify("child") == ([] if protected else wanted)
        assert verify("base") == []
        assert layers.driver.owned() == before
        assert [layer.key for layer in layers.snapshots.walk()] == ["base", "child", "user"]

    @staticmethod
    def _meddled(layers: Layers, key: str, function: Callable[[Path], object]) -> bool:
        """Change a committed layer behind core's back; False when the driver has it protected from that."""
        layer, parents = layers.snapshots.stat(key), layers.parents(key)
        try:
            mounts = layers.driver.mounts(id=layer.id, parents=parents, state=State.ACTIVE)
            mounted(mounts, layers.world.path / "meddled", function)
        except (OSError, TransomError) as error:
            if getattr(error, "errno", None) != errno.EROFS:
                raise
            return False
        return True

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
            owned = driver.owned()  # not all of a layer need be a file
            assert owned == {id} or (not owned and not layers.remains([id]))
            assert step < 1000
        assert layers.remains([id]) == []
        assert driver.owned() == frozenset()
        layers.snapshots.remove("large")

    def test_a_mount_leaked_elsewhere_does_not_block_removal(self, layers: Layers) -> None:
        """65: another process still has the layer mounted in a namespace of its own."""
        layers.committed("base", fill=put(a="1"))
        layers.active("child", "base")
        with held_elsewhere(layers.snapshots.mounts("child"), layers.world.path / "leaked"):
            layers.snapshots.remove("child")
            assert len(layers.driver.owned()) == 1
