"""A btrfs in a file, on which the session has its temporary directory."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

PLACE = Path(tempfile.mkdtemp(prefix="transom-reflink-"))


def pytest_sessionstart():
    image, mounted = PLACE / "image", PLACE / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(1 << 30)
    subprocess.run(["mkfs.btrfs", "--quiet", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, mounted], check=True)
    tempfile.tempdir = str(mounted)


def pytest_unconfigure():
    subprocess.run(["umount", "--lazy", PLACE / "mounted"], check=False)
    tempfile.tempdir = None
    shutil.rmtree(PLACE)


@pytest.fixture
def tmp_path():
    """A directory on the btrfs, in place of pytest's."""
    path = Path(tempfile.gettempdir()) / os.urandom(6).hex()
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", path], check=True)
