"""The standard streams of a process as its supervisor handles them: pipes or a terminal, lines for the log."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Sequence

from transom.contract.logging import Chunk, Partial, Stream

READ_SIZE = 1 << 20
FRAGMENT = 16384
"""The longest piece of a line that a log driver gets, in bytes: Docker's limit."""
_PIPE_SIZE = 1 << 20


def pipe() -> tuple[int, int]:
    """Make a pipe with room for 1 MiB, where the system's limit allows it: fewer, larger batches."""
    ends = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    except OSError:
        pass  # /proc/sys/fs/pipe-max-size is lower
    return ends


def read(fd: int) -> bytes | None:
    """Read what is there; None at the end. A terminal whose last process is gone reads as EIO."""
    try:
        return os.read(fd, READ_SIZE) or None
    except BlockingIOError:
        return b""
    except OSError:
        return None


class Splitter:
    """Cuts one stream's bytes into the chunks that log drivers take: complete lines, and fragments of long ones."""

    def __init__(self, stream: Stream) -> None:
        self._stream, self._rest = stream, b""
        self._line, self._ordinal, self._since = "", 0, 0

    def feed(self, data: bytes) -> list[Chunk]:
        """Take what was read just now."""
        now = time.time_ns()
        data = self._rest + data
        end = data.rfind(b"\n") + 1
        lines, self._rest = data[:end], data[end:]
        chunks = list(self._lines(lines, now)) if lines else []
        while len(self._rest) >= FRAGMENT:
            piece = _whole_characters(self._rest[:FRAGMENT])
            self._rest = self._rest[len(piece) :]
            chunks.append(self._fragment(piece, now, last=False))
        return chunks

    def finish(self) -> list[Chunk]:
        """Return what the stream ended with, a last line without a newline."""
        rest, self._rest = self._rest, b""
        if not rest:
            return []
        now = time.time_ns()
        return [self._fragment(rest, now, last=True) if self._line else Chunk(self._stream, now, rest)]

    def _lines(self, lines: bytes, now: int) -> Sequence[Chunk]:
        if not self._line and _none_longer(lines):
            return [Chunk(self._stream, now, lines)]
        pieces = [line + b"\n" for line in lines.split(b"\n")[:-1]]  # splitlines() would split at \r too
        chunks: list[Chunk] = []
        plain: list[bytes] = []

        def flush() -> None:
            if plain:
                chunks.append(Chunk(self._stream, now, b"".join(plain)))
                plain.clear()

        for line in pieces:
            if not self._line and len(line) <= FRAGMENT:
                plain.append(line)
                continue
            flush()
            while len(line) > FRAGMENT:
                piece = _whole_characters(line[:FRAGMENT])
                line = line[len(piece) :]
                chunks.append(self._fragment(piece, now, last=False))
            chunks.append(self._fragment(line, now, last=True))
        flush()
        return chunks

    def _fragment(self, piece: bytes, now: int, *, last: bool) -> Chunk:
        if not self._line:
            self._line, self._ordinal, self._since = os.urandom(16).hex(), 0, now
        self._ordinal += 1
        chunk = Chunk(
            self._stream, self._since, piece, partial=Partial(id=self._line, ordinal=self._ordinal, last=last)
        )
        if last:
            self._line = ""
        return chunk


def _none_longer(lines: bytes) -> bool:
    """Say whether no line is longer than a fragment, looking at one newline in each piece of that length only."""
    at, size = 0, len(lines)
    while size - at > FRAGMENT:
        end = lines.rfind(b"\n", at, at + FRAGMENT)
        if end < 0:
            return False
        at = end + 1
    return True


def _whole_characters(piece: bytes) -> bytes:
    """Shorten a piece by the start of a UTF-8 sequence that it would cut (RFC 3629, 3)."""
    for back in range(1, 4):
        byte = piece[-back]
        if byte & 0xC0 == 0x80:  # a continuation: the lead is further left
            continue
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return piece[:-back] if length > back else piece
    return piece
