"""What the hosts share, as it lies in etcd.

Below the prefix:

    net/ID            a network: name, subnets, VNI, options
    name/NAME         its id: so a name is given once
    vni/NUMBER        its id: likewise
    pools             what the last new network was: so subnets are compared by one host at a time
    ipam/ID/ADDRESS   which endpoint has the address
    next/ID           the last address given: the next one is looked for behind it
    ep/ID/ENDPOINT    an endpoint: addresses, MAC, names, and the host's address for VXLAN
    cluster           a random text: another one when etcd has lost its records
    boot/HOST         the host's latest boot
    host/HOST         the same, on a lease: there for as long as the host is heard of
    secrets           what the keys of encrypted networks are derived from, on all hosts
    rotated           on a lease: the secrets are followed by another when it is gone
    takes/HOST        the newest secret under which the host takes packets, the oldest under which it sends

Endpoints and addresses hang on no lease: when etcd or the way to it is away, what works must go on working. They carry
the host and its boot. Those of a boot that is over are removed by the host when it is back, those of a host that is not
heard of for long by the others.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import ip_interface
from typing import Any, TypeVar

import msgspec

from transom.contract.network import Endpoint, Network
from transom.errors import ConfigError, Conflict, NotFound
from transom.services.interfaces import family, plain
from transom_network_overlay.choosing import Claim, Stored, choose, free_vni, settle
from transom_network_overlay.encryption import Secret, Secrets, fresh
from transom_network_overlay.etcd import Answer, Etcd, Pair, absent, delete, empty, present, put, read, same, unchanged

_ATTEMPTS = 200

S = TypeVar("S", bound=msgspec.Struct)


class Peer(msgspec.Struct, frozen=True):
    """An endpoint; `vtep` is its host's address for VXLAN, `revision` that of the record."""

    endpoint: str
    addresses: tuple[str, ...]
    mac: str
    vtep: str
    host: str
    boot: str
    names: tuple[str, ...] = ()
    revision: int = 0


class Known(msgspec.Struct, frozen=True):
    """What this host knew last of a network's endpoints, as of a revision of a cluster of etcd.

    A peer with the revision 0 is known from before etcd lost its records, and has not been recorded anew yet.
    """

    revision: int = -1
    peers: tuple[Peer, ...] = ()
    cluster: str = ""


class Owner(msgspec.Struct, frozen=True):
    """Whose an endpoint or an address is."""

    host: str
    boot: str


class Takes(msgspec.Struct, frozen=True):
    """The newest secret under which a host takes packets, and the oldest under which it sends."""

    host: str
    boot: str
    secret: int
    sends: int


class Member(msgspec.Struct, frozen=True):
    """A host: its boot, and its address for VXLAN."""

    boot: str
    vtep: str


_DECODERS: dict[type[msgspec.Struct], msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Stored, Claim, Peer, Owner, Takes, Member)
}
_SECRETS = msgspec.json.Decoder(tuple[Secret, ...])


