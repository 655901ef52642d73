"""Many at once, and death at any time."""

from __future__ import annotations

import errno
import random
import signal
import time
from collections.abc import Callable
from functools import partial

import pytest

from transom.contract.network import Endpoint, Owned, Port
from transom_conformance.faults import failed_at, killed_before, needs_strace, sample, system_calls
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import HOST, Has, Site, plain, requires, talk, together
from transom_conformance.suite import in_child

TELLING = frozenset({"sendto", "setns", "write", "mkdir", "flock"})
"""The system calls by which a driver changes the network, but for those of programs that it starts."""


def kills(function: Callable[[], object], *, most: int) -> list[Callable[[Callable[[], object]], object]]:
    """Return ways to cut the function off: before system calls of its own where strace(1) is, else at some time."""
    if needs_strace():
        chance, start = random.Random(4), time.monotonic()
        assert in_child(function) == 0
        whole = time.monotonic() - start
        return [partial(_at_a_time, chance.uniform(0.0, 1.1 * whole)) for _ in range(most)]
    calls = [call for call in system_calls(function) if call.name in TELLING]
    return [partial(killed_before, call=call) for call in sample(calls, most)]


def _at_a_time(seconds: float, function: Callable[[], object]) -> None:
    assert in_child(function, kill_after=seconds) in {0, -signal.SIGKILL}


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
        """Z3: create, attach, publish, detach and delete are each cut off by SIGKILL, at system calls of theirs."""
        before = site.census()
        container, network = site.container(), site.describe()

        def life(endpoint: Endpoint) -> None:
            driver = site.open()
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=endpoint, netns=container.netns)
            if site.has(Has.PUBLISH):
                driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
            driver.detach(network=network, endpoint=endpoint)
            driver.delete_network(network=network)

        for kill in kills(partial(life, site.endpoint(network)), most=16):
            site.settle(network)
            endpoint = site.endpoint(network)
            kill(partial(life, endpoint))
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
    def test_an_error_at_any_system_call_is_said_in_words_and_undone(self, site: Site) -> None:
        """Z2: an attachment that fails leaves nothing on the host nor in the namespace."""
        if reason := needs_strace():
            pytest.skip(reason)
        network, container = site.network(), site.container()
        before = site.census()

        def attach(endpoint: Endpoint) -> None:
            site.open().attach(network=network, endpoint=endpoint, netns=container.netns)

        first = site.endpoint(network)
        # The case itself enters the host by setns(2) first.
        calls = [call for call in system_calls(partial(attach, first)) if call.name in TELLING - {"setns"}]
        site.driver.detach(network=network, endpoint=first)
        for call in sample(calls, 8):
            endpoint = site.endpoint(network)
            outcome = failed_at(partial(attach, endpoint), call, errno.ENOMEM)
            if outcome.error:
                assert outcome.in_words, f"{call.text}: {outcome.error}"
                assert site.census() == before, call.text
                assert [link["ifname"] for link in container.ip("link")] == ["lo"], call.text
            site.driver.detach(network=network, endpoint=endpoint)
            assert site.census() == before, call.text

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
