"""SIGKILL, at any time: of a command, of a supervisor, of a container's first process, of several.

Afterwards ``ps`` tells the truth, ``doctor --repair`` leaves nothing to find, the container can be started again,
and when the containers are removed nothing of them is on the host.
"""

import os
import random
import signal
import subprocess
import time

import pytest

RUN = ("run", "-d", "--name", "box")
SLEEP = ("busybox", "sleep", "1000")


def check(world):
    """Check everything that must hold after a crash; `box` is the container's name, if there is one."""
    world.listed()
    world.repair()
    state = world.listed().get("box")
    if state is None:
        world.transom(*RUN, *SLEEP)
    elif state != "running":
        world.transom("start", "box")
    assert world.transom("exec", "box", "echo", "works") == "works"
    assert world.listed()["box"] == "running"
    assert world.clear() == set()


def kill_after(transom, seconds, *words):
    """Start a command and kill it after so long, unless it has ended."""
    process = transom.popen(*words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    process.wait()


def moments(most, count=4, seed=0):
    """Return `count` moments, one at random in each of as many equal parts of `most` seconds."""
    dice = random.Random(seed)
    return [(part + dice.random()) * most / count for part in range(count)]


def kill_at_call(transom, name, number, *words):
    """Run a command and kill whichever process of it makes its system call `name` for the time `number`.

    Returns:
        whether it came to that.
    """
    inject = f"inject={name}:signal=KILL:when={number}"
    traced = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={name}", "-e", inject, _command(), *words],
        env=transom.env, preexec_fn=transom.enter, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    return traced.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)


def _command():
    import sys
    from pathlib import Path

    return str(Path(sys.executable).with_name("transom"))


# The command


@pytest.mark.parametrize(
    "words",
    [
        (*RUN, "--network", "none", *SLEEP),
        (*RUN, "-p", "127.0.0.1::80", *SLEEP),
        ("create", "--name", "box", "-v", "/data", *SLEEP),
    ],
    ids=["run", "run -p", "create"],
)
def test_a_command_killed_at_any_moment_leaves_nothing(world, words):
    for moment in moments(0.35):
        kill_after(world.transom, moment, *words)
        check(world)


def test_a_start_killed_at_any_moment_leaves_a_container_that_starts(world):
    for moment in moments(0.25, count=4):
        world.transom("create", "--name", "box", "-p", "127.0.0.1::80", *SLEEP)
        kill_after(world.transom, moment, "start", "box")
        check(world)


def test_a_removal_killed_at_any_moment_is_finished_or_never_began(world):
    for moment in moments(0.25, count=4):
        world.transom(*RUN, "-p", "127.0.0.1::80", "-v", "/data", *SLEEP)
        kill_after(world.transom, moment, "rm", "-f", "box")
        check(world)


def test_a_stop_killed_at_any_moment_leaves_the_truth(world):
    for moment in moments(0.25, count=3):
        world.transom(*RUN, "--stop-timeout", "1", *SLEEP)
        kill_after(world.transom, moment, "stop", "box")
        world.listed()
        time.sleep(1.2)  # what was asked of the supervisor goes on
        check(world)


def test_a_creation_of_a_network_killed_at_any_moment_can_be_repeated(world):
    for moment in moments(0.25):
        kill_after(world.transom, moment, "network", "create", "--subnet", "10.213.0.0/24", "n")
        world.repair()
        if "n" not in world.transom("network", "ls", "--format", "{{.Name}}").split():
            world.transom("network", "create", "--subnet", "10.213.0.0/24", "n")
        assert world.transom("run", "--rm", "--network", "n", "busybox", "echo", "works") == "works"
        world.transom("network", "rm", "n")
        assert world.clear() == set()


@pytest.mark.parametrize("call", ["pwrite64", "mkdir", "flock"])
def test_a_command_killed_at_a_system_call_leaves_nothing(world, call):
    words = (*RUN, *SLEEP)
    assert kill_at_call(world.transom, call, 1, *words), f"the command never calls {call}"
    check(world)
    for number in (3, 7):
        kill_at_call(world.transom, call, number, *words)
        check(world)


# The supervisor


def shim(world, name="box"):
    """Return the pid of a container's supervisor."""
    engine = world.transom.engine()
    try:
        return engine.state.container(engine.state.resolve_container(name)).shim_pid
    finally:
        engine.close()


def gone_within(seconds, world, pids):
    end = time.monotonic() + seconds
    while pids & {*world.processes()}:
        assert time.monotonic() < end, f"still there: {world.processes()}"
        time.sleep(0.01)


