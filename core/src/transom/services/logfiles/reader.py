"""Reading the files of a container's log back, from the oldest to the one that is being written."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence

from transom.contract.logging import Chunk, Partial, Query, Reader, Stream
from transom.errors import DriverError
from transom.services.logfiles import LONGEST, Damage, Format, Record
from transom.services.logfiles.lock import Holder, holder
from transom.services.logfiles.pack import source_of
from transom.services.logfiles.writer import names

BLOCK = 1 << 20
NEAR = 1 << 16
"""Bisection stops at so many bytes; the rest is read in order."""
FAR = 1000
"""How many older records may stand between two fragments of a line, where the other stream's long lines cut in."""
SHORTEST, LONGEST_WAIT = 0.001, 0.02
"""Seconds between two looks at a file that nobody wrote to; they double from the first to the second."""

Position = tuple[int, int]
"""Which file, counted from the oldest that was there when reading began, and where in it."""


class File:
    """One file of the log; its descriptor holds the data, whatever becomes of its name.

    `source` is the identity of the file that a compressed one was made from. `generation` is None where nobody wrote
    to the log when it was opened. `lost` is how many files before this one were removed before they could be opened.
    """

    def __init__(self, fd: int, *, packed: bool = False) -> None:
        self.fd, self._packed = fd, packed
        self.identity = _identity(os.fstat(fd))
        self.source = (self.identity[0], source_of(os.pread(fd, 64, 0))) if packed else None
        self.generation: int | None = None
        self.lost = 0

    def plain(self) -> int:
        """Return a descriptor of the data; a compressed file is expanded at its first use."""
        if self._packed:
            expanded = _expand(self.fd)
            os.close(self.fd)
            self.fd, self._packed = expanded, False
        return self.fd

    def size(self) -> int:
        return os.fstat(self.plain()).st_size

    def close(self) -> None:
        os.close(self.fd)


