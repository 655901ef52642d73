"""The driver host proves itself by the suite of its kind."""

from transom_conformance.network import NetworkSuite


class TestHost(NetworkSuite):
    driver = "host"
