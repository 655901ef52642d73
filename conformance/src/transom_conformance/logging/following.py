"""Following a log that is being written, across rotations too."""

from __future__ import annotations

import os
import time

import pytest

from transom.contract.logging import Chunk, Query
from transom_conformance.logging.common import (
    ERR,
    OUT,
    PATIENCE,
    READ,
    ROTATE,
    SECOND,
    START,
    Base,
    Child,
    Log,
    drain,
    lines,
    named,
    numbered,
    numbers,
    out,
)
from transom_conformance.suite import World


class Following(Base):
    """Cases of `Query.follow` and of rotation."""

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
        """Case T27."""
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
        """Case T27."""
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
        """Case P12."""
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
        """Case T28."""
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
    def test_following_goes_on_behind_an_emptied_file(self, log: Log) -> None:
        """Case T30."""
        writer = log.open()
        writer.write([out(numbered(0, 50))])
        reader = log.reader(Query(follow=True))
        before = numbers(reader.next(PATIENCE) or ())
        os.truncate(log.file(), 0)
        writer.write([out(numbered(50, 20), 1)])
        after = drain(reader, enough=lambda found: bool(found) and numbers(found)[-1:] == [69])
        writer.close(timeout=5)
        assert before + numbers(after) == list(range(70))
        assert numbers(drain(reader)) == []

    @READ
    def test_a_follower_that_reads_nothing_does_not_hold_the_writer_up(self, log: Log) -> None:
        """Case T29."""
        writer = log.open()
        log.reader(Query(follow=True))
        begin = time.monotonic()
        for i in range(100):
            writer.write([out(numbered(i * 500, 500), i)])
        assert time.monotonic() - begin < 10

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
        """Case R20."""
        if not self.rotating:
            pytest.skip("the suite's class names no rotating options")
        log = Log(world, world.open(**self.rotating))
        log.keep([out(numbered(i * 50, 50), i) for i in range(200)])
        first = 10_000 - query.tail if query.tail else (query.since - START) * 50 if query.since else 0
        last = (query.until - START + 1) * 50 if query.until else 10_000
        assert numbers(log.read(query)) == list(range(first, last))
