"""Counts, and what is held and given back."""

from __future__ import annotations

import pytest

from transom.contract.logging import LogCapability, Logging, Query
from transom.errors import NotSupported
from transom_conformance.logging.common import (
    OUT,
    PATIENCE,
    READ,
    START,
    Base,
    Log,
    err,
    fragments,
    lines,
    numbered,
    out,
)
from transom_conformance.suite import World, census, in_child, undeclared


class Bookkeeping(Base):
    """Cases that hold for every driver, readable or not."""

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
        """Case L41."""
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
        """Case T35."""
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
