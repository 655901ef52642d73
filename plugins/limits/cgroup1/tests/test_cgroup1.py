"""What is cgroup1's own: hierarchies wherever they are mounted, the order of writes, notes for recovery, its texts."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from transom.contract.limits import HugepageLimit, LimitsCapability, Resources, Throttle
from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError, NotFound
from transom.services import cgroups
from transom.services.cgroups import below
from transom.services.mounts import (
    CLONE_NEWNS,
    MS_BIND,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    mount,
    unshare,
)
from transom.services.unified import Unified
from transom_conformance.limits import DIRECT, HOLD, MB, SLEEP, Group, enter, loop_device
from transom_conformance.suite import World, in_child
from transom_limits_cgroup1 import Cgroup1, Options
from transom_limits_cgroup1._hierarchy import hierarchies
from transom_limits_cgroup1._settings import Offered, old_values


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Cgroup1]:
    """A driver whose groups lie below a parent of the test's own."""
    driver = Cgroup1(
        options=Options(parent=f"transom-test-{os.getpid()}/{random.randrange(1 << 32):08x}"),
        root=tmp_path / "root",
        run=tmp_path / "run",
    )
    yield driver
    for id in driver.owned():
        driver.kill(id)
        driver.remove(id)
    for parent in {os.path.dirname(group) for group in driver._groups("-")}:
        for path in (parent, os.path.dirname(parent)):
            if os.path.isdir(path):
                os.rmdir(path)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(path=tmp_path, kind="limits", driver="cgroup1", options={})
    yield world
    world.clean_up()


def started(driver: Cgroup1, id: str, code: str, *args: object, resources: Resources | None = None) -> Group:
    group = Group(driver, id, resources or Resources())
    group.start(code, *args)
    return group


def text_of(error: type[Exception], call: object, *args: object) -> str:
    assert callable(call)
    with pytest.raises(error) as caught:
        call(*args)
    return str(caught.value)


def value(driver: Cgroup1, id: str, file: str) -> str:
    group = driver._group(driver.offered.points[file.split(".")[0]], id)
    return Path(group, file).read_text().strip()


# Hierarchies

MOUNTINFO = r"""
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 master:2 - cgroup cgroup rw,cpu,cpuacct
33 31 0:30 /docker/abc /somewhere/memory rw - cgroup cgroup rw,memory
34 31 0:30 / /a\040place/memory rw - cgroup none rw,memory
35 31 0:30 /part /elsewhere rw - cgroup none rw,memory
36 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
37 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,memory
38 31 0:39 / /old/pids rw - cgroup none rw,pids
39 31 0:39 / /new/pids rw - cgroup none rw,pids
40 31 0:40 / /sys/fs/cgroup/net_cls rw - cgroup none rw,net_cls
""".strip()


def test_hierarchies_are_found_wherever_they_are_mounted() -> None:
    assert hierarchies(MOUNTINFO) == {
        "pids": "/new/pids",
        "memory": "/a place/memory",
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
    }
    assert hierarchies("") == {}


def test_controllers_mounted_together_are_one_file_to_join(driver: Cgroup1) -> None:
    driver._found, driver._unified = Offered({"cpu": "/x", "cpuacct": "/x", "pids": "/y"}), Unified("")
    assert driver._groups("a") == [f"/x/{driver.options.parent}/a", f"/y/{driver.options.parent}/a"]
    driver._found = driver._unified = None


def test_a_hierarchy_mounted_at_an_unusual_place_is_used_there(driver: Cgroup1, tmp_path: Path) -> None:
    place = tmp_path / "a place, with: marks"
    place.mkdir()

    def check() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount("none", str(place), "cgroup", data="pids")
        files = driver.create("elsewhere", Resources(pids=7))
        assert f"{place}/{driver.options.parent}/elsewhere/cgroup.procs" in files
        assert (place / driver.options.parent / "elsewhere/pids.max").read_text() == "7\n"
        driver.remove("elsewhere")

    assert in_child(check) == 0


