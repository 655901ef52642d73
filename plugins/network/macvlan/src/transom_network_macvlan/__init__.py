"""The network driver ``macvlan``: containers on the network of a host interface, with MAC addresses of their own.

A container's interface is a macvlan child of the host's interface (ip-link(8)), so the container is a neighbour of
whatever is on that network. What it shares with other drivers of that sort is in `transom.services.parents`; here is
what only macvlan has: its modes, addresses that the network's own servers give (`dhcp`, `advertisements`), and a way
between the host and its own containers (`access`).
"""

from __future__ import annotations

import errno
import struct
import sys
from collections.abc import Callable, Iterator
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec

from transom.contract.network import Attachment, Endpoint, Network, NetworkCapability
from transom.errors import ConfigError
from transom.services import interfaces, netlink
from transom.services.netlink import Link, Session
from transom.services.netns import inside
from transom.services.parents import CAPABILITIES, PARENT_DOCS, Claim, ParentDriver, ParentOptions
from transom_network_macvlan.access import Access, metric, unroute

if TYPE_CHECKING:
    from transom_network_macvlan.keeping import Keeper

MODES = {"private": 1, "vepa": 2, "bridge": 4, "passthru": 8}
"""MACVLAN_MODE_* of linux/if_link.h, by the words of ip-link(8)."""
_MODE = 1


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
        access = self._access(session, network)
        parent, present = session.link(self.parent_name(network)), session.link(access.name)
        if parent is None or (present and present.up):
            return
        if not _options(network).dhcp:
            _require_sources(network, access.sources())
        if present is None:
            session.request(
                netlink.add_link(
                    name=access.name,
                    kind=self.child_kind,
                    parent=parent.index,
                    mtu=self.asked_mtu(network) or parent.mtu,
                    data=self.child_data(network),
                ),
                netlink.set_alias(access.name, self._alias("network", network.id)),
            )
        link = session.link(access.name)
        if link is None:
            raise OSError(errno.ENODEV, f"{access.name} vanished while it was made")
        # Else routers on the network would give the host a second address and a second way out.
        interfaces.write_setting(f"ipv6/conf/{access.name}/accept_ra", "0")
        missing = access.reserved() - session.addresses(link.index).keys()
        session.request(*(netlink.add_address(link.index, address) for address in sorted(missing)))
        session.request(netlink.set_up(access.name))

    def _access(self, session: Session, network: Network) -> Access:
        return Access(session, network, self.parent_name(network))

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Join the namespace, and let the host reach it where it has access."""
        attachment = super().attach(network, endpoint, netns)
        if _options(network).host_access:
            try:
                with Session() as session:
                    self._access(session, network).reach(endpoint.id, attachment.addresses)
            except BaseException as error:
                self.detach(network, endpoint)
                if isinstance(error, OSError):
                    raise self._error("attach", endpoint, error) from error
                raise
        return attachment

    def _furnish(
        self, inner: Session, *, netns: int, network: Network, endpoint: Endpoint, interface: str
    ) -> Attachment:
        if not _options(network).dhcp:
            return super()._furnish(inner, netns=netns, network=network, endpoint=endpoint, interface=interface)
        bare = msgspec.structs.replace(endpoint, addresses=())
        attachment = super()._furnish(inner, netns=netns, network=network, endpoint=bare, interface=interface)
        return self._keeper(network, endpoint, netns, attachment).obtain()

    def _keeper(self, network: Network, endpoint: Endpoint, netns: int, bare: Attachment) -> Keeper:
        from transom_network_macvlan.keeping import Keeper

        return Keeper(
            self.root, netns=netns, bare=bare, endpoint=endpoint, families=_families(network, endpoint),
            fixed_mtu=bool(self.asked_mtu(network)),
        )  # fmt: skip

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Take the host's routes to the endpoint away, and the endpoint."""
        try:
            with Session() as session:
                unroute(session, lambda route: route.metric == metric(endpoint.id))
        except OSError as error:
            raise self._error("detach", endpoint, error) from error
        super().detach(network, endpoint)

    def recover(self) -> list[str]:
        """Remove routes to containers that died with their namespaces, too."""
        repairs = super().recover()
        with Session() as session:
            alive = {metric(child.endpoint) for child in self.children(session)}
            count = unroute(session, lambda route: route.static and route.metric not in alive)
        return repairs + ([f"removed {count} routes to endpoints that are gone"] if count else [])

    def _differences(self, network: Network, endpoints: tuple[Endpoint, ...]) -> Iterator[str]:
        yield from super()._differences(network, endpoints)
        if not _options(network).host_access:
            return
        with Session() as session:
            access = self._access(session, network)
            link = session.link(access.name)
            present = {(route.to, route.index) for route in session.routes()}
            wanted = [(endpoint, to) for endpoint in endpoints for to in access.routes(endpoint.addresses)]
        if link is None or not link.up:
            yield f"the host's interface {access.name} is {'down' if link else 'missing'}"
            return
        for endpoint, to in wanted:
            if (to, link.index) not in present:
                yield f"the host has no route to endpoint {endpoint.id[:12]} ({interfaces.plain(to)})"

    # Addresses by DHCP and router advertisements

    def keeps_addresses(self, network: Network) -> bool:
        """Core's IPAM has them, unless servers on the network do."""
        return _options(network).dhcp

    def settle(self, network: Network) -> Network:
        """Leave the subnets to the network's own servers; "0.0.0.0/0" and "::/0" stand for them."""
        if any(subnet.pool not in interfaces.ANY.values() for subnet in network.subnets):
            raise ConfigError(f"network {network.name}: with dhcp=true the server has the subnet; leave out --subnet")
        return network

    def allocate(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Leave the addresses to the network's own servers, which `attach` asks."""
        return endpoint

    def release(self, network: Network, endpoint: Endpoint) -> None:
        """Nothing to give back here: `watch` has released the lease."""

    def watch(
        self, network: Network, endpoint: Endpoint, netns: int, stop: int, changed: Callable[[Attachment], None]
    ) -> None:
        """Keep the lease and release it at the end, follow the routers, and keep the host's way to the endpoint."""
        options = _options(network)
        if not (options.dhcp or options.host_access):
            return
        alias = self._alias("endpoint", endpoint.id, network.id)
        with inside(netns, Session) as inner:
            link = next((link for link in inner.links() if link.alias == alias), None)
        if link is None:
            return
        from transom_network_macvlan.keeping import together

        tasks: list[Callable[[], None]] = []
        with Session() as session, Session() as other:
            reach = _Reach(self._access(session, network), endpoint) if options.host_access else None
            if reach:
                tasks.append(partial(self._access(other, network).follow, stop, reach))
            if options.dhcp:
                parent = session.link(self.parent_name(network))
                mtu = self.asked_mtu(network) or (parent.mtu if parent else link.mtu)
                keeper = self._keeper(
                    network, endpoint, netns, Attachment(interface=link.name, mac=link.mac, mtu=mtu)
                )  # fmt: skip

                def tell(attachment: Attachment) -> None:
                    if reach:
                        reach(attachment.addresses)
                    changed(attachment)

                tasks.append(partial(keeper.keep, stop, tell))
            together(tasks)


class _Reach:
    """The host's way to one endpoint: set anew when called, from any thread, to addresses or those of before."""

    def __init__(self, access: Access, endpoint: Endpoint) -> None:
        self._access, self._id, self._addresses, self._lock = access, endpoint.id, endpoint.addresses, Lock()

    def __call__(self, addresses: tuple[str, ...] | None = None) -> None:
        with self._lock:
            if addresses is not None:
                self._addresses = addresses
            try:
                self._access.reach(self._id, self._addresses)
            except OSError as error:
                print(f"the host's way to endpoint {self._id[:12]}: {error}", file=sys.stderr, flush=True)


def _families(network: Network, endpoint: Endpoint) -> set[int]:
    """Return the families whose addresses the network's own servers give: 4 by DHCP, 6 by router advertisements."""
    found = {interfaces.family(subnet.pool) for subnet in network.subnets}
    off = "net.ipv6.conf.IFNAME.disable_ipv6=1" in getattr(endpoint.options, "sysctls", ())
    return found - {6} if off else found


def _require_sources(network: Network, sources: dict[str, str]) -> None:
    """Refuse a network on which the host has no address of one of its families."""
    served = {interfaces.family(pool) for pool, speaker in sources.items() if speaker}
    lacking = [pool for pool in sources if interfaces.family(pool) not in served]
    if lacking:
        raise ConfigError(
            f"network {network.name}: host-access needs an address for the host in {', '.join(lacking)}: "
            "reserve one with --aux-address host=ADDRESS"
        )


def _options(network: Network) -> MacvlanOptions:
    return network.options if isinstance(network.options, MacvlanOptions) else MacvlanOptions()
