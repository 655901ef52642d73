"""Ports of containers are reached at the host, by those who may."""

from __future__ import annotations

import socket
import struct
import time
from functools import partial

import pytest

from transom.contract.network import Port
from transom.errors import ConfigError, Conflict
from transom.services.netns import inside
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import (
    HOST,
    HOST6,
    IMPATIENCE,
    NEIGHBOUR,
    NEIGHBOUR6,
    PATIENCE,
    TCP,
    UDP,
    Has,
    Site,
    exchange,
    family,
    gateway_of,
    hears,
    ip_batch,
    listen,
    loopback_routable,
    persistently,
    plain,
    requires,
    talk,
    unreachable,
)


class Publishing(NetworkCases):
    """Ports of containers are reached at the host, by those who may."""

    # Published ports

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    def test_a_published_port_is_reached_from_everywhere(self, site: Site, kind: int, ipv6: bool) -> None:
        """P2, P3: from the neighbour, the host, its loopback, a sibling, the container itself and another network.

        Who is not on the network keeps his address. A sibling, who could answer past the host, may appear as the host;
        so must the loopback and, since it takes nothing from itself, the container.
        """
        host, neighbour, loopback = site.ends(ipv6=ipv6)
        network = site.network()
        (container, endpoint), (sibling, near) = (site.joined(network) for _ in range(2))
        stranger, far = site.joined(site.network())
        server, protocol = container.listen(kind, 80, "::" if ipv6 else "0.0.0.0"), "tcp" if kind == TCP else "udp"
        ports = (Port(container=80, host=8080, protocol=protocol),)
        bound = site.driver.publish(network=network, endpoint=endpoint, ports=ports)
        assert Port(container=80, host=8080, protocol=protocol, address="::" if ipv6 else "0.0.0.0") in bound
        gateway = gateway_of(network, ipv6=ipv6)
        own = {host, gateway}
        for netns, address, sources in (
            (site.neighbour, host, {neighbour}),
            (site.host, host, {host}),
            (site.host, gateway, {gateway}),
            (site.host, loopback, own),
            (stranger.netns, host, {plain(far, ipv6=ipv6)}),
            (stranger.netns, gateway, {plain(far, ipv6=ipv6)}),
            (sibling.netns, host, {plain(near, ipv6=ipv6), *own}),
            (sibling.netns, gateway, {plain(near, ipv6=ipv6), *own}),
            (container.netns, host, own),
            (container.netns, gateway, own),
        ):
            assert talk(netns, server, address, 8080) in sources

    @requires(Has.PUBLISH, Has.IPV6)
    def test_a_published_port_is_reached_by_ipv6(self, site: Site) -> None:
        """P2, P5, V3: the same port for both families, at once; the source is kept."""
        network = site.network()
        container, endpoint = site.joined(network)
        server = container.listen(TCP, 80, plain(endpoint, ipv6=True))
        bound = site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80),))
        assert {port.address for port in bound} == {"0.0.0.0", "::"}
        assert len({port.host for port in bound}) == 1
        start = time.monotonic()
        assert talk(site.neighbour, server, HOST6, bound[0].host) == NEIGHBOUR6
        assert time.monotonic() - start < 1.8  # one lost packet is repeated after a second
        assert talk(site.host, server, HOST6, bound[0].host)

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    def test_what_is_not_published_is_not_reached_from_outside(self, site: Site, ipv6: bool) -> None:
        """I4: an unpublished port is not, nor by a route to the network the container itself, at any port."""
        host, _, _ = site.ends(ipv6=ipv6)
        network = site.network()
        assert site.driver.reach(network=network) == {}
        container, endpoint = site.joined(network)
        stranger, _ = site.joined(site.network())
        address = plain(endpoint, ipv6=ipv6)
        servers = {kind: container.listen(kind, 80, address) for kind in (TCP, UDP)}
        ports = (Port(container=81, host=8081), Port(container=80, host=8082))
        site.driver.publish(network=network, endpoint=endpoint, ports=ports)
        pool = next(subnet.pool for subnet in network.subnets if (":" in subnet.pool) == ipv6)
        inside(site.neighbour, ip_batch, f"route add {pool} via {host}")
        for server in servers.values():
            assert unreachable(site.neighbour, server, host, 8080)
            for netns in (site.neighbour, stranger.netns):
                assert unreachable(netns, server, address, 80)
                assert server.type == TCP or not hears(netns, server, address, 80)
        assert talk(site.neighbour, servers[TCP], host, 8082)

    @requires(Has.PUBLISH)
    def test_a_port_is_published_at_the_addresses_that_are_named(self, site: Site) -> None:
        """P1: at one, at several of the loopback with a container each, or at all of a family."""
        network = site.network()
        six = [("::", HOST6, "::1"), (HOST6, HOST6), ("::1", "::1")] if site.has(Has.IPV6) else []
        for number, (address, *reached) in enumerate(
            [("0.0.0.0", HOST, "127.0.0.1", "127.0.0.9"), (HOST, HOST), ("127.0.0.2", "127.0.0.2"), *six], 8080
        ):
            container, endpoint = site.joined(network)
            server = container.listen(TCP, 80, "::" if site.has(Has.IPV6) else "0.0.0.0")
            port = Port(container=80, host=number, address=address)
            assert site.driver.publish(network=network, endpoint=endpoint, ports=(port,)) == (port,)
            for place in [HOST, "127.0.0.1", "127.0.0.2", *reached, *([HOST6, "::1"] if six else [])]:
                expected = place in reached or (address == "0.0.0.0" and ":" not in place)
                assert (talk if expected else unreachable)(site.host, server, place, number)

    @requires(Has.PUBLISH)
    def test_one_port_leads_to_as_many_containers_as_there_are_addresses(self, site: Site) -> None:
        """P1: each at its own address, while a free port for all addresses is none of theirs."""
        network, places = site.network(), ("127.0.0.1", "127.0.0.2", HOST)
        servers = {}
        for address in places:
            container, endpoint = site.joined(network)
            servers[address] = container.listen(TCP, 80)
            port = Port(container=80, host=8080, address=address)
            site.driver.publish(network=network, endpoint=endpoint, ports=(port,))
        for address in places:
            assert talk(site.host, servers[address], address, 8080)
        container, endpoint = site.joined(network)
        mixed = tuple(Port(container=number, host=8080, host_end=8082, address=a) for number, a in
                      ((80, ""), (81, "127.0.0.1"), (82, HOST), (83, "127.0.0.3")))  # fmt: skip
        bound = site.driver.publish(network=network, endpoint=endpoint, ports=mixed)
        found = {(port.container, port.address): port.host for port in bound if ":" not in port.address}
        assert found[80, "0.0.0.0"] not in {8080, *(host for (number, _), host in found.items() if number != 80)}
        for (number, address), host in found.items():
            assert talk(site.host, container.listen(TCP, number), address.replace("0.0.0.0", HOST), host)

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    def test_a_port_published_at_loopback_is_the_hosts_alone(self, site: Site, kind: int, ipv6: bool) -> None:
        """I5: who sends to 127.0.0.1 or ::1 by way of the host does not get there: a neighbour, containers.

        Nor do they get at what the host itself has there.
        """
        host, _, loopback = site.ends(ipv6=ipv6)
        network = site.network()
        container, endpoint = site.joined(network)
        sibling, _ = site.joined(network)
        server = container.listen(kind, 80, "::" if ipv6 else "0.0.0.0")
        port = Port(container=80, host=8080, address=loopback, protocol="tcp" if kind == TCP else "udp")
        assert site.driver.publish(network=network, endpoint=endpoint, ports=(port,)) == (port,)
        assert talk(site.host, server, loopback, 8080)
        assert unreachable(site.neighbour, server, host, 8080)
        assert unreachable(sibling.netns, server, host, 8080)
        own = listen(site, site.host, kind, 0, loopback)
        gateway = gateway_of(network, ipv6=ipv6)
        for netns, device, via in (
            (site.neighbour, "lan0", host),
            (sibling.netns, "eth0", gateway),
            (container.netns, "eth0", gateway),
        ):
            inside(netns, loopback_routable, device, via)
            for end, number in ((server, 8080), (own, 0)):
                assert unreachable(netns, end, loopback, number)
                assert kind == TCP or not hears(netns, end, loopback, number)

    @requires(Has.PUBLISH)
    def test_a_port_in_use_is_a_conflict_that_names_it_and_nothing_is_published(self, site: Site) -> None:
        """P4: by a program of the host or by another endpoint, which is named; all ports or none."""
        network = site.network()
        _, first = site.joined(network, names=("web", "alias"))
        _, second = site.joined(network)
        site.driver.publish(network=network, endpoint=first, ports=(Port(container=80, host=8080),))
        listen(site, site.host, TCP, 8081, "127.0.0.1")
        listen(site, site.host, UDP, 8082, "0.0.0.0")
        six = [Port(container=80, host=8083), Port(container=80, host=8084, address="::1")]
        if site.has(Has.IPV6):
            listen(site, site.host, TCP, 8083, HOST6)
            listen(site, site.host, TCP, 8084, "::1")
        before = site.census()
        for port, word in (
            (Port(container=80, host=8080), "web"),
            (Port(container=80, host=8080, address=HOST), "web"),
            (Port(container=80, host=8081), "8081"),
            (Port(container=80, host=8082, protocol="udp"), "8082"),
            *((port, str(port.host)) for port in six if site.has(Has.IPV6)),
        ):
            with pytest.raises(Conflict) as caught:
                site.driver.publish(network=network, endpoint=second, ports=(Port(container=81, host=8090), port))
            assert str(port.host) in str(caught.value)
            assert word in str(caught.value)
            assert site.census() == before

    @requires(Has.PUBLISH)
    def test_any_port_is_a_free_one_of_the_ephemeral_range_and_of_a_range_the_first_free(self, site: Site) -> None:
        """P1, P5: each publication gets another one."""
        network = site.network()
        _, endpoint = site.joined(network)
        listen(site, site.host, TCP, 9000, "0.0.0.0")
        ports = (Port(container=80), Port(container=80), *[Port(container=81, host=9000, host_end=9002)] * 2)
        bound = site.driver.publish(network=network, endpoint=endpoint, ports=ports)
        hosts = [port.host for port in bound if port.address == "0.0.0.0"]
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            low, high = map(int, file.read().split())
        assert all(low <= port <= high for port in hosts[:2])
        assert hosts[2:] == [9001, 9002]
        assert len(set(hosts)) == 4
        with pytest.raises(Conflict) as caught:
            site.driver.publish(
                network=network, endpoint=site.joined(network)[1], ports=(Port(container=1, host=9000, host_end=9002),)
            )
        assert "9000-9002" in str(caught.value)

    @requires(Has.PUBLISH)
    def test_a_free_port_is_none_that_the_host_has_reserved(self, site: Site) -> None:
        """P5: ip_local_port_range and ip_local_reserved_ports (ip-sysctl) say which there are."""
        network = site.network()
        inside(site.host, setting, "ip_local_port_range", "41000 41009")
        inside(site.host, setting, "ip_local_reserved_ports", "41000-41003,41005-41007,41009")
        bound = []
        for number in (80, 81):
            _, endpoint = site.joined(network)
            bound += site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=number),))
        assert {port.host for port in bound} == {41004, 41008}
        with pytest.raises(Conflict):
            site.driver.publish(network=network, endpoint=site.joined(network)[1], ports=(Port(container=80),))
        asked = Port(container=80, host=41000, address="0.0.0.0")  # reserved for who asks for it
        assert asked in site.driver.publish(network=network, endpoint=endpoint, ports=(asked,))

    @requires(Has.PUBLISH)
    def test_publishing_again_replaces_and_withdrawing_ends_it(self, site: Site) -> None:
        """P7: also right away, and detaching withdraws too."""
        network = site.network()
        container, endpoint = site.joined(network)
        server = container.listen(TCP, 80)
        before = site.census()
        publish = partial(site.driver.publish, network=network, endpoint=endpoint)
        publish(ports=(Port(container=80, host=8080), Port(container=80, host=8081)))
        publish(ports=(Port(container=80, host=8081), Port(container=80, host=8082)))
        assert unreachable(site.neighbour, server, HOST, 8080)
        for port in (8081, 8082):
            assert talk(site.neighbour, server, HOST, port)
        for _ in range(2):
            site.driver.unpublish(network=network, endpoint=endpoint)
        assert site.census() == before
        assert unreachable(site.neighbour, server, HOST, 8081)
        publish(ports=(Port(container=80, host=8081),))
        assert talk(site.neighbour, server, HOST, 8081)
        site.driver.detach(network=network, endpoint=endpoint)
        assert site.driver.owned().endpoints == frozenset()

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize("ending", ["client", "server", "nobody"])
    def test_a_port_leads_to_the_next_container_at_once(self, site: Site, ending: str) -> None:
        """P7: inside 2 MSL of a connection, whoever ended it, from the same port of the client's too."""
        network = site.network()
        for _ in range(2):
            container, endpoint = site.joined(network)
            server = container.listen(TCP, 80)
            site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
            server.settimeout(PATIENCE)
            with inside(site.neighbour, socket.socket, socket.AF_INET, TCP) as client:
                client.settimeout(PATIENCE)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if ending != "client":  # who ends a connection keeps its port for 2 MSL; by a reset it does not
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.bind((NEIGHBOUR, 0 if ending == "client" else 45454))
                client.connect((HOST, 8080))
                peer, _ = server.accept()
                with peer:
                    peer.settimeout(PATIENCE)
                    exchange(client, peer)
                    if ending == "nobody":
                        site.driver.detach(network=network, endpoint=endpoint)
                    elif ending == "server":
                        peer.close()
                        assert client.recv(9) == b""
            site.driver.detach(network=network, endpoint=endpoint)
            container.close()

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize("ipv6", [False, True], ids=["ipv4", "ipv6"])
    @pytest.mark.parametrize("near", [False, True], ids=["outside", "at-the-loopback"])
    def test_a_client_that_keeps_sending_reaches_the_next_container(self, site: Site, near: bool, ipv6: bool) -> None:
        """P6: the kernel's memory of the first one's translation, or of there being none, must not stand in the way."""
        host, _, loopback = site.ends(ipv6=ipv6)
        network = site.network()
        port = (Port(container=53, host=5353, protocol="udp"),)
        netns, address = (site.host, loopback) if near else (site.neighbour, host)
        with inside(netns, socket.socket, family(address), UDP) as client:
            client.connect((address, 5353))
            client.send(b"too early")
            for _ in range(2):
                container, endpoint = site.joined(network)
                server = container.listen(UDP, 53, "::" if ipv6 else "0.0.0.0")
                server.settimeout(IMPATIENCE)
                site.driver.publish(network=network, endpoint=endpoint, ports=port)
                assert persistently(partial(client.send, b"x"), partial(server.recv, 9)) == b"x"
                site.driver.detach(network=network, endpoint=endpoint)
                container.close()

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize(
        "port",
        [
            Port(container=0, host=80),
            Port(container=65536, host=80),
            Port(container=80, host=70000),
            Port(container=80, host=90, host_end=80),
            Port(container=80, host=80, protocol="icmp"),
            Port(container=80, host=80, address="198.51.100.77"),
            Port(container=80, host=80, address="nowhere"),
        ],
        ids=str,
    )
    def test_a_port_that_cannot_be_is_refused_and_nothing_changes(self, site: Site, port: Port) -> None:
        """B2: the user's words are off, and the error repeats them."""
        network = site.network()
        _, endpoint = site.joined(network)
        before = site.census()
        with pytest.raises(ConfigError):
            site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=1, host=8090), port))
        assert site.census() == before

    @requires(Has.PUBLISH)
    def test_a_thousand_ports_are_published_in_time_and_withdrawn_without_a_trace(self, site: Site) -> None:
        """P8: and without a process for each."""
        network = site.network()
        container, endpoint = site.joined(network)
        before = site.census()
        ports = tuple(Port(container=1000 + number, host=10000 + number) for number in range(1000))
        start = time.monotonic()
        site.driver.publish(network=network, endpoint=endpoint, ports=ports)
        assert time.monotonic() - start < 10
        for number in (0, 999):
            assert talk(site.neighbour, container.listen(TCP, 1000 + number), HOST, 10000 + number) == NEIGHBOUR
        site.driver.unpublish(network=network, endpoint=endpoint)
        assert site.census() == before


def setting(name: str, value: str) -> None:
    """Write a setting of IPv4's in the thread's namespace."""
    with open(f"/proc/sys/net/ipv4/{name}", "w") as file:
        file.write(value)
