"""The driver through the suite of its kind, with a systemd-journald at the far end."""

from typing import ClassVar

from transom_conformance.logging import LoggingSuite
from transom_logging_journald.examples import EXAMPLES


class TestJournald(LoggingSuite):
    driver = "journald"
    collector: ClassVar = EXAMPLES["collector"]
