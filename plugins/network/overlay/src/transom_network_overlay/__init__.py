"""The network driver ``overlay``: one network over several hosts, by VXLAN (RFC 7348), with etcd as their memory.

On each host the network is a VXLAN device, and a container's interface is a macvlan child of it: so neighbours on one
host meet without a bridge, and no firewall of the host sees their frames. The device learns nothing and floods nothing;
what the hosts know of each other's endpoints is in etcd (`store`), and written to the kernel from there (`forwarding`).
Whoever joins writes its own record and reads everybody else's in one step, so it can reach them before it starts; the
others hear of it by watching (`following`).

When etcd is away, what works goes on working: nothing that the kernel knows hangs on it.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Callable
from typing import ClassVar, TypeVar

import msgspec

from transom.contract import Probe
from transom.contract.network import Attachment, Endpoint, Network, NetworkCapability
from transom.errors import ConfigError, Conflict, DriverError, NotSupported, choices
from transom.services import interfaces, netlink
from transom.services.files import Lock, write_atomic
from transom.services.interfaces import InterfaceOptions
from transom.services.netlink import Session
from transom.services.parents import ParentDriver
from transom_network_overlay import encryption, forwarding
from transom_network_overlay.choosing import Stored
from transom_network_overlay.encryption import Encryption, Plan, Site
from transom_network_overlay.etcd import Away, Etcd, Refused, Tls, towards
from transom_network_overlay.options import DOCS, OverlayConfig, OverlayOptions, is_address, options_of
from transom_network_overlay.store import Known, Member, Peer, Store

T = TypeVar("T")

DRIVER = "network overlay"
OVERHEAD = {4: 50, 6: 70}
"""Bytes that VXLAN puts around a frame: IP, UDP, VXLAN and the inner Ethernet header (RFC 7348, section 5)."""
_AWAY = 10.0
"""Seconds for which nobody who leaves waits again for etcd, when it was away."""
_PROMPT = 1.5
"""Seconds for which a list of the networks waits for etcd."""
_LEAVING = {"detach", "recover"}
"""What goes on also when etcd has lost its records."""
_MODE_BRIDGE = 4
_ID, _LOCAL, _LEARNING, _PROXY, _PORT, _LOCAL6 = 1, 4, 7, 11, 15, 17


_KNOWN = msgspec.json.Decoder(Known)
_STORED = msgspec.json.Decoder(Stored)


class Overlay(ParentDriver):
    """See the module's text."""

    name = "overlay"
    api = 1
    capabilities = frozenset(
        {
            NetworkCapability.L2,
            NetworkCapability.NAMES,
            NetworkCapability.LOOKUP,
            NetworkCapability.ADDRESSES,
            NetworkCapability.IPV6,
            NetworkCapability.INTERNAL,
            NetworkCapability.HOT_PLUG,
            NetworkCapability.MAC,
            NetworkCapability.MULTI_HOST,
            NetworkCapability.WATCH,
        }
    )
    Options = OverlayConfig
    NetworkOptions = OverlayOptions
    EndpointOptions = InterfaceOptions
    option_docs: ClassVar[dict[str, str]] = DOCS
    child_kind = "macvlan"
    feature = "CONFIG_MACVLAN"
    boot_id = "/proc/sys/kernel/random/boot_id"
    _ask_again = 0.0

    # What it is made of

    def parent_name(self, network: Network) -> str:
        """Return the name of the VXLAN device."""
        return self.own_parent(network)

    def own_parent(self, network: Network) -> str:
        """Return the name of the VXLAN device."""
        return f"vx-{network.id[:12]}"

    def mode(self, network: Network) -> str:
        """Return how endpoints meet on one host."""
        return "bridge"

    def child_data(self, network: Network) -> bytes:
        """Return the same as the kernel wants it."""
        return netlink.attribute(1, struct.pack("=I", _MODE_BRIDGE))

    def next_hops(self, network: Network, endpoint: Endpoint) -> tuple[str, ...]:
        """Return none: nothing leads out of the network."""
        return ()

    def _try_kernel(self) -> Probe:
        probe = super()._try_kernel()
        if not probe.usable:
            return probe
        try:
            with Session() as session:
                session.request(self._vxlan("vxlan", vni=1, mtu=1400, address="127.0.0.1", port=self.options.port))
        except OSError as error:
            return interfaces.lacking("VXLAN (CONFIG_VXLAN)", error)
        if not self.options.etcd:
            return Probe(usable=True, reason="no etcd is configured: set the option etcd before the first network")
        return probe

    @staticmethod
    def _vxlan(name: str, *, vni: int, mtu: int, address: str, port: int) -> netlink.Message:
        family, packed = netlink.pack_address(address)
        data = netlink.attribute(_ID, struct.pack("=I", vni))
        data += netlink.attribute(_LOCAL6 if family == socket.AF_INET6 else _LOCAL, packed)
        data += netlink.attribute(_LEARNING, b"\0") + netlink.attribute(_PROXY, b"\1")
        data += netlink.attribute(_PORT, struct.pack("!H", port))
        return netlink.add_link(name=name, kind="vxlan", mtu=mtu, data=data)

    # etcd

    def store(self) -> Store:
        """Return the hosts' common records, over a connection of its own.

        Raises:
            ConfigError: no etcd is configured, or this host's address cannot be told.
        """
        options: OverlayConfig = self.options
        if not options.etcd:
            raise ConfigError(
                "network driver overlay needs etcd: set transom.driver-opts.network.overlay.etcd to its members, "
                "http://10.0.0.1:2379"
            )
        tls = Tls(
            ca=options.etcd_ca, cert=options.etcd_cert, key=options.etcd_key, user=options.etcd_user,
            password=_content(options.etcd_password_file),
        )  # fmt: skip
        etcd = Etcd(options.etcd, tls)
        return Store(etcd, prefix=options.etcd_prefix, host=self.host, member=self._member())

    @property
    def host(self) -> str:
        """This host's name among the others."""
        return self.options.host or os.uname().nodename

    def _member(self) -> Member:
        with open(self.boot_id) as file:
            return Member(boot=file.read().strip(), vtep=self._address())

    def _address(self) -> str:
        asked: str = self.options.address
        if asked:
            return asked if is_address(asked) else _address_of(asked)
        try:
            return towards(self.options.etcd[0])
        except OSError as error:
            raise ConfigError(
                f"network driver overlay cannot tell this host's address ({error}): set the option address"
            ) from None

    def with_store(
        self, operation: str, subject: str, work: Callable[[Store], T], *, hint: str = "", patience: float = 0.0
    ) -> T:
        """Do something with the hosts' records, after saying which boot this host is in and what is overdue.

        Args:
            patience: for how many seconds to wait for etcd; 0 gives each member its time.

        Raises:
            DriverError: etcd is away, or has lost what it knew.
        """
        store = self.store()
        store.etcd.patience = patience
        try:
            store.present_host()
            if operation not in _LEAVING and self._lost(store):
                raise DriverError(
                    operation, driver=DRIVER, subject=subject,
                    cause="etcd has lost its records",
                    hint="what runs goes on, and its hosts record it anew within seconds: try again then",
                )  # fmt: skip
            self.settle_debts(store)
            return work(store)
        except Refused as error:
            raise DriverError(
                operation, driver=DRIVER, subject=subject, cause=f"etcd and this host are not agreed ({error})",
                hint="what runs goes on; look at etcd-ca, etcd-cert, etcd-user and etcd-password-file in the config, "
                "and at the user's roles",
            ) from error  # fmt: skip
        except Away as error:
            raise DriverError(
                operation, driver=DRIVER, subject=subject, cause=f"etcd cannot be reached ({error})",
                hint=hint or "what runs goes on; try again when it is back",
            ) from error  # fmt: skip
        except OSError as error:
            raise DriverError(operation, driver=DRIVER, subject=subject, cause=error) from error
        finally:
            store.etcd.close()

    def _lost(self, store: Store) -> bool:
        """Say whether endpoints of this host are not recorded in the etcd that answers now."""
        here = [self.known(path.stem) for path in self.run.glob("*.peers")]
        return any(self.is_lost(store, known) for known in here if any(peer.host == self.host for peer in known.peers))

    @staticmethod
    def is_lost(store: Store, known: Known) -> bool:
        """Say whether etcd has lost what was known; one whose revision went back was restored from a snapshot."""
        if known.cluster == store.cluster and known.revision > store.revision:
            store.present_host()  # a watch may have heard of more meanwhile
            if known.cluster == store.cluster and known.revision > store.revision:
                store.renew_cluster()
                store.present_host()
        return known.cluster not in {"", store.cluster}

    def owe(self, what: str, network: str, endpoint: str) -> None:
        """Note that something is to be removed from etcd when it is back."""
        folder = self.run / "owed"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{what}.{network}.{endpoint}").touch()

    def settle_debts(self, store: Store) -> int:
        """Remove what could not be removed before; return how much that was."""
        try:
            owed = sorted(os.listdir(self.run / "owed"))
        except FileNotFoundError:
            return 0
        for name in owed:
            what, network, endpoint = name.split(".")
            (store.leave if what == "ep" else store.release)(network, endpoint)
            (self.run / "owed" / name).unlink(missing_ok=True)
        return len(owed)

    def _no_longer_owed(self, endpoint: str) -> None:
        for path in (self.run / "owed").glob(f"*.{endpoint}"):
            path.unlink(missing_ok=True)

    # Networks

    def keeps_addresses(self, network: Network) -> bool:
        """Addresses are the hosts' common ones."""
        return True

    def settle(self, network: Network) -> Network:
        """Record the network for all hosts, its subnets settled."""
        options = options_of(network)

        def work(store: Store) -> Stored:
            if options.secret:
                self._require_encryption(network, store.member.vtep)
            wanted = Stored(
                name=network.name,
                vni=options.vni,
                mtu=self.asked_mtu(network) or self._mtu(store.member.vtep, secret=options.secret),
                subnets=network.subnets,
                options={
                    field.encode_name: str(getattr(options, field.name))
                    for field in msgspec.structs.fields(OverlayOptions)
                    if getattr(options, field.name) != field.default
                },
                internal=network.internal,
                labels=network.labels,
            )
            if wanted.mtu < interfaces.IPV6_MTU and interfaces.has_family(network, 6):
                raise ConfigError(
                    f"network {network.name}: IPv6 needs an MTU of at least {interfaces.IPV6_MTU} bytes, "
                    f"not {wanted.mtu}"
                )
            return store.add_network(network, wanted)

        stored = self.with_store("settle", network.name, work, hint="networks that are there go on; make it later")
        return msgspec.structs.replace(network, subnets=stored.subnets)

    def _mtu(self, vtep: str, *, secret: bool) -> int:
        """Return what fits into packets between the hosts."""
        with Session() as session:
            carriers = [
                link.mtu
                for link in session.links()
                if link.name != "lo" and vtep in map(interfaces.plain, session.addresses(link.index))
            ]
        below, family = carriers[0] if carriers else interfaces.ETHERNET_MTU, interfaces.family(vtep)
        if not secret:
            return below - OVERHEAD[family]
        return (below - encryption.OVERHEAD[family]) // encryption.ALIGNMENT * encryption.ALIGNMENT

    @staticmethod
    def _require_encryption(network: Network, vtep: str) -> None:
        lacking = encryption.missing(interfaces.family(vtep))
        if lacking:
            raise NotSupported(
                f"network {network.name}: the kernel lacks {lacking}; leave out --opt encrypted, or use hosts that "
                "have it"
            )

    def networks(self) -> tuple[Network, ...]:
        """List the networks of all hosts; without etcd in the config there are none."""
        from transom.services.options import convert

        if not self.options.etcd:
            return ()
        if self._is_away():
            raise DriverError("networks", driver=DRIVER, cause="etcd could not be reached a moment ago")
        try:
            found = self.with_store("networks", "", lambda store: store.networks(), patience=_PROMPT)
        except DriverError:
            self.run.mkdir(parents=True, exist_ok=True)
            (self.run / "away").touch()
            raise
        return tuple(
            Network(
                id=id,
                name=stored.name,
                options=convert(driver=type(self), options=stored.options, struct=OverlayOptions, where="etcd"),
                subnets=stored.subnets,
                internal=stored.internal,
                labels=stored.labels,
            )
            for id, stored in found.items()
        )

    def peers(self, network: Network) -> dict[str, str]:
        """Say which hosts have endpoints on the network, as was heard last."""
        return {peer.host: peer.vtep for peer in self.known(network.id).peers}

    def _is_away(self) -> bool:
        """Say whether etcd was away when the networks were last listed, a moment ago."""
        try:
            return 0 <= time.time() - (self.run / "away").stat().st_mtime < _PROMPT
        except FileNotFoundError:
            return False

    def make_own_parent(self, session: Session, network: Network, name: str) -> None:
        """Make the VXLAN device as the hosts' records say."""
        record, address = self.with_store(
            "create_network", network.name, lambda store: self._prepare(store, network),
            hint="containers that run go on; this host joins the network when it is back",
        )  # fmt: skip
        port = self._port(network)
        try:
            session.request(
                self._vxlan(name, vni=record.vni, mtu=record.mtu, address=address, port=port),
                netlink.set_alias(name, self._alias("network", network.id)),
                netlink.set_up(name),
            )
        except FileExistsError:
            if self._reclaim(session, record.vni, port):
                self.make_own_parent(session, network, name)
                return
            raise Conflict(
                f"network {network.name}: another VXLAN device on this host has VNI {record.vni} at port "
                f"{port}; remove it (`ip -d link show type vxlan`)"
            ) from None

    def _reclaim(self, session: Session, vni: int, port: int) -> bool:
        """Remove the device that a network has left that had the VNI before; False where it is not one of ours."""
        start = self._alias("network", "")
        used = {child.network for child in self.children(session)}
        for link in session.links():
            data, id = netlink.attributes(link.data), link.alias.removeprefix(start)
            same = data.get(_ID) == struct.pack("=I", vni) and data.get(_PORT) == struct.pack("!H", port)
            if link.kind == "vxlan" and same and id not in used and self.recorded(id):
                interfaces.remove(session, link.name)
                return True
        return False

    def _port(self, network: Network) -> int:
        port: int = self.options.encrypted_port if options_of(network).secret else self.options.port
        return port

    def _prepare(self, store: Store, network: Network) -> tuple[Stored, str]:
        """Return the network's record and this host's address; nothing of an encrypted network leaves it from here on
        in the clear."""
        record = store.network(network.id)
        if record is None:
            raise Conflict(f"network {network.name} is on no host any more: it was removed; create it again")
        if options_of(network).secret:
            self._require_encryption(network, store.member.vtep)
            self._hear_secrets(store)
            self.encrypt(always=True)
        self.run.mkdir(parents=True, exist_ok=True)
        write_atomic(self.run / f"{network.id}.network", msgspec.json.encode(record), durable=False)
        return record, store.member.vtep

    def recorded(self, network: str) -> Stored | None:
        """Return the network's record as it was when this host made the device."""
        try:
            return _STORED.decode((self.run / f"{network}.network").read_bytes())
        except FileNotFoundError:
            return None

    def delete_network(self, network: Network) -> None:
        """Remove the device, and the network from all hosts unless only its id is known."""
        if network.name and self.options.etcd:
            self.with_store("delete_network", network.name, lambda store: store.remove_network(network.id))
        super().delete_network(network)
        for suffix in ("peers", "network", "lock"):
            (self.run / f"{network.id}.{suffix}").unlink(missing_ok=True)
        if self.encryption.known().secrets:
            self.encrypt()

    # Endpoints

    def allocate(self, network: Network, endpoint: Endpoint) -> Endpoint:
        """Claim addresses in etcd."""
        return self.with_store("allocate", endpoint.id[:12], lambda store: store.allocate(network, endpoint))

    def release(self, network: Network, endpoint: Endpoint) -> None:
        """Give them back, later where etcd is away."""
        if self.options.etcd:
            self._or_owe("ip", network, endpoint, lambda store: store.release(network.id, endpoint.id))

    def _or_owe(self, what: str, network: Network, endpoint: Endpoint, work: Callable[[Store], None]) -> None:
        if time.monotonic() >= self._ask_again:
            try:
                self.with_store("detach", endpoint.id[:12], work)
                return
            except (DriverError, ConfigError):  # the files that the config names may be gone
                self._ask_again = time.monotonic() + _AWAY
        self.owe(what, network.id, endpoint.id)

    def attach(self, network: Network, endpoint: Endpoint, netns: int) -> Attachment:
        """Join the namespace, tell the other hosts, and learn of theirs."""
        attachment = super().attach(network, endpoint, netns)
        try:
            self._no_longer_owed(endpoint.id)
            self.with_store("attach", endpoint.id[:12], lambda store: self._join(store, network, endpoint, attachment))
        except BaseException:
            self.detach(network, endpoint)
            raise
        return attachment

    def _join(self, store: Store, network: Network, endpoint: Endpoint, attachment: Attachment) -> None:
        peer = Peer(
            endpoint=endpoint.id,
            addresses=attachment.addresses,
            mac=attachment.mac or "",
            vtep=store.member.vtep,
            host=store.host,
            boot=store.member.boot,
            names=endpoint.names,
        )
        if options_of(network).secret:
            self._hear_secrets(store)
            self.encrypt()
            known = self.encryption.known()
            newest = known.secrets[0].id
            store.take(newest, sends=min([newest, *known.takes.values()]))
        peers, revision = store.join(network, peer)
        recorded = {peer.endpoint for peer in peers}
        peers += [p for p in self.known(network.id).peers if p.revision == 0 and p.endpoint not in recorded]
        self.apply(network.id, store.host, Known(revision=revision, peers=tuple(peers), cluster=store.cluster))

    def detach(self, network: Network, endpoint: Endpoint) -> None:
        """Remove the child, and tell the other hosts, later where etcd is away."""
        super().detach(network, endpoint)
        try:
            self._forget(network.id, endpoint.id)
        except OSError as error:
            raise self._error("detach", endpoint, error) from error
        if self.options.etcd:
            self._or_owe("ep", network, endpoint, lambda store: self._leave_store(store, network, endpoint))

    def _leave_store(self, store: Store, network: Network, endpoint: Endpoint) -> None:
        store.leave(network.id, endpoint.id)
        if options_of(network).secret and not self._wanted({})[1]:
            store.take(0, sends=0)  # the next secret waits for nobody here any more

    def _forget(self, network: str, endpoint: str) -> None:
        """Take note that an endpoint of this host has left, before etcd says so."""
        known = self.known(network)
        if not any(peer.endpoint == endpoint for peer in known.peers):
            return
        with Lock(self.run / f"{network}.lock"):
            known = self.known(network)
            peers = tuple(peer for peer in known.peers if peer.endpoint != endpoint)
            self._note(network, msgspec.structs.replace(known, peers=peers))
        if self.encryption.known().secrets:
            self.encrypt()

    def _note(self, network: str, known: Known) -> None:
        write_atomic(self.run / f"{network}.peers", msgspec.json.encode(known), durable=False)

    # Encryption

    @property
    def encryption(self) -> Encryption:
        """What this host knows and does about it."""
        return Encryption(self.run, self.options.encrypted_port)

    def _hear_secrets(self, store: Store) -> None:
        known = store.first_secrets(self.encryption.known(), int(self.options.key_interval))
        self.encryption.hear(known)

    def encrypt(self, peers: dict[str, tuple[Peer, ...]] | None = None, *, always: bool = False) -> None:
        """Make the kernel's tables as the encrypted networks on this host need them.

        Args:
            peers: of networks of which more is known than is on record.
            always: an encrypted network is about to be made.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        with Lock(self.run / "encryption.lock"):
            wanted = self._wanted(peers or {})[0]
            if wanted is None and not always:
                self.encryption.clear()
            else:
                self.encryption.program(self._member().vtep, wanted or Plan())

    def _wanted(self, peers: dict[str, tuple[Peer, ...]]) -> tuple[Plan | None, bool]:
        """Return what the kernel's tables should have (None: none is encrypted), and whether endpoints are on it."""
        start = self._alias("network", "")
        with Session() as session:
            found = [link.alias.removeprefix(start) for link in session.links() if self._is_encrypted(link)]
        if not found:
            return None, False
        hosts: set[Site] = set()
        active = False
        for id in found:
            there = {Site(host=p.host, vtep=p.vtep, boot=p.boot) for p in peers.get(id) or self.known(id).peers}
            if any(site.host == self.host for site in there):
                hosts, active = hosts | there, True
        member = self._member()
        own = Site(host=self.host, vtep=member.vtep, boot=member.boot)
        return encryption.plan(own, (site for site in hosts if site.host != own.host), self.encryption.known()), active

    def _is_encrypted(self, link: netlink.Link) -> bool:
        port = netlink.attributes(link.data).get(_PORT)
        ours = link.kind == "vxlan" and link.alias.startswith(self._alias("network", ""))
        return ours and port == struct.pack("!H", self.options.encrypted_port)

    def look_after_secrets(self, store: Store) -> None:
        """Take over new secrets, say that they are, and let another follow when it is time and all hosts have."""
        if not self.encryption.known().secrets:
            return
        known, due = store.secrets()
        if not known.secrets:
            known = store.first_secrets(self.encryption.known(), int(self.options.key_interval))
        if self.encryption.hear(known):
            self.encrypt()
        wanted, active = self._wanted({})
        newest = known.secrets[0].id
        now = (newest, (wanted or Plan()).oldest(newest)) if active else (0, 0)
        if now != (known.takes.get(self.host, 0), known.sends.get(self.host, 0)):
            self.encrypt()  # whoever took note of the secrets may have died before
            store.take(now[0], sends=now[1])
        elif due and {*known.takes.values(), *known.sends.values()} <= {newest}:
            store.rotate(known, int(self.options.key_interval))

    def check(self, network: Network, endpoints: tuple[Endpoint, ...]) -> list[str]:
        """Compare the devices and the encryption with what should be there."""
        said = super().check(network, endpoints) + self._strays(network)
        wanted = self._wanted({})[0] if options_of(network).secret else None
        return said + (self.encryption.differences(wanted) if wanted else [])

    def _strays(self, network: Network) -> list[str]:
        """Compare the kernel's entries of the endpoints on other hosts with what is known of them."""
        self.run.mkdir(parents=True, exist_ok=True)
        with Lock(self.run / f"{network.id}.lock"), Session() as session:
            link = session.link(self.parent_name(network))
            if link is None:
                return []
            wanted = forwarding.wanted(self.known(network.id).peers, self.host)
            return forwarding.differences(wanted, forwarding.present(session, link.index))

    def create_network(self, network: Network) -> None:
        """Find or make the device, and put its entries right; see the contract."""
        super().create_network(network)
        known = self.known(network.id)
        try:
            if known.peers:
                self.apply(network.id, self.host, known)
        except OSError as error:
            raise self._error("create_network", network, error) from error
        if options_of(network).secret:
            self.encrypt()

    def apply(self, network: str, host: str, new: Known, *, before: forwarding.Entries | None = None) -> bool:
        """Write what is known of a network's endpoints to the kernel and to the file that names are looked up in.

        Args:
            before: the entries that are in the kernel, where that is known.

        Returns:
            False when something newer has been written already, or the device is gone.
        """
        self.run.mkdir(parents=True, exist_ok=True)
        with Lock(self.run / f"{network}.lock"):
            known = self.known(network)
            if known.cluster == new.cluster and known.revision > new.revision:
                return False
            with Session() as session:
                link = session.link(f"vx-{network[:12]}")
                if link is None:
                    return False
                if self._is_encrypted(link):
                    self.encrypt({network: new.peers})
                old = before if before is not None else forwarding.present(session, link.index)
                forwarding.program(session, link.index, forwarding.wanted(new.peers, host), old)
            self._note(network, new)
        return True

    def known(self, network: str) -> Known:
        """Return what this host knew last."""
        try:
            return _KNOWN.decode((self.run / f"{network}.peers").read_bytes())
        except (FileNotFoundError, msgspec.DecodeError):
            return Known()

    def lookup(self, network: Network, name: str) -> tuple[str, ...]:
        """Look a name up in what this host knew last: also while etcd is away, and without asking it."""
        found = [peer for peer in self.known(network.id).peers if peer.host != self.host and name in peer.names]
        return tuple(address.partition("/")[0] for peer in found for address in peer.addresses)

    def watch(
        self, network: Network, endpoint: Endpoint, netns: int, stop: int, changed: Callable[[Attachment], None]
    ) -> None:
        """Follow the other hosts, for as long as the endpoint is there."""
        from transom_network_overlay.following import Follower

        if self.options.etcd:
            Follower(self, network).run(stop)

    def recover(self) -> list[str]:
        """Remove from etcd what is overdue, where it can be reached."""
        repairs = super().recover()
        if self._wanted({})[0] is None and self.encryption.clear():
            repairs.append("removed the encryption of networks that are gone")
        if self.options.etcd and (self.run / "owed").exists() and os.listdir(self.run / "owed"):
            try:
                self.with_store("recover", "", lambda store: None)
            except DriverError:
                return repairs
            repairs.append("removed from etcd what was gone while it was away")
        return repairs


def _content(path: str) -> str:
    if not path:
        return ""
    try:
        with open(path) as file:
            return file.read().strip()
    except OSError as error:
        raise ConfigError(f"network driver overlay: etcd-password-file {path}: {error.strerror}") from None


def _address_of(interface: str) -> str:
    """Return the first address of an interface that other hosts can reach, IPv4 before IPv6."""
    with Session() as session:
        links = {link.name: link.index for link in session.links()}
        found = session.addresses(links[interface]) if interface in links else {}
    addresses = [interfaces.plain(address) for address in found]
    usable = [address for address in addresses if not address.lower().startswith("fe80:")]
    if not usable:
        what = "has no address" if interface in links else "is not on this host"
        raise ConfigError(
            f"network driver overlay: interface {interface} {what}; set the option address to one of "
            f"{choices(name for name in links if name != 'lo')}, or to an address"
        )
    return min(usable, key=lambda address: ":" in address)
