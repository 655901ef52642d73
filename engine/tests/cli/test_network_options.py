"""What users set of networks and endpoints by ``transom network`` and ``transom run``, tried on the running kernel."""

import select
import socket
import time

import click
import pytest

from transom.services.netns import inside
from transom_conformance.network.frames import watch
from transom_engine.cli import cli
from transom_engine.cli.booleans import spelled_out

# Announcements

ARP_REQUEST, ADVERTISEMENT = b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01", 136
MAC = "02:42:0a:4d:00:99"


@pytest.fixture
def announced(transom):
    """Make a network with these options; what is called then returns what has been announced on it."""
    open_sockets = []

    def make(**options):
        names = {"n": "com.docker.network.advertise_addr_nmsgs", "ms": "com.docker.network.advertise_addr_ms"}
        words = [word for option, value in options.items() for word in ("-o", f"{names[option]}={value}")]
        subnets = ["--subnet", "10.77.0.0/24", "--ipv6", "--subnet", "fd77::/64"]
        id = transom("network", "create", *subnets, *words, "net")
        transom("run", "-d", "--name", "quiet", "busybox", "sleep", "1000")
        ear = inside(transom.netns, watch, f"br-{id[:12]}")
        open_sockets.append(ear)
        return lambda: [address for frame in arrived(ear) if (address := said(frame))]

    yield make
    for sock in open_sockets:
        sock.close()


def arrived(sock):
    while select.select([sock], [], [], 0)[0]:
        yield sock.recv(2048)


def said(frame):
    """Return the address that the frame announces, if it does."""
    if frame[12:22] == ARP_REQUEST and frame[28:32] == frame[38:42]:
        return socket.inet_ntoa(frame[28:32])
    if frame[12:14] == b"\x86\xdd" and frame[54] == ADVERTISEMENT and frame[38:54] == socket.inet_pton(10, "ff02::1"):
        return socket.inet_ntop(socket.AF_INET6, frame[62:78])
    return None


def test_a_containers_addresses_are_announced_as_often_as_the_network_has_it(transom, announced):
    heard, all_of_it = announced(n=3, ms=300), []
    began = time.monotonic()
    transom("run", "-d", "--network", "net", "--ip", "10.77.0.9", "--ip6", "fd77::9", "--mac-address", MAC,
            "busybox", "sleep", "1000")  # fmt: skip
    returned = time.monotonic() - began
    transom.wait_until(lambda: all_of_it.extend(heard()) or len(all_of_it) >= 6)
    assert time.monotonic() - began >= 0.6, "they came without a pause"
    time.sleep(0.7)
    assert sorted(all_of_it + heard()) == ["10.77.0.9"] * 3 + ["fd77::9"] * 3
    assert returned < 10


def test_the_rest_is_not_announced_once_the_container_has_left_though_the_interface_has_a_successor(transom, announced):
    heard = announced(n=3, ms=500)
    named = ["--driver-opt", "com.docker.network.endpoint.ifname=side"]
    elsewhere = transom("network", "create", "--subnet", "10.78.0.0/24", "other")
    with inside(transom.netns, watch, f"br-{elsewhere[:12]}") as other:
        transom("network", "connect", *named, "--ip", "10.77.0.9", "--ip6", "fd77::9", "net", "quiet")
        transom("network", "disconnect", "net", "quiet")
        transom("network", "connect", *named, "--ip", "10.78.0.9", "other", "quiet")
        time.sleep(1.5)
        assert {said(frame) for frame in arrived(other)} - {None} == {"10.78.0.9"}
    assert sorted(heard()) in ([], ["10.77.0.9", "fd77::9"], ["10.77.0.9"] * 2 + ["fd77::9"] * 2)


@pytest.mark.parametrize(("options", "count"), [({"n": 0}, 0), ({"n": 1, "ms": 100}, 1)])
def test_nothing_more_is_announced_than_was_asked_for(transom, announced, options, count):
    heard = announced(**options)
    transom("run", "-d", "--network", "net", "--ip", "10.77.0.9", "--mac-address", MAC, "busybox", "sleep", "1000")
    time.sleep(1.5)
    assert heard().count("10.77.0.9") == count


# Truth values


def spelled(words):
    return spelled_out(click.Context(cli, info_name="transom", **cli.context_settings), words.split())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("run --rm=true -it=T box echo --rm=true", "run --rm -i -t box echo --rm=true"),
        ("run --rm -dit --rm=false --tty=0 box", "run -d -i box"),
        ("run --rm=false --rm box", "run --rm box"),
        ("run --sig-proxy=false box", "run --no-sig-proxy box"),
        ("run -e A=1 -e=B=2 --name=true -p=80:80 -d=1 box", "run -e A=1 -eB=2 --name=true -p80:80 -d box"),
        ("run --env --rm=true box", "run --env --rm=true box"),
        ("exec -it=false c ls -a=true", "exec -i c ls -a=true"),
        ("rm -f=TRUE one -v=false two", "rm -f one two"),
        ("-D=true --debug=f network create --internal=false --ipv6=true net", "network create --ipv6 net"),
        ("container run -d=true box", "container run -d box"),
        ("network ls -- --no-trunc=true", "network ls -- --no-trunc=true"),
        ("absent --rm=true", "absent --rm=true"),
    ],
)
def test_flags_take_truth_values_as_docker_s_do(words, meant):
    assert spelled(words) == meant.split()


def test_a_flag_with_a_truth_value_does_what_it_says(transom):
    done = transom(
        "run", "--rm=true", "--network=none", "--read-only=false", "-i=1", "busybox", "sh", "-c", "echo $0 a=b"
    )
    assert done == "sh a=b"
    assert transom("ps", "-a=true", "-q=true") == ""
    transom("network", "create", "--internal=true", "--ipv4=false", "--ipv6=1", "--attachable=false", "net")
    record = transom.inspect("net")
    assert [record[key] for key in ("Internal", "EnableIPv4", "EnableIPv6", "Attachable")] == [True, False, True, False]


def test_a_flag_with_another_value_is_refused_in_a_line(transom):
    assert transom.fails("network", "create", "--internal=maybe", "net", code=125) == (
        "invalid value 'maybe' for the flag --internal: expected true or false; see `transom network create --help`"
    )
