"""``transom storage``: what concerns the storage drivers themselves."""

from __future__ import annotations

import click

from transom_engine.cli import Session, pass_session


@click.group("storage")
def storage_command() -> None:
    """Manage where containers are stored."""


@storage_command.command("migrate")
@click.option("--to", "driver", required=True, metavar="DRIVER", help="The storage driver that holds them from now on")
@click.argument("names", metavar="[CONTAINER...]", nargs=-1)
@pass_session
def migrate_command(session: Session, /, driver: str, names: tuple[str, ...]) -> None:
    """Move stopped containers, with their changes, to another storage driver.

    Without names, all that are stopped. Images need no moving: they are unpacked where they are used.
    """
    from transom_engine.migration import migrate

    for container, before in migrate(session.engine, driver, names):
        print(f"{container.name}: {before} -> {container.driver}")
