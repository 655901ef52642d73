"""What the suite of network drivers needs for this one: an etcd of its own in the namespace that plays the host.

It imports nothing of the suite, which calls `prepare` (`transom.conformance`, an entry point).
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

CLIENTS, PEERS = 2379, 2380
PATIENCE = 60.0
"""Seconds that a start may take on a busy host."""


def start(
    name: str, folder: Path, *, address: str, cluster: str = "", clients: str = "0.0.0.0"
) -> subprocess.Popen[bytes]:
    """Start a member of etcd in the thread's namespace, with short times: its members are near each other.

    Args:
        cluster: all members as NAME=URL, separated by commas; a single one without.
        clients: the address at which it serves.
    """
    peers = f"http://{address}:{PEERS}"
    argv = [
        "etcd", "--name", name, "--data-dir", str(folder), "--logger", "zap", "--log-level", "error",
        "--listen-client-urls", f"http://{clients}:{CLIENTS}", "--advertise-client-urls", f"http://{address}:{CLIENTS}",
        "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers,
        "--initial-cluster", cluster or f"{name}={peers}", "--heartbeat-interval", "50", "--election-timeout", "500",
    ]  # fmt: skip
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a member."""
    process.kill()
    process.wait()


def await_etcd(url: str) -> None:
    """Wait until it answers, from the thread's namespace."""
    from transom_network_overlay.etcd import Away, Etcd, Tls

    deadline = time.monotonic() + PATIENCE
    etcd = Etcd([url], Tls())
    try:
        while True:
            try:
                etcd.read("/")
                return
            except Away:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
    finally:
        etcd.close()


def prepare(suite: object, site: Any) -> None:
    """Start an etcd for one case, and stop it behind it."""
    from shutil import which

    from transom.services.netns import inside

    if not which("etcd"):
        import pytest  # the suite is there, or nobody would ask

        pytest.skip("the program etcd is missing: install etcd-server")
    process = inside(site.host, start, "one", site.world.path / "etcd", address="127.0.0.1")
    site.world.defer(stop, process)
    inside(site.host, await_etcd, f"http://127.0.0.1:{CLIENTS}")


EXAMPLES = {
    "options": {"etcd": f"http://127.0.0.1:{CLIENTS}", "host": "one", "address": "198.51.100.1"},
    "second_host": {"etcd": f"http://198.51.100.1:{CLIENTS}", "host": "two", "address": "198.51.100.2"},
    "prepare": prepare,
}
