"""The engine's records: containers, networks, volumes and events in one SQLite database below the data root.

Several commands at once are safe: every change is one transaction. What must survive a power loss (an image, a
committed layer) has its own records elsewhere; these survive the death of any process.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import msgspec

from transom.errors import Conflict, NotFound
from transom.services import database
from transom_engine.model import Container

_SCHEMA = """
    CREATE TABLE container (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, status TEXT NOT NULL, record BLOB NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE network (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE volume (name TEXT PRIMARY KEY, record BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE event (id INTEGER PRIMARY KEY AUTOINCREMENT, time INTEGER NOT NULL, record BLOB NOT NULL);
"""
_EVENTS_KEPT = 4096
# Made at import, not at first use: msgspec crashes when two threads meet a type for the first time at once.
_CONTAINERS = msgspec.json.Decoder(Container)


class Event(msgspec.Struct, frozen=True):
    """Something that happened, as Docker's events API names it; `time` in nanoseconds since the epoch."""

    type: str
    action: str
    id: str
    attributes: dict[str, str]
    time: int = 0
    number: int = 0


_EVENTS = msgspec.json.Decoder(Event)


class State:
    """The records; one instance per process and thread, never carried across fork(2)."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._db = database.connect(path, schema=_SCHEMA)
        self._encode = msgspec.json.Encoder().encode

    def close(self) -> None:
        """Close the database."""
        database.close(self._db, self.path)

    def transaction(self) -> AbstractContextManager[object]:
        """Make the changes inside one: all or none. Inside another it is part of that."""
        return database.transaction(self._db)

    # Containers

    def add_container(self, container: Container) -> None:
        """Insert a record, its name with it.

        Raises:
            Conflict: the name is taken; the text says by whom.
        """
        try:
            self._db.execute(
                "INSERT INTO container VALUES (?, ?, ?, ?)",
                (container.id, container.name, container.state.status, self._encode(container)),
            )
        except sqlite3.IntegrityError:
            raise self._name_taken(container.name) from None

    def has_container_named(self, name: str) -> bool:
        """Say whether the name is taken."""
        return self._db.execute("SELECT 1 FROM container WHERE name = ?", (name,)).fetchone() is not None

    def save_container(self, container: Container) -> None:
        """Replace a record; raises like `add_container`. A record that is gone stays gone."""
        try:
            self._db.execute(
                "UPDATE container SET name = ?, status = ?, record = ? WHERE id = ?",
                (container.name, container.state.status, self._encode(container), container.id),
            )
        except sqlite3.IntegrityError:
            raise self._name_taken(container.name) from None

    @contextmanager
    def changing(self, id: str) -> Iterator[Container]:
        """Yield the record as it is now and save what is done to it, in one transaction.

        Commands and the container's supervisor change one record: who saves a copy read earlier undoes what the other
        said meanwhile (that the container was stopped for good, that it has another name).

        Raises:
            NotFound: it is gone.
            Conflict: it got a name that is taken.
        """
        with self.transaction():
            container = self.container(id)
            yield container
            self.save_container(container)

    def _name_taken(self, name: str) -> Conflict:
        holder = self._db.execute("SELECT id FROM container WHERE name = ?", (name,)).fetchone()
        by = f" by container {holder[0][:12]}" if holder else ""
        return Conflict(
            f"the container name {name!r} is already in use{by};"
            " remove or rename that container, or choose another name"
        )

    def remove_container(self, id: str) -> None:
        """Delete a record; absent is success."""
        self._db.execute("DELETE FROM container WHERE id = ?", (id,))

    def container(self, id: str) -> Container:
        """Return the record of that full id, or raise `NotFound`."""
        row = self._db.execute("SELECT record FROM container WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise NotFound(f"no such container: {id[:12]}; `transom ps -a` lists those here")
        return _CONTAINERS.decode(row[0])

    def containers(self, *statuses: str) -> list[Container]:
        """Return all records, or those in the given statuses."""
        where = f" WHERE status IN ({','.join('?' * len(statuses))})" if statuses else ""
        rows = self._db.execute(f"SELECT record FROM container{where}", statuses)
        return [_CONTAINERS.decode(row[0]) for row in rows]

    def resolve_container(self, reference: str) -> str:
        """Return the full id for an id, a name or an unambiguous beginning of an id.

        Raises:
            NotFound: nothing matches.
            Conflict: several ids begin so.
        """
        name = reference.removeprefix("/")
        row = self._db.execute("SELECT id FROM container WHERE id = ?1 OR name = ?1", (name,)).fetchone()
        if row:
            return str(row[0])
        rows = []
        if name and all(c in "0123456789abcdef" for c in name):
            rows = self._db.execute("SELECT id FROM container WHERE id GLOB ?", (f"{name}*",)).fetchall()
        if len(rows) > 1:
            matches = ", ".join(row[0][:16] for row in rows[:4])
            raise Conflict(f"container id {reference!r} is ambiguous: {matches}; write more of it")
        if not rows:
            raise NotFound(f"no such container: {reference}; `transom ps -a` lists those here")
        return str(rows[0][0])

    # Networks and volumes: records of any type, by name

    def add(self, table: str, record: Any, **keys: str) -> bool:
        """Insert a record; return False when a key of it is taken."""
        columns = ", ".join([*keys, "record"])
        try:
            self._db.execute(
                f"INSERT INTO {table} ({columns}) VALUES ({','.join('?' * (len(keys) + 1))})",
                (*keys.values(), self._encode(record)),
            )
        except sqlite3.IntegrityError:
            return False
        return True

    def delete(self, table: str, **key: str) -> None:
        """Delete the record with that key; absent is success."""
        ((column, value),) = key.items()
        self._db.execute(f"DELETE FROM {table} WHERE {column} = ?", (value,))

    def all(self, table: str, type: Any) -> list[Any]:
        """Return all records of a table, decoded as `type`."""
        decoder = msgspec.json.Decoder(type)
        return [decoder.decode(row[0]) for row in self._db.execute(f"SELECT record FROM {table}")]

    def find(self, table: str, type: Any, **key: str) -> Any | None:
        """Return the record with that key, or None."""
        ((column, value),) = key.items()
        row = self._db.execute(f"SELECT record FROM {table} WHERE {column} = ?", (value,)).fetchone()
        return msgspec.json.decode(row[0], type=type) if row else None

    # Events

    def event(self, kind: str, action: str, id: str, /, **attributes: str) -> None:
        """Note something that happened, now."""
        now = time.time_ns()
        record = self._encode(Event(type=kind, action=action, id=id, attributes=attributes, time=now))
        cursor = self._db.execute("INSERT INTO event (time, record) VALUES (?, ?)", (now, record))
        if cursor.lastrowid and cursor.lastrowid % 256 == 0:
            self._db.execute("DELETE FROM event WHERE id <= ?", (cursor.lastrowid - _EVENTS_KEPT,))

    def events(self, *, after: int = 0, since: int | None = None, until: int | None = None) -> list[Event]:
        """Return events with a number above `after`, within the times given (nanoseconds, inclusive), in order."""
        rows = self._db.execute(
            "SELECT id, record FROM event WHERE id > ? AND time >= ? AND time <= ? ORDER BY id",
            (after, since or 0, until if until is not None else 1 << 62),
        )
        return [msgspec.structs.replace(_EVENTS.decode(record), number=number) for number, record in rows]

    def last_event(self) -> int:
        """Return the number of the newest event."""
        return int(self._db.execute("SELECT coalesce(max(id), 0) FROM event").fetchone()[0])

    def version(self) -> int:
        """Return a number that changes when another process changed the database (PRAGMA data_version)."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])
