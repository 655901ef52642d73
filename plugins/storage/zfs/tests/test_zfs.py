"""What is zfs's own: datasets that are somebody else's, removal that heals itself, what a host without it is told."""

import errno
import os
import shutil
import signal
import subprocess
import time

import pytest

from transom.contract.storage import State
from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError
from transom_conformance.faults import fork, wait
from transom_conformance.storage import held_elsewhere, inside, prepare
from transom_storage_zfs import Zfs
from transom_storage_zfs.command import understood, zfs

real = pytest.mark.skipif(
    not os.path.exists("/dev/zfs") or shutil.which("zpool") is None, reason="needs a kernel with ZFS, and zpool"
)


@pytest.fixture
def opened(tmp_path):
    """A function that opens the driver anew over one root."""

    def open(**options):
        given = {f"zfs.{key}": value for key, value in options.items()}
        return Drivers(state=tmp_path / "s", run=tmp_path / "r").storage("zfs", given, where="--storage-opt")

    return open


@pytest.mark.parametrize(
    "name",
    ["-r", "/tank", "tank/", "tank//x", "tank@snap", "tank#mark", "a b", "1tank", "tank/%s", "t\n", "t\0", "\u00e4"],
)
def test_a_name_that_is_no_datasets_is_refused(opened, name):
    with pytest.raises(ConfigError) as caught:
        opened(fsname=name)
    assert str(caught.value) == (
        "storage driver zfs (from --storage-opt): zfs.fsname must be the name of a dataset such as tank/layers, not"
        f" {name!r}"
    )


def snapshots(pool):
    return zfs("list", "-H", "-r", "-t", "snapshot", "-o", "name", f"{pool}/layers").split()


def test_a_misspelt_or_ill_typed_option_is_refused_in_words(opened):
    with pytest.raises(ConfigError, match=r"zfs\.fsnam\b.*zfs\.fsname"):
        opened(fsnam="tank/layers")
    with pytest.raises(ConfigError, match=r"zfs\.fsname=7 \(from --storage-opt\): expected a text"):
        opened(fsname=7)


def test_the_probe_says_what_is_missing(opened):
    probe = opened().probe()
    assert not probe.usable
    if os.path.exists("/dev/zfs"):
        assert probe.reason.endswith("is not on ZFS: name a dataset with zfs.fsname, or put the data root on one")
    else:
        assert probe.reason == (
            "the kernel has no ZFS: load the module (modprobe zfs, of Debian's zfs-dkms), or use the driver overlay2"
        )


def test_without_zfs_what_fails_is_told_in_words(opened):
    if shutil.which("zfs") is not None:
        pytest.skip("zfs is installed: nothing is missing")
    with pytest.raises(DriverError) as caught:
        prepare(opened(fsname="tank/layers"), "base")
    assert str(caught.value) == (
        "storage zfs: prepare base failed: zfs is not installed: apt-get install zfsutils-linux"
    )


def test_a_root_elsewhere_is_told_which_option_to_use(opened, tmp_path):
    with pytest.raises(DriverError) as caught:
        prepare(opened(), "base")
    root = tmp_path / "s" / "storage" / "zfs"
    assert str(caught.value) == (
        f"storage zfs: prepare base failed: {root} is not on ZFS; name a dataset with zfs.fsname"
    )


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("cannot open 'tank/x': dataset does not exist", errno.ENOENT),
        ("cannot destroy 'tank/x': dataset is busy", errno.EBUSY),
        ("cannot create 'tank/x': dataset already exists", errno.EEXIST),
        ("cannot destroy 'tank/x': filesystem has dependent clones", errno.ENOTEMPTY),
        ("cannot create 'tank/x': out of space", errno.ENOSPC),
        ("cannot create 'tank/x': permission denied", errno.EPERM),
        ("something new", errno.EIO),
    ],
)
def test_what_zfs_says_is_understood(said, code):
    assert (understood(said).errno, understood(said).strerror) == (code, said)


