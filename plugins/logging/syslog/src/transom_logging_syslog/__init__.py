"""The log driver syslog: a container's output to a syslog collector, with nothing lost while it is down."""

from __future__ import annotations

from typing import ClassVar, Literal

from transom.contract.logging import LogContainer
from transom.errors import choices, nearest
from transom.services.endpoints import Address, Sink, parse_address
from transom.services.logattrs import tag
from transom.services.sender import REMOTE_DOCS, RemoteLogging, RemoteOptions

# RFC 5424, 6.2.1; the words are syslog(3)'s, as far as Docker has them.
FACILITIES = {
    word: number
    for number, word in enumerate(
        "kern user mail daemon auth syslog lpr news uucp cron authpriv ftp - - - - "
        "local0 local1 local2 local3 local4 local5 local6 local7".split()
    )
    if word != "-"
}
SCHEMES = ("udp", "tcp", "tcp+tls", "unix", "unixgram")
TAG = "{{.ID}}"


class SyslogOptions(RemoteOptions, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """What ``--log-opt`` can say; Docker's names and defaults, and those of all remote collectors."""

    syslog_address: str = ""
    syslog_facility: str = "daemon"
    syslog_format: Literal["", "rfc3164", "rfc5424", "rfc5424micro"] = ""
    syslog_framing: Literal["auto", "newline", "octet-counting"] = "auto"
    syslog_tls_ca_cert: str = ""
    syslog_tls_cert: str = ""
    syslog_tls_key: str = ""
    syslog_tls_skip_verify: bool = False

    def __post_init__(self) -> None:
        address = self.address()
        self.facility()
        given = {
            "syslog-tls-ca-cert": self.syslog_tls_ca_cert,
            "syslog-tls-cert": self.syslog_tls_cert,
            "syslog-tls-key": self.syslog_tls_key,
        }
        unused = [name for name, value in given.items() if value]
        if unused and (address is None or address.scheme != "tcp+tls"):
            raise ValueError(f"{unused[0]} needs a syslog-address that begins with tcp+tls://")

    def address(self) -> Address | None:
        """Return where the collector listens; None for this host's own."""
        if not self.syslog_address:
            return None
        return parse_address(self.syslog_address, option="syslog-address", schemes=SCHEMES, port=514)

    def facility(self) -> int:
        """Return the facility's number."""
        word = self.syslog_facility
        if word.isascii() and word.isdigit() and int(word) <= 23:
            return int(word)
        if word not in FACILITIES:
            raise ValueError(
                f"syslog-facility={word!r}: expected a number up to 23 or one of {choices(FACILITIES)}"
                f"{nearest(word, FACILITIES)}"
            )
        return FACILITIES[word]


class Syslog(RemoteLogging):
    """Sends over UDP, TCP, TLS or a Unix socket; what the collector has not got waits in a spool."""

    name = "syslog"
    api = 1
    Options = SyslogOptions
    option_docs: ClassVar[dict[str, str]] = REMOTE_DOCS | {
        "syslog-address": "Where the collector listens: udp, tcp or tcp+tls://host:port, unix or unixgram:///path; "
        "unset is this host's own, /dev/log.",
        "syslog-facility": "The facility of every message, by name or number.",
        "syslog-format": "The format of a message; unset is RFC 3164 without the host's name.",
        "syslog-framing": "Where a message ends on a stream: at a newline, or counted (RFC 6587); auto counts over TLS "
        "with rfc5424.",
        "syslog-tls-ca-cert": "A file with the authorities to trust; unset are the system's.",
        "syslog-tls-cert": "A file with the certificate to show to the collector.",
        "syslog-tls-key": "A file with the key of that certificate.",
        "syslog-tls-skip-verify": "Accept any certificate of the collector.",
    }

    options: SyslogOptions

    def _sink(self, container: LogContainer) -> Sink:
        from transom_logging_syslog.messages import Format, sink

        options = self.options
        form = Format(
            name=options.syslog_format,
            facility=options.facility(),
            tag=tag(container, options, driver=self.name, default=TAG),
            hostname=container.hostname,
        )
        return sink(options, form)
