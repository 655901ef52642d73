"""Blobs by digest, in an OCI image layout (image-spec, image-layout.md).

    oci-layout, index.json        what makes the directory a layout; images are named by `images.store`, not here
    blobs/sha256/HEX              whole, verified and synced, or absent
    ingest/NAME.partial           being written; the writer holds an flock(2) on it
    lock                          held shared while blobs are fetched that no record names yet, alone to collect

A partial blob of a known digest stays after a crash or a lost connection and is continued by the next writer. A
partial without one is garbage as soon as nobody holds its lock.
"""

from __future__ import annotations

import _thread
import fcntl
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING

from transom.errors import DriverError, NotFound
from transom.services.files import Lock, sync_directory, write_atomic

if TYPE_CHECKING:
    from hashlib import _Hash

_STALE = 7 * 24 * 3600
_PIECE = 1 << 20
_laying_out = _thread.allocate_lock()


class ContentStore:
    """The blobs under one directory; several processes may use it at once."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self._blobs = f"{self.root}/blobs/sha256"
        self._ingest = f"{self.root}/ingest"

    def path(self, digest: str) -> str:
        """Return where the blob is, or would be."""
        return f"{self._blobs}/{_hex(digest)}"

    def has(self, digest: str) -> bool:
        """Say whether the whole blob is here."""
        return os.path.exists(self.path(digest))

    def size(self, digest: str) -> int:
        """Return the blob's size in bytes.

        Raises:
            NotFound: it is not here.
        """
        try:
            return os.stat(self.path(digest)).st_size
        except FileNotFoundError:
            raise _absent(digest) from None

    def open(self, digest: str) -> IO[bytes]:
        """Open the blob for reading.

        Raises:
            NotFound: it is not here.
        """
        try:
            return open(self.path(digest), "rb")
        except FileNotFoundError:
            raise _absent(digest) from None

    def read(self, digest: str) -> bytes:
        """Return a small blob as a whole.

        Raises:
            NotFound: it is not here.
        """
        with self.open(digest) as file:
            return file.read()

    def walk(self) -> Iterator[str]:
        """Yield the digest of every whole blob."""
        try:
            names = os.listdir(self._blobs)
        except FileNotFoundError:
            return
        yield from (f"sha256:{name}" for name in sorted(names))

    def delete(self, digest: str) -> None:
        """Remove the blob. Absent is harmless."""
        try:
            os.unlink(self.path(digest))
        except FileNotFoundError:
            pass

    def writer(self, *, digest: str = "", size: int | None = None) -> Writer:
        """Begin or continue a blob; see `Writer`. Waits while another process writes the same one."""
        self._prepare()
        return Writer(self, digest=digest, size=size)

    def ingest(self, source: bytes | IO[bytes] | Iterable[bytes], *, digest: str = "", size: int | None = None) -> str:
        """Store a blob from a source that begins at its first byte, and return its digest.

        What a former attempt left of it is not fetched from the source but skipped over. Storing what is
        already here reads nothing.

        Args:
            digest: what it must be; empty when that is not known beforehand.
            size: how long it must be, in bytes.

        Raises:
            DriverError: digest or size are not those given (nothing is kept), or the disk is full.
        """
        with self.writer(digest=digest, size=size) as writer:
            if not writer.complete:
                skip = writer.offset
                for piece in _pieces(source):
                    if skip >= len(piece):
                        skip -= len(piece)
                    else:
                        writer.write(piece[skip:])
                        skip = 0
            return writer.commit()

    @contextmanager
    def lease(self) -> Iterator[None]:
        """Keep `collect` away from blobs that no record names yet. Held by a pull until it is recorded."""
        self._prepare()
        with Lock(f"{self.root}/lock", shared=True):
            yield

    def collect(self, keep: Iterable[str], *, stale: float = _STALE, dry: bool = False) -> list[str] | None:
        """Remove every blob that is not in `keep`, and partials that nobody writes.

        Args:
            keep: digests; read only once the store is held alone, so a lazy iterable sees the last records.
            stale: seconds after which a partial that could be continued is given up.
            dry: remove nothing, only say what would go.

        Returns:
            the digests removed, and the names of the partials; nothing at all, None, when a lease is held: what is
            left goes the next time.
        """
        import time

        if not os.path.isdir(self._ingest):
            return []
        lock = Lock(f"{self.root}/lock")
        if not lock.acquire(wait=False):
            return None
        removed: list[str] = []
        try:
            kept = set(keep)
            for digest in self.walk():
                if digest not in kept:
                    if not dry:
                        self.delete(digest)
                    removed.append(digest)
            for name in os.listdir(self._ingest):
                path = f"{self._ingest}/{name}"
                old = not name.startswith("sha256-") or os.stat(path).st_mtime < time.time() - stale
                if old and _idle(path, unlink=not dry):
                    removed.append(name)
        finally:
            lock.release()
        return removed

    def _prepare(self) -> None:
        if os.path.exists(f"{self.root}/index.json"):
            return
        with _laying_out:
            for directory in (self._blobs, self._ingest):
                os.makedirs(directory, mode=0o700, exist_ok=True)
            write_atomic(f"{self.root}/oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
            write_atomic(f"{self.root}/index.json", b'{"schemaVersion":2,"manifests":[]}')


class Writer:
    """One blob on its way in, as a context; leaving it uncommitted keeps a partial that can be continued.

    Attributes:
        offset: how many bytes are here; the source goes on from there.
        complete: the whole blob is already in the store: nothing need be written.
    """

    def __init__(self, store: ContentStore, *, digest: str, size: int | None) -> None:
        self._store, self._digest, self._size = store, digest, size
        self._name = f"sha256-{_hex(digest)}" if digest else f"anonymous-{os.urandom(16).hex()}"
        self._path = f"{store._ingest}/{self._name}.partial"
        self.offset, self.complete, self._fd = 0, False, -1

    def __enter__(self) -> Writer:
        from hashlib import sha256

        self._hash: _Hash = sha256()
        while not self.complete:
            if self._digest and self._store.has(self._digest):
                self.complete = True
                return self
            with self._faults():
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # The former holder may have renamed or removed the file that this descriptor is of.
                if _same_file(fd, self._path):
                    self._fd = fd
                    break
            finally:
                if self._fd < 0:
                    os.close(fd)
        while piece := os.read(self._fd, _PIECE):
            self._hash.update(piece)
            self.offset += len(piece)
        if self._size is not None and self.offset > self._size:
            self.restart()
        return self

    def restart(self) -> None:
        """Throw away what is here and begin at the first byte."""
        from hashlib import sha256

        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash, self.offset = sha256(), 0

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            DriverError: the disk is full, or the blob grows past its size.
        """
        if self._size is not None and self.offset + len(data) > self._size:
            self._reject(f"it is longer than the {self._size} bytes announced")
        with self._faults():
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]
        self._hash.update(data)
        self.offset += len(data)

    def commit(self) -> str:
        """Verify, sync and publish the blob; return its digest.

        Raises:
            DriverError: it is not the blob announced; what was written is then removed.
        """
        if self.complete:
            return self._digest
        digest = f"sha256:{self._hash.hexdigest()}"
        if self._size is not None and self.offset < self._size:
            self._reject(f"it has {self.offset} of {self._size} bytes")
        if self._digest and digest != self._digest:
            self._reject(f"digest mismatch: the content's is {digest}")
        with self._faults():
            os.fsync(self._fd)
            os.rename(self._path, self._store.path(digest))
            sync_directory(self._store._blobs)
        self.complete = True
        return digest

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            if not self.complete and (not self._digest or not self.offset):
                self._unlink()
            os.close(self._fd)
            self._fd = -1

    def _reject(self, reason: str) -> None:
        self.restart()
        raise DriverError(
            "verify", driver="image content", subject=self._digest, cause=reason,
            hint="nothing of it was kept; pull again, and if that fails too its source is damaged",
        )  # fmt: skip

    def _unlink(self) -> None:
        try:
            os.unlink(self._path)
        except FileNotFoundError:
            pass

    @contextmanager
    def _faults(self) -> Iterator[None]:
        import errno

        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            hint = f"free space under {self._store.root} and try again" if full else f"look at {self._store.root}"
            raise DriverError("write", driver="image content", subject=self._digest, cause=error, hint=hint) from error


def _hex(digest: str) -> str:
    from transom_engine.images.names import check_digest

    return check_digest(digest)[7:]


def _absent(digest: str) -> NotFound:
    return NotFound(f"blob {digest} is not here; pull its image again")


def _same_file(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _idle(path: str, *, unlink: bool) -> bool:
    """Say whether nobody is writing the partial, and then remove it where asked."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        idle = _same_file(fd, path)
        if idle and unlink:
            os.unlink(path)
        return idle
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def _pieces(source: bytes | IO[bytes] | Iterable[bytes]) -> Iterable[bytes]:
    if isinstance(source, bytes):
        return (source,)
    if hasattr(source, "read"):
        return iter(lambda: source.read(_PIECE), b"")
    return source
