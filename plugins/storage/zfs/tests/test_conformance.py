"""The driver zfs in the suite that every storage driver passes, on a pool in a file, where the kernel has ZFS."""

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from transom_conformance.storage import StorageSuite


@cache
def pool():
    """Make a pool for the process, and return where a dataset of it is mounted."""
    name, work = f"transom-suite-{os.getpid()}", Path(tempfile.mkdtemp(prefix="transom-zpool-"))
    owner = os.getpid()

    def forget():
        if os.getpid() == owner:  # not in a forked child
            subprocess.run(["zpool", "destroy", "-f", name], check=False)
            shutil.rmtree(work, ignore_errors=True)

    atexit.register(forget)
    with open(work / "image", "wb") as file:
        file.truncate(2 << 30)
    make = ["zpool", "create", "-f", "-O", "mountpoint=none", "-o", "cachefile=none", name, work / "image"]
    subprocess.run(make, check=True)
    subprocess.run(["zfs", "create", "-o", f"mountpoint={work}/root", f"{name}/layers"], check=True)
    return work / "root"


class TestZfs(StorageSuite):
    driver = "zfs"
    filesystem = "zfs"
    stride = 25  # zfs(8) is a program, and a guest that has it is slow

    @classmethod
    def ground(cls):
        return pool() if os.path.exists("/dev/zfs") and shutil.which("zpool") else None
