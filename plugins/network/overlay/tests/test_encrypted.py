"""Encrypted networks: what goes from host to host is ESP, and only that is taken; secrets follow each other.

Few hosts' kernels have IPsec: `make test-vm TESTS=overlay-encrypted` has a guest whose kernel does.
"""

import itertools
import os
import select
import signal
import socket
import struct
import subprocess
import threading
import time

import pytest

import transom_network_overlay
from transom.contract.network import Endpoint
from transom.errors import NotSupported
from transom.services.netlink import Session
from transom.services.netns import create, inside
from transom_network_overlay import OverlayOptions, encryption
from transom_network_overlay.etcd import Etcd, delete

LACKING = encryption.missing(4)
ipsec = pytest.mark.skipif(bool(LACKING), reason=f"the kernel lacks {LACKING}")
SECRET = OverlayOptions(encrypted="")
MARK = b"what nobody else may read " * 8
PORT = 4793


def states(host):
    """Return the addresses of the associations in a host's kernel."""
    told = inside(host.netns, subprocess.run, ["ip", "xfrm", "state"], capture_output=True, text=True, check=True)
    words = [line.split() for line in told.stdout.splitlines() if line.startswith("src")]
    return [(line[1], line[3]) for line in words]


def policies(host):
    told = inside(host.netns, subprocess.run, ["ip", "xfrm", "policy"], capture_output=True, text=True, check=True)
    return told.stdout


def at(netns, port):
    sock = inside(netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    inside(netns, sock.bind, ("", port))
    return sock


def udp(netns):
    return at(netns, 9999)


class Wire:
    """Everything that goes over the switch."""

    def __init__(self, cluster):
        self.sock = inside(cluster.switch, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 25)  # SO_RCVBUFFORCE: etcd's packets are many

    def frames(self):
        found = []
        while True:
            try:
                found.append(self.sock.recv(4000, socket.MSG_DONTWAIT))
            except BlockingIOError:
                self.sock.close()
                return found


def test_a_kernel_without_ipsec_is_named_and_nothing_is_made(world, monkeypatch):
    """As the hosts of one network may differ, on the host that joins too."""
    lacking = LACKING or "IPsec (CONFIG_XFRM_USER): Protocol not supported"
    monkeypatch.setattr(encryption, "missing", lambda family: lacking)
    with pytest.raises(NotSupported) as caught:
        world.network(name="private", options=SECRET)
    assert str(caught.value) == (
        f"network private: the kernel lacks {lacking}; leave out --opt encrypted, or use hosts that have it"
    )
    assert world.cluster.records() == []


@ipsec
def test_what_goes_from_host_to_host_is_esp_and_nobody_can_read_it(world):
    network, plain = world.network(options=SECRET), world.network()
    assert network.options.secret
    one, two, three = (world.join(number, network) for number in range(3))
    assert one.attachment.mtu == 1416
    clear = world.join(0, plain), world.join(1, plain)
    world.eventually(lambda: one.reaches(two) and three.reaches(one) and clear[0].reaches(clear[1]))
    wire = Wire(world.cluster)
    for sender, receiver in ((one, two), (two, three), clear):
        with udp(sender.netns) as out, udp(receiver.netns) as inward:
            inside(sender.netns, out.sendto, MARK, (receiver.address, 9999))
            inward.settimeout(30)
            assert inward.recv(1000) == MARK
    frames = wire.frames()
    esp = [frame for frame in frames if frame[12:14] == b"\x08\x00" and frame[23] == socket.IPPROTO_ESP]
    readable = [frame for frame in frames if MARK in frame]
    assert len(esp) >= 2
    assert len(readable) >= 1  # the plain network shows that they can be seen at all
    assert all(frame[36:38] == (4789).to_bytes(2) for frame in readable)
    for host in world.hosts:
        assert len(set(states(host))) == 4  # to and from two others


@ipsec
def test_hosts_that_reach_each_other_by_ipv6_keep_it_to_themselves_too(world):
    lacking = encryption.missing(6)
    if lacking:
        pytest.skip(f"the kernel lacks {lacking}")
    drivers = [host.driver(address=f"fd99::{host.number}") for host in world.hosts]
    network = world.network(driver=drivers[0], options=SECRET)
    one, two = (world.join(number, network, driver=drivers[number]) for number in (0, 1))
    assert one.attachment.mtu == 1396
    world.eventually(lambda: one.reaches(two) and two.reaches(one))
    wire = Wire(world.cluster)
    with udp(one.netns) as out, udp(two.netns) as inward:
        out.sendto(MARK, (two.address, 9999))
        inward.settimeout(30)
        assert inward.recv(1000) == MARK
    frames = wire.frames()
    assert [frame for frame in frames if frame[12:14] == b"\x86\xdd" and frame[20] == socket.IPPROTO_ESP]
    assert not [frame for frame in frames if MARK in frame]
    for container in (one, two):
        container.leave()
    for container in (one, two):
        container.driver.delete_network(network=network)


@ipsec
def test_the_largest_packet_fits_and_one_that_is_larger_does_not(world):
    """K7: the network between the hosts carries 1500 bytes."""
    network = world.network(options=SECRET)
    one, two = world.join(0, network), world.join(1, network)
    world.eventually(lambda: one.reaches(two))
    for size, passes in ((one.attachment.mtu, True), (one.attachment.mtu + 1, False)):
        with udp(one.netns) as out, udp(two.netns) as inward:
            out.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
            inward.settimeout(30)
            if passes:
                out.sendto(bytes(size - 28), (two.address, 9999))
                assert len(inward.recv(2000)) == size - 28
            else:
                with pytest.raises(OSError, match="Message too long"):
                    out.sendto(bytes(size - 28), (two.address, 9999))


def vxlan(sender, receiver, vni):
    """Make a packet of a VXLAN from one container to another, with the mark in it, to be sent by UDP."""
    payload = struct.pack("!HHHH", 9999, 9999, 8 + len(MARK), 0) + MARK
    ip = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, 17, 0))
    ip += socket.inet_aton(sender.address) + socket.inet_aton(receiver.address)
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip[10:12] = struct.pack("!H", ~total & 0xFFFF)
    ethernet = bytes.fromhex((receiver.attachment.mac + sender.attachment.mac).replace(":", "")) + b"\x08\x00"
    return struct.pack("!BxxxI", 8, vni << 8) + ethernet + bytes(ip) + payload


