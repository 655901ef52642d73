"""The kernel's netlink protocol (netlink(7), rtnetlink(7)): just the messages that network drivers send.

Each message is made by a function here, and several are sent by `Session.request`::

    with Session() as session:
        session.request(add_link(name="br0", kind="bridge"), set_alias("br0", "mine"), set_up("br0"))

Several messages go out in one sendmsg(2). The kernel works through them before the call returns, and a signal does
not stop it in between: what must not be separated by SIGKILL, an interface and the alias that says whose it is,
travels together.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator

import msgspec

REQUEST, ACK, DUMP, REPLACE, EXCL, CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
NEWLINK, DELLINK, GETLINK, NEWADDR, DELADDR, GETADDR = 16, 17, 18, 20, 21, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWNEIGH, DELNEIGH, GETNEIGH = 28, 29, 30
NEWNSID, GETNSID = 88, 90
NEWLINKPROP, DELLINKPROP = 108, 109
_ERROR, _DONE = 2, 3
_NESTED = 0x8000
_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _STRICT = 270, 10, 11, 12
_IFF_UP, _IFF_LOWER_UP = 1, 1 << 16
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD, _IFLA_LINK_NETNSID, _IFLA_TARGET_NETNSID = 20, 26, 28, 37, 46
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 52, 53
_NETNSA_NSID, _NETNSA_FD = 1, 3
_INET6_ADDR_GEN_MODE = 8
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA = 1, 2, 4, 5
_BRPORT_MODE, _BRPORT_ISOLATED = 4, 33
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS, _IFA_TARGET_NETNSID, _IFA_PROTO = 1, 2, 4, 8, 10, 11
_IFA_F_NODAD = 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_RT_TABLE_MAIN, _RTPROT_STATIC, _RTN_UNICAST, _RT_SCOPE_LINK = 254, 4, 1, 253
OURS = 0x74
"""IFA_PROTO of the addresses set here (ip-address(8), Linux 5.18): an interface that was adopted keeps its own."""

Message = tuple[int, int, bytes]
"""Type, flags and body."""


class Link(msgspec.Struct, frozen=True):
    """A network interface.

    Attributes:
        kind: "bridge", "veth", "macvlan" ...; empty for a device.
        alias: free text (ip-link(8)).
        master: the index of the bridge it is a port of.
        parent: the index of the interface it is on top of, perhaps in another namespace; a veth's other end.
        parent_namespace: the number of the namespace that is in; -1 is the interface's own.
        data: what its kind says of itself, as attributes (IFLA_INFO_DATA).
        altnames: the other names it goes by (ip-link(8)).
        slave: what its master says of it, as attributes (IFLA_INFO_SLAVE_DATA).
        carrier: whether there is anything at its other end; of a bridge, at any port.
    """

    index: int
    name: str
    up: bool
    kind: str = ""
    alias: str = ""
    master: int = 0
    mtu: int = 0
    mac: str = ""
    parent: int = 0
    parent_namespace: int = -1
    data: bytes = b""
    slave: bytes = b""
    altnames: tuple[str, ...] = ()
    carrier: bool = False

    @property
    def isolated(self) -> bool:
        """Whether this bridge port exchanges no frames with other isolated ones."""
        return attributes(self.slave).get(_BRPORT_ISOLATED) == b"\x01"


class Route(msgspec.Struct, frozen=True):
    """A route: `to` with prefix, the outgoing interface, the next hop; `static` as those that `add_route` makes."""

    to: str
    index: int
    gateway: str | None = None
    static: bool = False
    metric: int = 0


class Session:
    """A netlink socket in the namespace of the thread that made it, wherever it is used later; a context.

    Requests raise `OSError` with the kernel's errno, and with its explanation as the text where it gives one.
    """

    def __init__(self, protocol: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        for option in (_CAP_ACK, _EXT_ACK, _STRICT):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._sequence = 0

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _send(self, messages: tuple[Message, ...]) -> None:
        packed = bytearray()
        for kind, flags, body in messages:
            self._sequence += 1
            packed += struct.pack("=IHHII", 16 + len(body), kind, flags | REQUEST, self._sequence, 0) + body
            packed += bytes(-len(body) % 4)
        if len(packed) > 150_000:
            self._socket.setsockopt(socket.SOL_SOCKET, 32, 2 * len(packed))  # SO_SNDBUFFORCE; 208 KiB by default
            self._socket.setsockopt(socket.SOL_SOCKET, 33, 2 * len(packed))  # SO_RCVBUFFORCE
        self._socket.send(packed)

    def _receive(self, flags: int = 0) -> Iterator[tuple[int, bytes]]:
        data = self._socket.recv(1 << 18, flags)
        offset = 0
        while offset < len(data):
            length, kind = struct.unpack_from("=IH", data, offset)
            yield kind, data[offset + 16 : offset + length]
            offset += length + -length % 4

    def request(self, *messages: Message) -> None:
        """Send the messages as one, and raise the first error among the kernel's answers.

        Those after a refused one are carried out all the same, except in a batch of nftables.
        """
        if not messages:
            return
        self._send(messages)
        failed: OSError | None = None
        try:
            while True:  # every answer is there when send returns: the kernel acknowledges synchronously
                for kind, body in self._receive(socket.MSG_DONTWAIT):
                    code = -struct.unpack_from("=i", body)[0] if kind == _ERROR else 0
                    if code and failed is None:
                        text = attributes(body[20:]).get(1, b"").rstrip(b"\0").decode()
                        failed = OSError(code, text or os.strerror(code))
        except BlockingIOError:
            if failed:
                raise failed from None

    def get(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of the one object that is asked for."""
        self._send(((kind, ACK, body),))
        found = []
        while True:
            for answer, data in self._receive():
                if answer != _ERROR:
                    found.append(data)
                    continue
                code = -struct.unpack_from("=i", data)[0]
                if code:
                    raise OSError(code, os.strerror(code))
                return found

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of all objects that the kernel lists."""
        self._send(((kind, DUMP, body),))
        found: list[bytes] = []
        while True:
            for answer, data in self._receive():
                code = -struct.unpack_from("=i", data)[0] if answer in {_ERROR, _DONE} else 0
                if code > 0:
                    raise OSError(code, os.strerror(code))
                if answer in {_ERROR, _DONE}:
                    return found
                found.append(data)

    def links(self, namespace: int | None = None) -> list[Link]:
        """List the interfaces, of another namespace by its number (`namespace`)."""
        where = b"" if namespace is None else _number(_IFLA_TARGET_NETNSID, namespace)
        return [_link(body) for body in self.dump(GETLINK, _ifinfo() + where)]

    def namespace(self, netns: int, wanted: int = -1) -> int:
        """Return the number that this namespace has for another one, which gets one if it has none.

        It is gone with either of the two.

        Args:
            netns: a descriptor of the other one.
            wanted: the number that it gets, if no other namespace has it.
        """
        body = bytes(4) + struct.pack("=HHI", 8, _NETNSA_FD, netns)
        for number in (wanted, -1):
            try:
                self.request((NEWNSID, ACK, body + _number(_NETNSA_NSID, number)))
            except FileExistsError:
                pass
            (answer,) = self.get(GETNSID, body)
            if (found := _nsid(answer)) >= 0:
                return found
        raise OSError(errno.ENODEV, "the namespace has no number")

    def namespaces(self) -> list[int]:
        """List the numbers of all namespaces that have one here."""
        return [_nsid(body) for body in self.dump(GETNSID, bytes(4))]

    def link(self, name: str = "", *, index: int = 0) -> Link | None:
        """Return the interface of that name, or of that index."""
        self._send(((GETLINK, 0, _ifinfo(index) + (_name(name) if name else b"")),))
        for kind, body in self._receive():
            if kind == NEWLINK:
                return _link(body)
        return None

    def addresses(self, index: int = 0, namespace: int | None = None) -> dict[str, int]:
        """Return the addresses of an interface or of all, "172.18.0.1/16", each with its IFA_PROTO.

        Args:
            namespace: the number of another namespace in which the interface is.
        """
        found = {}
        where = b"" if namespace is None else _number(_IFA_TARGET_NETNSID, namespace)
        for body in self.dump(GETADDR, struct.pack("=BBBBI", 0, 0, 0, 0, index) + where):
            family, prefix, _, _, owner = struct.unpack_from("=BBBBI", body)
            if index in {0, owner}:
                values = attributes(body[8:])
                text = socket.inet_ntop(family, values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b"")))
                found[f"{text}/{prefix}"] = values.get(_IFA_PROTO, b"\0")[0]
        return found

    def routes(self, *, everywhere: bool = False) -> list[Route]:
        """List the routes of the main table; `everywhere`: of all tables, and those that lead nowhere."""
        found = []
        for body in self.dump(GETROUTE, bytes(12)):
            family, bits, _, _, table, protocol, _, kind = struct.unpack_from("=8B", body)
            if everywhere or (table == _RT_TABLE_MAIN and kind == _RTN_UNICAST):
                values = attributes(body[12:])
                packed = values.get(_RTA_DST, bytes(16 if family == socket.AF_INET6 else 4))
                gateway = values.get(_RTA_GATEWAY)
                found.append(
                    Route(
                        to=f"{socket.inet_ntop(family, packed)}/{bits}",
                        index=struct.unpack("=I", values.get(_RTA_OIF, bytes(4)))[0],
                        gateway=socket.inet_ntop(family, gateway) if gateway else None,
                        static=protocol == _RTPROT_STATIC,
                        metric=struct.unpack("=I", values.get(_RTA_PRIORITY, bytes(4)))[0],
                    )
                )
        return found


def attributes(data: bytes) -> dict[int, bytes]:
    """Split a list of attributes; of a repeated one the last counts."""
    return dict(pairs(data))


def pairs(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Split a list of attributes."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += length + -length % 4


def attribute(kind: int, value: bytes) -> bytes:
    """Make an attribute."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    """Make an attribute of attributes."""
    return attribute(kind | _NESTED, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    """Make an attribute of a text."""
    return attribute(kind, value.encode() + b"\0")


def pack_mac(mac: str) -> bytes:
    """Return the six bytes of "02:42:ac:12:00:02"."""
    return bytes.fromhex(mac.replace(":", ""))


def pack_address(address: str) -> tuple[int, bytes]:
    """Return the family and the bytes of an address without prefix."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _ifinfo(index: int = 0, *, up: bool = False) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, int(up), int(up) * _IFF_UP)


