"""Whether a tar is whole.

tarfile takes a damaged header for the end of the archive and so accepts half a tar; the headers are walked here
instead (POSIX.1-2017 pax, "pax Interchange Format"; GNU tar manual, "Basic Tar Format").
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from typing import IO

from transom.errors import ConfigError

_BLOCK = 512
_BUFFER = 1 << 20
_LARGEST_HEADER = 1 << 20
_FORMATS = "plain or compressed with gzip, zstd, bzip2 or xz"
_EXTENDED = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EMPTY = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def check_tar(stream: IO[bytes], *, seen: Callable[[bytes], None]) -> None:
    """Read a tar to its end, checking each header's checksum, each member's length and the end mark.

    Args:
        seen: called with all that is read, in order.

    Raises:
        ConfigError: it is damaged, cut, empty or not a tar.
    """
    _Walk(stream, seen).run()


class _Walk:
    def __init__(self, stream: IO[bytes], seen: Callable[[bytes], None]) -> None:
        self._stream, self._seen, self._position = stream, seen, 0

    def run(self) -> None:
        announced: int | None = None
        while (header := self._take(_BLOCK)).strip(b"\0"):
            member = self._parse(header)
            if member.type in _EXTENDED:
                records = self._content(member.size)
                if member.type != tarfile.XGLTYPE:
                    announced = _pax_size(records)
            elif member.type in _LONG_NAMES:
                self._content(member.size)
            else:
                size = member.size if announced is None else announced
                announced = None
                # Old GNU sparse files have further headers as long as a flag says so.
                more = member.type == tarfile.GNUTYPE_SPARSE and header[482]
                while more:
                    more = self._take(_BLOCK)[504]
                self._skip(0 if member.type in _EMPTY else size)
        while rest := self._stream.read(_BUFFER):
            self._seen(rest)

    def _parse(self, header: bytes) -> tarfile.TarInfo:
        try:
            member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            if member.size < 0:
                raise ValueError("negative size")
        except (tarfile.HeaderError, ValueError) as error:
            if self._position == _BLOCK:
                raise ConfigError(f"this is not a tar; it must be one, {_FORMATS}") from None
            raise self._damaged(str(error)) from None
        return member

    def _take(self, length: int) -> bytes:
        data = self._stream.read(length)
        self._seen(data)
        self._position += len(data)
        if len(data) < length:
            if not self._position:
                raise ConfigError(f"the tar is empty: nothing was read; give a tar, {_FORMATS}")
            raise ConfigError(f"the tar is cut short after {self._position} bytes; make or fetch it again")
        return data

    def _content(self, size: int) -> bytes:
        if size > _LARGEST_HEADER:
            raise self._damaged(f"an extended header of {size} bytes")
        return self._take(_padded(size))[:size]

    def _skip(self, size: int) -> None:
        left = _padded(size)
        while left:
            left -= len(self._take(min(left, _BUFFER)))

    def _damaged(self, reason: str) -> ConfigError:
        return ConfigError(f"the tar is damaged at byte {self._position - _BLOCK}: {reason}; make or fetch it again")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _pax_size(records: bytes) -> int | None:
    """Find ``size`` in pax records, each "LENGTH KEY=VALUE" and a newline; the last one counts."""
    size, at = None, 0
    while at < len(records):
        length, _, _ = records[at : at + 20].partition(b" ")
        if not length.isdigit() or int(length) <= len(length) + 1:
            break
        key, _, value = records[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        if key == b"size" and value.isdigit():
            size = int(value)
        at += int(length)
    return size
