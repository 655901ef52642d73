"""Containers do not reach what they are not meant to reach, and nothing else of the host is touched."""

from __future__ import annotations

import shutil
import subprocess
from functools import partial

import pytest

from transom.contract.network import Port
from transom.services.netns import inside
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.frames import (
    ROUTER_ADVERTISEMENT,
    advertisement,
    frames_of,
    send,
    until,
    watch,
)
from transom_conformance.network.site import (
    HOST,
    NEIGHBOUR,
    TCP,
    UDP,
    UPLINK,
    Has,
    Site,
    hears,
    ip_batch,
    listen,
    plain,
    requires,
    talk,
    unreachable,
)


class Isolation(NetworkCases):
    """Containers do not reach what they are not meant to reach, and nothing else of the host is touched."""

    # Isolation

    @requires(Has.L2)
    def test_networks_are_apart(self, site: Site) -> None:
        """I1: neither by address nor by the host as a router."""
        one, two = site.network(), site.network()
        container, endpoint = site.joined(one)
        sibling, _ = site.joined(one)
        stranger, _ = site.joined(two)
        for kind in (TCP, UDP):
            server = container.listen(kind)
            assert unreachable(stranger.netns, server, plain(endpoint))
            assert talk(sibling.netns, server, plain(endpoint))

    @requires(Has.L2, Has.INTERNAL)
    def test_an_internal_network_has_no_way_out(self, site: Site) -> None:
        """I2: neither to the neighbour nor to any address of the host, not even with a route of one's own."""
        network = site.network(internal=True)
        container, endpoint = site.joined(network)
        sibling, _ = site.joined(network)
        assert container.ip("route", "show", "default") == []
        assert talk(sibling.netns, container.listen(), plain(endpoint))
        inside(container.netns, ip_batch, f"route add default via {network.subnets[0].gateway}")
        inside(site.neighbour, ip_batch, f"route add {network.subnets[0].pool} via {HOST}")
        assert unreachable(container.netns, listen(site, site.neighbour, TCP, 0, NEIGHBOUR), NEIGHBOUR)
        assert not hears(container.netns, listen(site, site.neighbour, UDP, 0, NEIGHBOUR), NEIGHBOUR)
        for address in (HOST, network.subnets[0].gateway or ""):
            assert unreachable(container.netns, listen(site, site.host, TCP, 0, "0.0.0.0"), address)
            assert unreachable(container.netns, listen(site, site.host, UDP, 0, "0.0.0.0"), address)

    @requires(Has.L2, Has.DEFAULT)
    def test_foreign_state_is_left_alone(self, site: Site) -> None:
        """I6: another table's rules and another bridge stay as they are."""
        if not shutil.which("nft"):
            pytest.skip("the program nft is missing: install nftables")

        def foreign() -> None:
            rules = "table ip foreign {\nchain forward {\ntype filter hook forward priority 0\n}\n}\n"
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
            ip_batch("link add foreign0 type bridge", "address add 10.99.0.1/24 dev foreign0", "link set foreign0 up")

        inside(site.host, foreign)
        before = site.census()
        network = site.network()
        _, endpoint = site.joined(network)
        assert before - {line for line in before if "forward" in line} <= site.census()
        site.driver.detach(network=network, endpoint=endpoint)
        site.driver.delete_network(network=network)
        assert site.census() == before
        inside(site.host, ip_batch, "link delete foreign0")
        inside(site.host, partial(subprocess.run, ["nft", "delete", "table", "ip", "foreign"], check=True))

    @requires(Has.PUBLISH)
    def test_what_the_hosts_firewall_drops_stays_dropped(self, site: Site) -> None:
        """I7: publishing opens nothing that the host's administrator closed, whoever's rules come first."""
        if not shutil.which("nft"):
            pytest.skip("the program nft is missing: install nftables")
        network = site.network()
        container, endpoint = site.joined(network)
        server = container.listen(TCP, 80)
        site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
        assert talk(site.neighbour, server, HOST, 8080) == NEIGHBOUR
        rule = f'iifname "{UPLINK}" tcp dport 80 drop'
        rules = f"table ip mine {{ chain forward {{ type filter hook forward priority 10; {rule}; }}; }}"
        inside(site.host, partial(subprocess.run, ["nft", "-f", "-"], input=rules, text=True, check=True))
        site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
        assert unreachable(site.neighbour, server, HOST, 8080)
        inside(site.host, partial(subprocess.run, ["nft", "delete", "table", "ip", "mine"], check=True))
        assert talk(site.neighbour, server, HOST, 8080) == NEIGHBOUR

    @requires(Has.ANTISPOOF, Has.IPV6, Has.MAC)
    def test_a_container_cannot_take_a_siblings_address(self, site: Site) -> None:
        """I8: frames that bear another's MAC or IP address, in ARP and NDP too, get nowhere with antispoof=true."""
        network = site.network(options={"antispoof": "true"})
        (container, own), (_, victim), (witness, _) = (site.joined(network) for _ in range(3))
        (link,) = [link for link in container.ip("link", "show") if link["ifname"] != "lo"]
        name, mac = link["ifname"], link["address"]
        honest = frames_of(mac, own)
        stolen = [
            *frames_of(mac, victim),
            *frames_of("02:99:00:00:00:01", own),
            advertisement(mac, plain(own, ipv6=True), plain(victim, ipv6=True)),
            advertisement(mac, plain(own, ipv6=True), kind=ROUTER_ADVERTISEMENT),
        ]
        seen = inside(witness.netns, watch, name)
        site.world.defer(seen.close)
        inside(container.netns, send, name, [*stolen, *honest])
        arrived = until(seen, honest)
        assert [frame.hex() for frame in stolen if frame in arrived] == []
