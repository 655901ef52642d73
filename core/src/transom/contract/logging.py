"""The logging contract: where the output of a container goes, and how it is read back.

Glossary
    chunk       output of one stream that was read at one moment: any number of complete lines, or one
                fragment of a line. The unit of everything: no call is made for a single line.
    batch       chunks in the order in which they were read; what one `Writer.write` takes.
    fragment    part of a line longer than the read limit (16 KiB, as in Docker), never cut inside a UTF-8
                sequence. Fragments of one line share `Partial.id` and the time of the first.
    sink        what is at the far end: a file, a collector.

Life cycle::

    open(container) -> Writer: write(batch) ... flush ... close
    read(container, query) -> Reader: next(timeout) -> batch, ... close       with LogCapability.READ
    remove(container)                                                         when the container is removed

One instance serves one set of options, the ``--log-opt`` of one container merged over the config's
``log-opts``. `open` is called in the container's supervisor, which feeds each of a container's drivers from a
queue of its own: a driver that blocks or dies hurts neither the others nor the container's control.
`read` and `remove` are called in other processes, while a writer is open elsewhere and after the container
has stopped.

A container can have several log drivers, each once. The options of the queue and of the cache (``mode``,
``max-buffer-size``, ``cache-disabled``, ``cache-max-size``, ``cache-max-file``, ``cache-compress``) are the engine's:
it takes them out, and no driver declares them. Those of labels, environment and tag are the same for all:
`transom.services.logattrs`.

When the sink is down
    `open` fails only when the options say that the container shall not start without its sink; else it
    succeeds and the writer connects later. `Writer.write` either takes the whole batch or raises and has
    taken none of it. What is taken and not delivered is counted: `Writer.stats` says at any moment how many
    lines were taken, delivered and dropped, so that taken = delivered + dropped + pending, exactly. No
    operation waits for a sink longer than the timeout it was given. Where lines were dropped, the next that is
    kept stands behind a `gap`.

A worked example, a driver that appends text::

    class Text(Logging):
        name = "text"
        api = 1

        def open(self, container):
            return TextWriter(os.open(f"{container.directory}/text.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND))

        def remove(self, container): ...

    class TextWriter(Writer):
        def write(self, batch):
            os.writev(self.fd, [chunk.data for chunk in batch])
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar

import msgspec

from transom.contract import Capability, Driver, operation
from transom.errors import NotSupported


class LogCapability(Capability):
    """What a log driver can do beyond writing."""

    READ = "read"
    """`Logging.read`: output can be read back, by another process too, also after the container stopped."""
    ROTATE = "rotate"
    """`Writer.rotate`: starts a new file on demand."""
    REMOTE = "remote"
    """Output leaves this host, so sinks can be down; `Writer.stats` counts what that costs."""
    DISCARD = "discard"
    """Keeps nothing, by intent; it is the only reason not to offer reading."""
    FRAGMENTS = "fragments"
    """Keeps `Partial` with each fragment, so that a reader can join them without guessing."""


class Stream(enum.IntEnum):
    """Which of the container's streams; the numbers are those of Docker's stream framing."""

    STDOUT = 1
    STDERR = 2


class Partial(msgspec.Struct, frozen=True):
    """Says that a chunk is a fragment: the `ordinal`-th (from 1) of the line `id`, and whether the last."""

    id: str
    ordinal: int
    last: bool


class Chunk(msgspec.Struct, frozen=True):
    """Output of one stream that was read at one moment.

    Attributes:
        stream: which.
        time: nanoseconds since the epoch, when it was read.
        data: complete lines, each ending in a newline; or, where `partial` is set or the container ended in
            the middle of a line, one piece without one. Any bytes: nothing promises UTF-8. The last fragment
            of a line keeps its newline.
        partial: set on fragments.
        attrs: what the log options select of labels and environment; set by readers, None from the supervisor.
    """

    stream: Stream
    time: int
    data: bytes
    partial: Partial | None = None
    attrs: dict[str, str] | None = None


def count_lines(chunks: Iterable[Chunk]) -> int:
    """Count the lines that end in the chunks; the last fragment of one ends it, with a newline or without."""
    return sum([chunk.data.count(b"\n") + _ends_without_newline(chunk) for chunk in chunks])


def _ends_without_newline(chunk: Chunk) -> bool:
    return bool(chunk.data) and chunk.data[-1] != 10 and (chunk.partial is None or chunk.partial.last)


def gap(*, lines: int, first: int, last: int, reason: str) -> Chunk:
    """Make the record that stands where lines are missing; it is not one of the container's and is not counted.

    Args:
        lines: how many are missing.
        first, last: nanoseconds since the epoch, the times of the first and the last of them.
        reason: why, in words without an end: "the queue was full".
    """
    from datetime import UTC, datetime

    times = " to ".join(f"{datetime.fromtimestamp(t / 1e9, UTC):%Y-%m-%dT%H:%M:%S.%fZ}" for t in (first, last))
    text = f"transom: {lines} {'line is' if lines == 1 else 'lines are'} missing here, {times}: {reason}\n"
    return Chunk(stream=Stream.STDERR, time=last, data=text.encode())


class LogContainer(msgspec.Struct, frozen=True):
    """What a log driver may know of a container; templates of ``tag`` and the label options draw on it.

    `directory` is where a driver keeps this container's files; it exists, and core removes it with the
    container. `created` is in nanoseconds since the epoch. `name` has no leading slash. `hostname` is the host's.
    """

    id: str
    name: str
    directory: str
    image_id: str = ""
    image_name: str = ""
    command: tuple[str, ...] = ()
    created: int = 0
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    hostname: str = ""
    engine: str = "transom"


class Query(msgspec.Struct, frozen=True):
    """What to read.

    Attributes:
        since: nanoseconds since the epoch, inclusive; None from the start.
        until: nanoseconds since the epoch, inclusive; reading ends after it.
        tail: that many whole lines from the end of what the other fields select; None for all.
        follow: go on after the end, until no writer is left or `until` has passed.
        streams: which streams.
    """

    since: int | None = None
    until: int | None = None
    tail: int | None = None
    follow: bool = False
    streams: frozenset[Stream] = frozenset(Stream)


class LogStats(msgspec.Struct, frozen=True):
    """Lines since `open`: taken = delivered + dropped + pending, what an earlier process left among them.

    `spooled` is in bytes, on disk. `resent` counts lines that were sent again, since a connection broke before they
    were known to have arrived: the far end may have them twice. `problem` says what is wrong at the moment, and
    where (nothing arrives, a file is not rotated); empty when all is well.
    """

    taken: int = 0
    delivered: int = 0
    dropped: int = 0
    spooled: int = 0
    resent: int = 0
    problem: str = ""


class Writer(ABC):
    """One container's open log."""

    @abstractmethod
    def write(self, batch: Sequence[Chunk]) -> None:
        """Take the batch, whole and in order, or raise and have taken none of it.

        When it returns, a SIGKILL of this process loses nothing of what a file-like driver took.

        Raises:
            DriverError: the sink refused (disk full, collector gone and no spool). The supervisor counts the
                lines, tells the operator, and goes on with the next batch.
        """

    def flush(self, timeout: float) -> bool:
        """Deliver what is pending; return whether all was within `timeout` seconds."""
        return True

    def rotate(self) -> None:
        """Start a new file, with `LogCapability.ROTATE`; in other drivers raises `NotSupported`."""
        raise NotSupported("this log driver does not support rotate")

    def stats(self) -> LogStats:
        """Return the counts; never blocks."""
        return LogStats()

    @abstractmethod
    def close(self, timeout: float) -> None:
        """Deliver what can be within `timeout` seconds, count the rest, release everything. Twice is harmless."""


