"""etcd's API, version 3, by its JSON gateway (etcd.io/docs, api_grpc_gateway): what the driver needs of it.

Keys and values are bytes to etcd and texts here. Any of several members serves; one that does not answer is left for
the next. Every change the driver makes is a transaction that can be made twice, so a request whose answer was lost is
sent again.
"""

from __future__ import annotations

import select
import socket
import time
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Iterator
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from transom.errors import ConfigError

if TYPE_CHECKING:
    from ssl import SSLContext

CONNECT, ANSWER = 1.0, 3.0
"""Seconds for a member to take a connection and to answer."""

_REFUSALS = {400, 401, 403}
"""How the gateway says that a user or a password is wrong or missing, or that the user may not do that."""

Operation = dict[str, Any]


class Away(Exception):
    """No member of etcd answers, or those that do have no leader; the text says what each of them said."""


class Refused(Away):
    """Those members that answer do not let this host in, or it does not trust them."""


class Pair(msgspec.Struct, frozen=True):
    """A key with its value; `revision` is that of its last change."""

    key: str
    value: bytes
    revision: int


class Event(msgspec.Struct, frozen=True):
    """A change: `value` is None where the key was deleted."""

    key: str
    value: bytes | None
    revision: int


class Answer(msgspec.Struct, frozen=True):
    """What a transaction found: whether its conditions held, the store's revision, what each read found."""

    held: bool
    revision: int
    found: tuple[tuple[Pair, ...], ...]


