"""Addresses of networks and endpoints: from core's IPAM, unless the driver has an allocator of its own."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from transom.contract.network import Endpoint, Network, NetworkCapability, Subnet
from transom.errors import ConfigError, Conflict, NotFound
from transom_engine.model import Container, EndpointSettings
from transom_engine.networks.contracts import endpoint_of, family, keeps_addresses, network_of
from transom_engine.networks.model import IpamConfig, NetworkRecord, configs_of

if TYPE_CHECKING:
    from transom.contract.network import NetworkDriver
    from transom.services.ipam import Ipam
    from transom_engine.engine import Engine


class Addresses:
    """See the module's text."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def close(self) -> None:
        """Close the database of addresses; it is opened again when it is used again."""
        if "ipam" in self.__dict__:
            self.ipam.close()

    @cached_property
    def ipam(self) -> Ipam:
        """Core's address management, over its own database."""
        from transom.services.ipam import DEFAULT_POOLS, Ipam

        pools = [(pool.base, pool.size) for pool in self.engine.config.default_address_pools]
        return Ipam(self.engine.state_dir / "ipam.db", pools=pools or DEFAULT_POOLS)

    def settle(self, record: NetworkRecord) -> list[IpamConfig]:
        """Reserve the network's subnets with core's IPAM, where the driver has endpoints with addresses of it."""
        driver, network = self.engine.network_driver(record.driver), network_of(self.engine, record)
        if driver.keeps_addresses(network=network):
            network = msgspec.structs.replace(network, subnets=_asked(record, network.subnets))
            settled = driver.settle(network=network)
            if record.enable_ipv6 and not any(family(subnet.pool) == 6 for subnet in settled.subnets):
                driver.delete_network(network=settled)
                raise ConfigError(
                    f"network {record.name}: driver {record.driver} gives it no IPv6 addresses; leave out --ipv6"
                )
            return configs_of(settled)
        if NetworkCapability.L2 not in driver.capabilities:
            return record.ipam.config
        return configs_of(self.ipam.settle(network, ipv4=record.enable_ipv4, ipv6=record.enable_ipv6))

    def allocate(
        self,
        container: Container,
        record: NetworkRecord,
        network: Network,
        place: EndpointSettings,
        driver: NetworkDriver,
    ) -> Endpoint:
        """Describe the container's endpoint, with the addresses that it gets."""
        asked = place.ipam_config or {}
        static = tuple(asked[key] for key in ("IPv4Address", "IPv6Address") if asked.get(key))
        endpoint = msgspec.structs.replace(
            endpoint_of(self.engine, container, record, place),
            static=bool(static),
            addresses=static,
            mac=asked.get("MacAddress") or None,
        )
        if _without_ipv6(container, endpoint):
            network = _ipv4_of(network, container)
            if any(":" in address for address in static):
                raise ConfigError(f"container {container.name} has IPv6 switched off by a setting: leave --ip6 away")
        if again := _last(driver, network, place, static):
            try:
                return self._given(driver, network, msgspec.structs.replace(endpoint, addresses=static + again))
            except (ConfigError, Conflict):
                pass  # somebody has it by now, or the network has other subnets
        return self._given(driver, network, endpoint)

    def _given(self, driver: NetworkDriver, network: Network, endpoint: Endpoint) -> Endpoint:
        if driver.keeps_addresses(network=network):
            return driver.allocate(network=network, endpoint=endpoint)
        if not network.subnets:
            return endpoint
        try:
            return self.ipam.allocate(network, endpoint)
        except Conflict:
            self._refuse_taken(network, endpoint)
            raise

    def _refuse_taken(self, network: Network, endpoint: Endpoint) -> None:
        """Name the container that has an address that the endpoint asks for, where there is one."""
        owners = {
            place.endpoint_id: c.name for c in self.engine.state.containers()
            for place in c.network_settings.networks.values() if place.endpoint_id != endpoint.id
        }  # fmt: skip
        for address, owner in self.ipam.leases(network).items():
            if address in endpoint.addresses and owner in owners:
                raise Conflict(
                    f"address {address} of network {network.name} belongs to container {owners[owner]};"
                    " ask for another one"
                )

    def counts(self, record: NetworkRecord) -> dict[str, dict[str, int]]:
        """Count the addresses of each subnet that core's IPAM gives, in the words of Docker's API (1.52, SubnetStatus).

        ``IPsInUse`` are those that somebody has or nobody may have, ``DynamicIPsAvailable`` those that are left to be
        given, of the range where there is one; neither is more than 64 bits hold.
        """
        from ipaddress import ip_address

        from transom.services.ipam import parse_subnet, usable

        if record.config_only or not record.ipam.config or keeps_addresses(self.engine, record):
            return {}
        leases = [ip_address(address).packed for address in self.ipam.leases(network_of(self.engine, record))]
        found = {}
        for config in record.ipam.config:
            block, part = parse_subnet(config.subnet), parse_subnet(config.ip_range or config.subnet)
            low, high = usable(block)
            first, last = max(low, part[0].packed), min(high, part[-1].packed)
            taken = [address for address in leases if len(address) == len(low) and low <= address <= high]
            given = sum(first <= address <= last for address in taken)
            counts = {
                "IPsInUse": block.num_addresses - _size(low, high) + len(taken),
                "DynamicIPsAvailable": _size(first, last) - given,
            }
            found[config.subnet] = {name: min(count, 2**64 - 1) for name, count in counts.items()}
        return found

    def release(self, container: Container, name: str, place: EndpointSettings) -> None:
        """Give an endpoint's addresses back; those of a network that is gone, too."""
        network, endpoint = Network(id=place.network_id, name=name), Endpoint(id=place.endpoint_id, container="")
        try:
            record = self.engine.networks.get(name)
        except NotFound:
            self.ipam.release(network, endpoint)
            return
        if not keeps_addresses(self.engine, record):
            self.ipam.release(network, endpoint)
            return
        self.engine.network_driver(record.driver).release(
            network=network_of(self.engine, record), endpoint=endpoint_of(self.engine, container, record, place)
        )


