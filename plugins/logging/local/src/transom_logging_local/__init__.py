"""The log driver local: the compact binary files of Docker's driver of the same name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar

from transom.contract.logging import LogCapability, LogContainer, Writer
from transom.errors import DriverError
from transom.services.logattrs import attributes
from transom.services.logfiles import FILE_DOCS, FileOptions
from transom.services.logfiles.driver import FileLogging

if TYPE_CHECKING:
    from transom.services.logfiles import Format

MAX_SIZE, MAX_FILE = 20 << 20, 5
"""Docker's defaults: five files of 20 MiB, the old ones compressed."""


class LocalOptions(FileOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """What ``--log-opt`` can say; Docker's names, defaults and rules."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.compress and self.max_file == 1:
            raise ValueError("compress cannot be true when max-file is 1")


class Local(FileLogging):
    """Writes ``local-logs/container.log`` in the container's directory, in the bytes that Docker's local writes."""

    name = "local"
    api = 1
    Options = LocalOptions
    option_docs: ClassVar[dict[str, str]] = FILE_DOCS | {
        "max-size": f"{FILE_DOCS['max-size']} By default 20 MiB.",
        "max-file": f"{FILE_DOCS['max-file']} By default 5.",
        "compress": f"{FILE_DOCS['compress']} By default true where there are two files or more.",
    }
    capabilities = FileLogging.capabilities | {LogCapability.FRAGMENTS}

    def bounds(self) -> tuple[int | None, int, bool]:
        size, files = self.options.max_size or MAX_SIZE, self.options.max_file or MAX_FILE
        compress = files > 1 if self.options.compress is None else self.options.compress
        return (None, files, False) if size < 0 else (size, files, compress)

    def format(self, container: LogContainer) -> Format:
        from transom_logging_local.format import Entries

        return Entries(attributes(container, self.options, driver=self.name))

    def open(self, container: LogContainer) -> Writer:
        directory = os.path.dirname(self.location(container))
        try:
            os.mkdir(directory, mode=0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise DriverError("open", driver="logging local", subject=directory, cause=error) from error
        return super().open(container)

    def location(self, container: LogContainer) -> str:
        return f"{container.directory}/local-logs/container.log"
