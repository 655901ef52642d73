"""What is overlay2's own: its options, what it says of hosts that cannot, its layout, its native changes."""

import os
import stat
from types import SimpleNamespace

import pytest

from transom.contract.storage import ChangeKind, Mount, State, StorageCapability
from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError, NotSupported
from transom.services.differ import compare
from transom.services.mounts import mount, mount_all, privately, unmount
from transom.services.snapshots import Snapshots
from transom_conformance.storage import Layers, put, scribble
from transom_conformance.suite import World
from transom_storage_overlay2 import Overlay2, Overlay2Options


@pytest.fixture
def driver(tmp_path):
    return Overlay2(options=Overlay2Options(), root=tmp_path / "root", run=tmp_path / "run")


@pytest.fixture
def layers(tmp_path):
    world = World(path=tmp_path, kind="storage", driver="overlay2", options={})
    layers = Layers(world)
    yield layers
    layers.remove_all()
    layers.close()
    world.clean_up()


def prepare(driver, id, *parents):
    driver.prepare(id=id, parents=parents, size=None, idmap=None)


def test_a_size_is_refused_with_the_reason_where_it_cannot_be_kept(tmp_path):
    (tmp_path / "tmpfs").mkdir()
    place = tmp_path / "tmpfs"

    def check():
        mount("tmpfs", str(place), "tmpfs")
        driver = Overlay2(options=Overlay2Options(size=1 << 30), root=place / "root", run=tmp_path / "run")
        assert StorageCapability.QUOTA not in driver.capabilities
        with pytest.raises(NotSupported) as caught:
            Snapshots(driver).prepare("a", None, size=1 << 20)
        return driver.probe(), str(caught.value), os.listdir(place)

    probe, said, made = privately(check)
    reason = f"tmpfs at {place} has no project quotas on this kernel; ext4 and xfs have them (prjquota, pquota)"
    assert (probe.usable, probe.reason) == (False, f"overlay2.size cannot be kept: {reason}")
    assert said == f"storage driver overlay2 does not support sizes here: {reason}"
    assert made == []


def test_the_class_declares_quotas_and_an_instance_where_it_has_them(driver):
    assert StorageCapability.QUOTA in Overlay2.capabilities
    assert (StorageCapability.QUOTA in driver.capabilities) == (not driver.lacking_quota)
    assert driver.status()["Project Quota"] == (driver.lacking_quota or "true")


def test_options_are_checked_in_words(tmp_path):
    drivers = Drivers(state=tmp_path / "state", run=tmp_path / "run")
    with pytest.raises(ConfigError) as caught:
        drivers.storage("overlay2", {"overlay2.siz": "1g"}, where="--storage-opt")
    assert str(caught.value) == (
        "storage driver overlay2 has no option 'overlay2.siz' (from --storage-opt) (did you mean overlay2.size?);"
        " it knows: overlay2.size"
    )
    with pytest.raises(ConfigError) as caught:
        drivers.storage("overlay2", {"overlay2.size": "much"}, where="--storage-opt")
    assert str(caught.value) == (
        "storage driver overlay2: overlay2.size='much' (from --storage-opt): expected a size such as 10m"
    )


def test_a_layer_is_an_upper_and_a_work_directory(driver):
    prepare(driver, "base")
    assert sorted(os.listdir(driver.root / "base")) == ["diff", "work"]
    driver.commit(id="base", parents=())
    assert os.listdir(driver.root / "base") == ["diff"]
    driver.commit(id="base", parents=())


