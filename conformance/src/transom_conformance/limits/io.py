"""Processes, devices and I/O."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transom.contract.limits import DeviceRule, HugepageLimit, Resources, Throttle
from transom_conformance.limits.cases import LimitsCases
from transom_conformance.limits.site import (
    BUFFERED,
    DIRECT,
    FORKS,
    HUGE,
    MB,
    OPENS,
    PATIENCE,
    WRITES,
    Groups,
    Has,
    line,
    loop_device,
    numbers_of,
    requires,
    say,
    tell,
    weighing_device,
)


class Io(LimitsCases):
    """Processes, devices and I/O."""

    # Pids

    @requires(Has.PIDS)
    def test_forks_stop_at_the_limit_and_the_host_goes_on(self, groups: Groups) -> None:
        group = groups.make(Resources(pids=10))
        program = group.run(FORKS)
        assert line(program) == "9"
        assert subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=False).returncode == 0
        assert groups.driver.stats(id=group.id).pids_limit == 10

    @requires(Has.PIDS)
    def test_a_limit_of_minus_one_is_none(self, groups: Groups) -> None:
        group = groups.make(Resources(pids=10))
        groups.driver.update(id=group.id, resources=Resources(pids=-1))
        assert groups.driver.stats(id=group.id).pids_limit is None
        assert line(group.run(FORKS)) == "200"

    # Devices and I/O

    @requires(Has.DEVICES)
    def test_a_device_that_is_not_on_the_list_cannot_be_opened(self, groups: Groups) -> None:
        null, full = (os.stat(f"/dev/{name}").st_rdev for name in ("null", "full"))
        allow = tuple(DeviceRule(True, "c", os.major(n), os.minor(n)) for n in (null, full))
        group = groups.make(Resources(devices=allow[:1]))
        program = group.run(OPENS)
        assert say(program, "/dev/null") == "opened"
        assert say(program, "/dev/full") == "Operation not permitted"
        groups.driver.update(id=group.id, resources=Resources(devices=allow))
        assert say(program, "/dev/full") == "opened"
        groups.driver.update(id=group.id, resources=Resources(devices=(*allow, DeviceRule(False, *_key(allow[1])))))
        assert say(program, "/dev/full") == "Operation not permitted"
        assert say(program, "/dev/null") == "opened"

    @requires(Has.DEVICES)
    def test_without_a_list_all_devices_are_allowed(self, groups: Groups) -> None:
        assert say(groups.make().run(OPENS), "/dev/full") == "opened"

    @requires(Has.DEVICES)
    def test_an_empty_list_allows_no_device(self, groups: Groups) -> None:
        assert say(groups.make(Resources(devices=())).run(OPENS), "/dev/null") == "Operation not permitted"

    @requires(Has.IO_MAX)
    @pytest.mark.parametrize("named", ["by path", "by numbers"])
    def test_direct_writes_keep_to_their_rate(self, groups: Groups, named: str) -> None:
        """1 MB/s within 10 %; a busy host may be slower, never faster."""
        device = loop_device(groups.world)
        throttle = Throttle(device if named == "by path" else numbers_of(device), MB)
        group = groups.make(Resources(device_write_bps=(throttle,)))
        rates = []
        for _ in range(4):
            rates.append(4 / float(line(group.run(DIRECT, device, 4 * MB))))
            assert rates[-1] <= 1.1
            if rates[-1] >= 0.9:
                break
        assert max(rates) >= 0.9
        written = {io.device: io.write_bytes for io in groups.driver.stats(id=group.id).io}
        assert written.get(numbers_of(device), 0) >= 4 * MB

    @requires(Has.IO_MAX)
    def test_direct_writes_keep_to_their_number_and_are_freed_by_an_update(self, groups: Groups) -> None:
        device = loop_device(groups.world)
        group = groups.make(Resources(device_write_iops=(Throttle(device, 20),)))
        assert float(line(group.run(DIRECT, device, 40 * 65536))) >= 1.7
        groups.driver.update(id=group.id, resources=Resources(device_write_iops=(Throttle(device, 1_000_000),)))
        assert min(float(line(group.run(DIRECT, device, 40 * 65536))) for _ in range(3)) < 1.0

    @requires(Has.IO_BUFFERED)
    def test_buffered_writes_keep_to_their_rate_when_they_reach_the_device(self, groups: Groups) -> None:
        """1 MB/s within 10 %: the writer is long done, its pages are written back at the group's rate."""
        device, place = loop_device(groups.world), groups.world.path / "mounted"
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", device], check=True, capture_output=True)
        place.mkdir()
        subprocess.run(["mount", "-t", "ext4", device, place], check=True)
        groups.world.defer(subprocess.run, ["umount", place], check=True)
        group = groups.make(Resources(device_write_bps=(Throttle(device, MB),)))
        rates = []
        for number in range(3):
            program = group.start(BUFFERED, place / f"file{number}", 4 * MB)
            start = time.monotonic()
            with open(place / f"file{number}", "rb") as file:
                os.fsync(file.fileno())
            rates.append(4 / (time.monotonic() - start))
            tell(program)
            assert rates[-1] <= 1.1
            if rates[-1] >= 0.9:
                return
        pytest.fail(f"4 MB were written back at {', '.join(f'{rate:.2f}' for rate in rates)} MB/s")

    def test_io_is_split_by_weight_when_groups_compete(self, groups: Groups) -> None:
        """1000 against 10; a device as fast as a file has few requests waiting, so any clear lead counts."""
        device = weighing_device(groups.world)
        driver = groups.world.open()  # whether weights act depends on the devices that there are
        if Has.IO_WEIGHT not in driver.capabilities:
            pytest.skip("not claimed: the driver does not declare io-weight with bfq in use")
        pair = [groups.make(Resources(blkio_weight=weight), driver) for weight in (1000, 10)]
        ratios: list[float] = []
        while -12 < _lead(ratios) < 3:  # on a busy host a moment shows now and then who got a CPU
            programs = [[g.start(WRITES, device, n * 32 * MB, 0.6) for _ in range(3)] for n, g in enumerate(pair)]
            for program in (*programs[0], *programs[1]):
                tell(program)
            more, less = (sum(int(line(program)) for program in side) for side in programs)
            ratios.append(more / max(less, 1))
        assert _lead(ratios) == 3, f"weights 1000 against 10 gave {', '.join(f'{r:.2f} to 1' for r in ratios)}"

    @requires(Has.HUGETLB)
    def test_huge_pages_end_at_their_limit(self, groups: Groups) -> None:
        with huge_pages(2):
            free = groups.make().run(HUGE)
            assert (line(free), line(free)) == ("one", "two")
            free.wait(PATIENCE)
            held = groups.make(Resources(hugepages=(HugepageLimit("2MB", 2 * MB),))).run(HUGE)
            assert line(held) == "one"
            assert held.wait(PATIENCE) == -signal.SIGBUS


@contextmanager
def huge_pages(number: int) -> Iterator[None]:
    """Have so many more huge pages of 2 MB on the host."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not pool.exists():
        pytest.skip("this host has no huge pages of 2 MB")
    with open(pool) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = int(pool.read_text())
        pool.write_text(str(before + number))
        try:
            if int(pool.read_text()) < before + number:
                pytest.skip("this host has no memory to spare for huge pages of 2 MB")
            yield
        finally:
            pool.write_text(str(before))


def _lead(ratios: list[float]) -> int:
    """Return how many more of the ratios are clear than are not."""
    return sum(1 if ratio >= 2 else -1 for ratio in ratios)


def _key(rule: DeviceRule) -> tuple[str, int | None, int | None]:
    return rule.type, rule.major, rule.minor