def _name(name: str) -> bytes:
    return text(_IFLA_IFNAME, name)


def _link(body: bytes) -> Link:
    index, flags = struct.unpack_from("=iI", body, 4)
    values = attributes(body[16:])
    info = attributes(values.get(_IFLA_LINKINFO, b""))
    return Link(
        index=index,
        name=values[_IFLA_IFNAME].rstrip(b"\0").decode(),
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        kind=info.get(_INFO_KIND, b"").rstrip(b"\0").decode(),
        alias=values.get(_IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        master=struct.unpack("=I", values.get(_IFLA_MASTER, bytes(4)))[0],
        mtu=struct.unpack("=I", values.get(_IFLA_MTU, bytes(4)))[0],
        mac=values.get(_IFLA_ADDRESS, b"").hex(":"),
        parent=struct.unpack("=I", values.get(_IFLA_LINK, bytes(4)))[0],
        parent_namespace=struct.unpack("=i", values.get(_IFLA_LINK_NETNSID, b"\xff" * 4))[0],
        data=info.get(_INFO_DATA, b""),
        slave=info.get(_INFO_SLAVE_DATA, b""),
        altnames=tuple(
            name.rstrip(b"\0").decode(errors="replace")
            for kind, name in pairs(values.get(_IFLA_PROP_LIST, b""))
            if kind == _IFLA_ALT_IFNAME
        ),
    )


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=i", value))


def _nsid(body: bytes) -> int:
    found: int = struct.unpack("=i", attributes(body[4:])[_NETNSA_NSID])[0]
    return found


def add_link(
    *,
    name: str,
    kind: str,
    mac: str = "",
    mtu: int = 0,
    master: int = 0,
    parent: int = 0,
    parent_namespace: int | None = None,
    netns: int | None = None,
    up: bool = False,
    data: bytes = b"",
) -> Message:
    """An interface of any kind.

    Args:
        mac: with its address set, a bridge keeps it when ports come and go.
        master: the index of the bridge it becomes a port of.
        parent: the index of the interface below it.
        parent_namespace: the number of the parent's namespace (`Session.namespace`); None for the session's.
        netns: a descriptor of the namespace in which it is born.
        data: attributes that belong to the kind.
    """
    parts = _name(name)
    if mac:
        parts += attribute(_IFLA_ADDRESS, pack_mac(mac))
    for code, value in ((_IFLA_MTU, mtu), (_IFLA_MASTER, master), (_IFLA_LINK, parent)):
        if value:
            parts += attribute(code, struct.pack("=I", value))
    if parent_namespace is not None:
        parts += _number(_IFLA_LINK_NETNSID, parent_namespace)
    if netns is not None:
        parts += attribute(_IFLA_NET_NS_FD, struct.pack("=I", netns))
    info = nested(_IFLA_LINKINFO, text(_INFO_KIND, kind), nested(_INFO_DATA, data) if data else b"")
    return NEWLINK, ACK | CREATE | EXCL, _ifinfo(up=up) + parts + info


def add_veth(*, name: str, master: int, mtu: int, peer: str, mac: str, netns: int, up: bool = True) -> Message:
    """A pair whose host end is in the bridge, and whose other end is born inside the namespace."""
    inner = _name(peer) + attribute(_IFLA_MTU, struct.pack("=I", mtu)) + attribute(_IFLA_ADDRESS, pack_mac(mac))
    inner += attribute(_IFLA_NET_NS_FD, struct.pack("=I", netns))
    data = attribute(1 | _NESTED, _ifinfo() + inner)
    return add_link(name=name, kind="veth", master=master, mtu=mtu, up=up, data=data)


def set_alias(name: str, alias: str, *, without_ipv6: bool = False) -> Message:
    """Say whose an interface is; it may be told to take no link-local address (addrgenmode none) before it is up."""
    body = _ifinfo() + _name(name) + text(_IFLA_IFALIAS, alias)
    if without_ipv6:
        body += nested(_IFLA_AF_SPEC, nested(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, b"\x01")))
    return NEWLINK, ACK, body


