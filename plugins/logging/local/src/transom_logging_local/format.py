"""Docker's binary log entries: a protobuf message between its length and its length again.

moby's LogEntry has the fields source (1), time_nano (2), line (3, without its newline), partial (4),
partial_log_metadata (5: last, id, ordinal) and attrs (6, repeated: key, value). Lengths are 32 bit, big-endian; the
second one lets a reader go backwards. Wire types are those of protobuf's encoding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from struct import Struct

from transom.contract.logging import Chunk, Stream
from transom.services.logfiles import Damage, Format, Record

_LENGTH = Struct(">I")
_STREAMS = {b"stdout": Stream.STDOUT, b"stderr": Stream.STDERR}
_SOURCES = {stream: b"\x0a\x06" + name for name, stream in _STREAMS.items()}
_SOURCE = b"\x0a\x06std"
"""How every entry begins behind its length."""
ENTRY_LIMIT = 1_000_000
"""moby refuses entries that are longer (maxMsgLen)."""
_NEAR = 1 << 16


def varint(number: int) -> bytes:
    """Encode a number as protobuf does: seven bits a byte, the lowest first; a negative one in 64 bits."""
    number &= (1 << 64) - 1
    done = bytearray()
    while number > 127:
        done.append(number & 127 | 128)
        number >>= 7
    done.append(number)
    return bytes(done)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


class _Frames(dict[int, tuple[bytes, bytes]]):
    """What stands before and behind a line of a certain length, where everything else of the entry is the same."""

    def __init__(self, head: bytes, tail: bytes) -> None:
        self._head, self._tail = head, tail

    def __missing__(self, length: int) -> tuple[bytes, bytes]:
        head = self._head + (b"\x1a" + varint(length) if length else b"")  # protobuf leaves out what is empty
        size = _LENGTH.pack(len(head) + length + len(self._tail))
        self[length] = size + head, self._tail + size
        return self[length]


class Entries(Format):
    """See the module's text.

    Args:
        attrs: attributes of every entry; readers need none.
    """

    def __init__(self, attrs: dict[str, str]) -> None:
        pairs = [(key.encode(errors="replace"), attrs[key].encode(errors="replace")) for key in sorted(attrs)]
        self._attrs = b"".join(_field(6, _field(1, key) + _field(2, value)) for key, value in pairs)

    def encode(self, chunk: Chunk) -> Sequence[bytes]:
        data = chunk.data
        if not data:
            return ()
        head = _SOURCES[chunk.stream] + (b"\x10" + varint(chunk.time) if chunk.time else b"")
        whole, _, rest = data.rpartition(b"\n") if chunk.partial is None else (b"", b"", data)
        pieces: list[bytes] = []
        if chunk.partial is None and len(rest) < len(data):
            frames = _Frames(head, self._attrs)
            for line in whole.split(b"\n"):
                before, behind = frames[len(line)]
                pieces += (before, line, behind)
        if rest or chunk.partial is not None:
            ends = rest.endswith(b"\n")
            line = rest.removesuffix(b"\n")
            before, behind = _Frames(head, self._partial(chunk, ends) + self._attrs)[len(line)]
            pieces += (before, line, behind)
        return pieces

    @staticmethod
    def _partial(chunk: Chunk, ends: bool) -> bytes:
        """Encode what says that the entry is a piece of a line; a piece that ends it has a newline when read back."""
        id, ordinal = (chunk.partial.id, chunk.partial.ordinal) if chunk.partial else ("", 1)
        inner = (b"\x08\x01" if ends else b"") + (_field(2, id.encode()) if id else b"") + b"\x18" + varint(ordinal)
        return b"\x20\x01" + _field(5, inner)

    def boundary(self, data: bytes, at: int, least: int) -> int:
        while at < least and at < len(data):
            at += _LENGTH.unpack_from(data, at)[0] + 8
        return at

    def count(self, data: bytes, at: int) -> int:
        found = 0
        while at < len(data):
            at += _LENGTH.unpack_from(data, at)[0] + 8
            found += 1
        return found

    def complete(self, data: bytes) -> int:
        at, size = 0, len(data)
        unpack, startswith = _LENGTH.unpack_from, data.startswith
        while at + 8 < size:
            (length,) = unpack(data, at)
            end = at + length + 8
            if end > size or not startswith(_SOURCE, at + 4) or unpack(data, end - 4)[0] != length:
                entry = _entry(data, at)
                if entry < 0:
                    return at
                end = entry
            at = end
        return at

    def whole(self, fd: int, size: int) -> int:
        window = _NEAR
        while size:
            start = max(0, size - window)
            data = os.pread(fd, size - start, start)
            end = _last_end(data, exact=start == 0)
            if end or start == 0:
                return start + end if end else 0
            window *= 4
        return 0

    def parse(self, block: bytes, offset: int, *, runs: bool) -> Iterator[Record | Damage]:
        at, size = 0, len(block)
        like, prefix = b"", _Like(b"", 0)
        unpack, startswith = _LENGTH.unpack_from, block.startswith
        begin, lines = 0, list[bytes]()
        while at < size:
            (length,) = unpack(block, at) if at + 8 < size else (0,)
            end = at + length + 8
            if like and startswith(like, at + 4) and end <= size:
                start = at + 4 + len(like)
                count = block[start]
                start += 1
                if count > 127:
                    count, start = _read_varint(block, start - 1)
                if start + count == end - 4 and unpack(block, end - 4)[0] == length:
                    if runs:
                        if not lines:
                            begin = at
                        lines.append(block[start : start + count])
                        at = end
                        continue
                    yield prefix.record([block[start : start + count]], offset + at, offset + end)
                    at = end
                    continue
            if lines:
                yield prefix.record(lines, offset + begin, offset + at)
                lines = []
            record = _decode(block, at, offset) if end - at > 8 and end <= size else None
            if record is None:
                begin = _begin(block, at + 1)
                end = begin if begin >= 0 else size
                yield Damage(offset=offset + at, end=offset + end)
            else:
                yield record
                like, prefix = _like(block, at)
            at = end
        if lines:
            yield prefix.record(lines, offset + begin, offset + at)

    def backwards(self, fd: int, end: int) -> Iterator[Record]:
        size = 16384
        while end > 0:
            start = max(0, end - size)
            data = os.pread(fd, end - start, start)
            stop = len(data)
            moved = False
            while stop > 8:
                (length,) = _LENGTH.unpack_from(data, stop - 4)
                at = stop - length - 8
                record = _decode(data, at, start) if at >= 0 else None
                if record is None:
                    if at < 0 and length < ENTRY_LIMIT and start > 0:
                        break  # it begins further left
                    at = _last_end(data[: stop - 1], exact=start == 0)
                    if not at:
                        break
                    stop, moved = at, True
                    continue
                yield record
                stop, moved = at, True
            if start == 0 and not moved:
                return
            if not moved and size > 4 * ENTRY_LIMIT:
                end = start + 16  # nothing but damage here
                continue
            end, size = start + stop, min(size * 2, 1 << 20) if moved else size * 4

    def first(self, fd: int, offset: int) -> Record | None:
        data = os.pread(fd, _NEAR * 2, offset)
        at = _begin(data, 0)
        return _decode(data, at, offset) if at >= 0 else None


class _Like:
    """What entries have in common that stand one behind the other: stream and time, and nothing behind the line."""

    def __init__(self, source: bytes, time: int) -> None:
        self._source, self._time = source, time

    def record(self, lines: list[bytes], offset: int, end: int) -> Record:
        """Make one record of their lines."""
        data = b"\n".join(lines) + b"\n"
        return Record(offset=offset, end=end, stream=_STREAMS[self._source], time=self._time, data=data)


def _like(block: bytes, at: int) -> tuple[bytes, _Like]:
    """Return the bytes up to a line's length with which the next entries may begin as well."""
    if block[at + 12 : at + 13] != b"\x10":
        return b"", _Like(b"", 0)
    time, end = _read_varint(block, at + 13)
    if block[end : end + 1] != b"\x1a":
        return b"", _Like(b"", 0)
    return block[at + 4 : end + 1], _Like(block[at + 6 : at + 12], time)


