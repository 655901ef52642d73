"""When a container that ended is started again, and after how long (Docker's restart policies)."""

from __future__ import annotations

import time

from transom_engine.model import Container

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 60.0
_STABLE_AFTER = 10.0


def should_restart(container: Container, exit_code: int) -> bool:
    """Say whether the container's policy wants it back after it ended by itself with `exit_code`."""
    policy = container.host_config.restart_policy
    if container.manually_stopped or container.host_config.auto_remove:
        return False
    match policy.name:
        case "always" | "unless-stopped":
            return True
        case "on-failure":
            limit = policy.maximum_retry_count
            return exit_code != 0 and (limit == 0 or container.restart_count < limit)
    return False


class Backoff:
    """The pause before a restart: doubled each time, forgotten once a run lasted ten seconds."""

    def __init__(self) -> None:
        self._pause, self._started = _FIRST_PAUSE, 0.0

    def started(self) -> None:
        """Note that a run begins."""
        self._started = time.monotonic()

    def next_pause(self) -> float:
        """Return the seconds to wait now."""
        if time.monotonic() - self._started > _STABLE_AFTER:
            self._pause = _FIRST_PAUSE
        pause, self._pause = self._pause, min(_LONGEST_PAUSE, self._pause * 2)
        return pause
