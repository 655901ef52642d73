"""How a container gets out, and where it is reached: default routes and published ports."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

import msgspec

from transom.contract.network import NetworkCapability, Port
from transom.errors import DriverError
from transom_engine.model import Container, PortBinding
from transom_engine.networks.contracts import (
    HOST_BINDING,
    bound,
    endpoint_of,
    family,
    network_of,
    routed_families,
    ways_out,
)

if TYPE_CHECKING:
    from transom_engine.engine import Engine
    from transom_engine.networks.model import NetworkRecord

_EVERYWHERE = {4: "0.0.0.0", 6: "::"}
"""Every address of a family."""


def route(container: Container, netns: int) -> None:
    """Make the default routes by the networks that lead out."""
    from transom.services.interfaces import route_by

    places = container.network_settings.networks
    hops = [
        (places[name].interface, places[name].ipv6_gateway if number == 6 else places[name].gateway)
        for number, name in ways_out(container).items()
    ]
    try:
        route_by(netns, hops)
    except OSError as error:
        raise DriverError("route", driver="networks", subject=container.name, cause=error) from error


def spans_hosts(engine: Engine, container: Container) -> bool:
    """Say whether the container is on a network over several hosts that may lead out, by `GATEWAY` if need be."""
    records = map(engine.networks.named, container.network_settings.chosen)
    drivers = [engine.network_driver(record.driver) for record in records if record and not record.internal]
    return any(NetworkCapability.MULTI_HOST in driver.capabilities for driver in drivers)


def ports_of(container: Container) -> Iterator[Port]:
    """Yield the ports that the container asks to be published."""
    host = container.host_config
    for key, bindings in host.port_bindings.items():
        number, _, protocol = key.partition("/")
        for binding in bindings:
            first, _, last = binding.host_port.partition("-")
            yield Port(
                container=int(number), protocol=protocol or "tcp", host=int(first or 0), host_end=int(last or 0),
                address=binding.host_ip,
            )  # fmt: skip
    if host.publish_all_ports:
        for key in container.config.exposed_ports:
            if key not in host.port_bindings:
                number, _, protocol = key.partition("/")
                yield Port(container=int(number), protocol=protocol or "tcp")


def publish(engine: Engine, container: Container, ways: dict[int, str], ports: tuple[Port, ...]) -> None:
    """Publish each port at the network that leads out, and note where; what was there before is replaced.

    A network that leads out for both families gets both at once, so that a free port is free for both. Where a network
    is routed, its endpoint is reached past the host's ports, at all that the container asks for, wherever it leads out.
    """
    settings = container.network_settings
    one_way = len(set(ways.values())) == 1
    for name, place in settings.networks.items():
        record = engine.networks.named(name)
        if record is None or not (place.endpoint_id or name in ways.values()):
            continue
        families = {number for number, way in ways.items() if way == name}
        endpoint = endpoint_of(engine, container, record, place)
        routed = routed_families(engine, record) & {family(address) for address in endpoint.addresses}
        bare = default_address(engine, record)
        located = [msgspec.structs.replace(port, address=port.address or bare) for port in ports]
        wanted = [p for p in located if families and (one_way or not p.address or family(p.address) in families)]
        wanted += [opened for port in ports_of(container) for opened in _opened(port, routed)]
        driver = engine.network_driver(record.driver)
        if not wanted or NetworkCapability.PUBLISH not in driver.capabilities:
            continue  # Docker's word: published ports are discarded when using host network mode
        kept = tuple(a for a in endpoint.addresses if family(a) in families | routed)
        endpoint = msgspec.structs.replace(endpoint, addresses=kept)
        for port in driver.publish(network=network_of(engine, record), endpoint=endpoint, ports=tuple(wanted)):
            key = f"{port.container}/{port.protocol}"
            listed = settings.ports.get(key) or []
            settings.ports[key] = [*listed, PortBinding(host_ip=port.address, host_port=str(port.host))]


def _opened(port: Port, families: set[int]) -> Iterator[Port]:
    """Yield the port for each of the families, if it is asked for there; an address of the host's does not matter."""
    for number in families:
        if not port.address or family(port.address) == number:
            yield msgspec.structs.replace(port, address=_EVERYWHERE[number])


def default_address(engine: Engine, record: NetworkRecord) -> str:
    """Return where ports are published for which no address is named: the config's, if the network has none itself."""
    return "" if engine.config.ip == "0.0.0.0" or HOST_BINDING in record.options else engine.config.ip


def move_ways_out(engine: Engine, container: Container, before: dict[int, str], netns: int) -> None:
    """Route by the networks that lead out now, and publish there: at the same ports what was published before.

    Where a family leads out that did not, what the container asks for is published for it too.
    """
    after = ways_out(container)
    records = [engine.networks.named(name) for name in container.network_settings.networks]
    if after == before and not any(record and routed_families(engine, record) for record in records):
        return
    route(container, netns)
    for name in {*before.values()} & {*container.network_settings.networks}:
        record = engine.networks.get(name)
        driver = engine.network_driver(record.driver)
        if NetworkCapability.PUBLISH in driver.capabilities:
            place = container.network_settings.networks[name]
            driver.unpublish(network=network_of(engine, record), endpoint=endpoint_of(engine, container, record, place))
    publish_again(
        engine, container, after, gained=_gained(engine, container, {n: after[n] for n in {*after} - {*before}})
    )


def publish_again(engine: Engine, container: Container, ways: dict[int, str], *, gained: Collection[Port] = ()) -> None:
    """Publish at the networks that lead out what is published on record, at the same ports of the host.

    Args:
        gained: what is to be published besides.
    """
    again = [port for port in bound(container) if family(port.address) in ways]
    container.network_settings.ports = dict.fromkeys(container.network_settings.ports)
    publish(engine, container, ways, (*again, *gained))


def _gained(engine: Engine, container: Container, families: dict[int, str]) -> Collection[Port]:
    """Return the ports asked for, as far as they are in those families; at every address: where the other has them."""
    found: dict[Port, None] = {}
    bare = default_address(engine, engine.networks.get(families[min(families)])) if families else ""
    for asked in ports_of(container) if families else ():
        port = msgspec.structs.replace(asked, address=asked.address or bare)
        twins = [p for p in bound(container) if (p.container, p.protocol) == (port.container, port.protocol)]
        everywhere = [p for p in twins if p.address in _EVERYWHERE.values()]
        if port.address:
            found |= {port: None} if family(port.address) in families else {}
        elif everywhere and len(families) == 1:
            found |= {msgspec.structs.replace(p, address=_EVERYWHERE[min(families)]): None for p in everywhere}
        else:
            found[port] = None
    return found
