"""Three hosts as network namespaces, each with a member of etcd: what only several hosts show.

One group of cases, as they share the hosts; each case has its own network, and what it stops it starts again.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from functools import partial

import pytest

from transom.contract.network import Endpoint, Network, Subnet
from transom.drivers import Drivers
from transom.errors import ConfigError, Conflict, DriverError, NotFound
from transom.services.netns import create, inside
from transom_conformance.network import TCP, ip_batch, ip_json, together
from transom_network_overlay import OverlayOptions
from transom_network_overlay.examples import CLIENTS, PEERS, await_etcd, start, stop

pytestmark = pytest.mark.xdist_group("overlay")

PATIENCE = 45.0
NAMES = ("h1", "h2", "h3")
MEMBERS = [f"http://10.99.0.{number}:{CLIENTS}" for number in (1, 2, 3)]
CLUSTER = ",".join(f"{name}=http://10.99.0.{number}:{PEERS}" for number, name in enumerate(NAMES, 1))


class Host:
    """A namespace on the switch, with a member of etcd and the driver."""

    def __init__(self, cluster, number):
        self.cluster, self.name, self.address = cluster, NAMES[number - 1], f"10.99.0.{number}"
        self.number, self.netns, self.member = number, create(), None
        port = f"port{number}"
        inside(
            cluster.switch, ip_batch,
            f"link add {port} type veth peer name up0 netns /proc/{os.getpid()}/fd/{self.netns}",
            f"link set {port} master br0 up",
        )  # fmt: skip
        inside(self.netns, ip_batch, "link set lo up", f"address add {self.address}/24 dev up0", "link set up0 up")

    def start_member(self):
        folder = self.cluster.path / f"etcd-{self.name}"
        self.member = inside(self.netns, start, self.name, folder, address=self.address, cluster=CLUSTER)

    def stop_member(self):
        stop(self.member)

    def driver(self, **options):
        """Open the driver anew, as an engine that was restarted."""
        place = self.cluster.path / self.name
        words = {"etcd": ",".join(MEMBERS), "host": self.name, "address": self.address, "lease": "2s", **options}
        opened = Drivers(state=place / "state", run=place / "run").open("network", "overlay", words, where="here")
        return On(opened, self.netns)

    def cable(self, word):
        """Pull or plug the cable."""
        inside(self.cluster.switch, ip_batch, f"link set port{self.number} {word}")


class On:
    """A driver, each of whose operations is called on its host."""

    def __init__(self, driver, netns):
        self.driver, self.netns = driver, netns

    def __getattr__(self, name):
        found = getattr(self.driver, name)
        return partial(inside, self.netns, found) if callable(found) else found


class Cluster:
    def __init__(self, path):
        self.path, self.switch = path, create()
        inside(self.switch, ip_batch, "link add br0 type bridge", "link set br0 up")
        self.hosts = [Host(self, number) for number in (1, 2, 3)]
        self.start()

    def start(self):
        for host in self.hosts:
            host.start_member()
        for host in self.hosts:
            inside(host.netns, await_etcd, f"http://{host.address}:{CLIENTS}")

    def stop(self):
        for host in self.hosts:
            host.stop_member()

    def close(self):
        self.stop()
        for host in self.hosts:
            os.close(host.netns)
        os.close(self.switch)

    def records(self):
        """Return all keys but the hosts'."""
        keys = []
        with_store = self.hosts[0].driver().driver
        store = inside(self.hosts[0].netns, with_store.store)
        try:
            found = inside(self.hosts[0].netns, store.etcd.read, store.key("")).found[0]
        finally:
            store.etcd.close()
        for pair in found:
            kind = pair.key.removeprefix(store.key("")).partition("/")[0]
            if kind not in {"host", "boot", "pools"}:
                keys.append(pair.key)
        return keys


