"""IPsec between the hosts of encrypted networks: ESP in transport mode around VXLAN's packets (RFC 4303, RFC 4106).

Encrypted networks have a UDP port of their own, so that the kernel's policies tell their packets by it, and no plain
packet ever reaches their devices:

    out   to that port of a host, by the one security association whose SPI the policy names
    out   to that port otherwise: blocked, so that nothing leaves before there is an association
    in    to that port: only what came through an association of ours

An association is for one direction between two hosts. Its SPI and key are derived from a secret that the hosts share
in etcd, both addresses and both boots, so no two have the same key, and nobody has to be asked for it. The secret is
followed by another after a time: a host takes packets under both, and sends to each host under the newest that this one
has said it takes. The one before it is forgotten when all hosts have said that they send under it no more. So no packet
is lost.

Sequence numbers go on where they ended when an association is made anew under the same key (`Sequences`): a receiver
that has kept its own takes them for repetitions otherwise (RFC 4303, section 3.4.3).

What is ours in the kernel's tables bears a number: the associations as `reqid`, the policies as priority.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from transom.services.files import closing, write_atomic
from transom.services.netlink import ACK, CREATE, EXCL, Message, Session, attribute, attributes, pack_address
from transom.services.netns import create, inside

XFRM = 6
"""NETLINK_XFRM (linux/netlink.h)."""
OVERHEAD = {4: 84, 6: 104}
"""Bytes around an encrypted frame: IP, ESP with its IV, UDP, VXLAN, Ethernet, ESP's trailer and check value."""
ALIGNMENT = 4
"""Of what ESP encrypts, in bytes (RFC 4303, section 2.4): a packet of another length is padded."""
SECRET = 64
"""Bytes of a secret."""
LEAP = 1 << 28
"""How far a sequence goes on whose end was not seen: farther than it can have got between two looks at it."""
_NEWSA, _DELSA, _GETSA, _NEWPOLICY, _DELPOLICY, _GETPOLICY, _UPDPOLICY = 16, 17, 18, 19, 20, 21, 25
_ALG_AEAD, _TMPL, _REPLAY_ESN = 18, 5, 23
_IN, _OUT, _ALLOW, _BLOCK = 0, 1, 0, 1
_OURS = 0x7472
_ESN, _WINDOW = 128, 1024
_CIPHER, _KEY, _ICV = b"rfc4106(gcm(aes))", 36, 128
"""AES-256 (32 bytes) and a salt of 4, with a check value of 128 bits (RFC 4106, sections 6 and 8.1)."""
_ENDLESS = struct.pack("=8Q", *[2**64 - 1] * 4, 0, 0, 0, 0)
_SELECTOR = struct.Struct("=16s16s4s4sHBBB3xiI")
_POLICY = struct.Struct("=64s32sIIBBBB4x")
_TEMPLATE = struct.Struct("=16s4sB3xH2x16sIBBBxIII")


class Secret(msgspec.Struct, frozen=True):
    """What keys are derived from; `id` grows."""

    id: int
    secret: bytes


class Secrets(msgspec.Struct, frozen=True):
    """The secrets in use.

    Attributes:
        secrets: the newest first.
        takes, sends: the newest that each host takes, and the oldest that it sends under, by the host's name.
        cluster, revision: of etcd, when it said so.
    """

    secrets: tuple[Secret, ...] = ()
    takes: dict[str, int] = {}
    sends: dict[str, int] = {}
    cluster: str = ""
    revision: int = 0


class Site(msgspec.Struct, frozen=True, order=True):
    """A host in a boot: associations end with either of the two."""

    host: str
    vtep: str
    boot: str


class Association(msgspec.Struct, frozen=True):
    """One direction from a host to another, under one secret."""

    source: str
    target: str
    spi: int
    key: bytes = b""
    secret: int = 0

    @property
    def name(self) -> tuple[str, int]:
        """What tells it from others in the kernel (RFC 4301, section 4.1)."""
        return self.target, self.spi


