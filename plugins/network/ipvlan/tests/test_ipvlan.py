"""What the suite cannot see of the driver ipvlan: its modes, its words, and what a kernel without it is told."""

from __future__ import annotations

import pytest

from transom.errors import ConfigError, Conflict, NotSupported
from transom.services import netlink
from transom.services.netns import inside
from transom_conformance.network import (
    HOST,
    NEIGHBOUR,
    TCP,
    UPLINK,
    NetworkSuite,
    OnAParent,
    ip_batch,
    listen,
    own_site,
    plain,
    talk,
    unreachable,
)
from transom_network_ipvlan import Ipvlan

NEIGHBOURS = "10.88.1.200"


class Suite(OnAParent, NetworkSuite):
    driver = "ipvlan"


@pytest.fixture
def site(tmp_path):
    with own_site(Suite(), tmp_path) as site:
        yield site


@pytest.fixture
def kernel(tmp_path):
    """A kernel that has ipvlan."""
    probe = Ipvlan(options=None, root=tmp_path, run=tmp_path).probe()
    if not probe.usable:
        pytest.skip(probe.reason)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("flag", ["bridge", "private", "vepa"])
def test_each_flag_lets_those_meet_that_it_says(site, flag):
    """K8: the neighbour is reached with each; siblings only with bridge, as the switch sends nothing back."""
    inside(site.neighbour, ip_batch, f"address add {NEIGHBOURS}/24 dev lan0")
    network = site.network(options={"ipvlan_flag": flag})
    one, first = site.joined(network)
    other, second = site.joined(network)
    server = listen(site, site.neighbour, TCP, 0, NEIGHBOURS)
    assert talk(one.netns, server, NEIGHBOURS) == plain(first)
    assert talk(other.netns, server, NEIGHBOURS) == plain(second)
    assert unreachable(other.netns, one.listen(), plain(first)) is (flag != "bridge")
    assert site.driver.check(network=network, endpoints=(first, second)) == []


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_in_mode_l3_the_host_routes(site, mode):
    """K8: the neighbour needs a route to the network by the host, and then both reach each other."""
    network = site.network(options={"ipvlan_mode": mode})
    container, endpoint = site.joined(network)
    server = listen(site, site.neighbour, TCP, 0, NEIGHBOUR)
    assert unreachable(container.netns, server, NEIGHBOUR)
    inside(site.neighbour, ip_batch, f"route add {network.subnets[0].pool} via {HOST}")
    assert talk(container.netns, server, NEIGHBOUR) == plain(endpoint)
    assert talk(site.neighbour, container.listen(), plain(endpoint)) == NEIGHBOUR
    assert site.driver.check(network=network, endpoints=(endpoint,)) == []


@pytest.mark.usefixtures("kernel")
def test_check_reports_a_mode_that_was_changed_over(site):
    """L9: by whoever makes another child."""
    network = site.network()
    _, endpoint = site.joined(network)
    inside(site.host, ip_batch, f"link add stray link {UPLINK} type ipvlan mode l3")
    said = site.driver.check(network=network, endpoints=(endpoint,))
    assert said == [f"endpoint {endpoint.id[:12]}: eth0 is not in mode l2-bridge"]
    inside(site.host, ip_batch, "link delete stray")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("options", [{"ipvlan_mode": "l3"}, {"ipvlan_flag": "private"}])
def test_networks_of_two_modes_do_not_share_a_parent(site, options):
    """B2: the kernel would switch the first one's containers over."""
    network = site.network()
    site.network()
    with pytest.raises(Conflict) as caught:
        site.network(options=options)
    assert f"parent {UPLINK} cannot be used in mode" in str(caught.value)
    assert "it is in mode l2-bridge" in str(caught.value)
    assert network.id[:12] in str(caught.value)


def test_a_parent_that_macvlan_has_is_refused(site):
    foreign = f"transom-macvlan-{'f' * 64}-bridge"
    with inside(site.host, netlink.Session) as session:
        session.request(netlink.add_altname(UPLINK, foreign))
        with pytest.raises(Conflict, match=r"macvlan has it \(network ffffffffffff\)"):
            site.network()
        session.request(netlink.delete_altname(UPLINK, foreign))


@pytest.mark.usefixtures("kernel")
def test_a_mac_address_of_ones_own_is_refused(site):
    network = site.network()
    container = site.container()
    with pytest.raises(ConfigError, match=r"cannot have the MAC address 02:42:00:00:00:09.*or use macvlan"):
        container.attach(network, mac="02:42:00:00:00:09")
    assert [link["ifname"] for link in container.ip("link")] == ["lo"]


def test_a_kernel_without_ipvlan_is_told_what_it_lacks(site):
    """L11: by the probe, and when a network is made, which leaves nothing."""
    probe = inside(site.host, site.driver.unwrapped.probe)
    if probe.usable:
        pytest.skip("the kernel has ipvlan")
    assert probe.reason.startswith("the kernel lacks ipvlan interfaces (CONFIG_IPVLAN): ")
    before = site.census()
    with pytest.raises(NotSupported, match=r"the kernel lacks ipvlan interfaces \(CONFIG_IPVLAN\)"):
        site.network()
    assert site.census() == before


@pytest.mark.usefixtures("kernel")
def test_a_parent_that_anothers_macvlan_has_is_refused_when_the_network_is_made(site):
    """B2: of one that no network of Transom's is on."""
    inside(site.host, ip_batch, f"link add theirs link {UPLINK} type macvlan mode bridge")
    with pytest.raises(Conflict, match=rf"parent {UPLINK} takes no ipvlan in mode l2-bridge: somebody else has it"):
        site.network()
    inside(site.host, ip_batch, "link delete theirs")
    site.network()
