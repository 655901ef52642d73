"""Which names containers find each other by, and where."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transom.contract.network import NetworkCapability
from transom.errors import NotFound
from transom_engine.model import GATEWAY, Container
from transom_engine.networks.contracts import network_of
from transom_engine.networks.model import DEFAULT, NetworkRecord

if TYPE_CHECKING:
    from transom_engine.engine import Engine


def resolves(engine: Engine, container: Container) -> bool:
    """Say whether names are resolved where the container is: on a network of its own or of the one it joins."""
    container = engine.endpoints.host_of(container)
    return any(_has_names(engine, name) for name in container.network_settings.networks)


def linked(engine: Engine, container: Container) -> dict[str, str]:
    """Return, by address, what the container calls others that it has links to where names are not resolved."""
    found: dict[str, list[str]] = {}
    for network, place in container.network_settings.networks.items():
        for link in place.links or () if not _has_names(engine, network) else ():
            name, _, alias = link.partition(":")
            try:
                other = engine.containers.get(name)
            except NotFound:
                continue  # it has been removed since
            theirs = other.network_settings.networks.get(network)
            if theirs is not None and theirs.ip_address and other.state.running:
                found.setdefault(theirs.ip_address, []).extend((alias, other.config.hostname, other.name))
    return {address: " ".join(dict.fromkeys(names)) for address, names in found.items()}


def has_names(engine: Engine, record: NetworkRecord) -> bool:
    """Say whether containers find each other by name on that network."""
    if record.name in {DEFAULT, GATEWAY}:
        return False
    return NetworkCapability.NAMES in engine.drivers.load("network", record.driver).capabilities


def _has_names(engine: Engine, name: str) -> bool:
    record = engine.networks.named(name)  # None: it has been removed while the container did not run
    return record is not None and has_names(engine, record)


def looks_up(engine: Engine, record: NetworkRecord) -> bool:
    """Say whether the network's driver knows the names of containers on other hosts."""
    return NetworkCapability.LOOKUP in engine.drivers.load("network", record.driver).capabilities


def lookup(engine: Engine, record: NetworkRecord, name: str) -> tuple[str, ...]:
    """Ask the network's driver for the addresses that a name has on other hosts."""
    return engine.network_driver(record.driver).lookup(network=network_of(engine, record), name=name)
