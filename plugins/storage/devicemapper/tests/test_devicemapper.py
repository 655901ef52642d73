"""What is devicemapper's own: the pool, its transactions, its options, what it says when something is missing."""

import errno
import os
import shutil
import signal
import subprocess
import time
from itertools import cycle
from pathlib import Path

import pytest

from transom.contract.storage import State
from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError, NotSupported
from transom.services.mounts import mount_all, unmount
from transom_conformance.faults import announcements, failed_at, fork, killed_before, sample, wait
from transom_conformance.storage import held_elsewhere, inside, prepare
from transom_storage_devicemapper import Devicemapper, loops
from transom_storage_devicemapper.ioctl import Mapper

SMALL = {
    "dm.loopdatasize": "1g",
    "dm.loopmetadatasize": "16m",
    "dm.basesize": "64m",
    "dm.mkfsarg": "-J size=4",
}
PROBE = Devicemapper(options=Devicemapper.Options(), root=Path("/nowhere"), run=Path("/nowhere")).probe()
SEAM = ("fcntl.ioctl", "os.rename", "os.remove", "subprocess.Popen")
thin = pytest.mark.skipif(not PROBE.usable, reason=f"devicemapper cannot run here: {PROBE.reason}")


@pytest.fixture
def opened(tmp_path):
    """A function that opens the driver anew over one root; all are closed in the end."""
    drivers = []

    def open(**options):
        given = {**SMALL, **{f"dm.{key}": value for key, value in options.items()}}
        found = Drivers(state=tmp_path / "s", run=tmp_path / "r").storage("devicemapper", given, where="--storage-opt")
        drivers.append(found)
        return found

    yield open
    for driver in drivers:
        driver.close()
    assert not PROBE.usable or Mapper().names() == []
    root = tmp_path / "s" / "storage" / "devicemapper"
    for name in ("data", "metadata"):
        if (root / name).exists():
            assert loops.wait_until_free(str(root / name), 30) == []


def eventually(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it did not come about within a minute"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"blocksize": "100k"}, "dm.blocksize must be a multiple of 64k, from 64k to 1g"),
        ({"basesize": "1m"}, "dm.basesize must be at least 16m for ext4"),
        ({"fs": "xfs"}, "dm.basesize must be at least 300m for xfs"),
        (
            {"thinpooldev": "p", "datadev": "/dev/x"},
            "dm.thinpooldev names a whole pool: leave dm.datadev and dm.metadatadev out",
        ),
        ({"datadev": "file"}, "dm.datadev must be a block device below /dev, not 'file'"),
    ],
)
def test_options_that_cannot_be_are_refused_in_words(opened, options, text):
    with pytest.raises(ConfigError) as caught:
        opened(**options)
    assert str(caught.value) == f"storage driver devicemapper (from --storage-opt): {text}"


@pytest.mark.parametrize(("name", "value"), [("min_free_space", "lots"), ("fs", "btrfs"), ("basesize", "-1")])
def test_an_ill_typed_option_is_refused(opened, name, value):
    with pytest.raises(ConfigError, match=rf"dm\.{name}='{value}'.*: expected"):
        opened(**{name: value})


def test_the_probe_names_what_the_kernel_lacks(opened):
    probe = opened().probe()
    if probe.usable:
        pytest.skip("this kernel has thin volumes: nothing is missing")
    assert "modprobe dm-" in probe.reason
    assert "overlay2" in probe.reason


def test_without_the_kernels_help_an_operation_fails_in_words(opened, tmp_path):
    if PROBE.usable:
        pytest.skip("this kernel has thin volumes: nothing is missing")
    driver = opened()
    with pytest.raises(DriverError, match=r"^storage devicemapper: prepare base failed: "):
        prepare(driver, "base")
    assert driver.owned() == frozenset()
    driver.remove(id="base")
    for name in ("data", "metadata"):
        assert loops.wait_until_free(str(driver.root / name), 30) == []