def test_mounts_are_binds_where_one_directory_is_all_there_is_to_see(driver):
    for n, parents in enumerate([(), ("l0",), ("l1", "l0")]):
        prepare(driver, f"l{n}", *parents)
    root = driver.root
    (bind,) = driver.mounts(id="l0", parents=(), state=State.ACTIVE)
    assert (bind.type, bind.source, bind.readonly) == ("bind", f"{root}/l0/diff", False)
    (bind,) = driver.mounts(id="v", parents=("l0",), state=State.VIEW)
    assert (bind.type, bind.source, bind.readonly) == ("bind", f"{root}/l0/diff", True)
    (bind,) = driver.mounts(id="l0", parents=(), state=State.COMMITTED)
    assert (bind.type, bind.source, bind.readonly) == ("bind", f"{root}/l0/diff", True)
    (overlay,) = driver.mounts(id="v", parents=("l1", "l0"), state=State.VIEW)
    assert overlay.readonly
    assert overlay.options == (f"lowerdir+={root}/l1/diff", f"lowerdir+={root}/l0/diff")
    (overlay,) = driver.mounts(id="l1", parents=("l0",), state=State.COMMITTED)
    assert overlay.readonly
    assert overlay.options == (f"lowerdir+={root}/l1/diff", f"lowerdir+={root}/l0/diff")
    (overlay,) = driver.mounts(id="l2", parents=("l1", "l0"), state=State.ACTIVE)
    assert not overlay.readonly
    assert overlay.options[2:] == (
        f"upperdir={root}/l2/diff", f"workdir={root}/l2/work", "index=off", "metacopy=off", "redirect_dir=off",
    )  # fmt: skip


def test_a_work_directory_that_is_gone_is_made_again(driver):
    prepare(driver, "base")
    prepare(driver, "child", "base")
    os.rmdir(driver.root / "child" / "work")
    driver.mounts(id="child", parents=("base",), state=State.ACTIVE)
    assert sorted(os.listdir(driver.root / "child")) == ["diff", "work"]


def test_a_kernel_that_takes_one_page_of_options_gets_fewer_layers(driver, monkeypatch):
    assert driver.max_depth == 499
    for release, most in (("6.1.0-18-amd64", 128), ("5.10", 128), ("6.8.1", 499), ("7.0-rc1", 499)):
        old = Overlay2(options=Overlay2Options(), root=driver.root, run=driver.run)
        monkeypatch.setattr(os, "uname", lambda release=release: SimpleNamespace(release=release))
        assert old.max_depth <= most
        assert old.max_depth >= 16


def test_as_many_layers_as_an_old_kernel_gets_fit_into_one_page(driver, monkeypatch, tmp_path):
    """Mounted here with mount(2) as such a kernel would."""
    from transom.services import mounts

    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="6.1.0"))
    ids = [f"{n:020d}" for n in range(driver.max_depth + 1)]
    for n, id in enumerate(ids):
        prepare(driver, id, *reversed(ids[:n]))
    (tmp_path / "merged").mkdir()
    parents = tuple(reversed(ids[:-1]))
    (item,) = driver.mounts(id=ids[-1], parents=parents, state=State.ACTIVE)

    def check():
        mounts._mount_classic(item, str(tmp_path / "merged"))
        (tmp_path / "merged" / "new").touch()
        unmount(str(tmp_path / "merged"))

    privately(check)
    assert os.listdir(driver.root / ids[-1] / "diff") == ["new"]


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_options_are_never_cut_at_the_end_of_the_page(driver, tmp_path, over):
    """mount(2) takes a page, its closing NUL included, and drops what is beyond it without a word."""
    from transom.services import mounts

    prepare(driver, "base")
    prepare(driver, "top", "base")
    (item,) = driver.mounts(id="top", parents=("base",), state=State.ACTIVE)
    (tmp_path / "merged").mkdir()
    page = os.sysconf("SC_PAGE_SIZE")
    lowers, rest = [], ",".join(o for o in item.options if not o.startswith("lowerdir+="))
    while (room := page - 1 + over - len(rest) - len("lowerdir=,") - sum(len(path) + 1 for path in lowers) + 1) > 1:
        name = min(200, room - len(f"{tmp_path}/") - 1)
        if room - (len(f"{tmp_path}/") + name + 1) < len(f"{tmp_path}/") + 3:  # too little for another: take it all
            name = room - len(f"{tmp_path}/") - 1
        lowers.append(f"{tmp_path}/{len(lowers):02d}{'x' * (name - 2)}")
        os.makedirs(lowers[-1])
        if len(lowers[-1]) + 1 >= room:
            break
    options = (*(f"lowerdir+={path}" for path in lowers), *(o for o in item.options if not o.startswith("lowerdir+=")))
    padded = Mount(type="overlay", source="overlay", options=options)
    length = len(f"lowerdir={':'.join(lowers)},{rest}")
    assert length == page - 1 + over

    def check():
        if length >= page:
            with pytest.raises(OSError, match="mount options exceed one page"):
                mounts._mount_classic(padded, str(tmp_path / "merged"))
        else:
            mounts._mount_classic(padded, str(tmp_path / "merged"))
            unmount(str(tmp_path / "merged"))
        mount_all([padded], str(tmp_path / "merged"))
        (tmp_path / "merged" / f"new{over}").touch()
        unmount(str(tmp_path / "merged"))

    privately(check)
    assert os.listdir(driver.root / "top" / "diff") == [f"new{over}"]


