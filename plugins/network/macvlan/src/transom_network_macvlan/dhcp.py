"""Addresses by DHCP (RFC 2131), from busybox's client ``udhcpc``.

The client runs twice: once until it has a lease, while the container is joined, and then for as long as the container
runs, to renew it. It asks for the same address with the same client identifier, so both are one lease to the server.
It changes nothing itself: its script prints what it knows, and the address is set here.

It dies with the thread that started it (prctl(2), PR_SET_PDEATHSIG, by setpriv(1)), so that the death of a supervisor
leaves no client behind where the kernel does not end it anyway; SIGTERM is what it releases the lease on.
"""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec

from transom.errors import DriverError, NotSupported
from transom.services import netlink
from transom.services.files import write_atomic
from transom.services.interfaces import ANY, route_by
from transom.services.netlink import Session
from transom.services.netns import inside

TRIES, PAUSE = 4, 3
"""How often an offer is asked for, and the seconds between."""
LINK = "0.0.0.0"
"""The next hop that stands for the link itself."""
AGAIN, LAST = 5.0, 3.0
"""Seconds until a client that ended is started anew; those it has at the end to get what it is to release."""
_SCRIPT = rb"""#!/bin/sh
printf 'transom\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' \
    "$1" "$ip" "$mask" "$router" "$dns" "${search:-$domain}" "$staticroutes" "$mtu"
"""
_ASKED = ("-O26", "-O119", "-O121")
"""What is asked for beside the client's defaults: MTU, search domains (RFC 3397), routes (RFC 3442)."""


class Lease(msgspec.Struct, frozen=True):
    """What the server gave: an address with prefix, next hops, name servers, search domains, and more.

    Attributes:
        routes: pairs of a range and a next hop, "0.0.0.0" for the link itself; none is a default route.
        mtu: in bytes; 0 when nothing was said.
    """

    address: str
    routers: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    mtu: int = 0


