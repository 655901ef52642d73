"""The embedded resolver, asked from inside real containers and by raw packets inside their network namespaces."""

import gc
import os
import random
import re
import shutil
import socket
import struct
import subprocess
import threading
import time

import pytest
from dnslib import AAAA, EDNS0, QTYPE, RCODE, RR, TXT, A, DNSRecord
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.errors import DriverError
from transom.services.netns import create, inside, loopback_up
from transom_engine.networks.files import resolv_conf
from transom_engine.resolver.questions import Question
from transom_engine.resolver.serving import Resolver

RESOLVER = ("127.0.0.11", 53)
FAMILIES = {"A": "IPAddress", "AAAA": "GlobalIPv6Address"}


def in_netns_of(transom, name, function, *args):
    """Call a function inside a container's network namespace."""
    fd = os.open(f"/proc/{transom.inspect(name)['State']['Pid']}/ns/net", os.O_RDONLY)
    try:
        return inside(fd, function, *args)
    finally:
        os.close(fd)


def exchange(packet, stream=False, timeout=10.0):
    """Send one packet to the resolver and return the answer, b"" when the connection ends without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout)
        sock.connect(RESOLVER)
        if not stream:
            sock.send(packet)
            return sock.recv(65535)
        sock.sendall(struct.pack("!H", len(packet)) + packet)
        file = sock.makefile("rb")
        head = file.read(2)
        return file.read(*struct.unpack("!H", head)) if head else b""


def ask(transom, container, name, type="A", *, stream=False, edns=0, timeout=10.0):
    """Ask the resolver of a container, from inside, and return the answer."""
    question = DNSRecord.question(name, type)
    if edns:
        question.add_ar(EDNS0(udp_len=edns))
    answer = DNSRecord.parse(in_netns_of(transom, container, exchange, bytes(question.pack()), stream, timeout))
    assert answer.header.id == question.header.id
    return answer


def values(answer):
    """Return the answer's data as texts, in order; it must be a success."""
    assert answer.header.rcode == RCODE.NOERROR
    return [str(record.rdata) for record in answer.rr]


def address(transom, container, network="mesh", key="IPAddress"):
    return transom.inspect(container)["NetworkSettings"]["Networks"][network][key]


class Upstream:
    """A name server on one address of the runner's network namespace: `reply` makes an answer or None of a question."""

    def __init__(self, transom, host, reply):
        self.reply, self.asked = reply, []
        self.udp, self.tcp = inside(transom.netns, self._listen, host)
        self.threads = [threading.Thread(target=target) for target in (self._datagrams, self._streams)]
        for thread in self.threads:
            thread.start()

    @staticmethod
    def _listen(host):
        if not host.startswith("127."):
            subprocess.run(["ip", "address", "replace", f"{host}/32", "dev", "lo"], check=True)
        opened = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
        for sock in opened:
            sock.bind((host, 53))
        opened[1].listen()
        return opened

    def _answer(self, data, kind):
        question = DNSRecord.parse(data)
        self.asked.append((str(question.q.qname).rstrip("."), kind))
        answer = self.reply(question, kind)
        return bytes(answer.pack()) if answer else None

    def _datagrams(self):
        while True:
            data, client = self.udp.recvfrom(65535)
            if not data:
                return
            if answer := self._answer(data, "udp"):
                self.udp.sendto(answer, client)

    def _streams(self):
        while True:
            try:
                connection, _ = self.tcp.accept()
            except OSError:
                return
            with connection:
                file = connection.makefile("rb")
                data = file.read(*struct.unpack("!H", file.read(2)))
                if answer := self._answer(data, "tcp"):
                    connection.sendall(struct.pack("!H", len(answer)) + answer)

    def close(self):
        self.udp.sendto(b"", self.udp.getsockname())
        self.tcp.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join()
        self.udp.close()
        self.tcp.close()


@pytest.fixture
def upstream(transom):
    """Start a name server: upstream(address, reply)."""
    started = []

    def start(host, reply):
        started.append(Upstream(transom, host, reply))
        return started[-1]

    yield start
    for server in started:
        server.close()


def says(text):
    """Reply with one address to every question."""

    def reply(question, kind):
        answer = question.reply()
        answer.add_answer(RR(question.q.qname, QTYPE.A, rdata=A(text), ttl=60))
        return answer

    return reply


def fails(question, kind):
    """Reply SERVFAIL."""
    answer = question.reply()
    answer.header.rcode = RCODE.SERVFAIL
    return answer


def host_server():
    """Return the name server that the host's resolv.conf names first."""
    with open("/etc/resolv.conf") as file:
        found = [line.split()[1] for line in file if line.startswith("nameserver ")]
    if not found or ":" in found[0]:
        pytest.skip("the host's resolv.conf names no IPv4 server")
    return found[0]


@pytest.fixture
def mesh(transom):
    """A user-defined network."""
    transom("network", "create", "mesh")
    return "mesh"


# Names of containers


def test_a_container_is_found_by_name_short_id_hostname_and_alias(transom, mesh):
    web = transom.detached("--name", "web", "--hostname", "Host1", "--network-alias", "www", network=mesh)
    transom.detached("--name", "client", network=mesh)
    expected = [address(transom, "web")]
    for name in ("web", web[:12], "host1", "www", "WWW", "web.mesh", "www.Mesh"):
        assert values(ask(transom, "client", name)) == expected, name
    assert "1 packets received" in transom("exec", "client", "ping", "-c", "1", "-W", "2", "www")


def test_a_container_finds_itself_with_its_first_command(transom, mesh):
    out = transom("run", "--rm", "--name", "me", "--network", mesh, "busybox", "nslookup", "me.mesh")
    assert "Name:\tme.mesh" in out


def test_an_answer_does_not_hold_for_long(transom, mesh):
    transom.detached("--name", "web", network=mesh)
    (record,) = ask(transom, "web", "web").rr
    assert 0 < record.ttl <= 5


