"""What a new network is to be: a user's words checked, and written down as its record."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from transom.contract.network import NetworkCapability
from transom.errors import ConfigError, NotSupported, choices
from transom_engine.networks.contracts import option_names, options_of, scope_of
from transom_engine.networks.model import (
    CONFIG_ONLY,
    DEFAULT,
    DEFAULT_IPAM,
    DHCP,
    ConfigFrom,
    NetworkCreate,
    NetworkRecord,
)

if TYPE_CHECKING:
    from transom.contract.network import NetworkDriver
    from transom_engine.engine import Engine

ENABLE = _IPV4, _IPV6 = "com.docker.network.enable_ipv4", "com.docker.network.enable_ipv6"
"""Options of networks that are the engine's, whatever the driver: they say what the flags of those names do."""
_NOBODYS = {
    "127.0.0.0/8": "the loopback", "::1/128": "the loopback", "fe80::/10": "each link by itself",
    "224.0.0.0/4": "groups", "ff00::/8": "groups",
}  # fmt: skip
"""Addresses that are no network's (RFC 6890, RFC 4291, section 2.4), and whose they are."""


def record_for(engine: Engine, wanted: NetworkCreate) -> NetworkRecord:
    """Return the record of a network that is to be made; its driver, or core's IPAM, has yet to settle the subnets.

    Raises:
        ConfigError: words that are off, or contradict each other; a driver whose networks users do not make.
        NotSupported: the driver cannot do what is asked for.
        NotFound: there is no such configuration.
    """
    _check_name(engine, wanted.name)
    if wanted.ingress:
        raise ConfigError("--ingress: there is no swarm mode, whose routing mesh it is for; leave it out")
    for option in wanted.ipam.options:
        raise ConfigError(
            f"IPAM driver {wanted.ipam.driver} has no option {option!r} (from --ipam-opt): it has no options"
        )
    for config in wanted.ipam.config:
        _check_subnet(config.subnet)
    if wanted.config_only:
        return _configuration(wanted)
    if wanted.config_from.network:
        wanted = _configured(wanted, engine.networks.get(wanted.config_from.network))
    return _settled(engine, wanted)


def _check_name(engine: Engine, name: str) -> None:
    if not name or not name[0].isalnum() or not all(c.isalnum() or c in "_.-" for c in name) or not name.isascii():
        raise ConfigError(f"invalid network name {name!r}: only a-z A-Z 0-9 _ . - are allowed, the first not a sign")
    if name in {DEFAULT, "default"} or engine.networks.is_single(name):
        raise ConfigError(f"network {name} is a pre-defined one, which is there already; choose another name")


def _check_subnet(text: str) -> None:
    from ipaddress import ip_network

    from transom.services.ipam import overlap, parse_subnet

    subnet = parse_subnet(text)
    for block, what in _NOBODYS.items():
        if overlap(subnet, ip_network(block)):
            raise ConfigError(f"subnet {text} cannot be a network's: {block} is for {what}")


def _configuration(wanted: NetworkCreate) -> NetworkRecord:
    """Write down a configuration alone; its options are for a driver that is not known yet."""
    flags = {
        "--internal": wanted.internal, "--attachable": wanted.attachable, "--scope": wanted.scope,
        "--config-from": wanted.config_from.network,
    }  # fmt: skip
    if given := [flag for flag, value in flags.items() if value]:
        raise ConfigError(f"--config-only keeps a configuration alone: leave out {', '.join(given)}")
    return NetworkRecord(
        name=wanted.name, driver=CONFIG_ONLY, config_only=True, ipam=wanted.ipam, options=wanted.options,
        labels=wanted.labels, enable_ipv4=wanted.enable_ipv4 is not False, enable_ipv6=bool(wanted.enable_ipv6),
    )  # fmt: skip


