"""``transom run`` as its users meet it."""

import fcntl
import os
import pty
import struct
import termios


def test_run_prints_what_the_command_wrote_and_exits_with_its_code(transom):
    done = transom.call("run", "--rm", "--network", "none", "busybox", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.code, done.out, done.err) == (7, "out\n", "err\n")


def test_run_reaches_a_bridge_inside_the_networks_namespace(transom):
    assert "172.17.0.2" in transom("run", "--rm", "busybox", "ip", "addr")


def test_a_detached_container_prints_its_id_and_goes_with_the_fixture(transom):
    assert len(transom.detached()) == 64


def test_a_terminal_has_its_size_from_the_first_moment_on(transom):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 33, 77, 0, 0))
    words = ["run", "--rm", "-it", "--network", "none", "busybox", "stty", "size"]
    process = transom.popen(*words, stdin=theirs, stdout=theirs)
    assert process.communicate(timeout=20) == (None, b"")
    assert os.read(ours, 4096) == b"33 77\r\n"
    os.close(ours)
    os.close(theirs)
