"""IPv6 addresses by router advertisements (RFC 4862, SLAAC): the kernel's own work, switched on and listened to here.

The kernel makes the address, of the prefix and the interface's MAC address, and the default route, and takes both away
when their time is over. What it leaves to others is asked of the advertisements themselves: name servers and search
domains (RFC 8106).
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable, Iterator

import msgspec

from transom.errors import DriverError
from transom.services.interfaces import ANY, write_setting
from transom.services.netlink import Session
from transom.services.netns import inside
from transom_network_macvlan.access import drain

PATIENCE = 10.0
"""Seconds for which a router is waited for."""
_STEP = 0.05
_SOLICITATION, _ADVERTISEMENT, _ALL_ROUTERS, _HOPS = 133, 134, "ff02::2", 255  # RFC 4861, sections 4.1 and 4.2
_SERVERS, _SEARCH = 25, 31  # RFC 8106, sections 5.1 and 5.2
_MANAGED = 0x80
_ICMP6_FILTER, _IPV6_RECVHOPLIMIT, _IPV6_HOPLIMIT = 1, 51, 52
_TENTATIVE, _DEPRECATED, _GLOBAL = 0x40, 0x20, 0
_RTMGRP_IPV6_IFADDR, _RTMGRP_IPV6_ROUTE = 0x100, 0x400


class Advertised(msgspec.Struct, frozen=True):
    """What an interface has by advertisements.

    Attributes:
        address: with prefix; empty when there is none, or none any more.
        router: its link-local address; empty when none leads out.
    """

    address: str = ""
    router: str = ""
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


class Listener:
    """Listens to routers on one interface, from when it is made until it is closed; a context.

    Args:
        netns: a descriptor of the container's namespace.
    """

    def __init__(self, *, netns: int, interface: str) -> None:
        self._netns, self._interface = netns, interface
        self._said: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
        self._managed = False
        self._socket = inside(netns, self._open)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _open(self) -> socket.socket:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        sock = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
        blocked = bytearray(b"\xff" * 32)  # RFC 3542, section 3.2
        blocked[_ADVERTISEMENT // 32 * 4 : _ADVERTISEMENT // 32 * 4 + 4] = struct.pack(
            "=I", 0xFFFFFFFF ^ 1 << _ADVERTISEMENT % 32
        )
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVHOPLIMIT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode())
        return sock

    def obtain(self) -> Advertised:
        """Have the kernel heed advertisements, and wait for an address.

        Raises:
            DriverError: no router gives one.
        """
        inside(self._netns, heed_routers, self._interface)
        deadline, asked = time.monotonic() + PATIENCE, False
        while not self._state().address:
            if time.monotonic() > deadline:
                raise DriverError(
                    "slaac", driver="network macvlan", subject=self._interface, cause=self._complaint(),
                    hint="leave out --ipv6, or have a router on the network of the parent advertise one",
                )  # fmt: skip
            asked = asked or self._solicit()
            select.select([self._socket], [], [], _STEP)
            self._listen()
        self._listen()  # to what the address is of
        return self._state()

    def _complaint(self) -> str:
        if self._managed:
            return "the router says that IPv6 addresses come by DHCPv6, which is not asked"
        if self._said:
            return "the router advertises no prefix for addresses"
        return f"no router has advertised an IPv6 prefix in {PATIENCE:g} seconds"

    def follow(self, stop: int, heed: Callable[[Advertised], None]) -> None:
        """Tell `heed` what the interface has, whenever that changes, until `stop` is readable."""
        inside(self._netns, self._follow, stop, heed)

    def _follow(self, stop: int, heed: Callable[[Advertised], None]) -> None:
        last, asked = None, False
        with _news() as news:
            while True:
                watched = [stop, news.fileno(), self._socket.fileno()]
                if stop in select.select(watched, [], [], None if asked else _STEP)[0]:
                    return
                drain(news)
                self._listen()
                asked = asked or self._solicit()
                found = self._state()
                if found != last and (self._said or not found.address):  # else nothing is known of name servers yet
                    last = found
                    heed(found)

    def _solicit(self) -> bool:
        """Ask routers to speak; False while the interface has no address to ask from."""
        try:
            index = inside(self._netns, socket.if_nametoindex, self._interface)
            self._socket.sendto(struct.pack("!BBHI", _SOLICITATION, 0, 0, 0), (_ALL_ROUTERS, 0, 0, index))
        except OSError:
            return False
        return True

    def _listen(self) -> None:
        """Take in what routers have said; only a neighbour's word has come with all its hops left (RFC 4861, 6.1.2)."""
        while True:
            try:
                data, extra, _, sender = self._socket.recvmsg(65536, socket.CMSG_SPACE(4))
            except OSError:
                return  # nothing more, or the interface is gone
            hops = next((struct.unpack("=i", v)[0] for _, kind, v in extra if kind == _IPV6_HOPLIMIT), 0)
            if hops == _HOPS and len(data) >= 16 and sender[0].startswith("fe80:"):
                self._managed = bool(data[5] & _MANAGED)
                self._said[sender[0].partition("%")[0]] = servers(data), search(data)

    def _state(self) -> Advertised:
        address, routers = inside(self._netns, self._ask_kernel)
        if not address:
            return Advertised()
        said = list(self._said.values())
        return Advertised(
            address=address,
            router=next(iter(routers), ""),
            dns=tuple(dict.fromkeys(server for dns, _ in said for server in dns)),
            search=tuple(dict.fromkeys(domain for _, domains in said for domain in domains)),
        )

    def _ask_kernel(self) -> tuple[str, list[str]]:
        with Session() as session:
            link = session.link(self._interface)
            routes = session.routes() if link else []
            routers = [r.gateway for r in routes if link and r.index == link.index and r.to == ANY[6] and r.gateway]
        return next(_global_addresses(self._interface), ""), routers


