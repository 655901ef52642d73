"""The network driver ``bridge``: containers on a Linux bridge, with NAT and published ports.

A container's interface is one end of a veth pair that is born inside the container's namespace; the other end is
a port of the bridge. The host's part of everything carries the id it belongs to: an alias on interfaces
(ip-link(8)), a comment on elements of the firewall's sets. Nothing else is recorded, so there is no record to go
stale: while the namespace of a container that was not started dies with its last descriptor, the kernel takes the
pair away too.

The modules: `firewall` keeps the nftables table, `ports` chooses host ports.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import Annotated, ClassVar

import msgspec

from transom.contract import Probe
from transom.contract.network import Attachment, Endpoint, Network, NetworkCapability, NetworkDriver, Owned, Port
from transom.errors import ConfigError, Conflict, DriverError, NotFound
from transom.services import interfaces, netlink
from transom.services.files import Lock
from transom.services.interfaces import (
    ETHERNET_MTU,
    INTERFACE_DOCS,
    InterfaceOptions,
    alias_of,
    gateways,
    has_family,
    read_setting,
    write_setting,
)
from transom.services.netlink import Link, Session
from transom.services.netns import create, inside
from transom_network_bridge.firewall import (
    ENDPOINT_SETS,
    PORT_MAPS,
    TABLE,
    Element,
    Firewall,
    pack_name,
    pack_port,
    pack_protocol,
)

DRIVER = "network bridge"
DEFAULT_BRIDGE = "transom0"
_INTERFACE = r"^[A-Za-z0-9_.-]{1,15}$"
_NFPROTO = {4: b"\x02", 6: b"\x0a"}


class BridgeOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``network create --opt`` accepts: Docker's names (docs.docker.com, bridge network driver)."""

    bridge: Annotated[str, msgspec.Meta(pattern=_INTERFACE)] | None = msgspec.field(
        name="com.docker.network.bridge.name", default=None
    )
    masquerade: bool = msgspec.field(name="com.docker.network.bridge.enable_ip_masquerade", default=True)
    icc: bool = msgspec.field(name="com.docker.network.bridge.enable_icc", default=True)
    host_binding: str = msgspec.field(name="com.docker.network.bridge.host_binding_ipv4", default="0.0.0.0")
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = msgspec.field(name="com.docker.network.driver.mtu", default=0)
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,11}$")] = msgspec.field(
        name="com.docker.network.container_iface_prefix", default="eth"
    )

    def __post_init__(self) -> None:
        """Check the address."""
        try:
            socket.inet_pton(socket.AF_INET, self.host_binding)
        except OSError:
            raise ValueError(f"{self.host_binding!r} is not an IPv4 address") from None


