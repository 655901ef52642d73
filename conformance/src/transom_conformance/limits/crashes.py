"""Death at any moment, and many at once."""

from __future__ import annotations

import os
import random
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from transom.contract.limits import DeviceRule, Resources
from transom_conformance.faults import killed_before, needs_strace, sample, system_calls
from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.site import (
    CALLS,
    MB,
    OPENS,
    PATIENCE,
    SLEEP,
    Group,
    Groups,
    Has,
    die_at,
    enter,
    left,
    memory,
    requires,
    say,
    until,
)
from transom_conformance.suite import in_child


class Crashes(LimitsCases):
    """Death at any moment, and many at once."""

    def test_whatever_moment_a_creation_dies_at_removal_leaves_nothing(self, groups: Groups) -> None:
        for _ in range(30):
            id = groups.id()
            moment = random.uniform(0, 0.006)
            in_child(partial(create_forever, groups.driver, id), kill_after=moment)
            remove_after_crash(groups, id)

    def test_whatever_call_a_creation_dies_at_it_can_be_removed_or_repeated(self, groups: Groups) -> None:
        resources = memory(64, pids=20, cpu_shares=512, cpu_quota=50_000)
        for number in range(CALLS):
            removed, repeated = groups.id(), groups.id()
            ended = die_at(number, lambda id: groups.driver.create(id=id, resources=resources), removed)
            remove_after_crash(groups, removed)
            die_at(number, lambda id: groups.driver.create(id=id, resources=resources), repeated)
            group = Group(groups.world.open(), repeated, resources)
            groups.made.append(group)
            assert groups.owned() == {repeated}
            if number % 8 == 0:
                assert group.start(SLEEP).poll() is None
            group.end()
            if ended:
                return
        pytest.fail(f"creation does not end within {CALLS} calls")

    def test_whatever_call_a_removal_dies_at_it_can_be_repeated(self, groups: Groups) -> None:
        for number in range(CALLS):
            group = groups.make()
            ended = die_at(number, lambda id: groups.driver.remove(id=id), group.id)
            remove_after_crash(groups, group.id)
            if ended:
                return
        pytest.fail(f"removal does not end within {CALLS} calls")

    @requires(Has.MEMORY, Has.PIDS)
    def test_whatever_call_an_update_dies_at_recovery_leaves_all_of_it_or_nothing(self, groups: Groups) -> None:
        old, new = memory(64, pids=20, cpu_shares=512), memory(128, pids=40, cpu_shares=256)
        group = groups.make(old)
        for number in range(CALLS):
            groups.driver.update(id=group.id, resources=old)
            ended = die_at(number, lambda id: groups.driver.update(id=id, resources=new), group.id)
            driver: Any = groups.world.open()
            driver.recover()
            assert driver.recover() == []
            stats = driver.stats(id=group.id)
            assert (stats.memory_limit, stats.pids_limit) in {(64 * MB, 20), (128 * MB, 40)}
            if ended:
                assert stats.pids_limit == 40
                return
        pytest.fail(f"update does not end within {CALLS} calls")

    def test_whatever_call_a_kill_dies_at_recovery_or_the_next_one_finishes_it(self, groups: Groups) -> None:
        for number in range(CALLS):
            group = groups.make()
            program = group.start(SLEEP)
            ended = die_at(number, lambda id: groups.driver.kill(id=id), group.id)
            driver: Any = groups.world.open()
            driver.recover()
            assert driver.recover() == []
            if number % 2:  # nothing stays frozen: what was not killed yet goes on and can die by itself
                program.terminate()
            else:
                driver.kill(id=group.id)
            assert program.wait(PATIENCE) in {-9, -15}
            driver.remove(id=group.id)
            if ended:
                return
        pytest.fail(f"kill does not end within {CALLS} calls")

    def test_a_hundred_groups_are_made_changed_and_removed_by_eight_processes(self, groups: Groups) -> None:
        def work(number: int) -> None:
            driver: Any = groups.world.open()
            for turn in range(13):
                id = f"{groups.prefix}many-{number}-{turn}"
                files = driver.create(id=id, resources=Resources(pids=50, cpu_shares=512))
                pid = os.fork()
                if pid == 0:
                    enter(files)
                    time.sleep(600)
                    os._exit(0)
                assert not files or until(partial(lambda id, pid: driver.processes(id=id) == (pid,), id, pid))
                driver.update(id=id, resources=Resources(pids=51 + number, cpu_shares=256))
                if Has.PIDS in driver.capabilities:
                    assert driver.stats(id=id).pids_limit == 51 + number
                assert id in driver.owned()
                driver.kill(id=id)
                os.kill(pid, 9)
                os.waitpid(pid, 0)
                driver.remove(id=id)

        children = []
        for number in range(8):
            pid = os.fork()
            if pid == 0:
                os._exit(in_child(partial(work, number)) & 0xFF)
            children.append(pid)
        assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 8
        assert groups.owned() == set()
        assert left(groups.prefix) == []

    @requires(Has.MEMORY, Has.PIDS, Has.DEVICES)
    def test_whatever_system_call_an_update_dies_at_recovery_leaves_all_of_it_or_nothing(self, groups: Groups) -> None:
        if reason := needs_strace():
            pytest.skip(reason)
        null, full = (
            DeviceRule(True, "c", os.major(number), os.minor(number))
            for number in (os.stat(f"/dev/{name}").st_rdev for name in ("null", "full"))
        )
        old, new = memory(64, pids=20, devices=(null,)), memory(128, pids=40, devices=(null, full))
        group = groups.make(old)
        program = group.run(OPENS)

        def update() -> None:
            driver: Any = groups.world.open()
            driver.update(id=group.id, resources=new)

        calls = system_calls(update, touching=[groups.world.path / "run", *map(Path, map(os.path.dirname, group.join))])
        assert calls
        for call in sample(calls, 24):
            groups.driver.update(id=group.id, resources=old)
            killed_before(update, call)
            driver: Any = groups.world.open()
            driver.recover()
            stats = driver.stats(id=group.id)
            found = stats.memory_limit, stats.pids_limit, say(program, "/dev/full") == "opened"
            assert found in {(64 * MB, 20, False), (128 * MB, 40, True)}, call.text


def remove_after_crash(groups: Groups, id: str) -> None:
    """Do what the engine does with a group that it finds after a crash and does not want."""
    driver: Any = groups.world.open()
    driver.recover()
    assert driver.recover() == []
    assert groups.owned() <= {id}
    driver.kill(id=id)
    driver.remove(id=id)
    assert left(groups.prefix) == []


def create_forever(driver: Any, id: str) -> None:
    """Make and remove a group again and again."""
    while True:
        driver.create(id=id, resources=memory(64, pids=20, cpu_shares=512))
        driver.remove(id=id)
