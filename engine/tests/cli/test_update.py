"""``transom update``."""

import errno
import os
import signal

import msgspec
import pytest

from transom_conformance.faults import calls_of, faulted_at, killed_at


def test_update_changes_limits_of_a_running_container(transom):
    name = transom.detached("-m", "64m")
    assert transom("update", "-m", "32m", "--pids-limit", "5", "--cpus", "0.5", name) == name
    host = transom.inspect(name)["HostConfig"]
    assert (host["Memory"], host["PidsLimit"], host["NanoCpus"]) == (32 << 20, 5, 500_000_000)
    assert "/ 32MiB" in transom("stats", "--no-stream", name)
    done = transom.call("exec", name, "sh", "-c", "for i in 1 2 3 4 5 6; do sleep 9 & done")
    assert "can't fork" in done.err


def test_update_of_a_stopped_container_acts_when_it_starts(transom):
    name = transom("create", "--network", "none", "busybox", "sleep", "1000")
    transom("update", "--memory", "48m", "--memory-swap", "96m", name)
    transom("start", name)
    assert "/ 48MiB" in transom("stats", "--no-stream", name)


def test_update_changes_the_restart_policy_at_once(transom):
    name = transom.detached(command=("sh", "-c", "sleep 1; exit 1"))
    transom("update", "--restart", "on-failure:1", name)
    assert transom("wait", name) == "1"
    assert transom.inspect(name)["RestartCount"] == 1


def test_update_says_what_is_wrong_and_changes_nothing(transom):
    name = transom.detached("-m", "64m")
    assert transom.fails("update", name, code=125) == (
        "you must provide one or more flags when using this command; see `transom update --help`"
    )
    assert transom.fails("update", "--restart", "sometimes", name, code=125).startswith(
        "--restart 'sometimes': invalid restart policy 'sometimes'"
    )
    assert transom.fails("update", "-m", "lots", name, code=125) == (
        "--memory 'lots': invalid size; expected a size such as 512m or 2g"
    )
    assert transom.fails("update", "--log-opt", "max-size=lots", name, code=1) == (
        "logging driver json-file: max-size='lots' (from --log-opt): expected a size such as 10m, or -1"
    )
    assert transom.fails("update", "--restart", "no", "nosuch", code=1) == (
        "no such container: nosuch; `transom ps -a` lists those here"
    )
    assert transom.fails("update", "-m", "1k", name, code=1)
    assert transom.inspect(name)["HostConfig"]["Memory"] == 64 << 20


def test_update_refuses_a_restart_policy_for_what_is_removed_when_it_ends(transom):
    name = transom.detached("--rm")
    assert transom.fails("update", "--restart", "always", name, code=1) == (
        "restart policy cannot be updated because AutoRemove (--rm) is enabled for the container"
    )


def test_cpus_and_a_quota_exclude_each_other_in_run_and_in_update(transom):
    assert transom.fails("run", "--cpus", "1", "--cpu-quota", "50000", "busybox", code=125) == (
        "conflicting options: --cpus and --cpu-quota cannot both be set, --cpus is both at once"
    )
    assert transom.fails("create", "--cpus", "1", "--cpu-period", "50000", "busybox", code=125) == (
        "conflicting options: --cpus and --cpu-period cannot both be set, --cpus is both at once"
    )
    by_cpus = transom("create", "--network", "none", "--cpus", "1", "busybox")
    by_quota = transom("create", "--network", "none", "--cpu-quota", "50000", "busybox")
    assert transom.fails("update", "--cpu-quota", "20000", by_cpus, code=1) == (
        "conflicting options: --cpu-quota cannot be updated, as --cpus has been set already; update that"
    )
    assert transom.fails("update", "--cpus", "0.5", by_quota, code=1) == (
        "conflicting options: --cpus cannot be updated, as --cpu-quota has been set already; update that"
    )
    assert transom.inspect(by_quota)["HostConfig"]["NanoCpus"] == 0


def test_more_cpus_than_there_are_are_refused_and_a_higher_quota_is_not(transom):
    from os import cpu_count

    known = f"range of CPUs is from 0.01 to {cpu_count()}.00, as there are only {cpu_count()} CPUs available, not 4096"
    assert transom.fails("create", "--cpus", "4096", "busybox", code=125) == known
    name = transom.detached("--cpu-quota", "409600000")
    assert transom.inspect(name)["HostConfig"]["CpuQuota"] == 409_600_000


def test_memory_is_not_raised_above_the_swap_that_came_with_it(transom):
    name = transom.detached("-m", "64m")
    assert transom.inspect(name)["HostConfig"]["MemorySwap"] == 128 << 20
    assert transom.fails("update", "-m", "200m", name, code=1) == (
        "the memory limit 200m is above the memory-swap 128m that the container has: "
        "give --memory-swap at the same time"
    )
    transom("update", "-m", "200m", "--memory-swap", "300m", name)
    assert "/ 200MiB" in transom("stats", "--no-stream", name)


