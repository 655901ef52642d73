"""Restart policies, and the ways in which a container is made to end."""

import itertools
import json
import os
import signal
import time

import pytest

TRAP = "trap 'echo got {0}; exit 7' {0}; echo ready; while :; do sleep 0.05; done"


def started(world):
    """Return when the container was started each time, in seconds."""
    engine = world.transom.engine()
    try:
        return [event.time / 1e9 for event in engine.state.events() if event.action == "start"]
    finally:
        engine.close()


def pid(world):
    return world.transom.inspect("box")["State"]["Pid"]


def trapped(world, name, *words):
    world.transom.detached("--name", "box", *words, command=("sh", "-c", TRAP.format(name)))
    world.transom.wait_until(lambda: "ready" in world.transom("logs", "box"))


def test_a_container_that_fails_is_restarted_as_often_as_asked(world):
    world.transom.detached("--name", "box", "--restart", "on-failure:3", command=("sh", "-c", "echo run; exit 3"))
    world.transom.wait_until(lambda: world.transom.inspect("box")["State"]["Status"] == "exited")
    shown = world.transom.inspect("box")
    assert (shown["RestartCount"], shown["State"]["ExitCode"]) == (3, 3)
    assert world.transom("logs", "box").split() == ["run"] * 4


def test_the_pause_before_a_restart_doubles(world):
    world.transom.detached("--name", "box", "--restart", "on-failure:4", command=("false",))
    world.transom.wait_until(lambda: world.transom.inspect("box")["State"]["Status"] == "exited")
    times = started(world)[1:]  # the first is the world's own container
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert len(gaps) == 4
    for gap, least in zip(gaps, (0.1, 0.2, 0.4, 0.8), strict=True):
        assert gap >= least


def test_a_container_that_succeeds_is_not_restarted_on_failure(world):
    world.transom.detached("--name", "box", "--restart", "on-failure", command=("true",))
    assert world.transom("wait", "box") == "0"
    time.sleep(0.4)
    assert world.transom.inspect("box")["RestartCount"] == 0
    assert world.listed() == {"box": "exited"}


@pytest.mark.parametrize("policy", ["always", "unless-stopped"])
def test_a_container_whose_first_process_is_killed_comes_back_until_it_is_stopped(world, policy):
    world.transom.detached("--name", "box", "--restart", policy, "-p", "127.0.0.1::80", network="bridge")
    address = world.transom("port", "box", "80")
    first = pid(world)
    os.kill(first, signal.SIGKILL)
    world.transom.wait_until(lambda: pid(world) not in (0, first))
    assert world.transom.inspect("box")["RestartCount"] == 1
    assert world.transom("exec", "box", "echo", "works") == "works"
    assert world.transom("port", "box", "80").rpartition(":")[2].isdecimal(), address
    world.transom("stop", "-t", "0", "box")
    time.sleep(0.4)
    assert world.listed() == {"box": "exited"}
    world.transom("start", "box")
    assert world.listed() == {"box": "running"}


def test_a_container_is_stopped_while_it_waits_to_be_restarted(world):
    world.transom.detached("--name", "box", "--restart", "always", command=("sh", "-c", "exit 5"))
    world.transom.wait_until(lambda: world.transom.inspect("box")["RestartCount"] >= 3)
    begin = time.monotonic()
    world.transom("stop", "box")
    assert time.monotonic() - begin < 5
    time.sleep(1)
    assert world.listed() == {"box": "exited"}


def test_a_stop_while_the_container_is_being_started_again_is_not_forgotten(world, tmp_path):
    slow, begun = tmp_path / "crun-slow", tmp_path / "begun"
    slow.write_text(f'#!/bin/sh\ncase "$*" in *--bundle*) echo >>{begun}; sleep 0.7;; esac\nexec crun "$@"\n')
    slow.chmod(0o755)
    settings = json.loads(world.config.read_text())
    settings |= {"runtimes": {"slow": {"path": str(slow)}}, "default-runtime": "slow"}
    world.config.write_text(json.dumps(settings))
    world.transom.detached("--name", "box", "--restart", "always")
    begins = begun.read_text()
    os.kill(pid(world), signal.SIGKILL)
    world.transom.wait_until(lambda: begun.read_text() != begins)
    world.transom("rename", "box", "crate")
    world.transom("stop", "-t", "0", "crate")
    assert world.listed() == {"crate": "exited"}


def test_a_container_that_waits_to_be_restarted_is_removed(world):
    world.transom.detached("--name", "box", "--restart", "always", command=("false",))
    world.transom.wait_until(lambda: world.transom.inspect("box")["RestartCount"] >= 2)
    world.transom("rm", "-f", "box")
    assert world.listed() == {}


def test_a_policy_that_is_taken_away_ends_the_restarts(world):
    world.transom.detached("--name", "box", "--restart", "always")
    world.transom("update", "--restart", "no", "box")
    os.kill(pid(world), signal.SIGKILL)
    assert world.transom("wait", "box") == "137"
    time.sleep(0.4)
    assert world.listed() == {"box": "exited"}


def test_a_container_that_is_removed_when_it_ends_is_gone(world):
    world.transom.detached("--name", "box", "--rm", "-v", "/data", command=("sleep", "0.3"))
    world.transom.wait_until(lambda: world.listed() == {})
    assert world.transom("volume", "ls", "-q") == ""


def test_removal_and_restart_do_not_go_together(world):
    error = world.transom.fails("run", "--rm", "--restart", "always", "busybox", "true", code=125)
    assert "--restart" in error
    assert "--rm" in error


def test_a_container_gets_the_signal_that_it_asks_for(world):
    trapped(world, "USR1", "--stop-signal", "USR1")
    world.transom("stop", "box")
    assert world.transom.inspect("box")["State"]["ExitCode"] == 7
    assert "got USR1" in world.transom("logs", "box")


def test_a_container_that_does_not_listen_is_killed_when_its_time_is_up(world):
    world.transom.detached("--name", "box", "--stop-timeout", "1")  # sleep, as a first process, ignores SIGTERM
    begin = time.monotonic()
    world.transom("stop", "box")
    assert 0.9 < time.monotonic() - begin < 5
    assert world.transom.inspect("box")["State"]["ExitCode"] == 137


def test_a_signal_is_sent_without_ending_the_container(world):
    world.transom.detached(
        "--name", "box", command=("sh", "-c", "trap 'echo hup' HUP; echo ready; while :; do sleep 0.05; done")
    )
    world.transom.wait_until(lambda: "ready" in world.transom("logs", "box"))
    world.transom("kill", "-s", "HUP", "box")
    world.transom.wait_until(lambda: "hup" in world.transom("logs", "box"))
    assert world.listed() == {"box": "running"}


def test_a_signal_that_is_none_is_refused(world):
    world.transom.detached("--name", "box")
    error = world.transom.fails("kill", "-s", "NOTHING", "box")
    assert "NOTHING" in error
