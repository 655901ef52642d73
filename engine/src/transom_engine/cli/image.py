"""Images on the command line: pull, import, list, tag, remove."""

from __future__ import annotations

import os
import sys
import time
from typing import IO, TYPE_CHECKING, Any

import click

from transom.errors import ConfigError
from transom_engine.cli import Session, pass_session
from transom_engine.cli.words import confirmed, filters, has_labels, several

if TYPE_CHECKING:
    from transom_engine.engine import Engine
    from transom_engine.images.pull import Progress, Pulled
    from transom_engine.images.registry import Settings
    from transom_engine.images.reports import HistoryItem, Summary
    from transom_engine.images.store import Removed

NONE = "<none>"
_FORMAT = click.option(
    "--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json"
)
_NO_TRUNC = click.option("--no-trunc", is_flag=True, help="Don't truncate output")


# Pulling


@click.command("pull")
@click.option("-a", "--all-tags", is_flag=True, help="Download all tagged images in the repository")
@click.option("-q", "--quiet", is_flag=True, help="Suppress verbose output")
@click.option("--platform", default="", help="Set platform if server is multi-platform capable")
@click.argument("name", metavar="NAME[:TAG|@DIGEST]")
@pass_session
def pull_command(session: Session, /, name: str, all_tags: bool, quiet: bool, platform: str) -> None:
    """Download an image from a registry."""
    if all_tags:
        raise ConfigError(
            "--all-tags is not supported: a repository may hold thousands; pull the tags you need by name"
        )
    pulled = fetch(session, name, platform=platform, quiet=quiet, out=sys.stdout)
    print(pulled.reference)


def fetch(session: Session, image: str, *, platform: str, quiet: bool, out: IO[str]) -> Pulled:
    """Pull an image and tell how it goes: by bars on a terminal, else by docker's lines; `quiet` says nothing.

    Raises:
        TransomError: as `transom_engine.images.pull.pull` does.
    """
    from transom_engine.images.names import DEFAULT_TAG, parse
    from transom_engine.images.pull import pull

    engine, reference = session.engine, parse(image)
    if not quiet and ":" not in image.rpartition("/")[2] and not reference.digest:
        print(f"Using default tag: {DEFAULT_TAG}", file=out)
    shown = _Silence() if quiet else _Bars(out) if out.isatty() else _Lines(out)
    with shown:
        pulled = pull(
            reference, content=engine.content, store=engine.images, platform=platform,
            settings=_settings(engine), parallel=engine.config.max_concurrent_downloads, progress=shown.tell,
        )  # fmt: skip
    engine.state.event("image", "pull", reference.familiar(), name=reference.familiar_name)
    if not quiet:
        print(f"Digest: {pulled.digest}\n{pulled.status}", file=out, flush=True)
    return pulled


def _settings(engine: Engine) -> Settings:
    """Return how registries are reached; the configured proxies go where the client looks for the environment's."""
    from transom_engine.images.registry import Settings

    config = engine.config
    for name in ("http_proxy", "https_proxy", "no_proxy"):
        if value := getattr(config.proxies, name):
            os.environ[name] = value
    return Settings(
        insecure=config.insecure_registries, mirrors=config.registry_mirrors, tries=config.max_download_attempts
    )


class _Silence:
    """Tells nothing of a pull."""

    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def tell(self, event: Progress) -> None:
        """Be told of progress."""


