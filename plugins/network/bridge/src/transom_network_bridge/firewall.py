"""The driver's one nftables table, ``inet transom``.

Its rules never change: they look things up in sets and maps, and each network and each published port is an element
there (nft(8), SETS and MAPS). So the cost of a port does not grow with the number of ports, rules cannot shadow each
other, and no other table is touched. Every element carries a comment that says whose it is: the kernel is the only
record.

The rules are loaded by the program ``nft``, once, and again, in one transaction that leaves the elements alone, when
they are another version's or were tampered with. Elements are written and read by netlink directly, a batch being one
transaction.
"""

from __future__ import annotations

import errno
import re
import socket
import struct
import zlib

import msgspec

from transom.services.netlink import (
    ACK,
    CREATE,
    EXCL,
    Message,
    Session,
    attribute,
    attributes,
    nested,
    pairs,
    text,
)

TABLE = "transom"
PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

RULES = """
table inet transom {
  set bridges { type ifname; comment "all bridges of networks"; }
  set natted4 { type ifname; comment "whose way out is masqueraded"; }
  set natted6 { type ifname; }
  map source4 { type ifname : ipv4_addr; comment "what address the way out bears instead"; }
  map source6 { type ifname : ipv6_addr; }
  set direct4 { type ifname; comment "whose endpoints are reached at any port, by who has a route"; }
  set direct6 { type ifname; }
  set routed4 { type ifname; comment "whose endpoints are reached at published ports, by who has a route"; }
  set routed6 { type ifname; }
  set trusted { type ifname . ifname; comment "interfaces of the host that reach all of a bridge"; }
  set internal { type ifname; comment "that have no way out"; }
  set isolated { type ifname; comment "whose endpoints do not reach each other"; }
  set loops { type ifname . ifname; comment "each bridge with itself"; }
  set forwarding { type nf_proto; comment "what the driver switched on"; }
  set hairpin4 { type ipv4_addr . ipv4_addr; comment "published endpoints, each with itself"; }
  set hairpin6 { type ipv6_addr . ipv6_addr; }
  map ports4 { type inet_proto . ipv4_addr . inet_service : ipv4_addr . inet_service; }
  map ports6 { type inet_proto . ipv6_addr . inet_service : ipv6_addr . inet_service; }
  map any4 { type inet_proto . inet_service : ipv4_addr . inet_service; }
  map any6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
  set loopback6 { type inet_proto . inet_service; comment "ports published at ::1, among others"; }
  set open4 { type ipv4_addr . inet_proto . inet_service; comment "published ports of routed endpoints"; }
  set open6 { type ipv6_addr . inet_proto . inet_service; }

  # 127.0.0.0/8 is routable through our bridges (route_localnet) for the sake of ports published there: keep
  # containers out of it.
  chain martians {
    type filter hook prerouting priority raw; policy accept;
    iifname @bridges ip daddr 127.0.0.0/8 drop
  }

  chain published {
    dnat ip to meta l4proto . ip daddr . th dport map @ports4
    dnat ip to meta l4proto . th dport map @any4
    dnat ip6 to meta l4proto . ip6 daddr . th dport map @ports6
    dnat ip6 to meta l4proto . th dport map @any6
  }

  # The kernel takes no packet that bears ::1 from a bridge, not even an answer that was translated back to it. So who
  # asks at ::1 does it as an address of the bridge, for which ::1 is put back when the answer has passed translation.
  # The two addresses have one checksum: whatever was computed of a packet stays true.
  chain loopback {
    type filter hook output priority raw; policy accept;
    ip6 saddr ::1 ip6 daddr ::1 meta l4proto . th dport @loopback6 ip6 saddr set fe80::180
  }

  chain loopback_answers {
    type filter hook input priority 150; policy accept;
    iifname @bridges ip6 saddr ::1 ip6 daddr fe80::180 jump to_loopback
  }

  chain to_loopback {
    ip6 daddr set ::1
    icmpv6 type { destination-unreachable, packet-too-big, time-exceeded } @th,128,128 set 1
  }

  # A neighbour could address a loopback itself: translated here it would get past the kernel's check of martians, which
  # for ::1 comes earlier, but not where br_netfilter lets frames inside a bridge pass here.
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    ip daddr 127.0.0.0/8 return
    ip6 daddr ::1 return
    fib daddr type local jump published
  }

  chain output {
    type nat hook output priority -100; policy accept;
    ip6 saddr ::1 return
    fib daddr type local jump published
  }

  # Endpoints answer a neighbour directly, past the translation, unless the neighbour appears as the bridge. Where
  # bridge-nf-call-iptables is on, frames inside a bridge come by too, without iifname: only "itself" is left then.
  chain postrouting {
    type nat hook postrouting priority srcnat; policy accept;
    iifname . oifname @loops ct status dnat masquerade
    ip saddr . ip daddr @hairpin4 ct status dnat masquerade
    ip6 saddr . ip6 daddr @hairpin6 ct status dnat masquerade
    ip saddr 127.0.0.0/8 oifname @bridges masquerade
    ip6 saddr fe80::180 oifname @bridges masquerade
    oifname @bridges return
    meta nfproto ipv4 iifname @natted4 snat ip to iifname map @source4
    meta nfproto ipv6 iifname @natted6 snat ip6 to iifname map @source6
    meta nfproto ipv4 iifname @natted4 masquerade
    meta nfproto ipv6 iifname @natted6 masquerade
  }

  chain input {
    type filter hook input priority filter; policy accept;
    iifname @internal jump from_internal
  }

  chain from_internal {
    ct state established,related accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    drop
  }

  chain forward {
    type filter hook forward priority filter; policy accept;
    iifname . oifname @loops jump same_bridge
    iifname @internal drop
    oifname @internal drop
    oifname @bridges jump incoming
  }

  # Who answers at a published port has to find the neighbour that asked, as ARP does without coming by here.
  chain same_bridge {
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
    iifname @isolated jump incoming
    accept
  }

  chain incoming {
    ct state established,related accept
    ct status dnat accept
    ip daddr . meta l4proto . th dport @open4 accept
    ip6 daddr . meta l4proto . th dport @open6 accept
    iifname . oifname @trusted accept
    iifname @bridges drop
    meta nfproto ipv4 oifname @direct4 accept
    meta nfproto ipv6 oifname @direct6 accept
    meta l4proto icmp oifname @routed4 accept
    meta l4proto icmpv6 oifname @routed6 accept
    drop
  }
}
"""

