"""The part of a log driver that drivers of files have in common; theirs is the format."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from transom.contract.logging import LogCapability, LogContainer, Logging, Query, Reader, Writer
from transom.errors import DriverError
from transom.services.logfiles import FILE_DOCS, FULL, FileOptions

if TYPE_CHECKING:
    from transom.services.logfiles import Format


class FileLogging(Logging):
    """A log in the container's directory, in rotated files."""

    Options = FileOptions
    capabilities = frozenset({LogCapability.READ, LogCapability.ROTATE})
    option_docs: ClassVar[dict[str, str]] = FILE_DOCS

    options: FileOptions

    @abstractmethod
    def format(self, container: LogContainer) -> Format:
        """Return how records are written, attributes of the container included; refuse options that say nonsense."""

    @abstractmethod
    def bounds(self) -> tuple[int | None, int, bool]:
        """Return how many bytes a file may have, how many files there may be, and whether old ones are compressed."""

    def check(self, container: LogContainer) -> None:
        self.format(container)

    def open(self, container: LogContainer) -> Writer:
        from transom.services.logfiles.writer import FileWriter

        path, format = self.location(container), self.format(container)
        max_size, max_file, compress = self.bounds()
        try:
            return FileWriter(
                driver=self.name, path=path, format=format, max_size=max_size, max_file=max_file, compress=compress
            )
        except BlockingIOError as error:
            raise DriverError(
                "open",
                driver=f"logging {self.name}",
                subject=path,
                cause="another process is writing it",
                hint="stop the container first",
            ) from error
        except OSError as error:
            raise DriverError("open", driver=f"logging {self.name}", subject=path, cause=error, hint=FULL) from error

    def read(self, container: LogContainer, query: Query) -> Reader:
        from transom.services.logfiles.reader import FileReader

        path = self.location(container)
        try:
            return FileReader(driver=self.name, path=path, format=self.format(container), query=query)
        except OSError as error:
            raise DriverError("read", driver=f"logging {self.name}", subject=path, cause=error) from error
