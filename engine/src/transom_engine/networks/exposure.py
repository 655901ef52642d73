"""What of containers is reached from outside this host, so that an operator sees it at one look."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from transom.contract.network import Reach
from transom_engine.model import Container, EndpointSettings
from transom_engine.networks.checking import shares_host
from transom_engine.networks.contracts import bound, family, reach_of, ways_out
from transom_engine.networks.model import NetworkRecord
from transom_engine.networks.ways import ports_of

if TYPE_CHECKING:
    from transom_engine.engine import Engine

ALL = "all"
"""In place of a port: every one that the container listens at."""


class Exposure(msgspec.Struct, frozen=True):
    """One way in.

    Attributes:
        address: where it is reached; "0.0.0.0" and "::" are every address of the host.
        port: there, "8080/tcp", or `ALL`.
        container: its name.
        target: the container's own port, "80/tcp", or `ALL`.
        network: by which.
        reason: published, host, neighbour (of the parent's network), routed, trusted (interfaces of the host).
    """

    address: str
    port: str
    container: str
    target: str
    network: str
    reason: str


def exposed(engine: Engine) -> Iterator[Exposure]:
    """Yield each way in to the containers that run; what listens at a loopback address of the host is none."""
    for container in sorted(engine.containers.list(), key=lambda container: container.name):
        mode = container.host_config.network_mode
        if shares_host(engine, mode):
            yield Exposure("0.0.0.0", ALL, container.name, ALL, mode, "host")
        yield from _published(container)
        for name, place in container.network_settings.networks.items():
            record = engine.networks.named(name)
            if record is not None and place.endpoint_id:
                yield from _direct(engine, container, record, place)


def _published(container: Container) -> Iterator[Exposure]:
    from ipaddress import ip_address

    ways = ways_out(container)
    for port in bound(container):
        if not ip_address(port.address).is_loopback:
            target, network = f"{port.container}/{port.protocol}", ways.get(family(port.address), "")
            yield Exposure(
                port.address, f"{port.host}/{port.protocol}", container.name, target, network, "published"
            )  # fmt: skip


def _direct(engine: Engine, container: Container, record: NetworkRecord, place: EndpointSettings) -> Iterator[Exposure]:
    """Yield the ways in to the container's own addresses."""
    ways = reach_of(engine, record)
    for address in filter(None, (place.ip_address, place.global_ipv6_address)):
        way = ways.get(family(address))
        if way is Reach.PUBLISHED:
            for port in ports_of(container):
                text = f"{port.container}/{port.protocol}"
                yield Exposure(address, text, container.name, text, record.name, Reach.ROUTED)
        elif way is not None:
            yield Exposure(address, ALL, container.name, ALL, record.name, way)
