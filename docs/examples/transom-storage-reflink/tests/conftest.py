"""A btrfs in a file, on which the session has its temporary directory."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from transom_conformance.disks import disk


def pytest_sessionstart():
    tempfile.tempdir = str(disk("btrfs"))  # it goes with this process, and what a killed one left with the next


def pytest_unconfigure():
    tempfile.tempdir = None


@pytest.fixture
def tmp_path():
    """A directory on the btrfs, in place of pytest's."""
    path = Path(tempfile.gettempdir()) / os.urandom(6).hex()
    path.mkdir()
    yield path
    subprocess.run(["rm", "-rf", path], check=True)
