"""Out-of-memory events by an eventfd on ``memory.oom_control`` (admin-guide/cgroup-v1/memory.rst, 9 and 10)."""

from __future__ import annotations

import os
import time

from transom.contract.limits import LimitEvent, Watch
from transom.services.cgroups import write

_SETTLE_SECONDS = 0.1


class OomWatch(Watch):
    """One group's kills. The kernel signals just before it kills, so the counter may follow a moment later."""

    def __init__(self, group: str) -> None:
        self._control = os.open(f"{group}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        self._event = -1
        try:
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._seen = self._kills() or 0
            self._signalled = 0.0
            write(f"{group}/cgroup.event_control", f"{self._event} {self._control}")
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        return self._event

    def read(self) -> tuple[LimitEvent, ...]:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return ()
        kills = self._kills()
        if kills is None:  # the group was removed, which signals too
            return ()
        new, self._seen = kills - self._seen, kills
        now = time.monotonic()
        if new:
            self._signalled = 0.0
            return (LimitEvent.OOM,) * new
        self._signalled = self._signalled or now
        if now - self._signalled < _SETTLE_SECONDS:
            os.eventfd_write(self._event, 1)  # polls readable again until the kill is counted
        else:
            self._signalled = 0.0
        return ()

    def close(self) -> None:
        for fd in {self._control, self._event} - {-1}:
            os.close(fd)
        self._control = self._event = -1

    def _kills(self) -> int | None:
        """Return how many processes were killed; None when the group is gone."""
        try:
            return oom_kills(os.pread(self._control, 4096, 0).decode())
        except OSError:
            return None


def oom_kills(text: str) -> int:
    """Return the counter of ``memory.oom_control`` (from Linux 4.13 on; before, 0)."""
    values = dict(line.split() for line in text.splitlines())
    return int(values.get("oom_kill", 0))
