"""The driver btrfs in the suite that every storage driver passes, on a file system in a file."""

import pytest

from transom_conformance.disks import disk, lacking
from transom_conformance.storage import StorageSuite

pytestmark = pytest.mark.skipif(bool(lacking("btrfs")), reason=lacking("btrfs"))


class TestBtrfs(StorageSuite):
    driver = "btrfs"
    filesystem = "btrfs"

    @classmethod
    def ground(cls):
        return None if lacking("btrfs") else disk("btrfs")
