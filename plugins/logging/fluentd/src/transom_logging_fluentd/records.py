"""Records of the forward protocol, packed many at a time (PackedForward).

https://github.com/fluent/fluentd/wiki/Forward-Protocol-Specification-v1 says what they are; the fields are Docker's.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from typing import Any

import msgpack
from fluent.sender import EventTime

from transom.contract.logging import Chunk, LogContainer
from transom.services.spool import Entry


class _Heads(dict[int, bytes]):
    """What stands before a line, by the line's length: all of its record, and the head of a MessagePack string."""

    def __init__(self, record: bytes) -> None:
        super().__init__()
        self._record = record

    def __missing__(self, length: int) -> bytes:
        mark, size = (b"\xda", 2) if length < 1 << 16 else (b"\xdb", 4)
        head = self[length] = self._record + mark + length.to_bytes(size, "big")
        return head


class Records:
    """Makes the messages of one container.

    Args:
        tag: of all its records.
        attrs: fields that the log options select.
        precise: times with nanoseconds, else in seconds.
    """

    def __init__(self, *, tag: str, container: LogContainer, attrs: Mapping[str, str], precise: bool) -> None:
        self._tag, self._precise, self._id = msgpack.packb(tag), precise, container.id
        self._fields = {"container_id": container.id, "container_name": f"/{container.name}"}
        self._attrs = dict(attrs)

    def message(self, entry: Entry, *, acknowledge: bool) -> tuple[bytes, str]:
        """Return the message for an entry, and the id of its chunk: the same whenever it is sent."""
        records = b"".join([self._pack(chunk) for chunk in entry.chunks])
        count = sum([chunk.data.removesuffix(b"\n").count(b"\n") + 1 for chunk in entry.chunks])
        options: dict[str, Any] = {"size": count}
        chunk_id = ""
        if acknowledge:
            identity = f"{self._id} {entry.sequence} {entry.until} {entry.chunks[0].time}"
            chunk_id = base64.b64encode(hashlib.sha256(identity.encode()).digest()[:16]).decode()
            options["chunk"] = chunk_id
        head = b"\x93" + self._tag + b"\xc6" + len(records).to_bytes(4, "big")
        message: bytes = head + records + msgpack.packb(options)
        return message, chunk_id

    def _pack(self, chunk: Chunk) -> bytes:
        lines = chunk.data.removesuffix(b"\n").split(b"\n")
        pieces = [b""] * (2 * len(lines))
        # Slices are filled without a step of the interpreter for each line.
        pieces[::2] = map(_Heads(self._head(chunk)).__getitem__, map(len, lines))
        pieces[1::2] = lines
        return b"".join(pieces)

    def _head(self, chunk: Chunk) -> bytes:
        """Pack all of a record but the text of the line, which comes last."""
        fields = {**self._attrs, **self._fields, "source": chunk.stream.name.lower()}
        if chunk.partial is not None:
            fields |= {
                "partial_message": "true",
                "partial_id": chunk.partial.id,
                "partial_ordinal": str(chunk.partial.ordinal),
                "partial_last": str(chunk.partial.last).lower(),
            }
        fields.pop("log", None)
        seconds = chunk.time // 1_000_000_000
        time = EventTime.from_unix_nano(chunk.time) if self._precise else seconds
        pairs = b"".join([msgpack.packb(name) + msgpack.packb(value) for name, value in fields.items()])
        packed: bytes = b"\x92" + msgpack.packb(time) + b"\xde" + (len(fields) + 1).to_bytes(2, "big") + pairs
        return packed + b"\xa3log"
