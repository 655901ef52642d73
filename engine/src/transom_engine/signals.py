"""Signals by the names that users write."""

from __future__ import annotations

import signal

from transom.errors import ConfigError, nearest


def number(text: str) -> int:
    """Return the number of a signal written as "KILL", "SIGKILL", "RTMIN+3" or "9" (signal(7)).

    Raises:
        ConfigError: there is no such signal.
    """
    word = text.upper().removeprefix("SIG")
    if word.isdigit() and 1 <= int(word) <= signal.SIGRTMAX:
        return int(word)
    base, plus, offset = word.partition("+")
    known = {name.removeprefix("SIG"): int(value) for name, value in signal.Signals.__members__.items()}
    if base in known and (not plus or (base == "RTMIN" and offset.isdigit())):
        return known[base] + (int(offset) if plus else 0)
    raise ConfigError(f"invalid signal: {text}{nearest(word, known)}; a name such as TERM or a number from 1 to 64")