def set_port(name: str, *, hairpin: bool, isolated: bool, up: bool = True) -> Message:
    """Give a bridge port its settings (bridge(8): hairpin, isolated), and set it up."""
    data = attribute(_BRPORT_MODE, bytes([hairpin])) + attribute(_BRPORT_ISOLATED, bytes([isolated]))
    info = nested(_IFLA_LINKINFO, text(_INFO_SLAVE_KIND, "bridge"), nested(_INFO_SLAVE_DATA, data))
    return NEWLINK, ACK, _ifinfo(up=up) + _name(name) + info


def set_up(name: str) -> Message:
    """Set an interface up."""
    return NEWLINK, ACK, _ifinfo(up=True) + _name(name)


def set_mtu(name: str, mtu: int) -> Message:
    """Set the largest packet, in bytes, that an interface takes."""
    return NEWLINK, ACK, _ifinfo() + _name(name) + attribute(_IFLA_MTU, struct.pack("=I", mtu))


def rename(index: int, name: str) -> Message:
    """Give an interface another name (Linux 6.2: while it is up, too)."""
    return NEWLINK, ACK, _ifinfo(index) + _name(name)


def delete_link(name: str) -> Message:
    """Remove an interface, a veth with its other end."""
    return DELLINK, ACK, _ifinfo() + _name(name)


