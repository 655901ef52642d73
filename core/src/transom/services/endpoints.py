"""Where a collector listens, and connections to it: addresses as users write them, TLS, streams and datagrams."""

from __future__ import annotations

import os
import socket
import struct
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from transom.contract.logging import Chunk
from transom.errors import choices, nearest
from transom.services.spool import Entry

if TYPE_CHECKING:
    import ssl

WRITE_TIMEOUT = 30.0
"""Seconds after which a peer that takes nothing is given up, and the connection made anew."""
CHECKPOINT = 1 << 20
"""Bytes on a stream after which the far end must have read everything."""
CONFIRM_TIMEOUT = 60.0
"""Seconds in which it must have."""
_SIOCOUTQ = 0x5411


class Address(msgspec.Struct, frozen=True):
    """A place to connect to: `host` and `port`, or the `path` of a Unix socket."""

    scheme: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{self.path or f'{host}:{self.port}'}"


def parse_address(text: str, *, option: str, schemes: Sequence[str], port: int, default: str = "") -> Address:
    """Return what a user wrote as ``scheme://host:port`` or ``unix:///path``.

    Args:
        option: the option's name, for an error.
        schemes: those allowed; the ones that begin with "unix" take a path.
        port: the one taken where none is written.
        default: the scheme of an address without one; empty for none.

    Raises:
        ValueError: naming the option, the value, and what is allowed.
    """

    def wrong(reason: str) -> ValueError:
        return ValueError(f"{option}={text!r}: {reason}")

    from urllib.parse import urlsplit

    scheme, mark, rest = text.partition("://")
    if not mark:
        if not default or not text:
            raise wrong(f"expected scheme://address, with a scheme of {choices(schemes)}")
        scheme, rest = default, text
    if scheme not in schemes:
        raise wrong(f"unsupported scheme {scheme!r}{nearest(scheme, schemes)}; expected one of {choices(schemes)}")
    if scheme.startswith("unix"):
        if not rest.startswith("/") or len(rest.encode()) > 107:  # sun_path, unix(7)
            raise wrong(f"expected {scheme}:///path, absolute and of at most 107 bytes")
        return Address(scheme=scheme, path=rest)
    try:
        parts = urlsplit(f"//{rest}")
        host, number = parts.hostname or "", parts.port
    except ValueError:
        raise wrong("expected a port between 1 and 65535") from None
    if parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise wrong(f"expected {scheme}://host:port and nothing behind it")
    if number == 0:
        raise wrong("expected a port between 1 and 65535")
    if not host and not default:
        raise wrong("the host is missing")
    return Address(scheme=scheme, host=host or "127.0.0.1", port=port if number is None else number)


def tls_context(*, prefix: str, ca_cert: str, cert: str, key: str, skip_verify: bool) -> ssl.SSLContext:
    """Return a client's TLS settings: the system's authorities where `ca_cert` names none.

    Args:
        prefix: what the options' names begin with, such as "syslog-tls-", for an error.
        cert, key: of this client, both or neither.

    Raises:
        ValueError: a file that cannot be read or is not what it should be; it names the option.
    """
    import ssl

    context = ssl.create_default_context()
    if ca_cert:
        try:
            context.load_verify_locations(cafile=_readable(ca_cert, f"{prefix}ca-cert"))
        except ssl.SSLError:
            raise ValueError(f"{prefix}ca-cert={ca_cert!r}: expected a file of certificates in PEM") from None
    if bool(cert) != bool(key):
        given, other = ("cert", "key") if cert else ("key", "cert")
        raise ValueError(f"{prefix}{given} needs {prefix}{other} beside it")
    if cert:
        _readable(cert, f"{prefix}cert")
        try:
            context.load_cert_chain(cert, _readable(key, f"{prefix}key"), password=lambda: b"")
        except (ssl.SSLError, ValueError):
            files = f"{prefix}cert={cert!r} and {prefix}key={key!r}"
            raise ValueError(f"{files}: expected a certificate and its key, in PEM, unencrypted") from None
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _readable(path: str, option: str) -> str:
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        raise ValueError(f"{option}={path!r}: {error.strerror}; expected a file in PEM") from None


