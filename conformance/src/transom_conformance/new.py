"""The command ``transom new``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("new")
@click.argument("kind")
@click.argument("name")
@click.option("--output", "-o", metavar="DIR", type=click.Path(path_type=Path), help="Where to (./transom-KIND-NAME)")
def new_command(*, kind: str, name: str, output: Path | None) -> None:
    """Write a distribution with a driver of KIND called NAME.

    KIND is storage, network, logging, limits or auth. What is written can be installed, passes the mandatory cases of
    the kind's conformance suite, and is yours to change.
    """
    from transom.errors import Conflict, DriverError
    from transom_conformance.skeleton import files

    found = files(kind, name)
    place = output or Path(f"transom-{kind}-{name}")
    try:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise Conflict(f"{place} is there already; name another directory with --output")
        for path, text in found.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_text(text)
    except OSError as error:
        raise DriverError("write", driver="new", subject=str(place), cause=error) from error
    for path in found:
        click.echo(place / path)
    click.echo(f"\nnext, in an environment for it:\n  pip install -e '{place}[test]'\n  pytest {place}   # as root")
