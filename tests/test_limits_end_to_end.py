"""Limits as a container feels them, and as its record tells them."""

import time

import pytest


def events(world, action):
    """Return the noted events of that name, oldest first."""
    engine = world.transom.engine()
    try:
        return [event for event in engine.state.events() if event.action == action]
    finally:
        engine.close()


def seconds_of_cpu(pid):
    import os

    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


EAT = "dd if=/dev/zero of=/dev/null bs=60M count=1"


def test_a_container_that_eats_more_memory_than_it_may_is_killed_and_says_so(world):
    done = world.transom.call(
        "run", "--name", "box", "--network", "none", "-m", "20m", "--memory-swap", "20m", "busybox", *EAT.split()
    )
    assert done.code == 137
    state = world.transom.inspect("box")["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")
    assert [event.id for event in events(world, "oom")] == [world.transom.inspect("box")["Id"]]


def test_a_container_within_its_memory_is_not_killed(world):
    world.transom("run", "--name", "box", "--network", "none", "-m", "100m", "busybox", *EAT.split())
    assert world.transom.inspect("box")["State"]["OOMKilled"] is False
    assert events(world, "oom") == []


def test_a_container_gets_no_more_cpu_than_it_may(world):
    world.transom.detached("--name", "box", "--cpus", "0.2", command=("sh", "-c", "while :; do :; done"))
    pid = world.transom.inspect("box")["State"]["Pid"]
    begin, used = time.monotonic(), seconds_of_cpu(pid)
    time.sleep(2)
    share = (seconds_of_cpu(pid) - used) / (time.monotonic() - begin)
    assert 0.02 < share < 0.3


def test_a_container_makes_no_more_processes_than_it_may(world):
    script = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all"
    done = world.transom.call("run", "--rm", "--network", "none", "--pids-limit", "5", "busybox", "sh", "-c", script)
    assert done.code != 0
    assert "fork" in done.err
    assert "all" not in done.out


def test_limits_are_changed_while_a_container_runs(world):
    world.transom.detached("--name", "box", "-m", "100m", "--memory-swap", "100m")
    world.transom("exec", "box", *EAT.split())
    assert world.transom("update", "-m", "20m", "--memory-swap", "20m", "box") == "box"
    assert world.transom.call("exec", "box", *EAT.split()).code == 137
    assert world.transom.inspect("box")["HostConfig"]["Memory"] == 20 << 20
    assert world.listed() == {"box": "running"}
    world.transom("stop", "-t", "0", "box")
    world.transom("start", "box")
    assert world.transom.call("exec", "box", *EAT.split()).code == 137


def test_a_change_that_is_refused_changes_nothing(world):
    world.transom.detached("--name", "box", "-m", "64m")
    error = world.transom.fails("update", "-m", "1m", "box")
    assert "6" in error
    assert "minimum" in error.lower()
    assert world.transom.inspect("box")["HostConfig"]["Memory"] == 64 << 20


def test_a_paused_container_does_nothing_until_it_goes_on(world):
    world.transom.detached("--name", "box", command=("sh", "-c", "while :; do echo tick; sleep 0.05; done"))

    def ticks():
        return world.transom("logs", "box").count("tick")

    world.transom.wait_until(lambda: ticks() > 3)
    world.transom("pause", "box")
    assert world.listed() == {"box": "paused"}
    time.sleep(0.2)
    frozen = ticks()
    time.sleep(0.6)
    assert ticks() == frozen
    error = world.transom.fails("exec", "box", "true")
    assert "paused" in error
    world.transom("unpause", "box")
    assert world.listed() == {"box": "running"}
    world.transom.wait_until(lambda: ticks() > frozen)


@pytest.mark.parametrize("end", [("stop", "-t", "1"), ("kill",), ("rm", "-f")], ids=lambda words: words[0])
def test_a_paused_container_can_be_ended(world, end):
    world.transom.detached("--name", "box")
    world.transom("pause", "box")
    begin = time.monotonic()
    world.transom(*end, "box")
    assert time.monotonic() - begin < 5
    assert world.listed() == ({} if end[0] == "rm" else {"box": "exited"})
