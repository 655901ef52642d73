"""A layer is made, committed, listed, measured and removed as the contract says."""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import pytest

from transom.contract.storage import State, StorageCapability
from transom.errors import ConfigError, Conflict, NotFound, NotSupported
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.idmaps import SHIFTED
from transom_conformance.storage.layers import Layers, Node, names_in, put, tree_of
from transom_conformance.storage.scribbles import scribble
from transom_conformance.suite import in_child, undeclared


class LifeCycle(StorageCases):
    """A layer is made, committed, listed, measured and removed as the contract says."""

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
            if layers.driver.keeps_attributes:
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

    def test_when_a_layer_was_made_is_kept(self, layers: Layers) -> None:
        """11: in nanoseconds, through commit and restart."""
        before = time.time_ns()
        layers.active("a")
        after = time.time_ns()
        made = layers.snapshots.stat("a").created
        assert before <= made <= after
        layers.snapshots.commit("a", "b")
        again = layers.reopen()
        try:
            assert again.snapshots.stat("b").created == made
        finally:
            again.close()

    def test_labels_are_kept_and_can_be_changed(self, layers: Layers) -> None:
        """11: from prepare on, through commit and restart; the layer itself is not touched."""
        layers.committed("base", fill=put(a="1"))
        made = layers.snapshots.prepare("a", "base", labels={"image": "busybox", "\u00fc": "\n\0'"})
        assert (made.labels, made.updated) == ({"image": "busybox", "\u00fc": "\n\0'"}, made.created)
        before = layers.tree("a"), layers.driver.owned()
        changed = layers.snapshots.update(msgspec.structs.replace(made, labels={"image": "debian", "x": "1" * 4095}))
        assert changed == layers.snapshots.stat("a")
        assert (changed.labels, changed.created) == ({"image": "debian", "x": "1" * 4095}, made.created)
        assert changed.updated > made.updated
        assert (layers.tree("a"), layers.driver.owned()) == before
        done = layers.snapshots.commit("a", "b", labels={"x": "", "y": "2"})
        assert (done.labels, done.created) == ({"image": "debian", "x": "", "y": "2"}, made.created)
        assert done.updated > changed.updated
        assert layers.snapshots.update(msgspec.structs.replace(done, labels={"z": "3"})).labels == {"z": "3"}
        again = layers.reopen()
        try:
            assert [(layer.key, layer.labels) for layer in again.snapshots.walk()] == [("base", {}), ("b", {"z": "3"})]
        finally:
            again.close()

    def test_nothing_of_a_record_but_its_labels_can_be_changed(self, layers: Layers) -> None:
        """11: nor by who read the record before another changed it."""
        layers.committed("base")
        layer = layers.snapshots.prepare("a", "base", labels={"n": "0"})
        fields: dict[str, object] = {"key": "b", "parent": None, "state": State.COMMITTED, "created": 1}
        for name, value in fields.items():
            with pytest.raises(ConfigError, match=f": {name} of layer 'a' cannot be changed, only its labels"):
                layers.snapshots.update(msgspec.structs.replace(layer, labels={"n": "1"}, **{name: value}))
        for labels, why in (({"n" * 4096: "1"}, "4097 bytes, at most 4096"), ({"": "1"}, "no key")):
            attempts: tuple[Callable[[], object], ...] = (
                partial(layers.snapshots.update, msgspec.structs.replace(layer, labels=labels)),
                partial(layers.snapshots.prepare, "b", "base", labels=labels),
                partial(layers.snapshots.commit, "a", "b", labels=labels),
            )
            for attempt in attempts:
                with pytest.raises(ConfigError, match=why):
                    attempt()
        assert layers.snapshots.stat("a") == layer
        layers.snapshots.update(msgspec.structs.replace(layer, labels={"n": "1"}))
        with pytest.raises(Conflict, match="read its record again"):
            layers.snapshots.update(msgspec.structs.replace(layer, labels={"n": "2"}))
        again = layers.reopen()
        try:
            assert [(layer.key, layer.labels) for layer in again.snapshots.walk()] == [("base", {}), ("a", {"n": "1"})]
            again.snapshots.remove("a")
            with pytest.raises(NotFound):
                again.snapshots.update(layer)
        finally:
            again.close()

    def test_labels_that_a_kill_interrupts_are_the_old_or_the_new(self, layers: Layers) -> None:
        """11, 59: never some of each."""
        layers.snapshots.prepare("a", None, labels={"n": "0", "same": "0"})
        layers.close()

        def change() -> None:
            own = Layers(layers.world)
            layer = own.snapshots.stat("a")
            for n in count():
                layer = own.snapshots.update(msgspec.structs.replace(layer, labels={"n": f"{n}", "same": f"{n}"}))

        for n in range(6):
            assert in_child(change, kill_after=0.05 + n / 50) == -signal.SIGKILL
            found = layers.snapshots.stat("a").labels
            assert found.keys() == {"n", "same"}
            assert found["n"] == found["same"]
            assert layers.snapshots.check() == layers.snapshots.recover() == []
            layers.close()
            assert layers.snapshots.stat("a").labels == found, "after a restart"
            layers.snapshots.close()

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

    def test_a_layer_that_will_be_unmounted_stays_as_it_is(self, layers: Layers) -> None:
        """15, 24: told twice, too; each name of a file of the parent shows what was written, or what is below."""

        def fill(top: Path) -> None:
            put(a="old", d__e="1")(top)
            os.link(top / "a", top / "d" / "b")

        def check(top: Path) -> dict[bytes, Node]:
            (top / "a").write_text("new")
            before = tree_of(top, times=False)
            for _ in range(2):
                layers.driver.unmounting(id=layers.snapshots.stat("child").id, place=str(top))
                assert tree_of(top, times=False) == before
            return before

        layers.committed("base", fill=fill)
        base = layers.tree("base")
        layers.active("child", "base")
        before, after = layers.inside("child", check), layers.tree("child")
        assert after.keys() == before.keys() == base.keys()
        assert after[b"a"].content == b"new"
        assert after[b"d/b"].content in {before[b"d/b"].content, b"old"}
        assert layers.tree("base") == base

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
            StorageCapability.QUOTA_INODES: lambda: layers.snapshots.prepare("q", "base", inodes=100),
            StorageCapability.IDMAP: lambda: layers.snapshots.mounts("child", idmap=SHIFTED),
        }
        owned = driver.owned()
        for capability in undeclared(driver, StorageCapability):
            if capability in calls:
                with pytest.raises(NotSupported) as caught:
                    calls[StorageCapability(capability)]()
                assert driver.name in str(caught.value)
        assert driver.owned() == owned
        assert not layers.snapshots.exists("q")
