"""Reading compressed streams by their first bytes, with one kind of error for all of them."""

from __future__ import annotations

import io
from typing import IO, Any

from transom.errors import DriverError

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_BUFFER = 1 << 20


def detect(head: bytes) -> str:
    """Name the compression that a stream beginning so has: gzip, zstd, bzip2, xz, or empty for none."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


class Head(io.RawIOBase):
    """A stream whose first bytes are read already and come again; it need not be seekable."""

    def __init__(self, source: IO[bytes], *, length: int = 6) -> None:
        self._source = source
        self.head = b""
        while len(self.head) < length and (more := source.read(length - len(self.head))):
            self.head += more
        self._rest = self.head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._rest[: len(view)] or self._source.read(len(view))
        self._rest = self._rest[len(view) :]
        view[: len(data)] = data
        return len(data)


def decompress(source: IO[bytes], *, subject: str, kind: str | None = None) -> IO[bytes]:
    """Return the uncompressed content of a stream as a stream.

    Args:
        subject: what to call it in errors.
        kind: its compression, if known already.

    Raises:
        DriverError: from a read: the stream is damaged or cut.
    """
    if kind is None:
        head = Head(source)
        source, kind = io.BufferedReader(head, _BUFFER), detect(head.head)
    return (
        io.BufferedReader(_Decompressed(_open(source, kind), subject=subject, kind=kind), _BUFFER) if kind else source
    )


def _open(source: IO[bytes], kind: str) -> IO[bytes]:
    opened: Any
    if kind == "gzip":
        import gzip

        opened = gzip.GzipFile(fileobj=source, mode="rb")
    elif kind == "bzip2":
        import bz2

        opened = bz2.BZ2File(source, "rb")
    elif kind == "xz":
        import lzma

        opened = lzma.LZMAFile(source, "rb")
    else:
        import zstandard

        opened = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(source, read_across_frames=True)
    return opened  # type: ignore[no-any-return]  # four libraries' file objects, all with read(size)


class _Decompressed(io.RawIOBase):
    def __init__(self, source: IO[bytes], *, subject: str, kind: str) -> None:
        self._source, self._subject, self._kind = source, subject, kind

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import zlib

        view = memoryview(buffer)
        try:
            data = self._source.read(len(view))
        except (OSError, EOFError, zlib.error) as error:
            raise self._damaged(error) from None
        except Exception as error:
            # lzma.LZMAError and zstandard.ZstdError derive from Exception; naming them would import both libraries.
            if type(error).__name__ not in ("LZMAError", "ZstdError"):
                raise
            raise self._damaged(error) from None
        view[: len(data)] = data
        return len(data)

    def _damaged(self, error: Exception) -> DriverError:
        return DriverError(
            "decompress", driver="image layer", subject=self._subject,
            cause=f"the {self._kind} data is damaged: {error}", hint="fetch or make it again",
        )  # fmt: skip
