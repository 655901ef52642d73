"""A log driver that keeps a container's output in an SQLite database, a row for each line."""

import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from itertools import groupby

import msgspec

from transom.contract.logging import (
    Chunk,
    LogCapability,
    LogContainer,
    Logging,
    LogStats,
    Partial,
    Query,
    Reader,
    Stream,
    Writer,
)
from transom.errors import DriverError

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS piece (
        id INTEGER PRIMARY KEY, time INTEGER NOT NULL, stream INTEGER NOT NULL, data BLOB NOT NULL,
        line TEXT, ordinal INTEGER, last INTEGER
    )
"""
_COLUMNS = "id, time, stream, data, line, ordinal, last"
_BATCH = 1000
_PAUSE = 0.05
"""Seconds between two looks at the database of a reader that follows."""

Row = tuple[int, int, int, bytes, str | None, int | None, int | None]


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """What ``--log-opt`` accepts."""

    max_lines: int = 0


class Sqlite(Logging):
    """A database for each container, in the directory that core gives and removes."""

    name = "sqlite"
    api = 1
    capabilities = frozenset({LogCapability.READ, LogCapability.FRAGMENTS})
    Options = Options
    option_docs = {"max-lines": "how many lines to keep; the oldest go first; 0 keeps all"}

    def open(self, container: LogContainer) -> Writer:
        """Open the database; the lock tells readers that somebody writes, and goes with the process."""
        try:
            lock = os.open(f"{container.directory}/sqlite.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            fcntl.flock(lock, fcntl.LOCK_SH)
            return SqliteWriter(_connect(container), lock, self.options.max_lines)
        except (OSError, sqlite3.Error) as error:
            raise DriverError("open", driver="logging sqlite", subject=container.name, cause=error) from error

    def read(self, container: LogContainer, query: Query) -> Reader:
        """Open the database for reading; a container that has not written gets an empty one."""
        try:
            lock = os.open(f"{container.directory}/sqlite.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            return SqliteReader(_connect(container), lock, query)
        except (OSError, sqlite3.Error) as error:
            raise DriverError("read", driver="logging sqlite", subject=container.name, cause=error) from error


def _connect(container: LogContainer) -> sqlite3.Connection:
    """Open the database; with a write-ahead log neither side waits for the other (sqlite.org, wal.html)."""
    path = f"{container.directory}/log.sqlite"
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


class SqliteWriter(Writer):
    """One container's open log; a batch is a transaction."""

    def __init__(self, connection: sqlite3.Connection, lock: int, max_lines: int) -> None:
        self._connection, self._lock, self._max_lines, self._taken = connection, lock, max_lines, 0

    def write(self, batch: Sequence[Chunk]) -> None:
        """Insert all lines of the batch, or none."""
        rows = [row for chunk in batch for row in _rows(chunk)]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(
                    "INSERT INTO piece (time, stream, data, line, ordinal, last) VALUES (?, ?, ?, ?, ?, ?)", rows
                )
                if self._max_lines:
                    bound = "DELETE FROM piece WHERE id <= (SELECT max(id) FROM piece) - ?"
                    self._connection.execute(bound, (self._max_lines,))
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise DriverError("write", driver="logging sqlite", cause=error) from error
        self._taken += sum(last in (None, 1) for *_, last in rows)

    def stats(self) -> LogStats:
        """Everything taken is in the database."""
        return LogStats(taken=self._taken, delivered=self._taken)

    def close(self, timeout: float) -> None:
        """Close the database; nothing waits to be delivered."""
        if self._lock >= 0:
            self._connection.close()
            os.close(self._lock)
            self._lock = -1


def _rows(chunk: Chunk) -> Iterator[tuple[int, int, bytes, str | None, int | None, int | None]]:
    """Cut a chunk into lines; a fragment stays as it is."""
    partial = chunk.partial
    if partial is not None:
        yield chunk.time, chunk.stream, chunk.data, partial.id, partial.ordinal, int(partial.last)
        return
    for line in chunk.data.splitlines(keepends=True) if b"\r" not in chunk.data else _lines(chunk.data):
        yield chunk.time, chunk.stream, line, None, None, None


def _lines(data: bytes) -> list[bytes]:
    """Cut behind newlines only: splitlines() takes a carriage return for one too."""
    parts = [part + b"\n" for part in data.split(b"\n")]
    parts[-1] = parts[-1][:-1]
    return [part for part in parts if part]


class SqliteReader(Reader):
    """A position in a container's log."""

    def __init__(self, connection: sqlite3.Connection, lock: int, query: Query) -> None:
        self._connection, self._lock, self._query = connection, lock, query
        streams = ",".join(str(int(stream)) for stream in query.streams)
        self._where = f"stream IN ({streams}) AND time >= {query.since or 0} AND time <= {query.until or 1 << 62}"
        self._after, self._first = 0, list[Row]()
        if query.tail is not None:
            self._first = self._tail(query.tail)

    def next(self, timeout: float | None) -> Sequence[Chunk] | None:
        """Return rows behind the last ones; when following, wait for them."""
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            # Asked before looking: what a writer wrote before it went is then seen below.
            over = not self._query.follow or self._past() or not self._written()
            if rows := self._first or self._behind():
                self._first = []
                self._after = max(self._after, rows[-1][0])
                return _chunks(rows)
            if over:
                return None
            if end is not None and time.monotonic() >= end:
                return ()
            time.sleep(_PAUSE if end is None else max(0, min(_PAUSE, end - time.monotonic())))

    def _behind(self) -> list[Row]:
        text = f"SELECT {_COLUMNS} FROM piece WHERE id > ? AND {self._where} ORDER BY id LIMIT {_BATCH}"
        return self._connection.execute(text, (self._after,)).fetchall()

    def _tail(self, lines: int) -> list[Row]:
        """Return the pieces of the last so many lines; other lines may stand between the fragments of one."""
        found: list[Row] = []
        begun: dict[str, bool] = {}  # lines in fragments: whether the first has been seen
        for row in self._connection.execute(f"SELECT {_COLUMNS} FROM piece WHERE {self._where} ORDER BY id DESC"):
            self._after = max(self._after, row[0])
            line, ordinal = row[4], row[5]
            if line not in begun:
                if lines <= 0 and all(begun.values()):
                    break
                if lines <= 0:
                    continue
                lines -= 1
            if line is not None:
                begun[line] = ordinal == 1
            found.append(row)
        return found[::-1]

    def _past(self) -> bool:
        return self._query.until is not None and time.time_ns() > self._query.until

    def _written(self) -> bool:
        """Say whether somebody has the log open for writing."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        return False

    def close(self) -> None:
        """Close the database."""
        if self._lock >= 0:
            self._connection.close()
            os.close(self._lock)
            self._lock = -1


def _together(row: Row) -> tuple[object, ...]:
    return (*row[1:3], row[3].endswith(b"\n"), *row[4:])


def _chunks(rows: list[Row]) -> list[Chunk]:
    """Put lines of one stream and moment together again; a fragment stays alone."""
    chunks = []
    for (when, stream, _, line, ordinal, last), group in groupby(rows, key=_together):
        data = b"".join(row[3] for row in group)
        partial = None if line is None else Partial(id=line, ordinal=ordinal or 1, last=bool(last))
        chunks.append(Chunk(stream=Stream(stream), time=when, data=data, partial=partial))
    return chunks