class Sequence(msgspec.Struct, frozen=True):
    """Where an association's numbers are: sent, received; `over` when it was removed by us then."""

    secret: int
    sent: int
    received: int
    over: bool


class Plan(msgspec.Struct, frozen=True):
    """The associations there should be, and by which of them to send to whom."""

    associations: dict[tuple[str, int], Association] = {}
    ways: dict[str, int] = {}

    def oldest(self, newest: int) -> int:
        """Return the oldest secret that is sent under; `newest` where nothing is sent."""
        return min((self.associations[way].secret for way in self.ways.items()), default=newest)


_SECRETS = msgspec.json.Decoder(Secrets)
_SEQUENCES = msgspec.json.Decoder(dict[str, Sequence])


def fresh(id: int) -> Secret:
    """Make a secret."""
    return Secret(id=id, secret=os.urandom(SECRET))


def derive(secret: Secret, source: Site, target: Site) -> Association:
    """Derive the association from one host to another."""
    from hashlib import sha256
    from hmac import digest

    label = " ".join((source.vtep, source.boot, target.vtep, target.boot)).encode()
    key = digest(secret.secret, b"key " + label, "sha512")[:_KEY]
    spi = int.from_bytes(sha256(b"%d " % secret.id + label).digest()[:4]) | 0x100  # the lowest are reserved
    return Association(source=source.vtep, target=target.vtep, spi=spi, key=key, secret=secret.id)


def plan(own: Site, others: Iterable[Site], known: Secrets) -> Plan:
    """Say which associations there should be: from each host under every secret, to it under the newest it takes."""
    associations: dict[tuple[str, int], Association] = {}
    ways = {}
    for other in sorted(set(others)):
        for secret in known.secrets:
            association = derive(secret, other, own)
            associations[association.name] = association
        taken = [secret for secret in known.secrets if secret.id <= known.takes.get(other.host, 0)]
        if known.secrets:
            association = derive((taken or known.secrets[-1:])[0], own, other)
            associations[association.name] = association
            ways[other.vtep] = association.spi
    return Plan(associations=associations, ways=ways)


