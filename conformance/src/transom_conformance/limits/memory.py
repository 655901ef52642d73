"""Memory: who dies, who waits, and what is told of it."""

from __future__ import annotations

import select
import time

from transom.contract.limits import LimitEvent
from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.site import (
    FORKS,
    HOLD,
    MB,
    PATIENCE,
    SLEEP,
    Groups,
    Has,
    events,
    line,
    memory,
    nest,
    requires,
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
            assert watch.read() == ()
            assert select.select([watch], [], [], 0.2)[0] == []
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

    @requires(Has.MEMORY, Has.PIDS)
    def test_a_nested_group_does_not_escape_the_limits_of_the_one_around_it(self, groups: Groups) -> None:
        group = groups.make(memory(64, pids=10))
        nested = nest(group)
        assert group.run(HOLD, 200 * MB, join=nested).wait(PATIENCE) == -9
        assert line(group.run(FORKS, join=nested)) == "9"
        assert groups.driver.stats(id=group.id).oom_kills == 1