def heed_routers(interface: str) -> None:
    """Have the thread's namespace take addresses for the interface from routers, at once (ip-sysctl).

    Duplicate address detection would take two seconds. The MAC address, of which the addresses are made, is ours.
    """
    for key, value in (("accept_dad", "0"), ("accept_ra", "2"), ("autoconf", "1"), ("disable_ipv6", "0")):
        write_setting(f"ipv6/conf/{interface}/{key}", value)


def _global_addresses(interface: str) -> Iterator[str]:
    """Yield the addresses that can be used, the longest-lived sort first (proc(5), if_inet6)."""
    with open("/proc/thread-self/net/if_inet6") as file:
        rows = [line.split() for line in file]
    for packed, _, prefix, scope, flags, name in rows:
        if name == interface and int(scope, 16) == _GLOBAL and not int(flags, 16) & (_TENTATIVE | _DEPRECATED):
            yield f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(packed))}/{int(prefix, 16)}"


def _news() -> socket.socket:
    """Open what becomes readable when addresses or routes of the thread's namespace change (rtnetlink(7))."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    sock.bind((0, _RTMGRP_IPV6_IFADDR | _RTMGRP_IPV6_ROUTE))
    return sock


def _options(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield kind and body of an advertisement's options (RFC 4861, section 4.6)."""
    offset = 16
    while offset + 2 <= len(data):
        kind, length = data[offset], 8 * data[offset + 1]
        if length == 0 or offset + length > len(data):
            return
        yield kind, data[offset + 2 : offset + length]
        offset += length


def servers(data: bytes) -> tuple[str, ...]:
    """Return the name servers of an advertisement; those whose lifetime is over are none."""
    found: list[str] = []
    for kind, body in _options(data):
        if kind == _SERVERS and len(body) >= 22 and any(body[2:6]):
            packed = body[6:]
            found += [socket.inet_ntop(socket.AF_INET6, packed[at : at + 16]) for at in range(0, len(packed) - 15, 16)]
    return tuple(server for server in found if not server.startswith("fe80:"))  # which would need an interface's name


def search(data: bytes) -> tuple[str, ...]:
    """Return the search domains of an advertisement, in the notation of resolv.conf(5)."""
    found: list[str] = []
    for kind, body in _options(data):
        if kind == _SEARCH and any(body[2:6]):
            labels: list[str] = []
            rest = body[6:]
            while rest:
                size, label, rest = rest[0], rest[1 : 1 + rest[0]], rest[1 + rest[0] :]
                if size:
                    labels.append(label.decode("ascii", "replace"))
                elif labels:
                    found.append(".".join(labels))
                    labels = []
    return tuple(name for name in found if all(c.isalnum() or c in "-._" for c in name))