def test_an_alias_of_several_containers_means_all_and_each_comes_first_for_whoever_asks(transom):
    transom("network", "create", "--ipv6", "--subnet", "fd00:78::/64", "mesh")
    names = ("one", "two", "three", "four")
    for name in names:
        transom.detached("--name", name, "--network-alias", "many", network="mesh")
    every = {type: {address(transom, name, key=key) for name in names} for type, key in FAMILIES.items()}
    # Both families by turns, as getaddrinfo(3) asks, and the one as nslookup does.
    for types in (("A", "AAAA"), ("A",)):
        answers = {type: [] for type in types}
        for _ in range(25):
            for type in types:
                answers[type].append(values(ask(transom, "one", "many", type)))
        for type in types:
            assert all({*answer} == every[type] for answer in answers[type])
            assert {answer[0] for answer in answers[type]} == every[type]


def test_a_link_is_a_name_for_the_container_that_has_it_alone(transom, mesh):
    first = transom.detached("--name", "first", network=mesh)
    transom.detached("--name", "linked", "--link", "first:db", "--link", f"{first[:8]}:second", network=mesh)
    transom.detached("--name", "plain", network=mesh)
    assert values(ask(transom, "linked", "db")) == values(ask(transom, "linked", "second"))
    assert values(ask(transom, "linked", "db.mesh")) == [address(transom, "first")]
    transom("network", "create", "other")
    transom("network", "connect", "other", "first")
    transom("network", "connect", "--link", "first:back", "other", "plain")
    assert values(ask(transom, "plain", "back")) == [address(transom, "first", "other")]
    assert ask(transom, "linked", "back").rr == []
    assert ask(transom, "plain", "db").rr == []


def test_links_on_the_default_network_are_in_the_hosts_file(transom):
    transom.detached("--name", "db", "--hostname", "store", network="bridge")
    transom.detached("--name", "app", "--link", "db:sql", network="bridge")
    line = f"{address(transom, 'db', 'bridge')}\tsql store db"
    assert line in transom("exec", "app", "cat", "/etc/hosts").splitlines()
    both = ["--link", "db:sql", "--link", "db"]
    shown = transom("run", "--rm", *both, "busybox", "cat", "/etc/hosts")
    assert line in shown.splitlines(), "a container may have several names to another one"
    transom("stop", "-t", "0", "db")
    assert transom.fails("run", "--link", "db", "busybox", "true", code=125) == (
        "cannot link to db: it is not running; start it first"
    )
    assert "no such container: nobody" in transom.fails("run", "--link", "nobody:x", "busybox", "true", code=125)


def test_an_alias_holds_on_its_network_only(transom, mesh):
    transom("network", "create", "other", "--internal")
    transom.detached("--name", "web", "--network-alias", "www", network=mesh)
    transom.detached("--name", "stranger", network="other")
    for name in ("web", "www", "web.mesh"):
        assert ask(transom, "stranger", name).header.rcode == RCODE.SERVFAIL, name


def test_a_known_name_without_the_family_is_an_empty_answer_and_asks_nobody(transom, mesh, upstream):
    server = upstream("10.254.7.1", says("192.0.2.1"))
    transom.detached("--name", "web", "--dns", "10.254.7.1", network=mesh)
    for type in ("AAAA", "MX", "TXT"):
        assert values(ask(transom, "web", "web", type)) == []
    assert server.asked == []


def test_addresses_of_both_families_are_told(transom):
    transom("network", "create", "--ipv6", "--subnet", "fd00:77::/64", "mesh")
    transom.detached("--name", "web", network="mesh")
    assert values(ask(transom, "web", "web")) == [address(transom, "web")]
    six = address(transom, "web", key="GlobalIPv6Address")
    assert values(ask(transom, "web", "web", "AAAA")) == [six]
    from ipaddress import ip_address

    assert values(ask(transom, "web", ip_address(six).reverse_pointer, "PTR")) == ["web.mesh."]


def test_an_address_leads_back_to_the_name(transom, mesh):
    from ipaddress import ip_address

    transom.detached("--name", "web", "--network-alias", "www", network=mesh)
    name = ip_address(address(transom, "web")).reverse_pointer
    assert values(ask(transom, "web", name, "PTR")) == ["web.mesh."]


def test_a_record_is_gone_within_a_second_of_the_stop(transom, mesh, upstream):
    upstream("10.254.7.1", lambda q, _: q.reply())
    transom.detached("--name", "web", network=mesh)
    transom.detached("--name", "client", "--dns", "10.254.7.1", network=mesh)
    assert values(ask(transom, "client", "web")) == [address(transom, "web")]
    transom("stop", "-t", "0", "web")
    assert values(ask(transom, "client", "web")) == []
    transom("start", "web")
    assert values(ask(transom, "client", "web")) == [address(transom, "web")]


def test_an_address_that_is_used_again_leads_to_its_new_owner_alone(transom, mesh, upstream):
    from ipaddress import ip_address

    upstream("10.254.7.1", lambda q, _: q.reply())
    transom("network", "rm", mesh)
    transom("network", "create", "--subnet", "10.254.8.0/24", mesh)
    transom.detached("--name", "client", "--dns", "10.254.7.1", network=mesh)
    back = ip_address("10.254.8.9").reverse_pointer
    for name, before in (("old", None), ("new", "old")):
        transom.detached("--name", name, "--ip", "10.254.8.9", network=mesh)
        assert values(ask(transom, "client", name)) == ["10.254.8.9"]
        assert values(ask(transom, "client", back, "PTR")) == [f"{name}.mesh."]
        if before:
            assert values(ask(transom, "client", before)) == []
        transom("stop", "-t", "0", name)
    assert values(ask(transom, "client", back, "PTR")) == []


def test_a_container_whose_supervisor_was_killed_is_not_found(transom, mesh, upstream):
    upstream("10.254.7.1", lambda q, _: q.reply())
    transom.detached("--name", "web", network=mesh)
    transom.detached("--name", "client", "--dns", "10.254.7.1", network=mesh)
    engine = transom.engine()
    pid = next(c.shim_pid for c in engine.state.containers() if c.name == "web")
    engine.close()
    os.kill(pid, 9)
    transom.wait_until(lambda: values(ask(transom, "client", "web")) == [], seconds=1)


