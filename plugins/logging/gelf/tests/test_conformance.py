"""The driver through the suite of its kind, with a small collector at the far end."""

from typing import ClassVar

from transom_conformance.logging import LoggingSuite
from transom_logging_gelf.examples import EXAMPLES


class TestGelf(LoggingSuite):
    driver = "gelf"
    options: ClassVar = EXAMPLES["options"]
    collector: ClassVar = EXAMPLES["collector"]