_NETFILTER = 12
_NFTABLES = 10 << 8
_GETTABLE, _DELTABLE, _GETRULE, _GETSET, _NEWSETELEM, _GETSETELEM, _DELSETELEM = 1, 2, 7, 10, 12, 13, 14
_BATCH_BEGIN, _BATCH_END = 16, 17
_INET = 1
_RULE_CHAIN = 2
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _KEY, _DATA, _USERDATA, _VALUE = 1, 2, 3, 1, 2, 6, 1
_CONNTRACK, _CT_GET, _CT_DELETE = 1 << 8, 1, 2
_CT_ORIGINAL, _CT_PROTOCOL, _CT_NUMBER, _CT_DESTINATION_PORT, _CT_ID = 1, 2, 1, 3, 12
_PER_MESSAGE = 200  # an attribute's length is a 16-bit number

PORT_MAPS = ("ports4", "ports6", "any4", "any6")
ENDPOINT_SETS = (*PORT_MAPS, "loopback6", "open4", "open6", "hairpin4", "hairpin6")


class Element(msgspec.Struct, frozen=True):
    """An element of a set or map, in the kernel's byte order; `comment` starts with whose it is."""

    set: str
    key: bytes
    data: bytes = b""
    comment: str = ""


class Rules:
    """What a table consists of besides its elements: its family, its sets and maps, and its rules.

    Args:
        number: the family's (NFPROTO_INET ...).
        word: what nft(8) calls it.
        text: the table as nft(8) reads it, each set and chain indented by two.
    """

    def __init__(self, *, number: int, word: str, text: str) -> None:
        self.number, self.word, self.text = number, word, text
        self.sets = tuple(re.findall(r"^  (?:set|map) (\w+)", text, re.MULTILINE))
        self.chains = {
            name: sum(1 for line in body.splitlines() if line.strip() and not line.strip().startswith("type "))
            for name, body in re.findall(r"^  chain (\w+) \{(.*?)^  \}", text, re.MULTILINE | re.DOTALL)
        }
        """How many rules each chain has."""
        self.version = f"rules_{zlib.crc32(text.encode()):08x}"
        """The name of an empty set that says which rules are loaded."""


