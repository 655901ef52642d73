"""Networks over several hosts, by the command: three engines with roots of their own, each in a namespace of its own.

They share a cluster of etcd, a member on each. One group of cases, as they share the hosts.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from transom.services.netns import create, inside
from transom_conformance.network import ip_batch
from transom_network_overlay.examples import CLIENTS, PEERS, await_etcd, start, stop
from transom_test_runner import Transom

NAMES = ("north", "east", "west")
SERVE = "mkdir /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"
GET = ("busybox", "timeout", "5", "busybox", "wget", "-q", "-O", "-")  # its own -T crashes


class Hosts:
    """Three engines, a switch between them, and a member of etcd on each."""

    def __init__(self, path, images):
        self.path, self.switch, self.members = path, create(), []
        inside(self.switch, ip_batch, "link add br0 type bridge", "link set br0 up")
        self.engines = [self._engine(number, images) for number in (1, 2, 3)]
        self.start_etcd()

    def _engine(self, number, images):
        name = NAMES[number - 1]
        engine = Transom(self.path / name / "data", self.path / name / "run")
        for part in ("content", "images"):
            shutil.copytree(images[0] / part, engine.data / "transom" / part)
        shutil.copytree(images[1], engine.run / "transom", symlinks=True)
        inside(
            self.switch, ip_batch,
            f"link add port{number} type veth peer name up0 netns /proc/{os.getpid()}/fd/{engine.netns}",
            f"link set port{number} master br0 up",
        )  # fmt: skip
        inside(engine.netns, ip_batch, f"address add 10.98.0.{number}/24 dev up0", "link set up0 up")
        members = ",".join(self._url(other) for other in (1, 2, 3))
        options = {"etcd": members, "host": name, "lease": "2s"}
        if number == 2:
            options["address"] = "10.98.0.2"  # the others find theirs by the way to etcd
        config = self.path / name / "daemon.json"
        config.write_text(json.dumps({"transom": {"driver-opts": {"network": {"overlay": options}}}}))
        engine.env["TRANSOM_CONFIG"] = str(config)
        return engine

    @staticmethod
    def _url(number, port=CLIENTS):
        return f"http://10.98.0.{number}:{port}"

    def start_etcd(self, generation="first"):
        cluster = ",".join(f"{NAMES[n - 1]}={self._url(n, PEERS)}" for n in (1, 2, 3))
        for number, engine in enumerate(self.engines, 1):
            folder = self.path / f"etcd-{generation}-{number}"
            address = f"10.98.0.{number}"
            member = inside(engine.netns, start, NAMES[number - 1], folder, address=address, cluster=cluster)
            self.members.append(member)
        for number, engine in enumerate(self.engines, 1):
            inside(engine.netns, await_etcd, self._url(number))

    def stop_etcd(self):
        while self.members:
            stop(self.members.pop())

    def clear(self):
        """Remove all containers, and the networks; nothing may be left in any namespace."""
        for engine in self.engines:
            if ids := engine("ps", "-aq").split():
                engine("rm", "-f", *ids)
        for network in self.engines[0]("network", "ls", "-q", "-f", "driver=overlay", "--no-trunc").split():
            self.engines[0].wait_until(lambda id=network: self._removed(id))
        for engine in self.engines:
            assert engine("network", "ls", "-q", "-f", "driver=overlay") == ""
            engine("network", "prune", "-f")  # the way out
            told = inside(engine.netns, subprocess.run, ["ip", "-j", "link"], capture_output=True, check=True)
            assert {link["ifname"] for link in json.loads(told.stdout)} <= {"lo", "up0", "docker0", "transom0"}

    def _removed(self, id):
        return self.engines[0].call("network", "rm", id).code == 0 or id not in self.engines[0](
            "network", "ls", "-q", "--no-trunc"
        )

    def close(self):
        for engine in self.engines:
            engine.close()
        self.stop_etcd()
        os.close(self.switch)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, _images):
    for program in ("etcd", "ip"):
        if not shutil.which(program):
            pytest.skip(f"the program {program} is missing: install etcd-server, iproute2")
    hosts = Hosts(tmp_path_factory.mktemp("hosts"), _images)
    yield hosts
    hosts.close()


@pytest.fixture
def hosts(cluster):
    yield cluster.engines
    cluster.clear()


def serve(engine, name, *words, network="back"):
    return engine(
        "run", "-d", "--name", name, "--hostname", name, "--network", network, *words, "busybox", "sh", "-c", SERVE
    )


def resolved(engine, client, name):
    """Return the IPv4 address that a container gets for a name, or nothing."""
    told = engine.call("exec", client, "nslookup", name).out.partition("Name:")[2]
    return next((word for word in told.split() if word.count(".") == 3), "")


def reaches(engine, client, host):
    """Return what a container gets there, by name or address, or nothing."""
    return engine.call("exec", client, *GET, f"http://{host}/").out.strip()


def pings(engine, client, host):
    return "1 packets received" in engine.call("exec", client, "ping", "-c", "1", "-W", "5", host).out


def test_a_network_is_made_once_and_its_containers_find_each_other_on_all_hosts(hosts):
    north, east, west = hosts
    id = north("network", "create", "-d", "overlay", "--subnet", "10.60.0.0/24", "--label", "a=b", "back")
    serve(north, "web", "--network-alias", "site")
    serve(east, "shop", "--ip", "10.60.0.77")
    west("run", "-d", "--name", "client", "--network", "back", "busybox", "sleep", "1000")
    for engine in hosts:
        record = engine.inspect("back", "--type", "network")
        assert (record["Id"], record["Driver"], record["Scope"], record["Labels"]) == (
            id,
            "overlay",
            "global",
            {"a": "b"},
        )
    for name, answer in (("web", "web"), ("site", "web"), ("shop", "shop"), ("10.60.0.77", "shop")):
        west.wait_until(lambda name=name, answer=answer: reaches(west, "client", name) == answer)
    east.wait_until(lambda: reaches(east, "shop", "web") == "web")
    west.wait_until(lambda: pings(west, "client", "10.60.0.77"))
    north.wait_until(lambda: north.call("run", "--rm", "--network", "back", *GET, "http://shop/").out == "shop\n")
    peers = north.inspect("back", "--type", "network")["Peers"]
    assert peers == [{"Name": name, "IP": f"10.98.0.{n}"} for name, n in (("east", 2), ("north", 1), ("west", 3))]
    assert north.fails("run", "--rm", "--network", "back", "--ip", "10.60.0.77", "busybox", "true").endswith(
        "on host east; ask for another one"
    )
    refused = north.fails("network", "rm", "back")
    assert refused == "network back has active endpoints: web; stop or disconnect them first"
    north("rm", "-f", "web")
    refused = north.fails("network", "rm", "back")
    assert refused.endswith(
        "network back has active endpoints: shop on east, client on west; stop or disconnect them first"
    )

    west("network", "disconnect", "back", "client")
    assert reaches(west, "client", "10.60.0.77") == ""
    west("network", "connect", "--alias", "again", "back", "client")
    west.wait_until(lambda: reaches(west, "client", "shop") == "shop")
    east.wait_until(lambda: reaches(east, "shop", "web") == "")
    east.wait_until(lambda: (address := resolved(east, "shop", "again")) and pings(east, "shop", address))


def test_an_internal_network_of_both_families_and_a_second_network_for_ports(hosts):
    north, east, _ = hosts
    north("network", "create", "-d", "overlay", "--internal", "--ipv6", "back")
    ranges = [c["Subnet"] for c in east.inspect("back", "--type", "network")["IPAM"]["Config"]]
    assert [":" in subnet for subnet in ranges] == [False, True]
    serve(north, "web")
    east("run", "-d", "--name", "client", "--network", "back", "busybox", "sleep", "1000")
    place = north.inspect("web")["NetworkSettings"]["Networks"]["back"]
    for address in (place["IPAddress"], f"[{place['GlobalIPv6Address']}]"):
        east.wait_until(lambda address=address: reaches(east, "client", address) == "web")
    assert "default" not in east("exec", "client", "ip", "route")
    said = east.call("run", "--rm", "--network", "back", "-p", "8080:80", "busybox", "true")
    assert (said.code, said.err) == (0, "WARNING: published ports are discarded: network back does not publish any\n")
    serve(east, "both", "--network", "bridge", "-p", "127.0.0.1:8080:80")
    get = partial(subprocess.run, [*GET, "http://127.0.0.1:8080/"], capture_output=True, text=True, check=False)
    east.wait_until(lambda: inside(east.netns, get).stdout == "both\n")
    assert "default" in east("exec", "both", "ip", "route")
    north.wait_until(lambda: reaches(north, "web", "both") == "both")


def fetched(engine, url):
    """Return what a process on the engine's host gets there, or nothing."""
    get = partial(subprocess.run, [*GET, url], capture_output=True, text=True, check=False)
    return inside(engine.netns, get).stdout.strip()