class FileReader(Reader):
    """A position in the log at `path`, with records in `format`; see `Query` for what is read."""

    def __init__(self, *, driver: str, path: str, format: Format, query: Query) -> None:
        self._driver, self._path, self._format, self._query = f"logging {driver}", path, format, query
        self._files = chain(path)
        self._index, self._at, self._end = 0, 0, None if query.follow else 0
        self._started = query.since is None
        self._starts: dict[Stream, Position] = {}
        self._damage: Damage | None = None
        self._time = 0
        try:
            if self._files and not query.follow:
                self._end = self._whole(self._files[-1])
            self._begin()
        except BaseException:
            self.close()
            raise

    def next(self, timeout: float | None) -> Sequence[Chunk] | None:
        deadline = None if timeout is None else time.monotonic() + timeout
        wait = SHORTEST
        while True:
            try:
                chunks = self._step()
            except OSError as error:
                raise DriverError("read", driver=self._driver, subject=self._path, cause=error) from error
            if chunks is None or chunks:
                return chunks
            until = self._query.until
            if until is not None and time.time_ns() > until:
                self.close()
                return None
            left = wait if deadline is None else min(wait, deadline - time.monotonic())
            if left <= 0:
                return []
            time.sleep(left)
            wait = min(wait * 2, LONGEST_WAIT)

    def close(self) -> None:
        while self._files:
            self._files.pop().close()

    def _step(self) -> list[Chunk] | None:
        """Return what can be read now: chunks, nothing yet, or None at the end of the log."""
        while self._files:
            file = self._files[0]
            if self._query.follow:
                self._look()
            alive = len(self._files) == 1 and self._query.follow and self._alive(file)
            chunks = Chunks()
            if file.lost:
                chunks.notice(f"{file.lost} rotated files of the log were removed before they were read", self._time)
                file.lost = 0
            if self._read(file, chunks):
                if chunks.done:
                    return chunks.done
                continue
            if self._damage is not None:  # nothing follows for now: say it now
                self._report(chunks)
                return chunks.done
            if alive:
                return []
            if len(self._files) == 1 and self._query.follow and self._look():
                continue
            if self._torn(file):
                self._damage = Damage(offset=self._at, end=file.size())
                self._report(chunks)
            self._files.pop(0).close()
            self._index, self._at = self._index + 1, 0
            if chunks.done:
                return chunks.done
        return None

    def _torn(self, file: File) -> bool:
        """Say whether a record at the end of the file stays incomplete."""
        rest = os.pread(file.plain(), NEAR, self._at)
        return bool(rest) and not self._format.complete(rest) and not self._alive(file)

    def _whole(self, file: File) -> int:
        return self._format.whole(file.plain(), file.size())

    def _alive(self, file: File) -> bool:
        writer = holder(file.fd)
        if writer is not None:
            file.generation = writer.generation
        return writer is not None

    def _read(self, file: File, chunks: Chunks) -> bool:
        """Read on in the file; return whether that brought anything."""
        block = self._block(file)
        if not block:
            return False
        offset, self._at = self._at, self._at + len(block)
        careful = bool(self._starts) and (self._index, offset) < max(self._starts.values())
        for item in self._format.parse(block, offset, runs=not careful):
            if isinstance(item, Damage):
                self._damage = item if self._damage is None else Damage(offset=self._damage.offset, end=item.end)
                continue
            if self._query.until is not None and item.time > self._query.until:
                self.close()
                break
            if self._selected(item):
                self._time = item.time
                self._report(chunks)
                chunks.add(item)
        chunks.flush()
        return True

    def _selected(self, record: Record) -> bool:
        if not self._started:
            if record.time < (self._query.since or 0):
                self._damage = None
                return False
            self._started = True
        if record.stream not in self._query.streams:
            return False
        return not self._starts or (self._index, record.offset) >= self._starts[record.stream]

    def _report(self, chunks: Chunks) -> None:
        if self._damage is not None:
            chunks.notice(
                f"{self._damage.end - self._damage.offset} bytes of the log are damaged and were skipped "
                f"(from byte {self._damage.offset} of the file)",
                self._time,
            )
            self._damage = None

    def _block(self, file: File) -> bytes:
        """Return whole lines from the present position on; nothing when there is none yet."""
        size, fd = BLOCK, file.plain()
        end = self._end if self._end is not None and len(self._files) == 1 else file.size()
        if end < self._at and self._end is None:  # someone truncated the file: what is in it now is new
            self._at, self._starts = 0, {}
        while True:
            data = os.pread(fd, min(size, end - self._at), self._at) if end > self._at else b""
            cut = self._format.complete(data)
            if cut:
                return data[:cut]
            if len(data) < size:
                return b""
            if size >= LONGEST:  # no record: go on behind it
                self._damage = Damage(offset=self._damage.offset if self._damage else self._at, end=self._at + size)
                self._at += size
            size = min(size * 4, LONGEST)

    def _look(self) -> bool:
        """Open the files that came after the newest that is open; return whether there are any."""
        newest = self._files[-1]
        try:
            if _identity(os.stat(self._path)) == newest.identity:
                return False
        except FileNotFoundError:
            return False
        more = chain(self._path, after=newest)
        self._files += more
        return bool(more)

    def _begin(self) -> None:
        """Go to where the query wants to begin; files before it are closed."""
        query = self._query
        if not self._files:
            return
        if query.since is not None:
            self._seek(query.since)
        if query.tail is not None:
            self._tail(query.tail)

    def _drop(self, count: int) -> None:
        for file in self._files[:count]:
            file.close()
        del self._files[:count]
        self._index += count

    def _seek(self, since: int) -> None:
        """Skip what is surely older, by bisection; it trusts that time did not run backwards."""
        for number in range(len(self._files) - 1, -1, -1):
            first = self._format.first(self._files[number].plain(), 0)
            if first is not None and first.time < since:
                self._drop(number)
                self._at = _bisect(self._format, self._files[0].plain(), since)
                return

    def _tail(self, count: int) -> None:
        """Set for each stream where the last `count` lines begin.

        A line counts where it ends. Its fragments share one time, so after many older records there are no more of
        them: a stream that wrote one line only does not make us read the whole log.
        """
        last = len(self._files) - 1
        end = (self._index + last, self._whole(self._files[-1]) if self._end is None else self._end)
        starts, gathering = dict.fromkeys(Stream, end), dict[Stream, int]()
        seen = set[Stream]()
        left, older = count, 0
        for position, record in self._backwards(end) if count else ():
            stream = record.stream
            if stream in self._query.streams:
                if record.last or record.data.endswith(b"\n") or stream not in seen:
                    gathering.pop(stream, None)
                    if left:
                        left -= 1
                        gathering[stream], starts[stream] = record.time, position
                elif stream in gathering:
                    starts[stream] = position
                seen.add(stream)
            if not left:
                older = older + 1 if gathering and record.time < min(gathering.values()) else 0
                if not gathering or older > FAR:
                    break
        self._starts = starts
        begin = min(starts.values())
        self._drop(begin[0] - self._index)
        self._at = begin[1]

    def _backwards(self, end: Position) -> Iterator[tuple[Position, Record]]:
        """Read the records of the query's period, the newest first."""
        first, stop = self._index, end[1]
        for index in range(end[0], first - 1, -1):
            file = self._files[index - first]
            stop = end[1] if index == end[0] else file.size()
            for record in self._format.backwards(file.plain(), stop):
                if index == first and record.offset < self._at:
                    return
                if self._query.since is not None and record.time < self._query.since:
                    return
                if self._query.until is None or record.time <= self._query.until:
                    yield (index, record.offset), record


