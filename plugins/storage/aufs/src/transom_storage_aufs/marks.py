"""How aufs marks what a layer deletes and hides (whout.c): with files beside the names, as layer tars do."""

from __future__ import annotations

import errno
import os
import stat

from transom.services.files import closing
from transom_storage_aufs import Aufs

_WHITEOUT, _INTERNAL, _OPAQUE = b".wh.", b".wh..wh.", b".wh..wh..opq"


class AufsMarks:
    """A regular file ``.wh.NAME`` deletes NAME, and ``.wh..wh..opq`` makes a directory opaque."""

    keeps_times = False
    """A file is copied up under another name, and renamed after the directory got its time back (cpup.c)."""

    def own(self, name: bytes) -> bool:
        """All names that begin so: aufs shows none of them."""
        return name.startswith(_WHITEOUT)

    def meant(self, name: bytes) -> bytes | None:
        """Return what is behind ``.wh.``; another such prefix is for aufs's own uses."""
        return None if name.startswith(_INTERNAL) else name.removeprefix(_WHITEOUT)

    def hidden(self, at: int, name: bytes, found: os.stat_result | None) -> bool:
        """Look for the file."""
        return _is_file(at, _WHITEOUT + name)

    def hide(self, at: int, name: bytes) -> None:
        """Make the file, as aufs does where a hard link is not to be had."""
        _make(at, _WHITEOUT + name)

    def reveal(self, at: int, name: bytes) -> None:
        """Remove the file.

        Raises:
            OSError: ENAMETOOLONG: aufs could not show what is to be made. EPERM: nor this, its name being aufs's own.
        """
        if self.own(name):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        if len(name) > Aufs.name_max:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        try:
            os.unlink(_WHITEOUT + name, dir_fd=at)
        except FileNotFoundError:
            pass

    def opaque(self, at: int) -> bool:
        """Look for the file."""
        return _is_file(at, _OPAQUE)

    def make_opaque(self, at: int) -> None:
        """Make the file."""
        _make(at, _OPAQUE)


def _is_file(at: int, name: bytes) -> bool:
    try:
        return stat.S_ISREG(os.lstat(name, dir_fd=at).st_mode)
    except OSError as error:
        if error.errno not in {errno.ENOENT, errno.ENAMETOOLONG}:
            raise
        return False


def _make(at: int, name: bytes) -> None:
    with closing(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o444, dir_fd=at)):
        pass
