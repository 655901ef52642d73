"""A registry's image into content and records. Unpacking is `images.unpack`'s."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import msgspec

from transom.errors import DriverError, NotSupported
from transom_engine.images import names, spec
from transom_engine.images.content import ContentStore
from transom_engine.images.names import Reference
from transom_engine.images.registry import Cancelled, Registry, Settings
from transom_engine.images.spec import Descriptor, Manifest, Platform
from transom_engine.images.store import Image, ImageStore

PARALLEL = 3
_REPORT_SECONDS = 0.1
_CONFIG_LIMIT = 8 << 20
_MOST_NESTED = 3


class Progress(msgspec.Struct, frozen=True):
    """One line of ``docker pull``'s display.

    Attributes:
        layer: the layer's digest, or empty for a line about the whole image.
        status: Docker's word: "Pulling fs layer", "Waiting", "Downloading", "Verifying Checksum", "Download
            complete" or "Already exists".
        current: bytes here of `total`, for "Downloading".
    """

    layer: str
    status: str
    current: int = 0
    total: int = 0


class Pulled(msgspec.Struct, frozen=True):
    """What a pull brought.

    Attributes:
        digest: what the registry knows the image by: for several platforms, the index's.
        newer: whether the name now means another image, or was not here at all.
    """

    image: Image
    reference: Reference
    digest: str
    newer: bool

    @property
    def status(self) -> str:
        """Docker's closing line."""
        what = "Downloaded newer image for" if self.newer else "Image is up to date for"
        return f"Status: {what} {self.reference.familiar()}"


def pull(
    reference: Reference | str,
    *,
    content: ContentStore,
    store: ImageStore,
    platform: str = "",
    settings: Settings | None = None,
    parallel: int = PARALLEL,
    progress: Callable[[Progress], None] = lambda event: None,
) -> Pulled:
    """Fetch an image, as far as its blobs are not here, and record it under its name.

    Killed at any point it leaves whole blobs and continuable ones, and the next pull goes on from there.

    Args:
        platform: "linux/arm64", say; empty chooses what suits this host.
        parallel: how many layers are fetched at once.
        progress: called from several threads, but never from two at once.

    Raises:
        ConfigError: the name or the platform is off.
        NotFound: the registry has no such image, or none for the platform; those there are listed.
        NotSupported: the image is of a kind that is not supported.
        DriverError: the registry refuses or fails, a blob is not what its digest says, or the disk is full.
    """
    wanted = names.parse(reference) if isinstance(reference, str) else reference
    with content.lease():
        return _Pull(
            wanted, content=content, store=store, settings=settings, parallel=parallel, progress=progress
        ).run(platform)  # fmt: skip


