"""A log driver for tests: its sink is a file, and an option says how it behaves."""

import os
import time
from typing import Literal

import msgspec

from transom.contract.logging import LogCapability, Logging, LogStats, Writer, count_lines
from transom.errors import ConfigError, DriverError


class Options(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Where to, and how."""

    sink_file: str = "/dev/null"
    sink_does: Literal["deliver", "stick", "refuse", "keep"] = "deliver"
    sink_tag: str = ""


class Sink(Logging):
    """Writes to a file outside the container's directory; cannot be read."""

    name = "sink"
    api = 1
    Options = Options
    capabilities = frozenset({LogCapability.REMOTE})
    option_docs = {"sink-file": "Where to.", "sink-does": "How.", "sink-tag": "Put before each batch."}

    def check(self, container):
        if not self.options.sink_file.startswith("/"):
            raise ConfigError(f"logging driver sink: sink-file={self.options.sink_file!r}: expected an absolute path")

    def open(self, container):
        return SinkWriter(self.options, self._kept(container))

    def undelivered(self, container):
        try:
            with open(self._kept(container)) as file:
                return int(file.read() or 0)
        except FileNotFoundError:
            return 0

    def _kept(self, container):
        return f"{container.directory}/kept"


class SinkWriter(Writer):
    """Counts what it took; with "keep" a file stands in for a sink that is down: while it is there, nothing goes."""

    def __init__(self, options, kept):
        self.options, self.kept = options, kept
        self.file = os.open(options.sink_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.taken = self.delivered = 0

    def write(self, batch):
        if self.options.sink_does == "stick":
            time.sleep(3600)
        if self.options.sink_does == "refuse" and os.path.exists(self.options.sink_file + ".down"):
            raise DriverError("write", driver="logging sink", cause="the sink is down")
        self.taken += count_lines(batch)
        if self.options.sink_does != "keep":
            self.delivered = self.taken
            os.write(self.file, b"".join([self.options.sink_tag.encode(), *(chunk.data for chunk in batch)]))

    def flush(self, timeout):
        if not os.path.exists(self.options.sink_file + ".down"):
            self.delivered = self.taken
            self._note(0)
        return self.delivered == self.taken

    def stats(self):
        return LogStats(taken=self.taken, delivered=self.delivered)

    def close(self, timeout):
        if self.file >= 0:
            if self.taken > self.delivered:
                self._note(self.taken - self.delivered)
            os.close(self.file)
            self.file = -1

    def _note(self, count):
        with open(self.kept, "w") as file:
            file.write(str(count))
