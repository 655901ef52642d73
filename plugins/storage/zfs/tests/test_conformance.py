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
        make = ["zpool", "create", "-f", "-O", "mountpoint=none", "-O", "compression=off", "-o", "cachefile=none"]
        subprocess.run([*make, self._name, image], check=True)
        subprocess.run(["zfs", "create", "-o", "mountpoint=legacy", f"{self._name}/layers"], check=True)
        subprocess.run(["zpool", "export", self._name], check=True)

    def mount(self, image):
        name = self._pool(image)
        imported = ["zpool", "import", "-N", "-o", "cachefile=none", "-d", image, self._name, name]
        subprocess.run(imported, check=True)
        subprocess.run(["mount", "-t", "zfs", f"{name}/layers", self.place], check=True)

    def _pool(self, image):
        return self._name if image.stem == "disk" else f"{self._name}-{image.stem}"

    def forget(self, image):
        name = self._pool(image)
        if subprocess.run(["zpool", "list", name], capture_output=True, check=False).returncode == 0:
            subprocess.run(["zpool", "export", "-f", name], check=True)

    def copy(self):
        for _ in range(100):
            before = self._groups()
            super().copy()
            if before == self._groups() and all(state in "OC" for _, state in before):
                return
        raise AssertionError("the pool wrote each time while its file was copied")

    def _groups(self):
        """List the newest transaction groups with their states: open, committed, or on the way to the disk."""
        lines = Path(f"/proc/spl/kstat/zfs/{self._name}/txgs").read_text().splitlines()[2:]
        return [tuple(line.split()[:3:2]) for line in lines]


class TestZfs(StorageSuite):
    driver = "zfs"
    filesystem = "zfs"
    disk = PoolInFile
    stride = 25  # zfs(8) is a program, and a guest that has it is slow
    seam = ("subprocess.Popen", "open", "os.rename", "os.remove")

    @classmethod
    def ground(cls):
        return None if lacking() else pool()
