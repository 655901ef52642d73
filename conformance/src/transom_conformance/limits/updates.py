"""Updates and statistics."""

from __future__ import annotations

import time

import pytest

from transom.contract.limits import Resources
from transom.errors import DriverError
from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.site import (
    FORKS,
    HOLD,
    MB,
    PATIENCE,
    SPIN,
    Groups,
    Has,
    line,
    memory,
    requires,
    say,
    until,
)


class Updates(LimitsCases):
    """Updates and statistics."""

    # Update

    @requires(Has.MEMORY)
    def test_memory_is_raised_and_lowered_while_a_process_runs(self, groups: Groups) -> None:
        group = groups.make(memory(64))
        holder = group.start(HOLD, 30 * MB)
        groups.driver.update(id=group.id, resources=memory(256))
        assert group.start(HOLD, 120 * MB).poll() is None
        groups.driver.kill(id=group.id)
        assert holder.wait(PATIENCE) == -9
        groups.driver.update(id=group.id, resources=memory(48))
        assert groups.driver.stats(id=group.id).memory_limit == 48 * MB
        assert group.run(HOLD, 120 * MB).wait(PATIENCE) == -9

    @requires(Has.PIDS)
    def test_an_update_leaves_alone_what_it_does_not_name(self, groups: Groups) -> None:
        group = groups.make(Resources(pids=10))
        groups.driver.update(id=group.id, resources=Resources(cpu_shares=512))
        assert line(group.run(FORKS)) == "9"

    @requires(Has.MEMORY, Has.PIDS)
    def test_a_refused_update_changes_nothing(self, groups: Groups) -> None:
        group = groups.make(memory(128, pids=20))
        code = "import ctypes, time; ctypes.CDLL(None).mlockall(3); data = b'x' * 80000000; print('held', flush=True)"
        program = group.start(f"{code}; time.sleep(600)")
        with pytest.raises(DriverError) as caught:
            groups.driver.update(id=group.id, resources=memory(32, pids=10))
        text = str(caught.value)
        assert "memory" in text
        assert group.id in text
        assert "\n" not in text
        stats = groups.driver.stats(id=group.id)
        assert (stats.memory_limit, stats.pids_limit) == (128 * MB, 20)
        assert program.poll() is None
        assert line(group.run(FORKS)) == "18"

    # Statistics

    def test_statistics_agree_with_what_was_used(self, groups: Groups) -> None:
        group, before = groups.make(), time.time_ns()
        holder = group.start(HOLD, 50 * MB)
        spinner = group.start(SPIN, 0.3)
        start = groups.driver.stats(id=group.id)
        used = float(say(spinner, "go")) * 0.3e9
        end = groups.driver.stats(id=group.id)
        assert before < start.time < end.time <= time.time_ns()
        if end.cpu is not None:
            assert end.cpu - start.cpu >= 0.9 * used
            # The parts are counted in clock ticks, which a busy host spreads unevenly.
            assert (end.cpu_user or 0) + (end.cpu_system or 0) <= end.cpu * 1.5 + 50_000_000
        if end.memory is not None:
            assert 50 * MB <= end.memory <= 200 * MB
            assert end.memory_cache <= end.memory <= end.memory_max
        if end.pids is not None:
            assert end.pids >= 1
        groups.driver.kill(id=group.id)
        assert holder.wait(PATIENCE) == -9
        spinner.wait(PATIENCE)
        if end.pids is not None:
            assert until(lambda: groups.driver.stats(id=group.id).pids == 0)