class Encryption:
    """What a host does about it; `folder` keeps what must outlast a process, `port` is that of encrypted networks."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port

    # What is known of the secrets

    def known(self) -> Secrets:
        """Return what was heard last."""
        try:
            return _SECRETS.decode((self._folder / "secrets").read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return Secrets()

    def hear(self, secrets: Secrets) -> bool:
        """Take note of what etcd says; False when that is nothing new."""
        known = self.known()
        if secrets.cluster == known.cluster and secrets.revision < known.revision:
            return False
        if (secrets.secrets, secrets.takes) == (known.secrets, known.takes):
            return False
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder / "secrets", msgspec.json.encode(secrets), mode=0o600, durable=False)
        return True

    # The kernel's tables

    def program(self, own: str, wanted: Plan) -> None:
        """Make the kernel's tables as `wanted`, for a host with an encrypted network.

        Nothing is sent in the clear at any moment, and nothing refused that was taken before and is wanted still.

        Args:
            own: this host's address for VXLAN.
        """
        guard = _selector(own, "", self._port)
        guards = {(guard, _OUT): _block(guard), (guard, _IN): _required(guard)}
        ways = {(_selector("", to, self._port), _OUT): (to, spi) for to, spi in wanted.ways.items()}
        with Session(XFRM) as session:
            states, policies = _states(session), _policies(session)
            sequences = self._sequences(states, wanted)
            session.request(*(message for place, message in guards.items() if place not in policies))
            new = [a for name, a in wanted.associations.items() if name not in states]
            session.request(*(_add(a, sequences.get(_text(a.name))) for a in new))
            session.request(
                *(_way(place[0], own, *way) for place, way in ways.items() if policies.get(place) != way[1])
            )
            session.request(*(_drop_policy(*place) for place in policies.keys() - guards.keys() - ways.keys()))
            session.request(*map(_drop, states.keys() - wanted.associations.keys()))

    def clear(self) -> bool:
        """Remove everything of ours from the kernel's tables; say whether there was anything."""
        try:
            session = Session(XFRM)
        except OSError:
            return False  # this kernel has no such tables
        with session:
            states, policies = _states(session), _policies(session)
            self._sequences(states, Plan())
            session.request(*(_drop_policy(*place) for place in policies), *map(_drop, states))
        return bool(states or policies)

    def differences(self, wanted: Plan) -> list[str]:
        """Say what the kernel's tables lack."""
        with Session(XFRM) as session:
            states, policies = _states(session), _policies(session)
        said = []
        for association in wanted.associations.values():
            if association.name not in states:
                said.append(f"the association from {association.source} to {association.target} is missing")
        for to, spi in wanted.ways.items():
            if policies.get((_selector("", to, self._port), _OUT)) != spi:
                said.append(f"packets to {to} are not encrypted as they should be")
        guards = {direction for selector, direction in policies if selector[:32] == bytes(32)}
        return said if guards == {_IN, _OUT} else [*said, "plain packets are not refused"]

    def _sequences(self, states: Mapping[tuple[str, int], tuple[int, int]], wanted: Plan) -> dict[str, Sequence]:
        """Note where the sequences are; return those that go on in associations that are made anew."""
        path = self._folder / "sequences"
        try:
            before = _SEQUENCES.decode(path.read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            before = {}
        ids = {secret.id for secret in self.known().secrets}
        now = {name: sequence for name, sequence in before.items() if sequence.secret in ids}
        secrets = {_text(name): a.secret for name, a in wanted.associations.items()}
        for name, (sent, received) in states.items():
            text = _text(name)
            secret = secrets.get(text) or (before[text].secret if text in before else max(ids, default=0))
            now[text] = Sequence(secret=secret, sent=sent, received=received, over=name not in wanted.associations)
        if now != before:
            write_atomic(path, msgspec.json.encode(now), durable=False)
        return now


def missing(family: int) -> str:
    """Return what this host's kernel lacks, tried in a namespace that is thrown away; empty when it has everything."""
    with closing(create()) as netns:
        return inside(netns, _try, family)


def _try(family: int) -> str:
    ends = ("192.0.2.1", "192.0.2.2") if family == 4 else ("2001:db8::1", "2001:db8::2")
    try:
        session = Session(XFRM)
    except OSError as error:
        return f"IPsec (CONFIG_XFRM_USER): {error.strerror}"
    with session:
        try:
            session.request(_add(Association(source=ends[0], target=ends[1], spi=0x100, key=bytes(_KEY)), None))
            session.request(_block(_selector(ends[0], "", 1)))
        except OSError as error:
            kind = "CONFIG_INET_ESP" if family == 4 else "CONFIG_INET6_ESP"
            return f"ESP with AES-GCM ({kind}, CONFIG_CRYPTO_GCM, CONFIG_CRYPTO_SEQIV): {error.strerror}"
    return ""


def _text(name: tuple[str, int]) -> str:
    return f"{name[1]:08x}>{name[0]}"


def _packed(address: str) -> bytes:
    return pack_address(address)[1].ljust(16, b"\0") if address else bytes(16)


def _selector(like: str, to: str, port: int) -> bytes:
    """Select UDP packets to a port, of a host or, in the family of `like`, of all (struct xfrm_selector)."""
    family, packed = pack_address(to or like)
    bits = 8 * len(packed) if to else 0
    destination = struct.pack("!HH", port, 0xFFFF)
    return _SELECTOR.pack(_packed(to), bytes(16), destination, bytes(4), family, bits, 0, socket.IPPROTO_UDP, 0, 0)


def _add(association: Association, before: Sequence | None) -> Message:
    """Make an association (struct xfrm_usersa_info), its sequence numbers as wide as they go (RFC 4304)."""
    family = pack_address(association.target)[0]
    sent = before.sent + (0 if before.over else LEAP) if before else 0
    received = before.received if before else 0
    body = _SELECTOR.pack(bytes(16), bytes(16), bytes(4), bytes(4), family, 0, 0, 0, 0, 0)
    body += struct.pack("=16s4sB3x16s", _packed(association.target), association.spi.to_bytes(4), socket.IPPROTO_ESP,
                        _packed(association.source))  # fmt: skip
    body += _ENDLESS + bytes(32 + 12) + struct.pack("=IIHBBB7x", 0, _OURS, family, 0, 0, _ESN)
    key = struct.pack("=64sII", _CIPHER, 8 * len(association.key), _ICV) + association.key
    low = 0xFFFFFFFF
    window = struct.pack(
        "=IIIIII", _WINDOW // 32, sent & low, received & low, sent >> 32, received >> 32, _WINDOW
    )  # fmt: skip
    window += b"\xff" * (_WINDOW // 8) if received else bytes(_WINDOW // 8)
    return _NEWSA, ACK | CREATE | EXCL, body + attribute(_ALG_AEAD, key) + attribute(_REPLAY_ESN, window)


def _drop(name: tuple[str, int]) -> Message:
    target, spi = name
    family = pack_address(target)[0]
    body = struct.pack("=16s4sHBx", _packed(target), spi.to_bytes(4), family, socket.IPPROTO_ESP)
    return _DELSA, ACK, body


def _policy(selector: bytes, direction: int, action: int, priority: int) -> bytes:
    return selector + _POLICY.pack(_ENDLESS, bytes(32), priority, 0, direction, action, 0, 0)


def _template(family: int, *, source: str = "", target: str = "", spi: int = 0) -> bytes:
    every = 0xFFFFFFFF
    parts = _TEMPLATE.pack(
        _packed(target), spi.to_bytes(4), socket.IPPROTO_ESP, family, _packed(source), _OURS, 0, 0, 0, every, every,
        every,
    )  # fmt: skip
    return attribute(_TMPL, parts)


def _block(selector: bytes) -> Message:
    return _NEWPOLICY, ACK | CREATE, _policy(selector, _OUT, _BLOCK, _OURS + 1)


def _required(selector: bytes) -> Message:
    return _NEWPOLICY, ACK | CREATE, _policy(selector, _IN, _ALLOW, _OURS + 1) + _template(_family(selector))


def _way(selector: bytes, own: str, to: str, spi: int) -> Message:
    template = _template(_family(selector), source=own, target=to, spi=spi)
    return _UPDPOLICY, ACK | CREATE, _policy(selector, _OUT, _ALLOW, _OURS) + template


def _drop_policy(selector: bytes, direction: int) -> Message:
    return _DELPOLICY, ACK, selector + struct.pack("=IB3x", 0, direction)


def _family(selector: bytes) -> int:
    found: int = _SELECTOR.unpack(selector)[4]
    return found


def _states(session: Session) -> dict[tuple[str, int], tuple[int, int]]:
    """Return our associations, with the numbers sent and received."""
    found = {}
    for body in session.dump(_GETSA, b""):
        target, spi = body[56:72], int.from_bytes(body[72:76])
        reqid, family = struct.unpack_from("=IH", body, 56 + 24 + 16 + 64 + 32 + 12 + 4)
        if reqid == _OURS:
            window = attributes(body[224:]).get(_REPLAY_ESN, bytes(24))
            _, sent, received, sent_high, received_high, _ = struct.unpack_from("=6I", window)
            address = socket.inet_ntop(family, target[: 4 if family == socket.AF_INET else 16])
            found[address, spi] = (sent_high << 32 | sent, received_high << 32 | received)
    return found


def _policies(session: Session) -> dict[tuple[bytes, int], int]:
    """Return our policies by selector and direction, with the SPI that they name."""
    found = {}
    for body in session.dump(_GETPOLICY, b""):
        _, _, priority, _, direction, _, _, _ = _POLICY.unpack_from(body, 56)
        if priority in {_OURS, _OURS + 1} and body[34:36] == b"\xff\xff":
            template = attributes(body[168:]).get(_TMPL, bytes(64))
            found[body[:56], direction] = int.from_bytes(template[16:20])
    return found