def test_a_first_memory_limit_comes_with_memory_swap_as_in_docker(transom):
    name = transom.detached()
    assert transom.fails("update", "-m", "200m", name, code=1) == (
        "the memory limit 200m is the first of a container that has none, nor one of memory-swap: "
        "give --memory-swap at the same time"
    )
    assert transom("update", "-m", "200m", "--memory-swap", "-1", name) == name
    assert transom("update", "-m", "300m", name) == name
    host = transom.inspect(name)["HostConfig"]
    assert (host["Memory"], host["MemorySwap"]) == (300 << 20, -1)


def test_zero_changes_nothing_as_in_docker(transom):
    name = transom.detached("--cpus", "0.5", "-m", "64m")
    assert transom("update", "--cpus", "0", "--memory-swap", "0", name) == name
    host = transom.inspect(name)["HostConfig"]
    assert (host["NanoCpus"], host["MemorySwap"]) == (500_000_000, 128 << 20)


OLD = {"memory": 64 << 20, "memory_swap": 64 << 20, "pids_limit": 20}
NEW = {"memory": 96 << 20, "memory_swap": 96 << 20, "pids_limit": 40}


@pytest.fixture
def updated(transom):
    """A running container with old limits, as a function that changes them in an engine of its own."""
    id = transom.detached("-m", "64m", "--memory-swap", "64m", "--pids-limit", "20")

    def update(changes=NEW):
        engine = transom.engine()
        try:
            engine.containers.update(id, changes)
        finally:
            engine.close()

    update.id = id
    return update


def agreed(transom, id):
    """Return memory and pids limit of a container, of which its record and the kernel say the same."""
    engine = transom.engine()
    try:
        container = engine.containers.get(id)
        stats = engine.limits(container.limits_driver).stats(id=id)
        host = container.host_config
        assert (host.memory, host.pids_limit) == (stats.memory_limit, stats.pids_limit)
        assert not (engine.container_run(id) / "updating.json").exists()
        return host.memory, host.pids_limit
    finally:
        engine.close()


def test_killed_at_any_step_an_update_leaves_record_and_kernel_agreed(transom, updated):
    found = set()
    for step in range(calls_of(updated), 0, -1):
        updated(OLD)
        killed_at(updated, step)
        found.add(agreed(transom, updated.id))
    assert found == {(64 << 20, 20), (96 << 20, 40)}


def test_an_update_of_which_any_step_fails_leaves_record_and_kernel_agreed(transom, updated):
    found = set()
    for step in range(calls_of(updated), 0, -1):
        updated(OLD)
        faulted_at(updated, step, errno.ENOSPC)
        found.add(agreed(transom, updated.id))
    assert found == {(64 << 20, 20), (96 << 20, 40)}


def test_an_update_that_died_and_that_the_kernel_refuses_now_is_taken_back(transom, updated, monkeypatch):
    engine = transom.engine()
    before = engine.state.container(updated.id).host_config
    updating = engine.container_run(updated.id) / "updating.json"
    updating.write_bytes(msgspec.json.encode(before))
    with engine.state.changing(updated.id) as record:
        record.host_config = msgspec.structs.replace(before, cpuset_cpus="4095")
    engine.close()
    assert transom.inspect(updated.id)["HostConfig"]["CpusetCpus"] == ""
    assert agreed(transom, updated.id) == (64 << 20, 20)


def test_a_container_that_ends_while_it_is_unpaused_has_ended(transom):
    name = transom.detached("--restart", "no")
    pid = transom.inspect(name)["State"]["Pid"]
    engine = transom.engine()
    try:
        engine.containers.pause(name)
        limits = engine.limits()
        thaw = limits.thaw

        def thaw_and_end(*, id):
            thaw(id=id)
            os.kill(pid, signal.SIGKILL)
            transom.wait_until(lambda: engine.state.container(name).state.status == "exited")

        limits.thaw = thaw_and_end
        engine.containers.unpause(name)
        assert engine.state.container(name).state.status == "exited"
    finally:
        engine.close()
    state = transom.inspect(name)["State"]
    assert (state["Status"], state["ExitCode"], state["Error"]) == ("exited", 137, "")


def test_a_pids_limit_of_zero_lifts_the_one_before(transom):
    name = transom.detached("--pids-limit", "5")
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 9 & done; echo all"
    assert "can't fork" in transom.call("exec", name, "sh", "-c", script).err
    transom("update", "--pids-limit", "0", name)
    assert transom("exec", name, "sh", "-c", script) == "all"


def test_what_has_no_effect_is_said_once(transom):
    done = transom.call("create", "--network", "none", "--kernel-memory", "64m", "-m", "64m", "busybox", "true")
    lines = [line for line in done.err.splitlines() if "kernel-memory has no effect: " in line]
    assert len(lines) == 1
    name = done.out.strip()
    assert "kernel-memory" not in transom.call("start", name).err
    assert "kernel-memory" not in transom.call("update", "-m", "32m", name).err
