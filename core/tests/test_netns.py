"""Network namespaces on the running kernel."""

from __future__ import annotations

import errno
import os
import socket
import time

import pytest

from transom.services import netns

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_SYS_ADMIN")


def interfaces() -> list[str]:
    return [name for _, name in socket.if_nameindex()]


@pytest.fixture
def world():
    fd = netns.create()
    yield fd
    os.close(fd)


def inode(fd: int) -> int:
    return os.fstat(fd).st_ino


def test_a_new_namespace_has_a_loopback_that_is_down_and_is_not_ours(world):
    here = netns.current()
    assert inode(here) != inode(world)
    os.close(here)
    assert "lo" in netns.inside(world, interfaces)
    with pytest.raises(OSError, match="unreachable"):
        netns.inside(world, connect_to_loopback)


def connect_to_loopback() -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())


def test_the_loopback_carries_traffic_once_it_is_up_and_setting_it_up_again_is_harmless(world):
    netns.inside(world, netns.loopback_up)
    netns.inside(world, netns.loopback_up)
    netns.inside(world, connect_to_loopback)


def test_the_callers_thread_stays_where_it_was(world):
    before = os.readlink("/proc/thread-self/ns/net")
    assert netns.inside(world, os.readlink, "/proc/thread-self/ns/net") == f"net:[{inode(world)}]"
    assert os.readlink("/proc/thread-self/ns/net") == before


def test_a_socket_opened_inside_stays_inside(world):
    netns.inside(world, netns.loopback_up)
    server = netns.inside(world, socket.create_server, ("127.0.0.1", 0))
    with server, pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.getsockname(), timeout=2)


def test_what_the_function_raises_is_raised_to_the_caller(world):
    with pytest.raises(ZeroDivisionError):
        netns.inside(world, divmod, 1, 0)


def test_keyword_arguments_reach_the_function(world):
    assert netns.inside(world, int, "11", base=2) == 3


def test_a_descriptor_of_something_else_is_refused(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            netns.inside(fd, interfaces)
        assert caught.value.errno == errno.EINVAL
    finally:
        os.close(fd)
    with pytest.raises(OSError) as caught:
        netns.inside(fd, interfaces)
    assert caught.value.errno == errno.EBADF


def test_descriptors_are_not_inherited_by_programs(world):
    assert not os.get_inheritable(world)


def test_nothing_is_left_of_a_hundred_namespaces():
    before = set(os.listdir("/proc/self/fd"))
    threads = len(os.listdir("/proc/self/task"))
    for _ in range(100):
        fd = netns.create()
        netns.inside(fd, netns.loopback_up)
        os.close(fd)
    assert set(os.listdir("/proc/self/fd")) == before
    deadline = time.monotonic() + 10  # Python's join returns a moment before the kernel's thread is gone
    while len(os.listdir("/proc/self/task")) > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/task")) <= threads
