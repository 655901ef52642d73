"""``transom config``: what is in force, and where each value comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import click

from transom.errors import ConfigError, TransomError, nearest
from transom_engine.cli import Session, pass_session
from transom_engine.cli.tables import render

if TYPE_CHECKING:
    from transom.config import Config
    from transom.contract.network import NetworkDriver
    from transom.drivers import Drivers

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
    """Say whether FILE is valid: keys, types, and that its drivers are there and take their options."""
    from transom.config import load

    config = load(path=file, environ={}, overrides={})
    faults = _driver_faults(config)
    if faults:
        raise ConfigError(f"{file}: " + "; ".join(faults))
    for key, _, why in config.ignored:
        print(f"{key}: {why}")
    print(f"{os.path.abspath(file)} is valid")


def _driver_faults(config: Config) -> list[str]:
    """Open each driver that the file names, and say what keeps one from it; nothing is made or changed."""
    from pathlib import Path

    from transom.contract import KINDS
    from transom.drivers import Drivers

    drivers, faults = Drivers(state=Path(config.state_dir), run=Path(config.run_dir), wrappers=config.wrappers), []
    for kind in KINDS:
        chosen = config.drivers(kind)
        if kind == "auth":
            chosen = config.auth_drivers + config.authorization_plugins
        elif len(chosen) > 1:
            chosen = ()
        for name in dict.fromkeys([*chosen, *config.driver_opts.get(kind, {})]):
            options, where = config.options(kind, name)
            try:
                drivers.open(kind, name, options, where=where)
            except TransomError as error:
                faults.append(str(error))
    return faults + [fault for name in config.default_network_opts for fault in _option_faults(config, drivers, name)]


def _option_faults(config: Config, drivers: Drivers, name: str) -> Iterator[str]:
    """Say what is off with the default options of new networks of a driver; each alone, since networks add theirs."""
    import msgspec

    from transom.services.options import parse
    from transom_engine.networks.making import ENABLE

    try:
        struct = cast("type[NetworkDriver]", drivers.load("network", name)).NetworkOptions
    except TransomError as error:
        yield f"default-network-opts: {error}"
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    for option, text in config.default_network_opts[name].items():
        try:
            parse((fields | dict.fromkeys(ENABLE, bool))[option], text)
        except KeyError:
            yield f"default-network-opts: network driver {name} has no option {option!r}{nearest(option, fields)}"
        except ValueError as error:
            yield f"default-network-opts: network driver {name}: {option}={text!r}: expected {error}"
