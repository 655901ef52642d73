"""Writing Docker's JSON lines: whole chunks at a time, one write(2) per batch."""

from __future__ import annotations

import codecs
import os
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from transom.contract.logging import Chunk, LogStats, Stream, Writer, count_lines
from transom.errors import DriverError
from transom_logging_json_file import lock

if TYPE_CHECKING:
    from transom_logging_json_file.pack import Packing

PREFIX = b'{"log":"'
DRIVER = "logging json-file"
FULL = "free space on the file system, or bound the log with max-size and max-file"

# As moby's daemon/logger/jsonfilelog/jsonlog escapes: four short forms, the rest of the control characters by number,
# and what could end a script or a line in JavaScript. The backslash comes first: the others bring new ones.
_SHORT = {b"\\": b"\\\\", b'"': b'\\"', b"\r": b"\\r"}
_NUMBERED = [bytes([code]) for code in (*range(0x20), *b"<>&") if code not in b"\r\n"]
_ESCAPES = _SHORT | {one: b"\\u%04x" % ord(one) for one in _NUMBERED}
_SPECIAL = b"".join(_ESCAPES)

codecs.register_error("transom.json-file", lambda error: _invalid(error))


def _invalid(error: UnicodeError) -> tuple[str, int]:
    """Stand in for bytes that are not UTF-8: one U+FFFD, escaped, for each, as Go decodes."""
    assert isinstance(error, UnicodeDecodeError)
    return "\\ufffd" * (error.end - error.start), error.end


def escape(data: bytes) -> bytes:
    """Return the data as the inside of a JSON string, in Docker's bytes, with its newlines as they are."""
    if len(data.translate(None, _SPECIAL)) != len(data):
        for plain, escaped in _ESCAPES.items():
            data = data.replace(plain, escaped)
    if not data.isascii():
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        try:
            data.decode()
        except UnicodeDecodeError:
            data = data.decode(errors="transom.json-file").encode()
    return data


def stamp(nanoseconds: int) -> bytes:
    """Write a time as Go's RFC3339Nano does: UTC, no zeros at the end of the fraction.

    Raises:
        ValueError: the year is not between 0 and 9999 (RFC 3339, section 1).
    """
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if not fraction:
        return _second(seconds) + b"Z"
    return _second(seconds) + (b".%09d" % fraction).rstrip(b"0") + b"Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> bytes:
    utc = time.gmtime(seconds)
    if not 0 <= utc.tm_year <= 9999:
        raise ValueError(f"year {utc.tm_year} of a log time is not between 0 and 9999")
    return "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}".format(*utc[:6]).encode()


