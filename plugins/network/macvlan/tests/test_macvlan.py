"""What the suite cannot see of the driver macvlan: its modes and parents, the host's access, addresses by DHCP."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from functools import partial
from itertools import count

import msgspec
import pytest

from transom.contract.network import Attachment, Owned, Subnet
from transom.errors import ConfigError, Conflict, DriverError, NotFound, NotSupported
from transom.services import interfaces, netlink
from transom.services.interfaces import route_by
from transom.services.netns import create, inside
from transom_conformance.faults import fork, wait
from transom_conformance.network import (
    TCP,
    UPLINK,
    NetworkSuite,
    OnAParent,
    Watch,
    dhcp_server,
    ip_batch,
    ip_json,
    listen,
    own_site,
    plain,
    talk,
    unreachable,
)
from transom_conformance.network.crashes import kills
from transom_conformance.network.dhcp import ADVERTISED, ROUTER, SERVER
from transom_conformance.suite import in_child
from transom_network_macvlan import Macvlan, MacvlanOptions
from transom_network_macvlan.dhcp import Lease, _events

NEIGHBOURS = "10.88.1.200"
PATIENCE = 30.0
COUNT = count()


class Suite(OnAParent, NetworkSuite):
    driver = "macvlan"


@pytest.fixture
def site(tmp_path):
    with own_site(Suite(), tmp_path) as site:
        yield site


def eventually(holds):
    deadline = time.monotonic() + PATIENCE
    while not (found := holds()):
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.05)
    return found


def neighbour(site):
    """A server of the neighbour's with an address on the first network."""
    if not any("10.88.1." in str(link) for link in inside(site.neighbour, ip_json, "address", "show", "lan0")):
        inside(site.neighbour, ip_batch, f"address add {NEIGHBOURS}/24 dev lan0")
    return listen(site, site.neighbour, TCP, 0, NEIGHBOURS)


@pytest.mark.parametrize(
    ("mode", "siblings_meet"), [("bridge", True), ("private", False), ("vepa", False)], ids=lambda v: str(v)
)
def test_each_mode_lets_those_meet_that_it_says(site, mode, siblings_meet):
    """K8: the neighbour is reached in each; siblings only in bridge mode, as the switch sends nothing back."""
    network = site.network(options={"macvlan_mode": mode})
    one, first = site.joined(network)
    other, second = site.joined(network)
    assert talk(one.netns, neighbour(site), NEIGHBOURS) == plain(first)
    assert talk(other.netns, neighbour(site), NEIGHBOURS) == plain(second)
    assert unreachable(other.netns, one.listen(), plain(first)) is not siblings_meet
    assert unreachable(site.host, one.listen(), plain(first))  # the kernel's rule: not between parent and child
    assert site.driver.check(network=network, endpoints=(first, second)) == []


def test_in_passthru_mode_one_container_has_the_parent_alone(site):
    """K8: a second endpoint, and a second network, are refused in words."""
    network = site.network(options={"macvlan_mode": "passthru"})
    one, first = site.joined(network)
    assert talk(one.netns, neighbour(site), NEIGHBOURS) == plain(first)
    container = site.container()
    with pytest.raises(Conflict) as caught:
        container.attach(network)
    assert f"parent {UPLINK} takes no macvlan in mode passthru: somebody else has it" in str(caught.value)
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]
    second = site.describe()
    with pytest.raises(Conflict) as caught:
        site.driver.create_network(network=second)
    assert f"parent {UPLINK} cannot be used in mode bridge: passthru wants it alone" in str(caught.value)
    assert network.id[:12] in str(caught.value)
    assert site.driver.owned().networks == {network.id}


def test_passthru_is_refused_where_others_are(site):
    site.network()
    with pytest.raises(Conflict, match=r"cannot be used in mode passthru"):
        site.network(options={"macvlan_mode": "passthru"})


def test_another_drivers_network_on_the_parent_is_named(site):
    foreign = f"transom-ipvlan-{'f' * 64}-l2"
    with inside(site.host, netlink.Session) as session:
        session.request(netlink.add_altname(UPLINK, foreign))
        with pytest.raises(Conflict, match=r"ipvlan has it \(network ffffffffffff\)"):
            site.network()
        session.request(netlink.delete_altname(UPLINK, foreign))


@pytest.mark.parametrize(
    ("parent", "error", "words"),
    [
        ("uplink1", NotFound, ["no interface uplink1 on this host", "did you mean uplink0?", "here are uplink0"]),
        ("lo", ConfigError, ["parent lo is the loopback"]),
        ("nowhere.50", NotFound, ["no interface nowhere.50"]),
        ("uplink0.0", ConfigError, ["0 is no VLAN: they are 1 to 4094"]),
        ("uplink0.4095", ConfigError, ["4095 is no VLAN"]),
    ],
)
def test_a_parent_that_cannot_be_is_refused_in_one_line(site, parent, error, words):
    """B2: and nothing is made."""
    before = site.census()
    with pytest.raises(error) as caught:
        site.network(options={"parent": parent})
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert site.census() == before


def test_a_parent_that_is_a_port_of_a_bridge_is_busy(site):
    """B2: the bridge is named, for it would do."""
    inside(site.host, ip_batch, "link add br9 type bridge", f"link set {UPLINK} master br9")
    with pytest.raises(Conflict, match=rf"parent {UPLINK} is busy: it is a port of br9; name br9"):
        site.network()
    inside(site.host, ip_batch, "link delete br9")


def test_a_parent_that_is_down_or_gone_is_said_when_a_container_joins(site):
    """K9, B2: and by check."""
    inside(site.host, ip_batch, "link add vx1 type veth peer name vx2", "link set vx1 up", "link set vx2 up")
    network = site.network(options={"parent": "vx1"})
    inside(site.host, ip_batch, "link set vx1 down")
    container = site.container()
    with pytest.raises(Conflict, match=r"its parent vx1 is down; `ip link set vx1 up`"):
        container.attach(network)
    assert site.driver.check(network=network, endpoints=()) == ["parent vx1 is down"]
    inside(site.host, ip_batch, "link delete vx1")
    with pytest.raises(NotFound, match=r"its parent vx1 is gone; create it again"):
        container.attach(network)
    assert site.driver.check(network=network, endpoints=()) == ["parent vx1 is missing"]
    with pytest.raises(NotFound, match=r"no interface vx1 on this host"):
        site.driver.create_network(network=network)


