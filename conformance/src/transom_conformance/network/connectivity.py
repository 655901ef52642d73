"""Containers reach what they are meant to reach."""

from __future__ import annotations

import socket
import time

import msgspec
import pytest

from transom.services.interfaces import AnnouncingOptions, announce
from transom.services.netns import inside
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import (
    HOST,
    HOST6,
    NEIGHBOUR,
    NEIGHBOUR6,
    PATIENCE,
    TCP,
    UDP,
    Has,
    Site,
    echoes,
    eventually,
    family,
    gateway_of,
    listen,
    neighbours,
    plain,
    requires,
    talk,
)

LOCKTIME = 1.1
"""Seconds for which a neighbour believes nothing else of an address once it has learned (arp(7), locktime)."""


class Connectivity(NetworkCases):
    """Containers reach what they are meant to reach."""

    # Connectivity

    @requires(Has.L2)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    def test_endpoints_of_a_network_reach_each_other(self, site: Site, kind: int) -> None:
        """K1: and see each other's own addresses."""
        network = site.network()
        one, first = site.joined(network)
        other, second = site.joined(network)
        assert talk(other.netns, one.listen(kind), plain(first)) == plain(second)
        assert talk(one.netns, other.listen(kind), plain(second)) == plain(first)

    @requires(Has.L2, Has.IPV6)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    def test_endpoints_of_a_network_reach_each_other_by_ipv6_at_once(self, site: Site, kind: int) -> None:
        """K1, V1: no wait for duplicate address detection, core's IPAM did that."""
        network = site.network()
        one, first = site.joined(network)
        other, second = site.joined(network)
        server = one.listen(kind, address=plain(first, ipv6=True))
        assert talk(other.netns, server, plain(first, ipv6=True)) == plain(second, ipv6=True)

    @requires(Has.L2)
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    def test_endpoints_of_a_network_answer_echo_requests(self, site: Site, ipv6: bool) -> None:
        """K1: by ICMP, or ICMPv6."""
        site.ends(ipv6=ipv6)
        network = site.network()
        (one, first), (other, second) = (site.joined(network) for _ in range(2))
        assert echoes(one.netns, plain(second, ipv6=ipv6))
        assert echoes(other.netns, plain(first, ipv6=ipv6))

    @requires(Has.L2, Has.DEFAULT)
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    def test_host_and_container_reach_each_other(self, site: Site, ipv6: bool) -> None:
        """K2: the host at each of its addresses, where it sees the container's own; and the container at any port."""
        host, _, _ = site.ends(ipv6=ipv6)
        network = site.network()
        container, endpoint = site.joined(network)
        gateway, own = gateway_of(network, ipv6=ipv6), plain(endpoint, ipv6=ipv6)
        for kind in (TCP, UDP):
            for address in (gateway, host):
                assert talk(container.netns, listen(site, site.host, kind, 0, address), address) == own
            assert talk(site.host, container.listen(kind, 0, own), own) == gateway
        assert echoes(container.netns, gateway)
        assert echoes(site.host, own)

    @requires(Has.L2, Has.MAC)
    @pytest.mark.parametrize("ipv6", [False, True])
    def test_neighbours_learn_at_once_that_an_address_has_another_mac(self, site: Site, ipv6: bool) -> None:
        """V3: without asking, as they would not while what they know seems right."""
        if ipv6 and not site.has(Has.IPV6):
            pytest.skip(f"not claimed: {site.suite.driver} does not declare ipv6")
        network = site.network()
        one, _ = site.joined(network)
        other, endpoint = site.joined(network, mac="02:42:0a:58:99:01")
        address = plain(endpoint, ipv6=ipv6)
        talk(one.netns, other.listen(address=address), address)
        site.driver.detach(network=network, endpoint=endpoint)
        time.sleep(LOCKTIME)
        changed = msgspec.structs.replace(endpoint, mac="02:42:0a:58:99:02")
        netns = site.container().netns
        attachment = site.driver.attach(network=network, endpoint=changed, netns=netns)
        site.endpoints.append((network, changed))
        announce(
            netns, netns=netns, interface=attachment.interface or "", addresses=attachment.addresses,
            options=AnnouncingOptions(announcements=1),
        )  # fmt: skip
        eventually(
            lambda: changed.mac in [known.get("lladdr") for known in inside(one.netns, neighbours, address)],
            f"a neighbour sends to {endpoint.mac} what is for {address}",
            seconds=PATIENCE,
        )

    @requires(Has.L2)
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    def test_a_full_packet_passes_and_the_mtu_is_the_networks(self, site: Site, ipv6: bool) -> None:
        """K7: from end to end, without fragments; one byte more is refused."""
        site.ends(ipv6=ipv6)
        network = site.network(mtu=1300)
        one, first = site.joined(network)
        container = site.container()
        _, attachment = container.attach(network)
        assert attachment.mtu == 1300
        address, headers = plain(first, ipv6=ipv6), 48 if ipv6 else 28
        server = one.listen(UDP, address=address)
        server.settimeout(PATIENCE)
        with inside(container.netns, socket.socket, family(address), UDP) as client:
            # IPV6_MTU_DISCOVER or IP_MTU_DISCOVER, to IP_PMTUDISC_DO: ipv6(7), ip(7)
            client.setsockopt(*((socket.IPPROTO_IPV6, 23) if ipv6 else (socket.IPPROTO_IP, 10)), 2)
            client.connect((address, server.getsockname()[1]))
            talk(container.netns, server, address)
            client.send(bytes(1300 - headers))
            assert len(server.recv(2000)) == 1300 - headers
            with pytest.raises(OSError, match="too long"):
                client.send(bytes(1300 - headers + 1))

    @requires(Has.L2, Has.DEFAULT)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    def test_what_leaves_the_host_bears_the_hosts_address(self, site: Site, kind: int) -> None:
        """K3: the neighbour has no route to containers."""
        container, _ = site.joined(site.network())
        server = listen(site, site.neighbour, kind, 0, NEIGHBOUR)
        assert talk(container.netns, server, NEIGHBOUR) == HOST
        if site.has(Has.IPV6):
            server = listen(site, site.neighbour, kind, 0, NEIGHBOUR6)
            assert talk(container.netns, server, NEIGHBOUR6) == HOST6

    @requires(Has.L2)
    def test_a_driver_makes_no_default_route(self, site: Site) -> None:
        """K6: core decides which of several networks leads out."""
        container = site.container()
        container.attach(site.network(), leads_out=False)
        assert container.ip("route", "show", "default") == []
        assert container.ip("-6", "route", "show", "default") == []
