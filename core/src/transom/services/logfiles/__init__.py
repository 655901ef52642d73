"""A container's log in rotated files: what every driver of that sort shares, whatever its records look like.

A driver says what its records are by a `Format`; `transom.services.logfiles.writer` and `.reader` do the rest: one
write(2) per batch, rotation that loses no line at whatever point it is interrupted, compression beside the writer,
followers that pass rotations, ``tail`` from the end and ``since`` by bisection, damage that costs what is damaged.

The files are PATH, which is being written, and PATH.1, PATH.2 ... behind it (with .gz when compressed), the smallest
number being the newest. The writer holds a lock on the current file (`transom.services.logfiles.lock`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Annotated

import msgspec

from transom.contract.logging import Chunk, Stream
from transom.services.logattrs import ATTR_DOCS, AttrOptions
from transom.services.options import DecimalBound

LONGEST = 1 << 24
"""What is longer than this and no whole record is damage; it bounds memory."""
FULL = "free space on the file system, or bound the log with max-size and max-file"
FILE_DOCS = ATTR_DOCS | {
    "max-size": "A file that has this size is rotated before the next record; decimal units, -1 is without bound.",
    "max-file": "How many files there may be, the current one among them; the oldest is removed.",
    "compress": "Compress rotated files with gzip.",
}


class FileOptions(AttrOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Docker's options for files; None leaves the choice to the driver."""

    max_size: DecimalBound | None = None
    max_file: Annotated[int, msgspec.Meta(ge=1)] | None = None
    compress: bool | None = None

    def __post_init__(self) -> None:
        if self.max_size is not None and self.max_size < 1 and self.max_size != -1:
            raise ValueError("max-size must be a positive number, or -1 for no bound")


class Record(msgspec.Struct, frozen=True, gc=False):
    """One record, or a run of them that differ in their data only, from `offset` to before `end`.

    `last` is None where the format does not keep whether a piece without a newline ends its line.
    """

    offset: int
    end: int
    stream: Stream
    time: int
    data: bytes
    attrs: dict[str, str] | None = None
    line: str = ""
    ordinal: int = 0
    last: bool | None = None


class Damage(msgspec.Struct, frozen=True, gc=False):
    """Bytes of the file that are no record, from `offset` to before `end`."""

    offset: int
    end: int


class Format(ABC):
    """How records stand in a file, one behind the other."""

    @abstractmethod
    def encode(self, chunk: Chunk) -> Sequence[bytes]:
        """Return pieces that, joined, are the records of the chunk: one for each line or fragment."""

    @abstractmethod
    def boundary(self, data: bytes, at: int, least: int) -> int:
        """Return the first place from `least` on where a record ends; `at` is where one begins."""

    @abstractmethod
    def count(self, data: bytes, at: int) -> int:
        """Count the records from `at` on."""

    @abstractmethod
    def complete(self, data: bytes) -> int:
        """Return how many bytes from the start of `data`, where a record begins, are complete records or damage."""

    @abstractmethod
    def whole(self, fd: int, size: int) -> int:
        """Return the size of a file without an incomplete record at its end."""

    @abstractmethod
    def parse(self, block: bytes, offset: int, *, runs: bool) -> Iterator[Record | Damage]:
        """Read complete records, `offset` being where they stand in the file; with `runs`, many at a time."""

    @abstractmethod
    def backwards(self, fd: int, end: int) -> Iterator[Record]:
        """Read the records before `end`, the newest first; what is damaged is left out."""

    @abstractmethod
    def first(self, fd: int, offset: int) -> Record | None:
        """Return the first whole record from `offset` on, which need not be where one begins."""