class Tls(msgspec.Struct, frozen=True):
    """How to show who one is: files in PEM (who signs members, what this host shows them), a user with a password."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    user: str = ""
    password: str = ""


def read(prefix: str) -> Operation:
    """Read all keys that start so, within a transaction."""
    return {"request_range": _range(prefix)}


def put(key: str, value: bytes, lease: int = 0) -> Operation:
    """Write a key, within a transaction."""
    body = {"key": _pack(key), "value": _b64(value)}
    return {"request_put": body | ({"lease": str(lease)} if lease else {})}


def delete(key: str) -> Operation:
    """Delete a key, within a transaction."""
    return {"request_delete_range": {"key": _pack(key)}}


def absent(key: str) -> Operation:
    """Be the condition that there is no such key."""
    return {"key": _pack(key), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}


def present(key: str) -> Operation:
    """Be the condition that there is such a key."""
    return {"key": _pack(key), "target": "CREATE", "result": "GREATER", "create_revision": "0"}


def empty(prefix: str) -> Operation:
    """Be the condition that no key starts so."""
    return absent(prefix) | {"range_end": _end(prefix)}


def unchanged(key: str, revision: int) -> Operation:
    """Be the condition that the key was last changed then; 0: that there is none."""
    return {"key": _pack(key), "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}


def same(key: str, value: bytes) -> Operation:
    """Be the condition that the key has this value."""
    return {"key": _pack(key), "target": "VALUE", "result": "EQUAL", "value": _b64(value)}


class Etcd:
    """A connection to whichever member answers; not to be used by several threads at once.

    Args:
        urls: of the members, "http://10.0.0.1:2379".

    Attributes:
        patience: seconds for a request as a whole; 0 gives each member its time.
    """

    def __init__(self, urls: Iterable[str], tls: Tls) -> None:
        self.urls, self._tls, self.patience = list(urls), tls, 0.0
        self._deadline, self._token = 0.0, dict[str, str]()
        self._connection: HTTPConnection | None = None

    def close(self) -> None:
        """Close the connection. Closing twice is harmless."""
        if self._connection:
            self._connection.close()
            self._connection = None

    def connect(self) -> HTTPConnection:
        """Make a connection to the member whose turn it is.

        Raises:
            ConfigError: a file that the connection needs cannot be used.
        """
        parts = urlsplit(self.urls[0])
        port = parts.port or 2379
        if parts.scheme == "https":
            from http.client import HTTPSConnection

            made: HTTPConnection = HTTPSConnection(
                parts.hostname or "", port, timeout=self._time(CONNECT), context=_context(self._tls)
            )
        else:
            made = HTTPConnection(parts.hostname or "", port, timeout=self._time(CONNECT))
        try:
            made.connect()
            made.sock.settimeout(self._time(ANSWER))
            if self._tls.user:
                self._token = {}
                words = {"name": self._tls.user, "password": self._tls.password}
                self._token = {"Authorization": self._ask(made, "/v3/auth/authenticate", words)["token"]}
        except BaseException:
            made.close()
            raise
        return made

    def _time(self, seconds: float) -> float:
        """Return how long to wait for something that may take `seconds`."""
        return max(0.01, min(seconds, self._deadline - time.monotonic())) if self.patience else seconds

    def call(self, path: str, body: Operation) -> Any:
        """Send a request to the first member that answers it.

        Raises:
            Away: none does.
            Refused: there is one, to which this host is nobody.
        """
        refused = False
        said: dict[str, str] = {}
        fresh = self._connection is None
        self._deadline = time.monotonic() + self.patience
        for _ in range(2 * len(self.urls)):
            try:
                self._connection = self._connection or self.connect()
                return self._ask(self._connection, path, body)
            except (OSError, HTTPException, Away, msgspec.DecodeError) as error:
                self.close()
                if not fresh:  # the member may have closed a connection that was idle
                    fresh = True
                    continue
                refused = refused or _is_refusal(error)
                said.setdefault(self.urls[0], str(error) or type(error).__name__)
                self.urls.append(self.urls.pop(0))
                if len(said) == len({*self.urls}):
                    break
        raise (Refused if refused else Away)("; ".join(f"{url}: {text}" for url, text in sorted(said.items())))

    def _ask(self, connection: HTTPConnection, path: str, body: Operation) -> Any:
        headers = {"Content-Type": "application/json", **self._token}
        connection.request("POST", path, msgspec.json.encode(body), headers)
        response = connection.getresponse()
        data = response.read()
        if response.status != 200:
            kind = Refused if response.status in _REFUSALS else Away
            raise kind(_reason(data) or f"HTTP {response.status}")
        return msgspec.json.decode(data)

    def transact(
        self, *, when: Iterable[Operation] = (), then: Iterable[Operation] = (), otherwise: Iterable[Operation] = ()
    ) -> Answer:
        """Do one or the other, in one step."""
        body = {"compare": [*when], "success": [*then], "failure": [*otherwise]}
        answer = self.call("/v3/kv/txn", body)
        reads = [r["response_range"] for r in answer.get("responses", []) if "response_range" in r]
        return Answer(
            held=bool(answer.get("succeeded")),
            revision=int(answer["header"]["revision"]),
            found=tuple(tuple(_pair(kv) for kv in r.get("kvs", [])) for r in reads),
        )

    def read(self, *prefixes: str) -> Answer:
        """Read all keys that start so, at one moment."""
        return self.transact(then=[read(prefix) for prefix in prefixes])

    def grant(self, seconds: int) -> int:
        """Make a lease, which ends by itself unless it is kept alive."""
        return int(self.call("/v3/lease/grant", {"TTL": str(seconds), "ID": "0"})["ID"])

    def keep_alive(self, lease: int) -> bool:
        """Begin the lease's time anew; False when it has ended."""
        answer = self.call("/v3/lease/keepalive", {"ID": str(lease)})
        return int(answer.get("result", {}).get("TTL", 0)) > 0

    def revoke(self, lease: int) -> None:
        """End a lease, and what hangs on it."""
        self.call("/v3/lease/revoke", {"ID": str(lease)})

    def watch(self, prefix: str, revision: int) -> Stream:
        """Follow all keys that start so, from a revision on.

        Raises:
            Away: the member whose turn it is does not answer.
        """
        try:
            connection = self.connect()
        except (OSError, HTTPException, Away, msgspec.DecodeError) as error:
            self.urls.append(self.urls.pop(0))
            raise Away(str(error)) from error
        body = msgspec.json.encode({"create_request": {**_range(prefix), "start_revision": str(revision)}})
        # In HTTP/1.0 the answer has no chunks: a line is an answer.
        headers = {"Host": connection.host, "Content-Length": len(body), **self._token}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        head = f"POST /v3/watch HTTP/1.0\r\n{''.join(lines)}\r\n"
        try:
            connection.sock.sendall(head.encode() + body)
        except OSError as error:
            connection.close()
            raise Away(str(error)) from error
        return Stream(connection)


