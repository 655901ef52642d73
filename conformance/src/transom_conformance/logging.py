"""The suite for log drivers: what `transom.contract.logging` promises, on real files, processes and signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from transom.contract.logging import Chunk, LogCapability, LogContainer, Logging, Partial, Query, Reader, Stream, Writer
from transom.errors import DriverError, NotSupported
from transom_conformance.suite import Suite, World, census, in_child, undeclared

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


class LoggingSuite(Suite):
    """What every log driver must do.

    Attributes:
        rotating: options, as a user writes them, with which the driver rotates after some tens of kilobytes and yet
            keeps a hundred megabytes: for drivers that rotate by themselves.
    """

    kind = "logging"
    rotating: ClassVar[dict[str, str]] = {}

    @pytest.fixture
    def log(self, world: World) -> Log:
        """The log of one container."""
        return Log(world, world.open())

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

    # What is written comes back

    @READ
    def test_lines_come_back_in_order_with_their_stream_and_time(self, log: Log) -> None:
        chunks = [out(b"one\ntwo\n", 1), err(b"three\n", 2), out(b"four\n", 1_000), err(b"five\nsix\n", 123_456_789)]
        log.keep(chunks)
        found = log.read()
        assert lines(found) == lines(chunks)
        assert [(c.stream, c.time) for c in found] == [(c.stream, c.time) for c in chunks]

    @READ
    def test_a_batch_of_many_chunks_is_kept_whole_and_in_order(self, log: Log) -> None:
        batch = [(out if i % 3 else err)(b"chunk %d\n" % i * 3, i) for i in range(500)]
        log.keep(batch, each=False)
        assert lines(log.read()) == lines(batch)

    @READ
    def test_a_batch_of_a_megabyte_is_kept(self, log: Log) -> None:
        log.keep([out(numbered(0, 20_000))])
        assert numbers(log.read()) == list(range(20_000))

    @READ
    def test_an_empty_batch_and_an_empty_chunk_write_nothing(self, log: Log) -> None:
        writer = log.open()
        writer.write([])
        writer.write([out(b"")])
        writer.write([out(b"line\n")])
        writer.close(timeout=5)
        assert lines(log.read()) == [(OUT, b"line\n")]

    @READ
    def test_empty_lines_and_carriage_returns_are_kept(self, log: Log) -> None:
        log.keep([out(b"\n\n"), err(b"\n"), out(b"dos\r\n\r\nbar\rfoo\n"), out(b" \n\t\n")])
        assert lines(log.read()) == [
            (OUT, b"\n"),
            (OUT, b"\n"),
            (ERR, b"\n"),
            (OUT, b"dos\r\n"),
            (OUT, b"\r\n"),
            (OUT, b"bar\rfoo\n"),
            (OUT, b" \n"),
            (OUT, b"\t\n"),
        ]

    @READ
    @pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 1 << 20])
    def test_fragments_join_to_their_line(self, log: Log, size: int) -> None:
        line = bytes(random.Random(size).choices(b'abcdefghijklmnopqrstuvwxyz"\\<>', k=size)) + b"\n"
        log.keep([out(b"before\n"), *fragments(OUT, line, 5), out(b"after\n", 6)])
        assert lines(log.read()) == [(OUT, b"before\n"), (OUT, line), (OUT, b"after\n")]

    @READ
    def test_fragments_of_two_streams_do_not_mix(self, log: Log) -> None:
        first, second = b"o" * 50_000 + b"\n", b"e" * 60_000 + b"\n"
        pairs = zip(fragments(OUT, first), fragments(ERR, second), strict=True)
        log.keep([chunk for pair in pairs for chunk in pair])
        assert lines(log.read()) == [(OUT, first), (ERR, second)]

    @READ
    def test_output_without_a_newline_at_the_end_is_kept(self, log: Log) -> None:
        log.keep([out(b"whole\nlast words")])
        assert lines(log.read()) == [(OUT, b"whole\n"), (OUT, b"last words")]

    @READ
    def test_text_in_every_script_comes_back_exactly(self, log: Log) -> None:
        text = 'åß 漢字 \U0001f680 \u2028\u2029 \ufeff \ufffd <b>&"\\/\x7f\x1b[31m {"log":"x\\n"} \\n\n'.encode()
        log.keep([out(text), err(text * 3)])
        assert lines(log.read()) == [(OUT, text)] + [(ERR, text)] * 3

    @READ
    def test_every_byte_value_comes_back_or_is_replaced_one_for_one(self, log: Log) -> None:
        data = bytes(b for b in range(256) if b != 10) + b"|\xe2\x82|\xed\xa0\x80|\xc0\xaf|\xf4\x90\x80\x80\n"
        log.keep([out(data)])
        ((_, found),) = lines(log.read())
        replaced = "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in data.decode(errors="surrogateescape"))
        assert found in (data, replaced.encode())

    @READ
    def test_random_bytes_keep_their_lines(self, log: Log) -> None:
        chance = random.Random(7)
        data = [chance.randbytes(chance.randrange(200)).replace(b"\n", b"") + b"\n" for _ in range(500)]
        log.keep([out(b"".join(data))])
        found = lines(log.read())
        assert len(found) == 500
        ascii_only = [bytes(b for b in line if b < 128) for line in data]
        assert [bytes(b for b in line if b < 128) for _, line in found] == ascii_only

    @READ
    def test_a_clock_that_is_set_back_loses_and_moves_nothing(self, log: Log) -> None:
        chunks = [out(b"a\n", 10 * SECOND), out(b"b\n", 2 * SECOND), out(b"c\n", 11 * SECOND)]
        log.keep(chunks)
        assert [(c.time, c.data) for c in log.read()] == [(c.time, c.data) for c in chunks]

    @READ
    def test_logs_of_two_containers_do_not_mix(self, world: World, log: Log) -> None:
        other = Log(world, log.driver)
        first, second = log.open(), other.open()
        first.write([out(b"mine\n")])
        second.write([out(b"yours\n")])
        assert (lines(log.read()), lines(other.read())) == ([(OUT, b"mine\n")], [(OUT, b"yours\n")])

    @READ
    def test_opening_again_goes_on_at_the_end(self, world: World, log: Log) -> None:
        for i in range(5):
            log.driver = world.open()
            log.keep([out(numbered(i * 10, 10), i)])
        assert numbers(log.read()) == list(range(50))

    # Reading a part

    @READ
    def test_a_container_that_has_not_written_reads_as_empty(self, log: Log) -> None:
        assert log.read() == []

    @READ
    @STATE
    @pytest.mark.parametrize(
        "query",
        [
            Query(),
            Query(tail=0),
            Query(tail=5),
            Query(since=START),
            Query(until=START),
            Query(since=START, until=START + SECOND, tail=1),
        ],
        ids=named,
    )
    def test_an_empty_log_has_no_lines(self, log: Log, state: str, query: Query) -> None:
        writer = log.open()
        if state == "stopped":
            writer.close(timeout=5)
        assert log.read(query) == []

    @READ
    @STATE
    @pytest.mark.parametrize("tail", [0, 1, 2, 9, 10, 11, 1000])
    def test_tail_gives_that_many_lines(self, filled: Log, state: str, tail: int) -> None:
        want = [b"line %d\n" % i for i in range(max(0, 10 - tail), 10)]
        assert [line for _, line in lines(filled.read(Query(tail=tail)))] == want

    @READ
    @STATE
    @pytest.mark.parametrize(
        ("since", "until", "want"),
        [
            (0, None, range(10)),
            (3, None, range(3, 10)),
            (9, None, range(9, 10)),
            (10, None, range(0)),
            (None, 0, range(1)),
            (None, 4, range(5)),
            (None, 20, range(10)),
            (None, -1, range(0)),
            (2, 5, range(2, 6)),
            (4, 4, range(4, 5)),
            (5, 2, range(0)),
            (-9, 99, range(10)),
        ],
    )
    def test_since_and_until_are_inclusive(
        self, filled: Log, state: str, since: int | None, until: int | None, want: range
    ) -> None:
        at = [None if mark is None else START + mark * SECOND for mark in (since, until)]
        found = lines(filled.read(Query(since=at[0], until=at[1])))
        assert [line for _, line in found] == [b"line %d\n" % i for i in want]

    @READ
    @STATE
    def test_since_and_until_tell_nanoseconds_apart(self, log: Log, state: str) -> None:
        writer = log.open()
        writer.write([out(b"%d\n" % i, i) for i in range(5)])
        if state == "stopped":
            writer.close(timeout=5)
        assert numbers(log.read(Query(since=START + 1, until=START + 3))) == [1, 2, 3]

    @READ
    @STATE
    @pytest.mark.parametrize(("tail", "want"), [(2, range(8, 10)), (20, range(5, 10))])
    def test_tail_and_since_both_hold(self, filled: Log, state: str, tail: int, want: range) -> None:
        found = lines(filled.read(Query(tail=tail, since=START + 5 * SECOND)))
        assert [line for _, line in found] == [b"line %d\n" % i for i in want]

    @READ
    @STATE
    @pytest.mark.parametrize(("stream", "first"), [(OUT, 0), (ERR, 1)])
    def test_one_stream_can_be_read_alone(self, filled: Log, state: str, stream: Stream, first: int) -> None:
        found = lines(filled.read(Query(streams=frozenset({stream}))))
        assert found == [(stream, b"line %d\n" % i) for i in range(first, 10, 2)]

    @READ
    def test_tail_of_one_stream_gives_lines_of_that_stream(self, log: Log) -> None:
        log.keep([*(out(b"out %d\n" % i, i) for i in range(20)), *(err(b"err %d\n" % i, 20 + i) for i in range(50))])
        found = lines(log.read(Query(tail=3, streams=frozenset({OUT}))))
        assert found == [(OUT, b"out %d\n" % i) for i in (17, 18, 19)]

    @READ
    def test_tail_counts_lines_and_not_fragments(self, log: Log) -> None:
        long = b"x" * 70_000 + b"\n"
        log.keep([out(b"first\n", 1), *fragments(OUT, long, 2), out(b"last\n", 3)])
        assert lines(log.read(Query(tail=2))) == [(OUT, long), (OUT, b"last\n")]
        assert lines(log.read(Query(tail=1))) == [(OUT, b"last\n")]

    @READ
    def test_tail_gives_whole_lines_where_another_stream_cuts_in(self, log: Log) -> None:
        long = b"x" * 40_000 + b"\n"
        pieces = fragments(OUT, long, 2)
        log.keep([out(b"first\n", 1), pieces[0], err(b"noise\n", 3), *pieces[1:]])
        assert lines(log.read(Query(tail=1))) == [(OUT, long)]
        assert lines(log.read(Query(tail=2))) == [(ERR, b"noise\n"), (OUT, long)]

    @READ
    def test_tail_and_since_of_a_long_log_are_exact(self, log: Log) -> None:
        log.keep([out(numbered(i * 100, 100), i * SECOND) for i in range(300)])
        assert numbers(log.read(Query(tail=12_345))) == list(range(30_000 - 12_345, 30_000))
        assert numbers(log.read(Query(since=START + 277 * SECOND))) == list(range(27_700, 30_000))
        period = Query(since=START + 20 * SECOND, until=START + 29 * SECOND)
        assert numbers(log.read(period)) == list(range(2_000, 3_000))

    # Several readers, other processes

    @READ
    def test_two_readers_do_not_disturb_each_other(self, log: Log) -> None:
        log.keep([out(numbered(i * 1000, 1000), i) for i in range(50)])
        first, second = log.reader(), log.reader(Query(tail=2000))
        some = list(first.next(PATIENCE) or ())
        assert numbers(drain(second)) == list(range(48_000, 50_000))
        second.close()
        assert numbers(some + drain(first)) == list(range(50_000))

    @READ
    def test_another_process_reads_while_the_writer_is_open(self, world: World, log: Log) -> None:
        log.open().write([out(numbered(0, 100))])

        def read(pipe: int) -> None:
            log.driver = world.open()
            os.write(pipe, b" ".join(b"%d" % n for n in numbers(log.read())))

        assert [int(n) for n in Child(world, read).wait().split()] == list(range(100))

    # Following

    @READ
    def test_following_waits_no_longer_than_the_timeout(self, log: Log) -> None:
        log.open().write([out(b"line\n")])
        reader = log.reader(Query(follow=True))
        assert reader.next(PATIENCE)
        begin = time.monotonic()
        nothing = reader.next(0.2)
        assert nothing is not None, "the log has not ended: its writer is open"
        assert not nothing
        assert reader.next(0) is not None
        assert 0.15 < time.monotonic() - begin < 5

    @READ
    @pytest.mark.parametrize("tail", [None, 0, 1, 7])
    def test_following_an_empty_log_gives_all_that_comes_and_then_ends(self, log: Log, tail: int | None) -> None:
        writer = log.open()
        reader = log.reader(Query(follow=True, tail=tail))
        chunks: list[Chunk] = []
        for i in range(20):
            writer.write([out(b"%d\n" % i, i)])
            if i % 4 == 0:
                chunks += reader.next(PATIENCE) or ()
        writer.close(timeout=5)
        assert numbers(chunks + drain(reader)) == list(range(20))
        assert reader.next(0) is None

    @READ
    @pytest.mark.parametrize(
        ("query", "want"),
        [
            (Query(follow=True), range(20)),
            (Query(follow=True, tail=0), range(10, 20)),
            (Query(follow=True, tail=3), range(7, 20)),
            (Query(follow=True, since=START + 5), range(5, 20)),
            (Query(follow=True, since=START + 15), range(15, 20)),
            (Query(follow=True, until=START + 12), range(13)),
            (Query(follow=True, since=START + 3, until=START + 14), range(3, 15)),
        ],
        ids=named,
    )
    def test_following_from_the_middle_gives_what_was_asked_for(self, log: Log, query: Query, want: range) -> None:
        writer = log.open()
        for i in range(10):
            writer.write([out(b"%d\n" % i, i)])
        reader = log.reader(query)
        for i in range(10, 20):
            writer.write([out(b"%d\n" % i, i)])
        writer.close(timeout=5)
        assert numbers(drain(reader)) == list(want)

    @READ
    def test_following_ends_when_until_has_passed(self, log: Log) -> None:
        log.open().write([Chunk(stream=OUT, time=time.time_ns(), data=b"1\n")])
        reader = log.reader(Query(follow=True, until=time.time_ns() + SECOND // 5))
        begin = time.monotonic()
        assert numbers(drain(reader)) == [1]
        assert time.monotonic() - begin < 10

    @READ
    def test_following_shows_last_words_without_a_newline(self, log: Log) -> None:
        writer = log.open()
        reader = log.reader(Query(follow=True))
        writer.write([out(b"hello\n"), out(b"world", 1)])
        assert lines(drain(reader, enough=lambda c: len(lines(c)) == 2))[-1] == (OUT, b"world")
        writer.close(timeout=5)
        assert drain(reader) == []

    @READ
    def test_following_ends_when_the_writer_is_killed(self, world: World, log: Log) -> None:
        def write(pipe: int) -> None:
            log.driver.open(container=log.container).write([out(b"1\n")])
            os.write(pipe, b".")
            time.sleep(PATIENCE)

        child = Child(world, write)
        child.signalled()
        reader = log.reader(Query(follow=True))
        assert numbers(reader.next(PATIENCE) or ()) == [1]
        child.kill()
        assert drain(reader) == []

    @READ
    def test_following_a_writer_at_full_speed_loses_nothing(self, world: World, log: Log) -> None:
        self._follow_at_full_speed(world, log)

    @READ
    def test_following_through_many_rotations_loses_nothing(self, world: World) -> None:
        if not self.rotating:
            pytest.skip("the suite's class names no rotating options")
        self._follow_at_full_speed(world, Log(world, world.open(**self.rotating)))

    def _follow_at_full_speed(self, world: World, log: Log) -> None:
        def write(pipe: int) -> None:
            writer = log.driver.open(container=log.container)
            os.write(pipe, b".")
            for i in range(600):
                writer.write([out(numbered(i * 200, 200), i)])
            writer.close(timeout=PATIENCE)

        child = Child(world, write)
        child.signalled()
        followed = drain(log.reader(Query(follow=True)))
        child.wait()
        assert [c.data for c in followed if c.stream is ERR] == []
        assert numbers(followed) == list(range(120_000))
        assert numbers(log.read()) == list(range(120_000))

    @READ
    def test_a_follower_that_reads_nothing_does_not_hold_the_writer_up(self, log: Log) -> None:
        writer = log.open()
        log.reader(Query(follow=True))
        begin = time.monotonic()
        for i in range(100):
            writer.write([out(numbered(i * 500, 500), i)])
        assert time.monotonic() - begin < 10

    # Rotation

    @ROTATE
    def test_rotating_on_demand_breaks_neither_writing_nor_following(self, world: World) -> None:
        if not self.rotating:
            pytest.skip("the suite's class names no rotating options")
        log = Log(world, world.open(**self.rotating))
        writer = log.open()
        reader = log.reader(Query(follow=True))
        chunks: list[Chunk] = []
        for i in range(20):
            writer.write([out(numbered(i * 10, 10), i)])
            writer.rotate()
            if i % 3 == 0:
                chunks += reader.next(PATIENCE) or ()
        writer.close(timeout=5)
        assert numbers(chunks + drain(reader)) == list(range(200))

    @READ
    @pytest.mark.parametrize(
        "query", [Query(), Query(tail=4321), Query(since=START + 150), Query(until=START + 99)], ids=named
    )
    def test_reading_crosses_rotated_files(self, world: World, query: Query) -> None:
        if not self.rotating:
            pytest.skip("the suite's class names no rotating options")
        log = Log(world, world.open(**self.rotating))
        log.keep([out(numbered(i * 50, 50), i) for i in range(200)])
        first = 10_000 - query.tail if query.tail else (query.since - START) * 50 if query.since else 0
        last = (query.until - START + 1) * 50 if query.until else 10_000
        assert numbers(log.read(query)) == list(range(first, last))

    # Faults

    @READ
    @pytest.mark.parametrize("rotating", [False, True], ids=["one file", "rotating"])
    def test_a_killed_writer_loses_nothing_that_it_took(self, world: World, rotating: bool) -> None:
        if rotating and not self.rotating:
            pytest.skip("the suite's class names no rotating options")
        chance = random.Random()
        log = Log(world, world.open(**self.rotating if rotating else {}))
        begun = 0
        taken: list[int] = []
        for _ in range(10):

            def write(pipe: int, first: int = begun) -> None:
                writer = log.driver.open(container=log.container)
                for i in range(first, first + 10_000):
                    writer.write([out(numbered(i * 40, 40), i)])
                    os.write(pipe, b"%d\n" % i)

            child = Child(world, write)
            child.signalled()
            time.sleep(chance.uniform(0, 0.03))
            report = child.kill().split(b"\n")
            taken += range(begun, begun + len(report) - 1)
            begun += 10_000
            found = numbers(log.read(Query(streams=frozenset({OUT}))))
            assert found == sorted(set(found)), "lines are doubled or out of order"
            lost = {i * 40 + k for i in taken for k in range(40)} - set(found)
            assert not lost, f"{len(lost)} lines of batches that were taken are gone, from {min(lost)} on"
        log.keep([out(numbered(begun * 40, 1), begun)])
        found = numbers(log.read())
        assert found[-1] == begun * 40
        assert found == sorted(set(found))

    @READ
    def test_a_full_disk_refuses_whole_batches_and_writing_goes_on_when_there_is_space(self, world: World) -> None:
        directory = world.path / "small"
        directory.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("cannot mount a tmpfs: needs CAP_SYS_ADMIN")
        world.defer(subprocess.run, ["umount", "-l", str(directory)], check=True)
        log = Log(world, world.open(), directory=directory)
        writer = log.open()
        taken, refused = self._fill(writer, range(200))
        if not refused:
            pytest.skip("this driver keeps nothing in the container's directory")
        assert numbers(log.read()) == [i * 100 + k for i in taken for k in range(100)]
        subprocess.run(["mount", "-o", "remount,size=4m", str(directory)], check=True)
        more, refused = self._fill(writer, range(200, 210))
        assert (more, refused) == (list(range(200, 210)), [])
        found = log.read()
        assert [c.data for c in found if c.stream is ERR] == []
        assert numbers(found) == [i * 100 + k for i in taken + more for k in range(100)]

    def _fill(self, writer: Writer, batches: range) -> tuple[list[int], list[int]]:
        taken: list[int] = []
        refused: list[int] = []
        for i in batches:
            try:
                writer.write([out(numbered(i * 100, 100), i)])
                taken.append(i)
            except DriverError:
                refused.append(i)
        return taken, refused

    @READ
    def test_a_torn_end_costs_the_torn_record_only(self, log: Log) -> None:
        chance = random.Random()
        file = log.file()
        kept: list[int] = []
        for round in range(12):
            log.keep([out(numbered(round * 100, 100), round)])
            size = file.stat().st_size
            os.truncate(file, size - chance.randrange(1, 60))
            kept += range(round * 100, round * 100 + 99)
            assert numbers(log.read()) == kept
        log.keep([out(numbered(9999, 1), 99)])
        found = log.read()
        assert numbers(found) == [*kept, 9999]
        assert [c.data for c in found if c.stream is ERR] == [], "the torn end is gone once the log was opened again"
        assert numbers(log.read(Query(tail=100))) == [*kept[-99:], 9999]

    @READ
    @pytest.mark.parametrize(
        "garbage",
        [b"\0" * 300, b"\xff" * 300, b"garbage\n" * 40, b'{"log":"' * 40],
        ids=["zeros", "ones", "lines", "beginnings"],
    )
    def test_a_damaged_region_is_skipped_and_reported(self, log: Log, garbage: bytes) -> None:
        log.keep([out(numbered(i, 1), i * SECOND) for i in range(200)])
        file = log.file()
        middle = file.stat().st_size // 2
        with file.open("r+b") as damaged:
            damaged.seek(middle)
            damaged.write(garbage)
        found = log.read()
        whole = numbers(found)
        assert whole[:90] == list(range(90))
        assert whole[-90:] == list(range(110, 200))
        notices = [c for c in found if c.stream is ERR]
        assert len(notices) == 1, "one STDERR chunk says that a part could not be read"
        assert whole.index(whole[-90]) > 0
        assert numbers(log.read(Query(tail=150))) == whole[-150:]
        assert numbers(log.read(Query(since=START + 150 * SECOND))) == list(range(150, 200))
        log.keep([out(numbered(200, 1), 200 * SECOND)])
        assert numbers(log.read())[-1] == 200

    def test_opening_in_a_directory_that_is_gone_raises_driver_error(self, log: Log) -> None:
        if not log.driver.location(container=log.container):
            pytest.skip("this driver keeps no file")
        Path(log.container.directory).rmdir()
        with pytest.raises(DriverError):
            log.driver.open(container=log.container)

    # Bookkeeping

    def test_the_driver_is_usable_here_and_has_nothing_to_recover(self, world: World) -> None:
        driver: Logging = world.open()
        assert driver.probe().usable
        driver.recover()
        assert driver.recover() == []
        driver.close()
        driver.close()

    def test_check_accepts_an_ordinary_container(self, log: Log) -> None:
        log.driver.check(container=log.container)

    def test_the_counts_of_a_writer_add_up(self, log: Log) -> None:
        writer = log.open()
        assert writer.stats().taken == 0
        writer.write([out(b"one\ntwo\n"), err(b"three\n"), *fragments(OUT, b"x" * 40_000 + b"\n"), out(b"end")])
        assert writer.flush(timeout=PATIENCE)
        stats = writer.stats()
        assert stats.taken == 5
        assert stats.taken == stats.delivered + stats.dropped
        writer.close(timeout=5)
        assert writer.stats() == stats

    def test_closing_a_writer_twice_is_harmless(self, log: Log) -> None:
        writer = log.open()
        writer.write([out(b"line\n")])
        writer.close(timeout=5)
        writer.close(timeout=5)

    @READ
    def test_closing_a_reader_frees_all_it_held_and_twice_is_harmless(self, world: World, log: Log) -> None:
        writer = log.open()
        writer.write([out(numbered(0, 1000))])
        before = census(world.path)
        for query in [Query(), Query(tail=5), Query(follow=True), Query(since=START)] * 10:
            reader = log.driver.read(container=log.container, query=query)
            assert reader.next(PATIENCE)
            reader.close()
            reader.close()
        assert not census(world.path) - before

    def test_a_writer_frees_all_it_held(self, world: World, log: Log) -> None:
        before = census(world.path)
        for i in range(20):
            log.keep([out(b"%d\n" % i)])
        assert not census(world.path) - before

    def test_removing_twice_and_removing_what_never_was_succeed(self, world: World, log: Log) -> None:
        log.driver.remove(container=log.container)
        log.keep([out(b"line\n")])
        log.driver.remove(container=log.container)
        log.driver.remove(container=log.container)

    def test_undeclared_capabilities_raise_not_supported(self, log: Log) -> None:
        missing = undeclared(log.driver, LogCapability)
        if LogCapability.READ in missing:
            with pytest.raises(NotSupported):
                log.driver.read(container=log.container, query=Query())
        if LogCapability.ROTATE in missing:
            with pytest.raises(NotSupported):
                log.open().rotate()

    def test_a_writer_opens_in_a_forked_child_as_in_a_supervisor(self, log: Log) -> None:
        assert in_child(lambda: log.keep([out(b"from a child\n")])) == 0
        if LogCapability.READ in log.driver.capabilities:
            assert lines(log.read()) == [(OUT, b"from a child\n")]
