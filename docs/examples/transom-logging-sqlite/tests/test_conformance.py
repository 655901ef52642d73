"""The conformance suite, each case a test of this driver."""

from transom_conformance.logging import LoggingSuite
from transom_logging_sqlite.conformance import SUITE


class TestSqlite(LoggingSuite):
    driver = "sqlite"
    known_failures = SUITE["known_failures"]
