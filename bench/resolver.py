"""The embedded resolver beside docker's on this machine: `python bench/resolver.py`. How to read it is in README.md.

The set-up is that of run.py. Both ask a name server at the loopback, which a resolv.conf in the benchmark's own mount
namespace names; questions come from inside a container's network namespace.
"""

import argparse
import os
import signal
import socket
import statistics
import time
from pathlib import Path

from dnslib import DNSRecord
from engines import IMAGE, both, place_of_our_own

from transom.services.mounts import MS_BIND, mount
from transom.services.netns import inside

SO_RCVBUFFORCE = 33  # socket(7)


def serve():
    """Answer every question with one address, in a process of its own; return its pid."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
    sock.bind(("127.0.0.1", 53))
    pid = os.fork()
    while not pid:
        data, client = sock.recvfrom(512)
        asked = data[12 : data.index(0, 12) + 5]
        head = data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
        sock.sendto(head + asked + b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\xc0\0\2\1", client)
    sock.close()
    return pid


def client():
    """Return a socket that leads to the resolver of the namespace it is made in."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 22)
    sock.settimeout(5)
    sock.connect(("127.0.0.11", 53))
    return sock


def round_trip(sock, name, count=500):
    """Return the median time of an answer, in milliseconds, one question after the other."""
    packet, times = bytes(DNSRecord.question(name).pack()), []
    for _ in range(count):
        start = time.perf_counter()
        sock.send(packet)
        sock.recv(4096)
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def burst(sock, name, count, at_once):
    """Return answers a second and how many are no failure, with so many questions under way."""
    packet = bytes(DNSRecord.question(name).pack())
    sent = good = answered = 0
    start = time.perf_counter()
    try:
        while answered < count:
            while sent < count and sent - answered < at_once:
                sock.send(sent.to_bytes(2) + packet[2:])
                sent += 1
            good += sock.recv(4096)[3] & 15 == 0
            answered += 1
    except TimeoutError:
        pass  # the rest is lost
    return answered / (time.perf_counter() - start), good


def measure(netns):
    """Return the figures of one side by case."""
    figures = {}
    for title, name in (("a container's name", "app"), ("another name", "www.example.org")):
        with inside(netns, client) as sock:
            round_trip(sock, name, 20)
            figures[f"{title}, ms"] = round_trip(sock, name)
            figures[f"{title}, answers a second"], _ = burst(sock, name, 3000, 32)
            _, figures[f"{title}, answered of 1,000 at once"] = burst(sock, name, 1000, 1000)
    return figures


def main():
    """Read the options and measure in namespaces and a directory of our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is measured (default 5)")
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="measure ours only")
    options = parser.parse_args()
    with place_of_our_own() as place:
        (place / "resolv.conf").write_text("nameserver 127.0.0.1\n")
        mount(str(place / "resolv.conf"), "/etc/resolv.conf", flags=MS_BIND)
        server = serve()
        try:
            with both(place, docker=options.docker) as (transom, _, docker):
                sides = [transom, *([docker.side] if docker else [])]
                found = {side.title: [] for side in sides}
                for side in sides:
                    side("network", "create", "names")
                    side("run", "-d", "--name", "app", "--network", "names", IMAGE, "sleep", "10000")
                for _ in range(options.rounds):
                    for side in sides:
                        pid = side("inspect", "-f", "{{.State.Pid}}", "app").strip()
                        netns = os.open(Path("/proc", pid, "ns/net"), os.O_RDONLY)
                        found[side.title].append(measure(netns))
                        os.close(netns)
                print(f"{'':48}" + "".join(f"{side.title:>10}" for side in sides))
                for case in found[transom.title][0]:
                    medians = (statistics.median(f[case] for f in found[side.title]) for side in sides)
                    print(f"{case:48}" + "".join(f"{figure:10,.{2 if 'ms' in case else 0}f}" for figure in medians))
                for side in sides:
                    side("rm", "-f", "app")
        finally:
            os.kill(server, signal.SIGKILL)
            os.waitpid(server, 0)


if __name__ == "__main__":
    main()