def test_what_a_runtime_made_in_a_hierarchy_that_limits_nothing_goes_too(driver: Cgroup1, tmp_path: Path) -> None:
    name = f"transom-test-{os.getpid()}"

    def check() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount("none", str(tmp_path), "cgroup", data=f"none,name={name}")
        made = tmp_path / driver.options.parent / "named" / "nested"
        made.mkdir(parents=True)
        driver.create("named", Resources())
        driver.remove("named")
        assert list((tmp_path / driver.options.parent).glob("*/")) == []
        made.parent.parent.rmdir()
        made.parent.parent.parent.rmdir()

    def mount_once_more() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount("none", str(tmp_path), "cgroup", data=f"none,name={name}")

    assert in_child(check) == 0
    # The kernel frees removed groups later, and keeps a hierarchy that still had some when it was unmounted.
    until = time.monotonic() + 30
    while f"name={name}:" in Path("/proc/self/cgroup").read_text():
        assert time.monotonic() < until, f"the hierarchy {name} is left"
        assert in_child(mount_once_more) == 0
        time.sleep(0.2)  # the namespace goes a moment after the child


def test_what_an_instance_declares_is_part_of_what_the_class_declares(driver: Cgroup1) -> None:
    assert isinstance(Cgroup1.capabilities, frozenset)
    assert driver.capabilities <= Cgroup1.capabilities
    assert LimitsCapability.IO_BUFFERED not in driver.offered.capabilities
    driver._found, driver._unified = Offered({"cpu": driver.offered.points["cpu"]}), Unified("")
    assert LimitsCapability.MEMORY not in driver.capabilities
    driver._found = driver._unified = None


def test_the_first_groups_below_a_new_parent_can_be_made_at_the_same_time(driver: Cgroup1) -> None:
    def work(number: int) -> None:
        files = driver.create(f"g{number}", Resources(cpu_shares=512))
        enter(files)

    children = []
    for number in range(12):
        pid = os.fork()
        if pid == 0:
            os._exit(in_child(lambda number=number: work(number)) & 0xFF)  # type: ignore[misc]
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 12
    assert driver.owned() == {f"g{number}" for number in range(12)}


def test_importing_the_driver_costs_no_heavy_module() -> None:
    code = "import sys; old = set(sys.modules); import transom_limits_cgroup1; print(*set(sys.modules) - old)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"subprocess", "tempfile", "shutil", "dataclasses", "logging", "asyncio", "hashlib", "importlib.metadata"}
    assert "transom_limits_cgroup1" in found
    assert heavy.isdisjoint(found)


# Values


def test_memory_and_swap_move_in_any_direction(driver: Cgroup1) -> None:
    driver.create("moves", Resources(memory=64 * MB, memory_swap=64 * MB))
    chance = random.Random(3)
    for _ in range(60):
        memory = chance.randrange(6, 500) * MB
        swap = chance.choice([-1, memory, memory + chance.randrange(500) * MB])
        driver.update("moves", Resources(memory=memory, memory_swap=swap))
        assert driver.stats("moves").memory_limit == memory
        written = int(value(driver, "moves", "memory.memsw.limit_in_bytes"))
        assert written == swap if swap > 0 else written > 1 << 62


def test_realtime_periods_and_runtimes_move_in_any_direction(driver: Cgroup1) -> None:
    driver.create("rt", Resources())
    for period, runtime in ((1_000_000, 90_000), (50_000, 4_000), (500_000, 40_000), (10_000, 0)):
        driver.update("rt", Resources(cpu_rt_period=period, cpu_rt_runtime=runtime))
        assert value(driver, "rt", "cpu.rt_period_us") == str(period)
        assert value(driver, "rt", "cpu.rt_runtime_us") == str(runtime)


def test_no_pids_limit_is_said_by_zero_and_by_minus_one(driver: Cgroup1) -> None:
    for number in (0, -1):
        driver.create("free", Resources(pids=5))
        driver.update("free", Resources(pids=number))
        assert value(driver, "free", "pids.max") == "max"


def test_a_throttled_device_is_named_by_path_or_by_numbers(driver: Cgroup1, world: World) -> None:
    device = loop_device(world)
    numbers = f"{os.major(os.stat(device).st_rdev)}:{os.minor(os.stat(device).st_rdev)}"
    driver.create("io", Resources(device_read_bps=(Throttle(device, MB),), device_write_iops=(Throttle(numbers, 9),)))
    assert value(driver, "io", "blkio.throttle.read_bps_device") == f"{numbers} {MB}"
    assert value(driver, "io", "blkio.throttle.write_iops_device") == f"{numbers} 9"


def test_nested_groups_count_in_the_statistics(driver: Cgroup1) -> None:
    group = Group(driver, "outer", Resources())
    nested = f"{driver._group(driver.offered.points['memory'], 'outer')}/inner"
    os.mkdir(nested)
    Path(nested, "memory.limit_in_bytes").write_text(str(32 * MB))
    group.join = (*group.join, f"{nested}/cgroup.procs")
    assert group.run(HOLD, 100 * MB).wait() == -9
    assert driver.stats("outer").oom_kills == 1
    group.end()


