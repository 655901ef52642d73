"""A further process in a running container, as ``exec`` starts it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transom.errors import Conflict
from transom_engine import wire

if TYPE_CHECKING:
    from transom_engine.engine import Engine


def execute(
    engine: Engine,
    reference: str,
    args: Sequence[str],
    *,
    env: Sequence[str] = (),
    cwd: str = "",
    user: str = "",
    tty: bool = False,
    privileged: bool = False,
    stdin: bool = False,
    detach: bool = False,
    size: tuple[int, int] = (0, 0),
) -> wire.Connection:
    """Run `args` in the container and return the supervisor's connection, attached to the new process.

    Args:
        env, cwd, user: over the container's own.
        privileged: all capabilities that the engine holds.
        size: the terminal's rows and columns.

    Raises:
        Conflict: the container does not run, or is paused.
        ConfigError: no such user, a relative working directory.
        TransomError: it could not be executed; exit code 126 or 127.
    """
    from transom_engine.bundle import default_ulimits
    from transom_engine.oci.spec import exec_process

    container = engine.containers.running(reference)
    if container.state.paused:
        raise Conflict(f"container {reference} is paused, unpause the container before exec")
    if not container.state.pid:
        raise Conflict(f"container {reference} is restarting, wait until the container is running")
    process = exec_process(
        container=container,
        rootfs=f"/proc/{container.state.pid}/root",
        args=args,
        env=env,
        cwd=cwd,
        user=user,
        tty=tty,
        privileged=privileged,
        default_ulimits=default_ulimits(engine.config),
        no_new_privileges=engine.config.no_new_privileges,
    )
    rows, columns = size
    if tty and rows:  # from the first moment on: the runtime sets it before the process runs
        process["consoleSize"] = {"height": rows, "width": columns}
    request = wire.Request(
        do="exec", id=os.urandom(32).hex(), process=process, tty=tty, stdin=stdin, detach=detach, rows=rows,
        columns=columns,
    )  # fmt: skip
    return engine.containers.attach(container.id, request)
