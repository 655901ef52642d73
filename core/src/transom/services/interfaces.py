"""Interfaces of containers, and what is written of them on the host: what network drivers have in common.

A driver makes its kind of interface by `transom.services.netlink`, best with the end that the container sees born
inside the container's namespace, and has it furnished by `furnish`. Default routes are core's: a driver reports
next hops (`Attachment.gateways`), and `route_by` makes the routes of those that win. So are announcements: `announce`
tells the neighbours of an endpoint whose its addresses are now, as often as the network's options have it.

What a driver makes on the host carries an alias (ip-link(8)), `alias_of` a network or an endpoint, in the same call
that makes it. So there is no record that could go stale: `owned` reads it back.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any

import msgspec

from transom.contract import Probe
from transom.contract.network import Endpoint, Network, Owned
from transom.errors import ConfigError, Conflict
from transom.services import netlink
from transom.services.netlink import Link, Session
from transom.services.netns import inside

ETHERNET_MTU, IPV6_MTU = 1500, 1280
"""In bytes, the latter by RFC 8200, section 5."""
ANY = {4: "0.0.0.0/0", 6: "::/0"}
"""The destination of default routes, by family."""

_ALIAS = "transom "

_NAMED = "1 to 15 characters without space, slash, colon and percent sign"
InterfaceName = Annotated[
    str, msgspec.Meta(pattern=r"^(?!\.{1,2}$)[^/:%\s]{1,15}$", description=f"the name of an interface: {_NAMED}")
]
"""What the kernel takes as the name of an interface (dev_valid_name), and not as a pattern of one (dev_alloc_name)."""


class AnnouncingOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``network create --opt`` accepts of announcements, by Docker's names; a driver's own options derive from it.

    Attributes:
        announcements: how often an endpoint's addresses are announced (RFC 4861, MAX_NEIGHBOR_ADVERTISEMENT).
        announcing: milliseconds from one to the next.
    """

    announcements: Annotated[int, msgspec.Meta(ge=0, le=3)] = msgspec.field(
        name="com.docker.network.advertise_addr_nmsgs", default=3
    )
    announcing: Annotated[int, msgspec.Meta(ge=100, le=2000)] = msgspec.field(
        name="com.docker.network.advertise_addr_ms", default=1000
    )


class InterfaceOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``network connect --driver-opt`` accepts where an endpoint is an interface: Docker's names."""

    interface: InterfaceName | None = msgspec.field(name="com.docker.network.endpoint.ifname", default=None)
    sysctls: tuple[str, ...] = msgspec.field(name="com.docker.network.endpoint.sysctls", default=())

    def __post_init__(self) -> None:
        """Check that each setting is one of the interface's own."""
        for setting in self.sysctls:
            key, equals, _ = setting.partition("=")
            words = key.split(".")
            if not equals or len(words) < 5 or words[0] != "net" or words[3] != "IFNAME" or "/" in key:
                raise ValueError(f"{setting!r} is not a setting such as net.ipv4.conf.IFNAME.log_martians=1")


INTERFACE_DOCS = {
    "com.docker.network.endpoint.ifname": "Name of the interface in the container.",
    "com.docker.network.endpoint.sysctls": "Settings of the interface, net.ipv4.conf.IFNAME.log_martians=1,...",
    "com.docker.network.advertise_addr_nmsgs": "How often neighbours are told of a container's addresses; 0: never.",
    "com.docker.network.advertise_addr_ms": "Milliseconds from one time to the next.",
}
"""`option_docs` of `InterfaceOptions` and `AnnouncingOptions`."""


def lacking(feature: str, error: OSError) -> Probe:
    """Say that a driver cannot run, for want of a feature of the kernel's or of the right to it."""
    verb = "does not let this process have" if error.errno == errno.EPERM else "lacks"
    return Probe(usable=False, reason=f"the kernel {verb} {feature}: {error.strerror or error}")


def alias_of(thing: Network | Endpoint) -> str:
    """Return what an interface on the host is marked with."""
    return f"{_ALIAS}{'network' if isinstance(thing, Network) else 'endpoint'} {thing.id}"


def owned(aliases: Iterable[str]) -> Owned:
    """Read ids back from the aliases of interfaces; others' are passed over."""
    words = [alias.removeprefix(_ALIAS).split(" ") for alias in aliases if alias.startswith(_ALIAS)]
    found = {kind: frozenset(w[1] for w in words if w[0] == kind and len(w) > 1) for kind in ("network", "endpoint")}
    return Owned(networks=found["network"], endpoints=found["endpoint"])


