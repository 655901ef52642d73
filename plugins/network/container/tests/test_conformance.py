"""The driver container proves itself by the suite of its kind."""

from transom_conformance.network import NetworkSuite


class TestContainer(NetworkSuite):
    driver = "container"
