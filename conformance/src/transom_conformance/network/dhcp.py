"""A DHCP server in a namespace: dnsmasq, for drivers whose addresses come from one."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from transom.services.netns import inside
from transom_conformance.network.site import ip_batch

SERVER = "10.77.0.1"
"""The server's address."""
POOL = "10.77.0.10,10.77.0.19"
"""The first and the last address that it gives."""
PREFIX, ROUTER = "fd77:1::", "fd77:1::1"
"""With `ADVERTISED`: the first address of the prefix that it advertises as a router, and its own one in it."""
ADVERTISED = ("--enable-ra", f"--dhcp-range={PREFIX},ra-only,64,2m")
"""The words by which it is a router whose advertisements give IPv6 addresses (RFC 4862)."""
_PATIENCE = 30.0


class Journal:
    """What the server says it has done; `pid` is its process."""

    def __init__(self, path: Path, pid: int) -> None:
        self._path, self.pid = path, pid

    def count(self, what: str) -> int:
        """Count the lines that say it, "DHCPACK(lan0) 10.77.0.12"."""
        return self._path.read_text().count(what) if self._path.exists() else 0

    def await_(self, what: str, times: int = 1) -> None:
        """Wait until it was said so many times."""
        deadline = time.monotonic() + _PATIENCE
        while self.count(what) < times:
            assert time.monotonic() < deadline, f"not said {times} times: {what}\n{self._path.read_text()}"
            time.sleep(0.02)


@contextmanager
def dhcp_server(netns: int, interface: str, journal: Path, *options: str, pool: str = POOL) -> Iterator[Journal]:
    """Run a server on an interface, whose leases last two minutes, the shortest that it gives; names, it knows none.

    Args:
        options: dnsmasq's own words, "--dhcp-option=option:mtu,1400".
    """
    if not shutil.which("dnsmasq"):
        pytest.skip("the program dnsmasq is missing: install dnsmasq-base")
    addresses = (f"{SERVER}/24", f"{ROUTER}/64") if ADVERTISED[0] in options else (f"{SERVER}/24",)
    inside(netns, ip_batch, *(f"address replace {address} dev {interface} nodad" for address in addresses))
    words = [
        "dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv", f"--interface={interface}",
        "--except-interface=lo", "--bind-interfaces", "--no-ping", "--dhcp-authoritative", "--leasefile-ro",
        f"--dhcp-range={pool},2m", "--conf-file=/dev/null", "--user=root", "--pid-file=", "--log-dhcp",
        f"--log-facility={journal}", *options,
    ]  # fmt: skip
    process = inside(netns, subprocess.Popen, words)
    try:
        said = Journal(journal, process.pid)
        said.await_("DHCP, IP range")
        yield said
    finally:
        process.terminate()
        process.wait()
