"""Writing a log's files: whole batches at a time, one write(2) each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transom.contract.logging import Chunk, LogStats, Writer, count_lines
from transom.errors import DriverError
from transom.services.files import write_back
from transom.services.logfiles import FULL, Format, lock

if TYPE_CHECKING:
    from transom.services.logfiles.pack import Packing

WRITE_BACK = 4 << 20
"""Bytes after which the kernel is told to begin writing them to the disk: else whoever syncs the file system waits for
all of them at once (unmounting an overlay does)."""


class FileWriter(Writer):
    """The open log of one container.

    Args:
        driver: whose log it is, for errors.
        path: the current file; rotated ones have ".1", ".2" ... behind it, and ".gz" when compressed.
        format: how records are written.
        max_size: bytes from which on a file is rotated before the next record; None never rotates by itself.
        max_file: how many files there may be.
        compress: rotated files are gzipped.
    """

    def __init__(
        self, *, driver: str, path: str, format: Format, max_size: int | None, max_file: int, compress: bool
    ) -> None:
        self.path, self.max_size, self.max_file, self.compress = path, max_size, max_file, compress
        self._driver, self._format = f"logging {driver}", format
        self._taken = self._delivered = self._dropped = 0
        self._generation = self._written_back = self._unrotated = 0
        self._problem = ""
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
            raise DriverError("write", driver=self._driver, subject=self.path, cause="the log is closed")
        data = b"".join([piece for chunk in batch for piece in self._format.encode(chunk)])
        lines = count_lines(batch)
        at = 0
        while at < len(data):
            cut = self._cut(data, at)
            try:
                self._append(data[at:cut] if cut - at < len(data) else data)
            except OSError as error:
                if at == 0:
                    raise DriverError(
                        "write", driver=self._driver, subject=self.path, cause=error, hint=FULL
                    ) from error
                # The files before this one have their part already: the batch is taken, the rest of it dropped.
                lost = min(lines, self._format.count(data, at))
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
            raise DriverError("rotate", driver=self._driver, subject=self.path, cause=error) from error

    def stats(self) -> LogStats:
        return LogStats(taken=self._taken, delivered=self._delivered, dropped=self._dropped, problem=self._problem)

    def close(self, timeout: float) -> None:
        if self._packing is not None:
            self._packing.finish(timeout)
            self._packing = None
        if self._fd >= 0:
            lock.release(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _cut(self, data: bytes, at: int) -> int:
        """Rotate when it is time, and return up to where `data` goes to the file that is current then."""
        if self.max_size is None:
            return len(data)
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size >= self.max_size:
            try:
                self._rotate()
            except OSError as error:  # output matters more than the bound; the next write tries again
                self._unrotated += 1
                self._problem = (
                    f"rotate {self.path} failed: {error.strerror or error} (attempts: {self._unrotated});"
                    " it grows beyond max-size, no line is lost"
                )
                return len(data)
            size = 0
        if len(data) - at <= self.max_size - size:
            return len(data)
        return self._format.boundary(data, at, at + self.max_size - size)

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
        end = before + len(data)
        if end - self._written_back >= WRITE_BACK:
            write_back(self._fd, self._written_back, end - self._written_back)
            self._written_back = end

    def _mend(self) -> None:
        """Undo what a crash left half done: a torn record at the end, a rotation, files in the making."""
        size = os.lseek(self._fd, 0, os.SEEK_END)
        end = self._format.whole(self._fd, size)
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
        old, self._fd, self._written_back = self._fd, new, 0
        self._unrotated, self._problem = 0, ""
        self._generation += 1
        lock.release(old)
        os.close(old)
        if self.compress:
            from transom.services.logfiles.pack import Packing

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


def _same(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