class Container:
    """A container on a host, watched for by a process of its own, as a supervisor is."""

    def __init__(self, world, host, network, *, watch=True, driver=None, **fields):
        self.world, self.host, self.network = world, host, network
        self.driver, self.netns = driver or host.driver(), create()
        name = fields.pop("names", (f"c{len(world.containers)}-{host.name}",))
        self.endpoint = Endpoint(id=os.urandom(32).hex(), container=os.urandom(32).hex(), names=name, **fields)
        self.pid, self.server = 0, None
        world.containers.append(self)
        self.driver.create_network(network=network)
        self.endpoint = self.driver.allocate(network=network, endpoint=self.endpoint)
        self.attachment = self.driver.attach(network=network, endpoint=self.endpoint, netns=self.netns)
        self.server = inside(self.netns, socket.create_server, ("::", 80), family=socket.AF_INET6, dualstack_ipv6=True)
        if watch:
            self.watch()

    @property
    def address(self):
        return self.endpoint.addresses[0].partition("/")[0]

    def watch(self):
        stop, self.signal = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            try:
                self.driver.watch(network=self.network, endpoint=self.endpoint, netns=self.netns, stop=stop)
            finally:
                os._exit(0)
        os.close(stop)

    def kill_watch(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.signal)
        self.pid = 0

    def end_watch(self):
        if self.pid:
            os.write(self.signal, b"x")  # the watchers forked later have this end open too
            os.waitpid(self.pid, 0)
            os.close(self.signal)
            self.pid = 0

    def leave(self):
        self.end_watch()
        self.driver.detach(network=self.network, endpoint=self.endpoint)
        self.driver.release(network=self.network, endpoint=self.endpoint)
        self.close()

    def close(self):
        if self.server:
            self.server.close()
        if self.netns >= 0:
            os.close(self.netns)
        self.netns = -1
        if self in self.world.containers:
            self.world.containers.remove(self)

    def reaches(self, other, address=None, *, seconds=1.0):
        """Say whether a connection comes about, and check that the source address is kept."""
        address = address or other.address
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        mine = {a.partition("/")[0] for a in self.endpoint.addresses}
        with inside(self.netns, socket.socket, family, TCP) as client:
            client.settimeout(seconds)
            other.server.settimeout(seconds)
            try:
                client.connect((address, 80))
                port = client.getsockname()[1]
                while True:
                    peer, source = other.server.accept()
                    peer.close()
                    if source[1] == port and source[0].removeprefix("::ffff:") in mine:
                        break  # others are of attempts that were given up
            except OSError:
                return False
        return True


class World:
    def __init__(self, cluster):
        self.cluster, self.hosts, self.containers, self.networks = cluster, cluster.hosts, [], []

    def network(self, *, driver=None, name="", **fields):
        name = name or f"net-{os.urandom(4).hex()}"
        network = Network(id=os.urandom(32).hex(), name=name, **{"options": OverlayOptions(), **fields})
        network = (driver or self.hosts[0].driver()).settle(network=network)
        self.networks.append(network)
        return network

    def join(self, host, network, **fields):
        return Container(self, self.hosts[host], network, **fields)

    def clean_up(self):
        for container in list(self.containers):
            container.leave()
        for host in self.hosts:
            for network in self.networks:
                host.driver().delete_network(network=network)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    for program in ("etcd", "ip"):
        if not shutil.which(program):
            pytest.skip(f"the program {program} is missing: install etcd-server, iproute2")
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    yield cluster
    cluster.close()


@pytest.fixture
def world(cluster):
    world = World(cluster)
    yield world
    world.clean_up()
    assert cluster.records() == []
    for host in cluster.hosts:
        assert {link["ifname"] for link in inside(host.netns, ip_json, "link")} == {"lo", "up0"}


def eventually(holds):
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, "it never came to hold"
        time.sleep(0.02)