def test_a_refusal_for_want_of_space_says_where_it_may_come_from(opened, tmp_path, monkeypatch):
    (tmp_path / "zfs").write_text("#!/bin/sh\necho \"cannot create 't/l/x': out of space\" >&2\nexit 1\n")
    (tmp_path / "zfs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(DriverError) as caught:
        prepare(opened(fsname="t/l"), "x")
    assert str(caught.value) == (
        "storage zfs: prepare x failed: cannot create 't/l/x': out of space; free space in the pool (zpool list), or"
        " raise the dataset's quota"
    )


@real
def test_what_is_somebody_elses_is_neither_listed_nor_removed(opened, pool):
    driver = opened(fsname=f"{pool}/layers")
    prepare(driver, "mine")
    zfs("create", "-o", "mountpoint=legacy", f"{pool}/layers/precious")
    other = Zfs(options=driver.options, root=driver.root.parent / "other", run=driver.run)
    prepare(other, "theirs")
    assert driver.owned() == {"mine"}
    assert other.owned() == {"theirs"}
    driver.remove(id="mine")
    assert f"{pool}/layers/precious" in zfs("list", "-H", "-o", "name")


@real
def test_a_missing_dataset_is_named_with_what_makes_it(opened, pool):
    probe = opened(fsname=f"{pool}/absent").probe()
    assert probe.reason == (
        f"cannot open '{pool}/absent': dataset does not exist; make it: zfs create -o mountpoint=none {pool}/absent"
    )
    assert opened(fsname=f"{pool}/layers").probe().usable


@real
def test_a_layer_removed_in_use_goes_when_it_no_longer_is_and_its_parents_too(opened, pool, tmp_path):
    driver = opened(fsname=f"{pool}/layers")
    prepare(driver, "base")
    driver.commit(id="base", parents=())
    prepare(driver, "used", "base")
    with held_elsewhere(driver.mounts(id="used", parents=("base",), state=State.ACTIVE), tmp_path / "held"):
        driver.remove(id="used")
        driver.remove(id="base")
        assert driver.owned() == frozenset()
        assert driver.recover() == []
    assert driver.recover() == [
        f"storage zfs: destroyed {id}, which was in use when it was removed" for id in ("used", "base")
    ]
    assert driver.recover() == []
    assert zfs("list", "-H", "-r", "-d", "1", "-o", "name", f"{pool}/layers").split() == [f"{pool}/layers"]


@real
@pytest.mark.parametrize("order", [("source", "copy"), ("copy", "source")])
def test_a_clone_and_what_it_was_made_of_can_go_in_any_order(opened, pool, tmp_path, order):
    driver = opened(fsname=f"{pool}/layers")
    prepare(driver, "base")
    driver.commit(id="base", parents=())
    prepare(driver, "source", "base")
    inside(driver, tmp_path / "place", "source", lambda top: (top / "a").write_text("1"), "base")
    driver.clone(id="copy", source="source", parents=("base",))
    zfs("snapshot", f"{pool}/layers/source@lost")  # of a clone that was killed
    assert driver.recover() == []
    first, second = order
    driver.remove(id=first)
    assert snapshots(pool) == [f"{pool}/layers/base@committed"]
    assert inside(driver, tmp_path / "place", second, lambda top: (top / "a").read_text(), "base") == "1"
    driver.remove(id=second)
    driver.remove(id="base")
    assert driver.owned() == frozenset()


@real
def test_a_removal_that_was_begun_by_hand_is_finished(opened, pool):
    driver = opened(fsname=f"{pool}/layers")
    prepare(driver, "base")
    driver.commit(id="base", parents=())
    zfs("destroy", f"{pool}/layers/base@committed")
    driver.remove(id="base")
    subprocess.run(["zfs", "create", f"{pool}/layers/other"], check=True)
    driver.remove(id="base")
    assert driver.owned() == frozenset()


@real
def test_a_layer_that_somebody_else_has_cloned_waits_for_the_clone(opened, pool):
    driver = opened(fsname=f"{pool}/layers")
    prepare(driver, "base")
    driver.commit(id="base", parents=())
    zfs("clone", "-o", "mountpoint=legacy", f"{pool}/layers/base@committed", f"{pool}/precious")
    driver.remove(id="base")
    assert driver.owned() == frozenset()
    assert driver.recover() == []
    assert zfs("get", "-H", "-o", "value", "origin", f"{pool}/precious").strip() == f"{pool}/layers/base@committed"
    zfs("destroy", f"{pool}/precious")
    assert driver.recover() == ["storage zfs: destroyed base, which was in use when it was removed"]


@real
def test_a_snapshot_whose_destruction_is_deferred_goes_with_its_last_child(opened, pool):
    driver = opened(fsname=f"{pool}/layers")
    prepare(driver, "base")
    driver.commit(id="base", parents=())
    prepare(driver, "child", "base")
    zfs("destroy", "-d", f"{pool}/layers/base@committed")
    driver.remove(id="child")
    assert snapshots(pool) == []
    driver.remove(id="base")
    assert driver.owned() == frozenset()


@real
def test_killed_while_zfs_runs_recovery_waits_for_its_end(opened, pool, tmp_path, monkeypatch):
    driver = opened(fsname=f"{pool}/layers")
    prepare(driver, "base")
    begun, real_zfs = tmp_path / "begun", shutil.which("zfs")
    slow = tmp_path / "bin" / "zfs"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/sh\ncase $1 in destroy) touch {begun}; sleep 3;; esac\nexec {real_zfs} "$@"\n')
    slow.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
        pid = fork(lambda: driver.remove(id="base"))
        end = time.monotonic() + 60
        while not begun.exists():
            assert time.monotonic() < end, "zfs was not started"
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        assert wait(pid) == -signal.SIGKILL
    assert driver.owned() == {"base"}
    assert driver.recover() == []
    assert driver.owned() == frozenset()


@real
def test_a_name_that_zfs_finds_too_long_is_told_in_its_words(opened, pool):
    driver = opened(fsname=f"{pool}/layers")
    with pytest.raises(DriverError, match=r"^storage zfs: prepare x+ failed: cannot create .*too long"):
        prepare(driver, "x" * 300)
    assert driver.owned() == frozenset()


@real
def test_what_filled_the_quota_can_be_removed_and_then_there_is_space_again(opened, pool, tmp_path):
    driver = opened(fsname=f"{pool}/layers")
    prepare(driver, "large")
    zfs("set", "quota=8M", f"{pool}/layers")

    def fill(top):
        with pytest.raises(OSError) as caught, open(top / "f", "wb", buffering=0) as file:
            for _ in range(64):
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
        assert caught.value.errno in {errno.EDQUOT, errno.ENOSPC}

    inside(driver, tmp_path / "place", "large", fill)
    driver.remove(id="large")
    zfs("sync", pool, program="zpool")
    prepare(driver, "again")
    inside(driver, tmp_path / "place", "again", lambda top: (top / "f").write_bytes(os.urandom(1 << 20)))
    assert driver.owned() == {"again"}
