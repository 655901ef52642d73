"""Life cycle: made, joined, found again, gone; and what cannot act."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from transom.contract.limits import HugepageLimit, LimitsCapability, Resources, Throttle, Weight
from transom.errors import NotFound, NotSupported
from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.site import MB, PATIENCE, SLEEP, Groups, Has, first_cpu, left, until
from transom_conformance.suite import undeclared


class LifeCycle(LimitsCases):
    """Life cycle: made, joined, found again, gone; and what cannot act."""

    # Life cycle

    def test_a_new_group_is_empty_and_holds_whoever_joins_and_what_they_fork(self, groups: Groups) -> None:
        group = groups.make()
        assert groups.driver.processes(id=group.id) == ()
        program = group.start("import os, time; os.fork(); print('up', flush=True); time.sleep(600)")
        assert until(lambda: len(groups.driver.processes(id=group.id)) == 2)
        assert program.pid in groups.driver.processes(id=group.id)

    def test_groups_do_not_hold_each_others_processes(self, groups: Groups) -> None:
        one, other = groups.make(), groups.make()
        first, second = one.start(SLEEP), other.start(SLEEP)
        assert groups.driver.processes(id=one.id) == (first.pid,)
        assert groups.driver.processes(id=other.id) == (second.pid,)

    def test_removal_of_an_absent_group_succeeds_and_so_does_its_kill(self, groups: Groups) -> None:
        group = groups.make()
        for _ in range(3):
            groups.driver.kill(id=group.id)
            groups.driver.remove(id=group.id)
        assert groups.driver.processes(id=group.id) == ()

    def test_operations_on_an_absent_group_say_that_there_is_none(self, groups: Groups) -> None:
        absent, driver = groups.id(), groups.driver
        calls: list[Callable[[], object]] = [
            lambda: driver.stats(id=absent),
            lambda: driver.update(id=absent, resources=Resources()),
        ]
        if Has.OOM_EVENTS in driver.capabilities:
            calls.append(lambda: driver.watch(id=absent))
        if Has.FREEZE in driver.capabilities:
            calls += [lambda: driver.freeze(id=absent), lambda: driver.thaw(id=absent)]
        for call in calls:
            with pytest.raises(NotFound) as caught:
                call()
            assert absent in str(caught.value)
        assert left(groups.prefix) == []

    def test_creating_an_existing_group_keeps_its_processes_and_sets_its_limits(self, groups: Groups) -> None:
        group = groups.make(Resources(pids=20))
        program = group.start(SLEEP)
        again = groups.driver.create(id=group.id, resources=Resources(pids=30))
        assert again == group.join
        assert groups.driver.processes(id=group.id) == (program.pid,)
        if Has.PIDS in groups.driver.capabilities:
            assert groups.driver.stats(id=group.id).pids_limit == 30

    def test_limits_of_a_dead_container_do_not_outlive_its_next_start(self, groups: Groups) -> None:
        group = groups.make(Resources(pids=20, memory=64 * MB))
        groups.driver.create(id=group.id, resources=Resources())
        stats = groups.driver.stats(id=group.id)
        assert (stats.pids_limit, stats.memory_limit) == (None, None)

    def test_owned_is_exactly_what_exists(self, groups: Groups) -> None:
        made = [groups.make() for _ in range(3)]
        assert groups.owned() == {group.id for group in made}
        groups.driver.remove(id=made[1].id)
        assert groups.owned() == {made[0].id, made[2].id}
        groups.driver.update(id=made[0].id, resources=Resources())
        assert groups.owned() == {made[0].id, made[2].id}

    def test_another_instance_goes_on_where_the_first_stopped(self, groups: Groups) -> None:
        group = groups.make()
        program = group.start(SLEEP)
        other: Any = groups.world.open()
        assert other.recover() == []
        assert other.processes(id=group.id) == (program.pid,)
        other.kill(id=group.id)
        other.remove(id=group.id)
        assert groups.owned() == set()
        assert program.wait(PATIENCE) == -9

    def test_probing_and_describing_change_nothing(self, groups: Groups) -> None:
        before = groups.world.open().owned()
        assert groups.driver.probe().usable
        assert all(isinstance(v, str) for v in groups.driver.status().values())
        assert isinstance(groups.driver.runtime_path(id=groups.id()), str)
        assert {id for id in groups.driver.owned() - before if id.startswith(groups.prefix)} == set()

    # What cannot act

    def test_each_resource_that_cannot_act_is_named_with_a_reason(self, groups: Groups) -> None:
        assert groups.driver.unsupported_resources(resources=Resources()) == {}
        fields: dict[LimitsCapability, tuple[str, Any]] = {
            Has.MEMORY: ("memory", 64 * MB),
            Has.SWAP: ("memory_swap", 64 * MB),
            Has.RESERVATION: ("memory_reservation", 64 * MB),
            Has.SWAPPINESS: ("memory_swappiness", 10),
            Has.KERNEL_MEMORY: ("kernel_memory", 64 * MB),
            Has.OOM_DISABLE: ("oom_kill_disable", True),
            Has.CPU_SHARES: ("cpu_shares", 512),
            Has.CPU_QUOTA: ("cpu_quota", 50_000),
            Has.CPU_REALTIME: ("cpu_rt_runtime", 1000),
            Has.CPUSET: ("cpuset_cpus", str(first_cpu())),
            Has.PIDS: ("pids", 10),
            Has.IO_WEIGHT: ("blkio_weight", 500),
            Has.IO_MAX: ("device_read_bps", (Throttle("1:0", MB),)),
            Has.HUGETLB: ("hugepages", (HugepageLimit("2MB", 0),)),
            Has.DEVICES: ("devices", ()),
        }
        for capability, (field, value) in fields.items():
            named = groups.driver.unsupported_resources(resources=Resources(**{field: value}))
            assert set(named) == (set() if capability in groups.driver.capabilities else {field})
            assert all(reason and "\n" not in reason for reason in named.values())

    def test_asking_for_what_cannot_act_is_no_error(self, groups: Groups) -> None:
        everything = Resources(
            memory=64 * MB,
            memory_swap=64 * MB,
            memory_swappiness=10,
            kernel_memory=64 * MB,
            cpu_shares=512,
            pids=20,
            blkio_weight=500,
            blkio_weight_devices=(Weight("1:0", 500),),
        )
        unable = groups.driver.unsupported_resources(resources=everything)
        asked = {field: getattr(everything, field) for field in unable}
        group = groups.make(Resources(**asked))
        groups.driver.update(id=group.id, resources=Resources(**asked))

    def test_what_is_not_declared_raises_not_supported(self, groups: Groups) -> None:
        group = groups.make()
        operations: dict[Any, tuple[str, ...]] = {Has.OOM_EVENTS: ("watch",), Has.FREEZE: ("freeze", "thaw")}
        for capability in undeclared(groups.driver, LimitsCapability):
            for operation in operations.get(capability, ()):
                with pytest.raises(NotSupported):
                    getattr(groups.driver, operation)(id=group.id)
