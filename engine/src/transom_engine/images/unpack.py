"""An image's layers into a storage driver, each verified on its way."""

from __future__ import annotations

import fcntl
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol

from transom.errors import Conflict, ContractError, DriverError, NotFound
from transom_engine.images.content import ContentStore
from transom_engine.images.spec import Layer
from transom_engine.images.store import Image

if TYPE_CHECKING:
    from transom.services.snapshots import Snapshots

_PREFIX = "unpack-"


class VerifiedStream(io.RawIOBase):
    """A layer's uncompressed tar. `finish` reads what is left and raises unless all of it had the right digest.

    Attributes:
        digest: of the blob that it comes from; while it is unpacked, no other process unpacks the same blob.
        length: how much was read, in bytes.
    """

    def __init__(self, source: IO[bytes], *, diff_id: str, digest: str) -> None:
        from hashlib import sha256

        self._source, self._hash, self.diff_id, self.digest = source, sha256(), diff_id, digest
        self.length, self.verified = 0, False

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        self.length += len(data)
        return data

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]  # typeshed has no name for a writable buffer in 3.11
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def finish(self) -> None:
        """Verify the digest. To be called before the layer is made to last; calling it twice is harmless.

        Raises:
            DriverError: the content is not what the image's configuration says, or is damaged.
        """
        while self.read(1 << 20):
            pass
        found = f"sha256:{self._hash.hexdigest()}"
        if found != self.diff_id:
            raise DriverError(
                "unpack", driver="image layer", subject=self.diff_id,
                cause=f"digest mismatch: the uncompressed content's is {found}",
                hint="the image is damaged where it comes from; the layer was not kept",
            )  # fmt: skip
        self.verified = True


class LayerTarget(Protocol):
    """Where layers are unpacked; each is named by its chain id."""

    def exists(self, *, chain_id: str) -> bool:
        """Say whether the layer is here, whole."""

    def apply(self, *, chain_id: str, parent: str | None, stream: VerifiedStream) -> int | None:
        """Unpack an uncompressed tar upon `parent`, call ``stream.finish()``, and only then make the layer last.

        Returns:
            the sum of the sizes of the layer's files, in bytes, if known.

        Raises:
            Conflict: the layer exists.
        """


class SnapshotTarget:
    """Core's layers of one storage driver as the target.

    A layer is made under a name of its own, ``unpack-BLOB-CHAIN``, and gets its chain id when it is whole and
    verified. What a killed process left under such a name goes when the layer is next unpacked, or by `recover`.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots

    def exists(self, *, chain_id: str) -> bool:
        return self._snapshots.exists(chain_id)

    def apply(self, *, chain_id: str, parent: str | None, stream: VerifiedStream) -> int | None:
        key = f"{_PREFIX}{stream.digest[7:]}-{chain_id[7:]}"
        self._snapshots.remove(key)
        self._snapshots.prepare(key, parent)
        try:
            size = self._snapshots.apply(key, stream)  # type: ignore[arg-type]  # a raw stream is an IO[bytes] but in name
            stream.finish()
            self._snapshots.commit(key, chain_id)
        except BaseException:
            self._snapshots.remove(key)
            raise
        return size

    def recover(self, *, content: ContentStore) -> list[str]:
        """Remove the layers that no process is unpacking any more; say what was removed. Idempotent."""
        said: list[str] = []
        for layer in self._snapshots.walk():
            if layer.key.startswith(_PREFIX):
                digest = f"sha256:{layer.key[len(_PREFIX) :].partition('-')[0]}"
                try:
                    with content.open(digest) as blob:
                        fcntl.flock(blob, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        self._snapshots.remove(layer.key)
                except BlockingIOError:
                    continue
                except NotFound:
                    self._snapshots.remove(layer.key)
                said.append(f"images: removed the half-unpacked layer {layer.key[len(_PREFIX) :][:12]}")
        return said


@contextmanager
def open_layer(layer: Layer, content: ContentStore) -> Iterator[VerifiedStream]:
    """Open a layer's tar; meanwhile no other process unpacks it.

    Raises:
        NotFound: its blob is missing.
    """
    from transom_engine.images.compression import decompress

    with content.open(layer.digest) as blob:
        fcntl.flock(blob, fcntl.LOCK_EX)
        plain = decompress(blob, subject=layer.digest)
        yield VerifiedStream(plain, diff_id=layer.diff_id, digest=layer.digest)


def unpack(
    image: Image,
    *,
    layers: LayerTarget,
    content: ContentStore,
    progress: Callable[[str, str], None] | None = None,
    measured: Callable[[str, int], None] | None = None,
) -> str | None:
    """Unpack those of an image's layers that are missing, the lowest first.

    Another process doing the same at the same time is no fault: who comes second finds the layer there.

    Args:
        progress: told the layer's digest and Docker's word: "Extracting", then "Pull complete".
        measured: told a layer's diff id and the bytes of its files, for `ImageStore.note_unpacked`.

    Returns:
        the chain id of the whole image; None if it has no layer.

    Raises:
        DriverError: a layer is not what the image's configuration says; it and those above it were not kept.
        NotFound: a blob is missing.
    """
    parent: str | None = None
    for layer in image.layers:
        if not layers.exists(chain_id=layer.chain_id):
            if progress:
                progress(layer.digest, "Extracting")
            with open_layer(layer, content) as stream:
                try:
                    if layers.exists(chain_id=layer.chain_id):
                        raise Conflict(f"layer {layer.chain_id} was unpacked by another process")
                    size = layers.apply(chain_id=layer.chain_id, parent=parent, stream=stream)
                except Conflict:
                    if not layers.exists(chain_id=layer.chain_id):
                        raise
                else:
                    if not stream.verified:
                        raise ContractError(f"a layer target kept {layer.chain_id} before stream.finish() verified it")
                    if measured:
                        measured(layer.diff_id, stream.length if size is None else size)
            if progress:
                progress(layer.digest, "Pull complete")
        parent = layer.chain_id
    return parent