def test_connect_and_disconnect_show_at_once(transom, mesh):
    transom("network", "create", "--internal", "other")
    for name in ("web", "client"):
        transom.detached("--name", name, network="other")
    transom("network", "connect", "--alias", "www", mesh, "web")
    assert ask(transom, "client", "www").header.rcode == RCODE.SERVFAIL
    transom("network", "connect", mesh, "client")
    assert values(ask(transom, "client", "www")) == [address(transom, "web")]
    transom("network", "disconnect", "other", "web")
    assert values(ask(transom, "client", "web")) == [address(transom, "web")]
    transom("network", "disconnect", mesh, "web")
    assert ask(transom, "web", "client").header.rcode == RCODE.SERVFAIL


def test_a_container_of_the_default_network_gets_the_resolver_with_its_first_other_one(transom, mesh):
    transom.detached("--name", "late", network="bridge")
    assert "127.0.0.11" not in transom("exec", "late", "cat", "/etc/resolv.conf")
    transom("network", "connect", "--alias", "www", mesh, "late")
    assert "nameserver 127.0.0.11\n" in transom("exec", "late", "cat", "/etc/resolv.conf")
    assert values(ask(transom, "late", "www")) == [address(transom, "late")]
    transom("restart", "-t", "0", "late")
    assert values(ask(transom, "late", "www")) == [address(transom, "late")]


def test_a_container_that_joins_anothers_network_uses_its_resolver(transom, mesh):
    transom.detached("--name", "web", network=mesh)
    out = transom("run", "--rm", "--network", "container:web", "busybox", "nslookup", "web.mesh")
    assert address(transom, "web") in out


# What others know


def test_unknown_names_are_asked_of_the_hosts_servers_from_the_hosts_namespace(transom, mesh, upstream):
    server = upstream(host_server(), says("192.0.2.7"))
    transom.detached("--name", "web", network=mesh)
    assert values(ask(transom, "web", "www.example.org")) == ["192.0.2.7"]
    assert server.asked == [("www.example.org", "udp")]


def test_servers_of_the_user_are_asked_from_inside_the_container(transom, mesh, upstream):
    transom.detached("--name", "web", "--dns", "127.0.0.9", network=mesh)
    upstream("127.0.0.9", says("192.0.2.1"))  # on the host: not the one that is meant
    assert ask(transom, "web", "www.example.org").header.rcode == RCODE.SERVFAIL


def test_the_resolver_never_asks_itself(transom, mesh, upstream):
    upstream(host_server(), says("192.0.2.7"))
    transom.detached("--name", "web", "--dns", "127.0.0.11", network=mesh)
    assert values(ask(transom, "web", "www.example.org")) == ["192.0.2.7"]


def test_the_next_server_is_asked_after_a_failure_and_after_silence(transom, mesh, upstream):
    silent = upstream("10.254.7.1", lambda *_: None)
    failing = upstream("10.254.7.2", fails)
    upstream("10.254.7.3", says("192.0.2.3"))
    flags = [word for n in (1, 2, 3) for word in ("--dns", f"10.254.7.{n}")]
    transom.detached("--name", "web", *flags, network=mesh)
    began = time.monotonic()
    assert values(ask(transom, "web", "www.example.org")) == ["192.0.2.3"]
    assert 3.5 < time.monotonic() - began < 8
    assert len(silent.asked) == len(failing.asked) == 1


def test_a_server_that_was_silent_is_asked_last_for_a_while(transom, mesh, upstream):
    silent = upstream("10.254.7.1", lambda *_: None)
    upstream("10.254.7.2", says("192.0.2.2"))
    transom.detached("--name", "web", "--dns", "10.254.7.1", "--dns", "10.254.7.2", network=mesh)
    assert values(ask(transom, "web", "first.example.org")) == ["192.0.2.2"]
    began = time.monotonic()
    assert values(ask(transom, "web", "second.example.org")) == ["192.0.2.2"]
    assert time.monotonic() - began < 3.5
    assert silent.asked == [("first.example.org", "udp")]


def test_a_server_that_comes_up_late_is_found(transom, mesh, upstream):
    transom.detached("--name", "web", "--dns", "10.254.7.1", network=mesh)
    assert ask(transom, "web", "www.example.org").header.rcode == RCODE.SERVFAIL
    upstream("10.254.7.1", says("192.0.2.1"))
    assert values(ask(transom, "web", "www.example.org")) == ["192.0.2.1"]


def test_a_thousand_questions_at_once_are_answered(transom, mesh, upstream):
    upstream("10.254.7.1", says("192.0.2.1"))
    transom.detached("--name", "web", "--dns", "10.254.7.1", network=mesh)
    values(ask(transom, "web", "web"))

    def burst():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 20)  # SO_RCVBUFFORCE
            sock.settimeout(10)
            for number in range(1000):
                sock.sendto(bytes(DNSRecord.question(f"{number}.example.org").pack()), RESOLVER)
            return [DNSRecord.parse(sock.recv(65535)) for _ in range(1000)]

    answers = in_netns_of(transom, "web", burst)
    assert {str(answer.q.qname) for answer in answers} == {f"{number}.example.org." for number in range(1000)}
    assert all(values(answer) == ["192.0.2.1"] for answer in answers)