class Frames:
    """What VXLAN carries over the switch: frames to one, and frames to many."""

    def __init__(self, cluster):
        self.sock = inside(cluster.switch, socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)

    def count(self):
        one = many = 0
        with self.sock:
            while True:
                try:
                    frame = self.sock.recv(200, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                if frame[12:14] == b"\x08\x00" and frame[23] == 17 and frame[36:38] == (4789).to_bytes(2):
                    if frame[50] & 1:
                        many += 1
                    else:
                        one += 1
        return one, many


def test_all_reach_all_by_both_families_and_nothing_is_flooded(world):
    """K10, K12: three hosts, six containers; an address that nobody has is asked for as well."""
    network = world.network(subnets=(Subnet(pool="10.201.0.0/24"), Subnet(pool="fd01:201::/64")))
    containers = [world.join(number % 3, network) for number in range(6)]
    first = containers[0]
    eventually(lambda: all(first.driver.lookup(network=network, name=c.endpoint.names[0]) for c in containers[1::3]))
    frames = Frames(world.cluster)
    for one in containers:
        for other in containers:
            if one is not other:
                eventually(lambda one=one, other=other: one.reaches(other))
                eventually(
                    lambda one=one, other=other: one.reaches(other, other.endpoint.addresses[1].partition("/")[0])
                )
    assert not first.reaches(containers[1], "10.201.0.200", seconds=0.5)
    one, many = frames.count()
    assert one > 0
    assert many == 0


def test_names_are_known_on_the_other_hosts_and_forgotten_with_their_containers(world):
    """D1, D6: all addresses of a name that several have; those on the host itself are the engine's."""
    network = world.network()
    one = world.join(0, network, names=("web", "alias"))
    two, three = world.join(1, network, names=("db", "alias")), world.join(2, network, names=("alias",))
    lookup = partial(one.driver.lookup, network=network)
    eventually(lambda: set(lookup(name="alias")) == {two.address, three.address})
    assert lookup(name="db") == (two.address,)
    assert lookup(name="web") == lookup(name="nobody") == ()
    two.leave()
    eventually(lambda: lookup(name="db") == ())
    assert lookup(name="alias") == (three.address,)


def test_a_container_that_moves_is_reached_at_its_new_host_in_less_than_a_second(world):
    """K10: with the same address; the best of several moves, as hosts are busy."""
    network = world.network()
    client = world.join(0, network)
    moving = world.join(1, network, names=("moving",))
    eventually(lambda: client.reaches(moving))
    times = []
    for turn in range(5):
        address = moving.endpoint.addresses
        moving.leave()
        moving = world.join(2 - turn % 2, network, names=("moving",), addresses=address, static=True)
        assert moving.endpoint.addresses == address
        begun = time.monotonic()
        eventually(lambda moving=moving: client.reaches(moving, seconds=0.3))
        times.append(time.monotonic() - begun)
        if times[-1] < 1.0:
            break
    assert min(times) < 1.0, times


def test_one_member_of_etcd_less_is_not_noticed(world):
    """K11: also by those who were connected to it."""
    network = world.network()
    one, two = world.join(0, network), world.join(1, network)
    world.hosts[0].stop_member()
    try:
        three = world.join(2, network, names=("late",))
        for container in (one, two):
            eventually(lambda container=container: container.reaches(three))
        eventually(lambda: one.driver.lookup(network=network, name="late") == (three.address,))
    finally:
        world.hosts[0].start_member()
        inside(world.hosts[0].netns, await_etcd, MEMBERS[0])


def test_without_etcd_what_works_goes_on_and_everything_is_caught_up_with_later(world):
    """K11: traffic, names and leaving go on; a new network, address or host is refused with the reason."""
    network = world.network()
    one, two, gone = world.join(0, network), world.join(1, network, names=("two",)), world.join(2, network)
    third = world.join(2, network)
    for container in (two, gone):
        eventually(lambda container=container: one.reaches(container))
    world.cluster.stop()
    try:
        driver = world.hosts[0].driver()
        with pytest.raises(DriverError, match=r"etcd cannot be reached \(http://10.99.0.1:2379: .*refused") as caught:
            world.network(driver=driver)
        assert "networks that are there go on; make it later" in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(DriverError, match="what runs goes on; try again when it is back"):
            driver.allocate(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))
        with pytest.raises(DriverError, match="etcd cannot be reached"):
            driver.networks()
        driver.create_network(network=network)  # which is there
        assert one.reaches(two, seconds=10)
        assert two.reaches(one, seconds=10)
        assert third.reaches(one, seconds=10)
        assert one.driver.lookup(network=network, name="two") == (two.address,)
        gone.leave()
        # Longer than a host's lease lasts: nobody is taken for dead.
        time.sleep(3)
        assert one.reaches(two, seconds=10)
    finally:
        world.cluster.start()
    late = world.join(1, network)
    for container in (one, two, third):
        eventually(lambda container=container: container.reaches(late))
    eventually(lambda: not [key for key in world.cluster.records() if key.endswith(gone.endpoint.id)])
    assert one.reaches(two, seconds=10)


def test_a_host_that_is_cut_off_goes_on_by_itself_and_catches_up(world):
    """K11: within the grace nothing of it is removed, and what happened meanwhile is learned at once."""
    network = world.network()
    one, leaving = world.join(0, network), world.join(1, network, names=("leaving",))
    two, three = world.join(2, network), world.join(2, network)
    eventually(lambda: two.reaches(leaving))
    world.hosts[2].cable("down")
    try:
        leaving.leave()
        late = world.join(1, network, names=("late",))
        assert two.reaches(three, seconds=10)
        time.sleep(3)  # longer than the lease
        ids = {two.endpoint.id, three.endpoint.id}
        assert ids <= {key.rpartition("/")[2] for key in world.cluster.records()}
    finally:
        world.hosts[2].cable("up")
    eventually(lambda: two.reaches(late))
    eventually(lambda: one.reaches(three))
    eventually(lambda: two.driver.lookup(network=network, name="leaving") == ())


