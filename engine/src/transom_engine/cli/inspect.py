"""``transom inspect``: everything known of an object, as Docker's JSON."""

from __future__ import annotations

import sys
from typing import Any

import click

from transom.errors import ConfigError, TransomError, choices, nearest
from transom_engine.cli import Session, pass_session


@click.command("inspect")
@click.option("-f", "--format", "format", default="", help="Format output using a Go template, or json")
@click.option("-s", "--size", is_flag=True, help="Display total file sizes if the type is container")
@click.option("--type", "kind", default="", help="Only objects of this type: container, image, network or volume")
@click.argument("names", metavar="NAME|ID...", nargs=-1, required=True)
@pass_session
def inspect_command(session: Session, /, names: tuple[str, ...], kind: str, size: bool, format: str) -> int:
    """Return low-level information on containers, images, networks and volumes."""
    from transom_engine.reports import KINDS

    if kind and kind not in KINDS:
        raise ConfigError(f"--type {kind!r} is not a valid value{nearest(kind, KINDS)}; there are {choices(KINDS)}")
    return show(session, names, kind=kind, size=size, format=format)


@click.command("inspect")
@click.option("-f", "--format", "format", default="", help="Format output using a Go template, or json")
@click.option("-s", "--size", is_flag=True, help="Display total file sizes")
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True)
@pass_session
def container_inspect_command(session: Session, /, names: tuple[str, ...], size: bool, format: str) -> int:
    """Display detailed information on one or more containers."""
    return show(session, names, kind="container", size=size, format=format)


@click.command("inspect")
@click.option("-f", "--format", "format", default="", help="Format output using a Go template, or json")
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@pass_session
def image_inspect_command(session: Session, /, names: tuple[str, ...], format: str) -> int:
    """Display detailed information on one or more images."""
    return show(session, names, kind="image", format=format)


def show(session: Session, names: tuple[str, ...], *, kind: str, size: bool = False, format: str = "") -> int:
    """Print each object, by the template where one is given; go on over errors. Returns the exit code."""
    import msgspec

    from transom_engine.cli.template import Template, to_json
    from transom_engine.reports import inspect

    template = Template(format) if format not in {"", "json"} else None
    found: list[Any] = []
    errors = []
    for name in names:
        try:
            found.append(inspect(session.engine, name, kind=kind, size=size))
        except TransomError as error:
            errors.append(str(error))
    if template is not None:
        for item in found:
            print(template.render(item))
    elif format:
        print(to_json(found))
    else:
        print(msgspec.json.format(msgspec.json.encode(found), indent=4).decode())
    sys.stdout.flush()
    for text in errors:
        print(f"transom: {text}", file=sys.stderr)
    return 1 if errors else 0
