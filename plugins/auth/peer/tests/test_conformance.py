"""The driver peer proves itself by the suite of its kind."""

from transom_auth_peer.examples import EXAMPLES
from transom_conformance.auth import AuthSuite


class TestPeer(AuthSuite):
    driver = "peer"
    known = EXAMPLES["known"]
