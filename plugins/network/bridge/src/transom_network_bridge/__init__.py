"""The network driver ``bridge``: containers on a Linux bridge, with NAT and published ports.

A container's interface is one end of a veth pair that is born inside the container's namespace; the other end is
a port of the bridge. The host's part of everything carries the id it belongs to: an alias on interfaces
(ip-link(8)), a comment on elements of the firewall's sets. Nothing else is recorded, so there is no record to go
stale: while the namespace of a container that was not started dies with its last descriptor, the kernel takes the
pair away too.

The modules: `options` has what users may set, `state` says what a network should have on the host; `firewall` keeps
the nftables table, `publishing` writes ports into it, which `ports` chooses; `guard` keeps a second table for networks
whose containers may not pose as each other.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import ClassVar

from transom.contract import Probe
from transom.contract.network import (
    Attachment,
    Endpoint,
    Network,
    NetworkCapability,
    NetworkDriver,
    Owned,
    Port,
    Reach,
)
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
from transom_network_bridge.firewall import Element, Firewall
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
from transom_network_bridge.publishing import elements_of, may_be_published, publish
from transom_network_bridge.state import (
    bridge_nf,
    complete,
    differences,
    elements_of_network,
    host_end,
    lost_routes,
    mtu_of,
)

DRIVER = "network bridge"
_BRPORT_STATE, _FORWARDING = 1, b"\x03"
"""IFLA_BRPORT_STATE, BR_STATE_FORWARDING (linux/if_link.h, linux/if_bridge.h)."""
_IFA_CACHEINFO = 6
_SETTINGS = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}
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
            "bridge-nf-call-iptables": "on" if bridge_nf() else "off",
        }

    def create_network(self, network: Network) -> None:
        """Make the bridge, or complete it; see the contract. Repeating it on a complete one is 0.5 ms."""
        name, alias = bridge_name(network), alias_of(network)
        check_modes(network)
        try:
            with Session() as session:
                link = session.link(name)
                if link and complete(session, link, network, forwards=self.options.ip_forward):
                    return
            with self._lock(), Session() as session:
                self._create(session, network, name, alias)
        except OSError as error:
            raise DriverError(
                "create_network", driver=DRIVER, subject=network.name or network.id[:12], cause=error
            ) from error

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
                if not new and link.mtu != (mtu := mtu_of(session, network, link)):
                    session.request(netlink.set_mtu(name, mtu))
                write_setting(f"ipv6/conf/{name}/accept_ra", "0")
                # What the host forwards waits for a link-local address that is free of doubt, up to two seconds.
                write_setting(f"ipv6/conf/{name}/accept_dad", "0")
                write_setting(f"ipv6/conf/{name}/disable_ipv6", "0" if has_family(network, 6) else "1")
            write_setting(f"ipv4/conf/{name}/route_localnet", "0" if network.internal else "1")
            missing = bridge_addresses(network) - session.addresses(link.index).keys()
            session.request(*(_add_address(link.index, address) for address in sorted(missing)))
            self._allow(network)
            session.request(netlink.set_up(name))
            for pool, source in lost_routes(session, link, network).items():  # the kernel makes them, once
                session.request(netlink.add_route(link.index, pool, source=source, replace=True))
        except BaseException:
            if new:
                self._delete(session, network)
            raise

    def _allow(self, network: Network) -> None:
        """Write the network's elements, and let the host forward where that is off."""
        firewall = Firewall()
        firewall.load(anew=bool(firewall.current() and firewall.tampered()))
        if options_of(network).antispoof:
            guard = Guard()
            guard.load(anew=bool(guard.current() and guard.tampered()))
        present, wanted = {*firewall.elements(owner=f"network {network.id}")}, elements_of_network(network)
        firewall.change(add=[*wanted - present], remove=[*present - wanted])
        if network.internal or not self.options.ip_forward:
            return
        for family, key in _SETTINGS.items():
            if has_family(network, family) and read_setting(key) == "0":
                (self.run / f"forwarding{family}").touch()  # a mark goes when somebody flushes the ruleset
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
        self._forget(session)

    def _forget(self, session: Session) -> bool:
        """After the last network remove the table, and switch off what was switched on for it; say whether."""
        firewall = Firewall()
        notes = {family: note for family in _SETTINGS if (note := self.run / f"forwarding{family}").exists()}
        bridges = interfaces.owned(link.alias for link in session.links()).networks
        if bridges or firewall.elements("bridges") or not (notes or firewall.exists()):
            return False
        marks = {element.key for element in firewall.elements("forwarding")}
        for family, key in _SETTINGS.items():
            if family in notes or _NFPROTO[family] in marks:
                write_setting(key, "0")
        Guard().remove()
        firewall.remove()
        for note in notes.values():
            note.unlink()
        return True

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Join the namespace; 2 ms."""
        host = host_end(endpoint.id)
        try:
            with Session() as session:
                bridge = session.link(bridge_name(network))
                if bridge is None:
                    raise NotFound(
                        f"network {network.name} is not on this host: its bridge is missing; create it again"
                    )
                if session.link(host):
                    raise Conflict(f"endpoint {endpoint.id[:12]} is attached to network {network.name} already")
                nf = bridge_nf()  # the host's; from here on in the container's namespace
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
                interfaces.remove(session, host_end(endpoint.id))
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
        host = host_end(endpoint.id)
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
                interfaces.remove(session, host_end(endpoint.id))
            Guard().dismiss(endpoint, host_end(endpoint.id))
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
        with self._lock(), Session() as session:
            return ["removed the firewall table of no network"] if self._forget(session) else []

    def check(self, network: Network, endpoints: tuple[Endpoint, ...]) -> list[str]:
        """Compare interfaces, addresses, the table and forwarding with what should be there."""
        return list(differences(network, endpoints, forwards=self.options.ip_forward))

    def reach(self, network: Network) -> dict[int, Reach]:
        """Endpoints are reached by routes where the gateway mode lets them, and from trusted interfaces."""
        ways = {number: _reach(network, number) for number in (4, 6)}
        return {number: way for number, way in ways.items() if way and not network.internal}

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
        if may_be_published(firewall, endpoint):
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


def _guard(session: Session, endpoint: Endpoint, mac: str) -> None:
    """Have the endpoint's frames looked at, and only then let any in: its port has been down."""
    host = host_end(endpoint.id)
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


def _reach(network: Network, number: int) -> Reach | None:
    options = options_of(network)
    if options.mode(number) == "nat-unprotected":
        return Reach.ROUTED
    if options.trusted:
        return Reach.TRUSTED
    return Reach.PUBLISHED if options.mode(number) == "routed" else None


def _mac_of(endpoint: Endpoint) -> str:
    return endpoint.mac or interfaces.mac_for(endpoint.addresses, endpoint.id)


def _keep_router_advertisements() -> None:
    """Let the host go on taking its own IPv6 route from routers, which forwarding turns off (ip-sysctl)."""
    for name in os.listdir("/proc/sys/net/ipv6/conf"):
        if name not in {"all", "default"} and read_setting(f"ipv6/conf/{name}/accept_ra") == "1":
            write_setting(f"ipv6/conf/{name}/accept_ra", "2")


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
        return interfaces.lacking(step, error)
    return Probe(usable=True)
