"""The log driver none: keeps nothing, by intent."""

from __future__ import annotations

from collections.abc import Sequence

from transom.contract.logging import Chunk, LogCapability, LogContainer, Logging, LogStats, Writer, count_lines


class Discard(Logging):
    """Takes everything and keeps nothing."""

    name = "none"
    api = 1
    capabilities = frozenset({LogCapability.DISCARD})

    def open(self, container: LogContainer) -> Writer:
        return DiscardWriter()


class DiscardWriter(Writer):
    """Counts lines."""

    def __init__(self) -> None:
        self._lines = 0

    def write(self, batch: Sequence[Chunk]) -> None:
        self._lines += count_lines(batch)

    def stats(self) -> LogStats:
        return LogStats(taken=self._lines, delivered=self._lines)

    def close(self, timeout: float) -> None:
        return None