@ipsec
@pytest.mark.parametrize(("word", "taken"), [("false", True), ("true", False)])
def test_plain_packets_of_an_encrypted_network_are_dropped(world, word, taken):
    """The same packet, of a host that is no member, gets into a network that is not encrypted."""
    network = world.network(options=OverlayOptions(vni=901, encrypted=word))
    one, two = world.join(0, network), world.join(1, network)
    world.eventually(lambda: one.reaches(two))
    packet = vxlan(one, two, 901)
    with udp(two.netns) as inward, udp(world.hosts[2].netns) as stranger:
        for port in (4789, PORT):
            stranger.sendto(packet, (world.hosts[1].address, port))
        inward.settimeout(30 if taken else 1)
        if taken:
            assert inward.recv(1000) == MARK
        else:
            with pytest.raises(TimeoutError):
                inward.recv(1000)


@ipsec
def test_nothing_is_sent_before_there_is_an_association(world):
    """A host whose associations somebody removed sends nothing at all, until they are made anew."""
    network = world.network(options=SECRET)
    one, two = world.join(0, network), world.join(1, network, watch=False)
    world.eventually(lambda: one.reaches(two))
    inside(world.hosts[1].netns, subprocess.run, ["ip", "xfrm", "state", "flush"], check=True)
    wire = Wire(world.cluster)
    with udp(two.netns) as out:
        for _ in range(3):
            try:
                out.sendto(MARK, (one.address, 9999))
            except OSError:
                pass
    assert not two.reaches(one, seconds=1)
    assert not [frame for frame in wire.frames() if MARK in frame]
    said = two.driver.check(network=network, endpoints=(two.endpoint,))
    assert "the association from 10.99.0.1 to 10.99.0.2 is missing" in said
    two.driver.create_network(network=network)
    assert two.driver.check(network=network, endpoints=(two.endpoint,)) == []
    world.eventually(lambda: two.reaches(one) and one.reaches(two))


