"""What on this host may drop containers' packets though nothing of ours does: other firewalls."""

from __future__ import annotations

from collections.abc import Iterator

FIREWALLD = "firewalld"


def obstacles() -> Iterator[str]:
    """Yield what drops forwarded packets that it does not know, in the calling process's network namespace.

    Nothing where the program nft is missing, or may not look. Tables of iptables(8) made by its legacy programs are
    not seen.
    """
    import json
    import subprocess

    try:
        shown = subprocess.run(["nft", "--json", "list", "chains"], capture_output=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return
    chains = [item["chain"] for item in json.loads(shown)["nftables"] if "chain" in item]
    if any(chain["table"] == FIREWALLD for chain in chains):
        yield "firewalld runs: bridges reach nothing unless they are in a zone with the target ACCEPT"
    for chain in chains:
        if chain.get("hook") == "forward" and chain.get("policy") == "drop":
            where = f"table {chain['family']} {chain['table']}, chain {chain['name']}"
            yield f"{where} drops what no rule of it lets through (policy drop), containers' packets too"
