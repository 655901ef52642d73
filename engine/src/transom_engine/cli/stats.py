"""``transom stats``: what containers use, now and again each second."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from transom.errors import NotFound
from transom_engine.cli import Session, pass_session

if TYPE_CHECKING:
    from transom.contract.limits import Stats
    from transom_engine.engine import Engine
    from transom_engine.model import Container

_HEADINGS = {
    "ID": "CONTAINER ID", "Container": "CONTAINER", "Name": "NAME", "CPUPerc": "CPU %", "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %", "NetIO": "NET I/O", "BlockIO": "BLOCK I/O", "PIDs": "PIDS",
}  # fmt: skip
_COLUMNS = ("ID", "Name", "CPUPerc", "MemUsage", "MemPerc", "NetIO", "BlockIO", "PIDs")
_FIRST = 0.5
"""Seconds between the two samples of the first picture."""


@click.command("stats")
@click.option("-a", "--all", "all", is_flag=True, help="Show all containers (default shows just running)")
@click.option("--no-stream", is_flag=True, help="Disable streaming stats and only pull the first result")
@click.option("--no-trunc", is_flag=True, help="Do not truncate output")
@click.option("--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json")
@click.argument("names", metavar="[CONTAINER...]", nargs=-1)
@pass_session
def stats_command(
    session: Session, /, names: tuple[str, ...], all: bool, no_stream: bool, no_trunc: bool, format: str
) -> None:
    """Display a live stream of container(s) resource usage statistics."""
    from transom_engine.cli.tables import render

    engine = session.engine
    before: dict[str, Stats] = {}
    for container in _chosen(engine, names, all=all):
        _sample(engine, container, before)
    clear = "\033[H\033[J" if os.isatty(1) else ""
    pause = _FIRST
    while True:
        time.sleep(pause)
        after: dict[str, Stats] = {}
        rows = []
        for container in _chosen(engine, names, all=all):
            _sample(engine, container, after)
            rows.append(_row(container, before.get(container.id), after.get(container.id), names, full=no_trunc))
        text = render(rows, headings=_HEADINGS, columns=_COLUMNS, format=format)
        sys.stdout.write(text if no_stream else clear + text)
        sys.stdout.flush()
        if no_stream:
            return
        before, pause = after, 1.0


def _chosen(engine: Engine, names: tuple[str, ...], *, all: bool) -> list[Container]:
    """Return the containers that were named, else those that run, else all."""
    if names:
        return [engine.containers.get(name) for name in names]
    return engine.containers.list(all=all)


def _sample(engine: Engine, container: Container, samples: dict[str, Stats]) -> None:
    if container.state.pid:
        try:
            samples[container.id] = engine.limits(container.limits_driver).stats(id=container.id)
        except NotFound:
            pass  # it has just ended


def _row(
    container: Container, before: Stats | None, now: Stats | None, names: tuple[str, ...], *, full: bool
) -> dict[str, Any]:
    from transom_engine.cli.units import binary_size, human_size
    from transom_engine.reports import memory_total

    used = max(0, (now.memory or 0) - now.memory_cache) if now else 0
    limit = min(now.memory_limit or memory_total(), memory_total()) if now else 0
    received, sent = _network(container) if now else (0, 0)
    read = sum(device.read_bytes for device in now.io) if now else 0
    written = sum(device.write_bytes for device in now.io) if now else 0
    short = container.id if full else container.id[:12]
    asked = next((name for name in names if name in {container.name} or container.id.startswith(name)), short)
    return {
        "Container": asked,
        "ID": short,
        "Name": container.name,
        "CPUPerc": f"{_cpu(before, now):.2f}%",
        "MemUsage": f"{binary_size(used)} / {binary_size(limit)}",
        "MemPerc": f"{100 * used / limit if limit else 0:.2f}%",
        "NetIO": f"{human_size(received, digits=3)} / {human_size(sent, digits=3)}",
        "BlockIO": f"{human_size(read, digits=3)} / {human_size(written, digits=3)}",
        "PIDs": str((now.pids or 0) if now else 0),
    }


def _cpu(before: Stats | None, now: Stats | None) -> float:
    """Return the share of one CPU in percent: 200 means two of them busy."""
    if before is None or now is None or before.cpu is None or now.cpu is None or now.time <= before.time:
        return 0.0
    return max(0, now.cpu - before.cpu) / (now.time - before.time) * 100


def _network(container: Container) -> tuple[int, int]:
    """Return bytes received and sent by all of the container's interfaces but the loopback (proc(5), net/dev)."""
    received = sent = 0
    try:
        with open(f"/proc/{container.state.pid}/net/dev") as file:
            lines = file.readlines()[2:]
    except OSError:
        return 0, 0
    for line in lines:
        name, _, counts = line.partition(":")
        if name.strip() != "lo":
            fields = counts.split()
            received, sent = received + int(fields[0]), sent + int(fields[8])
    return received, sent