class Bridge(NetworkDriver):
    """See the module's text."""

    name = "bridge"
    api = 1
    capabilities = frozenset(
        {
            NetworkCapability.L2,
            NetworkCapability.PUBLISH,
            NetworkCapability.NAMES,
            NetworkCapability.IPV6,
            NetworkCapability.INTERNAL,
            NetworkCapability.HOT_PLUG,
            NetworkCapability.DEFAULT,
        }
    )
    NetworkOptions = BridgeOptions
    EndpointOptions = InterfaceOptions
    option_docs: ClassVar[dict[str, str]] = {
        "com.docker.network.bridge.name": "Name of the bridge on the host; one that exists is used and kept.",
        "com.docker.network.bridge.enable_ip_masquerade": "Whether what leaves the network gets the host's address.",
        "com.docker.network.bridge.enable_icc": "Whether containers reach each other beyond published ports.",
        "com.docker.network.bridge.host_binding_ipv4": "Host address where ports are published unless one is named.",
        "com.docker.network.driver.mtu": "Largest packet in bytes; 0 takes that of the ways out of the host.",
        "com.docker.network.container_iface_prefix": "What names of interfaces in containers start with.",
        **INTERFACE_DOCS,
    }

    def probe(self) -> Probe:
        """Make a bridge, a pair and the table in a namespace that is gone afterwards."""
        from shutil import which

        if not which("nft"):
            return Probe(usable=False, reason="the program nft is missing: install the package nftables")
        try:
            fd = create()
        except OSError as error:
            return Probe(usable=False, reason=f"cannot make a network namespace ({error.strerror}): run as root")
        try:
            return inside(fd, _try_kernel, fd)
        finally:
            os.close(fd)

    def status(self) -> dict[str, str]:
        """Say how frames inside a bridge are filtered, and whether the host forwards."""
        return {
            "IPv4 forwarding": "on" if read_setting("ipv4/ip_forward") == "1" else "off",
            "bridge-nf-call-iptables": "on" if _bridge_nf() else "off",
        }

    def create_network(self, network: Network) -> None:
        """Make the bridge, or complete it; see the contract. Repeating it on a complete network is 0.2 ms."""
        name, alias = _bridge_name(network), alias_of(network)
        try:
            with Session() as session:
                link = session.link(name)
                if link and link.up and self._complete(session, link, network):
                    return
            with self._lock(), Session() as session:
                self._create(session, network, name, alias)
        except OSError as error:
            raise DriverError(
                "create_network", driver=DRIVER, subject=network.name or network.id[:12], cause=error
            ) from error

    def _complete(self, session: Session, link: Link, network: Network) -> bool:
        ours = link.alias == alias_of(network)
        return ours and gateways(network) <= session.addresses(link.index).keys() and Firewall().exists()

    def _create(self, session: Session, network: Network, name: str, alias: str) -> None:
        link = session.link(name)
        if link and link.kind != "bridge":
            raise Conflict(f"network {network.name}: {name} is an interface of another kind ({link.kind or 'device'})")
        if link and link.alias != alias and interfaces.owned([link.alias]).networks:
            raise Conflict(f"network {network.name}: {name} is the bridge of network {link.alias.split()[-1][:12]}")
        new = link is None
        try:
            if new:
                mtu, mac = (
                    interfaces.wanted_mtu(session, network, _options(network).mtu),
                    interfaces.mac_for(tuple(gateways(network)), network.id),
                )
                session.request(
                    netlink.add_link(name=name, kind="bridge", mac=mac, mtu=mtu), netlink.set_alias(name, alias)
                )
                link = session.link(name)
            if link is None:
                raise OSError(errno.ENODEV, "the bridge vanished while it was made")
            if link.alias == alias:  # an adopted bridge keeps its settings
                write_setting(f"ipv6/conf/{name}/accept_ra", "0")
                # What the host forwards waits for a link-local address that is free of doubt, up to two seconds.
                write_setting(f"ipv6/conf/{name}/accept_dad", "0")
                write_setting(f"ipv6/conf/{name}/disable_ipv6", "0" if has_family(network, 6) else "1")
            write_setting(f"ipv4/conf/{name}/route_localnet", "0" if network.internal else "1")
            missing = gateways(network) - session.addresses(link.index).keys()
            session.request(*(netlink.add_address(link.index, address) for address in sorted(missing)))
            self._allow(network, name)
            session.request(netlink.set_up(name))
        except BaseException:
            if new:
                self._delete(session, network)
            raise

    def _allow(self, network: Network, name: str) -> None:
        """Write the network's elements, and let the host forward where that is off."""
        options, firewall = _options(network), Firewall()
        firewall.load()
        owner, packed = f"network {network.id}", pack_name(name)
        sets = {
            "natted": options.masquerade and not network.internal,
            "internal": network.internal,
            "isolated": not options.icc,
        }
        wanted = {Element("bridges", packed, comment=owner), Element("loops", packed + packed, comment=owner)}
        wanted |= {Element(where, packed, comment=owner) for where, so in sets.items() if so}
        present = set(firewall.elements(owner=owner))
        firewall.change(add=list(wanted - present), remove=list(present - wanted))
        if network.internal:
            return
        for family, key in {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}.items():
            if has_family(network, family) and read_setting(key) == "0":
                mark = Element("forwarding", _NFPROTO[family], comment="host")
                if mark not in firewall.elements("forwarding"):
                    firewall.change(add=[mark], remove=[])
                if family == 6:
                    _keep_router_advertisements()
                write_setting(key, "1")

    def delete_network(self, network: Network) -> None:
        """Remove the bridge and its elements; with the last network, the table too."""
        try:
            with self._lock(), Session() as session:
                self._delete(session, network)
        except OSError as error:
            raise DriverError(
                "delete_network", driver=DRIVER, subject=network.name or network.id[:12], cause=error
            ) from error

    def _delete(self, session: Session, network: Network) -> None:
        firewall = Firewall()
        mine = firewall.elements(owner=f"network {network.id}")
        adopted = {element.key.rstrip(b"\0").decode() for element in mine if element.set == "bridges"}
        for link in session.links():
            if link.alias == alias_of(network):
                interfaces.remove(session, link.name)
            elif link.name in adopted:
                given = [a for a, owner in session.addresses(link.index).items() if owner == netlink.OURS]
                session.request(*(netlink.delete_address(link.index, address) for address in given))
                write_setting(f"ipv4/conf/{link.name}/route_localnet", "0")
        firewall.change(add=[], remove=mine)
        _forget(firewall)

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Join the namespace; 2 ms."""
        host = _host_end(endpoint.id)
        try:
            with Session() as session, inside(netns, Session) as inner:
                bridge = session.link(_bridge_name(network))
                if bridge is None:
                    raise NotFound(
                        f"network {network.name} is not on this host: its bridge is missing; create it again"
                    )
                if session.link(host):
                    raise Conflict(f"endpoint {endpoint.id[:12]} is attached to network {network.name} already")
                interface, mac = self._pair(session, inner, network, endpoint, bridge, netns)
                try:
                    interfaces.furnish(inner, netns=netns, endpoint=endpoint, interface=interface)
                except BaseException:
                    interfaces.remove(session, host)
                    raise
        except OSError as error:
            raise DriverError("attach", driver=DRIVER, subject=endpoint.id[:12], cause=error) from error
        return Attachment(
            interface=interface,
            mac=mac,
            addresses=endpoint.addresses,
            gateways=interfaces.next_hops(network, endpoint),
            mtu=bridge.mtu,
        )

    def _pair(
        self,
        session: Session,
        inner: Session,
        network: Network,
        endpoint: Endpoint,
        bridge: Link,
        netns: int,
    ) -> tuple[str, str]:
        """Make the pair; return the name and the MAC of its inner end."""
        host = _host_end(endpoint.id)
        mac = endpoint.mac or interfaces.mac_for(endpoint.addresses, endpoint.id)
        nf = _bridge_nf()
        for interface in interfaces.names(inner, endpoint, _options(network).prefix):
            try:
                session.request(
                    netlink.add_veth(
                        name=host, master=bridge.index, mtu=bridge.mtu, peer=interface, mac=mac, netns=netns
                    ),
                    netlink.set_alias(host, alias_of(endpoint)),
                    # Frames inside the bridge pass the firewall, or they do not: see its chain postrouting.
                    netlink.set_port(host, hairpin=nf, isolated=not nf and not _options(network).icc),
                )
            except FileExistsError:
                if session.link(host):
                    raise Conflict(
                        f"endpoint {endpoint.id[:12]} is attached to network {network.name} already"
                    ) from None
                continue
            except OSError as error:
                if session.link(host):
                    interfaces.remove(session, host)
                if error.errno == errno.EXFULL:
                    raise Conflict(
                        f"network {network.name} is full: a bridge has 1023 ports; use another network"
                    ) from None
                raise
            return interface, mac
        raise interfaces.name_taken(endpoint, interface)

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Remove the pair, whose host end may have gone with the namespace, and the published ports."""
        try:
            with Session() as session:
                interfaces.remove(session, _host_end(endpoint.id))
            self._withdraw(endpoint)
        except OSError as error:
            raise DriverError("detach", driver=DRIVER, subject=endpoint.id[:12], cause=error) from error

    def owned(self) -> Owned:
        """Read the aliases of interfaces and the comments of elements."""
        words = [element.comment for element in Firewall().elements()]
        with Session() as session:
            return interfaces.owned([*(f"transom {word}" for word in words), *(link.alias for link in session.links())])

    def recover(self) -> list[str]:
        """Remove the table, and put forwarding back, when a crash left them behind the last network."""
        with self._lock():
            return ["removed the firewall table of no network"] if _forget(Firewall()) else []

    def check(self, network: Network, endpoints: tuple[Endpoint, ...]) -> list[str]:
        """Compare interfaces, addresses, the table and forwarding with what should be there."""
        return list(self._differences(network, endpoints))

    def _differences(self, network: Network, endpoints: tuple[Endpoint, ...]) -> Iterator[str]:
        name = _bridge_name(network)
        with Session() as session:
            links = {link.name: link for link in session.links()}
            bridge = links.get(name)
            if bridge is None:
                yield f"bridge {name} is missing"
                return
            if not bridge.up:
                yield f"bridge {name} is down"
            for address in sorted(gateways(network) - session.addresses(bridge.index).keys()):
                yield f"bridge {name} has lost its address {address}"
        for endpoint in endpoints:
            end = links.get(_host_end(endpoint.id))
            if end is None:
                yield f"endpoint {endpoint.id[:12]} has no interface"
                continue
            if end.master != bridge.index:
                yield f"endpoint {endpoint.id[:12]} is not in bridge {name}"
            if not end.up:
                yield f"endpoint {endpoint.id[:12]}: {end.name} is down"
            wanted = network.mtu or _options(network).mtu or bridge.mtu
            if end.mtu != wanted:
                yield f"endpoint {endpoint.id[:12]}: {end.name} has MTU {end.mtu}, not {wanted}"
            if not _options(network).icc and not _bridge_nf() and not end.isolated:
                yield f"endpoint {endpoint.id[:12]} is not isolated from its neighbours"
        if not Firewall().exists():
            yield f"nftables table {TABLE} is missing: published ports and masquerading are off"
        elif not Firewall().elements("bridges", owner=f"network {network.id}"):
            yield f"nftables table {TABLE} does not know bridge {name}"
        if not network.internal:
            if has_family(network, 4) and read_setting("ipv4/ip_forward") == "0":
                yield "IPv4 forwarding is off (net.ipv4.ip_forward)"
            if has_family(network, 6) and read_setting("ipv6/conf/all/forwarding") == "0":
                yield "IPv6 forwarding is off (net.ipv6.conf.all.forwarding)"
            if read_setting(f"ipv4/conf/{name}/route_localnet") == "0":
                yield f"ports published at 127.0.0.1 are off (net.ipv4.conf.{name}.route_localnet)"

    def publish(self, network: Network, endpoint: Endpoint, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        """Publish by address translation; exact ports are settled before ranges, ranges before any port."""
        from transom_network_bridge.ports import Chooser

        if network.internal and ports:
            raise ConfigError(f"network {network.name} is internal: its containers cannot publish ports")
        firewall, owner = Firewall(), f"endpoint {endpoint.id}"
        note = " ".join([owner, *endpoint.names[:1]])[:120]
        targets = {":" in address: address.partition("/")[0] for address in reversed(endpoint.addresses)}
        try:
            with self._lock():
                present = firewall.elements(*ENDPOINT_SETS)
                mine = [element for element in present if element.comment.split(" ")[:2] == owner.split(" ")]
                others = [e for e in present if e not in mine and e.set in PORT_MAPS]
                bound: dict[int, list[Port]] = {}
                with Chooser(others) as chooser:
                    for index, port in sorted(enumerate(ports), key=lambda item: _width(item[1])):
                        addresses = _host_addresses(network, endpoint, port, targets)
                        bound[index] = chooser.settle(port, addresses, endpoint.names[0] if endpoint.names else note)
                    result = [port for index in sorted(bound) for port in bound[index]]
                    wanted = [_port_element(port, targets, note) for port in result]
                    wanted += [_hairpin_element(targets[":" in p.address], note) for p in result]
                    firewall.load()
                    firewall.change(
                        add=list(dict.fromkeys(e for e in wanted if e not in mine)),
                        remove=[e for e in mine if e not in wanted],
                    )
        except OSError as error:
            raise DriverError("publish", driver=DRIVER, subject=endpoint.id[:12], cause=error) from error
        return tuple(result)

    def unpublish(self, network: Network, endpoint: Endpoint) -> None:
        """Withdraw the ports."""
        try:
            self._withdraw(endpoint)
        except OSError as error:
            raise DriverError("unpublish", driver=DRIVER, subject=endpoint.id[:12], cause=error) from error

    def _withdraw(self, endpoint: Endpoint) -> None:
        firewall, owner = Firewall(), f"endpoint {endpoint.id}"
        if firewall.elements(*ENDPOINT_SETS, owner=owner):
            with self._lock():
                firewall.change(add=[], remove=firewall.elements(*ENDPOINT_SETS, owner=owner))

    def _lock(self) -> Lock:
        self.run.mkdir(parents=True, exist_ok=True)
        return Lock(self.run / "lock")


def _options(network: Network) -> BridgeOptions:
    return network.options if isinstance(network.options, BridgeOptions) else BridgeOptions()


def _bridge_name(network: Network) -> str:
    return _options(network).bridge or (DEFAULT_BRIDGE if network.default else f"br-{network.id[:12]}")


def _host_end(endpoint: str) -> str:
    return f"vt{endpoint[:13]}"


def _forget(firewall: Firewall) -> bool:
    """After the last network remove the table, and switch off what was switched on for it; say whether."""
    if not firewall.exists() or firewall.elements("bridges"):
        return False
    for element in firewall.elements("forwarding"):
        write_setting("ipv4/ip_forward" if element.key == _NFPROTO[4] else "ipv6/conf/all/forwarding", "0")
    firewall.remove()
    return True


def _keep_router_advertisements() -> None:
    """Let the host go on taking its own IPv6 route from routers, which forwarding turns off (ip-sysctl)."""
    for name in os.listdir("/proc/sys/net/ipv6/conf"):
        if name not in {"all", "default"} and read_setting(f"ipv6/conf/{name}/accept_ra") == "1":
            write_setting(f"ipv6/conf/{name}/accept_ra", "2")


def _width(port: Port) -> int:
    """Return how many host ports will do, for sorting the choosy first."""
    return max(port.host_end - port.host, 0) if port.host else 65536


def _host_addresses(network: Network, endpoint: Endpoint, port: Port, targets: dict[bool, str]) -> tuple[str, ...]:
    """Return the host's addresses at which a port is published; `targets` has the endpoint's by "is IPv6"."""
    if not port.address:
        binding = _options(network).host_binding
        both = {False: binding} | ({True: "::"} if binding == "0.0.0.0" else {})
        found = tuple(address for six, address in both.items() if six in targets)
    else:
        try:
            family, packed = netlink.pack_address(port.address)
        except OSError:
            raise ConfigError(f"cannot publish at {port.address!r}: it is not an address") from None
        found = (socket.inet_ntop(family, packed),) if (family == socket.AF_INET6) in targets else ()
    if not found:
        wanted = port.address or _options(network).host_binding
        raise ConfigError(f"cannot publish at {wanted}: endpoint {endpoint.id[:12]} has no address of that family")
    return found


def _port_element(port: Port, targets: dict[bool, str], note: str) -> Element:
    family, packed = netlink.pack_address(port.address)
    number = 6 if family == socket.AF_INET6 else 4
    anywhere = not any(packed)
    key = pack_protocol(port.protocol) + (b"" if anywhere else packed) + pack_port(port.host)
    target = netlink.pack_address(targets[number == 6])[1]
    where = f"{'any' if anywhere else 'ports'}{number}"
    return Element(where, key, data=target + pack_port(port.container), comment=note)


def _hairpin_element(address: str, note: str) -> Element:
    packed = netlink.pack_address(address)[1]
    return Element(f"hairpin{4 if len(packed) == 4 else 6}", packed + packed, comment=note)


def _bridge_nf() -> bool:
    return read_setting("bridge/bridge-nf-call-iptables") == "1"


def _try_kernel(netns: int) -> Probe:
    """Do what the driver does, inside a namespace that is thrown away."""
    step = "bridges (CONFIG_BRIDGE)"
    try:
        with Session() as session:
            session.request(netlink.add_link(name="br", kind="bridge", mtu=ETHERNET_MTU))
            bridge = session.link("br")
            step = "veth pairs (CONFIG_VETH)"
            master = bridge.index if bridge else 0
            session.request(
                netlink.add_veth(
                    name="vt", master=master, mtu=ETHERNET_MTU, peer="eth", mac="02:42:00:00:00:02", netns=netns
                )
            )
        step = "address translation by nftables (CONFIG_NF_TABLES_INET, CONFIG_NFT_NAT, CONFIG_NFT_FIB_INET)"
        Firewall().load()
    except OSError as error:
        return Probe(usable=False, reason=f"the kernel lacks {step}: {error.strerror or error}")
    return Probe(usable=True)