class Reader(ABC):
    """A position in a container's log."""

    @abstractmethod
    def next(self, timeout: float | None) -> Sequence[Chunk] | None:
        """Return the next batch.

        Args:
            timeout: how many seconds to wait for more when following; None waits for ever.

        Returns:
            chunks, never empty; an empty sequence when the timeout passed; None at the end of the log.
            A part of the log that could not be read yields one STDERR chunk that says so, whatever streams
            were asked for, and reading goes on behind it.
        """

    @abstractmethod
    def close(self) -> None:
        """Release everything. Twice is harmless."""


class Logging(Driver):
    """The contract of a log driver; see the module's text."""

    kind: ClassVar[str] = "logging"

    @operation()
    def check(self, container: LogContainer) -> None:
        """Refuse, when a container is created, options that could never work.

        The engine calls it at create, so that a wrong address, template or certificate is not found only at
        start. It does not need the sink to be up.

        Raises:
            ConfigError: naming option, value and what is allowed.
        """
        return None

    @operation()
    @abstractmethod
    def open(self, container: LogContainer) -> Writer:
        """Open the log for writing, at its end. What a crash left torn there is trimmed or closed off first.

        Raises:
            DriverError: the directory cannot be written, or the sink is down and the options demand it.
        """

    @operation(needs=LogCapability.READ)
    def read(self, container: LogContainer, query: Query) -> Reader:
        """Open the log for reading. A container that has not written yet reads as empty.

        Raises:
            DriverError: the log cannot be opened.
        """
        raise self.unsupported(LogCapability.READ)

    @operation()
    def location(self, container: LogContainer) -> str:
        """Return the path of the current file, for ``inspect``; empty when there is none."""
        return ""

    @operation()
    def undelivered(self, container: LogContainer) -> int:
        """Return how many lines are kept here for a sink that has not got them, while no writer is open.

        They are delivered by the next `open`; `remove` gives them up, and the engine warns of that.
        """
        return 0

    @operation()
    def remove(self, container: LogContainer) -> None:
        """Remove what is kept of this container outside its `directory`. Absent is success."""
        return None