def delete_link_in(namespace: int, index: int) -> Message:
    """Remove an interface of another namespace, by the number that this one has for it."""
    return DELLINK, ACK, _ifinfo(index) + _number(_IFLA_TARGET_NETNSID, namespace)


def add_altname(name: str, other: str) -> Message:
    """Give an interface another name besides (ip-link(8): property add), of up to 127 characters."""
    return (
        NEWLINKPROP,
        ACK | CREATE | EXCL,
        _ifinfo() + _name(name) + nested(_IFLA_PROP_LIST, text(_IFLA_ALT_IFNAME, other)),
    )


def delete_altname(name: str, other: str) -> Message:
    """Take another name away."""
    return DELLINKPROP, ACK, _ifinfo() + _name(name) + nested(_IFLA_PROP_LIST, text(_IFLA_ALT_IFNAME, other))


def _address(index: int, address: str) -> tuple[bytes, int, bytes, int]:
    plain, _, prefix = address.partition("/")
    family, packed = pack_address(plain)
    bits = int(prefix or 8 * len(packed))
    return struct.pack("=BBBBI", family, bits, 0, 0, index), family, packed, bits


def add_address(index: int, address: str) -> Message:
    """An address with prefix; for IPv6 without the second that duplicate address detection takes (RFC 4862)."""
    header, family, packed, bits = _address(index, address)
    body = (
        header + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed) + attribute(_IFA_PROTO, bytes([OURS]))
    )
    if family == socket.AF_INET6:
        body += attribute(_IFA_FLAGS, struct.pack("=I", _IFA_F_NODAD))
    elif bits < 31:
        mask = (1 << 32 - bits) - 1
        body += attribute(_IFA_BROADCAST, (int.from_bytes(packed) | mask).to_bytes(4))
    return NEWADDR, ACK | CREATE | EXCL, body


