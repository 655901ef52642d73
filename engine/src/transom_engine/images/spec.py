"""The data of the OCI image-spec (descriptor.md, manifest.md, image-index.md, config.md) and Docker's schema 2.

Decoding ignores what it does not know; what is sent on or stored is always the original bytes, since digests
depend on them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from transom.errors import ConfigError, DriverError, NotFound, NotSupported, choices

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"

INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})
LAYERS = frozenset(
    {OCI_LAYER, f"{OCI_LAYER}+gzip", f"{OCI_LAYER}+zstd", DOCKER_LAYER, f"{DOCKER_LAYER}.gzip", f"{DOCKER_LAYER}.zstd"}
)


class Platform(msgspec.Struct, frozen=True):
    """What an image runs on, in Go's words: linux, amd64, and for arm a variant."""

    os: str = "linux"
    architecture: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """A blob: what it is, its digest, and its size in bytes."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None
    urls: list[str] | None = None


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    """An image for one platform: its configuration and its layers, the lowest first."""

    config: Descriptor
    layers: list[Descriptor]
    schema_version: int = 2
    media_type: str = OCI_MANIFEST


class Index(msgspec.Struct, frozen=True, rename="camel"):
    """The same image for several platforms (Docker: a manifest list)."""

    manifests: list[Descriptor]
    schema_version: int = 2
    media_type: str = OCI_INDEX


class Layer(msgspec.Struct, frozen=True):
    """A layer of an image.

    Attributes:
        digest: of the blob as it is stored, usually compressed.
        diff_id: of the uncompressed tar.
        chain_id: of this layer upon all below it; the name under which it is unpacked.
        size: of the blob, in bytes.
    """

    digest: str
    diff_id: str
    chain_id: str
    size: int
    media_type: str


class RootFS(msgspec.Struct, frozen=True):
    """The layers of an image by the digests of their uncompressed tars."""

    diff_ids: list[str] | None = None
    type: str = "layers"


class History(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one layer came to be; an `empty_layer` changed only the configuration."""

    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class ImageConfig(msgspec.Struct, frozen=True):
    """An image's configuration; `config` is in the shape of Docker's container configuration."""

    architecture: str = ""
    os: str = "linux"
    variant: str = ""
    created: str | None = None
    author: str = ""
    config: dict[str, Any] | None = None
    rootfs: RootFS = msgspec.field(default_factory=RootFS)
    history: list[History] | None = None
    docker_version: str = ""
    os_version: str = msgspec.field(default="", name="os.version")
    comment: str = ""


def digest_of(data: bytes) -> str:
    """Return the sha256 digest of some bytes."""
    from hashlib import sha256

    return f"sha256:{sha256(data).hexdigest()}"


def chain_ids(diff_ids: list[str]) -> list[str]:
    """Return the chain id of each layer, the lowest first (image-spec, config.md, "Layer ChainID")."""
    chain: list[str] = []
    for diff_id in diff_ids:
        chain.append(digest_of(f"{chain[-1]} {diff_id}".encode()) if chain else diff_id)
    return chain


def layers_of(*, descriptors: list[Descriptor], config: ImageConfig, subject: str) -> tuple[Layer, ...]:
    """Join a manifest's layers with the configuration's diff ids.

    Raises:
        DriverError: their numbers differ.
    """
    diff_ids = config.rootfs.diff_ids or []
    if len(diff_ids) != len(descriptors):
        raise DriverError(
            "read", driver="image", subject=subject,
            cause=f"the manifest lists {len(descriptors)} layers and the configuration {len(diff_ids)}",
            hint="its publisher must push it again",
        )  # fmt: skip
    return tuple(
        Layer(digest=blob.digest, diff_id=diff_id, chain_id=chain_id, size=blob.size, media_type=blob.media_type)
        for blob, diff_id, chain_id in zip(descriptors, diff_ids, chain_ids(diff_ids), strict=True)
    )


def decode_manifest(body: bytes, *, media_type: str, subject: str) -> Manifest | Index:
    """Read a manifest or an index.

    Args:
        media_type: as the registry says it; the document's own `mediaType` and then its fields decide if that
            is neither.

    Raises:
        NotSupported: schema 1, or a document of another kind.
        DriverError: it is damaged.
    """
    try:
        facts = _FACTS.decode(body)
        kind = media_type if media_type in INDEXES | MANIFESTS else facts.media_type
        if facts.schema_version == 1 or kind.startswith("application/vnd.docker.distribution.manifest.v1"):
            raise NotSupported(
                f"{subject} is an image of manifest schema 1, which is obsolete; its publisher must push it again"
                " with a current docker, podman or buildkit"
            )
        if kind in INDEXES or (kind not in MANIFESTS and facts.manifests is not None):
            return _INDEX.decode(body)
        if kind in MANIFESTS or facts.layers is not None:
            return _MANIFEST.decode(body)
    except msgspec.MsgspecError as error:
        raise DriverError(
            "read manifest", driver="image", subject=subject, cause=error, hint="its publisher must push it again"
        ) from None
    raise NotSupported(
        f"{subject} has the media type {kind or media_type or 'none'}, which is no image;"
        f" supported are {choices(INDEXES | MANIFESTS)}"
    )