def test_a_container_on_a_network_over_hosts_alone_gets_out_and_publishes_its_ports(hosts):
    """By an interface of its own, as in Docker, by which it meets no other container and is shown to nobody."""
    north, east, _ = hosts
    for name in ("back", "other"):
        north("network", "create", "-d", "overlay", name)
    serve(north, "far")
    serve(east, "web", "-p", "8080:80")
    serve(east, "sibling")
    serve(east, "stranger", network="other")
    assert "etcdserver" in east("exec", "web", *GET, "http://10.98.0.1:2379/version")
    north.wait_until(lambda: fetched(north, "http://10.98.0.2:8080/") == "web")
    assert fetched(east, "http://127.0.0.1:8080/") == "web"
    assert east("ps", "--filter", "name=web", "--format", "{{.Networks}} {{.Ports}}").split()[0] == "back"
    (place,) = east.inspect("web")["NetworkSettings"]["Networks"].values()
    assert east("exec", "sibling", "nslookup", "web").count("Address") == 2  # the server's, and the one on `back`
    assert place["IPAddress"] in east("exec", "sibling", "nslookup", "web")
    on_it = {c["Name"]: c["IPv4Address"] for c in east.inspect("docker_gwbridge")["Containers"].values()}
    assert on_it.keys() == {"web", "sibling", "stranger"}
    assert reaches(east, "stranger", on_it["web"].partition("/")[0]) == ""
    east("network", "connect", "bridge", "web")
    assert {c["Name"] for c in east.inspect("docker_gwbridge")["Containers"].values()} == {"sibling", "stranger"}
    north.wait_until(lambda: fetched(north, "http://10.98.0.2:8080/") == "web")
    east("network", "disconnect", "bridge", "web")
    east("network", "disconnect", "back", "sibling")
    assert {c["Name"] for c in east.inspect("docker_gwbridge")["Containers"].values()} == {"web", "stranger"}
    assert "default" not in east("exec", "sibling", "ip", "route")
    east("restart", "-t", "0", "web")
    north.wait_until(lambda: fetched(north, "http://10.98.0.2:8080/") == "web")
    east.wait_until(lambda: reaches(east, "web", "far") == "far")
    for words in (("connect", "docker_gwbridge", "web"), ("disconnect", "docker_gwbridge", "web")):
        assert east.fails("network", *words) == (
            "network docker_gwbridge is joined by itself, where a container's networks over several hosts need a way "
            "out; name another network"
        )


