"""How many files a dataset has beyond its parent: only its mounted file system says."""

from __future__ import annotations

import os
from collections.abc import Sequence

from transom.contract.storage import Mount


def inodes(shown: Sequence[Mount], run: str) -> int:
    """Count the objects of the first, less those of the second; at least none."""
    from transom.services.mounts import mount_all, privately, unmount

    place = f"{run}/inside"
    os.makedirs(place, mode=0o700, exist_ok=True)

    def count(mount: Mount) -> int:
        mount_all([mount], place)
        try:
            found = os.statvfs(place)
            return found.f_files - found.f_ffree
        finally:
            unmount(place)

    def look() -> list[int]:
        return [count(mount) for mount in shown]

    own, *below = privately(look)
    return max(own - sum(below), 0)