def test_a_parent_that_comes_back_is_the_networks_again(site):
    """K9: as by a cable adapter that is plugged in again; create_network is what core calls before it attaches."""
    appear = ("link add vx1 type veth peer name vx2", "link set vx1 up", "link set vx2 up")
    inside(site.host, ip_batch, *appear)
    network = site.network(options={"parent": "vx1"})
    container, endpoint = site.joined(network)
    inside(site.host, ip_batch, "link delete vx1")
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]  # the kernel takes its children with it
    inside(site.host, ip_batch, *appear)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == [
        f"parent vx1 does not know network {network.name}", f"endpoint {endpoint.id[:12]} has no interface"
    ]  # fmt: skip
    site.driver.create_network(network=network)
    site.driver.attach(network=network, endpoint=endpoint, netns=container.netns)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    site.driver.detach(network=network, endpoint=endpoint)
    site.driver.delete_network(network=network)
    inside(site.host, ip_batch, "link delete vx1")


def test_a_parent_that_got_another_name_is_found_by_the_old_one_beside_it(site):
    """K9: what runs goes on, and what is new is told how."""
    inside(site.host, ip_batch, "link add vx1 type veth peer name vx2", "link set vx1 up", "link set vx2 up")
    network = site.network(options={"parent": "vx1"})
    _, endpoint = site.joined(network)
    inside(site.host, ip_batch, "link set vx1 down", "link set vx1 name vy1", "link set vy1 up")
    with pytest.raises(NotFound) as caught:
        site.driver.create_network(network=network)
    command = "ip link property add dev vy1 altname vx1"
    assert f"its parent vx1 is called vy1 now; `{command}` has it found by both names" in str(caught.value)
    inside(site.host, ip_batch, command.removeprefix("ip "))
    site.driver.create_network(network=network)
    one, first = site.joined(network)
    two, _ = site.joined(network)
    assert talk(two.netns, one.listen(), plain(first)) == plain(site.endpoints[-1][1])
    site.driver.detach(network=network, endpoint=endpoint)
    assert site.driver.check(network=network, endpoints=(first,)) == []
    for known, other in site.endpoints:
        site.driver.detach(network=known, endpoint=other)
    site.driver.delete_network(network=network)
    inside(site.host, ip_batch, "link delete vy1")


def test_a_parent_that_somebody_else_has_alone_is_refused_when_the_network_is_made(site):
    """B2: not only when the first container starts; and nothing is left."""
    inside(site.host, ip_batch, f"link add theirs link {UPLINK} type macvlan mode passthru")
    before = site.census()
    with pytest.raises(Conflict) as caught:
        site.network()
    assert f"parent {UPLINK} takes no macvlan in mode bridge: somebody else has it, or it is no E" in str(caught.value)
    assert site.driver.owned() == Owned()
    assert site.census() == before
    inside(site.host, ip_batch, "link delete theirs")


def test_a_parent_that_carries_no_ethernet_is_refused_when_the_network_is_made(site):
    """B2: a tunnel's end has no MAC address."""
    made = inside(site.host, subprocess.run, ["ip", "tuntap", "add", "tun9", "mode", "tun"], check=False)
    if made.returncode:
        pytest.skip("the kernel has no tunnels (CONFIG_TUN)")
    with pytest.raises(Conflict, match=r"parent tun9 takes no macvlan in mode bridge: somebody else has it, or it is"):
        site.network(options={"parent": "tun9"})
    inside(site.host, ip_batch, "tuntap del tun9 mode tun")


def test_another_macvlan_does_as_a_parent(site):
    """The kernel puts its children beside it: they meet on the same network."""
    inside(site.host, ip_batch, f"link add mine link {UPLINK} type macvlan mode bridge", "link set mine up")
    network = site.network(options={"parent": "mine"})
    container, endpoint = site.joined(network)
    assert talk(container.netns, neighbour(site), NEIGHBOURS) == plain(endpoint)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    site.driver.detach(network=network, endpoint=endpoint)
    site.driver.delete_network(network=network)
    inside(site.host, ip_batch, "link delete mine")


def test_a_bridge_does_as_a_parent(site):
    """Where the host's own address is on a bridge whose port is the cable."""
    inside(site.host, ip_batch, "link add br9 type bridge", f"link set {UPLINK} master br9", "link set br9 up")
    network = site.network(options={"parent": "br9"})
    container, endpoint = site.joined(network)
    eventually(lambda: answer(container.netns, neighbour(site), NEIGHBOURS) == plain(endpoint))
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    site.driver.detach(network=network, endpoint=endpoint)
    site.driver.delete_network(network=network)
    inside(site.host, ip_batch, "link delete br9")


def test_an_interface_that_its_owner_has_given_an_alias_and_set_down_stays_down(site):
    inside(site.host, ip_batch, "link add vx1 type veth peer name vx2", "link set vx1 alias mine")
    network = site.network(options={"parent": "vx1"})
    assert site.driver.check(network=network, endpoints=()) == ["parent vx1 is down"]
    site.driver.delete_network(network=network)
    inside(site.host, ip_batch, "link delete vx1")


def test_the_mtu_follows_the_parents(site):
    """The kernel makes it smaller at once; greater only the next container has it, and check says so of the others."""
    network = site.network()
    container, endpoint = site.joined(network)
    inside(site.host, ip_batch, f"link set {UPLINK} mtu 1400")
    assert container.interface("eth0")["mtu"] == 1400
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    inside(site.host, ip_batch, f"link set {UPLINK} mtu 1500")
    other, second = site.joined(network)
    assert other.interface("eth0")["mtu"] == 1500
    said = site.driver.check(network=network, endpoints=(endpoint, second))
    assert said == [f"endpoint {endpoint.id[:12]}: eth0 has MTU 1400, not 1500"]


