"""What users set: in the config, of a network, of an endpoint."""

from __future__ import annotations

import re
import socket
from typing import Annotated, Literal

import msgspec

from transom.contract.network import Network
from transom.services.interfaces import INTERFACE_DOCS, AnnouncingOptions
from transom.services.options import Duration
from transom_network_overlay.choosing import LAST_VNI

_INTERFACE = re.compile(r"[^\s/:]{1,15}")


class OverlayConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, rename="kebab"):
    """What the config says of the driver (``transom.driver-opts``)."""

    etcd: tuple[str, ...] = ()
    etcd_ca: str = ""
    etcd_cert: str = ""
    etcd_key: str = ""
    etcd_user: str = ""
    etcd_password_file: str = ""
    etcd_prefix: Annotated[str, msgspec.Meta(pattern=r"^(/[A-Za-z0-9_.-]+)+$")] = "/transom"
    host: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{0,64}$")] = ""
    address: str = ""
    port: Annotated[int, msgspec.Meta(ge=1024, le=49151)] = 4789
    encrypted_port: Annotated[int, msgspec.Meta(ge=1024, le=49151)] = 4793
    key_interval: Duration = 43200.0
    lease: Duration = 15.0
    grace: Duration = 600.0

    def __post_init__(self) -> None:
        """Check addresses, and what goes together."""
        for url in self.etcd:
            if not url.startswith(("http://", "https://")) or len(url.rstrip("/").split("/")) != 3:
                raise ValueError(f"etcd: {url!r} is not a member such as http://10.0.0.1:2379")
        if self.address and not is_address(self.address) and not _INTERFACE.fullmatch(self.address):
            raise ValueError(f"address: {self.address!r} is neither an IP address nor the name of an interface")
        if bool(self.etcd_cert) != bool(self.etcd_key):
            raise ValueError("etcd-cert and etcd-key go together")
        if bool(self.etcd_user) != bool(self.etcd_password_file):
            raise ValueError("etcd-user and etcd-password-file go together")
        if self.lease < 2:
            raise ValueError("lease is at least 2s")
        if self.key_interval < 2:
            raise ValueError("key-interval is at least 2s")
        if self.port == self.encrypted_port:
            raise ValueError("port and encrypted-port differ: packets are told by them")


class OverlayOptions(AnnouncingOptions, frozen=True, kw_only=True):
    """What ``network create --opt`` accepts: Docker's names."""

    vni: Annotated[int, msgspec.Meta(ge=0, le=LAST_VNI)] = msgspec.field(
        name="com.docker.network.driver.overlay.vxlanid_list", default=0
    )
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = msgspec.field(name="com.docker.network.driver.mtu", default=0)
    prefix: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,11}$")] = msgspec.field(
        name="com.docker.network.container_iface_prefix", default="eth"
    )
    encrypted: Literal["false", "true", ""] = "false"

    @property
    def secret(self) -> bool:
        """Whether what goes from host to host is encrypted; Docker's users write the bare word."""
        return self.encrypted != "false"


DOCS = {
    "etcd": "Members of etcd, http://10.0.0.1:2379,http://10.0.0.2:2379; any that answers will do.",
    "etcd-ca": "File with the certificates of those who sign etcd's, in PEM; the system's without.",
    "etcd-cert": "File with the certificate that this host shows etcd, in PEM.",
    "etcd-key": "File with the key to it.",
    "etcd-user": "User of etcd, where it asks for one.",
    "etcd-password-file": "File with the user's password.",
    "etcd-prefix": "What all keys in etcd start with: the same on all hosts that share networks.",
    "host": "Name of this host among the others; its host name without.",
    "address": "Address at which others reach this host, or its interface; that on the way to etcd without.",
    "port": "UDP port of VXLAN, the same on all hosts.",
    "encrypted-port": "UDP port of VXLAN for encrypted networks, the same on all hosts.",
    "key-interval": "How long encrypted networks keep their keys.",
    "lease": "How long a host that is not heard of passes for alive.",
    "grace": "How long after that its endpoints and addresses are kept.",
    "com.docker.network.driver.overlay.vxlanid_list": "VXLAN network identifier; 0 takes a free one from 4096 on.",
    "com.docker.network.driver.mtu": "Largest packet in bytes; 0 takes what fits into the hosts' own network.",
    "encrypted": "Encrypt what goes from host to host, by IPsec.",
    "com.docker.network.container_iface_prefix": "What names of interfaces in containers start with.",
    **INTERFACE_DOCS,
}
"""A line on each."""


def is_address(text: str) -> bool:
    """Say whether it is an address of IPv4 or IPv6."""
    try:
        socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except OSError:
        return False
    return True


def options_of(network: Network) -> OverlayOptions:
    """Return a network's options; the defaults where only its id is known."""
    return network.options if isinstance(network.options, OverlayOptions) else OverlayOptions()
