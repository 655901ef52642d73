"""Many at once, and death at any time."""

from __future__ import annotations

import errno
import gc
import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest

from transom.contract.network import Endpoint, Owned, Port
from transom.services.netns import create
from transom_conformance.faults import failed_at, killed_before, needs_strace, sample, system_calls
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import HOST, TCP, Has, Site, eventually, plain, requires, talk, together
from transom_conformance.suite import in_child

Work = Callable[[Endpoint], object]
_SLACK = 2 << 20
"""Bytes that an allocator may take more between two looks."""
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
    """Many at once, and death at any time.

    Attributes:
        faults: before how many of its system calls the life of an endpoint is cut off; half as many of each operation
            fail. A large number takes all of them.
        cycles: how often a container joins and leaves a network.
        many: how many endpoints there are when the last one is measured; the subnets of the suite have room for 200.
    """

    faults: ClassVar[int] = 16
    cycles: ClassVar[int] = 100
    many: ClassVar[int] = 100

    # Many at once, and death at any time

    @requires(Has.L2)
    def test_a_hundred_processes_attach_at_once_and_all_are_reached(self, site: Site) -> None:
        """S1: no address, MAC or interface twice; the network is made by whoever comes first."""
        network = site.describe()
        containers = [(site.container(), site.endpoint(network)) for _ in range(100)]

        def work(worker: int) -> None:
            container, endpoint = containers[worker]
            driver = site.open()
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=endpoint, netns=container.netns)

        assert together(work, 100) == [0] * 100
        ends = tuple(endpoint for _, endpoint in containers)
        assert site.driver.owned().endpoints == {endpoint.id for endpoint in ends}
        assert len({plain(endpoint) for endpoint in ends}) == 100
        macs = {container.interface("eth0")["address"] for container, _ in containers}
        assert len(macs) == (100 if site.has(Has.MAC) else 1)
        assert site.driver.check(network=network, endpoints=ends) == []
        first, _ = containers[0]
        for container, endpoint in containers[1::9]:
            assert talk(first.netns, container.listen(), plain(endpoint))

        def leave(worker: int) -> None:
            site.open().detach(network=network, endpoint=ends[worker])

        assert together(leave, 100) == [0] * 100
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

        for kill in kills(partial(life, site.endpoint(network)), most=self.faults):
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
        """Z2: what fails leaves nothing on the host nor in the namespace; a removal that failed can be repeated."""
        if reason := needs_strace():
            pytest.skip(reason)
        network, container = site.describe(), site.container()

        def spoil(prepare: Work, operation: Work, finish: Work, *, undone: bool = False) -> None:
            """Fail the operation at each of its calls, between what comes before and what comes after it."""
            before, first = site.census(), site.endpoint(network)
            prepare(first)
            # The case itself enters the host by setns(2) first.
            calls = [c for c in system_calls(partial(operation, first)) if c.name in TELLING - {"setns"}]
            finish(first)
            for call in sample(calls, self.faults // 2):
                endpoint = site.endpoint(network)
                prepare(endpoint)
                ready = site.census()
                outcome = failed_at(partial(operation, endpoint), call, errno.ENOMEM)
                if outcome.error:
                    assert outcome.in_words, f"{call.text}: {outcome.error}"
                    if undone:
                        assert site.census() == ready, f"{operation.__name__}: {call.text}"
                        assert [link["ifname"] for link in container.ip("link")] == ["lo"], call.text
                finish(endpoint)
                assert site.census() == before, f"{operation.__name__}: {call.text}"

        def record(_: Endpoint) -> None:
            site.settle(network)

        def create(endpoint: Endpoint) -> None:
            site.settle(network, endpoint)
            site.open().create_network(network=network)

        def delete(_: Endpoint) -> None:
            site.open().delete_network(network=network)

        def attach(endpoint: Endpoint) -> None:
            site.open().attach(network=network, endpoint=endpoint, netns=container.netns)

        def publish(endpoint: Endpoint) -> None:
            site.open().publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))

        def detach(endpoint: Endpoint) -> None:
            site.open().detach(network=network, endpoint=endpoint)

        def make(_: Endpoint) -> None:
            site.open().create_network(network=network)

        def nothing(_: Endpoint) -> None:
            pass

        spoil(record, make, delete, undone=True)
        spoil(create, delete, delete)
        site.settle(network)
        site.driver.create_network(network=network)
        spoil(nothing, attach, detach, undone=True)
        spoil(attach, detach, detach)
        if site.has(Has.PUBLISH):
            other = site.joined(network)[1]
            spoil(
                nothing,
                lambda _: publish(other),
                lambda _: site.driver.unpublish(network=network, endpoint=other),
                undone=True,
            )

    @requires(Has.L2)
    def test_what_a_killed_engine_attached_goes_away_by_itself(self, site: Site) -> None:
        """Z4: of a container that was not started nothing is in the host's namespace, and nobody recovers anything."""
        network = site.network()
        before, endpoint = site.census(), site.endpoint(network)

        def attach_and_die() -> None:
            site.open().attach(network=network, endpoint=endpoint, netns=create())
            os.kill(os.getpid(), signal.SIGKILL)

        assert in_child(attach_and_die) == -signal.SIGKILL
        eventually(lambda: site.driver.owned().endpoints == frozenset(), "the endpoint is still there")
        eventually(lambda: site.census() == before, "something of it is on the host")

    @requires(Has.L2)
    def test_after_a_reboot_everything_is_made_again_where_it_was(self, site: Site) -> None:
        """Z5: the kernel has forgotten all of it; addresses and ports can be given back, and are had again."""
        before = site.census()
        network = site.network()
        ends = [site.joined(network)[1] for _ in range(2)]
        ports = (Port(container=80, host=8080),)
        for _ in range(2):
            if site.has(Has.PUBLISH):
                site.driver.publish(network=network, endpoint=ends[0], ports=ports)
            site.reboot()
            eventually(lambda: site.driver.owned() == Owned(), "endpoints outlive their namespaces")
            site.driver = site.open()
            site.driver.recover()
            assert site.driver.recover() == []
            assert site.driver.owned() == Owned()
            assert site.census() == before
            for endpoint in ends:
                site.driver.detach(network=network, endpoint=endpoint)
                if site.has(Has.ADDRESSES):
                    site.driver.release(network=network, endpoint=endpoint)
            site.settle(network, *ends)
            site.driver.create_network(network=network)
            (server, client) = (site.container(), site.container())
            for container, endpoint in zip((server, client), ends, strict=True):
                container.join(network, endpoint)
            with server.listen(TCP, 80) as listening:
                assert talk(client.netns, listening, plain(ends[0]))
                if site.has(Has.PUBLISH):
                    site.driver.publish(network=network, endpoint=ends[0], ports=ports)
                    assert talk(site.neighbour, listening, HOST, 8080)
            assert site.driver.check(network=network, endpoints=tuple(ends)) == []

    @requires(Has.L2)
    def test_a_network_and_ten_endpoints_come_and_go_without_a_trace(self, site: Site) -> None:
        """Z1: with their ports."""
        before = site.census()
        network = site.network()
        ends = [site.joined(network)[1] for _ in range(10)]
        for endpoint in ends:
            if site.has(Has.PUBLISH):
                site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80),))
        for endpoint in ends:
            site.driver.detach(network=network, endpoint=endpoint)
        site.driver.delete_network(network=network)
        assert site.census() == before

    @requires(Has.L2)
    def test_a_container_connects_and_disconnects_and_nothing_adds_up(self, site: Site) -> None:
        """Z6: `cycles` times; descriptors, threads, memory, and all that the host's census sees."""
        network, container = site.network(), site.container()
        endpoint = site.endpoint(network)

        def turn() -> None:
            container.join(network, endpoint, leads_out=False)
            if site.has(Has.PUBLISH):
                site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80),))
            site.driver.detach(network=network, endpoint=endpoint)

        for _ in range(self.cycles // 4):
            turn()
        gc.collect()
        before, descriptors, threads, memory = site.census(), count("fd"), count("task"), resident()
        for _ in range(self.cycles - self.cycles // 4):
            turn()
        gc.collect()
        assert site.census() == before
        assert count("fd") == descriptors
        eventually(lambda: count("task") <= threads, "threads are left")  # one that ended is seen for a moment
        assert resident() - memory < _SLACK, f"{resident() - memory} bytes more than after {self.cycles // 4} cycles"

    @requires(Has.L2)
    def test_the_last_endpoint_costs_what_the_first_did(self, site: Site) -> None:
        """S5: what attaching, publishing and detaching takes of the processor does not grow with what is there."""
        network = site.network()

        def cost() -> float:
            return min(taken() for _ in range(12))

        def taken() -> float:
            container = site.container()
            endpoint = site.endpoint(network)
            start = time.process_time()
            container.join(network, endpoint)
            if site.has(Has.PUBLISH):
                site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80),))
            site.driver.detach(network=network, endpoint=endpoint)
            spent = time.process_time() - start
            container.close()
            return spent

        def fill(number: int) -> None:
            for _ in range(number):
                _, endpoint = site.joined(network)
                if site.has(Has.PUBLISH):
                    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80),))

        fill(10)
        few = cost()
        if not few:
            pytest.skip("the kernel counts a process's time in ticks (CONFIG_VIRT_CPU_ACCOUNTING_GEN is missing)")
        fill(self.many - 10)
        many = cost()
        for container in site.containers:
            container.close()  # the kernel takes all away at once, which is quicker than one by one
        assert many < 2 * few, f"with 10 endpoints {1000 * few:.1f} ms, with {self.many} {1000 * many:.1f} ms"


def count(what: str) -> int:
    """Count the descriptors ("fd") or threads ("task") of this process (proc(5))."""
    return len(os.listdir(f"/proc/self/{what}"))


def resident() -> int:
    """Return how much memory of this process is in use, in bytes (proc_pid_statm(5))."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
