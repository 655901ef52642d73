"""Docker's values as the unified hierarchy takes them, on a directory that looks like a group of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transom.contract.limits import IoStats, Resources, Throttle, Weight
from transom.contract.limits import LimitsCapability as Has
from transom.errors import ConfigError
from transom.services.cgroups import Options, Undo
from transom.services.unified import (
    EVERYTHING,
    Unified,
    UnifiedLimits,
    collect,
    elsewhere,
    enable,
    io_weight,
    weight_of_shares,
)

MB = 1 << 20
FILES = {
    "cgroup.controllers": "cpuset cpu io memory hugetlb pids",
    "cgroup.events": "populated 0\nfrozen 0",
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "cpu.max": "max 100000",
    "cpu.weight": "100",
    "cpuset.cpus": "",
    "cpuset.cpus.effective": "0-1",
    "cpuset.mems": "",
    "cpuset.mems.effective": "0",
    "io.max": "8:0 rbps=5 wbps=max riops=max wiops=max",
    "io.weight": "default 100\n8:16 200",
    "memory.current": "0",
    "memory.low": "0",
    "memory.max": "max",
    "memory.swap.max": "max",
    "pids.max": "max",
}


class Plain(UnifiedLimits):
    """The least that a driver on the unified hierarchy has of its own."""

    name = "plain"
    capabilities = EVERYTHING
    Options = Options


def write(path: str, value: str) -> None:
    """Write as to a control file: what is written is its whole value, and none is made by writing."""
    if not Path(path).exists():
        raise FileNotFoundError(2, "No such file or directory")
    Path(path).write_text(value)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plain:
    """A driver over a directory that looks like a hierarchy with the group "g"."""
    monkeypatch.setattr("transom.services.unified.write", write)
    for group in (tmp_path, tmp_path / "transom", tmp_path / "transom/g"):
        group.mkdir(exist_ok=True)
        for name, text in FILES.items():
            (group / name).write_text(f"{text}\n")
    plain = Plain(options=Options(), root=tmp_path / "root", run=tmp_path / "run")
    plain._unified = Unified(str(tmp_path))
    plain._unified.capabilities = frozenset(EVERYTHING - {Has.DEVICES})
    return plain


def written(driver: Plain, resources: Resources) -> dict[str, str]:
    """Apply, and return the files that changed."""
    driver._apply("g", resources)
    group = Path(driver._path("g"))
    now = {name: (group / name).read_text().strip() for name in FILES}
    return {name: text for name, text in now.items() if text != FILES[name]}


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (512, 20), (1024, 39), (2048, 79), (262144, 10000)])
def test_shares_become_weights_by_the_documented_conversion(shares: int, weight: int) -> None:
    assert weight_of_shares(shares) == weight


@pytest.mark.parametrize(("weight", "to"), [(10, 1), (500, 4950), (1000, 10000)])
def test_weights_of_io_cover_the_kernels_range(weight: int, to: int) -> None:
    assert io_weight(weight) == to


@pytest.mark.parametrize(
    ("resources", "files"),
    [
        (Resources(memory=64 * MB, memory_swap=96 * MB), {"memory.max": "67108864", "memory.swap.max": "33554432"}),
        (Resources(memory=64 * MB, memory_swap=64 * MB), {"memory.max": "67108864", "memory.swap.max": "0"}),
        (Resources(memory=64 * MB, memory_swap=-1), {"memory.max": "67108864"}),
        (Resources(memory_reservation=MB), {"memory.low": "1048576"}),
        (Resources(cpu_quota=50_000), {"cpu.max": "50000 100000"}),
        (Resources(cpu_period=20_000, cpu_quota=50_000), {"cpu.max": "50000 20000"}),
        (Resources(cpu_period=20_000), {"cpu.max": "max 20000"}),
        (Resources(cpu_quota=-1), {}),
        (Resources(cpu_shares=512), {"cpu.weight": "20"}),
        (Resources(cpuset_cpus="0-1", cpuset_mems="0"), {"cpuset.cpus": "0-1", "cpuset.mems": "0"}),
        (Resources(pids=7), {"pids.max": "7"}),
        (Resources(pids=-1), {}),
        (Resources(blkio_weight=1000), {"io.weight": "default 10000"}),
        (Resources(blkio_weight_devices=(Weight("8:0", 10),)), {"io.weight": "8:0 1"}),
        (Resources(device_write_bps=(Throttle("8:0", MB),)), {"io.max": "8:0 wbps=1048576"}),
        (Resources(device_read_iops=(Throttle("8:0", 9),)), {"io.max": "8:0 riops=9"}),
    ],
)
def test_each_resource_is_written_as_the_kernel_takes_it(
    driver: Plain, resources: Resources, files: dict[str, str]
) -> None:
    assert written(driver, resources) == files


def test_swap_alone_counts_from_the_memory_limit_in_force(driver: Plain) -> None:
    driver._apply("g", Resources(memory=64 * MB, memory_swap=64 * MB))
    driver._apply("g", Resources(memory_swap=100 * MB))
    assert Path(driver._path("g"), "memory.swap.max").read_text() == str(36 * MB)
    with pytest.raises(ConfigError) as caught:
        driver._apply("g", Resources(memory_swap=32 * MB))
    assert str(caught.value) == "memory-swap counts memory and swap: set memory too, at most as high"


@pytest.mark.parametrize(
    ("resources", "file", "undo"),
    [
        (Resources(device_write_bps=(Throttle("8:0", 1),)), "io.max", "8:0 rbps=5 wbps=max riops=max wiops=max"),
        (Resources(device_write_bps=(Throttle("8:32", 1),)), "io.max", "8:32 wbps=max"),
        (Resources(blkio_weight=10), "io.weight", "default 100"),
        (Resources(blkio_weight_devices=(Weight("8:16", 10),)), "io.weight", "8:16 200"),
        (Resources(blkio_weight_devices=(Weight("8:0", 10),)), "io.weight", "8:0 default"),
        (Resources(cpuset_cpus="0"), "cpuset.cpus", ""),
        (Resources(memory=64 * MB), "memory.max", "max"),
    ],
)
def test_what_takes_an_update_back_is_what_was_there(driver: Plain, resources: Resources, file: str, undo: str) -> None:
    wanted: Undo = [(f"{driver._path('g')}/{file}", undo)]
    assert driver._undo("g", resources) == wanted
    driver._restore(wanted)
    assert Path(driver._path("g"), file).read_text() == (undo or "\n")


def test_cpus_that_are_not_granted_are_refused(driver: Plain) -> None:
    with pytest.raises(OSError) as caught:
        driver._apply("g", Resources(cpuset_cpus="1-2"))
    assert caught.value.strerror == "cpuset_cpus=1-2: Permission denied"
    hint: Any = caught.value
    assert hint.hint == "the group's parent does not have all of these"


def test_a_memory_limit_below_what_cannot_be_given_back_is_refused(driver: Plain) -> None:
    group = Path(driver._path("g"))
    (group / "memory.current").write_text(f"{80 * MB}\n")
    (group / "memory.stat").write_text(f"file {10 * MB}\n")
    with pytest.raises(OSError) as caught:
        driver._apply("g", Resources(memory=64 * MB))
    assert caught.value.strerror == "memory=67108864: Device or resource busy"
    (group / "memory.stat").write_text(f"file {20 * MB}\n")
    driver._apply("g", Resources(memory=64 * MB))


def test_a_controller_that_is_off_is_named_with_the_place(driver: Plain) -> None:
    group = Path(driver._path("g"))
    (group / "cgroup.controllers").write_text("cpu\n")
    (group / "pids.max").unlink()
    (group / "pids.max").symlink_to(group / "no" / "such")
    with pytest.raises(OSError) as caught:
        driver._apply("g", Resources(pids=5))
    hint: Any = caught.value
    assert hint.hint == f"its controller could not be switched on in {group.parent}/cgroup.subtree_control"


def test_statistics_are_read_from_what_the_kernel_writes(tmp_path: Path) -> None:
    (tmp_path / "cpu.stat").write_text(
        "usage_usec 50\nuser_usec 30\nsystem_usec 20\nnr_periods 4\nnr_throttled 3\nthrottled_usec 7\n"
    )
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 100\n")
    (tmp_path / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\n")
    for name, text in {"current": "400", "peak": "500", "max": "max"}.items():
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    (tmp_path / "pids.current").write_text("3\n")
    (tmp_path / "pids.max").write_text("10\n")
    (tmp_path / "io.stat").write_text("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n7:1 \n")
    stats = collect(str(tmp_path))
    assert (stats.cpu, stats.cpu_user, stats.cpu_system) == (50_000, 30_000, 20_000)
    assert (stats.cpu_periods, stats.cpu_throttled_periods, stats.cpu_throttled) == (4, 3, 7_000)
    assert (stats.memory, stats.memory_cache, stats.memory_max, stats.memory_limit) == (400, 100, 500, None)
    assert (stats.memory_failures, stats.oom_kills, stats.pids, stats.pids_limit) == (9, 1, 3, 10)
    assert stats.io == (IoStats("8:0", 1, 2, 3, 4), IoStats("7:1"))
    assert stats.details == {"anon": 5, "inactive_file": 100}


def test_controllers_are_switched_on_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def refusing(path: str, value: str) -> None:
        said.append(value)
        if value == "+cpu":
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr("transom.services.unified.write", refusing)
    (tmp_path / "cgroup.subtree_control").write_text("memory\n")
    enable(str(tmp_path), ("cpu", "memory", "pids"))
    assert said == ["+cpu", "+pids"]


def test_what_v2_does_not_have_is_said_with_the_reason(driver: Plain) -> None:
    asked = Resources(
        memory_swappiness=1, oom_kill_disable=True, kernel_memory=64 * MB, cpu_rt_runtime=1, cpu_rt_period=1
    )
    assert driver.unsupported_resources(asked) == {
        "memory_swappiness": "cgroup v2 has no swappiness of a group: the host's holds, see vm.swappiness in sysctl",
        "oom_kill_disable": "cgroup v2 cannot keep the kernel from killing for want of memory",
        "kernel_memory": "cgroup v2 does not limit kernel memory by itself: memory includes it",
        "cpu_rt_period": "cgroup v2 has no share of real-time processes",
        "cpu_rt_runtime": "cgroup v2 has no share of real-time processes",
    }


def test_a_controller_that_another_hierarchy_has_is_said_to_be_there(driver: Plain, tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    driver._unified = Unified(str(tmp_path))
    assert driver.unsupported_resources(Resources(pids=5)) == {
        "pids": f"the unified hierarchy has no controller pids: {elsewhere('pids')}"
    }
    assert driver.probe().reason == (
        f"the unified hierarchy at {tmp_path} has none of the controllers memory, cpu and pids "
        f"(memory: {elsewhere('memory')}): use the limits driver cgroup1, "
        "or boot with systemd.unified_cgroup_hierarchy=1"
    )
    assert elsewhere("no-such") == "this kernel was built without it"


def test_a_hybrid_host_is_left_to_the_driver_that_limits_on_both_sides(
    driver: Plain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    driver._unified = Unified(str(tmp_path))
    assert driver.probe().usable or "v1 hierarchy" in driver.probe().reason
    monkeypatch.setattr("transom.services.unified.elsewhere", lambda controller: "a v1 hierarchy has it")
    assert driver.probe().reason == (
        "a v1 hierarchy has the controller memory: use the limits driver cgroup1, which limits on both sides"
    )


def test_a_host_without_the_hierarchy_and_a_group_with_processes_are_told_what_to_do(
    driver: Plain, tmp_path: Path
) -> None:
    assert driver.probe().usable
    (tmp_path / "cgroup.type").write_text("domain\n")
    (tmp_path / "cgroup.procs").write_text("1\n")
    assert driver.probe().reason == (
        f"the group at {tmp_path} has processes of its own, so that none below it can be limited: "
        "move them into a group nested in it first"
    )
    (tmp_path / "cgroup.subtree_control").write_text("memory cpu pids\n")
    assert driver.probe().usable
    driver._unified = Unified("")
    assert driver.probe().reason == "no cgroup v2 hierarchy is mounted: use the limits driver cgroup1"
