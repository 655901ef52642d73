"""The log driver journald: a container's output to the systemd journal, by its native protocol."""

from __future__ import annotations

from typing import ClassVar

from transom.contract import Probe
from transom.contract.logging import LogCapability, LogContainer
from transom.services.endpoints import Address, Sink, parse_address
from transom.services.logattrs import extra_attributes, tag
from transom.services.sender import REMOTE_DOCS, RemoteLogging, RemoteOptions

SOCKET = "unixgram:///run/systemd/journal/socket"
TAG = "{{.ID}}"


class JournaldOptions(RemoteOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """What ``--log-opt`` can say; Docker's names, and those of all remote collectors."""

    journald_address: str = SOCKET

    def __post_init__(self) -> None:
        self.address()

    def address(self) -> Address:
        """Return where journald listens."""
        return parse_address(self.journald_address, option="journald-address", schemes=("unixgram",), port=0)


class Journald(RemoteLogging):
    """Sends datagrams, large ones as sealed files in memory; what journald has not taken waits in a spool."""

    name = "journald"
    api = 1
    Options = JournaldOptions
    capabilities = frozenset({LogCapability.REMOTE, LogCapability.FRAGMENTS})
    option_docs: ClassVar[dict[str, str]] = REMOTE_DOCS | {
        "tag": "A template whose text becomes CONTAINER_TAG and SYSLOG_IDENTIFIER.",
        "journald-address": "The socket of the journal's native protocol, unixgram:///path.",
    }

    options: JournaldOptions

    def probe(self) -> Probe:
        import os

        path = self.options.address().path
        if not os.path.exists(path):
            return Probe(
                usable=True, reason=f"no journal listens on {path}: lines wait until systemd-journald is started"
            )
        return Probe(usable=True)

    def _sink(self, container: LogContainer) -> Sink:
        from transom_logging_journald.native import JournalSink, Messages

        messages = Messages(
            container,
            tag=tag(container, self.options, driver=self.name, default=TAG),
            attrs=extra_attributes(container, self.options, driver=self.name),
        )
        return JournalSink(self.options.address(), encode=messages.each)
