"""What a user reads when layers cannot be had as asked; the storage suite proves what layers do."""

import io
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from transom.contract.storage import Mount, State, Storage, Usage
from transom.errors import ConfigError, Conflict, DriverError, NotFound, NotSupported
from transom.services.snapshots import Layer, Snapshots
from transom.services.trees import copy_tree, remove_tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: layers are mounted")


class Plain(Storage):
    name = "plain"
    api = 1
    max_depth = 2

    def prepare(self, id, parents, size, idmap):
        self.root.mkdir(parents=True, exist_ok=True)
        if parents:
            copy_tree(self.root / parents[0], self.root / id)
        else:
            (self.root / id).mkdir()

    def mounts(self, id, parents, state):
        of = id if state is not State.VIEW else parents[0]
        return (Mount(type="bind", source=str(self.root / of), readonly=state is not State.ACTIVE),)

    def remove(self, id):
        remove_tree(self.root / id)

    def owned(self):
        return frozenset(os.listdir(self.root))

    def usage(self, id, parents):
        return Usage(size=0, inodes=1)


@pytest.fixture
def layers(tmp_path):
    found = Snapshots(Plain(options=None, root=tmp_path / "root", run=tmp_path / "run"))
    yield found
    found.close()


def committed(layers, key, parent=None):
    layers.prepare("making", parent)
    return layers.commit("making", key)


def refused(kind, function, *args, **kwargs):
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def test_a_layer_goes_through_its_life(layers):
    committed(layers, "base")
    layers.view("look", "base")
    layers.prepare("top", "base")
    assert [(layer.key, layer.parent, layer.state) for layer in layers.walk()] == [
        ("base", None, State.COMMITTED),
        ("look", "base", State.VIEW),
        ("top", "base", State.ACTIVE),
    ]
    out = io.BytesIO()
    assert layers.diff("top", out) == len(out.getvalue())
    assert layers.changes("look") == []
    for key in ("top", "look", "base", "base"):
        layers.remove(key)
    assert list(layers.walk()) == []
    assert layers.driver.owned() == frozenset()
    assert not [name for name in os.listdir(layers._home) if name.startswith("claim-")]


def test_each_refusal_says_what_and_why(layers):
    committed(layers, "base")
    layers.prepare("top", "base")
    layers.view("look", "base")
    say = "storage plain: "
    assert refused(NotFound, layers.stat, "none") == say + "no layer 'none'"
    assert refused(NotFound, layers.prepare, "x", "none") == say + "no layer 'none' to be a parent"
    assert refused(Conflict, layers.prepare, "top", None) == say + "layer 'top' exists already"
    assert refused(Conflict, layers.commit, "top", "base") == say + "layer 'base' exists already"
    assert refused(Conflict, layers.prepare, "x", "top") == (
        say + "layer 'top' is active: only committed layers are parents"
    )
    assert (
        refused(Conflict, layers.commit, "look", "x") == say + "layer 'look' is view: only active layers are committed"
    )
    assert refused(Conflict, layers.apply, "base", io.BytesIO()) == (
        say + "layer 'base' is committed: nothing can be unpacked into it"
    )
    assert (
        refused(Conflict, layers.clone, "x", "base") == say + "layer 'base' is committed: only active ones are cloned"
    )
    layers.remove("look")
    assert refused(Conflict, layers.remove, "base") == say + "cannot remove layer 'base': it is the parent of top"
    assert refused(NotSupported, layers.prepare, "x", None, size=1) == "storage driver plain does not support quota"
    assert refused(ConfigError, layers.prepare, "../x", None) == (
        "'../x' cannot name a layer: 1 to 255 letters, digits and _.:@+- are allowed, starting with a letter or digit"
    )
    with layers.claim("top"):
        for function, args in ((layers.claim, ("top",)), (layers.remove, ("top",)), (layers.commit, ("top", "x"))):
            assert refused(Conflict, function, *args) == say + "layer 'top' is in use by another process"
    assert {layer.key for layer in layers.walk()} == {"base", "top"}


def test_a_chain_too_deep_is_refused_before_anything_is_made(layers):
    committed(layers, "a")
    committed(layers, "b", "a")
    committed(layers, "c", "b")
    before = layers.driver.owned()
    assert refused(NotSupported, layers.prepare, "d", "c") == (
        "storage plain: a layer over 3 others is deeper than this driver can on this host (2);"
        " flatten the image (export and import it)"
    )
    assert layers.driver.owned() == before