def test_two_containers_are_a_link_of_their_own_with_two_addresses(site):
    """RFC 3021: a range of 31 bits has neither a network's nor a broadcast address."""
    network = site.network(subnets=(Subnet(pool="10.88.9.0/31"),))
    (one, _), (two, _) = (site.joined(network, addresses=(f"10.88.9.{number}/31",)) for number in (0, 1))
    assert talk(two.netns, one.listen(), "10.88.9.0") == "10.88.9.1"
    assert talk(one.netns, two.listen(), "10.88.9.1") == "10.88.9.0"


def test_an_mtu_beyond_the_parents_is_refused(site):
    with pytest.raises(ConfigError, match=r"has an MTU of 1500 bytes: 9000 is too much"):
        site.network(options={"com.docker.network.driver.mtu": "9000"})


def test_the_addresses_of_a_container_that_has_just_died_can_be_used_at_once(site):
    """A restart with a fixed address: the kernel takes the old namespace away in its own time."""
    network, mac = site.network(), "02:42:00:00:00:09"
    for _ in range(10):
        container, endpoint = site.joined(network, mac=mac)
        container.close()
        site.driver.detach(network=network, endpoint=endpoint)
    site.joined(network, mac=mac)
    with pytest.raises(Conflict, match=rf"has the MAC address {mac} already; leave it out"):
        site.joined(network, mac=mac)


def test_check_reports_what_was_tampered_with(site):
    """L9: each by itself."""
    network = site.network()
    container, endpoint = site.joined(network)
    check = partial(site.driver.check, network=network, endpoints=(endpoint,))
    who = f"endpoint {endpoint.id[:12]}"
    for spoil, repair, said in (
        ("link set eth0 mtu 1400", "link set eth0 mtu 1500", f"{who}: eth0 has MTU 1400, not 1500"),
        (
            "address delete 10.88.1.2/24 dev eth0",
            "address add 10.88.1.2/24 dev eth0",
            f"{who}: eth0 has lost its address 10.88.1.2",
        ),
        (
            "link set eth0 type macvlan mode private",
            "link set eth0 type macvlan mode bridge",
            f"{who}: eth0 is not in mode bridge",
        ),
    ):
        inside(container.netns, ip_batch, spoil)
        assert check() == [said]
        inside(container.netns, ip_batch, repair)
        assert check() == []
    mark = f"transom-macvlan-{network.id}-bridge"
    inside(site.host, ip_batch, f"link property del dev {UPLINK} altname {mark}")
    assert check() == [f"parent {UPLINK} does not know network {network.name}"]
    site.driver.create_network(network=network)
    assert check() == []
    inside(container.netns, ip_batch, "link set eth0 down")
    assert check() == [f"{who}: eth0 is down", f"{who}: eth0 has lost its address fd88:1::2"]
    inside(container.netns, ip_batch, "link delete eth0")
    assert check() == [f"{who} has no interface"]


# Death at any time


@pytest.mark.parametrize("what", ["host-access", "vlan", "dhcp"])
def test_killed_at_any_point_nothing_of_it_is_left(site, request, what):
    """Z3: the host's interface and routes, a VLAN interface, a DHCP client; what the suite does not kill."""
    if what == "vlan":
        need_vlans(site)
        network = site.describe(options={"parent": "uplink0.50"})
    elif what == "dhcp":
        request.getfixturevalue("server")
        network = site.describe(options={"dhcp": "true"}, subnets=(Subnet(pool="0.0.0.0/0"),))
    else:
        network = with_access(site)
    before, container = site.census(), site.container()

    def life(endpoint):
        driver = site.open()
        driver.create_network(network=network)
        driver.attach(network=network, endpoint=endpoint, netns=container.netns)
        driver.detach(network=network, endpoint=endpoint)
        driver.delete_network(network=network)

    if what == "dhcp":  # strace would count the client's system calls among the driver's
        ways = [partial(in_child, kill_after=seconds) for seconds in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)]
    else:
        ways = kills(partial(life, site.endpoint(network)), most=10)
    for kill in ways:
        endpoint = site.endpoint(network)
        kill(partial(life, endpoint))
        driver = site.open()
        driver.recover()
        assert driver.recover() == []
        driver.detach(network=network, endpoint=endpoint)
        driver.delete_network(network=network)
        assert driver.owned() == Owned()
        assert site.census() == before
        eventually(lambda: not clients(site))
    life(endpoint)
    assert site.census() == before


# VLAN interfaces


def test_a_vlan_interface_is_made_once_and_goes_with_its_last_network(site):
    """K9: two networks share it; one that was there stays."""
    need_vlans(site)
    inside(
        site.neighbour, ip_batch, "link add link lan0 name lan0.50 type vlan id 50", "link set lan0.50 up",
        f"address add {NEIGHBOURS}/24 dev lan0.50",
    )  # fmt: skip
    options = {"parent": "uplink0.50"}
    one, two = site.network(options=options), site.network(options=options)
    container, endpoint = site.joined(one)
    server = listen(site, site.neighbour, TCP, 0, NEIGHBOURS)
    assert talk(container.netns, server, NEIGHBOURS) == plain(endpoint)
    names = partial(inside, site.host, ip_json, "link")
    site.driver.detach(network=one, endpoint=endpoint)
    site.driver.delete_network(network=one)
    assert "uplink0.50" in {link["ifname"] for link in names()}
    site.driver.delete_network(network=two)
    assert "uplink0.50" not in {link["ifname"] for link in names()}
    inside(site.host, ip_batch, f"link add link {UPLINK} name uplink0.51 type vlan id 51", "link set uplink0.51 up")
    three = site.network(options={"parent": "uplink0.51"})
    site.driver.delete_network(network=three)
    assert "uplink0.51" in {link["ifname"] for link in names()}
    inside(site.host, ip_batch, "link delete uplink0.51")


