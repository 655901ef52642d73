"""The network driver ``bridge``: containers on a Linux bridge, with NAT and published ports.

A container's interface is one end of a veth pair that is born inside the container's namespace; the other end is
a port of the bridge. The host's part of everything carries the id it belongs to: an alias on interfaces
(ip-link(8)), a comment on elements of the firewall's sets. Nothing else is recorded, so there is no record to go
stale: while the namespace of a container that was not started dies with its last descriptor, the kernel takes the
pair away too.

The modules: `options` has what users may set, `firewall` keeps the nftables table, `publishing` writes ports into it,
which `ports` chooses; `guard` keeps a second table for networks whose containers may not pose as each other.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator
from typing import ClassVar

from transom.contract import Probe
from transom.contract.network import Attachment, Endpoint, Network, NetworkCapability, NetworkDriver, Owned, Port
from transom.errors import ConfigError, Conflict, DriverError, NotFound
from transom.services import interfaces, netlink
from transom.services.files import Lock
from transom.services.interfaces import (
    ETHERNET_MTU,
    InterfaceOptions,
    alias_of,
    gateways,
    has_family,
    read_setting,
    write_setting,
)
from transom.services.netlink import Link, Session
from transom.services.netns import create, inside
from transom_network_bridge.firewall import TABLE, Element, Firewall, pack_name
from transom_network_bridge.guard import Guard
from transom_network_bridge.options import (
    DOCS,
    LOOPBACK_CLIENT,
    BridgeOptions,
    DriverOptions,
    bridge_addresses,
    bridge_name,
    check_modes,
    isolated,
    options_of,
)
from transom_network_bridge.publishing import elements_of, publish, unpublished

DRIVER = "network bridge"
_BRPORT_STATE, _FORWARDING = 1, b"\x03"
"""IFLA_BRPORT_STATE, BR_STATE_FORWARDING (linux/if_link.h, linux/if_bridge.h)."""
_IFA_CACHEINFO = 6
_NFPROTO = {4: b"\x02", 6: b"\x0a"}


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
            NetworkCapability.MAC,
            NetworkCapability.DEFAULT,
            NetworkCapability.ANTISPOOF,
        }
    )
    Options = DriverOptions
    NetworkOptions = BridgeOptions
    EndpointOptions = InterfaceOptions
    option_docs: ClassVar[dict[str, str]] = DOCS

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
        name, alias = bridge_name(network), alias_of(network)
        check_modes(network)
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
        known = link.alias == alias_of(network) and bridge_addresses(network) <= session.addresses(link.index).keys()
        firewall, mark = Firewall(), Element("bridges", pack_name(link.name))
        known = known and link.mtu == _mtu(session, network, link)
        guarded = not options_of(network).antispoof or Guard().current()
        return known and guarded and firewall.current() and bool(firewall.get([mark]))

    def _create(self, session: Session, network: Network, name: str, alias: str) -> None:
        link = session.link(name)
        if link and link.kind != "bridge":
            raise Conflict(f"network {network.name}: {name} is an interface of another kind ({link.kind or 'device'})")
        if link and link.alias != alias and interfaces.owned([link.alias]).networks:
            raise Conflict(f"network {network.name}: {name} is the bridge of network {link.alias.split()[-1][:12]}")
        new = link is None
        try:
            if new:
                from transom_network_bridge.overlap import refuse

                refuse(session, network)
                mtu = interfaces.wanted_mtu(session, network, options_of(network).mtu)
                mac = interfaces.mac_for(tuple(gateways(network)), network.id)
                session.request(
                    netlink.add_link(name=name, kind="bridge", mac=mac, mtu=mtu), netlink.set_alias(name, alias)
                )
                link = session.link(name)
            if link is None:
                raise OSError(errno.ENODEV, "the bridge vanished while it was made")
            if link.alias == alias:  # an adopted bridge keeps its settings
                if not new and link.mtu != (mtu := _mtu(session, network, link)):
                    session.request(netlink.set_mtu(name, mtu))
                write_setting(f"ipv6/conf/{name}/accept_ra", "0")
                # What the host forwards waits for a link-local address that is free of doubt, up to two seconds.
                write_setting(f"ipv6/conf/{name}/accept_dad", "0")
                write_setting(f"ipv6/conf/{name}/disable_ipv6", "0" if has_family(network, 6) else "1")
            write_setting(f"ipv4/conf/{name}/route_localnet", "0" if network.internal else "1")
            missing = bridge_addresses(network) - session.addresses(link.index).keys()
            session.request(*(_add_address(link.index, address) for address in sorted(missing)))
            self._allow(network, name)
            session.request(netlink.set_up(name))
        except BaseException:
            if new:
                self._delete(session, network)
            raise

    def _allow(self, network: Network, name: str) -> None:
        """Write the network's elements, and let the host forward where that is off."""
        options, firewall = options_of(network), Firewall()
        firewall.load(anew=bool(firewall.current() and firewall.tampered()))
        if options.antispoof:
            guard = Guard()
            guard.load(anew=bool(guard.current() and guard.tampered()))
        owner, packed = f"network {network.id}", pack_name(name)
        loop = packed + packed
        wanted = {Element("bridges", packed, comment=owner), Element("loops", loop, comment=owner)}
        marks = {"internal": network.internal, "isolated": not options.icc}
        for family, source in {4: options.source4, 6: options.source6}.items():
            mode = options.mode(family)
            translated = mode.startswith("nat") and options.masquerade and not network.internal
            marks |= {
                f"natted{family}": translated,
                f"direct{family}": mode == "nat-unprotected",
                f"routed{family}": mode == "routed",
            }
            if translated and source:
                data = netlink.pack_address(source)[1]
                wanted.add(Element(f"source{family}", packed, data=data, comment=owner))
        wanted |= {Element(where, packed, comment=owner) for where, so in marks.items() if so}
        wanted |= {Element("trusted", pack_name(i) + packed, comment=owner) for i in options.trusted_interfaces}
        present = set(firewall.elements(owner=owner))
        firewall.change(add=list(wanted - present), remove=list(present - wanted))
        if network.internal or not self.options.ip_forward:
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
            with Session() as session:
                bridge = session.link(bridge_name(network))
                if bridge is None:
                    raise NotFound(
                        f"network {network.name} is not on this host: its bridge is missing; create it again"
                    )
                if session.link(host):
                    raise Conflict(f"endpoint {endpoint.id[:12]} is attached to network {network.name} already")
                nf = _bridge_nf()  # the host's; from here on in the container's namespace
                interface, mac = inside(netns, self._join, session, network, endpoint, bridge, netns, nf=nf)
                if options_of(network).antispoof:
                    _guard(session, endpoint, mac)
        except OSError as error:
            raise DriverError("attach", driver=DRIVER, subject=endpoint.id[:12], cause=error) from error
        return Attachment(
            interface=interface,
            mac=mac,
            addresses=endpoint.addresses,
            gateways=tuple(hop for hop in interfaces.next_hops(network, endpoint) if not isolated(network, hop)),
            mtu=bridge.mtu,
        )

    def _join(
        self, session: Session, network: Network, endpoint: Endpoint, bridge: Link, netns: int, *, nf: bool
    ) -> tuple[str, str]:
        with Session() as inner:
            interface, mac = self._pair(session, inner, network, endpoint, bridge, netns, nf=nf)
            try:
                interfaces.furnish(inner, netns=netns, endpoint=endpoint, interface=interface)
            except BaseException:
                interfaces.remove(session, _host_end(endpoint.id))
                raise
        return interface, mac

    def _pair(
        self,
        session: Session,
        inner: Session,
        network: Network,
        endpoint: Endpoint,
        bridge: Link,
        netns: int,
        *,
        nf: bool,
    ) -> tuple[str, str]:
        """Make the pair; return the name and the MAC of its inner end."""
        host = _host_end(endpoint.id)
        mac = _mac_of(endpoint)
        for interface in interfaces.names(inner, endpoint, options_of(network).prefix):
            try:
                session.request(
                    netlink.add_veth(
                        name=host,
                        master=bridge.index,
                        mtu=bridge.mtu,
                        peer=interface,
                        mac=mac,
                        netns=netns,
                        up=False,
                    ),
                    netlink.set_alias(host, alias_of(endpoint), without_ipv6=True),
                    # Frames inside the bridge pass the firewall, or they do not: see its chain postrouting.
                    netlink.set_port(
                        host,
                        hairpin=nf,
                        isolated=not nf and not options_of(network).icc,
                        up=not options_of(network).antispoof,
                    ),
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
            Guard().dismiss(endpoint, _host_end(endpoint.id))
            self._withdraw(endpoint)
        except OSError as error:
            raise DriverError("detach", driver=DRIVER, subject=endpoint.id[:12], cause=error) from error

    def owned(self) -> Owned:
        """Read the aliases of interfaces and the comments of elements."""
        words = [element.comment for element in (*Firewall().elements(), *Guard().elements("guarded"))]
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
        name = bridge_name(network)
        with Session() as session:
            links = {link.name: link for link in session.links()}
            bridge = links.get(name)
            if bridge is None:
                yield f"bridge {name} is missing"
                return
            if not bridge.up:
                yield f"bridge {name} is down"
            for address in sorted(bridge_addresses(network) - session.addresses(bridge.index).keys()):
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
            wanted = network.mtu or options_of(network).mtu or bridge.mtu
            if end.mtu != wanted:
                yield f"endpoint {endpoint.id[:12]}: {end.name} has MTU {end.mtu}, not {wanted}"
            if not options_of(network).icc and not _bridge_nf() and not end.isolated:
                yield f"endpoint {endpoint.id[:12]} is not isolated from its neighbours"
            if options_of(network).antispoof and not Guard().of(endpoint, end.name):
                yield f"endpoint {endpoint.id[:12]} is not kept from using its neighbours' addresses"
            for port in unpublished(Firewall(), endpoint):
                where = f"{port.host}/{port.protocol} is not published at {port.address}"
                yield f"endpoint {endpoint.id[:12]}: port {where}"
        if not Firewall().exists():
            yield f"nftables table {TABLE} is missing: published ports and masquerading are off"
        elif not Firewall().elements("bridges", owner=f"network {network.id}"):
            yield f"nftables table {TABLE} does not know bridge {name}"
        for table in (Firewall(), Guard()):
            for chain in table.tampered() if table.exists() else ():
                yield f"nftables table {TABLE}: chain {chain} has not the rules that it should have"
        if options_of(network).antispoof and not Guard().current():
            yield f"nftables table bridge {TABLE} is missing: containers can pose as each other"
        if not network.internal:
            told = self.options.ip_forward
            if told and has_family(network, 4) and read_setting("ipv4/ip_forward") == "0":
                yield "IPv4 forwarding is off (net.ipv4.ip_forward)"
            if told and has_family(network, 6) and read_setting("ipv6/conf/all/forwarding") == "0":
                yield "IPv6 forwarding is off (net.ipv6.conf.all.forwarding)"
            if read_setting(f"ipv4/conf/{name}/route_localnet") == "0":
                yield f"ports published at 127.0.0.1 are off (net.ipv4.conf.{name}.route_localnet)"

    def publish(self, network: Network, endpoint: Endpoint, ports: tuple[Port, ...]) -> tuple[Port, ...]:
        """Publish by address translation, or by opening the firewall where the network is routed."""
        if network.internal and ports:
            raise ConfigError(f"network {network.name} is internal: its containers cannot publish ports")
        try:
            with self._lock():
                return publish(Firewall(), network, endpoint, ports)
        except OSError as error:
            raise DriverError("publish", driver=DRIVER, subject=endpoint.id[:12], cause=error) from error

    def unpublish(self, network: Network, endpoint: Endpoint) -> None:
        """Withdraw the ports."""
        try:
            self._withdraw(endpoint)
        except OSError as error:
            raise DriverError("unpublish", driver=DRIVER, subject=endpoint.id[:12], cause=error) from error

    def _withdraw(self, endpoint: Endpoint) -> None:
        firewall = Firewall()
        if elements_of(firewall, endpoint):
            with self._lock():
                firewall.change(add=[], remove=elements_of(firewall, endpoint))

    def _lock(self) -> Lock:
        self.run.mkdir(parents=True, exist_ok=True)
        return Lock(self.run / "lock")


def _add_address(index: int, address: str) -> netlink.Message:
    """An address of a bridge; who asks at ::1 has one that is deprecated, so that the host uses it for nothing else."""
    kind, flags, body = netlink.add_address(index, address)
    if address == LOOPBACK_CLIENT:
        body += netlink.attribute(_IFA_CACHEINFO, struct.pack("=IIII", 0, 0xFFFFFFFF, 0, 0))
    return kind, flags, body


def _mtu(session: Session, network: Network, bridge: Link) -> int:
    """Return what MTU a bridge that was made should have: while nobody is on it, it follows the ways out."""
    if bridge.carrier:
        return bridge.mtu  # one for all who are on it: who has more would be cut off from who has less
    try:
        return interfaces.wanted_mtu(session, network, options_of(network).mtu)
    except ConfigError:
        return bridge.mtu  # too little for IPv6


def _host_end(endpoint: str) -> str:
    return f"vt{endpoint[:13]}"


def _guard(session: Session, endpoint: Endpoint, mac: str) -> None:
    """Have the endpoint's frames looked at, and only then let any in: its port has been down."""
    host = _host_end(endpoint.id)
    try:
        Guard().admit(endpoint, host, mac)
        session.request(netlink.set_up(host))
        _wait_forwarding(session, host)
    except BaseException:
        interfaces.remove(session, host)
        Guard().dismiss(endpoint, host)
        raise


def _wait_forwarding(session: Session, host: str) -> None:
    """Wait for the bridge to see that its port is up, or what is announced there gets nowhere."""
    until = time.monotonic() + 5
    while time.monotonic() < until:
        port = session.link(host)
        if port is None or netlink.attributes(port.slave).get(_BRPORT_STATE) == _FORWARDING:
            return
        time.sleep(0.001)


def _mac_of(endpoint: Endpoint) -> str:
    return endpoint.mac or interfaces.mac_for(endpoint.addresses, endpoint.id)


def _forget(firewall: Firewall) -> bool:
    """After the last network remove the table, and switch off what was switched on for it; say whether."""
    if not firewall.exists() or firewall.elements("bridges"):
        return False
    for element in firewall.elements("forwarding"):
        write_setting("ipv4/ip_forward" if element.key == _NFPROTO[4] else "ipv6/conf/all/forwarding", "0")
    Guard().remove()
    firewall.remove()
    return True


def _keep_router_advertisements() -> None:
    """Let the host go on taking its own IPv6 route from routers, which forwarding turns off (ip-sysctl)."""
    for name in os.listdir("/proc/sys/net/ipv6/conf"):
        if name not in {"all", "default"} and read_setting(f"ipv6/conf/{name}/accept_ra") == "1":
            write_setting(f"ipv6/conf/{name}/accept_ra", "2")


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
