"""Networks and endpoints are made, listed, checked and removed as the contract says."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

import msgspec
import pytest

from transom.contract.network import Endpoint, Netns, NetnsKind, Network, NetworkCapability, Owned, Port
from transom.errors import ConfigError, Conflict, NotSupported
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import HOST, TCP, Has, Site, Stream, plain, requires, talk, unreachable
from transom_conformance.suite import undeclared


class LifeCycle(NetworkCases):
    """Networks and endpoints are made, listed, checked and removed as the contract says."""

    # Life cycle

    def test_networks_are_made_and_removed_any_number_of_times(self, site: Site) -> None:
        """L2, L4: both are idempotent, and removal leaves the host as it was."""
        before = site.census()
        network = site.describe()
        for _ in range(2):
            for _ in range(2):
                site.driver.create_network(network=site.settle(network))
            for _ in range(2):
                site.driver.delete_network(network=network)
            assert site.census() == before

    def test_removal_of_what_never_was_succeeds(self, site: Site) -> None:
        """L4: also with nothing but ids, as core calls it for what it has no record of."""
        nowhere = Network(id=os.urandom(32).hex(), name="")
        nobody = Endpoint(id=os.urandom(32).hex(), container="")
        before = site.census()
        for network in (nowhere, Network(id="", name=""), site.describe()):
            site.driver.detach(network=network, endpoint=nobody)
            if site.has(Has.PUBLISH):
                site.driver.unpublish(network=network, endpoint=nobody)
            if site.has(Has.ADDRESSES):
                site.driver.release(network=network, endpoint=nobody)
        site.driver.delete_network(network=nowhere)
        assert site.census() == before

    def test_the_namespace_is_one_that_the_contract_knows(self, site: Site) -> None:
        """K4, K5: of another container if and only if one was referred to."""
        endpoint = Endpoint(id="e" * 64, container="c" * 64)
        if site.has(Has.REFERENCE):
            endpoint = msgspec.structs.replace(endpoint, reference="f" * 64)
            assert site.driver.netns(endpoint=endpoint) == Netns(kind=NetnsKind.CONTAINER, of="f" * 64)
            with pytest.raises(ConfigError):
                site.driver.netns(endpoint=msgspec.structs.replace(endpoint, reference=None))
        else:
            netns = site.driver.netns(endpoint=endpoint)
            assert netns in {Netns(kind=NetnsKind.OWN), Netns(kind=NetnsKind.HOST)}

    def test_a_namespace_of_its_own_gets_a_loopback_that_is_up(self, site: Site) -> None:
        """K5: programs rely on 127.0.0.1, whatever else there is."""
        if site.has(Has.REFERENCE) or site.driver.netns(endpoint=Endpoint(id="e" * 64, container="c")) != Netns(
            kind=NetnsKind.OWN
        ):
            pytest.skip("not claimed: containers share a namespace that is not the driver's")
        container, _ = site.joined(site.network())
        assert talk(container.netns, container.listen(), "127.0.0.1") == "127.0.0.1"

    def test_undeclared_capabilities_are_refused(self, site: Site) -> None:
        """An operation of an undeclared capability raises NotSupported and changes nothing."""
        network, endpoint = Network(id="a" * 64, name="n"), Endpoint(id="e" * 64, container="c")
        both = {"network": network, "endpoint": endpoint}
        calls: dict[NetworkCapability, list[Callable[[], object]]] = {
            Has.PUBLISH: [
                lambda: site.driver.publish(**both, ports=(Port(container=80),)),
                lambda: site.driver.unpublish(**both),
            ],
            Has.ADDRESSES: [
                lambda: site.driver.settle(network=network),
                lambda: site.driver.allocate(**both),
                lambda: site.driver.release(**both),
            ],
            Has.MULTI_HOST: [lambda: site.driver.networks(), lambda: site.driver.peers(network=network)],
            Has.LOOKUP: [lambda: site.driver.lookup(network=network, name="web")],
            Has.WATCH: [lambda: site.driver.watch(**both, netns=site.neighbour, stop=0, changed=print)],
        }
        before = site.census()
        for capability in undeclared(site.driver, NetworkCapability):
            for call in calls.get(NetworkCapability(capability), []):
                with pytest.raises(NotSupported) as caught:
                    call()
                assert str(capability) in str(caught.value)
        assert site.census() == before

    def test_recovery_of_a_healthy_host_repairs_nothing(self, site: Site) -> None:
        """Recovery is idempotent and leaves what works alone."""
        network = site.network()
        before = site.census()
        assert site.open().recover() == []
        assert site.driver.recover() == []
        assert site.census() == before
        site.driver.delete_network(network=network)
        assert site.driver.recover() == []

    @requires(Has.L2)
    def test_an_attachment_is_what_is_in_the_namespace(self, site: Site) -> None:
        """L1: name, MAC, addresses and MTU are as reported, and everything is up."""
        container = site.container()
        endpoint, attachment = container.attach(site.network())
        link = container.interface(attachment.interface or "")
        assert "UP" in link["flags"]
        assert link["address"] == attachment.mac
        assert link["mtu"] == attachment.mtu
        found = {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global"}
        assert found == set(attachment.addresses)
        assert set(endpoint.addresses) <= found
        links = {"-4": "0.0.0.0", "-6": "::"}
        routes = {r.get("gateway", links[f]) for f in links for r in container.ip(f, "route", "show", "default")}
        assert routes == set(attachment.gateways)

    @requires(Has.L2)
    def test_the_wanted_interface_name_is_given(self, site: Site) -> None:
        """L6: of up to 15 characters, as interfaces can have."""
        container = site.container()
        _, attachment = container.attach(site.network(), interface="a-name.of_15xyz")
        assert attachment.interface == "a-name.of_15xyz"
        assert container.interface("a-name.of_15xyz")["address"] == attachment.mac

    @requires(Has.L2, Has.MAC)
    def test_the_wanted_mac_is_given(self, site: Site) -> None:
        """L6: and reported."""
        container = site.container()
        _, attachment = container.attach(site.network(), mac="02:42:0a:58:99:99")
        assert attachment.mac == "02:42:0a:58:99:99"
        assert container.interface(attachment.interface or "")["address"] == "02:42:0a:58:99:99"

    @requires(Has.L2)
    def test_an_endpoint_is_attached_once(self, site: Site) -> None:
        """A second time is a conflict, and the first keeps working."""
        network = site.network()
        container, endpoint = site.joined(network)
        other, _ = site.joined(network)
        with pytest.raises(Conflict):
            site.driver.attach(network=network, endpoint=endpoint, netns=container.netns)
        assert talk(other.netns, container.listen(), plain(endpoint))

    @requires(Has.L2)
    def test_detaching_twice_succeeds_and_the_endpoint_can_be_attached_again(self, site: Site) -> None:
        """L4: with the same addresses, which its neighbour reaches at once."""
        network = site.network()
        container, endpoint = site.joined(network)
        other, _ = site.joined(network)
        server = container.listen()
        assert talk(other.netns, server, plain(endpoint))
        for _ in range(2):
            site.driver.detach(network=network, endpoint=endpoint)
        assert [link["ifname"] for link in container.ip("link") if link["ifname"].startswith("eth")] == []
        site.driver.attach(network=network, endpoint=endpoint, netns=container.netns)
        assert talk(other.netns, server, plain(endpoint))

    @requires(Has.L2)
    def test_detaching_after_the_namespace_is_gone_cleans_up(self, site: Site) -> None:
        """L5: published ports and all."""
        network = site.network()
        before = site.census()
        container, endpoint = site.joined(network)
        if site.has(Has.PUBLISH):
            site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
        container.close()
        site.driver.detach(network=network, endpoint=endpoint)
        assert site.census() == before
        assert site.driver.owned().endpoints == frozenset()

    @requires(Has.L2)
    def test_owned_is_exactly_what_is_there(self, site: Site) -> None:
        """Full ids, read from the host by an instance that made none of it."""
        networks = [site.network() for _ in range(2)]
        ends = [site.joined(network)[1] for network in networks for _ in range(2)]
        wanted = Owned(networks=frozenset(n.id for n in networks), endpoints=frozenset(e.id for e in ends))
        assert site.open().owned() == wanted
        site.driver.detach(network=networks[0], endpoint=ends[0])
        assert site.driver.owned().endpoints == wanted.endpoints - {ends[0].id}
        site.driver.detach(network=networks[0], endpoint=ends[1])
        site.driver.delete_network(network=networks[0])
        assert site.driver.owned() == Owned(
            networks=frozenset({networks[1].id}), endpoints=frozenset({ends[2].id, ends[3].id})
        )

    @requires(Has.L2)
    def test_what_has_no_record_is_removed_by_its_id_alone(self, site: Site) -> None:
        """Core has nothing else when it finds an orphan."""
        before = site.census()
        network = site.network()
        site.joined(network)
        driver = site.open()
        owned = driver.owned()
        for identity in owned.endpoints:
            driver.detach(network=Network(id="", name=""), endpoint=Endpoint(id=identity, container=""))
        for identity in owned.networks:
            driver.delete_network(network=Network(id=identity, name=""))
        assert driver.owned() == Owned()
        assert site.census() == before

    @requires(Has.L2)
    def test_another_instance_goes_on_where_the_first_stopped(self, site: Site) -> None:
        """L8: an engine restarts; connections lose no byte, and what was attached can be detached."""
        network = site.network()
        container, endpoint = site.joined(network)
        other, _ = site.joined(network)
        server = container.listen(TCP, 80)
        with ExitStack() as streams:
            inner = streams.enter_context(Stream(other.netns, server, plain(endpoint)))
            if site.has(Has.PUBLISH):
                site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
                streams.enter_context(Stream(site.neighbour, server, HOST, 8080))
            site.driver.close()
            driver = site.open()
            driver.recover()
            driver.create_network(network=network)
            assert driver.check(network=network, endpoints=(endpoint,)) == []
            inner.goes_on()
        driver.detach(network=network, endpoint=endpoint)
        assert endpoint.id not in driver.owned().endpoints

    @requires(Has.L2, Has.HOT_PLUG)
    def test_a_running_container_joins_and_leaves_networks_and_its_connections_survive(self, site: Site) -> None:
        """L7: what it has on the first network, by a published port too, loses no byte by the second."""
        one, two = site.network(), site.network()
        container, first = site.joined(one)
        sibling, _ = site.joined(one)
        stranger, _ = site.joined(two)
        server = container.listen(TCP, 80)
        with ExitStack() as stack:
            streams = [stack.enter_context(Stream(sibling.netns, server, plain(first)))]
            if site.has(Has.PUBLISH):
                site.driver.publish(network=one, endpoint=first, ports=(Port(container=80, host=8080),))
                streams.append(stack.enter_context(Stream(site.neighbour, server, HOST, 8080)))
            second, _ = container.attach(two, leads_out=False)
            assert talk(stranger.netns, server, plain(second))
            for stream in streams:
                stream.goes_on()
            site.driver.detach(network=two, endpoint=second)
            for stream in streams:
                stream.goes_on()
        assert unreachable(stranger.netns, server, plain(second))
