"""The driver peer proves itself by the suite of its kind."""

from transom.contract.auth import Request, UnixPeer
from transom_conformance.auth import AuthSuite


class TestPeer(AuthSuite):
    driver = "peer"
    known = (
        Request(unix=UnixPeer(pid=1, uid=0, gid=0)),
        Request(unix=UnixPeer(pid=1, uid=65534, gid=65534), method="GET", uri="/info"),
        Request(unix=UnixPeer(pid=1, uid=4242, gid=4242), command=("ps",)),
    )