class Store:
    """The hosts' common records, on behalf of one host.

    Args:
        prefix: of all keys, without a slash at its end.
        host: this host's name, and what is known of it.

    Attributes:
        cluster, revision: whose records they are, and the revision, when `present_host` asked last.
    """

    def __init__(self, etcd: Etcd, *, prefix: str, host: str, member: Member) -> None:
        self.etcd, self.prefix, self.host, self.member = etcd, prefix, host, member
        self.cluster, self.revision, self._marked = "", 0, 0

    def key(self, *parts: str) -> str:
        """Make a key; one that ends with an empty part is the beginning of many."""
        return "/".join((self.prefix, *parts))

    # Networks

    def networks(self) -> dict[str, Stored]:
        """Return all networks by id."""
        (found,) = self.etcd.read(self.key("net", "")).found
        return {pair.key.rpartition("/")[2]: _decode(Stored, pair) for pair in found}

    def network(self, id: str) -> Stored | None:
        """Return one network."""
        (found,) = self.etcd.read(self.key("net", id)).found
        return _decode(Stored, found[0]) if found else None

    def add_network(self, network: Network, wanted: Stored) -> Stored:
        """Record a network, its subnets and its VNI settled: those of `wanted` that are there, and free ones.

        Idempotent for one id.

        Raises:
            Conflict: its name, VNI or a subnet is taken on one of the hosts, or none is free.
            ConfigError: a subnet that makes no sense.
        """
        for _ in range(_ATTEMPTS):
            answer = self.etcd.read(self.key("net", ""), self.key("pools"))
            known = {pair.key.rpartition("/")[2]: _decode(Stored, pair) for pair in answer.found[0]}
            if network.id in known:
                return known[network.id]
            last = answer.found[1][0].revision if answer.found[1] else 0
            settled = msgspec.structs.replace(
                wanted, vni=free_vni(wanted, known.values()), subnets=settle(network, wanted.subnets, known.values())
            )
            taken = next((id for id, other in known.items() if other.name == network.name), "")
            if taken:
                raise Conflict(
                    f"network {network.name} exists already on these hosts, with id {taken[:12]}; choose another name"
                )
            changes = [
                put(self.key("net", network.id), msgspec.json.encode(settled)),
                put(self.key("name", network.name), network.id.encode()),
                put(self.key("vni", str(settled.vni)), network.id.encode()),
                put(self.key("pools"), network.id.encode()),
            ]
            conditions = [
                unchanged(self.key("pools"), last),
                absent(self.key("name", network.name)),
                absent(self.key("vni", str(settled.vni))),
            ]
            if self.etcd.transact(when=conditions, then=changes).held:
                return settled
        raise Conflict(f"network {network.name}: too many networks are being made at once; try again")

    def restore_network(self, id: str, stored: Stored) -> None:
        """Record a network anew that etcd has lost; success where it is there.

        Raises:
            Conflict: its name or VNI has been given to another one.
        """
        keys = [self.key("net", id), self.key("name", stored.name), self.key("vni", str(stored.vni))]
        values = [msgspec.json.encode(stored), id.encode(), id.encode()]
        changes = [put(key, value) for key, value in zip(keys, values, strict=True)]
        answer = self.etcd.transact(when=map(absent, keys), then=changes, otherwise=[read(keys[0])])
        if not answer.held and not answer.found[0]:
            raise Conflict(f"network {stored.name} was made anew by somebody else; remove it there, or here")

    def remove_network(self, id: str) -> None:
        """Remove a network from all hosts. Absent is success.

        Raises:
            Conflict: there are endpoints on it, on the hosts that are named.
        """
        for _ in range(_ATTEMPTS):
            stored, peers = self.network(id), self.peers(id)[0]
            if stored is None:
                return
            if peers:
                where = {peer.host: peer.names[0] if peer.names else peer.endpoint[:12] for peer in peers}
                users = ", ".join(f"{name} on {host}" for host, name in sorted(where.items()))
                raise Conflict(f"network {stored.name} has active endpoints: {users}; stop or disconnect them first")
            gone = [self.key("net", id), self.key("name", stored.name), self.key("vni", str(stored.vni))]
            conditions = [empty(self.key("ep", id, "")), present(gone[0])]
            if self.etcd.transact(when=conditions, then=[*map(delete, gone), delete(self.key("next", id))]).held:
                break
        (claims,) = self.etcd.read(self.key("ipam", id, "")).found
        self._delete(claims)

    # Addresses

    def allocate(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Claim an address of each subnet's family, and return the endpoint with them. Idempotent for one endpoint.

        Raises:
            ConfigError: an asked address is none, or is outside the subnets.
            Conflict: an asked address is taken; no address is free.
            NotFound: the network is gone.
        """
        asked = {family(address): plain(address) for address in map(_address, endpoint.addresses)}
        for _ in range(_ATTEMPTS):
            answer = self.etcd.read(
                self.key("net", network.id), self.key("ipam", network.id, ""), self.key("next", network.id)
            )
            stored = self._there(network, answer.found[0])
            claims = {pair.key.rpartition("/")[2]: _decode(Claim, pair) for pair in answer.found[1]}
            last = [text for pair in answer.found[2] for text in pair.value.decode().split()]
            chosen = choose(network, endpoint, stored.subnets, asked, claims, last)
            fresh = [address for address in chosen.values() if address not in claims]
            claim = msgspec.json.encode(Claim(endpoint=endpoint.id, host=self.host, boot=self.member.boot))
            keys = [self.key("ipam", network.id, address) for address in fresh]
            changes = [put(key, claim) for key in keys]
            if fresh:
                changes.append(put(self.key("next", network.id), " ".join(chosen.values()).encode()))
            conditions = [present(self.key("net", network.id)), *map(absent, keys)]
            if self.etcd.transact(when=conditions, then=changes).held:
                prefixes = {family(s.pool): s.pool.partition("/")[2] for s in stored.subnets}
                addresses = tuple(f"{address}/{prefixes[number]}" for number, address in sorted(chosen.items()))
                return msgspec.structs.replace(endpoint, addresses=addresses)
        raise Conflict(f"network {network.name}: too many addresses are being claimed at once; try again")

    def release(self, network: str, endpoint: str) -> None:
        """Give an endpoint's addresses back. None is success."""
        (claims,) = self.etcd.read(self.key("ipam", network, "") if network else self.key("ipam", "")).found
        self._delete(pair for pair in claims if _decode(Claim, pair).endpoint == endpoint)

    # Endpoints

    def join(self, network: Network, peer: Peer) -> tuple[list[Peer], int]:
        """Record an endpoint of this host; return all of the network's, and the store's revision.

        Raises:
            NotFound: the network is gone.
        """
        key = self.key("ep", network.id, peer.endpoint)
        prefix = self.key("ep", network.id, "")
        answer = self.etcd.transact(
            when=[present(self.key("net", network.id))],
            then=[put(key, msgspec.json.encode(peer)), read(prefix)],
        )
        if not answer.held:
            raise _gone(network)
        return self._peers(answer)

    def rejoin(self, network: Network, peer: Peer) -> None:
        """Record an endpoint of this host anew, with its addresses.

        Raises:
            Conflict: one of them has been given to another endpoint.
            NotFound: the network is gone.
        """
        addresses = [plain(address) for address in peer.addresses]
        keys = [self.key("ipam", network.id, address) for address in addresses]
        claim = msgspec.json.encode(Claim(endpoint=peer.endpoint, host=self.host, boot=self.member.boot))
        current = msgspec.structs.replace(peer, vtep=self.member.vtep, revision=0)
        changes = [put(key, claim) for key in keys]
        changes.append(put(self.key("ep", network.id, peer.endpoint), msgspec.json.encode(current)))
        for _ in range(_ATTEMPTS):  # whoever removes the records may be at it still
            net, *found = self.etcd.read(self.key("net", network.id), *keys).found
            self._there(network, net)
            conditions = [present(self.key("net", network.id))]
            for key, address, pairs in zip(keys, addresses, found, strict=True):
                held = next((pair for pair in pairs if pair.key == key), None)
                if held and _decode(Claim, held).endpoint != peer.endpoint:
                    raise Conflict(f"address {address} of network {network.name} belongs to another endpoint now")
                conditions.append(unchanged(key, held.revision if held else 0))
            if self.etcd.transact(when=conditions, then=changes).held:
                return
        raise Conflict(f"addresses of network {network.name} change too often; try again")

    def leave(self, network: str, endpoint: str) -> None:
        """Forget an endpoint; with no `network` one of this host, on whichever it is. Absent is success."""
        if network:
            self.etcd.transact(then=[delete(self.key("ep", network, endpoint))])
            return
        (found,) = self.etcd.read(self.key("ep", "")).found
        ours = (pair for pair in found if pair.key.endswith(f"/{endpoint}"))
        self._delete(pair for pair in ours if _decode(Owner, pair).host == self.host)

    def peers(self, network: str) -> tuple[list[Peer], int]:
        """Return the network's endpoints on all hosts, and the store's revision."""
        return self._peers(self.etcd.read(self.key("ep", network, "")))

    @staticmethod
    def peer(pair: Pair) -> Peer:
        """Read an endpoint's record."""
        return msgspec.structs.replace(_decode(Peer, pair), revision=pair.revision)

    def _peers(self, answer: Answer) -> tuple[list[Peer], int]:
        return [self.peer(pair) for pair in answer.found[0]], answer.revision

    # Hosts

    def present_host(self) -> None:
        """Say which boot this host is in, and remove what an earlier one has left. Idempotent.

        Raises:
            Conflict: another host goes by the same name.
        """
        boot, alive = self.key("boot", self.host), self.key("host", self.host)
        while not (answer := self.etcd.read(boot, alive, self.key("cluster"))).found[2]:
            self.renew_cluster()
        mark = answer.found[2][0]
        self.cluster, self.revision, self._marked = mark.value.decode(), answer.revision, mark.revision
        known = _decode(Member, answer.found[0][0]) if answer.found[0] else None
        heard = _decode(Member, answer.found[1][0]) if answer.found[1] else None
        if known and known.boot == self.member.boot and known.vtep == self.member.vtep:
            return
        if heard and heard.vtep != self.member.vtep and heard.boot != self.member.boot:
            raise Conflict(
                f"another host at {heard.vtep} goes by the name {self.host}; give one of them another name by the "
                "option host"
            )
        self._remove_of(self.host, but_boot=self.member.boot)
        self.etcd.transact(then=[put(boot, msgspec.json.encode(self.member))])

    def renew_cluster(self) -> None:
        """Say that the records are not those that they were, unless somebody else has."""
        key = self.key("cluster")
        self.etcd.transact(when=[unchanged(key, self._marked)], then=[put(key, os.urandom(16).hex().encode())])

    def members(self) -> tuple[dict[str, Member], set[str]]:
        """Return the hosts by name, and the names of those that are heard of."""
        answer = self.etcd.read(self.key("boot", ""), self.key("host", ""))
        known = {pair.key.rpartition("/")[2]: _decode(Member, pair) for pair in answer.found[0]}
        return known, {pair.key.rpartition("/")[2] for pair in answer.found[1]}

    def be_heard(self, lease: int) -> None:
        """Hang this host's liveness on a lease."""
        self.etcd.transact(then=[put(self.key("host", self.host), msgspec.json.encode(self.member), lease)])

    def reap(self, host: str) -> int:
        """Remove the endpoints and addresses of a host for as long as it is not heard of; return how many."""
        return self._remove_of(host, guard=[absent(self.key("host", host))])

    # Secrets of encrypted networks

    def secrets(self) -> tuple[Secrets, bool]:
        """Return the secrets, and whether it is time for another."""
        answer = self.etcd.read(self.key("secrets"), self.key("takes", ""), self.key("rotated"))
        takes = [_decode(Takes, pair) for pair in answer.found[1]]
        known = Secrets(
            secrets=_SECRETS.decode(answer.found[0][0].value) if answer.found[0] else (),
            takes={record.host: record.secret for record in takes},
            sends={record.host: record.sends for record in takes},
            cluster=self.cluster,
            revision=answer.revision,
        )
        return known, not answer.found[2]

    def first_secrets(self, known: Secrets, interval: int) -> Secrets:
        """Make the first secret unless there is one; those that are known from before etcd lost them count."""
        while not (current := self.secrets()[0]).secrets:
            self._new_secrets((), known.secrets or (fresh(1),), interval)
        return current

    def rotate(self, known: Secrets, interval: int) -> None:
        """Let a new secret follow, and forget all but the newest of the others; unless somebody else has."""
        newest = known.secrets[0]
        self._new_secrets(known.secrets, (fresh(newest.id + 1), newest), interval)

    def _new_secrets(self, before: tuple[Secret, ...], after: tuple[Secret, ...], interval: int) -> None:
        key, lease = self.key("secrets"), self.etcd.grant(interval)
        when = [same(key, msgspec.json.encode(before)) if before else absent(key), absent(self.key("rotated"))]
        then = [put(key, msgspec.json.encode(after)), put(self.key("rotated"), b"", lease)]
        if not self.etcd.transact(when=when if before else when[:1], then=then).held:
            self.etcd.revoke(lease)

    def take(self, secret: int, *, sends: int) -> None:
        """Say that this host takes packets under this secret and older ones, 0: under none; and how old it sends."""
        key = self.key("takes", self.host)
        record = Takes(host=self.host, boot=self.member.boot, secret=secret, sends=sends)
        self.etcd.transact(then=[put(key, msgspec.json.encode(record)) if secret else delete(key)])

    def _remove_of(self, host: str, *, but_boot: str = "", guard: Iterable[dict[str, object]] = ()) -> int:
        answer = self.etcd.read(self.key("ep", ""), self.key("ipam", ""), self.key("takes", ""))
        stale = []
        for pair in (pair for found in answer.found for pair in found):
            record = _decode(Owner, pair)
            if record.host == host and record.boot != but_boot:
                stale.append(pair)
        self._delete(stale, guard=guard)
        return len(stale)

    def _delete(self, pairs: Iterable[Pair], *, guard: Iterable[dict[str, object]] = ()) -> None:
        """Delete keys that have not been changed since they were read."""
        for pair in pairs:
            self.etcd.transact(when=[unchanged(pair.key, pair.revision), *guard], then=[delete(pair.key)])

    def _there(self, network: Network, found: tuple[Pair, ...]) -> Stored:
        if not found:
            raise _gone(network)
        return _decode(Stored, found[0])


def _decode(kind: type[S], pair: Pair) -> S:
    found: S = _DECODERS[kind].decode(pair.value)
    return found


def _gone(network: Network) -> NotFound:
    return NotFound(f"network {network.name} is gone: it was removed on another host; create it again")


def _address(text: str) -> str:
    try:
        ip_interface(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not an IP address") from None
    return text
