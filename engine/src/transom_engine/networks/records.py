"""The networks there are: made, found, listed and removed."""

from __future__ import annotations

import builtins
from contextlib import suppress
from typing import TYPE_CHECKING

from transom.contract.network import NetworkCapability
from transom.errors import ConfigError, Conflict, DriverError, NotFound, TransomError, choices, nearest
from transom.services.files import Lock
from transom_engine.model import GATEWAY
from transom_engine.networks.contracts import keeps_addresses, network_of, option_names, scope_of
from transom_engine.networks.model import (
    DEFAULT,
    MEMBERS,
    IpamConfig,
    IpamRecord,
    NetworkCreate,
    NetworkRecord,
    default_network,
    record_of,
)

if TYPE_CHECKING:
    from transom_engine.engine import Engine


class Networks:
    """The networks of an engine, by record; their drivers make them on the host."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def list(self) -> list[NetworkRecord]:
        """Return all networks by name, those that are always there included."""
        from transom.drivers import installed

        self.named(DEFAULT)
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
        return self.named(reference) or self._by_id(reference)

    def named(self, name: str) -> NetworkRecord | None:
        """Return the network of that very name, as a container's record has it; None where it has been removed."""
        record: NetworkRecord | None = self.engine.state.find("network", NetworkRecord, name=name)
        if record is None:
            record = self._predefined(name)
        if record is None:
            self._take_over()
            record = self.engine.state.find("network", NetworkRecord, name=name)
        return record

    def driver_of(self, name: str) -> str:
        """Return the driver of the network of that very name; empty where it has been removed."""
        record = self.named(name)
        return record.driver if record else ""

    def for_containers(self, reference: str) -> NetworkRecord:
        """Return a network as `get` does, that users put containers on.

        Raises:
            ConfigError: it is a configuration alone, or the way out that the engine puts them on.
        """
        record = self.get(reference)
        refuse_gateway(record.name)
        if record.config_only:
            raise ConfigError(
                f"network {record.name} is a configuration alone, no container can be on it: make a network by it, "
                f"`transom network create --config-from {record.name} NAME`"
            )
        return record

    def _by_id(self, reference: str) -> NetworkRecord:
        records: list[NetworkRecord] = self.engine.state.all("network", NetworkRecord)
        found = [r for r in records if reference and r.id.startswith(reference)]
        if len(found) > 1:
            raise Conflict(f"network id {reference!r} is ambiguous; write more of it")
        if not found:
            names = {r.name for r in records} | {default_network(self.engine.config)}
            raise NotFound(f"no such network: {reference}{nearest(reference, names)}; networks here: {choices(names)}")
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
                        self._record(record_of(network, name))
                for record in records.values():
                    if record.driver == name and record.id not in known and not self._users(record):
                        self._remove(record)

    def _predefined(self, name: str) -> NetworkRecord | None:
        """Make the record of the default network or of a driver's only one, when it is first asked for."""
        if name == DEFAULT == default_network(self.engine.config):
            driver = self.engine.default_driver("network")
        elif self.is_single(name):
            driver = name
        else:
            return None
        with self._lock():
            present: NetworkRecord | None = self.engine.state.find("network", NetworkRecord, name=name)
            if present is not None:
                return present
            record = NetworkRecord(name=name, driver=driver, scope=scope_of(self.engine.network_driver(driver)))
            if name == DEFAULT:
                record.enable_ipv6, record.ipam.config = self.engine.config.ipv6, self._default_subnets()
            return self._add(record)

    def is_single(self, name: str) -> bool:
        """Say whether it is the name of a driver with one network, which bears the driver's name."""
        from transom.drivers import installed

        known = name in {driver.name for driver in installed("network")}
        return known and NetworkCapability.SINGLETON in self.engine.network_driver(name).capabilities

    def gateway(self) -> NetworkRecord:
        """Return the network that leads out where no other one does; it is made when it is first needed.

        Those on it have nothing to do with each other, so it keeps them apart where its driver can.
        """
        with self._lock():
            present: NetworkRecord | None = self.engine.state.find("network", NetworkRecord, name=GATEWAY)
            if present is not None:
                return present
            driver, apart = self.engine.default_driver("network"), "com.docker.network.bridge.enable_icc"
            options = {apart: "false"} if apart in option_names(self.engine, driver) else {}
            return self._add(
                NetworkRecord(name=GATEWAY, driver=driver, options=options, enable_ipv6=self.engine.config.ipv6)
            )

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

    def create(self, wanted: NetworkCreate) -> NetworkRecord:
        """Make a network, on the host too, so that what is wrong shows now; a configuration is recorded alone.

        Raises:
            Conflict: the name is taken, or a subnet overlaps one of ours or of the host.
            ConfigError, NotSupported, NotFound: see `making.record_for`.
        """
        from transom_engine.networks.making import record_for

        record = record_for(self.engine, wanted)
        if record.config_only:
            with self._lock():
                return self._record(self._named_once(record))
        driver = self.engine.network_driver(record.driver)
        if NetworkCapability.MULTI_HOST in driver.capabilities:
            self._take_over()
        with self.engine.lock(MEMBERS, shared=True):
            with self._lock():
                self._add(self._named_once(record))
            try:
                driver.create_network(network=network_of(self.engine, record))
            except BaseException:
                with suppress(DriverError):  # what cannot be removed now stays on record, for `network rm`
                    self._remove(record)
                raise
            self.engine.state.event("network", "create", record.id, name=record.name, type=record.driver)
            return record

    def _named_once(self, record: NetworkRecord) -> NetworkRecord:
        if self.engine.state.find("network", NetworkRecord, name=record.name) is not None:
            raise Conflict(f"network with name {record.name} already exists; choose another, or remove it first")
        return record

    def _add(self, record: NetworkRecord) -> NetworkRecord:
        """Record a network with its subnets settled."""
        record.ipam = IpamRecord(driver=record.ipam.driver, config=self.engine.addresses.settle(record))
        return self._record(record)

    def _record(self, record: NetworkRecord) -> NetworkRecord:
        self.engine.state.add("network", record, id=record.id, name=record.name)
        return record

    def remove(self, reference: str) -> None:
        """Remove a network from the host and from the records.

        Raises:
            Conflict: containers are on it, or it is one that is always there.
        """
        with self.engine.lock(MEMBERS):
            record = self.get(reference)
            self._refuse_removal(record)
            if record.config_only:
                self.engine.state.delete("network", id=record.id)
                return
            self._remove(record)
        self.engine.state.event("network", "destroy", record.id, name=record.name, type=record.driver)

    def _refuse_removal(self, record: NetworkRecord) -> None:
        if record.config_only:
            made = [
                r.name for r in self.engine.state.all("network", NetworkRecord) if r.config_from.network == record.name
            ]
            if made:
                raise Conflict(f"configuration {record.name} is in use by {choices(made)}; remove them first")
            return
        opened = self.engine.network_driver(record.driver)
        if record.name == DEFAULT or NetworkCapability.SINGLETON in opened.capabilities:
            raise Conflict(f"{record.name} is a pre-defined network and cannot be removed")
        if users := self._users(record):
            raise Conflict(
                f"network {record.name} has active endpoints: {', '.join(users)}; stop or disconnect them first"
            )

    def _users(self, record: NetworkRecord) -> builtins.list[str]:
        """Name the containers that run on the network, or are about to: those with an endpoint on record."""
        places = {c.name: c.network_settings.networks.get(record.name) for c in self.engine.containers.list(all=True)}
        return sorted(name for name, place in places.items() if place is not None and place.endpoint_id)

    def _remove(self, record: NetworkRecord) -> None:
        self.engine.network_driver(record.driver).delete_network(network=network_of(self.engine, record))
        if record.ipam.config and not keeps_addresses(self.engine, record):
            self.engine.addresses.ipam.forget(network_of(self.engine, record))
        self.engine.state.delete("network", id=record.id)

    def inspect(self, reference: str) -> NetworkRecord:
        """Return a network's record with the containers that are on it now."""
        record = self.get(reference)
        if record.config_only:
            return record
        driver = self.engine.network_driver(record.driver)
        if NetworkCapability.MULTI_HOST in driver.capabilities:
            hosts = driver.peers(network=network_of(self.engine, record))
            record.peers = [{"Name": name, "IP": address} for name, address in sorted(hosts.items())]
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

    def _lock(self) -> Lock:
        return self.engine.lock("networks")


def refuse_gateway(name: str) -> None:
    """Refuse the network that no user has a container join or leave."""
    if name == GATEWAY:
        raise ConfigError(
            f"network {GATEWAY} is joined by itself, where a container's networks over several hosts need a way out; "
            "name another network"
        )
