"""Images made here: from a tar, from a directory, from what a container changed."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Any

import msgspec

from transom.errors import ConfigError
from transom_engine.images import names, spec
from transom_engine.images.changes import apply_changes
from transom_engine.images.compression import Head, decompress, detect
from transom_engine.images.content import ContentStore, Writer
from transom_engine.images.spec import Descriptor, ImageConfig, Layer
from transom_engine.images.store import Image, ImageStore, timestamp
from transom_engine.images.tarcheck import check_tar

if TYPE_CHECKING:
    from transom_engine.images.names import Reference

_BUFFER = 1 << 20


def import_tar(
    source: str | IO[bytes],
    *,
    content: ContentStore,
    store: ImageStore,
    reference: str = "",
    changes: Sequence[str] = (),
    message: str = "",
    platform: str = "",
) -> Image:
    """Make an image of one layer, as ``docker import`` does.

    Args:
        source: a tar, plain or compressed (gzip, zstd, bzip2, xz), as a stream that is read once, or the path of
            one, or of a directory, whose tree is taken as it is.
        reference: what to call it; empty leaves it untagged.
        changes: Dockerfile instructions, see `images.changes`.
        message: kept in the image's history.
        platform: what it runs on; empty is this host.

    Raises:
        ConfigError: the tar is damaged or none, or a word is off; nothing was kept.
        DriverError: the disk is full.
    """
    wanted = _tag(reference)
    made_for, now = spec.parse_platform(platform), _now()
    config = ImageConfig(
        architecture=made_for.architecture,
        os=made_for.os,
        variant=made_for.variant,
        created=now,
        config=apply_changes({}, changes),
    )
    step = spec.History(created=now, comment=message or f"Imported from {_origin(source)}")
    with content.lease():
        layer = _store_source(source, content=content)
        return _assemble(
            config=config, step=step, below=(), layer=layer, reference=wanted, content=content, store=store
        )


def commit(
    stream: IO[bytes],
    *,
    parent: Image | None,
    config: dict[str, Any],
    content: ContentStore,
    store: ImageStore,
    reference: str = "",
    changes: Sequence[str] = (),
    author: str = "",
    message: str = "",
    created_by: str = "",
) -> Image:
    """Make an image of another one and a layer upon it, as ``docker commit`` does.

    Args:
        stream: the layer's tar, plain, as `Snapshots.diff` writes it.
        config: Docker's container configuration for the new image.
        created_by: the command that made the changes.

    Raises:
        ConfigError: a word is off.
        DriverError: the disk is full.
    """
    wanted = _tag(reference)
    base = parent.config if parent else ImageConfig(architecture=spec.parse_platform("").architecture)
    now = _now()
    made = msgspec.structs.replace(
        base, created=now, author=author, config=apply_changes(config, changes), comment=message
    )
    step = spec.History(created=now, created_by=created_by, author=author, comment=message)
    with content.lease():
        layer = _store_source(stream, content=content)
        below = parent.layers if parent else ()
        return _assemble(
            config=made, step=step, below=below, layer=layer, reference=wanted, content=content, store=store,
            parent=parent.id if parent else "",
        )  # fmt: skip


def _assemble(
    *,
    config: ImageConfig,
    step: spec.History,
    below: tuple[Layer, ...],
    layer: tuple[Descriptor, str],
    reference: Reference | None,
    content: ContentStore,
    store: ImageStore,
    parent: str = "",
) -> Image:
    """Write configuration and manifest, and record the image."""
    blob, diff_id = layer
    blobs = [Descriptor(media_type=low.media_type, digest=low.digest, size=low.size) for low in below] + [blob]
    whole = msgspec.structs.replace(
        config,
        rootfs=spec.RootFS(diff_ids=[*(low.diff_id for low in below), diff_id]),
        history=[*(config.history or []), step],
    )
    body = msgspec.json.encode(whole)
    image_id = content.ingest(body)
    manifest = spec.Manifest(
        config=Descriptor(media_type=spec.OCI_CONFIG, digest=image_id, size=len(body)), layers=blobs
    )
    image = Image(
        id=image_id,
        manifest=content.ingest(msgspec.json.encode(manifest)),
        layers=spec.layers_of(descriptors=blobs, config=whole, subject=image_id),
        raw_config=body,
        parent=parent,
    )
    store.record(image, reference=reference)
    return image


def _tag(reference: str) -> Reference | None:
    if not reference:
        return None
    parsed = names.parse(reference)
    if parsed.digest:
        raise ConfigError(f"cannot call the image {reference}: a digest cannot be chosen; leave it out")
    return parsed


def _now() -> str:
    import time

    return timestamp(time.time())


def _origin(source: str | IO[bytes]) -> str:
    return os.path.basename(os.path.abspath(source)) if isinstance(source, str) and source != "-" else "-"


def _store_source(source: str | IO[bytes], *, content: ContentStore) -> tuple[Descriptor, str]:
    if not isinstance(source, str):
        return _store_tar(source, content=content)
    if os.path.isdir(source):
        return _store_directory(source, content=content)
    try:
        with open(source, "rb") as file:
            return _store_tar(file, content=content)
    except OSError as error:
        raise ConfigError(f"cannot read {source}: {error.strerror}; give a tar or a directory") from None


def _store_directory(root: str, *, content: ContentStore) -> tuple[Descriptor, str]:
    from transom.services.archive import write_tree

    with content.writer() as writer:
        buffer = io.BufferedWriter(_Sink(writer), _BUFFER)
        write_tree(root=root, out=buffer)
        buffer.flush()
        digest = writer.commit()
        return Descriptor(media_type=spec.OCI_LAYER, digest=digest, size=writer.offset), digest


def _store_tar(source: IO[bytes], *, content: ContentStore) -> tuple[Descriptor, str]:
    """Keep a plain, gzip or zstd tar as it came, others uncompressed; check every header on the way."""
    from hashlib import sha256

    head = Head(source)
    kind, hashed = detect(head.head), sha256()
    as_it_came = kind in ("gzip", "zstd")
    with content.writer() as writer:
        raw: IO[bytes] = io.BufferedReader(_Tee(head, writer) if as_it_came else head, _BUFFER)

        def seen(data: bytes) -> None:
            hashed.update(data)
            if not as_it_came:
                writer.write(data)

        check_tar(decompress(raw, subject="the import", kind=kind), seen=seen)
        if as_it_came:
            # What follows the compressed data belongs to the blob, though not to the layer.
            while raw.read(_BUFFER):
                pass
        digest = writer.commit()
        suffix = f"+{kind}" if as_it_came else ""
        blob = Descriptor(media_type=spec.OCI_LAYER + suffix, digest=digest, size=writer.offset)
    return blob, f"sha256:{hashed.hexdigest()}"


class _Sink(io.RawIOBase):
    """A blob's writer as a file."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._writer.write(data)
        return len(data)


class _Tee(io.RawIOBase):
    """A stream that writes what is read from it to a blob."""

    def __init__(self, source: io.RawIOBase, writer: Writer) -> None:
        self._source, self._writer = source, writer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        count = self._source.readinto(buffer)
        if count:
            self._writer.write(memoryview(buffer)[:count].tobytes())
        return count
