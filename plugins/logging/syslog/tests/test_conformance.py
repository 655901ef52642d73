"""The driver through the suite of its kind, with rsyslog at the far end."""

from typing import ClassVar

from transom_conformance.logging import LoggingSuite
from transom_logging_syslog.examples import EXAMPLES


class TestSyslog(LoggingSuite):
    driver = "syslog"
    collector: ClassVar = EXAMPLES["collector"]
