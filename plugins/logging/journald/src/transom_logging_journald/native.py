"""The journal's native protocol (https://systemd.io/JOURNAL_NATIVE_PROTOCOL)."""

from __future__ import annotations

import array
import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from transom.contract.logging import Chunk, LogContainer, Stream
from transom.services.endpoints import DatagramSink

PRIORITIES = {Stream.STDOUT: 6, Stream.STDERR: 3}
"""syslog's Informational and Error, as Docker has them."""
# fcntl(2); the module has these from Python 3.12 on.
_ADD_SEALS, _ALL_SEALS = 1033, 0x1 | 0x2 | 0x4 | 0x8


class Messages:
    """Makes the entries of one container; fields are Docker's."""

    def __init__(self, container: LogContainer, *, tag: str, attrs: Mapping[str, str]) -> None:
        fields = {field_name(name): value for name, value in attrs.items()}
        fields |= {
            "CONTAINER_ID": container.id[:12],
            "CONTAINER_ID_FULL": container.id,
            "CONTAINER_NAME": container.name,
            "CONTAINER_TAG": tag,
            "IMAGE_NAME": container.image_name,
            "SYSLOG_IDENTIFIER": tag,
        }
        self._common = b"".join([field(name, value) for name, value in fields.items() if name])

    def each(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """Return an entry for each line, or fragment of a line."""
        found = []
        for chunk in chunks:
            head = self._common + b"PRIORITY=%d\nSYSLOG_TIMESTAMP=%s\n" % (PRIORITIES[chunk.stream], stamp(chunk.time))
            if chunk.partial is not None:
                head += field("CONTAINER_PARTIAL_MESSAGE", "true") + field("CONTAINER_PARTIAL_ID", chunk.partial.id)
                head += field("CONTAINER_PARTIAL_ORDINAL", str(chunk.partial.ordinal))
                head += field("CONTAINER_PARTIAL_LAST", str(chunk.partial.last).lower())
            head += b"MESSAGE="
            found += [head + line + b"\n" for line in chunk.data.removesuffix(b"\n").split(b"\n")]
        return found


def field(name: str, value: str) -> bytes:
    """Write a field; one with a newline goes behind its length."""
    data = value.encode(errors="surrogateescape")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def field_name(text: str) -> str:
    """Return a name that the journal takes: capitals, digits and underscores, not at the start, 64 at most."""
    return re.sub(r"[^A-Z0-9]", "_", text.upper()).lstrip("_0123456789")[:64]


def stamp(nanoseconds: int) -> bytes:
    """Write a time as RFC 3339 wants it, with nanoseconds."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:09d}Z".encode()


class JournalSink(DatagramSink):
    """A datagram socket; what is too large for one goes as the descriptor of a sealed file."""

    def post(self, message: bytes) -> None:
        try:
            super().post(message)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._pass(message)

    def _pass(self, message: bytes) -> None:
        assert self._socket is not None
        fd = os.memfd_create("journal entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(message)
            while view:
                view = view[os.write(fd, view) :]
            fcntl.fcntl(fd, _ADD_SEALS, _ALL_SEALS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            while True:
                try:
                    self._socket.sendmsg([b""], rights)
                    return
                except TimeoutError:
                    if self.aborted:
                        raise
        finally:
            os.close(fd)
