"""From Docker's JSON lines to chunks: whole runs of equal stream and time at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from transom.contract.logging import Stream
from transom.services.logfiles import LONGEST, Damage, Record
from transom_logging_json_file.writing import PREFIX

_STREAM = b'\\n","stream":"'
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)", re.ASCII)
_STREAMS = {"stdout": Stream.STDOUT, "stderr": Stream.STDERR}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Raw(msgspec.Struct, gc=False):
    log: str
    stream: str
    time: str
    attrs: dict[str, str] | None = None


_decode_raw = msgspec.json.Decoder(_Raw).decode
_decode_text = msgspec.json.Decoder(str).decode


def nanoseconds(text: str) -> int:
    """Return the time of a record, RFC 3339 with up to nine digits, in nanoseconds since the epoch.

    Raises:
        ValueError: it is none.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time in RFC 3339")
    second, fraction, zone = match.groups("")
    return _second(second, zone) + int(fraction.ljust(9, "0"))


@lru_cache(maxsize=64)
def _second(text: str, zone: str) -> int:
    whole = datetime.fromisoformat(text + zone.replace("Z", "+00:00")) - _EPOCH
    return (whole.days * 86400 + whole.seconds) * 1_000_000_000


def decode(line: bytes, offset: int) -> Record | None:
    """Read one line without its newline; None when it is no record."""
    try:
        raw = _decode_raw(line)
        return Record(
            offset=offset,
            end=offset + len(line) + 1,
            stream=_STREAMS[raw.stream],
            time=nanoseconds(raw.time),
            data=raw.log.encode(),
            attrs=raw.attrs,
        )
    except (ValueError, KeyError):
        return None


def salvage(line: bytes, offset: int) -> Iterator[Record | Damage]:
    """Read a damaged line: a whole record can follow on garbage that swallowed the newline before it."""
    at = line.rfind(PREFIX)
    record = decode(line[at:], offset + at) if at > 0 else None
    yield Damage(offset=offset, end=record.offset if record else offset + len(line) + 1)
    if record:
        yield record


def parse(block: bytes, offset: int, *, runs: bool) -> Iterator[Record | Damage]:
    """Read whole lines, `offset` being where they stand in the file; with `runs`, many at a time where possible."""
    at = 0
    while at < len(block):
        run = _run(block, at, offset) if runs else None
        if run is not None:
            yield run
            at = run.end - offset
            continue
        end = block.index(b"\n", at)
        line = block[at:end]
        record = decode(line, offset + at)
        if record is not None:
            yield record
        else:
            yield from salvage(line, offset + at)
        at = end + 1


def _run(block: bytes, at: int, offset: int) -> Record | None:
    """Read the longest run of complete lines from `at` on that end in the same bytes behind their data.

    A quote inside data is escaped, so the first bytes that look like the end of "log" are it, and the data of a run,
    its line ends put back, is one JSON string.
    """
    end = block.index(b"\n", at) + 1
    cut = block.find(_STREAM, at, end)
    if cut < 0 or not block.startswith(PREFIX, at):
        return None
    suffix = block[cut:end]
    size = len(suffix)
    after = block.find(b"\n", end) + 1
    while after and block.startswith(suffix, after - size):
        end = after
        after = block.find(b"\n", end) + 1
    if end == cut + size:
        return None
    text = block[at + len(PREFIX) : end - size].replace(suffix + PREFIX, b"\\n")
    first = decode(PREFIX + suffix[:-1], 0)
    try:
        data = _decode_text(b'"%s\\n"' % text).encode()
    except ValueError:
        return None
    if first is None:
        return None
    return Record(
        offset=offset + at, end=offset + end, stream=first.stream, time=first.time, data=data, attrs=first.attrs
    )


def backwards(fd: int, end: int) -> Iterator[Record]:
    """Read the records before `end`, the newest first; what is damaged is left out."""
    size, rest = 16384, b""
    while end > 0:
        start = max(0, end - size)
        data = os.pread(fd, end - start, start) + rest
        first = 0 if start == 0 else data.find(b"\n") + 1
        if first or start == 0:
            stop = data.rfind(b"\n")
            while stop >= first:
                begin = data.rfind(b"\n", first, stop) + 1 or first
                record = decode(data[begin:stop], start + begin)
                if record is None:
                    record = next((r for r in salvage(data[begin:stop], start + begin) if isinstance(r, Record)), None)
                if record is not None:
                    yield record
                stop = begin - 1
        rest = data[:first] if first else data if len(data) < LONGEST else b"\n"
        end, size = start, min(size * 2, 1 << 20)


NEAR = 1 << 16


def first(fd: int, offset: int) -> Record | None:
    """Return the first whole record from `offset` on, which need not be at the begin of a line."""
    data = os.pread(fd, NEAR, offset)
    at = 0 if offset == 0 else data.find(b"\n") + 1
    while at or offset == 0:
        end = data.find(b"\n", at)
        if end < 0:
            return None
        record = decode(data[at:end], offset + at)
        if record is not None:
            return record
        at = end + 1
    return None


def whole(fd: int, size: int) -> int:
    """Return the size of a file without an incomplete line at its end."""
    while size and os.pread(fd, 1, size - 1) != b"\n":
        start = max(0, size - 65536)
        size = start + os.pread(fd, size - start, start).rfind(b"\n") + 1
    return size
