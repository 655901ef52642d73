"""The driver through the suite of its kind, with the server of @fluent-org/logger at the far end."""

from typing import ClassVar

from transom_conformance.logging import LoggingSuite
from transom_logging_fluentd.examples import EXAMPLES


class TestFluentd(LoggingSuite):
    driver = "fluentd"
    collector: ClassVar = EXAMPLES["collector"]
