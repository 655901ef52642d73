"""Files keep all they carry: attributes, links, holes, devices, times, owners."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from transom.errors import NotSupported
from transom.services.mounts import mount, privately
from transom_conformance.storage.cases import StorageCases
from transom_conformance.storage.layers import Fill, Layers, Node, put
from transom_conformance.suite import World


def _setting(name: str, value: bytes) -> Callable[[str], None]:
    return lambda path: os.setxattr(path, name, value)


class Attributes(StorageCases):
    """Files keep all they carry: attributes, links, holes, devices, times, owners."""

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
        """40: user, trusted, file capabilities and POSIX ACLs, of files, directories and links.

        What the file system of the driver's root has not got is left out. A driver that keeps none refuses each.
        """
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        acl = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000600ffffffff20000400ffffffff")
        values = {"security.capability": capability, "user.text": b"a\0b=c\n", "system.posix_acl_access": acl}
        have = {name: value for name, value in values.items() if layers.world.can(_setting(name, value))}
        default = {"system.posix_acl_default": acl} if "system.posix_acl_access" in have else {}

        def fill(top: Path) -> None:
            put(f="1", d__inner="1")(top)
            (top / "l").symlink_to("f")
            os.chown(top / "f", 1, 1)
            for name, value in have.items():
                os.setxattr(top / "f", name, value)
            for name, value in {"trusted.bytes": bytes(range(256)), **default}.items():
                os.setxattr(top / "d", name, value)
            os.setxattr(top / "l", "trusted.link", b"1", follow_symlinks=False)

        if not layers.driver.keeps_attributes:
            with pytest.raises(OSError) as caught:
                layers.active("none", fill=fill)
            assert caught.value.errno == errno.ENOTSUP
            return
        base = self._survives(layers, fill)
        assert base[b"f"].attributes.get("security.capability") == have.get("security.capability")
        assert set(base[b"f"].attributes) == set(have)
        assert set(base[b"d"].attributes) == {"trusted.bytes", *default}
        assert set(base[b"l"].attributes) == {"trusted.link"}

    def test_attributes_that_cannot_be_kept_are_refused_never_dropped(self, world: World) -> None:
        """41: on a file system without any, a driver says that it cannot run, refuses the tar, or has its own store."""
        plain, home = world.path / "plain", world.path
        plain.mkdir()
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
            entry = tarfile.TarInfo("file")
            entry.pax_headers = {"SCHILY.xattr.user.text": "kept"}
            tar.addfile(entry)

        def run() -> None:
            mount("ramfs", str(plain), "ramfs")
            world.path = plain
            driver = world.open()
            probe = driver.probe()
            if not probe.usable:
                assert probe.reason
                return
            layers = Layers(world)
            try:
                layers.active("a")
                try:
                    layers.snapshots.apply("a", io.BytesIO(out.getvalue()))
                except NotSupported as error:
                    told = str(error)
                else:
                    told = ""
                kept = layers.tree("a").get(b"file")
                assert "extended attribute 'user.text'" in told or (kept and kept.attributes == {"user.text": b"kept"})
                layers.remove_all()
            finally:
                layers.close()

        try:
            privately(run)
        finally:
            world.path = home

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
