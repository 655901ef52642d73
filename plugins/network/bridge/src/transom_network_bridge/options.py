"""What users may set of a network, and what follows from it."""

from __future__ import annotations

import socket
from typing import Annotated, Literal

import msgspec

from transom.contract.network import Network
from transom.errors import ConfigError
from transom.services.interfaces import INTERFACE_DOCS, AnnouncingOptions, family, gateways

DEFAULT_BRIDGE = "transom0"
LOOPBACK_CLIENT = "fe80::180/128"
"""Who asks at ::1, as the firewall's rules let it pass."""
_INTERFACE = r"^[A-Za-z0-9_.-]{1,15}$"
Mode = Literal["nat", "nat-unprotected", "routed", "isolated"]


class DriverOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """What ``driver-opts`` in the config accepts; Docker's key ``ip-forward`` says the same."""

    ip_forward: bool = True


class BridgeOptions(AnnouncingOptions, frozen=True, kw_only=True):
    """What ``network create --opt`` accepts: Docker's names (docs.docker.com, bridge network driver)."""

    bridge: Annotated[str, msgspec.Meta(pattern=_INTERFACE)] | None = msgspec.field(
        name="com.docker.network.bridge.name", default=None
    )
    masquerade: bool = msgspec.field(name="com.docker.network.bridge.enable_ip_masquerade", default=True)
    icc: bool = msgspec.field(name="com.docker.network.bridge.enable_icc", default=True)
    mode4: Mode = msgspec.field(name="com.docker.network.bridge.gateway_mode_ipv4", default="nat")
    mode6: Mode = msgspec.field(name="com.docker.network.bridge.gateway_mode_ipv6", default="nat")
    host_binding: str = msgspec.field(name="com.docker.network.bridge.host_binding_ipv4", default="0.0.0.0")
    inhibit_ipv4: bool = msgspec.field(name="com.docker.network.bridge.inhibit_ipv4", default=False)
    trusted: str = msgspec.field(name="com.docker.network.bridge.trusted_host_interfaces", default="")
    default_bridge: bool = msgspec.field(name="com.docker.network.bridge.default_bridge", default=False)
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = msgspec.field(name="com.docker.network.driver.mtu", default=0)
    source4: str = msgspec.field(name="com.docker.network.host_ipv4", default="")
    source6: str = msgspec.field(name="com.docker.network.host_ipv6", default="")
    antispoof: bool = False
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,11}$")] = msgspec.field(
        name="com.docker.network.container_iface_prefix", default="eth"
    )

    def __post_init__(self) -> None:
        """Check addresses and names of interfaces."""
        for address, kind, number in (
            (self.host_binding, socket.AF_INET, 4),
            (self.source4 or "0.0.0.0", socket.AF_INET, 4),
            (self.source6 or "::", socket.AF_INET6, 6),
        ):
            try:
                socket.inet_pton(kind, address)
            except OSError:
                raise ValueError(f"{address!r} is not an IPv{number} address") from None
        for name in self.trusted_interfaces:
            if not 1 <= len(name) <= 15 or "/" in name:
                raise ValueError(f"{name!r} is not the name of an interface; write them as eth0:eth1")
        if self.default_bridge:
            raise ValueError("the default network is made by itself: leave default_bridge away")

    @property
    def trusted_interfaces(self) -> list[str]:
        """The interfaces of the host by which all of the network is reached."""
        return self.trusted.split(":") if self.trusted else []

    def mode(self, number: int) -> Mode:
        """Return the gateway mode of an address family, 4 or 6."""
        return self.mode6 if number == 6 else self.mode4


DOCS = {
    "ip-forward": "Whether the host is made to forward packets while there are networks; off, it is left as it is.",
    "com.docker.network.bridge.gateway_mode_ipv4": "How IPv4 leads out and in: by translation, routed, or not at all.",
    "com.docker.network.bridge.gateway_mode_ipv6": "The same for IPv6.",
    "com.docker.network.bridge.inhibit_ipv4": "Leave the IPv4 gateway's address to something else on the network.",
    "com.docker.network.bridge.trusted_host_interfaces": "Interfaces that reach all ports of containers, eth1:wg0.",
    "com.docker.network.bridge.default_bridge": "Docker's mark of its default network; only false is taken.",
    "antispoof": "Whether frames of containers may bear their own addresses only: MAC, IPv4, IPv6, ARP and NDP.",
    "com.docker.network.host_ipv4": "Address that what leaves the network bears, instead of the way out's own.",
    "com.docker.network.host_ipv6": "The same for IPv6.",
    "com.docker.network.bridge.name": "Name of the bridge on the host; one that exists is used and kept.",
    "com.docker.network.bridge.enable_ip_masquerade": "Whether what leaves the network gets the host's address.",
    "com.docker.network.bridge.enable_icc": "Whether containers reach each other beyond published ports.",
    "com.docker.network.bridge.host_binding_ipv4": "Host address where ports are published unless one is named.",
    "com.docker.network.driver.mtu": "Largest packet in bytes; 0 takes that of the ways out of the host.",
    "com.docker.network.container_iface_prefix": "What names of interfaces in containers start with.",
    **INTERFACE_DOCS,
}
"""`option_docs` of the driver."""


def check_modes(network: Network) -> None:
    """Refuse gateway modes that contradict the network."""
    options = options_of(network)
    for number in (4, 6):
        mode = options.mode(number)
        if mode == "isolated" and not network.internal:
            raise ConfigError(
                f"network {network.name}: gateway_mode_ipv{number}=isolated is for internal networks: add --internal"
            )


def isolated(network: Network, address: str) -> bool:
    """Say whether the host stays off the network in the family of the address."""
    return options_of(network).mode(family(address)) == "isolated"


def gateway_addresses(network: Network) -> set[str]:
    """Return what gateways' addresses the bridge has, with prefix: all, unless an option leaves them away."""
    inhibited = options_of(network).inhibit_ipv4
    return {
        address
        for address in gateways(network)
        if not isolated(network, address) and not (inhibited and family(address) == 4)
    }


def bridge_addresses(network: Network) -> set[str]:
    """Return what addresses the bridge has, with prefix."""
    found = gateway_addresses(network)
    if not network.internal and any(family(address) == 6 for address in found):
        found.add(LOOPBACK_CLIENT)
    return found


def options_of(network: Network) -> BridgeOptions:
    """Return the network's options; those of a network without a record are the defaults."""
    return network.options if isinstance(network.options, BridgeOptions) else BridgeOptions()


def bridge_name(network: Network) -> str:
    """Return the name of the network's bridge."""
    return options_of(network).bridge or (DEFAULT_BRIDGE if network.default else f"br-{network.id[:12]}")
