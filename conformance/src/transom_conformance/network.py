"""The suite of network drivers: real namespaces, real packets.

Each case builds a small world: a namespace that plays the host, in which the driver works, and one that plays a
neighbour on the network of the host, at the other end of `UPLINK`. So nothing of the real host is touched, and
cases can run side by side. The program ``ip`` (iproute2) builds it.

An author's own run::

    from transom_conformance.network import NetworkSuite

    class TestMine(NetworkSuite):
        driver = "mine"
        network_options = {"parent": "uplink0"}
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any, ClassVar

import msgspec
import pytest

from transom.contract.network import (
    Attachment,
    Endpoint,
    Netns,
    NetnsKind,
    Network,
    NetworkCapability,
    Owned,
    Port,
    Subnet,
)
from transom.errors import ConfigError, Conflict, DriverError, NotFound, NotSupported, TransomError
from transom.services.interfaces import route_by
from transom.services.netns import create, inside, loopback_up
from transom.services.options import convert
from transom_conformance.suite import Suite, World, in_child, undeclared

UPLINK = "uplink0"
"""The host's interface towards the neighbour, which carries its default route."""
HOST, NEIGHBOUR = "198.51.100.1", "198.51.100.2"
HOST6, NEIGHBOUR6 = "2001:db8:51::1", "2001:db8:51::2"
PATIENCE = 5.0
"""Seconds after which what should arrive is given up."""
IMPATIENCE = 0.6
"""Seconds for which is watched that something does not arrive."""

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

Has = NetworkCapability
requires = pytest.mark.requires


class Inside:
    """A driver, each of whose operations is called inside a namespace."""

    def __init__(self, driver: Any, netns: int) -> None:
        self.unwrapped, self._netns = driver, netns

    def __getattr__(self, name: str) -> Any:
        """Return the operation, or the attribute where it is none."""
        found = getattr(self.unwrapped, name)
        return partial(inside, self._netns, found) if callable(found) else found


class Container:
    """A namespace, and the endpoints it is attached by."""

    def __init__(self, site: Site) -> None:
        self.site, self.netns = site, create()
        site.world.defer(self.close)

    def close(self) -> None:
        """Let go of the namespace, which dies. Twice is harmless."""
        if self.netns >= 0:
            os.close(self.netns)
            self.netns = -1

    def attach(self, network: Network, *, leads_out: bool = True, **fields: Any) -> tuple[Endpoint, Attachment]:
        """Attach it to a network by a new endpoint, and route by it, unless something else `leads_out`."""
        endpoint = self.site.endpoint(network, **fields)
        attachment = self.site.driver.attach(network=network, endpoint=endpoint, netns=self.netns)
        if leads_out:
            route_by(self.netns, [(attachment.interface or "", gateway) for gateway in attachment.gateways])
        return endpoint, attachment

    def listen(self, kind: int = TCP, port: int = 0, address: str = "0.0.0.0") -> socket.socket:
        """Open a server inside."""
        return listen(self.site, self.netns, kind, port, address)

    def ip(self, *words: str) -> Any:
        """Return what ``ip --json`` says inside."""
        return inside(self.netns, ip_json, *words)

    def interface(self, name: str) -> Any:
        """Return an interface with its addresses, as ``ip`` describes it."""
        return next(link for link in self.ip("address", "show") if link["ifname"] == name)


class Site:
    """A host with a neighbour, the driver on it, and what the case makes."""

    def __init__(self, suite: NetworkSuite, world: World) -> None:
        if not shutil.which("ip"):
            pytest.skip("the program ip is missing: install iproute2")
        self.suite, self.world = suite, world
        self.host, self.neighbour = create(), create()
        world.defer(os.close, self.host)
        world.defer(os.close, self.neighbour)
        inside(
            self.host,
            ip_batch,
            "link set lo up",
            f"link add {UPLINK} type veth peer name lan0 netns /proc/{os.getpid()}/fd/{self.neighbour}",
        )
        inside(self.host, no_doubt, UPLINK)
        inside(self.neighbour, no_doubt, "lan0")
        inside(
            self.host,
            ip_batch,
            f"address add {HOST}/24 dev {UPLINK}",
            f"address add {HOST6}/64 dev {UPLINK} nodad",
            f"link set {UPLINK} up",
            f"route add default via {NEIGHBOUR}",
            f"route add default via {NEIGHBOUR6}",
        )
        inside(
            self.neighbour,
            ip_batch,
            f"address add {NEIGHBOUR}/24 dev lan0",
            f"address add {NEIGHBOUR6}/64 dev lan0 nodad",
            "link set lan0 up",
        )
        self.warm_up()
        self.driver: Any = self.open()
        self.numbers, self.networks = count(1), list[Network]()
        self.endpoints = list[tuple[Network, Endpoint]]()
        self.addresses = count(2)

    def warm_up(self) -> None:
        """Wait until host and neighbour reach each other: the kernel finds out about carriers in its own time."""
        for address in (HOST, HOST6):
            with inside(self.host, socket.create_server, (address, 0), family=family(address)) as server:
                deadline = time.monotonic() + 4 * PATIENCE
                while unreachable(self.neighbour, server, address):
                    assert time.monotonic() < deadline, "the namespaces of the case do not reach each other"

    def open(self) -> Any:
        """Open the driver anew, as an engine that was restarted."""
        return Inside(self.world.open(), self.host)

    def has(self, capability: NetworkCapability) -> bool:
        """Say whether the driver declares the capability."""
        return capability in self.driver.capabilities

    def describe(self, **fields: Any) -> Network:
        """Describe a network with subnets of its own that is not made yet."""
        number = next(self.numbers)
        identity = os.urandom(32).hex()
        name = self.suite.driver if self.has(Has.SINGLETON) or self.has(Has.REFERENCE) else f"net{number}"
        subnets = [Subnet(pool=f"10.88.{number}.0/24", gateway=f"10.88.{number}.1")]
        if self.has(Has.IPV6):
            subnets.append(Subnet(pool=f"fd88:{number}::/64", gateway=f"fd88:{number}::1"))
        cls = type(self.driver.unwrapped)
        given = fields.pop("options", {})
        options = convert(
            driver=cls,
            options={**self.suite.network_options, **given},
            struct=cls.NetworkOptions,
            where="the suite",
        )
        network = Network(id=identity, name=name, options=options, subnets=tuple(subnets))
        network = msgspec.structs.replace(network, **fields)
        self.networks.append(network)
        return network

    def network(self, **fields: Any) -> Network:
        """Make a network."""
        network = self.describe(**fields)
        self.driver.create_network(network=network)
        return network

    def endpoint(self, network: Network, **fields: Any) -> Endpoint:
        """Describe an endpoint with addresses of its own, taken from the driver where it has them."""
        number = next(self.addresses)
        endpoint = Endpoint(id=os.urandom(32).hex(), container=os.urandom(32).hex(), names=(f"c{number}",))
        if not self.has(Has.ADDRESSES):
            pools = [subnet.pool.partition("/") for subnet in network.subnets]
            addresses = tuple(f"{first[: -1 if '.' in first else None]}{number}/{bits}" for first, _, bits in pools)
            endpoint = msgspec.structs.replace(endpoint, addresses=addresses)
        endpoint = msgspec.structs.replace(endpoint, **fields)
        self.endpoints.append((network, endpoint))
        if self.has(Has.ADDRESSES):
            endpoint = self.driver.allocate(network=network, endpoint=endpoint)
        return endpoint

    def container(self) -> Container:
        """Make a namespace with nothing in it."""
        return Container(self)

    def joined(self, network: Network, **fields: Any) -> tuple[Container, Endpoint]:
        """Make a container on the network."""
        container = self.container()
        endpoint, _ = container.attach(network, **fields)
        return container, endpoint

    def sweep(self) -> None:
        """Take everything away that the case made."""
        for network, endpoint in self.endpoints:
            self.driver.detach(network=network, endpoint=endpoint)
            if self.has(Has.ADDRESSES):
                self.driver.release(network=network, endpoint=endpoint)
        for network in self.networks:
            self.driver.delete_network(network=network)

    def census(self) -> frozenset[str]:
        """Describe what is in the host's namespace."""
        return inside(self.host, host_census)


