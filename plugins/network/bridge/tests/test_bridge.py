"""What the suite cannot see of the driver bridge: its options, its traces on the host, its words."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_network

import msgspec
import pytest

from transom.contract.network import Network, Owned, Port, Reach, Subnet
from transom.errors import ConfigError, Conflict, NotFound, NotSupported
from transom.services.netns import inside
from transom_conformance.network import (
    HOST,
    HOST6,
    IMPATIENCE,
    NEIGHBOUR,
    NEIGHBOUR6,
    TCP,
    UDP,
    NetworkSuite,
    Place,
    Site,
    exchange,
    gateway_of,
    ip_batch,
    ip_json,
    listen,
    plain,
    talk,
    unreachable,
)
from transom_conformance.network.frames import send
from transom_conformance.suite import World
from transom_network_bridge import Bridge
from transom_network_bridge.firewall import RULES, Firewall
from transom_network_bridge.guard import Guard
from transom_network_bridge.options import BridgeOptions

BRIDGE_NF = "/proc/sys/net/bridge/bridge-nf-call-"
ICC, NAME, MTU = (
    "com.docker.network.bridge.enable_icc",
    "com.docker.network.bridge.name",
    "com.docker.network.driver.mtu",
)
MASQUERADE = "com.docker.network.bridge.enable_ip_masquerade"
MODE4, MODE6 = "com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"


class Plain(NetworkSuite):
    driver = "bridge"


@pytest.fixture
def site(tmp_path):
    world = World(path=tmp_path, kind="network", driver="bridge", options={})
    try:
        site = Site(Plain(), world)
        yield site
        site.sweep()
        assert site.driver.owned() == Owned()
    finally:
        world.clean_up()


def write(path: str, value: str) -> None:
    with open(path, "w") as file:
        file.write(value)


def read(path: str) -> str:
    with open(path) as file:
        return file.read().strip()


def run(*words: str) -> str:
    return subprocess.run(words, text=True, capture_output=True, check=True).stdout


def bridge_of(network: Network) -> str:
    return f"br-{network.id[:12]}"


@pytest.fixture(params=["0", "1"])
def bridge_nf(request, site):
    if not os.path.exists(f"{BRIDGE_NF}iptables"):
        pytest.skip("the kernel has no br_netfilter")
    for family in ("iptables", "ip6tables"):
        inside(site.host, write, BRIDGE_NF + family, request.param)
    return request.param


def test_without_icc_neighbours_meet_at_published_ports_only(site, bridge_nf):
    network = site.network(options={ICC: "false"})
    container, endpoint = site.joined(network)
    sibling, _ = site.joined(network)
    server = container.listen(TCP, 80)
    assert unreachable(sibling.netns, server, plain(endpoint), 80)
    six = container.listen(TCP, 81, plain(endpoint, ipv6=True))
    assert unreachable(sibling.netns, six, plain(endpoint, ipv6=True), 81)
    ports = (Port(container=80, host=8080), Port(container=81, host=8081))
    site.driver.publish(network=network, endpoint=endpoint, ports=ports)
    assert unreachable(sibling.netns, container.listen(TCP, 82), plain(endpoint), 82)
    for address in (HOST, network.subnets[0].gateway, "127.0.0.1"):
        assert talk(site.host if address == "127.0.0.1" else sibling.netns, server, address, 8080)
    for address in (HOST6, gateway_of(network, ipv6=True)):
        assert talk(sibling.netns, six, address, 8081)
    assert talk(container.netns, server, HOST, 8080)
    assert talk(sibling.netns, listen(site, site.neighbour, TCP, 0, NEIGHBOUR), NEIGHBOUR) == HOST
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []


def test_published_ports_work_whether_frames_pass_the_firewall_or_not(site, bridge_nf):
    network = site.network()
    container, endpoint = site.joined(network)
    sibling, other = site.joined(network)
    server = container.listen(TCP, 80)
    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
    assert talk(site.neighbour, server, HOST, 8080) == NEIGHBOUR
    gateway = network.subnets[0].gateway
    assert talk(sibling.netns, server, HOST, 8080) == (plain(other) if bridge_nf == "1" else gateway)
    assert talk(container.netns, server, HOST, 8080) == gateway
    assert talk(site.host, server, "127.0.0.1", 8080) == gateway
    assert talk(sibling.netns, server, plain(endpoint), 80) == plain(other)


def test_ports_are_reached_at_the_hosts_ipv6_loopback_whether_frames_pass_the_firewall_or_not(site, bridge_nf):
    for number, address in enumerate(("", "::1"), 8080):
        network = site.network()
        container, endpoint = site.joined(network)
        six = plain(endpoint, ipv6=True)
        tcp, udp = container.listen(TCP, 80, six), container.listen(UDP, 80, six)
        ports = [Port(container=80, host=number, protocol=protocol, address=address) for protocol in ("tcp", "udp")]
        bound = site.driver.publish(network=network, endpoint=endpoint, ports=tuple(ports))
        for server in (tcp, udp):
            assert talk(site.host, server, "::1", number) == gateway_of(network, ipv6=True)
            assert (unreachable if address else talk)(site.host, server, HOST6, number)
        assert site.driver.check(network=network, endpoints=(msgspec.structs.replace(endpoint, ports=bound),)) == []


def test_much_data_passes_at_the_loopback_whose_packets_are_larger_than_a_bridges(site, bridge_nf):
    network = site.network()
    container, endpoint = site.joined(network)
    bound = tuple(Port(container=80, host=8080, protocol=protocol) for protocol in ("tcp", "udp"))
    site.driver.publish(network=network, endpoint=endpoint, ports=bound)
    tcp, udp = container.listen(TCP, 80, "::"), container.listen(UDP, 80, "::")
    for address in ("::1", "127.0.0.1"):
        kind = socket.AF_INET6 if ":" in address else socket.AF_INET
        with inside(site.host, socket.socket, kind, TCP) as client:
            client.connect((address, 8080))
            peer, _ = tcp.accept()
            with peer:
                for one, other in ((client, peer), (peer, client)):
                    one.settimeout(60)
                    data = os.urandom(1 << 20)
                    with ThreadPoolExecutor(1) as pool:
                        sent = pool.submit(one.sendall, data)
                        assert b"".join(iter(lambda n=[len(data)], o=other: take(o, n), b"")) == data
                        sent.result()
        with inside(site.host, socket.socket, kind, UDP) as client:
            client.settimeout(20)
            udp.settimeout(20)
            client.connect((address, 8080))
            client.send(bytes(8000))
            data, source = udp.recvfrom(9000)
            udp.sendto(data, source)
            assert client.recv(9000) == bytes(8000)


def take(sock, left):
    """Receive some of what is `left`, a list of one number."""
    data = sock.recv(left[0])
    left[0] -= len(data)
    return data


def test_a_client_at_the_ipv6_loopback_may_have_another_address_of_the_hosts(site, bridge_nf):
    network = site.network()
    container, endpoint = site.joined(network)
    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
    server = container.listen(TCP, 80, "::")
    with inside(site.host, socket.create_connection, ("::1", 8080), 20, (HOST6, 0)) as client:
        peer, source = server.accept()
        with peer:
            exchange(client, peer)
            assert source[0] == HOST6


def test_at_the_ipv6_loopback_it_is_said_too_that_nobody_listens(site, bridge_nf):
    network = site.network()
    _, endpoint = site.joined(network)
    ports = tuple(Port(container=80, host=8080, protocol=protocol, address="::1") for protocol in ("tcp", "udp"))
    site.driver.publish(network=network, endpoint=endpoint, ports=ports)
    with pytest.raises(ConnectionRefusedError):
        inside(site.host, socket.create_connection, ("::1", 8080), 20)
    with inside(site.host, socket.socket, socket.AF_INET6, UDP) as client:
        client.settimeout(20)
        client.connect(("::1", 8080))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(9)


def test_without_an_ipv6_address_of_the_containers_the_ipv6_loopback_is_refused_at_once(site):
    network = site.network(subnets=(Subnet(pool="10.88.1.0/24", gateway="10.88.1.1"),))
    container, endpoint = site.joined(network, addresses=("10.88.1.9/24",))
    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
    server = container.listen(TCP, 80)
    with pytest.raises(ConnectionRefusedError):
        inside(site.host, socket.create_connection, ("::1", 8080), 20)
    assert talk(site.host, server, "127.0.0.1", 8080)


def ipv6_datagram(source: str, destination: str, macs: tuple[str, str], port: int, data: bytes) -> bytes:
    """Return an Ethernet frame with a UDP datagram (RFC 8200, 768)."""
    ends = socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    datagram = struct.pack("!HHHH", 999, port, 8 + len(data), 0) + data
    words = ends + struct.pack("!II", len(datagram), 17) + datagram + bytes(len(datagram) % 2)
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    total = (total & 0xFFFF) + (total >> 16)
    checksum = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
    hardware = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)
    header = hardware + struct.pack("!HIHBB", 0x86DD, 6 << 28, len(datagram), 17, 64)
    return header + ends + datagram[:6] + checksum + datagram[8:]


def test_frames_by_hand_open_nothing_of_the_ipv6_loopback(site, bridge_nf):
    network = site.network()
    container, endpoint = site.joined(network)
    sibling, other = site.joined(network)
    port = Port(container=80, host=8080, protocol="udp", address="::1")
    site.driver.publish(network=network, endpoint=endpoint, ports=(port,))
    published = container.listen(UDP, 80, "::")
    own = listen(site, site.host, UDP, 8081, "::")
    gateway, mine, asking = gateway_of(network, ipv6=True), plain(other, ipv6=True), "fe80::180"
    (bridge,) = [link for link in inside(site.host, ip_json, "link") if link["ifname"] == bridge_of(network)]
    macs = bridge["address"], sibling.interface("eth0")["address"]
    ends = [(source, "::1") for source in ("::1", gateway, mine, asking)]
    ends += [("::1", destination) for destination in (gateway, asking, plain(endpoint, ipv6=True))]
    forged = [ipv6_datagram(*pair, macs, port, b"forged") for pair in ends for port in (80, 8080, 8081)]
    inside(sibling.netns, send, "eth0", [*forged, ipv6_datagram(mine, gateway, macs, 8081, b"honest")])
    own.settimeout(20)
    assert own.recvfrom(99)[0] == b"honest"
    published.settimeout(IMPATIENCE)
    with pytest.raises(TimeoutError):
        published.recv(99)


def test_isolation_that_a_setting_undid_is_reported(site):
    if not os.path.exists(f"{BRIDGE_NF}iptables"):
        pytest.skip("the kernel has no br_netfilter")
    inside(site.host, write, f"{BRIDGE_NF}iptables", "1")
    network = site.network(options={ICC: "false"})
    _, endpoint = site.joined(network)
    inside(site.host, write, f"{BRIDGE_NF}iptables", "0")
    assert site.driver.check(network=network, endpoints=(endpoint,)) == [
        f"endpoint {endpoint.id[:12]} is not isolated from its neighbours"
    ]


def test_without_masquerading_the_neighbour_sees_the_container(site):
    network = site.network(options={MASQUERADE: "false"})
    container, endpoint = site.joined(network)
    routed_to(site, network)
    for kind in (TCP, UDP):
        for address in (NEIGHBOUR, NEIGHBOUR6):
            server = listen(site, site.neighbour, kind, 0, address)
            assert talk(container.netns, server, address) == plain(endpoint, ipv6=":" in address)


def test_ports_are_published_where_the_option_says_unless_an_address_is_named(site):
    network = site.network(options={"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"})
    _, endpoint = site.joined(network)
    ports = (Port(container=80, host=8080), Port(container=80, host=8081, address=HOST))
    assert site.driver.publish(network=network, endpoint=endpoint, ports=ports) == (
        Port(container=80, host=8080, address="127.0.0.1"),
        Port(container=80, host=8081, address=HOST),
    )


def routed_to(site: Site, network: Network) -> None:
    """Let the neighbour know the way to the network's containers."""
    for subnet in network.subnets:
        inside(site.neighbour, ip_batch, f"route add {subnet.pool} via {HOST6 if ':' in subnet.pool else HOST}")


