"""Logs to collectors beside docker's: two million lines of 100 bytes of a real container, until the last has arrived.

    python bench/logs_remote.py [--pairs N] [--lines N] [--no-docker]

Both engines run the same container in turn, in control groups of their own, with the same collector: rsyslog over TCP,
and a reader of the forward protocol that acknowledges when asked and decodes every record. Ours asks for
acknowledgements; docker's fluentd driver does by its default not. Every line is counted and looked for.
"""

import argparse
import contextlib
import shutil
import socket
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime

from engines import IMAGE, both, place_of_our_own

STALL = 30
"""Seconds without a new line after which the rest is given up as lost."""

RSYSLOG = """
global(workDirectory="@D@" maxMessageSize="64k")
module(load="imtcp")
template(name="text" type="string" string="%msg:2:$%\\n")
input(type="imtcp" port="@PORT@" address="127.0.0.1" ruleset="all")
ruleset(name="all") { action(type="omfile" file="@D@/received" template="text" ioBufferSize="256k") }
"""

FORWARD = """
import msgpack, os, socketserver

class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        unpacker = msgpack.Unpacker(raw=True, max_buffer_size=1 << 28)
        out = os.open("received", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        while data := self.request.recv(1 << 20):
            unpacker.feed(data)
            lines, acks = [], []
            for message in unpacker:
                options = message[-1] if isinstance(message[-1], dict) else {}
                if isinstance(message[1], bytes):
                    entries = msgpack.Unpacker(raw=True, max_buffer_size=1 << 28)
                    entries.feed(message[1])
                    lines += [record[b"log"] for _, record in entries]
                else:
                    lines.append(message[2][b"log"])
                if b"chunk" in options:
                    acks.append(msgpack.packb({"ack": options[b"chunk"].decode()}))
            if lines:
                os.write(out, b"\\n".join(lines) + b"\\n")
            if acks:
                self.request.sendall(b"".join(acks))

class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True

Server(("127.0.0.1", @PORT@), Handler).serve_forever()
"""


@contextlib.contextmanager
def collector(place, words, name, text):
    """Run a collector on a port of its own; give the port and the file that it fills."""
    place.mkdir()
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port = trial.getsockname()[1]
    (place / name).write_text(text.replace("@PORT@", str(port)).replace("@D@", str(place)))
    with open(place / "log", "wb") as log, subprocess.Popen(words, cwd=place, stdout=log, stderr=log) as process:
        try:
            end = time.monotonic() + 30
            while socket.socket().connect_ex(("127.0.0.1", port)):
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit((place / "log").read_text())
                time.sleep(0.05)
            yield port, place / "received"
        finally:
            process.kill()
    shutil.rmtree(place)


def arrived(side, lines, count, options, received):
    """Run a container that writes the lines; return lines a second until the last arrived, of CPU, and those lost."""
    used = side.group.cpu()
    side("run", "-d", "--network", "none", "--name", "log", "-v", f"{lines}:/lines", *options, IMAGE, "cat", "/lines")
    size, wanted, changed = 0, lines.stat().st_size, time.monotonic()
    while size < wanted and time.monotonic() - changed < STALL:
        time.sleep(0.01)
        if received.exists() and (now := received.stat().st_size) != size:
            size, changed, at = now, time.monotonic(), time.time()
    word = side("inspect", "-f", "{{.State.StartedAt}}", "log").strip()
    begin = datetime.fromisoformat(f"{word[:26].rstrip('Z')}").replace(tzinfo=UTC).timestamp()
    side("wait", "log")
    cpu = (side.group.cpu() - used) / 1000
    side("rm", "log")
    found = {line.strip() for line in received.read_bytes().split(b"\n")}
    lost = sum(b"%099d" % i not in found for i in range(count))
    return count / (at - begin), count / cpu, lost


def cases(place, side, lines, count):
    """Measure one side with both collectors."""
    words = ["rsyslogd", "-n", "-f", f"{place}/sink/rsyslog.conf", "-i", f"{place}/sink/pid"]
    with collector(place / "sink", words, "rsyslog.conf", RSYSLOG) as (port, received):
        options = ["--log-driver", "syslog", "--log-opt", f"syslog-address=tcp://127.0.0.1:{port}"]
        syslog = arrived(side, lines, count, options, received)
    with collector(place / "sink", [sys.executable, "server.py"], "server.py", FORWARD) as (port, received):
        options = ["--log-driver", "fluentd", "--log-opt", f"fluentd-address=127.0.0.1:{port}"]
        fluentd = arrived(side, lines, count, options, received)
    return {"syslog, tcp": syslog, "fluentd": fluentd}


def show(found):
    """Print medians in thousand lines a second, the pairs' ratios, and what was lost."""
    ours, *theirs = found.values()
    print(f"{'thousand lines a second':28}{'transom':>10}{'docker':>10}{'ratio':>8}   (least - most)   lost")
    for case in ours[0]:
        for part, name in enumerate((case, f"{case}: of CPU")):
            row = f"{name:28}{statistics.median(f[case][part] for f in ours) / 1000:10.0f}"
            if theirs:
                pairs = sorted(a[case][part] / b[case][part] for a, b in zip(ours, theirs[0], strict=True))
                row += f"{statistics.median(f[case][part] for f in theirs[0]) / 1000:10.0f}"
                row += f"{statistics.median(pairs):7.1f}x   ({pairs[0]:.1f} - {pairs[-1]:.1f})"
            lost = [sum(f[case][2] for f in side) for side in (ours, *theirs)]
            print(row + ("" if part else "   " + ", ".join(map(str, lost))))


def main():
    """Read the options and measure in namespaces and a directory of our own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=5, help="how often each side is measured (default 5)")
    parser.add_argument("--lines", type=int, default=2_000_000, help="lines of a container (default 2000000)")
    parser.add_argument("--no-docker", dest="docker", action="store_false", help="measure ours only")
    options = parser.parse_args()
    with place_of_our_own() as place:
        (place / "root/bin/cat").symlink_to("busybox")
        (place / "root/lines").touch()
        with open(place / "lines", "wb") as file:
            for first in range(0, options.lines, 10_000):
                file.write(b"".join([b"%099d\n" % i for i in range(first, min(first + 10_000, options.lines))]))
        with both(place, docker=options.docker) as (transom, _engine, docker):
            sides = [transom] + ([docker.side] if docker else [])
            found = {side.title: [] for side in sides}
            for _ in range(options.pairs):
                for side in sides:
                    found[side.title].append(cases(place, side, place / "lines", options.lines))
            show(found)


if __name__ == "__main__":
    main()
