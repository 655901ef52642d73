"""One log driver of one container, fed from a queue by a thread of its own in the supervisor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Condition, Thread
from time import monotonic
from typing import Annotated, Literal

import msgspec

from transom.contract.logging import Chunk, LogStats, Writer, count_lines, gap
from transom.services.options import DecimalSize, Size
from transom_engine.model import LogStatus

QUEUE_LIMIT = 4 << 20
"""How many bytes may wait for a driver before the container has to (Docker's blocking mode)."""
STALL = 10.0
"""Seconds without progress after which a driver that is not the only one no longer makes the container wait."""


class Delivery(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """The log options that are the engine's, whatever the driver: of its queue, and of the cache for reading back."""

    mode: Literal["blocking", "non-blocking"] = "blocking"
    max_buffer_size: Size | None = None
    on_error: Literal["continue", "stop"] = "continue"
    cache_disabled: bool = False
    cache_max_size: DecimalSize = 20_000_000
    cache_max_file: Annotated[int, msgspec.Meta(ge=1)] = 5
    cache_compress: bool = True

    def __post_init__(self) -> None:
        if self.max_buffer_size is not None and self.mode != "non-blocking":
            raise ValueError("max-buffer-size option is only supported with 'mode=non-blocking'")
        if self.cache_max_size < 1:
            raise ValueError("cache-max-size must be a positive number")

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


class Gap(msgspec.Struct):
    """Lines that are missing at one place of the stream."""

    lines: int
    first: int
    last: int
    reason: str

    def chunk(self) -> Chunk:
        """Make the record that says so."""
        return gap(lines=self.lines, first=self.first, last=self.last, reason=self.reason)


Item = Chunk | Gap


class Feed:
    """A writer behind a bounded queue, so that a driver that blocks never blocks the supervisor.

    Args:
        writer: the driver's open log.
        name: the driver's.
        delivery: how much may wait, and what happens to the rest.
        alone: it is the container's only one. Another, when it does not move for long, drops and counts instead of
            holding up the container and with it the others.
        patience: seconds without progress after which `close` gives up.
        linger: seconds for which `close` lets a sink that takes lines go on taking what the driver still has.
        wake: called from the feed's thread when `answers`, `lost` or `full` have news.
        complain: told, once for each row of failures, what the driver raised.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        name: str = "",
        delivery: Delivery = Delivery(),
        alone: bool = True,
        patience: float = 10.0,
        linger: float = 0.0,
        wake: Callable[[], object] = lambda: None,
        complain: Callable[[str], object],
    ) -> None:
        self.name, self.delivery = name, delivery
        self._writer, self._alone, self._patience = writer, alone, patience
        self._linger = linger
        self._wake, self._complain = wake, complain
        self._changed = Condition()
        self._thread: Thread | None = None
        self._queue: list[Item] = []
        self._orders: list[tuple[Callable[[], object], Callable[[str], object]]] = []
        self.answers: list[Callable[[], object]] = []
        """What orders have to tell, for the supervisor's thread to call."""
        self._bytes, self._closing = 0, False
        self._moved = monotonic()
        self._taken = self._written = writer.stats().taken  # what waits from an earlier run is delivered in this one
        self._dropped = 0
        self._before = LogStats()
        self._dropping: Gap | None = None
        self._refused: Gap | None = None
        self._broken: set[str] = set()
        self._error = self.failure = ""
        """What the driver refuses at the moment; and what it once refused, for ``on-error=stop``."""

    @property
    def full(self) -> bool:
        """Whether the container should wait before it writes more."""
        return self._bytes >= self.delivery.limit and not self._drops()

    @property
    def lost(self) -> int:
        """How many lines were dropped: here, or by the driver after it had taken them."""
        return self._dropped + self._before.dropped + self._writer.stats().dropped

    def _drops(self) -> bool:
        return self.delivery.drop or (not self._alone and monotonic() - self._moved > STALL)

    def put(self, chunks: Sequence[Chunk]) -> None:
        """Queue chunks; never blocks."""
        with self._changed:
            self._taken += count_lines(chunks)
            if not self._queue and not self._bytes:
                self._moved = monotonic()
            if self._drops() or self._broken or self._dropping is not None:
                for chunk in chunks:
                    self._admit(chunk)
            else:
                self._bytes += sum([len(chunk.data) for chunk in chunks])
                self._queue.extend(chunks)
            self._changed.notify()
        self._start()

    def _admit(self, chunk: Chunk) -> None:
        """Queue one chunk where there is room; a line of which a fragment was dropped goes as a whole."""
        line = chunk.partial.id if chunk.partial else ""
        size = len(chunk.data)
        if line in self._broken or (self._bytes and self._bytes + size > self.delivery.limit and self._drops()):
            if line:
                self._broken.add(line)
            if chunk.partial is None or chunk.partial.last:
                self._broken.discard(line)
            self._dropping = self._missing(self._dropping, [chunk], "the queue of the log driver was full")
            return
        if self._dropping is not None:
            self._queue.append(self._dropping)
            self._dropping = None
        self._queue.append(chunk)
        self._bytes += size

    def _missing(self, before: Gap | None, items: Sequence[Item], reason: str) -> Gap | None:
        """Count what is not written as dropped, and return the gap that it leaves together with the one before it."""
        chunks = [item for item in items if isinstance(item, Chunk)]
        self._dropped += count_lines(chunks)
        gaps = [before] if before else []
        gaps += [item for item in items if isinstance(item, Gap)]
        if chunks:
            gaps.append(Gap(count_lines(chunks), chunks[0].time, chunks[-1].time, reason))
        if not gaps:
            return None
        return Gap(sum(g.lines for g in gaps), min(g.first for g in gaps), max(g.last for g in gaps), gaps[-1].reason)

    def order(self, work: Callable[[Writer], object], answer: Callable[[str], object]) -> None:
        """Have the feed's thread do something with the writer between two batches.

        Args:
            answer: called by the supervisor's thread with the error, empty where there was none.
        """
        self._order(lambda: work(self._writer), answer)

    def _order(self, work: Callable[[], object], answer: Callable[[str], object]) -> None:
        with self._changed:
            self._orders.append((work, answer))
            self._changed.notify()
        self._start()

    def reopen(self, open: Callable[[], Writer], back: Callable[[], Writer], answer: Callable[[str], object]) -> None:
        """Replace the writer; where the new one cannot be opened the old options stay in force (`back`)."""

        def work() -> None:
            old = self._writer
            old.close(timeout=self._patience)
            stats = old.stats()
            try:
                self._go_on(open(), stats)
            except Exception:
                self._go_on(back(), stats)  # where this fails too, the closed writer refuses and that is counted
                raise

        self._order(work, answer)

    def _go_on(self, new: Writer, old: LogStats) -> None:
        """Put a writer in the place of one that is closed."""
        self._before = LogStats(
            taken=self._before.taken + old.taken - new.stats().taken,
            delivered=self._before.delivered + old.delivered,
            dropped=self._before.dropped + old.dropped,
        )
        self._writer = new

    def _start(self) -> None:
        if self._thread is None:  # a container that writes nothing needs no thread
            self._thread = Thread(target=self._work, name=f"log {self.name}", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._orders and not self._closing:
                    self._changed.wait()
                if self._closing and not self._queue and self._dropping is not None:
                    self._queue.append(self._dropping)
                    self._dropping = None
                batch, self._queue = self._queue, []
                orders, self._orders = self._orders, []
            if batch:
                self._write(batch)
                was_full = self.full
                with self._changed:
                    self._bytes -= sum([len(item.data) for item in batch if isinstance(item, Chunk)])
                if was_full:
                    self._wake()
            for order in orders:
                self._obey(*order)
            self._moved = monotonic()
            if not batch and not orders:
                break
        self._shut()

    def _write(self, batch: Sequence[Item]) -> None:
        if self._refused is not None:
            batch = [self._refused, *batch]
        try:
            self._writer.write([item.chunk() if isinstance(item, Gap) else item for item in batch])
        except Exception as error:
            with self._changed:
                self._refused = self._missing(None, batch, f"the log driver {self.name} refused: {error}")
            if not self._error:
                self._complain(str(error))
            self._error = self.failure = str(error)
            self._wake()
            return
        self._refused, self._error = None, ""
        self._written += count_lines([item for item in batch if isinstance(item, Chunk)])

    def _obey(self, work: Callable[[], object], answer: Callable[[str], object]) -> None:
        error = ""
        try:
            work()
        except Exception as raised:
            error = str(raised)
        self.answers.append(lambda: answer(error))
        self._wake()

    def status(self) -> LogStatus:
        """Return the counts, which add up at any moment; never blocks."""
        now, before = self._writer.stats(), self._before
        with self._changed:
            taken, written, dropped = self._taken, self._written, self._dropped
        dropped += before.dropped + now.dropped
        waiting = max(0, before.taken + now.taken - before.delivered - now.delivered)
        delivered = max(0, written - waiting)
        return LogStatus(
            driver=self.name, taken=taken, delivered=delivered, dropped=dropped,
            pending=max(0, taken - delivered - dropped), spooled=now.spooled,
            error=self._error or now.problem,
        )  # fmt: skip

    def begin_close(self) -> None:
        """Let the thread end when it has written what is queued."""
        with self._changed:
            self._closing, self._moved = True, monotonic()
            self._changed.notify()

    def close(self) -> None:
        """Write what is queued for as long as that moves, close the writer, and count what is left behind."""
        self.begin_close()
        if self._thread is None:
            self._shut()
            return
        while self._thread.is_alive() and monotonic() - self._moved < self._patience:
            self._thread.join(0.1)
        if self._thread.is_alive():  # stuck in the driver
            self._error = self._error or f"it did not answer for {self._patience:g} s"
            left = self.status().pending
            with self._changed:
                self._dropped += left

    def _shut(self) -> None:
        try:
            self._deliver()
            self._writer.close(timeout=self._patience / 2)
        except Exception as error:
            self._complain(str(error))

    def _deliver(self) -> None:
        """Let the driver deliver what it has taken, for as long as that moves."""
        end = monotonic() + self._linger
        while monotonic() < end:
            before = self._writer.stats()
            if before.taken <= before.delivered + before.dropped or self._writer.flush(timeout=self._patience / 2):
                return
            if self._writer.stats().delivered == before.delivered:
                return
            self._moved = monotonic()
