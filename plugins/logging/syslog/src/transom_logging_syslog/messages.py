"""Messages of syslog: formats, lengths, framing; and the sink for an address."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from transom.contract.logging import Chunk, Stream
from transom.services.endpoints import Address, DatagramSink, Sink, StreamSink, tls_context

if TYPE_CHECKING:
    from transom_logging_syslog import SyslogOptions

LOCAL = ("/dev/log", "/var/run/syslog", "/var/run/log")
"""Where a host's own syslog listens, in Docker's order."""
SEVERITIES = {Stream.STDOUT: 6, Stream.STDERR: 3}
"""Informational and Error (RFC 5424, 6.2.1), as Docker has them."""
MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()


class Format:
    """What stands before a line.

    Args:
        name: the option ``syslog-format``.
        facility: its number.
        tag: names the container: TAG of RFC 3164, APP-NAME and MSGID of RFC 5424.
        hostname: this host's.
    """

    def __init__(self, *, name: str, facility: int, tag: str, hostname: str) -> None:
        self._name = name
        self._priorities = {stream: facility * 8 + severity for stream, severity in SEVERITIES.items()}
        self._host = _field(hostname or socket.gethostname(), 255)
        self._tag, self._app, self._message = _field(tag, 32), _field(tag, 48), _field(tag, 32)
        self._process = b"%d" % _pid()
        self._known: dict[tuple[Stream, int], bytes] = {}

    def prefix(self, stream: Stream, nanoseconds: int) -> bytes:
        """Return all of a message but its text; the time is the one at which the container's output was read."""
        unit = 1_000 if self._name == "rfc5424micro" else 1_000_000_000
        key = stream, nanoseconds // unit
        if key not in self._known:
            if len(self._known) > 100:
                self._known.clear()
            self._known[key] = self._prefix(*key)
        return self._known[key]

    def _prefix(self, stream: Stream, units: int) -> bytes:
        priority = self._priorities[stream]
        if self._name.startswith("rfc5424"):
            micro = self._name.endswith("micro")
            stamp = _rfc3339(units // 1_000_000, units % 1_000_000) if micro else _rfc3339(units, None)
            fields = stamp, self._host, self._app, self._process, self._message
            return b"<%d>1 %s %s %s %s %s - " % (priority, *fields)
        local = time.localtime(units)
        when = b"%s %2d %02d:%02d:%02d" % (MONTHS[local.tm_mon - 1], *local[2:6])
        host = self._host + b" " if self._name else b""
        return b"<%d>%s %s%s[%s]: " % (priority, when, host, self._tag, self._process)

    def lines(self, chunks: Sequence[Chunk]) -> bytes:
        """Return messages that end in a newline (RFC 6587, 3.4.2): none has one inside."""
        pieces: list[bytes] = []
        for chunk in chunks:
            prefix = self.prefix(chunk.stream, chunk.time)
            pieces += prefix, chunk.data.removesuffix(b"\n").replace(b"\n", b"\n" + prefix), b"\n"
        return b"".join(pieces)

    def counted(self, chunks: Sequence[Chunk]) -> bytes:
        """Return messages behind their length (RFC 6587, 3.4.1; RFC 5425, 4.3)."""
        return b"".join([b"%d %s" % (len(message), message) for message in self.messages(chunks)])

    def messages(self, chunks: Sequence[Chunk]) -> list[bytes]:
        """Return one message for each line, or fragment of a line."""
        return list(self._messages(chunks))

    def _messages(self, chunks: Sequence[Chunk]) -> Iterator[bytes]:
        for chunk in chunks:
            prefix = self.prefix(chunk.stream, chunk.time)
            yield from [prefix + line for line in chunk.data.removesuffix(b"\n").split(b"\n")]


def sink(options: SyslogOptions, form: Format) -> Sink:
    """Return the sink for the options.

    Raises:
        ValueError: a certificate or key is wrong.
    """
    address = options.address() or local()
    if address.scheme in ("udp", "unixgram"):
        return DatagramSink(address, encode=form.messages)
    tls = address.scheme == "tcp+tls"
    counts = options.syslog_framing == "octet-counting" or (
        options.syslog_framing == "auto" and tls and options.syslog_format.startswith("rfc5424")
    )
    context = None
    if tls:
        context = tls_context(
            prefix="syslog-tls-",
            ca_cert=options.syslog_tls_ca_cert,
            cert=options.syslog_tls_cert,
            key=options.syslog_tls_key,
            skip_verify=options.syslog_tls_skip_verify,
        )
    return StreamSink(address, encode=form.counted if counts else form.lines, context=context)


def local() -> Address:
    """Return the address of this host's own syslog."""
    path = next(filter(os.path.exists, LOCAL), LOCAL[0])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect(path)
        except OSError as error:
            import errno

            return Address(scheme="unix" if error.errno == errno.EPROTOTYPE else "unixgram", path=path)
    return Address(scheme="unixgram", path=path)


def _field(text: str, length: int) -> bytes:
    """Write a header's field: printable ASCII without spaces, of a bounded length, "-" for none (RFC 5424, 6)."""
    return re.sub(r"[^!-~]", "?", text)[:length].encode() or b"-"


def _rfc3339(seconds: int, micro: int | None) -> bytes:
    """Write a time as RFC 5424, 6.2.3 wants it, in this host's zone."""
    local = time.localtime(seconds)
    fraction = b"" if micro is None else b".%06d" % micro
    zone = b"Z"
    if local.tm_gmtoff:
        hours, minutes = divmod(abs(local.tm_gmtoff) // 60, 60)
        zone = b"%s%02d:%02d" % (b"-" if local.tm_gmtoff < 0 else b"+", hours, minutes)
    return b"%04d-%02d-%02dT%02d:%02d:%02d%s%s" % (*local[:6], fraction, zone)


def _pid() -> int:
    """Return this process's number on the host: in a container's supervisor, getpid(2) says 1."""
    try:
        return int(os.readlink("/proc/self"))
    except (OSError, ValueError):
        return os.getpid()
