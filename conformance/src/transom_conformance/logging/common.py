"""What the cases of log drivers have in common: chunks to write, logs to read back, child processes."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from transom.contract.logging import Chunk, LogCapability, LogContainer, Logging, Partial, Query, Reader, Stream, Writer
from transom_conformance.logging.collector import Collector
from transom_conformance.suite import Suite, World

READ = pytest.mark.requires(LogCapability.READ)
ROTATE = pytest.mark.requires(LogCapability.READ, LogCapability.ROTATE)
STATE = pytest.mark.parametrize("state", ["live", "stopped"])

OUT, ERR = Stream.STDOUT, Stream.STDERR
SECOND = 1_000_000_000
START = 1_795_462_080 * SECOND
LIMIT = 16_384
"""The supervisor's read limit: a longer line arrives in fragments."""
PATIENCE = 30.0
"""Seconds after which a case gives up waiting for what should come at once."""


def named(value: object) -> str | None:
    """Name a query in a report by what it asks for."""
    if not isinstance(value, Query):
        return None
    marks = {"since": value.since, "until": value.until}
    words = [f"{name} {mark - START}" for name, mark in marks.items() if mark is not None]
    words += [f"tail {value.tail}"] if value.tail is not None else []
    return ", ".join(words) or "all"


def out(data: bytes, at: int = 0) -> Chunk:
    """Make a chunk of stdout, `at` nanoseconds after the suite's start of time."""
    return Chunk(stream=OUT, time=START + at, data=data)


def err(data: bytes, at: int = 0) -> Chunk:
    """Make a chunk of stderr."""
    return Chunk(stream=ERR, time=START + at, data=data)


def fragments(stream: Stream, line: bytes, at: int = 0, size: int = LIMIT) -> list[Chunk]:
    """Cut a line as the supervisor does; its newline stays with the last piece."""
    pieces = [line[i : i + size] for i in range(0, len(line), size)]
    name = uuid.uuid4().hex
    return [
        Chunk(
            stream=stream,
            time=START + at,
            data=piece,
            partial=Partial(id=name, ordinal=number, last=number == len(pieces)),
        )
        for number, piece in enumerate(pieces, 1)
    ]


def numbered(first: int, count: int, width: int = 60) -> bytes:
    """Return lines that carry consecutive numbers, so that loss, doubles and disorder show."""
    return b"".join(b"%0*d\n" % (width, first + i) for i in range(count))


def lines(chunks: Iterable[Chunk]) -> list[tuple[Stream, bytes]]:
    """Return whole lines with their stream in the order in which they end; fragments are joined."""
    done: list[tuple[Stream, bytes]] = []
    begun = dict.fromkeys(Stream, b"")
    for chunk in chunks:
        for piece in chunk.data.splitlines(keepends=True) if b"\r" not in chunk.data else _split(chunk.data):
            begun[chunk.stream] += piece
            if piece.endswith(b"\n"):
                done.append((chunk.stream, begun[chunk.stream]))
                begun[chunk.stream] = b""
    return done + [(stream, data) for stream, data in begun.items() if data]


def _split(data: bytes) -> list[bytes]:
    """Split behind each newline, and at nothing else."""
    pieces = [piece + b"\n" for piece in data.split(b"\n")]
    pieces[-1] = pieces[-1][:-1]
    return [piece for piece in pieces if piece]


def numbers(chunks: Iterable[Chunk]) -> list[int]:
    """Return the numbers of the numbered lines on stdout."""
    return [int(line) for stream, line in lines(chunks) if stream is OUT]


def drain(reader: Reader, *, enough: Callable[[list[Chunk]], bool] = lambda _: False) -> list[Chunk]:
    """Read until the log ends or there is `enough`; fail when nothing comes for long."""
    chunks: list[Chunk] = []
    while not enough(chunks):
        batch = reader.next(PATIENCE)
        if batch is None:
            return chunks
        assert batch, f"nothing more within {PATIENCE} s, after {len(chunks)} chunks"
        for chunk in batch:
            assert chunk.data.endswith(b"\n") or (chunk.data and b"\n" not in chunk.data), "whole lines or one piece"
        chunks += batch
    return chunks


