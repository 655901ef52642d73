"""CPU time, CPUs and real-time processes."""

from __future__ import annotations

import os
import time

import pytest

from transom.contract.limits import Resources
from transom.errors import DriverError
from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.site import REALTIME, SPIN, Groups, Has, first_cpu, left, line, requires, tell


class Cpu(LimitsCases):
    """CPU time, CPUs and real-time processes."""

    @requires(Has.CPU_QUOTA)
    def test_half_a_cpu_is_half_a_cpu(self, groups: Groups) -> None:
        """Within 5 %, over the periods in which the group wanted more; a busy host may not even give it half."""
        group = groups.make()
        for cpus, seconds in ((0.5, 5.0), (0.2, 3.0), (0.1, 3.0), (0.05, 3.0), (0.02, 3.0)):
            quota = int(cpus * 100_000)
            groups.driver.update(id=group.id, resources=Resources(cpu_period=100_000, cpu_quota=quota))
            programs = [group.start(SPIN, seconds + 60) for _ in range(2)]
            for program in programs:
                tell(program)
            before = groups.driver.stats(id=group.id)
            time.sleep(seconds)
            after = groups.driver.stats(id=group.id)
            groups.driver.kill(id=group.id)
            used, elapsed = after.cpu - before.cpu, after.time - before.time
            held = after.cpu_throttled_periods - before.cpu_throttled_periods
            assert used <= 1.05 * cpus * elapsed + quota * 1000, f"{used / elapsed:.3f} of a CPU instead of {cpus}"
            assert used >= 0.95 * (held - 1) * quota * 1000, f"held {held} times after {used / 1e9:.3f} s in all"
            if held >= 0.95 * elapsed / 100_000_000:
                assert after.cpu_throttled - before.cpu_throttled > 0
                return
        pytest.fail(f"the group was not held back: {held} times in {elapsed / 1e9:.1f} s at {cpus} of a CPU")

    @requires(Has.CPU_SHARES)
    @pytest.mark.parametrize(("shares", "ratio"), [(512, 2.0), (None, 1.0)])
    def test_cpu_time_is_split_by_shares_when_groups_compete(
        self, groups: Groups, shares: int | None, ratio: float
    ) -> None:
        """1024 against 512 is 2 to 1, and against a group that asks for nothing 1 to 1, within 10 %."""
        pair = groups.make(Resources(cpu_shares=1024)), groups.make(Resources(cpu_shares=shares))
        ratios = []
        for group in pair:
            tell(group.start(SPIN, 600, first_cpu()))
        for _ in range(4):
            before = [groups.driver.stats(id=group.id).cpu for group in pair]
            time.sleep(2.5)
            more, less = (groups.driver.stats(id=group.id).cpu - b for group, b in zip(pair, before, strict=True))
            ratios.append(more / max(less, 1))
            if 0.9 * ratio <= ratios[-1] <= 1.1 * ratio:
                return
        pytest.fail(f"1024 against {shares} shares gave {', '.join(f'{r:.2f} to 1' for r in ratios)}")

    @requires(Has.CPUSET)
    def test_a_process_stays_on_its_cpus_even_when_it_asks_for_others(self, groups: Groups) -> None:
        cpu = max(os.sched_getaffinity(0))
        program = groups.make(Resources(cpuset_cpus=str(cpu), cpuset_mems="0")).run(
            """
import os
print(sorted(os.sched_getaffinity(0)))
try:
    os.sched_setaffinity(0, range(1024))
except OSError:
    pass
ran = set()
for _ in range(300):
    sum(range(10000))
    ran.add(int(open("/proc/self/stat").read().rpartition(")")[2].split()[36]))
print(sorted(ran))
"""
        )
        assert (line(program), line(program)) == (f"[{cpu}]", f"[{cpu}]")

    @requires(Has.CPUSET)
    def test_a_group_with_refused_cpus_is_not_left_behind(self, groups: Groups) -> None:
        id = groups.id()
        with pytest.raises(DriverError) as caught:
            groups.driver.create(id=id, resources=Resources(cpuset_cpus="1000"))
        assert "cpuset" in str(caught.value)
        assert id in str(caught.value)
        assert groups.owned() == set()
        assert left(groups.prefix) == []

    @requires(Has.CPU_REALTIME)
    def test_a_group_with_realtime_runtime_runs_realtime_processes(self, groups: Groups) -> None:
        code = "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)); print('fifo')"
        program = groups.make(Resources(cpu_rt_period=1_000_000, cpu_rt_runtime=50_000)).run(code)
        assert line(program) == "fifo"

    @requires(Has.CPU_REALTIME)
    def test_realtime_processes_get_no_more_than_their_runtime(self, groups: Groups) -> None:
        """50 ms each second, at most four times within 3 s."""
        group = groups.make(Resources(cpu_rt_period=1_000_000, cpu_rt_runtime=50_000))
        assert 0 < float(line(group.run(REALTIME, 3))) <= 0.08