def test_a_routed_network_is_reached_at_published_ports_and_bears_its_own_addresses(site):
    network = site.network(options={MODE4: "routed", MODE6: "routed"})
    assert site.driver.reach(network=network) == {4: Reach.PUBLISHED, 6: Reach.PUBLISHED}
    container, endpoint = site.joined(network)
    stranger, _ = site.joined(site.network())
    routed_to(site, network)
    servers = {port: container.listen(TCP, port, "::") for port in (80, 81)}
    bound = site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
    assert bound == ()
    for address in (plain(endpoint), plain(endpoint, ipv6=True)):
        assert talk(site.neighbour, servers[80], address, 80).removeprefix("::ffff:") in (NEIGHBOUR, NEIGHBOUR6)
        assert unreachable(site.neighbour, servers[81], address, 81)
        assert talk(stranger.netns, servers[80], address, 80)
        assert unreachable(stranger.netns, servers[81], address, 81)
    assert unreachable(site.neighbour, servers[80], HOST, 8080)
    inside(site.neighbour, run, "busybox", "ping", "-c1", "-W9", plain(endpoint))
    assert talk(container.netns, listen(site, site.neighbour, TCP, 0, NEIGHBOUR), NEIGHBOUR) == plain(endpoint)
    site.driver.unpublish(network=network, endpoint=endpoint)
    assert unreachable(site.neighbour, servers[80], plain(endpoint), 80)


