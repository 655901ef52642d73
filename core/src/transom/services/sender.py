"""What the drivers of remote collectors share: a spool, and a thread that empties it into a `Sink`.

A line is on disk before `write` returns, and leaves it when the sink says that it arrived. A driver brings what is its
own: options, the bytes of its protocol, a sink.
"""

from __future__ import annotations

import os
import select
from abc import abstractmethod
from collections.abc import Sequence
from threading import Condition, Thread
from time import monotonic
from typing import Annotated, ClassVar, Literal

import msgspec

from transom.contract.logging import Chunk, LogCapability, LogContainer, Logging, LogStats, Writer
from transom.errors import ConfigError, DriverError
from transom.services.endpoints import Sink
from transom.services.logattrs import ATTR_DOCS, AttrOptions
from transom.services.options import Size, write_size
from transom.services.spool import SMALLEST, Full, Spool, remaining

CONNECT_TIMEOUT = 10.0


class RemoteOptions(AttrOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Options that all drivers of remote collectors have; their sentences stand in `REMOTE_DOCS`."""

    spool_max_size: Annotated[Size, msgspec.Meta(ge=SMALLEST)] = 100 << 20
    spool_full: Literal["drop-oldest", "refuse"] = "drop-oldest"
    sink_required: bool = False


REMOTE_DOCS = ATTR_DOCS | {
    "tag": "A template whose text names the container to the collector.",
    "spool-max-size": "How much may wait on disk for a collector that is down or slow; at least 8m.",
    "spool-full": "What becomes of lines when so much waits: drop-oldest drops the oldest, refuse the new ones.",
    "sink-required": "Do not start the container when the collector cannot be reached.",
}


class Retry(msgspec.Struct, frozen=True):
    """How long to wait after a failure, in seconds: `first`, then `factor` times more up to `most`.

    After `attempts` in a row what waits is dropped and counted; None never gives up.
    """

    first: float = 0.2
    factor: float = 1.5
    most: float = 10.0
    attempts: int | None = None

    def delay(self, failures: int) -> float:
        """Return the pause after so many failures in a row."""
        return min(self.most, self.first * self.factor ** min(failures - 1, 50))


class Delivery(msgspec.Struct, frozen=True):
    """How a driver's own options want lines delivered.

    Attributes:
        lines: how many lines may wait; None for as many as there is room for.
        required: connect when the log is opened, or fail.
        lifetime: seconds after which the connection is made anew; None for never.
    """

    retry: Retry = Retry()
    lines: int | None = None
    required: bool = False
    lifetime: float | None = None


class RemoteLogging(Logging):
    """A log driver whose collector is elsewhere; a subclass brings `_sink`, and `_delivery` where options shape it."""

    Options = RemoteOptions
    capabilities = frozenset({LogCapability.REMOTE})
    option_docs: ClassVar[dict[str, str]] = REMOTE_DOCS

    options: RemoteOptions

    @abstractmethod
    def _sink(self, container: LogContainer) -> Sink:
        """Make the way to the collector, not connected yet; a `ValueError` says which option could never work."""

    def _delivery(self) -> Delivery:
        return Delivery()

    def check(self, container: LogContainer) -> None:
        self._checked_sink(container)

    def open(self, container: LogContainer) -> Writer:
        return SpooledWriter(
            self._checked_sink(container),
            directory=self._spool(container),
            options=self.options,
            driver=f"logging {self.name}",
            delivery=self._delivery(),
        )

    def undelivered(self, container: LogContainer) -> int:
        return remaining(self._spool(container))

    def _checked_sink(self, container: LogContainer) -> Sink:
        try:
            return self._sink(container)
        except ValueError as error:
            raise ConfigError(f"logging driver {self.name}: {error}") from None

    def _spool(self, container: LogContainer) -> str:
        return f"{container.directory}/{self.name}-spool"


class SpooledWriter(Writer):
    """One container's way to a collector.

    Args:
        directory: the spool's.
        options: the bound, and what happens at it.
        driver: for errors, "logging syslog".

    Raises:
        DriverError: the spool cannot be opened, or the sink is down and required.
    """

    def __init__(
        self,
        sink: Sink,
        *,
        directory: str,
        options: RemoteOptions,
        driver: str,
        delivery: Delivery,
    ) -> None:
        self._sink, self._driver = sink, driver
        self._retry, self._lifetime = delivery.retry, delivery.lifetime
        self._limit, refuse = options.spool_max_size, options.spool_full == "refuse"
        try:
            self._spool = Spool(directory, limit=self._limit, lines=delivery.lines, refuse=refuse)
        except OSError as error:
            busy = isinstance(error, BlockingIOError)
            cause = "another process is writing it" if busy else error
            hint = "stop the container first" if busy else ""
            raise DriverError("open", driver=driver, subject=directory, cause=cause, hint=hint) from error
        self._thread: Thread | None = None
        self._changed = Condition()
        self._idle = self._closing = self._closed = self._over = False
        self._flushing = self._failures = self._acked = self._last = 0
        self._spoke = self._since = 0.0
        self.resent = 0
        """Lines that were sent again, since the connection broke before they were known to have arrived."""
        self.problem = ""
        """Why nothing arrives at the moment; empty when all is well."""
        try:
            if delivery.required or options.sink_required:
                sink.connect(CONNECT_TIMEOUT)
                self._since = monotonic()
            self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError as error:
            self._spool.close()
            hint = "start the collector, or let the container start without it"
            raise DriverError("open", driver=driver, subject=str(sink.address), cause=error, hint=hint) from error
        if self._spool.bytes:
            self._start()

    def write(self, batch: Sequence[Chunk]) -> None:
        if self._closed:
            raise DriverError("write", driver=self._driver, subject=str(self._sink.address), cause="the log is closed")
        try:
            self._spool.append(batch)
        except (Full, OSError) as error:
            full = isinstance(error, Full)
            where = str(self._sink.address) if full else self._spool.directory
            cause = f"{write_size(self._limit)} wait for the collector" if full else error
            hint = "make it faster, or raise spool-max-size" if full else "free space on the file system"
            raise DriverError("write", driver=self._driver, subject=where, cause=cause, hint=hint) from error
        if self._thread is None:
            self._start()
        elif self._idle:
            self._ring()

    def flush(self, timeout: float) -> bool:
        end = monotonic() + timeout
        with self._changed:
            self._flushing += 1
            self._ring()
            while self._spool.pending and not self._over and (left := end - monotonic()) > 0:
                self._changed.wait(min(left, 0.5))
            self._flushing -= 1
        return not self._spool.pending

    def stats(self) -> LogStats:
        delivered, dropped, pending, size = self._spool.counts()
        return LogStats(
            taken=delivered + dropped + pending,
            delivered=delivered,
            dropped=dropped,
            spooled=size,
            resent=self.resent,
            problem=self.problem,
        )

    def close(self, timeout: float) -> None:
        if self._closed:
            return
        self._closing = self._closed = True
        if self._thread is not None:
            self._ring()
            self._thread.join(timeout)
            self._sink.abort()
            self._ring()
            self._thread.join(1)
        else:
            self._sink.close()
        self._spool.close()
        if self._thread is None or not self._thread.is_alive():
            os.close(self._bell)
        # Else it waits for a connection or a name server, and ends behind that.

    # The thread

    def _start(self) -> None:
        self._thread = Thread(target=self._run, name="log sender", daemon=True)
        self._thread.start()

    def _ring(self) -> None:
        os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        try:
            while not self._sink.aborted:
                try:
                    if not self._step():
                        return
                except OSError as error:
                    if not self._broken(error):
                        return
        finally:
            self._sink.close()
            self._spool.rewind()
            with self._changed:
                self._over = True
                self._changed.notify_all()

    def _step(self) -> bool:
        """Send what there is, or wait; return whether there is more to do."""
        sink, spool = self._sink, self._spool
        entry = spool.next() if sink.ready else None
        if entry is not None:
            if not sink.connected:
                sink.connect(CONNECT_TIMEOUT)
                self._since = monotonic()
            sink.send(entry)
            self._spoke = monotonic()
        self._acknowledge(sink.arrived())
        if entry is not None:
            return True
        if not spool.bytes and self._closing:
            return False
        self._pause()
        return True

    def _acknowledge(self, until: int) -> None:
        if until <= self._acked:
            return
        self._spool.ack(until)
        self._acked, self._failures, self.problem = until, 0, ""
        if self._flushing:
            with self._changed:
                self._changed.notify_all()

    def _pause(self) -> None:
        """Wait for new lines, for the far end to speak, or until it must be asked."""
        sink, spool, now = self._sink, self._spool, monotonic()
        old = self._lifetime is not None and sink.connected and now - self._since > self._lifetime
        if spool.sent:
            if self._closing or self._flushing or old or now - self._spoke > sink.patience:
                sink.finish()
                self._acknowledge(sink.arrived())
        elif old:
            sink.close()
        wait = 0.5 if spool.sent or (self._lifetime and sink.connected) else None
        self._idle = True
        if not (sink.ready and spool.ready) and (spool.bytes or not self._closing):
            self._sleep(wait, [self._bell, sink.fileno()])
        self._idle = False

    def _sleep(self, seconds: float | None, descriptors: Sequence[int]) -> bool:
        """Wait; return whether the bell rang."""
        poll = select.poll()
        for descriptor in descriptors:
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        found = poll.poll(None if seconds is None else max(0, seconds) * 1000)
        if any(descriptor == self._bell for descriptor, _ in found):
            os.eventfd_read(self._bell)
            return True
        return False

    def _broken(self, error: OSError) -> bool:
        """Give the connection up and wait before the next; return whether there shall be one."""
        self._sink.close()
        again = self._spool.rewind()
        self.resent += again if self._since else 0
        if self._since and monotonic() - self._since > 5:
            self._failures = 0
        self._failures += 1
        self._since = 0.0
        self.problem = f"{self._sink.address}: {error.strerror or error}"
        if self._retry.attempts is not None and self._failures > self._retry.attempts:
            self._spool.give_up()
            self._failures = 1
        hurried = bool(self._closing or self._flushing)
        if self._closing and self._failures > 1:
            return False
        end = monotonic() + self._retry.delay(self._failures)
        while not self._sink.aborted and (left := end - monotonic()) > 0:
            self._sleep(left, [self._bell])
            if (self._closing or self._flushing) and not hurried:
                break
        return True
