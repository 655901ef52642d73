"""A bounded queue on disk between a container's output and a sink that can be down.

What `Spool.append` took survives SIGKILL of the process: it is in files before it returns, though not synced, so a
power loss costs what the kernel had not written back. `next` gives it back in order, `ack` lets go of what has arrived,
`rewind` gives everything that has not arrived again: at least once. One process writes and reads; `remaining` counts
from any other.

The bound is one of bytes and, on request, of lines. When it is reached the oldest segment none of which is on its way
is dropped, an eighth of the bound, and a gap takes its place: it is counted, survives a crash as they would have, and
comes out of `next` as the chunk that `transom.contract.logging.gap` makes. With `refuse` the new lines are refused.

Files, in a directory of the spool's own: segments, named by the number of their first record, and ``state``: what has
been acknowledged, and how many lines were dropped in all. A record is a header and chunks, under one CRC-32.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from zlib import crc32

import msgspec

from transom.contract.logging import Chunk, Partial, Stream, count_lines, gap

ENTRY = 1 << 18
"""Bytes after which an entry is not made longer: what is sent, and acknowledged, at once."""
SEGMENT = 4 << 20
SMALLEST = 8 << 20
"""The smallest bound: an eighth of it is dropped at once, and a batch must find room."""

_HEADER = struct.Struct(
    "<IIQIBqq"
)  # bytes behind it, CRC-32 of all that follows, number, lines, kind, first and last time
_CHUNK = struct.Struct("<BBHIIq")  # stream, flags, bytes of the line's id, ordinal, bytes of data, time
_STATE = struct.Struct("<QQ")  # acknowledged up to here, lines dropped before that
_LINES, _GAP = 0, 1
_PARTIAL, _LAST = 1, 2
_STREAMS = {int(stream): stream for stream in Stream}


class Full(Exception):
    """The bound is reached and nothing may be dropped."""


class Entry(msgspec.Struct, frozen=True):
    """What is sent at once: `chunks` with `lines` of the container; the records `sequence` to `until`, exclusive."""

    sequence: int
    until: int
    lines: int
    size: int
    chunks: list[Chunk]


class _Segment:
    """A file of records: their numbers, bytes, lines and times; or one `gap`, in the place of records dropped."""

    def __init__(self, path: str, first: int, *, gap: bool = False) -> None:
        self.path, self.first, self.until, self.gap = path, first, first, gap
        self.size = self.lines = self.begin = self.end = 0
        self.read = self.taken = 0
        """Lines that were given out, and may have arrived; bytes that did."""

    def add(self, until: int, size: int, lines: int, begin: int, end: int) -> None:
        self.until, self.size, self.lines = until, self.size + size, self.lines + lines
        self.begin, self.end = self.begin or begin, end


class _Sent(msgspec.Struct):
    """An entry on its way: up to which record, where it is, and what an acknowledgement lets go of."""

    until: int
    segment: _Segment
    offset: int
    size: int
    lines: int
    missing: int


class Spool:
    """The open queue.

    Args:
        directory: is made when something is appended, and removed when nothing is left in it.
        limit: bytes that may wait; at least `SMALLEST`.
        lines: how many lines may wait, about; None for as many as there is room for.
        refuse: raise `Full` at the bound instead of dropping the oldest lines.

    Raises:
        BlockingIOError: another process has it open.
        OSError: the directory cannot be read.
    """

    def __init__(self, directory: str, *, limit: int, lines: int | None = None, refuse: bool = False) -> None:
        self.directory, self._limit, self._most, self._refuse = directory, max(limit, SMALLEST), lines, refuse
        self._lock = Lock()
        self._segments: list[_Segment] = []
        self._sent: deque[_Sent] = deque()
        self._bounds: deque[int] = deque()
        self._acked = self._lost = 0
        self.pending = self.bytes = 0
        """Lines, and bytes, that are not acknowledged."""
        self.delivered = self.dropped = 0
        """Lines since this spool was opened."""
        self._write = self._read = self._state = -1
        self._opened = ""
        self._reading: _Segment | None = None
        self._cursor = (0, 0)
        if os.path.isdir(directory):
            self._open()

    # Writing

    def append(self, batch: Sequence[Chunk]) -> None:
        """Take the batch, whole and in order, or raise and have taken none of it.

        Raises:
            Full: the bound is reached, and what waits must not be dropped or is on its way.
            OSError: it cannot be written.
        """
        records = [(_body(group), group) for group in _groups(batch)]
        if not records:
            return
        size = sum([_HEADER.size + len(body) for body, _ in records])
        with self._lock:
            if self._state < 0:
                os.makedirs(self.directory, exist_ok=True)
                self._open()
            self._make_room(size)
            if self._write < 0 or self._long(self._segments[-1]):
                self._roll()
            self._put(records)

    def _make_room(self, size: int) -> None:
        while self.bytes + size > self._limit or (self._most is not None and self.pending > self._most):
            oldest = None if self._refuse else next(filter(self._waits, self._segments), None)
            if oldest is None:
                raise Full
            self._drop(oldest)

    def _waits(self, segment: _Segment) -> bool:
        """Whether the segment has lines, none of which is on its way."""
        busy = segment is self._reading or any(sent.segment is segment for sent in self._sent)
        return segment.lines > segment.read and not segment.gap and not busy

    def _long(self, segment: _Segment) -> bool:
        much = segment.size >= min(SEGMENT, self._limit // 8)
        return much or (self._most is not None and segment.lines >= self._most // 8)

    def _put(self, records: list[tuple[bytes, list[Chunk]]]) -> None:
        """Append records to the newest segment by one write(2)."""
        segment = self._segments[-1]
        pieces: list[bytes] = []
        noted: list[tuple[int, int, int, int]] = []
        for body, chunks in records:
            fields = count_lines(chunks), chunks[0].time, chunks[-1].time
            pieces.append(_record(segment.until + len(noted), _LINES, *fields, body))
            noted.append((len(pieces[-1]), *fields))
        data = b"".join(pieces)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(self._write, view) :]
        except OSError:
            os.ftruncate(self._write, segment.size)
            raise
        for size, lines, begin, end in noted:
            segment.add(segment.until + 1, size, lines, begin, end)
            self.pending += lines
        self.bytes += len(data)

    def _roll(self) -> None:
        """Begin a new segment."""
        number = self._segments[-1].until if self._segments else self._acked
        segment = _Segment(f"{self.directory}/{number:016x}", number)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        new = os.open(segment.path, flags, 0o600)
        if self._write >= 0:
            os.close(self._write)
        self._write = new
        self._segments.append(segment)

    def _drop(self, segment: _Segment) -> None:
        """Put a gap in the place of what waits in a segment; merge it with a gap before it.

        It is there by one rename. A crash behind that leaves what it replaces, which `_load` knows by the numbers.
        """
        if segment is self._segments[-1]:
            self._roll()
        at = self._segments.index(segment)
        first = max(segment.first, self._cursor[0])
        old = self._segments[at - 1] if at and self._segments[at - 1].gap else None
        if old is None or old.read or old is self._reading:
            old = _Segment(f"{self.directory}/{first:016x}", first)
        else:
            at -= 1
        new = _Segment(old.path, old.first, gap=True)
        lines = segment.lines - segment.read
        fields = old.lines + lines, old.begin or segment.begin, segment.end
        record = _record(new.first, _GAP, *fields, struct.pack("<Q", segment.until))
        new.add(segment.until, len(record), *fields)
        with open(f"{self.directory}/new", "wb") as file:
            file.write(record)
        os.rename(f"{self.directory}/new", new.path)
        if segment.path != new.path:
            os.unlink(segment.path)
        self._forget_read()
        self.bytes += new.size - segment.size + segment.taken - old.size
        self.pending -= lines
        self.dropped += lines
        self._segments[at : self._segments.index(segment) + 1] = [new]
        if self._cursor[0] == first:
            self._cursor = (new.first, 0)

    def give_up(self) -> None:
        """Drop all lines that are not acknowledged, as after `rewind`."""
        self.rewind()
        with self._lock:
            for segment in list(filter(self._waits, self._segments)):
                self._drop(segment)

    # Reading

    def next(self) -> Entry | None:
        """Return what comes next, and note that it is on its way; None when there is nothing yet."""
        with self._lock:
            number, offset = self._cursor
            segment = next((s for s in self._segments if s.first <= number < s.until), None)
            if segment is None or self._state < 0:
                return None
            offset = offset if segment.first < number else 0
            while self._bounds and self._bounds[0] <= number:
                self._bounds.popleft()
            self._reading, size, bound = segment, segment.size, self._bounds[0] if self._bounds else segment.until
        try:
            entry, missing = self._take(segment, offset, size - offset, bound)
        finally:
            self._reading = None
        with self._lock:
            segment.read += entry.lines or segment.gap
            self._sent.append(_Sent(entry.until, segment, offset, entry.size, entry.lines, missing))
            self._cursor = (entry.until, offset + entry.size)
        return entry

    def _take(self, segment: _Segment, offset: int, size: int, bound: int) -> tuple[Entry, int]:
        """Read records up to the number `bound` or the size of an entry; return them and the lines of gaps."""
        data = self._bytes(segment, offset, min(size, ENTRY + ENTRY // 4))
        if len(data) >= _HEADER.size and len(data) < (whole := _HEADER.size + _HEADER.unpack_from(data)[0]) <= size:
            data = self._bytes(segment, offset, whole)
        first = number = self._cursor[0]
        chunks: list[Chunk] = []
        at = lines = missing = 0
        while number < bound and at < ENTRY and (found := _parse(data, at, number)) is not None:
            end, kind, count, begin, last = found
            if kind == _GAP:
                (number,) = struct.unpack_from("<Q", data, at + _HEADER.size)
                chunks.append(gap(lines=count, first=begin, last=last, reason="the spool was full"))
                missing += count
            else:
                chunks += _decode(data, at + _HEADER.size, end)
                lines, number = lines + count, number + 1
            at = end
        if not at:
            return self._damaged(segment, first, size)
        return Entry(sequence=first, until=number, lines=lines, size=at, chunks=chunks), missing

    def _damaged(self, segment: _Segment, number: int, size: int) -> tuple[Entry, int]:
        """Give the rest of a segment up whose bytes are not what was written."""
        with self._lock:
            lost = segment.lines - segment.read
            self.pending -= lost
            self.dropped += lost
            segment.read += lost
        chunk = gap(lines=lost, first=segment.begin, last=segment.end, reason="the spool is damaged")
        return Entry(sequence=number, until=segment.until, lines=0, size=size, chunks=[chunk]), lost

    def _bytes(self, segment: _Segment, offset: int, size: int) -> bytes:
        if self._opened != segment.path:
            self._forget_read()
            self._read, self._opened = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC), segment.path
        return os.pread(self._read, size, offset)

    def _forget_read(self) -> None:
        if self._read >= 0:
            os.close(self._read)
            self._read, self._opened = -1, ""

    def ack(self, until: int) -> None:
        """Let go of all records before the number `until`: they have arrived."""
        with self._lock:
            if self._state < 0:
                return
            while self._sent and self._sent[0].until <= until:
                sent = self._sent.popleft()
                self._acked = sent.until
                sent.segment.taken += sent.size
                self.pending -= sent.lines
                self.delivered += sent.lines
                self.bytes -= sent.size
                self._lost += sent.missing
            os.pwrite(self._state, _state(self._acked, self._lost), 0)
            while len(self._segments) > 1 and self._segments[0].until <= self._acked:
                if self._opened == self._segments[0].path:
                    self._forget_read()
                os.unlink(self._segments.pop(0).path)

    def rewind(self) -> int:
        """Give what is on its way again; return how many lines that are."""
        with self._lock:
            if not self._sent:
                return 0
            self._bounds = deque([sent.until for sent in self._sent])
            self._cursor = (self._acked, self._sent[0].offset)
            for sent in self._sent:
                sent.segment.read -= sent.lines or sent.segment.gap
            again = sum([sent.lines for sent in self._sent])
            self._sent.clear()
            return again

    # The files

    def _open(self) -> None:
        self._state = os.open(f"{self.directory}/state", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._state, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._acked, self._lost = _read_state(os.pread(self._state, 64, 0))
            self._segments = _load(self.directory, self._acked, mend=True)
        except BaseException:
            os.close(self._state)
            self._state = -1
            raise
        if self._segments:
            self._acked = max(self._acked, self._segments[0].first)
        self.bytes = sum([s.size for s in self._segments])
        self.pending = sum([s.lines for s in self._segments if not s.gap])
        self._cursor = (self._acked, self._begun())

    def _begun(self) -> int:
        """Count off what was acknowledged of the oldest segment; return where the rest begins."""
        if not self._segments:
            return 0
        segment = self._segments[0]
        for number, size, lines in _records(self._bytes(segment, 0, segment.size), segment.first):
            if number >= self._acked:
                break
            segment.taken, segment.read = segment.taken + size, segment.read + lines
        self.pending -= segment.read
        self.bytes -= segment.taken
        return segment.taken

    def counts(self) -> tuple[int, int, int, int]:
        """Return lines delivered, dropped and pending, and bytes, as of one moment."""
        with self._lock:
            return self.delivered, self.dropped, self.pending, self.bytes

    @property
    def ready(self) -> bool:
        """Whether `next` has something."""
        return bool(self._segments) and self._segments[-1].until > self._cursor[0]

    @property
    def sent(self) -> bool:
        """Whether something is on its way."""
        return bool(self._sent)

    @property
    def dropped_ever(self) -> int:
        """Lines dropped since the directory was made."""
        return self._lost + sum([s.lines for s in self._segments if s.gap and s.until > self._acked])

    def close(self) -> None:
        """Release everything; what is not acknowledged stays. Twice is harmless."""
        with self._lock:
            self._forget_read()
            if self._write >= 0:
                os.close(self._write)
                self._write = -1
            if self._state < 0:
                return
            if not self.bytes:
                for segment in self._segments:
                    os.unlink(segment.path)
                self._segments.clear()
                if not self._lost:
                    os.unlink(f"{self.directory}/state")
                    os.rmdir(self.directory)
            os.close(self._state)
            self._state = -1


def remaining(directory: str) -> int:
    """Return how many lines wait in a spool, whether it is open or not; changes nothing."""
    found = 0
    try:
        with open(f"{directory}/state", "rb") as file:
            acked, _ = _read_state(file.read(64))
        for segment in _load(directory, acked, mend=False):
            if not segment.gap:
                with open(segment.path, "rb") as file:
                    records = _records(file.read(), segment.first)
                    found += sum([lines for number, _, lines in records if number >= acked])
    except FileNotFoundError:  # there is no spool, or its last lines arrived meanwhile
        return found
    return found


def _state(acked: int, lost: int) -> bytes:
    body = _STATE.pack(acked, lost)
    return body + struct.pack("<I", crc32(body))


def _read_state(data: bytes) -> tuple[int, int]:
    """Return what was acknowledged; nothing, where a power loss left something else: rather twice than never."""
    if len(data) < _STATE.size:
        return 0, 0
    acked, lost = _STATE.unpack_from(data)
    return (acked, lost) if _state(acked, lost) == data else (0, 0)


def _load(directory: str, acked: int, *, mend: bool) -> list[_Segment]:
    """Return the segments in order; with `mend`, trim torn ends and remove what is acknowledged or replaced."""
    found: list[_Segment] = []
    for name in sorted(os.listdir(directory)):
        if name in ("state", "new"):
            if mend and name == "new":
                os.unlink(f"{directory}/new")
            continue
        segment = _Segment(f"{directory}/{name}", int(name, 16))
        fd = os.open(segment.path, (os.O_RDWR if mend else os.O_RDONLY) | os.O_CLOEXEC)
        try:
            _scan(fd, segment)
            if mend:
                os.ftruncate(fd, segment.size)
        finally:
            os.close(fd)
        replaced = bool(found) and found[-1].gap and found[-1].until >= segment.until
        if not segment.size or segment.until <= acked or replaced:
            if mend:
                os.unlink(segment.path)
            continue
        if found and found[-1].until > segment.first:  # the part of it that waited was replaced by this gap
            gone = found.pop()
            if mend:
                os.unlink(gone.path)
        found.append(segment)
    return found


def _scan(fd: int, segment: _Segment) -> None:
    """Read the headers of a segment; what does not belong to a whole record is left out."""
    length = os.fstat(fd).st_size
    while segment.size + _HEADER.size <= length and not segment.gap:
        head = os.pread(fd, _HEADER.size + 8, segment.size)
        size, _, number, lines, kind, begin, end = _HEADER.unpack_from(head)
        if number != segment.until or kind > _GAP or segment.size + _HEADER.size + size > length:
            return
        segment.gap = kind == _GAP
        until = struct.unpack_from("<Q", head, _HEADER.size)[0] if segment.gap else number + 1
        segment.add(until, _HEADER.size + size, lines, begin, end)


def _records(data: bytes, number: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, size and lines of each record that is whole, up to a gap."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, _, found, lines, kind, _, _ = _HEADER.unpack_from(data, at)
        at += _HEADER.size + size
        if found != number or at > len(data) or kind == _GAP:
            return
        yield number, _HEADER.size + size, lines
        number += 1


def _record(number: int, kind: int, lines: int, begin: int, end: int, body: bytes) -> bytes:
    head = _HEADER.pack(len(body), 0, number, lines, kind, begin, end)
    check = crc32(body, crc32(head[8:]))
    return _HEADER.pack(len(body), check, number, lines, kind, begin, end) + body


def _parse(data: bytes, at: int, number: int) -> tuple[int, int, int, int, int] | None:
    """Return where the record ends, its kind, lines and times; None where none is whole and sound."""
    if at + _HEADER.size > len(data):
        return None
    size, check, found, lines, kind, begin, last = _HEADER.unpack_from(data, at)
    end = at + _HEADER.size + size
    if end > len(data) or found != number or crc32(memoryview(data)[at + 8 : end]) != check:
        return None
    return end, kind, lines, begin, last


def _groups(batch: Iterable[Chunk]) -> Iterator[list[Chunk]]:
    """Cut a batch into the chunks of one record each."""
    group: list[Chunk] = []
    size = 0
    for chunk in batch:
        if not chunk.data:
            continue
        group.append(chunk)
        size += len(chunk.data)
        if size >= ENTRY:
            yield group
            group, size = [], 0
    if group:
        yield group


def _body(chunks: Iterable[Chunk]) -> bytes:
    return b"".join(map(_encode, chunks))


def _encode(chunk: Chunk) -> bytes:
    part = chunk.partial
    if part is None:
        return _CHUNK.pack(chunk.stream, 0, 0, 0, len(chunk.data), chunk.time) + chunk.data
    name = part.id.encode()
    flags = _PARTIAL | (_LAST if part.last else 0)
    return _CHUNK.pack(chunk.stream, flags, len(name), part.ordinal, len(chunk.data), chunk.time) + name + chunk.data


def _decode(data: bytes, at: int, end: int) -> Iterator[Chunk]:
    while at < end:
        stream, flags, named, ordinal, size, time = _CHUNK.unpack_from(data, at)
        begin = at + _CHUNK.size + named
        at = begin + size
        part = None
        if flags & _PARTIAL:
            part = Partial(id=data[begin - named : begin].decode(), ordinal=ordinal, last=bool(flags & _LAST))
        yield Chunk(_STREAMS[stream], time, data[begin:at], part)
