"""Networks and the places of containers on them: records, addresses, and the drivers' operations in order.

A network's record is in the shape of Docker's API; a container's place on it is in the container's own record.
Addresses come from core's IPAM unless the driver has an allocator of its own. A container keeps its addresses while
it runs and through restarts by its policy; `forget` gives them back.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import msgspec

from transom.contract.network import Attachment, Endpoint, NetnsKind, Network, NetworkCapability, Port, Subnet
from transom.errors import ConfigError, Conflict, DriverError, NotFound, TransomError, choices, nearest
from transom.services.files import Lock
from transom_engine import wire
from transom_engine.model import Container, EndpointSettings, Pascal, PortBinding
from transom_engine.supervisor import now

if TYPE_CHECKING:
    from transom.contract.network import NetworkDriver
    from transom.services.ipam import Ipam
    from transom_engine.engine import Engine

DEFAULT = "bridge"
"""The name of the default network, whatever driver carries it: Docker's users write it."""


class IpamConfig(Pascal, omit_defaults=True):
    """One subnet of a network."""

    subnet: str = ""
    ip_range: str = msgspec.field(default="", name="IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = {}


class IpamRecord(Pascal):
    """How a network's addresses are managed."""

    driver: str = "default"
    options: dict[str, str] = {}
    config: list[IpamConfig] = []


class NetworkRecord(Pascal):
    """A network, in the shape of Docker's NetworkInspect."""

    name: str
    id: str = msgspec.field(name="Id")
    created: str
    driver: str
    scope: str = "local"
    enable_ipv4: bool = msgspec.field(default=True, name="EnableIPv4")
    enable_ipv6: bool = msgspec.field(default=False, name="EnableIPv6")
    ipam: IpamRecord = msgspec.field(default_factory=IpamRecord, name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    containers: dict[str, dict[str, str]] = {}
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


msgspec.json.Decoder(NetworkRecord)  # now: msgspec crashes when two threads meet a type for the first time at once


class Place(msgspec.Struct, frozen=True):
    """A container's network namespace: a descriptor, -1 for the host's; `own` when it was made for this container."""

    fd: int
    own: bool


class Networks:
    """See the module's text."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def close(self) -> None:
        """Close the database of addresses; it is opened again when it is used again."""
        if "ipam" in self.__dict__:
            self.ipam.close()

    # Records

    def list(self) -> list[NetworkRecord]:
        """Return all networks by name, those that are always there included."""
        from transom.drivers import installed

        self.get(DEFAULT)
        self._take_over()
        for driver in installed("network"):
            if NetworkCapability.SINGLETON in self.engine.network_driver(driver.name).capabilities:
                self.get(driver.name)
        return sorted(self.engine.state.all("network", NetworkRecord), key=lambda n: n.name)

    def get(self, reference: str) -> NetworkRecord:
        """Return the network with that name, id or beginning of an id; the predefined ones are made on the way.

        Raises:
            NotFound: none matches.
            Conflict: several ids begin so.
        """
        record = self.engine.state.find("network", NetworkRecord, name=reference)
        if record is None:
            record = self._predefined(reference)
        if record is None:
            self._take_over()
            record = self.engine.state.find("network", NetworkRecord, name=reference) or self._by_id(reference)
        assert isinstance(record, NetworkRecord)
        return record

    def _by_id(self, reference: str) -> NetworkRecord:
        records: list[NetworkRecord] = self.engine.state.all("network", NetworkRecord)
        found = [r for r in records if reference and r.id.startswith(reference)]
        if len(found) > 1:
            raise Conflict(f"network id {reference!r} is ambiguous; write more of it")
        if not found:
            names = [r.name for r in records]
            raise NotFound(
                f"no such network: {reference}{nearest(reference, names)}; networks here: {choices({*names, DEFAULT})}"
            )
        return found[0]

    def _take_over(self) -> None:
        """Bring the records of networks that span hosts up to what their drivers know of them."""
        from transom.drivers import installed

        for name in (d.name for d in installed("network")):
            driver = self.engine.network_driver(name)
            if NetworkCapability.MULTI_HOST not in driver.capabilities:
                continue
            try:
                known = {network.id: network for network in driver.networks()}
            except TransomError:
                continue  # what the hosts share is away: those on record serve
            with self._lock():
                records = {r.id: r for r in self.engine.state.all("network", NetworkRecord)}
                taken = {r.name for r in records.values()} | {DEFAULT}
                for network in known.values():
                    if network.id not in records and network.name not in taken:
                        self._record(_record_of(network, name))
                for record in records.values():
                    if record.driver == name and record.id not in known and not self._users(record):
                        self._remove(record)

    def _predefined(self, name: str) -> NetworkRecord | None:
        """Make the record of the default network or of a driver's only one, when it is first asked for."""
        if name == DEFAULT:
            driver = self.engine.default_driver("network")
        else:
            from transom.drivers import installed

            if name not in {d.name for d in installed("network")}:
                return None
            driver = name
            if NetworkCapability.SINGLETON not in self.engine.network_driver(driver).capabilities:
                return None
        with self._lock():
            record = self.engine.state.find("network", NetworkRecord, name=name)
            if record is not None or name != DEFAULT:
                return record or self._add(name, driver, configs=[])
            return self._add(name, driver, configs=self._default_subnets(), ipv6=self.engine.config.ipv6)

    def _default_subnets(self) -> builtins.list[IpamConfig]:
        """Return what Docker's keys bip, fixed-cidr and default-gateway say of the default network."""
        config = self.engine.config
        subnets = []
        for bip, part, gateway in (
            (config.bip, config.fixed_cidr, config.default_gateway),
            (config.bip6, config.fixed_cidr_v6, config.default_gateway_v6),
        ):
            if not bip and not part:
                continue
            from ipaddress import ip_interface

            net = ip_interface(bip or part)
            address = str(net.ip) if bip else ""
            subnets.append(IpamConfig(subnet=str(net.network), ip_range=part, gateway=gateway or address))
        return subnets

    def create(
        self,
        name: str,
        *,
        driver: str = "",
        configs: builtins.list[IpamConfig] | None = None,
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        internal: bool = False,
        ipv4: bool = True,
        ipv6: bool = False,
        attachable: bool = False,
    ) -> NetworkRecord:
        """Make a network, on the host too, so that what is wrong shows now.

        Raises:
            Conflict: the name is taken, or a subnet overlaps one of ours or of the host.
            ConfigError: bad words; a driver whose networks users do not make.
        """
        if not name or not name[0].isalnum() or not all(c.isalnum() or c in "_.-" for c in name) or not name.isascii():
            raise ConfigError(
                f"invalid network name {name!r}: only a-z A-Z 0-9 _ . - are allowed, the first not a sign"
            )
        driver = driver or self.engine.default_driver("network")
        opened = self.engine.network_driver(driver)
        if opened.capabilities & {NetworkCapability.SINGLETON, NetworkCapability.REFERENCE}:
            raise ConfigError(
                f"network driver {driver} has one network only, which is there already: use it by its name"
            )
        if internal and NetworkCapability.INTERNAL not in opened.capabilities:
            raise opened.unsupported(NetworkCapability.INTERNAL)
        if not ipv4 and not ipv6:
            raise ConfigError("--ipv4=false leaves the network without addresses: add --ipv6")
        if ipv6 and NetworkCapability.IPV6 not in opened.capabilities:
            raise opened.unsupported(NetworkCapability.IPV6)
        if NetworkCapability.MULTI_HOST in opened.capabilities:
            self._take_over()
        with self._lock():
            if name == DEFAULT or self.engine.state.find("network", NetworkRecord, name=name) is not None:
                raise Conflict(f"network with name {name} already exists; choose another, or remove it first")
            record = self._add(
                name, driver, configs=configs or [], options=options or {}, labels=labels or {},
                internal=internal, ipv4=ipv4, ipv6=ipv6, attachable=attachable,
            )  # fmt: skip
        try:
            opened.create_network(network=self._network(record))
        except BaseException:
            self._remove(record)
            raise
        self.engine.state.event("network", "create", record.id, name=name, type=driver)
        return record

    def _add(
        self,
        name: str,
        driver: str,
        *,
        configs: builtins.list[IpamConfig],
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        internal: bool = False,
        ipv4: bool = True,
        ipv6: bool = False,
        attachable: bool = False,
    ) -> NetworkRecord:
        record = NetworkRecord(
            name=name, id=os.urandom(32).hex(), created=now(), driver=driver, options=options or {},
            labels=labels or {}, internal=internal, enable_ipv4=ipv4, enable_ipv6=ipv6, attachable=attachable,
            scope=_scope(self.engine.network_driver(driver)),
        )  # fmt: skip
        record.ipam.config = configs
        record.ipam.config = self._settle_subnets(record)
        return self._record(record)

    def _record(self, record: NetworkRecord) -> NetworkRecord:
        self.engine.state.add("network", record, id=record.id, name=record.name)
        return record

    def remove(self, reference: str) -> None:
        """Remove a network from the host and from the records.

        Raises:
            Conflict: containers are on it, or it is one that is always there.
        """
        record = self.get(reference)
        opened = self.engine.network_driver(record.driver)
        if record.name == DEFAULT or NetworkCapability.SINGLETON in opened.capabilities:
            raise Conflict(f"{record.name} is a pre-defined network and cannot be removed")
        if users := self._users(record):
            raise Conflict(
                f"network {record.name} has active endpoints: {', '.join(users)}; stop or disconnect them first"
            )
        self._remove(record)
        self.engine.state.event("network", "destroy", record.id, name=record.name, type=record.driver)

    def _users(self, record: NetworkRecord) -> builtins.list[str]:
        return sorted(c.name for c in self.engine.containers.list() if record.name in c.network_settings.networks)

    def _remove(self, record: NetworkRecord) -> None:
        self.engine.network_driver(record.driver).delete_network(network=self._network(record))
        if record.ipam.config and not self._keeps_addresses(record):
            self.ipam.forget(self._network(record))
        self.engine.state.delete("network", id=record.id)

    def inspect(self, reference: str) -> NetworkRecord:
        """Return a network's record with the containers that are on it now."""
        record = self.get(reference)
        for container in self.engine.containers.list():
            place = container.network_settings.networks.get(record.name)
            if place is not None and place.endpoint_id:
                record.containers[container.id] = {
                    "Name": container.name,
                    "EndpointID": place.endpoint_id,
                    "MacAddress": place.mac_address,
                    "IPv4Address": f"{place.ip_address}/{place.ip_prefix_len}" if place.ip_address else "",
                    "IPv6Address": (
                        f"{place.global_ipv6_address}/{place.global_ipv6_prefix_len}"
                        if place.global_ipv6_address
                        else ""
                    ),
                }
        return record

    # What a container asks for

    def check(self, container: Container) -> builtins.list[str]:
        """Refuse, when a container is made, what its network mode cannot give, and settle its list of networks.

        Returns:
            what is asked for in vain, a warning each.

        Raises:
            ConfigError: words that contradict each other, named.
            NotFound: no such network, driver or container.
        """
        host, settings = container.host_config, container.network_settings
        mode, _, reference = host.network_mode.partition(":")
        if reference:
            opened = self.engine.network_driver(mode)
            if NetworkCapability.REFERENCE not in opened.capabilities:
                raise ConfigError(f"network driver {mode} takes nothing after a colon: write --network {mode}")
            host.network_mode = f"{mode}:{self.engine.containers.get(reference).id}"
            self._refuse_with(container, host.network_mode, publish=True, names=True)
            settings.networks = {}
            return []
        record = self.get(host.network_mode)
        opened = self.engine.network_driver(record.driver)
        if NetworkCapability.L2 not in opened.capabilities:
            place = settings.networks.get(record.name)
            self._refuse_with(container, record.name, publish=False, names=False)
            if place is not None and (place.ipam_config or place.aliases):
                raise ConfigError(f"--ip and --network-alias need a network with addresses: {record.name} has none")
        settings.networks.setdefault(record.name, EndpointSettings())
        for name, place in settings.networks.items():
            other = self.get(name)
            if len(settings.networks) > 1:
                self._check_connectable(container, other)
            self._check_place(other, place)
        if NetworkCapability.PUBLISH in opened.capabilities or not (host.port_bindings or host.publish_all_ports):
            return []
        return [f"published ports are discarded: network {record.name} does not publish any"]

    @staticmethod
    def _refuse_with(container: Container, mode: str, *, publish: bool, names: bool) -> None:
        host, config = container.host_config, container.config
        asked = {
            "--publish": publish and (host.port_bindings or host.publish_all_ports),
            "--hostname": names and config.hostname,
            "--dns": names and (host.dns or host.dns_search or host.dns_options),
            "--add-host": names and host.extra_hosts,
            "--network-alias or --ip": names and any(
                p.aliases or p.ipam_config for p in container.network_settings.networks.values()
            ),
        }  # fmt: skip
        for flag, given in asked.items():
            if given:
                raise ConfigError(f"conflicting options: {flag} and --network {mode[:30]}: the other container decides")

    def _check_place(self, record: NetworkRecord, place: EndpointSettings) -> None:
        place.network_id = record.id
        struct = self.engine.network_driver(record.driver).EndpointOptions
        self._options(record.driver, struct, place.driver_opts or {}, "--driver-opt")
        if record.name == DEFAULT and place.aliases:
            raise ConfigError(
                "network-scoped aliases are only supported for user-defined networks: `transom network create`"
            )
        for link in place.links or ():
            other = self.engine.containers.get(link.partition(":")[0])
            if record.name == DEFAULT and not other.state.running:
                raise Conflict(f"cannot link to {other.name}: it is not running; start it first")
        asked = any((place.ipam_config or {}).get(key) for key in ("IPv4Address", "IPv6Address"))
        if asked and record.name == DEFAULT:
            raise ConfigError(
                "a fixed address (--ip) is only supported on user-defined networks: `transom network create`"
            )

    def shares_host(self, mode: str) -> bool:
        """Say whether a container of that network mode is in the host's own network namespace."""
        if ":" in mode:
            return False
        driver = self.engine.network_driver(self.get(mode).driver)
        return driver.netns(endpoint=Endpoint(id="", container="")).kind is NetnsKind.HOST

    # A container's run

    def namespace(self, container: Container, *, proc: int) -> Place:
        """Give the container its network namespace.

        Args:
            proc: a descriptor of the host's /proc, where another container's namespace is found.
        """
        mode, _, reference = container.host_config.network_mode.partition(":")
        driver = mode if reference else self.get(mode).driver
        endpoint = Endpoint(id=container.id, container=container.id, reference=reference or None)
        netns = self.engine.network_driver(driver).netns(endpoint=endpoint)
        if netns.kind is NetnsKind.HOST:
            return Place(fd=-1, own=False)
        if netns.kind is NetnsKind.CONTAINER:
            other = self._shared(container, netns.of or "")
            try:
                fd = os.open(f"{other.state.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            except FileNotFoundError:  # it has ended; with no pid on record there is no such path either
                raise Conflict(
                    f"cannot join the network of container {other.name}: it is not running; start it first"
                ) from None
            return Place(fd=fd, own=False)
        from transom.services.netns import create

        return Place(fd=create(), own=True)

    def _shared(self, container: Container, id: str) -> Container:
        try:
            return self.engine.state.container(id)
        except NotFound:
            raise Conflict(
                f"cannot join the network of container {id[:12]}: it has been removed;"
                f" make {container.name} again with --network container:ANOTHER"
            ) from None

    def host_of(self, container: Container) -> Container:
        """Return the container whose network, host name and files about both this one has: itself, or another."""
        other = container.host_config.network_mode.partition(":")[2]
        return self.host_of(self._shared(container, other)) if other else container

    def join(self, container: Container, netns: int) -> None:
        """Join the container to each of its networks and publish its ports; `leave` undoes it, however far it got."""
        places = container.network_settings.networks
        for name, place in places.items():
            self._join_one(container, name, place, netns)
        self._route(container, netns)
        container.network_settings.ports = dict.fromkeys(container.config.exposed_ports)
        # Where there is no way out the driver says why nothing can be published.
        ways = self._ways_out(container) or dict.fromkeys((4, 6), next(iter(places), ""))
        self._publish(container, ways, tuple(self._ports(container)))

    def note(self, container: Container, record: Container, *joined: str) -> None:
        """Copy to a record what `container` has got on its networks and where its ports are.

        What a command has put it on or taken it off meanwhile stays as it is on record, but for what it `joined`.
        """
        places = record.network_settings.networks
        for name, place in container.network_settings.networks.items():
            if name in places or name in joined:
                places[name] = place
        record.network_settings.ports = container.network_settings.ports

    def _ways_out(self, container: Container) -> dict[int, str]:
        """Return the network by which the container reaches everything else, for each address family.

        It is the one with the highest priority; among equals, Docker takes the first by name.
        """
        ways: dict[int, str] = {}
        places = container.network_settings.networks
        for name in sorted(places, key=lambda name: (-places[name].gw_priority, name)):
            for number, gateway in ((4, places[name].gateway), (6, places[name].ipv6_gateway)):
                if gateway:
                    ways.setdefault(number, name)
        return ways

    def _route(self, container: Container, netns: int) -> None:
        from transom.services.interfaces import route_by

        places = container.network_settings.networks
        hops = [
            (places[name].interface, places[name].ipv6_gateway if number == 6 else places[name].gateway)
            for number, name in self._ways_out(container).items()
        ]
        try:
            route_by(netns, hops)
        except OSError as error:
            raise DriverError("route", driver="networks", subject=container.name, cause=error) from error

    def _join_one(self, container: Container, name: str, place: EndpointSettings, netns: int) -> None:
        record = self.get(name)
        driver, network = self.engine.network_driver(record.driver), self._network(record)
        driver.create_network(network=network)
        place.network_id, place.endpoint_id = record.id, place.endpoint_id or os.urandom(32).hex()
        # On record before the driver acts: a crash in between is cleared away by what it says.
        with self.engine.state.changing(container.id) as kept:
            self.note(container, kept, name)
        endpoint = self._allocate(container, record, network, place, driver)
        attachment = driver.attach(network=network, endpoint=endpoint, netns=netns)
        _note(place, attachment)
        self.engine.state.event("network", "connect", record.id, container=container.id, name=name, type=record.driver)

    def _allocate(
        self,
        container: Container,
        record: NetworkRecord,
        network: Network,
        place: EndpointSettings,
        driver: NetworkDriver,
    ) -> Endpoint:
        asked = place.ipam_config or {}
        static = tuple(asked[key] for key in ("IPv4Address", "IPv6Address") if asked.get(key))
        endpoint = msgspec.structs.replace(
            self._endpoint(container, record, place),
            static=bool(static),
            addresses=static,
            mac=asked.get("MacAddress") or None,
        )
        if driver.keeps_addresses(network=network):
            return driver.allocate(network=network, endpoint=endpoint)
        return self.ipam.allocate(network, endpoint) if network.subnets else endpoint

    def _publish(self, container: Container, ways: dict[int, str], ports: tuple[Port, ...]) -> None:
        """Publish each port at the network that leads out, and note where; what was there before is replaced.

        A network that leads out for both families gets both at once, so that a free port is free for both.
        """
        settings = container.network_settings
        for name in dict.fromkeys(ways.values()):
            families = {number for number, way in ways.items() if way == name}
            one_way = len(set(ways.values())) == 1
            wanted = [p for p in ports if one_way or not p.address or family(p.address) in families]
            if not name or not wanted:
                continue
            record, place = self.get(name), settings.networks[name]
            driver = self.engine.network_driver(record.driver)
            if NetworkCapability.PUBLISH not in driver.capabilities:
                continue  # Docker's word: published ports are discarded when using host network mode
            endpoint = self._endpoint(container, record, place)
            kept = tuple(a for a in endpoint.addresses if family(a) in families)
            endpoint = msgspec.structs.replace(endpoint, addresses=kept)
            for port in driver.publish(network=self._network(record), endpoint=endpoint, ports=tuple(wanted)):
                key = f"{port.container}/{port.protocol}"
                listed = settings.ports.get(key) or []
                settings.ports[key] = [*listed, PortBinding(host_ip=port.address, host_port=str(port.host))]

    def _move_ways_out(self, container: Container, before: dict[int, str], netns: int) -> None:
        """Route by the networks that lead out now, and publish there, at the same ports, what was published."""
        self._route(container, netns)
        after = self._ways_out(container)
        if after == before:
            return
        for name in {*before.values()} & {*container.network_settings.networks}:
            record = self.get(name)
            driver = self.engine.network_driver(record.driver)
            if NetworkCapability.PUBLISH in driver.capabilities:
                place = container.network_settings.networks[name]
                driver.unpublish(network=self._network(record), endpoint=self._endpoint(container, record, place))
        self._publish_again(container, after)

    def _publish_again(self, container: Container, ways: dict[int, str]) -> None:
        """Publish at the networks that lead out what is published on record, at the same ports of the host."""
        bound = [port for port in _bound(container) if family(port.address) in ways]
        container.network_settings.ports = dict.fromkeys(container.network_settings.ports)
        self._publish(container, ways, tuple(bound))

    def damage(self) -> Iterator[tuple[str, str, Callable[[], None]]]:
        """Yield each network of containers that run that is not as it should be: name, what is off, how to repair."""
        for name in sorted({name for c in self.engine.state.containers() for name in c.network_settings.networks}):
            while said := self._differences(name, containers := self._members(name)):
                if [c.id for c in containers] == [c.id for c in self._members(name)]:  # else one came or went meanwhile
                    more = f" (and {len(said) - 1} more)" if said[1:] else ""
                    yield name, said[0] + more, partial(self._repair, name)
                    break

    def _members(self, name: str) -> builtins.list[Container]:
        """Return the containers that are on the network and stay there: no command changes them, none is ending."""
        found = []
        for container in self.engine.state.containers():
            place = container.network_settings.networks.get(name)
            lock = self.engine.lock(container.id)
            if place is not None and place.endpoint_id and _lives(container.state.pid) and lock.acquire(wait=False):
                lock.release()
                found.append(container)
        return found

    def _differences(self, name: str, containers: builtins.list[Container]) -> builtins.list[str]:
        record = self.get(name)
        ends = [self._endpoint(c, record, c.network_settings.networks[name]) for c in containers]
        driver = self.engine.network_driver(record.driver)
        return driver.check(network=self._network(record), endpoints=tuple(ends))

    def _repair(self, name: str) -> None:
        """Make the network anew where it is broken; join anew, and publish, only those that it does not help."""
        record = self.get(name)
        driver, network = self.engine.network_driver(record.driver), self._network(record)
        driver.create_network(network=network)
        for container in self._members(name):
            with self.engine.lock(container.id):
                if not _lives(container.state.pid):
                    continue
                ways = self._ways_out(container)
                if name in ways.values() and self._differences(name, [container]):
                    self._publish_again(container, ways)
                if self._differences(name, [container]):
                    endpoint = self._endpoint(container, record, container.network_settings.networks[name])
                    driver.detach(network=network, endpoint=endpoint)
                    with _netns_of(container) as netns:
                        driver.attach(network=network, endpoint=endpoint, netns=netns)
                        self._route(container, netns)
                    if name in ways.values():
                        self._publish_again(container, ways)

    def _ports(self, container: Container) -> Iterator[Port]:
        host = container.host_config
        for key, bindings in host.port_bindings.items():
            number, _, protocol = key.partition("/")
            for binding in bindings:
                first, _, last = binding.host_port.partition("-")
                address = binding.host_ip or ("" if self.engine.config.ip == "0.0.0.0" else self.engine.config.ip)
                yield Port(
                    container=int(number), protocol=protocol or "tcp", host=int(first or 0), host_end=int(last or 0),
                    address=address,
                )  # fmt: skip
        if host.publish_all_ports:
            for key in container.config.exposed_ports:
                if key not in host.port_bindings:
                    number, _, protocol = key.partition("/")
                    yield Port(container=int(number), protocol=protocol or "tcp")

    def leave(self, container: Container) -> None:
        """Take the container off its networks. Safe when it never joined, and after its namespace is gone."""
        for name, place in container.network_settings.networks.items():
            if place.endpoint_id:
                self._leave_one(container, name, place)

    def _leave_one(self, container: Container, name: str, place: EndpointSettings) -> None:
        try:
            record = self.get(name)
        except NotFound:
            return
        self.engine.network_driver(record.driver).detach(
            network=self._network(record), endpoint=self._endpoint(container, record, place)
        )
        self.engine.state.event(
            "network", "disconnect", record.id, container=container.id, name=name, type=record.driver
        )

    def forget(self, container: Container) -> None:
        """Give the container's addresses back and clear what its record says of its run; the caller saves it."""
        settings = container.network_settings
        for name, place in settings.networks.items():
            if place.endpoint_id:
                try:
                    self._release(container, name, place)
                except DriverError as error:  # where several hosts keep them: the end of a run does not wait for that
                    print(f"addresses of {container.name} on {name}: {error}", file=sys.stderr, flush=True)
        settings.ports = {}
        settings.networks = {
            name: EndpointSettings(
                aliases=place.aliases,
                links=place.links,
                ipam_config=place.ipam_config,
                driver_opts=place.driver_opts,
                network_id=place.network_id,
                gw_priority=place.gw_priority,
            )
            for name, place in settings.networks.items()
        }

    def _release(self, container: Container, name: str, place: EndpointSettings) -> None:
        network, endpoint = Network(id=place.network_id, name=name), Endpoint(id=place.endpoint_id, container="")
        try:
            record = self.get(name)
        except NotFound:
            self.ipam.release(network, endpoint)
            return
        if not self._keeps_addresses(record):
            self.ipam.release(network, endpoint)
            return
        self.engine.network_driver(record.driver).release(
            network=self._network(record), endpoint=self._endpoint(container, record, place)
        )

    def _keeps_addresses(self, record: NetworkRecord) -> bool:
        return self.engine.network_driver(record.driver).keeps_addresses(network=self._network(record))

    def _is_watched(self, record: NetworkRecord) -> bool:
        return NetworkCapability.WATCH in self.engine.network_driver(record.driver).capabilities

    def watches(self, container: Container, netns: int) -> dict[str, Callable[[int], None]]:
        """Return what must run while the container does, by endpoint: `NetworkDriver.watch` without its `stop`."""
        found: dict[str, Callable[[int], None]] = {}
        for name, place in container.network_settings.networks.items():
            record = self.get(name)
            driver = self.engine.network_driver(record.driver)
            if place.endpoint_id and self._is_watched(record):
                network, endpoint = self._network(record), self._endpoint(container, record, place)
                found[place.endpoint_id] = lambda stop, d=driver, n=network, e=endpoint: d.watch(  # type: ignore[misc]
                    network=n, endpoint=e, netns=netns, stop=stop
                )
        return found

    # Names

    def resolves(self, container: Container) -> bool:
        """Say whether names are resolved where the container is: on a network of its own or of the one it joins."""
        container = self.host_of(container)
        return any(self.has_names(self.get(name)) for name in container.network_settings.networks)

    def linked(self, container: Container) -> dict[str, str]:
        """Return, by address, what the container calls others that it has links to where names are not resolved."""
        found: dict[str, str] = {}
        for network, place in container.network_settings.networks.items():
            for link in place.links or () if not self.has_names(self.get(network)) else ():
                name, _, alias = link.partition(":")
                try:
                    other = self.engine.containers.get(name)
                except NotFound:
                    continue  # it has been removed since
                theirs = other.network_settings.networks.get(network)
                if theirs is not None and theirs.ip_address and other.state.running:
                    found[theirs.ip_address] = " ".join(dict.fromkeys((alias, other.config.hostname, other.name)))
        return found

    def has_names(self, record: NetworkRecord) -> bool:
        """Say whether containers find each other by name on that network."""
        if record.name == DEFAULT:
            return False
        return NetworkCapability.NAMES in self.engine.drivers.load("network", record.driver).capabilities

    def looks_up(self, record: NetworkRecord) -> bool:
        """Say whether the network's driver knows the names of containers on other hosts."""
        return NetworkCapability.LOOKUP in self.engine.drivers.load("network", record.driver).capabilities

    def lookup(self, record: NetworkRecord, name: str) -> tuple[str, ...]:
        """Ask the network's driver for the addresses that a name has on other hosts."""
        return self.engine.network_driver(record.driver).lookup(network=self._network(record), name=name)

    # While it runs

    def connect(self, reference: str, container: Container, place: EndpointSettings) -> None:
        """Put a container on one more network, at once when it runs.

        Raises:
            Conflict: it is on it already.
            ConfigError: its network mode, or the network's driver, does not allow it.
        """
        record = self.get(reference)
        with self.engine.lock(container.id):
            container = self.engine.state.container(container.id)
            self._check_connectable(container, record)
            if record.name in container.network_settings.networks:
                raise Conflict(f"container {container.name} is already on network {record.name}")
            self._check_place(record, place)
            before = self._ways_out(container)
            resolved = self.resolves(container)
            container.network_settings.networks[record.name] = place
            if container.state.pid:
                with _netns_of(container) as netns:
                    try:
                        self._join_one(container, record.name, place, netns)
                        self._move_ways_out(container, before, netns)
                    except BaseException:
                        self._leave_one(container, record.name, place)
                        self._release(container, record.name, place)
                        with self.engine.state.changing(container.id) as kept:
                            kept.network_settings.networks.pop(record.name, None)
                        raise
            with self.engine.state.changing(container.id) as kept:
                self.note(container, kept, record.name)
        if container.state.pid and (self._is_watched(record) or (self.has_names(record) and not resolved)):
            self._reload(container)

    def _reload(self, container: Container) -> None:
        """Tell the supervisor to look at the container's networks again: for the resolver, and what must be watched."""
        try:
            connection = self.engine.containers.connect(container)
        except Conflict:
            return  # it has just ended
        try:
            connection.ask(wire.Request(do="reload"))
        except DriverError:
            pass  # likewise
        finally:
            connection.close()

    def _check_connectable(self, container: Container, record: NetworkRecord) -> None:
        mode = container.host_config.network_mode
        for name in (mode, record.name):
            driver = name.partition(":")[0] if ":" in name else self.get(name).driver
            if NetworkCapability.HOT_PLUG not in self.engine.network_driver(driver).capabilities:
                raise ConfigError(
                    f"container {container.name} cannot be connected to {record.name}:"
                    f" network {name[:30]} shares or isolates its namespace whole"
                )

    def disconnect(self, reference: str, container: Container, *, force: bool = False) -> None:
        """Take a container off a network, at once when it runs; with `force` being off it already is no error."""
        record = self.get(reference)
        with self.engine.lock(container.id):
            container = self.engine.state.container(container.id)
            place = container.network_settings.networks.get(record.name)
            if place is None:
                if force:
                    return
                raise Conflict(f"container {container.name} is not on network {record.name}")
            before = self._ways_out(container)
            if place.endpoint_id:
                self._leave_one(container, record.name, place)
                self._release(container, record.name, place)
            del container.network_settings.networks[record.name]
            if container.state.pid:
                with _netns_of(container) as netns:
                    self._move_ways_out(container, before, netns)
            with self.engine.state.changing(container.id) as kept:
                kept.network_settings.networks.pop(record.name, None)
                self.note(container, kept)
        if container.state.pid and self._is_watched(record):
            self._reload(container)

    # Between records and contracts

    @cached_property
    def ipam(self) -> Ipam:
        """Core's address management, over its own database."""
        from transom.services.ipam import DEFAULT_POOLS, Ipam

        pools = [(pool.base, pool.size) for pool in self.engine.config.default_address_pools]
        return Ipam(self.engine.state_dir / "ipam.db", pools=pools or DEFAULT_POOLS)

    def _settle_subnets(self, record: NetworkRecord) -> builtins.list[IpamConfig]:
        """Reserve the network's subnets with core's IPAM, where the driver has endpoints with addresses of it."""
        driver, network = self.engine.network_driver(record.driver), self._network(record)
        if driver.keeps_addresses(network=network):
            return _configs(driver.settle(network=network))
        if NetworkCapability.L2 not in driver.capabilities:
            return record.ipam.config
        return _configs(self.ipam.settle(network, ipv4=record.enable_ipv4, ipv6=record.enable_ipv6))

    def _endpoint(self, container: Container, record: NetworkRecord, place: EndpointSettings) -> Endpoint:
        pairs = ((place.ip_address, place.ip_prefix_len), (place.global_ipv6_address, place.global_ipv6_prefix_len))
        struct = self.engine.network_driver(record.driver).EndpointOptions
        ways = self._ways_out(container)
        return Endpoint(
            id=place.endpoint_id,
            container=container.id,
            names=(container.name, container.id[:12], *(place.aliases or [])),
            addresses=tuple(f"{address}/{prefix}" for address, prefix in pairs if address),
            mac=place.mac_address or None,
            options=self._options(record.driver, struct, place.driver_opts or {}, "--driver-opt"),
            ports=tuple(port for port in _bound(container) if ways.get(family(port.address)) == record.name),
        )

    def _network(self, record: NetworkRecord) -> Network:
        driver = self.engine.network_driver(record.driver)
        config = self.engine.config
        defaults = config.default_network_opts.get(record.driver, {})
        return Network(
            id=record.id,
            name=record.name,
            options=self._options(
                record.driver,
                driver.NetworkOptions,
                {**defaults, **self._daemon_options(record), **record.options},
                "--opt",
            ),
            subnets=tuple(
                Subnet(
                    pool=c.subnet, gateway=c.gateway or None, range=c.ip_range or None, reserved=c.auxiliary_addresses
                )
                for c in record.ipam.config
            ),
            internal=record.internal,
            default=record.name == DEFAULT,
            mtu=(config.mtu or None) if record.name == DEFAULT else None,
            labels=record.labels,
        )

    def _daemon_options(self, record: NetworkRecord) -> dict[str, str]:
        """Return what Docker's keys bridge, icc and ip-masq say of the default network, where its driver knows it."""
        if record.name != DEFAULT:
            return {}
        config = self.engine.config
        words = {
            "com.docker.network.bridge.name": config.bridge,
            "com.docker.network.bridge.enable_icc": "" if config.icc else "false",
            "com.docker.network.bridge.enable_ip_masquerade": "" if config.ip_masq else "false",
        }
        struct = self.engine.network_driver(record.driver).NetworkOptions
        known = {field.encode_name for field in msgspec.structs.fields(struct)}
        return {name: word for name, word in words.items() if word and name in known}

    def _options(self, driver: str, struct: type[msgspec.Struct], words: dict[str, str], where: str) -> Any:
        if not words and not any(field.required for field in msgspec.structs.fields(struct)):
            return struct()
        from transom.services.options import convert

        return convert(driver=self.engine.drivers.load("network", driver), options=words, struct=struct, where=where)

    def _lock(self) -> Lock:
        return self.engine.lock("networks")


def _bound(container: Container) -> list[Port]:
    """Return where the container's ports are published, as its record has it."""
    return [
        Port(
            container=int(key.partition("/")[0]), protocol=key.partition("/")[2], host=int(binding.host_port),
            address=binding.host_ip,
        )
        for key, bindings in container.network_settings.ports.items() for binding in bindings or ()
    ]  # fmt: skip


def family(address: str) -> int:
    """Return 4 or 6."""
    return 6 if ":" in address else 4


def _scope(driver: NetworkDriver) -> str:
    return "global" if NetworkCapability.MULTI_HOST in driver.capabilities else "local"


def _lives(pid: int) -> bool:
    """Say whether the process is there and has not ended; 0 is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return pid > 0 and file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _configs(network: Network) -> list[IpamConfig]:
    return [
        IpamConfig(subnet=s.pool, gateway=s.gateway or "", ip_range=s.range or "", auxiliary_addresses=s.reserved)
        for s in network.subnets
    ]


def _record_of(network: Network, driver: str) -> NetworkRecord:
    """Write down a network that another host made."""
    from transom.services.options import words_of

    return NetworkRecord(
        name=network.name, id=network.id, created=now(), driver=driver, scope="global", internal=network.internal,
        enable_ipv4=any(":" not in subnet.pool for subnet in network.subnets),
        enable_ipv6=any(":" in subnet.pool for subnet in network.subnets), ipam=IpamRecord(config=_configs(network)),
        options=words_of(network.options), labels=network.labels,
    )  # fmt: skip


def _note(place: EndpointSettings, attachment: Attachment) -> None:
    place.interface, place.mac_address = attachment.interface or "", attachment.mac or ""
    for address in attachment.addresses:
        text, _, prefix = address.partition("/")
        if ":" in text:
            place.global_ipv6_address, place.global_ipv6_prefix_len = text, int(prefix)
        else:
            place.ip_address, place.ip_prefix_len = text, int(prefix)
    place.gateway = next((g for g in attachment.gateways if ":" not in g), "")
    place.ipv6_gateway = next((g for g in attachment.gateways if ":" in g), "")


@contextmanager
def _netns_of(container: Container) -> Iterator[int]:
    fd = os.open(f"/proc/{container.state.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