def host_census() -> frozenset[str]:
    """Describe interfaces, addresses, routes, firewall and settings of the thread's namespace."""
    seen: set[str] = set()
    for words in (["-o", "link"], ["-o", "address"], ["route", "show", "table", "all"], ["-6", "route", "show"]):
        text = subprocess.run(["ip", *words], text=True, capture_output=True, check=True).stdout
        seen.update(f"{words[-1]}: {kept}" for kept in map(steady, text.splitlines()) if kept)
    if shutil.which("nft"):
        text = subprocess.run(["nft", "list", "ruleset"], text=True, capture_output=True, check=True).stdout
        seen.update(f"firewall: {line.strip()}" for line in text.splitlines())
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/route_localnet"):
        with open(f"/proc/sys/net/{key}") as file:
            seen.add(f"{key} = {file.read().strip()}")
    return frozenset(seen)


def steady(line: str) -> str:
    """Drop from a line of ``ip`` what changes by itself: link states, and what the kernel derives from addresses."""
    if "proto kernel" in line or "fe80::" in line:
        return ""
    return line.split("\\")[0].partition(": <")[0].replace(" linkdown", "").replace(" tentative", "").strip()


def no_doubt(interface: str) -> None:
    """Let an interface use its link-local address at once: a host's has been up for long."""
    with open(f"/proc/sys/net/ipv6/conf/{interface}/accept_dad", "w") as file:
        file.write("0")


def ip_batch(*commands: str) -> None:
    """Run commands of ``ip`` in the thread's namespace."""
    subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, capture_output=True, check=True)


def ip_json(*words: str) -> Any:
    """Return what ``ip --json`` says in the thread's namespace."""
    text = subprocess.run(["ip", "--json", *words], text=True, capture_output=True, check=True).stdout
    return json.loads(text or "[]")


def family(address: str) -> int:
    """Return the address family of a text."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def listen(site: Site, netns: int, kind: int, port: int, address: str) -> socket.socket:
    """Open a server in a namespace; it is closed with the case."""
    server = inside(netns, socket.socket, family(address), kind)
    site.world.defer(server.close)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((address, port))
    if kind == TCP:
        server.listen()
    return server


def talk(netns: int, server: socket.socket, address: str, port: int = 0, *, patience: float = PATIENCE) -> str:
    """Connect from a namespace, pass bytes both ways, and return the source address that the server saw.

    Args:
        server: what is meant to be reached.
        address, port: where the client connects to; by default the server's own port.

    Raises:
        OSError: it was not reached, or the answer did not arrive.
    """
    with inside(netns, socket.socket, family(address), server.type) as client:
        client.settimeout(patience)
        server.settimeout(patience if server.type == TCP else patience / 4)
        target = address, port or server.getsockname()[1]
        client.connect(target)
        if server.type == TCP:
            peer, source = server.accept()
            with peer:
                peer.settimeout(patience)
                exchange(client, peer)
            return str(source[0])
        for attempt in range(4):
            try:
                client.send(b"%d" % attempt)
                got, source = server.recvfrom(99)
            except (TimeoutError, ConnectionRefusedError):
                if attempt == 3:
                    raise
                continue
            server.sendto(got, source)
            assert client.recv(99) == got
            break
        return str(source[0])


def exchange(one: socket.socket, other: socket.socket) -> None:
    """Pass bytes both ways over an open connection."""
    one.sendall(b"ping")
    assert other.recv(4) == b"ping"
    other.sendall(b"pong")
    assert one.recv(4) == b"pong"


def unreachable(netns: int, server: socket.socket, address: str, port: int = 0) -> bool:
    """Say whether a connection gets nowhere."""
    try:
        talk(netns, server, address, port, patience=IMPATIENCE)
    except OSError:
        return True
    return False


def plain(endpoint: Endpoint, *, ipv6: bool = False) -> str:
    """Return the endpoint's address of a family without prefix."""
    return next(a.partition("/")[0] for a in endpoint.addresses if (":" in a) == ipv6)


