"""A call of the OCI runtime from a supervisor, in two steps: join the container's group, then execute.

Joining a cgroup makes the kernel wait for a grace period (10 to 15 ms, measured; cgroup_threadgroup_rwsem). The
child that will become the runtime does so while its supervisor mounts, joins networks and opens logs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

_HANDLED = (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD)


class Launch:
    """A forked child on its way into the container's group, which then waits for `go`.

    Args:
        argv: what to execute.
        stdio: the descriptors that become 0, 1 and 2.
        join: files to join the group by.
        log: gets a line when that fails.

    Without `go`, `abandon` ends the child, and so does the death of this process.
    """

    def __init__(self, argv: list[str], stdio: Sequence[int], join: Sequence[str], *, log: str) -> None:
        gate, self._gate = os.pipe2(os.O_CLOEXEC)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            _become(argv, stdio, join, gate, log)
        os.close(gate)

    def go(self) -> None:
        """Let the child execute."""
        os.write(self._gate, b"!")
        self.abandon()

    def abandon(self) -> None:
        """End the child if it still waits. Twice is harmless."""
        if self._gate >= 0:
            os.close(self._gate)
            self._gate = -1


def _become(argv: list[str], stdio: Sequence[int], join: Sequence[str], gate: int, log: str) -> None:
    try:
        for path in join:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, b"0")
            os.close(fd)
        for target, fd in enumerate(stdio):
            os.dup2(fd, target)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        if os.read(gate, 1):
            os.execv(argv[0], argv)
    except BaseException as error:
        with open(log, "a") as file:
            file.write(f"{argv[0]}: {error}\n")
    finally:
        os._exit(125)