def _size(first: bytes, last: bytes) -> int:
    return int.from_bytes(last) - int.from_bytes(first) + 1


def _last(driver: NetworkDriver, network: Network, place: EndpointSettings, static: tuple[str, ...]) -> tuple[str, ...]:
    """Return the addresses that the place had before, of the families in which none is asked for.

    Where addresses are leased for an interface (DHCP), who leases them knows them.
    """
    if driver.keeps_addresses(network=network) and NetworkCapability.MULTI_HOST not in driver.capabilities:
        return ()
    families = {family(subnet.pool) for subnet in network.subnets} - {*map(family, static)}
    return tuple(address for address in place.last_addresses if family(address) in families)


def _asked(record: NetworkRecord, subnets: tuple[Subnet, ...]) -> tuple[Subnet, ...]:
    """Add to the subnets that a user asked for one for each family that lacks one, the driver's choice."""
    wanted = ((record.enable_ipv4, False, "0.0.0.0/0"), (record.enable_ipv6, True, "::/0"))
    present = {":" in subnet.pool for subnet in subnets}
    return subnets + tuple(Subnet(pool=pool) for on, six, pool in wanted if on and six not in present)


def _without_ipv6(container: Container, endpoint: Endpoint) -> bool:
    """Say whether a setting takes IPv6 from the container, or from its interface on the network (ip-sysctl)."""
    own = container.host_config.sysctls.get("net.ipv6.conf.all.disable_ipv6", "0")
    of_interface = getattr(endpoint.options, "sysctls", ())  # those of `transom.services.interfaces`
    return own == "1" or "net.ipv6.conf.IFNAME.disable_ipv6=1" in of_interface


def _ipv4_of(network: Network, container: Container) -> Network:
    """Return the network as a container without IPv6 knows it.

    Raises:
        ConfigError: there is nothing left of it.
    """
    subnets = tuple(subnet for subnet in network.subnets if ":" not in subnet.pool)
    if network.subnets and not subnets:
        raise ConfigError(
            f"network {network.name} has IPv6 alone, which container {container.name} has switched off by a setting"
        )
    return msgspec.structs.replace(network, subnets=subnets)
