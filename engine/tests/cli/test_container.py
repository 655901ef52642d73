"""The life of containers through the command: start, stop, attach, remove and what goes with these."""

import os
import pty
import signal
import subprocess
import time

import pytest

NO_SUCH = "no such container: nosuch; `transom ps -a` lists those here"


def status(transom, name):
    return transom.inspect(name)["State"]["Status"]


def read_until(fd, wanted, *, seconds=10):
    """Read a terminal until the text is there; return all of it."""
    end, data = time.monotonic() + seconds, b""
    while wanted not in data:
        assert time.monotonic() < end, data
        data += os.read(fd, 4096)
    return data


@pytest.mark.parametrize("verb", ["start", "stop", "restart", "kill", "pause", "unpause", "rm", "wait"])
def test_one_bad_name_does_not_keep_the_others_from_being_served(transom, verb):
    running = verb in {"stop", "kill", "pause", "unpause", "restart"}
    name = transom.detached() if running else transom("create", "--network", "none", "busybox", "true")
    if verb == "unpause":
        transom("pause", name)
    words = ["-t", "0"] if verb in {"stop", "restart"} else []
    done = transom.call(verb, *words, "nosuch", name)
    assert (done.code, done.err) == (1, f"transom: {NO_SUCH}\n")
    assert done.out == ("0\n" if verb == "wait" else f"{name}\n")


@pytest.mark.parametrize("words", [["attach"], ["diff"], ["port"], ["top"], ["rename", "nosuch", "other"]])
def test_commands_of_one_container_name_the_one_that_is_not_there(transom, words):
    assert transom.fails(*words[:1], "nosuch", *words[2:], code=125) == NO_SUCH


def test_stop_asks_before_it_kills(transom):
    name = transom.detached(command=("sh", "-c", "trap 'exit 7' TERM; while :; do sleep 0.01; done"))
    transom.wait_until(lambda: "sleep" in transom("top", name))
    assert transom("stop", name) == name
    assert transom.inspect(name)["State"]["ExitCode"] == 7


def test_stop_kills_what_does_not_listen_when_its_time_is_over(transom):
    name = transom.detached(command=("sh", "-c", "trap '' TERM; sleep 1000"))
    began = time.monotonic()
    transom("stop", "-t", "1", name)
    assert 1 <= time.monotonic() - began < 8
    assert transom.inspect(name)["State"]["ExitCode"] == 137


def test_stop_and_kill_send_the_signal_that_was_asked_for(transom):
    script = "trap 'exit 3' USR1; trap 'exit 4' HUP; echo ready; while :; do sleep 0.01; done"
    for words, code in ((["stop", "-s", "USR1"], 3), (["kill", "-s", "HUP"], 4)):
        name = transom.detached(command=("sh", "-c", script))
        transom.wait_until(lambda name=name: transom("logs", name) == "ready")
        transom(*words, name)
        assert transom("wait", name) == str(code)


def test_kill_refuses_signals_that_are_none_and_containers_that_do_not_run(transom):
    name = transom.detached()
    assert transom.fails("kill", "-s", "KILLL", name, code=1) == (
        "invalid signal: KILLL (did you mean KILL?); a name such as TERM or a number from 1 to 64"
    )
    transom("kill", name)
    assert transom.fails("kill", name, code=1) == (
        f"container {name} is not running (it is exited); `transom start {name}` starts it"
    )


def test_a_container_starts_again_with_what_it_wrote(transom):
    name = transom.detached(command=("sh", "-c", "cat /kept; echo once > /kept; sleep 1000"))
    transom.wait_until(lambda: "/kept" in transom("diff", name))
    assert transom("restart", "-t", "0", name) == name
    transom.wait_until(lambda: transom("logs", name).endswith("once"))
    assert transom("start", name) == name  # it runs already: nothing happens
    assert transom.inspect(name)["RestartCount"] == 0


def test_start_attached_shows_the_output_and_exits_with_the_code(transom):
    name = transom("create", "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2; exit 5")
    done = transom.call("start", "-a", name)
    assert (done.code, done.out, done.err) == (5, "out\n", "err\n")


def test_start_interactive_feeds_standard_input(transom):
    name = transom("create", "-i", "--network", "none", "busybox", "cat")
    process = transom.popen("start", "-ai", name)
    process.stdin.write(b"hello\n")
    process.stdin.flush()
    assert process.stdout.readline() == b"hello\n"
    transom("kill", name)
    process.communicate()
    assert process.returncode == 137


def test_start_refuses_to_attach_to_several_and_to_start_what_is_paused(transom):
    name = transom.detached()
    assert transom.fails("start", "-a", name, "other", code=125) == (
        "you cannot start and attach multiple containers at once"
    )
    transom("pause", name)
    assert transom.fails("start", name, code=1) == (
        f"cannot start a paused container, try unpause instead: `transom unpause {name}`"
    )


