"""Sizes, durations and times in the words of Docker's command line (go-units, and Go's package time)."""

from __future__ import annotations

import re
import time

from transom.errors import ConfigError
from transom.services.options import parse_duration

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")
SECOND = 10**9
"""Nanoseconds."""

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)(?:[T ](\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?)?(Z|[+-]\d\d:\d\d)?", re.ASCII
)


def human_size(size: float, *, digits: int = 4) -> str:
    """Write bytes with decimal units, "1.23MB"; ``images`` and ``ps --size`` use 3 significant digits."""
    return _scaled(size, 1000, DECIMAL, digits)


def binary_size(size: float) -> str:
    """Write bytes with binary units, "1.2MiB", as ``stats`` does."""
    return _scaled(size, 1024, BINARY, 4)


def _scaled(size: float, step: int, names: tuple[str, ...], digits: int) -> str:
    index = 0
    while size >= step and index < len(names) - 1:
        size, index = size / step, index + 1
    return f"{size:.{digits}g}{names[index]}"


def human_duration(seconds: float) -> str:
    """Write how long something took, roughly: "About a minute", "2 weeks"."""
    whole = int(seconds)
    minutes, hours = whole // 60, int(seconds / 3600 + 0.5)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for limit, length, name in ((14, 1, "days"), (60, 7, "weeks"), (730, 30, "months")):
        if hours < limit * 24:
            return f"{hours // 24 // length} {name}"
    return f"{int(seconds / 3600) // 24 // 365} years"


def ago(then: int, now: int) -> str:
    """Write how long before `now` something was, both in nanoseconds since the epoch: "3 days ago"."""
    return f"{human_duration((now - then) / SECOND)} ago"


def rfc3339(moment: int, *, fixed: bool = False) -> str:
    """Write nanoseconds since the epoch in UTC, "2024-05-06T07:08:09.12Z"; `fixed` keeps all nine digits."""
    seconds, fraction = divmod(moment, SECOND)
    digits = f"{fraction:09d}"
    digits = digits if fixed else digits.rstrip("0")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + (f".{digits}" if digits else "") + "Z"


def local_time(moment: int) -> str:
    """Write nanoseconds since the epoch in local time as ``CreatedAt`` does: "2024-05-06 09:08:09 +0200 CEST"."""
    return time.strftime("%Y-%m-%d %H:%M:%S %z %Z", time.localtime(moment // SECOND))


def parse_time(text: str, *, now: int, flag: str = "--since") -> int:
    """Read a moment into nanoseconds since the epoch.

    It is a Go duration before `now` ("10m", "1h30m"), seconds since the epoch with up to nine decimals
    ("1136073845.000000001"), or a date as in RFC 3339, which may end after the day, the hour, the minute or the
    second; without a zone it is local time.

    Raises:
        ConfigError: none of these, naming `flag`.
    """
    if re.fullmatch(r"-?\d+(\.\d{1,9})?", text, re.ASCII):
        return _exact(text)
    try:
        return now - round(parse_duration(text) * SECOND)
    except ValueError:
        pass
    match = _TIME.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        return _calendar(match)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{flag} {text!r}: failed to parse value as time or duration; expected 2024-05-06T07:08:09Z, seconds since "
            "the epoch, or a duration such as 10m"
        ) from None


def _exact(text: str) -> int:
    whole, _, fraction = text.partition(".")
    nanoseconds = int(fraction.ljust(9, "0"))
    return int(whole) * SECOND + (-nanoseconds if text.startswith("-") else nanoseconds)


def _calendar(match: re.Match[str]) -> int:
    from calendar import timegm
    from datetime import datetime

    year, month, day, hour, minute, second = (int(match[group] or 0) for group in range(1, 7))
    moment = datetime(year, month, day, hour, minute, second).timetuple()
    zone = match[8]
    if zone is None:
        seconds = int(time.mktime(moment))
    else:
        seconds = timegm(moment)
        if zone != "Z":
            offset = int(zone[1:3]) * 3600 + int(zone[4:]) * 60
            seconds += offset if zone[0] == "-" else -offset
    return seconds * SECOND + int((match[7] or "").ljust(9, "0"))
