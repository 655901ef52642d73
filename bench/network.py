"""Networks beside docker's on this machine: `python bench/network.py`. How to read it is in README.md.

The set-up is that of run.py: namespaces, a directory and control groups of our own, a dockerd that is started here.
"""

import argparse
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time

from engines import IMAGE, both, place_of_our_own

from transom.contract.network import Endpoint, Network, Port, Subnet
from transom.services.netlink import Session, add_address, add_link, add_route, add_veth, delete_link, set_up
from transom.services.netns import create, inside

NETWORKS = 8
MAC = "02:42:0a:d6:00:02"


def timed(function, *args, **kwargs):
    """Return how many milliseconds a call takes."""
    start = time.perf_counter()
    function(*args, **kwargs)
    return (time.perf_counter() - start) * 1000


class OverSocket(http.client.HTTPConnection):
    """A connection to dockerd."""

    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)

    def post(self, path, body):
        """Ask for something that succeeds."""
        self.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"docker {path}: {answer.status} {text!r}")


def against_docker(transom, engine, docker, place, pairs):
    """Connect and disconnect a running container by turns: inside an engine that runs, and by the command."""
    from transom_engine.model import EndpointSettings

    for side in (transom, docker.side):
        side("run", "-d", "--name", "app", "--network", "bridge", IMAGE, "sleep", "10000")
        for number in range(NETWORKS):
            side("network", "create", f"n{number}")
    api, app = OverSocket(f"{place}/docker.sock"), engine.containers.get("app")
    cases = {
        "connect, in an engine that runs": (
            lambda net: engine.endpoints.connect(net, app, EndpointSettings()),
            lambda net: api.post(f"/networks/{net}/connect", {"Container": "app"}),
        ),
        "disconnect, in an engine that runs": (
            lambda net: engine.endpoints.disconnect(net, app),
            lambda net: api.post(f"/networks/{net}/disconnect", {"Container": "app"}),
        ),
        "connect, by the command": (
            lambda net: transom("network", "connect", net, "app"),
            lambda net: docker.side("network", "connect", net, "app"),
        ),
        "disconnect, by the command": (
            lambda net: transom("network", "disconnect", net, "app"),
            lambda net: docker.side("network", "disconnect", net, "app"),
        ),
    }
    figures = {case: [] for case in cases}
    for count in range(-1, pairs):
        for case, sides in cases.items():
            transom.group.enter()
            pair = [timed(act, f"n{count % NETWORKS}") for act in sides]
            if count >= 0:  # the first round warms up
                figures[case].append(pair)
    print(f"{'':38}{'transom ms':>11}{'docker ms':>11}{'ratio':>8}")
    for case, found in figures.items():
        show(case, found)
    transom("rm", "-f", "app")