class Client:
    """A client for one interface in a container's namespace.

    Args:
        root: where the script is kept; programs can be started from there.
        name: the host name that the server is told, at most one.
    """

    def __init__(self, root: Path, *, netns: int, interface: str, name: tuple[str, ...]) -> None:
        self._root, self._netns, self._interface = root, netns, interface
        self._name = [f"-xhostname:{word}" for word in name]
        self._bound = self._leads_out = False

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a client that lives no longer than the thread."""
        from shutil import which

        program = ["udhcpc"] if which("udhcpc") else ["busybox", "udhcpc"]
        for name, needed, package in (
            ("udhcpc", program[0], "udhcpc or busybox-static"),
            ("setpriv", "setpriv", "util-linux"),
        ):
            if not which(needed):
                raise NotSupported(f"dhcp=true needs the program {name}: install the package {package}")
        script = self._root / "udhcpc.script"
        if not script.exists() or script.read_bytes() != _SCRIPT:
            self._root.mkdir(parents=True, exist_ok=True)
            write_atomic(script, _SCRIPT, mode=0o700)
        argv = ["setpriv", "--pdeathsig", "TERM", *program, "-f", "-i", self._interface, "-s", str(script)]
        return subprocess.Popen(
            [*argv, *_ASKED, *self._name, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def obtain(self, asked: str = "") -> Lease:
        """Return a lease, of the address that was asked for if the server gives it.

        Raises:
            DriverError: no server answers.
        """
        return inside(self._netns, self._obtain, asked)

    def _obtain(self, asked: str) -> Lease:
        process = self._start("-q", "-n", f"-t{TRIES}", f"-T{PAUSE}", *([f"-r{asked}"] if asked else []))
        try:
            out, _ = process.communicate(timeout=4 * TRIES * PAUSE)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
        found = [lease for event, lease in _events(out) if event == "bound" and lease]
        if not found:
            raise DriverError(
                "dhcp", driver="network macvlan", subject=self._interface, cause="no DHCP server has answered",
                hint="is there one on the network of the parent? Else leave out dhcp=true",
            )  # fmt: skip
        return found[-1]

    def give_back(self) -> None:
        """Release the lease that was obtained, in the only way that a client can: by having it once more."""
        stop, signal = os.pipe()
        os.close(signal)
        try:
            self.keep(stop)
        finally:
            os.close(stop)

    def keep(self, stop: int) -> None:
        """Renew the lease until `stop` is readable, and release it then."""
        inside(self._netns, self._keep, stop)

    def _keep(self, stop: int) -> None:
        ended = False
        while not ended:  # once at least: it is the client that releases what was obtained
            process = self._start("-R", *([f"-r{address}"] if (address := self._address()) else []))
            assert process.stdout is not None
            try:
                self._follow(process.stdout.fileno(), stop)
            finally:
                process.terminate()  # on which it releases
                try:
                    process.wait(AGAIN)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                process.stdout.close()
            ended = bool(select.select([stop], [], [], AGAIN)[0])

    def _follow(self, output: int, stop: int) -> None:
        """Apply what the client says until it ends or must; it releases a lease that it has got, so that is awaited."""
        waiting, until = b"", None
        self._bound = False
        while until is None or (not self._bound and time.monotonic() < until):
            watched = [output] if until else [output, stop]
            ready, _, _ = select.select(watched, [], [], until and max(0.0, until - time.monotonic()))
            if stop in ready:
                until = time.monotonic() + LAST
            if output not in ready:
                continue
            data = os.read(output, 65536)
            if not data:
                return
            lines, _, waiting = (waiting + data).rpartition(b"\n")
            for event, lease in _events(lines):
                try:
                    self._heed(event, lease)
                except OSError as error:
                    print(f"applying a lease to {self._interface}: {error}", file=sys.stderr, flush=True)

    def _heed(self, event: str, lease: Lease | None) -> None:
        if lease and event in {"bound", "renew"}:
            self._bound = True
            self._apply(lease)
        elif event == "deconfig" and self._bound:  # the lease has run out; the first one is only a beginning
            self._apply(None)

    def _address(self) -> str:
        with inside(self._netns, Session) as inner:
            link = inner.link(self._interface)
            present = inner.addresses(link.index) if link else {}
        return next((address.partition("/")[0] for address in present if ":" not in address), "")

    def _apply(self, lease: Lease | None) -> None:
        """Replace the address where it has changed, and the way out where that was ours."""
        with inside(self._netns, Session) as inner:
            link = inner.link(self._interface)
            if link is None:
                return
            present = {address for address in inner.addresses(link.index) if ":" not in address}
            wanted = {lease.address} if lease else set()
            if present:  # with the last address the kernel takes the routes away
                self._leads_out = any(r.index == link.index and r.static and r.to == ANY[4] for r in inner.routes())
            for address in wanted - present:
                inner.request(netlink.add_address(link.index, address))
            for address in present - wanted:
                inner.request(netlink.delete_address(link.index, address))
            if lease and present != wanted:
                add_routes(inner, link.index, lease)
        if self._leads_out and lease and lease.routers and present != wanted:
            route_by(self._netns, [(self._interface, lease.routers[0])])


def add_routes(inner: Session, index: int, lease: Lease) -> None:
    """Make the routes that came with a lease; one that the kernel does not take is passed over, and said."""
    for to, hop in lease.routes:
        try:
            inner.request(netlink.add_route(index, to, None if hop == LINK else hop, replace=True))
        except (OSError, ValueError, struct.error) as error:
            print(f"a route of the DHCP server's, {to} by {hop}: {error}", file=sys.stderr, flush=True)


def _events(text: bytes) -> list[tuple[str, Lease | None]]:
    """Read what the script printed."""
    found: list[tuple[str, Lease | None]] = []
    for line in text.decode(errors="replace").splitlines():
        words = line.split("\t")
        if len(words) != 9 or words[0] != "transom":
            continue
        _, event, address, prefix, routers, dns, search, routes, mtu = words
        lease = None
        if address and prefix:
            pairs = tuple(zip(routes.split()[::2], routes.split()[1::2], strict=False))
            # With routes given one by one the option for routers does not count (RFC 3442).
            ways = [hop for to, hop in pairs if to == ANY[4]] if pairs else routers.split()
            lease = Lease(
                address=f"{address}/{prefix}",
                routers=tuple(ways),
                dns=tuple(dns.split()),
                search=tuple(search.split()),
                routes=tuple((to, hop) for to, hop in pairs if to != ANY[4]),
                mtu=int(mtu) if mtu.isdigit() else 0,
            )
        found.append((event, lease))
    return found