def test_a_vlan_interface_of_a_parent_that_is_down_or_has_it_already_is_refused_and_nothing_is_left(site):
    """K9: and one that was up goes down with what is below it, which check says."""
    need_vlans(site)
    inside(site.host, ip_batch, "link add vx1 type veth peer name vx2", "link set vx2 up")
    before = site.census()
    with pytest.raises(Conflict, match=r"no parent vx1.50 can be made: vx1 is down; `ip link set vx1 up`"):
        site.network(options={"parent": "vx1.50"})
    assert (site.driver.owned(), site.census()) == (Owned(), before)
    inside(site.host, ip_batch, "link set vx1 up", "link add link vx1 name other type vlan id 50")
    before = site.census()
    with pytest.raises(Conflict, match=r"no parent vx1.50 can be made: vx1 has its VLAN 50 under another name; name"):
        site.network(options={"parent": "vx1.50"})
    assert (site.driver.owned(), site.census()) == (Owned(), before)
    network = site.network(options={"parent": "vx1.51"})
    inside(site.host, ip_batch, "link set vx1 down")
    assert site.driver.check(network=network, endpoints=()) == ["parent vx1.51 is down"]
    inside(site.host, ip_batch, "link set vx1 up")
    site.driver.create_network(network=network)
    assert site.driver.check(network=network, endpoints=()) == []
    site.driver.delete_network(network=network)
    inside(site.host, ip_batch, "link delete vx1")


def test_a_bond_does_as_a_parent_and_its_parts_do_not(site):
    """A VLAN of it, too: the usual server."""
    need_vlans(site)
    made = inside(site.host, subprocess.run, ["ip", "link", "add", "bond9", "type", "bond"], check=False)
    if made.returncode:
        pytest.skip("the kernel has no bonds (CONFIG_BONDING)")
    inside(
        site.host, ip_batch, f"link set {UPLINK} down", f"link set {UPLINK} master bond9", "link set bond9 up"
    )  # fmt: skip
    network = site.network(options={"parent": "bond9"})
    container, endpoint = site.joined(network)
    eventually(lambda: answer(container.netns, neighbour(site), NEIGHBOURS) == plain(endpoint))
    with pytest.raises(Conflict, match=rf"parent {UPLINK} is busy: it is a port of bond9; name bond9 or a free"):
        site.network()
    tagged = site.network(options={"parent": "bond9.50"})
    _, second = site.joined(tagged)
    assert site.driver.check(network=tagged, endpoints=(second,)) == []
    for known, other in site.endpoints:
        site.driver.detach(network=known, endpoint=other)
    for known in (network, tagged):
        site.driver.delete_network(network=known)
    inside(site.host, ip_batch, "link delete bond9", f"link set {UPLINK} up")


