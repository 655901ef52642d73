"""``transom network``: make, list, join and remove networks."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from transom.errors import ConfigError, NotFound, choices
from transom_engine.cli import Session, pass_session
from transom_engine.cli.groups import Named
from transom_engine.cli.words import confirmed, filters, has_labels, many, several

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from transom_engine.engine import Engine
    from transom_engine.networks.model import IpamConfig, NetworkRecord

_HEADINGS = {
    "ID": "NETWORK ID", "Name": "NAME", "Driver": "DRIVER", "Scope": "SCOPE", "IPv4": "IPV4", "IPv6": "IPV6",
    "Internal": "INTERNAL", "Labels": "LABELS", "CreatedAt": "CREATED AT",
}  # fmt: skip
_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")


@click.group("network", cls=Named)
def network_command() -> None:
    """Manage networks."""


@network_command.command("create")
@click.option("-d", "--driver", default="", help="Driver to manage the network")
@click.option("--ipam-driver", default="default", help="IP Address Management Driver (default, dhcp)")
@many("--subnet", help="Subnet in CIDR format that represents a network segment")
@many("--ip-range", help="Allocate container IP from a sub-range")
@many("--gateway", help="IPv4 or IPv6 gateway of a subnet")
@many("--aux-address", help="Addresses that no container gets, NAME=ADDRESS")
@many("-o", "--opt", help="Set driver specific options")
@many("--label", help="Set metadata on a network")
@click.option("--internal", is_flag=True, help="Restrict external access to the network")
@click.option("--ipv4/--no-ipv4", default=None, help="Enable or disable IPv4 networking")
@click.option("--ipv6/--no-ipv6", default=None, help="Enable or disable IPv6 networking")
@click.option("--attachable", is_flag=True, help="Accepted for docker's sake: containers can be put on any network")
@click.option("--scope", default="", help="Control the network's scope: local or global, which its driver says")
@click.option("--config-only", is_flag=True, help="Create a configuration only network")
@click.option("--config-from", default="", help="The network from which to copy the configuration")
@many("--ipam-opt", help="Set IPAM driver specific options: there are none")
@click.option("--ingress", is_flag=True, help="Refused: there is no swarm mode")
@click.argument("name", metavar="NETWORK")
@pass_session
def create_command(
    session: Session,
    /,
    name: str,
    driver: str,
    ipam_driver: str,
    subnet: tuple[str, ...],
    ip_range: tuple[str, ...],
    gateway: tuple[str, ...],
    aux_address: tuple[str, ...],
    opt: tuple[str, ...],
    label: tuple[str, ...],
    internal: bool,
    ipv4: bool | None,
    ipv6: bool | None,
    attachable: bool,
    scope: str,
    config_only: bool,
    config_from: str,
    ipam_opt: tuple[str, ...],
    ingress: bool,
) -> None:
    """Create a network."""
    from transom_engine import flags
    from transom_engine.networks.model import ConfigFrom, IpamRecord, NetworkCreate

    ipam = IpamRecord(
        driver=ipam_driver,
        config=subnets(subnet, ip_range, gateway, flags.pairs(aux_address, flag="--aux-address")),
        options=flags.pairs(ipam_opt, flag="--ipam-opt"),
    )
    wanted = NetworkCreate(
        name=name,
        driver=driver,
        scope=scope,
        enable_ipv4=ipv4,
        enable_ipv6=ipv6,
        ipam=ipam,
        internal=internal,
        attachable=attachable,
        ingress=ingress,
        config_only=config_only,
        config_from=ConfigFrom(network=config_from),
        options=flags.pairs(opt, flag="--opt", bare=True),
        labels=flags.labels(label),
    )
    print(session.engine.networks.create(wanted).id)


def subnets(
    pools: tuple[str, ...], ranges: tuple[str, ...], gateways: tuple[str, ...], reserved: dict[str, str]
) -> list[IpamConfig]:
    """Give each range, gateway and reserved address to the subnet that it is in, as docker does.

    Raises:
        ConfigError: it is in none, or a subnet gets two.
    """
    from transom.services.ipam import parse_subnet
    from transom_engine.networks.model import IpamConfig

    blocks = [parse_subnet(pool) for pool in pools]
    configs = [IpamConfig(subnet=pool) for pool in pools]
    for part in ranges:
        config = configs[_within(parse_subnet(part), blocks, f"--ip-range {part}")]
        if config.ip_range:
            raise ConfigError(f"--ip-range {part}: subnet {config.subnet} has the range {config.ip_range} already")
        config.ip_range = part
    for address in gateways:
        config = configs[_within(_block(address, "--gateway"), blocks, f"--gateway {address}")]
        if config.gateway:
            raise ConfigError(f"--gateway {address}: subnet {config.subnet} has the gateway {config.gateway} already")
        config.gateway = address
    for name, address in reserved.items():
        index = _within(_block(address, "--aux-address"), blocks, f"--aux-address {name}={address}")
        configs[index].auxiliary_addresses = {**configs[index].auxiliary_addresses, name: address}
    return configs


def _block(address: str, flag: str) -> IPv4Network | IPv6Network:
    from ipaddress import ip_address, ip_network

    try:
        return ip_network(str(ip_address(address)))
    except ValueError:
        raise ConfigError(f"{flag} {address!r}: not an IP address, such as 172.28.5.254") from None


def _within(block: IPv4Network | IPv6Network, blocks: list[IPv4Network | IPv6Network], words: str) -> int:
    for index, outer in enumerate(blocks):
        if outer.version == block.version and outer.overlaps(block):
            return index
    raise ConfigError(
        f"{words}: no matching subnet; those given are {choices(map(str, blocks))}, add one with --subnet"
    )


@network_command.command("ls")
@click.option("-f", "--filter", "given", multiple=True, help="Provide filter values (e.g. driver=bridge)")
@click.option("--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json")
@click.option("--no-trunc", is_flag=True, help="Do not truncate the output")
@click.option("-q", "--quiet", is_flag=True, help="Only display network IDs")
@pass_session
def ls_command(session: Session, /, given: tuple[str, ...], format: str, no_trunc: bool, quiet: bool) -> None:
    """List networks."""
    from transom_engine.cli.tables import render

    wanted = filters(given, *_FILTERS)
    rows = [_row(record, full=no_trunc) for record in session.engine.networks.list() if _all(session, record, wanted)]
    columns = ("ID", "Name", "Driver", "Scope")
    print(render(rows, headings=_HEADINGS, columns=columns, format=format, quiet="ID" if quiet else ""), end="")


def _row(record: NetworkRecord, *, full: bool) -> dict[str, Any]:
    from transom_engine.cli.units import local_time, parse_time

    return {
        "ID": record.id if full else record.id[:12],
        "Name": record.name,
        "Driver": record.driver,
        "Scope": record.scope,
        "IPv4": str(record.enable_ipv4).lower(),
        "IPv6": str(record.enable_ipv6).lower(),
        "Internal": str(record.internal).lower(),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(record.labels.items())),
        "Label": lambda name: record.labels.get(name, ""),
        "CreatedAt": local_time(parse_time(record.created, now=0)),
    }


def _all(session: Session, record: NetworkRecord, wanted: dict[str, list[str]]) -> bool:
    """Say whether the network passes all filters; values of one are alternatives, labels must all be there."""
    from transom_engine.networks.model import DEFAULT

    def matches(word: str, text: str) -> bool:
        try:
            return re.search(word, text) is not None
        except re.error as error:
            raise ConfigError(f"--filter name={word!r}: invalid regular expression: {error}") from None

    def custom(word: str) -> bool:
        if word not in {"builtin", "custom"}:
            raise ConfigError(f"--filter type={word!r}: invalid filter; there are builtin, custom")
        return (word == "builtin") is (record.name == DEFAULT or record.name == record.driver)

    def dangling(word: str) -> bool:
        if word not in {"true", "false", "1", "0"}:
            raise ConfigError(f"--filter dangling={word!r}: invalid filter; there are true, false")
        from transom_engine.pruning import unused_networks

        return (word in {"true", "1"}) is (record.id in {unused.id for unused in unused_networks(session.engine)})

    tests: dict[str, Callable[[str], bool]] = {
        "driver": lambda word: record.driver == word,
        "id": lambda word: record.id.startswith(word),
        "name": lambda word: matches(word, record.name),
        "scope": lambda word: record.scope == word,
        "type": custom,
        "dangling": dangling,
    }
    return has_labels(record.labels, wanted.get("label", ())) and all(
        any(test(word) for word in wanted[key]) for key, test in tests.items() if key in wanted
    )


@network_command.command("inspect")
@click.option("-f", "--format", "format", default="", help="Format output using a Go template, or json")
@click.option("-v", "--verbose", is_flag=True, help="Accepted for docker's sake: all that is known is always shown")
@click.argument("names", metavar="NETWORK...", nargs=-1, required=True)
@pass_session
def inspect_command(session: Session, /, names: tuple[str, ...], format: str, verbose: bool) -> int:
    """Display detailed information on one or more networks."""
    from transom_engine.cli.inspect import show

    return show(session, names, kind="network", format=format)


@network_command.command("exposed")
@click.option("--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json")
@pass_session
def exposed_command(session: Session, /, format: str) -> None:
    """List what of running containers is reached from outside this host.

    Published ports that are not at a loopback address; containers on the host's own network; those that are neighbours
    on the network of an interface; those that a route leads to.
    """
    from transom_engine.cli.tables import render
    from transom_engine.networks.exposure import Exposure, exposed

    headings = {field.title(): field.upper() for field in Exposure.__struct_fields__}
    rows = [{name: getattr(way, name.lower()) for name in headings} for way in exposed(session.engine)]
    print(render(rows, headings=headings, columns=tuple(headings), format=format), end="")


@network_command.command("connect")
@click.option("--ip", default="", help="IPv4 address (e.g., 172.30.100.104)")
@click.option("--ip6", default="", help="IPv6 address (e.g., 2001:db8::33)")
@many("--link-local-ip", help="Add a link-local address for the container")
@many("--alias", help="Add network-scoped alias for the container")
@many("--driver-opt", help="Driver options for the endpoint")
@many("--link", help="Add link to another container (NAME[:ALIAS])")
@click.option("--gw-priority", type=int, default=0, help="Highest gw-priority provides the default gateway")
@click.argument("network", metavar="NETWORK")
@click.argument("container", metavar="CONTAINER")
@pass_session
def connect_command(
    session: Session,
    /,
    network: str,
    container: str,
    ip: str,
    ip6: str,
    link_local_ip: tuple[str, ...],
    alias: tuple[str, ...],
    driver_opt: tuple[str, ...],
    link: tuple[str, ...],
    gw_priority: int,
) -> None:
    """Connect a container to a network."""
    from transom_engine import flags
    from transom_engine.model import EndpointSettings

    place = EndpointSettings(
        aliases=list(alias) or None,
        ipam_config=flags.own_addresses({"ip": ip, "ip6": ip6}) or None,
        driver_opts=flags.pairs(driver_opt, flag="--driver-opt") or None,
        links=[flags.link(text) for text in link] or None,
        gw_priority=gw_priority,
    )
    flags.add_link_local(place, link_local_ip)
    session.engine.endpoints.connect(network, session.engine.containers.get(container), place)


@network_command.command("disconnect")
@click.option("-f", "--force", is_flag=True, help="Force the container to disconnect from a network")
@click.argument("network", metavar="NETWORK")
@click.argument("container", metavar="CONTAINER")
@pass_session
def disconnect_command(session: Session, /, network: str, container: str, force: bool) -> None:
    """Disconnect a container from a network."""
    session.engine.endpoints.disconnect(network, session.engine.containers.get(container), force=force)


@network_command.command("rm")
@click.option("-f", "--force", is_flag=True, help="Do not error if the network does not exist")
@click.argument("names", metavar="NETWORK...", nargs=-1, required=True)
@pass_session
def rm_command(session: Session, /, names: tuple[str, ...], force: bool) -> int:
    """Remove one or more networks."""

    def remove(name: str) -> str:
        try:
            session.engine.networks.remove(name)
        except NotFound:
            if not force:
                raise
            return ""
        return name

    return several(names, remove)


@network_command.command("prune")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.option("--filter", "given", multiple=True, help="Provide filter values (e.g. until=24h, label=KEY=VALUE)")
@pass_session
def prune_command(session: Session, /, force: bool, given: tuple[str, ...]) -> None:
    """Remove all unused networks."""
    wanted = filters(given, "until", "label", "label!")
    if not force and not confirmed("This will remove all custom networks not used by at least one container."):
        return
    removed = prune(session.engine, wanted)
    if removed:
        print("Deleted Networks:", *removed, sep="\n", end="\n\n")


def prune(engine: Engine, wanted: dict[str, list[str]]) -> list[str]:
    """Remove unused networks that the filters pass, and return their names."""
    from transom_engine.cli.image import passes
    from transom_engine.cli.units import parse_time
    from transom_engine.pruning import prune_networks

    now = time.time_ns()
    before = min((parse_time(text, now=now, flag="--filter until") for text in wanted.get("until", ())), default=now)
    return prune_networks(
        engine, lambda record: parse_time(record.created, now=now) < before and passes(record.labels, wanted)
    )