def together(work: Callable[[int], None], workers: int) -> list[int]:
    """Run `work(0)`, `work(1)` ... in processes at the same time; return their exit codes."""
    gate, starter = os.pipe()
    pids = []
    for worker in range(workers):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(starter)
                os.read(gate, 1)
                work(worker)
                code = 0
            except Conflict:
                code = 2
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    os.close(gate)
    os.close(starter)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


class NetworkSuite(Suite):
    """What every network driver must do; see `transom.contract.network`.

    Attributes:
        network_options: those of each network that a case makes, as a user would write them.
    """

    kind = "network"
    network_options: ClassVar[dict[str, str]] = {}

    @pytest.fixture
    def site(self, world: World) -> Iterator[Site]:
        """The host and its neighbour; behind the case the host must be as it was before."""
        site = Site(self, world)
        before = site.census()
        try:
            yield site
        finally:
            site.sweep()
            owned = site.driver.owned()
            left = site.census() - before
        assert owned == Owned()
        assert not left, f"left behind on the host: {', '.join(sorted(left))}"

    # Life cycle

    def test_networks_are_made_and_removed_any_number_of_times(self, site: Site) -> None:
        """L2, L4: both are idempotent, and removal leaves the host as it was."""
        before = site.census()
        network = site.describe()
        for _ in range(2):
            for _ in range(2):
                site.driver.create_network(network=network)
            for _ in range(2):
                site.driver.delete_network(network=network)
            assert site.census() == before

    def test_removal_of_what_never_was_succeeds(self, site: Site) -> None:
        """L4: also with nothing but ids, as core calls it for what it has no record of."""
        nowhere = Network(id=os.urandom(32).hex(), name="")
        nobody = Endpoint(id=os.urandom(32).hex(), container="")
        before = site.census()
        for network in (nowhere, Network(id="", name=""), site.describe()):
            site.driver.detach(network=network, endpoint=nobody)
            if site.has(Has.PUBLISH):
                site.driver.unpublish(network=network, endpoint=nobody)
            if site.has(Has.ADDRESSES):
                site.driver.release(network=network, endpoint=nobody)
        site.driver.delete_network(network=nowhere)
        assert site.census() == before

    def test_the_namespace_is_one_that_the_contract_knows(self, site: Site) -> None:
        """K4, K5: of another container if and only if one was referred to."""
        endpoint = Endpoint(id="e" * 64, container="c" * 64)
        if site.has(Has.REFERENCE):
            endpoint = msgspec.structs.replace(endpoint, reference="f" * 64)
            assert site.driver.netns(endpoint=endpoint) == Netns(kind=NetnsKind.CONTAINER, of="f" * 64)
            with pytest.raises(ConfigError):
                site.driver.netns(endpoint=msgspec.structs.replace(endpoint, reference=None))
        else:
            netns = site.driver.netns(endpoint=endpoint)
            assert netns in {Netns(kind=NetnsKind.OWN), Netns(kind=NetnsKind.HOST)}

    def test_a_namespace_of_its_own_gets_a_loopback_that_is_up(self, site: Site) -> None:
        """K5: programs rely on 127.0.0.1, whatever else there is."""
        if site.has(Has.REFERENCE) or site.driver.netns(endpoint=Endpoint(id="e" * 64, container="c")) != Netns(
            kind=NetnsKind.OWN
        ):
            pytest.skip("not claimed: containers share a namespace that is not the driver's")
        container, _ = site.joined(site.network())
        assert talk(container.netns, container.listen(), "127.0.0.1") == "127.0.0.1"

    def test_undeclared_capabilities_are_refused(self, site: Site) -> None:
        """An operation of an undeclared capability raises NotSupported and changes nothing."""
        network, endpoint = Network(id="a" * 64, name="n"), Endpoint(id="e" * 64, container="c")
        both = {"network": network, "endpoint": endpoint}
        calls: dict[NetworkCapability, list[Callable[[], object]]] = {
            Has.PUBLISH: [
                lambda: site.driver.publish(**both, ports=(Port(container=80),)),
                lambda: site.driver.unpublish(**both),
            ],
            Has.ADDRESSES: [
                lambda: site.driver.settle(network=network),
                lambda: site.driver.allocate(**both),
                lambda: site.driver.release(**both),
            ],
            Has.MULTI_HOST: [lambda: site.driver.networks()],
            Has.LOOKUP: [lambda: site.driver.lookup(network=network, name="web")],
            Has.WATCH: [lambda: site.driver.watch(**both, netns=site.neighbour, stop=0)],
        }
        before = site.census()
        for capability in undeclared(site.driver, NetworkCapability):
            for call in calls.get(NetworkCapability(capability), []):
                with pytest.raises(NotSupported) as caught:
                    call()
                assert str(capability) in str(caught.value)
        assert site.census() == before

    def test_recovery_of_a_healthy_host_repairs_nothing(self, site: Site) -> None:
        """Recovery is idempotent and leaves what works alone."""
        network = site.network()
        before = site.census()
        assert site.open().recover() == []
        assert site.driver.recover() == []
        assert site.census() == before
        site.driver.delete_network(network=network)
        assert site.driver.recover() == []

    @requires(Has.L2)
    def test_an_attachment_is_what_is_in_the_namespace(self, site: Site) -> None:
        """L1: name, MAC, addresses and MTU are as reported, and everything is up."""
        container = site.container()
        endpoint, attachment = container.attach(site.network())
        link = container.interface(attachment.interface or "")
        assert "UP" in link["flags"]
        assert link["address"] == attachment.mac
        assert link["mtu"] == attachment.mtu
        found = {f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] == "global"}
        assert found == set(attachment.addresses)
        assert set(endpoint.addresses) <= found
        routes = {r["gateway"] for f in ("-4", "-6") for r in container.ip(f, "route", "show", "default")}
        assert routes == set(attachment.gateways)

    @requires(Has.L2)
    def test_the_wanted_interface_name_and_mac_are_given(self, site: Site) -> None:
        """L6: a name of up to 15 characters, as interfaces can have."""
        container = site.container()
        _, attachment = container.attach(site.network(), interface="a-name.of_15xyz", mac="02:42:0a:58:99:99")
        assert (attachment.interface, attachment.mac) == ("a-name.of_15xyz", "02:42:0a:58:99:99")
        assert container.interface("a-name.of_15xyz")["address"] == "02:42:0a:58:99:99"

    @requires(Has.L2)
    def test_an_interface_name_that_is_taken_is_a_conflict_and_nothing_changes(self, site: Site) -> None:
        """L6: the one that is there goes on working."""
        network = site.network()
        container, first = site.joined(network, interface="wan")
        other, _ = site.joined(network)
        before, links = site.census(), container.ip("link")
        with pytest.raises(Conflict) as caught:
            container.attach(network, interface="wan")
        assert "wan" in str(caught.value)
        assert site.census() == before
        assert [link["ifname"] for link in container.ip("link")] == [link["ifname"] for link in links]
        assert talk(other.netns, container.listen(), plain(first))

    @requires(Has.L2, Has.HOT_PLUG)
    def test_an_address_that_the_container_has_is_a_conflict_and_nothing_changes(self, site: Site) -> None:
        """Z2: found late, when an interface is there already; it has to go again."""
        one, two = site.network(), site.network()
        container, endpoint = site.joined(one)
        sibling, _ = site.joined(one)
        before, links = site.census(), [link["ifname"] for link in container.ip("link")]
        with pytest.raises(Conflict):
            container.attach(two, addresses=endpoint.addresses, leads_out=False)
        assert site.census() == before
        assert [link["ifname"] for link in container.ip("link")] == links
        assert talk(sibling.netns, container.listen(), plain(endpoint))

    @requires(Has.L2)
    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a:b", "a b", "sixteen-letters-"])
    def test_an_interface_name_that_cannot_be_is_refused_and_nothing_changes(self, site: Site, name: str) -> None:
        """B1: before the kernel takes half of it. An empty name is no wish."""
        network = site.network()
        before = site.census()
        container = site.container()
        if not name:
            assert container.attach(network, interface=name)[1].interface
            return
        with pytest.raises(TransomError):
            container.attach(network, interface=name)
        assert site.census() == before

    @requires(Has.L2)
    @pytest.mark.parametrize("what", ["a closed descriptor", "a file"])
    def test_what_is_no_namespace_is_refused_and_nothing_changes(self, site: Site, what: str) -> None:
        """B3: as an error of the driver, with the kernel's errno."""
        network = site.network()
        before = site.census()
        container = site.container()
        container.close()
        if what == "a file":
            container.netns = os.open(site.world.path, os.O_RDONLY)
        else:
            container.netns = 10_000
            site.world.defer(setattr, container, "netns", -1)
        with pytest.raises(DriverError) as caught:
            container.attach(network)
        assert caught.value.errno
        assert site.census() == before

    @requires(Has.L2)
    def test_attaching_to_a_network_that_is_not_there_says_so(self, site: Site) -> None:
        """The namespace stays as it is."""
        container = site.container()
        links = container.ip("link")
        with pytest.raises((NotFound, DriverError, Conflict)):
            container.attach(site.describe())
        assert container.ip("link") == links

    @requires(Has.L2)
    def test_an_endpoint_is_attached_once(self, site: Site) -> None:
        """A second time is a conflict, and the first keeps working."""
        network = site.network()
        container, endpoint = site.joined(network)
        other, _ = site.joined(network)
        with pytest.raises(Conflict):
            site.driver.attach(network=network, endpoint=endpoint, netns=container.netns)
        assert talk(other.netns, container.listen(), plain(endpoint))

    @requires(Has.L2)
    def test_detaching_twice_succeeds_and_the_endpoint_can_be_attached_again(self, site: Site) -> None:
        """L4: with the same addresses, which its neighbour reaches at once."""
        network = site.network()
        container, endpoint = site.joined(network)
        other, _ = site.joined(network)
        server = container.listen()
        assert talk(other.netns, server, plain(endpoint))
        for _ in range(2):
            site.driver.detach(network=network, endpoint=endpoint)
        assert [link["ifname"] for link in container.ip("link") if link["ifname"].startswith("eth")] == []
        site.driver.attach(network=network, endpoint=endpoint, netns=container.netns)
        assert talk(other.netns, server, plain(endpoint))

    @requires(Has.L2)
    def test_detaching_after_the_namespace_is_gone_cleans_up(self, site: Site) -> None:
        """L5: published ports and all."""
        network = site.network()
        before = site.census()
        container, endpoint = site.joined(network)
        if site.has(Has.PUBLISH):
            site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
        container.close()
        site.driver.detach(network=network, endpoint=endpoint)
        assert site.census() == before
        assert site.driver.owned().endpoints == frozenset()

    @requires(Has.L2)
    def test_owned_is_exactly_what_is_there(self, site: Site) -> None:
        """Full ids, read from the host by an instance that made none of it."""
        networks = [site.network() for _ in range(2)]
        ends = [site.joined(network)[1] for network in networks for _ in range(2)]
        wanted = Owned(networks=frozenset(n.id for n in networks), endpoints=frozenset(e.id for e in ends))
        assert site.open().owned() == wanted
        site.driver.detach(network=networks[0], endpoint=ends[0])
        assert site.driver.owned().endpoints == wanted.endpoints - {ends[0].id}
        site.driver.detach(network=networks[0], endpoint=ends[1])
        site.driver.delete_network(network=networks[0])
        assert site.driver.owned() == Owned(
            networks=frozenset({networks[1].id}), endpoints=frozenset({ends[2].id, ends[3].id})
        )

    @requires(Has.L2)
    def test_what_has_no_record_is_removed_by_its_id_alone(self, site: Site) -> None:
        """Core has nothing else when it finds an orphan."""
        before = site.census()
        network = site.network()
        site.joined(network)
        driver = site.open()
        owned = driver.owned()
        for identity in owned.endpoints:
            driver.detach(network=Network(id="", name=""), endpoint=Endpoint(id=identity, container=""))
        for identity in owned.networks:
            driver.delete_network(network=Network(id=identity, name=""))
        assert driver.owned() == Owned()
        assert site.census() == before

    @requires(Has.L2)
    def test_another_instance_goes_on_where_the_first_stopped(self, site: Site) -> None:
        """L8: an engine restarts; connections live on, and what was attached can be detached."""
        network = site.network()
        container, endpoint = site.joined(network)
        other, _ = site.joined(network)
        with connection(other.netns, container.listen(), plain(endpoint)) as (client, peer):
            site.driver.close()
            driver = site.open()
            driver.recover()
            driver.create_network(network=network)
            assert driver.check(network=network, endpoints=(endpoint,)) == []
            exchange(client, peer)
        driver.detach(network=network, endpoint=endpoint)
        assert endpoint.id not in driver.owned().endpoints

    @requires(Has.L2)
    def test_check_finds_nothing_wrong_with_what_was_just_made(self, site: Site) -> None:
        """L9: a false alarm would be repaired again and again."""
        network = site.network()
        ends = tuple(site.joined(network)[1] for _ in range(3))
        assert site.driver.check(network=network, endpoints=ends) == []

    @requires(Has.L2, Has.HOT_PLUG)
    def test_a_running_container_joins_and_leaves_networks_and_its_connections_survive(self, site: Site) -> None:
        """L7: what it has on the first network does not notice the second."""
        one, two = site.network(), site.network()
        container, first = site.joined(one)
        sibling, _ = site.joined(one)
        stranger, _ = site.joined(two)
        server = container.listen()
        with connection(sibling.netns, server, plain(first)) as (client, peer):
            second, _ = container.attach(two, leads_out=False)
            assert talk(stranger.netns, server, plain(second))
            exchange(client, peer)
            site.driver.detach(network=two, endpoint=second)
            exchange(client, peer)
        assert unreachable(stranger.netns, server, plain(second))

    # Connectivity

    @requires(Has.L2)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    def test_endpoints_of_a_network_reach_each_other(self, site: Site, kind: int) -> None:
        """K1: and see each other's own addresses."""
        network = site.network()
        one, first = site.joined(network)
        other, second = site.joined(network)
        assert talk(other.netns, one.listen(kind), plain(first)) == plain(second)
        assert talk(one.netns, other.listen(kind), plain(second)) == plain(first)

    @requires(Has.L2, Has.IPV6)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    def test_endpoints_of_a_network_reach_each_other_by_ipv6_at_once(self, site: Site, kind: int) -> None:
        """K1, V1: no wait for duplicate address detection, core's IPAM did that."""
        network = site.network()
        one, first = site.joined(network)
        other, second = site.joined(network)
        server = one.listen(kind, address=plain(first, ipv6=True))
        assert talk(other.netns, server, plain(first, ipv6=True)) == plain(second, ipv6=True)

    @requires(Has.L2)
    def test_a_full_packet_passes_and_the_mtu_is_the_networks(self, site: Site) -> None:
        """K7: from end to end, without fragments."""
        network = site.network(mtu=1300)
        one, first = site.joined(network)
        container = site.container()
        _, attachment = container.attach(network)
        assert attachment.mtu == 1300
        server = one.listen(UDP)
        server.settimeout(PATIENCE)
        with inside(container.netns, socket.socket, socket.AF_INET, UDP) as client:
            client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO: ip(7)
            client.connect((plain(first), server.getsockname()[1]))
            talk(container.netns, server, plain(first))
            client.send(bytes(1300 - 28))
            assert len(server.recv(2000)) == 1300 - 28
            with pytest.raises(OSError, match="too long"):
                client.send(bytes(1300 - 27))

    @requires(Has.L2, Has.DEFAULT)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    def test_what_leaves_the_host_bears_the_hosts_address(self, site: Site, kind: int) -> None:
        """K3: the neighbour has no route to containers."""
        container, _ = site.joined(site.network())
        server = listen(site, site.neighbour, kind, 0, NEIGHBOUR)
        assert talk(container.netns, server, NEIGHBOUR) == HOST
        if site.has(Has.IPV6):
            server = listen(site, site.neighbour, kind, 0, NEIGHBOUR6)
            assert talk(container.netns, server, NEIGHBOUR6) == HOST6

    @requires(Has.L2)
    def test_a_driver_makes_no_default_route(self, site: Site) -> None:
        """K6: core decides which of several networks leads out."""
        container = site.container()
        container.attach(site.network(), leads_out=False)
        assert container.ip("route", "show", "default") == []
        assert container.ip("-6", "route", "show", "default") == []

    @requires(Has.L2)
    def test_networks_are_apart(self, site: Site) -> None:
        """I1: neither by address nor by the host as a router."""
        one, two = site.network(), site.network()
        container, endpoint = site.joined(one)
        sibling, _ = site.joined(one)
        stranger, _ = site.joined(two)
        for kind in (TCP, UDP):
            server = container.listen(kind)
            assert unreachable(stranger.netns, server, plain(endpoint))
            assert talk(sibling.netns, server, plain(endpoint))

    @requires(Has.L2, Has.INTERNAL)
    def test_an_internal_network_has_no_way_out(self, site: Site) -> None:
        """I2: neither to the neighbour nor to any address of the host, not even with a route of one's own."""
        network = site.network(internal=True)
        container, endpoint = site.joined(network)
        sibling, _ = site.joined(network)
        assert container.ip("route", "show", "default") == []
        assert talk(sibling.netns, container.listen(), plain(endpoint))
        inside(container.netns, ip_batch, f"route add default via {network.subnets[0].gateway}")
        inside(site.neighbour, ip_batch, f"route add {network.subnets[0].pool} via {HOST}")
        assert unreachable(container.netns, listen(site, site.neighbour, TCP, 0, NEIGHBOUR), NEIGHBOUR)
        server = listen(site, site.neighbour, UDP, 0, NEIGHBOUR)
        server.settimeout(IMPATIENCE)
        with inside(container.netns, socket.socket, socket.AF_INET, UDP) as client:
            client.sendto(b"a secret needs no answer", server.getsockname())
            with pytest.raises(TimeoutError):
                server.recv(99)
        for address in (HOST, network.subnets[0].gateway or ""):
            assert unreachable(container.netns, listen(site, site.host, TCP, 0, "0.0.0.0"), address)
            assert unreachable(container.netns, listen(site, site.host, UDP, 0, "0.0.0.0"), address)

    @requires(Has.L2, Has.DEFAULT)
    def test_foreign_state_is_left_alone(self, site: Site) -> None:
        """I6: another table's rules and another bridge stay as they are."""
        if not shutil.which("nft"):
            pytest.skip("the program nft is missing: install nftables")

        def foreign() -> None:
            rules = "table ip foreign {\nchain forward {\ntype filter hook forward priority 0\n}\n}\n"
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
            ip_batch("link add foreign0 type bridge", "address add 10.99.0.1/24 dev foreign0", "link set foreign0 up")

        inside(site.host, foreign)
        before = site.census()
        network = site.network()
        _, endpoint = site.joined(network)
        assert before - {line for line in before if "forward" in line} <= site.census()
        site.driver.detach(network=network, endpoint=endpoint)
        site.driver.delete_network(network=network)
        assert site.census() == before
        inside(site.host, ip_batch, "link delete foreign0")
        inside(site.host, partial(subprocess.run, ["nft", "delete", "table", "ip", "foreign"], check=True))

    # Published ports

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize("kind", [TCP, UDP])
    def test_a_published_port_is_reached_from_everywhere(self, site: Site, kind: int) -> None:
        """P2, P3: from the neighbour, the host, a sibling and the container itself; the source is kept."""
        network = site.network()
        container, endpoint = site.joined(network)
        sibling, _ = site.joined(network)
        stranger, other = site.joined(site.network())
        server, protocol = container.listen(kind, 80), "tcp" if kind == TCP else "udp"
        ports = (Port(container=80, host=8080, protocol=protocol),)
        bound = site.driver.publish(network=network, endpoint=endpoint, ports=ports)
        assert Port(container=80, host=8080, protocol=protocol, address="0.0.0.0") in bound
        assert talk(site.neighbour, server, HOST, 8080) == NEIGHBOUR
        assert talk(site.host, server, HOST, 8080) == HOST
        assert talk(stranger.netns, server, HOST, 8080) == plain(other)
        talk(site.host, server, "127.0.0.1", 8080)
        talk(sibling.netns, server, HOST, 8080)
        talk(container.netns, server, HOST, 8080)

    @requires(Has.PUBLISH, Has.IPV6)
    def test_a_published_port_is_reached_by_ipv6(self, site: Site) -> None:
        """P2, P5, V3: the same port for both families, at once; the source is kept."""
        network = site.network()
        container, endpoint = site.joined(network)
        server = container.listen(TCP, 80, plain(endpoint, ipv6=True))
        bound = site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80),))
        assert {port.address for port in bound} == {"0.0.0.0", "::"}
        assert len({port.host for port in bound}) == 1
        start = time.monotonic()
        assert talk(site.neighbour, server, HOST6, bound[0].host) == NEIGHBOUR6
        assert time.monotonic() - start < 1.8  # one lost packet is repeated after a second
        assert talk(site.host, server, HOST6, bound[0].host)

    @requires(Has.PUBLISH)
    def test_what_is_not_published_is_not_reached_from_outside(self, site: Site) -> None:
        """I4: neither an unpublished port nor, by a route to the network, a container itself."""
        network = site.network()
        container, endpoint = site.joined(network)
        server = container.listen(TCP, 80)
        site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=81, host=8081),))
        assert unreachable(site.neighbour, server, HOST, 8080)
        inside(site.neighbour, ip_batch, f"route add {network.subnets[0].pool} via {HOST}")
        assert unreachable(site.neighbour, server, plain(endpoint), 80)

    @requires(Has.PUBLISH)
    def test_a_port_published_at_loopback_is_the_hosts_alone(self, site: Site) -> None:
        """I5: a neighbour that sends to 127.0.0.1 by way of the host does not get there; containers do not either."""
        network = site.network()
        container, endpoint = site.joined(network)
        sibling, _ = site.joined(network)
        server = container.listen(TCP, 80)
        port = Port(container=80, host=8080, address="127.0.0.1")
        assert site.driver.publish(network=network, endpoint=endpoint, ports=(port,)) == (port,)
        talk(site.host, server, "127.0.0.1", 8080)
        assert unreachable(site.neighbour, server, HOST, 8080)
        for netns, device, via in (
            (site.neighbour, "lan0", HOST),
            (sibling.netns, "eth0", network.subnets[0].gateway),
        ):
            inside(netns, loopback_routable, device, via)
            assert unreachable(netns, server, "127.0.0.1", 8080)
            own = listen(site, site.host, TCP, 0, "127.0.0.1")
            assert unreachable(netns, own, "127.0.0.1")

    @requires(Has.PUBLISH)
    def test_a_port_in_use_is_a_conflict_that_names_it_and_nothing_is_published(self, site: Site) -> None:
        """P4: by a program of the host or by another endpoint, which is named; all ports or none."""
        network = site.network()
        _, first = site.joined(network, names=("web", "alias"))
        _, second = site.joined(network)
        site.driver.publish(network=network, endpoint=first, ports=(Port(container=80, host=8080),))
        listen(site, site.host, TCP, 8081, "127.0.0.1")
        listen(site, site.host, UDP, 8082, "0.0.0.0")
        before = site.census()
        for port, word in (
            (Port(container=80, host=8080), "web"),
            (Port(container=80, host=8080, address=HOST), "web"),
            (Port(container=80, host=8081), "8081"),
            (Port(container=80, host=8082, protocol="udp"), "8082"),
        ):
            with pytest.raises(Conflict) as caught:
                site.driver.publish(network=network, endpoint=second, ports=(Port(container=81, host=8090), port))
            assert str(port.host) in str(caught.value)
            assert word in str(caught.value)
            assert site.census() == before

    @requires(Has.PUBLISH)
    def test_any_port_is_a_free_one_of_the_ephemeral_range_and_of_a_range_the_first_free(self, site: Site) -> None:
        """P1, P5: each publication gets another one."""
        network = site.network()
        _, endpoint = site.joined(network)
        listen(site, site.host, TCP, 9000, "0.0.0.0")
        ports = (Port(container=80), Port(container=80), *[Port(container=81, host=9000, host_end=9002)] * 2)
        bound = site.driver.publish(network=network, endpoint=endpoint, ports=ports)
        hosts = [port.host for port in bound if port.address == "0.0.0.0"]
        with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
            low, high = map(int, file.read().split())
        assert all(low <= port <= high for port in hosts[:2])
        assert hosts[2:] == [9001, 9002]
        assert len(set(hosts)) == 4
        with pytest.raises(Conflict) as caught:
            site.driver.publish(
                network=network, endpoint=site.joined(network)[1], ports=(Port(container=1, host=9000, host_end=9002),)
            )
        assert "9000-9002" in str(caught.value)

    @requires(Has.PUBLISH)
    def test_publishing_again_replaces_and_withdrawing_ends_it(self, site: Site) -> None:
        """P7: also right away, and detaching withdraws too."""
        network = site.network()
        container, endpoint = site.joined(network)
        server = container.listen(TCP, 80)
        before = site.census()
        publish = partial(site.driver.publish, network=network, endpoint=endpoint)
        publish(ports=(Port(container=80, host=8080), Port(container=80, host=8081)))
        publish(ports=(Port(container=80, host=8081), Port(container=80, host=8082)))
        assert unreachable(site.neighbour, server, HOST, 8080)
        for port in (8081, 8082):
            assert talk(site.neighbour, server, HOST, port)
        for _ in range(2):
            site.driver.unpublish(network=network, endpoint=endpoint)
        assert site.census() == before
        assert unreachable(site.neighbour, server, HOST, 8081)
        publish(ports=(Port(container=80, host=8081),))
        assert talk(site.neighbour, server, HOST, 8081)
        site.driver.detach(network=network, endpoint=endpoint)
        assert site.driver.owned().endpoints == frozenset()

    @requires(Has.PUBLISH)
    def test_a_client_that_keeps_sending_reaches_the_next_container(self, site: Site) -> None:
        """P6: the kernel's memory of the first one's translation must not stand in the way."""
        network = site.network()
        port = (Port(container=53, host=5353, protocol="udp"),)
        with inside(site.neighbour, socket.socket, socket.AF_INET, UDP) as client:
            client.connect((HOST, 5353))
            for _ in range(2):
                container, endpoint = site.joined(network)
                server = container.listen(UDP, 53)
                server.settimeout(IMPATIENCE)
                site.driver.publish(network=network, endpoint=endpoint, ports=port)
                assert persistently(partial(client.send, b"x"), partial(server.recv, 9)) == b"x"
                site.driver.detach(network=network, endpoint=endpoint)
                container.close()

    @requires(Has.PUBLISH)
    @pytest.mark.parametrize(
        "port",
        [
            Port(container=0, host=80),
            Port(container=65536, host=80),
            Port(container=80, host=70000),
            Port(container=80, host=90, host_end=80),
            Port(container=80, host=80, protocol="icmp"),
            Port(container=80, host=80, address="198.51.100.77"),
            Port(container=80, host=80, address="nowhere"),
        ],
        ids=str,
    )
    def test_a_port_that_cannot_be_is_refused_and_nothing_changes(self, site: Site, port: Port) -> None:
        """B2: the user's words are off, and the error repeats them."""
        network = site.network()
        _, endpoint = site.joined(network)
        before = site.census()
        with pytest.raises(ConfigError):
            site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=1, host=8090), port))
        assert site.census() == before

    @requires(Has.PUBLISH)
    def test_a_thousand_ports_are_published_in_time_and_withdrawn_without_a_trace(self, site: Site) -> None:
        """P8: and without a process for each."""
        network = site.network()
        container, endpoint = site.joined(network)
        before = site.census()
        ports = tuple(Port(container=1000 + number, host=10000 + number) for number in range(1000))
        start = time.monotonic()
        site.driver.publish(network=network, endpoint=endpoint, ports=ports)
        assert time.monotonic() - start < 10
        for number in (0, 999):
            assert talk(site.neighbour, container.listen(TCP, 1000 + number), HOST, 10000 + number) == NEIGHBOUR
        site.driver.unpublish(network=network, endpoint=endpoint)
        assert site.census() == before

    # Many at once, and death at any time

    @requires(Has.L2)
    def test_sixteen_processes_attach_at_once_and_all_are_reached(self, site: Site) -> None:
        """S1: no address, MAC or interface twice; the network is made by whoever comes first."""
        network = site.describe()
        containers = [(site.container(), site.endpoint(network)) for _ in range(16)]

        def work(worker: int) -> None:
            container, endpoint = containers[worker]
            driver = site.open()
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=endpoint, netns=container.netns)

        assert together(work, 16) == [0] * 16
        assert site.driver.owned().endpoints == {endpoint.id for _, endpoint in containers}
        macs = {container.interface("eth0")["address"] for container, _ in containers}
        assert len(macs) == 16
        first, _ = containers[0]
        for container, endpoint in containers[1:]:
            assert talk(first.netns, container.listen(), plain(endpoint))

        def leave(worker: int) -> None:
            site.open().detach(network=network, endpoint=containers[worker][1])

        assert together(leave, 16) == [0] * 16
        assert site.driver.owned().endpoints == frozenset()

    @requires(Has.PUBLISH)
    def test_of_eight_processes_that_want_a_port_one_gets_it(self, site: Site) -> None:
        """S2: the others get a conflict, also those that want it at one address only."""
        network = site.network()
        ends = [site.joined(network)[1] for _ in range(8)]

        def work(worker: int) -> None:
            ports = (Port(container=80, host=8080, address=("", HOST, "127.0.0.1")[worker % 3]),)
            site.open().publish(network=network, endpoint=ends[worker], ports=ports)

        for _ in range(6):
            codes = together(work, 8)
            assert set(codes) == {0, 2}
            winners = [worker for worker, code in enumerate(codes) if code == 0]
            assert len(winners) == 1 or not {worker % 3 for worker in winners} & {0}
            assert len({worker % 3 for worker in winners}) == len(winners)
            for worker in winners:
                site.driver.unpublish(network=network, endpoint=ends[worker])

    @requires(Has.L2)
    def test_killed_at_any_point_nothing_is_left_and_everything_goes_on(self, site: Site) -> None:
        """Z3: create, attach, publish, detach and delete are each cut off by SIGKILL somewhere."""
        before = site.census()
        chance = random.Random(4)
        container = site.container()

        def life(network: Network, endpoint: Endpoint, netns: int) -> None:
            driver = site.open()
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=endpoint, netns=netns)
            if site.has(Has.PUBLISH):
                driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80, host=8080),))
            driver.detach(network=network, endpoint=endpoint)
            driver.delete_network(network=network)

        network = site.describe()
        start = time.monotonic()
        assert in_child(partial(life, network, site.endpoint(network), container.netns)) == 0
        whole = time.monotonic() - start
        for _ in range(20):
            endpoint = site.endpoint(network)
            code = in_child(
                partial(life, network, endpoint, container.netns), kill_after=chance.uniform(0.0, 1.1 * whole)
            )
            assert code in {0, -signal.SIGKILL}
            driver = site.open()
            driver.recover()
            assert driver.recover() == []
            owned = driver.owned()
            assert owned.networks <= {network.id}
            assert owned.endpoints <= {endpoint.id}
            driver.detach(network=network, endpoint=endpoint)
            driver.delete_network(network=network)
            assert driver.owned() == Owned()
            assert site.census() == before
            # The same network and endpoint work as if nothing had happened.
            driver.create_network(network=network)
            driver.attach(network=network, endpoint=endpoint, netns=container.netns)
            other, _ = site.joined(network)
            assert talk(other.netns, container.listen(), plain(endpoint))
            site.sweep()
            assert site.census() == before

    @requires(Has.L2)
    def test_a_hundred_endpoints_come_and_go_and_nothing_adds_up(self, site: Site) -> None:
        """Z1, Z6: the world's census also watches descriptors and threads."""
        network = site.network()
        before = site.census()
        for _ in range(10):
            containers = [site.joined(network) for _ in range(10)]
            for container, endpoint in containers:
                if site.has(Has.PUBLISH):
                    site.driver.publish(network=network, endpoint=endpoint, ports=(Port(container=80),))
                site.driver.detach(network=network, endpoint=endpoint)
                container.close()
        assert site.census() == before