def need_vlans(site):
    """Go on where VLAN interfaces can be made; elsewhere see that this is said, and skip."""
    elsewhere = create()
    site.world.defer(os.close, elsewhere)
    made = inside(
        elsewhere, subprocess.run,
        ["sh", "-c", "ip link add va type veth peer name vb && ip link add link va name va.5 type vlan id 5"],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        with pytest.raises(NotSupported, match=r"no parent uplink0.50 can be made: the kernel lacks VLANs \(CONFIG"):
            site.network(options={"parent": "uplink0.50"})
        pytest.skip("the kernel has no 802.1q VLANs (CONFIG_VLAN_8021Q)")


# The host's access


def with_access(site, *, reserved=True, **fields):
    network = site.describe(options={"host-access": "true"}, **fields)
    subnets = [
        msgspec.structs.replace(
            subnet, reserved={"host": "fd88:1::fe" if ":" in subnet.pool else "10.88.1.254"} if reserved else {}
        )
        for subnet in network.subnets
    ]
    network = msgspec.structs.replace(network, subnets=tuple(subnets))
    site.networks[-1] = network
    return network


def test_with_host_access_the_host_and_its_containers_reach_each_other(site):
    """K8: by both families, and the source addresses are the right ones."""
    network = with_access(site)
    site.driver.create_network(network=network)
    container, endpoint = site.joined(network)
    for six, host in ((False, "10.88.1.254"), (True, "fd88:1::fe")):
        address = plain(endpoint, ipv6=six)
        assert talk(site.host, container.listen(address=address), address) == host
        assert talk(container.netns, listen(site, site.host, TCP, 0, host), host) == address
    assert talk(container.netns, neighbour(site), NEIGHBOURS) == plain(endpoint)
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    inside(site.host, ip_batch, f"route del {plain(endpoint)}/32")
    said = f"the host has no route to endpoint {endpoint.id[:12]} ({plain(endpoint)})"
    assert site.driver.check(network=network, endpoints=(endpoint,)) == [said]


OWN = (("10.88.1.253", 24), ("fd88:1::fd", 64))


def test_host_access_goes_by_the_addresses_that_the_parent_has_on_the_network(site):
    """The usual case: the host is on that network itself; what it was by IPv6 only its child answers for."""
    inside(site.host, ip_batch, *(f"address add {own}/{bits} dev {UPLINK} nodad" for own, bits in OWN))
    network = with_access(site, reserved=False)
    site.driver.create_network(network=network)
    for _ in range(2):
        container, endpoint = site.joined(network)
        for own, _bits in OWN:
            address = plain(endpoint, ipv6=":" in own)
            assert talk(site.host, container.listen(address=address), address) == own
            assert talk(container.netns, listen(site, site.host, TCP, 0, own), own) == address
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    inside(site.host, ip_batch, *(f"address del {own}/{bits} dev {UPLINK}" for own, bits in OWN))


def test_the_hosts_way_follows_when_the_parents_addresses_change(site):
    """A host's own address comes by DHCP, too: without the route that bears it the host would not be answered."""
    inside(site.host, ip_batch, *(f"address add {own}/{bits} dev {UPLINK} nodad" for own, bits in OWN))
    network = with_access(site, reserved=False)
    site.driver.create_network(network=network)
    container, endpoint = site.joined(network)
    watch = Watch(site, network, endpoint, container.netns, Attachment(addresses=endpoint.addresses))
    try:
        moved = [(own[:-1] + "c" if ":" in own else "10.88.1.252", bits) for own, bits in OWN]
        inside(
            site.host, ip_batch, *(f"address del {own}/{bits} dev {UPLINK}" for own, bits in OWN),
            *(f"address add {own}/{bits} dev {UPLINK} nodad" for own, bits in moved),
        )  # fmt: skip
        for own, _bits in moved:
            address = plain(endpoint, ipv6=":" in own)
            server = container.listen(address=address)
            eventually(lambda s=server, a=address, own=own: answer(site.host, s, a) == own)
            assert talk(container.netns, listen(site, site.host, TCP, 0, own), own) == address
        eventually(lambda: OWN[1][0] not in str(inside(site.host, ip_json, "address")))
        assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    finally:
        watch.end()
    assert watch.said == []
    inside(site.host, ip_batch, *(f"address del {own}/{bits} dev {UPLINK}" for own, bits in moved))


def answer(netns, server, address):
    try:
        return talk(netns, server, address)
    except OSError:
        return None


def test_the_hosts_child_takes_nothing_from_routers(site):
    """It would give the host a second address and a second way out."""
    with serving(site, *ADVERTISED):
        network = with_access(site)
        site.driver.create_network(network=network)
        container, _ = site.joined(network)
        eventually(lambda: "fd77:1:" in str(container.ip("address")))  # its neighbour has heard
        child = f"mh-{network.id[:12]}"
        assert "fd77:1:" not in str(inside(site.host, ip_json, "address", "show", child))
        assert child not in str(inside(site.host, ip_json, "-6", "route", "show", "default"))


@pytest.mark.parametrize(("own", "lacking"), [(None, "10.88.1.0/24, fd88:1::/64"), (OWN[0], "fd88:1::/64")])
def test_host_access_without_an_address_for_the_host_says_how_to_reserve_one(site, own, lacking):
    """For each family: one that silently did not work would be found out late."""
    before = site.census()
    if own:
        inside(site.host, ip_batch, f"address add {own[0]}/{own[1]} dev {UPLINK}")
    network = with_access(site, reserved=False)
    with pytest.raises(ConfigError, match=rf"address for the host in {lacking}: reserve one with --aux-address host="):
        site.driver.create_network(network=network)
    assert site.driver.owned() == Owned()
    if own:
        inside(site.host, ip_batch, f"address del {own[0]}/{own[1]} dev {UPLINK}")
    assert site.census() == before


def test_routes_to_a_container_that_died_are_removed(site):
    """Z4: by its id alone, and by recovery where nobody asks."""
    network = with_access(site)
    site.driver.create_network(network=network)
    before = site.census()
    for clean in (lambda endpoint: site.driver.detach(network=network, endpoint=endpoint), None):
        container, endpoint = site.joined(network)
        kept, other = site.joined(network)
        container.close()
        eventually(lambda endpoint=endpoint: endpoint.id not in site.driver.owned().endpoints)
        assert site.census() != before
        if clean:
            clean(endpoint)
        else:
            assert site.driver.recover() == ["removed 2 routes to endpoints that are gone"]
        assert talk(site.host, kept.listen(), plain(other)) == "10.88.1.254"
        site.driver.detach(network=network, endpoint=other)
        assert site.census() == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"host_access": True, "mode": "vepa"}, "host-access=true needs macvlan_mode bridge"),
        ({"dhcp": True}, "dhcp=true needs a parent"),
    ],
)
def test_options_that_do_not_go_together_are_refused(words, said):
    with pytest.raises(ValueError, match=said):
        MacvlanOptions(**words)


# DHCP


@pytest.fixture
def server(site):
    """A DHCP server of the neighbour's; what it says it has done."""
    with serving(site) as journal:
        yield journal


def serving(site, *options, **words):
    own = any("option:" in option or "optsfile" in option for option in options)
    router = () if own else (f"--dhcp-option=option:router,{SERVER}",)
    names = ("--dhcp-option=option:dns-server,10.77.0.53", "--dhcp-option=option:domain-name,example.test")
    said = () if any("optsfile" in option for option in options) else names
    journal = site.world.path / f"journal-{next(COUNT)}"
    inside(site.host, interfaces.write_setting, f"ipv6/conf/{UPLINK}/accept_ra", "0")  # the containers are meant
    return dhcp_server(site.neighbour, "lan0", journal, "--port=0", *router, *said, *options, **words)


def by_dhcp(site, pools=("0.0.0.0/0",), **options):
    subnets = tuple(Subnet(pool=pool) for pool in pools)
    network = site.describe(options={"dhcp": "true", **options}, subnets=subnets)
    assert site.driver.settle(network=network) == network
    site.driver.create_network(network=network)
    return network


def test_an_address_comes_from_the_dhcp_server_and_is_released_at_the_end(site, server):
    """The client asks again for what it has, renews it and gives it back."""
    network = by_dhcp(site)
    container = site.container()
    endpoint, attachment = container.attach(network, names=("web",))
    assert attachment.addresses[0].startswith("10.77.0.1")
    assert attachment.addresses[0].endswith("/24")
    assert attachment.gateways == (SERVER,)
    assert (attachment.dns, attachment.search) == (("10.77.0.53",), ("example.test",))
    address = attachment.addresses[0].partition("/")[0]
    assert talk(container.netns, listen(site, site.neighbour, TCP, 0, SERVER), SERVER) == address
    watch = Watch(site, network, endpoint, container.netns, attachment)
    os.kill(keeper(site, server), signal.SIGUSR1)  # renew now: udhcpc(8)
    server.await_(f"DHCPACK(lan0) {address}", 3)
    assert [a["local"] for a in container.interface("eth0")["addr_info"]] == [address]
    watch.end()
    server.await_(f"DHCPRELEASE(lan0) {address}")
    site.driver.release(network=network, endpoint=endpoint)
    site.driver.detach(network=network, endpoint=endpoint)
    # The same container gets the same address again, by its MAC.
    again = container.attach(network, container=endpoint.container)[1]
    assert again.addresses == attachment.addresses
    assert server.count("web")