class _Lines(_Silence):
    """Tells of a pull in docker's lines, without bytes."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def tell(self, event: Progress) -> None:
        from transom_engine.images.names import short_id

        if event.status == "Downloading":
            return
        before = f"{short_id(event.layer)}: " if event.layer else ""
        print(f"{before}{event.status}", file=self._out, flush=True)


class _Bars(_Silence):
    """Shows a bar for each layer."""

    def __init__(self, out: IO[str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
        from rich.progress import Progress as Display

        self._display = Display(
            TextColumn("{task.fields[layer]}:"), TextColumn("{task.description}"), BarColumn(bar_width=30),
            DownloadColumn(), TransferSpeedColumn(), console=Console(file=out),
        )  # fmt: skip
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> _Bars:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    def tell(self, event: Progress) -> None:
        from transom_engine.images.names import short_id

        if not event.layer:
            self._display.console.print(event.status, highlight=False)
            return
        if event.layer not in self._tasks:
            self._tasks[event.layer] = self._display.add_task("", total=None, layer=short_id(event.layer))
        task = self._tasks[event.layer]
        self._display.update(task, description=event.status)
        if event.total:
            self._display.update(task, completed=event.current, total=event.total)
        elif event.status == "Already exists":
            self._display.update(task, completed=1, total=1)


# Importing and naming


@click.command("import")
@click.option("-c", "--change", "changes", multiple=True, help="Apply Dockerfile instruction to the created image")
@click.option("-m", "--message", default="", help="Set commit message for imported image")
@click.option("--platform", default="", help="Set platform if server is multi-platform capable")
@click.argument("source", metavar="FILE|DIRECTORY|-")
@click.argument("name", metavar="[REPOSITORY[:TAG]]", default="")
@pass_session
def import_command(
    session: Session, /, source: str, name: str, changes: tuple[str, ...], message: str, platform: str
) -> None:
    """Import the contents from a tarball or a directory to create an image; "-" reads standard input."""
    from transom_engine.images.importer import import_tar

    if source.partition("://")[0] in {"http", "https", "ftp"} and "://" in source:
        raise ConfigError(
            f"cannot import {source}: URLs are not fetched; download it and pipe it into `transom import -`"
        )
    if source == "-" and sys.stdin.isatty():
        raise ConfigError("standard input is a terminal: redirect a tar into it, or name a file or directory")
    engine = session.engine
    image = import_tar(
        sys.stdin.buffer if source == "-" else source, content=engine.content, store=engine.images,
        reference=name, changes=changes, message=message, platform=platform,
    )  # fmt: skip
    engine.state.event("image", "import", image.id, name=name or image.id)
    print(image.id)


@click.command("tag")
@click.argument("source", metavar="SOURCE_IMAGE[:TAG]")
@click.argument("target", metavar="TARGET_IMAGE[:TAG]")
@pass_session
def tag_command(session: Session, /, source: str, target: str) -> None:
    """Create a tag TARGET_IMAGE that refers to SOURCE_IMAGE."""
    engine = session.engine
    reference = engine.images.tag(source, target)
    engine.state.event("image", "tag", engine.images.resolve(target).id, name=reference.familiar())


# Listing

_HEADINGS = {
    "ID": "IMAGE ID", "Repository": "REPOSITORY", "Tag": "TAG", "Digest": "DIGEST", "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT", "Size": "SIZE", "Containers": "CONTAINERS", "VirtualSize": "VIRTUAL SIZE",
    "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE",
}  # fmt: skip


@click.command("images")
@click.option("-a", "--all", "all", is_flag=True, help="Show all images (default hides intermediate images)")
@click.option("-q", "--quiet", is_flag=True, help="Only show image IDs")
@click.option("--digests", is_flag=True, help="Show digests")
@_NO_TRUNC
@click.option("-f", "--filter", "given", multiple=True, help="Filter output based on conditions provided")
@_FORMAT
@click.argument("name", metavar="[REPOSITORY[:TAG]]", default="")
@pass_session
def images_command(
    session: Session,
    /,
    name: str,
    all: bool,
    quiet: bool,
    digests: bool,
    no_trunc: bool,
    given: tuple[str, ...],
    format: str,
) -> None:
    """List images."""
    from transom_engine.cli.tables import render
    from transom_engine.images.reports import FILTERS, images

    wanted = filters(given, *FILTERS)
    if name:
        wanted.setdefault("reference", []).append(name)
    users: dict[str, int] = {}
    if "Containers" in format or format == "json":
        for container in session.engine.state.containers():
            users[container.image] = users.get(container.image, 0) + 1
    rows = [
        row
        for summary in images(session.engine.images, filters=wanted, all=all)
        for row in rows_of(summary, digests=digests or ".Digest" in format, full=no_trunc, users=users)
    ]
    columns = ("Repository", "Tag", *(["Digest"] if digests else []), "ID", "CreatedSince", "Size")
    print(render(rows, headings=_HEADINGS, columns=columns, format=format, quiet="ID" if quiet else ""), end="")


def rows_of(summary: Summary, *, digests: bool, full: bool, users: dict[str, int]) -> list[dict[str, Any]]:
    """Make the rows of one image: one for each tag, with `digests` for each digest of its repository too."""
    from transom_engine.cli.units import SECOND, ago, human_size, local_time
    from transom_engine.images.names import short_id

    tags: dict[str, list[str]] = {}
    known: dict[str, list[str]] = {}
    for text in summary.repo_tags:
        repository, _, tag = text.rpartition(":")
        tags.setdefault(repository, []).append(tag)
    for text in summary.repo_digests:
        repository, _, digest = text.partition("@")
        known.setdefault(repository, []).append(digest)
    places = [
        (repository, tag, digest)
        for repository in dict.fromkeys([*tags, *known])
        for tag in tags.get(repository, [NONE])
        for digest in (known.get(repository, [NONE]) if digests else [NONE])
    ]
    created, size = summary.created * SECOND, human_size(summary.size, digits=3)
    return [
        {
            "ID": summary.id if full else short_id(summary.id),
            "Repository": repository,
            "Tag": tag,
            "Digest": digest,
            "CreatedSince": ago(created, time.time_ns()),
            "CreatedAt": local_time(created),
            "Size": size,
            "VirtualSize": size,
            "Containers": str(users.get(summary.id, 0)) if users else "N/A",
            "SharedSize": "N/A",
            "UniqueSize": "N/A",
        }
        for repository, tag, digest in places or [(NONE, NONE, NONE)]
    ]


_STEPS = {
    "ID": "IMAGE", "CreatedSince": "CREATED", "CreatedAt": "CREATED AT", "CreatedBy": "CREATED BY", "Size": "SIZE",
    "Comment": "COMMENT",
}  # fmt: skip


@click.command("history")
@click.option("-H", "--human/--no-human", "human", default=True, help="Print sizes and dates in human readable format")
@click.option("-q", "--quiet", is_flag=True, help="Only show image IDs")
@_NO_TRUNC
@_FORMAT
@click.argument("name", metavar="IMAGE")
@pass_session
def history_command(session: Session, /, name: str, human: bool, quiet: bool, no_trunc: bool, format: str) -> None:
    """Show the history of an image."""
    from transom_engine.cli.tables import render
    from transom_engine.images.reports import history

    rows = [_step(item, human=human, full=no_trunc) for item in history(session.engine.images, name)]
    columns = ("ID", "CreatedSince" if human else "CreatedAt", "CreatedBy", "Size", "Comment")
    print(render(rows, headings=_STEPS, columns=columns, format=format, quiet="ID" if quiet else ""), end="")


def _step(item: HistoryItem, *, human: bool, full: bool) -> dict[str, Any]:
    from transom_engine.cli.units import SECOND, ago, human_size, rfc3339
    from transom_engine.images.names import short_id

    created, words = item.created * SECOND, item.created_by.replace("\t", " ")
    known = item.id if full or item.id.startswith("<") else short_id(item.id)
    at = rfc3339(created)
    return {
        "ID": known,
        "CreatedSince": ago(created, time.time_ns()) if human else at,
        "CreatedAt": at,
        "CreatedBy": words if full or len(words) <= 45 else f"{words[:44]}…",
        "Size": human_size(item.size, digits=3) if human else str(item.size),
        "Comment": item.comment,
    }


# Removing


@click.command("rmi")
@click.option("-f", "--force", is_flag=True, help="Force removal of the image")
@click.option("--no-prune", is_flag=True, help="Do not delete untagged parents")
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@pass_session
def rmi_command(session: Session, /, names: tuple[str, ...], force: bool, no_prune: bool) -> int:
    """Remove one or more images. Untagged parents always stay: `transom image prune` removes them."""
    from transom_engine.pruning import remove_image

    def remove(name: str) -> str:
        return "\n".join(map(str, remove_image(session.engine, name, force=force)))

    return several(names, remove)


@click.command("prune")
@click.option("-a", "--all", "all", is_flag=True, help="Remove all unused images, not just dangling ones")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.option("--filter", "given", multiple=True, help="Provide filter values (e.g. until=24h, label=KEY=VALUE)")
@pass_session
def prune_command(session: Session, /, all: bool, force: bool, given: tuple[str, ...]) -> None:
    """Remove unused images."""
    from transom_engine.cli.units import human_size
    from transom_engine.pruning import names_of

    wanted = filters(given, "until", "label", "label!")
    which = "images without at least one container associated to them" if all else "dangling images"
    if not force and not confirmed(f"This will remove all {which}."):
        return
    removed, freed = prune(session.engine, wanted, all=all)
    if removed:
        print("Deleted Images:", *names_of(removed), sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human_size(freed)}")


def prune(engine: Engine, wanted: dict[str, list[str]], *, all: bool) -> tuple[list[Removed], int]:
    """Remove unused images that the filters pass; see `transom_engine.pruning.prune_images`."""
    from transom_engine.cli.units import SECOND, parse_time
    from transom_engine.pruning import prune_images

    now = time.time_ns()
    untils = [parse_time(text, now=now, flag="--filter until") for text in wanted.get("until", ())]

    def doomed(image: Summary) -> bool:
        return image.created * SECOND < min(untils, default=now) and passes(image.labels or {}, wanted)

    return prune_images(engine, doomed, all=all)


def passes(labels: dict[str, str], wanted: dict[str, list[str]]) -> bool:
    """Say whether labels pass the filters ``label`` and ``label!``."""
    unwanted = (has_labels(labels, [word]) for word in wanted.get("label!", ()))
    return has_labels(labels, wanted.get("label", ())) and not any(unwanted)
