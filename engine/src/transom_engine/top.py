"""The processes of a container as ps(1) on the host shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from transom.errors import ConfigError, NotSupported

if TYPE_CHECKING:
    from transom_engine.engine import Engine
    from transom_engine.model import Container


def processes(engine: Engine, container: Container, options: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rows that ``ps OPTIONS`` has for the container's processes.

    Raises:
        ConfigError: ps refuses the options, or its output has no PID column.
        NotSupported: this host has no ps.
    """
    from subprocess import run

    try:
        done = run(["ps", *options], capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise NotSupported("top needs ps on this host: install Debian's package procps") from None
    if done.returncode:
        complaint = next(iter(done.stderr.strip().splitlines()), f"exit code {done.returncode}")
        raise ConfigError(f"ps {' '.join(options)}: {complaint}")
    first, *lines = done.stdout.splitlines()
    titles = first.split()
    if "PID" not in titles:
        raise ConfigError(f"ps {' '.join(options)}: couldn't find PID field in ps output; add it, as in -o pid,cmd")
    column, inside = (
        titles.index("PID"),
        {str(p) for p in engine.limits(container.limits_driver).processes(id=container.id)},
    )
    rows = [line.split(None, len(titles) - 1) for line in lines]
    found = [row + [""] * (len(titles) - len(row)) for row in rows if len(row) > column and row[column] in inside]
    return titles, found