def _configured(wanted: NetworkCreate, kept: NetworkRecord) -> NetworkCreate:
    """Return what is wanted with the configuration that is kept; it may have none beside that."""
    if not kept.config_only:
        raise ConfigError(f"--config-from {kept.name}: it is no configuration, as --config-only makes, but a network")
    flags = {
        "--subnet": wanted.ipam.config, "--ipam-driver": wanted.ipam.driver != DEFAULT_IPAM, "--opt": wanted.options,
        "--label": wanted.labels, "--ipv4": wanted.enable_ipv4 is not None, "--ipv6": wanted.enable_ipv6 is not None,
    }  # fmt: skip
    if given := [flag for flag, value in flags.items() if value]:
        raise ConfigError(f"--config-from {kept.name} has the configuration: leave out {', '.join(given)}")
    return msgspec.structs.replace(
        wanted, config_from=ConfigFrom(network=kept.name), ipam=kept.ipam, options=kept.options, labels=kept.labels,
        enable_ipv4=kept.enable_ipv4, enable_ipv6=kept.enable_ipv6,
    )  # fmt: skip


def _settled(engine: Engine, wanted: NetworkCreate) -> NetworkRecord:
    driver = wanted.driver or engine.default_driver("network")
    opened = engine.network_driver(driver)
    defaults = engine.config.default_network_opts.get(driver, {})
    options = {**defaults, **wanted.options}
    ipv4 = _enabled(options.pop(_IPV4, ""), _IPV4, wanted.enable_ipv4, default=True)
    ipv6 = _enabled(options.pop(_IPV6, ""), _IPV6, wanted.enable_ipv6, default=False)
    if not ipv4 and not ipv6:
        raise ConfigError("--ipv4=false leaves the network without addresses: add --ipv6")
    _check_driver(opened, driver, wanted, ipv6=ipv6)
    if wanted.ipam.driver != DEFAULT_IPAM:
        options[_ipam_option(engine, driver, wanted.ipam.driver)] = "true"
    where = f"--opt, or {engine.config.origin['default-network-opts']}: default-network-opts" if defaults else "--opt"
    options_of(engine, driver, opened.NetworkOptions, options, where)
    return NetworkRecord(
        name=wanted.name, driver=driver, scope=scope_of(opened), ipam=wanted.ipam, options=options, enable_ipv4=ipv4,
        enable_ipv6=ipv6, labels=wanted.labels, internal=wanted.internal, attachable=wanted.attachable,
        config_from=wanted.config_from,
    )  # fmt: skip


def _enabled(word: str, option: str, flag: bool | None, *, default: bool) -> bool:
    """Say whether the network has addresses of a family: the flag says it, else the option."""
    if flag is not None or not word:
        return default if flag is None else flag
    from transom.services.options import parse_bool

    try:
        return parse_bool(word)
    except ValueError:
        raise ConfigError(f"{option}={word!r}: expected true or false") from None


def _check_driver(opened: NetworkDriver, driver: str, wanted: NetworkCreate, *, ipv6: bool) -> None:
    if opened.capabilities & {NetworkCapability.SINGLETON, NetworkCapability.REFERENCE}:
        raise ConfigError(f"network driver {driver} has one network only, which is there already: use it by its name")
    if wanted.scope not in {"", scope_of(opened)}:
        swarm = ": there is no swarm mode; on each host a configuration can be kept with --config-only"
        more = swarm if wanted.scope == "swarm" else ""
        raise ConfigError(f"--scope {wanted.scope}: networks of driver {driver} are {scope_of(opened)}{more}")
    for asked, capability in (
        (wanted.internal, NetworkCapability.INTERNAL),
        (ipv6, NetworkCapability.IPV6),
    ):
        if asked and capability not in opened.capabilities:
            raise opened.unsupported(capability)
    probe = opened.probe()
    if not probe.usable:  # or it would be found when a container joins
        raise NotSupported(f"network driver {driver} cannot run on this host: {probe.reason}")


def _ipam_option(engine: Engine, driver: str, ipam_driver: str) -> str:
    """Return the option by which the network's driver takes addresses from where `ipam_driver` says."""
    from transom.drivers import installed

    if ipam_driver != DHCP:
        raise ConfigError(f"--ipam-driver {ipam_driver}: there are {choices({DEFAULT_IPAM, DHCP})}")
    able = {d.name for d in installed("network") if DHCP in option_names(engine, d.name)}
    if driver not in able:
        raise ConfigError(
            f"--ipam-driver {DHCP}: network driver {driver} takes no addresses by DHCP; those that do: {choices(able)}"
        )
    return DHCP
