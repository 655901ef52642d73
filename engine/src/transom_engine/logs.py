"""One log driver of one container, fed from a queue by a thread of its own in the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Thread
from time import monotonic

from transom.contract.logging import Chunk, Writer

QUEUE_LIMIT = 4 << 20
"""How many bytes may wait for a driver before the container has to (Docker's blocking mode)."""


class Feed:
    """A writer behind a bounded queue, so that a driver that blocks never blocks the supervisor.

    Args:
        writer: the driver's open log.
        limit: bytes that may wait; beyond them `full` says so, or, with `drop`, the new batch is counted and left.
        complain: told, once for each row of failures, what the driver raised.
    """

    def __init__(
        self, writer: Writer, *, limit: int = QUEUE_LIMIT, drop: bool = False, complain: Callable[[str], None]
    ) -> None:
        self.writer, self._limit, self._drop, self._complain = writer, limit, drop, complain
        self._queue: list[Chunk] = []
        self._bytes, self._closing, self._failing = 0, False, False
        self.dropped = 0
        """Lines that were lost: the queue was full, or the driver refused them."""
        self._changed = Condition()
        self._thread: Thread | None = None

    @property
    def full(self) -> bool:
        """Whether the container should wait before it writes more."""
        return not self._drop and self._bytes >= self._limit

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Queue chunks; never blocks."""
        size = sum(len(chunk.data) for chunk in chunks)
        with self._changed:
            if self._drop and self._bytes and self._bytes + size > self._limit:
                self.dropped += _lines(chunks)
                return
            self._queue.extend(chunks)
            self._bytes += size
            self._changed.notify()
        if self._thread is None:  # a container that writes nothing needs no thread
            self._thread = Thread(target=self._work, name="log", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                batch, self._queue = self._queue, []
            if not batch:
                return
            self._write(batch)
            with self._changed:
                self._bytes -= sum(len(chunk.data) for chunk in batch)
                self._changed.notify()

    def _write(self, batch: Sequence[Chunk]) -> None:
        try:
            self.writer.write(batch)
            self._failing = False
        except Exception as error:
            self.dropped += _lines(batch)
            if not self._failing:
                self._failing = True
                self._complain(str(error))

    def close(self, timeout: float) -> None:
        """Write what is queued, as far as `timeout` seconds allow, and close the writer."""
        end = monotonic() + timeout
        if self._thread is not None:
            with self._changed:
                self._closing = True
                self._changed.notify()
            self._thread.join(timeout)
            if self._thread.is_alive():  # stuck in the driver: it is left behind, and counted
                self.dropped += _lines(self._queue)
                return
        try:
            self.writer.close(timeout=max(0.1, end - monotonic()))
        except Exception as error:
            self._complain(str(error))


def queue_limit(options: Mapping[str, str]) -> int:
    """Return the bytes that may wait: with Docker's ``mode=non-blocking`` its ``max-buffer-size``, 1 MB by default."""
    if options.get("mode") != "non-blocking":
        return QUEUE_LIMIT
    from transom.services.options import parse_size

    return parse_size(options.get("max-buffer-size", "1m"))


def _lines(chunks: Sequence[Chunk]) -> int:
    return sum(max(1, chunk.data.count(b"\n")) for chunk in chunks)
