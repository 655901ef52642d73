"""What is aufs's own: how branches are given to the kernel page by page, and what a host without it is told."""

import io
import os
import re
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.contract.storage import ChangeKind, State, StorageCapability
from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError, NotSupported
from transom.services.mounts import mount_all, privately, unmount
from transom.services.trees import copy_tree
from transom_storage_aufs import BASE, MOST, ORPHANS, PLINKS, ROOT, SHM, Aufs, plan
from transom_storage_aufs.plinks import clear, flush
from transom_storage_aufs.probe import LINK, PREFIX


def has_aufs():
    with open("/proc/filesystems") as lines:
        return any(line.split()[-1] == "aufs" for line in lines)


def opened(place, *, found="attributes"):
    """Open the driver, as on a kernel that was asked before what it can."""
    if not has_aufs():
        (place / "run").mkdir(parents=True, exist_ok=True)
        (place / "run" / "found").write_text(found)
    return Aufs(options=Aufs.Options(), root=place / "root", run=place / "run")


@pytest.fixture
def driver(tmp_path):
    return opened(tmp_path)


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
    (mount,) = plan(["/l/top", "/l/middle", "/l/base"], writable=True, options=("dio", "xino=/x"))
    assert (mount.type, mount.source, mount.readonly, mount.remount) == ("aufs", "none", False, False)
    assert mount.options == ("br:/l/top=rw:/l/middle=ro+wh:/l/base=ro+wh", "dio", "xino=/x")


def test_in_a_mount_to_read_from_every_branch_is_read_only_and_its_whiteouts_count():
    (mount,) = plan(["/l/top", "/l/base"], writable=False, options=())
    assert (mount.options, mount.readonly) == (("br:/l/top=ro+wh:/l/base=ro+wh",), True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=127),
    options=st.lists(st.sampled_from(["dio", "dirperm1", "xino=/dev/shm/x"]), max_size=3),
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
    assert all(len(branches_of([mount])) + sum(":" not in word for word in mount.options) <= MOST for mount in mounts)
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
    tables = {driver.mounts(id="one", parents=(), state=State.COMMITTED)[0].options[2] for _ in range(10)}
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
    driver = Aufs(options=Aufs.Options(), root=tmp_path / name / "root", run=opened(tmp_path).run)
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


def test_what_aufs_would_make_in_a_branch_is_there_before_it_comes(driver):
    prepare(driver, "base")
    os.utime(driver.root / "base", ns=(1, 1_000_000_001))
    prepare(driver, "child", "base")
    child = driver.root / "child"
    assert sorted(os.listdir(child)) == [BASE, ORPHANS, PLINKS]
    assert (child / BASE).is_file()
    assert child.stat().st_mtime_ns == 1_000_000_001


def test_what_aufs_keeps_in_a_branch_for_itself_does_not_count(driver):
    prepare(driver, "base")
    base = driver.root / "base"
    assert driver.usage(id="base", parents=()).inodes == 1
    (base / "file").write_bytes(b"x" * 10_000)
    os.link(base / "file", base / PLINKS / "12.34")
    os.link(base / BASE, base / ".wh.gone")
    found = driver.usage(id="base", parents=())
    assert found.inodes == 2
    assert 10_000 <= found.size - 512 * base.lstat().st_blocks < 20_000


def test_every_name_of_a_pseudo_linked_file_is_touched_and_nothing_else(driver, tmp_path):
    prepare(driver, "layer")
    place = tmp_path / "mounted"
    (place / "a" / "b").mkdir(parents=True)
    (place / "one").write_text("1")
    (place / "one").chmod(0o4755)
    os.utime(place / "one", ns=(5, 7))
    os.link(place / "one", place / "a" / "b" / "two")
    (place / "other").touch()
    os.mkfifo(place / "fifo")
    found = (place / "one").stat()
    (driver.root / "layer" / PLINKS / f"{found.st_ino}.77").touch()
    before = {name: (place / name).stat().st_ctime_ns for name in ("one", "other", "fifo")}
    driver.unmounting(id="layer", place=str(place))
    after = {name: (place / name).stat().st_ctime_ns for name in before}
    assert [name for name in before if before[name] != after[name]] == ["one"]
    now = (place / "one").stat()
    assert (now.st_mode, now.st_atime_ns, now.st_mtime_ns) == (found.st_mode, 5, 7)


