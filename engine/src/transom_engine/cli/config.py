"""``transom config``: what is in force, and where each value comes from."""

from __future__ import annotations

import os

import click

from transom_engine.cli import Session, pass_session
from transom_engine.cli.tables import render

_HEADINGS = {"Key": "KEY", "Value": "VALUE", "Origin": "ORIGIN"}


@click.group("config")
def config_command() -> None:
    """Show the configuration and where each value comes from."""


@config_command.command("show")
@click.option("--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json")
@pass_session
def show(session: Session, /, format: str) -> None:
    """Print every key with its value and its origin: default, file, environment or command line."""
    from transom.config import rows

    listed = [{"Key": key, "Value": value, "Origin": origin} for key, value, origin in rows(session.config)]
    print(render(listed, headings=_HEADINGS, columns=list(_HEADINGS), format=format), end="")


@config_command.command("check")
@click.argument("file")
def check(file: str) -> None:
    """Say whether FILE is a valid configuration; the exit code says it too."""
    from transom.config import load

    config = load(path=file, environ={}, overrides={})
    for key, _, why in config.ignored:
        print(f"{key}: {why}")
    print(f"{os.path.abspath(file)} is valid")
