"""Freezing and killing."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from transom.contract.limits import Resources
from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.site import (
    BOMB,
    COUNT,
    PATIENCE,
    SLEEP,
    Groups,
    Has,
    alive,
    left,
    nest,
    requires,
    until,
)


class Ending(LimitsCases):
    """Freezing and killing."""

    @requires(Has.FREEZE)
    def test_a_frozen_group_stands_still_until_it_is_thawed(self, groups: Groups) -> None:
        counter = groups.world.path / "counter"
        counter.write_bytes(bytes(8))
        group = groups.make()
        group.start(COUNT, counter)
        for _ in range(3):
            groups.driver.freeze(id=group.id)
            groups.driver.freeze(id=group.id)
            stopped = counter.read_bytes()
            time.sleep(0.15)
            assert counter.read_bytes() == stopped
            groups.driver.thaw(id=group.id)
            groups.driver.thaw(id=group.id)
            assert until(partial(lambda before: counter.read_bytes() != before, stopped))

    @requires(Has.FREEZE)
    def test_a_frozen_group_can_be_killed_and_removed(self, groups: Groups) -> None:
        group = groups.make()
        program = group.start(SLEEP)
        groups.driver.freeze(id=group.id)
        groups.driver.kill(id=group.id)
        assert groups.driver.processes(id=group.id) == ()
        groups.driver.remove(id=group.id)
        assert program.wait(PATIENCE) == -9
        assert groups.owned() == set()

    @requires(Has.PIDS)
    def test_a_tree_that_forks_as_it_dies_is_killed_to_the_last(self, groups: Groups) -> None:
        group = groups.make(Resources(pids=150))
        program = group.start(BOMB)
        assert until(lambda: len(groups.driver.processes(id=group.id)) > 100)
        seen = groups.driver.processes(id=group.id)
        groups.driver.kill(id=group.id)
        assert groups.driver.processes(id=group.id) == ()
        assert not any(map(alive, seen))
        assert program.wait(PATIENCE) == -9

    def test_processes_in_nested_groups_are_seen_and_killed_and_the_nests_removed(self, groups: Groups) -> None:
        group = groups.make()
        program = group.start(SLEEP)
        for file in nest(group):
            Path(os.path.dirname(file), "deeper").mkdir()
            Path(file).write_text(str(program.pid))
        assert groups.driver.processes(id=group.id) == (program.pid,)
        groups.driver.kill(id=group.id)
        assert program.wait(PATIENCE) == -9
        groups.driver.remove(id=group.id)
        assert left(groups.prefix) == []

    def test_kill_reaches_one_group_only(self, groups: Groups) -> None:
        one, other = groups.make(), groups.make()
        first, second = one.start(SLEEP), other.start(SLEEP)
        groups.driver.kill(id=one.id)
        assert first.wait(PATIENCE) == -9
        assert second.poll() is None

    @requires(Has.FREEZE)
    def test_what_is_nested_in_a_frozen_group_stands_still_too(self, groups: Groups) -> None:
        counter = groups.world.path / "counter"
        counter.write_bytes(bytes(8))
        group = groups.make()
        group.start(COUNT, counter, join=nest(group))
        groups.driver.freeze(id=group.id)
        stopped = counter.read_bytes()
        time.sleep(0.2)
        assert counter.read_bytes() == stopped
        groups.driver.thaw(id=group.id)
        assert until(lambda: counter.read_bytes() != stopped)