INET_RULES = Rules(number=_INET, word="inet", text=RULES)


class Firewall:
    """The table, in the namespace of the calling thread. All errors are `OSError`.

    Callers that change anything hold the driver's lock.
    """

    rules = INET_RULES

    def exists(self) -> bool:
        """Say whether the table is there."""
        with Session(_NETFILTER) as session:
            try:
                session.request((_NFTABLES | _GETTABLE, ACK, self._header() + text(1, TABLE)))
            except FileNotFoundError:
                return False
        return True

    def current(self) -> bool:
        """Say whether the table has the rules of this version."""
        with Session(_NETFILTER) as session:
            try:
                session.request(
                    (_NFTABLES | _GETSET, ACK, self._header() + text(1, TABLE) + text(2, self.rules.version))
                )
            except FileNotFoundError:
                return False
        return True

    def tampered(self) -> list[str]:
        """Name the chains that have lost rules or got others since they were loaded."""
        counts = dict.fromkeys(self.rules.chains, 0)
        with Session(_NETFILTER) as session:
            for body in session.dump(_NFTABLES | _GETRULE, self._header() + text(1, TABLE)):
                chain = next((value for kind, value in pairs(body[4:]) if kind == _RULE_CHAIN), b"")
                name = chain.rstrip(b"\0").decode()
                counts[name] = counts.get(name, 0) + 1
        return [name for name, count in counts.items() if self.rules.chains.get(name) != count]

    def load(self, *, anew: bool = False) -> None:
        """Load the rules, in one transaction that keeps all elements; nothing happens when they are there.

        Args:
            anew: they may have been tampered with.
        """
        if anew or not self.current():
            from subprocess import run

            table = f"table {self.rules.word} {TABLE}"
            marked = self.rules.text.replace(
                f"{table} {{", f"{table} {{\n  set {self.rules.version} {{ type mark; }}", 1
            )
            script = f"add {table}\nflush {table}\n{marked}"
            done = run(["nft", "-f", "-"], input=script, text=True, capture_output=True, check=False)
            if done.returncode:
                raise OSError(errno.EIO, (done.stderr.strip() or "nft failed").splitlines()[0])

    def remove(self) -> None:
        """Remove the table with everything in it. Absent is success."""
        try:
            self._batch((_NFTABLES | _DELTABLE, ACK, self._header() + text(1, TABLE)))
        except FileNotFoundError:
            pass

    def elements(self, *sets: str, owner: str = "") -> list[Element]:
        """List the elements of the named sets, by default of all, or only of `owner`; none without the table."""
        found, words = [], owner.split(" ")
        with Session(_NETFILTER) as session:
            for name in sets or self.rules.sets:
                body = self._header() + text(_LIST_TABLE, TABLE) + text(_LIST_SET, name)
                try:
                    dumped = session.dump(_NFTABLES | _GETSETELEM, body)
                except FileNotFoundError:
                    continue
                for data in dumped:
                    if owner.encode() in data:  # thousands of others are not taken apart
                        found += _parse(name, data, owner.encode())
        return [e for e in found if not owner or e.comment.split(" ")[:2] == words]

    def get(self, elements: list[Element]) -> list[Element]:
        """Return those elements that are there, whatever they hold now: looked up by key, however many there are."""
        found = []
        with Session(_NETFILTER) as session:
            for element in elements:
                body = self._header() + text(_LIST_TABLE, TABLE) + text(_LIST_SET, element.set)
                key = nested(1, nested(_KEY, attribute(_VALUE, element.key)))
                try:
                    answers = session.get(_NFTABLES | _GETSETELEM, body + nested(_LIST_ELEMENTS, key))
                except FileNotFoundError:
                    continue
                for data in answers:
                    found += _parse(element.set, data)
        return found

    def change(self, *, add: list[Element], remove: list[Element]) -> None:
        """Make the change in one transaction.

        Raises:
            FileExistsError: one of the new elements is there already.
        """
        messages = [*self._changes(_DELSETELEM, ACK, remove), *self._changes(_NEWSETELEM, ACK | CREATE | EXCL, add)]
        if messages:
            self._batch(*messages)
        flows = {published(element) for element in (*add, *remove) if element.set in PORT_MAPS}
        _forget_flows({(protocol, port) for protocol, _, port in flows if protocol != "tcp"})

    def _batch(self, *messages: Message) -> None:
        frame = struct.pack("=BB", 0, 0) + struct.pack("!H", 10)
        with Session(_NETFILTER) as session:
            session.request((_BATCH_BEGIN, 0, frame), *messages, (_BATCH_END, 0, frame))

    def _header(self) -> bytes:
        return struct.pack("=BBH", self.rules.number, 0, 0)

    def _changes(self, kind: int, flags: int, elements: list[Element]) -> list[Message]:
        messages = []
        for name in self.rules.sets:
            members = [element for element in elements if element.set == name]
            for start in range(0, len(members), _PER_MESSAGE):
                part = b"".join(_pack(element) for element in members[start : start + _PER_MESSAGE])
                body = self._header() + text(_LIST_TABLE, TABLE) + text(_LIST_SET, name) + nested(_LIST_ELEMENTS, part)
                messages.append((_NFTABLES | kind, flags, body))
        return messages


