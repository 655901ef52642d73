"""Which images are here, what they are called, and what they are made of.

The records are rows of ``images.db`` (SQLite, WAL); the blobs are `images.content`'s. An image's id is the digest of
its configuration, as Docker's classic store has it. Starting a container needs `ImageStore.resolve` only: one
database opened, one or two rows read, no blob touched.
"""

from __future__ import annotations

import _thread
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import msgspec

from transom.errors import ConfigError, Conflict, DriverError, NotFound
from transom.services import database
from transom_engine.images import names, spec
from transom_engine.images.content import ContentStore
from transom_engine.images.names import Reference
from transom_engine.images.spec import ImageConfig, Layer

if TYPE_CHECKING:
    from transom_engine.model import Config

_SCHEMA = """
    CREATE TABLE image (
        id TEXT PRIMARY KEY,
        manifest TEXT NOT NULL,
        parent TEXT NOT NULL,
        layers TEXT NOT NULL,
        config BLOB NOT NULL,
        recorded REAL NOT NULL,
        tagged REAL NOT NULL DEFAULT 0
    );
    CREATE TABLE tag (name TEXT, tag TEXT, image TEXT NOT NULL REFERENCES image(id), PRIMARY KEY (name, tag))
        WITHOUT ROWID;
    CREATE TABLE digest (name TEXT, digest TEXT, image TEXT NOT NULL REFERENCES image(id), PRIMARY KEY (name, digest))
        WITHOUT ROWID;
    CREATE INDEX tag_image ON tag(image);
    CREATE INDEX digest_image ON digest(image);
    CREATE TABLE unpacked (diff_id TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
"""
_SELECT = "SELECT id, manifest, layers, config, parent FROM image"


class Image(msgspec.Struct, frozen=True):
    """An image's record.

    Attributes:
        id: the digest of its configuration.
        manifest: the digest of the manifest it was pulled or made with.
        parent: the id of the image it was committed from, or empty.
        layers: the lowest first.
        raw_config: the configuration's bytes.
    """

    id: str
    manifest: str
    layers: tuple[Layer, ...]
    raw_config: bytes
    parent: str = ""

    @property
    def chain_id(self) -> str | None:
        """The name under which the whole image is unpacked; None for an image without layers."""
        return self.layers[-1].chain_id if self.layers else None

    @property
    def config(self) -> ImageConfig:
        """The decoded configuration."""
        return spec.decode_config(self.raw_config, subject=self.id)

    def container_config(self) -> Config:
        """Return what the image says a container of it should run, in the shape of Docker's API."""
        from transom_engine.model import Config

        config = self.config.config or {}
        return msgspec.convert({key: value for key, value in config.items() if value is not None}, Config, strict=False)


