"""Changes are listed exactly, and a diff applied elsewhere makes the same tree."""

from __future__ import annotations

import io
import os
import re
import stat
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Event, Thread

import pytest

from transom.contract.storage import Change, ChangeKind
from transom.errors import ConfigError, Conflict
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.hostile import ESCAPES, damaged_tars, tar_of
from transom_conformance.storage.layers import Fill, Layers, clear, names_in, put, tree_of
from transom_conformance.storage.scribbles import scribble


def _linked(top: Path) -> None:
    put(a="1", d__keep="x")(top)
    for name in ("b", "d/c"):
        os.link(top / "a", top / name)


def _all(*steps: Fill) -> Fill:
    def fill(top: Path) -> None:
        for step in steps:
            step(top)

    return fill


def _owned(mode: int, owner: int, *names: str) -> Fill:
    def fill(top: Path) -> None:
        for name in names:
            (top / name).mkdir(parents=True, exist_ok=True)
            os.chown(top / name, owner, owner)
            (top / name).chmod(mode)

    return fill


def _strip(top: Path) -> None:
    for directory, names, files in os.walk(top):
        for path in (directory, *(os.path.join(directory, name) for name in (*names, *files))):
            for attribute in os.listxattr(path, follow_symlinks=False):
                os.removexattr(path, attribute, follow_symlinks=False)


SEQUENCES: dict[str, tuple[Fill, ...]] = {
    "files added and changed": (put(etc__hosts="1", etc__profile="1", root__bashrc="1"), put(etc__hosts="2")),
    "files and directories deleted": (
        put(etc__profile="1", tmp__a="1", tmp__b="1", kept="1"),
        _all(lambda top: clear(top / "tmp"), lambda top: clear(top / "etc" / "profile")),
    ),
    "a file replaced by a directory": (put(a="1"), _all(lambda top: clear(top / "a"), put(a__b="2"))),
    "the mode of a directory": (_owned(0o777, 0, "dir1", "dir2"), _owned(0o755, 1, "dir1"), put(dir1__f="1")),
    "the mode of a parent": (_owned(0o700, 5, "d", "d/e"), put(d__e__f="1"), put(d__e__f="2", d__g="1")),
    "a link that was there": (_linked, put(other="1")),
    "a link added": (_linked, lambda top: os.link(top / "a", top / "e")),
    "a link of changed content": (_linked, put(b="changed")),
    "a link added to changed content": (
        _linked,
        _all(put(a="2"), lambda top: os.link(top / "a", top / "e")),
    ),
    "a link taken away": (_linked, lambda top: clear(top / "a"), lambda top: clear(top / "b")),
}
"""Cases of what layers do to links and permissions; a step each layer."""


