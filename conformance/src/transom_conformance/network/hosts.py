"""Several hosts: the neighbour is one too, with the driver opened by the suite's `second_host`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import msgspec
import pytest

from transom.contract.network import Endpoint, Network
from transom.errors import Conflict
from transom.services.interfaces import plain as address_of
from transom.services.netns import inside
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import (
    IMPATIENCE,
    LONG,
    TCP,
    UDP,
    Container,
    Has,
    Inside,
    Site,
    eventually,
    ip_batch,
    ip_json,
    plain,
    requires,
    talk,
)
from transom_conformance.suite import World

_ARP_REQUEST = bytes.fromhex("0806 0001 0800 06 04 0001")


class Hosts(NetworkCases):
    """Networks that span hosts.

    Attributes:
        second_host: options of the driver on the neighbour, where they differ from `options`.
    """

    second_host: ClassVar[dict[str, str]] = {}

    @pytest.fixture
    def second(self, site: Site) -> Iterator[Second]:
        """The driver on the neighbour; behind the case nothing of it may be left there."""
        if not self.second_host:
            pytest.skip("the suite has no second_host, the options of the driver there")
        second = Second(site, {**self.options, **self.second_host})
        yield second
        second.close()

    @requires(Has.MULTI_HOST, Has.L2)
    def test_endpoints_on_two_hosts_reach_each_other_and_nobody_is_asked_for_their_addresses(
        self, site: Site, second: Second
    ) -> None:
        """K10, K12: in both directions, and no ARP request crosses the network between the hosts."""
        network = site.network()
        one, first = site.joined(network)
        other, last = second.joined(network)
        with second.watching(site, network, first):
            frames = Frames(site)
            for start, end, address in ((other, one, plain(first)), (one, other, plain(last))):
                server = end.listen(TCP, 80)
                reached = f"{address} is not reached"
                eventually(lambda s=start, e=server, a=address: talks(s, e, a), reached)  # type: ignore[misc]
        asked = [f for f in frames.seen() if _ARP_REQUEST in f and socket.inet_aton(plain(last)) in f]
        assert not asked, "an ARP request for a known endpoint was flooded"

    @requires(Has.MULTI_HOST, Has.L2)
    def test_what_is_sent_to_an_endpoint_that_left_its_host_leaves_this_one_no_more(
        self, site: Site, second: Second
    ) -> None:
        """K12, L4: the entries of a forwarding table go with the endpoint."""
        network = site.network()
        one, first = site.joined(network)
        _, last = second.joined(network)
        marks = iter(b"mark %d of the suite" % number for number in range(1000))

        def crosses() -> bool:
            mark, frames = next(marks), Frames(site)
            with inside(one.netns, socket.socket, socket.AF_INET, UDP) as sock:
                sock.sendto(mark, (plain(last), 9))
            time.sleep(IMPATIENCE / 4)
            return any(mark in frame for frame in frames.seen())

        with second.watching(site, network, first):
            eventually(crosses, "nothing goes to the other host")
            second.leave(network, last)
            eventually(lambda: not crosses(), "what is sent to an endpoint that is gone goes to its host")

    @requires(Has.MULTI_HOST, Has.L2)
    def test_what_a_host_forgot_of_the_endpoints_on_another_is_reported_and_made_good(
        self, site: Site, second: Second
    ) -> None:
        """L9, L10: entries of forwarding and neighbour tables that were removed by hand."""
        before = {link["ifname"] for link in inside(site.host, ip_json, "link")}
        network = site.network()
        one, first = site.joined(network)
        other, last = second.joined(network)
        server = other.listen(TCP, 80)
        with second.watching(site, network, first):
            eventually(lambda: talks(one, server, plain(last)), "the other host is not reached")
        devices = {link["ifname"] for link in inside(site.host, ip_json, "link")} - before
        for forget in (forget_forwarding, forget_neighbours):
            if not sum(inside(site.host, forget, device) for device in devices):
                continue  # the driver does it otherwise
            assert site.driver.check(network=network, endpoints=(first,)), f"{forget.__name__} is not reported"
            site.driver.create_network(network=network)
            assert site.driver.check(network=network, endpoints=(first,)) == []
            eventually(lambda: talks(one, server, plain(last)), "the other host is not reached any more")

    @requires(Has.MULTI_HOST, Has.LOOKUP)
    def test_a_name_is_known_on_the_other_host_for_as_long_as_its_endpoint_is_there(
        self, site: Site, second: Second
    ) -> None:
        """D1, D6: and both addresses of a name that endpoints of two hosts share are known to a third."""
        network = site.network()
        _, first = site.joined(network)
        _, last = second.joined(network, names=("web", "alias"))
        with second.watching(site, network, first):
            for name in ("web", "alias"):
                found = lambda name=name: plain(last) in site.driver.lookup(network=network, name=name)  # noqa: E731
                eventually(found, f"{name} is not known")
            assert site.driver.lookup(network=network, name="nobody") == ()
            second.leave(network, last)
            eventually(lambda: site.driver.lookup(network=network, name="web") == (), "the name is still known")

    @requires(Has.MULTI_HOST, Has.ADDRESSES)
    def test_an_address_is_one_hosts_at_a_time(self, site: Site, second: Second) -> None:
        """A1, A3: asked for on both it is refused to the second, and given once the first has given it back."""
        network = site.network()
        _, first = site.joined(network)
        asked = Endpoint(id="e" * 64, container="c" * 64, addresses=first.addresses, static=True)
        with pytest.raises(Conflict):
            second.driver.allocate(network=network, endpoint=asked)
        site.driver.detach(network=network, endpoint=first)
        site.driver.release(network=network, endpoint=first)
        given = second.driver.allocate(network=network, endpoint=asked)
        assert [*map(address_of, given.addresses)] == [*map(address_of, first.addresses)]
        second.driver.release(network=network, endpoint=given)

    @requires(Has.MULTI_HOST, Has.ADDRESSES)
    def test_a_name_and_a_subnet_are_one_networks_on_both_hosts(self, site: Site, second: Second) -> None:
        """S2: whoever comes second hears of it, and the network that is there stays as it is."""
        network = site.network()
        for other in (
            Network(id="e" * 64, name=network.name, options=network.options),
            Network(id="e" * 64, name="another", options=network.options, subnets=network.subnets),
        ):
            with pytest.raises(Conflict, match=network.name):
                second.driver.settle(network=other)
        assert [known.id for known in second.driver.networks()] == [network.id]

    @requires(Has.MULTI_HOST, Has.L2)
    def test_a_network_is_listed_on_both_hosts_and_not_removed_in_use(self, site: Site, second: Second) -> None:
        """L3: the host that is in the way is named; both hosts say who is on the network."""
        network = site.network()
        assert network.id in {known.id for known in second.driver.networks()}
        _, last = second.joined(network)
        (name,) = second.driver.peers(network=network)
        with pytest.raises(Conflict, match=name):
            site.driver.delete_network(network=network)
        assert network.id in {known.id for known in site.driver.networks()}
        second.leave(network, last)
        site.driver.delete_network(network=network)
        assert network.id not in {known.id for known in second.driver.networks()}


class Second:
    """The driver on the neighbour, and what is on it there."""

    def __init__(self, site: Site, options: dict[str, str]) -> None:
        self.site, self._left = site, list[tuple[Network, Endpoint]]()
        path = site.world.path / "second"
        path.mkdir()
        self._world = World(path=path, kind="network", driver=site.suite.driver, options=options)
        self.driver = Inside(self._world.open(), site.neighbour)

    def joined(self, network: Network, **fields: Any) -> tuple[Container, Endpoint]:
        """Make a container on the network, there."""
        self.driver.create_network(network=network)
        endpoint = Endpoint(id=os.urandom(32).hex(), container=os.urandom(32).hex(), names=("other",))
        endpoint = msgspec.structs.replace(endpoint, **fields)
        self._left.append((network, endpoint))
        endpoint = self.driver.allocate(network=network, endpoint=endpoint)
        container = self.site.container()
        self.driver.attach(network=network, endpoint=endpoint, netns=container.netns)
        return container, endpoint

    def leave(self, network: Network, endpoint: Endpoint) -> None:
        """Take an endpoint off the network."""
        self.driver.detach(network=network, endpoint=endpoint)
        self.driver.release(network=network, endpoint=endpoint)

    def watching(self, site: Site, network: Network, endpoint: Endpoint) -> Watching:
        """Have the first host follow what happens here."""
        return Watching(site.driver, network, endpoint)

    def close(self) -> None:
        """Take everything away that is here."""
        for network, endpoint in self._left:
            self.leave(network, endpoint)
        for network in self.site.networks:
            for known, endpoint in self.site.endpoints:
                if known is network:
                    self.site.driver.detach(network=network, endpoint=endpoint)
            self.driver.delete_network(network=network)
        self._world.clean_up()


class Watching:
    """A thread in which the driver watches, as in a container's supervisor; a context."""

    def __init__(self, driver: Any, network: Network, endpoint: Endpoint) -> None:
        self._stop, self._signal = os.pipe()
        words = {"network": network, "endpoint": endpoint, "netns": -1, "stop": self._stop, "changed": print}
        self._thread = threading.Thread(target=driver.watch, kwargs=words, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        os.close(self._signal)
        self._thread.join(LONG)
        os.close(self._stop)


class Frames:
    """What crosses the network between the hosts from now on."""

    def __init__(self, site: Site) -> None:
        self._sock = inside(site.neighbour, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._sock.bind(("lan0", 0))
        site.world.defer(self._sock.close)

    def seen(self) -> list[bytes]:
        """Return the frames, and watch no more."""
        found = []
        with self._sock:
            while True:
                try:
                    found.append(self._sock.recv(2000, socket.MSG_DONTWAIT))
                except BlockingIOError:
                    return found


def forget_forwarding(device: str) -> int:
    """Remove what a device knows of MAC addresses on other hosts (bridge(8)); return how much that was."""
    shown = subprocess.run(["bridge", "--json", "fdb", "show", "dev", device], capture_output=True, check=True).stdout
    found = [entry for entry in json.loads(shown or "[]") if "dst" in entry]
    for entry in found:
        command = ["bridge", "fdb", "delete", entry["mac"], "dev", device, "dst", entry["dst"]]
        subprocess.run(command, capture_output=True, check=True)
    return len(found)


def forget_neighbours(device: str) -> int:
    """Remove what a device knows of IP addresses on other hosts (ip-neighbour(8)); return how much that was."""
    found = ip_json("neighbour", "show", "dev", device, "nud", "permanent")
    for entry in found:
        ip_batch(f"neighbour delete {entry['dst']} dev {device}")
    return len(found)


def talks(container: Container, server: socket.socket, address: str) -> bool:
    """Say whether a connection comes about."""
    try:
        talk(container.netns, server, address, patience=IMPATIENCE)
    except OSError:
        return False
    return True
