"""What a container asks of its networks: settled, or refused before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transom.contract.network import Endpoint, NetnsKind, NetworkCapability
from transom.errors import ConfigError, Conflict
from transom_engine.model import Container, EndpointSettings
from transom_engine.networks.contracts import options_of
from transom_engine.networks.model import DEFAULT, NetworkRecord
from transom_engine.networks.ways import spans_hosts

if TYPE_CHECKING:
    from transom_engine.engine import Engine


def check_networks(engine: Engine, container: Container) -> list[str]:
    """Refuse, when a container is made, what its network mode cannot give, and settle its list of networks.

    Returns:
        what is asked for in vain, a warning each.

    Raises:
        ConfigError: words that contradict each other, named.
        NotFound: no such network, driver or container.
    """
    host, settings = container.host_config, container.network_settings
    mode, colon, reference = host.network_mode.partition(":")
    if colon and not reference:
        raise ConfigError(f"--network {mode}: names no container; write --network {mode}:NAME")
    if reference:
        opened = engine.network_driver(mode)
        if NetworkCapability.REFERENCE not in opened.capabilities:
            raise ConfigError(f"network driver {mode} takes nothing after a colon: write --network {mode}")
        host.network_mode = f"{mode}:{engine.containers.get(reference).id}"
        _refuse_with(container, host.network_mode, publish=True, names=True)
        for more in (name for name in settings.networks if ":" not in name):
            raise ConfigError(
                f"a container cannot be connected to {more}: network {host.network_mode[:30]} shares or isolates its"
                " namespace whole"
            )
        settings.networks = {}
        return []
    record = engine.networks.for_containers(host.network_mode)
    opened = engine.network_driver(record.driver)
    if NetworkCapability.L2 not in opened.capabilities:
        _refuse_with(container, record.name, publish=False, names=False)
        for flag in _flags_of(settings.networks.get(record.name, EndpointSettings())):
            raise ConfigError(f"{flag} needs a network with addresses: {record.name} has none")
    settings.networks.setdefault(record.name, EndpointSettings())
    for name, place in settings.networks.items():
        other = engine.networks.for_containers(name)
        if len(settings.networks) > 1:
            check_connectable(engine, container, other)
        check_place(engine, other, place)
    drivers = [engine.network_driver(engine.networks.get(name).driver) for name in settings.networks]
    publishing = any(NetworkCapability.PUBLISH in driver.capabilities for driver in drivers)
    if publishing or spans_hosts(engine, container) or not (host.port_bindings or host.publish_all_ports):
        return []
    return [f"published ports are discarded: network {record.name} does not publish any"]


def _refuse_with(container: Container, mode: str, *, publish: bool, names: bool) -> None:
    host, config = container.host_config, container.config
    asked = {
        "--publish": publish and (host.port_bindings or host.publish_all_ports),
        "--hostname": names and config.hostname,
        "--dns": names and (host.dns or host.dns_search or host.dns_options),
        "--add-host": names and host.extra_hosts,
    }
    said = [flag for place in container.network_settings.networks.values() if names for flag in _flags_of(place)]
    for flag, given in (*asked.items(), *dict.fromkeys(said, True).items()):
        if given:
            raise ConfigError(f"conflicting options: {flag} and --network {mode[:30]}: the other container decides")


def _flags_of(place: EndpointSettings) -> list[str]:
    """Return what a user has said of a place on a network, by flag."""
    asked = place.ipam_config or {}
    words = {
        "--ip": "IPv4Address", "--ip6": "IPv6Address", "--mac-address": "MacAddress", "--link-local-ip": "LinkLocalIPs"
    }  # fmt: skip
    flags = {**{flag: asked.get(key) for flag, key in words.items()}, "--network-alias": place.aliases}
    return [flag for flag, given in {**flags, "--link": place.links}.items() if given]


def check_place(engine: Engine, record: NetworkRecord, place: EndpointSettings) -> None:
    """Refuse what the network, or its driver, cannot give a container there."""
    place.network_id = record.id
    struct = engine.network_driver(record.driver).EndpointOptions
    options_of(engine, record.driver, struct, place.driver_opts or {}, "--driver-opt")
    if record.name == DEFAULT and place.aliases:
        raise ConfigError(
            "network-scoped aliases are only supported for user-defined networks: `transom network create`"
        )
    for link in place.links or ():
        other = engine.containers.get(link.partition(":")[0])
        if record.name == DEFAULT and not other.state.running:
            raise Conflict(f"cannot link to {other.name}: it is not running; start it first")
    asked = any((place.ipam_config or {}).get(key) for key in ("IPv4Address", "IPv6Address"))
    if asked and record.name == DEFAULT:
        raise ConfigError("a fixed address (--ip) is only supported on user-defined networks: `transom network create`")


def check_connectable(engine: Engine, container: Container, record: NetworkRecord) -> None:
    """Refuse a network that cannot be joined or left while others are."""
    mode = container.host_config.network_mode
    for name in (mode, record.name):
        driver = name.partition(":")[0] if ":" in name else engine.networks.driver_of(name)
        if driver and NetworkCapability.HOT_PLUG not in engine.network_driver(driver).capabilities:
            raise ConfigError(
                f"{f'container {container.name}' if container.name else 'a container'} cannot be connected to"
                f" {record.name}:"
                f" network {name[:30]} shares or isolates its namespace whole"
            )


def shares_host(engine: Engine, mode: str) -> bool:
    """Say whether a container of that network mode is in the host's own network namespace."""
    if ":" in mode:
        return False
    driver = engine.network_driver(engine.networks.get(mode).driver)
    return driver.netns(endpoint=Endpoint(id="", container="")).kind is NetnsKind.HOST