@pytest.mark.parametrize("name", ["co:lon", "com,ma", "back\\slash"])
def test_odd_names_work_with_mount_of_old_kernels_too(tmp_path, name):
    from transom.services import mounts

    driver = Overlay2(options=Overlay2Options(), root=tmp_path / name, run=tmp_path / "run")
    prepare(driver, "a")
    prepare(driver, "b", "a")
    (tmp_path / "merged").mkdir()
    (item,) = driver.mounts(id="b", parents=("a",), state=State.ACTIVE)

    def check():
        mounts._mount_classic(item, str(tmp_path / "merged"))
        (tmp_path / "merged" / "new").touch()
        unmount(str(tmp_path / "merged"))

    privately(check)
    assert os.listdir(driver.root / "b" / "diff") == ["new"]


def test_no_space_is_told_with_what_to_do(tmp_path):
    (tmp_path / "small").mkdir()
    driver = Overlay2(options=Overlay2Options(), root=tmp_path / "small" / "root", run=tmp_path / "run")

    def check():
        mount("tmpfs", str(tmp_path / "small"), "tmpfs", data="nr_inodes=4")
        with pytest.raises(DriverError) as caught:
            prepare(driver, "a")
        assert str(caught.value) == (
            "storage overlay2: prepare a failed: No space left on device; free space on the file system of"
            f" {tmp_path}/small/root"
        )
        driver.remove(id="a")
        assert driver.owned() == frozenset()

    privately(check)


def test_preparing_over_what_is_there_is_refused_and_changes_nothing(driver):
    prepare(driver, "a")
    (driver.root / "a" / "diff" / "file").touch()
    with pytest.raises(DriverError, match="prepare a failed: File exists"):
        prepare(driver, "a")
    assert os.listdir(driver.root / "a" / "diff") == ["file"]


def test_an_overlay_cannot_hold_the_root_and_the_probe_says_so(tmp_path):
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()

    def check():
        data = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
        mount("overlay", str(tmp_path / "merged"), "overlay", data=data)
        nested = Overlay2(options=Overlay2Options(), root=tmp_path / "merged" / "root", run=tmp_path / "run")
        filesystem = nested.status()["Backing Filesystem"]
        probe = nested.probe()
        assert os.listdir(tmp_path / "merged") == []
        return filesystem, probe

    filesystem, probe = privately(check)
    assert filesystem == "overlay"
    assert not probe.usable
    assert probe.reason.startswith(f"overlay at {tmp_path}/merged cannot hold an overlay's upper directory (")
    assert probe.reason.endswith("): put the root on ext4, xfs or btrfs, or use the driver vfs")


def test_a_file_system_without_extended_attributes_is_named_by_the_probe(tmp_path):
    (tmp_path / "ramfs").mkdir()
    driver = Overlay2(options=Overlay2Options(), root=tmp_path / "ramfs" / "root", run=tmp_path / "run")

    def check():
        mount("ramfs", str(tmp_path / "ramfs"), "ramfs")
        return driver.probe()

    probe = privately(check)
    assert not probe.usable
    assert probe.reason == (
        f"ramfs at {tmp_path}/ramfs does not keep extended attributes (trusted.*), which overlay needs: use ext4, xfs"
        " or btrfs"
    )


