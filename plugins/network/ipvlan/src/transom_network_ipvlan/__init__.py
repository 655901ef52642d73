"""The network driver ``ipvlan``: containers on the network of a host interface, under the MAC address of that one.

A container's interface is an ipvlan child of the host's interface (ip-link(8); the kernel's
Documentation/networking/ipvlan.rst). What it shares with macvlan is in `transom.services.parents`; here are its modes.
They are the parent's, not the child's: the kernel would switch all children over with a new one, so networks on one
parent have one mode, or are refused.
"""

from __future__ import annotations

import struct
from typing import ClassVar, Literal

import msgspec

from transom.contract.network import Endpoint, Network
from transom.errors import ConfigError
from transom.services import interfaces, netlink
from transom.services.parents import CAPABILITIES, PARENT_DOCS, Claim, ParentDriver, ParentOptions

MODES = {"l2": 0, "l3": 1, "l3s": 2}
"""IPVLAN_MODE_* of linux/if_link.h, by the words of ip-link(8)."""
FLAGS = {"bridge": 0, "private": 1, "vepa": 2}
"""IPVLAN_F_*, likewise."""
_MODE, _FLAGS = 1, 2


class IpvlanOptions(ParentOptions, frozen=True, kw_only=True):
    """What ``network create --opt`` accepts: Docker's names."""

    mode: Literal["l2", "l3", "l3s"] = msgspec.field(name="ipvlan_mode", default="l2")
    flag: Literal["bridge", "private", "vepa"] = msgspec.field(name="ipvlan_flag", default="bridge")


class Ipvlan(ParentDriver):
    """See the module's text."""

    name = "ipvlan"
    api = 1
    capabilities = CAPABILITIES
    NetworkOptions = IpvlanOptions
    option_docs: ClassVar[dict[str, str]] = {
        "ipvlan_mode": "l2: containers are neighbours on the network; l3, l3s: the host routes, l3s by its firewall.",
        "ipvlan_flag": "bridge: containers meet; private: they do not; vepa: only by a switch or router outside.",
        **PARENT_DOCS,
    }
    child_kind = "ipvlan"
    feature = "CONFIG_IPVLAN"

    def mode(self, network: Network) -> str:
        """Return mode and flag in ip-link(8)'s words."""
        return f"{_options(network).mode}-{_options(network).flag}"

    def child_data(self, network: Network) -> bytes:
        """Return mode and flag as the kernel wants them."""
        options = _options(network)
        mode = netlink.attribute(_MODE, struct.pack("=H", MODES[options.mode]))
        return mode + netlink.attribute(_FLAGS, struct.pack("=H", FLAGS[options.flag]))

    def conflict(self, mode: str, others: list[Claim]) -> str:
        """Refuse company of another driver's, and of another mode's."""
        modes = sorted({other.mode for other in others} - {mode})
        return super().conflict(mode, others) or (f"it is in mode {modes[0]}" if modes else "")

    def mac(self, network: Network, endpoint: Endpoint) -> str:
        """Leave it to the kernel: it is the parent's.

        Raises:
            ConfigError: the user wants another one.
        """
        if endpoint.mac:
            raise ConfigError(
                f"endpoint {endpoint.id[:12]} cannot have the MAC address {endpoint.mac}: with ipvlan all have that of "
                "their parent; leave it out, or use macvlan"
            )
        return ""

    def next_hops(self, network: Network, endpoint: Endpoint) -> tuple[str, ...]:
        """Return the gateways; in modes l3 and l3s the host routes, and the link itself is the way out."""
        found = super().next_hops(network, endpoint)
        if _options(network).mode == "l2":
            return found
        return tuple("::" if interfaces.family(hop) == 6 else "0.0.0.0" for hop in found)


def _options(network: Network) -> IpvlanOptions:
    return network.options if isinstance(network.options, IpvlanOptions) else IpvlanOptions()
