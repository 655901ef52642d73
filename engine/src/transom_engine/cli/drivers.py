"""``transom drivers``: which are installed, which this host can run, and what each can do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from transom_engine.cli import Session, pass_session
from transom_engine.cli.tables import render

if TYPE_CHECKING:
    from transom.contract import Driver
    from transom.drivers import Installed
    from transom_engine.engine import Engine

_HEADINGS = {
    "Kind": "KIND", "Name": "NAME", "Distribution": "DISTRIBUTION", "Version": "VERSION", "Status": "STATUS",
}  # fmt: skip
_STRUCTURES = ("Options", "NetworkOptions", "EndpointOptions")


@click.group("drivers")
def drivers_command() -> None:
    """List and inspect drivers."""


@drivers_command.command("ls")
@click.argument("kind", required=False)
@click.option("--kind", "flagged", default="", help="Only drivers of this kind")
@click.option("-q", "--quiet", is_flag=True, help="Only display KIND/NAME")
@click.option("--no-probe", is_flag=True, help="Do not import the drivers to ask whether this host can run them")
@click.option("--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json")
@pass_session
def ls(session: Session, /, kind: str | None, flagged: str, quiet: bool, no_probe: bool, format: str) -> None:
    """List the installed drivers: usable here, or why not."""
    from transom.drivers import contract_of, installed

    kind = kind or flagged or None
    if kind:
        contract_of(kind)  # refuses a kind that there is not
    listed = []
    for driver in installed(kind):
        row = {"Kind": driver.kind, "Name": driver.name, "Distribution": driver.distribution}
        row |= {"Version": driver.version, "Status": "" if no_probe or quiet else _status(session.engine, driver)}
        listed.append(row | {"ID": f"{driver.kind}/{driver.name}"})
    columns = [name for name in _HEADINGS if not (no_probe and name == "Status")]
    print(render(listed, headings=_HEADINGS, columns=columns, format=format, quiet="ID" if quiet else ""), end="")


def _status(engine: Engine, driver: Installed) -> str:
    """Say whether the host can run the driver: usable, unusable with the reason, or broken with the error."""
    from transom.errors import TransomError

    try:
        probe = _open(engine, driver.kind, driver.name).probe()
    except TransomError as error:
        return f"broken: {error}"
    except Exception as error:
        return f"broken: its probe failed: {type(error).__name__}: {error}"
    word = "usable" if probe.usable else "unusable"
    return f"{word}: {probe.reason}" if probe.reason else word


def _open(engine: Engine, kind: str, name: str) -> Driver:
    options, where = engine.config.options(kind, name)
    return engine.drivers.open(kind, name, options, where=where)


@drivers_command.command("inspect")
@click.argument("kind")
@click.argument("name")
@click.option("-f", "--format", "format", default="", help="Format output using a Go template")
@pass_session
def inspect(session: Session, /, kind: str, name: str, format: str) -> None:
    """Show a driver's distribution, options, capabilities and status as JSON."""
    from transom_engine.cli.template import Template

    facts = describe(session.engine, kind, name)
    if format and format != "json":
        print(Template(format).render(facts))
    else:
        print(msgspec.json.format(msgspec.json.encode(facts), indent=4).decode())


def describe(engine: Engine, kind: str, name: str) -> dict[str, Any]:
    """Collect what there is to know of a driver.

    Raises:
        TransomError: there is no such driver, or it cannot be loaded.
    """
    from transom.drivers import contract_of, installed
    from transom.services.options import describe as describe_options

    contract_of(kind)
    driver = _open(engine, kind, name)
    about = next(d for d in installed(kind) if d.name == name)
    probe = driver.probe()
    structures = {key: getattr(driver, key) for key in _STRUCTURES if hasattr(driver, key)}
    return {
        "Kind": kind,
        "Name": name,
        "Distribution": about.distribution,
        "Version": about.version,
        "EntryPoint": about.target,
        "Api": driver.api,
        "Usable": probe.usable,
        "Reason": probe.reason,
        "Capabilities": sorted(str(capability) for capability in driver.capabilities),
        **{
            key: [
                {"Name": o.name, "Type": o.type, "Default": o.default, "Description": o.text}
                for o in describe_options(struct, driver.option_docs)
            ]
            for key, struct in structures.items()
        },
        "Status": driver.status() if probe.usable else {},
    }
