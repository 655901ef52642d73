"""The little world of a case: a host, its neighbour, containers, and traffic between them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from transom.contract.network import Attachment, Endpoint, Network, NetworkCapability, Subnet
from transom.errors import Conflict
from transom.services.interfaces import route_by
from transom.services.netns import create, inside
from transom.services.options import convert
from transom_conformance.suite import World

if TYPE_CHECKING:
    from transom_conformance.network.cases import NetworkCases

UPLINK = "uplink0"
"""The host's interface towards the neighbour, which carries its default route."""
HOST, NEIGHBOUR = "198.51.100.1", "198.51.100.2"
HOST6, NEIGHBOUR6 = "2001:db8:51::1", "2001:db8:51::2"
PATIENCE = 5.0
"""Seconds after which what should arrive is given up."""
LONG = 60.0
"""Seconds for one to hear of the other on a busy machine, over hosts too."""
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
        return endpoint, self.join(network, endpoint, leads_out=leads_out)

    def join(self, network: Network, endpoint: Endpoint, *, leads_out: bool = True) -> Attachment:
        """Attach it by an endpoint that is described already, perhaps once more."""
        attachment: Attachment = self.site.driver.attach(network=network, endpoint=endpoint, netns=self.netns)
        if leads_out:
            route_by(self.netns, [(attachment.interface or "", gateway) for gateway in attachment.gateways])
        return attachment

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

    def __init__(self, suite: NetworkCases, world: World) -> None:
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
        self.numbers, self.networks, self.containers = count(1), list[Network](), list[Container]()
        self.settings = inside(self.host, read_settings)
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

    def ends(self, *, ipv6: bool) -> tuple[str, str, str]:
        """Return the host's and the neighbour's address of a family, and the loopback's.

        A driver without IPv6 is not asked for more: the case ends as not claimed.
        """
        if ipv6 and not self.has(Has.IPV6):
            pytest.skip(f"not claimed: {self.suite.driver} does not declare ipv6")
        return (HOST6, NEIGHBOUR6, "::1") if ipv6 else (HOST, NEIGHBOUR, "127.0.0.1")

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
        network = self.settle(network)
        self.networks.append(network)
        return network

    def settle(self, network: Network, *endpoints: Endpoint) -> Network:
        """Have a network and its addresses recorded, anew after a removal, where the driver keeps them."""
        if not self.driver.keeps_addresses(network=network):
            return network
        network = self.driver.settle(network=network)
        for endpoint in endpoints:
            self.driver.allocate(network=network, endpoint=endpoint)
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
        keeps = self.driver.keeps_addresses(network=network)
        if not keeps:
            pools = [subnet.pool.partition("/") for subnet in network.subnets]
            addresses = tuple(f"{first[: -1 if '.' in first else None]}{number}/{bits}" for first, _, bits in pools)
            endpoint = msgspec.structs.replace(endpoint, addresses=addresses)
        endpoint = msgspec.structs.replace(endpoint, **fields)
        self.endpoints.append((network, endpoint))
        if keeps:
            self.settle(network)
            endpoint = self.driver.allocate(network=network, endpoint=endpoint)
        return endpoint

    def container(self) -> Container:
        """Make a namespace with nothing in it."""
        self.containers.append(Container(self))
        return self.containers[-1]

    def joined(self, network: Network, **fields: Any) -> tuple[Container, Endpoint]:
        """Make a container on the network."""
        container = self.container()
        endpoint, _ = container.attach(network, **fields)
        return container, endpoint

    def reboot(self) -> None:
        """Have the host forget what a kernel forgets: containers, what was made of interfaces and rules, and /run."""
        for container in self.containers:
            container.close()
        inside(self.host, forget, self.settings)
        shutil.rmtree(self.world.path / "run", ignore_errors=True)

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
    for words, batch in ((["-o"], "link\naddress\nroute show table all\n"), (["-6"], "route show\n")):
        text = subprocess.run(
            ["ip", *words, "-batch", "-"], input=batch, text=True, capture_output=True, check=True
        ).stdout
        seen.update(kept for kept in map(steady, text.splitlines()) if kept)
    if shutil.which("nft"):
        text = subprocess.run(["nft", "list", "ruleset"], text=True, capture_output=True, check=True).stdout
        seen.update(f"firewall: {line.strip()}" for line in text.splitlines())
    return frozenset(seen | {f"{key} = {value}" for key, value in read_settings().items()})


def read_settings() -> dict[str, str]:
    """Return what a driver may have set of the thread's namespace, below /proc/sys/net."""
    found = {}
    for key in ("ipv4/ip_forward", "ipv6/conf/all/forwarding", "ipv4/conf/all/route_localnet"):
        with open(f"/proc/sys/net/{key}") as file:
            found[key] = file.read().strip()
    return found


def forget(settings: dict[str, str]) -> None:
    """Take everything out of the thread's namespace that did not come with it, and set it as it was."""
    for link in ip_json("link"):
        if link["ifname"] not in {"lo", UPLINK}:
            subprocess.run(
                ["ip", "link", "delete", link["ifname"]], capture_output=True, check=False
            )  # or its pair was
        for name in link.get("altnames", ()) if link["ifname"] == UPLINK else ():
            ip_batch(f"link property del dev {UPLINK} altname {name}")
    if shutil.which("nft"):
        subprocess.run(["nft", "flush", "ruleset"], check=True)
    for key, value in settings.items():
        with open(f"/proc/sys/net/{key}", "w") as file:
            file.write(value)


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