def _forget_flows(ports: set[tuple[str, int]]) -> None:
    """Let the kernel decide anew where packets to these host ports go (conntrack, nf_conntrack_netlink).

    It asks the table only for the first packet of a flow. A client that keeps sending would go on reaching a
    container that is gone, or nobody.
    """
    keys = {(PROTOCOLS[protocol], struct.pack("!H", port)) for protocol, port in ports}
    if not keys:
        return
    with Session(_NETFILTER) as session:
        try:
            bodies = session.dump(_CONNTRACK | _CT_GET, bytes(4))
        except OSError:
            return  # a kernel without CONFIG_NF_CT_NETLINK; flows end by themselves after 30 s of silence
        for body in bodies:
            values = attributes(body[4:])
            flow = attributes(attributes(values[_CT_ORIGINAL])[_CT_PROTOCOL])
            if (flow[_CT_NUMBER][0], flow.get(_CT_DESTINATION_PORT, b"")) in keys:
                original = nested(_CT_ORIGINAL, values[_CT_ORIGINAL]) + attribute(_CT_ID, values[_CT_ID])
                try:
                    session.request((_CONNTRACK | _CT_DELETE, ACK, body[:4] + original))
                except FileNotFoundError:
                    continue  # it ended by itself


def _pack(element: Element) -> bytes:
    body = nested(_KEY, attribute(_VALUE, element.key))
    if element.data:
        body += nested(_DATA, attribute(_VALUE, element.data))
    if element.comment:
        note = element.comment.encode() + b"\0"
        body += attribute(_USERDATA, bytes([0, len(note)]) + note)  # libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT
    return nested(1, body)


def _parse(name: str, body: bytes, owner: bytes = b"") -> list[Element]:
    found = []
    listed = attributes(body[4:]).get(_LIST_ELEMENTS, b"")
    offset = 0
    while offset < len(listed):
        length = struct.unpack_from("=H", listed, offset)[0]
        element = listed[offset + 4 : offset + length]
        offset += length + -length % 4
        if owner not in element:
            continue
        values = attributes(element)
        note = values.get(_USERDATA, b"")
        found.append(
            Element(
                set=name,
                key=attributes(values[_KEY]).get(_VALUE, b""),
                data=attributes(values.get(_DATA, b"")).get(_VALUE, b""),
                comment=note[2 : 2 + note[1]].rstrip(b"\0").decode(errors="replace") if note[:1] == b"\0" else "",
            )
        )
    return found


def pack_name(name: str) -> bytes:
    """An interface name as a key."""
    return name.encode().ljust(16, b"\0")


def pack_port(port: int) -> bytes:
    """A port as a part of a key, which are multiples of four bytes long."""
    return struct.pack("!Hxx", port)


def pack_protocol(protocol: str) -> bytes:
    """A protocol's number as a part of a key."""
    return struct.pack("Bxxx", PROTOCOLS[protocol])


def published(element: Element) -> tuple[str, str, int]:
    """Return protocol, host address and host port of an element of a map of ports."""
    protocol = {number: word for word, number in PROTOCOLS.items()}[element.key[0]]
    address = element.key[4:-4]
    if not address:
        return protocol, "0.0.0.0" if element.set == "any4" else "::", struct.unpack_from("!H", element.key, 4)[0]
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    return protocol, socket.inet_ntop(family, address), struct.unpack_from("!H", element.key, len(element.key) - 4)[0]
