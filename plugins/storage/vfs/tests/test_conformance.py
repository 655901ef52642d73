"""The driver vfs in the suite that every storage driver passes."""

from transom_conformance.storage import StorageSuite


class TestVfs(StorageSuite):
    driver = "vfs"
