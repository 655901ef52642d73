"""The suites of all five kinds, inherited."""

from transom.contract.auth import Request, UnixPeer
from transom_conformance.auth import AuthSuite
from transom_conformance.limits import LimitsSuite
from transom_conformance.logging import LoggingSuite
from transom_conformance.network import NetworkSuite
from transom_conformance.storage import StorageSuite


class TestPlain(StorageSuite):
    driver = "plain"


class TestLonely(NetworkSuite):
    driver = "lonely"


class TestText(LoggingSuite):
    driver = "text"


class TestPids(LimitsSuite):
    driver = "pids"


class TestLookOnly(AuthSuite):
    driver = "look-only"
    known = (Request(unix=UnixPeer(pid=1, uid=0, gid=0)),)
