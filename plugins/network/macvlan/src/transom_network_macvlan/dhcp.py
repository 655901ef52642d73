"""Addresses by DHCP (RFC 2131), from busybox's client ``udhcpc``.

The client runs twice: once until it has a lease, while the container is joined, and then for as long as the container
runs, to renew it. It asks for the same address with the same client identifier, so both are one lease to the server.
It changes nothing itself: its script prints what it knows, and the address is set here.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import msgspec

from transom.errors import DriverError, NotSupported
from transom.services import netlink
from transom.services.files import write_atomic
from transom.services.interfaces import route_by
from transom.services.netlink import Session
from transom.services.netns import inside

TRIES, PAUSE = 4, 3
"""How often an offer is asked for, and the seconds between."""
AGAIN = 5.0
"""Seconds until a client that ended is started anew."""
_SCRIPT = rb"""#!/bin/sh
printf 'transom\t%s\t%s\t%s\t%s\t%s\t%s\n' "$1" "$ip" "$mask" "$router" "$dns" "${search:-$domain}"
"""


class Lease(msgspec.Struct, frozen=True):
    """What the server gave: an address with prefix, next hops, name servers, search domains."""

    address: str
    routers: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


class Client:
    """A client for one interface in a container's namespace.

    Args:
        root: where the script is kept; programs can be started from there.
        name: the host name that the server is told, at most one.
    """

    def __init__(self, root: Path, *, netns: int, interface: str, name: tuple[str, ...]) -> None:
        self._root, self._netns, self._interface = root, netns, interface
        self._name = [f"-xhostname:{word}" for word in name]

    def _start(self, *words: str) -> subprocess.Popen[bytes]:
        from shutil import which

        program = ["udhcpc"] if which("udhcpc") else ["busybox", "udhcpc"]
        if not which(program[0]):
            raise NotSupported("dhcp=true needs the program udhcpc: install the package udhcpc or busybox-static")
        script = self._root / "udhcpc.script"
        if not script.exists():
            self._root.mkdir(parents=True, exist_ok=True)
            write_atomic(script, _SCRIPT, mode=0o700)
        argv = [*program, "-f", "-i", self._interface, "-s", str(script), *self._name, *words]
        return inside(
            self._netns, subprocess.Popen, argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def obtain(self, asked: str = "") -> Lease:
        """Return a lease, of the address that was asked for if the server gives it.

        Raises:
            DriverError: no server answers.
        """
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

    def keep(self, stop: int) -> None:
        """Renew the lease until `stop` is readable, and release it then."""
        while not select.select([stop], [], [], 0)[0]:
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
            select.select([stop], [], [], AGAIN)

    def _follow(self, output: int, stop: int) -> None:
        """Apply what the client says until it ends or must."""
        bound, waiting = False, b""
        while True:
            ready, _, _ = select.select([output, stop], [], [])
            if stop in ready:
                return
            data = os.read(output, 65536)
            if not data:
                return
            lines, _, waiting = (waiting + data).rpartition(b"\n")
            for event, lease in _events(lines):
                try:
                    if lease and event in {"bound", "renew"}:
                        bound = True
                        self._apply(lease)
                    elif event == "deconfig" and bound:  # the lease has run out; the first one is only a beginning
                        self._apply(None)
                except OSError as error:
                    print(f"applying a lease to {self._interface}: {error}", file=sys.stderr, flush=True)

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
            leads_out = any(r.index == link.index and r.static and r.to == "0.0.0.0/0" for r in inner.routes())
            for address in wanted - present:
                inner.request(netlink.add_address(link.index, address))
            for address in present - wanted:
                inner.request(netlink.delete_address(link.index, address))
        if leads_out and lease and lease.routers and present != wanted:
            route_by(self._netns, [(self._interface, lease.routers[0])])


def _events(text: bytes) -> list[tuple[str, Lease | None]]:
    """Read what the script printed."""
    found: list[tuple[str, Lease | None]] = []
    for line in text.decode(errors="replace").splitlines():
        words = line.split("\t")
        if len(words) != 7 or words[0] != "transom":
            continue
        _, event, address, prefix, routers, dns, search = words
        lease = None
        if address and prefix:
            lease = Lease(
                address=f"{address}/{prefix}",
                routers=tuple(routers.split()),
                dns=tuple(dns.split()),
                search=tuple(search.split()),
            )
        found.append((event, lease))
    return found
