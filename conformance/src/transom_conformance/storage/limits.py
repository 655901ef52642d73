"""Many layers, odd roots, quotas, and trees that are large or deep."""

from __future__ import annotations

import errno
import io
import os
from functools import partial
from pathlib import Path

import pytest

from transom.contract.storage import StorageCapability
from transom.errors import NotSupported
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.layers import Layers, clear, names_in, put
from transom_conformance.suite import World

DEEPEST = 1000
"""A driver that says it goes deeper than this is taken at its word."""


def _make_files(number: int, top: Path) -> None:
    for n in range(number):
        os.mknod(top / str(n))


class Limits(StorageCases):
    """Many layers, odd roots, quotas, and trees that are large or deep."""

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
                    clear(top / gone)

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

    @pytest.mark.requires(StorageCapability.QUOTA_INODES)
    def test_a_limit_of_inodes_holds(self, layers: Layers) -> None:
        """51: so many files can be made, a few more cannot; a sibling is not affected; so after a restart."""
        inodes, spare = 200, 8
        layers.committed("base", fill=put(**{f"d__{n}": "1" for n in range(300)}))
        layers.snapshots.prepare("limited", "base", inodes=inodes, labels={"limited": "yes"})
        layers.active("free", "base")

        def fill(top: Path) -> None:
            (top / "own").mkdir()
            for n in range(inodes - 1):
                os.mknod(top / "own" / str(n))

        def too_many(top: Path) -> None:
            with pytest.raises(OSError) as caught:
                for n in range(inodes, inodes + 2 * spare):
                    os.mknod(top / "own" / f"{len(os.listdir(top / 'own'))}-{n}")
            assert caught.value.errno in {errno.EDQUOT, errno.ENOSPC}
            with pytest.raises(OSError) as caught:
                (top / "one-directory-more").mkdir()
            assert caught.value.errno in {errno.EDQUOT, errno.ENOSPC}

        layers.inside("limited", fill)
        layers.inside("limited", too_many)
        layers.inside("free", partial(_make_files, 2 * inodes))
        again = layers.reopen()
        try:
            again.inside("limited", too_many)
            again.inside("limited", lambda top: clear(top / "own"))
            again.inside("limited", partial(_make_files, inodes - 10))
            usage = again.snapshots.usage("limited")
            assert inodes - 20 <= usage.inodes <= inodes + 2 * spare
        finally:
            again.close()

    @pytest.mark.requires(StorageCapability.QUOTA_INODES)
    def test_a_limit_of_inodes_and_one_of_bytes_hold_together(self, layers: Layers) -> None:
        """51: whichever is met first; and both go with the layer."""
        mebibyte = 1 << 20
        layers.committed("base", fill=put(a="1"))
        for name in ("many", "much"):
            layers.snapshots.prepare(name, "base", size=8 * mebibyte, inodes=50)

        many = partial(_make_files, 100)

        def much(top: Path) -> None:
            with open(top / "file", "wb", buffering=0) as file:
                for _ in range(16):
                    file.write(os.urandom(mebibyte))
                    os.fsync(file.fileno())

        for key, function in (("many", many), ("much", much)):
            with pytest.raises(OSError) as caught:
                layers.inside(key, function)
            assert caught.value.errno in {errno.EDQUOT, errno.ENOSPC}
            layers.snapshots.remove(key)
        layers.active("again", "base", many)

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