def connect(address: Address, *, timeout: float, context: ssl.SSLContext | None = None) -> socket.socket:
    """Connect a stream; the name is resolved anew each time.

    Raises:
        OSError: no such name, nobody listens, a wrong certificate, or `timeout` seconds are over.
    """
    if address.path:
        local = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            local.settimeout(timeout)
            local.connect(address.path)
        except BaseException:
            local.close()
            raise
        return local
    remote = socket.create_connection((address.host, address.port), timeout)
    try:
        remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        remote.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        remote.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(WRITE_TIMEOUT * 1000))
        return context.wrap_socket(remote, server_hostname=address.host) if context else remote
    except BaseException:
        remote.close()
        raise


class Sink(ABC):
    """A connection to a collector, made again as often as needed; used by one thread, but for `abort`."""

    address: Address
    patience = 30.0
    """Seconds without output after which `finish` is called, so that nothing stays unconfirmed."""
    aborted = False

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether there is a connection."""

    @property
    def ready(self) -> bool:
        """Whether `send` may be called now."""
        return True

    @abstractmethod
    def connect(self, timeout: float) -> None:
        """Connect within `timeout` seconds. Raises OSError."""

    @abstractmethod
    def send(self, entry: Entry) -> None:
        """Send an entry. Raises OSError; then nothing is known of what did not arrive."""

    @abstractmethod
    def arrived(self) -> int:
        """Return up to which record everything has arrived; does not wait. Raises OSError."""

    def finish(self) -> None:
        """Make the far end say that it has everything: nothing more follows for now. Repeating it is harmless."""
        return None

    def fileno(self) -> int:
        """Return the descriptor on which the far end may speak; -1 for none."""
        return -1

    @abstractmethod
    def close(self) -> None:
        """Give the connection up. Twice is harmless."""

    def abort(self) -> None:
        """Make what another thread waits for fail."""
        self.aborted = True


class StreamSink(Sink):
    """Lines on a stream whose protocol acknowledges nothing (syslog, GELF over TCP).

    What a collector's kernel took says nothing of the collector. So every `CHECKPOINT` bytes, and when there is
    nothing more to send, this end is shut down: a collector that has read to the end closes its own, one that died
    with bytes unread makes the kernel reset the connection (RFC 9293, 3.6 and 3.10.7). What was confirmed is let go
    when the next checkpoint is, since collectors write behind. A peer that never closes its end is believed once its
    kernel has everything.

    Args:
        encode: makes the bytes of chunks.
        context: for TLS.
    """

    def __init__(
        self, address: Address, *, encode: Callable[[list[Chunk]], bytes], context: ssl.SSLContext | None = None
    ) -> None:
        self.address, self._encode, self._context = address, encode, context
        self._socket: Any = None
        self._shut = self._confirms = False
        self._silent = False
        self._until = self._confirmed = self._released = self._bytes = 0
        self._final = False
        self._deadline = 0.0

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def ready(self) -> bool:
        return not self._shut

    def connect(self, timeout: float) -> None:
        self._socket = connect(self.address, timeout=timeout, context=self._context)
        self._socket.settimeout(WRITE_TIMEOUT)
        self._bytes, self._shut, self._final = 0, False, False

    def send(self, entry: Entry) -> None:
        data = self._encode(entry.chunks)
        self._socket.sendall(data)
        self._until, self._bytes, self._final = entry.until, self._bytes + len(data), False
        if self._bytes >= CHECKPOINT:
            self._shut_down()

    def finish(self) -> None:
        self._final = True
        if self._bytes:
            self._shut_down()
        else:
            self._released = self._confirmed

    def _shut_down(self) -> None:
        if self._shut or self._silent:
            return
        self._shut, self._deadline = True, time.monotonic() + CONFIRM_TIMEOUT
        if self._context is not None:
            self._say_goodbye()
        self._socket.shutdown(socket.SHUT_WR)

    def _say_goodbye(self) -> None:
        """End the TLS layer (RFC 8446, 6.1), and go on with the socket below it."""
        import ssl

        self._socket.settimeout(0)
        try:
            self._socket.unwrap()
        except (ssl.SSLWantReadError, ssl.SSLError, OSError):
            pass  # the alert is sent; whether the peer answers it, its end of the connection says
        self._socket = socket.socket(fileno=self._socket.detach())
        self._socket.settimeout(WRITE_TIMEOUT)

    def arrived(self) -> int:
        if self._socket is not None and self._at_end():
            if not self._shut:
                raise ConnectionResetError("the collector closed the connection")
            self._confirms = True
            self._confirm()
            self._hang_up()
        elif self._shut and time.monotonic() > self._deadline:
            if self._confirms or self._unsent():
                raise TimeoutError(f"the collector has not read everything within {CONFIRM_TIMEOUT:g} s")
            self._silent = True
            self._confirm()
            self._hang_up()
        elif self._silent and self._bytes and not self._unsent():
            self._confirm()
        return self._released

    def _confirm(self) -> None:
        self._released = self._until if self._final else self._confirmed
        self._confirmed, self._bytes = self._until, 0

    def _unsent(self) -> int:
        """Return how many bytes the peer's kernel has not got (tcp(7), SIOCOUTQ)."""
        import fcntl

        (count,) = struct.unpack("i", fcntl.ioctl(self._socket.fileno(), _SIOCOUTQ, bytes(4)))
        return int(count)

    def _at_end(self) -> bool:
        """Read what the peer says, which means nothing here, and return whether it has closed its end."""
        self._socket.settimeout(0)
        try:
            while data := self._socket.recv(4096):
                del data
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            if type(error).__name__ in ("SSLWantReadError", "SSLWantWriteError"):
                return False
            raise
        finally:
            self._socket.settimeout(WRITE_TIMEOUT)

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket is not None else -1

    def close(self) -> None:
        self._hang_up()
        self._confirmed = self._released  # what is not let go comes again

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._shut, self._bytes = False, 0

    def abort(self) -> None:
        super().abort()
        shut(self._socket)