def test_an_unprotected_network_is_reached_at_any_port_but_not_by_other_networks(site):
    network = site.network(options={MODE4: "nat-unprotected"})
    assert site.driver.reach(network=network) == {4: Reach.ROUTED}
    container, endpoint = site.joined(network)
    stranger, _ = site.joined(site.network())
    routed_to(site, network)
    server = container.listen(TCP, 81, "::")
    assert talk(site.neighbour, server, plain(endpoint), 81)
    assert unreachable(site.neighbour, server, plain(endpoint, ipv6=True), 81)
    assert unreachable(stranger.netns, server, plain(endpoint), 81)
    assert talk(container.netns, listen(site, site.neighbour, TCP, 0, NEIGHBOUR), NEIGHBOUR) == HOST


def test_a_trusted_interface_reaches_every_port(site):
    trusting = site.network(options={"com.docker.network.bridge.trusted_host_interfaces": "lan9:uplink0"})
    wary = site.network(options={"com.docker.network.bridge.trusted_host_interfaces": "lan9"})
    for network, reached in ((trusting, True), (wary, False)):
        container, endpoint = site.joined(network)
        routed_to(site, network)
        assert unreachable(site.neighbour, container.listen(TCP, 80), plain(endpoint), 80) is not reached
        assert site.driver.reach(network=network) == {4: Reach.TRUSTED, 6: Reach.TRUSTED}


def test_the_host_stays_off_an_isolated_network(site):
    network = site.network(internal=True, options={MODE4: "isolated", MODE6: "isolated"})
    container, attachment = site.container(), None
    endpoint, attachment = container.attach(network)
    sibling, _ = site.joined(network)
    assert attachment.gateways == ()
    assert talk(sibling.netns, container.listen(), plain(endpoint))
    shown = inside(site.host, run, "ip", "-o", "address", "show", "dev", bridge_of(network))
    assert "10.88." not in shown
    assert "fd88:" not in shown
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []


def test_isolation_from_the_host_is_for_internal_networks(site):
    before = site.census()
    with pytest.raises(ConfigError) as caught:
        site.network(options={MODE6: "isolated"})
    assert str(caught.value) == "network net1: gateway_mode_ipv6=isolated is for internal networks: add --internal"
    assert site.census() == before


def test_the_gateways_address_can_be_left_to_something_else(site):
    network = site.network(options={"com.docker.network.bridge.inhibit_ipv4": "true"})
    container = site.container()
    endpoint, attachment = container.attach(network)
    shown = inside(site.host, run, "ip", "-o", "address", "show", "dev", bridge_of(network))
    assert ("10.88." in shown, "fd88:" in shown) == (False, True)
    assert attachment.gateways[0] == network.subnets[0].gateway
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []


def test_what_leaves_bears_the_address_that_was_asked_for(site):
    inside(
        site.host,
        ip_batch,
        "address add 198.51.100.9/24 dev uplink0",
        "address add 2001:db8:51::9/64 dev uplink0 nodad",
    )
    four, six = "com.docker.network.host_ipv4", "com.docker.network.host_ipv6"
    container, _ = site.joined(site.network(options={four: "198.51.100.9", six: "2001:db8:51::9"}))
    for address, source in ((NEIGHBOUR, "198.51.100.9"), (NEIGHBOUR6, "2001:db8:51::9")):
        for kind in (TCP, UDP):
            assert talk(container.netns, listen(site, site.neighbour, kind, 0, address), address) == source
    other, _ = site.joined(site.network())
    assert talk(other.netns, listen(site, site.neighbour, TCP, 0, NEIGHBOUR), NEIGHBOUR) == HOST


def test_settings_of_the_containers_interface_are_set_and_bad_ones_refused(site):
    network, container = site.network(), site.container()
    setting = "net.ipv4.conf.IFNAME.log_martians=1"
    container.attach(network, options=Bridge.EndpointOptions(sysctls=(setting,)))
    assert inside(container.netns, read, "/proc/sys/net/ipv4/conf/eth0/log_martians") == "1"
    before = site.census()
    with pytest.raises(ConfigError) as caught:
        container.attach(network, options=Bridge.EndpointOptions(sysctls=("net.ipv4.conf.IFNAME.nosuch=1",)))
    assert str(caught.value) == "cannot set net.ipv4.conf.IFNAME.nosuch=1 on eth1: No such file or directory"
    assert site.census() == before


@pytest.mark.parametrize(
    "setting", ["net.ipv4.ip_forward=1", "net.ipv4.conf.IFNAME.log_martians", "net.ipv4.conf.eth0.x=1"]
)
def test_a_setting_that_is_not_the_interfaces_own_is_refused(setting):
    with pytest.raises(ValueError, match="is not a setting such as"):
        Bridge.EndpointOptions(sysctls=(setting,))


def test_interfaces_are_named_as_the_options_say(site):
    network = site.network(options={"com.docker.network.container_iface_prefix": "net"})
    container = site.container()
    assert [container.attach(network)[1].interface for n in range(2)] == ["net0", "net1"]
    options = Bridge.EndpointOptions(interface="lan")
    assert container.attach(network, options=options)[1].interface == "lan"


@pytest.mark.parametrize(("asked", "mtu"), [({}, 1380), ({MTU: "1290"}, 1290), ({MTU: "9000"}, 9000)])
def test_the_mtu_is_that_of_the_way_out_unless_asked_for(site, asked, mtu):
    inside(site.host, ip_batch, "link set uplink0 mtu 1380")
    _, attachment = site.container().attach(site.network(options=asked))
    assert attachment.mtu == mtu


def test_the_mtu_follows_the_way_out_while_nobody_is_on_the_network(site):
    network = site.network()
    fixed = site.network(mtu=1450)

    def join(network, uplink):
        inside(site.host, ip_batch, f"link set uplink0 mtu {uplink}")
        site.driver.create_network(network=network)
        return site.container().attach(network)

    first, attachment = join(network, 1380)
    assert attachment.mtu == 1380
    second, attachment = join(network, 1400)
    assert attachment.mtu == 1380, "it is not the same for all"
    for endpoint in (first, second):
        site.driver.detach(network=network, endpoint=endpoint)
    _, attachment = join(network, 1270)  # less than IPv6 takes
    assert attachment.mtu == 1380
    _, attachment = join(fixed, 1400)
    assert attachment.mtu == 1450


def test_an_mtu_that_is_too_small_for_ipv6_is_refused(site):
    before = site.census()
    with pytest.raises(ConfigError) as caught:
        site.network(mtu=1279)
    assert str(caught.value) == "network net1: IPv6 needs an MTU of at least 1280 bytes, not 1279"
    assert site.census() == before


def test_the_default_network_has_a_bridge_of_a_known_name(site):
    site.network(default=True)
    assert "transom0" in inside(site.host, run, "ip", "link", "show", "transom0")


@pytest.mark.parametrize(
    ("pool", "way"),
    [
        ("10.77.0.0/24", "10.77.0.0/24 on lan0"),
        ("10.77.0.128/25", "10.77.0.0/24 on lan0"),
        ("10.76.0.0/15", "10.77.0.0/24 on lan0"),
        ("10.90.7.0/24", "10.90.7.0/24 by 10.77.0.9 on lan0"),
        ("fd77::/64", "fd77::/64 on lan0"),
    ],
)
def test_a_subnet_in_which_the_host_has_something_else_is_refused(site, pool, way):
    inside(site.host, ip_batch, "link add lan0 type bridge", "address add 10.77.0.1/24 dev lan0", "link set lan0 up")
    inside(site.host, ip_batch, "route add 10.90.7.0/24 via 10.77.0.9", "address add fd77::1/64 dev lan0 nodad")
    before = site.census()
    with pytest.raises(Conflict) as caught:
        site.network(subnets=(Subnet(pool=pool, gateway=str(next(ip_network(pool).hosts()))),))
    assert str(caught.value) == (
        f"network {site.networks.pop().name}: subnet {pool} overlaps {way}, which this host reaches elsewhere; "
        "choose another one"
    )
    assert site.census() == before