@ipsec
def test_secrets_follow_each_other_and_no_packet_is_lost(world):
    """Every packet of a stream in both directions arrives, over several secrets."""
    drivers = [host.driver(**{"key-interval": "3s"}) for host in world.hosts]
    network = world.network(options=SECRET)
    one, two, three = (world.join(number, network, driver=drivers[number]) for number in range(3))
    world.eventually(lambda: one.reaches(two) and one.reaches(three) and two.reaches(three))
    newest = lambda: drivers[0].driver.encryption.known().secrets[0].id  # noqa: E731
    store, begun = inside(world.hosts[0].netns, drivers[0].driver.store), newest()
    inside(world.hosts[0].netns, store.etcd.transact, then=[delete(store.key("rotated"))])  # as the README says
    store.etcd.close()
    got, ended, wire = {1: set(), 2: set()}, threading.Event(), Wire(world.cluster)
    with udp(one.netns) as a, udp(two.netns) as b:
        for sock in (a, b):
            sock.setsockopt(socket.SOL_SOCKET, 33, 1 << 22)  # SO_RCVBUFFORCE

        def receive():
            while not ended.is_set() or select.select([a, b], [], [], 1)[0]:
                for sock in select.select([a, b], [], [], 0.1)[0]:
                    got[1 if sock is a else 2].add(sock.recv(1000))

        thread = threading.Thread(target=receive)
        thread.start()
        count, deadline = 0, time.monotonic() + 120
        while newest() < begun + 3 and time.monotonic() < deadline:
            for sock, target in ((a, two), (b, one)):
                sock.sendto(count.to_bytes(4) + MARK, (target.address, 9999))
            count += 1
            time.sleep(0.005)
        ended.set()
        thread.join()
    assert newest() >= begun + 3
    assert [len(got[1]), len(got[2])] == [count, count]
    assert not [frame for frame in wire.frames() if MARK in frame]
    for host in world.hosts:
        world.eventually(lambda host=host: len(states(host)) == 6)  # from two others by two secrets, to them by one


def die_at(step):
    """Have this process killed at that step of what it does: before or behind a word to the kernel, etcd, a file."""
    count = itertools.count(1)

    def spoil(owner, name):
        real = getattr(owner, name)

        def call(*args, **words):
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*args, **words)
            if next(count) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, call)

    spoil(Session, "request")
    spoil(Etcd, "transact")
    for module in (encryption, transom_network_overlay):
        spoil(module, "write_atomic")


def killed(step, work):
    """Do it in a process that is killed at that step; False when it ended before."""
    pid = os.fork()
    if pid == 0:
        try:
            die_at(step)
            work()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status in {0, signal.SIGKILL}
    return status == signal.SIGKILL


@pytest.mark.parametrize("options", [OverlayOptions(), pytest.param(SECRET, marks=ipsec)])
def test_killed_at_any_step_of_joining_a_host_leaves_nothing_says_nothing_in_the_clear_and_goes_on(world, options):
    """Z3: also between etcd's record and the associations; what is in etcd goes with the next command."""
    network = world.network(options=options)
    one = world.join(0, network)
    wire, steps = Wire(world.cluster), 0
    for step in itertools.count(1):
        driver, netns = world.hosts[1].driver(), create()
        endpoint = Endpoint(id=os.urandom(32).hex(), container="c" * 64, names=("dying",))

        def join(driver=driver, netns=netns, endpoint=endpoint):
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=driver.allocate(network=network, endpoint=endpoint), netns=netns)

        if not killed(step, join):
            steps = step
        try:
            with udp(netns) as out:
                out.sendto(MARK, (one.address, 9999))
        except OSError:
            pass  # it has no interface yet, or nothing lets it out
        driver.recover()
        driver.detach(network=network, endpoint=endpoint)
        driver.release(network=network, endpoint=endpoint)
        os.close(netns)
        assert driver.owned().endpoints == frozenset()
        assert {key.partition(f"{network.id}/")[2] for key in world.cluster.records()} <= {
            "", one.address, one.endpoint.id
        }  # fmt: skip
        if steps:
            break
    assert steps > 20
    two = world.join(1, network)
    world.eventually(lambda: one.reaches(two) and two.reaches(one))
    seen = [frame for frame in wire.frames() if MARK in frame]
    assert not (options.secret and seen)


