"""Address management: which subnets networks have, and which addresses of them endpoints have.

One small SQLite database for the host. Every change is one transaction that takes the write lock before it reads,
so no address is given out twice, whatever number of processes ask and wherever one of them is killed.

Addresses go round: the next one given is the first free one after the last one given, so that what was just
released rests as long as possible. A neighbour's cache and a client's connection get no stranger for an answer.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import msgspec

from transom.contract.network import Endpoint, Network, Subnet
from transom.errors import ConfigError, Conflict

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network
    from sqlite3 import Connection

    Block = IPv4Network | IPv6Network

_DOCKERS = (*((f"172.{second}.0.0/16", 16) for second in range(17, 32)), ("192.168.0.0/16", 20))
DEFAULT_POOLS = (*_DOCKERS, ("10.128.0.0/9", 24))
"""Docker's, 172.17.0.0/16 to 172.31.0.0/16, then /20 parts of 192.168.0.0/16; and after these 31 some 30,000 more."""

GATEWAY, RESERVED = "@gateway", "@reserved "
"""Owners of the addresses that no endpoint gets; the latter with the name that the user gave the address."""

# Addresses are in network order, so that they sort as numbers. `low` and `high` bound what a host may have,
# `first` and `last` what is given without being asked for.
_SCHEMA = """
CREATE TABLE pools (
    network TEXT NOT NULL, name TEXT NOT NULL, pool TEXT NOT NULL, low BLOB NOT NULL, high BLOB NOT NULL,
    first BLOB NOT NULL, last BLOB NOT NULL, cursor BLOB, PRIMARY KEY (network, pool)) WITHOUT ROWID;
CREATE TABLE leases (
    network TEXT NOT NULL, address BLOB NOT NULL, owner TEXT NOT NULL,
    PRIMARY KEY (network, address)) WITHOUT ROWID;
CREATE INDEX leases_by_owner ON leases (network, owner);
"""


class _Pool(msgspec.Struct, frozen=True):
    text: str
    low: bytes
    high: bytes
    first: bytes
    last: bytes
    cursor: bytes | None

    def __contains__(self, address: bytes) -> bool:
        return len(address) == len(self.low) and self.low <= address <= self.high


