"""Containers where cgroup v2 is all there is: with a manager, systemd, and without.

A host with v1 hierarchies has nothing to say here; ``make test-vm`` runs this in guests.
"""

import os
import signal

import pytest

NETWORK = "none"
LIMITS = "--memory 64m --memory-swap 64m --cpus 0.5 --cpu-shares 512 --pids-limit 20".split()


@pytest.fixture
def unified(world):
    """A world whose limits driver, as `limits`, is one on the unified hierarchy."""
    engine = world.transom.engine()
    try:
        world.limits = engine.limits()
        name = world.limits.name
        if world.limits.status().get("Cgroup Version") != "2":
            pytest.skip(f"no unified hierarchy with controllers on this host: its limits driver is {name}")
        assert name == os.environ.get("LIMITS_DRIVER", name), "another driver was chosen than this guest is for"
        yield world
    finally:
        engine.close()


def group_of(world, name):
    """Return the directory that has a container's limits: the outermost of its groups."""
    id = world.transom.inspect(name)["Id"]
    return min((path for path in world._groups() if id in path), key=len)


def value(group, file):
    with open(f"{group}/{file}") as control:
        return control.read().strip()


def test_the_kernel_has_what_was_asked_and_then_what_it_was_changed_to(unified):
    unified.transom.detached("--name", "box", *LIMITS)
    group = group_of(unified, "box")
    files = ("memory.max", "memory.swap.max", "cpu.max", "cpu.weight")
    assert [value(group, file) for file in files] == [str(64 << 20), "0", "50000 100000", "20"]
    id = unified.transom.inspect("box")["Id"]
    assert unified.limits.stats(id=id).pids_limit == 20
    unified.transom("update", "--memory", "96m", "--memory-swap", "128m", "--cpu-shares", "1024", "box")
    assert [value(group, file) for file in files] == [str(96 << 20), str(32 << 20), "50000 100000", "39"]


def test_stats_are_the_containers_own(unified):
    unified.transom.detached("--name", "box", *LIMITS)
    shown = unified.transom("stats", "--no-stream", "--format", "{{.Name}} {{.MemUsage}} {{.PIDs}}", "box")
    name, used, _, limit, pids = shown.split()
    assert (name, limit, pids) == ("box", "64MiB", "1")
    assert used.endswith(("KiB", "MiB"))


def test_what_a_killed_supervisor_leaves_is_cleared_by_the_next_command(unified):
    unified.transom.detached("--name", "box", *LIMITS)
    group = group_of(unified, "box")
    supervisors = [pid for pid, words in unified.processes().items() if _is_supervisor(pid)]
    assert supervisors
    for pid in supervisors:
        os.kill(pid, signal.SIGKILL)
    unified.transom.wait_until(lambda: unified.listed() == {"box": "exited"}, seconds=60)
    assert unified.transom.inspect("box")["State"]["ExitCode"] == 137
    unified.transom.wait_until(lambda: not os.path.exists(group), seconds=60)
    unified.transom("start", "box")
    assert os.path.exists(group)


def _is_supervisor(pid):
    """Say whether a process is process 1 of a pid namespace nested in this one and not of a container's."""
    with open(f"/proc/{pid}/status") as status:
        return status.read().partition("NSpid:")[2].split("\n")[0].split()[1:] == ["1"]