def test_a_host_whose_processes_are_killed_is_cleared_up_by_its_next_command(hosts):
    north, east, _ = hosts
    north("network", "create", "-d", "overlay", "--subnet", "10.61.0.0/24", "back")
    serve(north, "web")
    id = serve(east, "shop", "--ip", "10.61.0.9")
    north.wait_until(lambda: reaches(north, "web", "shop") == "shop")
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"TRANSOM_DATA_ROOT={east.data}".encode() in words:
            os.kill(int(pid), signal.SIGKILL)
    east.wait_until(lambda: east("ps", "-a", "--format", "{{.State}}") == "exited")
    assert east("doctor", "--repair") is not None
    east("start", id)
    north.wait_until(lambda: reaches(north, "web", "10.61.0.9") == "shop")


def test_without_etcd_what_runs_goes_on_and_the_rest_is_refused_in_time(cluster, hosts):
    north, east, west = hosts
    north("network", "create", "-d", "overlay", "back")
    serve(north, "web")
    serve(east, "shop")
    serve(west, "gone")
    for name in ("shop", "gone"):
        north.wait_until(lambda name=name: reaches(north, "web", name) == name)
    cluster.stop_etcd()
    try:
        refused = west.fails("network", "create", "-d", "overlay", "late")
        assert "etcd cannot be reached (http://10.98.0.1:2379: " in refused
        assert "networks that are there go on; make it later" in refused
        refused = west.fails("run", "--rm", "--network", "back", "busybox", "true")
        assert "etcd" in refused
        begun = time.monotonic()
        assert "back" in north("network", "ls", "--format", "{{.Name}}").split()
        assert time.monotonic() - begun < 30  # etcd's members take 4 s each to be given up
        north.wait_until(lambda: reaches(north, "web", "shop") == "shop")
        west("rm", "-f", "gone")
    finally:
        cluster.start_etcd()
    west("network", "create", "-d", "overlay", "late")
    serve(west, "new")
    for name in ("new", "shop"):
        north.wait_until(lambda name=name: reaches(north, "web", name) == name)
    north.wait_until(lambda: reaches(north, "web", "gone") == "")


def test_when_etcd_has_lost_everything_the_hosts_record_anew_what_runs(cluster, hosts):
    north, east, west = hosts
    id = north("network", "create", "-d", "overlay", "back")
    serve(north, "web")
    serve(east, "shop")
    north.wait_until(lambda: reaches(north, "web", "shop") == "shop")
    cluster.stop_etcd()
    cluster.start_etcd("second")
    north.wait_until(lambda: reaches(north, "web", "shop") == "shop")
    west.wait_until(lambda: id in west("network", "ls", "-q", "--no-trunc"))
    west.wait_until(
        lambda: (
            west.call("run", "-d", "--name", "client", "--network", "back", "busybox", "sleep", "1000").code == 0
            or west.call("rm", "-f", "client").code
        )
    )
    for name in ("web", "shop"):
        west.wait_until(lambda name=name: reaches(west, "client", name) == name)
    north.wait_until(lambda: reaches(north, "web", "shop") == "shop")
