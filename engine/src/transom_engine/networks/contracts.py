"""Records as the data that network drivers are called with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from transom.contract.network import Endpoint, Network, NetworkCapability, Port, Reach, Subnet
from transom_engine.model import Container, EndpointSettings
from transom_engine.networks.model import DEFAULT, NO_NETWORK, NetworkRecord

if TYPE_CHECKING:
    from transom.contract.network import NetworkDriver
    from transom_engine.engine import Engine

HOST_BINDING = "com.docker.network.bridge.host_binding_ipv4"
"""The option by which a network says where its ports are published."""


def network_of(engine: Engine, record: NetworkRecord) -> Network:
    """Describe a network to its driver."""
    driver = engine.network_driver(record.driver)
    config = engine.config
    return Network(
        id=record.id,
        name=record.name,
        options=options_of(
            engine,
            record.driver,
            driver.NetworkOptions,
            {**_daemon_options(engine, record), **record.options},
            "--opt",
        ),
        subnets=tuple(
            Subnet(pool=c.subnet, gateway=c.gateway or None, range=c.ip_range or None, reserved=c.auxiliary_addresses)
            for c in record.ipam.config
        ),
        internal=record.internal,
        default=record.name == DEFAULT,
        mtu=(config.mtu or None) if record.name == DEFAULT else None,
        labels=record.labels,
    )


def _daemon_options(engine: Engine, record: NetworkRecord) -> dict[str, str]:
    """Return what Docker's keys bridge, icc and ip-masq say of the default network, where its driver knows it."""
    if record.name != DEFAULT:
        return {}
    config = engine.config
    words = {
        "com.docker.network.bridge.name": "" if config.bridge == NO_NETWORK else config.bridge,
        "com.docker.network.bridge.enable_icc": "" if config.icc else "false",
        "com.docker.network.bridge.enable_ip_masquerade": "" if config.ip_masq else "false",
    }
    known = option_names(engine, record.driver)
    return {name: word for name, word in words.items() if word and name in known}


def option_names(engine: Engine, driver: str) -> set[str]:
    """Return the names of the options that networks of a driver have."""
    return {*engine.network_driver(driver).NetworkOptions.__struct_encode_fields__}


def endpoint_of(engine: Engine, container: Container, record: NetworkRecord, place: EndpointSettings) -> Endpoint:
    """Describe a container's place on a network to the driver."""
    pairs = ((place.ip_address, place.ip_prefix_len), (place.global_ipv6_address, place.global_ipv6_prefix_len))
    driver = engine.network_driver(record.driver)
    own_mac = NetworkCapability.MAC in driver.capabilities  # else it is another interface's, on record only to be shown
    ways = ways_out(container)
    return Endpoint(
        id=place.endpoint_id,
        container=container.id,
        names=(container.name, container.id[:12], *(place.aliases or [])),
        addresses=tuple(f"{address}/{prefix}" for address, prefix in pairs if address),
        link_local=link_local_of(place),
        mac=(place.mac_address or None) if own_mac else None,
        options=options_of(engine, record.driver, driver.EndpointOptions, place.driver_opts or {}, "--driver-opt"),
        ports=tuple(port for port in bound(container) if ways.get(family(port.address)) == record.name),
    )


def link_local_of(place: EndpointSettings) -> tuple[str, ...]:
    """Return the link-local addresses that were asked for, with the prefixes of their ranges."""
    asked: list[str] = (place.ipam_config or {}).get("LinkLocalIPs") or []
    return tuple(f"{address}/{64 if ':' in address else 16}" for address in asked)


def options_of(engine: Engine, driver: str, struct: type[msgspec.Struct], words: dict[str, str], where: str) -> Any:
    """Convert a user's options; `where` says in an error what they were written behind."""
    if not words:
        try:
            return struct()
        except TypeError:
            pass  # one is required: the conversion says which
    from transom.services.options import convert

    return convert(driver=engine.drivers.load("network", driver), options=words, struct=struct, where=where)


def scope_of(driver: NetworkDriver) -> str:
    """Return Docker's word for how far networks of a driver reach."""
    return "global" if NetworkCapability.MULTI_HOST in driver.capabilities else "local"


def keeps_addresses(engine: Engine, record: NetworkRecord) -> bool:
    """Say whether the network's addresses come from its driver."""
    return engine.network_driver(record.driver).keeps_addresses(network=network_of(engine, record))


def bound(container: Container) -> list[Port]:
    """Return where the container's ports are published, as its record has it."""
    return [
        Port(
            container=int(key.partition("/")[0]), protocol=key.partition("/")[2], host=int(binding.host_port),
            address=binding.host_ip,
        )
        for key, bindings in container.network_settings.ports.items() for binding in bindings or ()
    ]  # fmt: skip


def family(address: str) -> int:
    """Return 4 or 6."""
    return 6 if ":" in address else 4


def reach_of(engine: Engine, record: NetworkRecord) -> dict[int, Reach]:
    """Return how the network's containers are reached at their own addresses from outside, by family."""
    return engine.network_driver(record.driver).reach(network=network_of(engine, record))


def routed_families(engine: Engine, record: NetworkRecord) -> set[int]:
    """Return the families in which a network's containers are reached at their own addresses, at published ports."""
    return {number for number, way in reach_of(engine, record).items() if way is Reach.PUBLISHED}


def ways_out(container: Container) -> dict[int, str]:
    """Return the network by which the container reaches everything else, for each address family.

    It is the one with the highest priority; among equals, Docker takes the first by name.
    """
    ways: dict[int, str] = {}
    places = container.network_settings.networks
    for name in sorted(places, key=lambda name: (-places[name].gw_priority, name)):
        for number, gateway in ((4, places[name].gateway), (6, places[name].ipv6_gateway)):
            if gateway:
                ways.setdefault(number, name)
    return ways
