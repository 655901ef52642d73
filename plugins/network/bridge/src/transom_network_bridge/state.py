"""What a network should have on the host, and in what the host differs."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_interface

from transom.contract.network import Endpoint, Network
from transom.errors import ConfigError
from transom.services import interfaces, netlink
from transom.services.interfaces import alias_of, has_family, read_setting
from transom.services.netlink import GETROUTE, Link, Session
from transom_network_bridge.firewall import TABLE, Element, Firewall, pack_name
from transom_network_bridge.guard import Guard
from transom_network_bridge.options import bridge_addresses, bridge_name, gateway_addresses, options_of
from transom_network_bridge.publishing import unpublished

_RTA_DST, _RTA_OIF = 1, 4


def host_end(endpoint: str) -> str:
    """Return the name of the end of an endpoint's pair that is a port of the bridge."""
    return f"vt{endpoint[:13]}"


def bridge_nf() -> bool:
    """Say whether frames inside a bridge pass the firewall of the thread's namespace."""
    return read_setting("bridge/bridge-nf-call-iptables") == "1"


def elements_of_network(network: Network) -> set[Element]:
    """Return what the table should know of the network."""
    options, owner, packed = options_of(network), f"network {network.id}", pack_name(bridge_name(network))
    wanted = {Element("bridges", packed, comment=owner), Element("loops", packed + packed, comment=owner)}
    marks = {"internal": network.internal, "isolated": not options.icc}
    for number, source in {4: options.source4, 6: options.source6}.items():
        mode = options.mode(number)
        translated = mode.startswith("nat") and options.masquerade and not network.internal
        marks |= {
            f"natted{number}": translated,
            f"direct{number}": mode == "nat-unprotected",
            f"routed{number}": mode == "routed",
        }
        if translated and source:
            data = netlink.pack_address(source)[1]
            wanted.add(Element(f"source{number}", packed, data=data, comment=owner))
    wanted |= {Element(where, packed, comment=owner) for where, so in marks.items() if so}
    return wanted | {Element("trusted", pack_name(i) + packed, comment=owner) for i in options.trusted_interfaces}


def settings_of_network(network: Network, *, forwards: bool) -> dict[str, str]:
    """Return the settings that must be on, and what is off otherwise; the host's own, where it `forwards` for us."""
    if network.internal:
        return {}
    wanted = {f"ipv4/conf/{bridge_name(network)}/route_localnet": "ports published at 127.0.0.1 are off"}
    if forwards and has_family(network, 6):
        wanted["ipv6/conf/all/forwarding"] = "IPv6 forwarding is off"
    if forwards and has_family(network, 4):
        wanted["ipv4/ip_forward"] = "IPv4 forwarding is off"
    return wanted


def switched_off(network: Network, *, forwards: bool) -> Iterator[str]:
    """Describe each setting that is off and should not be."""
    for key, said in settings_of_network(network, forwards=forwards).items():
        if read_setting(key) == "0":
            yield f"{said} (net.{key.replace('/', '.')})"


def lost_routes(session: Session, bridge: Link, network: Network) -> dict[str, str]:
    """Return the network's ranges that the host does not reach by the bridge, each with the host's address there."""
    lost = {}
    for address in gateway_addresses(network):
        own = ip_interface(address)
        near = own.ip + 1 if own.ip + 1 in own.network else own.ip - 1
        if near in own.network and _way(session, near.packed) != bridge.index:
            lost[str(own.network)] = str(own.ip)
    return lost


def _way(session: Session, address: bytes) -> int:
    """Return the index of the interface by which the host reaches an address; 0 without a route."""
    number = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    body = struct.pack("=8BI", number, 8 * len(address), 0, 0, 0, 0, 0, 0, 0)
    try:
        (found,) = session.get(GETROUTE, body + netlink.attribute(_RTA_DST, address))
    except OSError as error:
        if error.errno not in {errno.ENETUNREACH, errno.EHOSTUNREACH}:
            raise
        return 0
    way: int = struct.unpack("=I", netlink.attributes(found[12:]).get(_RTA_OIF, bytes(4)))[0]
    return way


