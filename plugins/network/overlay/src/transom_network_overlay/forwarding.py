"""What the kernel of one host knows of the endpoints on the others, for one VXLAN device.

For each there is an entry in the device's forwarding table (bridge(8), fdb): its MAC address and the host to send to;
and one for each of its addresses in the neighbour table (ip-neighbour(8)), by which the device answers ARP and
neighbour solicitations itself (``proxy``). Nothing is learned, and what is not known is sent nowhere: there is no
entry for "all".
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable

import msgspec

from transom.services import netlink
from transom.services.interfaces import plain
from transom.services.netlink import DELNEIGH, GETNEIGH, NEWNEIGH, Message, Session, attribute
from transom_network_overlay.store import Peer

_AF_BRIDGE = 7
_NTF_SELF = 2
_NOARP, _PERMANENT = 0x40, 0x80
_DST, _LLADDR, _IFINDEX = 1, 2, 8
_ADD = netlink.ACK | netlink.CREATE | netlink.REPLACE
_AT_ONCE = 256


class Entries(msgspec.Struct, frozen=True):
    """`hosts` by MAC address, `macs` by IP address."""

    hosts: dict[str, str]
    macs: dict[str, str]


def wanted(peers: Iterable[Peer], host: str) -> Entries:
    """Return the entries for the endpoints on other hosts than `host`.

    A record that is newer wins: while an endpoint moves there are two for a moment.
    """
    hosts: dict[str, str] = {}
    macs: dict[str, str] = {}
    for peer in sorted(peers, key=lambda peer: peer.revision):
        here = peer.host == host
        hosts.pop(peer.mac, None)
        if not here:
            hosts[peer.mac] = plain(peer.vtep)
        for address in map(plain, peer.addresses):
            macs.pop(address, None)
            if not here:
                macs[address] = peer.mac
    return Entries(hosts=hosts, macs=macs)


def present(session: Session, index: int) -> Entries:
    """Return the entries that a device has."""
    hosts: dict[str, str] = {}
    macs: dict[str, str] = {}
    for body in session.dump(GETNEIGH, struct.pack("=BxxxiHBB", _AF_BRIDGE, index, 0, 0, 0)):
        owner, values = struct.unpack_from("=i", body, 4)[0], netlink.attributes(body[12:])
        if owner == index and _DST in values:
            hosts[values[_LLADDR].hex(":")] = _text(values[_DST])
    for family in (socket.AF_INET, socket.AF_INET6):
        header = struct.pack("=BxxxiHBB", family, 0, 0, 0, 0)
        for body in session.dump(GETNEIGH, header + attribute(_IFINDEX, struct.pack("=I", index))):
            owner, state = struct.unpack_from("=iH", body, 4)
            values = netlink.attributes(body[12:])
            if owner == index and state & _PERMANENT and _LLADDR in values:
                macs[_text(values[_DST])] = values[_LLADDR].hex(":")
    return Entries(hosts=hosts, macs=macs)


def differences(wanted: Entries, there: Entries) -> list[str]:
    """Describe each entry that is missing, is another one, or is none of ours."""
    said = []
    for mac in sorted(wanted.hosts.keys() | there.hosts):
        if there.hosts.get(mac) != wanted.hosts.get(mac):
            now, due = there.hosts.get(mac, "no host"), wanted.hosts.get(mac, "none")
            said.append(f"what is for {mac} goes to {now}, not to {due}")
    for ip in sorted(wanted.macs.keys() | there.macs):
        if there.macs.get(ip) != wanted.macs.get(ip):
            now, due = there.macs.get(ip, "nobody"), wanted.macs.get(ip, "nobody")
            said.append(f"{ip} is taken for {now}, not for {due}")
    return said


def program(session: Session, index: int, new: Entries, old: Entries) -> int:
    """Turn the device's entries from the old into the new ones; return how many differed.

    A MAC address is known before its IP address is answered for, and forgotten after it.
    """
    steps: list[Message] = []
    steps += [_forget_neighbour(index, ip, mac) for ip, mac in old.macs.items() if ip not in new.macs]
    steps += [_host(NEWNEIGH, _ADD, index, mac, to) for mac, to in new.hosts.items() if old.hosts.get(mac) != to]
    steps += [_neighbour(NEWNEIGH, _ADD, index, ip, mac) for ip, mac in new.macs.items() if old.macs.get(ip) != mac]
    steps += [_host(DELNEIGH, netlink.ACK, index, mac, to) for mac, to in old.hosts.items() if mac not in new.hosts]
    for start in range(0, len(steps), _AT_ONCE):
        try:
            session.request(*steps[start : start + _AT_ONCE])
        except FileNotFoundError:
            continue  # what was to be removed is gone; the others were carried out
    return len(steps)


def _host(kind: int, flags: int, index: int, mac: str, to: str) -> Message:
    header = struct.pack("=BxxxiHBB", _AF_BRIDGE, index, _PERMANENT | _NOARP, _NTF_SELF, 0)
    packed = netlink.pack_address(to)[1]
    return kind, flags, header + attribute(_LLADDR, netlink.pack_mac(mac)) + attribute(_DST, packed)


def _neighbour(kind: int, flags: int, index: int, ip: str, mac: str) -> Message:
    family, packed = netlink.pack_address(ip)
    header = struct.pack("=BxxxiHBB", family, index, _PERMANENT, 0, 0)
    return kind, flags, header + attribute(_DST, packed) + attribute(_LLADDR, netlink.pack_mac(mac))


def _forget_neighbour(index: int, ip: str, mac: str) -> Message:
    return _neighbour(DELNEIGH, netlink.ACK, index, ip, mac)


def _text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