def chain(path: str, *, after: File | None = None) -> list[File]:
    """Open the files of the log, the oldest first; with `after`, those that came after it.

    A writer that rotates meanwhile makes the names mean other files: then all is done again.
    """
    while True:
        fd = _open(path)
        if fd is None:
            return []
        files = [File(fd)]
        before = holder(fd)
        try:
            if before is None or not before.rotating:
                lost = _older(path, files, before, after)
                if _identity(os.stat(path)) == files[0].identity and holder(fd) == before:
                    files[0].generation = before.generation if before else None
                    files[-1].lost = lost
                    return files[::-1]
        except FileNotFoundError:
            pass
        except BaseException:
            _close(files)
            raise
        _close(files)
        time.sleep(0.0002)


def _older(path: str, files: list[File], writer: Holder | None, after: File | None) -> int:
    """Add the rotated files, the newest first; return how many that came after `after` are not there any more."""
    missing = None
    if after is not None and after.generation is not None and writer is not None:
        missing = writer.generation - after.generation - 1
    for number in _numbers(path):
        if missing is not None and missing <= 0:
            return 0
        plain, packed = names(path, number)
        fd = _open(plain)
        file = File(fd) if fd is not None else None
        if file is None and (fd := _open(packed)) is not None:
            file = File(fd, packed=True)
        if file is None:
            continue
        if after is not None and after.identity in (file.identity, file.source):
            file.close()
            return 0
        if any(file.identity == other.identity for other in files):  # a crash left one file with two names
            file.close()
            continue
        files.append(file)
        if missing is not None:
            missing -= 1
    return missing or 0


def _close(files: list[File]) -> None:
    for file in files:
        file.close()


def _numbers(path: str) -> list[int]:
    """List the numbers of rotated files, the newest first."""
    directory, name = os.path.split(path)
    pattern = re.compile(re.escape(name) + r"\.([1-9]\d*)(?:\.gz)?")
    return sorted({int(match[1]) for entry in os.listdir(directory) if (match := pattern.fullmatch(entry))})


def _open(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _expand(fd: int) -> int:
    """Return a descriptor of what the compressed file holds; of a damaged one, what can be had."""
    import gzip
    import tempfile
    import zlib

    with (
        os.fdopen(os.dup(fd), "rb") as packed,
        gzip.GzipFile(fileobj=packed) as archive,
        tempfile.TemporaryFile() as target,
    ):
        try:
            while block := archive.read(BLOCK):
                target.write(block)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            target.write(b"\0")  # an incomplete record at the end, which readers report
        target.flush()
        return os.dup(target.fileno())


def _bisect(format: Format, fd: int, since: int) -> int:
    """Return a place before which everything is older than `since`, near to the first that is not."""
    low, high = 0, os.fstat(fd).st_size
    while high - low > NEAR:
        middle = (low + high) // 2
        record = format.first(fd, middle)
        if record is not None and record.time < since:
            low = record.offset
        else:
            high = middle
    return low


class Chunks:
    """Gathers records into chunks: neighbours of equal stream, time and attributes become one."""

    def __init__(self) -> None:
        self.done: list[Chunk] = []
        self._like: Record | None = None
        self._data: list[bytes] = []

    def add(self, record: Record) -> None:
        like = self._like
        if (
            like is None
            or like.time != record.time
            or like.stream is not record.stream
            or like.attrs != record.attrs
            or not record.data.endswith(b"\n")
            or not self._data[-1].endswith(b"\n")
            or record.line
        ):
            self.flush()
            self._like = record
        self._data.append(record.data)

    def flush(self) -> None:
        if self._like is not None:
            like = self._like
            partial = Partial(like.line, like.ordinal, bool(like.last)) if like.line else None
            self.done.append(Chunk(like.stream, like.time, b"".join(self._data), partial, like.attrs))
        self._like, self._data = None, []

    def notice(self, text: str, time: int) -> None:
        """Put in a word of ours, as the contract wants it where a part of the log cannot be read."""
        self.flush()
        self.done.append(Chunk(stream=Stream.STDERR, time=time, data=f"transom: {text}\n".encode()))
