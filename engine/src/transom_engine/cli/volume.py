"""``transom volume``: make, list and remove volumes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from transom.errors import ConfigError
from transom_engine.cli import Session, pass_session
from transom_engine.cli.groups import Named
from transom_engine.cli.words import confirmed, filters, has_labels, many, several

if TYPE_CHECKING:
    from transom_engine.engine import Engine
    from transom_engine.volumes import Volume

_HEADINGS = {
    "Name": "VOLUME NAME", "Driver": "DRIVER", "Scope": "SCOPE", "Mountpoint": "MOUNTPOINT", "Labels": "LABELS",
    "Links": "LINKS", "Size": "SIZE",
}  # fmt: skip


@click.group("volume", cls=Named)
def volume_command() -> None:
    """Manage volumes."""


@volume_command.command("create")
@click.option("-d", "--driver", default="local", help="Specify volume driver name")
@many("--label", help="Set metadata for a volume")
@many("-o", "--opt", help="Set driver specific options")
@click.argument("name", metavar="[VOLUME]", default="")
@pass_session
def create_command(session: Session, /, name: str, driver: str, label: tuple[str, ...], opt: tuple[str, ...]) -> None:
    """Create a volume."""
    from transom_engine import flags

    if driver != "local":
        raise ConfigError(
            f"no volume driver {driver!r}: there is local; other file systems are bound with -v HOST:PATH"
        )
    if opt:
        raise ConfigError(f"--opt {opt[0]!r}: the volume driver local takes no options; mount it and bind it with -v")
    volume = session.engine.volumes.create(name, labels=flags.labels(label), anonymous=not name)
    print(volume.name)


@volume_command.command("ls")
@click.option("-f", "--filter", "given", multiple=True, help="Provide filter values (e.g. dangling=true)")
@click.option("--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json")
@click.option("-q", "--quiet", is_flag=True, help="Only display volume names")
@pass_session
def ls_command(session: Session, /, given: tuple[str, ...], format: str, quiet: bool) -> None:
    """List volumes."""
    from transom_engine.cli.tables import render
    from transom_engine.pruning import unused_volumes

    wanted = filters(given, "dangling", "driver", "label", "name")
    for word in wanted.get("dangling", ()):
        if word not in {"true", "false", "1", "0"}:
            raise ConfigError(f"--filter dangling={word!r}: invalid filter; there are true, false")
    unused = {volume.name for volume in unused_volumes(session.engine)} if "dangling" in wanted else set()
    rows = [_row(volume) for volume in session.engine.volumes.list() if _passes(volume, wanted, unused)]
    columns = ("Driver", "Name")
    print(render(rows, headings=_HEADINGS, columns=columns, format=format, quiet="Name" if quiet else ""), end="")


def _row(volume: Volume) -> dict[str, Any]:
    return {
        "Name": volume.name,
        "Driver": volume.driver,
        "Scope": volume.scope,
        "Mountpoint": volume.mountpoint,
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(volume.labels.items())),
        "Label": lambda name: volume.labels.get(name, ""),
        "Links": "N/A",
        "Size": "N/A",
    }


def _passes(volume: Volume, wanted: dict[str, list[str]], unused: set[str]) -> bool:
    try:
        named = "name" not in wanted or any(re.search(word, volume.name) for word in wanted["name"])
    except re.error as error:
        raise ConfigError(f"--filter name={wanted['name'][-1]!r}: invalid regular expression: {error}") from None
    dangling = [word in {"true", "1"} for word in wanted.get("dangling", ())]
    return (
        named
        and volume.driver in wanted.get("driver", [volume.driver])
        and has_labels(volume.labels, wanted.get("label", ()))
        and (not dangling or (volume.name in unused) in dangling)
    )


@volume_command.command("inspect")
@click.option("-f", "--format", "format", default="", help="Format output using a Go template, or json")
@click.argument("names", metavar="VOLUME...", nargs=-1, required=True)
@pass_session
def inspect_command(session: Session, /, names: tuple[str, ...], format: str) -> int:
    """Display detailed information on one or more volumes."""
    from transom_engine.cli.inspect import show

    return show(session, names, kind="volume", format=format)


@volume_command.command("rm")
@click.option("-f", "--force", is_flag=True, help="Do not error if the volume does not exist")
@click.argument("names", metavar="VOLUME...", nargs=-1, required=True)
@pass_session
def rm_command(session: Session, /, names: tuple[str, ...], force: bool) -> int:
    """Remove one or more volumes, with what is in them."""
    return several(names, lambda name: session.engine.volumes.remove(name, force=force))


@volume_command.command("prune")
@click.option("-a", "--all", "all", is_flag=True, help="Remove all unused volumes, not just anonymous ones")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.option("--filter", "given", multiple=True, help="Provide filter values (e.g. label=KEY=VALUE)")
@pass_session
def prune_command(session: Session, /, all: bool, force: bool, given: tuple[str, ...]) -> None:
    """Remove unused local volumes."""
    from transom_engine.cli.units import human_size

    wanted = filters(given, "label", "label!", "all")
    all = all or wanted.get("all", ["false"])[-1] in {"true", "1"}
    which = "all" if all else "anonymous"
    if not force and not confirmed(f"This will remove {which} local volumes not used by at least one container."):
        return
    removed, freed = prune(session.engine, wanted, all=all)
    if removed:
        print("Deleted Volumes:", *removed, sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human_size(freed)}")


def prune(engine: Engine, wanted: dict[str, list[str]], *, all: bool) -> tuple[list[str], int]:
    """Remove unused volumes that the filters pass, anonymous ones or `all`; return their names and their bytes."""
    from transom_engine.cli.image import passes
    from transom_engine.pruning import prune_volumes

    return prune_volumes(engine, lambda volume: (all or volume.anonymous) and passes(volume.labels, wanted))