@pytest.mark.parametrize("network", ["none", "bridge"])
def test_every_process_of_a_container_dies_with_its_supervisor(world, network):
    daemon = "(setsid sh -c 'sleep 1001 & exec sleep 1002' &) ; exec sleep 1000"
    world.transom(*RUN, "--network", network, "busybox", "sh", "-c", daemon)
    world.transom("exec", "-d", "box", "sleep", "1003")
    sleeping = lambda: {words for words in world.processes().values() if words.startswith("sleep")}  # noqa: E731
    world.transom.wait_until(lambda: len(sleeping()) == 4)
    processes = {*world.processes()}
    os.kill(shim(world), signal.SIGKILL)
    gone_within(1, world, processes)
    assert world.listed() == {"box": "exited"}
    state = world.transom.inspect("box")["State"]
    assert (state["ExitCode"], state["Running"], state["Pid"]) == (137, False, 0)
    assert state["Error"] == "its supervisor was killed"
    check(world)


def test_a_supervisor_killed_while_it_starts_a_container_leaves_a_container_that_starts(world):
    for moment in moments(0.15, count=5):
        world.transom("create", "--name", "box", "-p", "127.0.0.1::80", *SLEEP)
        command = world.transom.popen("start", "box", stdin=subprocess.DEVNULL)
        time.sleep(0.05 + moment)
        for pid in {*world.processes()} - {command.pid}:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _, error = command.communicate(timeout=30)
        assert b"Traceback" not in error
        assert command.returncode == 0 or error.count(b"\n") == 1
        check(world)


def test_a_supervisor_killed_while_it_stops_a_container_leaves_the_truth(world):
    for moment in moments(0.3, count=4):
        world.transom(*RUN, *SLEEP)
        pid = shim(world)
        command = world.transom.popen("stop", "-t", "0", "box", stdin=subprocess.DEVNULL)
        time.sleep(moment)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        _, error = command.communicate(timeout=30)
        assert (command.returncode, error) == (0, b"")
        assert world.listed() == {"box": "exited"}
        check(world)


def test_commands_that_wait_on_a_killed_supervisor_end(world):
    world.transom(*RUN, *SLEEP)
    lines = ("wait box", "attach --no-stdin box", "logs -f box", "exec box sleep 1000")
    waiting = [world.transom.popen(*line.split(), stdin=subprocess.DEVNULL) for line in lines]
    time.sleep(0.5)
    os.kill(shim(world), signal.SIGKILL)
    codes = []
    for process in waiting:
        out, error = process.communicate(timeout=10)
        assert b"Traceback" not in error
        codes.append(process.returncode)
        if process is waiting[0]:
            assert out == b"137\n"
    assert codes[0] == 0
    check(world)


def test_wait_tells_the_exit_code_of_a_crash_that_another_command_is_recording(world):
    id = world.transom(*RUN, *SLEEP)
    engine = world.transom.engine()
    try:
        with engine.lock(id):
            os.kill(shim(world), signal.SIGKILL)
            waiting = world.transom.popen("wait", "box")
            with pytest.raises(subprocess.TimeoutExpired):
                waiting.wait(timeout=1)
        assert waiting.communicate(timeout=30) == (b"137\n", b"")
    finally:
        engine.close()
    check(world)


def test_a_container_that_is_removed_when_it_ends_is_removed_after_a_crash_too(world):
    world.transom("run", "-d", "--rm", "--name", "box", "-v", "/data", *SLEEP)
    os.kill(shim(world), signal.SIGKILL)
    world.transom.wait_until(lambda: world.listed() == {}, seconds=5)
    check(world)


def test_a_container_with_a_restart_policy_stays_down_when_its_supervisor_is_killed(world):
    world.transom("run", "-d", "--name", "box", "--restart", "always", *SLEEP)
    os.kill(shim(world), signal.SIGKILL)
    time.sleep(0.5)
    assert world.listed() == {"box": "exited"}
    check(world)


# The container's first process, and several at once


def test_a_killed_first_process_ends_the_container(world):
    world.transom(*RUN, *SLEEP)
    os.kill(world.transom.inspect("box")["State"]["Pid"], signal.SIGKILL)
    assert world.transom("wait", "box") == "137"
    assert world.listed() == {"box": "exited"}
    check(world)


def test_a_first_process_killed_right_after_the_start_ends_the_container(world):
    for _ in range(3):
        world.transom(*RUN, *SLEEP)
        engine = world.transom.engine()
        os.kill(engine.containers.get("box").state.pid, signal.SIGKILL)
        engine.close()
        assert world.transom("wait", "box") == "137"
        check(world)


def test_everything_killed_at_any_moment_leaves_nothing(world):
    for moment in moments(0.35, count=5):
        command = world.transom.popen(*RUN, "-p", "127.0.0.1::80", *SLEEP, stdin=subprocess.DEVNULL)
        time.sleep(moment)
        world.kill()
        command.communicate()
        check(world)


def test_a_record_half_way_through_a_crash_is_not_torn(world):
    for moment in moments(0.2, count=3):
        world.transom(*RUN, *SLEEP)
        rename = world.transom.popen("rename", "box", "other", stdin=subprocess.DEVNULL)
        time.sleep(moment)
        world.kill()
        rename.communicate()
        listed = world.listed()
        assert listed in ({"box": "exited"}, {"other": "exited"})
        if "other" in listed:
            world.transom("rename", "other", "box")
        check(world)
