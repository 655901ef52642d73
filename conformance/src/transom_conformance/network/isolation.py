"""Containers do not reach what they are not meant to reach, and nothing else of the host is touched."""

from __future__ import annotations

import os
import shutil
import socket
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
    Container,
    Has,
    Site,
    gateway_of,
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
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    def test_networks_are_apart(self, site: Site, ipv6: bool) -> None:
        """I1: neither by address nor by the host as a router, in neither direction."""
        site.ends(ipv6=ipv6)
        networks = [site.network() for _ in range(2)]
        places = [[site.joined(network) for _ in range(2)] for network in networks]
        for (home, _), other in (places, places[::-1]):
            container, endpoint = home
            address = plain(endpoint, ipv6=ipv6)
            for kind in (TCP, UDP):
                server = container.listen(kind, address="::" if ipv6 else "0.0.0.0")
                assert all(unreachable(stranger.netns, server, address) for stranger, _ in other)
                assert kind == TCP or not hears(other[0][0].netns, server, address)
        for (one, endpoint), (sibling, _) in places:
            assert talk(sibling.netns, one.listen(TCP, 0, "::"), plain(endpoint, ipv6=ipv6))

    @requires(Has.L2, Has.INTERNAL)
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    def test_an_internal_network_has_no_way_out(self, site: Site, ipv6: bool) -> None:
        """I2: neither to the neighbour nor to any address of the host, not even with a route of one's own."""
        host, neighbour, _ = site.ends(ipv6=ipv6)
        network, other = site.network(internal=True), site.network()
        container, endpoint = site.joined(network)
        sibling, _ = site.joined(network)
        outside, _ = site.joined(other)
        assert container.ip(*["-6"] * ipv6, "route", "show", "default") == []
        assert talk(sibling.netns, container.listen(TCP, 0, "::"), plain(endpoint, ipv6=ipv6))
        gateway, pool = next((s.gateway or "", s.pool) for s in network.subnets if (":" in s.pool) == ipv6)
        inside(container.netns, ip_batch, f"route add default via {gateway}")
        inside(site.neighbour, ip_batch, f"route add {pool} via {host}")
        anywhere = "::" if ipv6 else "0.0.0.0"
        for kind in (TCP, UDP):
            server = listen(site, site.neighbour, kind, 0, anywhere)
            assert unreachable(container.netns, server, neighbour)
            assert kind == TCP or not hears(container.netns, server, neighbour)
            own = listen(site, site.host, kind, 0, anywhere)
            for address in (host, gateway, gateway_of(other, ipv6=ipv6)):
                assert unreachable(container.netns, own, address)
                assert kind == TCP or not hears(container.netns, own, address)
            inner = container.listen(kind, 0, anywhere)
            assert unreachable(site.neighbour, inner, plain(endpoint, ipv6=ipv6))
            assert unreachable(outside.netns, inner, plain(endpoint, ipv6=ipv6))

    @requires(Has.L2, Has.INTERNAL, Has.PUBLISH)
    def test_an_internal_network_does_not_reach_what_others_publish(self, site: Site) -> None:
        """I2: the host's addresses lead on to other networks, but not from here."""
        container, endpoint = site.joined(site.network())
        inner_network = site.network(internal=True)
        inner, _ = site.joined(inner_network)
        site.driver.publish(network=site.networks[0], endpoint=endpoint, ports=(Port(container=80, host=8080),))
        server = container.listen(TCP, 80)
        inside(inner.netns, ip_batch, f"route add default via {gateway_of(inner_network)}")
        for address in (HOST, gateway_of(inner_network), gateway_of(site.networks[0])):
            assert unreachable(inner.netns, server, address, 8080)
        assert talk(site.neighbour, server, HOST, 8080) == NEIGHBOUR

    @requires(Has.L2, Has.DEFAULT)
    def test_foreign_state_is_left_alone(self, site: Site) -> None:
        """I6: others' tables stay as they are to the letter, and what passes their bridges goes on passing."""
        if not shutil.which("nft"):
            pytest.skip("the program nft is missing: install nftables")
        guests = [site.container() for _ in range(2)]
        server = inside(site.host, foreign_bridge, guests)
        site.world.defer(server.close)

        def passes() -> None:
            """Guests of the foreign bridge reach each other and the host's neighbour; nobody else reaches them."""
            assert talk(guests[1].netns, guests[0].listen(), "10.99.0.2") == "10.99.0.3"
            assert talk(guests[0].netns, listen(site, site.neighbour, TCP, 0, NEIGHBOUR), NEIGHBOUR) == "10.99.0.2"
            assert talk(guests[0].netns, server, "10.99.0.1") == "10.99.0.2"

        inside(site.neighbour, ip_batch, f"route add 10.99.0.0/24 via {HOST}")
        passes()
        before, tables = site.census(), inside(site.host, foreign_tables)
        network = site.network()
        _, endpoint = site.joined(network)
        passes()
        assert inside(site.host, foreign_tables) == tables
        site.driver.detach(network=network, endpoint=endpoint)
        site.driver.delete_network(network=network)
        assert inside(site.host, foreign_tables) == tables
        passes()
        assert site.census() == before
        inside(site.host, foreign_gone)

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize("priority", [-10, 0, 10])
    def test_what_the_hosts_firewall_drops_stays_dropped(self, site: Site, priority: int) -> None:
        """I7: publishing opens nothing that the host's administrator closed, whoever's rules come first.

        A chain whose policy is to drop drops it too, until a rule of its own lets it pass.
        """
        if not shutil.which("nft"):
            pytest.skip("the program nft is missing: install nftables")
        network = site.network()
        container, endpoint = site.joined(network)
        server = container.listen(TCP, 80)
        publish = partial(site.driver.publish, network=network, endpoint=endpoint)
        publish(ports=(Port(container=80, host=8080),))
        assert talk(site.neighbour, server, HOST, 8080) == NEIGHBOUR
        passing = "ct state established,related accept; tcp dport 80 accept;"
        for policy, rules, reached in (
            ("accept", f'iifname "{UPLINK}" tcp dport 80 drop;', False),
            ("drop", "", False),
            ("drop", passing, True),
        ):
            hook = f"type filter hook forward priority {priority}; policy {policy};"
            inside(site.host, run, "nft", f"table ip mine {{ chain forward {{ {hook} {rules} }}; }}")
            publish(ports=(Port(container=80, host=8080),))
            assert (talk if reached else unreachable)(site.neighbour, server, HOST, 8080)
            inside(site.host, run, "nft", "delete", "table", "ip", "mine")
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