def test_what_dead_processes_left_is_named_and_cleared(layers):
    base, top = committed(layers, "base"), layers.prepare("top", "base")
    lost = layers.prepare("lost", "base")
    with sqlite3.connect(layers._path) as db:
        db.execute("UPDATE layer SET state = 'removing' WHERE id = ?", (top.id,))
    db.close()
    remove_tree(layers.driver.root / lost.id)
    (layers.driver.root / "stray").mkdir()
    assert sorted(layers.check()) == [
        "storage plain: layer lost has a record but no data",
        "storage plain: layer top is unfinished (removing)",
        "storage plain: stray is on disk without a record",
    ]
    assert layers.recover() == [
        "storage plain: removed the unfinished layer top",
        "storage plain: removed stray, which has no record",
    ]
    assert layers.recover() == []
    assert layers.driver.owned() == {base.id}


def test_a_key_that_a_dead_process_left_unfinished_can_be_had_again(layers):
    first = layers.prepare("top", None)
    with sqlite3.connect(layers._path) as db:
        db.execute("UPDATE layer SET state = 'preparing' WHERE id = ?", (first.id,))
    db.close()
    assert not layers.exists("top")
    assert layers.prepare("top", None).id != first.id
    assert first.id not in layers.driver.owned()


def test_a_layer_that_is_made_whole_while_another_asks_for_its_key_is_not_taken_for_a_dead_ones(layers, monkeypatch):
    first = layers.prepare("top", None)
    with closing(sqlite3.connect(layers._path, isolation_level=None)) as db:
        db.execute("UPDATE layer SET state = 'preparing' WHERE id = ?", (first.id,))

        def clear(shared, id, clear=layers._clear):
            db.execute("UPDATE layer SET state = 'active' WHERE id = ?", (id,))  # its maker ends at this moment
            return clear(shared, id)

        monkeypatch.setattr(layers, "_clear", clear)
        assert "top" in refused(Conflict, layers.prepare, "top", None)
    assert layers.stat("top").id == first.id
    assert layers.driver.owned() == {first.id}


def test_what_the_kernel_refuses_names_driver_and_place(layers, monkeypatch):
    def refuse(**_):
        raise OSError(28, "No space left on device", "/place")

    monkeypatch.setattr(layers.driver, "prepare", refuse)
    assert refused(DriverError, layers.prepare, "x", None) == (
        "storage plain: operation /place failed: No space left on device"
    )
    assert not layers.exists("x")


def test_records_of_the_release_before_labels_are_read_and_can_be_labelled(layers):
    home = Path(layers._home)
    home.mkdir(parents=True)
    (layers.driver.root / "0123").mkdir(parents=True)
    with sqlite3.connect(layers._path) as db:
        db.executescript("""
            CREATE TABLE layer (
                id TEXT PRIMARY KEY, key TEXT NOT NULL UNIQUE, parent TEXT REFERENCES layer(id),
                state TEXT NOT NULL CHECK (state IN ('preparing', 'active', 'view', 'committed', 'removing')),
                created INTEGER NOT NULL
            ) WITHOUT ROWID;
            CREATE INDEX layer_parent ON layer(parent);
            INSERT INTO layer VALUES ('0123', 'base', NULL, 'committed', 7);
            PRAGMA user_version = 1;
        """)
    db.close()
    base = layers.stat("base")
    assert base == Layer("base", "0123", None, State.COMMITTED, created=7, updated=7, labels={})
    assert layers.update(msgspec.structs.replace(base, labels={"a": "b"})).labels == {"a": "b"}
    assert layers.prepare("top", "base", labels={"c": "d"}).parent == "base"
    assert layers.check() == []


def test_what_cannot_be_changed_in_a_record_is_said(layers):
    top = layers.prepare("top", None, labels={"a": "b"})
    say = "storage plain: "
    other = msgspec.structs.replace(top, key="new", state=State.COMMITTED)
    assert refused(ConfigError, layers.update, other) == (
        say + "key and state of layer 'top' cannot be changed, only its labels"
    )
    assert refused(ConfigError, layers.prepare, "x", None, labels={"k" * 90: "v" * 4096}) == (
        f"label '{'k' * 50}...' of a layer: its key and value have 4186 bytes, at most 4096 are allowed"
    )
    assert refused(ConfigError, layers.prepare, "x", None, labels={"": "v"}) == "label '' of a layer: it has no key"
    layers.update(top)
    assert refused(Conflict, layers.update, top) == say + "layer 'top' was changed meanwhile: read its record again"
    layers.remove("top")
    assert refused(NotFound, layers.update, top) == say + "no layer 'top'"


def test_a_diff_against_a_stranger_names_the_ancestors_there_are(layers):
    committed(layers, "a")
    committed(layers, "b", "a")
    layers.prepare("top", "b")
    assert refused(ConfigError, layers.diff, "top", io.BytesIO(), since="x") == (
        "storage plain: 'x' is no ancestor of layer 'top'; it has b, a"
    )
    assert refused(ConfigError, layers.changes, "a", since="top") == (
        "storage plain: 'top' is no ancestor of layer 'a'; it has none"
    )
