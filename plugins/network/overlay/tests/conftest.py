"""Three hosts as network namespaces on a switch, each with a member of etcd, for the cases that need several."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from functools import partial

import pytest

from transom.contract.network import Endpoint, Network
from transom.drivers import Drivers
from transom.services.netns import create, inside
from transom_conformance.network import TCP, ip_batch, ip_json
from transom_network_overlay import OverlayOptions
from transom_network_overlay.examples import CLIENTS, PEERS, await_etcd, start, stop

PATIENCE = 45.0
NAMES = ("h1", "h2", "h3")
MEMBERS = [f"http://10.99.0.{number}:{CLIENTS}" for number in (1, 2, 3)]
CLUSTER = ",".join(f"{name}=http://10.99.0.{number}:{PEERS}" for number, name in enumerate(NAMES, 1))


class Host:
    """A namespace on the switch, with a member of etcd and the driver."""

    def __init__(self, cluster, number):
        self.cluster, self.name, self.address = cluster, NAMES[number - 1], f"10.99.0.{number}"
        self.number, self.netns, self.member, self.url = number, create(), None, MEMBERS[number - 1]
        port = f"port{number}"
        inside(
            cluster.switch, ip_batch,
            f"link add {port} type veth peer name up0 netns /proc/{os.getpid()}/fd/{self.netns}",
            f"link set {port} master br0 up",
        )  # fmt: skip
        inside(
            self.netns,
            ip_batch,
            "link set lo up",
            f"address add {self.address}/24 dev up0",
            f"address add fd99::{number}/64 dev up0 nodad",
            "link set up0 up",
        )

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
            if kind not in {"host", "boot", "pools", "cluster", "secrets", "takes", "rotated"}:
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
                self.driver.watch(
                    network=self.network, endpoint=self.endpoint, netns=self.netns, stop=stop, changed=print
                )
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

    @staticmethod
    def eventually(holds):
        """Wait until it holds."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, "it never came to hold"
            time.sleep(0.02)

    def frames(self):
        return Frames(self.cluster)

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
