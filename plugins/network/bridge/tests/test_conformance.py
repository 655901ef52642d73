"""The driver bridge proves itself by the suite of its kind."""

from transom_conformance.network import NetworkSuite


class TestBridge(NetworkSuite):
    driver = "bridge"
