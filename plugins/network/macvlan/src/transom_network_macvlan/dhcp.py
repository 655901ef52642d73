"""Addresses by DHCP (RFC 2131), from busybox's client ``udhcpc``.

The client runs twice: once until it has a lease, while the container is joined, and then for as long as the container
runs, to renew it. It asks for the same address with the same client identifier, so both are one lease to the server.
It changes nothing itself: its script prints what it knows, and `Lease.apply` sets the interface.

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
from collections.abc import Callable
from pathlib import Path

import msgspec

from transom.errors import DriverError, NotSupported
from transom.services import netlink
from transom.services.files import write_atomic
from transom.services.interfaces import ANY, ETHERNET_MTU
from transom.services.netlink import Session
from transom.services.netns import inside

TRIES, PAUSE = 4, 3
"""How often an offer is asked for, and the seconds between."""
LINK = "0.0.0.0"
"""The next hop that stands for the link itself."""
AGAIN, LAST = 5.0, 3.0
"""Seconds until a client that ended is started anew; those it has at the end to get what it is to release."""
_SMALLEST = 68
"""The smallest MTU that a server may give, in bytes (RFC 2132, section 5.1)."""
_SCRIPT = rb"""#!/bin/sh
printf 'transom\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' \
    "$1" "$ip" "$mask" "$router" "$dns" "${search:-$domain}" "$staticroutes" "$mtu"
"""
_ASKED = ("-O26", "-O119", "-O121")
"""What is asked for beside the client's defaults: MTU, search domains (RFC 3397), routes (RFC 3442)."""


class Lease(msgspec.Struct, frozen=True):
    """What the server gave: an address with prefix, next hops, name servers, search domains, and more.

    Attributes:
        address: empty when there is none, or none any more.
        routes: pairs of a range and a next hop, "0.0.0.0" for the link itself; none is a default route.
        mtu: in bytes; 0 when nothing was said.
    """

    address: str = ""
    routers: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    routes: tuple[tuple[str, str], ...] = ()
    mtu: int = 0

    def apply(self, inner: Session, interface: str, *, before: Lease, most: int) -> None:
        """Give an interface in the session's namespace what the lease says, in place of what another one said.

        Addresses that no lease gave stay. With the last address the kernel takes the routes away.

        Args:
            most: the largest MTU that the interface may have, in bytes, and what it has when the lease says none.
        """
        link = inner.link(interface)
        if link is None:
            return
        mtu = self.mtu if _SMALLEST <= self.mtu < most else most
        if link.mtu != mtu:
            inner.request(netlink.set_mtu(interface, mtu))
        present = inner.addresses(link.index)
        # First, for the kernel takes away with an address what was added beside it in its subnet (promote_secondaries).
        if before.address in present and before.address != self.address:
            inner.request(netlink.delete_address(link.index, before.address))
        if self.address and self.address not in present:
            inner.request(netlink.add_address(link.index, self.address))
        known = {(route.to, route.gateway or LINK) for route in inner.routes() if route.index == link.index}
        for to, hop in {*before.routes} - {*self.routes}:
            if (to, hop) in known:
                inner.request(netlink.delete_route(link.index, to, None if hop == LINK else hop))
        for to, hop in self.routes:
            if (to, hop) not in known:
                _add_route(inner, link.index, to, hop)


NONE = Lease()
"""No lease."""


class Client:
    """A client for one interface in a container's namespace.

    Args:
        root: where the script is kept; programs can be started from there.
        name: the host name that the server is told, at most one.
    """

    def __init__(self, root: Path, *, netns: int, interface: str, name: tuple[str, ...]) -> None:
        self._root, self._netns, self._interface = root, netns, interface
        self._name = [f"-xhostname:{word}" for word in name]
        self._bound = False

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
                "dhcp", driver="network macvlan", subject=self._interface,
                cause=f"no DHCP server has answered in {TRIES * PAUSE} seconds",
                hint="is there one on the network of the parent? Else leave out dhcp=true",
            )  # fmt: skip
        return found[-1]

    def give_back(self) -> None:
        """Release the lease that was obtained, in the only way that a client can: by having it once more, and set."""

        def heed(lease: Lease) -> None:
            with Session() as inner:
                lease.apply(inner, self._interface, before=NONE, most=ETHERNET_MTU)

        stop, signal = os.pipe()
        os.close(signal)
        try:
            self.keep(stop, NONE.address, heed)
        finally:
            os.close(stop)

    def keep(self, stop: int, address: str, heed: Callable[[Lease], None]) -> None:
        """Renew the lease until `stop` is readable, and release it then.

        Args:
            address: what is asked for at first.
            heed: is told each lease that the server gives or prolongs, and `NONE` when one has run out or was refused.
        """
        inside(self._netns, self._keep, stop, address, heed)

    def _keep(self, stop: int, address: str, heed: Callable[[Lease], None]) -> None:
        last, ended = address, False

        def heard(lease: Lease) -> None:
            nonlocal last
            last = lease.address or last
            try:
                heed(lease)
            except OSError as error:
                print(f"applying a lease to {self._interface}: {error}", file=sys.stderr, flush=True)

        while not ended:  # once at least: it is the client that releases what was obtained
            process = self._start("-R", *([f"-r{last.partition('/')[0]}"] if last else []))
            assert process.stdout is not None
            try:
                self._follow(process.stdout.fileno(), stop, heard)
            finally:
                process.terminate()  # on which it releases
                try:
                    process.wait(AGAIN)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                process.stdout.close()
            ended = bool(select.select([stop], [], [], AGAIN)[0])

    def _follow(self, output: int, stop: int, heard: Callable[[Lease], None]) -> None:
        """Pass on what the client says until it ends or must; it releases a lease that it has got, so that is
        awaited."""
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
                if lease and event in {"bound", "renew"}:
                    self._bound = True
                    heard(lease)
                elif event == "deconfig" and self._bound:  # the first one is only a beginning
                    heard(NONE)


def _add_route(inner: Session, index: int, to: str, hop: str) -> None:
    """Make a route that came with a lease; one that the kernel does not take is passed over, and said."""
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