def neighbours(address: str) -> list[Any]:
    """List what the thread's namespace knows of a neighbour."""
    found: list[Any] = ip_json("neighbour", "show", "to", address)
    return found


def eventually(holds: Callable[[], bool], otherwise: str, seconds: float = LONG) -> None:
    """Wait until it holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)


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
        for end in (client, server):
            end.settimeout(patience if server.type == TCP else patience / 4)
        target = address, port or server.getsockname()[1]
        client.connect(target)
        if server.type == TCP:
            peer, source = server.accept()
            with peer:
                peer.settimeout(patience)
                exchange(client, peer)
            return str(source[0])
        token = os.urandom(8)  # what an earlier client has sent may still be under way
        for attempt in range(4):
            try:
                client.send(token)
                got, source = server.recvfrom(99)
                while got != token:
                    got, source = server.recvfrom(99)
                server.sendto(got, source)
                assert client.recv(99) == got
            except (TimeoutError, ConnectionRefusedError):
                if attempt == 3:
                    raise
                continue
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


def hears(netns: int, server: socket.socket, address: str, port: int = 0) -> bool:
    """Say whether a datagram from a namespace arrives, which needs no answer to do harm."""
    token = os.urandom(8)
    server.settimeout(IMPATIENCE)
    with inside(netns, socket.socket, family(address), UDP) as client:
        try:
            client.sendto(token, (address, port or server.getsockname()[1]))
            while server.recv(99) != token:
                continue
        except OSError:
            return False
    return True


def echoes(netns: int, address: str) -> bool:
    """Say whether an echo request from a namespace is answered (icmp(7), RFC 4443, section 4)."""

    def allow() -> None:
        with open("/proc/sys/net/ipv4/ping_group_range", "w") as file:
            file.write("0 0")

    inside(netns, allow)
    request, reply, protocol = (128, 129, 58) if ":" in address else (8, 0, 1)
    with inside(netns, socket.socket, family(address), socket.SOCK_DGRAM, protocol) as client:
        client.settimeout(PATIENCE / 4)
        for _ in range(4):  # as of any datagram, nobody tells of one that is lost
            with suppress(OSError):
                client.sendto(bytes([request]) + bytes(7), (address, 0))
                return client.recv(99)[0] == reply
    return False


def gateway_of(network: Network, *, ipv6: bool = False) -> str:
    """Return the gateway's address of a family."""
    return next(subnet.gateway or "" for subnet in network.subnets if (":" in subnet.pool) == ipv6)


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


class Stream:
    """A TCP connection over which numbers go all the time; a context, at whose end none of them may be missing."""

    def __init__(self, netns: int, server: socket.socket, address: str, port: int = 0) -> None:
        self._client = inside(netns, socket.socket, family(address), TCP)
        self._server, self._target = server, (address, port or server.getsockname()[1])
        self._sent = self._seen = 0
        self._ending, self._wrong = threading.Event(), ""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._receive)]

    def __enter__(self) -> Stream:
        for end in (self._client, self._server):
            end.settimeout(LONG)
        self._client.connect(self._target)
        self._peer, _ = self._server.accept()
        self._peer.settimeout(LONG)
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def _send(self) -> None:
        try:
            while not self._ending.wait(0.001):
                self._client.sendall(self._sent.to_bytes(8))
                self._sent += 1
            self._client.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._wrong = self._wrong or f"sending: {error}"

    def _receive(self) -> None:
        try:
            with self._peer.makefile("rb") as stream:
                while data := stream.read(8):
                    if int.from_bytes(data) != self._seen:
                        raise OSError(f"{self._seen} is missing")
                    self._seen += 1
        except OSError as error:
            self._wrong = self._wrong or f"receiving: {error}"

    def goes_on(self) -> None:
        """Wait until what is sent from now on has arrived."""
        mark = self._sent + 1
        eventually(
            lambda: self._seen > mark or bool(self._wrong), f"the connection to {self._target[0]} has come to a halt"
        )
        assert not self._wrong, f"the connection to {self._target[0]} is broken ({self._wrong})"

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(LONG)
        self._client.close()
        self._peer.close()
        if kind is None:
            assert (self._seen, self._wrong) == (self._sent, ""), "bytes of a connection were lost"


def persistently(send: Callable[[], object], receive: Callable[[], bytes]) -> bytes:
    """Send until something is received."""
    for _ in range(8):
        try:
            send()
            return receive()
        except (TimeoutError, ConnectionRefusedError):
            continue
    raise TimeoutError("nothing arrived")


def loopback_routable(device: str, via: str) -> None:
    """Make the thread's namespace send packets for 127.0.0.1, or ::1, out of a device, as an attacker would."""
    if ":" not in via:
        with open(f"/proc/sys/net/ipv4/conf/{device}/route_localnet", "w") as file:
            file.write("1")
    subprocess.run(["ip", "address", "flush", "dev", "lo"], check=True)
    ip_batch(f"route add {'::1/128' if ':' in via else '127.0.0.1/32'} via {via} dev {device}")