@ipsec
def test_killed_at_any_step_a_host_takes_part_in_the_next_secret(world):
    """And it loses nobody: behind each death both hosts are reached, under the secret that has followed."""
    network = world.network(options=SECRET)
    one, two = world.join(0, network), world.join(1, network, watch=False)
    world.eventually(lambda: one.reaches(two) and two.reaches(one))
    wire, driver, there = Wire(world.cluster), world.hosts[1].driver(), world.hosts[1].netns
    newest = lambda: driver.driver.encryption.known().secrets[0].id  # noqa: E731

    def follow():
        store = driver.driver.store()
        store.etcd.transact(then=[delete(store.key("rotated"))])
        begun, deadline = newest(), time.monotonic() + 60
        while newest() == begun and time.monotonic() < deadline:
            store.present_host()
            driver.driver.look_after_secrets(store)
        driver.driver.look_after_secrets(store)
        store.etcd.close()

    begun = newest()
    step = 1
    while killed(step, lambda: inside(there, follow)):
        assert one.reaches(two, seconds=10), step
        assert two.reaches(one, seconds=10), step
        step += 1
    assert step > 10
    assert newest() > begun
    assert not [frame for frame in wire.frames() if MARK in frame]


@ipsec
def test_who_leaves_or_dies_takes_its_associations_along(world):
    network = world.network(options=SECRET)
    one = world.join(0, network, driver=world.hosts[0].driver(grace="6s"))
    two, three = world.join(1, network), world.join(2, network)
    world.eventually(lambda: one.reaches(two) and one.reaches(three))
    store = inside(world.hosts[0].netns, world.hosts[0].driver().driver.store)
    takes = lambda: inside(world.hosts[0].netns, store.secrets)[0].takes.keys()  # noqa: E731
    world.eventually(lambda: takes() == {"h1", "h2", "h3"})
    two.leave()
    assert states(world.hosts[1]) == []
    assert "h2" not in takes()  # or the next secret would wait for it
    store.etcd.close()
    world.eventually(lambda: not any("10.99.0.2" in pair for pair in states(world.hosts[0])))
    three.kill_watch()
    world.eventually(lambda: states(world.hosts[0]) == [])
    again = world.join(1, network)
    world.eventually(lambda: one.reaches(again))
    three.watch()
    world.eventually(lambda: one.reaches(three) and again.reaches(three))
    for container in (one, again, three):
        container.leave()
    for host in world.hosts:
        host.driver().delete_network(network=network)
        assert (states(host), policies(host)) == ([], "")


@ipsec
def test_what_a_crash_left_is_removed_and_what_others_have_stays(world):
    host = world.hosts[0]
    words = "proto esp spi 0x1234 reqid 7 mode transport aead rfc4106(gcm(aes)) 0x" + "00" * 20 + " 128"
    add = ["ip", "xfrm", "state", "add", "src", "192.0.2.1", "dst", "192.0.2.2", *words.split()]
    inside(host.netns, subprocess.run, add, check=True)
    try:
        driver = host.driver().driver
        others = [encryption.Site(host="h2", vtep="10.99.0.2", boot="b")]
        own = encryption.Site(host="h1", vtep="10.99.0.1", boot="a")
        wanted = encryption.plan(own, others, encryption.Secrets(secrets=(encryption.fresh(1),)))
        driver.run.mkdir(parents=True, exist_ok=True)
        inside(host.netns, driver.encryption.program, "10.99.0.1", wanted)
        assert len(states(host)) == 3
        assert inside(host.netns, driver.recover) == ["removed the encryption of networks that are gone"]
        assert states(host) == [("192.0.2.1", "192.0.2.2")]
        assert policies(host) == ""
        assert inside(host.netns, driver.recover) == []
    finally:
        inside(host.netns, subprocess.run, ["ip", "xfrm", "state", "flush"], check=True)


