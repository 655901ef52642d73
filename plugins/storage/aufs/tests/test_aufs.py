"""What is aufs's own: how branches are given to the kernel page by page, and what a host without it is told."""

import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.contract.storage import State
from transom.drivers import Drivers
from transom.errors import DriverError
from transom_storage_aufs import SHM, Aufs, plan
from transom_storage_aufs.probe import PREFIX


def has_aufs():
    with open("/proc/filesystems") as lines:
        return any(line.split()[-1] == "aufs" for line in lines)


@pytest.fixture
def driver(tmp_path):
    return Aufs(options=Aufs.Options(), root=tmp_path / "root", run=tmp_path / "run")


def prepare(driver, id, *parents):
    driver.prepare(id=id, parents=parents, size=None, idmap=None)


def data_of(mount):
    return os.fsencode(",".join(mount.options))


def branches_of(mounts):
    """Read the branches off the options as aufs does: split at commas, then at colons, then at =."""
    found = []
    for mount in mounts:
        for option in mount.options:
            verb, colon, rest = option.partition(":")
            if not colon:
                continue
            assert verb == ("append" if mount.remount else "br")
            found += [tuple(branch.split("=")) for branch in rest.split(":")]
    return found


def test_few_branches_are_one_mount():
    (mount,) = plan(["/l/top", "/l/middle", "/l/base"], writable=True, options=("noplink", "xino=/x"))
    assert (mount.type, mount.source, mount.readonly, mount.remount) == ("aufs", "none", False, False)
    assert mount.options == ("br:/l/top=rw:/l/middle=ro+wh:/l/base=ro+wh", "noplink", "xino=/x")


def test_in_a_mount_to_read_from_every_branch_is_read_only_and_its_whiteouts_count():
    (mount,) = plan(["/l/top", "/l/base"], writable=False, options=())
    assert (mount.options, mount.readonly) == (("br:/l/top=ro+wh:/l/base=ro+wh",), True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=127),
    options=st.lists(st.sampled_from(["dio", "noplink", "xino=/dev/shm/x"]), max_size=3),
    writable=st.booleans(),
    page=st.sampled_from([256, 1024, 4096]),
)
def test_however_many_all_branches_are_given_in_their_order_and_no_page_overflows(lengths, options, writable, page):
    branches = [f"/layers/{n}{'é' * length}" for n, length in enumerate(lengths)]
    mounts = plan(branches, writable=writable, options=tuple(options), page=page)
    assert branches_of(mounts) == [
        (branch, "rw" if writable and n == 0 else "ro+wh") for n, branch in enumerate(branches)
    ]
    assert all(len(data_of(mount)) < page for mount in mounts)
    assert [mount.remount for mount in mounts] == [False, *[True] * (len(mounts) - 1)]
    assert {mount.readonly for mount in mounts} == {not writable}


@pytest.mark.parametrize("length", range(-1, 2))
def test_a_page_is_filled_to_its_last_byte_and_not_beyond(length):
    page = 4096
    first = "br:/t=rw"
    path = "/" + "x" * (page - 1 - len(first) - len(":=ro+wh") - len(",dio") - 1 + length)
    mounts = plan(["/t", path], writable=True, options=("dio",), page=page)
    assert len(mounts) == (2 if length > 0 else 1)
    if length <= 0:
        assert len(data_of(mounts[0])) == page - 1 + length


def test_the_deepest_chain_needs_more_than_one_page(driver):
    for n in range(3):
        prepare(driver, f"{n}")
    ids = tuple(f"{n:020x}" for n in range(driver.max_depth))
    mounts = driver.mounts(id="f" * 20, parents=ids, state=State.ACTIVE)
    assert len(mounts) > 1
    assert [branch for branch, _ in branches_of(mounts)] == [f"{driver.root}/{id}" for id in ("f" * 20, *ids)]


