"""What is vfs's own: what it says of its price, its layout, its errors."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from transom.contract.storage import State
from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError
from transom.services.mounts import mount, privately
from transom_conformance.disks import disk, lacking
from transom_storage_vfs import Vfs, can_reflink


@pytest.fixture
def driver(tmp_path):
    return Vfs(options=Vfs.Options(), root=tmp_path / "root", run=tmp_path / "run")


def prepare(driver, id, *parents):
    driver.prepare(id=id, parents=parents, size=None, idmap=None)


def test_it_has_no_options_and_says_so(tmp_path):
    with pytest.raises(ConfigError) as caught:
        Drivers(state=tmp_path / "s", run=tmp_path / "r").storage("vfs", {"vfs.size": "1g"}, where="--storage-opt")
    assert str(caught.value) == ("storage driver vfs has no option 'vfs.size' (from --storage-opt); it has no options")


def test_the_probe_says_what_copies_cost_here(tmp_path, driver):
    (tmp_path / "tmpfs").mkdir()
    driver = Vfs(options=Vfs.Options(), root=tmp_path / "tmpfs" / "root", run=tmp_path / "run")

    def check():
        mount("tmpfs", str(tmp_path / "tmpfs"), "tmpfs")
        probe = driver.probe()
        assert os.listdir(tmp_path / "tmpfs") == []
        return probe

    probe = privately(check)
    assert probe.usable
    assert probe.reason == (
        f"copies every layer whole, and {tmp_path}/tmpfs cannot share blocks (no reflink): prefer overlay2 where the"
        " host has it"
    )


def test_the_answer_about_reflinks_is_the_kernels(tmp_path):
    import fcntl

    for name in "ab":
        (tmp_path / name).write_bytes(b"x" * 4096)
    with open(tmp_path / "a") as source, open(tmp_path / "b", "r+b") as target:
        try:
            fcntl.ioctl(target, 0x40049409, source.fileno())
            possible = True
        except OSError:
            possible = False
    assert can_reflink(str(tmp_path)) is possible


def test_a_layer_is_a_whole_tree(driver):
    prepare(driver, "base")
    (driver.root / "base" / "file").write_text("1")
    driver.commit(id="base", parents=())
    prepare(driver, "child", "base")
    assert (driver.root / "child" / "file").read_text() == "1"
    assert (driver.root / "child" / "file").stat().st_ino != (driver.root / "base" / "file").stat().st_ino
    (bind,) = driver.mounts(id="child", parents=("base",), state=State.ACTIVE)
    assert (bind.type, bind.source, bind.readonly) == ("bind", f"{driver.root}/child", False)
    (bind,) = driver.mounts(id="view", parents=("base",), state=State.VIEW)
    assert (bind.type, bind.source, bind.readonly) == ("bind", f"{driver.root}/base", True)


def test_no_space_is_told_with_what_to_do(tmp_path):
    (tmp_path / "small").mkdir()
    driver = Vfs(options=Vfs.Options(), root=tmp_path / "small" / "root", run=tmp_path / "run")

    def check():
        mount("tmpfs", str(tmp_path / "small"), "tmpfs", data="size=1m")
        prepare(driver, "base")
        (driver.root / "base" / "large").write_bytes(b"x" * 700_000)
        with pytest.raises(DriverError) as caught:
            prepare(driver, "child", "base")
        assert str(caught.value) == (
            "storage vfs: prepare child failed: No space left on device; free space on the file system of"
            f" {tmp_path}/small/root; vfs copies every layer whole"
        )
        assert driver.owned() == {"base", "child"}
        driver.remove(id="child")
        assert driver.owned() == {"base"}

    privately(check)


def test_a_file_system_that_cannot_keep_attributes_is_named(tmp_path):
    (tmp_path / "ramfs").mkdir()
    driver = Vfs(options=Vfs.Options(), root=tmp_path / "ramfs" / "root", run=tmp_path / "run")

    def check():
        mount("ramfs", str(tmp_path / "ramfs"), "ramfs")
        prepare(driver, "base")
        os.rmdir(driver.root / "base")
        os.symlink(tmp_path / "elsewhere", driver.root / "link")
        (tmp_path / "source").mkdir()
        os.setxattr(tmp_path / "source", "user.x", b"1")
        (driver.root / "base").mkdir()
        mount(str(tmp_path / "source"), str(driver.root / "base"), flags=4096)
        with pytest.raises(DriverError) as caught:
            prepare(driver, "child", "base")
        assert str(caught.value) == (
            "storage vfs: prepare child failed: Operation not supported; the file system of"
            f" {tmp_path}/ramfs/root does not keep what the layer holds (extended attributes, devices)"
        )

    privately(check)


@pytest.mark.skipif(bool(lacking("btrfs")), reason=lacking("btrfs"))
def test_where_blocks_can_be_shared_a_copy_takes_none(tmp_path):
    place = Path(tempfile.mkdtemp(dir=disk("btrfs")))
    driver = Vfs(options=Vfs.Options(), root=place / "root", run=tmp_path)
    assert driver.probe().reason == f"copies every layer; {place} shares the blocks of copies (reflink)"
    prepare(driver, "base")
    (driver.root / "base" / "large").write_bytes(os.urandom(64 << 20))
    driver.commit(id="base", parents=())

    def free():
        os.sync()
        found = os.statvfs(place)
        return found.f_bavail * found.f_frsize

    before = free()
    prepare(driver, "child", "base")
    assert before - free() < 16 << 20
    for id in ("child", "base"):
        driver.remove(id=id)
    shutil.rmtree(place)