class DatagramSink(Sink):
    """Messages of a protocol that acknowledges nothing: one that the kernel took has arrived.

    A Unix socket makes the sender wait while the receiver is busy. UDP does not: what a receiver has no room for is
    lost unseen (RFC 5426, 4.3); only that nobody listens there comes back, by ICMP.

    Args:
        encode: makes the messages of chunks.
    """

    def __init__(self, address: Address, *, encode: Callable[[list[Chunk]], Sequence[bytes]]) -> None:
        self.address, self._encode = address, encode
        self._socket: socket.socket | None = None
        self._until = 0
        self._begun = (-1, 0)

    @property
    def connected(self) -> bool:
        return self._socket is not None

    def connect(self, timeout: float) -> None:
        if self.address.path:
            found = [(socket.AF_UNIX, socket.SOCK_DGRAM, 0, "", self.address.path)]
        else:
            found = socket.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_DGRAM)  # type: ignore[assignment]  # the address of AF_UNIX is a text
        family, kind, protocol, _, place = found[0]
        made = socket.socket(family, kind, protocol)
        try:
            made.connect(place)
            made.settimeout(0.5)
        except BaseException:
            made.close()
            raise
        self._socket = made

    def send(self, entry: Entry) -> None:
        messages = self._encode(entry.chunks)
        begun = self._begun[1] if self._begun[0] == entry.sequence else 0
        for at in range(begun, len(messages)):
            try:
                self.post(messages[at])
            except OSError:
                # What UDP reports is the fate of the one before.
                self._begun = (entry.sequence, at if self.address.path else max(0, at - 1))
                raise
        self._check(entry, len(messages))
        self._until = entry.until

    def post(self, message: bytes) -> None:
        """Send one message; wait for a receiver that is busy."""
        assert self._socket is not None
        while True:
            try:
                self._socket.send(message)
                return
            except TimeoutError:
                if self.aborted:
                    raise

    def _check(self, entry: Entry, count: int) -> None:
        assert self._socket is not None
        if not self.address.path and (code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            self._begun = (entry.sequence, max(0, count - 1))
            raise OSError(code, os.strerror(code))

    def arrived(self) -> int:
        return self._until

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def shut(connection: socket.socket | None) -> None:
    """End a connection under whoever waits for it."""
    if connection is not None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is gone already