def test_a_host_that_is_gone_for_long_is_forgotten_and_may_come_back(world):
    """Its endpoints and addresses are removed after the grace; when it is heard of again they are recorded anew."""
    network = world.network()
    one = world.join(0, network, driver=world.hosts[0].driver(grace="1s"))
    lost = world.join(2, network, names=("lost",))
    alive = world.join(1, network, names=("alive",))
    eventually(lambda: one.reaches(lost))
    lost.kill_watch()
    recorded = lambda: [key for key in world.cluster.records() if "/ep/" in key or "/ipam/" in key]  # noqa: E731
    eventually(lambda: len(recorded()) == 4)
    assert one.driver.lookup(network=network, name="lost") == ()
    assert one.reaches(alive, seconds=10)
    lost.watch()
    eventually(lambda: one.reaches(lost))
    assert len(recorded()) == 6


def test_after_a_reboot_what_a_host_had_is_removed_at_once(world, tmp_path):
    """Z5: by the host itself, at its first word; what the other hosts have stays."""
    network = world.network()
    one = world.join(0, network)
    two = world.join(1, network, names=("two",), watch=False)
    eventually(lambda: one.driver.lookup(network=network, name="two"))
    boot = tmp_path / "boot_id"
    boot.write_text("another boot\n")
    driver = world.hosts[1].driver()
    driver.driver.boot_id = str(boot)
    driver.allocate(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))
    eventually(lambda: one.driver.lookup(network=network, name="two") == ())
    left = [key.rpartition("/")[2] for key in world.cluster.records() if "/ep/" in key]
    assert left == [one.endpoint.id]
    driver.release(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))
    two.leave()


def test_another_host_of_the_same_name_is_refused(world):
    network = world.network()
    world.join(0, network)
    driver = world.hosts[1].driver(host="h1")
    eventually(lambda: any("host/h1" in key for key in all_keys(world)))
    with pytest.raises(Conflict, match=r"another host at 10.99.0.1 goes by the name h1.*option host"):
        driver.allocate(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))


def all_keys(world):
    host = world.hosts[2]
    store = inside(host.netns, host.driver().driver.store)
    try:
        return [pair.key for pair in inside(host.netns, store.etcd.read, store.key("")).found[0]]
    finally:
        store.etcd.close()


def test_no_address_is_given_twice_on_three_hosts_at_once(world, tmp_path):
    """A1, A2: and when none is left it says so; one that is given back is given again."""
    network = world.network(subnets=(Subnet(pool="10.202.0.0/27", gateway="10.202.0.1"),))

    def work(worker):
        driver = world.hosts[worker % 3].driver()
        for number in range(5):
            endpoint = Endpoint(id=f"{worker:x}{number:x}" * 32, container="c" * 64)
            given = driver.allocate(network=network, endpoint=endpoint)
            (tmp_path / f"{worker}.{number}").write_text(given.addresses[0])

    codes = together(work, 6)
    given = [file.read_text() for file in tmp_path.iterdir()]
    assert set(codes) <= {0, 2}  # 29 addresses for 30: somebody hears of a conflict
    assert len(given) == len(set(given)) == 29
    driver = world.hosts[1].driver()
    late = Endpoint(id="d" * 64, container="c" * 64)
    with pytest.raises(Conflict, match=r"has no free address in 10.202.0.0/27"):
        driver.allocate(network=network, endpoint=late)
    driver.release(network=network, endpoint=Endpoint(id="10" * 32, container="c" * 64))
    assert driver.allocate(network=network, endpoint=late).addresses[0] in given
    assert driver.allocate(network=network, endpoint=late) == driver.allocate(network=network, endpoint=late)


