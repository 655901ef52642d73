"""The networks there are: made, found, listed and removed."""

from __future__ import annotations

import builtins
import os
from typing import TYPE_CHECKING, Any

from transom.contract.network import NetworkCapability
from transom.errors import ConfigError, Conflict, NotFound, TransomError, choices, nearest
from transom.services.files import Lock
from transom_engine.model import now
from transom_engine.networks.contracts import keeps_addresses, network_of, option_names
from transom_engine.networks.model import (
    CONFIG_ONLY,
    DEFAULT,
    DEFAULT_IPAM,
    DHCP,
    ENABLE,
    MEMBERS,
    ConfigFrom,
    IpamConfig,
    NetworkRecord,
    record_of,
)

if TYPE_CHECKING:
    from transom.contract.network import NetworkDriver
    from transom_engine.engine import Engine


class Networks:
    """The networks of an engine, by record; their drivers make them on the host."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

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
        """Return a network as `get` does, that containers can be on.

        Raises:
            ConfigError: it is a configuration alone.
        """
        record = self.get(reference)
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
                        self._record(record_of(network, name))
                for record in records.values():
                    if record.driver == name and record.id not in known and not self._users(record):
                        self._remove(record)

    def _predefined(self, name: str) -> NetworkRecord | None:
        """Make the record of the default network or of a driver's only one, when it is first asked for."""
        if name == DEFAULT:
            driver = self.engine.default_driver("network")
        elif self._is_single(name):
            driver = name
        else:
            return None
        with self._lock():
            record = self.engine.state.find("network", NetworkRecord, name=name)
            if record is not None or name != DEFAULT:
                return record or self._add(name, driver, configs=[])
            return self._add(name, driver, configs=self._default_subnets(), ipv6=self.engine.config.ipv6)

    def _is_single(self, name: str) -> bool:
        """Say whether it is the name of a driver with one network, which bears the driver's name."""
        from transom.drivers import installed

        known = name in {driver.name for driver in installed("network")}
        return known and NetworkCapability.SINGLETON in self.engine.network_driver(name).capabilities

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
        ipam_driver: str = DEFAULT_IPAM,
        configs: builtins.list[IpamConfig] | None = None,
        options: dict[str, str] | None = None,
        labels: dict[str, str] | None = None,
        internal: bool = False,
        ipv4: bool | None = None,
        ipv6: bool | None = None,
        attachable: bool = False,
        scope: str = "",
        config_only: bool = False,
        config_from: str = "",
    ) -> NetworkRecord:
        """Make a network, on the host too, so that what is wrong shows now.

        Args:
            ipam_driver: who gives the addresses: ``default``, or ``dhcp`` where the driver has an option of that name.
            ipv4, ipv6: whether it has addresses of that family; None leaves it to the options, then to the default.
            scope: that of the driver's networks, or empty.
            config_only: record subnets, options and labels for others to be made by; nothing comes on the host.
            config_from: the name of such a one, whose configuration the network has in place of one of its own.

        Raises:
            Conflict: the name is taken, or a subnet overlaps one of ours or of the host.
            ConfigError: bad words; a driver whose networks users do not make.
            NotFound: no network `config_from`.
        """
        if not name or not name[0].isalnum() or not all(c.isalnum() or c in "_.-" for c in name) or not name.isascii():
            raise ConfigError(
                f"invalid network name {name!r}: only a-z A-Z 0-9 _ . - are allowed, the first not a sign"
            )
        if name in {DEFAULT, "default"} or self._is_single(name):
            raise ConfigError(f"network {name} is a pre-defined one, which is there already; choose another name")
        words: dict[str, Any] = {
            "configs": configs or [], "options": options or {}, "labels": labels or {}, "ipam_driver": ipam_driver,
            "ipv4": ipv4, "ipv6": ipv6,
        }  # fmt: skip
        if config_only:
            alone = {"--internal": internal, "--attachable": attachable, "--scope": scope, "--config-from": config_from}
            if given := [flag for flag, value in alone.items() if value]:
                raise ConfigError(f"--config-only keeps a configuration alone: leave out {', '.join(given)}")
            return self._keep_config(name, words)
        if config_from:
            words = self._configured(config_from, words)
        return self._make(
            name, driver or self.engine.default_driver("network"), internal, attachable, scope, config_from, words
        )

    def _keep_config(self, name: str, words: dict[str, Any]) -> NetworkRecord:
        """Record a configuration; its options are for a driver that is not known yet."""
        words |= {family: words[family] is not False if family == "ipv4" else bool(words[family]) for family in ENABLE}
        with self._lock():
            self._refuse_name(name)
            return self._record(_new(name, CONFIG_ONLY, config_only=True, **words))

    def _configured(self, reference: str, words: dict[str, Any]) -> dict[str, Any]:
        """Return the configuration that is kept under that name; there may be none beside it."""
        kept = self.get(reference)
        if not kept.config_only:
            raise ConfigError(
                f"--config-from {reference}: it is no configuration, as --config-only makes, but a network"
            )
        flags = {
            "configs": "--subnet", "options": "--opt", "labels": "--label", "ipv4": "--ipv4", "ipv6": "--ipv6",
        }  # fmt: skip
        given = [flag for word, flag in flags.items() if words[word] not in ([], {}, None)]
        given += ["--ipam-driver"] if words["ipam_driver"] != DEFAULT_IPAM else []
        if given:
            raise ConfigError(f"--config-from {reference} has the configuration: leave out {', '.join(given)}")
        return {
            "configs": kept.ipam.config, "options": kept.options, "labels": kept.labels,
            "ipam_driver": kept.ipam.driver, "ipv4": kept.enable_ipv4, "ipv6": kept.enable_ipv6,
        }  # fmt: skip

    def _make(
        self,
        name: str,
        driver: str,
        internal: bool,
        attachable: bool,
        scope: str,
        config_from: str,
        words: dict[str, Any],
    ) -> NetworkRecord:
        opened = self.engine.network_driver(driver)
        if opened.capabilities & {NetworkCapability.SINGLETON, NetworkCapability.REFERENCE}:
            raise ConfigError(
                f"network driver {driver} has one network only, which is there already: use it by its name"
            )
        if scope not in {"", _scope(opened)}:
            swarm = ": there is no swarm mode; on each host a configuration can be kept with --config-only"
            raise ConfigError(
                f"--scope {scope}: networks of driver {driver} are {_scope(opened)}{swarm if scope == 'swarm' else ''}"
            )
        if internal and NetworkCapability.INTERNAL not in opened.capabilities:
            raise opened.unsupported(NetworkCapability.INTERNAL)
        options = {**self.engine.config.default_network_opts.get(driver, {}), **words["options"]}
        for family, default in (("ipv4", True), ("ipv6", False)):
            said = options.pop(ENABLE[family], "")
            if words[family] is None:
                words[family] = _truth(ENABLE[family], said) if said else default
        if not words["ipv4"] and not words["ipv6"]:
            raise ConfigError("--ipv4=false leaves the network without addresses: add --ipv6")
        if words["ipv6"] and NetworkCapability.IPV6 not in opened.capabilities:
            raise opened.unsupported(NetworkCapability.IPV6)
        if words["ipam_driver"] != DEFAULT_IPAM:
            options[self._ipam_option(driver, words["ipam_driver"])] = "true"
        if NetworkCapability.MULTI_HOST in opened.capabilities:
            self._take_over()
        words |= {"options": options, "config_from": ConfigFrom(network=config_from)}
        with self.engine.lock(MEMBERS, shared=True):
            return self._create(name, driver, internal=internal, attachable=attachable, **words)

    def _create(self, name: str, driver: str, **words: Any) -> NetworkRecord:
        opened = self.engine.network_driver(driver)
        with self._lock():
            self._refuse_name(name)
            record = self._add(name, driver, **words)
        try:
            opened.create_network(network=network_of(self.engine, record))
        except BaseException:
            self._remove(record)
            raise
        self.engine.state.event("network", "create", record.id, name=name, type=driver)
        return record

    def _refuse_name(self, name: str) -> None:
        if self.engine.state.find("network", NetworkRecord, name=name) is not None:
            raise Conflict(f"network with name {name} already exists; choose another, or remove it first")

    def _ipam_option(self, driver: str, ipam_driver: str) -> str:
        """Return the option by which the network's driver takes addresses from where `ipam_driver` says."""
        from transom.drivers import installed

        if ipam_driver != DHCP:
            raise ConfigError(f"--ipam-driver {ipam_driver}: there are {choices({DEFAULT_IPAM, DHCP})}")
        able = {d.name for d in installed("network") if DHCP in option_names(self.engine, d.name)}
        if driver not in able:
            raise ConfigError(
                f"--ipam-driver {DHCP}: network driver {driver} takes no addresses by DHCP; those that do: "
                f"{choices(able)}"
            )
        return DHCP

    def _add(self, name: str, driver: str, **words: Any) -> NetworkRecord:
        record = _new(name, driver, scope=_scope(self.engine.network_driver(driver)), **words)
        record.ipam.config = self.engine.addresses.settle(record)
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


def _scope(driver: NetworkDriver) -> str:
    return "global" if NetworkCapability.MULTI_HOST in driver.capabilities else "local"


def _truth(option: str, word: str) -> bool:
    from transom.services.options import parse_bool

    try:
        return parse_bool(word)
    except ValueError:
        raise ConfigError(f"{option}={word!r}: expected true or false") from None


def _new(
    name: str,
    driver: str,
    *,
    configs: list[IpamConfig],
    ipam_driver: str = DEFAULT_IPAM,
    ipv4: bool = True,
    ipv6: bool = False,
    **fields: Any,
) -> NetworkRecord:
    record = NetworkRecord(
        name=name, id=os.urandom(32).hex(), created=now(), driver=driver, enable_ipv4=ipv4, enable_ipv6=ipv6, **fields
    )
    record.ipam.driver, record.ipam.config = ipam_driver, configs
    return record
