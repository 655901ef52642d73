"""The log driver gelf: a container's output to Graylog, Logstash and others in the Graylog Extended Log Format."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec

from transom.contract.logging import LogContainer
from transom.services.endpoints import Address, Sink, parse_address
from transom.services.logattrs import extra_attributes, tag
from transom.services.sender import REMOTE_DOCS, Delivery, RemoteLogging, RemoteOptions, Retry

PORT = 12201
TAG = "{{.ID}}"


class GelfOptions(RemoteOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """What ``--log-opt`` can say; Docker's names, and those of all remote collectors."""

    gelf_address: str = ""
    gelf_compression_type: Literal["gzip", "zlib", "none"] | None = None
    gelf_compression_level: Annotated[int, msgspec.Meta(ge=-1, le=9)] | None = None
    gelf_tcp_max_reconnect: Annotated[int, msgspec.Meta(ge=0)] | None = None
    gelf_tcp_reconnect_delay: Annotated[int, msgspec.Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        if not self.gelf_address:
            raise ValueError("gelf-address is missing; expected udp://host:port or tcp://host:port")
        wrong, scheme = self._of_the_other(self.address().scheme)
        if wrong:
            raise ValueError(f"{wrong} needs a gelf-address that begins with {scheme}://")

    def _of_the_other(self, scheme: str) -> tuple[str, str]:
        """Return an option that is given and means nothing with the scheme, and the one that it is for."""
        udp = {
            "gelf-compression-type": self.gelf_compression_type,
            "gelf-compression-level": self.gelf_compression_level,
        }
        tcp = {
            "gelf-tcp-max-reconnect": self.gelf_tcp_max_reconnect,
            "gelf-tcp-reconnect-delay": self.gelf_tcp_reconnect_delay,
        }
        others, name = (tcp, "tcp") if scheme == "udp" else (udp, "udp")
        return next((option for option, value in others.items() if value is not None), ""), name

    def address(self) -> Address:
        """Return where the collector listens."""
        return parse_address(self.gelf_address, option="gelf-address", schemes=("udp", "tcp"), port=PORT)


class Gelf(RemoteLogging):
    """Sends over TCP, or in compressed datagrams; what the collector has not got waits in a spool."""

    name = "gelf"
    api = 1
    Options = GelfOptions
    option_docs: ClassVar[dict[str, str]] = REMOTE_DOCS | {
        "gelf-address": "Where the collector listens: udp or tcp://host:port.",
        "gelf-compression-type": "How datagrams are compressed; unset is gzip.",
        "gelf-compression-level": "How hard, from 0 to 9; -1 is zlib's own choice, unset is 1.",
        "gelf-tcp-max-reconnect": "How many failures in a row make what waits be dropped; unset never gives up.",
        "gelf-tcp-reconnect-delay": "The seconds between two attempts; unset is a fifth of one, then longer.",
    }

    options: GelfOptions

    def _delivery(self) -> Delivery:
        attempts, delay = self.options.gelf_tcp_max_reconnect, self.options.gelf_tcp_reconnect_delay
        if delay is None:
            return Delivery(retry=Retry(attempts=attempts))
        pause = max(delay, 0.01)
        return Delivery(retry=Retry(first=pause, factor=1, most=pause, attempts=attempts))

    def _sink(self, container: LogContainer) -> Sink:
        from transom_logging_gelf.messages import Messages, sink

        messages = Messages(
            container,
            tag=tag(container, self.options, driver=self.name, default=TAG),
            attrs=extra_attributes(container, self.options, driver=self.name),
        )
        return sink(self.options, messages)