def test_attach_joins_the_output_and_passes_signals_on(transom):
    script = "trap 'echo got; exit 9' TERM; while :; do echo tick; sleep 0.05; done"
    name = transom.detached(command=("sh", "-c", script))
    process = transom.popen("attach", "--no-stdin", name)
    assert process.stdout.readline() == b"tick\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=20)
    assert (process.returncode, out.splitlines()[-1]) == (9, b"got")


def test_attach_leaves_the_container_alone_on_the_detach_keys(transom):
    name = transom.detached("-it", command=("sh", "-c", "stty -echo; echo ready; cat"))
    ours, theirs = pty.openpty()
    process = transom.popen("attach", "--detach-keys", "ctrl-x,y", name, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    transom.wait_until(lambda: "cat" in transom("top", name))
    os.write(ours, b"word\n")
    read_until(ours, b"word")
    os.write(ours, b"\x18")
    os.write(ours, b"y")
    assert process.wait(timeout=10) == 0
    os.close(ours)
    assert status(transom, name) == "running"


def test_attach_says_why_it_cannot(transom):
    name = transom.detached()
    transom("pause", name)
    assert transom.fails("attach", name, code=125) == "you cannot attach to a paused container, unpause it first"
    transom("unpause", name)
    transom("kill", name)
    assert transom.fails("attach", name, code=125) == "you cannot attach to a stopped container, start it first"
    assert transom.fails("attach", "--detach-keys", "ctrl-", name, code=125)


def test_pause_freezes_and_unpause_lets_go(transom):
    name = transom.detached()
    transom("pause", name)
    assert status(transom, name) == "paused"
    assert transom.fails("pause", name, code=1) == f"container {name} is already paused"
    transom("unpause", name)
    assert status(transom, name) == "running"
    assert transom.fails("unpause", name, code=1) == f"container {name} is not paused"


def test_a_paused_container_can_be_stopped(transom):
    name = transom.detached()
    transom("pause", name)
    transom("stop", "-t", "1", name)
    assert status(transom, name) == "exited"


def test_rename_moves_the_name_and_refuses_bad_and_taken_ones(transom):
    transom.detached("--name", "first")
    second = transom("create", "--name", "second", "--network", "none", "busybox")
    assert transom("rename", "first", "third") == ""
    assert transom("ps", "--format", "{{.Names}}") == "third"
    assert transom.fails("rename", "third", "second", code=125) == (
        f"the container name 'second' is already in use by container {second[:12]};"
        " remove or rename that container, or choose another name"
    )
    assert transom.fails("rename", "third", "no/good", code=125) == (
        "invalid container name 'no/good': two or more of a-z A-Z 0-9 _ . -, the first a letter or digit"
    )


def test_rm_refuses_a_running_container_unless_forced(transom):
    name = transom.detached("--name", "busy")
    assert transom.fails("rm", "busy", code=1) == "container busy is running: stop it first, or use rm --force"
    assert transom("rm", "-f", "busy") == "busy"
    assert transom.fails("rm", name, code=1) == f"no such container: {name}; `transom ps -a` lists those here"


def test_rm_takes_anonymous_volumes_only_when_asked(transom):
    volumes = transom.data / "transom" / "volumes"
    for words, left in ((["rm"], 1), (["rm", "-v"], 1)):
        name = transom("create", "-v", "/data", "--network", "none", "busybox")
        transom(*words, name)
        assert len(os.listdir(volumes)) == left


def test_wait_waits_and_prints_the_exit_code(transom):
    name = transom.detached(command=("sh", "-c", "sleep 0.3; exit 6"))
    assert transom("wait", name, name) == "6\n6"


@pytest.mark.parametrize("driver", ["overlay2", "vfs"])
def test_diff_shows_what_changed_whether_the_container_runs_or_not(transom, driver):
    script = "echo new > /tmp/new; rm /etc/group; chmod 700 /home; sleep 1000"
    name = transom.detached("--storage-driver", driver, command=("sh", "-c", script))
    expected = ["C /etc", "D /etc/group", "C /home", "C /tmp", "A /tmp/new"]
    transom.wait_until(lambda: "/home" in transom("diff", name))
    assert transom("diff", name).splitlines() == expected
    transom("stop", "-t", "0", name)
    assert transom("diff", name).splitlines() == expected


def test_a_fresh_container_has_no_changes(transom):
    name = transom.detached()
    assert transom("diff", name) == ""


def test_port_lists_what_is_published(transom):
    name = transom.detached("--name", "web", "-p", "127.0.0.1:18080:80", "-p", "18053:53/udp", network="bridge")
    lines = transom("port", name).splitlines()
    assert "80/tcp -> 127.0.0.1:18080" in lines
    assert "53/udp -> 0.0.0.0:18053" in lines
    assert transom("port", name, "80") == "127.0.0.1:18080"
    assert transom.fails("port", "web", "81/tcp", code=125) == (
        "no public port '81/tcp' published for web; `transom port web` lists those that are"
    )
    assert transom.fails("port", "web", "http", code=125) == (
        "invalid port 'http'; expected a number from 1 to 65535, /udp or /sctp after it"
    )


def test_top_shows_only_the_containers_processes(transom):
    name = transom.detached(command=("sh", "-c", "sleep 998 & sleep 999"))
    transom.wait_until(lambda: "sh -c" not in transom("top", name))
    titles, *rows = transom("top", name).splitlines()
    assert titles.split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert sorted(row.split(None, 7)[-1] for row in rows) == ["sleep 998", "sleep 999"]
    assert transom("top", name, "-o", "pid,comm").splitlines()[0].split() == ["PID", "COMMAND"]


def test_top_says_what_is_wrong_with_its_options(transom):
    name = transom.detached()
    assert transom.fails("top", name, "-o", "comm", code=125) == (
        "ps -o comm: couldn't find PID field in ps output; add it, as in -o pid,cmd"
    )
    assert transom.fails("top", name, "--nonsense", code=125).startswith("ps --nonsense: ")
    transom("kill", name)
    assert "is not running" in transom.fails("top", name, code=125)


def test_prune_removes_what_does_not_run(transom):
    running = transom.detached()
    stopped = transom("create", "-l", "keep=1", "--network", "none", "busybox")
    assert transom("container", "prune", "-f", "--filter", "label!=keep") == "Total reclaimed space: 0B"
    assert transom("container", "prune", "-f", "--filter", "until=1h") == "Total reclaimed space: 0B"
    done = transom("container", "prune", input=b"n\n")
    assert done == ("WARNING! This will remove all stopped containers.\nAre you sure you want to continue? [y/N] ")
    done = transom("container", "prune", "--filter", "label=keep=1", input=b"y\n").splitlines()
    assert done[1].endswith("[y/N] Deleted Containers:")
    assert done[2:4] == [stopped, ""]
    assert done[4].startswith("Total reclaimed space: ")
    assert transom("ps", "-aq", "--no-trunc") == running
    assert transom.fails("container", "prune", "-f", "--filter", "name=x", code=125) == (
        "--filter 'name=x': invalid filter 'name'; there are label, label!, until"
    )


def test_a_container_that_ends_by_itself_can_be_removed_at_once(transom):
    for _ in range(3):
        name = transom.detached(command=("true",))
        transom("wait", name)
        transom("rm", name)


def test_killed_supervisor_leaves_a_container_that_starts_again(transom):
    name = transom.detached()
    engine = transom.engine()
    os.kill(engine.containers.get(name).shim_pid, signal.SIGKILL)
    engine.close()
    transom.wait_until(lambda: status(transom, name) == "exited")
    assert transom.inspect(name)["State"]["ExitCode"] == 137
    assert transom("start", name) == name
    assert status(transom, name) == "running"


def test_without_names_a_command_says_how_it_is_called(transom):
    assert transom.fails("stop", code=125) == "Missing argument 'CONTAINER...'; see `transom stop --help`"


def test_standard_input_of_a_detached_command_is_not_waited_for(transom):
    process = transom.popen("run", "-d", "--network", "none", "busybox", "sleep", "1000", stdin=subprocess.DEVNULL)
    assert process.communicate(timeout=20)[1] == b""


def test_containers_that_do_not_listen_are_stopped_at_once(transom):
    names = [transom.detached(command=("sh", "-c", "trap '' TERM; sleep 1000")) for _ in range(3)]
    began = time.monotonic()
    assert transom("stop", "-t", "2", *names).splitlines() == names
    assert time.monotonic() - began < 5.5
    assert transom("rm", *names, names[0]).splitlines() == [*names, names[0]]


def test_many_are_removed_at_once_and_leave_nothing(transom):
    names = [transom.detached(network="bridge") for _ in range(5)]
    assert transom("rm", "-f", *names).splitlines() == names
    assert transom("ps", "-aq") == ""


def test_wait_finds_the_exit_code_at_whatever_moment_it_comes(transom):
    for number in range(12):
        words = ["--rm"] if number % 2 else []
        name = transom.detached(*words, command=("sh", "-c", f"sleep 0.{number:02}; exit 6"))
        done = transom.call("wait", name)
        gone = "no such container" in done.err and words
        assert gone or (done.code, done.out) == (0, "6\n"), done
