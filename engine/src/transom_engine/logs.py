"""One log driver of one container, fed from a queue by a thread of its own in the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Thread
from time import monotonic
from typing import Annotated, Literal

import msgspec

from transom.contract.logging import Chunk, Writer, count_lines
from transom.services.options import DecimalSize, Size

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
                self.dropped += count_lines(chunks)
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
            self.dropped += count_lines(batch)
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
                self.dropped += count_lines(self._queue)
                return
        try:
            self.writer.close(timeout=max(0.1, end - monotonic()))
        except Exception as error:
            self._complain(str(error))


class Delivery(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """The log options that are the engine's, whatever the driver: of its queue, and of the cache for reading back."""

    mode: Literal["blocking", "non-blocking"] = "blocking"
    max_buffer_size: Size | None = None
    cache_disabled: bool = False
    cache_max_size: DecimalSize = 20_000_000
    cache_max_file: Annotated[int, msgspec.Meta(ge=1)] = 5
    cache_compress: bool = True

    def __post_init__(self) -> None:
        if self.max_buffer_size is not None and self.mode != "non-blocking":
            raise ValueError("max-buffer-size option is only supported with 'mode=non-blocking'")

    @property
    def drop(self) -> bool:
        """Whether output is dropped when the queue is full, instead of making the container wait."""
        return self.mode == "non-blocking"

    @property
    def limit(self) -> int:
        """How many bytes may wait: Docker's 1 MB by default where output may be dropped."""
        if not self.drop:
            return QUEUE_LIMIT
        return 1 << 20 if self.max_buffer_size is None else self.max_buffer_size


DELIVERY = frozenset(Delivery.__struct_encode_fields__)


def split(options: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Part log options into the engine's and the driver's."""
    ours = {name: text for name, text in options.items() if name in DELIVERY}
    return ours, {name: text for name, text in options.items() if name not in DELIVERY}