# Recovery


def test_an_update_that_was_cut_off_is_taken_back_once(driver: Cgroup1) -> None:
    driver.create("cut", Resources(memory=64 * MB, memory_swap=64 * MB, pids=10, devices=()))
    new = Resources(memory=128 * MB, memory_swap=256 * MB, pids=20, devices=None)
    driver._note("update", "cut", old_values("cut", new, driver.offered, driver._parent))
    path = driver._group(driver.offered.points["memory"], "cut")
    Path(path, "memory.memsw.limit_in_bytes").write_text(str(256 * MB))
    Path(path, "memory.limit_in_bytes").write_text(str(128 * MB))
    assert driver.recover() == ["cut: took back an update that was not complete"]
    assert driver.recover() == []
    assert driver.stats("cut").memory_limit == 64 * MB
    assert value(driver, "cut", "memory.memsw.limit_in_bytes") == str(64 * MB)


def test_a_kill_that_was_cut_off_while_all_was_frozen_is_finished_once(driver: Cgroup1) -> None:
    group = started(driver, "cold", SLEEP)
    driver._note("kill", "cold", [])
    driver.freeze("cold")
    assert driver.recover() == ["cold: killed its processes, as was begun"]
    assert driver.recover() == []
    assert group.programs[0].wait() == -9
    group.end()


def test_notes_of_groups_that_are_gone_and_halves_of_notes_are_dropped(driver: Cgroup1) -> None:
    driver._note("update", "gone", [("/sys/fs/cgroup/none/pids.max", "1")])
    (driver.run / "update-half.4711.tmp").write_bytes(b"")
    assert driver.recover() == []
    assert os.listdir(driver.run) == []


def test_a_frozen_container_without_a_kill_stays_frozen_over_recovery(driver: Cgroup1) -> None:
    group = started(driver, "paused", SLEEP)
    driver.freeze("paused")
    assert driver.recover() == []
    assert value(driver, "paused", "freezer.state") == "FROZEN"
    group.end()


# Texts


def test_an_operation_on_an_absent_group_says_so(driver: Cgroup1) -> None:
    assert text_of(NotFound, driver.stats, "ghost") == "limits cgroup1: no group 'ghost'; `create` makes it"


@pytest.mark.parametrize("id", ["..", ".", "", "a/b", "../../x"])
def test_an_id_that_is_a_path_is_refused(driver: Cgroup1, id: str) -> None:
    assert text_of(DriverError, driver.remove, id) == f"limits cgroup1: find {id!r} failed: an id is a plain name"


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (Resources(cpuset_cpus="4000"), "cpuset_cpus=4000: Numerical result out of range"),
        (Resources(cpu_quota=1), "cpu_quota=1: Invalid argument"),
        (Resources(device_read_bps=(Throttle("999:9", 1),)), "device_read_bps=999:9 1: No such device"),
        (
            Resources(cpu_rt_runtime=999_999),
            "cpu_rt_runtime=999999: Invalid argument; "
            "the parent group has less real-time runtime to give, or the period is shorter",
        ),
    ],
)
def test_a_refused_value_is_named_by_its_field_and_leaves_no_group(
    driver: Cgroup1, resources: Resources, text: str
) -> None:
    assert text_of(DriverError, driver.create, "no", resources) == f"limits cgroup1: create no failed: {text}"
    assert driver.owned() == frozenset()


def test_a_device_without_a_node_leaves_no_group_either(driver: Cgroup1) -> None:
    text_of(ConfigError, driver.create, "no", Resources(device_read_bps=(Throttle("/dev/no-such", 1),)))
    assert driver.owned() == frozenset()


def test_memory_above_the_present_swap_limit_is_refused_with_the_way_out(driver: Cgroup1) -> None:
    driver.create("m", Resources(memory=64 * MB, memory_swap=64 * MB))
    assert text_of(DriverError, driver.update, "m", Resources(memory=128 * MB)) == (
        f"limits cgroup1: update m failed: memory={128 * MB}: Invalid argument; "
        "it would exceed memory_swap, change both"
    )
    assert text_of(DriverError, driver.update, "m", Resources(memory_swap=32 * MB)) == (
        f"limits cgroup1: update m failed: memory_swap={32 * MB}: Invalid argument; "
        "it would be below memory, change both"
    )


