"""The driver through the suite of its kind, as it comes and with compressed files."""

from typing import ClassVar

from transom_conformance.logging import LoggingSuite
from transom_logging_json_file.examples import EXAMPLES


class TestJsonFile(LoggingSuite):
    driver = "json-file"
    rotating: ClassVar = EXAMPLES["rotating"]


class TestJsonFileCompressed(LoggingSuite):
    driver = "json-file"
    options: ClassVar = {"max-size": "200k", "max-file": "5000", "compress": "true"}
    rotating: ClassVar = {"max-size": "100k"}
