"""What a layer takes beyond its parent, file by file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from transom.contract.storage import ChangeKind, Mount, Usage


def measure(shown: Sequence[Mount], run: str) -> Usage:
    """Add up what the first tree holds that the second does not, or holds otherwise; hard-linked files once.

    Both are mounted where nobody else sees them; the first may be mounted elsewhere, and written.
    """
    from transom.services.differ import compare
    from transom.services.mounts import mount_all, privately, unmount
    from transom.services.trees import measure_tree

    places = [f"{run}/upper", f"{run}/lower"][: len(shown)]

    def look() -> Usage:
        try:
            for mount, place in zip(shown, places, strict=True):
                mount_all([mount], place)
            if len(places) == 1:
                return measure_tree(places[0])
            changed = compare(lower=places[1], upper=places[0])
            return _sum(places[0], [change.path for change in changed if change.kind is not ChangeKind.DELETED])
        finally:
            for place in places:
                unmount(place)

    for place in places:
        os.makedirs(place, mode=0o700, exist_ok=True)
    return privately(look)


def _sum(top: str, paths: list[bytes]) -> Usage:
    from transom.services.trees import Tree

    found: dict[tuple[int, int], int] = {}
    with Tree(top) as tree:
        for path in paths:
            try:
                name, fd = tree.entry(path)
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except (FileNotFoundError, NotADirectoryError):
                continue  # in use
            found[status.st_dev, status.st_ino] = status.st_blocks
    return Usage(size=sum(found.values()) * 512, inodes=len(found))