def test_a_part_of_what_a_wider_route_leads_to_may_be_a_subnet(site):
    inside(site.host, ip_batch, "link add lan0 type bridge", "address add 10.77.0.1/24 dev lan0", "link set lan0 up")
    inside(site.host, ip_batch, "route add 10.90.0.0/16 via 10.77.0.9")
    network = site.network(subnets=(Subnet(pool="10.90.7.0/24", gateway="10.90.7.1"),))
    site.driver.create_network(network=network)


def test_a_bridge_that_exists_is_adopted_and_kept_as_it_was(site):
    inside(site.host, ip_batch, "link add mine0 type bridge", "address add 10.77.0.1/24 dev mine0", "link set mine0 up")
    before = site.census()
    network = site.network(options={NAME: "mine0"})
    container, endpoint = site.joined(network)
    assert talk(site.host, container.listen(), plain(endpoint)) == network.subnets[0].gateway
    assert site.driver.owned().networks == {network.id}
    site.driver.create_network(network=network)
    site.driver.detach(network=network, endpoint=endpoint)
    assert "fe80::180" in inside(site.host, run, "ip", "address", "show", "mine0")
    site.driver.delete_network(network=Network(id=network.id, name=""))
    assert site.census() == before
    assert "fe80::180" not in inside(site.host, run, "ip", "address", "show", "mine0")
    assert site.driver.owned() == Owned()


def test_a_bridge_of_a_wanted_name_goes_with_its_network(site):
    before = site.census()
    network = site.network(options={NAME: "wanted0"})
    assert "wanted0" in inside(site.host, run, "ip", "link", "show", "wanted0")
    with pytest.raises(Conflict) as caught:
        site.network(options={NAME: "wanted0"})
    other = site.networks.pop()
    assert str(caught.value) == f"network {other.name}: wanted0 is the bridge of network {network.id[:12]}"
    site.driver.delete_network(network=Network(id=network.id, name=""))
    assert site.census() == before


def test_an_interface_of_another_kind_is_no_bridge(site):
    with pytest.raises(Conflict) as caught:
        site.network(options={NAME: "uplink0"})
    assert str(caught.value) == "network net1: uplink0 is an interface of another kind (veth)"


@pytest.mark.parametrize("before", ["0", "1"])
def test_forwarding_is_put_back_as_it_was_with_the_last_network(site, before):
    path = "/proc/sys/net/ipv4/ip_forward"
    inside(site.host, write, path, before)
    internal = site.network(internal=True)
    assert inside(site.host, read, path) == before
    networks = [site.network(), site.network()]
    for network in networks:
        assert inside(site.host, read, path) == "1"
        site.driver.delete_network(network=network)
    site.driver.delete_network(network=internal)
    assert inside(site.host, read, path) == before


def test_rules_of_another_version_give_way_in_one_transaction_and_ports_stay_published(site):
    network = site.network()
    container, endpoint = site.joined(network)
    server = container.listen(TCP, 80)
    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
    (name,) = re.findall(r"set (rules_\w+)", inside(site.host, run, "nft", "list", "table", "inet", "transom"))
    inside(site.host, run, "nft", "delete", "set", "inet", "transom", name)
    inside(site.host, run, "nft", "flush", "chain", "inet", "transom", "prerouting")
    assert unreachable(site.neighbour, server, HOST, 8080)
    site.driver.create_network(network=network)
    assert talk(site.neighbour, server, HOST, 8080) == NEIGHBOUR
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []


def test_every_chain_of_the_table_is_as_the_rules_say(site):
    site.network()
    assert inside(site.host, Firewall().tampered) == []
    for chain in re.findall(r"^  chain (\w+)", RULES, re.MULTILINE):
        inside(site.host, run, "nft", "flush", "chain", "inet", "transom", chain)
        assert inside(site.host, Firewall().tampered) == [chain]
        inside(site.host, partial(Firewall().load, anew=True))
        assert inside(site.host, Firewall().tampered) == []


def test_a_flushed_ruleset_is_reported_and_comes_back(site):
    network = site.network()
    container, endpoint = site.joined(network)
    inside(site.host, run, "nft", "flush", "ruleset")
    assert site.driver.check(network=network, endpoints=(endpoint,)) == [
        "nftables table transom is missing: published ports and masquerading are off"
    ]
    site.driver.create_network(network=network)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    assert talk(container.netns, listen(site, site.neighbour, TCP, 0, NEIGHBOUR), NEIGHBOUR) == HOST


def test_another_firewall_that_starts_anew_takes_no_port_away(site):
    """As firewalld reloads, and ufw or a script of iptables: their tables go and come, emptied on the way."""
    network = site.network()
    container, endpoint = site.joined(network)
    server = container.listen(TCP, 80, "::")
    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
    theirs = "table inet firewalld { chain forward { type filter hook forward priority 10; policy accept; }; };"
    for commands in (
        [f"nft {theirs}", "nft delete table inet firewalld", f"nft {theirs}", "nft delete table inet firewalld"],
        [f"iptables{kind} -{what}" for kind in (" -t nat", "", " -t raw") for what in ("F", "X")],
    ):
        for command in commands:
            words = command.split(" ", 1) if command.startswith("nft") else command.split(" ")
            if shutil.which(words[0]):
                inside(site.host, run, *words)
        for address in (HOST, HOST6):
            assert talk(site.neighbour, server, address, 8080)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []


