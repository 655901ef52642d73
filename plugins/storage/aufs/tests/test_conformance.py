"""The driver aufs in the suite that every storage driver passes, where the kernel has aufs."""

from transom_conformance.storage import StorageSuite


class TestAufs(StorageSuite):
    driver = "aufs"
    stride = 3  # each run mounts
