"""The queue in front of a log driver."""

import threading
import time

import pytest

from transom.contract.logging import Chunk, Stream, Writer
from transom_engine.logs import QUEUE_LIMIT, Delivery, Feed


class Stuck(Writer):
    """A writer that blocks until it is let go."""

    def __init__(self):
        self.gate, self.taken = threading.Event(), []

    def write(self, batch):
        self.gate.wait(20)
        self.taken += batch

    def close(self, timeout):
        return None


def line(text):
    return Chunk(Stream.STDOUT, time.time_ns(), text)


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
    writer = Stuck()
    feed = Feed(writer, limit=100, complain=print)
    for number in range(20):
        feed.put([line(b"%09d\n" % number)])
    assert feed.full
    writer.gate.set()
    feed.close(10)
    assert b"".join(chunk.data for chunk in writer.taken) == b"".join(b"%09d\n" % n for n in range(20))
    assert feed.dropped == 0


def test_without_waiting_what_does_not_fit_is_counted_and_the_rest_is_written():
    writer = Stuck()
    feed = Feed(writer, limit=100, drop=True, complain=print)
    for number in range(20):
        feed.put([line(b"%09d\n" % number)])
    assert not feed.full
    writer.gate.set()
    feed.close(10)
    assert len(writer.taken) + feed.dropped == 20
    assert feed.dropped == 10