def test_memory_below_what_is_in_use_is_refused_with_the_reason(driver: Cgroup1) -> None:
    group = started(driver, "m", HOLD, 60 * MB, resources=Resources(memory=128 * MB, memory_swap=128 * MB))
    assert text_of(DriverError, driver.update, "m", Resources(pids=50, memory=16 * MB)) == (
        f"limits cgroup1: update m failed: memory={16 * MB}: Device or resource busy; "
        "the group uses more than that and cannot give it back"
    )
    assert (driver.stats("m").memory_limit, driver.stats("m").pids_limit) == (128 * MB, None)
    group.end()


def test_removing_a_group_with_processes_says_which(driver: Cgroup1, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "REMOVE_SECONDS", 0.05)
    group = started(driver, "busy", SLEEP)
    assert text_of(DriverError, driver.remove, "busy") == (
        "limits cgroup1: remove busy failed: Device or resource busy; "
        f"kill its processes first: {group.programs[0].pid}"
    )
    assert driver.processes("busy") == (group.programs[0].pid,)
    group.end()


def test_a_process_that_hangs_in_the_kernel_is_named_and_dies_when_it_comes_back(
    driver: Cgroup1, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "KILL_SECONDS", 0.3)
    monkeypatch.setattr(cgroups, "FREEZE_SECONDS", 0.3)
    device = loop_device(world)
    group = Group(driver, "hung", Resources(device_write_bps=(Throttle(device, 1),)))
    program = group.run(DIRECT, device, 65536)
    state = Path(f"/proc/{program.pid}/stat")
    deadline = time.monotonic() + 20
    while state.read_text().rpartition(")")[2].split()[0] != "D":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert text_of(DriverError, driver.freeze, "hung") == (
        "limits cgroup1: freeze hung failed: not every process stopped in time; it runs on, try again"
    )
    assert value(driver, "hung", "freezer.state") == "THAWED"
    assert text_of(DriverError, driver.kill, "hung") == (
        f"limits cgroup1: kill hung failed: still alive: {program.pid}; "
        "a process that hangs in the kernel (state D) cannot die"
    )
    driver.update("hung", Resources(device_write_bps=(Throttle(device, 1 << 30),)))
    assert program.wait(20) == -9
    assert driver.recover() == ["hung: killed its processes, as was begun"]
    group.end()


def test_each_resource_that_will_not_act_has_its_reason(driver: Cgroup1) -> None:
    asked = Resources(kernel_memory=64 * MB, hugepages=(HugepageLimit("2MB", 0),), pids=1, cpu_rt_runtime=1)
    driver._found, driver._unified = Offered({"cpu": "/nonexistent", "memory": "/nonexistent"}), Unified("")
    assert driver.unsupported_resources(asked) == {
        "kernel_memory": "kernels from 5.16 on do not limit kernel memory by itself: memory includes it",
        "hugepages": "the cgroup controller hugetlb is not mounted",
        "pids": "the cgroup controller pids is not mounted",
        "cpu_rt_runtime": "this kernel has no groups of real-time processes (CONFIG_RT_GROUP_SCHED)",
    }
    driver._found = driver._unified = None


# Hybrid hosts


@pytest.fixture
def hybrid(driver: Cgroup1) -> Cgroup1:
    """The driver where a controller is on the unified hierarchy beside."""
    if not driver._beside():
        pytest.skip("this host has no unified hierarchy with a controller that v1 lacks")
    return driver


def test_what_v1_lacks_is_limited_on_the_unified_side(hybrid: Cgroup1) -> None:
    joins, group = hybrid.create("both", Resources(pids=5)), Path(hybrid._path("both"))
    assert joins[-1] == f"{group}/cgroup.procs"
    sizes = [path.name.split(".")[1] for path in group.glob("hugetlb.*.max")]
    assert sizes, "hugetlb is what this host has there"
    page = HugepageLimit(sizes[0], 1 << 30)
    hybrid.update("both", Resources(pids=6, hugepages=(page,)))
    assert (group / f"hugetlb.{sizes[0]}.max").read_text() == f"{1 << 30}\n"
    assert value(hybrid, "both", "pids.max") == "6"
    hybrid.kill("both")
    hybrid.remove("both")
    assert not group.exists()


def test_a_unified_side_that_cannot_be_written_is_left_alone(hybrid: Cgroup1) -> None:
    point = hybrid.unified.point

    def check() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        mount("none", point, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)
        hybrid._unified = None
        assert hybrid._beside() == []
        assert point not in " ".join(hybrid.create("readonly", Resources(pids=5)))
        hybrid.remove("readonly")

    assert in_child(check) == 0


