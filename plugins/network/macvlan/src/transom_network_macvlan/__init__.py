"""The network driver ``macvlan``: containers on the network of a host interface, with MAC addresses of their own.

A container's interface is a macvlan child of the host's interface (ip-link(8)), so the container is a neighbour of
whatever is on that network. What it shares with other drivers of that sort is in `transom.services.parents`; here is
what only macvlan has: its modes, addresses by DHCP (`dhcp`), and a way between the host and its own containers.

The kernel lets no frame pass between a parent and its children. With ``host-access`` the host gets a child of its own,
and a route to each container by it, whose metric is taken from the endpoint's id: so it is found again by the id alone.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import msgspec

from transom.contract.network import Attachment, Endpoint, Network, NetworkCapability
from transom.errors import ConfigError, DriverError
from transom.services import interfaces, netlink
from transom.services.netlink import Link, Route, Session
from transom.services.parents import CAPABILITIES, PARENT_DOCS, Claim, ParentDriver, ParentOptions

MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
"""MACVLAN_MODE_* of linux/if_link.h, by the words of ip-link(8)."""
HOST = "host"
"""The name of the reserved address (``--aux-address host=...``) that the host has on the network."""
_MODE = 1
_SMALLEST = 68
"""The smallest MTU that a DHCP server may give, in bytes (RFC 2132, section 5.1)."""


class MacvlanOptions(ParentOptions, frozen=True, kw_only=True):
    """What ``network create --opt`` accepts: Docker's names, and what Docker has not got."""

    mode: Literal["bridge", "private", "vepa", "passthru"] = msgspec.field(name="macvlan_mode", default="bridge")
    dhcp: bool = False
    host_access: bool = msgspec.field(name="host-access", default=False)

    def __post_init__(self) -> None:
        """Check what does not go together."""
        if self.host_access and self.mode != "bridge":
            raise ValueError(f"host-access=true needs macvlan_mode bridge, in which children meet; not {self.mode}")
        if self.dhcp and not self.parent:
            raise ValueError("dhcp=true needs a parent, whose network has the DHCP server")


