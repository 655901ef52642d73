"""Changing limits so that the record and the kernel agree, whenever the command dies.

A note in the container's run directory has the limits as they were, from before the first change until after the last.
First the record is changed, then the logs are, and the kernel's values at the end, which a limits driver changes all at
once or not at all. Whoever meets the note of a command that is gone ends what that began: what the record says is asked
of supervisor and kernel again, or, where one refuses, the note goes back into the record.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from transom.errors import NotFound, TransomError
from transom.services.files import write_atomic
from transom_engine.containers import UPDATING
from transom_engine.model import Container, HostConfig
from transom_engine.resources import resources_of

if TYPE_CHECKING:
    from transom_engine.engine import Engine


@contextmanager
def noted(engine: Engine, id: str, before: HostConfig) -> Iterator[Path]:
    """Have a note of what was before for as long as the change of a running container takes."""
    note = engine.container_run(id) / UPDATING
    write_atomic(str(note), msgspec.json.encode(before), durable=False)
    yield note  # who is killed, or cannot take back what failed, leaves it to the next command
    note.unlink(missing_ok=True)


def limit(engine: Engine, container: Container) -> None:
    """Have the kernel's values be those of the record. A container that has just ended gets them when it starts."""
    limits = engine.limits(container.limits_driver)
    try:
        limits.update(id=container.id, resources=resources_of(container.host_config))
    except NotFound:
        if engine.containers.alive(container.id) and engine.state.container(container.id).state.running:
            raise


def finish(engine: Engine, id: str) -> None:
    """End an update whose command is gone, under the container's lock; without one nothing happens."""
    note = engine.container_run(id) / UPDATING
    try:
        before = msgspec.json.decode(note.read_bytes(), type=HostConfig)
    except FileNotFoundError:
        return
    container = engine.state.container(id)
    logs = container.host_config.log_config != before.log_config
    try:
        if logs:
            engine.containers.order_logs(container, "reopen")
        limit(engine, container)
    except TransomError:
        with engine.state.changing(id) as record:
            record.host_config = before
        with suppress(TransomError):
            if logs:
                engine.containers.order_logs(container, "reopen")
    note.unlink(missing_ok=True)