class Removed(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """One line of ``docker rmi``: a name taken away, or an image or a layer (its chain id) deleted."""

    untagged: str = ""
    deleted: str = ""

    def __str__(self) -> str:
        return f"Untagged: {self.untagged}" if self.untagged else f"Deleted: {self.deleted}"


def no_container(image_id: str) -> str | None:
    """Say that no container uses the image."""
    return None


class ImageStore:
    """The records under one directory; several processes may use it at once, several threads one instance."""

    def __init__(self, root: str | os.PathLike[str], content: ContentStore) -> None:
        self.root, self.content = os.fspath(root), content
        self._path = f"{self.root}/images.db"
        self._mutex = _thread.allocate_lock()
        self._connection: sqlite3.Connection | None = None

    # Names

    def resolve(self, text: str) -> Image:
        """Find an image by name, by name and digest, by id, or by the beginning of an id.

        Raises:
            NotFound: there is none.
            ConfigError: no image can be called that, or several ids begin so.
        """
        image_id, _ = self._find(text)
        return self.get(image_id)

    def get(self, image_id: str) -> Image:
        """Return the image of a full id.

        Raises:
            NotFound: there is none.
        """
        row = self._db.execute(f"{_SELECT} WHERE id = ?", (image_id,)).fetchone()
        if row is None:
            raise _no_such_image(image_id, pullable=False)
        return _image(row)

    def walk(self) -> Iterator[Image]:
        """Yield every image, the latest recorded first."""
        rows = self._db.execute(f"{_SELECT} ORDER BY recorded DESC").fetchall()
        yield from map(_image, rows)

    def record(self, image: Image, *, reference: Reference | None = None, digest: str = "") -> bool:
        """Record an image and what it is called; the blobs must be here, and a lease held.

        A tag that another image has moves to this one. Recording again changes nothing.

        Args:
            digest: the digest under which the reference's registry knows the image.

        Returns:
            whether that changed which image the reference names.
        """
        import time

        now, layers = time.time(), msgspec.json.encode(image.layers).decode()
        with self._transaction() as db:
            db.execute(
                "INSERT INTO image (id, manifest, parent, layers, config, recorded) VALUES (?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (id) DO UPDATE SET manifest = excluded.manifest, layers = excluded.layers",
                (
                    image.id,
                    image.manifest,
                    image.parent,
                    layers,
                    image.raw_config,
                    now,
                ),
            )
            changed = False
            if reference and digest:
                changed |= _name(db, "digest", reference.name, digest, image.id)
            if reference and reference.tag and not reference.digest:
                changed |= _name(db, "tag", reference.name, reference.tag, image.id)
                if changed:
                    db.execute("UPDATE image SET tagged = ? WHERE id = ?", (now, image.id))
        return changed

    def tag(self, source: str, target: str) -> Reference:
        """Give the image another name, taking it from the image that had it.

        Raises:
            NotFound: no image is called `source`.
            ConfigError: `target` is no name for an image.
        """
        import time

        reference = names.parse(target)
        if reference.digest:
            raise ConfigError(f"cannot tag an image as {target}: a digest cannot be chosen; leave it out")
        if reference.familiar_name == "sha256":
            raise ConfigError(f"cannot tag an image as {target}: it would read as an id; choose another name")
        image_id, _ = self._find(source)
        with self._transaction() as db:
            if db.execute("UPDATE image SET tagged = ? WHERE id = ?", (time.time(), image_id)).rowcount == 0:
                raise _no_such_image(source)
            _name(db, "tag", reference.name, reference.tag, image_id)
        return reference

    def references(self, image_id: str) -> list[Reference]:
        """Return all names of the image: those with a tag, then those with a digest, each sorted."""
        tags = self._db.execute("SELECT name, tag FROM tag WHERE image = ? ORDER BY name, tag", (image_id,)).fetchall()
        digests = self._db.execute(
            "SELECT name, digest FROM digest WHERE image = ? ORDER BY name, digest", (image_id,)
        ).fetchall()
        return [_reference(name, tag=tag) for name, tag in tags] + [
            _reference(name, digest=digest) for name, digest in digests
        ]

    def tagged(self, image_id: str) -> float:
        """Return when the image was last given a tag here, in Unix seconds; 0 is never."""
        row = self._db.execute("SELECT tagged FROM image WHERE id = ?", (image_id,)).fetchone()
        return float(row[0]) if row else 0

    # Removal

    def remove(
        self,
        text: str,
        *,
        force: bool = False,
        in_use: Callable[[str], str | None] = no_container,
        running: Callable[[str], str | None] = no_container,
    ) -> list[Removed]:
        """Take a name from an image, and delete the image with its last name, as ``docker rmi`` does.

        By name: that name goes; the image only if it was the last. By id: all names go, if they are of one
        repository or with `force`, and the image.

        Args:
            in_use: the name of a container of the image, or None.
            running: the name of a running container of the image, or None; not even `force` deletes that one's image.

        Returns:
            what was done. The layers deleted, by chain id, are those no other image has: the caller removes them
            from the storage drivers. Their blobs are gone, or go with the next `collect`.

        Raises:
            NotFound: there is none of that name.
            Conflict: a container uses the image, another image builds upon it, or it has names in several repositories.
        """
        removed: list[Removed] = []
        gone: Sequence[Reference]
        with self._transaction() as db:
            image_id, reference = self._find(text)
            image, have = self.get(image_id), self.references(image_id)
            gone = have
            if reference is not None:
                user = in_use(image_id)
                if user and not force and _single(have):
                    raise Conflict(
                        f"cannot remove {reference.familiar()}: container {user} uses its image"
                        f" {names.short_id(image_id)}; remove that first (transom rm {user}) or force it with -f"
                    )
                gone = _going_with(reference, have)
            remaining = [other for other in have if other not in gone]
            conflict: Conflict | None = None
            if not remaining:
                conflict = self._conflict(
                    image, untagging=[] if reference else gone, force=force, in_use=in_use, running=running
                )
            if conflict and reference is None:
                raise conflict
            for other in gone:
                _unname(db, other)
                removed.append(Removed(untagged=other.familiar()))
            if remaining or conflict:
                return removed
            db.execute("DELETE FROM image WHERE id = ?", (image_id,))
            removed.append(Removed(deleted=image_id))
            kept = self.chain_ids()
            removed += [Removed(deleted=one.chain_id) for one in reversed(image.layers) if one.chain_id not in kept]
        self.collect()
        return removed

    def _conflict(
        self,
        image: Image,
        *,
        untagging: Sequence[Reference],
        force: bool,
        in_use: Callable[[str], str | None],
        running: Callable[[str], str | None],
    ) -> Conflict | None:
        """Say why the image must stay: Docker's hard conflicts, and its soft ones that -f overrides."""
        short = names.short_id(image.id)
        child = self._db.execute("SELECT id FROM image WHERE parent = ?", (image.id,)).fetchone()
        if child:
            return Conflict(
                f"cannot remove image {short}: image {names.short_id(child[0])} is made from it; remove that one first"
            )
        if user := running(image.id):
            return Conflict(
                f"cannot remove image {short}: running container {user} uses it; stop it first (transom stop {user})"
            )
        if force:
            return None
        if not _single(untagging):
            listed = ", ".join(reference.familiar() for reference in untagging)
            return Conflict(
                f"cannot remove image {short}: it has several names ({listed}); remove it by name or force it with -f"
            )
        if user := in_use(image.id):
            return Conflict(
                f"cannot remove image {short}: container {user} uses it;"
                f" remove that first (transom rm {user}) or force it with -f"
            )
        return None

    def collect(self, *, dry: bool = False) -> list[str]:
        """Remove the blobs that no image needs, or with `dry` only look; return their digests.

        Leaves them while a pull is under way.
        """
        return self.content.collect(self._needed(), dry=dry) or []

    def chain_ids(self) -> frozenset[str]:
        """Return the chain ids of all layers of all images: what storage drivers may hold unpacked."""
        return frozenset(layer.chain_id for layers in self._layer_lists() for layer in layers)

    def _needed(self) -> Iterator[str]:
        for image_id, manifest in self._db.execute("SELECT id, manifest FROM image").fetchall():
            yield from (image_id, manifest)
        yield from (row[0] for row in self._db.execute("SELECT digest FROM digest").fetchall())
        yield from (layer.digest for layers in self._layer_lists() for layer in layers)

    def _layer_lists(self) -> Iterator[tuple[Layer, ...]]:
        for (layers,) in self._db.execute("SELECT layers FROM image").fetchall():
            yield _decode_layers(layers)

    # Sizes

    def size(self, image: Image) -> int:
        """Return the size of an image in bytes: of its files where it was unpacked once, else of its blobs."""
        return sum(self.layer_size(layer) for layer in image.layers)

    def layer_size(self, layer: Layer) -> int:
        """Return the size of one layer in bytes, as `size` counts it."""
        row = self._db.execute("SELECT size FROM unpacked WHERE diff_id = ?", (layer.diff_id,)).fetchone()
        return int(row[0]) if row else layer.size

    def note_unpacked(self, diff_id: str, size: int) -> None:
        """Remember how many bytes of files a layer holds: only its unpacking tells."""
        with self._transaction(durable=False) as db:
            db.execute("INSERT OR REPLACE INTO unpacked VALUES (?, ?)", (diff_id, size))

    def close(self) -> None:
        """Close the database. Closing twice is harmless; the next use opens it again."""
        if self._connection:
            database.close(self._connection, self._path)
            self._connection = None

    def _find(self, text: str) -> tuple[str, Reference | None]:
        """Return the id of the image that the text means, and the reference if the text is one of its names."""
        bare = text.removeprefix("sha256:")
        if names.is_digest(f"sha256:{bare}"):
            if self._db.execute("SELECT 1 FROM image WHERE id = ?", (f"sha256:{bare}",)).fetchone():
                return f"sha256:{bare}", None
            raise _no_such_image(text, pullable=False)
        prefix = bare if bare and len(bare) < 64 and not bare.strip("0123456789abcdef") else ""
        reference = names.parse(text)
        column, value = ("digest", reference.digest) if reference.digest else ("tag", reference.tag)
        row = self._db.execute(
            f"SELECT image FROM {column} WHERE name = ? AND {column} = ?", (reference.name, value)
        ).fetchone()
        if row:
            plain = msgspec.structs.replace(reference, tag="") if reference.digest else reference
            return row[0], plain
        if prefix:
            rows = self._db.execute(
                "SELECT id FROM image WHERE id >= ? AND id < ? ORDER BY id", (f"sha256:{prefix}", f"sha256:{prefix}g")
            ).fetchall()
            if len(rows) > 1:
                listed = ", ".join(names.short_id(found) for (found,) in rows[:5])
                raise ConfigError(f"ambiguous image id {text}: it begins {listed}; give more digits")
            if rows:
                return rows[0][0], None
        raise _no_such_image(text)

    # The database

    @property
    def _db(self) -> sqlite3.Connection:
        if self._connection is None:
            with self._mutex, _faults(self._path):
                if self._connection is None:
                    connection = database.connect(self._path, schema=_SCHEMA)
                    connection.execute("PRAGMA foreign_keys = ON")
                    self._connection = connection
        return self._connection

    @contextmanager
    def _transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        db = self._db
        durably = database.durably(db) if durable else nullcontext()
        with self._mutex, _faults(self._path), durably, database.transaction(db):
            yield db


def timestamp(seconds: float) -> str:
    """Write a time as RFC 3339 in UTC with nanoseconds, as Docker does; 0 is its "never"."""
    import time

    from transom_engine.model import ZERO_TIME

    if not seconds:
        return ZERO_TIME
    whole, fraction = divmod(round(seconds * 1_000_000), 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:06d}000Z"


@contextmanager
def _faults(path: str) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        hint = f"free space under {os.path.dirname(path)}" if "full" in str(error) else f"look at {path}"
        raise DriverError("use", driver="image records", subject=path, cause=error, hint=hint) from error


_LAYERS = msgspec.json.Decoder(tuple[Layer, ...])


def _image(row: tuple[str, str, str, bytes, str]) -> Image:
    return Image(id=row[0], manifest=row[1], layers=_decode_layers(row[2]), raw_config=row[3], parent=row[4])


def _decode_layers(text: str) -> tuple[Layer, ...]:
    return _LAYERS.decode(text)


def _reference(name: str, *, tag: str = "", digest: str = "") -> Reference:
    domain, _, path = name.partition("/")
    return Reference(domain=domain, path=path, tag=tag, digest=digest)


def _name(db: sqlite3.Connection, table: str, name: str, value: str, image_id: str) -> bool:
    """Point a tag or a digest at the image; say whether it pointed elsewhere."""
    before = db.execute(f"SELECT image FROM {table} WHERE name = ? AND {table} = ?", (name, value)).fetchone()
    if before and before[0] == image_id:
        return False
    db.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?)", (name, value, image_id))
    return True


def _unname(db: sqlite3.Connection, reference: Reference) -> None:
    column, value = ("digest", reference.digest) if reference.digest else ("tag", reference.tag)
    db.execute(f"DELETE FROM {column} WHERE name = ? AND {column} = ?", (reference.name, value))


def _going_with(reference: Reference, have: Sequence[Reference]) -> Sequence[Reference]:
    """Return what goes with a name: the digests of its repository, if it is the last tag there."""
    siblings = [other for other in have if other.name == reference.name and other != reference]
    if reference.digest or any(other.tag for other in siblings):
        return [reference]
    return [reference, *siblings]


def _single(references: Sequence[Reference]) -> bool:
    """Say whether the names are at most one tag, all of one repository (moby, isSingleReference)."""
    return len([one for one in references if one.tag]) <= 1 and len({one.name for one in references}) <= 1


def _no_such_image(text: str, *, pullable: bool = True) -> NotFound:
    pull = f"; `transom pull {text}` fetches it" if pullable else ""
    return NotFound(f"no such image: {text}; `transom images` lists those here{pull}")