def test_a_container_that_ends_at_once_gives_its_address_back_too(site, server):
    """Else the server runs out of addresses: each container has another MAC."""
    network = by_dhcp(site)
    for _ in range(3):
        container = site.container()
        endpoint, attachment = container.attach(network)
        Watch(site, network, endpoint, container.netns, attachment).end()
        server.await_(f"DHCPRELEASE(lan0) {attachment.addresses[0].partition('/')[0]}")
        site.driver.detach(network=network, endpoint=endpoint)


def test_when_a_lease_runs_out_the_address_goes_and_comes_back_with_the_way_out(site, server):
    """The client is told to give up, as when time is up, and to ask again (udhcpc(8): SIGUSR2, SIGUSR1)."""
    network = by_dhcp(site)
    container = site.container()
    endpoint, attachment = container.attach(network)
    watch = Watch(site, network, endpoint, container.netns, attachment)
    try:
        client = keeper(site, server)
        os.kill(client, signal.SIGUSR2)
        eventually(lambda: not container.interface("eth0")["addr_info"])
        assert container.ip("route", "show", "default") == []
        os.kill(client, signal.SIGUSR1)
        eventually(lambda: container.ip("route", "show", "default"))
        assert [a["local"] for a in container.interface("eth0")["addr_info"]] == [
            attachment.addresses[0].partition("/")[0]
        ]
    finally:
        watch.end()


def test_routes_and_mtu_that_the_server_gives_are_set(site):
    """RFC 3442: they count in place of the router; one by the link, one that no kernel takes."""
    routes = f"10.99.0.0/16,10.77.0.2,0.0.0.0/0,{SERVER},10.98.0.0/16,0.0.0.0,10.97.0.0/16,203.0.113.1"
    options = ("--dhcp-option=option:mtu,1400", f"--dhcp-option=option:classless-static-route,{routes}")
    with serving(site, *options, "--dhcp-option=option:domain-search,example.test,corp.test"):
        network = by_dhcp(site)
        container = site.container()
        endpoint, attachment = container.attach(network)
        assert attachment.gateways == (SERVER,)
        assert attachment.search == ("example.test", "corp.test")
        assert attachment.mtu == container.interface("eth0")["mtu"] == 1400
        found = {route["dst"]: route.get("gateway") for route in container.ip("route", "show")}
        assert found == {
            "default": SERVER, "10.77.0.0/24": None, "10.98.0.0/16": None, "10.99.0.0/16": "10.77.0.2"
        }  # fmt: skip
        assert site.driver.check(network=network, endpoints=(endpoint,)) == []


def test_a_clients_death_is_that_of_the_thread_that_started_it(site, server):
    """A supervisor of a container in the host's pid namespace is killed, and leaves no client behind."""
    network = by_dhcp(site)
    container = site.container()
    endpoint, attachment = container.attach(network)

    def supervise():
        unread, _ = os.pipe()
        site.driver.watch(network=network, endpoint=endpoint, netns=container.netns, stop=unread, changed=print)

    acknowledged = server.count("DHCPACK")  # of a host under load more often than once
    supervisor = fork(supervise)
    try:
        server.await_("DHCPACK", acknowledged + 1)
        keeper(site, server)
    finally:
        os.kill(supervisor, signal.SIGKILL)
        assert wait(supervisor) == -signal.SIGKILL
    eventually(lambda: not clients(site))
    server.await_(f"DHCPRELEASE(lan0) {attachment.addresses[0].partition('/')[0]}")


def test_a_container_on_two_networks_of_one_parent_has_two_addresses(site, server):
    """A MAC address is the container's on that network."""
    one, two = by_dhcp(site), by_dhcp(site)
    container = site.container()
    first, attachment = container.attach(one)
    second = container.attach(two, container=first.container, leads_out=False)[1]
    assert attachment.mac != second.mac
    assert attachment.addresses != second.addresses


def test_a_client_that_dies_is_started_anew(site, server):
    network = by_dhcp(site)
    container = site.container()
    endpoint, attachment = container.attach(network)
    watch = Watch(site, network, endpoint, container.netns, attachment)
    try:
        os.kill(keeper(site, server), signal.SIGKILL)
        server.await_("DHCPACK", 3)
        assert [a["local"] for a in container.interface("eth0")["addr_info"]] == [
            attachment.addresses[0].partition("/")[0]
        ]
    finally:
        watch.end()
    assert clients(site) == []


def keeper(site, server):
    """Return the client that keeps a lease, once it has it: it listens no more until it is time to renew."""
    server.await_("DHCPACK", 2)
    (client,) = eventually(partial(clients, site))
    fds = f"/proc/{client}/fd"
    eventually(lambda: not any(os.readlink(f"{fds}/{fd}").startswith("socket:") for fd in os.listdir(fds)))
    return client


