"""``transom logs``."""

import re
import time


def test_logs_keeps_the_streams_apart(transom):
    name = transom.detached(command=("sh", "-c", "echo out; echo err >&2"))
    transom("wait", name)
    done = transom.call("logs", name)
    assert (done.out, done.err) == ("out\n", "err\n")


def test_logs_shows_the_last_lines_and_those_of_a_time(transom):
    name = transom.detached(command=("sh", "-c", "for i in 1 2 3 4; do echo $i; sleep 0.02; done"))
    transom("wait", name)
    assert transom("logs", "-n", "2", name) == "3\n4"
    assert transom("logs", "--tail", "0", name) == ""
    assert transom("logs", "--tail", "all", name) == "1\n2\n3\n4"
    lines = transom("logs", "-t", name).splitlines()
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z \d", line) for line in lines)
    second = lines[1].split()[0]
    assert transom("logs", "--since", second, name) == "2\n3\n4"
    assert transom("logs", "--until", second, name) == "1\n2"
    assert transom("logs", "--since", "1h", name) == "1\n2\n3\n4"


def test_logs_shows_the_details_that_were_asked_for(transom):
    name = transom.detached("-l", "role=db one", "--log-opt", "labels=role", command=("echo", "hi"))
    transom("wait", name)
    assert transom("logs", "--details", name) == "role=db+one hi"


def test_a_long_line_has_one_timestamp(transom):
    name = transom.detached(command=("sh", "-c", "head -c 50000 /dev/zero | tr '\\0' x; echo; echo end"))
    transom("wait", name)
    first, last = transom("logs", "-t", name).splitlines()
    assert first.endswith(" " + "x" * 50_000)
    assert last.endswith(" end")


def test_logs_follows_to_the_end_of_the_container(transom):
    name = transom.detached(command=("sh", "-c", "echo one; sleep 0.3; echo two"))
    assert transom("logs", "-f", name) == "one\ntwo"
    assert transom("logs", "-f", name) == "one\ntwo"


def test_logs_follows_through_restarts_by_the_policy(transom):
    name = transom.detached("--restart", "on-failure:2", command=("sh", "-c", "echo run; exit 1"))
    assert transom("logs", "-f", name) == "run\nrun\nrun"
    assert transom.inspect(name)["RestartCount"] == 2


def test_logs_followed_ends_when_the_container_is_removed(transom):
    name = transom.detached(command=("sh", "-c", "echo one; sleep 1000"))
    process = transom.popen("logs", "-f", name)
    assert process.stdout.readline() == b"one\n"
    transom("rm", "-f", name)
    assert process.communicate(timeout=20) == (b"", b"")
    assert process.returncode == 0


def test_logs_follows_until_a_time(transom):
    name = transom.detached(command=("sh", "-c", "echo one; sleep 1000"))
    began = time.monotonic()
    assert transom("logs", "-f", "--until", "-1s", name) == "one"
    assert 0.5 < time.monotonic() - began < 10


def test_logs_of_a_container_that_never_ran_are_empty(transom):
    name = transom("create", "--network", "none", "busybox")
    assert transom("logs", "-f", name) == ""


def test_logs_says_what_is_wrong(transom):
    name = transom.detached()
    assert transom.fails("logs", "-n", "few", name, code=125) == ("--tail 'few': expected a number of lines, or all")
    assert transom.fails("logs", "--since", "noon", name, code=125) == (
        "--since 'noon': failed to parse value as time or duration; expected 2024-05-06T07:08:09Z, seconds since the"
        " epoch, or a duration such as 10m"
    )
    assert transom.fails("logs", "--until", "noon", name, code=125).startswith("--until 'noon': ")
    assert transom.fails("logs", "nosuch", code=125) == "no such container: nosuch; `transom ps -a` lists those here"


def test_a_reader_that_goes_away_ends_the_command(transom):
    name = transom.detached(command=("sh", "-c", "while :; do echo line; done"))
    process = transom.popen("logs", "-f", name)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()
    process.stdin.close()