class _Facts(msgspec.Struct, rename="camel"):
    schema_version: int = 0
    media_type: str = ""
    manifests: Any = None
    layers: Any = None


# Made at import, for layers and images are fetched by several threads.
_FACTS, _INDEX, _MANIFEST = msgspec.json.Decoder(_Facts), msgspec.json.Decoder(Index), msgspec.json.Decoder(Manifest)
_CONFIG = msgspec.json.Decoder(ImageConfig)


def decode_config(body: bytes, *, subject: str) -> ImageConfig:
    """Read an image's configuration.

    Raises:
        DriverError: it is damaged.
    """
    try:
        return _CONFIG.decode(body)
    except msgspec.MsgspecError as error:
        raise DriverError(
            "read configuration", driver="image", subject=subject, cause=error,
            hint="its publisher must push it again",
        ) from None  # fmt: skip


_MACHINES = {
    "x86_64": "amd64", "x86-64": "amd64", "i386": "386", "i486": "386", "i586": "386", "i686": "386",
    "aarch64": "arm64", "armv8l": "arm64", "armhf": "arm/v7", "armv7l": "arm/v7", "armel": "arm/v6", "armv6l": "arm/v6",
    "armv5l": "arm/v5", "loongarch64": "loong64",
}  # fmt: skip
_ARM = ("v8", "v7", "v6", "v5")


def parse_platform(text: str) -> Platform:
    """Read ``os/architecture[/variant]``, ``os`` or ``architecture``; empty is this host.

    Raises:
        ConfigError: it reads otherwise.
    """
    import os

    words = text.lower().split("/") if text else ["linux", os.uname().machine]
    if len(words) == 1:
        words = [words[0], os.uname().machine] if words[0] in ("linux", "windows", "darwin") else ["linux", words[0]]
    if len(words) > 3 or not all(word.replace("-", "").replace("_", "").isalnum() for word in words):
        raise ConfigError(f"invalid platform {text}: it reads OS/ARCHITECTURE[/VARIANT], for example linux/amd64")
    architecture, _, implied = _MACHINES.get(words[1], words[1]).partition("/")
    variant = words[2] if len(words) == 3 else implied
    if variant.isdigit():
        variant = f"v{variant}"
    return _normal(Platform(os=words[0], architecture=architecture, variant=variant))


def _normal(platform: Platform) -> Platform:
    """Write the default variants one way: arm is v7, arm64 is v8 unsaid, amd64 is v1 unsaid (as containerd does)."""
    default = {"arm64": "v8", "amd64": "v1"}.get(platform.architecture)
    variant = "" if platform.variant == default else platform.variant
    if platform.architecture == "arm" and not variant:
        variant = "v7"
    return Platform(os=platform.os, architecture=platform.architecture, variant=variant)


def compatible(platform: Platform) -> list[Platform]:
    """List what runs on the platform, the best first: arm runs older arm, arm64 runs arm, amd64 runs 386."""
    os, architecture, variant = platform.os, platform.architecture, platform.variant
    chain = [platform]
    if architecture == "arm" and variant in _ARM:
        chain += [Platform(os=os, architecture="arm", variant=older) for older in _ARM[_ARM.index(variant) + 1 :]]
    elif architecture == "arm64":
        chain += [Platform(os=os, architecture="arm64")] if variant else []
        chain += [Platform(os=os, architecture="arm", variant=older) for older in _ARM]
    elif architecture == "amd64":
        levels = range(int(variant[1:]) - 1, 1, -1) if variant[1:].isdigit() else ()
        chain += [Platform(os=os, architecture="amd64", variant=f"v{level}") for level in levels]
        chain += [Platform(os=os, architecture="amd64")] if variant else []
        chain.append(Platform(os=os, architecture="386"))
    return chain


def choose(index: Index, *, platform: Platform, subject: str) -> Descriptor:
    """Return the index's entry that suits the platform best.

    Raises:
        NotFound: none does; lists those offered.
    """
    offered = [(_normal(entry.platform or Platform()), entry) for entry in index.manifests]
    for wanted in compatible(platform):
        for have, entry in offered:
            if have == wanted or (entry.platform is None and len(offered) == 1):
                return entry
    raise no_platform(subject, platform, [have for have, _ in offered])


def no_platform(subject: str, wanted: Platform, offered: list[Platform]) -> NotFound:
    """Make the error that says what an image is not for, and what it is for."""
    known = {str(have) for have in offered if have.os != "unknown" and have.architecture}
    return NotFound(f"{subject} has no image for {wanted}; it offers {choices(known)}; choose one with --platform")
