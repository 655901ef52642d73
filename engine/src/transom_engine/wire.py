"""What a command and a container's supervisor say to each other over a unix stream socket.

Every message is a frame: one byte of type, four of length (big-endian), the payload. A connection begins with
one REQUEST; the supervisor answers with a REPLY, and for an attachment or an exec with the streams, until EXIT.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

import msgspec

from transom.errors import DriverError
from transom_engine.model import LogStatus

STDIN, STDOUT, STDERR, REQUEST, REPLY, RESIZE, EXIT, STDIN_END = range(8)

HEADER = struct.Struct(">BI")
_LARGEST = 1 << 24


class Request(msgspec.Struct, omit_defaults=True):
    """What a command asks of the supervisor.

    `do` is one of ``attach``, ``exec``, ``signal``, ``stop``, ``wait``, ``reload``, ``logs`` (say what became of the
    output), ``rotate``, ``flush``, ``reopen`` (the logs, with the options now on record). The other fields belong to
    some of these: see the supervisor.
    """

    do: str
    stdin: bool = False
    output: bool = True
    signal: int = 0
    timeout: float = 0
    process: dict[str, Any] | None = None
    tty: bool = False
    detach: bool = False
    rows: int = 0
    columns: int = 0
    id: str = ""


class Reply(msgspec.Struct, omit_defaults=True):
    """The supervisor's answer: `error` empty when it is done or under way; `code` is the exit code to use."""

    error: str = ""
    code: int = 0
    pid: int = 0
    logs: list[LogStatus] = []


class Exit(msgspec.Struct, omit_defaults=True):
    """How a process ended: its exit code, 128 + N when signal N killed it; or why it never ran."""

    code: int
    error: str = ""


# Made at import: msgspec crashes when two threads meet a type for the first time at once.
_REPLIES, _EXITS = msgspec.json.Decoder(Reply), msgspec.json.Decoder(Exit)


def frame(kind: int, payload: bytes | msgspec.Struct = b"") -> bytes:
    """Make a frame; a structure becomes JSON."""
    data = payload if isinstance(payload, bytes) else msgspec.json.encode(payload)
    return HEADER.pack(kind, len(data)) + data


class Frames:
    """Cuts what arrives on a socket into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """Take what was read and return the frames that are complete now."""
        buffer, complete = self._buffer, []
        buffer += data
        while len(buffer) >= HEADER.size:
            kind, length = HEADER.unpack_from(buffer)
            if length > _LARGEST:
                raise ValueError(f"a frame of {length} bytes is too long")
            end = HEADER.size + length
            if len(buffer) < end:
                break
            complete.append((kind, bytes(buffer[HEADER.size : end])))
            del buffer[:end]
        return complete


class Connection:
    """A command's end of a connection to a supervisor."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket, self._frames, self._pending = sock, Frames(), list[tuple[int, bytes]]()

    @classmethod
    def to(cls, path: str) -> Connection:
        """Connect to the supervisor whose socket is at `path`, a path of any length.

        Raises:
            OSError: nobody listens there.
        """
        # A unix address holds 107 bytes (unix(7)): go by a descriptor of the directory.
        directory = os.open(os.path.dirname(path), os.O_PATH | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{os.path.basename(path)}")
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(directory)
        return cls(sock)

    def send(self, kind: int, payload: bytes | msgspec.Struct = b"") -> None:
        """Send one frame."""
        self.socket.sendall(frame(kind, payload))

    def receive(self) -> tuple[int, bytes] | None:
        """Return the next frame; None when the supervisor has closed the connection or is dead."""
        while not self._pending:
            try:
                data = self.socket.recv(1 << 16)
            except ConnectionResetError:
                data = b""
            if not data:
                return None
            self._pending = self._frames.feed(data)
        return self._pending.pop(0)

    @property
    def buffered(self) -> bool:
        """Whether `receive` would return without reading the socket."""
        return bool(self._pending)

    def ask(self, request: Request) -> Reply:
        """Send a request and wait for the reply.

        Raises:
            DriverError: the supervisor died before it answered.
        """
        try:
            self.send(REQUEST, request)
        except BrokenPipeError:
            pass  # what it said before it died can still be read
        while (received := self.receive()) is not None:
            if received[0] == REPLY:
                return _REPLIES.decode(received[1])
        raise DriverError(request.do, driver="supervisor", cause="it died before it answered", hint="try again")

    def wait_exit(self) -> Exit | None:
        """Read on until the process has ended; None when the supervisor died."""
        while (received := self.receive()) is not None:
            if received[0] == EXIT:
                return _EXITS.decode(received[1])
        return None

    def close(self) -> None:
        """Hang up."""
        self.socket.close()
