"""Mounting what drivers describe as data."""

import os

import pytest

from transom.contract.storage import Mount
from transom.services.mounts import mount_all, privately, unmount


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
