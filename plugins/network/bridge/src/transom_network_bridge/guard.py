"""The table ``bridge transom``: endpoints that bear no address but their own, for networks with ``antispoof``.

A container with CAP_NET_RAW or CAP_NET_ADMIN can send whatever frames it likes. This table looks at each where it
enters the bridge, in nftables' own family of bridges, and so needs nothing of br_netfilter. It is loaded with the first
network that asks for it; no other network's frames are looked up in more than one set.
"""

from __future__ import annotations

from transom.contract.network import Endpoint
from transom.errors import NotSupported
from transom.services import netlink
from transom.services.interfaces import family
from transom_network_bridge.firewall import Element, Firewall, Rules, pack_name

GUARD_RULES = Rules(
    number=7,  # NFPROTO_BRIDGE
    word="bridge",
    text="""
table bridge transom {
  set guarded { type ifname; comment "host ends of endpoints"; }
  set hardware { type ifname . ether_addr; }
  set sources4 { type ifname . ether_addr . ipv4_addr; }
  set sources6 { type ifname . ether_addr . ipv6_addr; }
  set targets6 { typeof meta iifname . @th,64,128; comment "what neighbours may be told of (RFC 4861, 4.4)"; }

  chain prerouting {
    type filter hook prerouting priority filter; policy accept;
    iifname @guarded jump from_endpoint
  }

  # Of ARP, 0.0.0.0 asks whether an address is free (RFC 5227) and tells nobody anything.
  chain from_endpoint {
    iifname . ether saddr != @hardware drop
    ether type arp arp saddr ip 0.0.0.0 accept
    ether type arp iifname . arp saddr ether . arp saddr ip @sources4 accept
    ether type ip iifname . ether saddr . ip saddr @sources4 accept
    ether type ip6 jump ipv6
    drop
  }

  chain ipv6 {
    icmpv6 type { nd-router-advert, nd-redirect } drop
    icmpv6 type nd-neighbor-advert iifname . @th,64,128 != @targets6 drop
    ip6 saddr :: icmpv6 type { nd-neighbor-solicit, mld2-listener-report } accept
    iifname . ether saddr . ip6 saddr @sources6 accept
    drop
  }
}
""",
)


class Guard(Firewall):
    """The table; see the module's text."""

    rules = GUARD_RULES

    def load(self, *, anew: bool = False) -> None:
        """Load the rules; see `Firewall.load`.

        Raises:
            NotSupported: the kernel has no nftables for bridges.
        """
        try:
            super().load(anew=anew)
        except OSError as error:
            raise NotSupported(
                f"network bridge: antispoof=true needs nftables for bridges (CONFIG_NF_TABLES_BRIDGE): {error.strerror}"
            ) from None

    def admit(self, endpoint: Endpoint, interface: str, mac: str) -> None:
        """Let what enters the bridge by the interface bear the endpoint's addresses and no others."""
        mine, wanted = self.of(endpoint, interface), admitted(endpoint, interface, mac)
        self.change(add=[e for e in wanted if e not in mine], remove=[e for e in mine if e not in wanted])

    def dismiss(self, endpoint: Endpoint, interface: str) -> None:
        """Forget the endpoint. Absent is success."""
        self.change(add=[], remove=self.of(endpoint, interface))

    def of(self, endpoint: Endpoint, interface: str) -> list[Element]:
        """Return the endpoint's elements: one transaction made them, so one look tells whether there are any."""
        if not self.get([Element("guarded", pack_name(interface))]):
            return []
        return self.elements(owner=f"endpoint {endpoint.id}")


def admitted(endpoint: Endpoint, interface: str, mac: str) -> list[Element]:
    """Return the elements by which an endpoint's frames pass."""
    name, hardware, note = pack_name(interface), netlink.pack_mac(mac), f"endpoint {endpoint.id}"
    found = [Element("guarded", name, comment=note), Element("hardware", name + hardware + bytes(2), comment=note)]
    addresses = [address.partition("/")[0] for address in (*endpoint.addresses, *endpoint.link_local)]
    if any(family(address) == 6 for address in addresses):
        addresses.append(link_local(mac))
    for address in dict.fromkeys(addresses):
        packed, number = netlink.pack_address(address)[1], family(address)
        found.append(Element(f"sources{number}", name + hardware + bytes(2) + packed, comment=note))
        if number == 6:
            found.append(Element("targets6", name + packed, comment=note))
    return found


def link_local(mac: str) -> str:
    """Return the address that an interface gives itself (RFC 4291, appendix A)."""
    packed = netlink.pack_mac(mac)
    words = bytes([packed[0] ^ 2]) + packed[1:3] + b"\xff\xfe" + packed[3:]
    return "fe80::" + ":".join(words[at : at + 2].hex() for at in range(0, 8, 2))