def test_a_unified_side_that_has_nothing_to_add_is_left_alone(driver: Cgroup1) -> None:
    driver._unified = Unified("/sys/fs/cgroup/unified", without=frozenset(LimitsCapability))
    assert all("unified" not in group for group in driver._groups("a"))
    assert "unified" not in driver.status()["Controllers"]
    driver._unified = None


def test_kernel_memory_is_limited_where_the_kernel_does_it(driver: Cgroup1, tmp_path: Path) -> None:
    (tmp_path / "memory.kmem.limit_in_bytes").touch()
    for release, acts in (("4.19.0-27-amd64", True), ("5.15.0", True), ("5.16.1-rc2", False), ("6.1.0", False)):
        driver._found = Offered({"memory": str(tmp_path)}, release=release)
        assert (LimitsCapability.KERNEL_MEMORY in driver.capabilities) is acts
        assert ("kernel_memory" in driver.unsupported_resources(Resources(kernel_memory=64 * MB))) is not acts
    (tmp_path / driver.options.parent / "old").mkdir(parents=True)
    driver._found = Offered({"memory": str(tmp_path)}, release="4.19.0")
    file = tmp_path / driver.options.parent / "old" / "memory.kmem.limit_in_bytes"
    file.touch()
    driver._apply("old", Resources(kernel_memory=64 * MB))
    assert file.read_text() == str(64 * MB)
    driver._found = None


def test_swap_and_weights_and_page_sizes_that_the_kernel_lacks_have_their_reasons(
    driver: Cgroup1, tmp_path: Path
) -> None:
    (tmp_path / "hugetlb.1GB.limit_in_bytes").touch()
    (tmp_path / "memory.limit_in_bytes").touch()
    driver._found, driver._unified = Offered(dict.fromkeys(("memory", "blkio", "hugetlb"), str(tmp_path))), Unified("")
    asked = Resources(
        memory=MB, memory_swap=MB, memory_swappiness=1, blkio_weight=10, hugepages=(HugepageLimit("2MB", 0),)
    )
    assert driver.unsupported_resources(asked) == {
        "memory_swap": "this kernel does not account swap: boot with swapaccount=1",
        "memory_swappiness": "this kernel has no memory.swappiness",
        "blkio_weight": "no block device uses the I/O scheduler bfq, see /sys/block/DEVICE/queue/scheduler",
        "hugepages": "no huge pages of 2MB on this host, it has 1GB",
    }
    driver._found = driver._unified = None


def test_a_host_without_v1_or_without_the_right_is_told_what_to_do(driver: Cgroup1) -> None:
    driver._found = Offered({})
    assert (driver.probe().usable, driver.probe().reason) == (
        False,
        "no cgroup v1 hierarchy of memory, cpu or pids is mounted: use the limits driver cgroup2, "
        "or boot with systemd.unified_cgroup_hierarchy=0",
    )
    driver._found = Offered({"cpu": "/nonexistent"})
    assert driver.probe().reason == "/nonexistent cannot be written: run as root, with /sys/fs/cgroup rw"
    driver._found = Offered({"cpu": "/tmp"})
    assert driver.probe().usable
    assert driver.probe().reason.startswith("controllers not mounted: freezer, pids, memory")
    driver._found = None


@pytest.mark.parametrize("parent", ["", "/", "..", "a/../b", "a//b"])
def test_a_parent_that_is_no_path_is_refused(tmp_path: Path, parent: str) -> None:
    drivers = Drivers(state=tmp_path / "state", run=tmp_path / "run")
    assert text_of(ConfigError, drivers.open, "limits", "cgroup1", {"parent": parent}) == (
        f"limits driver cgroup1 (from config): parent={parent!r} is not the path of a group, "
        "such as transom or system/transom"
    )


def test_what_it_found_is_shown(driver: Cgroup1) -> None:
    status = driver.status()
    assert (status["Cgroup Version"], status["Parent"]) == ("1", f"/{driver.options.parent}")
    assert status["Controllers"] == ", ".join([*driver.offered.points, *(f"{c} (unified)" for c in driver._beside())])
    assert driver.runtime_path("abc") == f"/{driver.options.parent}/abc"


def test_groups_below_are_walked_children_first(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "c").mkdir()
    walked = list(below(str(tmp_path)))
    assert walked.index(str(tmp_path / "a/b")) < walked.index(str(tmp_path / "a")) < walked.index(str(tmp_path))
    assert len(walked) == 4
    assert list(below(str(tmp_path / "absent"))) == []
