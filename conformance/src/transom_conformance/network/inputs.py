"""What cannot be is refused in words, and nothing changes."""

from __future__ import annotations

import os

import msgspec
import pytest

from transom.errors import Conflict, DriverError, NotFound, TransomError
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import Has, Site, plain, requires, talk


class Inputs(NetworkCases):
    """What cannot be is refused in words, and nothing changes."""

    # Bad input

    @requires(Has.L2)
    def test_an_interface_name_that_is_taken_is_a_conflict_and_nothing_changes(self, site: Site) -> None:
        """L6: the one that is there goes on working."""
        network = site.network()
        container, first = site.joined(network, interface="wan")
        other, _ = site.joined(network)
        before, links = site.census(), container.ip("link")
        with pytest.raises(Conflict) as caught:
            container.attach(network, interface="wan")
        assert "wan" in str(caught.value)
        assert site.census() == before
        assert [link["ifname"] for link in container.ip("link")] == [link["ifname"] for link in links]
        assert talk(other.netns, container.listen(), plain(first))

    @requires(Has.L2, Has.HOT_PLUG)
    def test_an_address_that_the_container_has_is_a_conflict_and_nothing_changes(self, site: Site) -> None:
        """Z2: found late, when an interface is there already; it has to go again."""
        one, two = site.network(), site.network()
        container, endpoint = site.joined(one)
        sibling, _ = site.joined(one)
        before, links = site.census(), [link["ifname"] for link in container.ip("link")]
        second = msgspec.structs.replace(site.endpoint(two), addresses=endpoint.addresses)
        with pytest.raises(Conflict):
            site.driver.attach(network=two, endpoint=second, netns=container.netns)
        assert site.census() == before
        assert [link["ifname"] for link in container.ip("link")] == links
        assert talk(sibling.netns, container.listen(), plain(endpoint))

    @requires(Has.L2)
    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a b", "a%d", "sixteen-letters-"])
    def test_an_interface_name_that_cannot_be_is_refused_and_nothing_changes(self, site: Site, name: str) -> None:
        """B1: before the kernel takes half of it. An empty name is no wish."""
        network = site.network()
        before = site.census()
        container = site.container()
        if not name:
            assert container.attach(network, interface=name)[1].interface
            return
        with pytest.raises(TransomError):
            container.attach(network, interface=name)
        assert site.census() == before

    @requires(Has.L2, Has.MAC)
    @pytest.mark.parametrize("mac", ["01:00:5e:00:00:01", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
    def test_a_mac_address_that_no_interface_can_have_is_refused_and_nothing_changes(
        self, site: Site, mac: str
    ) -> None:
        """B1: a group's (IEEE 802), everybody's, nobody's."""
        network = site.network()
        before = site.census()
        container = site.container()
        with pytest.raises(TransomError):
            container.attach(network, mac=mac)
        assert site.census() == before
        assert [link["ifname"] for link in container.ip("link")] == ["lo"]

    @requires(Has.L2)
    @pytest.mark.parametrize("mtu", [20, 70_000])
    def test_an_mtu_that_cannot_be_is_refused_and_nothing_changes(self, site: Site, mtu: int) -> None:
        """B2: when the network is made, or with the first endpoint."""
        before = site.census()
        container = site.container()
        with pytest.raises(TransomError):
            container.attach(site.network(mtu=mtu))
        site.sweep()
        assert site.census() == before
        assert [link["ifname"] for link in container.ip("link")] == ["lo"]

    @requires(Has.L2)
    @pytest.mark.parametrize("what", ["a closed descriptor", "a file", "a namespace of mounts"])
    def test_what_is_no_namespace_is_refused_and_nothing_changes(self, site: Site, what: str) -> None:
        """B3: as an error of the driver, with the kernel's errno."""
        network = site.network()
        before = site.census()
        container = site.container()
        container.close()
        if what == "a file":
            container.netns = os.open(site.world.path, os.O_RDONLY)
        elif what == "a namespace of mounts":
            container.netns = os.open("/proc/self/ns/mnt", os.O_RDONLY)
        else:
            container.netns = 10_000
            site.world.defer(setattr, container, "netns", -1)
        with pytest.raises(DriverError) as caught:
            container.attach(network)
        assert caught.value.errno
        assert site.census() == before

    @requires(Has.L2)
    def test_attaching_to_a_network_that_is_not_there_says_so(self, site: Site) -> None:
        """The namespace stays as it is."""
        container = site.container()
        links = container.ip("link")
        with pytest.raises((NotFound, DriverError, Conflict)):
            container.attach(site.describe())
        assert container.ip("link") == links
