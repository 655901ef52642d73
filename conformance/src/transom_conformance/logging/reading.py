"""Reading a part of a log, by several readers and from other processes."""

from __future__ import annotations

import os

import pytest

from transom.contract.logging import Query, Stream
from transom_conformance.logging.common import (
    ERR,
    OUT,
    PATIENCE,
    READ,
    SECOND,
    START,
    STATE,
    Base,
    Child,
    Log,
    drain,
    err,
    fragments,
    lines,
    named,
    numbered,
    numbers,
    out,
)
from transom_conformance.suite import World


class Reading(Base):
    """Cases of `Query`."""

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
        """Case T26."""
        writer = log.open()
        if state == "stopped":
            writer.close(timeout=5)
        assert log.read(query) == []

    @READ
    @STATE
    @pytest.mark.parametrize("tail", [0, 1, 2, 9, 10, 11, 1000])
    def test_tail_gives_that_many_lines(self, filled: Log, state: str, tail: int) -> None:
        """Case T25."""
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
        """Case T25."""
        at = [None if mark is None else START + mark * SECOND for mark in (since, until)]
        found = lines(filled.read(Query(since=at[0], until=at[1])))
        assert [line for _, line in found] == [b"line %d\n" % i for i in want]

    @READ
    @STATE
    def test_since_and_until_tell_nanoseconds_apart(self, log: Log, state: str) -> None:
        """Case T25."""
        writer = log.open()
        writer.write([out(b"%d\n" % i, i) for i in range(5)])
        if state == "stopped":
            writer.close(timeout=5)
        assert numbers(log.read(Query(since=START + 1, until=START + 3))) == [1, 2, 3]

    @READ
    @STATE
    @pytest.mark.parametrize(("tail", "want"), [(2, range(8, 10)), (20, range(5, 10))])
    def test_tail_and_since_both_hold(self, filled: Log, state: str, tail: int, want: range) -> None:
        """Case T25."""
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
        """Case T32."""
        log.keep([*(out(b"out %d\n" % i, i) for i in range(20)), *(err(b"err %d\n" % i, 20 + i) for i in range(50))])
        found = lines(log.read(Query(tail=3, streams=frozenset({OUT}))))
        assert found == [(OUT, b"out %d\n" % i) for i in (17, 18, 19)]

    @READ
    def test_tail_counts_lines_and_not_fragments(self, log: Log) -> None:
        """Case P15."""
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
