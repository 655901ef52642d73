"""Drivers whose sink can be down: a real collector is killed, stopped and started again."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable

import pytest

from transom.contract.logging import Chunk, LogCapability, LogStats, Writer
from transom.errors import DriverError
from transom_conformance.logging.collector import Collector
from transom_conformance.logging.common import PATIENCE, Base, Child, Log, numbered, out
from transom_conformance.suite import World

REMOTE = pytest.mark.requires(LogCapability.REMOTE)
WIDTH = 60


def texts(first: int, count: int) -> list[bytes]:
    """Return the numbered lines as a collector has them."""
    return numbered(first, count, WIDTH).split(b"\n")[:-1]


def batch(first: int, count: int) -> list[Chunk]:
    """Return numbered lines in chunks of some kilobytes."""
    return [out(numbered(i, min(100, first + count - i), WIDTH), i) for i in range(first, first + count, 100)]


def balanced(stats: LogStats, pending: int = 0) -> bool:
    """Whether the counts add up, with so many lines pending."""
    return stats.taken == stats.delivered + stats.dropped + pending


class Remote(Base):
    """What holds while a collector is down, stopped or slow, and when it is back."""

    @pytest.fixture
    def sink(self, world: World) -> Collector:
        """The collector that the driver's examples describe; it does not run yet."""
        if not self.collector:
            pytest.skip("the suite's class names no collector")
        return Collector(world, self.collector)

    def remote(self, world: World, sink: Collector, **options: str) -> Log:
        """Open the driver for a collector, and give it a container."""
        return Log(world, world.open(**{name.replace("-", "_"): v for name, v in sink.options.items()}, **options))

    @REMOTE
    def test_lines_reach_the_collector_once_and_in_order(self, world: World, sink: Collector) -> None:
        """Cases 8, 41: what is delivered arrived, and everything is accounted for."""
        sink.start()
        writer = self.remote(world, sink).open()
        for i in range(0, 20_000, 1000):
            writer.write(batch(i, 1000))
        assert writer.flush(timeout=PATIENCE)
        assert writer.stats().delivered == writer.stats().taken == 20_000
        assert sink.wait(*texts(19_900, 100)) == texts(0, 20_000)

    @REMOTE
    def test_a_collector_that_is_down_at_the_start_gets_everything_later(self, world: World, sink: Collector) -> None:
        """Case 46: nothing waits for it, nothing is lost, the order is kept."""
        writer = self.remote(world, sink).open()
        begin = time.monotonic()
        for i in range(0, 10_000, 500):
            writer.write(batch(i, 500))
        assert time.monotonic() - begin < 10, "writing waits for the collector"
        stats = writer.stats()
        assert (stats.taken, stats.delivered, stats.dropped) == (10_000, 0, 0)
        assert stats.spooled > 10_000 * WIDTH
        address = next(value for value in sink.options.values() if "://" in value)
        self._await(lambda: writer.stats().problem.startswith(f"{address}: "), "no word of the collector that is down")
        sink.start()
        assert writer.flush(timeout=2 * PATIENCE)
        assert [*dict.fromkeys(sink.wait(*texts(0, 10_000)))] == texts(0, 10_000)
        assert balanced(writer.stats())
        assert writer.stats().problem == ""

    @REMOTE
    def test_a_collector_that_must_be_there_is_named_when_it_is_not(self, world: World, sink: Collector) -> None:
        """Case 46: options that demand the sink make `open` fail, and say where it should be."""
        log = self.remote(world, sink, sink_required="true")
        with pytest.raises(DriverError) as caught:
            log.driver.open(container=log.container)
        address = next(value for value in sink.options.values() if "://" in value)
        assert f"open {address} failed: " in str(caught.value)
        sink.start()
        log.keep(batch(0, 10))
        sink.wait(*texts(0, 10))

    @REMOTE
    def test_a_collector_killed_and_restarted_twenty_times_loses_nothing(self, world: World, sink: Collector) -> None:
        """Cases 47 and 51: every line of 400,000 arrives whole; how many came twice is told."""
        if not sink.acknowledged:
            pytest.skip("the protocol cannot know what arrived")
        total, kills = 400_000, 20
        sink.start()
        writer = self.remote(world, sink).open()
        done = threading.Event()

        def produce() -> None:
            for i in range(0, total, 500):
                writer.write(batch(i, 500))
                time.sleep(0.002)
            done.set()

        producer = threading.Thread(target=produce, name="producer")
        producer.start()
        chance = random.Random()
        try:
            for _ in range(kills):
                time.sleep(chance.uniform(0.02, 0.2))
                sink.kill()
                time.sleep(chance.uniform(0, 0.1))
                sink.start()
        finally:
            producer.join()
        assert done.is_set()
        assert writer.flush(timeout=3 * PATIENCE)
        assert balanced(writer.stats())
        wanted = texts(0, total)
        found = sink.wait(*wanted)
        whole = {*wanted}
        print(f"{total} lines, {kills} kills: {len(found) - total} came twice")
        # One that is killed while it writes leaves a torn line in its file, which the next goes on behind.
        torn = [line for line in found if line not in whole]
        assert len(torn) <= kills
        assert [line for line in torn if line[-WIDTH:] not in whole and not line.startswith(b"0")] == []

    @REMOTE
    def test_a_collector_that_goes_while_nothing_is_sent_costs_nothing(self, world: World, sink: Collector) -> None:
        """Case 49: the record after an idle time is not lost."""
        if not sink.acknowledged:
            pytest.skip("the protocol cannot know what arrived")
        sink.start()
        writer = self.remote(world, sink).open()
        for i in range(5):
            writer.write(batch(i * 10, 10))
            sink.wait(*texts(i * 10, 10))
            sink.kill(signal.SIGTERM)
            sink.start()
        writer.write(batch(50, 10))
        assert writer.flush(timeout=PATIENCE)
        sink.wait(*texts(0, 60))

    @REMOTE
    def test_nothing_waits_for_a_collector_that_has_stopped(self, world: World, sink: Collector) -> None:
        """Cases 38 and 44: all that is called ends in its time; what is left comes with the next open."""
        sink.start()
        log = self.remote(world, sink)
        writer = log.open()
        writer.write(batch(0, 10))
        assert writer.flush(timeout=PATIENCE)
        sink.pause()
        try:
            begin = time.monotonic()
            for i in range(10, 300_010, 3000):
                writer.write(batch(i, 3000))
            assert time.monotonic() - begin < 30, "writing waits for the collector"
            begin = time.monotonic()
            stats = writer.stats()
            assert time.monotonic() - begin < 1
            assert stats.taken == 300_010
            begin = time.monotonic()
            writer.flush(timeout=0.5)
            writer.close(timeout=0.5)
            assert time.monotonic() - begin < 6, "closing waits for the collector"
        finally:
            sink.resume()
        stats = writer.stats()
        waiting = log.driver.undelivered(container=log.container)
        assert balanced(stats, waiting)
        again = log.open()
        assert again.stats().taken == waiting
        assert again.flush(timeout=2 * PATIENCE)
        assert balanced(again.stats())
        assert log.driver.undelivered(container=log.container) == 0
        if sink.acknowledged:
            sink.wait(*texts(0, 300_010))

    @REMOTE
    def test_a_bound_drops_the_oldest_lines_counts_them_and_says_where(self, world: World, sink: Collector) -> None:
        """Cases 39, 41 and 42: the spool keeps its bound; what that costs is counted exactly and told in the stream."""
        log = self.remote(world, sink, spool_max_size="8m")
        writer = log.open()
        for i in range(0, 300_000, 1000):
            writer.write(batch(i, 1000))
            assert writer.stats().spooled <= 8 << 20
        stats = writer.stats()
        assert stats.delivered == 0
        assert 0 < stats.dropped < 300_000
        sink.start()
        assert writer.flush(timeout=2 * PATIENCE)
        assert balanced(writer.stats())
        kept = 300_000 - stats.dropped
        found = sink.wait(*texts(stats.dropped, kept))
        told = [line for line in found if line.startswith(b"transom: ")]
        assert {*found} - {*told} == {*texts(stats.dropped, kept)}
        assert all(line.startswith(b"transom: %d lines are missing here, " % stats.dropped) for line in told)
        assert told

    @REMOTE
    def test_a_supervisor_killed_at_any_time_loses_no_line_that_was_taken(self, world: World, sink: Collector) -> None:
        """Case 56, for a driver that sends: what `write` took outlives the process, the collector up or down."""
        log = self.remote(world, sink)
        chance = random.Random()
        taken: list[int] = []
        for round in range(6):
            first = round * 100_000
            if round == 3:
                sink.start()

            def write(pipe: int, first: int = first) -> None:
                writer = log.driver.open(container=log.container)
                for i in range(first, first + 100_000, 100):
                    writer.write(batch(i, 100))
                    os.write(pipe, b"%d\n" % i)

            child = Child(world, write)
            child.signalled()
            time.sleep(chance.uniform(0, 0.1))
            report = child.kill().split(b"\n")
            taken += range(first, first + (len(report) - 1) * 100)
        writer = log.open()
        assert writer.flush(timeout=2 * PATIENCE)
        assert balanced(writer.stats())
        if sink.acknowledged:
            sink.wait(*[line for first in taken[::100] for line in texts(first, 100)])

    @REMOTE
    def test_memory_does_not_grow_with_what_waits(self, world: World, sink: Collector) -> None:
        """Case 39: what waits for a collector lies on disk."""
        log = self.remote(world, sink)

        def write(pipe: int) -> None:
            writer = log.driver.open(container=log.container)
            writer.write(batch(0, 1000))
            before = _resident()
            for i in range(1000, 801_000, 4000):
                writer.write(batch(i, 4000))
            os.write(pipe, b"%d" % (_resident() - before))
            writer.close(timeout=0.1)

        assert int(Child(world, write).wait()) < 32 << 20

    @REMOTE
    def test_a_host_without_a_name_holds_nothing_up(self, world: World, sink: Collector) -> None:
        """Case 50: lines wait until the name is found."""
        if not sink.nowhere:
            pytest.skip("the example of a collector names no host that is nowhere")
        sink.options.update(sink.nowhere)
        log = self.remote(world, sink)
        writer = log.open()
        begin = time.monotonic()
        writer.write(batch(0, 100))
        writer.close(timeout=0.2)
        assert time.monotonic() - begin < 10
        assert log.driver.undelivered(container=log.container) == 100
        self._await(lambda: threading.active_count() == 1, "a thread is left")

    @REMOTE
    def test_two_writers_of_one_container_are_refused(self, world: World, sink: Collector) -> None:
        """One process sends a container's lines; a second would send them twice."""
        log = self.remote(world, sink)
        writer = log.open()
        writer.write(batch(0, 10))
        with pytest.raises(DriverError) as caught:
            log.driver.open(container=log.container)
        assert "another process is writing it; stop the container first" in str(caught.value)
        writer.close(timeout=0.1)

    @REMOTE
    def test_a_closed_log_refuses_a_batch(self, world: World, sink: Collector) -> None:
        """What is written behind the end would be lost."""
        writer: Writer = self.remote(world, sink).open()
        writer.close(timeout=0.1)
        with pytest.raises(DriverError) as caught:
            writer.write(batch(0, 1))
        assert str(caught.value).endswith("failed: the log is closed")

    def _await(self, condition: Callable[[], bool], otherwise: str) -> None:
        end = time.monotonic() + 2 * PATIENCE
        while not condition():
            assert time.monotonic() < end, otherwise
            time.sleep(0.02)


def _resident() -> int:
    """Return this process's memory in bytes (proc(5), statm)."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
