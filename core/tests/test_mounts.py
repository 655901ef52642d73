"""Mounting what drivers describe as data."""

import os

import pytest

from transom.contract.storage import IdMap, IdRange, Mount
from transom.errors import NotSupported
from transom.services import idmaps
from transom.services.mounts import mount_all, privately, unmount

SHIFTED = IdMap(uids=(IdRange(0, 100_000, 65_536),), gids=(IdRange(0, 100_000, 65_536),))


def test_a_remount_gives_what_was_mounted_more_options(tmp_path):
    mounts = (
        Mount(type="tmpfs", source="tmpfs", options=("size=1m",)),
        Mount(type="tmpfs", source="tmpfs", options=("size=3m",), remount=True),
    )

    def size():
        mount_all(mounts, str(tmp_path))
        found = os.statvfs(tmp_path)
        assert unmount(str(tmp_path))
        assert not unmount(str(tmp_path))
        return found.f_blocks * found.f_frsize

    assert privately(size) == 3 << 20


def test_a_remount_that_fails_takes_the_mount_away_again(tmp_path):
    mounts = (
        Mount(type="tmpfs", source="tmpfs", options=("size=1m",)),
        Mount(type="tmpfs", source="tmpfs", options=("no-such-option=1",), remount=True),
    )

    def attempt():
        with pytest.raises(OSError, match=str(tmp_path)):
            mount_all(mounts, str(tmp_path))
        return os.path.ismount(tmp_path)

    assert privately(attempt) is False


@pytest.mark.parametrize("type", ["bind", "proc"])
def test_a_file_system_that_takes_no_id_map_is_named(tmp_path, type):
    mount = Mount(type=type, source="/proc", idmap=SHIFTED)

    def attempt():
        with pytest.raises(NotSupported) as caught:
            mount_all([mount], str(tmp_path))
        return str(caught.value), os.path.ismount(tmp_path)

    assert privately(attempt) == (
        "/proc cannot be mounted with an id map (Invalid argument): that needs Linux 5.12, below an overlay 5.19,"
        " and a file system that can, such as ext4, xfs or btrfs",
        False,
    )


def test_an_overlay_with_an_id_map_that_fails_leaves_no_mount(tmp_path):
    for name in ("lower", "upper", "merged"):
        (tmp_path / name).mkdir()
    options = tuple(f"{key}={tmp_path}/{name}" for key, name in (("lowerdir+", "lower"), ("upperdir", "upper")))
    mount = Mount(type="overlay", source="overlay", options=(*options, f"workdir={tmp_path}/absent"), idmap=SHIFTED)

    def attempt():
        with pytest.raises(FileNotFoundError, match="merged"):
            mount_all([mount], str(tmp_path / "merged"))
        return os.path.ismount(tmp_path / "merged")

    assert privately(attempt) is False


def test_a_directory_whose_name_overlay_would_misread_can_be_mapped(tmp_path):
    place = tmp_path / "a,b\\c:d"
    for name in ("lower", "upper", "work", "merged"):
        (place / name).mkdir(parents=True)
    (place / "lower" / "file").touch()
    escaped = str(place).replace("\\", "\\\\").replace(",", "\\,")
    options = (f"lowerdir+={place}/lower", f"upperdir={escaped}/upper", f"workdir={escaped}/work", "index=off")

    def owner():
        mount_all([Mount(type="overlay", source="overlay", options=options, idmap=SHIFTED)], str(place / "merged"))
        found = os.stat(place / "merged" / "file").st_uid, os.stat(place / "lower" / "file").st_uid
        assert unmount(str(place / "merged"))
        assert not unmount(str(place / "merged"))
        return found

    assert privately(owner) == (100_000, 0)


def test_a_user_namespace_lasts_as_long_as_its_descriptor(monkeypatch):
    before = os.listdir("/proc/self/fd")
    with idmaps.namespace(SHIFTED) as fd:
        assert os.readlink(f"/proc/self/fd/{fd}").startswith("user:[")
    assert os.listdir("/proc/self/fd") == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize(("id", "found"), [(0, 100_000), (65_535, 165_535), (65_536, 65_534)])
def test_ids_outside_the_map_are_the_overflow_id(id, found):
    assert idmaps.outside(SHIFTED.uids, id) == found