def test_published_ports_come_back_after_a_flushed_ruleset(site):
    network = site.network()
    container, endpoint = site.joined(network)
    server = container.listen(TCP, 80, "::")
    publish = partial(site.driver.publish, network=network, endpoint=endpoint)
    bound = publish(ports=(Port(container=80, host=8080),))
    inside(site.host, run, "nft", "flush", "ruleset")
    said = site.driver.check(network=network, endpoints=(msgspec.structs.replace(endpoint, ports=bound),))
    assert [line.partition(": ")[2] for line in said[:2]] == [
        f"port 8080/tcp is not published at {address}" for address in ("0.0.0.0", "::")
    ]
    site.driver.create_network(network=network)
    assert publish(ports=bound) == bound
    for netns, address in ((site.neighbour, HOST), (site.neighbour, HOST6), (site.host, "::1")):
        assert talk(netns, server, address, 8080)
    assert site.driver.check(network=network, endpoints=(msgspec.structs.replace(endpoint, ports=bound),)) == []


TAMPERINGS = {
    "ip link set {end} down": "endpoint {id}: {end} is down",
    "ip link set {end} mtu 1400": "endpoint {id}: {end} has MTU 1400, not 1450",
    "ip link set {end} nomaster": "endpoint {id} is not in bridge {bridge}",
    "ip link delete {end}": "endpoint {id} has no interface",
    "ip link set {bridge} down": "bridge {bridge} is down",
    "ip address delete 10.88.1.1/24 dev {bridge}": "bridge {bridge} has lost its address 10.88.1.1/24",
    "ip link delete {bridge}": "bridge {bridge} is missing",
    "nft flush chain inet transom forward": (
        "nftables table transom: chain forward has not the rules that it should have"
    ),
    "nft flush set inet transom bridges": "nftables table transom: set bridges does not have bridge {bridge}",
    "nft flush set inet transom natted4": "nftables table transom: set natted4 does not have bridge {bridge}",
    "ip route delete 10.88.1.0/24 dev {bridge}": "bridge {bridge} has lost its route to 10.88.1.0/24",
    "ip -6 route delete fd88:1::/64 dev {bridge}": "bridge {bridge} has lost its route to fd88:1::/64",
    "ip address delete fe80::180/128 dev {bridge}": "bridge {bridge} has lost its address fe80::180/128",
    "sysctl -qw net.ipv4.ip_forward=0": "IPv4 forwarding is off (net.ipv4.ip_forward)",
    "sysctl -qw net.ipv6.conf.all.forwarding=0": "IPv6 forwarding is off (net.ipv6.conf.all.forwarding)",
    "sysctl -qw net.ipv4.conf.{bridge}.route_localnet=0": (
        "ports published at 127.0.0.1 are off (net.ipv4.conf.{bridge}.route_localnet)"
    ),
}


def test_tampering_is_reported_in_a_line_and_made_good_and_nobody_loses_a_byte(site):
    place = Place(site, mtu=1450)
    end = place.join().endpoint.id
    words = {"end": f"vt{end[:13]}", "id": end[:12], "bridge": bridge_of(place.network)}
    with place.siblings():
        for command, said in TAMPERINGS.items():
            inside(site.host, run, *command.format(**words).split())
            assert said.format(**words) in place.check()
            place.repair()
            assert place.check() == [], command


def test_a_port_that_was_withdrawn_or_bent_by_hand_is_reported(site):
    network = site.network()
    _, endpoint = site.joined(network)
    bound = site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
    endpoint = msgspec.structs.replace(endpoint, ports=bound)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    inside(site.host, run, *"nft delete element inet transom any4 { tcp . 8080 }".split())
    said = [f"endpoint {endpoint.id[:12]}: port 8080/tcp is not published at 0.0.0.0"]
    assert site.driver.check(network=network, endpoints=(endpoint,)) == said
    inside(site.host, run, *"nft add element inet transom any4 { tcp . 8080 : 10.88.1.99 . 80 }".split())
    assert site.driver.check(network=network, endpoints=(endpoint,)) == said
    inside(site.host, run, *"nft delete element inet transom any4 { tcp . 8080 }".split())
    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
    inside(site.host, run, *"nft delete element inet transom loopback6 { tcp . 8080 }".split())
    assert site.driver.check(network=network, endpoints=(endpoint,)) == [said[0].replace("0.0.0.0", "::")]


def test_a_table_without_networks_is_what_recovery_removes(site):
    before = site.census()
    network = site.network()
    for command in (
        ("nft", "flush", "set", "inet", "transom", "bridges"),
        ("ip", "link", "delete", bridge_of(network)),
    ):
        inside(site.host, run, *command)
    assert site.driver.recover() == ["removed the firewall table of no network"]
    assert site.driver.recover() == []
    assert site.census() == before


def test_a_full_bridge_says_so_and_the_others_stay(site):
    network = site.network()
    container, endpoint = site.joined(network)
    sibling, _ = site.joined(network)
    pairs = [f"link add p{n} master {bridge_of(network)} type veth peer name q{n}" for n in range(1021)]
    inside(site.host, ip_batch, *pairs)
    before = site.census()
    with pytest.raises(Conflict) as caught:
        site.joined(network)
    assert str(caught.value) == "network net1 is full: a bridge has 1023 ports; use another network"
    assert site.census() == before
    assert talk(sibling.netns, container.listen(), plain(endpoint))


