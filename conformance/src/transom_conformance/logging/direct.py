"""A log driver's class by itself, without config, engine or container: for tests of what only that driver does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transom.contract.logging import Chunk, LogContainer, Logging, Query
from transom.services.options import convert

NOWHERE = Path("/nowhere")


def container(directory: Path | str, **facts: Any) -> LogContainer:
    """Make up a container whose log is in the directory; `facts` are fields of `LogContainer`."""
    known = {"id": "c0ffee" * 10, "name": "web", "hostname": "host", "directory": str(directory)}
    return LogContainer(**(known | facts))


class Direct:
    """Instances of one driver's class, as ``--log-opt`` would make them; options are keywords: ``max_size="1m"``."""

    def __init__(self, driver: type[Logging]) -> None:
        self._class = driver

    def driver(self, **options: str) -> Any:
        """Make an instance.

        Raises:
            ConfigError: as a user would meet it.
        """
        words = {name.replace("_", "-"): value for name, value in options.items()}
        made = convert(driver=self._class, options=words, where="--log-opt")
        return self._class(options=made, root=NOWHERE, run=NOWHERE)

    def write(self, directory: Path, *chunks: Chunk, facts: Mapping[str, Any] | None = None, **options: str) -> Path:
        """Write each chunk as a batch of its own; return where the driver says the log is."""
        driver, of = self.driver(**options), container(directory, **(facts or {}))
        writer = driver.open(container=of)
        for chunk in chunks:
            writer.write([chunk])
        writer.close(timeout=10)
        return Path(driver.location(container=of))

    def read(self, directory: Path, **query: Any) -> list[Chunk]:
        """Read back what `Query(**query)` selects, to the end."""
        reader = self.driver().read(container=container(directory), query=Query(**query))
        chunks: list[Chunk] = []
        while batch := reader.next(10):
            chunks += batch
        reader.close()
        return chunks
