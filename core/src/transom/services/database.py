"""SQLite databases that many short-lived processes share.

Write-ahead logging with ``synchronous = NORMAL``: no commit is lost when a process dies, and the newest may be lost
when the power fails; who cannot afford that uses `durably`.

SQLite's connections do not survive fork(2): close every one before it (`close`), open again after it.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from transom.errors import ConfigError, DriverError
from transom.services.files import Lock, closing

# SQLite's shared lock (sqlite3's os_unix.c: SHARED_FIRST and SHARED_SIZE; the file format fixes both).
_SHARED = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0x40000002, 510, 0)
_F_OFD_SETLK = 37


def connect(
    path: str | os.PathLike[str], *, schema: str, version: int = 1, upgrades: tuple[str, ...] = ()
) -> sqlite3.Connection:
    """Open a database in autocommit mode; make it, with its directory, when it is missing.

    Args:
        schema: statements that make it; they run once, in one transaction.
        version: of the schema, from 1 on.
        upgrades: statements that make schema 2 of 1, 3 of 2 and so on, each run in one transaction.

    Raises:
        ConfigError: a newer release wrote it.
        DriverError: the file is damaged, or no database.
        sqlite3.OperationalError: it cannot be read or written now.
    """
    path = os.fspath(path)
    os.makedirs(os.path.dirname(path) or ".", mode=0o711, exist_ok=True)
    db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    try:
        found = _version(db)
        if found == 0:
            with Lock(f"{path}.lock"):  # the change to WAL does not wait for others
                if _version(db) == 0:
                    db.execute("PRAGMA journal_mode = WAL")
                    db.executescript(f"BEGIN IMMEDIATE; {schema}; PRAGMA user_version = {version}; COMMIT;")
        elif found > version:
            raise ConfigError(f"{path} is of a newer transom (schema {found}): upgrade, or use another data-root")
        elif found < version:
            with Lock(f"{path}.lock"):
                for n in range(_version(db), version):
                    db.executescript(f"BEGIN IMMEDIATE; {upgrades[n - 1]}; PRAGMA user_version = {n + 1}; COMMIT;")
        db.execute("PRAGMA synchronous = NORMAL")
    except BaseException as error:
        db.close()
        if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.OperationalError):
            raise  # busy, full, read-only: not the file's fault
        hint = "restore it from a backup, or move it away"
        raise DriverError("opening", driver="database", subject=path, cause=error, hint=hint) from error
    return db


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Make the changes inside one, all or none, with the write lock from the start; inside another, part of it."""
    if db.in_transaction:
        yield db
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


@contextmanager
def durably(db: sqlite3.Connection) -> Iterator[None]:
    """Let the commits inside survive a power loss, and with them all before."""
    db.execute("PRAGMA synchronous = FULL")
    try:
        yield
    finally:
        db.execute("PRAGMA synchronous = NORMAL")


def close(db: sqlite3.Connection, path: str | os.PathLike[str]) -> None:
    """Close the process's only connection without moving the log into the database: that costs two syncs a command.

    SQLite does that when it finds itself alone, which a shared lock of another open file description denies; it
    goes on doing so when a commit finds the log long. A second connection of this process would lose its locks here
    (fcntl(2): they end when any descriptor of the file is closed).
    """
    try:
        opened = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # read-only, or gone: there is nothing to be moved
        db.close()
        return
    with closing(opened) as fd:
        fcntl.fcntl(fd, _F_OFD_SETLK, _SHARED)
        db.close()
