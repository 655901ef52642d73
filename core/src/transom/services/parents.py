"""Children of an interface of the host: what the drivers macvlan, ipvlan and overlay have in common.

A container's interface is a child of an interface of the host, its parent, and is born inside the container's
namespace. The kernel numbers the namespaces that have to do with the host's (ip-netns(8), ``set``); by these numbers
the endpoints are found, and removed, without a descriptor of their namespace, and a number is gone with its namespace.

The parent says whose it is. One that was found carries an alternative name (ip-link(8), ``altname``) for each network
on it, ``transom-macvlan-ID-bridge``: driver, network and mode. One that was made carries an alias too. So the kernel
is the only record here, and two engines on one host see each other's networks.
"""

from __future__ import annotations

import errno
import struct
import time
from abc import abstractmethod
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import msgspec

from transom.contract import Probe
from transom.contract.network import Attachment, Endpoint, Network, NetworkDriver, Owned, Reach
from transom.contract.network import NetworkCapability as Has
from transom.errors import ConfigError, Conflict, DriverError, NotFound, NotSupported, choices, nearest
from transom.services import interfaces, netlink
from transom.services.files import Lock, closing
from transom.services.interfaces import INTERFACE_DOCS, AnnouncingOptions, InterfaceName, InterfaceOptions
from transom.services.netlink import Link, Session
from transom.services.netns import create, current, inside

_VLAN_ID, _PEER = 1, 1
_VLANS = 4094
_DYING = 10.0
"""Seconds for which an address stays taken at most by a container that has died."""
_BORROWED = "transom parent"
"""The alias of a VLAN interface that was made for whichever networks are on it."""

CAPABILITIES = frozenset({Has.L2, Has.NAMES, Has.IPV6, Has.INTERNAL, Has.HOT_PLUG})
"""What every driver of this sort can do."""


class ParentOptions(AnnouncingOptions, frozen=True, kw_only=True):
    """What ``network create --opt`` accepts where users name the parent; a driver adds its own."""

    parent: InterfaceName | None = None
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = msgspec.field(name="com.docker.network.driver.mtu", default=0)
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,11}$")] = msgspec.field(
        name="com.docker.network.container_iface_prefix", default="eth"
    )


PARENT_DOCS = {
    "parent": "Interface of the host whose network it is; eth0.50 is made when missing; without, an internal one.",
    "com.docker.network.driver.mtu": "Largest packet in bytes; 0 takes that of the parent.",
    "com.docker.network.container_iface_prefix": "What names of interfaces in containers start with.",
    **INTERFACE_DOCS,
}
"""`option_docs` of `ParentOptions` and of endpoints."""


class Claim(msgspec.Struct, frozen=True):
    """That a network is on a parent: the driver's name, the network's id, and the mode in the driver's words."""

    driver: str
    network: str
    mode: str

    @property
    def altname(self) -> str:
        """The parent's alternative name that says so."""
        return f"transom-{self.driver}-{self.network}-{self.mode}"


class Child(msgspec.Struct, frozen=True):
    """An endpoint's interface: `namespace` is the number that the host's namespace has for the one it is in."""

    endpoint: str
    network: str
    namespace: int
    link: Link


