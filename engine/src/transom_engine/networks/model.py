"""Records of networks, in the shape of Docker's API."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from transom.contract.network import Network
from transom_engine.model import Pascal, now

if TYPE_CHECKING:
    from transom.config import Config

DEFAULT = "bridge"
"""The name of the default network, whatever driver carries it: Docker's users write it."""
NO_NETWORK = "none"
"""Docker's word, of the key ``bridge``, for no default network; and the network of who asks for none then."""
DEFAULT_IPAM, DHCP = "default", "dhcp"
"""Who gives addresses, in the words of ``--ipam-driver``: core's IPAM, and the option of drivers that ask a server."""
CONFIG_ONLY = "null"
"""What stands for the driver of a network that is a configuration alone, as in Docker's lists."""
MEMBERS = "network-members"
"""The lock that whoever makes or joins a network shares, and whoever removes one has alone."""


def default_network(config: Config) -> str:
    """Return the network of containers for which none is named."""
    return NO_NETWORK if config.bridge == NO_NETWORK else DEFAULT


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


class ConfigFrom(Pascal):
    """The network that another one's configuration was taken from."""

    network: str = ""


class NetworkCreate(Pascal):
    """What a network is to be, in the shape of the request by which Docker's API makes one.

    Attributes:
        driver: empty for the default one.
        scope: empty, or that of the driver's networks.
        enable_ipv4, enable_ipv6: whether it has addresses of that family; None leaves it to the options.
        ipam: who gives the addresses: ``default``, or ``dhcp`` where the driver has an option of that name.
        config_only: subnets, options and labels are kept for others to be made by; nothing comes on the host.
        config_from: such a one, whose configuration the network has in place of one of its own.
    """

    name: str
    driver: str = ""
    scope: str = ""
    enable_ipv4: bool | None = msgspec.field(default=None, name="EnableIPv4")
    enable_ipv6: bool | None = msgspec.field(default=None, name="EnableIPv6")
    ipam: IpamRecord = msgspec.field(default_factory=IpamRecord, name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigFrom = msgspec.field(default_factory=ConfigFrom)
    options: dict[str, str] = {}
    labels: dict[str, str] = {}


class NetworkRecord(Pascal, kw_only=True):
    """A network, in the shape of Docker's NetworkInspect."""

    name: str
    id: str = msgspec.field(name="Id", default_factory=lambda: os.urandom(32).hex())
    created: str = msgspec.field(default_factory=now)
    driver: str
    scope: str = "local"
    enable_ipv4: bool = msgspec.field(default=True, name="EnableIPv4")
    enable_ipv6: bool = msgspec.field(default=False, name="EnableIPv6")
    ipam: IpamRecord = msgspec.field(default_factory=IpamRecord, name="IPAM")
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigFrom = msgspec.field(default_factory=ConfigFrom)
    containers: dict[str, dict[str, str]] = {}
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    peers: list[dict[str, str]] | msgspec.UnsetType = msgspec.UNSET


msgspec.json.Decoder(NetworkRecord)  # now: msgspec crashes when two threads meet a type for the first time at once


def configs_of(network: Network) -> list[IpamConfig]:
    """Return the subnets of a network as its record has them."""
    return [
        IpamConfig(subnet=s.pool, gateway=s.gateway or "", ip_range=s.range or "", auxiliary_addresses=s.reserved)
        for s in network.subnets
    ]


def record_of(network: Network, driver: str) -> NetworkRecord:
    """Write down a network that another host made."""
    from transom.services.options import words_of

    return NetworkRecord(
        name=network.name, id=network.id, driver=driver, scope="global", internal=network.internal,
        enable_ipv4=any(":" not in subnet.pool for subnet in network.subnets),
        enable_ipv6=any(":" in subnet.pool for subnet in network.subnets), ipam=IpamRecord(config=configs_of(network)),
        options=words_of(network.options), labels=network.labels,
    )  # fmt: skip