@thin
def test_an_interrupted_transaction_is_undone_and_told_once(opened):
    driver = opened()
    prepare(driver, "base")
    pool = driver._pool
    with pool.working():
        transaction = pool._begin("create", pool.path("layers", "half"))
        pool.note(pool.path("layers", "half"), pool.find("layers", "base"))
        pool._mapper.message(pool._name, f"create_thin {transaction.device}")
    driver.close()
    again = opened()
    assert again.recover() == ["storage devicemapper: finished an interrupted transaction of the pool"]
    assert again.recover() == []
    assert again.owned() == {"base"}
    prepare(again, "next")


@thin
def test_a_pool_that_is_not_the_records_is_left_alone(opened):
    driver = opened()
    prepare(driver, "base")
    pool = driver._pool
    reached = pool.status().transaction
    pool._mapper.message(pool._name, f"set_transaction_id {reached} {reached + 7}")
    for act in (lambda: prepare(driver, "child"), driver.recover, lambda: driver.remove(id="base")):
        with pytest.raises(DriverError) as caught:
            act()
        assert str(caught.value) == (
            f"storage devicemapper: opening pool {pool._name} failed: the pool is at transaction {reached + 7}, its"
            f" records at {reached}; another tool changed the pool, or {driver.root} was restored without it;"
            " restore both together, nothing more was changed"
        )
    assert driver.owned() == {"base"}


@thin
def test_a_pool_that_another_tool_changes_meanwhile_is_not_moved_on(opened, monkeypatch):
    driver = opened()
    prepare(driver, "base")
    pool = driver._pool
    reached, send = pool.status().transaction, pool._mapper.message

    def meddling(name, text):
        send(name, text)
        if text.startswith("create_snap"):
            send(name, f"set_transaction_id {reached} {reached + 7}")

    with monkeypatch.context() as patch:
        patch.setattr(pool._mapper, "message", meddling)
        with pytest.raises(DriverError) as caught:
            prepare(driver, "child", "base")
    assert f"the pool is at transaction {reached + 7}, its records at {reached + 1}; another tool" in str(caught.value)
    with pytest.raises(DriverError, match=f"at transaction {reached + 7}, its records at {reached + 1};"):
        driver.recover()
    send(pool._name, f"set_transaction_id {reached + 7} {reached}")  # the other tool takes it back
    assert driver.recover() == ["storage devicemapper: finished an interrupted transaction of the pool"]
    assert driver.owned() == {"base"}
    prepare(driver, "child", "base")


@thin
def test_layers_without_a_pool_are_refused(opened):
    driver = opened()
    prepare(driver, "base")
    driver.close()
    os.rename(driver.root / "pool.json", driver.root / "elsewhere")
    with pytest.raises(
        DriverError, match=r"layers have records but the pool has none; restore pool.json from a backup"
    ):
        prepare(opened(), "child")
    os.rename(driver.root / "elsewhere", driver.root / "pool.json")
    prepare(opened(), "child")


@thin
def test_a_copy_of_a_root_in_use_is_refused(opened, tmp_path):
    driver = opened()
    prepare(driver, "base")
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", driver.root, copy], check=True)  # holes stay holes
    other = Devicemapper(options=driver.options, root=copy, run=tmp_path / "copy-run")
    with pytest.raises(DriverError, match=f"it is not over {copy}/metadata; {copy} is a copy of a root in use"):
        prepare(other, "child")
    other.close()
    prepare(driver, "child")


@thin
def test_killed_it_leaves_neither_pool_nor_loop_device(opened):
    driver = opened()
    prepare(driver, "base")
    driver.close()

    def die():
        prepare(opened(), "child")
        os.kill(os.getpid(), signal.SIGKILL)

    assert wait(fork(die)) == -signal.SIGKILL
    eventually(lambda: Mapper().names() == [])
    for name in ("data", "metadata"):
        eventually(lambda name=name: loops.attached(str(driver.root / name)) == [])