def test_a_commit_removes_the_pseudo_links_that_a_kill_left(driver):
    prepare(driver, "layer")
    left = driver.root / "layer" / PLINKS / "12.34"
    left.touch()
    driver.commit(id="layer", parents=())
    assert not left.exists()
    clear(f"{driver.root}/absent")
    flush(f"{driver.root}/absent", "/")


def test_what_this_kernel_can_is_given_to_each_mount(tmp_path):
    if has_aufs():
        pytest.skip("this kernel has aufs: it says itself what it can")
    full, bare = opened(tmp_path / "full", found="acl attributes dirperm1"), opened(tmp_path / "bare", found="")
    for driver in (full, bare):
        prepare(driver, "base")
    options = {n: d.mounts(id="base", parents=(), state=State.ACTIVE)[0].options for n, d in enumerate((full, bare))}
    assert options[0][3:] == ("dirperm1", "acl")
    assert options[1][3:] == ()
    assert full.keeps_attributes
    assert not bare.keeps_attributes
    assert full.status()["Dirperm1 Supported"] == "true"
    assert bare.status()["Extended Attributes"] == "false"


def needs_aufs():
    if not has_aufs():
        pytest.skip("no aufs in this kernel")


def inside(driver, id, parents, function):
    """Call `function` with the layer mounted, writable, and the place."""
    place = driver.root.parent / "mounted"
    place.mkdir(exist_ok=True)

    def run():
        mount_all(driver.mounts(id=id, parents=parents, state=State.ACTIVE), str(place))
        try:
            result = function(place)
            driver.unmounting(id=id, place=str(place))
            return result
        finally:
            unmount(str(place))

    return privately(run)


def test_names_of_one_file_are_one_file_also_after_it_was_written(driver):
    needs_aufs()
    prepare(driver, "base")

    def fill(top):
        (top / "d").mkdir()
        (top / "a").write_text("old")
        (top / "a").chmod(0o4755)
        os.link(top / "a", top / "d" / "b")

    inside(driver, "base", (), fill)
    prepare(driver, "child", "base")
    inside(driver, "child", ("base",), lambda top: (top / "a").write_text("new"))
    assert os.listdir(driver.root / "child" / PLINKS) == []

    def check(top):
        assert (top / "d" / "b").read_text() == "new"
        assert os.path.samefile(top / "a", top / "d" / "b")
        assert (top / "d" / "b").stat().st_nlink == 2

    inside(driver, "child", ("base",), check)


def test_a_mount_leaves_a_new_branch_as_it_was_made(driver):
    needs_aufs()
    prepare(driver, "base")
    before = (driver.root / "base").stat().st_mtime_ns
    inside(driver, "base", (), lambda top: os.listdir(top))
    assert (driver.root / "base").stat().st_mtime_ns == before


