"""What no host accepts is refused before a driver is asked, in one line that says what to do."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.contract.limits import HugepageLimit, Resources, Throttle, Weight
from transom.errors import ConfigError
from transom.services.options import write_size
from transom.services.resources import (
    check,
    check_cpus,
    device_numbers,
    from_cpus,
    parse_list,
    write_list,
)

MB = 1 << 20

REFUSED = [
    (Resources(memory=4 * MB), "memory limit 4m is below the minimum of 6 MB"),
    (Resources(memory=6 * MB - 1), "memory limit 6291455 is below the minimum of 6 MB"),
    (
        Resources(memory=64 * MB, memory_swap=32 * MB),
        "memory-swap 32m is below the memory limit 64m: it counts memory and swap",
    ),
    (Resources(memory_swap=64 * MB), "memory-swap needs a memory limit too: set memory"),
    (
        Resources(memory=64 * MB, memory_swap=-2),
        "memory-swap -2 is out of range: use a size, or -1 for no limit on swap",
    ),
    (
        Resources(memory=64 * MB, memory_reservation=65 * MB),
        "memory reservation 65m is above the memory limit 64m",
    ),
    (Resources(memory_reservation=1 * MB), "memory reservation 1m is below the minimum of 6 MB"),
    (Resources(kernel_memory=1 * MB), "kernel memory limit 1m is below the minimum of 6 MB"),
    (Resources(memory_swappiness=101), "memory-swappiness 101 is out of range: use 0 to 100"),
    (Resources(memory_swappiness=-1), "memory-swappiness -1 is out of range: use 0 to 100"),
    (Resources(cpu_shares=1), "cpu-shares 1 is out of range: use 2 to 262144"),
    (Resources(cpu_shares=262145), "cpu-shares 262145 is out of range: use 2 to 262144"),
    (Resources(cpu_period=999), "cpu-period 999 us is out of range: use 1000 to 1000000 us"),
    (Resources(cpu_period=1_000_001), "cpu-period 1000001 us is out of range: use 1000 to 1000000 us"),
    (
        Resources(cpu_quota=999),
        "cpu-quota 999 us is below the minimum of 1000 us, 0.01 CPU of the usual period; -1 is no limit",
    ),
    (Resources(cpu_rt_period=-1), "cpu-rt-period -1 is negative: use microseconds"),
    (
        Resources(cpu_rt_period=1000, cpu_rt_runtime=1001),
        "cpu-rt-runtime 1001 us is longer than its period, 1000 us",
    ),
    (Resources(cpu_rt_runtime=1_000_001), "cpu-rt-runtime 1000001 us is longer than its period, 1000000 us"),
    (Resources(cpuset_cpus="0-"), "cpuset-cpus '0-' is not a list such as 0-2,4"),
    (Resources(cpuset_cpus=""), "cpuset-cpus '' is not a list such as 0-2,4"),
    (Resources(cpuset_mems="1-0"), "cpuset-mems '1-0' is not a list such as 0-2,4"),
    (Resources(pids=-2), "pids limit -2 is out of range: use 1 or more; 0 and -1 are no limit"),
    (Resources(blkio_weight=9), "blkio-weight 9 is out of range: use 10 to 1000"),
    (
        Resources(blkio_weight_devices=(Weight("8:0", 1001),)),
        "blkio-weight of 8:0 1001 is out of range: use 10 to 1000",
    ),
    (
        Resources(device_read_bps=(Throttle("8:0", 0),)),
        "I/O rate 0 of 8:0 is out of range: use 1 or more per second",
    ),
    (
        Resources(device_write_iops=(Throttle("/dev/null", 1),)),
        "device '/dev/null' is not a block device; give a block device's path or MAJOR:MINOR",
    ),
    (
        Resources(hugepages=(HugepageLimit("2M", 1),)),
        "huge page limit 2M:1 is not of the form 2MB:BYTES",
    ),
]


@pytest.mark.parametrize(("resources", "text"), REFUSED, ids=[text[:40] for _, text in REFUSED])
def test_a_value_that_no_host_accepts_is_refused_in_one_line(resources: Resources, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(resources, cpus=2)
    assert str(caught.value) == text


def test_cpus_that_the_host_lacks_are_named_beside_those_it_has() -> None:
    online = sorted(os.sched_getaffinity(0))
    with pytest.raises(ConfigError) as caught:
        check(Resources(cpuset_cpus=f"{online[0]},9998-9999"), cpus=2)
    text = str(caught.value)
    assert text.startswith(
        f"cpuset-cpus '{online[0]},9998-9999': requested CPUs are not available: 9998-9999; available: "
    )


def test_memory_nodes_that_the_host_lacks_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        check(Resources(cpuset_mems="9999"), cpus=2)
    assert "requested memory nodes are not available: 9999; available: 0" in str(caught.value)


def test_values_at_their_bounds_are_accepted() -> None:
    everything = Resources(
        memory=6 * MB,
        memory_swap=6 * MB,
        memory_reservation=6 * MB,
        memory_swappiness=0,
        oom_kill_disable=True,
        cpu_shares=2,
        cpu_period=1000,
        cpu_quota=1000,
        cpu_rt_period=1000,
        cpu_rt_runtime=1000,
        cpuset_cpus=str(min(os.sched_getaffinity(0))),
        cpuset_mems="0",
        pids=1,
        blkio_weight=10,
        blkio_weight_devices=(Weight("8:0", 1000),),
        device_read_bps=(Throttle("8:0", 1),),
        hugepages=(HugepageLimit("2MB", 0),),
    )
    assert check(everything, cpus=1) == []
    assert check(Resources(), cpus=1) == []
    assert check(Resources(memory=6 * MB, memory_swap=-1, cpu_quota=-1, pids=-1), cpus=1) == []


def test_disabling_the_oom_killer_without_a_memory_limit_warns() -> None:
    assert check(Resources(oom_kill_disable=True), cpus=1) == [
        "oom-kill-disable without a memory limit lets the container hang the host: set memory too"
    ]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy host
@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_list_that_was_written_reads_as_the_same_numbers(numbers: set[int]) -> None:
    assert parse_list(write_list(numbers)) == numbers


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # a busy host
@given(st.text(max_size=12))
def test_no_text_makes_the_list_parser_raise_anything_but_its_error(text: str) -> None:
    try:
        numbers = parse_list(text)
    except ConfigError:
        return
    assert numbers


@pytest.mark.parametrize(("nano", "pair"), [(500_000_000, (100_000, 50_000)), (10_000_000, (100_000, 1000))])
def test_cpus_become_a_quota_of_the_usual_period(nano: int, pair: tuple[int, int]) -> None:
    assert from_cpus(nano) == pair


def test_a_device_is_named_by_numbers_or_by_the_path_of_a_block_device(tmp_path: os.PathLike[str]) -> None:
    node = os.path.join(tmp_path, "disk")
    os.mknod(node, 0o600 | 0o060000, os.makedev(7, 201))
    assert device_numbers(node) == "7:201"
    assert device_numbers("8:16") == "8:16"


def test_an_absent_device_is_refused_with_what_may_be_written_instead() -> None:
    with pytest.raises(ConfigError) as caught:
        device_numbers("/dev/no-such-disk")
    assert str(caught.value) == (
        "device '/dev/no-such-disk': No such file or directory; give a block device's path or MAJOR:MINOR"
    )


@pytest.mark.parametrize(("count", "text"), [(0, "0"), (1000, "1000"), (4096, "4k"), (3 << 30, "3g"), (1536, "1536")])
def test_sizes_are_written_as_users_write_them(count: int, text: str) -> None:
    assert write_size(count) == text


@pytest.mark.parametrize(("nano", "said"), [(2_000_000_001, "2"), (2_500_000_000, "2.5"), (-1, "-1e-09")])
def test_more_cpus_than_there_are_are_refused(nano: int, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_cpus(nano, cpus=2)
    assert str(caught.value) == (f"range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available, not {said}")
    check_cpus(2_000_000_000, cpus=2)


def test_a_quota_above_all_cpus_is_accepted_as_docker_does() -> None:
    assert check(Resources(cpu_period=100_000, cpu_quota=900_000), cpus=2) == []