@thin
@pytest.mark.parametrize("there", [False, True])
def test_killed_or_failing_at_any_step_the_pool_is_made_or_started_the_next_time(opened, there):
    used = set()

    def begin():
        prepare(opened(), "first")

    def clear_up(driver):
        driver.recover()
        driver.remove(id="first")
        prepare(driver, "second")
        assert driver.owned() == {"second"}
        driver.remove(id="second")
        used.add(driver._pool.status().data[0])
        driver.close()
        assert Mapper().names() == []
        for name in ("data", "metadata"):
            assert loops.wait_until_free(str(driver.root / name), 30) == []
        if not there:
            shutil.rmtree(driver.root)

    calls = announcements(begin, SEAM)
    clear_up(opened())
    if there:
        calls = announcements(begin, SEAM)
        clear_up(opened())
    faults = cycle((0, errno.ENOSPC, errno.EIO, 0, errno.EBUSY))
    for call, code in zip(sample(calls, 15), faults, strict=False):  # all are two minutes
        if code:
            failed_at(begin, call, code)
        else:
            killed_before(begin, call)
        clear_up(opened())
    assert len(used) == 1, f"blocks of the pool that no volume on record has: {used}"


@thin
def test_a_layer_removed_in_use_goes_when_it_no_longer_is(opened, tmp_path):
    driver = opened()
    prepare(driver, "used")
    pool = driver._pool
    device = f"{pool._name}-{pool.find('layers', 'used').device}"
    with held_elsewhere(driver.mounts(id="used", parents=(), state=State.ACTIVE), tmp_path / "held"):
        driver.remove(id="used")
        assert driver.owned() == frozenset()
        assert driver.status()["Deferred Deleted Device Count"] == "1"
        assert driver.recover() == []
        assert device in Mapper().names()
    eventually(lambda: device not in Mapper().names())  # the kernel's own deferred removal: nobody asked again
    assert driver.recover() == ["storage devicemapper: deleted used, which was in use when it was removed"]
    assert driver.recover() == []
    assert driver.status()["Deferred Deleted Device Count"] == "0"


@thin
@pytest.mark.parametrize("discard", [True, False])
def test_the_space_of_a_removed_layer_goes_back_to_the_disk_unless_told_otherwise(opened, tmp_path, discard):
    driver = opened() if discard else opened(blkdiscard="false")
    prepare(driver, "base")
    before = os.stat(driver.root / "data").st_blocks
    inside(driver, tmp_path / "place", "base", lambda top: (top / "large").write_bytes(os.urandom(24 << 20)))
    assert os.stat(driver.root / "data").st_blocks - before > (20 << 20) // 512
    used = driver._pool.status().data[0]
    driver.remove(id="base")
    assert used - driver._pool.status().data[0] > (20 << 20) // (64 << 10)
    kept = os.stat(driver.root / "data").st_blocks - before
    assert kept < (4 << 20) // 512 if discard else kept > (20 << 20) // 512


@thin
def test_a_deleted_file_is_trimmed_when_the_layer_is_committed(opened, tmp_path):
    driver = opened()
    prepare(driver, "base")

    def come_and_go(top):
        (top / "large").write_bytes(os.urandom(24 << 20))
        os.sync()
        (top / "large").unlink()

    inside(driver, tmp_path / "place", "base", come_and_go)
    used = driver._pool.status().data[0]
    driver.commit(id="base", parents=())
    assert used - driver._pool.status().data[0] > (20 << 20) // (64 << 10)


@thin
@pytest.mark.parametrize("size", [32 << 20, 256 << 20])
def test_a_layer_is_as_large_as_it_was_asked_to_be(opened, tmp_path, size):
    driver = opened()
    prepare(driver, "base")
    inside(driver, tmp_path / "place", "base", lambda top: (top / "kept").write_text("kept"))
    driver.commit(id="base", parents=())
    prepare(driver, "child", "base", size=size)

    def look(top):
        found = os.statvfs(top)
        return os.listdir(top), found.f_blocks * found.f_frsize

    names, total = inside(driver, tmp_path / "place", "child", look, "base")
    assert names == ["kept"]
    assert 0.7 * size < total <= size


