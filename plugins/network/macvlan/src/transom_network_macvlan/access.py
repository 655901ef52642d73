"""The host's access to its own containers.

The kernel lets no frame pass between a parent and its children. With ``host-access`` the host gets a child of its own,
and a route to each container by it, whose metric is taken from the endpoint's id: so it is found again by the id alone.

The host speaks from the address that is reserved for it (``--aux-address host=...``), or from one that the parent has
beside the container's. An IPv6 neighbour asks for the interface that has the address, so the host's child has that one
too. Where the parent's addresses change the routes do: `Access.follow`.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Iterable
from contextlib import suppress

from transom.contract.network import Network
from transom.services import interfaces, netlink
from transom.services.netlink import Link, Route, Session

HOST = "host"
"""The name of the reserved address that the host has on the network."""
_RTMGRP_LINK, _RTMGRP_IPV4_IFADDR, _RTMGRP_IPV6_IFADDR = 0x1, 0x10, 0x100


class Access:
    """The host's side of one network; `session` is in the host's namespace."""

    def __init__(self, session: Session, network: Network, parent: str) -> None:
        self._session, self._network, self._parent = session, network, parent
        self.name = f"mh-{network.id[:12]}"

    def sources(self) -> dict[str, str]:
        """Return for each subnet the host's address in it, empty where it has none."""
        own = self._parents_addresses()
        return {subnet.pool: source(self._network, subnet.pool, own) for subnet in self._network.subnets}

    def reserved(self) -> set[str]:
        """Return the addresses that are reserved for the host, each as a range of its own."""
        return {whole(subnet.reserved[HOST]) for subnet in self._network.subnets if HOST in subnet.reserved}

    def routes(self, addresses: Iterable[str]) -> dict[str, str]:
        """Return the ranges that the host must reach by its child, each with the address that it speaks from."""
        own = self._parents_addresses()
        found = {whole(address): source(self._network, address, own) for address in addresses}
        return {to: speaker for to, speaker in found.items() if speaker}

    def _parents_addresses(self) -> list[str]:
        parent = self._session.link(self._parent)
        return [*self._session.addresses(parent.index)] if parent else []

    def reach(self, endpoint: str, addresses: Iterable[str]) -> None:
        """Have the host reach an endpoint at these addresses, and at no others."""
        link = self._session.link(self.name)
        if link is None:
            raise OSError(errno.ENODEV, f"the host's interface {self.name} is gone")
        wanted, number = self.routes(addresses), metric(endpoint)
        unroute(self._session, lambda route: route.metric == number and route.to not in wanted)
        present = {address.partition("/")[0] for address in self._session.addresses(link.index)}
        for to, speaker in wanted.items():
            if ":" in to and speaker not in present:
                with suppress(FileExistsError):  # another container's supervisor was faster
                    self._session.request(netlink.add_address(link.index, whole(speaker)))
            self._session.request(netlink.add_route(link.index, to, metric=number, source=speaker, replace=True))

    def _forget_addresses(self) -> None:
        """Take from the host's child what neither is reserved nor the parent has any more."""
        link = self._session.link(self.name)
        kept = self.reserved() | {whole(address) for address in self._parents_addresses()}
        for address in self._session.addresses(link.index) if link else ():
            if link and address.endswith("/128") and address not in kept:
                with suppress(OSError):
                    self._session.request(netlink.delete_address(link.index, address))

    def follow(self, stop: int, again: Callable[[], None]) -> None:
        """Call `again` whenever the parent's addresses have changed, and at first, until `stop` is readable."""
        groups = _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_NETLINK, kind, 0) as news:
            news.bind((0, groups))
            before: list[str] | None = None  # they may have changed since the endpoint was attached
            while True:
                if (now := self._parents_addresses()) != before:
                    before = now
                    self._forget_addresses()
                    again()
                if stop in select.select([stop, news.fileno()], [], [])[0]:
                    return
                drain(news)


def is_host_end(link: Link) -> bool:
    """Say whether an interface is the host's child on a network."""
    return link.kind == "macvlan" and link.name.startswith("mh-") and link.alias.startswith("transom-macvlan ")


def unroute(session: Session, unwanted: Callable[[Route], bool]) -> int:
    """Remove routes by the host's children; return how many."""
    ours = {link.index for link in session.links() if is_host_end(link)}
    found = [route for route in session.routes() if route.index in ours and route.metric and unwanted(route)]
    for route in found:
        with suppress(ProcessLookupError):  # gone by itself
            session.request(netlink.delete_route(route.index, route.to, metric=route.metric))
    return len(found)


def metric(endpoint: str) -> int:
    """Return the metric of routes to an endpoint."""
    return int(endpoint[:8], 16) or 1


def whole(address: str) -> str:
    """Return a range of one address, in the kernel's spelling."""
    text = interfaces.plain(address)
    return f"{text}/{128 if ':' in text else 32}"


def source(network: Network, address: str, own: Iterable[str]) -> str:
    """Return the host's address towards one of the network: the reserved one, or one of the parent's beside it."""
    from ipaddress import ip_interface

    target = ip_interface(address)
    for subnet in network.subnets:
        if HOST in subnet.reserved and interfaces.family(subnet.pool) == target.version:
            return interfaces.plain(subnet.reserved[HOST])
    for text in own:
        if interfaces.family(text) == target.version and ip_interface(text).ip in target.network:
            return interfaces.plain(text)
    return ""


def drain(news: socket.socket) -> None:
    """Read what a netlink socket has to say away: that something has changed is all that counts."""
    while True:
        try:
            news.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            continue  # ENOBUFS: more than it could hold