def test_without_an_association_nothing_gets_out_or_in(world, tmp_path):
    """The policies alone, which kernels know that have no ESP: other ports, and hosts without them, are free."""
    try:
        Session(encryption.XFRM).__exit__()
    except OSError as error:
        pytest.skip(f"the kernel lacks IPsec (CONFIG_XFRM_USER): {error.strerror}")
    one, two = world.hosts[:2]
    ours = encryption.Encryption(tmp_path, PORT)
    inside(one.netns, ours.program, one.address, encryption.Plan())
    try:
        for port, free in ((PORT, False), (PORT + 1, True)):
            with at(one.netns, port) as here, at(two.netns, port) as there:
                here.settimeout(30 if free else 1)
                there.sendto(MARK, (one.address, port))
                if free:
                    assert here.recv(1000) == MARK
                    assert here.sendto(MARK, (two.address, port)) == len(MARK)
                else:
                    with pytest.raises(TimeoutError):
                        here.recv(1000)
                    with pytest.raises(PermissionError):
                        here.sendto(MARK, (two.address, port))
        assert inside(one.netns, ours.differences, encryption.Plan()) == []
        assert inside(two.netns, ours.differences, encryption.Plan()) == ["plain packets are not refused"]
    finally:
        assert inside(one.netns, ours.clear)
    assert not inside(one.netns, ours.clear)
    assert policies(one) == ""


def test_of_hosts_that_have_a_secret_follow_at_once_one_does(world):
    """And only when it is time: the older one stays, the oldest goes."""
    stores = [inside(host.netns, host.driver().driver.store) for host in world.hosts]
    first, *_ = stores
    inside(world.hosts[0].netns, first.first_secrets, encryption.Secrets(), 60)
    for _ in range(2):
        inside(world.hosts[0].netns, first.etcd.transact, then=[delete(first.key("rotated"))])
        known, due = inside(world.hosts[0].netns, first.secrets)
        assert due
        for store, host in zip(stores, world.hosts, strict=True):
            inside(host.netns, store.rotate, known, 60)
        after, due = inside(world.hosts[2].netns, stores[2].secrets)
        assert not due
        newest = known.secrets[0]
        assert [secret.id for secret in after.secrets] == [newest.id + 1, newest.id]
        assert after.secrets[1] == newest
    for store in stores:
        store.etcd.close()


def site(host, address, boot="x"):
    return encryption.Site(host=host, vtep=address, boot=boot)


def test_keys_differ_by_direction_host_boot_and_secret():
    a, b, later = site("a", "10.0.0.1"), site("b", "10.0.0.2"), site("b", "10.0.0.2", "y")
    secrets = [encryption.Secret(id=1, secret=bytes(64)), encryption.Secret(id=2, secret=b"\1" * 64)]
    made = [encryption.derive(s, *pair) for s in secrets for pair in ((a, b), (b, a), (a, later))]
    assert len({one.key for one in made}) == len({one.spi for one in made}) == 6
    assert made[0] == encryption.derive(secrets[0], a, b)


def test_to_each_host_goes_the_newest_secret_that_it_takes():
    own, new, old = site("own", "10.0.0.1"), site("new", "10.0.0.2"), site("old", "10.0.0.3")
    unknown = site("unknown", "10.0.0.4")
    known = encryption.Secrets(secrets=(encryption.fresh(8), encryption.fresh(7)), takes={"new": 8, "old": 7})
    plan = encryption.plan(own, (new, old, unknown), known)
    by = {one.host: plan.associations[one.vtep, plan.ways[one.vtep]].secret for one in (new, old, unknown)}
    assert by == {"new": 8, "old": 7, "unknown": 7}
    assert sorted(one.secret for one in plan.associations.values() if one.target == own.vtep) == [7, 7, 7, 8, 8, 8]
