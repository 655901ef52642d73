"""What is btrfs's own: nested subvolumes, quota groups, changes read off the tree."""

import os
import random
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from transom.contract.storage import State
from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError
from transom.services.differ import compare
from transom_conformance.disks import disk, lacking
from transom_conformance.storage import Layers, scribble
from transom_conformance.suite import World
from transom_storage_btrfs import Btrfs, BtrfsOptions, ioctls

pytestmark = pytest.mark.skipif(bool(lacking("btrfs")), reason=lacking("btrfs"))


@pytest.fixture
def place():
    path = Path(tempfile.mkdtemp(dir=disk("btrfs")))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def layers(place):
    world = World(path=place, kind="storage", driver="btrfs", options={})
    layers = Layers(world)
    yield layers
    layers.remove_all()
    layers.close()
    world.clean_up()


@pytest.fixture
def driver(place):
    driver = Btrfs(options=BtrfsOptions(), root=place / "root", run=place / "run")
    yield driver
    for id in driver.owned():
        driver.remove(id=id)


def prepare(driver, id, *parents, size=None):
    driver.prepare(id=id, parents=parents, size=size, idmap=None)


def make_subvolume(directory, name):
    fd = os.open(directory, os.O_RDONLY)
    try:
        ioctls.create(fd, name)
    finally:
        os.close(fd)


def test_another_file_system_is_named_by_the_probe(tmp_path):
    if ioctls.is_btrfs(tmp_path):
        pytest.skip("temporary files are on btrfs here")
    driver = Btrfs(options=BtrfsOptions(), root=tmp_path / "no" / "root", run=tmp_path)
    probe = driver.probe()
    assert (probe.usable, probe.reason) == (
        False, f"{tmp_path} is not on btrfs: put the data root on one (mkfs.btrfs)",
    )  # fmt: skip
    with pytest.raises(DriverError) as caught:
        prepare(driver, "a")
    assert str(caught.value) == "storage btrfs: prepare a failed: Inappropriate ioctl for device"


def test_a_committed_layer_is_a_read_only_subvolume(driver):
    prepare(driver, "base")
    assert (driver.root / "base").stat().st_ino == ioctls.ROOT_INODE
    driver.commit(id="base", parents=())
    with pytest.raises(OSError, match="Read-only file system"):
        (driver.root / "base" / "x").touch()
    driver.commit(id="base", parents=())
    prepare(driver, "child", "base")
    (driver.root / "child" / "x").touch()


def test_subvolumes_made_inside_a_layer_go_with_it(driver):
    """Also nested in each other, and read-only, as a container that runs an engine on btrfs leaves them."""
    prepare(driver, "layer")
    top = driver.root / "layer"
    for path in ("a", "a/d/b", "c"):
        (top / path).parent.mkdir(exist_ok=True)
        make_subvolume((top / path).parent, os.path.basename(path))
        (top / path / "file").write_text("x")
    fd = os.open(top / "a", os.O_RDONLY)
    ioctls.set_readonly(fd, True)
    os.close(fd)
    driver.commit(id="layer", parents=())
    driver.remove(id="layer")
    assert driver.owned() == frozenset()
    assert not top.exists()


def test_a_plain_directory_in_a_layers_place_is_removed_too(driver):
    (driver.root / "plain" / "d").mkdir(parents=True)
    driver.remove(id="plain")
    assert driver.owned() == frozenset()


@pytest.mark.parametrize("seed", range(12))
def test_changes_read_off_the_tree_are_those_that_comparing_all_finds(layers, seed):
    layers.committed("one", None, lambda top: scribble(top, seed, steps=120))
    layers.active("two", "one", lambda top: (scribble(top, 1000 + seed, steps=15), shuffle(top, seed)))
    lower, upper = (f"{layers.driver.root}/{layers.snapshots.stat(key).id}" for key in ("one", "two"))
    assert layers.snapshots.changes("two") == list(compare(lower=lower, upper=upper))
    layers.snapshots.clone("three", "two")
    assert layers.snapshots.changes("three") == layers.snapshots.changes("two")


def shuffle(top, seed):
    """Rename directories onto the names of others: the inodes below them stay as they were."""
    dice = random.Random(seed)
    places = [Path(d) for d, _, _ in os.walk(top) if Path(d) != top]
    for _ in range(3 if places else 0):
        old, new = dice.choice(places), dice.choice(places)
        if old.is_dir() and not old.is_symlink() and old not in [new, *new.parents] and new not in old.parents:
            if os.path.lexists(new):
                shutil.rmtree(new) if new.is_dir() and not new.is_symlink() else new.unlink()
            if new.parent.is_dir():
                old.rename(new)


def test_only_what_was_written_is_looked_at(layers):
    """Ten files changed among 5,000: the differ does not open or stat the others' directories."""
    from transom_storage_btrfs import subvolumes

    def fill(top):
        for d in range(50):
            (top / f"d{d}").mkdir()
            for n in range(100):
                (top / f"d{d}" / str(n)).touch()

    layers.committed("base", fill=fill)
    layers.active("child", "base", lambda top: [(top / "d7" / str(n)).write_text("x") for n in range(10)])
    base, child = (f"{layers.driver.root}/{layers.snapshots.stat(key).id}" for key in ("base", "child"))
    assert subvolumes._touched(child, base) == {b"d7/%d" % n for n in range(10)}
    assert [change.path for change in layers.snapshots.changes("child")] == sorted(b"d7/%d" % n for n in range(10))


def test_a_size_below_the_smallest_is_refused(place):
    driver = Btrfs(options=BtrfsOptions(min_space=64 << 20), root=place / "root", run=place / "run")
    with pytest.raises(ConfigError) as caught:
        prepare(driver, "a", size=1 << 20)
    assert str(caught.value) == ("storage btrfs: a size of 1048576 bytes is too small: at least 64m (btrfs.min_space)")
    assert not driver.root.exists()


def test_the_option_size_is_for_containers(place):
    drivers = Drivers(state=place / "state", run=place / "run")
    driver = drivers.storage("btrfs", {"btrfs.size": "10g"}, where="--storage-opt")
    assert driver.container_size == 10 << 30
    with pytest.raises(ConfigError) as caught:
        drivers.storage("btrfs", {"btrfs.siz": "10g"}, where="--storage-opt")
    assert "did you mean btrfs.size?" in str(caught.value)


def test_the_quota_group_of_a_removed_layer_goes(driver, place):
    prepare(driver, "base")
    driver.commit(id="base", parents=())
    prepare(driver, "child", "base", size=32 << 20)
    (mark,) = driver._marks()
    driver.remove(id="child")
    end = time.monotonic() + 60
    while driver._marks() and time.monotonic() < end:
        fd = os.open(place, os.O_RDONLY)
        ioctls.sync(fd)
        os.close(fd)
        driver.recover()
        time.sleep(0.05)
    assert driver._marks() == []
    assert driver.recover() == []
    assert sorted(os.listdir(driver.root)) == ["base"]
    assert mark > ioctls.ROOT_INODE


def test_a_view_is_the_parent_itself(driver):
    prepare(driver, "base")
    driver.commit(id="base", parents=())
    (bind,) = driver.mounts(id="view", parents=("base",), state=State.VIEW)
    assert (bind.type, bind.source, bind.readonly) == ("bind", f"{driver.root}/base", True)


def test_status_is_read_without_a_root(place):
    driver = Btrfs(options=BtrfsOptions(), root=place / "none", run=place)
    assert driver.status() == {"Build Version": os.uname().release, "Quota Groups": "0"}
