"""The driver devicemapper in the suite that every storage driver passes, where the kernel has thin volumes."""

import errno

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