def growth(place, most):
    """Attach and publish one endpoint after another, and see whether the last cost more than the first."""
    from transom.drivers import Drivers

    driver = Drivers(state=place / "state", run=place / "run").open("network", "bridge", {}, where="the benchmark")
    network = Network(id="b" * 64, name="bench", subnets=(Subnet(pool="10.214.0.0/16", gateway="10.214.0.1"),))
    driver.create_network(network=network)
    times = {
        "attach": [],
        "  the same, of CPU": [],
        "  a bare pair in a bridge, of CPU": [],
        "publish": [],
        "detach": [],
    }
    ends, bare = [], a_bridge("benchbr")
    for number in range(most):
        netns = create()
        address = f"10.214.{(number + 2) >> 8}.{(number + 2) & 255}/16"
        end = Endpoint(id=os.urandom(32).hex(), container="c", names=(f"c{number}",), addresses=(address,))
        before = time.process_time()
        times["attach"].append(timed(driver.attach, network=network, endpoint=end, netns=netns))
        between = time.process_time()
        a_pair(f"bench{number}", "bare", bare, netns)
        times["  a bare pair in a bridge, of CPU"].append((time.process_time() - between) * 1000)
        times["  the same, of CPU"].append((between - before) * 1000)
        ports = (Port(container=80),)
        times["publish"].append(timed(driver.publish, network=network, endpoint=end, ports=ports))
        ends.append((netns, end))
    many = tuple(Port(container=1000 + n, host=10000 + n) for n in range(1000))
    bulk = timed(driver.publish, network=network, endpoint=ends[0][1], ports=many)
    for netns, end in ends:
        times["detach"].append(timed(driver.detach, network=network, endpoint=end))
        os.close(netns)
    driver.delete_network(network=network)
    with Session() as session:
        session.request(delete_link("benchbr"))
    tenth = max(most // 10, 1)
    print(f"\n{most} endpoints, in milliseconds{'':8}{'first tenth':>14}{'last tenth':>12}{'least':>8}")
    for what, found in times.items():
        first, last = statistics.median(found[:tenth]), statistics.median(found[-tenth:])
        print(f"  {what:36}{first:12.2f}{last:12.2f}{min(found):8.2f}")
    print(f"  1,000 ports published beside them {bulk:14.0f}")


def a_bridge(name):
    """Make a bridge, and return its index."""
    with Session() as session:
        session.request(add_link(name=name, kind="bridge"), set_up(name))
        return session.link(name).index


def a_pair(name, peer, bridge, netns):
    """Make a pair in a bridge by one message: what the kernel takes for it, nobody gets below."""
    with Session() as session:
        session.request(add_veth(name=name, master=bridge, mtu=1500, peer=peer, mac=MAC, netns=netns))


def by_ours(bridge, netns):
    """Make the interface of an endpoint as core does."""
    a_pair("bench0", "eth0", bridge, netns)

    def furnish():
        with Session() as session:
            index = session.link("eth0").index
            session.request(
                add_address(index, "10.214.0.2/16"), set_up("eth0"), add_route(index, "0.0.0.0/0", "10.214.0.1")
            )

    inside(netns, furnish)


def by_pyroute2(bridge, netns):
    """Make the same with pyroute2, the fastest way it has: no process, and the peer born where it belongs."""
    from pyroute2 import IPRoute

    peer = {"ifname": "eth0", "net_ns_fd": netns, "address": MAC, "mtu": 1500}
    with IPRoute() as ip:
        ip.link("add", ifname="bench0", kind="veth", master=bridge, mtu=1500, state="up", peer=peer)

    def furnish():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        sock.bind((0, 0))
        with IPRoute(use_socket=sock) as ip:
            (index,) = ip.link_lookup(ifname="eth0")
            ip.addr("add", index=index, address="10.214.0.2", prefixlen=16)
            ip.link("set", index=index, state="up")
            ip.route("add", dst="0.0.0.0/0", gateway="10.214.0.1", oif=index)

    inside(netns, furnish)


def beside_pyroute2(rounds):
    """Make the interface of one endpoint by turns with core's netlink and with pyroute2, and import both afresh."""
    bridge = a_bridge("benchbr")
    figures = {by_ours: [], by_pyroute2: []}
    for count in range(-1, rounds):
        for make, found in figures.items():
            netns, before = create(), time.process_time()
            wall = timed(make, bridge, netns)
            if count >= 0:
                found.append((wall, (time.process_time() - before) * 1000))
            os.close(netns)
            with Session() as session:
                while session.link("bench0"):  # the kernel takes it away with its namespace
                    time.sleep(0.01)
    with Session() as session:
        session.request(delete_link("benchbr"))
    print(f"\n{'netlink of one endpoint':38}{'core ms':>11}{'pyroute2':>11}{'ratio':>8}")
    pairs = list(zip(figures[by_ours], figures[by_pyroute2], strict=True))
    for at, what in enumerate(("the interface, addressed and routed", "  of CPU")):
        show(what, [(ours[at], theirs[at]) for ours, theirs in pairs])
    modules = ("transom.services.netlink", "pyroute2")
    show("the import, of CPU", [tuple(import_of(module) for module in modules) for _ in range(rounds // 2 or 1)])


def cost_of_guarding(place, rounds, packets=20_000):
    """Send small datagrams from one container to another by turns, with antispoof and without.

    They pass the bridge and reach a socket within the call that sends them, where most find its queue full: what is
    timed is the path of a packet, nothing else.
    """
    from transom.drivers import Drivers

    driver = Drivers(state=place / "state", run=place / "run").open("network", "bridge", {}, where="the benchmark")
    made = [guarded_pair(driver, number, antispoof=antispoof) for number, antispoof in ((220, True), (221, False))]
    print(f"\n{f'{packets} datagrams of 64 bytes, of CPU':38}{'guarded':>11}{'unguarded':>11}{'ratio':>8}")
    for family, label in ((socket.AF_INET, "IPv4, in ms"), (socket.AF_INET6, "IPv6, in ms")):
        clients = []
        for _, sender, receiver, addresses in made:
            server = inside(receiver, socket.socket, family, socket.SOCK_DGRAM)
            server.bind((addresses[family], 9))
            client = inside(sender, socket.socket, family, socket.SOCK_DGRAM)
            client.connect((addresses[family], 9))
            clients.append((client, server))
        pairs = []
        for count in range(-1, rounds):
            pair = [sending(client, packets) for client, _ in clients]
            if count >= 0:
                pairs.append(pair)
        show(label, pairs)
        for ends in clients:
            for end in ends:
                end.close()
    for (network, ends), *namespaces, _ in made:
        for end in ends:
            driver.detach(network=network, endpoint=end)
        driver.delete_network(network=network)
        for netns in namespaces:
            os.close(netns)


def guarded_pair(driver, number, *, antispoof):
    """Make two containers on a network: what to take away, their namespaces, and the addresses of the second."""
    pools = {socket.AF_INET: f"10.{number}.0.", socket.AF_INET6: f"fd00:{number}::"}
    subnets = tuple(Subnet(pool=f"{p}{'0/24' if '.' in p else '/64'}", gateway=f"{p}1") for p in pools.values())
    options = driver.NetworkOptions(antispoof=antispoof)
    network = Network(id=os.urandom(32).hex(), name=f"bench{number}", subnets=subnets, options=options)
    driver.create_network(network=network)
    namespaces, ends = [create(), create()], []
    for host, netns in enumerate(namespaces, 2):
        addresses = tuple(f"{p}{host}/{24 if '.' in p else 64}" for p in pools.values())
        ends.append(Endpoint(id=os.urandom(32).hex(), container="c", names=(f"c{host}",), addresses=addresses))
        driver.attach(network=network, endpoint=ends[-1], netns=netns)
    return (network, ends), *namespaces, {family: f"{p}3" for family, p in pools.items()}


def sending(client, packets):
    """Return how many milliseconds of CPU it takes to send datagrams."""
    data, send, before = bytes(64), client.send, time.process_time()
    for _ in range(packets):
        send(data)
    return (time.process_time() - before) * 1000


def show(what, pairs):
    """Print the medians of both sides, and that of the ratios."""
    ours, theirs = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(f"{what:38}{ours:11.1f}{theirs:11.1f}{statistics.median(a / b for a, b in pairs):8.2f}", flush=True)


def import_of(module):
    """Return how many milliseconds of CPU a new interpreter takes for an import, and for nothing else."""
    script = f"import time, sys\nbefore = time.process_time()\nimport {module}\nprint(time.process_time() - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return float(done.stdout) * 1000


def main():
    """Read the options and measure in namespaces and a directory of our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="how often each case runs on each side (default 15)")
    parser.add_argument("--endpoints", type=int, default=500, help="how many are attached (default 500)")
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="measure ours only")
    options = parser.parse_args()
    with place_of_our_own() as place:
        if options.docker:
            with both(place) as (transom, engine, docker):
                if docker:
                    against_docker(transom, engine, docker, place, options.pairs)
        growth(place, options.endpoints)
        beside_pyroute2(30)
        cost_of_guarding(place, 15)


if __name__ == "__main__":
    main()
