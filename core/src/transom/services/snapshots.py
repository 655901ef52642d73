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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
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
        created INTEGER NOT NULL,
        updated INTEGER NOT NULL,
        labels TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX layer_parent ON layer(parent);
"""
_UPGRADES = (
    """
    ALTER TABLE layer ADD COLUMN updated INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE layer ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
    UPDATE layer SET updated = created
    """,
)
_ANCESTORS = """
    WITH RECURSIVE chain(id, parent, depth) AS (
        SELECT id, parent, 0 FROM layer WHERE id = ?
        UNION ALL SELECT layer.id, layer.parent, depth + 1 FROM layer JOIN chain ON layer.id = chain.parent
    ) SELECT id FROM chain WHERE depth > 0 ORDER BY depth
"""
_UNFINISHED = frozenset({"preparing", "removing"})
_SELECT = """
    SELECT l.id, l.key, p.key, l.state, l.created, l.updated, l.labels FROM layer l LEFT JOIN layer p ON p.id = l.parent
    WHERE l.state NOT IN ('preparing', 'removing')
"""
_FIXED = ("key", "parent", "state", "created")
LABEL_MAX = 4096
"""The most bytes that a label's key and value may have together (containerd's bound)."""
_LABELS = msgspec.json.Decoder(dict[str, str])


class Layer(msgspec.Struct, frozen=True):
    """A layer as callers know it.

    Attributes:
        key, parent: names; `id` is the driver's.
        created: in nanoseconds since the epoch.
        updated: when it was made, committed or given other labels, whichever was last; it grows with each of these.
        labels: words of whoever made it; they mean nothing here.
    """

    key: str
    id: str
    parent: str | None
    state: State
    created: int
    updated: int
    labels: Mapping[str, str] = {}


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
        layer = self._layer(key)
        if layer is None:
            raise NotFound(self._says(f"no layer {key!r}"))
        return layer

    def exists(self, key: str) -> bool:
        """Say whether the layer is there and whole."""
        return self._layer(key) is not None

    def walk(self) -> Iterator[Layer]:
        """Yield every whole layer, parents first. The list is taken at once: layers may change meanwhile."""
        yield from [_read(row) for row in self._db().execute(f"{_SELECT} ORDER BY l.created, l.id").fetchall()]

    def mounts(self, key: str, *, idmap: IdMap | None = None) -> tuple[Mount, ...]:
        """Say what to mount to see the layer; see `claim` before mounting an active one.

        Args:
            idmap: how the ids of its files are to appear. On disk, and so in diffs, they stay what they are.

        Raises:
            NotSupported: the driver has no id maps.
        """
        layer = self.stat(key)
        if idmap is not None and StorageCapability.IDMAP not in self.driver.capabilities:
            raise self.driver.unsupported(StorageCapability.IDMAP)
        mounts = self.driver.mounts(id=layer.id, parents=self._parents(layer.id), state=layer.state)
        return tuple(msgspec.structs.replace(mount, idmap=idmap) for mount in mounts) if idmap else mounts

    def claim(self, key: str) -> Lock:
        """Take the active layer for oneself, as who mounts it must: no layer is ever mounted writable twice.

        The lock is held until released, or until the process that holds its descriptor dies.

        Raises:
            Conflict: another process has it mounted.
        """
        return self._claim(self.stat(key).id, key)

    def unmounting(self, key: str, place: str) -> None:
        """Tell the driver that a layer, mounted at `place`, will be unmounted."""
        self._finish(self.stat(key), place)

    def _finish(self, layer: Layer, place: str) -> None:
        if layer.state is State.ACTIVE:
            self.driver.unmounting(id=layer.id, place=place)

    def usage(self, key: str) -> Usage:
        """Measure what the layer itself takes on disk."""
        layer = self.stat(key)
        return self.driver.usage(id=layer.id, parents=self._parents(layer.id))

    # Life cycle

    def prepare(
        self,
        key: str,
        parent: str | None,
        *,
        size: int | None = None,
        inodes: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Layer:
        """Make the active layer `key` over the committed layer `parent`.

        Args:
            size: the most bytes it may hold.
            inodes: the most files it may hold, of every type.
            labels: see `Layer.labels`; each at most `LABEL_MAX` bytes long.

        Raises:
            Conflict: the key is taken, or the parent is not committed.
            NotFound: no such parent.
            NotSupported: the chain would be deeper than the driver can, or the driver has no such quota.
        """
        for value, needs in ((size, StorageCapability.QUOTA), (inodes, StorageCapability.QUOTA_INODES)):
            if value is not None and needs not in self.driver.capabilities:
                raise self.driver.unsupported(needs)

        def act(id: str, parents: tuple[str, ...]) -> None:
            self.driver.prepare(id=id, parents=parents, size=size, idmap=None)
            if inodes is not None:
                self.driver.limit_inodes(id=id, inodes=inodes)

        return self._make(key, parent, State.ACTIVE, act, labels)

    def view(self, key: str, parent: str) -> Layer:
        """Make the read-only layer `key` over the committed layer `parent`; raises like `prepare`."""
        return self._make(key, parent, State.VIEW, self.driver.view)

    def clone(self, key: str, source: str) -> Layer:
        """Make the active layer `key` equal to the active layer `source`, which nobody has mounted."""
        origin = self._active(source, "only active ones are cloned")
        with self.claim(source):
            return self._make(key, origin.parent, State.ACTIVE, partial(self.driver.clone, source=origin.id))

    def commit(self, key: str, name: str, *, labels: Mapping[str, str] | None = None) -> Layer:
        """Make the active layer `key` immutable under the new key `name`; on return it survives a power loss.

        Args:
            labels: more labels; those that it has stay.

        Raises:
            Conflict: `name` is taken, or the layer is not active or in use.
        """
        _check_key(name)
        more = _labels_text(labels)
        layer = self._active(key, "only active layers are committed")
        if name != key and self._row(name) is not None:
            raise self._taken(name)
        with self.claim(key), self._working():
            self.driver.commit(id=layer.id, parents=self._parents(layer.id))
            with database.durably(self._db()):
                try:
                    self._db().execute(
                        "UPDATE layer SET key = ?, state = 'committed', updated = max(updated + 1, ?),"
                        " labels = json_patch(labels, ?) WHERE id = ?", (name, time.time_ns(), more, layer.id)
                    )  # fmt: skip
                except sqlite3.IntegrityError:
                    raise self._taken(name) from None
        return self.stat(name)

    def update(self, layer: Layer) -> Layer:
        """Give a layer the labels that `layer`, its record with others in it, has; return the new record.

        Raises:
            ConfigError: a label is too long, or something else in the record is not the layer's: it cannot be changed.
            Conflict: the layer was changed after the record was read.
        """
        labels = _labels_text(layer.labels)
        with self._working(), database.transaction(self._db()) as db:
            found = self._by_id(layer.id)
            if found is None:
                raise NotFound(self._says(f"no layer {layer.key!r}"))
            if found.updated != layer.updated:
                raise Conflict(self._says(f"layer {found.key!r} was changed meanwhile: read its record again"))
            if fixed := [name for name in _FIXED if getattr(found, name) != getattr(layer, name)]:
                what = " and ".join(fixed)
                raise ConfigError(self._says(f"{what} of layer {found.key!r} cannot be changed, only its labels"))
            now = max(found.updated + 1, time.time_ns())
            db.execute("UPDATE layer SET labels = ?, updated = ? WHERE id = ?", (labels, now, layer.id))
        return self.stat(layer.key)

    def remove(self, key: str) -> None:
        """Remove the layer. Absent is success.

        Raises:
            Conflict: other layers have it as their parent, or it is in use.
        """
        row = self._row(key)
        if row is None:
            return
        with self._working(), self._claim(row[0], key):
            self._strike(row[0], key)
            try:
                os.unlink(self._claim_path(row[0]))
            except FileNotFoundError:
                pass

    def _strike(self, id: str, key: str) -> None:
        try:
            with database.transaction(self._db()) as db:
                children = ", ".join(r[0] for r in db.execute("SELECT key FROM layer WHERE parent = ? LIMIT 3", (id,)))
                if children:
                    raise Conflict(self._says(f"cannot remove layer {key!r}: it is the parent of {children}"))
                db.execute("UPDATE layer SET state = 'removing' WHERE id = ?", (id,))
        except sqlite3.OperationalError as error:
            if "full" not in str(error):
                raise
            # A full disk is what removing is for: without the note, a kill leaves a record without data, which
            # can still be removed.
        self._drop(id)

    def _drop(self, id: str) -> None:
        self.driver.remove(id=id)
        self._db().execute("DELETE FROM layer WHERE id = ?", (id,))

    def _make(
        self,
        key: str,
        parent: str | None,
        state: State,
        act: Callable[..., None],
        labels: Mapping[str, str] | None = None,
    ) -> Layer:
        _check_key(key)
        text = _labels_text(labels)
        id = os.urandom(10).hex()
        with self._working() as lock:
            parents = self._intend(lock, id, key, parent, text)
            try:
                act(id=id, parents=parents)
            except BaseException:
                self._drop(id)
                raise
            self._db().execute("UPDATE layer SET state = ? WHERE id = ?", (state.value, id))
        return self.stat(key)

    def _intend(self, lock: Lock, id: str, key: str, parent: str | None, labels: str) -> tuple[str, ...]:
        """Write down that a layer is being made; returns the ids of its ancestors."""
        for attempt in range(2):
            with database.transaction(self._db()) as db:
                taken = self._row(key)
                if taken is None:
                    parents = self._committed_chain(parent)
                    now = time.time_ns()
                    row = (id, key, parents[0] if parents else None, "preparing", now, now, labels)
                    db.execute("INSERT INTO layer VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                    return parents
            # The name may be held by what a killed process left: clear it away once, if nobody is at work.
            if attempt or self._layer(key) or not self._clear(lock, taken[0]):
                break
        raise self._taken(key)

    def _committed_chain(self, parent: str | None) -> tuple[str, ...]:
        if parent is None:
            return ()
        layer = self._layer(parent)
        if layer is None:
            raise NotFound(self._says(f"no layer {parent!r} to be a parent"))
        if layer.state is not State.COMMITTED:
            raise Conflict(self._says(f"layer {parent!r} is {layer.state}: only committed layers are parents"))
        chain = (layer.id, *self._parents(layer.id))
        if len(chain) > self.driver.max_depth:
            text = f"a layer over {len(chain)} others is deeper than this driver can on this host"
            raise NotSupported(
                self._says(f"{text} ({self.driver.max_depth}); flatten the image (export and import it)")
            )
        return chain

    # Content

    def changes(self, key: str, *, since: str | None = None) -> list[Change]:
        """List what the layer changed against its parent, by the driver where it can, else by comparing trees.

        Args:
            since: another ancestor to compare it with; see `diff`.
        """
        layer = self.stat(key)
        below = self._ancestor(layer, since)
        if below is None and StorageCapability.DIFF in self.driver.capabilities:
            return list(self.driver.changes(id=layer.id, parents=self._parents(layer.id)))
        from transom.services.differ import compare

        return self._alone(layer, lambda upper, lower: list(compare(lower=lower, upper=upper)), below)

    def diff(self, key: str, out: IO[bytes], *, since: str | None = None) -> int:
        """Write the layer's changes as a layer tar (OCI image-spec, layer.md); return the bytes written.

        Args:
            since: the ancestor upon which the tar is to make the layer; its parent unless said.

        Raises:
            Conflict: the layer is active, in use, and to be read by a mount only; or a file vanished meanwhile.
            ConfigError: `since` is no ancestor of the layer; or a name in it that no tar can hold.
        """
        from transom.services.archive import write
        from transom.services.differ import compare

        layer = self.stat(key)
        if below := self._ancestor(layer, since):
            compared = partial(write, out=out)
            return self._alone(
                layer, lambda upper, lower: compared(changes=compare(lower=lower, upper=upper), root=upper), below
            )
        changes, content = self.changes(key), self.driver.content(id=layer.id)
        if content is not None:
            return write(changes=changes, root=content, out=out)
        return self._alone(layer, lambda upper, _lower: write(changes=changes, root=upper, out=out))

    def _ancestor(self, layer: Layer, key: str | None) -> Layer | None:
        """Return the ancestor of that name; None for the parent, which needs no name."""
        if key in (None, layer.parent):
            return None
        chain = [found for id in self._parents(layer.id) if (found := self._by_id(id))]
        for found in chain:
            if found.key == key:
                return found
        names = ", ".join(found.key for found in chain[:3]) + (", ..." if len(chain) > 3 else "")
        raise ConfigError(self._says(f"{key!r} is no ancestor of layer {layer.key!r}; it has {names or 'none'}"))

    def apply(self, key: str, stream: IO[bytes]) -> int:
        """Unpack a layer tar into the active layer; return the sum of the sizes of its regular files, in bytes.

        Raises:
            ConfigError: the tar is damaged or would escape; the layer then holds part of it and should be removed.
        """
        layer = self._active(key, "nothing can be unpacked into it")
        with self._in_words(), self.claim(key):
            if StorageCapability.APPLY in self.driver.capabilities:
                return self.driver.apply(id=layer.id, parents=self._parents(layer.id), stream=stream)
            from transom.services.archive import extract

            return self._mounted(layer, lambda upper, _lower: extract(stream=stream, root=upper))

    def _alone(self, layer: Layer, function: Callable[[str, str | None], T], below: Layer | None = None) -> T:
        """Do as `_mounted`; an active layer is claimed for it, so that it is never mounted twice."""
        if layer.state is not State.ACTIVE:
            return self._mounted(layer, function, below)
        with self._claim(layer.id, layer.key):
            return self._mounted(layer, function, below)

    def _mounted(self, layer: Layer, function: Callable[[str, str | None], T], below: Layer | None = None) -> T:
        """Call `function` with the layer's tree and that of its parent, or `below`, mounted where nobody sees them."""
        from transom.services.mounts import mount_all, privately, unmount

        below = below or (self.stat(layer.parent) if layer.parent else None)
        shown = [layer, below] if below else [layer]
        sets = [self.driver.mounts(id=of.id, parents=self._parents(of.id), state=of.state) for of in shown]
        places = [os.path.join(self._home, name) for name in ("upper", "lower")]
        for place in places:
            os.makedirs(place, exist_ok=True)

        def run() -> T:
            try:
                for mounts, place in zip(sets, places, strict=False):
                    mount_all(mounts, place)
                result = function(places[0], places[1] if below else None)
                self._finish(layer, places[0])
                return result
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
            for id, key, state in self._records():
                if state in _UNFINISHED:
                    self._drop(id)
                    said.append(self._says(f"removed the unfinished layer {key}"))
            known = {id for id, _, _ in self._records()}
            for id in sorted(self.driver.owned() - known):
                self.driver.remove(id=id)
                said.append(self._says(f"removed {id}, which has no record"))
            for name in os.listdir(self._home):
                if name.startswith("claim-") and name[6:] not in known:
                    os.unlink(os.path.join(self._home, name))
        return said

    def check(self) -> list[str]:
        """Describe, a line each, where records and disk differ; changes nothing."""
        records, owned, said = self._records(), self.driver.owned(), []
        for id, key, state in records:
            if state in _UNFINISHED:
                said.append(f"layer {key} is unfinished ({state})")
            elif id not in owned and state != State.VIEW:  # a view may need nothing on disk
                said.append(f"layer {key} has a record but no data")
        orphans = sorted(owned - {id for id, _, _ in records})
        return [self._says(line) for line in [*said, *(f"{id} is on disk without a record" for id in orphans)]]

    def verify(self, key: str, stream: IO[bytes]) -> list[Change]:
        """List what was done to a layer since it was made of this tar: ADDED is what the tar does not make.

        The tar is unpacked anew, beside the layer, and goes again; times of directories are not compared, since a tar
        need not have them. A layer is judged with its parent as that is now: a chain is verified from below.

        Raises:
            Conflict: the layer is active and in use.
        """
        layer, draft = self.stat(key), f"verify-{os.urandom(6).hex()}"
        fresh = self.prepare(draft, layer.parent)
        try:
            self.apply(draft, stream)
            with self.claim(draft):
                return self._alone(layer, _compared_with_fresh, fresh)
        finally:
            self.remove(draft)

    def close(self) -> None:
        """Close the database. Twice is harmless."""
        if self._connection is not None:
            database.close(self._connection, self._path)
            self._connection = None

    def _clear(self, shared: Lock, id: str) -> bool:
        """Clear one row away that is unfinished though no other process is at work; say whether it is gone."""
        shared.release()
        alone = Lock(self._lock_path)
        try:
            if not alone.acquire(wait=False) or self._by_id(id):  # whole: its maker ended a moment ago
                return False
            self._drop(id)
            return True
        finally:
            alone.release()
            shared.acquire()

    # Claims and words

    def _claim_path(self, id: str) -> str:
        return os.path.join(self._home, f"claim-{id}")

    def _claim(self, id: str, key: str) -> Lock:
        lock = Lock(self._claim_path(id))
        with self._in_words():
            free = lock.acquire(wait=False)
        if not free:
            raise Conflict(self._says(f"layer {key!r} is in use by another process"))
        return lock

    def _active(self, key: str, else_: str) -> Layer:
        layer = self.stat(key)
        if layer.state is not State.ACTIVE:
            raise Conflict(self._says(f"layer {key!r} is {layer.state}: {else_}"))
        return layer

    def _says(self, text: str) -> str:
        return f"storage {self.driver.name}: {text}"

    def _taken(self, key: str) -> Conflict:
        return Conflict(self._says(f"layer {key!r} exists already"))

    # The database

    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            with self._in_words():
                os.makedirs(self.driver.root, mode=0o711, exist_ok=True)
                self._connection = database.connect(self._path, schema=_SCHEMA, version=2, upgrades=_UPGRADES)
            self._connection.execute("PRAGMA foreign_keys = ON")
            if not self._connection.execute("SELECT 1 FROM layer LIMIT 1").fetchone():
                self._refuse_strangers()
        return self._connection

    def _refuse_strangers(self) -> None:
        """Without any record, what is on disk is not ours to judge: it may be all that is left of somebody's work."""
        owned = self.driver.owned()
        if not owned:
            return
        self.close()
        raise DriverError(
            "opening", driver=f"storage {self.driver.name}", subject=str(self.driver.root),
            cause=f"it holds layers ({len(owned)}), but the records of its layers are lost",
            hint=f"put {self._path} back from a backup, or move {self.driver.root} away to begin anew",
        )  # fmt: skip

    def _layer(self, key: str) -> Layer | None:
        row = self._db().execute(f"{_SELECT} AND l.key = ?", (key,)).fetchone()
        return _read(row) if row else None

    def _by_id(self, id: str) -> Layer | None:
        row = self._db().execute(f"{_SELECT} AND l.id = ?", (id,)).fetchone()
        return _read(row) if row else None

    def _row(self, key: str) -> tuple[str] | None:
        """Return the id under that key, unfinished layers included."""
        row: tuple[str] | None = self._db().execute("SELECT id FROM layer WHERE key = ?", (key,)).fetchone()
        return row

    def _records(self) -> list[tuple[str, str, str]]:
        """List id, key and state of all layers, unfinished ones included."""
        return self._db().execute("SELECT id, key, state FROM layer").fetchall()

    def _parents(self, id: str) -> tuple[str, ...]:
        """Return the ids of the layer's ancestors, nearest first."""
        return tuple(row[0] for row in self._db().execute(_ANCESTORS, (id,)))

    @contextmanager
    def _working(self) -> Iterator[Lock]:
        """Hold the lock shared for one operation, and put the kernel's refusals into words."""
        self._db()
        with self._in_words(), Lock(self._lock_path, shared=True) as lock:
            yield lock

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        who = f"storage {self.driver.name}"
        try:
            yield
        except TransomError:
            raise
        except sqlite3.OperationalError as error:
            hint = "free space on that file system; removing still works"
            raise DriverError("recording", driver=who, subject=self._path, cause=error, hint=hint) from error
        except OSError as error:
            subject = str(error.filename or self.driver.root)
            raise DriverError("operation", driver=who, subject=subject, cause=error) from error


def _read(row: tuple[str, str, str | None, str, int, int, str]) -> Layer:
    id, key, parent, state, created, updated, labels = row
    return Layer(key, id, parent, State(state), created, updated, _LABELS.decode(labels))


def _compared_with_fresh(upper: str, lower: str | None) -> list[Change]:
    from transom.services.differ import compare

    return list(compare(lower=lower, upper=upper, directory_times=False))


def _labels_text(labels: Mapping[str, str] | None) -> str:
    for key, value in (labels or {}).items():
        length = len(os.fsencode(key)) + len(os.fsencode(value))
        if not key or length > LABEL_MAX:
            name = ascii(key if len(key) < 60 else key[:50] + "...")
            why = f"its key and value have {length} bytes, at most {LABEL_MAX} are allowed" if key else "it has no key"
            raise ConfigError(f"label {name} of a layer: {why}")
    return msgspec.json.encode(dict(labels or {})).decode()


def _check_key(key: str) -> None:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        shown = ascii(key if len(repr(key)) < 60 else key[:50] + "...")
        raise ConfigError(
            f"{shown} cannot name a layer: 1 to 255 letters, digits and _.:@+- are allowed,"
            " starting with a letter or digit"
        )
