"""The queue in front of a log driver."""

import threading
import time

import pytest

from transom.contract.logging import Chunk, LogStats, Partial, Stream, Writer
from transom_engine.logs import QUEUE_LIMIT, Delivery, Feed


class Slow(Writer):
    """A writer that takes one batch at a time, each when the gate is open."""

    def __init__(self):
        self.gate, self.taken, self.closed = threading.Event(), [], False
        self.refuses = False

    def write(self, batch):
        self.gate.wait(30)
        if self.refuses:
            raise OSError(28, "No space left on device")
        self.taken += batch

    def text(self):
        return b"".join(chunk.data for chunk in self.taken)

    def close(self, timeout):
        self.closed = True


def line(number):
    return Chunk(Stream.STDOUT, time.time_ns(), b"%09d\n" % number)


def small(**more):
    return Delivery(mode="non-blocking", max_buffer_size=100, **more)


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        ({}, QUEUE_LIMIT),
        ({"mode": "blocking"}, QUEUE_LIMIT),
        ({"mode": "non-blocking"}, 1 << 20),
        ({"mode": "non-blocking", "max_buffer_size": 4096}, 4096),
    ],
)
def test_the_queue_is_as_long_as_the_options_say(options, limit):
    assert Delivery(**options).limit == limit


def test_a_driver_that_blocks_makes_the_container_wait_and_loses_nothing():
    writer = Slow()
    feed = Feed(writer, complain=print)
    big = Chunk(Stream.STDOUT, 1, b"x" * 1023 + b"\n")
    for _ in range(QUEUE_LIMIT // 1024):
        assert not feed.full
        feed.put([big])
    assert feed.full
    writer.gate.set()
    feed.close()
    assert writer.text() == big.data * (QUEUE_LIMIT // 1024)
    assert feed.lost == 0
    assert writer.closed


def test_without_waiting_what_does_not_fit_is_counted_and_marked_where_it_is_missing():
    writer = Slow()
    feed = Feed(writer, name="x", delivery=small(), complain=print)
    for number in range(20):
        feed.put([line(number)])
    assert not feed.full
    before = feed.status()
    assert (before.taken, before.delivered, before.dropped, before.pending) == (20, 0, 10, 10)
    writer.gate.set()
    end = time.monotonic() + 30
    while feed.status().pending and time.monotonic() < end:
        time.sleep(0.01)
    feed.put([line(99)])
    feed.close()
    *kept, gap, last = writer.text().splitlines()
    assert [int(n) for n in (*kept, last)] == [*range(10), 99]
    assert gap.startswith(b"transom: 10 lines are missing here, ")
    assert gap.endswith(b": the queue of the log driver was full")
    after = feed.status()
    assert (after.taken, after.delivered, after.dropped, after.pending) == (21, 11, 10, 0)


def test_lines_that_are_missing_at_the_end_are_marked_at_the_end():
    writer = Slow()
    feed = Feed(writer, delivery=small(), complain=print)
    for number in range(12):
        feed.put([line(number)])
    writer.gate.set()
    feed.close()
    assert writer.text().splitlines()[-1].startswith(b"transom: 2 lines are missing here")


def test_a_line_of_which_a_fragment_was_dropped_is_one_dropped_line():
    writer = Slow()
    feed = Feed(writer, delivery=small(), complain=print)
    for ordinal in (1, 2, 3):
        text = b"y" * 60 + (b"\n" if ordinal == 3 else b"")
        feed.put([Chunk(Stream.STDOUT, 5, text, partial=Partial(id="l", ordinal=ordinal, last=ordinal == 3))])
    writer.gate.set()
    feed.put([line(1)])
    feed.close()
    assert feed.status().taken == 2
    assert feed.lost == 1
    assert b"transom: 1 line is missing here" in writer.text()


def test_what_the_driver_refuses_is_counted_and_marked_once_it_takes_again():
    writer, said = Slow(), []
    feed = Feed(writer, name="x", complain=said.append)
    writer.gate.set()
    writer.refuses = True
    for number in range(3):
        feed.put([line(number)])
        end = time.monotonic() + 30
        while feed.lost <= number and time.monotonic() < end:
            time.sleep(0.001)
    assert feed.status().error == "[Errno 28] No space left on device"
    assert len(said) == 1, "one complaint for a row of failures"
    writer.refuses = False
    feed.put([line(7)])
    feed.close()
    gap, last = writer.text().splitlines()
    assert gap.startswith(b"transom: 3 lines are missing here, ")
    assert int(last) == 7
    assert (feed.status().dropped, feed.status().delivered, feed.status().error) == (3, 1, "")


def test_a_stuck_driver_is_given_up_at_the_end_and_its_lines_are_counted():
    writer = Slow()
    feed = Feed(writer, patience=0.3, complain=print)
    feed.put([line(1), line(2)])
    began = time.monotonic()
    feed.close()
    assert 0.2 < time.monotonic() - began < 20
    status = feed.status()
    assert (status.taken, status.dropped, status.pending) == (2, 2, 0)
    assert status.error == "it did not answer for 0.3 s"
    writer.gate.set()


def test_one_of_several_that_does_not_move_stops_holding_the_container_up(monkeypatch):
    monkeypatch.setattr("transom_engine.logs.STALL", 0.1)
    writer = Slow()
    feed = Feed(writer, alone=False, complain=print)
    big = Chunk(Stream.STDOUT, 1, b"x" * QUEUE_LIMIT)
    feed.put([big])
    end = time.monotonic() + 30
    while feed.full and time.monotonic() < end:
        time.sleep(0.01)
    assert not feed.full
    feed.put([line(1)])
    assert feed.lost == 1
    writer.gate.set()
    feed.close()


class Counting(Slow):
    """A writer with a sink behind it that has got half of what was taken, and lost a line."""

    def stats(self):
        taken = sum(chunk.data.count(b"\n") for chunk in self.taken)
        return LogStats(taken=taken, delivered=taken // 2, dropped=min(taken, 1))


def test_what_waits_in_the_driver_is_pending_and_what_it_lost_is_dropped():
    writer = Counting()
    writer.gate.set()
    feed = Feed(writer, complain=print)
    feed.put([line(n) for n in range(10)])
    feed.close()
    status = feed.status()
    assert (status.taken, status.delivered, status.dropped, status.pending) == (10, 5, 1, 4)


def test_orders_run_between_batches_and_their_answers_wait_for_the_supervisor():
    writer, woken, answers = Slow(), threading.Event(), []
    feed = Feed(writer, wake=woken.set, complain=print)
    feed.put([line(1)])
    feed.order(lambda open: open.taken.append(Chunk(Stream.STDERR, 0, b"order\n")), answers.append)
    feed.order(lambda open: 1 // 0, answers.append)
    writer.gate.set()
    assert woken.wait(30)
    feed.close()
    for answer in feed.answers:
        answer()
    assert answers == ["", "integer division or modulo by zero"]
    assert writer.text() == b"000000001\norder\n"


class Moving(Slow):
    """A writer whose sink takes two lines in each attempt to flush, and no more than ten."""

    def __init__(self):
        super().__init__()
        self.gate.set()
        self.delivered = 0

    def flush(self, timeout):
        self.delivered = min(self.delivered + 2, 10)
        return self.stats().taken == self.delivered

    def stats(self):
        return LogStats(taken=self.text().count(b"\n"), delivered=self.delivered)


@pytest.mark.parametrize(("lines", "delivered"), [(8, 8), (14, 10)])
def test_a_sink_that_moves_gets_what_is_left_at_the_end(lines, delivered):
    writer = Moving()
    feed = Feed(writer, linger=30.0, complain=print)
    feed.put([line(n) for n in range(lines)])
    feed.close()
    assert (feed.status().delivered, feed.status().pending) == (delivered, lines - delivered)
    assert writer.closed


class Spooling(Slow):
    """A writer whose lines wait, those from before it was opened too, until `arrives` says how many have arrived."""

    def __init__(self, waiting=0, arrives=0):
        super().__init__()
        self.gate.set()
        self.waiting, self.arrives = waiting, arrives

    def stats(self):
        return LogStats(taken=self.waiting + self.text().count(b"\n"), delivered=self.arrives)


def test_lines_that_wait_from_an_earlier_run_are_counted_with_those_of_this_one():
    writer = Spooling(waiting=5, arrives=3)
    feed = Feed(writer, complain=print)
    feed.put([line(n) for n in range(10)])
    feed.close()
    status = feed.status()
    assert (status.taken, status.delivered, status.dropped, status.pending) == (15, 3, 0, 12)


def test_lines_that_wait_while_a_log_is_reopened_are_counted_once():
    old, new, answered = Spooling(arrives=4), Spooling(waiting=6), threading.Event()
    feed = Feed(old, wake=answered.set, complain=print)
    feed.put([line(n) for n in range(10)])
    feed.reopen(lambda: new, lambda: old, lambda _error: None)
    assert answered.wait(30)
    feed.put([line(10)])
    feed.close()
    new.arrives = 7
    status = feed.status()
    assert (status.taken, status.delivered, status.pending) == (11, 11, 0)