def plain(address: str) -> str:
    """Return an address without prefix, in the kernel's spelling."""
    return socket.inet_ntop(*netlink.pack_address(address.partition("/")[0]))


def family(address: str) -> int:
    """Return 4 or 6."""
    return 6 if ":" in address else 4


def has_family(network: Network, number: int) -> bool:
    """Say whether the network has a subnet of the family, 4 or 6."""
    return any(family(subnet.pool) == number for subnet in network.subnets)


def gateways(network: Network) -> set[str]:
    """Return the gateways' addresses with prefix, in the kernel's spelling."""
    return {f"{plain(s.gateway)}/{s.pool.partition('/')[2]}" for s in network.subnets if s.gateway}


def next_hops(network: Network, endpoint: Endpoint) -> tuple[str, ...]:
    """Return the gateways of the families that the endpoint has addresses of; none on an internal network."""
    families, found = {family(address) for address in endpoint.addresses}, dict[int, str]()
    for subnet in () if network.internal else network.subnets:
        if subnet.gateway and family(subnet.pool) in families:
            found.setdefault(family(subnet.pool), subnet.gateway)
    return tuple(found.values())


def wanted_mtu(session: Session, network: Network, asked: int = 0) -> int:
    """Return what was asked for, or the smallest MTU among the ways out of the host.

    Raises:
        ConfigError: IPv6 does not go with so small a one.
    """
    mtu = network.mtu or asked
    if not mtu:
        uplinks = {route.index for route in session.routes() if route.to in ANY.values()}
        mtu = min((link.mtu for i in uplinks if (link := session.link(index=i))), default=ETHERNET_MTU)
    if mtu < IPV6_MTU and has_family(network, 6):
        raise ConfigError(f"network {network.name}: IPv6 needs an MTU of at least {IPV6_MTU} bytes, not {mtu}")
    return mtu


def mac_for(addresses: tuple[str, ...], identity: str) -> str:
    """Return 02:42 and the IPv4 address, so that neighbours' caches stay right when the address is used again."""
    if addresses:
        _, packed = netlink.pack_address(min(addresses, key=family).partition("/")[0])
        return "02:42:" + packed[-4:].hex(":")
    return "02:42:" + bytes.fromhex(identity[:8].rjust(8, "0")).hex(":")


def names(inner: Session, endpoint: Endpoint, prefix: str = "eth") -> Iterator[str]:
    """Yield the name that the endpoint wants in the container, or the free ones in order.

    Raises:
        ConfigError: no interface can have the wanted name.
    """
    own = endpoint.options.interface if isinstance(endpoint.options, InterfaceOptions) else None
    wanted = endpoint.interface or own
    if wanted:
        if not 1 <= len(wanted) <= 15 or wanted in {".", ".."} or any(c in "/:%" or c.isspace() for c in wanted):
            raise ConfigError(f"interface name {wanted!r} is off: {_NAMED}")
        yield wanted
        return
    present = {link.name for link in inner.links()}
    for number in range(1024):
        if f"{prefix}{number}" not in present:
            yield f"{prefix}{number}"


def name_taken(endpoint: Endpoint, name: str) -> Conflict:
    """Make the error for an interface name that the container has already."""
    return Conflict(f"endpoint {endpoint.id[:12]}: the container has an interface {name} already")


def furnish(inner: Session, *, netns: int, endpoint: Endpoint, interface: str) -> None:
    """Give an interface in the container its settings and the endpoint's addresses, and set it and the loopback up.

    Raises:
        Conflict: the container has one of the addresses already.
        ConfigError: the kernel has not got a setting, or does not take its value.
        OSError: the interface has vanished, or the kernel refused.
    """
    link = inner.link(interface)
    if link is None:
        raise OSError(errno.ENODEV, f"{interface} vanished from the namespace")
    wanted = (*endpoint.addresses, *endpoint.link_local)
    taken = {plain(address) for address in inner.addresses()} & {plain(address) for address in wanted}
    if taken:
        raise Conflict(f"endpoint {endpoint.id[:12]}: the container has {', '.join(sorted(taken))} already")
    settings = {}
    if all(family(address) == 4 for address in wanted):
        settings[f"ipv6/conf/{interface}/disable_ipv6"] = "1"
    inside(netns, _configure, settings, endpoint.options, interface)
    inner.request(
        *(netlink.add_address(link.index, address) for address in wanted),
        netlink.set_up("lo"),
        netlink.set_up(interface),
    )


