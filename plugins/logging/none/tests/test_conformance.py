"""The driver none proves itself by the suite of its kind."""

from transom_conformance.logging import LoggingSuite


class TestNone(LoggingSuite):
    driver = "none"
