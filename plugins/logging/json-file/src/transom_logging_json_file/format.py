"""Docker's JSON lines as a format of log files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transom.contract.logging import Chunk, Stream
from transom.services.logfiles import Damage, Format, Record
from transom_logging_json_file import records
from transom_logging_json_file.writing import PREFIX, escape, stamp


class JsonLines(Format):
    """One JSON object a line.

    Args:
        attrs: each record's "attrs" as JSON, or nothing; readers need none.
    """

    def __init__(self, attrs: bytes = b"") -> None:
        middle = b'"attrs":' + attrs + b"," if attrs else b""
        self._middles = {
            stream: b'","stream":"%s",%s"time":"' % (stream.name.lower().encode(), middle) for stream in Stream
        }

    def encode(self, chunk: Chunk) -> Sequence[bytes]:
        if not chunk.data:
            return ()
        last = self._middles[chunk.stream] + stamp(chunk.time) + b'"}\n'
        end = b"\\n" + last
        body = escape(chunk.data.removesuffix(b"\n")).replace(b"\n", end + PREFIX)
        return PREFIX, body, end if chunk.data.endswith(b"\n") else last

    def boundary(self, data: bytes, at: int, least: int) -> int:
        return data.find(b"\n", max(at, least - 1)) + 1 or len(data)

    def count(self, data: bytes, at: int) -> int:
        return data.count(b"\n", at)

    def complete(self, data: bytes) -> int:
        return data.rfind(b"\n") + 1

    def whole(self, fd: int, size: int) -> int:
        return records.whole(fd, size)

    def parse(self, block: bytes, offset: int, *, runs: bool) -> Iterator[Record | Damage]:
        return records.parse(block, offset, runs=runs)

    def backwards(self, fd: int, end: int) -> Iterator[Record]:
        return records.backwards(fd, end)

    def first(self, fd: int, offset: int) -> Record | None:
        return records.first(fd, offset)