def test_what_goes_wrong_is_said_in_a_line(site):
    network = site.network()
    container, endpoint = site.joined(network)
    attach = partial(container.attach, network)
    short = endpoint.id[:12]
    texts = {
        (Conflict, "interface eth0 already"): partial(attach, interface="eth0"),
        (
            ConfigError,
            "interface name 'a/b' is off: 1 to 15 characters without space, slash, colon and percent sign",
        ): partial(attach, interface="a/b"),
        (Conflict, f"the container has {plain(endpoint)}, {plain(endpoint, ipv6=True)} already"): partial(
            attach, addresses=endpoint.addresses
        ),
        (Conflict, f"endpoint {short} is attached to network net1 already"): partial(
            site.driver.attach, network=network, endpoint=endpoint, netns=container.netns
        ),
        (NotFound, "network net2 is not on this host: its bridge is missing; create it again"): partial(
            container.attach, site.describe()
        ),
    }
    for (kind, text), call in texts.items():
        with pytest.raises(kind) as caught:
            call()
        assert text in str(caught.value)


def test_what_goes_wrong_with_ports_is_said_in_a_line(site):
    network = site.network()
    _, first = site.joined(network, names=("web",))
    _, second = site.joined(network)
    internal = site.network(internal=True)
    _, inner = site.joined(internal)
    four = msgspec.structs.replace(second, addresses=second.addresses[:1])
    site.driver.publish(network=network, endpoint=first, ports=(Port(container=80, host=8080),))
    listen(site, site.host, TCP, 8081, "0.0.0.0")
    texts = {
        "port 8080/tcp is taken: web has it at 0.0.0.0; choose another one": (second, Port(container=1, host=8080)),
        "port 8081/tcp is taken: a program on this host uses it at 0.0.0.0; choose another one": (
            second,
            Port(container=1, host=8081),
        ),
        "no port 8080-8081 is free for tcp (the last one: a program on this host uses it at 0.0.0.0)": (
            second,
            Port(container=1, host=8080, host_end=8081),
        ),
        "no such protocol: 'icmp'; ports are of sctp, tcp, udp": (second, Port(container=1, protocol="icmp")),
        "port 90-80:1 is off: ports are 1 to 65535, in order": (second, Port(container=1, host=90, host_end=80)),
        "cannot publish at 192.0.2.7: it is not an address of this host": (
            second,
            Port(container=1, host=90, address="192.0.2.7"),
        ),
        f"cannot publish at ::1: endpoint {second.id[:12]} has no address of that family": (
            four,
            Port(container=1, host=90, address="::1"),
        ),
        "cannot publish at 'here': it is not an address": (second, Port(container=1, host=90, address="here")),
        f"cannot publish at {HOST6}: endpoint {second.id[:12]} has no address of that family": (
            four,
            Port(container=1, host=90, address=HOST6),
        ),
    }
    for text, (endpoint, port) in texts.items():
        with pytest.raises((ConfigError, Conflict)) as caught:
            site.driver.publish(network=network, endpoint=endpoint, ports=(port,))
        assert str(caught.value) == text
    with pytest.raises(ConfigError) as caught:
        site.driver.publish(network=internal, endpoint=inner, ports=(Port(container=1),))
    assert str(caught.value) == f"network {internal.name} is internal: its containers cannot publish ports"


def test_sctp_ports_are_published_even_where_the_host_has_no_such_sockets(site):
    network = site.network()
    _, endpoint = site.joined(network)
    ports = (Port(container=80, host=8080, protocol="sctp"), Port(container=80, protocol="sctp"))
    bound = site.driver.publish(network=network, endpoint=endpoint, ports=ports)
    assert {port.address for port in bound} == {"0.0.0.0", "::"}
    assert all(port.host for port in bound)
    with pytest.raises(Conflict):
        site.driver.publish(network=network, endpoint=site.joined(network)[1], ports=ports[:1])


def sctp(netns, address=HOST):
    """A socket of the protocol, whose kernel support few hosts have, for an address of that family."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return inside(netns, socket.socket, family, socket.SOCK_STREAM, socket.IPPROTO_SCTP)


def speaks_sctp(site: Site) -> bool:
    try:
        sctp(site.host).close()
    except OSError:
        return False
    return True


def crc32c(data: bytes) -> bytes:
    """Return the checksum of SCTP (RFC 9260, appendix A)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def packet(source: int, destination: int, tag: int, chunk: int) -> bytes:
    """Return an SCTP packet with an INIT (1) or INIT ACK (2) chunk (RFC 9260, 3.3.2)."""
    body = struct.pack("!BBHIIHHI", chunk, 0, 20, 7, 65536, 1, 1, 1)
    ports = struct.pack("!HHI", source, destination, tag)
    return ports + crc32c(ports + bytes(4) + body) + body


def test_sctp_packets_are_translated_there_and_back(site):
    if speaks_sctp(site):
        pytest.skip("the kernel would answer by itself: the case with its sockets is the next")
    network = site.network()
    container, endpoint = site.joined(network)
    ports = (Port(container=80, host=8080, protocol="sctp"),)
    site.driver.publish(network=network, endpoint=endpoint, ports=ports)
    kind = socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_SCTP
    with (
        inside(site.neighbour, socket.socket, *kind) as client,
        inside(container.netns, socket.socket, *kind) as server,
    ):
        for sock in (client, server):
            sock.settimeout(20)
        client.sendto(packet(5000, 8080, 0, chunk=1), (HOST, 0))
        got, source = server.recvfrom(999)
        assert (source[0], got[20:]) == (NEIGHBOUR, packet(5000, 80, 0, chunk=1))
        server.sendto(packet(80, 5000, 7, chunk=2), (NEIGHBOUR, 0))
        got, source = client.recvfrom(999)
        assert (source[0], got[20:]) == (HOST, packet(8080, 5000, 7, chunk=2))
        site.driver.unpublish(network=network, endpoint=endpoint)
        server.settimeout(IMPATIENCE)
        client.sendto(packet(5001, 8080, 0, chunk=1), (HOST, 0))
        with pytest.raises(TimeoutError):
            server.recvfrom(999)