def test_each_mount_makes_an_inode_table_of_its_own(driver):
    prepare(driver, "one")
    tables = {driver.mounts(id="one", parents=(), state=State.COMMITTED)[0].options[3] for _ in range(10)}
    assert len(tables) == 10
    assert all(re.fullmatch(rf"xino={SHM}/\.transom-[0-9a-f]{{16}}\.xino", table) for table in tables)


def test_states_show_what_they_should(driver):
    prepare(driver, "base")
    prepare(driver, "child", "base")
    root = driver.root

    def shown(id, parents, state):
        return branches_of(driver.mounts(id=id, parents=parents, state=state))

    assert shown("child", ("base",), State.ACTIVE) == [(f"{root}/child", "rw"), (f"{root}/base", "ro+wh")]
    assert shown("child", ("base",), State.COMMITTED) == [(f"{root}/child", "ro+wh"), (f"{root}/base", "ro+wh")]
    assert shown("view", ("base",), State.VIEW) == [(f"{root}/base", "ro+wh")]


@pytest.mark.parametrize("name", ["co:lon", "com,ma", "e=qual"])
def test_a_root_that_aufs_could_not_read_is_given_by_a_link(tmp_path, name):
    driver = Aufs(options=Aufs.Options(), root=tmp_path / name / "root", run=tmp_path / "run")
    prepare(driver, "base")
    for _ in range(2):
        (mount,) = driver.mounts(id="base", parents=(), state=State.ACTIVE)
    ((branch, _),) = branches_of([mount])
    try:
        assert branch.startswith(f"{SHM}/transom-aufs-")
        assert os.path.samefile(branch, driver.root / "base")
    finally:
        os.unlink(os.path.dirname(branch))


def test_a_layer_begins_with_the_looks_of_its_parent(driver):
    prepare(driver, "base")
    os.chown(driver.root / "base", 7, 8)
    (driver.root / "base").chmod(0o1711)
    prepare(driver, "child", "base")
    found = (driver.root / "child").stat()
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid) == (0o1711, 7, 8)


def test_what_aufs_keeps_in_a_branch_for_itself_does_not_count(driver):
    prepare(driver, "base")
    (driver.root / "base" / "file").write_bytes(b"x" * 10_000)
    before = driver.usage(id="base", parents=())
    for name in (".wh..wh.plnk", ".wh..wh.orph"):
        (driver.root / "base" / name).mkdir()
    (driver.root / "base" / ".wh..wh.aufs").touch()
    assert driver.usage(id="base", parents=()) == before
    assert before.inodes == 2


def test_without_aufs_the_probe_says_so_and_leaves_nothing(driver, tmp_path):
    if has_aufs():
        pytest.skip("this kernel has aufs: nothing is missing")
    probe = driver.probe()
    assert not probe.usable
    assert probe.reason == (
        "the kernel has no aufs (no kernel of Debian's has): load the module (modprobe aufs) of a kernel that does, or"
        " use the driver overlay2"
    )
    assert os.listdir(tmp_path) == []
    assert [name for name in os.listdir(SHM) if name.startswith("transom-aufs-probe")] == []


def test_what_a_killed_probe_left_is_removed(driver):
    driver.root.mkdir()
    (driver.root / f"{PREFIX}99999999" / "upper").mkdir(parents=True)
    assert driver.recover() == [f"storage aufs: removed {PREFIX}99999999, left by a killed probe"]
    assert driver.recover() == []


def test_what_fails_is_told_in_words(driver):
    driver.root.mkdir()
    (driver.root / "taken").touch()
    with pytest.raises(DriverError) as caught:
        prepare(driver, "taken")
    assert str(caught.value) == "storage aufs: prepare taken failed: File exists"


def test_its_options_are_checked(tmp_path):
    drivers = Drivers(state=tmp_path / "s", run=tmp_path / "r")
    driver = drivers.storage("aufs", {"aufs.mountopt": "udba=notify,warn_perm"}, where="--storage-opt")
    prepare(driver, "base")
    (mount,) = driver.mounts(id="base", parents=(), state=State.ACTIVE)
    assert mount.options[-2:] == ("udba=notify", "warn_perm")
