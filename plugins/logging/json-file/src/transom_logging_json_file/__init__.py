"""The log driver json-file: Docker's JSON lines in rotated files."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from transom.contract.logging import LogContainer
from transom.services.logattrs import attributes
from transom.services.logfiles import FILE_DOCS, FileOptions
from transom.services.logfiles.driver import FileLogging

if TYPE_CHECKING:
    from transom.services.logfiles import Format

MAX_SIZE, MAX_FILE = 200_000_000, 5
"""The bound where the options name none. Docker's default is none at all, and full disks come of it."""


class JsonFileOptions(FileOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """What ``--log-opt`` can say; Docker's names and rules."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compress and ((self.max_file or 1) < 2 or self.max_size in (None, -1)):
            raise ValueError("compress cannot be true when max-file is less than 2 or max-size is not set")


class JsonFile(FileLogging):
    """Writes ``<id>-json.log`` in the container's directory, in the bytes that Docker's json-file writes."""

    name = "json-file"
    api = 1
    Options = JsonFileOptions
    option_docs: ClassVar[dict[str, str]] = FILE_DOCS | {
        "max-size": f"{FILE_DOCS['max-size']} By default 200m.",
        "max-file": f"{FILE_DOCS['max-file']} By default 5, or 1 where max-size is set, as in Docker.",
        "compress": f"{FILE_DOCS['compress']} By default false.",
    }

    def bounds(self) -> tuple[int | None, int, bool]:
        options = self.options
        if options.max_size is None:
            return MAX_SIZE, options.max_file or MAX_FILE, False
        return None if options.max_size < 0 else options.max_size, options.max_file or 1, bool(options.compress)

    def format(self, container: LogContainer) -> Format:
        from transom_logging_json_file.encoded import encode
        from transom_logging_json_file.format import JsonLines

        return JsonLines(encode(attributes(container, self.options, driver=self.name)))

    def location(self, container: LogContainer) -> str:
        return f"{container.directory}/{container.id}-json.log"
