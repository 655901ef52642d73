"""The storage service: names, states and parents of layers, kept around any storage driver.

This is what callers use; drivers implement `transom.contract.storage.Storage`. The record of every layer is one
row of an SQLite database beside the driver's data. An operation is written down before the driver acts and
struck out after it, so that a process killed in between leaves a row that says what was under way:

    preparing   the driver may have begun: undone by `Storage.remove`
    removing    the driver may have begun: done again
    active, view, committed   whole

Every operation holds the lock file shared while it works; `recover` takes it alone, so that under it
every unfinished row is a dead process's. A commit's record is written after the driver has synced the layer,
and is itself synced.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TypeVar

import msgspec

from transom.contract.storage import Change, IdMap, Mount, State, Storage, StorageCapability, Usage
from transom.errors import ConfigError, Conflict, DriverError, NotFound, NotSupported, TransomError
from transom.services import database
from transom.services.files import Lock

T = TypeVar("T")

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@+-]{0,254}")
_SCHEMA = """
    CREATE TABLE layer (
        id TEXT PRIMARY KEY,
        key TEXT NOT NULL UNIQUE,
        parent TEXT REFERENCES layer(id),
        state TEXT NOT NULL CHECK (state IN ('preparing', 'active', 'view', 'committed', 'removing')),
        created INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX layer_parent ON layer(parent);
"""
_ANCESTORS = """
    WITH RECURSIVE chain(id, parent, depth) AS (
        SELECT id, parent, 0 FROM layer WHERE id = ?
        UNION ALL SELECT layer.id, layer.parent, depth + 1 FROM layer JOIN chain ON layer.id = chain.parent
    ) SELECT id FROM chain ORDER BY depth
"""


class Layer(msgspec.Struct, frozen=True):
    """A layer as callers know it: `key` and `parent` are names, `id` is the driver's, `created` in nanoseconds."""

    key: str
    id: str
    parent: str | None
    state: State
    created: int


class Snapshots:
    """The layers of one storage driver.

    Args:
        driver: an opened storage driver.

    Its database, lock and mount points are in the sibling ``ROOT.layers`` of the driver's `root`. Any number of
    processes may work on one root; within a process, each thread takes a `Snapshots` of its own.
    """

    def __init__(self, driver: Storage) -> None:
        self.driver = driver
        self._home = f"{driver.root}.layers"
        self._connection: sqlite3.Connection | None = None
        self._path = os.path.join(self._home, "layers.db")
        self._lock_path = os.path.join(self._home, "lock")

    # Reading

    def stat(self, key: str) -> Layer:
        """Return a layer's record, or raise `NotFound`."""
        row = self._row(key)
        if row is None or row[3] in {"preparing", "removing"}:
            raise NotFound(f"storage {self.driver.name}: no layer {key!r}")
        return _layer(row)

    def exists(self, key: str) -> bool:
        """Say whether the layer is there and whole."""
        row = self._row(key)
        return row is not None and row[3] not in {"preparing", "removing"}

    def walk(self) -> Iterator[Layer]:
        """Yield every whole layer, parents first. The list is taken at once: layers may change meanwhile."""
        query = _SELECT + " WHERE l.state NOT IN ('preparing', 'removing') ORDER BY l.created, l.id"
        yield from [_layer(row) for row in self._db().execute(query).fetchall()]

    def mounts(self, key: str) -> tuple[Mount, ...]:
        """Say what to mount to see the layer; see `claim` before mounting an active one."""
        layer = self.stat(key)
        return self.driver.mounts(id=layer.id, parents=self._ancestors(layer.id)[1:], state=layer.state)

    def claim(self, key: str) -> Lock:
        """Take the active layer for oneself, as who mounts it must: no layer is ever mounted writable twice.

        The lock is held until released, or until the process that holds its descriptor dies.

        Raises:
            Conflict: another process has it mounted.
        """
        lock = Lock(os.path.join(self._home, f"claim-{self.stat(key).id}"))
        if not lock.acquire(wait=False):
            raise Conflict(f"storage {self.driver.name}: layer {key!r} is in use by another process")
        return lock

    def usage(self, key: str) -> Usage:
        """Measure what the layer itself takes on disk."""
        layer = self.stat(key)
        return self.driver.usage(id=layer.id, parents=self._ancestors(layer.id)[1:])

    # Life cycle

    def prepare(self, key: str, parent: str | None, *, size: int | None = None, idmap: IdMap | None = None) -> Layer:
        """Make the active layer `key` over the committed layer `parent`.

        Raises:
            Conflict: the key is taken, or the parent is not committed.
            NotFound: no such parent.
            NotSupported: the chain would be deeper than the driver can, or the driver has no quota or id maps.
        """
        for asked, needs in ((size, StorageCapability.QUOTA), (idmap, StorageCapability.IDMAP)):
            if asked is not None and needs not in self.driver.capabilities:
                raise self.driver.unsupported(needs)
        return self._make(
            key, parent, State.ACTIVE,
            lambda id, parents: self.driver.prepare(id=id, parents=parents, size=size, idmap=idmap),
        )  # fmt: skip

    def view(self, key: str, parent: str) -> Layer:
        """Make the read-only layer `key` over the committed layer `parent`; raises like `prepare`."""
        return self._make(
            key, parent, State.VIEW, lambda id, parents: self.driver.view(id=id, parents=parents)
        )  # fmt: skip

    def clone(self, key: str, source: str) -> Layer:
        """Make the active layer `key` equal to the active layer `source`, which nobody has mounted."""
        origin = self.stat(source)
        if origin.state is not State.ACTIVE:
            raise Conflict(
                f"storage {self.driver.name}: layer {source!r} is {origin.state}, only active ones are cloned"
            )
        lock = self.claim(source)
        try:
            return self._make(
                key, origin.parent, State.ACTIVE,
                lambda id, parents: self.driver.clone(id=id, source=origin.id, parents=parents),
            )  # fmt: skip
        finally:
            lock.release()

    def commit(self, key: str, name: str) -> Layer:
        """Make the active layer `key` immutable under the new key `name`; on return it survives a power loss.

        Raises:
            Conflict: `name` is taken, or the layer is not active or in use.
        """
        _check_key(name)
        layer = self.stat(key)
        if layer.state is not State.ACTIVE:
            raise Conflict(
                f"storage {self.driver.name}: layer {key!r} is {layer.state}, only active layers are committed"
            )
        if name != key and self._row(name) is not None:
            raise Conflict(f"storage {self.driver.name}: layer {name!r} exists already")
        claim = self.claim(key)
        try:
            with self._working():
                self.driver.commit(id=layer.id, parents=self._ancestors(layer.id)[1:])
                with database.durably(self._db()):
                    self._write("UPDATE layer SET key = ?, state = 'committed' WHERE id = ?", (name, layer.id))
        finally:
            claim.release()
        return self.stat(name)

    def remove(self, key: str) -> None:
        """Remove the layer. Absent is success.

        Raises:
            Conflict: other layers have it as their parent, or it is in use.
        """
        row = self._row(key)
        if row is None:
            return
        id = row[0]
        with self._working():
            claim = Lock(os.path.join(self._home, f"claim-{id}"))
            if not claim.acquire(wait=False):
                raise Conflict(f"storage {self.driver.name}: layer {key!r} is in use: cannot remove it")
            try:
                self._strike(id, key)
                os.unlink(os.path.join(self._home, f"claim-{id}"))
            except FileNotFoundError:
                pass
            finally:
                claim.release()

    def _strike(self, id: str, key: str) -> None:
        try:
            with database.transaction(self._db()) as db:
                children = [r[0] for r in db.execute("SELECT key FROM layer WHERE parent = ? LIMIT 3", (id,))]
                if children:
                    raise Conflict(
                        f"storage {self.driver.name}: cannot remove layer {key!r}: it is the"
                        f" parent of {', '.join(children)}"
                    )
                db.execute("UPDATE layer SET state = 'removing' WHERE id = ?", (id,))
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            # A full disk is what removing is for: without the note, a kill leaves a record without data, which
            # can still be removed.
        self.driver.remove(id=id)
        self._write("DELETE FROM layer WHERE id = ?", (id,))

    def _make(self, key: str, parent: str | None, state: State, act: Callable[[str, tuple[str, ...]], None]) -> Layer:
        _check_key(key)
        id = os.urandom(10).hex()
        with self._working() as lock:
            parents = self._intend(lock, id, key, parent)
            try:
                act(id, parents)
            except BaseException:
                self.driver.remove(id=id)
                self._write("DELETE FROM layer WHERE id = ?", (id,))
                raise
            self._write("UPDATE layer SET state = ? WHERE id = ?", (state.value, id))
        return self.stat(key)

    def _intend(self, lock: Lock, id: str, key: str, parent: str | None) -> tuple[str, ...]:
        """Write down that a layer is being made; returns the ids of its ancestors."""
        for attempt in range(2):
            with database.transaction(self._db()) as db:
                taken = self._row(key)
                if taken is None:
                    parents = self._committed_chain(parent)
                    db.execute(
                        "INSERT INTO layer VALUES (?, ?, ?, 'preparing', ?)",
                        (id, key, parents[0] if parents else None, time.time_ns()),
                    )
                    return parents
            # The name may be held by what a killed process left: clear it away once, if nobody is at work.
            if attempt or taken[3] not in {"preparing", "removing"} or not self._clear(lock, taken[0]):
                break
        raise Conflict(f"storage {self.driver.name}: layer {key!r} exists already")

    def _committed_chain(self, parent: str | None) -> tuple[str, ...]:
        if parent is None:
            return ()
        row = self._row(parent)
        if row is None or row[3] in {"preparing", "removing"}:
            raise NotFound(f"storage {self.driver.name}: no layer {parent!r} to be a parent")
        if row[3] != "committed":
            raise Conflict(
                f"storage {self.driver.name}: layer {parent!r} is {row[3]}: only committed layers are parents"
            )
        chain = self._ancestors(row[0])
        if len(chain) > self.driver.max_depth:
            raise NotSupported(
                f"storage {self.driver.name}: a layer over {len(chain)} others is deeper than this driver can"
                f" on this host ({self.driver.max_depth}); flatten the image (export and import it)"
            )
        return chain

    # Content

    def changes(self, key: str) -> list[Change]:
        """List what the layer changed against its parent, by the driver where it can, else by comparing trees."""
        layer = self.stat(key)
        if StorageCapability.DIFF in self.driver.capabilities:
            return list(self.driver.changes(id=layer.id, parents=self._ancestors(layer.id)[1:]))

        def compare(upper: str, lower: str | None) -> list[Change]:
            from transom.services.differ import compare

            return list(compare(lower=lower, upper=upper))

        return self._mounted(layer, compare)

    def diff(self, key: str, out: IO[bytes]) -> int:
        """Write the layer's changes as a layer tar (OCI image-spec, layer.md); return the bytes written."""
        changes = self.changes(key)

        def write(upper: str, _lower: str | None) -> int:
            from transom.services.archive import write

            return write(changes=changes, root=upper, out=out)

        return self._mounted(self.stat(key), write)

    def apply(self, key: str, stream: IO[bytes]) -> int:
        """Unpack a layer tar into the active layer; return the sum of the sizes of its regular files.

        Raises:
            ConfigError: the tar is damaged or would escape; the layer then holds part of it and should be removed.
        """
        layer = self.stat(key)
        if layer.state is not State.ACTIVE:
            raise Conflict(
                f"storage {self.driver.name}: layer {key!r} is {layer.state}: nothing can be unpacked into it"
            )
        claim = self.claim(key)
        try:
            if StorageCapability.APPLY in self.driver.capabilities:
                return self.driver.apply(id=layer.id, parents=self._ancestors(layer.id)[1:], stream=stream)

            def extract(upper: str, _lower: str | None) -> int:
                from transom.services.archive import extract

                return extract(stream=stream, root=upper)

            return self._mounted(layer, extract)
        finally:
            claim.release()

    def _mounted(self, layer: Layer, function: Callable[[str, str | None], T]) -> T:
        """Call `function` with the layer's tree and its parent's, mounted where nobody else sees them."""
        from transom.services.mounts import mount_all, privately, unmount

        chain = self._ancestors(layer.id)
        upper = self.driver.mounts(id=layer.id, parents=chain[1:], state=layer.state)
        lower = (
            self.driver.mounts(id=chain[1], parents=chain[2:], state=State.COMMITTED) if len(chain) > 1 else ()
        )  # fmt: skip
        places = [os.path.join(self._home, name) for name in ("upper", "lower")]
        for place in places:
            os.makedirs(place, exist_ok=True)

        def run() -> T:
            try:
                mount_all(upper, places[0])
                if lower:
                    mount_all(lower, places[1])
                return function(places[0], places[1] if lower else None)
            finally:  # the namespace would go too, but a moment after the thread
                for place in places:
                    unmount(place)

        return privately(run)

    # Repair

    def recover(self) -> list[str]:
        """Undo or finish what dead processes left, and remove what is on disk without a record; say what.

        Waits until no other process is at work. Idempotent.
        """
        if not os.path.isdir(self._home) and not os.path.isdir(self.driver.root):
            return []
        self._db()
        with Lock(self._lock_path):
            said = list(self.driver.recover())
            rows = self._db().execute("SELECT id, key FROM layer WHERE state IN ('preparing', 'removing')").fetchall()
            for id, key in rows:
                self.driver.remove(id=id)
                self._write("DELETE FROM layer WHERE id = ?", (id,))
                said.append(f"storage {self.driver.name}: removed the unfinished layer {key}")
            known = {row[0] for row in self._db().execute("SELECT id FROM layer")}
            for id in sorted(self.driver.owned() - known):
                self.driver.remove(id=id)
                said.append(f"storage {self.driver.name}: removed {id}, which has no record")
            for name in os.listdir(self._home):
                if name.startswith("claim-") and name[6:] not in known:
                    os.unlink(os.path.join(self._home, name))
        return said

    def check(self) -> list[str]:
        """Describe, a line each, where records and disk differ; changes nothing."""
        rows = self._db().execute("SELECT id, key, state FROM layer").fetchall()
        owned = self.driver.owned()
        unfinished = [
            f"layer {key} is unfinished ({state})" for _, key, state in rows if state in {"preparing", "removing"}
        ]
        # A view needs nothing on disk with drivers that show a parent by itself.
        lost = [
            f"layer {key} has a record but no data"
            for id, key, state in rows
            if id not in owned and state in {"active", "committed"}
        ]
        orphans = [f"{id} is on disk without a record" for id in sorted(owned - {row[0] for row in rows})]
        return [f"storage {self.driver.name}: {line}" for line in unfinished + lost + orphans]

    def close(self) -> None:
        """Close the database. Twice is harmless."""
        if self._connection is not None:
            database.close(self._connection, self._path)
            self._connection = None

    def _clear(self, shared: Lock, id: str) -> bool:
        """Clear one unfinished row away if no other process is at work; say whether it is gone."""
        shared.release()
        alone = Lock(self._lock_path)
        try:
            if not alone.acquire(wait=False):
                return False
            self.driver.remove(id=id)
            self._write("DELETE FROM layer WHERE id = ?", (id,))
            return True
        finally:
            alone.release()
            shared.acquire()

    # The database

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            os.makedirs(self.driver.root, mode=0o711, exist_ok=True)
            self._connection = database.connect(self._path, schema=_SCHEMA)
            self._connection.execute("PRAGMA foreign_keys = ON")
        return self._connection

    def _row(self, key: str) -> tuple[str, str, str | None, str, int] | None:
        row: tuple[str, str, str | None, str, int] | None = (
            self._db().execute(_SELECT + " WHERE l.key = ?", (key,)).fetchone()
        )
        return row

    def _ancestors(self, id: str) -> tuple[str, ...]:
        """Return the layer's own id and those of its ancestors, nearest first."""
        return tuple(row[0] for row in self._db().execute(_ANCESTORS, (id,)))

    def _write(self, statement: str, values: tuple[str, ...]) -> None:
        try:
            self._db().execute(statement, values)
        except sqlite3.IntegrityError:
            raise Conflict(f"storage {self.driver.name}: layer {values[0]!r} exists already") from None

    @contextmanager
    def _working(self) -> Iterator[Lock]:
        """Hold the lock shared for one operation, and put the kernel's refusals into words."""
        self._db()
        try:
            with Lock(self._lock_path, shared=True) as lock:
                yield lock
        except TransomError:
            raise
        except sqlite3.OperationalError as error:
            raise DriverError(
                "recording", driver=f"storage {self.driver.name}", subject=self._path, cause=error,
                hint="free space on that file system; removing still works",
            ) from error  # fmt: skip
        except OSError as error:
            raise DriverError(
                "operation",
                driver=f"storage {self.driver.name}",
                subject=str(error.filename or self.driver.root),
                cause=error,
            ) from error


_SELECT = "SELECT l.id, l.key, p.key, l.state, l.created FROM layer l LEFT JOIN layer p ON p.id = l.parent"


def _layer(row: tuple[str, str, str | None, str, int]) -> Layer:
    return Layer(id=row[0], key=row[1], parent=row[2], state=State(row[3]), created=row[4])


def _check_key(key: str) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        shown = ascii(key if len(repr(key)) < 60 else key[:50] + "...")
        raise ConfigError(
            f"{shown} cannot name a layer: 1 to 255 letters, digits and _.:@+- are allowed,"
            " starting with a letter or digit"
        )