def test_without_aufs_the_probe_says_so_and_leaves_nothing(tmp_path):
    if has_aufs():
        pytest.skip("this kernel has aufs: nothing is missing")
    driver = Aufs(options=Aufs.Options(), root=tmp_path / "root", run=tmp_path / "run")
    probe = driver.probe()
    assert not probe.usable
    assert probe.reason == (
        "the kernel has no aufs (no kernel of Debian's has): load the module (modprobe aufs) of a kernel that does, or"
        " use the driver overlay2"
    )
    assert os.listdir(tmp_path) == []
    assert [name for name in os.listdir(SHM) if name.startswith("transom-aufs-probe")] == []
    assert driver.status()["Dirperm1 Supported"] == "false"
    with pytest.raises(DriverError, match="storage aufs: mounts base failed: No such device"):
        driver.mounts(id="base", parents=(), state=State.ACTIVE)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_probe_left_is_removed(driver):
    driver.root.mkdir()
    (driver.root / f"{PREFIX}99999999" / "upper").mkdir(parents=True)
    os.symlink("/nowhere", f"{SHM}/{LINK}99999999")
    os.symlink(driver.root / "gone", f"{SHM}/{ROOT}{os.getpid():016x}")
    assert driver.recover() == [
        f"storage aufs: removed {name}99999999, left by a killed probe" for name in (PREFIX, LINK)
    ]
    assert driver.recover() == []
    assert not os.path.lexists(f"{SHM}/{ROOT}{os.getpid():016x}")


def test_what_fails_is_told_in_words(driver):
    driver.root.mkdir()
    (driver.root / "taken").touch()
    with pytest.raises(DriverError) as caught:
        prepare(driver, "taken")
    assert str(caught.value) == "storage aufs: prepare taken failed: File exists"


def test_its_options_are_checked(tmp_path):
    drivers = Drivers(state=tmp_path / "s", run=tmp_path / "r")
    driver = drivers.storage("aufs", {"aufs.mountopt": "udba=reval,warn_perm"}, where="--storage-opt")
    if not has_aufs():
        driver.run.mkdir(parents=True)
        (driver.run / "found").write_text("")
    prepare(driver, "base")
    (mount,) = driver.mounts(id="base", parents=(), state=State.ACTIVE)
    assert mount.options[-2:] == ("udba=reval", "warn_perm")


def test_the_time_of_a_directory_is_a_change_unless_one_below_it_brings_the_time_along(driver):
    prepare(driver, "base")
    base = driver.root / "base"
    for path in ("d/e/f", "x/y/g", "z/h"):
        (base / path).parent.mkdir(parents=True)
        (base / path).write_text("1")
    prepare(driver, "child", "base")
    copy_tree(base / "d", driver.root / "child" / "d")
    copy_tree(base / "x", driver.root / "child" / "x")
    for path in ("d/e", "d", "x/y", "x"):
        os.utime(driver.root / "child" / path)
    (driver.root / "child" / "x" / "y" / "g").write_text("22")
    (driver.root / "child" / ".wh.z").touch()
    assert [(change.path, change.kind) for change in driver.changes(id="child", parents=("base",))] == [
        (b"d", ChangeKind.MODIFIED),
        (b"d/e", ChangeKind.MODIFIED),
        (b"x/y/g", ChangeKind.MODIFIED),
        (b"z", ChangeKind.DELETED),
    ]


@pytest.mark.parametrize(("name", "words"), [("n" * 243, "name too long"), (".wh..wh.plnk/1.2", "")])
def test_a_tar_makes_nothing_that_aufs_would_not_show(driver, name, words):
    prepare(driver, "layer")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    out.seek(0)
    if words:
        with pytest.raises(ConfigError, match=words):
            driver.apply(id="layer", parents=(), stream=out)
    else:
        driver.apply(id="layer", parents=(), stream=out)
    assert sorted(os.listdir(driver.root / "layer")) == [BASE, ORPHANS, PLINKS]
    assert os.listdir(driver.root / "layer" / PLINKS) == []


def test_without_attributes_layers_are_unpacked_by_the_mount_which_refuses_them(tmp_path):
    if has_aufs():
        pytest.skip("this kernel has aufs: it says itself what it can")
    assert StorageCapability.APPLY in opened(tmp_path / "full").capabilities
    bare = opened(tmp_path / "bare", found="")
    assert StorageCapability.APPLY not in bare.capabilities
    with pytest.raises(NotSupported, match="aufs does not support apply"):
        bare.apply(id="layer", parents=(), stream=io.BytesIO())