def _entry(data: bytes, at: int) -> int:
    """Return where the first whole entry from `at` on ends; -1 where there is none."""
    begin = _begin(data, at)
    return begin + _LENGTH.unpack_from(data, begin)[0] + 8 if begin >= 0 else -1


def _begin(data: bytes, at: int) -> int:
    """Return where the first whole entry from `at` on begins; -1 where there is none."""
    found = data.find(_SOURCE, at + 4)
    while found >= 0:
        if _decode(data, found - 4, 0) is not None:
            return found - 4
        found = data.find(_SOURCE, found + 1)
    return -1


def _last_end(data: bytes, *, exact: bool) -> int:
    """Return where the last whole entry of `data` ends, 0 where there is none; `exact`: the first byte begins one."""
    at = 0 if exact else _begin(data, 0)
    end = 0
    while at >= 0 and at + 8 < len(data):
        if _decode(data, at, 0) is None:
            at = _begin(data, at + 1)
            continue
        at += _LENGTH.unpack_from(data, at)[0] + 8
        end = at
    return end


def _decode(data: bytes, at: int, offset: int) -> Record | None:
    """Read the entry at `at`; None when there is no whole one."""
    if at < 0 or at + 8 >= len(data):
        return None
    (length,) = _LENGTH.unpack_from(data, at)
    end = at + length + 8
    if length > ENTRY_LIMIT or end > len(data) or _LENGTH.unpack_from(data, end - 4)[0] != length:
        return None
    try:
        return _message(data[at + 4 : end - 4], offset + at, offset + end)
    except (ValueError, IndexError, KeyError):
        return None


def _fields(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Read a message's fields: number, and the value as a number or as bytes."""
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        if key & 7 == 0:
            value, at = _read_varint(data, at)
            yield key >> 3, value, b""
        elif key & 7 == 2:
            length, at = _read_varint(data, at)
            if at + length > len(data):
                raise ValueError("a field is longer than its message")
            yield key >> 3, 0, data[at : at + length]
            at += length
        else:
            raise ValueError("a wire type that no log entry has")


def _message(data: bytes, offset: int, end: int) -> Record:
    """Read one message.

    Raises:
        ValueError, IndexError, KeyError: it is none.
    """
    source = line = b""
    time = partial = ordinal = 0
    last, id = False, ""
    attrs: dict[str, str] = {}
    for number, value, text in _fields(data):
        match number:
            case 1:
                source = text
            case 2:
                time = value - (1 << 64) if value >> 63 else value
            case 3:
                line = text
            case 4:
                partial = value
            case 5:
                for inner, count, words in _fields(text):
                    last = bool(count) if inner == 1 else last
                    id = words.decode() if inner == 2 else id
                    ordinal = count if inner == 3 else ordinal
            case 6:
                pair = {inner: words.decode() for inner, _, words in _fields(text)}
                attrs[pair.get(1, "")] = pair.get(2, "")
    return Record(
        offset=offset, end=end, stream=_STREAMS[source], time=time, data=line if partial and not last else line + b"\n",
        attrs=attrs or None, line=id if partial else "", ordinal=ordinal, last=last if partial else None,
    )  # fmt: skip
