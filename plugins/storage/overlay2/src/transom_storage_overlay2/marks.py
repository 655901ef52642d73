"""How overlay marks what a layer deletes and hides (overlayfs.rst, "whiteouts and opaque directories")."""

from __future__ import annotations

import errno
import os
import stat

_OPAQUE = "trusted.overlay.opaque"


class OverlayMarks:
    """Whiteouts are character devices 0:0, and an extended attribute makes a directory opaque."""

    keeps_times = True

    def own(self, name: bytes) -> bool:
        """No name: whiteouts lie under the names that they hide."""
        return False

    def meant(self, name: bytes) -> bytes | None:
        """None has a meaning."""
        return None

    def hidden(self, at: int, name: bytes, found: os.stat_result | None) -> bool:
        """Say whether what is there is a whiteout."""
        return found is not None and is_whiteout(found)

    def hide(self, at: int, name: bytes) -> None:
        """Make the device, without permissions, as the kernel does."""
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=at)

    def reveal(self, at: int, name: bytes) -> None:
        """Do nothing: a whiteout is in the way of what is made, and is cleared away like any file."""

    def opaque(self, at: int) -> bool:
        """Read the attribute."""
        return is_opaque(at)

    def make_opaque(self, at: int) -> None:
        """Set the attribute."""
        os.setxattr(at, _OPAQUE, b"y")


def is_whiteout(found: os.stat_result) -> bool:
    """Say whether it is the device that stands for a deletion."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0


def is_opaque(directory: int | bytes) -> bool:
    """Say whether the directory, open or named, hides what lies below it."""
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError as error:
        if error.errno not in {errno.ENODATA, errno.ENOTSUP}:
            raise
        return False
