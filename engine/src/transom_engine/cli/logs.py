"""``transom logs``: what a container wrote, read back through its log driver."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from transom.contract.logging import Chunk, Query, Stream
from transom.errors import ConfigError, NotFound, TransomError
from transom_engine.cli import Session, pass_session

if TYPE_CHECKING:
    from transom_engine.engine import Engine

_RUN_PAUSE = 0.05
"""Seconds between looks at a container that is about to run again."""


@click.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Follow log output")
@click.option("-n", "--tail", default="all", help="Number of lines to show from the end of the logs")
@click.option("--since", default="", help="Show logs since timestamp (e.g. 2013-01-02T13:23:37Z) or relative (42m)")
@click.option("--until", default="", help="Show logs before a timestamp or relative (e.g. 42m for 42 minutes)")
@click.option("-t", "--timestamps", is_flag=True, help="Show timestamps")
@click.option("--details", is_flag=True, help="Show extra details provided to logs")
@click.option("--rotate", is_flag=True, help="Start a new file now, and show nothing")
@click.option("--flush", is_flag=True, help="Deliver what waits for a sink, and show nothing")
@click.option("--timeout", type=float, default=10.0, help="Seconds that --flush may take")
@click.argument("name", metavar="CONTAINER")
@pass_session
def logs_command(
    session: Session,
    /,
    name: str,
    follow: bool,
    tail: str,
    since: str,
    until: str,
    timestamps: bool,
    details: bool,
    rotate: bool,
    flush: bool,
    timeout: float,
) -> None:
    """Fetch the logs of a container."""
    if rotate or flush:
        _tend(session.engine, name, rotate=rotate, timeout=timeout if flush else None)
        return
    from transom_engine.cli.units import parse_time

    now = time.time_ns()
    query = Query(
        since=parse_time(since, now=now) if since else None,
        until=parse_time(until, now=now, flag="--until") if until else None,
        tail=_count(tail),
        follow=follow,
    )
    _read(session.engine, session.engine.containers.get(name).id, query, _Printer(timestamps, details))


def _tend(engine: Engine, name: str, *, rotate: bool, timeout: float | None) -> None:
    """Rotate a container's log, or deliver within `timeout` seconds what waits."""
    from transom_engine import logplan
    from transom_engine.containers import RUNNING

    containers = engine.containers
    if rotate:
        containers.order_logs(containers.running(name), "rotate")
    if timeout is None:
        return
    container = containers.get(name)
    if container.state.status in RUNNING:
        containers.order_logs(container, "flush", timeout=timeout)
        return
    with engine.lock(container.id):
        left = logplan.flush(engine, container, timeout)
    if left:
        said = ", ".join(f"{count} of {driver}" for driver, count in left.items())
        raise TransomError(f"not delivered within {timeout:g} s: {said} lines; they are kept for the next try")


def _count(text: str) -> int | None:
    if text == "all":
        return None
    try:
        number = int(text)
    except ValueError:
        raise ConfigError(f"--tail {text!r}: expected a number of lines, or all") from None
    return number if number >= 0 else None


def _read(engine: Engine, id: str, query: Query, printer: _Printer) -> None:
    """Print what the query asks for; with `follow` through the restarts of the container, to its end for good."""
    import msgspec

    from transom_engine import logplan
    from transom_engine.containers import RUNNING

    while True:
        try:
            container = engine.containers.get(id)
        except NotFound:
            return  # it was removed when it ended
        log = logplan.readable(engine, container)
        runs = query.follow and container.state.status in RUNNING
        query = msgspec.structs.replace(query, follow=runs)
        reader = log.driver.read(container=log.container, query=query)
        try:
            while (batch := reader.next(timeout=None)) is not None:
                printer.show(batch)
        finally:
            reader.close()
        if not runs or (query.until is not None and time.time_ns() > query.until):
            return
        time.sleep(_RUN_PAUSE)
        after = printer.last + 1 if printer.last else query.since
        query = msgspec.structs.replace(query, follow=True, since=after, tail=query.tail if not printer.last else None)


class _Printer:
    """Writes chunks to standard output and error."""

    def __init__(self, timestamps: bool, details: bool) -> None:
        self._timestamps, self._details = timestamps, details
        self._midline: set[Stream] = set()
        self.last = 0
        """The latest chunk's time."""

    def show(self, batch: Sequence[Chunk]) -> None:
        """Write chunks in their order."""
        outs = {Stream.STDOUT: sys.stdout.buffer, Stream.STDERR: sys.stderr.buffer}
        for chunk in batch:
            self.last = max(self.last, chunk.time)
            outs[chunk.stream].write(self._dressed(chunk))
            if chunk.stream is Stream.STDERR:
                sys.stderr.buffer.flush()
        sys.stdout.buffer.flush()

    def _dressed(self, chunk: Chunk) -> bytes:
        from transom_engine.cli.units import rfc3339

        if not (self._timestamps or self._details):
            return chunk.data
        head = rfc3339(chunk.time, fixed=True) + " " if self._timestamps else ""
        if self._details:
            from urllib.parse import quote_plus

            pairs = sorted((chunk.attrs or {}).items())
            head += ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in pairs) + " "
        prefix = head.encode()
        first = b"" if chunk.stream in self._midline else prefix
        (self._midline.discard if chunk.data.endswith(b"\n") else self._midline.add)(chunk.stream)
        return first + chunk.data[:-1].replace(b"\n", b"\n" + prefix) + chunk.data[-1:]
