"""``transom exec``."""

import os
import pty


def test_exec_runs_a_command_and_exits_with_its_code(transom):
    name = transom.detached()
    done = transom.call("exec", name, "sh", "-c", "echo out; echo err >&2; exit 4")
    assert (done.code, done.out, done.err) == (4, "out\n", "err\n")


def test_exec_says_why_a_command_cannot_be_executed(transom):
    name = transom.detached()
    assert transom.fails("exec", name, "nosuch", code=127) == (
        'exec: "nosuch": executable file not found in the container\'s $PATH'
    )
    assert transom.fails("exec", name, "/etc/passwd", code=126) == (
        'exec: "/etc/passwd": permission denied: not an executable file'
    )


def test_exec_feeds_standard_input_to_its_end(transom):
    name = transom.detached()
    assert transom("exec", "-i", name, "cat", input=b"line\n" * 50_000).count("line") == 50_000
    assert transom("exec", name, "cat", input=b"not read") == ""


def test_exec_sets_environment_directory_and_user(transom, tmp_path):
    name = transom.detached("-e", "KEPT=1", "-w", "/tmp")
    file = tmp_path / "env"
    file.write_text("FROM_FILE=2\n")
    show = 'echo "$KEPT $FROM_FILE $GIVEN $(pwd) $(id -u):$(id -g)"'
    assert transom("exec", name, "sh", "-c", show) == "1   /tmp 0:0"
    words = ["--env-file", file, "-e", "GIVEN=3", "-w", "/home", "-u", "nobody"]
    assert transom("exec", *words, name, "sh", "-c", show) == "1 2 3 /home 65534:65534"
    assert transom.fails("exec", "-u", "ghost", name, "true", code=125) == (
        "unable to find user ghost: no matching entries in passwd file; name a numeric uid"
    )
    complaint = transom.fails("exec", "-w", "/nope", name, "true", code=127)
    assert complaint.startswith("the working directory cannot be entered (")
    assert complaint.endswith("); make it, or name another with --workdir")
    assert transom.fails("exec", "-w", "relative", name, "true", code=125) == (
        "the working directory 'relative' is invalid, it needs to be an absolute path"
    )


def test_exec_detached_goes_on_without_the_command(transom):
    name = transom.detached()
    assert transom("exec", "-d", name, "sh", "-c", "sleep 0.2; echo done > /tmp/done") == ""
    transom.wait_until(lambda: transom.call("exec", name, "test", "-s", "/tmp/done").code == 0)


def test_exec_gives_a_terminal_of_the_same_size(transom):
    import fcntl
    import struct
    import termios

    name = transom.detached()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    process = transom.popen("exec", "-it", name, "sh", "-c", "tty; stty size; exit 2", stdin=theirs, stdout=theirs)
    process.communicate(timeout=20)
    shown = os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)
    assert (process.returncode, shown) == (2, b"/dev/pts/0\r\n33 77\r\n")


def test_exec_is_refused_where_nothing_runs(transom):
    name = transom.detached()
    transom("pause", name)
    assert transom.fails("exec", name, "true", code=125) == (
        f"container {name} is paused, unpause the container before exec"
    )
    transom("unpause", name)
    transom("kill", name)
    assert transom.fails("exec", name, "true", code=125) == (
        f"container {name} is not running (it is exited); `transom start {name}` starts it"
    )
    assert transom.fails("exec", "nosuch", "true", code=125) == (
        "no such container: nosuch; `transom ps -a` lists those here"
    )


def test_exec_of_a_terminal_needs_one(transom):
    name = transom.detached()
    assert transom.fails("exec", "-it", name, "sh", code=125) == (
        "the input device is not a TTY; leave -t out, or run it from a terminal"
    )
    assert transom.fails("exec", "--detach-keys", "ctrl-", name, "sh", code=125) == (
        "--detach-keys 'ctrl-': 'ctrl-' is no key; write single characters or ctrl-KEY, with commas"
    )


def test_exec_privileged_has_more_capabilities(transom):
    name = transom.detached()
    caps = [transom("exec", *words, name, "grep", "CapEff", "/proc/self/status") for words in ([], ["--privileged"])]
    plain, privileged = (int(line.split()[1], 16) for line in caps)
    assert plain & privileged == plain != privileged


def test_what_was_executed_ends_with_the_container(transom):
    name = transom.detached()
    process = transom.popen("exec", name, "sleep", "1000")
    transom.wait_until(lambda: transom("top", name).count("sleep") == 2)
    transom("stop", "-t", "0", name)
    process.communicate(timeout=20)
    assert process.returncode == 137


def test_exec_is_among_the_events(transom):
    name = transom.detached()
    transom("exec", name, "sh", "-c", "exit 0")
    engine = transom.engine()
    try:
        events = [event for event in engine.state.events() if event.action.startswith("exec")]
    finally:
        engine.close()
    assert [event.action for event in events] == ["exec_create: sh -c exit 0", "exec_start: sh -c exit 0", "exec_die"]
    assert len({event.attributes["execID"] for event in events}) == 1
    assert events[-1].attributes["exitCode"] == "0"
