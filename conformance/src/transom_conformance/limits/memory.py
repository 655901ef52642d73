"""Memory: who dies, who waits, and what is told of it."""

from __future__ import annotations

import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from transom.contract.limits import LimitEvent, Resources
from transom.errors import ConfigError
from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.site import (
    FORKS,
    HOLD,
    MB,
    PATIENCE,
    READS,
    SLEEP,
    Group,
    Groups,
    Has,
    events,
    line,
    loop_device,
    memory,
    nest,
    requires,
    say,
    swap_space,
)


class Memory(LimitsCases):
    """Memory: who dies, who waits, and what is told of it."""

    @requires(Has.MEMORY)
    def test_a_process_over_its_memory_dies_and_only_it(self, groups: Groups) -> None:
        limited, neighbour = groups.make(memory(64)), groups.make()
        small, outside = limited.start(SLEEP), neighbour.start(HOLD, 100 * MB)
        assert limited.run(HOLD, 200 * MB).wait(PATIENCE) == -9
        assert small.poll() is None
        assert outside.poll() is None
        assert groups.driver.stats(id=limited.id).memory_max <= 64 * MB

    @requires(Has.MEMORY)
    def test_a_process_within_its_memory_lives(self, groups: Groups) -> None:
        program = groups.make(memory(64)).start(HOLD, 40 * MB)
        time.sleep(0.1)
        assert program.poll() is None

    @requires(Has.MEMORY, Has.OOM_EVENTS)
    def test_each_kill_for_want_of_memory_is_reported_and_counted(self, groups: Groups) -> None:
        group = groups.make(memory(64))
        watch = groups.driver.watch(id=group.id)
        try:
            assert watch.read() == ()
            for count in (1, 2):
                group.run(HOLD, 200 * MB).wait(PATIENCE)
                assert events(watch) == (LimitEvent.OOM,)
                assert groups.driver.stats(id=group.id).oom_kills == count
            until = time.monotonic() + PATIENCE
            while select.select([watch], [], [], 0.2)[0]:  # cgroup v2 tells of other things with it, and later
                assert watch.read() == ()
                assert time.monotonic() < until, "the watch has news for ever, and none to tell"
        finally:
            watch.close()
            watch.close()

    @requires(Has.OOM_EVENTS)
    def test_neither_an_ordinary_kill_nor_removal_is_an_event(self, groups: Groups) -> None:
        group = groups.make()
        watch = groups.driver.watch(id=group.id)
        group.start(SLEEP)
        groups.driver.kill(id=group.id)
        assert watch.read() == ()
        groups.driver.remove(id=group.id)
        assert events(watch, seconds=0.3) == ()
        watch.close()

    @requires(Has.MEMORY, Has.OOM_DISABLE)
    def test_with_kills_disabled_a_process_waits_until_memory_is_granted(self, groups: Groups) -> None:
        group = groups.make(memory(32, oom_kill_disable=True))
        program = group.run(HOLD, 100 * MB)
        time.sleep(0.5)
        assert program.poll() is None
        assert program.stdout
        assert select.select([program.stdout], [], [], 0)[0] == []
        groups.driver.update(id=group.id, resources=memory(256))
        assert line(program) == "held"

    @requires(Has.MEMORY, Has.OOM_DISABLE)
    def test_a_process_that_waits_for_memory_can_be_killed(self, groups: Groups) -> None:
        group = groups.make(memory(32, oom_kill_disable=True))
        program = group.run(HOLD, 100 * MB)
        time.sleep(0.3)
        groups.driver.kill(id=group.id)
        assert program.wait(PATIENCE) == -9

    @requires(Has.MEMORY, Has.SWAP, Has.SWAPPINESS)
    def test_swappiness_decides_whether_memory_is_swapped_while_there_is_cache_to_drop(self, groups: Groups) -> None:
        swap_space(groups.world)
        data = loop_device(groups.world, "data", megabytes=48)
        swapped = {}
        for swappiness in (0, 100):
            subprocess.run(["blockdev", "--flushbufs", data], check=True)  # cache counts for who reads it first
            resources = Resources(memory=40 * MB, memory_swap=104 * MB, memory_swappiness=swappiness)
            program = groups.make(resources).start(READS, data, 20 * MB)
            swapped[swappiness] = max(int(say(program, "")) for _ in range(4))
        assert swapped[0] == 0
        assert swapped[100] > 0

    @requires(Has.RESERVATION)
    def test_who_is_below_its_reservation_is_spared_when_memory_is_short(self, groups: Groups) -> None:
        """What is around the groups' parent is made short of memory; whose cache is dropped then is measured."""
        driver = with_own_parent(groups)
        spared, other = (groups.make(r, driver) for r in (Resources(memory_reservation=64 * MB), Resources()))
        for inner in parents_of(spared):
            groups.world.defer(inner.parent.rmdir)
            groups.world.defer(inner.rmdir)
        around = parent_with(spared, "memory.max").parent
        for number, group in enumerate((spared, other)):
            say(group.start(READS, loop_device(groups.world, f"data{number}"), 0), "")
        before = [driver.stats(id=group.id).memory for group in (spared, other)]
        assert min(before) >= 32 * MB
        (around / "memory.max").write_text(str(sum(before) + 32 * MB))
        groups.make(Resources(), driver).start(HOLD, 56 * MB)
        lost = [b - driver.stats(id=g.id).memory for b, g in zip(before, (spared, other), strict=True)]
        assert lost[0] <= 4 * MB
        assert lost[1] >= 16 * MB

    @requires(Has.MEMORY, Has.PIDS)
    def test_a_nested_group_does_not_escape_the_limits_of_the_one_around_it(self, groups: Groups) -> None:
        group = groups.make(memory(64, pids=10))
        nested = nest(group)
        assert group.run(HOLD, 200 * MB, join=nested).wait(PATIENCE) == -9
        assert line(group.run(FORKS, join=nested)) == "9"
        assert groups.driver.stats(id=group.id).oom_kills == 1


def with_own_parent(groups: Groups) -> Any:
    """Open the driver with a parent that no other case has."""
    try:
        return groups.world.open(parent=f"around-{os.getpid()}/inner")
    except ConfigError:
        pytest.skip("the driver has no option parent: its groups cannot be made short of memory alone")


def parents_of(group: Group) -> list[Path]:
    """Return the group around one in each hierarchy."""
    return [Path(join).parent.parent for join in group.join]


def parent_with(group: Group, file: str) -> Path:
    """Return the group around one in the hierarchy that has such a control file."""
    found = [parent for parent in parents_of(group) if (parent / file).exists()]
    if not found:
        pytest.skip("a soft limit of cgroup v1 acts when the whole host is short of memory, which no case brings about")
    return found[0]