def clients(site):
    """Return the processes whose script is this site's."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                words = file.read().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(word.startswith(os.fsencode(site.world.path)) and word.endswith(b"udhcpc.script") for word in words):
            found.append(int(pid))
    return found


def test_the_host_has_access_to_containers_with_addresses_by_dhcp_also_after_another_was_given(site):
    inside(site.host, ip_batch, f"address add 10.77.0.2/24 dev {UPLINK}")
    with serving(site):
        network = by_dhcp(site, **{"host-access": "true"})
        container = site.container()
        endpoint, attachment = container.attach(network)
        first = host_of(attachment)
        assert talk(site.host, container.listen(), first) == "10.77.0.2"
    with serving(site, pool="10.77.0.50,10.77.0.50") as server:  # which refuses to prolong the other one
        watch = Watch(site, network, endpoint, container.netns, attachment)
        try:
            server.await_("DHCPACK(lan0) 10.77.0.50")
            eventually(lambda: answer(site.host, container.listen(), "10.77.0.50") == "10.77.0.2")
            assert first not in str(inside(site.host, ip_json, "route"))
            assert talk(container.netns, listen(site, site.host, TCP, 0, "10.77.0.2"), "10.77.0.2") == "10.77.0.50"
        finally:
            watch.end()
    site.driver.detach(network=network, endpoint=endpoint)
    inside(site.host, ip_batch, f"address del 10.77.0.2/24 dev {UPLINK}")


def host_of(attachment, *, ipv6=False):
    return next(a.partition("/")[0] for a in attachment.addresses if (":" in a) is ipv6)


# What a server says anew


def test_what_a_renewal_changes_is_applied_and_told(site):
    """Another router, other name servers, other domains, another route, a smaller MTU: not only at the next start."""
    file = site.world.path / "options"

    def say(router, dns, domain, route, mtu):
        every = f"0.0.0.0/0,{router},{route},10.77.0.3"
        lines = (f"option:dns-server,{dns}", f"option:domain-search,{domain}", f"option:mtu,{mtu}", f"121,{every}")
        file.write_text("".join(f"{line}\n" for line in lines))

    say(SERVER, "10.77.0.53", "one.test", "10.98.0.0/16", 1400)
    with serving(site, f"--dhcp-optsfile={file}") as server:
        network = by_dhcp(site)
        container = site.container()
        endpoint, attachment = container.attach(network)
        assert (attachment.dns, attachment.search, attachment.mtu) == (("10.77.0.53",), ("one.test",), 1400)
        route_by(container.netns, [("eth0", attachment.gateways[0])])
        watch = Watch(site, network, endpoint, container.netns, attachment)
        try:
            client = keeper(site, server)
            say("10.77.0.4", "10.77.0.54", "two.test", "10.99.0.0/16", 1300)
            os.kill(server.pid, signal.SIGHUP)
            server.await_("read " + str(file), 2)
            os.kill(client, signal.SIGUSR1)
            said = eventually(lambda: next((s for s in watch.said if s.dns == ("10.77.0.54",)), None))
            assert said == msgspec.structs.replace(
                attachment, gateways=("10.77.0.4",), dns=("10.77.0.54",), search=("two.test",), mtu=1300
            )
            found = {route["dst"]: route.get("gateway") for route in container.ip("route", "show")}
            assert found == {"default": "10.77.0.4", "10.77.0.0/24": None, "10.99.0.0/16": "10.77.0.3"}
            assert container.interface("eth0")["mtu"] == 1300
        finally:
            watch.end()


def test_a_lease_that_is_refused_is_replaced_by_another_and_the_way_out_is_there(site):
    """DHCPNAK: the server has lost its memory, or the network has another range now."""
    with serving(site) as server:
        network = by_dhcp(site)
        container = site.container()
        endpoint, attachment = container.attach(network)
        watch = Watch(site, network, endpoint, container.netns, attachment)
        client = keeper(site, server)
    try:
        with serving(site, pool="10.77.0.60,10.77.0.60") as server:
            os.kill(client, signal.SIGUSR1)
            server.await_("DHCPNAK(lan0) " + host_of(attachment))
            eventually(lambda: watch.said[-1].addresses == ("10.77.0.60/24",))
            assert [a["local"] for a in container.interface("eth0")["addr_info"]] == ["10.77.0.60"]
            assert container.ip("route", "show", "default")[0]["gateway"] == SERVER
            assert () in [said.addresses for said in watch.said]  # in between there is none
            watch.end()
            server.await_("DHCPRELEASE(lan0) 10.77.0.60")
    finally:
        watch.end()


def test_an_address_is_kept_until_its_time_is_over_and_had_again_when_the_server_is_back(site):
    """Of a server that went away: busybox's, since its leases may be as short as a test, 16 s for this client."""
    inside(site.neighbour, ip_batch, f"address replace {SERVER}/24 dev lan0")
    conf, leases = site.world.path / "udhcpd.conf", site.world.path / "leases"
    leases.touch()
    conf.write_text(
        f"interface lan0\nstart 10.77.0.70\nend 10.77.0.70\noption lease 16\noption subnet 255.255.255.0\n"
        f"option router {SERVER}\nlease_file {leases}\npidfile {site.world.path}/udhcpd.pid\n"
    )

    def serve():
        words = ["busybox", "udhcpd", "-f", str(conf)]
        process = inside(site.neighbour, subprocess.Popen, words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        site.world.defer(lambda: (process.kill(), process.wait()))
        return process

    server = serve()
    network = by_dhcp(site)
    container = site.container()
    endpoint, attachment = container.attach(network)
    assert attachment.addresses == ("10.77.0.70/24",)
    watch = Watch(site, network, endpoint, container.netns, attachment)
    try:
        eventually(lambda: watch.said)
        server.terminate()
        server.wait()
        time.sleep(2)
        assert [a["local"] for a in container.interface("eth0")["addr_info"]] == ["10.77.0.70"]
        eventually(lambda: watch.said[-1].addresses == ())
        assert container.interface("eth0")["addr_info"] == []
        serve()
        eventually(lambda: watch.said[-1].addresses == ("10.77.0.70/24",))
        assert container.ip("route", "show", "default")[0]["gateway"] == SERVER
    finally:
        watch.end()


# IPv6 by router advertisements


BOTH = ("0.0.0.0/0", "::/0")


def test_ipv6_addresses_come_from_router_advertisements(site):
    """Address, way out, name servers and domains; the same address at the next start, of the same MAC address."""
    words = ("--dhcp-option=option6:dns-server,[fd77:1::53]", "--dhcp-option=option6:domain-search,six.test")
    with serving(site, *ADVERTISED, *words):
        network = by_dhcp(site, BOTH)
        container = site.container()
        endpoint, attachment = container.attach(network)
        four, six = attachment.addresses
        assert four.startswith("10.77.0.")
        assert six.startswith("fd77:1::")
        assert six.endswith("/64")
        assert attachment.gateways[1].startswith("fe80:")
        assert "fd77:1::53" in attachment.dns
        assert "six.test" in attachment.search
        address = host_of(attachment, ipv6=True)
        assert talk(container.netns, listen(site, site.neighbour, TCP, 0, ROUTER), ROUTER) == address
        assert container.ip("-6", "route", "show", "default")[0]["gateway"] == attachment.gateways[1]
        assert site.driver.check(network=network, endpoints=(endpoint,)) == []
        watch = Watch(site, network, endpoint, container.netns, attachment)
        told = eventually(lambda: next((s for s in watch.said if len(s.addresses) == 2), None))
        assert (told.addresses, told.gateways, {*told.dns}) == (
            attachment.addresses, attachment.gateways, {*attachment.dns}
        )  # fmt: skip
        watch.end()
        site.driver.detach(network=network, endpoint=endpoint)
        again = container.attach(network, container=endpoint.container)[1]
        assert host_of(again, ipv6=True) == address


def test_a_network_may_have_ipv6_addresses_alone(site):
    with serving(site, *ADVERTISED) as server:
        network = by_dhcp(site, ("::/0",))
        container = site.container()
        _, attachment = container.attach(network)
        assert [a.partition("::")[0] for a in attachment.addresses] == ["fd77:1"]
        assert server.count("DHCPDISCOVER") == 0


def test_when_a_router_takes_leave_the_way_out_goes_and_comes_back_with_it(site):
    """RFC 4861, 6.2.5: it says so by a lifetime of nothing, as dnsmasq does at its end."""
    with serving(site, *ADVERTISED):
        network = by_dhcp(site, BOTH)
        container = site.container()
        endpoint, attachment = container.attach(network)
        watch = Watch(site, network, endpoint, container.netns, attachment)
        eventually(lambda: watch.said and len(watch.said[-1].gateways) == 2)
    try:
        eventually(lambda: len(watch.said[-1].gateways) == 1)
        with serving(site, *ADVERTISED):
            eventually(lambda: len(watch.said[-1].gateways) == 2)
    finally:
        watch.end()


def test_the_host_has_access_by_ipv6_to_what_routers_gave_an_address(site):
    inside(
        site.host, ip_batch, f"address add fd77:1::2/64 dev {UPLINK} nodad", f"address add 10.77.0.2/24 dev {UPLINK}"
    )
    with serving(site, *ADVERTISED):
        network = by_dhcp(site, BOTH, **{"host-access": "true"})
        container = site.container()
        endpoint, attachment = container.attach(network)
        address = host_of(attachment, ipv6=True)
        assert talk(site.host, container.listen(address=address), address) == "fd77:1::2"
        assert talk(container.netns, listen(site, site.host, TCP, 0, "fd77:1::2"), "fd77:1::2") == address
        assert site.driver.check(network=network, endpoints=(endpoint,)) == []
    inside(site.host, ip_batch, f"address del fd77:1::2/64 dev {UPLINK}", f"address del 10.77.0.2/24 dev {UPLINK}")


MANAGED = ("--enable-ra", "--dhcp-range=fd77:1::10,fd77:1::20,64,2m")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no router has advertised an IPv6 prefix in 1 seconds; leave out --ipv6, or have a router"),
        (MANAGED, "the router says that IPv6 addresses come by DHCPv6, which is not asked; leave out"),
    ],
)
def test_without_an_advertised_prefix_it_says_so_and_the_lease_is_given_back(site, monkeypatch, words, said):
    monkeypatch.setattr("transom_network_macvlan.advertisements.PATIENCE", 1.0)
    with serving(site, *words) as server:
        network = by_dhcp(site, BOTH)
        container = site.container()
        with pytest.raises(DriverError) as caught:
            container.attach(network)
        assert said in str(caught.value)
        assert [link["ifname"] for link in container.ip("link")] == ["lo"]
        server.await_("DHCPRELEASE(lan0)")