def test_without_the_right_to_mount_the_probe_says_so(tmp_path):
    os.chmod(tmp_path, 0o777)
    driver = Overlay2(options=Overlay2Options(), root=tmp_path / "root", run=tmp_path / "run")
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgid(65534)
        os.setuid(65534)
        os.write(tell, driver.probe().reason.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(tell)
    with os.fdopen(ready) as answer:
        assert answer.read() == "overlay mounts need CAP_SYS_ADMIN: run as root"


def test_what_a_killed_probe_left_is_cleared_away(driver):
    (driver.root / ".overlay2-probe-4194999" / "upper").mkdir(parents=True)
    prepare(driver, "kept")
    assert driver.owned() == {"kept"}
    assert driver.recover() == ["storage overlay2: removed .overlay2-probe-4194999, left by a killed probe"]
    assert driver.recover() == []
    assert os.listdir(driver.root) == ["kept"]


def test_status_says_what_was_found(driver):
    assert driver.status() == {
        "Backing Filesystem": driver.status()["Backing Filesystem"],
        "Native Overlay Diff": "true",
        "Mount Options": "index=off, metacopy=off, redirect_dir=off",
        "Maximum Depth": "499",
        "Project Quota": driver.lacking_quota or "true",
    }


@pytest.mark.parametrize("seed", range(25))
def test_native_changes_are_those_that_comparing_the_trees_finds(layers, tmp_path, seed):
    """But for directories removed and made again, which only the driver can tell, and renewed hard links."""
    layers.committed("one", None, lambda top: scribble(top, seed))
    layers.committed("two", "one", lambda top: scribble(top, 1000 + seed, steps=20))
    layers.active("three", "two", lambda top: scribble(top, 2000 + seed, steps=25))
    native = layers.snapshots.changes("three")
    for name in ("lower", "upper"):
        (tmp_path / name).mkdir()
    lower, upper = layers.snapshots.mounts("two"), layers.snapshots.mounts("three")

    def naive():
        mount_all(lower, str(tmp_path / "lower"))
        mount_all(upper, str(tmp_path / "upper"))
        try:
            found = list(compare(lower=str(tmp_path / "lower"), upper=str(tmp_path / "upper")))
            tops = (tmp_path / "upper", tmp_path / "lower")
            linked = {c.path for c in (*native, *found) if any(_links(top, c.path) > 1 for top in tops)}
            return found, linked
        finally:
            unmount(str(tmp_path / "upper"))
            unmount(str(tmp_path / "lower"))

    found, linked = privately(naive)
    # To the comparison a directory made again is one whose contents changed: its parent moved by itself.
    opaque = [change.path + b"/" for change in native if change.opaque]
    above = {os.path.dirname(path.rstrip(b"/")) for path in (*opaque, *linked)}

    def comparable(changes):
        skipped = linked | above
        return [c for c in changes if c.path not in skipped and not (c.path + b"/").startswith(tuple(opaque))]

    assert comparable(native) == comparable(found)


def _links(top, path):
    try:
        status = os.lstat(os.path.join(os.fsencode(top), path))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink


def test_a_directory_made_again_hides_the_old_one_in_the_changes(layers):
    layers.committed("base", fill=put(d__a="1", d__b="1", d__e__f="1"))

    def change(top):
        import shutil

        shutil.rmtree(top / "d")
        put(d__b="1", d__e__g="2")(top)

    layers.active("child", "base", change)
    changes = [(c.path, c.kind, c.opaque) for c in layers.snapshots.changes("child")]
    modified, added = ChangeKind.MODIFIED, ChangeKind.ADDED
    assert changes == [
        (b"d", modified, True),
        (b"d/b", modified, False),
        (b"d/e", modified, True),
        (b"d/e/g", added, False),
    ]


def test_preparing_and_mounting_is_fast_and_imports_little(tmp_path):
    """In a fresh process: the operations of a container's start touch no heavy module."""
    import subprocess
    import sys

    code = f"""
import sys, time
from pathlib import Path
from transom.contract.storage import State
from transom_storage_overlay2 import Overlay2, Overlay2Options
driver = Overlay2(options=Overlay2Options(), root=Path({str(tmp_path / "root")!r}), run=Path("/nowhere"))
driver.prepare(id="base", parents=(), size=None, idmap=None)
before = set(sys.modules)
driver.prepare(id="child", parents=("base",), size=None, idmap=None)
driver.mounts(id="child", parents=("base",), state=State.ACTIVE)
driver.remove(id="child")
heavy = {{"subprocess", "tarfile", "shutil", "tempfile", "asyncio", "dataclasses", "logging", "hashlib"}}
print(sorted(heavy & set(sys.modules)))
print(sorted(set(sys.modules) - before))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    assert out == ["[]", "[]"]


def test_records_and_driver_agree_after_a_restart(layers):
    layers.committed("base", fill=put(a="1"))
    again = Snapshots(layers.world.open())
    assert again.check() == []
    again.close()
