"""What ``transom images``, ``inspect`` and ``history`` tell, in the shapes of Docker's Engine API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from transom.errors import ConfigError, choices, nearest
from transom_engine.images import spec
from transom_engine.images.names import Reference
from transom_engine.images.store import ImageStore, timestamp

FILTERS = ("before", "dangling", "label", "reference", "since")


class Summary(msgspec.Struct, frozen=True, rename="pascal"):
    """A line of ``docker images`` (Docker's API: ImageSummary); sizes in bytes, times in Unix seconds."""

    id: str
    repo_tags: list[str]
    repo_digests: list[str]
    created: int
    size: int
    labels: dict[str, str] | None
    parent_id: str = ""
    shared_size: int = -1
    containers: int = -1
    virtual_size: int = 0


class HistoryItem(msgspec.Struct, frozen=True, rename="pascal"):
    """A line of ``docker history`` (Docker's API: HistoryResponseItem), the topmost layer first."""

    id: str
    created: int
    created_by: str
    tags: list[str] | None
    size: int
    comment: str


class GraphDriver(msgspec.Struct, frozen=True, rename="pascal"):
    """Where the image is unpacked."""

    data: dict[str, str] | None = None
    name: str = ""


class RootFS(msgspec.Struct, frozen=True, rename="pascal"):
    """The diff ids of the layers, the lowest first."""

    type: str
    layers: list[str]


class Metadata(msgspec.Struct, frozen=True, rename="pascal"):
    """What is known of the image on this host only."""

    last_tag_time: str


class ImageInspect(msgspec.Struct, frozen=True, rename="pascal"):
    """An image in full (Docker's API 1.43: ImageInspect)."""

    id: str
    repo_tags: list[str]
    repo_digests: list[str]
    parent: str
    comment: str
    created: str
    docker_version: str
    author: str
    config: dict[str, Any]
    architecture: str
    variant: str
    os: str
    os_version: str
    size: int
    virtual_size: int
    graph_driver: GraphDriver
    root_fs: RootFS = msgspec.field(name="RootFS")
    metadata: Metadata


def images(
    store: ImageStore, *, filters: Mapping[str, Sequence[str]] | None = None, all: bool = False
) -> list[Summary]:
    """List the images, the newest first, with Docker's filters.

    Args:
        filters: ``dangling`` (true or false), ``label`` (KEY or KEY=VALUE), ``before`` and ``since`` (an image),
            ``reference`` (a pattern of the familiar name, with or without a tag). Values of one filter are
            alternatives, but labels must all be there; different filters must all hold.
        all: list untagged images that others were made from, too.

    Raises:
        ConfigError: no such filter, or no such value.
        NotFound: ``before`` or ``since`` names no image.
    """
    filters = filters or {}
    for key in filters:
        if key not in FILTERS:
            raise ConfigError(f"unknown image filter {key}{nearest(key, FILTERS)}; there are {choices(FILTERS)}")
    dangling = _truth("dangling", filters["dangling"]) if filters.get("dangling") else None
    before = min((_seconds(store.resolve(text).config.created) for text in filters.get("before", ())), default=None)
    since = max((_seconds(store.resolve(text).config.created) for text in filters.get("since", ())), default=None)
    recorded = [(image, _seconds(image.config.created)) for image in store.walk()]
    parents = {image.parent for image, _ in recorded}
    rows: list[Summary] = []
    for image, created in sorted(recorded, key=lambda pair: -pair[1]):
        config, have = image.config, store.references(image.id)
        labels = (config.config or {}).get("Labels")
        tags = [reference for reference in have if reference.tag]
        if patterns := filters.get("reference"):
            have = [reference for reference in have if _matches(reference, patterns)]
            if not have:
                continue
        if (
            (dangling is not None and dangling is bool(tags))
            or (before is not None and created >= before)
            or (since is not None and created <= since)
            or (not all and dangling is None and not tags and image.id in parents)
            or not _has_labels(labels or {}, filters.get("label", ()))
        ):
            continue
        size = store.size(image)
        rows.append(
            Summary(
                id=image.id,
                repo_tags=[reference.familiar() for reference in have if reference.tag],
                repo_digests=[reference.familiar() for reference in have if reference.digest],
                created=int(created),
                size=size,
                virtual_size=size,
                labels=labels,
                parent_id=image.parent,
            )
        )
    return rows


def inspect(store: ImageStore, text: str, *, driver: str = "") -> ImageInspect:
    """Describe an image in full.

    Args:
        driver: the storage driver to name.

    Raises:
        NotFound: there is none of that name.
    """
    image = store.resolve(text)
    config, have, size = image.config, store.references(image.id), store.size(image)
    return ImageInspect(
        id=image.id,
        repo_tags=[reference.familiar() for reference in have if reference.tag],
        repo_digests=[reference.familiar() for reference in have if reference.digest],
        parent=image.parent,
        comment=config.comment or (config.history or [spec.History()])[-1].comment,
        created=config.created or "",
        docker_version=config.docker_version,
        author=config.author,
        config=config.config or {},
        architecture=config.architecture,
        variant=config.variant,
        os=config.os,
        os_version=config.os_version,
        size=size,
        virtual_size=size,
        graph_driver=GraphDriver(name=driver),
        root_fs=RootFS(type="layers", layers=[layer.diff_id for layer in image.layers]),
        metadata=Metadata(last_tag_time=timestamp(store.tagged(image.id))),
    )


def history(store: ImageStore, text: str) -> list[HistoryItem]:
    """Tell how an image came to be, the last step first. A step that added no layer has size 0.

    Raises:
        NotFound: there is none of that name.
    """
    image = store.resolve(text)
    sizes = iter([store.layer_size(layer) for layer in image.layers])
    tags = [reference.familiar() for reference in store.references(image.id) if reference.tag]
    steps = image.config.history or [spec.History(created=image.config.created) for _ in image.layers]
    rows = [
        HistoryItem(
            id="<missing>",
            created=int(_seconds(step.created)),
            created_by=step.created_by,
            tags=None,
            size=0 if step.empty_layer else next(sizes, 0),
            comment=step.comment,
        )
        for step in steps
    ]
    if rows:
        rows[-1] = msgspec.structs.replace(rows[-1], id=image.id, tags=tags or None)
    return rows[::-1]


def _matches(reference: Reference, patterns: Iterable[str]) -> bool:
    """Match as Go's path.Match does on the familiar name: a * stops at a slash."""
    import re

    for pattern in patterns:
        expression = "".join(
            {"*": "[^/]*", "?": "[^/]"}.get(part, part if part.startswith("[") else re.escape(part))
            for part in re.findall(r"\[[^]]+\]|.", pattern.replace("[!", "[^"))
        )
        try:
            if re.fullmatch(expression, reference.familiar()) or re.fullmatch(expression, reference.familiar_name):
                return True
        except re.error:
            raise ConfigError(f"invalid reference pattern {pattern}: it may hold *, ? and [a-z]") from None
    return False


def _has_labels(labels: Mapping[str, str], wanted: Iterable[str]) -> bool:
    for word in wanted:
        key, equals, value = word.partition("=")
        if key not in labels or (equals and labels[key] != value):
            return False
    return True


def _truth(name: str, values: Sequence[str]) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False}
    if values[-1].lower() not in words:
        raise ConfigError(f"invalid image filter {name}={values[-1]}: it is true or false")
    return words[values[-1].lower()]


def _seconds(text: str | None) -> float:
    """Read an RFC 3339 time; unreadable or missing is Docker's zero time, as far as Unix time goes: 0."""
    from datetime import datetime

    try:
        return max(datetime.fromisoformat(text or "").timestamp(), 0)
    except (ValueError, OverflowError):
        return 0
