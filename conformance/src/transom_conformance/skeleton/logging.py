"""A log driver that appends to a text file; times and streams are not kept, so there is no reading back."""

import os
from collections.abc import Sequence

import msgspec

from transom.contract.logging import Chunk, LogContainer, Logging, LogStats, Writer
from transom.errors import DriverError


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``--log-opt`` accepts; core converts and checks the user's words."""

    file: str = "output.txt"


class Sample(Logging):
    """One file for each container, in the directory that core gives and removes."""

    name = "sample"
    api = 1
    Options = Options
    option_docs = {"file": "the name of the file in the container's directory"}

    def open(self, container: LogContainer) -> Writer:
        """Open the file at its end."""
        try:
            return SampleWriter(os.open(self.location(container), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640))
        except OSError as error:
            raise DriverError("open", driver="logging sample", subject=container.name, cause=error) from error

    def location(self, container: LogContainer) -> str:
        """Say where the file is, for ``transom inspect``."""
        return f"{container.directory}/{self.options.file}"


class SampleWriter(Writer):
    """The open file."""

    def __init__(self, fd: int) -> None:
        self._fd, self._taken = fd, 0

    def write(self, batch: Sequence[Chunk]) -> None:
        """Write the batch, or, when the disk is full, take back what got through of it."""
        data = memoryview(b"".join(chunk.data for chunk in batch))
        start = os.fstat(self._fd).st_size
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            os.ftruncate(self._fd, start)
            raise DriverError("write", driver="logging sample", cause=error) from error
        self._taken += sum(map(_lines, batch))

    def stats(self) -> LogStats:
        """Everything taken is in the file."""
        return LogStats(taken=self._taken, delivered=self._taken)

    def close(self, timeout: float) -> None:
        """Close the file; nothing waits to be delivered."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lines(chunk: Chunk) -> int:
    """Count lines; a last one without a newline counts, the beginning of a longer one does not yet."""
    unended = bool(chunk.data) and not chunk.data.endswith(b"\n") and chunk.partial is None
    return chunk.data.count(b"\n") + unended