class Log:
    """A container's log in a case: writes, reads and closes through one driver."""

    def __init__(self, world: World, driver: Logging, *, directory: Path | None = None) -> None:
        self.driver = driver
        identity = uuid.uuid4().hex * 2
        directory = directory or world.path / identity[:12]
        directory.mkdir(exist_ok=True)
        self.container = LogContainer(id=identity, name=f"case-{identity[:8]}", directory=str(directory))
        self.world = world

    def open(self) -> Writer:
        """Open the writer; it is closed behind the case."""
        writer = self.driver.open(container=self.container)
        self.world.defer(writer.close, timeout=5)
        return writer

    def keep(self, chunks: Iterable[Chunk], *, each: bool = True) -> None:
        """Write with a writer that is closed again; with `each`, every chunk is a batch of its own."""
        writer = self.open()
        chunks = list(chunks)
        for batch in [[chunk] for chunk in chunks] if each else [chunks]:
            writer.write(batch)
        writer.close(timeout=5)

    def reader(self, query: Query | None = None) -> Reader:
        """Open a reader; it is closed behind the case."""
        reader = self.driver.read(container=self.container, query=query or Query())
        self.world.defer(reader.close)
        return reader

    def read(self, query: Query | None = None) -> list[Chunk]:
        """Read to the end."""
        reader = self.reader(query)
        try:
            return drain(reader)
        finally:
            reader.close()

    def file(self) -> Path:
        """Return the current file; drivers without one skip the case."""
        path = self.driver.location(container=self.container)
        if not path:
            pytest.skip("this driver keeps no file")
        return Path(path)


class Child:
    """A forked process that runs a function and dies with the case; `report` brings its lines back."""

    def __init__(self, world: World, function: Callable[[int], object]) -> None:
        self._read, write = os.pipe()
        self._waited = False
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(self._read)
                function(write)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        os.close(write)
        world.defer(self.end)

    def wait(self) -> bytes:
        """Wait for the child's own end; return what it wrote to its pipe."""
        data = b""
        while block := os.read(self._read, 65536):
            data += block
        status = os.waitpid(self.pid, 0)[1]
        self._waited = True
        assert os.waitstatus_to_exitcode(status) == 0, "the child failed, see its trace"
        return data

    def signalled(self) -> None:
        """Wait until the child wrote something, or ended."""
        os.read(self._read, 1)

    def kill(self) -> bytes:
        """Kill it with SIGKILL and return what it wrote to its pipe."""
        os.kill(self.pid, signal.SIGKILL)
        data = b""
        while block := os.read(self._read, 65536):
            data += block
        os.waitpid(self.pid, 0)
        self._waited = True
        return data

    def end(self) -> None:
        """Make sure that nothing of it is left."""
        if not self._waited:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._read)


class Base(Suite):
    """The fixtures of all cases; see `LoggingSuite`."""

    kind = "logging"
    rotating: ClassVar[dict[str, str]] = {}
    collector: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def log(self, world: World) -> Log:
        """The log of one container, with a collector where the driver needs one."""
        options: dict[str, str] = {}
        if self.collector:
            sink = Collector(world, self.collector)
            sink.start()
            options = {name.replace("-", "_"): value for name, value in sink.options.items()}
        return Log(world, world.open(**options))

    @pytest.fixture
    def filled(self, log: Log, state: str) -> Iterator[Log]:
        """A log of ten lines, a second apart, on both streams in turn; its writer open or closed."""
        writer = log.open()
        for i in range(10):
            writer.write([Chunk(stream=ERR if i % 2 else OUT, time=START + i * SECOND, data=b"line %d\n" % i)])
        if state == "stopped":
            writer.close(timeout=5)
        yield log
        writer.close(timeout=5)