def test_what_others_send_in_a_servers_place_is_no_answer(transom, mesh, upstream):
    server = upstream("10.254.7.1", says("192.0.2.1"))
    real = server.udp

    class Forger:
        """Sends wrong answers first: from another port, with another number, to another question."""

        def sendto(self, answer, client):
            if not answer:
                return real.sendto(answer, client)
            false = answer.replace(bytes([192, 0, 2, 1]), bytes([192, 0, 2, 66]))
            with inside(transom.netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind(("10.254.7.1", 0))
                other.sendto(false, client)
            real.sendto(bytes([false[0] ^ 1]) + false[1:], client)
            real.sendto(false.replace(b"example", b"exbmple"), client)
            return real.sendto(answer, client)

        def __getattr__(self, name):
            return getattr(real, name)

    server.udp = Forger()
    transom.detached("--name", "web", "--dns", "10.254.7.1", network=mesh)
    assert values(ask(transom, "web", "www.example.org")) == ["192.0.2.1"]


def test_an_answer_that_says_there_is_no_such_name_is_passed_on(transom, mesh, upstream):
    def missing(question, kind):
        answer = question.reply()
        answer.header.rcode = RCODE.NXDOMAIN
        return answer

    upstream("10.254.7.1", missing)
    second = upstream("10.254.7.2", says("192.0.2.3"))
    transom.detached("--name", "web", "--dns", "10.254.7.1", "--dns", "10.254.7.2", network=mesh)
    assert ask(transom, "web", "nothing.example.org").header.rcode == RCODE.NXDOMAIN
    assert second.asked == []


def test_a_slow_server_does_not_delay_names_of_containers(transom, mesh, upstream):
    upstream("10.254.7.1", lambda *_: None)
    transom.detached("--name", "web", "--dns", "10.254.7.1", network=mesh)
    values(ask(transom, "web", "web"))

    def burst():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for number in range(200):  # more than may be under way
            sock.sendto(bytes(DNSRecord.question(f"{number}.example.org").pack()), RESOLVER)
        return sock

    with in_netns_of(transom, "web", burst):
        began = time.monotonic()
        assert values(ask(transom, "web", "web")) == [address(transom, "web")]
        assert time.monotonic() - began < 1.5
        began = time.monotonic()
        transom("rm", "-f", "web")  # the end does not wait for the servers either
        assert time.monotonic() - began < 3


def test_a_cut_answer_is_asked_again_by_tcp_and_cut_for_clients_that_cannot_take_it(transom, mesh, upstream):
    def long(question, kind):
        answer = question.reply()
        if kind == "udp":
            answer.header.tc = 1
            return answer
        for number in range(40):
            answer.add_answer(RR(question.q.qname, QTYPE.A, rdata=A(f"192.0.2.{number}"), ttl=60))
        return answer

    server = upstream("10.254.7.1", long)
    transom.detached("--name", "web", "--dns", "10.254.7.1", network=mesh)
    assert len(values(ask(transom, "web", "long.example.org", edns=4096))) == 40
    assert [kind for _, kind in server.asked] == ["udp", "tcp"]
    assert len(values(ask(transom, "web", "long.example.org", stream=True))) == 40
    small = ask(transom, "web", "long.example.org")
    assert small.header.tc
    assert len(small.pack()) <= 512
    assert small.rr


def test_the_longest_answer_there_is_comes_through_by_tcp(transom, mesh, upstream):
    def huge(question, kind):
        answer = question.reply()
        answer.header.tc = int(kind == "udp")
        for number in range(255 * (kind == "tcp")):
            answer.add_answer(RR(question.q.qname, QTYPE.TXT, rdata=TXT(f"{number:0240}"), ttl=60))
        return answer

    upstream("10.254.7.1", huge)
    transom.detached("--name", "web", "--dns", "10.254.7.1", network=mesh)
    answer = ask(transom, "web", "huge.example.org", "TXT", stream=True)
    assert len(values(answer)) == 255
    assert len(answer.pack()) > 64_000


def test_a_user_who_wants_search_domains_tried_first_has_names_without_a_dot_kept_here(transom, mesh, upstream):
    server = upstream("10.254.7.1", says("192.0.2.1"))
    for name, options in (("plain", ()), ("search", ("--dns-option", "ndots:2", "--dns-search", "example.org"))):
        transom.detached("--name", name, "--dns", "10.254.7.1", *options, network=mesh)
    assert values(ask(transom, "plain", "printer")) == ["192.0.2.1"]
    assert values(ask(transom, "search", "printer")) == values(ask(transom, "search", "printer", "AAAA")) == []
    assert [name for name, _ in server.asked] == ["printer"]
    assert values(ask(transom, "search", "printer.example.org")) == ["192.0.2.1"]
    assert values(ask(transom, "search", "plain")) == [address(transom, "plain")]
    assert "(192.0.2.1)" in transom.call("exec", "search", "ping", "-c", "1", "-W", "1", "printer").out


def test_an_internal_network_asks_nobody(transom, upstream):
    first = upstream(host_server(), says("192.0.2.7"))
    transom("network", "create", "--internal", "inner")
    transom.detached("--name", "web", network="inner")
    assert ask(transom, "web", "www.example.org").header.rcode == RCODE.SERVFAIL
    assert ask(transom, "web", "www.example.org", stream=True).header.rcode == RCODE.SERVFAIL
    assert values(ask(transom, "web", "web")) == [address(transom, "web", "inner")]
    assert first.asked == []


def test_a_server_of_the_users_is_asked_on_an_internal_network_too(transom):
    transom("network", "create", "--internal", "--subnet", "10.254.9.0/24", "inner")
    transom.detached("--name", "server", "--ip", "10.254.9.9", network="inner")
    transom.detached("--name", "web", "--dns", "10.254.9.9", network="inner")
    sock = in_netns_of(transom, "server", socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("10.254.9.9", 53))
    sock.settimeout(10)

    def serve():
        data, client = sock.recvfrom(512)
        sock.sendto(bytes(says("192.0.2.9")(DNSRecord.parse(data), "udp").pack()), client)

    thread = threading.Thread(target=serve)
    thread.start()
    with sock:
        assert values(ask(transom, "web", "www.example.org")) == ["192.0.2.9"]
        thread.join()


def test_of_two_networks_the_one_with_a_way_out_is_enough_to_ask_others(transom, mesh, upstream):
    server = upstream(host_server(), says("192.0.2.7"))
    transom("network", "create", "--internal", "inner")
    transom.detached("--name", "web", network="inner")
    assert ask(transom, "web", "www.example.org").header.rcode == RCODE.SERVFAIL
    transom("network", "connect", mesh, "web")
    assert values(ask(transom, "web", "www.example.org")) == ["192.0.2.7"]
    transom("network", "disconnect", mesh, "web")
    assert ask(transom, "web", "www.example.org").header.rcode == RCODE.SERVFAIL
    assert len(server.asked) == 1


# The protocol, and who sends rubbish


def test_questions_come_by_tcp_too(transom, mesh):
    transom.detached("--name", "web", network=mesh)
    assert values(ask(transom, "web", "web", stream=True)) == [address(transom, "web")]


def test_a_container_serves_port_53_itself(transom, mesh):
    transom.detached("--name", "web", network=mesh)

    def serve():
        opened = [socket.socket(socket.AF_INET, kind) for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
        for sock in opened:
            sock.bind(("0.0.0.0", 53))
        return opened

    udp, tcp = in_netns_of(transom, "web", serve)
    with udp, tcp:
        assert values(ask(transom, "web", "web")) == [address(transom, "web")]
        assert values(ask(transom, "web", "web", stream=True)) == [address(transom, "web")]


def test_rubbish_is_answered_or_dropped_and_never_ends_the_resolver(transom, mesh):
    transom.detached("--name", "web", network=mesh)
    good = bytes(DNSRecord.question("web").pack())
    rng = random.Random(7)
    loop = good[:12] + b"\xc0\x0c" + b"\0\1\0\1"
    beyond = good[:12] + b"\xff\xff" + b"\0\1\0\1"
    lengthy = good[:12] + b"\x3f" + b"a" * 63 + (b"\x3f" + b"b" * 63) * 5 + b"\0\0\1\0\1"
    packets = [b"", b"x", good[:11], good[:-3], loop, beyond, lengthy, good[:2] + b"\x80" + good[3:]]
    packets += [rng.randbytes(rng.randrange(1, 600)) for _ in range(200)]
    packets += [bytes(b ^ (rng.random() < 0.05) * rng.randrange(256) for b in good) for _ in range(200)]

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for packet in packets:
                sock.sendto(packet, RESOLVER)
        for packet in packets[:12]:
            with socket.create_connection(RESOLVER, timeout=5) as sock:
                sock.sendall(struct.pack("!H", len(packet)) + packet)

    in_netns_of(transom, "web", send)
    assert values(ask(transom, "web", "web")) == [address(transom, "web")]
    log = (transom.run / "transom/containers" / transom.inspect("web")["Id"] / "supervisor.log").read_text()
    assert "Traceback" not in log


RUBBISH = st.binary(max_size=1500)
PIECE = st.one_of(
    st.binary(max_size=63).map(lambda label: bytes([len(label)]) + label),
    st.integers(0, 0x3FFF).map(lambda offset: (0xC000 | offset).to_bytes(2)),  # a pointer, to itself perhaps
    st.integers(0x40, 0xBF).map(lambda reserved: bytes([reserved])),
    st.sampled_from([b"\0\0\1\0\1", b"\0\0\x1c\0\1", b"\0\0\x29\x10\0\0\0\0\0\0\0"]),  # A, AAAA, OPT
)
MESSAGE = st.tuples(
    st.binary(min_size=4, max_size=4), st.lists(st.integers(0, 3), min_size=4, max_size=4), st.lists(PIECE, max_size=40)
).map(lambda parts: parts[0] + struct.pack("!HHHH", *parts[1]) + b"".join(parts[2]))


def test_whatever_is_sent_the_next_question_is_answered_and_nothing_is_complained_of(alone, transom, place, capfd):
    good, expected = bytes(DNSRecord.question("web").pack()), [address(transom, "web")]
    client = inside(place, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(10)
    client.connect(RESOLVER)

    @settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(RUBBISH | MESSAGE, st.booleans())
    def send(data, stream):
        if stream:
            with inside(place, socket.create_connection, RESOLVER, 10) as connection:
                connection.sendall(struct.pack("!H", len(data)) + data)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65535):
                    pass
        else:
            client.send(data)
        number = os.urandom(2)
        client.send(number + good[2:])
        while (answer := client.recv(65535))[:2] != number or len(answer) <= 12:
            pass
        assert values(DNSRecord.parse(answer)) == expected

    with client:
        send()
    assert capfd.readouterr().err == ""


def test_ten_thousand_questions_leave_nothing_behind(transom, mesh, upstream):
    upstream("10.254.7.1", says("192.0.2.1"))
    transom.detached("--name", "web", "--dns", "10.254.7.1", network=mesh)
    engine = transom.engine()
    pid = next(c.shim_pid for c in engine.state.containers() if c.name == "web")
    engine.close()
    packets = [bytes(DNSRecord.question(*words).pack()) for words in (
        ("web", "A"), ("web.mesh", "AAAA"), ("9.9.9.9.in-addr.arpa", "PTR"), ("www.example.org", "A")
    )]  # fmt: skip

    def questions(count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(10)
            sock.connect(RESOLVER)
            for number in range(count):
                sock.send(packets[number % len(packets)])
                sock.recv(65535)
        for number in range(count // 50):
            exchange(packets[number % len(packets)], stream=True)

    def state():
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.split(":", 1) for line in file)
        return len(os.listdir(f"/proc/{pid}/fd")), int(status["Threads"]), int(status["VmRSS"].split()[0])

    in_netns_of(transom, "web", questions, 1000)
    transom.wait_until(lambda: state()[1] == 2)  # the supervisor's and the resolver's, when the start is over
    before = state()
    in_netns_of(transom, "web", questions, 10_000)
    transom.wait_until(lambda: state()[:2] == before[:2], seconds=5)
    assert state()[2] - before[2] < 3000  # KiB


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda rest: b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + rest))
def test_every_packet_is_read_without_an_error_and_its_refusal_is_an_answer(data):
    question = Question.read(data, stream=False)
    if question.rcode:
        answer = DNSRecord.parse(question.failed(question.rcode))
        assert (answer.header.id, answer.header.qr) == (int.from_bytes(data[:2], "big"), 1)


def asked(name="web", type="A", **header):
    """Make a question, with what is wanted in its header."""
    record = DNSRecord.question(name, type)
    for key, value in header.items():
        setattr(record.header, key, value)
    return record


def test_an_answer_keeps_of_the_questions_flags_what_it_should():
    record = asked(rd=1, cd=1, ad=1, z=1, tc=1, rcode=3)
    for answer in (Question.read(bytes(record.pack()), stream=False).answered(["10.0.0.1"]),
                   Question.read(bytes(record.pack()), stream=False).failed(2)):  # fmt: skip
        header = DNSRecord.parse(answer).header
        assert (header.qr, header.ra, header.rd, header.cd) == (1, 1, 1, 1)
        assert (header.ad, header.z, header.tc) == (0, 0, 0)  # nobody has authenticated anything
        assert header.rcode in (0, 2)


def test_nobody_has_a_name_in_another_class_than_the_internets():
    record = asked()
    assert Question.read(bytes(record.pack()), stream=False).name == "web"
    record.q.qclass = 3  # CH
    assert Question.read(bytes(record.pack()), stream=False).name == ""


def test_another_version_of_edns_is_refused_in_words_of_the_first():
    record = asked()
    record.add_ar(EDNS0(udp_len=1232, version=1))
    question = Question.read(bytes(record.pack()), stream=False)
    (options,) = DNSRecord.parse(question.failed(question.rcode)).ar
    assert (options.edns_rcode << 4 | DNSRecord.parse(question.failed(question.rcode)).header.rcode) == 16
    assert options.edns_ver == 0


@pytest.mark.parametrize("labels", [[b"a" * 63] * 4, [b"a"] * 128, [b"a" * 64]], ids=["256 bytes", "257", "64"])
def test_a_name_that_is_too_long_is_refused(labels):
    good = bytes(asked().pack())
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    question = Question.read(good[:12] + wire + b"\0\1\0\1", stream=True)
    assert question.rcode == RCODE.FORMERR
    assert DNSRecord.parse(question.failed(question.rcode)).header.rcode == RCODE.FORMERR
    longest = b"\x3f" + b"a" * 63
    longest = longest * 3 + b"\x3d" + b"a" * 61 + b"\0"
    assert (len(longest), Question.read(good[:12] + longest + b"\0\1\0\1", stream=True).rcode) == (255, 0)


def test_an_answer_that_is_too_long_is_cut_and_says_so():
    question = Question.read(bytes(DNSRecord.question("many").pack()), stream=False)
    many = [f"10.0.0.{n}" for n in range(200)]
    answer = question.answered(many)
    assert len(answer) <= 512
    cut = DNSRecord.parse(answer)
    assert cut.header.tc
    assert len(cut.rr) > 10
    whole = DNSRecord.parse(Question.read(question.data, stream=True).answered(many))
    assert (whole.header.tc, len(whole.rr)) == (0, 200)


def test_the_size_that_a_client_offers_is_kept():
    record = DNSRecord.question("many")
    record.add_ar(EDNS0(udp_len=1232))
    question = Question.read(bytes(record.pack()), stream=False)
    answer = question.answered([f"10.0.0.{n}" for n in range(200)])
    assert 512 < len(answer) <= 1232
    assert any(extra.rtype == QTYPE.OPT for extra in DNSRecord.parse(answer).ar)


def test_another_servers_long_answer_of_any_type_is_cut():
    question = Question.read(bytes(DNSRecord.question("many", "TXT").pack()), stream=False)
    record = question.record.reply()
    for number in range(9):
        record.add_answer(RR("many", QTYPE.TXT, rdata=TXT(f"{number}" * 200), ttl=60))
    record.add_answer(RR("many", QTYPE.AAAA, rdata=AAAA("fd00::1"), ttl=60))
    cut = DNSRecord.parse(question.fitted(bytes(record.pack())))
    assert cut.header.tc
    assert len(cut.pack()) <= 512


# Clients that others have written


@pytest.fixture
def clients(transom):
    """Start a container with the host's dig(1) and glibc: clients(name, *flags, network=...)."""
    if shutil.which("dig") is None:
        pytest.skip("no dig on this host: install Debian's package bind9-dnsutils")
    here = [path for path in ("/usr", "/lib", "/lib64") if os.path.isdir(path)]
    volumes = [word for path in here for word in ("-v", f"{os.path.realpath(path)}:{path}:ro")]

    def start(name, *flags, network):
        transom.detached("--name", name, *volumes, *flags, network=network)
        return lambda *words: transom("exec", name, "/usr/bin/dig", "+tries=1", "+time=10", *words)

    return start


def test_dig_gets_what_it_asks_for(transom, clients):
    from ipaddress import ip_address

    transom("network", "create", "--ipv6", "--subnet", "fd00:79::/64", "mesh")
    dig = clients("web", "--network-alias", "under_score", network="mesh")
    four, six = (address(transom, "web", key=FAMILIES[type]) for type in ("A", "AAAA"))
    for words in (("web",), ("WEB.Mesh.",), ("under_score",), ("web", "+tcp"), ("web", "+bufsize=1232", "+dnssec"),
                  ("web", "+noedns"), ("web", "+cookie", "+nsid", "+subnet=10.0.0.0/8", "+padding=64")):  # fmt: skip
        assert dig("+short", *words) == four, words
    assert dig("+short", "web", "AAAA") == six
    assert {*dig("+short", "web", "ANY").split()} == {four, six}
    for known in (four, six):
        assert dig("+short", "-x", known) == "web.mesh."
    assert ip_address(six).reverse_pointer in dig("-x", six)
    for type in ("SRV", "MX", "TXT", "CAA", "HTTPS", "SVCB"):
        text = dig("web", type)
        assert "status: NOERROR" in text, type
        assert "ANSWER: 0" in text, type
    flags = re.search("flags: (.*?);", dig("web", "+adflag"))[1].split()
    assert flags == ["qr", "aa", "rd", "ra"]
    assert "status: BADVERS" in dig("web", "+edns=1", "+noednsneg")
    assert "malformed" not in dig("web", "-c", "CH", "TXT") + dig("web", "+zflag")
    assert "status: NOTIMP" in dig("web", "+opcode=update")


def test_dig_and_a_validating_server_speak_to_each_other(transom, mesh, clients, upstream):
    seen = []

    def secure(question, kind):
        seen.extend((extra.edns_do, extra.edns_len) for extra in question.ar)
        answer = says("192.0.2.1")(question, kind)
        answer.header.ad = 1
        answer.add_ar(EDNS0(udp_len=1232, flags="do"))
        return answer

    upstream("10.254.7.1", secure)
    dig = clients("web", "--dns", "10.254.7.1", network=mesh)
    text = dig("+dnssec", "+bufsize=1400", "www.example.org")
    assert seen == [(1, 1400)]
    assert " ad;" in text
    assert "flags: do; udp: 1232" in text


def test_the_c_library_finds_all_of_a_name_and_goes_through_search_domains(transom, mesh, clients, upstream):
    def known(question, kind):
        if str(question.q.qname) == "printer.example.org." and question.q.qtype == QTYPE.A:
            return says("192.0.2.5")(question, kind)
        answer = question.reply()
        answer.header.rcode = RCODE.NXDOMAIN
        return answer

    upstream("10.254.7.1", known)
    for name in ("one", "other"):
        transom.detached("--name", name, "--network-alias", "many", network=mesh)
    clients("web", "--dns", "10.254.7.1", "--dns-search", "lost.org", "--dns-search", "example.org", network=mesh)
    every = {address(transom, "one"), address(transom, "other")}

    def getent(*words):
        lines = transom("exec", "web", "/usr/bin/getent", *words).splitlines()
        return [line.split() for line in lines]

    assert {line[0] for line in getent("ahosts", "many")} == every
    assert {getent("ahosts", "many")[0][0] for _ in range(20)} == every
    assert getent("ahostsv4", "printer")[0][0] == "192.0.2.5"
    assert getent("hosts", address(transom, "other")) == [[address(transom, "other"), "other.mesh"]]
    assert transom.call("exec", "web", "/usr/bin/getent", "hosts", "nobody").code == 2


# The resolver by itself, in a namespace of the test's


@pytest.fixture
def place():
    """A network namespace with its loopback up, and nothing else."""
    fd = create()
    inside(fd, loopback_up)
    yield fd
    os.close(fd)


@pytest.fixture
def alone(transom, mesh, place):
    """A resolver that answers in `place` for the container "web" on mesh, and the engine it asks."""
    id = transom.detached("--name", "web", "--network-alias", "www", "--dns", "10.254.7.1", network=mesh)
    engine = transom.engine()
    resolver = Resolver(engine, id, place)
    resolver.start()
    yield engine
    resolver.close()
    engine.close()


def test_names_of_other_hosts_come_from_the_networks_driver_beside_our_own(alone, transom, place, monkeypatch):
    known = {"www": ("10.99.0.1",), "far": ("10.99.0.2", "fd99::2")}
    asked = []

    def lookup(engine, record, name):
        asked.append((record.name, name))
        return known.get(name, ())

    monkeypatch.setattr("transom_engine.resolver.names.looks_up", lambda engine, record: True)
    monkeypatch.setattr("transom_engine.resolver.serving.lookup", lookup)

    def found(name, type="A"):
        question = DNSRecord.question(name, type)
        return values(DNSRecord.parse(inside(place, exchange, bytes(question.pack()))))

    assert found("far") == ["10.99.0.2"]
    assert found("far", "AAAA") == ["fd99::2"]
    assert found("far.mesh") == ["10.99.0.2"]
    assert {*found("www")} == {address(transom, "web"), "10.99.0.1"}
    assert ("mesh", "far") in asked


def test_a_driver_that_fails_to_look_up_hides_no_local_name(alone, transom, place, monkeypatch, capfd):
    def lookup(engine, record, name):
        raise DriverError("lookup", driver="network far", cause="no answer")

    monkeypatch.setattr("transom_engine.resolver.names.looks_up", lambda engine, record: True)
    monkeypatch.setattr("transom_engine.resolver.serving.lookup", lookup)
    for _ in range(3):
        answer = inside(place, exchange, bytes(DNSRecord.question("www").pack()))
        assert values(DNSRecord.parse(answer)) == [address(transom, "web")]
    assert capfd.readouterr().err == "resolver: DriverError: network far: lookup failed: no answer\n"


def test_without_nftables_the_resolver_takes_port_53_itself(place, monkeypatch):
    monkeypatch.setattr("transom_engine.resolver.serving._redirect", lambda *_: False)
    resolver = Resolver(None, "0" * 64, place)
    with pytest.raises(DriverError) as error:
        Resolver(None, "0" * 64, place)
    assert str(error.value) == "resolver: listening 127.0.0.11:53 failed: Address already in use"
    resolver.close()
    Resolver(None, "0" * 64, place).close()


def test_close_ends_questions_and_connections_under_way_and_leaves_no_descriptor(transom, mesh, place):
    id = transom.detached("--name", "web", "--dns", "127.0.0.9", network=mesh)
    silent = inside(place, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    silent.bind(("127.0.0.9", 53))
    engine = transom.engine()
    left = []
    for _ in range(3):
        resolver = Resolver(engine, id, place)
        resolver.start()
        idle = inside(place, socket.create_connection, RESOLVER)
        waiting = inside(place, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        waiting.settimeout(5)
        waiting.connect(RESOLVER)
        with idle, waiting:
            waiting.send(bytes(DNSRecord.question("www.example.org").pack()))
            waiting.send(bytes(DNSRecord.question("web").pack()))
            assert values(DNSRecord.parse(waiting.recv(512))) == [address(transom, "web")]
            assert silent.recv(512)
            began = time.monotonic()
            resolver.close()
            assert time.monotonic() - began < 0.9
        del resolver
        inside(place, flush)
        gc.collect()
        left.append(sorted(os.listdir("/proc/self/fd")))
    # The first leaves what the engine holds from then on.
    assert left[1] == left[2]
    silent.close()
    engine.close()


def flush():
    """Remove the translation to a resolver that is gone; in a container the namespace goes with it."""
    subprocess.run(["nft", "flush", "ruleset"], check=True)


# resolv.conf


def test_resolv_conf_names_the_resolver_and_keeps_search_and_options():
    host = "nameserver 10.0.0.1\nsearch example.org\noptions timeout:1\n"
    given = {"servers": ["10.0.0.2"], "search": [], "options": [], "host_network": False}
    assert resolv_conf(host, **given, embedded=True) == (
        "nameserver 127.0.0.11\nsearch example.org\noptions timeout:1 ndots:0\n"
    )
    given["options"] = ["ndots:2"]
    assert resolv_conf(host, **given, embedded=True).endswith("options ndots:2\n")
    assert "127.0.0.11" not in resolv_conf(host, **given)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("domain example.org\n", "search example.org\n"),
        ("search one.org\ndomain two.org\n", "search two.org\n"),
        ("options timeout:1\noptions attempts:1 rotate\n", "options timeout:1 attempts:1 rotate\n"),
        ("# nameserver 10.0.0.9\n; search no.org\nsortlist 10.0.0.0\n", ""),
        ("nameserver 127.0.0.1\nnameserver ::1\nnameserver 10.0.0.1 fd00::1\n", "nameserver 10.0.0.1\n"),
    ],
)
def test_the_hosts_resolv_conf_is_read_as_its_manual_says(host, expected):
    text = resolv_conf(host, servers=[], search=[], options=[], host_network=False)
    assert text.replace("nameserver 8.8.8.8\nnameserver 8.8.4.4\n", "") == expected


def test_what_the_user_asks_for_takes_the_place_of_the_hosts():
    host = "nameserver 10.0.0.1\nsearch example.org\noptions timeout:1\n"
    asked = {"servers": ["10.0.0.2", "fd00::2"], "search": ["a.org", "b.org"], "options": ["rotate"]}
    mine = "nameserver 10.0.0.2\nnameserver fd00::2\nsearch a.org b.org\noptions rotate\n"
    assert resolv_conf(host, **asked, host_network=False) == resolv_conf(host, **asked, host_network=True) == mine
    assert "search" not in resolv_conf(host, **{**asked, "search": ["."]}, host_network=False)


def test_behind_the_stub_of_systemd_resolved_are_the_servers_that_a_container_can_reach(transom, tmp_path):
    (tmp_path / "stub").write_text("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch example.org\n")
    (tmp_path / "behind").write_text("nameserver 192.0.2.53\nsearch example.org\n")
    move = (
        "mkdir -p /run/systemd && mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/resolve &&"
        f" cp {tmp_path}/behind /run/systemd/resolve/resolv.conf && mount --bind {tmp_path}/stub /etc/resolv.conf &&"
        ' exec "$@"'
    )
    transom.program = ["unshare", "-m", "sh", "-ec", move, "-", *transom.program]
    seen = {
        network: transom("run", "--rm", "--network", network, "busybox", "cat", "/etc/resolv.conf")
        for network in ("bridge", "host")
    }
    assert seen["bridge"] == "nameserver 192.0.2.53\nsearch example.org"
    assert seen["host"].startswith("nameserver 127.0.0.53\n")


def test_what_a_user_has_written_in_resolv_conf_stays_while_the_container_runs(transom, mesh):
    transom.detached("--name", "web", network="bridge")
    transom("exec", "web", "sh", "-c", "echo nameserver 192.0.2.1 > /etc/resolv.conf")
    transom("network", "connect", mesh, "web")
    assert transom("exec", "web", "cat", "/etc/resolv.conf") == "nameserver 192.0.2.1"
    transom("restart", "-t", "0", "web")
    assert "nameserver 127.0.0.11\n" in transom("exec", "web", "cat", "/etc/resolv.conf")


# hosts


def test_the_hosts_file_has_the_containers_own_name_on_each_network_while_it_is_there(transom, mesh):
    transom.detached("--name", "web", "--hostname", "shop", "--domainname", "example.org", network="bridge")

    def lines():
        return transom("exec", "web", "cat", "/etc/hosts").splitlines()

    first = f"{address(transom, 'web', 'bridge')}\tshop.example.org shop"
    assert lines()[-1] == first
    transom("exec", "web", "sh", "-c", "printf '192.0.2.1\\tmine' >> /etc/hosts")  # without an end of the line
    transom("network", "connect", mesh, "web")
    second = f"{address(transom, 'web')}\tshop.example.org shop"
    assert lines()[-3:] == [first, "192.0.2.1\tmine", second]
    transom("network", "disconnect", "bridge", "web")
    assert lines()[-2:] == ["192.0.2.1\tmine", second]
    assert first not in lines()
    assert transom("exec", "web", "hostname", "-i").split() == [address(transom, "web")]
    dotted = transom("run", "--rm", "--hostname", "shop.example.org", "busybox", "tail", "-n1", "/etc/hosts")
    assert dotted.split()[1:] == ["shop.example.org", "shop"]


def test_the_hosts_file_has_no_ipv6_where_the_container_has_none(transom):
    for value, ours in (("1", 0), ("0", 5)):
        setting = f"net.ipv6.conf.all.disable_ipv6={value}"
        text = transom("run", "--rm", "--network", "bridge", "--sysctl", setting, "busybox", "cat", "/etc/hosts")
        assert sum(":" in line for line in text.splitlines()) == ours


def test_host_gateway_is_the_networks_gateway_or_what_the_config_says(transom, tmp_path):
    transom("network", "create", "--subnet", "10.254.6.0/24", "four")
    transom("network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd00:6::/64", "six")
    config = tmp_path / "daemon.json"
    config.write_text('{"host-gateway-ips": ["192.0.2.9", "fd00::9"]}')
    words = ("--add-host", "me:host-gateway", "--add-host", "printer=192.0.2.7", "busybox", "cat", "/etc/hosts")

    def found(*options, network):
        text = transom(*options, "run", "--rm", "--network", network, *words)
        return [line.partition("\t")[0] for line in text.splitlines() if line.endswith("\tme")]

    assert found(network="four") == ["10.254.6.1"]
    assert found(network="six") == ["fd00:6::1"]
    assert found("--config", config, network="four") == ["192.0.2.9", "fd00::9"]
    assert "192.0.2.7\tprinter" in transom("run", "--rm", "--network", "host", *words[2:])
    assert transom.fails("run", "--network", "none", *words, code=125) == (
        "--add-host me:host-gateway: the container's networks have no gateway; write an address"
    )


def test_a_container_of_the_default_network_keeps_the_hosts_servers(transom):
    transom.detached("--name", "web", network="bridge")
    assert "127.0.0.11" not in transom("exec", "web", "cat", "/etc/resolv.conf")
