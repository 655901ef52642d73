"""A connection that speaks forward: the handshake, chunks on their way, acknowledgements."""

from __future__ import annotations

import hashlib
import hmac
import os
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import msgpack

from transom.services.endpoints import Sink, connect, shut, tls_context
from transom.services.spool import Entry

if TYPE_CHECKING:
    from transom_logging_fluentd import FluentdOptions
    from transom_logging_fluentd.records import Records

WINDOW = 8
"""Chunks that may be on their way."""
LARGEST_REPLY = 1 << 16


class ForwardSink(Sink):
    """Sends an entry as a chunk, and knows by its id when it arrived.

    Raises:
        ValueError: a certificate or key is wrong.
    """

    def __init__(self, options: FluentdOptions, records: Records, *, hostname: str) -> None:
        self.address = options.address()
        self._options, self._records, self._hostname = options, records, hostname or socket.gethostname()
        self._context = None
        if self.address.scheme == "tls":
            self._context = tls_context(
                prefix="fluentd-tls-",
                ca_cert=options.fluentd_tls_ca_cert,
                cert=options.fluentd_tls_cert,
                key=options.fluentd_tls_key,
                skip_verify=options.fluentd_tls_skip_verify,
            )
        self._timeout = options.fluentd_write_timeout or None
        self._socket: socket.socket | None = None
        self._waiting: deque[tuple[str, int, float]] = deque()
        self._known: set[str] = set()
        self._arrived = 0
        self._replies = msgpack.Unpacker()

    @property
    def connected(self) -> bool:
        return self._socket is not None

    @property
    def ready(self) -> bool:
        return len(self._waiting) < WINDOW

    def connect(self, timeout: float) -> None:
        made = connect(self.address, timeout=timeout, context=self._context)
        self._replies = msgpack.Unpacker(max_buffer_size=LARGEST_REPLY)
        try:
            if self._options.fluentd_shared_key:
                self._greet(made)
            made.settimeout(self._timeout)
        except BaseException:
            made.close()
            raise
        self._socket = made

    def _greet(self, made: socket.socket) -> None:
        """Prove to each other that both know the shared key (specification, "Authentication")."""
        hello = self._message(made)
        facts = hello[1] if len(hello) > 1 and hello[0] == "HELO" and isinstance(hello[1], dict) else None
        if facts is None:
            raise ConnectionError("the collector asks for no shared key, or does not speak the forward protocol")
        nonce, salt = _bytes(facts.get("nonce", b"")), os.urandom(16).hex()
        options = self._options
        password = ""
        if auth := _bytes(facts.get("auth", b"")):
            password = _digest(auth, options.fluentd_username, options.fluentd_password)
        proof = self._proof(salt, self._hostname, nonce)
        made.sendall(msgpack.packb(["PING", self._hostname, salt, proof, options.fluentd_username, password]))
        pong = self._message(made)
        if len(pong) < 5 or pong[0] != "PONG":
            raise ConnectionError("the collector does not finish the handshake")
        if not pong[1]:
            raise ConnectionError(f"the collector refuses the shared key, or the user: {pong[2]}")
        if not hmac.compare_digest(str(pong[4]), self._proof(salt, str(pong[3]), nonce)):
            raise ConnectionError("the collector does not know the shared key")

    def _proof(self, salt: str, hostname: str, nonce: bytes) -> str:
        return _digest(salt, hostname, nonce, self._options.fluentd_shared_key)

    def _message(self, made: socket.socket) -> list[Any]:
        while True:
            for message in self._replies:
                return message if isinstance(message, list) else []
            data = made.recv(4096)
            if not data:
                raise ConnectionResetError("the collector closed the connection during the handshake")
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        try:
            self._replies.feed(data)
        except msgpack.BufferFull:
            raise ConnectionError("the collector does not speak the forward protocol") from None

    def send(self, entry: Entry) -> None:
        assert self._socket is not None
        acknowledge = self._options.fluentd_request_ack
        message, name = self._records.message(entry, acknowledge=acknowledge)
        self._socket.sendall(message)
        if acknowledge:
            self._waiting.append((name, entry.until, time.monotonic()))
        else:
            self._arrived = entry.until

    def arrived(self) -> int:
        if self._socket is not None:
            self._listen(self._socket)
            patience = self._options.fluentd_read_timeout
            if self._waiting and patience and time.monotonic() - self._waiting[0][2] > patience:
                raise TimeoutError(f"no acknowledgement within {patience:g} s")
        return self._arrived

    def _listen(self, made: socket.socket) -> None:
        """Take the acknowledgements that are there."""
        made.settimeout(0)
        try:
            while True:
                data = made.recv(65536)
                if not data:
                    raise ConnectionResetError("the collector closed the connection")
                self._feed(data)
        except BlockingIOError:
            pass
        except OSError as error:
            if type(error).__name__ not in ("SSLWantReadError", "SSLWantWriteError"):
                raise
        finally:
            made.settimeout(self._timeout)
        for reply in self._replies:
            self._take(reply)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, list) and reply[:1] == ["HELO"]:
            raise ConnectionError("the collector wants a shared key: set fluentd-shared-key")
        if not isinstance(reply, dict) or "ack" not in reply:
            raise ConnectionError("the collector does not speak the forward protocol")
        self._known.add(str(reply["ack"]))
        while self._waiting and self._waiting[0][0] in self._known:
            name, self._arrived, _ = self._waiting.popleft()
            self._known.discard(name)

    def fileno(self) -> int:
        return self._socket.fileno() if self._socket is not None else -1

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._waiting.clear()
        self._known.clear()

    def abort(self) -> None:
        super().abort()
        shut(self._socket)


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode(errors="surrogateescape")


def _digest(*parts: str | bytes) -> str:
    return hashlib.sha512(b"".join([_bytes(part) for part in parts])).hexdigest()