class ParentDriver(NetworkDriver):
    """The base of a driver whose endpoints are children of an interface; it says which, and in which mode.

    Attributes:
        child_kind: of the endpoints' interfaces, as rtnetlink calls it.
        feature: what the kernel needs for them, in its configuration's words.
    """

    child_kind: ClassVar[str]
    feature: ClassVar[str]
    EndpointOptions = InterfaceOptions

    # What a driver says of itself

    def parent_name(self, network: Network) -> str:
        """Return the name of the network's parent: the one that the options name, or `own_parent`."""
        return str(getattr(network.options, "parent", None) or self.own_parent(network))

    @abstractmethod
    def mode(self, network: Network) -> str:
        """Return the mode of the network's endpoints, in letters and signs other than a space."""

    @abstractmethod
    def child_data(self, network: Network) -> bytes:
        """Return the attributes that give an endpoint its mode (IFLA_INFO_DATA)."""

    def conflict(self, mode: str, others: list[Claim]) -> str:
        """Say why a network in that mode cannot share its parent with those; empty when it can."""
        return next((f"{other.driver} has it" for other in others if other.driver != self.name), "")

    def asked_mtu(self, network: Network) -> int:
        """Return the MTU that the user asked for, or 0."""
        return network.mtu or int(getattr(network.options, "mtu", 0))

    def wanted_mtu(self, network: Network, parent: Link, link: Link) -> int:
        """Return the MTU that an endpoint's interface, `link`, should have."""
        return self.asked_mtu(network) or parent.mtu

    def prefix(self, network: Network) -> str:
        """Return what interface names in containers start with."""
        return str(getattr(network.options, "prefix", "eth"))

    def refuse_internal(self, network: Network) -> None:
        """Refuse a parent that leads somewhere to a network that must lead nowhere."""
        if network.internal and self.parent_name(network) != self.own_parent(network):
            raise ConfigError(
                f"network {network.name} is internal: it has a parent of its own that leads nowhere; leave out "
                f"parent={self.parent_name(network)}"
            )

    def make_own_parent(self, session: Session, network: Network, name: str) -> None:
        """Make the parent of a network that has one of its own: a pair of interfaces that lead to each other."""
        other, alias = _other_end(network), self._alias("network", network.id)
        mtu = self.asked_mtu(network) or interfaces.ETHERNET_MTU
        data = netlink.nested(_PEER, bytes(16), netlink.text(3, other), netlink.attribute(4, struct.pack("=I", mtu)))
        session.request(
            netlink.add_link(name=name, kind="veth", mtu=mtu, data=data),
            netlink.set_alias(name, alias),
            netlink.set_alias(other, alias),
            netlink.set_up(other),
            netlink.set_up(name),
        )

    # Operations

    def probe(self) -> Probe:
        """Make a child in a namespace that is gone afterwards."""
        try:
            fd = create()
        except OSError as error:
            return Probe(usable=False, reason=f"cannot make a network namespace ({error.strerror}): run as root")
        with closing(fd):
            return inside(fd, self._try_kernel)

    def _try_kernel(self) -> Probe:
        network = Network(id="0" * 64, name="probe", options=self.NetworkOptions())
        step = "veth pairs (CONFIG_VETH)"
        try:
            with Session() as session:
                ParentDriver.make_own_parent(self, session, network, "parent")
                step = f"{self.child_kind} interfaces ({self.feature})"
                session.request(self._child(network, "child", session.link("parent")))
        except OSError as error:
            return interfaces.lacking(step, error)
        return Probe(usable=True)

    def _child(self, network: Network, name: str, parent: Link | None, **words: Any) -> netlink.Message:
        index, data = parent.index if parent else 0, self.child_data(network)
        return netlink.add_link(name=name, kind=self.child_kind, parent=index, data=data, **words)

    def create_network(self, network: Network) -> None:
        """Find or make the parent and mark it; see the contract."""
        self.refuse_internal(network)
        name = self.parent_name(network)
        try:
            with Session() as session:
                link = session.link(name)
                if link and self._claim(network).altname in link.altnames and not self._down(session, network, link):
                    return
            self.run.mkdir(parents=True, exist_ok=True)
            with Lock(self.run / "lock"), Session() as session:
                self._create(session, network, name)
        except OSError as error:
            raise self._error("create_network", network, error) from error

    def _create(self, session: Session, network: Network, name: str) -> None:
        claim, link = self._claim(network), session.link(name)
        made = link is None
        try:
            if link is None:
                self._make(session, network, name, claim)
                link = session.link(name)
            if link is None:
                raise OSError(errno.ENODEV, f"{name} vanished while it was made")
            self._check_parent(session, network, link)
            if claim.altname not in link.altnames:
                self._try_child(network, link)
                session.request(netlink.add_altname(name, claim.altname))
            if link.alias in {_BORROWED, self._alias("network", network.id)}:
                session.request(*map(netlink.set_up, self._down(session, network, link)))
        except BaseException:
            if made:
                self._leave(session, network)
            raise

    def _try_child(self, network: Network, parent: Link) -> None:
        """Make a child and take it away, so that it shows now what the parent or the kernel cannot have."""
        with closing(create()) as fd, closing(current()) as host, inside(fd, Session) as inner:
            self._add_child(inner, network, "try", parent, parent_namespace=inner.namespace(host))
            interfaces.remove(inner, "try")

    def _make(self, session: Session, network: Network, name: str, claim: Claim) -> None:
        if name == self.own_parent(network):
            self.make_own_parent(session, network, name)
            return
        links = session.links()
        if moved := [link.name for link in links if claim.altname in link.altnames]:
            raise NotFound(
                f"network {network.name}: its parent {name} is called {moved[0]} now; "
                f"`ip link property add dev {moved[0]} altname {name}` has it found by both names"
            )
        base, dot, number = name.rpartition(".")
        below = session.link(base) if dot and number.isdigit() and base else None
        if below is None:
            known = [link.name for link in links if link.name != "lo"]
            raise NotFound(
                f"network {network.name}: no interface {name} on this host to be its parent{nearest(name, known)}; "
                f"here are {choices(known)}, and VLANs of them as in eth0.50"
            )
        if not 1 <= int(number) <= _VLANS:
            raise ConfigError(f"network {network.name}: {number} is no VLAN: they are 1 to {_VLANS} ({name})")
        data = netlink.attribute(_VLAN_ID, struct.pack("=H", int(number)))
        try:
            session.request(
                netlink.add_link(name=name, kind="vlan", parent=below.index, data=data),
                netlink.set_alias(name, _BORROWED),
                netlink.add_altname(name, claim.altname),
                netlink.set_up(name),
            )
        except OSError as error:
            reasons = {
                errno.EOPNOTSUPP: "the kernel lacks VLANs (CONFIG_VLAN_8021Q); load the module 8021q, or name another",
                errno.ENETDOWN: f"{base} is down; `ip link set {base} up`",
                errno.EEXIST: f"{base} has its VLAN {number} under another name; name that one",
            }
            if error.errno not in reasons:
                raise
            kind = NotSupported if error.errno == errno.EOPNOTSUPP else Conflict
            raise kind(f"network {network.name}: no parent {name} can be made: {reasons[error.errno]}") from None

    def own_parent(self, network: Network) -> str:
        """Return the name of a parent made for the network alone."""
        return f"dm-{network.id[:12]}"

    def _down(self, session: Session, network: Network, parent: Link) -> list[str]:
        """Name what is down of the parent and, where the network has one of its own, of the pair that it is."""
        other = session.link(_other_end(network)) if parent.name == self.own_parent(network) else None
        return [link.name for link in (parent, other) if link and not link.up]

    def _check_parent(self, session: Session, network: Network, link: Link) -> None:
        where = f"network {network.name}: parent {link.name}"
        if link.name == "lo":
            raise ConfigError(f"{where} is the loopback, which can have no children; name another interface")
        if link.master:
            master = next((other.name for other in session.links() if other.index == link.master), "another one")
            raise Conflict(f"{where} is busy: it is a port of {master}; name {master} or a free interface")
        others = [claim for claim in claims(link) if claim.network != network.id]
        reason = self.conflict(self.mode(network), others)
        if reason:
            names = ", ".join(sorted(claim.network[:12] for claim in others))
            raise Conflict(f"{where} cannot be used in mode {self.mode(network)}: {reason} (network {names})")
        if self.asked_mtu(network) > link.mtu:
            raise ConfigError(f"{where} has an MTU of {link.mtu} bytes: {self.asked_mtu(network)} is too much")

    def delete_network(self, network: Network) -> None:
        """Take the mark away, and the parent if nobody else is on it and it was made."""
        try:
            self.run.mkdir(parents=True, exist_ok=True)
            with Lock(self.run / "lock"), Session() as session:
                self._leave(session, network)
        except OSError as error:
            raise self._error("delete_network", network, error) from error

    def _leave(self, session: Session, network: Network) -> None:
        for link in session.links():
            if link.alias == self._alias("network", network.id):
                interfaces.remove(session, link.name)
                continue
            mine = [claim for claim in claims(link) if claim.driver == self.name and claim.network == network.id]
            for claim in mine:
                session.request(netlink.delete_altname(link.name, claim.altname))
            if mine and link.alias == _BORROWED and len(claims(link)) == len(mine):
                interfaces.remove(session, link.name)

    def reach(self, network: Network) -> dict[int, Reach]:
        """Endpoints are neighbours on their parent's network, unless that is one over hosts, of the driver's own."""
        closed = network.internal or Has.MULTI_HOST in self.capabilities
        return {} if closed else dict.fromkeys((4, 6), Reach.NEIGHBOUR)

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Join the namespace by a child that is born in it."""
        try:
            with Session() as session, inside(netns, Session) as inner:
                parent = self._present(session, network)
                alias = self._alias("endpoint", endpoint.id, network.id)
                if any(link.alias == alias for link in inner.links()):
                    raise Conflict(f"endpoint {endpoint.id[:12]} is attached to network {network.name} already")
                session.namespace(netns, _namespace_of(endpoint))  # by which it is found again
                with closing(current()) as host:
                    outside = inner.namespace(host)
                until = time.monotonic() + _DYING
                while True:
                    name = self._add(inner, network, endpoint, parent, outside, alias)
                    try:
                        return self._furnish(inner, netns=netns, network=network, endpoint=endpoint, interface=name)
                    except BaseException as error:
                        interfaces.remove(inner, name)
                        if getattr(error, "errno", 0) != errno.EADDRINUSE or time.monotonic() > until:
                            raise
                        self._refuse_taken(session, network, endpoint)
                    time.sleep(0.02)  # the kernel takes a namespace away in its own time, and its interfaces with it
        except OSError as error:
            raise self._error("attach", endpoint, error) from error

    def _refuse_taken(self, session: Session, network: Network, endpoint: Endpoint) -> None:
        """Say whose the endpoint's MAC address is, if it is that of one that lives."""
        mac = self.mac(network, endpoint)
        for child in self.children(session):
            if child.network == network.id and child.link.mac == mac and child.endpoint != endpoint.id:
                raise Conflict(
                    f"network {network.name}: endpoint {child.endpoint[:12]} has the MAC address {mac} already; "
                    "leave it out, or choose another"
                )

    def _present(self, session: Session, network: Network) -> Link:
        name = self.parent_name(network)
        parent = session.link(name)
        if parent is None:
            raise NotFound(f"network {network.name} is not on this host: its parent {name} is gone; create it again")
        if self._claim(network).altname not in parent.altnames:
            raise NotFound(f"network {network.name} is not on this host: {name} does not know it; create it again")
        if not parent.up:
            raise Conflict(f"network {network.name}: its parent {name} is down; `ip link set {name} up`")
        return parent

    def _add(self, inner: Session, network: Network, endpoint: Endpoint, parent: Link, outside: int, alias: str) -> str:
        interface = next(interfaces.names(inner, endpoint, self.prefix(network)))
        if inner.link(interface):
            raise interfaces.name_taken(endpoint, interface)
        mac, mtu = self.mac(network, endpoint), self.asked_mtu(network) or parent.mtu
        named = netlink.set_alias(interface, alias)
        self._add_child(inner, network, interface, parent, named, mac=mac, mtu=mtu, parent_namespace=outside)
        return interface

    def _add_child(
        self, inner: Session, network: Network, name: str, parent: Link, *more: netlink.Message, **words: Any
    ) -> None:
        try:
            inner.request(self._child(network, name, parent, **words), *more)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                raise NotSupported(
                    f"network {network.name}: the kernel lacks {self.child_kind} interfaces ({self.feature})"
                ) from None
            if error.errno in {errno.EBUSY, errno.EINVAL}:
                raise Conflict(
                    f"network {network.name}: parent {parent.name} takes no {self.child_kind} in mode "
                    f"{self.mode(network)}: somebody else has it, or it is no Ethernet ({error.strerror or error})"
                ) from None
            raise

    def mac(self, network: Network, endpoint: Endpoint) -> str:
        """Return the MAC of the endpoint's interface; empty leaves it to the kernel."""
        return endpoint.mac or interfaces.mac_for(endpoint.addresses, endpoint.id)

    def _furnish(
        self, inner: Session, *, netns: int, network: Network, endpoint: Endpoint, interface: str
    ) -> Attachment:
        interfaces.furnish(inner, netns=netns, endpoint=endpoint, interface=interface)
        link = inner.link(interface)
        if link is None:
            raise OSError(errno.ENODEV, f"{interface} vanished from the namespace")
        return Attachment(
            interface=interface,
            mac=link.mac,
            addresses=endpoint.addresses,
            gateways=self.next_hops(network, endpoint),
            mtu=link.mtu,
        )

    def next_hops(self, network: Network, endpoint: Endpoint) -> tuple[str, ...]:
        """Return what `Attachment.gateways` says."""
        return interfaces.next_hops(network, endpoint)

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Remove the child, which may have gone with its namespace."""
        try:
            with Session() as session:
                for child in self.children(session, first=_namespace_of(endpoint)):
                    if child.endpoint == endpoint.id:
                        _forgiving(session, netlink.delete_link_in(child.namespace, child.link.index))
                        break
        except OSError as error:
            raise self._error("detach", endpoint, error) from error

    def children(self, session: Session, *, first: int = -1) -> Iterator[Child]:
        """Find the endpoints' interfaces in all namespaces; those of another host's, which is reached too, are not.

        Args:
            first: the number of the namespace to look into before the others.
        """
        start = f"transom-{self.name} endpoint "
        with closing(current()) as host:
            here = session.namespace(host)
        for namespace in sorted(session.namespaces(), key=lambda number: number != first):
            try:
                links = session.links(namespace)
            except OSError:
                continue  # it has just died
            for link in links:
                if link.alias.startswith(start) and link.parent_namespace == here:
                    endpoint, _, network = link.alias.removeprefix(start).partition(" ")
                    yield Child(endpoint=endpoint, network=network, namespace=namespace, link=link)

    def owned(self) -> Owned:
        """Read marks and aliases."""
        networks = set()
        with Session() as session:
            for link in session.links():
                networks |= {claim.network for claim in claims(link) if claim.driver == self.name}
                kind, _, identity = link.alias.removeprefix(f"transom-{self.name} ").partition(" ")
                if kind == "network" and identity:
                    networks.add(identity)
            endpoints = frozenset(child.endpoint for child in self.children(session))
        return Owned(networks=frozenset(networks), endpoints=endpoints)

    def recover(self) -> list[str]:
        """Remove VLAN interfaces that a crash left without a network."""
        repairs = []
        with Session() as session:
            for link in session.links():
                if link.alias == _BORROWED and not claims(link):
                    interfaces.remove(session, link.name)
                    repairs.append(f"removed {link.name}, which no network is on")
        return repairs

    def check(self, network: Network, endpoints: tuple[Endpoint, ...]) -> list[str]:
        """Compare the parent and the endpoints' interfaces with what should be there."""
        return list(self._differences(network, endpoints))

    def _differences(self, network: Network, endpoints: tuple[Endpoint, ...]) -> Iterator[str]:
        name = self.parent_name(network)
        with Session() as session:
            parent = session.link(name)
            if parent is None:
                yield f"parent {name} is missing"
                return
            for down in self._down(session, network, parent):
                yield f"parent {down} is down"
            if self._claim(network).altname not in parent.altnames:
                yield f"parent {name} does not know network {network.name}"
            children = {child.endpoint: child for child in self.children(session)} if endpoints else {}
            for endpoint in endpoints:
                who, child = f"endpoint {endpoint.id[:12]}", children.get(endpoint.id)
                if child is None:
                    yield f"{who} has no interface"
                    continue
                link = child.link
                # One that is a child itself passes its own on to those above it.
                if link.parent != (parent.parent if parent.kind == self.child_kind else parent.index):
                    yield f"{who} is not on parent {name}"
                mtu = self.wanted_mtu(network, parent, link)
                yield from interfaces.damage(session, child.namespace, endpoint=endpoint, link=link, mtu=mtu)
                wanted = netlink.attributes(self.child_data(network))
                if not wanted.items() <= netlink.attributes(link.data).items():
                    yield f"{who}: {link.name} is not in mode {self.mode(network)}"

    def _claim(self, network: Network) -> Claim:
        return Claim(driver=self.name, network=network.id, mode=self.mode(network))

    def _alias(self, kind: str, *ids: str) -> str:
        return f"transom-{self.name} {kind} {' '.join(ids)}"

    def _error(self, operation: str, subject: Network | Endpoint, cause: OSError) -> DriverError:
        name = getattr(subject, "name", "") or subject.id[:12]
        return DriverError(operation, driver=f"network {self.name}", subject=name, cause=cause)


def _namespace_of(endpoint: Endpoint) -> int:
    """Return the number that the endpoint's namespace gets where it has none, so that it is found at once."""
    return int(endpoint.container[:7] or "-1", 16)


def _other_end(network: Network) -> str:
    return f"dp-{network.id[:12]}"


def claims(link: Link) -> list[Claim]:
    """Return which networks are on an interface."""
    words = [name.split("-", 3) for name in link.altnames if name.startswith("transom-")]
    return [Claim(driver=w[1], network=w[2], mode=w[3]) for w in words if len(w) == 4]


def _forgiving(session: Session, message: netlink.Message) -> None:
    """Send what removes something; that it is gone already is success."""
    try:
        session.request(message)
    except OSError as error:
        if error.errno not in {errno.ENODEV, errno.EINVAL}:
            raise
