"""What a mounted layer shows: its own changes over its parents, and never a change of theirs."""

from __future__ import annotations

import errno
import io
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transom.contract.storage import StorageCapability
from transom.errors import ConfigError
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.layers import Layers, clear, names_in, put, tree_of
from transom_conformance.storage.scribbles import scribble


class Contents(StorageCases):
    """What a mounted layer shows: its own changes over its parents, and never a change of theirs."""

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
        layers.committed("two", "one", lambda top: clear(top / path))
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
            clear(top / "d")
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
                clear(top / f"{a}-{b}")
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
        direct = os.O_DIRECT if layers.world.can(lambda path: os.close(os.open(path, os.O_RDWR | os.O_DIRECT))) else 0

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
            fd = os.open(top / "direct", os.O_WRONLY | direct)
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
        """28: newlines, bytes that are not UTF-8, the longest, leading dashes; and in the tar as well."""
        longest = layers.driver.name_max
        names = [b"new\nline", b"\xff\xfe", b"n" * longest, b"-rf", b" ", b"a\\b", b"\xc3\xa9", b"*", b"x=y,z:w"]

        def fill(top: Path) -> None:
            for name in names:
                Path(os.path.join(top, os.fsdecode(name))).write_bytes(name)
            with pytest.raises(OSError) as caught:
                (top / ("n" * (longest + 1))).touch()
            assert caught.value.errno == errno.ENAMETOOLONG

        layers.committed("base")
        layers.active("child", "base", fill)
        found = layers.tree("child")
        assert sorted(found) == sorted([b".", *names])
        layers.active("copy", "base")
        layers.snapshots.apply("copy", io.BytesIO(layers.diff("child")))
        assert layers.tree("copy") == found

    def test_names_that_mean_deletion_in_a_tar_are_plain_names_in_a_layer(self, layers: Layers) -> None:
        """28: a file called .wh.x hides nothing, here or in a child; only a tar cannot hold it, and says so.

        Where the file system keeps such names for itself, it says so of each, and nothing is hidden either.
        """
        layers.committed("base", fill=put(x="1", d__y="1"))
        reserved = layers.driver.reserved_prefix

        def fill(top: Path) -> None:
            for path in (top / ".wh.x", top / "d" / ".wh..wh..opq"):
                if not reserved:
                    path.write_text("2")
                    continue
                with pytest.raises(PermissionError):
                    path.write_text("2")

        layers.committed("child", "base", fill)
        if reserved:
            assert ".wh.".startswith(reserved) or reserved.startswith(".wh."), "other names are not a file system's own"
            assert layers.inside("child", lambda top: (names_in(top), names_in(top / "d"))) == (["d", "x"], ["y"])
            return
        layers.active("grandchild", "child")
        for key in ("child", "grandchild"):
            found = layers.inside(key, lambda top: (names_in(top), names_in(top / "d")))
            assert found == ([".wh.x", "d", "x"], [".wh..wh..opq", "y"])
        with pytest.raises(ConfigError, match=r"\.wh\."):
            layers.diff("child")