def test_an_ipv6_address_that_routers_do_not_give_is_refused(site):
    with serving(site, *ADVERTISED):
        network = by_dhcp(site, ("::/0",))
        with pytest.raises(DriverError, match=r"the routers do not give fd77:1::5 but fd77:1::[0-9a-f:]+; leave"):
            site.container().attach(network, addresses=("fd77:1::5/64",))


def test_an_address_that_the_server_does_not_give_is_refused_and_its_own_is_given_back(site, server):
    network = by_dhcp(site)
    container = site.container()
    with pytest.raises(DriverError, match=r"does not give 10.99.0.5 but 10.77.0.1\d; leave the address out"):
        container.attach(network, addresses=("10.99.0.5/24",))
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]
    server.await_("DHCPRELEASE(lan0) 10.77.0.1")


def test_without_a_dhcp_server_it_says_so_and_nothing_is_left(site, monkeypatch):
    monkeypatch.setattr("transom_network_macvlan.dhcp.TRIES", 1)
    monkeypatch.setattr("transom_network_macvlan.dhcp.PAUSE", 1)
    network = by_dhcp(site)
    container = site.container()
    with pytest.raises(
        DriverError, match=r"no DHCP server has answered in 1 seconds; is there one on the network of the parent"
    ):
        container.attach(network)
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]


def test_with_dhcp_a_subnet_is_refused(site):
    with pytest.raises(ConfigError, match=r"with dhcp=true the server has the subnet; leave out --subnet"):
        site.describe(options={"dhcp": "true"}, subnets=(Subnet(pool="10.1.0.0/24"),))


def test_without_a_client_it_says_what_to_install(site, monkeypatch):
    network = by_dhcp(site)
    monkeypatch.setattr("shutil.which", lambda name: None)
    container = site.container()
    with pytest.raises(NotSupported, match=r"install the package udhcpc or busybox-static"):
        container.attach(network)


def test_lines_of_others_are_no_leases():
    text = b"noise\ntransom\tdeconfig\t\t\t\t\t\t\t\n"
    text += b"transom\tbound\t10.0.0.5\t24\t10.0.0.1 10.0.0.2\t\tone two\t\tx\n"
    lease = Lease(address="10.0.0.5/24", routers=("10.0.0.1", "10.0.0.2"), search=("one", "two"))
    assert _events(text) == [("deconfig", None), ("bound", lease)]


def test_the_driver_runs_on_this_kernel(tmp_path):
    probe = Macvlan(options=None, root=tmp_path, run=tmp_path).probe()
    assert probe.usable, probe.reason
