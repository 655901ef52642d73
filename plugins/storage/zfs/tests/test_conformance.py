"""The driver zfs in the suite that every storage driver passes, on a pool in a file, where the kernel has ZFS."""

import atexit
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from transom_conformance.storage import StorageSuite
from transom_conformance.storage.disk import Disk

TXG_TIMEOUT = Path("/sys/module/zfs/parameters/zfs_txg_timeout")
"""Seconds after which what is written goes to the disk by itself."""


def lacking():
    """Say why zfs cannot run here."""
    return "" if os.path.exists("/dev/zfs") and shutil.which("zpool") else "needs a kernel with ZFS, and zpool"


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


class PoolInFile(Disk):
    """A pool in a file. A copy of it has the same identity, and is imported when the first has gone."""

    size = 64 << 20  # the least that a pool may have

    def lacking(self):
        return lacking()

    def make(self, image):
        self._name = f"transom-disk-{os.getpid()}"
        self._pause = TXG_TIMEOUT.read_text()
        if self.still:
            TXG_TIMEOUT.write_text("600")
        make = ["zpool", "create", "-f", "-O", "mountpoint=none", "-O", "compression=off", "-o", "cachefile=none"]
        subprocess.run([*make, self._name, image], check=True)
        subprocess.run(["zfs", "create", "-o", "mountpoint=legacy", f"{self._name}/layers"], check=True)
        subprocess.run(["zpool", "export", self._name], check=True)

    def mount(self, image):
        name = f"{self._name}-{image.stem}"
        imported = ["zpool", "import", "-N", "-o", "cachefile=none", "-d", image, self._name, name]
        subprocess.run(imported, check=True)
        subprocess.run(["mount", "-t", "zfs", f"{name}/layers", self.place], check=True)

    def forget(self, image):
        name = f"{self._name}-{image.stem}"
        if subprocess.run(["zpool", "list", name], capture_output=True, check=False).returncode == 0:
            subprocess.run(["zpool", "export", "-f", name], check=True)

    def copy(self):
        super().copy()
        TXG_TIMEOUT.write_text(self._pause)

    def __exit__(self, *_):
        TXG_TIMEOUT.write_text(self._pause)
        super().__exit__()


class TestZfs(StorageSuite):
    driver = "zfs"
    filesystem = "zfs"
    disk = PoolInFile
    stride = 25  # zfs(8) is a program, and a guest that has it is slow
    seam = ("subprocess.Popen", "open", "os.rename", "os.remove")

    @classmethod
    def ground(cls):
        return None if lacking() else pool()