class connection:  # noqa: N801  # a context, used like a function
    """An open TCP connection from a namespace to a server: (client, server's end)."""

    def __init__(self, netns: int, server: socket.socket, address: str) -> None:
        self._client = inside(netns, socket.socket, family(address), TCP)
        self._server, self._address = server, address

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        self._client.settimeout(PATIENCE)
        self._server.settimeout(PATIENCE)
        self._client.connect((self._address, self._server.getsockname()[1]))
        self._peer, _ = self._server.accept()
        self._peer.settimeout(PATIENCE)
        exchange(self._client, self._peer)
        return self._client, self._peer

    def __exit__(self, *_: object) -> None:
        self._client.close()
        self._peer.close()


def persistently(send: Callable[[], object], receive: Callable[[], bytes]) -> bytes:
    """Send until something is received."""
    for _ in range(8):
        try:
            send()
            return receive()
        except (TimeoutError, ConnectionRefusedError):
            continue
    raise TimeoutError("nothing arrived")


def loopback_routable(device: str, via: str | None) -> None:
    """Make the thread's namespace send packets for 127.0.0.1 out of a device, as an attacker would."""
    with open(f"/proc/sys/net/ipv4/conf/{device}/route_localnet", "w") as file:
        file.write("1")
    subprocess.run(["ip", "address", "flush", "dev", "lo"], check=True)
    ip_batch(f"route add 127.0.0.1/32 via {via} dev {device}")


__all__ = ["HOST", "NEIGHBOUR", "UPLINK", "NetworkSuite", "Site", "loopback_up"]
