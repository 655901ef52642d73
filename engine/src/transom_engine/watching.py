"""What drivers must keep doing for a container's networks while it runs: leases renewed, peers followed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from threading import Thread

PATIENCE = 5.0
"""Seconds for which an end is waited for."""


class Watchers:
    """A thread for each endpoint whose driver must watch (`NetworkDriver.watch`)."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[int, Thread]] = {}

    def follow(self, wanted: Mapping[str, Callable[[int], None]]) -> None:
        """Start those that do not run yet, and end those that are not wanted any more."""
        for endpoint in self._running.keys() - wanted.keys():
            self._end(*self._running.pop(endpoint))
        for endpoint in wanted.keys() - self._running.keys():
            stop, signal = os.pipe2(os.O_CLOEXEC)
            thread = Thread(target=_watch, args=(wanted[endpoint], stop), daemon=True, name=f"watch {endpoint[:12]}")
            self._running[endpoint] = signal, thread
            thread.start()

    def close(self) -> None:
        """End them all."""
        self.follow({})

    @staticmethod
    def _end(signal: int, thread: Thread) -> None:
        os.close(signal)  # the other end becomes readable
        thread.join(PATIENCE)


def _watch(watch: Callable[[int], None], stop: int) -> None:
    try:
        watch(stop)
    except Exception as error:  # a third party's: the container goes on with what it has
        print(f"watching a network: {error}", file=sys.stderr, flush=True)
    finally:
        os.close(stop)
