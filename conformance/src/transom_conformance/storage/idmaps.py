"""Id maps: a layer's files appear as if they belonged to others, and on disk nothing is changed."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from transom.contract.storage import ID_MAX, IdMap, IdRange, StorageCapability
from transom.errors import ConfigError
from transom.services.idmaps import CLONE_NEWUSER, namespace, outside
from transom.services.mounts import setns
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.layers import Layers, Node, clear, put
from transom_conformance.storage.scribbles import scribble
from transom_conformance.suite import in_child

SHIFTED = IdMap(uids=(IdRange(0, 100_000, 65_536),), gids=(IdRange(0, 300_000, 5), IdRange(5, 200_005, 65_531)))
"""Ids of a layer begin at 100,000; groups in two runs that lie the other way round."""


def shifted(node: Node) -> Node:
    """Say how a path of a layer looks through `SHIFTED`."""
    uid, gid = node.owner
    return msgspec.structs.replace(node, owner=(outside(SHIFTED.uids, uid), outside(SHIFTED.gids, gid)))


def through(tree: dict[bytes, Node]) -> dict[bytes, Node]:
    """Say how a tree looks through `SHIFTED`."""
    return {path: shifted(node) for path, node in tree.items()}


def _fill(top: Path) -> None:
    scribble(top, 71)
    put(own="1", d__inner="1", d__other="1", gone="1", again__old="1", late="old")(top)
    (top / "link").symlink_to("own")
    for name, uid, gid in (("own", 5, 6), ("d", 1000, 4), ("link", 65_535, 65_535), ("late", 65_536, 70_000)):
        os.chown(top / name, uid, gid, follow_symlinks=False)
    (top / "own").chmod(0o4755)
    os.chown(top, 0, 0)
    top.chmod(0o755)


def _chown(top: Path) -> None:
    """Do by hand what the map does."""
    paths = [os.fsencode(top)]
    for directory, names, files in os.walk(os.fsencode(top)):
        paths += [os.path.join(directory, name) for name in (*names, *files)]
    for path, found in [(path, os.lstat(path)) for path in paths]:
        owner = outside(SHIFTED.uids, found.st_uid), outside(SHIFTED.gids, found.st_gid)
        os.chown(path, *owner, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(path, stat.S_IMODE(found.st_mode))  # chown(2) clears set-id bits


def as_root_of(idmap: IdMap, top: Path, function: Callable[[Path], object]) -> int:
    """Call `function` with `top`, as root of a user namespace with that map; return how its process ended."""

    def run() -> None:
        os.chdir(top)  # what is above may be nobody else's
        setns(userns, CLONE_NEWUSER)
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        function(Path())

    with namespace(idmap) as userns:
        return in_child(run)


class IdMaps(StorageCases):
    """A layer's files appear as if they belonged to others, and on disk nothing is changed."""

    # Id maps

    @pytest.mark.requires(StorageCapability.IDMAP)
    def test_an_id_map_shows_a_layer_as_if_it_had_been_chowned(self, layers: Layers) -> None:
        """71: committed, as a view and active, over one parent and two; the parents stay whose they were."""
        layers.committed("base", fill=_fill)
        layers.committed("two", "base", put(second="1", d__inner="2"))
        plain = {key: layers.tree(key) for key in ("base", "two")}
        assert plain["base"][b"own"].owner == (5, 6)
        layers.snapshots.view("of-base", "base")
        layers.snapshots.view("of-two", "two")
        layers.active("on-base", "base")
        layers.active("on-two", "two")
        for key in ("base", "of-base", "on-base", "two", "of-two", "on-two"):
            wanted = plain["base" if key.endswith("base") else "two"]
            assert layers.tree(key, idmap=SHIFTED) == through(wanted), key
            assert layers.tree(key) == wanted, key
        layers.active("by-hand", "two", _chown)
        # Chown parts hard links where a file is copied up for it.
        by_hand, mapped = layers.tree("by-hand"), layers.tree("of-two", idmap=SHIFTED)
        assert by_hand.keys() == mapped.keys()
        for path, node in mapped.items():
            assert msgspec.structs.replace(by_hand[path], links=node.links) == node
        found = through(plain["base"])
        assert [found[name].owner for name in (b"own", b"d", b"link", b"late")] == [
            (100_005, 200_006), (101_000, 300_004), (165_535, 265_535), (65_534, 65_534),
        ]  # fmt: skip
        assert {key: layers.tree(key) for key in plain} == plain

    @pytest.mark.requires(StorageCapability.IDMAP)
    def test_what_is_written_through_an_id_map_belongs_to_the_layers_own_ids(self, layers: Layers) -> None:
        """71: by root of a user namespace, in each way that a layer differs from its parent; so do its diffs."""
        layers.committed("base", fill=_fill)
        layers.committed("two", "base", put(second="1"))
        before = {key: layers.tree(key) for key in ("base", "two")}

        def change(top: Path) -> None:
            put(new="1", fresh__inner="1")(top)
            os.chown(top / "fresh", 7, 8)
            with open(top / "own", "a") as file:
                file.write("2")
            (top / "gone").unlink()
            clear(top / "again")
            put(again__new="2")(top)
            (top / "second").rename(top / "moved")
            (top / "d" / "inner").chmod(0o600)
            os.chown(top / "d" / "other", 9, 9)
            with pytest.raises(OSError, match=r"too large|not permitted"):  # it is nobody's whom the map has
                (top / "late").chmod(0o777)

        for parent in (None, "two"):
            key = f"on-{parent}"
            layers.active(key, parent, None if parent else _fill)
            if parent is None:
                layers.inside(key, put(second="1"))
            assert layers.inside(key, lambda top: as_root_of(SHIFTED, top, change), idmap=SHIFTED) == 0
            plain = layers.tree(key)
            owners = {
                name: plain[name].owner for name in (b"new", b"fresh", b"own", b"again/new", b"moved", b"d/other")
            }
            assert owners == {
                b"new": (0, 0), b"fresh": (7, 8), b"own": (5, 6), b"again/new": (0, 0), b"moved": (0, 0),
                b"d/other": (9, 9),
            }  # fmt: skip
            assert not {b"gone", b"second", b"again/old"} & plain.keys()
            assert layers.tree(key, idmap=SHIFTED) == through(plain)
            layers.active(f"{key}-again", parent)
            layers.snapshots.apply(f"{key}-again", io.BytesIO(layers.diff(key)))
            assert layers.tree(f"{key}-again") == plain
            layers.snapshots.commit(key, f"{key}-done")
            assert layers.tree(f"{key}-done") == plain
        assert {key: layers.tree(key) for key in before} == before

    @pytest.mark.requires(StorageCapability.IDMAP)
    def test_a_host_user_whom_the_map_does_not_have_can_make_nothing(self, layers: Layers) -> None:
        """71: the host's root included; a map that makes no sense is refused in words."""
        layers.active("a", layers.committed("base", fill=put(a="1")))

        def attempt(top: Path) -> None:
            with pytest.raises(OSError, match="too large"):
                (top / "new").touch()
            with pytest.raises(OSError, match="too large"):
                (top / "d").mkdir()

        before = layers.tree("a")
        layers.inside("a", attempt, idmap=SHIFTED)
        assert layers.tree("a") == before
        good = (IdRange(0, 1000, 10),)
        for bad, why in {
            (): "0 runs of uids",
            (IdRange(0, 1000, 0),): "a run of 0 uids from 0",
            (IdRange(-1, 1000, 1),): "the uids -1 to -1 leave 0 to 4294967294",
            (IdRange(0, ID_MAX, 2),): "the uids 4294967294 to 4294967295 leave",
            (IdRange(0, 1000, 2**33),): "leave 0 to 4294967294",
            (IdRange(0, 1000, 10), IdRange(9, 5000, 10)): "the container uid 9 is in two runs",
            (IdRange(0, 1000, 10), IdRange(10, 1009, 10)): "the host uid 1009 is in two runs",
            tuple(IdRange(n, n, 1) for n in range(121)): "121 runs of uids: 1 to 120",
        }.items():
            with pytest.raises(ConfigError, match=f"^id map: .*{why}"):
                IdMap(uids=bad, gids=good)
            with pytest.raises(ConfigError, match=f"^id map: .*{why.replace('uid', 'gid')}"):
                IdMap(uids=good, gids=bad)