class Ipam:
    """The address management of a host. Close it before fork(2): a database connection must not cross it.

    Args:
        path: the database; made when missing, in a directory that exists.
        pools: where networks without a subnet get theirs from: each with the prefix length of its parts.
    """

    def __init__(self, path: str | os.PathLike[str], *, pools: Iterable[tuple[str, int]] = DEFAULT_POOLS) -> None:
        self._path, self._pools = os.fspath(path), tuple(pools)
        self._open: Connection | None = None

    def close(self) -> None:
        """Close the database. Closing twice is harmless."""
        if self._open:
            from transom.services.database import close

            close(self._open, self._path)
            self._open = None

    def settle(self, network: Network, *, ipv4: bool = True, ipv6: bool = False) -> Network:
        """Give the network its subnets, record them, and return it with them.

        With `ipv4`, one that names no IPv4 subnet gets the first part of the default pools that overlaps no other
        network and no route of the host; with `ipv6`, one that names no IPv6 subnet does, too, or gets a random /64
        for local use (RFC 4193) where none of the pools is of IPv6. A subnet without gateway gets its lowest address
        as one. Idempotent.

        Raises:
            ConfigError: a subnet, gateway, range or reserved address that makes no sense.
            Conflict: a subnet overlaps that of another network; no part of the default pools is free; other
                subnets were recorded for the network, and endpoints have addresses of them.
        """
        with self._transaction() as db:
            rows = db.execute("SELECT name, pool FROM pools WHERE network != ?", (network.id,))
            used = [(f"network {name}", parse_subnet(pool)) for name, pool in rows]
            recorded = [pool for (pool,) in db.execute("SELECT pool FROM pools WHERE network = ?", (network.id,))]
            subnets = [checked(subnet) for subnet in network.subnets]
            versions = {":" in subnet.pool for subnet in subnets}
            for wanted, six in ((ipv4, False), (ipv6, True)):
                if wanted and six not in versions:
                    mine = next((pool for pool in recorded if (":" in pool) == six), None)
                    pool = mine or self._free_part(6 if six else 4, used)
                    subnets.insert(len(subnets) if six else 0, checked(Subnet(pool=pool)))
            for number, subnet in enumerate(subnets):
                block = parse_subnet(subnet.pool)
                own = [("the same network", parse_subnet(other.pool)) for other in subnets[:number]]
                for holder, other in used + own:
                    if overlap(block, other):
                        raise Conflict(f"subnet {block} overlaps {other} of {holder}; choose another one")
            settled = msgspec.structs.replace(network, subnets=tuple(subnets))
            if set(recorded) != {subnet.pool for subnet in subnets}:
                _record(db, settled)
        return settled

    def forget(self, network: Network) -> None:
        """Give the network's subnets and all of their addresses back. Unknown is success."""
        with self._transaction() as db:
            _forget(db, network.id)

    def allocate(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Give the endpoint an address of each family that the network has, and return it with them.

        Families of which `network` names no subnet are left out, if it names any: the container is without them.
        Addresses already in it were asked for. Idempotent for one endpoint.

        Raises:
            ConfigError: an asked address is none, is outside the network's subnets, or no host may have it.
            Conflict: an asked address is taken; a family has no free address.
        """
        asked = {len(packed): packed for packed in map(_packed, endpoint.addresses)}
        with self._transaction() as db:
            query = "SELECT pool, low, high, first, last, cursor FROM pools WHERE network = ?"
            pools = [_Pool(*row) for row in db.execute(query, (network.id,))]
            if families := {":" in subnet.pool for subnet in network.subnets}:
                pools = [pool for pool in pools if (":" in pool.text) in families]
            for packed in asked.values():
                if not any(packed in pool for pool in pools):
                    known = ", ".join(pool.text for pool in pools) or "none"
                    raise ConfigError(
                        f"{_text(packed)} is no host's address in the subnets of network {network.name} ({known})"
                    )
            query = "SELECT address FROM leases WHERE network = ? AND owner = ?"
            given = {len(packed): packed for (packed,) in db.execute(query, (network.id, endpoint.id))}
            found = []
            for size in sorted({len(pool.low) for pool in pools}):
                wanted, present = asked.get(size), given.get(size)
                if wanted and wanted != present:
                    _claim(db, network, endpoint, wanted)
                packed = wanted or present or _next(db, network, endpoint, [p for p in pools if len(p.low) == size])
                pool = next(pool for pool in pools if packed in pool)
                found.append(f"{_text(packed)}/{pool.text.partition('/')[2]}")
        return msgspec.structs.replace(endpoint, addresses=tuple(found))

    def release(self, network: Network, endpoint: Endpoint) -> None:
        """Give the endpoint's addresses back. None is success."""
        with self._transaction() as db:
            db.execute("DELETE FROM leases WHERE network = ? AND owner = ?", (network.id, endpoint.id))

    def leases(self, network: Network) -> dict[str, str]:
        """Return who has which address: the ids of endpoints, `GATEWAY`, or `RESERVED` and a name."""
        with self._transaction() as db:
            rows = db.execute("SELECT address, owner FROM leases WHERE network = ? ORDER BY address", (network.id,))
            return {_text(address): owner for address, owner in rows}

    def recover(self, *, networks: Iterable[str], endpoints: Iterable[str]) -> list[str]:
        """Give back what belongs to no living network or endpoint, and say so, a line each.

        Args:
            networks, endpoints: the ids of all there are.
        """
        living, alive, repairs = set(networks), set(endpoints), []
        with self._transaction() as db:
            for network, name in list(db.execute("SELECT DISTINCT network, name FROM pools")):
                if network not in living:
                    _forget(db, network)
                    repairs.append(f"gave back the subnets of network {name}, which is gone")
            for network, address, owner in list(db.execute("SELECT network, address, owner FROM leases")):
                if not owner.startswith("@") and owner not in alive:
                    db.execute("DELETE FROM leases WHERE network = ? AND address = ?", (network, address))
                    repairs.append(f"gave back {_text(address)} of endpoint {owner[:12]}, which is gone")
        return repairs

    def _free_part(self, version: int, used: list[tuple[str, Block]]) -> str:
        used = used + [(f"the host's route to {block}", block) for block in host_routes()]
        pools = [(parse_subnet(text), prefix) for text, prefix in self._pools]
        for pool, prefix in pools:
            if not pool.prefixlen <= prefix <= pool.max_prefixlen:
                raise ConfigError(f"default address pool {pool} cannot have parts of /{prefix}")
            if pool.version == version and (part := free_part(pool, prefix, (block for _, block in used))):
                return part
        if version == 6 and all(pool.version == 4 for pool, _ in pools):
            return local_subnet()
        mine = [pool for pool, _ in pools if pool.version == version]
        holders = [holder for holder, block in used if any(overlap(pool, block) for pool in mine)]
        raise Conflict(
            f"no subnet of the default address pools is free, {', '.join(holders[:3] + ['...'] * (len(holders) > 3))} "
            "have them; name one with --subnet, remove networks, or add to default-address-pools in the config"
        )

    def _transaction(self) -> AbstractContextManager[Connection]:
        from transom.services import database

        self._open = self._open or database.connect(self._path, schema=_SCHEMA)
        return database.transaction(self._open)


def parse_subnet(text: str) -> Block:
    """Read a subnet in CIDR notation.

    Raises:
        ConfigError: it is none, or has bits set beyond its prefix.
    """
    from ipaddress import ip_interface

    try:
        interface = ip_interface(text)
        if "/" in text and text.rpartition("/")[2].isdigit():
            if interface.ip != interface.network[0]:
                raise ConfigError(f"subnet {text} has bits set beyond its prefix: write {interface.network}")
            return interface.network
    except ValueError:
        pass
    raise ConfigError(f"{text!r} is not a subnet: write it as 172.18.0.0/16")


def free_part(pool: Block, prefix: int, taken: Iterable[Block]) -> str | None:
    """Return the first part of a pool, of that prefix length, that overlaps nothing that is taken; None without."""
    start, step = int(pool[0]), 1 << pool.max_prefixlen - prefix
    for first, last in sorted((int(block[0]), int(block[-1])) for block in taken if block.version == pool.version):
        if first >= start + step:
            break
        start = max(start, (last // step + 1) * step)
    return f"{pool[start - int(pool[0])]}/{prefix}" if start <= int(pool[-1]) else None


def host_routes() -> list[Block]:
    """Return where the host has routes to, by any of its tables, of the calling thread's namespace.

    Default routes are left out, and halves of one, which a VPN puts over it.
    """
    from ipaddress import ip_network

    from transom.services.netlink import Session

    with Session() as session:
        found = [ip_network(route.to) for route in session.routes(everywhere=True)]
    return [block for block in found if block.prefixlen > 1]


def _packed(address: str) -> bytes:
    plain = address.partition("/")[0]
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in plain else socket.AF_INET, plain)
    except OSError:
        raise ConfigError(f"{address!r} is not an IP address") from None


def _text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def overlap(one: Block, other: Block) -> bool:
    """Say whether two subnets have an address in common."""
    return one.version == other.version and one.overlaps(other)


def local_subnet() -> str:
    """Return a /64 with a random Global ID (RFC 4193, 3.2.2)."""
    return _text(b"\xfd" + os.urandom(5) + bytes(10)) + "/64"


def usable(block: Block) -> tuple[bytes, bytes]:
    """Return the lowest and the highest address that a host may have.

    Not those of the network and of broadcasts (RFC 1122, 3.2.1.3), nor that of an IPv6 subnet's routers (RFC 4291,
    2.6.1), except where there are only one or two (RFC 3021, RFC 6164).
    """
    if block.num_addresses <= 2:
        return block[0].packed, block[-1].packed
    return block[1].packed, block[-2 if block.version == 4 else -1].packed


def checked(subnet: Subnet) -> Subnet:
    """Return the subnet in the kernel's spelling, with a gateway.

    Raises:
        ConfigError: one of its parts makes no sense.
    """
    block = parse_subnet(subnet.pool)
    low, high = usable(block)
    gateway = _packed(subnet.gateway) if subnet.gateway else low
    named = {"gateway": gateway} | {f"reserved address {n}": _packed(a) for n, a in subnet.reserved.items()}
    for what, packed in named.items():
        if len(packed) != len(low) or not low <= packed <= high:
            raise ConfigError(f"{what} {_text(packed)} is no host's address in subnet {block}")
        if packed == gateway and what != "gateway":
            raise ConfigError(f"{what} {_text(packed)} is the gateway of subnet {block}")
    if subnet.range:
        inner = parse_subnet(subnet.range)
        if not overlap(block, inner) or inner.prefixlen < block.prefixlen:
            raise ConfigError(f"range {inner} is not inside subnet {block}")
    return msgspec.structs.replace(subnet, pool=str(block), gateway=_text(gateway))


def _record(db: Connection, network: Network) -> None:
    if db.execute("SELECT 1 FROM leases WHERE network = ? AND owner NOT LIKE '@%'", (network.id,)).fetchone():
        raise Conflict(f"network {network.name} has endpoints: its subnets cannot change; disconnect them first")
    _forget(db, network.id)
    for subnet in network.subnets:
        low, high = usable(parse_subnet(subnet.pool))
        inner = parse_subnet(subnet.range or subnet.pool)
        first, last = max(low, inner[0].packed), min(high, inner[-1].packed)
        row = (network.id, network.name, subnet.pool, low, high, first, last)
        db.execute("INSERT INTO pools VALUES (?, ?, ?, ?, ?, ?, ?, NULL)", row)
        taken = {_packed(address): RESERVED + name for name, address in subnet.reserved.items()}
        taken[_packed(subnet.gateway or "")] = GATEWAY
        db.executemany("INSERT INTO leases VALUES (?, ?, ?)", [(network.id, a, owner) for a, owner in taken.items()])


def _forget(db: Connection, network: str) -> None:
    db.execute("DELETE FROM leases WHERE network = ?", (network,))
    db.execute("DELETE FROM pools WHERE network = ?", (network,))


def _claim(db: Connection, network: Network, endpoint: Endpoint, address: bytes) -> None:
    """Take the one address, in place of another one of its family that the endpoint had."""
    query = "SELECT owner FROM leases WHERE network = ? AND address = ?"
    for (owner,) in db.execute(query, (network.id, address)):
        holder = f"belongs to endpoint {owner[:12]}"
        if owner.startswith("@"):
            holder = "is its gateway" if owner == GATEWAY else f"is reserved ({owner.removeprefix(RESERVED)})"
        raise Conflict(f"address {_text(address)} of network {network.name} {holder}; ask for another one")
    query = "DELETE FROM leases WHERE network = ? AND owner = ? AND length(address) = ?"
    db.execute(query, (network.id, endpoint.id, len(address)))
    db.execute("INSERT INTO leases VALUES (?, ?, ?)", (network.id, address, endpoint.id))


def _next(db: Connection, network: Network, endpoint: Endpoint, pools: list[_Pool]) -> bytes:
    """Take the first free address after the last one given, beginning anew at the end."""
    for pool in pools:
        after = _step(pool.cursor) if pool.cursor is not None else pool.first
        for begin in (max(after, pool.first), pool.first):
            address = _first_free(db, network.id, begin, pool.last)
            if address is not None:
                db.execute("INSERT INTO leases VALUES (?, ?, ?)", (network.id, address, endpoint.id))
                query = "UPDATE pools SET cursor = ? WHERE network = ? AND pool = ?"
                db.execute(query, (address, network.id, pool.text))
                return address
    known = ", ".join(pool.text for pool in pools)
    raise Conflict(f"network {network.name} has no free address in {known}; disconnect containers or use another one")


def _first_free(db: Connection, network: str, begin: bytes, end: bytes) -> bytes | None:
    query = "SELECT address FROM leases WHERE network = ? AND address BETWEEN ? AND ? ORDER BY address"
    for (taken,) in db.execute(query, (network, begin, end)):
        if len(taken) != len(begin):  # the other family sorts in between
            continue
        if taken != begin:
            break
        if begin == end:  # which may be the last address there is
            return None
        begin = _step(begin)
    return begin if begin <= end else None


def _step(address: bytes) -> bytes:
    return (int.from_bytes(address) + 1 & (1 << 8 * len(address)) - 1).to_bytes(len(address))
