"""Published ports, as elements of the table.

Where the network is translated, a port of the host leads to the endpoint; where it is routed, the endpoint's own port
is opened. Either way the endpoint's addresses are in the sets ``hairpin4`` and ``hairpin6``: so one look tells whether
anything is published for it, however much there is for others.
"""

from __future__ import annotations

import socket

from transom.contract.network import Endpoint, Network, Port
from transom.errors import ConfigError
from transom.services import netlink
from transom.services.interfaces import family
from transom_network_bridge.firewall import (
    ENDPOINT_SETS,
    Element,
    Firewall,
    pack_port,
    pack_protocol,
    published,
)
from transom_network_bridge.options import options_of
from transom_network_bridge.ports import Chooser

_ANYWHERE = {4: "0.0.0.0", 6: "::"}


class Holders:
    """Who has which port of the host, but for one endpoint.

    Those at a single address are few and read at once; those at any address are looked up one by one.
    """

    def __init__(self, firewall: Firewall, owner: str) -> None:
        self._firewall, self._owner = firewall, owner
        self._single: dict[tuple[str, int], dict[str, str]] = {}
        for element in firewall.elements("ports4", "ports6"):
            if not _belongs(element, owner):
                protocol, address, port = published(element)
                self._single.setdefault((protocol, port), {})[address] = _name(element.comment)

    def __call__(self, protocol: str, address: str, port: int) -> str:
        """Say who has the port at that address, or at one that overlaps it, and where; empty: nobody."""
        number = family(address)
        anywhere = Element(f"any{number}", pack_protocol(protocol) + pack_port(port))
        for element in self._firewall.get([anywhere]):
            if not _belongs(element, self._owner):
                return f"{_name(element.comment)} has it at {_ANYWHERE[number]}"
        for other, holder in self._single.get((protocol, port), {}).items():
            if family(other) == number and (address == other or address in _ANYWHERE.values()):
                return f"{holder} has it at {other}"
        return ""


def publish(firewall: Firewall, network: Network, endpoint: Endpoint, ports: tuple[Port, ...]) -> tuple[Port, ...]:
    """Publish the ports in place of what is published for the endpoint; exact ports before ranges, these before any.

    Raises:
        Conflict: a port is taken.
        ConfigError: it cannot be published so.
    """
    owner = f"endpoint {endpoint.id}"
    note = " ".join([owner, *endpoint.names[:1]])[:120]
    targets = {family(address): address.partition("/")[0] for address in reversed(endpoint.addresses)}
    routed = {number for number in targets if options_of(network).mode(number) == "routed"}
    firewall.load()
    mine = elements_of(firewall, endpoint)
    bound: dict[int, list[Port]] = {}
    wanted: list[Element] = []
    with Chooser(Holders(firewall, owner)) as chooser:
        for index, port in sorted(enumerate(ports), key=lambda item: _width(item[1])):
            addresses = _host_addresses(network, endpoint, port, targets)
            translated = tuple(address for address in addresses if family(address) not in routed)
            bound[index] = chooser.settle(port, translated, endpoint.names[0] if endpoint.names else note)
            wanted += [_open_element(port, targets[n], note) for n in map(family, addresses) if n in routed]
            wanted += [e for port in bound[index] for e in _port_elements(port, targets, note)]
            wanted += [hairpin_element(targets[family(address)], note) for address in addresses]
        firewall.change(
            add=list(dict.fromkeys(e for e in wanted if e not in mine)), remove=[e for e in mine if e not in wanted]
        )
    return tuple(port for index in sorted(bound) for port in bound[index])


def elements_of(firewall: Firewall, endpoint: Endpoint) -> list[Element]:
    """Return what is published for the endpoint."""
    if not may_be_published(firewall, endpoint):
        return []
    return firewall.elements(*ENDPOINT_SETS, owner=f"endpoint {endpoint.id}")


def may_be_published(firewall: Firewall, endpoint: Endpoint) -> bool:
    """Say whether there is something to look for, which takes the longer the more there is of others'."""
    marks = [hairpin_element(address.partition("/")[0]) for address in endpoint.addresses]
    return not marks or bool(firewall.get(marks))


def unpublished(firewall: Firewall, endpoint: Endpoint) -> list[Port]:
    """Return the endpoint's ports that the table does not have, or has for another one."""
    targets = {family(address): address.partition("/")[0] for address in reversed(endpoint.addresses)}
    missing = []
    for port in endpoint.ports:
        elements = _port_elements(port, targets, "")
        if [(e.key, e.data) for e in firewall.get(elements)] != [(e.key, e.data) for e in elements]:
            missing.append(port)
    return missing


def hairpin_element(address: str, note: str = "") -> Element:
    """Return the element by which an endpoint with published ports reaches itself."""
    packed = netlink.pack_address(address)[1]
    return Element(f"hairpin{family(address)}", packed + packed, comment=note)


def _belongs(element: Element, owner: str) -> bool:
    return element.comment.split(" ")[:2] == owner.split(" ")


def _name(comment: str) -> str:
    """Name the holder from an element's comment, "endpoint ID NAME"."""
    _, _, rest = comment.partition(" ")
    identity, _, name = rest.partition(" ")
    return name or f"endpoint {identity[:12]}"


def _width(port: Port) -> int:
    """Return how many host ports will do, for sorting the choosy first."""
    return max(port.host_end - port.host, 0) if port.host else 65536


def _host_addresses(network: Network, endpoint: Endpoint, port: Port, targets: dict[int, str]) -> tuple[str, ...]:
    """Return the host's addresses at which a port is published; `targets` has the endpoint's by family."""
    binding = options_of(network).host_binding
    if not port.address:
        both = {4: binding} | ({6: "::"} if binding == _ANYWHERE[4] else {})
        found = tuple(address for number, address in both.items() if number in targets)
    else:
        try:
            kind, packed = netlink.pack_address(port.address)
        except OSError:
            raise ConfigError(f"cannot publish at {port.address!r}: it is not an address") from None
        address = socket.inet_ntop(kind, packed)
        found = (address,) if family(address) in targets else ()
    if not found:
        raise ConfigError(
            f"cannot publish at {port.address or binding}: endpoint {endpoint.id[:12]} has no address of that family"
        )
    return found


def _port_elements(port: Port, targets: dict[int, str], note: str) -> list[Element]:
    """Return the elements by which a port of the host leads to the endpoint."""
    number, packed = family(port.address), netlink.pack_address(port.address)[1]
    key, anywhere = (pack_protocol(port.protocol), pack_port(port.host)), not any(packed)
    target = netlink.pack_address(targets[number])[1] + pack_port(port.container)
    where = f"{'any' if anywhere else 'ports'}{number}"
    found = [Element(where, (b"" if anywhere else packed).join(key), data=target, comment=note)]
    if port.address in {"::", "::1"}:
        found.append(Element("loopback6", b"".join(key), comment=note))
    return found


def _open_element(port: Port, address: str, note: str) -> Element:
    key = netlink.pack_address(address)[1] + pack_protocol(port.protocol) + pack_port(port.container)
    return Element(f"open{family(address)}", key, comment=note)