@thin
def test_a_size_below_what_the_parent_holds_is_refused(opened, tmp_path):
    driver = opened()
    prepare(driver, "base")
    inside(driver, tmp_path / "place", "base", lambda top: (top / "large").write_bytes(os.urandom(30 << 20)))
    driver.commit(id="base", parents=())
    with pytest.raises(NotSupported) as caught:
        prepare(driver, "tiny", "base", size=1 << 20)
    assert str(caught.value) == (
        "storage devicemapper: layer tiny cannot be limited to 1048576 bytes: its ext4 needs at least 16m"
    )
    with pytest.raises(DriverError, match=r"^storage devicemapper: prepare small failed: resize2fs: "):
        prepare(driver, "small", "base", size=20 << 20)
    driver.remove(id="small")
    assert driver.owned() == {"base"}


@thin
def test_xfs_serves_too(opened, tmp_path):
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("needs mkfs.xfs")
    driver = opened(fs="xfs", basesize="300m", mkfsarg="")
    prepare(driver, "base")
    inside(driver, tmp_path / "place", "base", lambda top: (top / "a").write_text("1"))
    driver.commit(id="base", parents=())
    prepare(driver, "child", "base", size=600 << 20)

    def write(top):
        (top / "b").write_text("2")
        return os.statvfs(top).f_blocks * os.statvfs(top).f_frsize

    assert inside(driver, tmp_path / "place", "child", write, "base") > 500 << 20
    # Both at once: snapshots of one file system have the same UUID.
    with_parent = driver.mounts(id="base", parents=(), state=State.COMMITTED)
    place = tmp_path / "parent"
    place.mkdir()

    def both(top):
        mount_all(with_parent, str(place))
        try:
            return sorted(os.listdir(top)), os.listdir(place)
        finally:
            unmount(str(place))

    assert inside(driver, tmp_path / "place", "child", both, "base") == (["a", "b"], ["a"])
    with pytest.raises(NotSupported, match=r"xfs cannot shrink, use dm.fs=ext4"):
        prepare(driver, "smaller", "child", size=310 << 20)


@thin
def test_a_pool_that_fills_up_is_enlarged_then_refuses(opened, tmp_path):
    driver = opened(loopdatasize="128m", min_free_space="40%", thinp_autoextend_threshold="0%")
    prepare(driver, "base")
    for n in range(2):
        prepare(driver, f"l{n}")
        inside(driver, tmp_path / "place", f"l{n}", lambda top: (top / "f").write_bytes(os.urandom(40 << 20)))
    with pytest.raises(DriverError) as caught:
        prepare(driver, "more")
    assert "of the pool's data is free, dm.min_free_space is 40%" in str(caught.value)
    assert str(caught.value).endswith("; remove containers and images, or enlarge the pool")
    assert driver.owned() == {"base", "l0", "l1"}
    driver.close()
    larger = opened(loopdatasize="128m", min_free_space="40%", thinp_autoextend_threshold="50%",
                    thinp_autoextend_percent="90%")  # fmt: skip
    prepare(larger, "more")
    assert os.stat(larger.root / "data").st_size > 200 << 20
    assert inside(larger, tmp_path / "place", "l0", lambda top: (top / "f").stat().st_size) == 40 << 20


