"""What becomes of a container's output: each log driver gets it from a queue of its own, and losses are told."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from transom.contract.logging import LogCapability, Stream, Writer
from transom.errors import TransomError
from transom_engine import logplan, wire
from transom_engine.logs import Feed
from transom_engine.model import Container, LogStatus
from transom_engine.streams import Splitter

if TYPE_CHECKING:
    from transom_engine.engine import Engine

Answer = Callable[[str], object]
"""Called with why something failed; with nothing when it did not."""

_SINK_PATIENCE, _FILE_PATIENCE = 1.0, 20.0
"""Seconds that a log driver may make no progress at the end of a run: one whose sink is elsewhere, and one of files."""
_LAST_CHANCE = 30.0
"""Seconds for which a sink that moves may go on taking the lines of a container that is removed when it ends."""
_TELL_PAUSE = 1.0
_FULL_PAUSE = 0.5
"""Seconds between two looks at a full queue; its thread says when there is room, but not that it is stuck."""


class Recording:
    """The log drivers of one container while it runs; the supervisor's thread calls everything here.

    Args:
        nudge: called from other threads when `news` has something to do.
    """

    def __init__(self, engine: Engine, id: str, *, nudge: Callable[[], object]) -> None:
        self._engine, self._id, self._nudge = engine, id, nudge
        self._feeds: list[Feed] = []
        self._plans: dict[str, logplan.LogPlan] = {}
        self._splitters: dict[Stream, Splitter] = {}
        self._told: dict[str, int] = {}
        self._tell_at = 0.0
        self.last: list[LogStatus] = []
        """How the drivers of the last run stood when they were closed."""

    def open(self, container: Container) -> None:
        """Open every log driver; after a failure `close` closes those that were.

        Raises:
            TransomError: one could not be opened.
        """
        plans = logplan.plans(self._engine, container)
        linger = _LAST_CHANCE if container.host_config.auto_remove else _SINK_PATIENCE
        self._splitters = {stream: Splitter(stream) for stream in Stream}
        self._told, self._tell_at = {}, 0.0
        for plan in plans:
            remote = LogCapability.REMOTE in plan.driver.capabilities
            feed = Feed(
                plan.open(), name=plan.name, delivery=plan.delivery, alone=len(plans) == 1,
                patience=_SINK_PATIENCE if remote else _FILE_PATIENCE, linger=linger, wake=self._nudge,
                complain=partial(_complain, plan.name),
            )  # fmt: skip
            self._feeds.append(feed)
        self._plans = {plan.name: plan for plan in plans}

    def put(self, stream: Stream, data: bytes) -> None:
        """Hand on what was read from a stream."""
        if self._feeds and (chunks := self._splitters[stream].feed(data)):
            for feed in self._feeds:
                feed.put(chunks)

    def finish(self) -> None:
        """Hand on the beginnings of lines whose end will not come."""
        for splitter in self._splitters.values():
            rest = splitter.finish()
            for feed in self._feeds if rest else ():
                feed.put(rest)

    def close(self) -> None:
        """Close every log driver, all at once, and note how each stood."""
        for feed in self._feeds:
            feed.begin_close()
        for feed in self._feeds:
            feed.close()
        self._tell_losses()
        self.last, self._feeds = self.status(), []

    # What the supervisor's loop asks

    @property
    def full(self) -> bool:
        """Whether the container has to wait before it writes more."""
        return any(feed.full for feed in self._feeds)

    def due(self) -> list[float]:
        """Return when the loop has to look here again, by the monotonic clock."""
        times = [time.monotonic() + _FULL_PAUSE] if self.full else []
        if any(feed.lost != self._told.get(feed.name, 0) for feed in self._feeds):
            times.append(self._tell_at)
        return times

    def news(self) -> str:
        """Give the answers that are due; return why the container shall be stopped, if a driver's options want that."""
        for feed in self._feeds:
            while feed.answers:
                feed.answers.pop(0)()
        if self._feeds and time.monotonic() >= self._tell_at:
            self._tell_losses()
        for feed in self._feeds:
            if feed.failure and feed.delivery.on_error == "stop":
                return f"stopped, for the log driver {feed.name} refused its output: {feed.failure}"
        return ""

    def status(self) -> list[LogStatus]:
        """Return the counts of every driver."""
        return [feed.status() for feed in self._feeds]

    def _tell_losses(self) -> None:
        """Note, at most once a second while it runs, how many lines each log driver has lost since the last time."""
        for feed in self._feeds:
            count = feed.lost - self._told.get(feed.name, 0)
            if count:
                self._told[feed.name] = feed.lost
                container = self._engine.state.container(self._id)
                self._engine.containers.event(
                    "log_dropped", container, driver=feed.name, count=str(count), total=str(feed.lost)
                )
        self._tell_at = time.monotonic() + _TELL_PAUSE

    # What commands ask

    def order(self, request: wire.Request, answer: Answer) -> None:
        """Have every log driver rotate, flush or reopen, and answer when all have; none is waited for here.

        Raises:
            TransomError: no driver can.
        """
        work = self._work(request)
        if not work and request.do == "rotate":
            names = ", ".join(feed.name for feed in self._feeds)
            raise TransomError(f"log driver {names} does not support rotate")
        left, errors = set(work), list[str]()

        def answered(name: str, error: str) -> None:
            left.discard(name)
            errors.extend([f"log driver {name}: {error}"] if error else [])
            if not left:
                answer("; ".join(errors))

        for name, start in work.items():
            start(partial(answered, name))
        if not work:
            answer("")

    def _work(self, request: wire.Request) -> dict[str, Callable[[Answer], None]]:
        if request.do == "reopen":
            return self._reopened()
        if request.do == "flush":
            flush = partial(_flush, timeout=request.timeout)
            return {feed.name: partial(feed.order, flush) for feed in self._feeds}
        able = [f for f in self._feeds if LogCapability.ROTATE in self._plans[f.name].driver.capabilities]
        return {feed.name: partial(feed.order, lambda writer: writer.rotate()) for feed in able}

    def _reopened(self) -> dict[str, Callable[[Answer], None]]:
        """Take the options that are on record now; return what is to be done for the drivers whose own have changed."""
        work: dict[str, Callable[[Answer], None]] = {}
        plans = {plan.name: plan for plan in logplan.plans(self._engine, self._engine.state.container(self._id))}
        for feed in self._feeds:
            new = plans.get(feed.name)
            if new is None:
                continue  # the cache goes with the next start
            feed.delivery = new.delivery
            if new.options != self._plans[feed.name].options:
                work[feed.name] = partial(self._reopen, feed, new)
            else:
                self._plans[feed.name] = new
        return work

    def _reopen(self, feed: Feed, new: logplan.LogPlan, answer: Answer) -> None:
        def answered(error: str) -> None:
            if not error:  # else the old options are in force
                self._plans[feed.name] = new
            answer(error)

        feed.reopen(new.open, self._plans[feed.name].open, answered)


def _complain(name: str, text: str) -> None:
    print(f"log driver {name}: {text}", file=sys.stderr, flush=True)


def _flush(writer: Writer, *, timeout: float) -> None:
    if not writer.flush(timeout=timeout):
        stats = writer.stats()
        raise TransomError(f"{stats.taken - stats.delivered - stats.dropped} lines still wait for the sink")
