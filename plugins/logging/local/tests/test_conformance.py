"""The driver local through the suite of its kind, with plain and with compressed files."""

from typing import ClassVar

from transom_conformance.logging import LoggingSuite
from transom_logging_local.examples import EXAMPLES


class TestLocal(LoggingSuite):
    driver = "local"
    rotating: ClassVar = EXAMPLES["rotating"]


class TestLocalCompressed(LoggingSuite):
    driver = "local"
    options: ClassVar = {"max-size": "200k", "max-file": "5000"}
    rotating: ClassVar = {"max-size": "100k"}