class Stream:
    """What a watch says; a context."""

    def __init__(self, connection: HTTPConnection) -> None:
        self._connection, self._waiting, self._started = connection, b"", False

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def wait(self, stop: int, seconds: float) -> bool:
        """Wait for something to be said, at most so long; True when `stop` is readable."""
        sock = self._connection.sock
        if getattr(sock, "pending", int)():  # what TLS has taken from the socket already
            seconds = 0.0
        return stop in select.select([sock, stop], [], [], seconds)[0]

    def read(self) -> Iterator[Event]:
        """Return what has been said, without waiting for more.

        Raises:
            Away: the stream has ended, or what it should start with is not kept any more.
        """
        self._connection.sock.settimeout(0.0)
        while True:
            try:
                data = self._connection.sock.recv(1 << 18)
            except (BlockingIOError, TimeoutError):
                break
            except OSError as error:
                if type(error).__name__ == "SSLWantReadError":
                    break
                raise Away(str(error)) from error
            if not data:
                raise Away("the watch has ended")
            self._waiting += data
        if not self._started:
            head, end, rest = self._waiting.partition(b"\r\n\r\n")
            if not end:
                return
            if b" 200 " not in head.splitlines()[0]:
                raise Away(head.splitlines()[0].decode(errors="replace"))
            self._waiting, self._started = rest, True
        lines, _, self._waiting = self._waiting.rpartition(b"\n")
        for line in lines.splitlines():
            result = msgspec.json.decode(line).get("result") if line.strip() else {}
            if result is None or result.get("canceled"):
                raise Away("the watch was ended by etcd")
            for event in result.get("events", []):
                pair = _pair(event["kv"])
                gone = event.get("type") == "DELETE"
                yield Event(key=pair.key, value=None if gone else pair.value, revision=pair.revision)


def _context(tls: Tls) -> SSLContext:
    from ssl import create_default_context

    option, path = "etcd-ca", tls.ca
    try:
        context = create_default_context(cafile=tls.ca or None)
        if tls.cert:
            option, path = "etcd-cert and etcd-key", f"{tls.cert}, {tls.key}"
            context.load_cert_chain(tls.cert, tls.key)
    except OSError as error:
        raise ConfigError(
            f"network driver overlay: {option} {path} cannot be used: {error.strerror or error}; name files in PEM"
        ) from None
    return context


def _is_refusal(error: Exception) -> bool:
    """Say whether it is a member's word, or one of TLS: which is not imported where it is not used."""
    return isinstance(error, Refused) or "SSLError" in {kind.__name__ for kind in type(error).__mro__}


def _b64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()


def _pack(key: str) -> str:
    return _b64(key.encode())


def _end(prefix: str) -> str:
    raw = prefix.encode()
    return _b64(raw[:-1] + bytes([raw[-1] + 1]))


def _range(prefix: str) -> Operation:
    return {"key": _pack(prefix), "range_end": _end(prefix)}


def _pair(kv: Operation) -> Pair:
    return Pair(
        key=a2b_base64(kv["key"]).decode(), value=a2b_base64(kv.get("value", "")), revision=int(kv["mod_revision"])
    )


def _reason(data: bytes) -> str:
    try:
        body = msgspec.json.decode(data)
        return str(body.get("error") or body.get("message") or "")
    except (msgspec.DecodeError, AttributeError):
        return ""


def towards(url: str) -> str:
    """Return this host's address on the way to a member, or to everywhere where that is this host itself.

    Raises:
        OSError: there is no way.
    """
    parts = urlsplit(url)
    for target in (parts.hostname or "", "192.0.2.1"):
        family = socket.getaddrinfo(target, 2379, type=socket.SOCK_DGRAM)[0][0]
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((target, 2379))
            address: str = sock.getsockname()[0]
        if not address.startswith("127.") and address != "::1":
            return address
    raise OSError("the way to etcd is the loopback")
