"""Ethernet frames by hand, as a container with CAP_NET_RAW can send them."""

from __future__ import annotations

import socket
import struct
import time

from transom.contract.network import Endpoint
from transom_conformance.network.site import PATIENCE, plain

NEIGHBOUR_ADVERTISEMENT, ROUTER_ADVERTISEMENT = 136, 134
"""Types of ICMPv6 (RFC 4861, sections 4.4 and 4.2)."""
_ARP, _IPV4, _IPV6, _ALL = 0x0806, 0x0800, 0x86DD, 0x0003


def frames_of(mac: str, endpoint: Endpoint) -> list[bytes]:
    """Return broadcasts that say the endpoint's addresses are at `mac`: by ARP, IPv4, IPv6 and NDP."""
    four, six = plain(endpoint), plain(endpoint, ipv6=True)
    packed = socket.inet_aton(four)
    hardware = _hardware(mac)
    arp = struct.pack("!HHBBH", 1, _IPV4, 6, 4, 1) + hardware + packed + bytes(6) + packed
    datagram = struct.pack("!HHHH", 9, 9, 8, 0)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 0, 0, 64, 17, 0, packed, b"\xff" * 4)
    header = header[:10] + _checksum(header) + header[12:]
    return [
        _frame(mac, _ARP, arp),
        _frame(mac, _IPV4, header + datagram),
        _frame(mac, _IPV6, _ipv6(six, 17, datagram)),
        advertisement(mac, six, six),
    ]


def advertisement(mac: str, source: str, target: str = "::", *, kind: int = NEIGHBOUR_ADVERTISEMENT) -> bytes:
    """Return an advertisement: that `target` is at `mac`, or that a router is."""
    if kind == NEIGHBOUR_ADVERTISEMENT:
        option = struct.pack("!BB", 2, 1) + _hardware(mac)
        body = struct.pack("!BBHI", kind, 0, 0, 0x20000000) + socket.inet_pton(socket.AF_INET6, target) + option
    else:
        body = struct.pack("!BBHBBHII", kind, 0, 0, 64, 0, 1800, 0, 0)
    packed = [socket.inet_pton(socket.AF_INET6, address) for address in (source, "ff02::1")]
    pseudo = b"".join(packed) + struct.pack("!II", len(body), socket.IPPROTO_ICMPV6)
    body = body[:2] + _checksum(pseudo + body) + body[4:]
    return _frame(mac, _IPV6, _ipv6(source, socket.IPPROTO_ICMPV6, body))


def watch(interface: str) -> socket.socket:
    """Open what sees each frame that arrives at an interface of the thread's namespace."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.htons(_ALL))
    sock.bind((interface, _ALL))
    return sock


def send(interface: str, frames: list[bytes]) -> None:
    """Send frames from the thread's namespace, in order."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as sock:
        sock.bind((interface, 0))
        for frame in frames:
            sock.send(frame)


def until(sock: socket.socket, last: list[bytes]) -> set[bytes]:
    """Return the frames that arrive, up to the last of those that must."""
    arrived, deadline = set[bytes](), time.monotonic() + 4 * PATIENCE
    while missing := [frame for frame in last if frame not in arrived]:
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            arrived.add(sock.recv(2048))
        except TimeoutError:
            raise AssertionError(f"frames that bear the container's own addresses got lost: {missing}") from None
    return arrived


def _hardware(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _frame(mac: str, kind: int, body: bytes) -> bytes:
    return b"\xff" * 6 + _hardware(mac) + struct.pack("!H", kind) + body


def _ipv6(source: str, protocol: int, body: bytes) -> bytes:
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, "ff02::1")
    return struct.pack("!IHBB", 6 << 28, len(body), protocol, 255) + ends + body


def _checksum(data: bytes) -> bytes:
    """Return the Internet checksum (RFC 1071)."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)
