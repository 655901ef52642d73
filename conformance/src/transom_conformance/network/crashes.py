"""Many at once, and death at any time."""

from __future__ import annotations

import random
import signal
import time
from functools import partial

from transom.contract.network import Endpoint, Network, Owned, Port
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import HOST, Has, Site, plain, requires, talk, together
from transom_conformance.suite import in_child


class Crashes(NetworkCases):
    """Many at once, and death at any time."""

    # Many at once, and death at any time

    @requires(Has.L2)
    def test_sixteen_processes_attach_at_once_and_all_are_reached(self, site: Site) -> None:
        """S1: no address, MAC or interface twice; the network is made by whoever comes first."""
        network = site.describe()
        containers = [(site.container(), site.endpoint(network)) for _ in range(16)]

        def work(worker: int) -> None:
            container, endpoint = containers[worker]
            driver = site.open()
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=endpoint, netns=container.netns)

        assert together(work, 16) == [0] * 16
        assert site.driver.owned().endpoints == {endpoint.id for _, endpoint in containers}
        macs = {container.interface("eth0")["address"] for container, _ in containers}
        assert len(macs) == (16 if site.has(Has.MAC) else 1)
        first, _ = containers[0]
        for container, endpoint in containers[1:]:
            assert talk(first.netns, container.listen(), plain(endpoint))

        def leave(worker: int) -> None:
            site.open().detach(network=network, endpoint=containers[worker][1])

        assert together(leave, 16) == [0] * 16
        assert site.driver.owned().endpoints == frozenset()

    @requires(Has.PUBLISH)
    def test_of_eight_processes_that_want_a_port_one_gets_it(self, site: Site) -> None:
        """S2: the others get a conflict, also those that want it at one address only."""
        network = site.network()
        ends = [site.joined(network)[1] for _ in range(8)]

        def work(worker: int) -> None:
            ports = (Port(container=80, host=8080, address=("", HOST, "127.0.0.1")[worker % 3]),)
            site.open().publish(network=network, endpoint=ends[worker], ports=ports)

        for _ in range(6):
            codes = together(work, 8)
            assert set(codes) == {0, 2}
            winners = [worker for worker, code in enumerate(codes) if code == 0]
            assert len(winners) == 1 or not {worker % 3 for worker in winners} & {0}
            assert len({worker % 3 for worker in winners}) == len(winners)
            for worker in winners:
                site.driver.unpublish(network=network, endpoint=ends[worker])

    @requires(Has.L2)
    def test_killed_at_any_point_nothing_is_left_and_everything_goes_on(self, site: Site) -> None:
        """Z3: create, attach, publish, detach and delete are each cut off by SIGKILL somewhere."""
        before = site.census()
        chance = random.Random(4)
        container = site.container()

        def life(network: Network, endpoint: Endpoint, netns: int) -> None:
            driver = site.open()
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=endpoint, netns=netns)
            if site.has(Has.PUBLISH):
                driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
            driver.detach(network=network, endpoint=endpoint)
            driver.delete_network(network=network)

        network = site.describe()
        start = time.monotonic()
        assert in_child(partial(life, network, site.endpoint(network), container.netns)) == 0
        whole = time.monotonic() - start
        for _ in range(20):
            endpoint = site.endpoint(network)
            code = in_child(
                partial(life, network, endpoint, container.netns), kill_after=chance.uniform(0.0, 1.1 * whole)
            )
            assert code in {0, -signal.SIGKILL}
            driver = site.open()
            driver.recover()
            assert driver.recover() == []
            owned = driver.owned()
            assert owned.networks <= {network.id}
            assert owned.endpoints <= {endpoint.id}
            driver.detach(network=network, endpoint=endpoint)
            driver.delete_network(network=network)
            assert driver.owned() == Owned()
            assert site.census() == before
            # The same network and endpoint work as if nothing had happened.
            site.settle(network, endpoint)
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=endpoint, netns=container.netns)
            other, _ = site.joined(network)
            assert talk(other.netns, container.listen(), plain(endpoint))
            site.sweep()
            assert site.census() == before

    @requires(Has.L2)
    def test_a_hundred_endpoints_come_and_go_and_nothing_adds_up(self, site: Site) -> None:
        """Z1, Z6: the world's census also watches descriptors and threads."""
        network = site.network()
        before = site.census()
        for _ in range(10):
            containers = [site.joined(network) for _ in range(10)]
            for container, endpoint in containers:
                if site.has(Has.PUBLISH):
                    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80),))
                site.driver.detach(network=network, endpoint=endpoint)
                container.close()
        assert site.census() == before