class Differences(StorageCases):
    """Changes are listed exactly, and a diff applied elsewhere makes the same tree."""

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

    def test_what_was_deleted_is_deleted_where_its_diff_is_applied(self, layers: Layers) -> None:
        """29, 34: files, full directories, and a directory that was made again."""
        layers.committed("base", fill=put(kept="1", file="1", d__a="1", e__f__g="1", again__old="1"))

        def change(top: Path) -> None:
            for name in ("file", "d", "e/f", "again"):
                clear(top / name)
            put(again__new="2")(top)

        layers.active("child", "base", change)
        layers.active("sibling", "base")
        layers.snapshots.apply("sibling", io.BytesIO(layers.diff("child")))
        assert sorted(layers.tree("sibling")) == [b".", b"again", b"again/new", b"e", b"kept"]
        assert layers.tree("sibling") == layers.tree("child")

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

    @pytest.mark.parametrize("seed", range(2))
    def test_the_diffs_of_plain_directories_make_the_same_chain(self, layers: Layers, seed: int) -> None:
        """34: the other way round, so that any driver's diffs serve any other."""
        from transom.services.archive import write
        from transom.services.differ import compare
        from transom.services.trees import copy_tree

        parent, below = None, None
        for n in range(3):
            name, plain = f"layer-{n}", layers.world.path / f"plain-{n}"
            if below is None:
                plain.mkdir()
            else:
                copy_tree(below, plain)
            scribble(plain, 200 * seed + n, steps=40)
            if not layers.driver.keeps_attributes:
                _strip(plain)
            out = io.BytesIO()
            write(changes=compare(lower=str(below) if below else None, upper=str(plain)), root=str(plain), out=out)
            layers.active("next", parent)
            layers.snapshots.apply("next", io.BytesIO(out.getvalue()))
            layers.snapshots.commit("next", name)
            assert {**layers.tree(name), b".": None} == {**tree_of(plain), b".": None}
            parent, below = name, plain

    def test_the_diff_of_a_layer_in_use_is_that_of_one_at_rest_or_refused(self, layers: Layers) -> None:
        """35, 58: refused where the layer would have to be mounted a second time."""
        layers.committed("base", fill=put(a="1"))
        layers.active("child", "base", put(b="2"))
        found: bytes | None = None
        with layers.snapshots.claim("child"):
            if layers.driver.content(id=layers.snapshots.stat("child").id) is None:
                with pytest.raises(Conflict, match="in use"):
                    layers.diff("child")
            else:
                found = layers.diff("child")
        assert found in (None, layers.diff("child"))

    @pytest.mark.parametrize("seed", range(2))
    def test_a_diff_against_any_ancestor_makes_the_layer_upon_it(self, layers: Layers, seed: int) -> None:
        """35: however far below it is; against the parent it is the plain diff, against a stranger there is none."""
        chain = [layers.committed("l0", fill=lambda top: scribble(top, 350 + seed))]
        for n in range(1, 4):
            chain.append(layers.committed(f"l{n}", chain[-1], lambda top, n=n: scribble(top, 360 * n + seed, steps=40)))  # type: ignore[misc]
        layers.active("child", "l3", lambda top: scribble(top, 3500 + seed, steps=40))
        wanted = layers.tree("child")
        for since in chain:
            layers.active("rebuilt", since)
            layers.snapshots.apply("rebuilt", io.BytesIO(layers.diff("child", since=since)))
            assert layers.tree("rebuilt") == wanted
            layers.snapshots.remove("rebuilt")
        assert layers.diff("child", since="l3") == layers.diff("child")
        layers.committed("stranger")
        for other in ("stranger", "child", "absent"):
            with pytest.raises(ConfigError, match=f"'{other}' is no ancestor of layer 'child'; it has l3, l2, l1"):
                layers.diff("child", since=other)

    def test_changes_since_an_ancestor_are_those_of_all_layers_between(self, layers: Layers) -> None:
        """35: what came and went meanwhile is not among them."""
        layers.committed("base", fill=put(kept="1", changed="1", gone="1", back="1"))

        def middle(top: Path) -> None:
            clear(top / "gone")
            put(changed="2", passing="2", new="2")(top)

        def last(top: Path) -> None:
            clear(top / "passing")
            put(new="3")(top)

        layers.active("child", layers.committed("middle", "base", middle), last)
        added, modified, deleted = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED
        assert layers.snapshots.changes("child", since="base") == [
            Change(b"changed", modified),
            Change(b"gone", deleted),
            Change(b"new", added),
        ]
        assert layers.snapshots.changes("child", since="middle") == [
            Change(b"new", modified),
            Change(b"passing", deleted),
        ]
        with layers.snapshots.claim("child"), pytest.raises(Conflict, match="in use"):
            layers.diff("child", since="base")

    def test_the_diff_of_a_layer_that_is_written_meanwhile_is_consistent_or_refused(self, layers: Layers) -> None:
        """35: a tar that can be applied, with all that was there before it began and no file mixed of two."""
        layers.committed("base", fill=put(a="1"))
        layers.active("child", "base", put(still="s" * 50_000, whole="0 " * 50_000))
        tars: list[tuple[int, bytes]] = []
        refusals: list[str] = []

        def write(top: Path, stop: Event) -> None:
            for n in count(1):
                if stop.is_set():
                    break
                (top / "new").write_text(f"{n} " * 50_000)
                (top / "new").rename(top / "whole")
                (top / f"d{n % 3}").mkdir()
                (top / f"d{n % 3}").rmdir()

        def race(top: Path) -> None:
            stop = Event()
            writer = Thread(target=write, args=(top, stop))
            writer.start()
            try:
                for n in range(12):
                    (top / f"before-{n}").write_text(str(n))
                    try:
                        tars.append((n, layers.diff("child")))
                    except Conflict as error:
                        refusals.append(str(error))
            finally:
                stop.set()
                writer.join()

        layers.inside("child", race)
        assert [text for text in refusals if not re.search("in use|vanished while", text)] == []
        for n, tar in [*tars, (11, layers.diff("child"))]:
            layers.active("sibling", "base")
            layers.snapshots.apply("sibling", io.BytesIO(tar))

            def check(top: Path, n: int = n) -> None:
                assert (top / "still").read_text() == "s" * 50_000
                assert len({*(top / "whole").read_text().split()}) == 1
                assert {f"before-{m}" for m in range(n + 1)} <= {*names_in(top)}

            layers.inside("sibling", check)
            layers.snapshots.remove("sibling")

    @pytest.mark.parametrize("what", sorted(SEQUENCES))
    def test_links_and_permissions_survive_a_sequence_of_layers(self, layers: Layers, what: str) -> None:
        """39: continuity's sequences; the diffs of the layers, applied one upon the other, make the same tree."""
        parent, rebuilt = None, None
        for n, step in enumerate(SEQUENCES[what]):
            parent = layers.committed(f"layer-{n}", parent, step)
            layers.active("next", rebuilt)
            layers.snapshots.apply("next", io.BytesIO(layers.diff(parent)))
            rebuilt = f"rebuilt-{n}"
            layers.snapshots.commit("next", rebuilt)
            assert layers.tree(rebuilt) == layers.tree(parent)

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
            clear(top / "gone")
            (top / "fresh").mkdir()
            (top / "fresh" / "file").touch()
            os.close(os.open(top / "touched", os.O_RDWR))
            (top / "was_file").unlink()
            (top / "was_file").mkdir()
            clear(top / "was_dir")
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

        if what == "attribute" and not layers.driver.keeps_attributes:
            pytest.skip("the driver's files have no extended attributes on this host")
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
            clear(top / "d")
            put(d__new="2", a="2")(top)

        layers.active("child", "base", change)
        tar = layers.diff("child")
        layers.active("sibling", "base")
        for _ in range(2):
            layers.snapshots.apply("sibling", io.BytesIO(tar))
        assert layers.tree("sibling") == layers.tree("child")

    def test_a_damaged_tar_is_refused_in_words_and_the_layer_is_removable(self, layers: Layers) -> None:
        """37: cut, garbage, with sizes and headers that no machine holds; nothing of it is taken for a layer."""
        layers.committed("base", fill=put(a="1" * 2000))
        before = layers.tree("base")
        for what, bad in damaged_tars(layers.diff("base")).items():
            layers.active("bad", "base")
            with pytest.raises(ConfigError, match="layer tar"):
                layers.snapshots.apply("bad", io.BytesIO(bad))
                pytest.fail(f"a tar with {what} was taken")
            layers.snapshots.remove("bad")
        assert layers.tree("base") == before

    @pytest.mark.parametrize("group", range(4))
    def test_no_entry_of_a_tar_leads_out_of_the_layer(self, layers: Layers, group: int) -> None:
        """38: by dots, symbolic and hard links, whiteouts; what is refused is refused in words."""
        outside = layers.world.path / "outside"
        outside.mkdir()
        (outside / "victim").write_text("untouched")
        layers.committed("base", fill=put(d__inner="1", victim="1"))
        base, before = layers.tree("base"), tree_of(outside)
        for what in list(ESCAPES)[group::4]:
            layers.active("hostile", "base")
            try:
                layers.snapshots.apply("hostile", io.BytesIO(tar_of(ESCAPES[what], outside=str(outside))))
            except ConfigError as error:
                said = str(error)
            else:
                said = "layer tar: taken, and kept inside"
            assert said.startswith("layer tar: "), what
            assert tree_of(outside) == before, what
            layers.snapshots.remove("hostile")
        assert layers.tree("base") == base

    @pytest.mark.parametrize("group", range(2))
    def test_no_entry_of_a_tar_leads_out_by_what_the_parent_has(self, layers: Layers, group: int) -> None:
        """38: what leads out lies in the parent, and the last entry of the tar is all that the child unpacks."""
        outside = layers.world.path / "outside"
        outside.mkdir()
        (outside / "victim").write_text("untouched")
        before = tree_of(outside)
        for what in [name for name, entries in ESCAPES.items() if len(entries) > 1][group::2]:
            layers.active("leading", None)
            try:
                layers.snapshots.apply("leading", io.BytesIO(tar_of(ESCAPES[what][:-1], outside=str(outside))))
            except ConfigError:
                layers.snapshots.remove("leading")
                continue
            layers.snapshots.commit("leading", "parent")
            parent = layers.tree("parent")
            layers.active("hostile", "parent")
            with suppress(ConfigError):
                layers.snapshots.apply("hostile", io.BytesIO(tar_of(ESCAPES[what][-1:], outside=str(outside))))
            assert tree_of(outside) == before, what
            assert layers.tree("parent") == parent, what
            layers.snapshots.remove("hostile")
            layers.snapshots.remove("parent")

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