def _configure(settings: Mapping[str, str], options: Any, interface: str) -> None:
    for key, value in settings.items():
        write_setting(key, value)
    for setting in options.sysctls if isinstance(options, InterfaceOptions) else ():
        key, _, value = setting.partition("=")
        words = key.split(".")
        path = "/".join([words[1], words[2], interface, *words[4:]])
        try:
            with open(f"/proc/sys/net/{path}", "w") as file:
                file.write(value)
        except OSError as error:
            raise ConfigError(f"cannot set {key}={value} on {interface}: {error.strerror}") from None


def damage(session: Session, namespace: int, *, endpoint: Endpoint, link: Link, mtu: int) -> Iterator[str]:
    """Say what an endpoint's interface, in the namespace of that number, has lost of what `furnish` gave it."""
    who, present = f"endpoint {endpoint.id[:12]}", {*map(plain, session.addresses(link.index, namespace))}
    if not link.up:
        yield f"{who}: {link.name} is down"
    if link.mtu != mtu:
        yield f"{who}: {link.name} has MTU {link.mtu}, not {mtu}"
    for address in map(plain, endpoint.addresses):
        if address not in present:
            yield f"{who}: {link.name} has lost its address {address}"


def announce(stop: int, *, netns: int, interface: str, addresses: Iterable[str], options: AnnouncingOptions) -> None:
    """Tell the neighbours whose addresses these are now, who may know them with another MAC. Best effort.

    The first time at once, then until all is said, the interface is gone, or the descriptor `stop` becomes readable.
    RFC 5227, section 2.3 (ARP Announcement); RFC 4861, section 7.2.6 (Unsolicited Neighbor Advertisements).
    """
    try:
        inside(netns, _announce, interface, {plain(address) for address in addresses}, options, stop)
    except OSError:
        pass  # it is gone, or what the kernel has no way to send


def _announce(interface: str, addresses: set[str], options: AnnouncingOptions, stop: int) -> None:
    index, stopped = socket.if_nametoindex(interface), select.poll()  # another one may bear the name later
    stopped.register(stop, select.POLLIN)
    for number in range(options.announcements):
        if number and stopped.poll(options.announcing):
            return
        with Session() as inner:
            link = inner.link(interface)
            if link is None or link.index != index or not link.mac:
                return
            present = {plain(address) for address in inner.addresses(index)}
        for address in sorted(addresses & present):
            _advertise(link, address)


def _advertise(link: Link, address: str) -> None:
    mac, packed = netlink.pack_mac(link.mac), netlink.pack_address(address)[1]
    if family(address) == 4:
        arp = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + packed + bytes(6) + packed
        with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            sock.sendto(arp, (link.name, 0x0806, 0, 1, b"\xff" * 6))
    else:
        advertisement = struct.pack("!BBHI", 136, 0, 0, 1 << 29) + packed + b"\x02\x01" + mac  # Override
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_ICMPV6) as sock:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
            sock.bind((address, 0))
            sock.sendto(advertisement, ("ff02::1", 0, 0, link.index))


def route_by(netns: int, hops: Iterable[tuple[str, str]]) -> None:
    """Make default routes of next hops, one for each family, and take away those made earlier for others.

    A default route that somebody else made in the container stays, and wins.

    Args:
        hops: pairs of an interface in the container and a gateway; "0.0.0.0" and "::" stand for the link itself.
    """
    with inside(netns, Session) as inner:
        present = {family(route.to): route for route in inner.routes() if route.to in ANY.values()}
        links = {link.name: link.index for link in inner.links()}
        for interface, gateway in hops:
            number = family(gateway)
            old = present.pop(number, None)
            if old is None or old.static:
                hop = None if not any(netlink.pack_address(gateway)[1]) else gateway
                inner.request(netlink.add_route(links[interface], ANY[number], hop, replace=True))
        for route in present.values():
            if route.static:
                inner.request(netlink.delete_route(route.index, route.to, route.gateway))


def remove(session: Session, name: str) -> None:
    """Remove an interface. Absent is success."""
    try:
        session.request(netlink.delete_link(name))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def read_setting(key: str) -> str:
    """Return a setting of the thread's namespace below /proc/sys/net; empty when the kernel has it not."""
    try:
        with open(f"/proc/sys/net/{key}") as file:
            return file.read().strip()
    except OSError:
        return ""


def write_setting(key: str, value: str) -> None:
    """Write a setting below /proc/sys/net; an IPv6 one is no matter to a kernel without IPv6."""
    try:
        with open(f"/proc/sys/net/{key}", "w") as file:
            file.write(value)
    except OSError as error:
        if error.errno != errno.ENOENT or not key.startswith("ipv6/"):
            raise OSError(error.errno, f"{error.strerror} (/proc/sys/net/{key})") from None