class FileWriter(Writer):
    """The open log of one container.

    Args:
        path: the current file; rotated ones have ".1", ".2" ... behind it, and ".gz" when compressed.
        attrs: the record's "attrs" as JSON, or nothing.
        max_size: bytes from which on a file is rotated before the next record; None never rotates by itself.
        max_file: how many files there may be.
        compress: rotated files are gzipped.
    """

    def __init__(self, *, path: str, attrs: bytes, max_size: int | None, max_file: int, compress: bool) -> None:
        self.path, self.max_size, self.max_file, self.compress = path, max_size, max_file, compress
        middle = b'"attrs":' + attrs + b"," if attrs else b""
        self._middles = {
            stream: b'","stream":"%s",%s"time":"' % (stream.name.lower().encode(), middle) for stream in Stream
        }
        self._taken = self._delivered = self._dropped = 0
        self._generation = 0
        self._packing: Packing | None = None
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            lock.hold(self._fd, generation=0)
            self._mend()
        except BaseException:
            os.close(self._fd)
            raise

    def write(self, batch: Sequence[Chunk]) -> None:
        if self._fd < 0:
            raise DriverError("write", driver=DRIVER, subject=self.path, cause="the log is closed")
        data = b"".join([piece for chunk in batch for piece in self._records(chunk)])
        lines = count_lines(batch)
        at = 0
        while at < len(data):
            cut = self._cut(data, at)
            try:
                self._append(data[at:cut] if cut - at < len(data) else data)
            except OSError as error:
                if at == 0:
                    raise DriverError("write", driver=DRIVER, subject=self.path, cause=error, hint=FULL) from error
                # The files before this one have their part already: the batch is taken, the rest of it dropped.
                lost = min(lines, data.count(b"\n", at))
                self._dropped += lost
                self._taken += lost
                lines -= lost
                break
            at = cut
        self._taken += lines
        self._delivered += lines

    def rotate(self) -> None:
        try:
            self._rotate()
        except OSError as error:
            raise DriverError("rotate", driver=DRIVER, subject=self.path, cause=error) from error

    def stats(self) -> LogStats:
        return LogStats(taken=self._taken, delivered=self._delivered, dropped=self._dropped)

    def close(self, timeout: float) -> None:
        if self._packing is not None:
            self._packing.finish(timeout)
            self._packing = None
        if self._fd >= 0:
            lock.release(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _records(self, chunk: Chunk) -> Sequence[bytes]:
        if not chunk.data:
            return ()
        last = self._middles[chunk.stream] + stamp(chunk.time) + b'"}\n'
        end = b"\\n" + last
        body = escape(chunk.data.removesuffix(b"\n")).replace(b"\n", end + PREFIX)
        return PREFIX, body, end if chunk.data.endswith(b"\n") else last

    def _cut(self, data: bytes, at: int) -> int:
        """Rotate when it is time, and return up to where `data` goes to the file that is current then."""
        if self.max_size is None:
            return len(data)
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size >= self.max_size:
            try:
                self._rotate()
            except OSError:  # output matters more than the bound; the next write tries again
                return len(data)
            size = 0
        if len(data) - at <= self.max_size - size:
            return len(data)
        return data.find(b"\n", at + self.max_size - size - 1) + 1 or len(data)

    def _append(self, data: bytes) -> None:
        """Append all of it or nothing."""
        before = os.lseek(self._fd, 0, os.SEEK_END)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, before)
            raise

    def _mend(self) -> None:
        """Undo what a crash left half done: a torn record at the end, a rotation, files in the making."""
        size = os.lseek(self._fd, 0, os.SEEK_END)
        end = whole(self._fd, size)
        if end < size:
            os.ftruncate(self._fd, end)
        for name in (f"{self.path}.new", f"{self.path}.gz.new"):
            try:
                os.unlink(name)
            except FileNotFoundError:
                pass
        if os.fstat(self._fd).st_nlink > 1 and _same(self._fd, f"{self.path}.1"):
            os.unlink(f"{self.path}.1")

    def _rotate(self) -> None:
        """Put a new file in the place of the current one.

        The current name is there at every moment, and a crash at any point loses no line: the file has two names
        for a moment, which `_mend` undoes.
        """
        if self._packing is not None:
            self._packing.finish(None)
            self._packing = None
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        new = os.open(f"{self.path}.new", flags, 0o640)
        try:
            lock.hold(new, generation=self._generation + 1)
            lock.hold(self._fd, generation=self._generation, rotating=True)
            if self.max_file > 1:
                self._shift()
                os.link(self.path, f"{self.path}.1")
            os.rename(f"{self.path}.new", self.path)
        except OSError:
            os.close(new)
            self._mend()
            lock.settle(self._fd, generation=self._generation)
            raise
        old, self._fd = self._fd, new
        self._generation += 1
        lock.release(old)
        os.close(old)
        if self.compress:
            from transom_logging_json_file.pack import Packing

            self._packing = Packing(self.path, self.max_file)

    def _shift(self) -> None:
        """Free the name ".1": move each file up by one, as far as the first gap; without one the oldest goes."""
        gap = 1
        while gap < self.max_file - 1 and any(os.path.exists(name) for name in names(self.path, gap)):
            gap += 1
        for name in names(self.path, gap):
            if os.path.exists(name):
                os.unlink(name)
        for number in range(gap, 1, -1):
            for source, target in zip(names(self.path, number - 1), names(self.path, number), strict=True):
                if os.path.exists(source):
                    os.rename(source, target)


def names(path: str, number: int) -> tuple[str, str]:
    """Return the names that the rotated file `number` can have: plain and compressed."""
    return f"{path}.{number}", f"{path}.{number}.gz"


def whole(fd: int, size: int) -> int:
    """Return the size of a file without an incomplete line at its end."""
    while size and os.pread(fd, 1, size - 1) != b"\n":
        start = max(0, size - 65536)
        size = start + os.pread(fd, size - start, start).rfind(b"\n") + 1
    return size


def _same(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