def test_sctp_passes_through_published_ports(site):
    if not speaks_sctp(site):
        pytest.skip("the kernel has no SCTP sockets (CONFIG_IP_SCTP)")
    network = site.network()
    container, endpoint = site.joined(network)
    sibling, _ = site.joined(network)
    ports = (Port(container=80, host=8080, protocol="sctp"),)
    site.driver.publish(network=network, endpoint=endpoint, ports=ports)

    def talk_to(address, netns):
        with sctp(netns, address) as client, sctp(container.netns, address) as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((plain(endpoint, ipv6=":" in address), 80))
            server.listen()
            server.settimeout(20)
            client.settimeout(20)
            client.connect((address, 8080))
            peer, source = server.accept()
            with peer:
                peer.settimeout(20)
                exchange(client, peer)
            return source[0]

    assert talk_to(HOST, site.neighbour) == NEIGHBOUR
    assert talk_to(HOST, sibling.netns)
    assert talk_to(HOST, site.host)
    assert talk_to("127.0.0.1", site.host)
    assert talk_to(HOST6, site.neighbour) == NEIGHBOUR6
    assert talk_to("::1", site.host)
    site.driver.unpublish(network=network, endpoint=endpoint)
    with pytest.raises(OSError):  # refused, or unanswered
        talk_to(HOST, site.neighbour)
    with sctp(site.host) as program:
        program.bind((HOST, 8080))
        program.listen()
        with pytest.raises(Conflict) as caught:
            site.driver.publish(network=network, endpoint=endpoint, ports=ports)
    assert str(caught.value) == (
        "port 8080/sctp is taken: a program on this host uses it at 0.0.0.0; choose another one"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host_binding": "here"}, "'here' is not an IPv4 address"),
        ({"source4": "::1"}, "'::1' is not an IPv4 address"),
        ({"source6": "10.0.0.1"}, "'10.0.0.1' is not an IPv6 address"),
        ({"trusted": "eth0::x"}, "'' is not the name of an interface; write them as eth0:eth1"),
        ({"default_bridge": True}, "the default network is made by itself: leave default_bridge away"),
    ],
)
def test_a_bad_option_is_refused(options, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        BridgeOptions(**options)


def test_endpoints_that_lost_their_guard_are_reported_and_made_good(site):
    network = site.network(options={"antispoof": "true"})
    _, endpoint = site.joined(network)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    inside(site.host, run, "nft", "flush", "chain", "bridge", "transom", "ipv6")
    said = ["nftables table transom: chain ipv6 has not the rules that it should have"]
    assert site.driver.check(network=network, endpoints=(endpoint,)) == said
    inside(site.host, run, "nft", "delete", "table", "bridge", "transom")
    assert site.driver.check(network=network, endpoints=(endpoint,)) == [
        f"endpoint {endpoint.id[:12]} is not kept from using its neighbours' addresses",
        "nftables table bridge transom is missing: containers can pose as each other",
    ]
    site.driver.create_network(network=network)
    site.driver.detach(network=network, endpoint=endpoint)
    container = site.container()
    site.driver.attach(network=network, endpoint=endpoint, netns=container.netns)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []


def test_without_antispoof_there_is_no_second_table(site):
    site.joined(site.network())
    assert inside(site.host, run, "nft", "list", "tables").split("\n")[:-1] == ["table inet transom"]


def test_a_kernel_without_nftables_for_bridges_is_named(site, monkeypatch, tmp_path):
    nft = tmp_path / "nft"
    nft.write_text("#!/bin/sh\necho 'Error: Could not process rule: Operation not supported' >&2; exit 1\n")
    nft.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(NotSupported) as caught:
        inside(site.host, Guard().load)
    assert str(caught.value) == (
        "network bridge: antispoof=true needs nftables for bridges (CONFIG_NF_TABLES_BRIDGE):"
        " Error: Could not process rule: Operation not supported"
    )


def test_the_probe_says_yes_here_and_leaves_nothing(site):
    before = site.census()
    assert site.driver.probe().usable
    assert site.census() == before


@pytest.mark.parametrize(("setting", "word"), [("0", "off"), ("1", "on")])
def test_the_status_says_whether_the_host_forwards(site, setting, word):
    inside(site.host, write, "/proc/sys/net/ipv4/ip_forward", setting)
    assert site.driver.status()["IPv4 forwarding"] == word


def test_the_probe_names_the_program_that_is_missing(site, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    probe = site.driver.probe()
    assert (probe.usable, probe.reason) == (False, "the program nft is missing: install the package nftables")


def test_the_hot_path_imports_nothing_expensive():
    code = "import sys, transom_network_bridge; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True).stdout.split()
    expensive = {"pyroute2", "subprocess", "asyncio", "logging", "dataclasses", "tempfile", "shutil"}
    assert not expensive & set(modules)