def mtu_of(session: Session, network: Network, bridge: Link) -> int:
    """Return what MTU a bridge that was made should have: while nobody is on it, it follows the ways out."""
    if bridge.carrier:
        return bridge.mtu  # one for all who are on it: who has more would be cut off from who has less
    try:
        return interfaces.wanted_mtu(session, network, options_of(network).mtu)
    except ConfigError:
        return bridge.mtu  # too little for IPv6


def complete(session: Session, link: Link, network: Network, *, forwards: bool) -> bool:
    """Say whether nothing of the network is missing on the host, by a few look-ups: it is asked at each join."""
    wanted, tables = elements_of_network(network), [Firewall(), *([Guard()] if options_of(network).antispoof else [])]
    return (
        link.up
        and link.alias == alias_of(network)
        and link.mtu == mtu_of(session, network, link)
        and bridge_addresses(network) <= session.addresses(link.index).keys()
        and not lost_routes(session, link, network)
        and not any(switched_off(network, forwards=forwards))
        and all(table.current() and not table.tampered() for table in tables)
        and {*tables[0].get([*wanted])} == wanted
    )


def differences(network: Network, endpoints: tuple[Endpoint, ...], *, forwards: bool) -> Iterator[str]:
    """Describe in what the host, and the endpoints' namespaces, differ from what should be there."""
    name = bridge_name(network)
    with Session() as session:
        bridge = session.link(name)
        if bridge is None:
            yield f"bridge {name} is missing"
            return
        if bridge.up:
            for pool in sorted(lost_routes(session, bridge, network)):
                yield f"bridge {name} has lost its route to {pool}"
        else:
            yield f"bridge {name} is down"
        for address in sorted(bridge_addresses(network) - session.addresses(bridge.index).keys()):
            yield f"bridge {name} has lost its address {address}"
        for endpoint in endpoints:
            yield from _of_endpoint(session, bridge, network, endpoint)
    yield from _of_tables(network)
    yield from switched_off(network, forwards=forwards)


def _of_endpoint(session: Session, bridge: Link, network: Network, endpoint: Endpoint) -> Iterator[str]:
    who, options, end = f"endpoint {endpoint.id[:12]}", options_of(network), session.link(host_end(endpoint.id))
    if end is None:
        yield f"{who} has no interface"
        return
    if end.master != bridge.index:
        yield f"{who} is not in bridge {bridge.name}"
    mtu = network.mtu or options.mtu or bridge.mtu
    if not end.up:
        yield f"{who}: {end.name} is down"
    if end.mtu != mtu:
        yield f"{who}: {end.name} has MTU {end.mtu}, not {mtu}"
    if end.parent_namespace >= 0:
        inner = next((link for link in session.links(end.parent_namespace) if link.index == end.parent), None)
        if inner:
            damage = interfaces.damage
            yield from damage(session, end.parent_namespace, endpoint=endpoint, link=inner, mtu=mtu)
    if not options.icc and not bridge_nf() and not end.isolated:
        yield f"{who} is not isolated from its neighbours"
    if options.antispoof and not Guard().of(endpoint, end.name):
        yield f"{who} is not kept from using its neighbours' addresses"
    for port in unpublished(Firewall(), endpoint):
        yield f"{who}: port {port.host}/{port.protocol} is not published at {port.address}"


def _of_tables(network: Network) -> Iterator[str]:
    firewall, name = Firewall(), bridge_name(network)
    if not firewall.exists():
        yield f"nftables table {TABLE} is missing: published ports and masquerading are off"
    else:
        wanted, present = elements_of_network(network), {*firewall.elements(owner=f"network {network.id}")}
        for where in sorted({element.set for element in wanted - present}):
            yield f"nftables table {TABLE}: set {where} does not have bridge {name}"
        for where in sorted({element.set for element in present - wanted}):
            yield f"nftables table {TABLE}: set {where} has bridge {name}, and should not"
    for table in (firewall, Guard()):
        for chain in table.tampered() if table.exists() else ():
            yield f"nftables table {TABLE}: chain {chain} has not the rules that it should have"
    if options_of(network).antispoof and not Guard().current():
        yield f"nftables table bridge {TABLE} is missing: containers can pose as each other"
