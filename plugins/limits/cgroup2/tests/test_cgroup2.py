"""What is cgroup2's own: its parents, the whole container killed, the size of an import; on a real hierarchy."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from transom.contract.limits import Resources
from transom.errors import DriverError
from transom_conformance.limits import HOLD, MB, SLEEP, Group, memory
from transom_limits_cgroup2 import Cgroup2, Options


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Cgroup2]:
    """A driver whose groups lie below a parent of the test's own."""
    yield from opened(tmp_path)


def opened(tmp_path: Path, **options: bool) -> Iterator[Cgroup2]:
    """Open a driver, and remove its groups and parents at the end."""
    parent = f"transom-test-{os.getpid()}/{random.randrange(1 << 32):08x}"
    driver = Cgroup2(options=Options(parent=parent, **options), root=tmp_path / "root", run=tmp_path / "run")
    probe = driver.probe()
    if not probe.usable:
        pytest.skip(probe.reason)
    yield driver
    for id in driver.owned():
        driver.kill(id)
        driver.remove(id)
    for path in (parent, os.path.dirname(parent)):
        place = f"{driver.unified.point}/{path}"
        if os.path.isdir(place):
            os.rmdir(place)


def test_importing_the_driver_costs_no_heavy_module() -> None:
    code = "import sys; old = set(sys.modules); import transom_limits_cgroup2; print(*set(sys.modules) - old)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"ctypes", "subprocess", "tempfile", "shutil", "dataclasses", "logging", "asyncio", "importlib.metadata"}
    assert "transom_limits_cgroup2" in found
    assert heavy.isdisjoint(found)


def test_every_parent_has_all_controllers_on_for_what_is_below(driver: Cgroup2) -> None:
    driver.create("a", Resources())
    for path in (driver._parent, os.path.dirname(driver._parent)):
        on = Path(driver.unified.point, path, "cgroup.subtree_control").read_text().split()
        assert set(driver.unified.controllers) <= set(on)


def test_parents_reserve_what_their_groups_do_together(driver: Cgroup2) -> None:
    def reserved() -> list[int]:
        paths = (driver._parent, os.path.dirname(driver._parent))
        return [int(Path(driver.unified.point, path, "memory.low").read_text()) for path in paths]

    driver.create("a", Resources(memory_reservation=64 * MB))
    driver.create("b", Resources(memory_reservation=32 * MB))
    driver.create("c", Resources())
    assert reserved() == [96 * MB, 96 * MB]
    driver.update("b", Resources(memory_reservation=48 * MB))
    assert reserved() == [112 * MB, 112 * MB]
    driver.remove("a")
    driver.remove("b")
    assert reserved() == [0, 0]


def test_the_whole_container_is_killed_where_that_was_asked(tmp_path: Path) -> None:
    for driver in opened(tmp_path, oom_group=True):
        group = Group(driver, "together", memory(64))
        small = group.start(SLEEP)
        assert group.run(HOLD, 200 * MB).wait(60) == -9
        assert small.wait(60) == -9
        group.end()


def test_a_kill_in_a_group_that_the_container_made_is_an_event(driver: Cgroup2) -> None:
    group = Group(driver, "outer", Resources())
    watch = driver.watch("outer")
    place = Path(driver._path("outer"))
    (place / "cgroup.subtree_control").write_text("+memory")
    nested = place / "inner"
    nested.mkdir()
    (nested / "memory.max").write_text(str(32 * MB))
    (nested / "memory.swap.max").write_text("0")
    assert group.run(HOLD, 100 * MB, join=(f"{nested}/cgroup.procs",)).wait(60) == -9
    assert len(watch.read()) == driver.stats("outer").oom_kills == 1
    watch.close()
    group.end()


def test_the_group_is_killed_where_the_kernel_has_no_switch_for_it(
    driver: Cgroup2, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = Group(driver, "old", Resources())
    program = group.start(SLEEP)

    def before_5_14(path: str, value: str) -> None:
        if path.endswith("cgroup.kill"):
            raise FileNotFoundError(2, "No such file or directory")
        Path(path).write_text(value)

    monkeypatch.setattr("transom.services.unified.write", before_5_14)
    driver.freeze("old")
    driver.kill("old")
    assert program.wait(60) == -9
    group.end()


def test_memory_below_what_is_in_use_is_refused_with_the_reason(driver: Cgroup2) -> None:
    group = Group(driver, "m", memory(128))
    holder = group.start(HOLD, 60 * MB)
    with pytest.raises(DriverError) as caught:
        driver.update("m", memory(16, pids=50))
    assert str(caught.value) == (
        f"limits cgroup2: update m failed: memory={16 * MB}: Device or resource busy; "
        "the group uses more than that and cannot give it back"
    )
    assert (driver.stats("m").memory_limit, driver.stats("m").pids_limit) == (128 * MB, None)
    assert holder.poll() is None
    group.end()