def delete_address(index: int, address: str) -> Message:
    """Take an address away."""
    header, _, packed, _ = _address(index, address)
    return DELADDR, ACK, header + attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)


def _route(index: int, to: str, gateway: str | None, metric: int = 0, source: str = "") -> bytes:
    plain, _, prefix = to.partition("/")
    family, packed = pack_address(plain)
    bits = int(prefix or 8 * len(packed))
    scope = 0 if gateway or family == socket.AF_INET6 else _RT_SCOPE_LINK
    body = struct.pack("=8BI", family, bits, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _RTN_UNICAST, 0)
    body += attribute(_RTA_OIF, struct.pack("=I", index))
    if bits:
        body += attribute(_RTA_DST, packed)
    if gateway:
        body += attribute(_RTA_GATEWAY, pack_address(gateway)[1])
    if metric:
        body += attribute(_RTA_PRIORITY, struct.pack("=I", metric))
    if source:
        body += attribute(_RTA_PREFSRC, pack_address(source)[1])
    return body


def add_route(
    index: int, to: str, gateway: str | None = None, *, replace: bool = False, metric: int = 0, source: str = ""
) -> Message:
    """A route in the main table to an address or a range ("0.0.0.0/0": the default), by a gateway or on the link.

    Args:
        metric: the lowest of several wins; 0 leaves it to the kernel.
        source: the host's address that packets bear unless their sender chose one.
    """
    body = _route(index, to, gateway, metric, source)
    return NEWROUTE, ACK | CREATE | (REPLACE if replace else EXCL), body


def delete_route(index: int, to: str, gateway: str | None = None, *, metric: int = 0) -> Message:
    """Take a route away."""
    return DELROUTE, ACK, _route(index, to, gateway, metric)
