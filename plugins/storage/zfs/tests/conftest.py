"""A pool in a file, for tests: made when it is first asked for, gone with the process."""

import os
import subprocess

import pytest


@pytest.fixture
def pool(tmp_path):
    """A pool of the test's own, with the dataset layers in it."""
    name = f"transom-test-{os.getpid()}"
    with open(tmp_path / "image", "wb") as file:
        file.truncate(256 << 20)
    make = ["zpool", "create", "-f", "-O", "mountpoint=none", "-o", "cachefile=none", name, tmp_path / "image"]
    subprocess.run(make, check=True)
    try:
        subprocess.run(["zfs", "create", "-o", "mountpoint=none", f"{name}/layers"], check=True)
        yield name
    finally:
        subprocess.run(["zpool", "destroy", "-f", name], check=True)
