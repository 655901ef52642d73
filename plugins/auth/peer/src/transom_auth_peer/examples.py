"""What the conformance suite is told about this driver (entry point group ``transom.conformance``)."""

from transom.contract.auth import Request, UnixPeer

EXAMPLES = {
    "known": (
        Request(unix=UnixPeer(pid=1, uid=0, gid=0)),
        Request(unix=UnixPeer(pid=1, uid=65534, gid=65534), method="GET", uri="/info"),
        Request(unix=UnixPeer(pid=1, uid=4242, gid=4242), command=("ps",)),
    )
}
"""Requests whose caller it knows."""
