"""What is free on all hosts, as far as their records say: VNIs, subnets, addresses."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address

import msgspec

from transom.contract.network import Endpoint, Network, Subnet
from transom.errors import ConfigError, Conflict
from transom.services.interfaces import family, plain
from transom.services.ipam import checked, free_part, host_routes, local_subnet, overlap, parse_subnet, usable

FIRST_VNI, LAST_VNI = 4096, 2**24 - 1
"""Docker's: the lower ones are left to others (RFC 7348, section 5: 24 bits)."""
POOL, PART = "10.0.0.0/8", 24
"""Where networks that ask for no subnet get theirs from, and the prefix length of each."""
_ANY = ("0.0.0.0/0", "::/0")
"""What asks for a subnet of IPv4 or IPv6, whichever is free."""


class Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """A network; `mtu` is that of its interfaces, in bytes."""

    name: str
    vni: int
    mtu: int
    subnets: tuple[Subnet, ...]
    options: dict[str, str] = {}
    internal: bool = False
    labels: dict[str, str] = {}


class Claim(msgspec.Struct, frozen=True):
    """Who has an address."""

    endpoint: str
    host: str
    boot: str


def free_vni(wanted: Stored, others: Iterable[Stored]) -> int:
    """Return the VNI that is asked for, or the first that no other network has.

    Raises:
        Conflict: another network has it.
    """
    taken = {other.vni: other.name for other in others}
    if wanted.vni in taken:
        raise Conflict(f"VNI {wanted.vni} is that of network {taken[wanted.vni]}; choose another one")
    free = (number for number in range(FIRST_VNI, LAST_VNI + 1) if number not in taken)
    return wanted.vni or next(free)


def settle(network: Network, asked: tuple[Subnet, ...], others: Iterable[Stored]) -> tuple[Subnet, ...]:
    """Return the subnets asked for, and a free one for each family that is to have one.

    Raises:
        ConfigError: a subnet that makes no sense.
        Conflict: it overlaps another network's, or none is free.
    """
    used = [(other.name, parse_subnet(subnet.pool)) for other in others for subnet in other.subnets]
    found = [
        msgspec.structs.replace(checked(s), gateway=s.gateway and plain(s.gateway)) for s in asked if s.pool not in _ANY
    ]
    for subnet in found:
        block = parse_subnet(subnet.pool)
        for name, other in used:
            if overlap(block, other):
                raise Conflict(f"subnet {block} overlaps {other} of network {name}; choose another one")
        used.append((f"{network.name} itself", block))
    if not asked or _ANY[0] in {subnet.pool for subnet in asked}:
        taken = [block for _, block in used] + host_routes()
        part = free_part(parse_subnet(POOL), PART, taken)
        if part is None:
            raise Conflict(f"no subnet of {POOL} is free of networks and host routes; name one with --subnet")
        found.insert(0, Subnet(pool=part))
    if _ANY[1] in {subnet.pool for subnet in asked}:
        found.append(Subnet(pool=local_subnet()))
    return tuple(found)


def choose(
    network: Network,
    endpoint: Endpoint,
    subnets: tuple[Subnet, ...],
    asked: dict[int, str],
    claims: dict[str, Claim],
    last: list[str],
) -> dict[int, str]:
    """Return an address of each family: the asked one, the one it has, or the next free one."""
    chosen: dict[int, str] = {}
    for number in sorted({family(subnet.pool) for subnet in subnets}):
        pools = [subnet for subnet in subnets if family(subnet.pool) == number]
        kept = {plain(a): f"is reserved ({name})" for subnet in pools for name, a in subnet.reserved.items()}
        kept |= {plain(subnet.gateway): "is its gateway" for subnet in pools if subnet.gateway}
        own = next((a for a, c in claims.items() if c.endpoint == endpoint.id and family(a) == number), "")
        if number in asked:
            _check_asked(network, endpoint, pools, asked[number], claims, kept)
            chosen[number] = asked[number]
        elif own:
            chosen[number] = own
        else:
            chosen[number] = _next_free(network, pools, {*claims, *kept}, last)
    stray = asked.keys() - chosen.keys()
    if stray:
        known = ", ".join(subnet.pool for subnet in subnets)
        raise ConfigError(
            f"{asked[min(stray)]} is no host's address in the subnets of network {network.name} ({known})"
        )
    return chosen


def _check_asked(
    network: Network,
    endpoint: Endpoint,
    pools: list[Subnet],
    address: str,
    claims: dict[str, Claim],
    kept: dict[str, str],
) -> None:
    packed = ip_address(address).packed
    ranges = [usable(parse_subnet(subnet.pool)) for subnet in pools]
    if not any(low <= packed <= high for low, high in ranges):
        known = ", ".join(subnet.pool for subnet in pools)
        raise ConfigError(f"{address} is no host's address in the subnets of network {network.name} ({known})")
    holder = claims.get(address)
    reason = kept.get(address, "")
    if holder and holder.endpoint != endpoint.id:
        reason = f"belongs to endpoint {holder.endpoint[:12]} on host {holder.host}"
    if reason:
        raise Conflict(f"address {address} of network {network.name} {reason}; ask for another one")


def _next_free(network: Network, pools: list[Subnet], taken: set[str], last: list[str]) -> str:
    """Return the first free address behind the last one given, beginning anew at the end."""
    numbers = {int(ip_address(address)) for address in taken if family(address) == family(pools[0].pool)}
    given = [int(ip_address(address)) for address in last if family(address) == family(pools[0].pool)]
    for subnet in pools:
        low, high = usable(parse_subnet(subnet.pool))
        inner = parse_subnet(subnet.range or subnet.pool)
        first, end = max(int.from_bytes(low), int(inner[0])), min(int.from_bytes(high), int(inner[-1]))
        after = given[0] + 1 if given and first <= given[0] < end else first
        for begin, stop in ((after, end), (first, after - 1)):
            while begin <= stop and begin in numbers:
                begin += 1
            if begin <= stop:
                return str(type(inner[0])(begin))
    known = ", ".join(subnet.pool for subnet in pools)
    raise Conflict(f"network {network.name} has no free address in {known}; disconnect containers or use another one")
