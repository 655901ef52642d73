"""The log driver json-file: Docker's JSON lines, one file per container, bounded by rotation on request."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from transom.contract.logging import LogCapability, LogContainer, Logging, Query, Reader, Writer
from transom.errors import DriverError
from transom.services.logattrs import ATTR_DOCS, AttrOptions, attributes
from transom.services.options import DecimalSize

MAX_SIZE: int | None = None
"""The bound of one file where the options name none. None is unbounded, Docker's default."""


class JsonFileOptions(AttrOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """What ``--log-opt`` can say; Docker's names, defaults and rules."""

    max_size: DecimalSize | None = MAX_SIZE
    max_file: Annotated[int, msgspec.Meta(ge=1)] = 1
    compress: bool = False

    def __post_init__(self) -> None:
        if self.max_size is not None and self.max_size < 1:
            raise ValueError("max-size must be a positive number")
        if self.compress and (self.max_file < 2 or self.max_size is None):
            raise ValueError("compress cannot be true when max-file is less than 2 or max-size is not set")


class JsonFile(Logging):
    """Writes ``<id>-json.log`` in the container's directory, in the bytes that Docker's json-file writes."""

    name = "json-file"
    api = 1
    Options = JsonFileOptions
    capabilities = frozenset({LogCapability.READ, LogCapability.ROTATE})
    option_docs: ClassVar[dict[str, str]] = ATTR_DOCS | {
        "max-size": "A file that has this size is rotated before the next record; decimal units, unset is unbounded.",
        "max-file": "How many files there may be, the current one among them; the oldest is removed.",
        "compress": "Compress rotated files with gzip.",
    }

    options: JsonFileOptions

    def check(self, container: LogContainer) -> None:
        self._attrs(container)

    def open(self, container: LogContainer) -> Writer:
        from transom_logging_json_file.writer import FULL, FileWriter

        path = self.location(container)
        try:
            return FileWriter(
                path=path,
                attrs=self._attrs(container),
                max_size=self.options.max_size,
                max_file=self.options.max_file,
                compress=self.options.compress,
            )
        except BlockingIOError as error:
            raise DriverError(
                "open",
                driver="logging json-file",
                subject=path,
                cause="another process is writing it",
                hint="stop the container first",
            ) from error
        except OSError as error:
            raise DriverError("open", driver="logging json-file", subject=path, cause=error, hint=FULL) from error

    def read(self, container: LogContainer, query: Query) -> Reader:
        from transom_logging_json_file.reader import FileReader

        path = self.location(container)
        try:
            return FileReader(path=path, query=query)
        except OSError as error:
            raise DriverError("read", driver="logging json-file", subject=path, cause=error) from error

    def location(self, container: LogContainer) -> str:
        return f"{container.directory}/{container.id}-json.log"

    def _attrs(self, container: LogContainer) -> bytes:
        options = self.options
        if not (options.labels or options.labels_regex or options.env or options.env_regex or options.tag):
            return b""
        from transom_logging_json_file.encoded import encode

        return encode(attributes(container, options, driver=self.name))