def test_asked_addresses_are_given_or_refused_in_words(world):
    """A3: in use, reserved, the gateway, outside."""
    subnet = Subnet(pool="10.203.0.0/24", gateway="10.203.0.1", range="10.203.0.128/25", reserved={"nas": "10.203.0.9"})
    network = world.network(subnets=(subnet,))
    one = world.join(0, network)
    assert one.address == "10.203.0.128"
    driver = world.hosts[1].driver()

    def ask(address):
        endpoint = Endpoint(id="e" * 64, container="c" * 64, addresses=(address,), static=True)
        return driver.allocate(network=network, endpoint=endpoint).addresses

    for address, error, words in (
        (one.address, Conflict, f"belongs to endpoint {one.endpoint.id[:12]} on host h1; ask for another one"),
        ("10.203.0.9", Conflict, "is reserved (nas)"),
        ("10.203.0.1", Conflict, "is its gateway"),
        ("10.204.0.7", ConfigError, "is no host's address in the subnets of network"),
        ("10.203.0.255", ConfigError, "is no host's address"),
        ("fd00::7", ConfigError, "fd00::7 is no host's address in the subnets of network"),
        ("nowhere", ConfigError, "'nowhere' is not an IP address"),
    ):
        with pytest.raises(error) as caught:
            ask(address)
        assert words in str(caught.value)
    assert ask("10.203.0.77") == ("10.203.0.77/24",)
    driver.release(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))


def test_networks_are_the_same_on_all_hosts(world):
    """Made on one, listed and used on the others, removed on any of them when nobody is on it."""
    options = OverlayOptions(vni=777, mtu=1400)
    network = world.network(name="shared", options=options, labels={"a": "b"}, internal=True)
    assert network.subnets[0].pool.startswith("10.")
    for host in world.hosts:
        assert network in host.driver().networks()
    user = world.join(2, network, names=("user",))
    assert user.attachment.mtu == 1400
    with pytest.raises(Conflict, match=r"network shared has active endpoints: user on h3; stop or disconnect"):
        world.hosts[0].driver().delete_network(network=network)
    for wrong, words in (
        ({"name": "shared"}, "network shared exists already on these hosts"),
        ({"options": options}, "VNI 777 is that of network shared"),
        ({"subnets": network.subnets}, f"overlaps {network.subnets[0].pool} of network shared"),
    ):
        with pytest.raises(Conflict) as caught:
            world.network(driver=world.hosts[1].driver(), **wrong)
        assert words in str(caught.value)
    user.leave()
    world.hosts[1].driver().delete_network(network=network)
    assert world.hosts[0].driver().networks() == ()
    with pytest.raises(Conflict, match="network shared is on no host any more"):
        world.hosts[0].driver().create_network(network=network)
    with pytest.raises(NotFound, match="it was removed on another host"):
        world.hosts[2].driver().allocate(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))


def test_entries_that_somebody_changes_are_put_right(world, monkeypatch):
    """L10: the kernel's tables are compared now and then with what they should be."""
    monkeypatch.setattr("transom_network_overlay.following.COMPARE", 0.5)
    network = world.network()
    one, two = world.join(0, network), world.join(1, network)
    eventually(lambda: one.reaches(two))
    device = f"vx-{network.id[:12]}"
    inside(
        world.hosts[0].netns, subprocess.run, ["bridge", "fdb", "del", two.attachment.mac, "dev", device], check=True
    )
    inside(world.hosts[0].netns, ip_batch, f"neigh del {two.address} dev {device}")
    eventually(lambda: one.reaches(two))


def test_the_watch_goes_over_to_another_container_when_the_one_is_killed(world):
    """The lock is the kernel's: nobody has to tell."""
    network = world.network()
    one, other = world.join(0, network), world.join(0, network)
    one.kill_watch()
    late = world.join(1, network, names=("late",))
    eventually(lambda: other.driver.lookup(network=network, name="late"))
    assert other.reaches(late, seconds=10)
    one.watch()


def test_words_of_the_config_that_cannot_be_are_refused(world, tmp_path):
    for options, words in (
        ({"etcd": "10.0.0.1:2379"}, "is not a member such as http://10.0.0.1:2379"),
        ({"address": "here"}, "'here' is not an IP address"),
        ({"etcd-cert": "a.pem"}, "etcd-cert and etcd-key go together"),
        ({"lease": "1s"}, "lease is at least 2s"),
    ):
        with pytest.raises(ConfigError) as caught:
            world.hosts[0].driver(**options)
        assert words in str(caught.value)
    place = Drivers(state=tmp_path, run=tmp_path)
    bare = place.open("network", "overlay", {}, where="here")
    assert bare.networks() == ()
    with pytest.raises(ConfigError, match=r"overlay needs etcd: set transom.driver-opts.network.overlay.etcd"):
        bare.settle(network=Network(id="a" * 64, name="n"))