def foreign_bridge(guests: list[Container]) -> socket.socket:
    """Make a bridge of somebody else's in the thread's namespace, guests on it, and tables; return a server there."""
    ip_batch("link add foreign0 type bridge", "address add 10.99.0.1/24 dev foreign0", "link set foreign0 up")
    for number, guest in enumerate(guests, 2):
        end = f"name eth0 netns /proc/{os.getpid()}/fd/{guest.netns}"
        ip_batch(
            f"link add foreign{number} master foreign0 type veth peer {end}",
            f"link set foreign{number} up",
        )
        inside(
            guest.netns,
            ip_batch,
            f"address add 10.99.0.{number}/24 dev eth0",
            "link set eth0 up",
            "route add default via 10.99.0.1",
        )
    write("/proc/sys/net/ipv4/ip_forward", "1")
    run(
        "nft",
        "table ip foreign { set known { type ipv4_addr; elements = { 10.99.0.2, 10.99.0.3 }; };"
        " chain forward { type filter hook forward priority 0; policy accept; ip saddr @known accept; }; };"
        " table inet firewalld { chain postrouting { type nat hook postrouting priority srcnat; }; };",
    )
    return socket.create_server(("10.99.0.1", 0))


def foreign_gone() -> None:
    """Take away what `foreign_bridge` made."""
    ip_batch("link delete foreign0", "link delete foreign2", "link delete foreign3")
    run("nft", "delete table ip foreign; delete table inet firewalld")
    write("/proc/sys/net/ipv4/ip_forward", "0")


def foreign_tables() -> str:
    """Return the text of the tables in the thread's namespace that the case made for others."""
    return run("nft", "list", "table", "ip", "foreign") + run("nft", "list", "table", "inet", "firewalld")


def run(*words: str) -> str:
    """Run a program that must succeed; return what it prints."""
    return subprocess.run(words, text=True, capture_output=True, check=True).stdout


def write(path: str, value: str) -> None:
    """Write a file."""
    with open(path, "w") as file:
        file.write(value)
