"""The driver devicemapper in the suite that every storage driver passes, where the kernel has thin volumes."""

import errno
import subprocess

from transom_conformance.storage import StorageSuite


class TestDevicemapper(StorageSuite):
    driver = "devicemapper"
    options = {
        "dm.loopdatasize": "3g",
        "dm.loopmetadatasize": "32m",
        "dm.basesize": "256m",
        "dm.mkfsarg": "-i 4096 -J size=4",
    }
    stride = 20  # a user-mode guest is slow, and starting the pool for each call is most of the time
    full = frozenset({errno.ENOSPC, errno.EIO})  # EIO, when it is the journal that gets no block of the pool
    seam = ("fcntl.ioctl", "open", "os.rename", "os.remove")

    def strays(self, driver):
        pool = driver._pool
        pool.start()
        recorded = {pool.find(place, id).device for place in ("layers", "bases", "deferred") for id in pool.list(place)}
        mapped = {int(name.rpartition("-")[2]) for name in pool._mapper.names() if name.startswith(f"{pool._name}-")}
        return [f"device {n}" for n in mapped - recorded] + [f"volume {n}" for n in volumes(pool) ^ recorded]


def volumes(pool):
    """List the volumes that the pool's own metadata tells of."""
    metadata = pool._mapper.status(pool._name, table=True).split()[0].partition(":")[2]
    pool._mapper.message(pool._name, "reserve_metadata_snap")
    try:
        command = ["thin_ls", "-m", "--no-headers", "-o", "DEV", f"/dev/loop{metadata}"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    finally:
        pool._mapper.message(pool._name, "release_metadata_snap")
    return {int(number) for number in said.split()}