@thin
def test_metadata_that_fill_up_are_enlarged_then_refused(opened):
    options = {"loopdatasize": "4g", "loopmetadatasize": "4m", "min_free_space": "0%"}
    driver = opened(thinp_autoextend_threshold="0%", **options)
    prepare(driver, "base")
    before = driver._pool.status()
    driver.close()
    larger = opened(thinp_autoextend_threshold="1%", thinp_autoextend_percent="50%", **options)
    prepare(larger, "more")
    status = larger._pool.status()
    assert (status.metadata[1], status.data[1]) == (before.metadata[1] * 3 // 2, before.data[1])
    larger.close()
    strict = opened(thinp_autoextend_threshold="0%", **{**options, "min_free_space": "99%"})
    with pytest.raises(DriverError, match=r"only \d\d% of the pool's metadata is free, dm.min_free_space is 99%"):
        prepare(strict, "refused")
    assert strict.owned() == {"base", "more"}


@thin
def test_writes_to_a_full_pool_fail_at_once(opened, tmp_path):
    driver = opened(loopdatasize="96m", basesize="256m", min_free_space="0%", thinp_autoextend_threshold="0%")
    prepare(driver, "base")

    def fill(top):
        start = time.monotonic()
        with pytest.raises(OSError), open(top / "f", "wb", buffering=0) as file:  # ENOSPC or EIO
            for _ in range(200):
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
        return time.monotonic() - start

    assert inside(driver, tmp_path / "place", "base", fill) < 45
    driver.remove(id="base")
    assert driver.owned() == frozenset()


@pytest.fixture
def disks(tmp_path):
    """Two empty loop devices, as block devices that are given."""
    held = []
    for name, size in (("disk-a", 256 << 20), ("disk-b", 16 << 20)):
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
        held.append(loops.attach(str(tmp_path / name)))
    yield [f"/dev/loop{number.partition(':')[2]}" for _, number in held]
    for fd, _ in held:
        os.close(fd)


@thin
def test_block_devices_serve_when_they_are_empty(opened, disks, tmp_path):
    data, metadata = disks
    driver = opened(datadev=data, metadatadev=metadata)
    prepare(driver, "base")
    inside(driver, tmp_path / "place", "base", lambda top: (top / "a").write_text("1"))
    driver.commit(id="base", parents=())
    driver.close()
    assert not (driver.root / "data").exists()
    again = opened(datadev=data, metadatadev=metadata)
    prepare(again, "child", "base")
    assert inside(again, tmp_path / "place", "child", lambda top: (top / "a").read_text(), "base") == "1"
    assert again.status()["Data file"] == data
    again.close()
    shutil.rmtree(driver.root)
    with pytest.raises(DriverError) as caught:
        prepare(opened(datadev=data, metadatadev=metadata), "base")
    assert f"{metadata} failed: the device is not empty; if nothing on it is needed: blkdiscard -z" in str(caught.value)


@thin
def test_a_thin_pool_of_somebody_elses_serves(opened, disks, tmp_path):
    data, metadata = disks
    table = f"0 {(256 << 20) // 512} thin-pool {metadata} {data} 128 0"
    environment = {**os.environ, "DM_DISABLE_UDEV": "1"}
    subprocess.run(["dmsetup", "create", "transom-test-pool", "--table", table], check=True, env=environment)
    try:
        driver = opened(thinpooldev="/dev/mapper/transom-test-pool")
        prepare(driver, "base")
        inside(driver, tmp_path / "place", "base", lambda top: (top / "a").write_text("1"))
        driver.commit(id="base", parents=())
        driver.close()
        assert "transom-test-pool" in Mapper().names()
        again = opened(thinpooldev="/dev/mapper/transom-test-pool")
        prepare(again, "child", "base")
        assert inside(again, tmp_path / "place", "child", lambda top: (top / "a").read_text(), "base") == "1"
        again.close()
        with pytest.raises(DriverError, match="pool absent failed: there is no such thin pool"):
            prepare(Devicemapper(options=opened(thinpooldev="absent").options, root=tmp_path / "x", run=tmp_path), "b")
    finally:
        subprocess.run(["dmsetup", "remove", "--retry", "transom-test-pool"], check=True, env=environment)
