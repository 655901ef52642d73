"""GELF 1.1: messages, their chunks, and the sink for an address (https://go2docs.graylog.org, "GELF")."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from transom.contract.logging import Chunk, LogContainer, Stream
from transom.services.endpoints import DatagramSink, Sink, StreamSink

if TYPE_CHECKING:
    from transom_logging_gelf import GelfOptions

LEVELS = {Stream.STDOUT: 6, Stream.STDERR: 3}
"""syslog's Informational and Error, as Docker has them."""
CHUNK = 1420
"""Bytes of a datagram, its head included: what fits into most paths unfragmented; Docker's number."""
MAGIC = b"\x1e\x0f"
MOST_CHUNKS = 128
_WINDOW = {"gzip": 31, "zlib": 15}


class Messages:
    """Makes the messages of one container."""

    def __init__(self, container: LogContainer, *, tag: str, attrs: Mapping[str, str]) -> None:
        created = datetime.fromtimestamp(container.created / 1e9, UTC).isoformat(timespec="milliseconds")
        extra = {
            **{re.sub(r"[^\w.-]", "_", name): value for name, value in attrs.items() if name != "id"},
            "container_id": container.id,
            "container_name": container.name,
            "image_id": container.image_id,
            "image_name": container.image_name,
            "command": " ".join(container.command),
            "tag": tag,
            "created": created.replace("+00:00", "Z"),
        }
        fields = {"version": "1.1", "host": container.hostname or socket.gethostname()}
        fields |= {f"_{name}": _clean(value) for name, value in extra.items()}
        self._head = msgspec.json.encode(fields)[:-1]

    def each(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """Return a message for each line, or fragment of a line."""
        found = []
        encode = msgspec.json.encode
        for chunk in chunks:
            seconds, rest = divmod(chunk.time, 1_000_000_000)
            level = LEVELS[chunk.stream]
            # The fraction has as many digits as GELF asks for, and as a double holds.
            head = self._head + b',"timestamp":%d.%03d,"level":%d,"short_message":' % (seconds, rest // 10**6, level)
            text = _clean(chunk.data.removesuffix(b"\n").decode(errors="surrogateescape"))
            found += [head + encode(line or " ") + b"}" for line in text.split("\n")]
        return found

    def framed(self, chunks: list[Chunk]) -> bytes:
        """Return the messages for a stream, a zero byte behind each."""
        return b"".join([message + b"\0" for message in self.each(chunks)])


def sink(options: GelfOptions, messages: Messages) -> Sink:
    """Return the sink for the options."""
    address = options.address()
    if address.scheme == "tcp":
        return StreamSink(address, encode=messages.framed)
    kind = options.gelf_compression_type or "gzip"
    level = 1 if options.gelf_compression_level is None else options.gelf_compression_level

    def datagrams(chunks: list[Chunk]) -> list[bytes]:
        return [part for message in messages.each(chunks) for part in split(compress(message, kind, level))]

    return DatagramSink(address, encode=datagrams)


def compress(data: bytes, kind: str, level: int) -> bytes:
    """Compress a message as ``gelf-compression-type`` says."""
    if kind == "none":
        return data
    packer = zlib.compressobj(level, zlib.DEFLATED, _WINDOW[kind])
    return packer.compress(data) + packer.flush()


def split(message: bytes) -> list[bytes]:
    """Cut a message into datagrams: magic, id, number and count before each part, where it takes more than one."""
    if len(message) <= CHUNK:
        return [message]
    size = CHUNK - 12
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    if len(parts) > MOST_CHUNKS:  # only escapes of escapes make so much of one line
        size = -(-len(message) // MOST_CHUNKS)
        parts = [message[at : at + size] for at in range(0, len(message), size)]
    name = os.urandom(8)
    return [MAGIC + name + bytes((number, len(parts))) + part for number, part in enumerate(parts)]


def _clean(text: str) -> str:
    """Bytes that are not UTF-8 arrive as surrogates (PEP 383): one U+FFFD for each."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