class _Pull:
    def __init__(
        self,
        reference: Reference,
        *,
        content: ContentStore,
        store: ImageStore,
        settings: Settings | None,
        parallel: int,
        progress: Callable[[Progress], None],
    ) -> None:
        self._reference, self._content, self._store, self._progress = reference, content, store, progress
        self._parallel = parallel
        self._cancelled, self._lock = threading.Event(), threading.Lock()
        self._registry = Registry(reference.domain, settings=settings, cancelled=self._cancelled)
        self._subject = reference.familiar()

    def run(self, platform: str) -> Pulled:
        runs_on = spec.parse_platform(platform)
        with self._registry:
            asked = self._reference.digest or self._reference.tag
            self._say("", f"{asked}: Pulling from {self._reference.path}")
            top = self._registry.manifest(self._reference)
            self._content.ingest(top.body, digest=top.digest)
            manifest, digest, listed = self._choose(top.body, top.media_type, top.digest, runs_on)
            self._check_kinds(manifest)
            config = self._config(manifest.config)
            self._check_platform(config, runs_on, strict=bool(platform) and not listed)
            layers = spec.layers_of(descriptors=manifest.layers, config=config, subject=self._subject)
            self._fetch_all(manifest.layers)
        image = Image(
            id=manifest.config.digest,
            manifest=digest,
            layers=layers,
            raw_config=self._content.read(manifest.config.digest),
        )
        newer = self._store.record(image, reference=self._reference, digest=top.digest)
        return Pulled(image=image, reference=self._reference, digest=top.digest, newer=newer)

    def _choose(self, body: bytes, media_type: str, digest: str, platform: Platform) -> tuple[Manifest, str, bool]:
        """Go down from an index to the manifest for the platform; say whether there was an index."""
        for depth in range(_MOST_NESTED):
            document = spec.decode_manifest(body, media_type=media_type, subject=self._subject)
            if isinstance(document, Manifest):
                return document, digest, depth > 0
            entry = spec.choose(document, platform=platform, subject=self._subject)
            if self._content.has(entry.digest):
                body = self._content.read(entry.digest)
            else:
                body = self._registry.manifest(self._reference, digest=entry.digest).body
                self._content.ingest(body, digest=entry.digest)
            media_type, digest = entry.media_type, entry.digest
        raise NotSupported(f"{self._subject} nests lists of manifests more than {_MOST_NESTED} deep")

    def _check_kinds(self, manifest: Manifest) -> None:
        if manifest.config.media_type not in spec.CONFIGS:
            raise NotSupported(
                f"{self._subject} is no container image: its configuration is of type {manifest.config.media_type}"
            )
        for layer in manifest.layers:
            names.check_digest(layer.digest)
            if layer.media_type not in spec.LAYERS:
                raise NotSupported(
                    f"{self._subject} has a layer of type {layer.media_type}; supported are"
                    f" {', '.join(sorted(spec.LAYERS))}"
                )

    def _check_platform(self, config: spec.ImageConfig, wanted: Platform, *, strict: bool) -> None:
        have = spec.parse_platform("/".join(part for part in (config.os, config.architecture, config.variant) if part))
        if config.os != "linux":
            raise NotSupported(f"{self._subject} is an image for {have}, which does not run on Linux")
        if strict and have not in spec.compatible(wanted):
            raise spec.no_platform(self._subject, wanted, [have])

    def _config(self, descriptor: Descriptor) -> spec.ImageConfig:
        if descriptor.size > _CONFIG_LIMIT:
            raise NotSupported(
                f"{self._subject} has a configuration of {descriptor.size} bytes; at most {_CONFIG_LIMIT}"
            )
        self._fetch(descriptor, quiet=True)
        return spec.decode_config(self._content.read(descriptor.digest), subject=self._subject)

    def _fetch_all(self, layers: Sequence[Descriptor]) -> None:
        """Fetch the layers, some at once; the first failure ends all and is raised."""
        missing: dict[str, Descriptor] = {}
        for layer in layers:
            if self._content.has(layer.digest):
                self._say(layer.digest, "Already exists")
            elif layer.digest not in missing:
                missing[layer.digest] = layer
                self._say(layer.digest, "Pulling fs layer")
        queue = list(missing.values())
        for layer in queue[self._parallel :]:
            self._say(layer.digest, "Waiting")
        failures: list[BaseException] = []

        def work() -> None:
            try:
                while not self._cancelled.is_set():
                    try:
                        layer = queue.pop(0)
                    except IndexError:
                        return
                    self._fetch(layer)
            except BaseException as error:
                failures.append(error)
                self._cancelled.set()

        # Daemon threads: one may wait on another process's download, which must not keep this one from ending.
        workers = [threading.Thread(target=work, daemon=True) for _ in queue[: self._parallel]]
        for worker in workers:
            worker.start()
        try:
            for worker in workers:
                while worker.is_alive() and not (self._cancelled.is_set() and failures):
                    worker.join(_REPORT_SECONDS)
        finally:
            if any(worker.is_alive() for worker in workers):
                self._cancelled.set()
                for worker in workers:
                    worker.join(1)
        for failure in sorted(failures, key=lambda error: isinstance(error, Cancelled)):
            raise failure

    def _fetch(self, blob: Descriptor, *, quiet: bool = False) -> None:
        """Fetch one blob. A damaged part from a former attempt costs a second try, from its first byte."""
        say = (lambda *_: None) if quiet else self._say
        for last in (False, True):
            with self._content.writer(digest=blob.digest, size=blob.size) as writer:
                if writer.complete:
                    say(blob.digest, "Already exists")
                    return
                continued = writer.offset > 0
                reported = 0.0

                def report(here: int) -> None:
                    nonlocal reported
                    if time.monotonic() - reported >= _REPORT_SECONDS:
                        reported = time.monotonic()
                        say(blob.digest, "Downloading", here, blob.size)

                self._registry.blob(self._reference, writer, digest=blob.digest, size=blob.size, progress=report)
                say(blob.digest, "Downloading", writer.offset, blob.size)
                say(blob.digest, "Verifying Checksum")
                try:
                    writer.commit()
                except DriverError as error:
                    if last or not continued or error.errno:
                        raise
                    continue
            say(blob.digest, "Download complete")
            return

    def _say(self, layer: str, status: str, current: int = 0, total: int = 0) -> None:
        with self._lock:
            self._progress(Progress(layer=layer, status=status, current=current, total=total))
