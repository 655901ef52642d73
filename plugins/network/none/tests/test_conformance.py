"""The driver none proves itself by the suite of its kind."""

from transom_conformance.network import NetworkSuite


class TestNull(NetworkSuite):
    driver = "none"