class Macvlan(ParentDriver):
    """See the module's text."""

    name = "macvlan"
    api = 1
    capabilities = CAPABILITIES | {NetworkCapability.MAC, NetworkCapability.ADDRESSES, NetworkCapability.WATCH}
    NetworkOptions = MacvlanOptions
    option_docs: ClassVar[dict[str, str]] = {
        "macvlan_mode": "bridge: containers meet; private: they do not; vepa: by a switch; passthru: one has all.",
        "dhcp": "Take addresses from the DHCP server on the parent's network.",
        "host-access": "Let the host and its containers reach each other.",
        **PARENT_DOCS,
    }
    child_kind = "macvlan"
    feature = "CONFIG_MACVLAN"

    def mode(self, network: Network) -> str:
        """Return the mode in ip-link(8)'s words."""
        return _options(network).mode

    def child_data(self, network: Network) -> bytes:
        """Return the mode as the kernel wants it."""
        return netlink.attribute(_MODE, struct.pack("=I", MODES[self.mode(network)]))

    def conflict(self, mode: str, others: list[Claim]) -> str:
        """Refuse company of another driver's, and any where one is in mode passthru."""
        alone = [other for other in others if "passthru" in {mode, other.mode}]
        return super().conflict(mode, others) or ("passthru wants it alone" if alone else "")

    def mac(self, network: Network, endpoint: Endpoint) -> str:
        """Return one that a DHCP server knows again when the container starts again; in passthru the parent's."""
        if _options(network).mode == "passthru" and not endpoint.mac:
            return ""
        if _options(network).dhcp:
            mixed = int(endpoint.container[:8] or "0", 16) ^ int(network.id[:8], 16)
            return endpoint.mac or interfaces.mac_for((), f"{mixed:08x}")
        return super().mac(network, endpoint)

    def wanted_mtu(self, network: Network, parent: Link, link: Link) -> int:
        """Return what was asked for, or the parent's; a DHCP server may have said less."""
        mtu = super().wanted_mtu(network, parent, link)
        return min(link.mtu, mtu) if _options(network).dhcp else mtu

    def create_network(self, network: Network) -> None:
        """Find or make the parent, and the host's own child where it has access."""
        options = _options(network)
        super().create_network(network)
        if options.host_access:
            try:
                with Session() as session:
                    self._let_host_in(session, network)
            except BaseException as error:
                self.delete_network(network)
                if isinstance(error, OSError):
                    raise self._error("create_network", network, error) from error
                raise

    def _let_host_in(self, session: Session, network: Network) -> None:
        name = _host_end(network.id)
        parent, present = session.link(self.parent_name(network)), session.link(name)
        if parent is None or (present and present.up):
            return
        if not _options(network).dhcp:
            own = session.addresses(parent.index)
            if not any(_source(network, subnet.pool, own) for subnet in network.subnets):
                pools = ", ".join(subnet.pool for subnet in network.subnets)
                raise ConfigError(
                    f"network {network.name}: host-access needs an address for the host in {pools}: "
                    "reserve one with --aux-address host=ADDRESS"
                )
        if present is None:
            session.request(
                netlink.add_link(
                    name=name,
                    kind=self.child_kind,
                    parent=parent.index,
                    mtu=self.asked_mtu(network) or parent.mtu,
                    data=self.child_data(network),
                ),
                netlink.set_alias(name, self._alias("network", network.id)),
            )
        link = session.link(name)
        if link is None:
            raise OSError(errno.ENODEV, f"{name} vanished while it was made")
        wanted = {_whole(subnet.reserved[HOST]) for subnet in network.subnets if HOST in subnet.reserved}
        missing = wanted - session.addresses(link.index).keys()
        session.request(*(netlink.add_address(link.index, address) for address in sorted(missing)))
        session.request(netlink.set_up(name))

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Join the namespace, and let the host reach it where it has access."""
        attachment = super().attach(network, endpoint, netns)
        if _options(network).host_access:
            try:
                with Session() as session:
                    self._route_host(session, network, endpoint, attachment)
            except BaseException as error:
                self.detach(network, endpoint)
                if isinstance(error, OSError):
                    raise self._error("attach", endpoint, error) from error
                raise
        return attachment

    def _route_host(self, session: Session, network: Network, endpoint: Endpoint, attachment: Attachment) -> None:
        link, parent = session.link(_host_end(network.id)), session.link(self.parent_name(network))
        if link is None or parent is None:
            raise OSError(errno.ENODEV, f"the host's interface {_host_end(network.id)} is gone")
        own = session.addresses(parent.index)
        for address in attachment.addresses:
            source = _source(network, address, own)
            if source:
                session.request(
                    netlink.add_route(
                        link.index, _whole(address), metric=_metric(endpoint.id), source=source, replace=True
                    )
                )

    def _furnish(
        self, inner: Session, *, netns: int, network: Network, endpoint: Endpoint, interface: str
    ) -> Attachment:
        if not _options(network).dhcp:
            return super()._furnish(inner, netns=netns, network=network, endpoint=endpoint, interface=interface)
        from transom_network_macvlan.dhcp import Client, add_routes

        bare = msgspec.structs.replace(endpoint, addresses=())
        attachment = super()._furnish(inner, netns=netns, network=network, endpoint=bare, interface=interface)
        asked = next((interfaces.plain(address) for address in endpoint.addresses), "")
        client = Client(self.root, netns=netns, interface=interface, name=endpoint.names[:1])
        lease = client.obtain(asked)
        if asked and interfaces.plain(lease.address) != asked:
            client.give_back()
            raise DriverError(
                "attach", driver="network macvlan", subject=endpoint.id[:12],
                cause=f"the DHCP server does not give {asked} but {interfaces.plain(lease.address)}",
                hint="leave the address out, or reserve it at the server",
            )  # fmt: skip
        link = inner.link(interface)
        if link is None:
            raise OSError(errno.ENODEV, f"{interface} vanished from the namespace")
        mtu = link.mtu
        if _SMALLEST <= lease.mtu < mtu and not self.asked_mtu(network):
            mtu = lease.mtu
            inner.request(netlink.set_mtu(interface, mtu))
        inner.request(netlink.add_address(link.index, lease.address))
        add_routes(inner, link.index, lease)
        return msgspec.structs.replace(
            attachment,
            addresses=(lease.address,),
            gateways=lease.routers[:1],
            dns=lease.dns,
            search=lease.search,
            mtu=mtu,
        )

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Take the host's routes to the endpoint away, and the endpoint."""
        try:
            with Session() as session:
                self._unroute(session, lambda route: route.metric == _metric(endpoint.id))
        except OSError as error:
            raise self._error("detach", endpoint, error) from error
        super().detach(network, endpoint)

    def _unroute(self, session: Session, unwanted: Callable[[Route], bool]) -> int:
        """Remove routes by the host's children; return how many."""
        ours = {link.index for link in session.links() if _is_host_end(link)}
        found = [route for route in session.routes() if route.index in ours and route.metric and unwanted(route)]
        for route in found:
            try:
                session.request(netlink.delete_route(route.index, route.to, metric=route.metric))
            except ProcessLookupError:
                continue  # gone by itself
        return len(found)

    def recover(self) -> list[str]:
        """Remove routes to containers that died with their namespaces, too."""
        repairs = super().recover()
        with Session() as session:
            alive = {_metric(child.endpoint) for child in self.children(session)}
            count = self._unroute(session, lambda route: route.static and route.metric not in alive)
        return repairs + ([f"removed {count} routes to endpoints that are gone"] if count else [])

    def _differences(self, network: Network, endpoints: tuple[Endpoint, ...]) -> Iterator[str]:
        yield from super()._differences(network, endpoints)
        if not _options(network).host_access:
            return
        name = _host_end(network.id)
        with Session() as session:
            link = session.link(name)
            routes = {(route.to, route.index) for route in session.routes()}
        if link is None or not link.up:
            yield f"the host's interface {name} is {'down' if link else 'missing'}"
            return
        for endpoint in endpoints:
            for address in endpoint.addresses:
                wanted = ":" not in address or any(HOST in s.reserved and ":" in s.pool for s in network.subnets)
                if wanted and (_whole(address), link.index) not in routes:
                    yield f"the host has no route to endpoint {endpoint.id[:12]} ({interfaces.plain(address)})"

    # Addresses by DHCP

    def keeps_addresses(self, network: Network) -> bool:
        """Core's IPAM has them, unless a DHCP server does."""
        return _options(network).dhcp

    def settle(self, network: Network) -> Network:
        """Leave the subnet to the DHCP server."""
        if network.subnets:
            raise ConfigError(f"network {network.name}: with dhcp=true the server has the subnet; leave out --subnet")
        return network

    def allocate(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Leave the address to the DHCP server, which `attach` asks."""
        return endpoint

    def release(self, network: Network, endpoint: Endpoint) -> None:
        """Nothing to give back here: `watch` has released the lease."""

    def watch(self, network: Network, endpoint: Endpoint, netns: int, stop: int) -> None:
        """Keep the lease, and release it at the end."""
        if not _options(network).dhcp:
            return
        from transom.services.netns import inside
        from transom_network_macvlan.dhcp import Client

        alias = self._alias("endpoint", endpoint.id, network.id)
        with inside(netns, Session) as inner:
            interface = next((link.name for link in inner.links() if link.alias == alias), "")
        if interface:
            Client(self.root, netns=netns, interface=interface, name=endpoint.names[:1]).keep(stop)


def _options(network: Network) -> MacvlanOptions:
    return network.options if isinstance(network.options, MacvlanOptions) else MacvlanOptions()


def _host_end(network: str) -> str:
    return f"mh-{network[:12]}"


def _is_host_end(link: Link) -> bool:
    return link.kind == "macvlan" and link.name.startswith("mh-") and link.alias.startswith("transom-macvlan ")


def _metric(endpoint: str) -> int:
    return int(endpoint[:8], 16) or 1


def _whole(address: str) -> str:
    """Return a route to one address, in the kernel's spelling."""
    text = interfaces.plain(address)
    return f"{text}/{128 if ':' in text else 32}"


def _source(network: Network, address: str, own: dict[str, int]) -> str:
    """Return the host's address towards one of the network: the reserved one, or one of the parent beside it.

    An IPv6 neighbour asks for the interface that has the address, so the parent's own ones will not do.
    """
    from ipaddress import ip_interface

    target = ip_interface(address)
    for subnet in network.subnets:
        if HOST in subnet.reserved and interfaces.family(subnet.pool) == target.version:
            return interfaces.plain(subnet.reserved[HOST])
    for text in own:
        if target.version == 4 and ":" not in text and ip_interface(text).ip in target.network:
            return interfaces.plain(text)
    return ""
