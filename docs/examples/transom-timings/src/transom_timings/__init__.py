"""A wrapper that records how long each operation of each driver took, a line of JSON each."""

import json
import os
import time
from collections.abc import Generator
from typing import Any

from transom.drivers import Call, Wrapper

FILE = "/run/transom/timings.jsonl"
"""Where the lines go, unless the environment names another file in TRANSOM_TIMINGS."""


class Timings(Wrapper):
    """Stands around every operation; commands, supervisors and doctors all write to the one file."""

    def around(self, call: Call) -> Generator[None, Any, Any]:
        """Let the call through, and note how long it took and whether it raised."""
        start, failed = time.perf_counter(), True
        try:
            result = yield
            failed = False
            return result
        finally:
            _note(
                kind=call.kind,
                driver=call.driver,
                operation=call.operation,
                milliseconds=round((time.perf_counter() - start) * 1000, 3),
                failed=failed,
            )


def _note(**facts: object) -> None:
    """Append a line by one write(2), which others who append do not cut; what cannot be noted stops no container."""
    line = json.dumps(facts).encode() + b"\n"
    try:
        fd = os.open(os.environ.get("TRANSOM_TIMINGS", FILE), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o640)
    except OSError:
        return
    try:
        os.write(fd, line)
    except OSError:
        pass
    finally:
        os.close(fd)
