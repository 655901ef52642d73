"""A client of the registry API (OCI distribution-spec; Docker Registry HTTP API v2), for reading.

One `Registry` serves one pull, from several threads. Connections are kept and used again. A request that fails for
a reason that may pass (a lost connection, 5xx, 429) is tried again a bounded number of times, later and later; a blob
goes on where it broke off.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection, RemoteDisconnected
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urlencode, urljoin, urlsplit

import msgspec

from transom.errors import ConfigError, DriverError, NotFound, TransomError
from transom_engine.images import credentials, spec
from transom_engine.images.content import Writer
from transom_engine.images.credentials import Credentials
from transom_engine.images.names import DEFAULT_DOMAIN, Reference

HUB_HOST = "registry-1.docker.io"
_ACCEPT = ", ".join(sorted(spec.INDEXES | spec.MANIFESTS))
_MANIFEST_LIMIT = 4 << 20
_ANSWER_LIMIT = 1 << 20
_CHUNK = 1 << 16
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REDIRECTS = 10
_PASSING = frozenset({408, 429, 500, 502, 503, 504})
_LOCAL = ("127.0.0.0/8", "::1/128")
_LONGEST_DELAY = 30.0
_FIRST_CONTACT_SECONDS = 10.0
_CHALLENGE = re.compile(r"""([A-Za-z0-9_-]+)\s*(?:=\s*(?:("(?:[^"\\]|\\.)*")|([^\s,"]+)))?""")

T = TypeVar("T")


class Settings(msgspec.Struct, frozen=True):
    """How registries are reached.

    Attributes:
        insecure: registries, HOST[:PORT] or a CIDR, whose certificate is not checked and that may speak plain HTTP.
            This host itself always may.
        mirrors: URLs asked before Docker Hub.
        certificates: directory with, per HOST[:PORT], ``*.crt`` to trust and ``*.cert`` with ``*.key`` to show.
        login_file: instead of Docker's config.json.
        login: used for the registry itself, not for mirrors; instead of those in the file.
        timeout: seconds that a connection may be silent.
        tries: how often a request is made that fails for a reason that may pass.
        delay: seconds before the second try; doubled each time.
    """

    insecure: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()
    certificates: str = "/etc/docker/certs.d"
    login_file: str | None = None
    login: Credentials | None = None
    timeout: float = 60
    tries: int = 5
    delay: float = 0.5


class Fetched(msgspec.Struct, frozen=True):
    """A manifest or an index as it came, verified."""

    body: bytes
    media_type: str
    digest: str


class Cancelled(TransomError):
    """Another part of the pull failed, so this one stopped."""


class _Passing(Exception):
    """A failure that may pass. `delay` is what the registry asks for, in seconds."""

    def __init__(self, cause: object, *, delay: float = 0) -> None:
        super().__init__(cause)
        self.cause, self.delay = cause, delay


class _Refused(Exception):
    """A failure that stays: the registry says no (its HTTP status), or it cannot be reached (0)."""

    def __init__(self, reason: object, *, status: int = 0, hint: str = "") -> None:
        super().__init__(reason)
        self.reason, self.status, self.hint = reason, status, hint


class Registry:
    """The registry of one domain, with its mirrors; a context that closes its connections.

    Args:
        cancelled: once set, requests end with `Cancelled` at the next piece of content.
    """

    def __init__(
        self, domain: str, *, settings: Settings | None = None, cancelled: threading.Event | None = None
    ) -> None:
        self.domain, self._settings = domain, settings or Settings()
        self._cancelled = cancelled or threading.Event()
        self._http = _Http(self._settings)
        host = HUB_HOST if domain == DEFAULT_DOMAIN else domain
        schemes = ("https", "http") if self._http.insecure(host) else ("https",)
        own = _Endpoint(
            self._http, [f"{scheme}://{host}" for scheme in schemes], lambda: self._login(domain), mirror=False
        )
        mirrors = self._settings.mirrors if domain == DEFAULT_DOMAIN else ()
        self._endpoints = [*(self._mirror(url) for url in mirrors), own]

    def manifest(self, reference: Reference, *, digest: str = "") -> Fetched:
        """Fetch a manifest or an index by the reference's digest or tag, or by another digest of the same name.

        Raises:
            NotFound: the registry does not know it.
            DriverError: the registry refuses, fails or cannot be reached, or what it sends is not what was asked for.
        """
        asked = digest or reference.digest

        def fetch(endpoint: _Endpoint) -> Fetched:
            path = f"/v2/{reference.path}/manifests/{asked or reference.tag}"
            with endpoint.get(path, repository=reference.path, headers={"Accept": _ACCEPT}) as response:
                body = _body(response, limit=_MANIFEST_LIMIT)
                media_type = response.getheader("Content-Type", "").partition(";")[0].strip()
                stated = response.getheader("Docker-Content-Digest", "")
            found = spec.digest_of(body)
            expected = asked or (stated if stated.startswith("sha256:") else found)
            if found != expected:
                raise _Passing(f"digest mismatch: {expected} was announced, the content's is {found}")
            return Fetched(body=body, media_type=media_type, digest=found)

        return self._ask(fetch, operation="fetch manifest", subject=reference.familiar(), reference=reference)

    def blob(
        self,
        reference: Reference,
        writer: Writer,
        *,
        digest: str,
        size: int,
        progress: Callable[[int], None] = lambda here: None,
    ) -> None:
        """Fetch what the writer lacks of a blob; the writer's `commit` verifies it.

        Args:
            progress: told how many bytes are here, again and again.

        Raises:
            NotFound: the registry does not have it.
            DriverError: the registry refuses, fails or cannot be reached, or the disk is full.
            Cancelled: the event was set.
        """

        def fetch(endpoint: _Endpoint) -> None:
            if writer.offset >= size:
                return
            headers = {"Range": f"bytes={writer.offset}-"} if writer.offset else {}
            path = f"/v2/{reference.path}/blobs/{digest}"
            with endpoint.get(path, repository=reference.path, headers=headers, also=416) as response:
                if writer.offset and not _continues(response, writer.offset):
                    writer.restart()
                if response.status == 416:
                    raise _Passing("the registry refuses to continue the blob where it broke off")
                while chunk := response.read(_CHUNK):
                    self._check_cancelled()
                    writer.write(chunk)
                    progress(writer.offset)
            if writer.offset < size:
                raise _Passing(f"the connection ended after {writer.offset} of {size} bytes")

        self._ask(fetch, operation="fetch blob", subject=digest, reference=reference, here=lambda: writer.offset)

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._http.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _login(self, domain: str) -> Credentials | None:
        if domain == self.domain and self._settings.login:
            return self._settings.login
        return credentials.find(domain, path=self._settings.login_file)

    def _mirror(self, url: str) -> _Endpoint:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f"invalid registry mirror {url}: it reads https://HOST[:PORT] or http://HOST[:PORT]")
        return _Endpoint(self._http, [url.rstrip("/")], lambda: self._login(parts.netloc), mirror=True)

    def _ask(
        self,
        fetch: Callable[[_Endpoint], T],
        *,
        operation: str,
        subject: str,
        reference: Reference,
        here: Callable[[], int] = lambda: 0,
    ) -> T:
        """Ask the mirrors, whatever goes wrong with them, and then the registry itself, more than once."""
        for mirror in self._endpoints[:-1]:
            try:
                return fetch(mirror)
            except (_Passing, _Refused):
                self._check_cancelled()
        failures = 0
        while True:
            before = here()
            try:
                return fetch(self._endpoints[-1])
            except _Refused as failure:
                raise self._explain(failure, operation=operation, subject=subject, reference=reference) from None
            except _Passing as failure:
                failures = 1 if here() > before else failures + 1
                if failures >= self._settings.tries:
                    raise self._failed(
                        operation, subject=subject, cause=failure.cause, hint=f"tried {failures} times; try again later"
                    ) from None
                delay = max(failure.delay, self._settings.delay * 2 ** (failures - 1))
                self._cancelled.wait(min(delay, _LONGEST_DELAY))
                self._check_cancelled()

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise Cancelled("the pull was cancelled")

    def _explain(self, failure: _Refused, *, operation: str, subject: str, reference: Reference) -> TransomError:
        if failure.status == 404:
            return NotFound(
                f"registry {self.domain} has no {subject}: {failure.reason}; check the name and the tag of"
                f" {reference.familiar_name}"
            )
        hint = failure.hint
        if failure.status in (401, 403):
            where = "" if self.domain == DEFAULT_DOMAIN else f" {self.domain}"
            hint = f"the repository {reference.familiar_name} may not exist, or needs `docker login{where}`"
        return self._failed(operation, subject=subject, cause=failure.reason, hint=hint)

    def _failed(self, operation: str, *, subject: str, cause: object, hint: str) -> DriverError:
        return DriverError(operation, driver=f"registry {self.domain}", subject=subject, cause=cause, hint=hint)


class _Endpoint:
    """One place that serves the API: base URLs to try in order, and what authorizes us there, per repository."""

    def __init__(self, http: _Http, bases: list[str], login: Callable[[], Credentials | None], *, mirror: bool) -> None:
        self._http, self._bases, self._login, self.mirror = http, bases, login, mirror
        self._authorization: dict[str, str] = {}
        self._lock = threading.Lock()

    @contextmanager
    def get(
        self, path: str, *, repository: str, headers: Mapping[str, str] | None = None, also: int = 200
    ) -> Iterator[HTTPResponse]:
        """Get a path of the API as a context that ends the response; `also` is a status to pass on."""
        used = self._authorization.get(repository, "")
        for last in (False, True):
            with self._get(path, headers={**(headers or {}), **({"Authorization": used} if used else {})}) as response:
                if response.status in (200, 206, also):
                    yield response
                    return
                if response.status != 401 or last:
                    raise _refusal(response)
                challenges = response.headers.get_all("WWW-Authenticate") or []
                reason = _reason(response)
            used = self._authorize(challenges, repository=repository, failed=used, reason=reason)

    @contextmanager
    def _get(self, path: str, *, headers: Mapping[str, str]) -> Iterator[HTTPResponse]:
        while len(self._bases) > 1:
            try:
                with self._http.get(self._bases[0] + path, headers=headers, timeout=_FIRST_CONTACT_SECONDS) as response:
                    del self._bases[1:]
                    yield response
                    return
            except (_Passing, _Refused):
                # An insecure registry may speak plain HTTP; what answers TLS once is held to it.
                if len(self._bases) == 1:
                    raise
                del self._bases[0]
        with self._http.get(self._bases[0] + path, headers=headers) as response:
            yield response

    def _authorize(self, challenges: list[str], *, repository: str, failed: str, reason: str) -> str:
        """Return an Authorization header for the repository, other than the one that failed."""
        with self._lock:
            current = self._authorization.get(repository, "")
            if current == failed:
                current = self._authorization[repository] = self._answer(challenges, repository, reason)
            return current

    def _answer(self, challenges: list[str], repository: str, reason: str) -> str:
        login = self._login()
        for scheme, values in _challenges(challenges):
            if scheme == "bearer" and "realm" in values:
                return f"Bearer {self._token(values, repository, login)}"
            if scheme == "basic" and login and login.username:
                return _basic(login)
        raise _Refused(reason, status=401)

    def _token(self, challenge: Mapping[str, str], repository: str, login: Credentials | None) -> str:
        """Ask the authorization server for a token (distribution, docs/spec/auth/token.md and oauth.md)."""
        url, base = urlsplit(challenge["realm"]), urlsplit(self._bases[0])
        if login and url.scheme != "https" and base.scheme == "https" and not self._http.insecure(url.netloc):
            raise _Refused(f"the registry asks to send the login to {url.geturl()}, which is not encrypted")
        scope = challenge.get("scope") or f"repository:{repository}:pull"
        query = {"service": challenge.get("service", ""), "scope": scope}
        headers: dict[str, str] = {}
        body: str | None = None
        if login and login.identity_token:
            fields = {"grant_type": "refresh_token", "client_id": "transom", "refresh_token": login.identity_token}
            body = urlencode({**query, **fields})
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            target = url
        else:
            if login:
                headers["Authorization"] = _basic(login)
                query["account"] = login.username
            target = url._replace(query="&".join(part for part in (url.query, urlencode(query)) if part))
        with self._http.get(target.geturl(), headers=headers, body=body) as response:
            if response.status != 200:
                raise _refusal(response)
            answer = _body(response, limit=_ANSWER_LIMIT)
        try:
            token = msgspec.json.decode(answer, type=_Token)
        except msgspec.MsgspecError as error:
            raise _Refused(f"the authorization server {url.netloc} sent no token: {error}") from None
        if found := token.token or token.access_token:
            return found
        raise _Refused(f"the authorization server {url.netloc} sent no token")


class _Token(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None


class _Http:
    """Requests over kept connections: TLS, proxies, redirects, and which failures may pass."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._idle: dict[str, list[HTTPConnection]] = {}
        self._reached: set[str] = set()
        self._insecure: dict[str, bool] = {}
        self._contexts: dict[str, ssl.SSLContext] = {}
        self._closed = False

    @contextmanager
    def get(
        self, url: str, *, headers: Mapping[str, str], body: str | None = None, timeout: float | None = None
    ) -> Iterator[HTTPResponse]:
        """Send a GET, or a POST if there is a body, follow redirects, and yield the response."""
        sent = dict(headers)
        for _ in range(_MOST_REDIRECTS):
            with self._exchange(url, headers=sent, body=body, timeout=timeout) as response:
                location = response.getheader("Location")
                if response.status not in _REDIRECTS or not location:
                    yield response
                    return
                response.read(_CHUNK)
            here, there = urlsplit(url), urlsplit(urljoin(url, location))
            if there.scheme not in ("http", "https"):
                raise _Refused(f"{here.netloc} redirects to {there.geturl()}, which is no web address")
            if here.scheme == "https" and there.scheme == "http" and not self.insecure(there.netloc):
                raise _Refused(f"{here.netloc} redirects to {there.netloc}, which is not encrypted")
            if (here.scheme, here.netloc) != (there.scheme, there.netloc):
                sent.pop("Authorization", None)
            url = there.geturl()
        raise _Refused(f"{urlsplit(url).netloc} redirects more than {_MOST_REDIRECTS} times")

    def insecure(self, netloc: str) -> bool:
        """Say whether the settings, or its being this host, excuse a registry from encryption."""
        if netloc not in self._insecure:
            self._insecure[netloc] = self._is_insecure(netloc)
        return self._insecure[netloc]

    def close(self) -> None:
        """Close the idle connections; those in use are closed when they would become idle."""
        self._closed = True
        for connections in self._idle.values():
            while connections:
                connections.pop().close()

    def _is_insecure(self, netloc: str) -> bool:
        from ipaddress import ip_address, ip_network

        parts = urlsplit(f"//{netloc}")
        host = parts.hostname or ""
        names = [entry for entry in self._settings.insecure if "/" not in entry]
        if netloc in names or host in names or host == "localhost":
            return True
        networks = [ip_network(entry, strict=False) for entry in (*_LOCAL, *self._settings.insecure) if "/" in entry]
        try:
            addresses = [ip_address(host)]
        except ValueError:
            if len(networks) == len(_LOCAL):
                return False
            try:
                addresses = [ip_address(str(found[4][0])) for found in socket.getaddrinfo(host, None)]
            except OSError:
                return False
        return any(address in network for address in addresses for network in networks)

    @contextmanager
    def _exchange(
        self, url: str, *, headers: Mapping[str, str], body: str | None, timeout: float | None
    ) -> Iterator[HTTPResponse]:
        parts = urlsplit(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        connection, response = self._send(parts, origin, headers=headers, body=body, timeout=timeout)
        try:
            yield response
        except (OSError, HTTPException) as error:
            raise _Passing(f"the connection to {parts.netloc} broke: {_words(error)}") from None
        finally:
            if response.isclosed() and not response.will_close and not self._closed:
                self._idle.setdefault(origin, []).append(connection)
            else:
                response.close()
                connection.close()

    def _send(
        self, parts: SplitResult, origin: str, *, headers: Mapping[str, str], body: str | None, timeout: float | None
    ) -> tuple[HTTPConnection, HTTPResponse]:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        sent = {"User-Agent": "transom", **headers}
        proxy = _proxy(parts)
        if proxy and parts.scheme == "http":
            target = f"http://{parts.netloc}{target}"
            sent |= _proxy_login(proxy)
        while True:
            try:
                connection = self._idle[origin].pop()
                kept = True
            except (KeyError, IndexError):
                connection = self._connection(parts, proxy, timeout=timeout)
                kept = False
            try:
                connection.request("POST" if body else "GET", target, body=body, headers=sent)
                response = connection.getresponse()
            except (OSError, HTTPException) as error:
                connection.close()
                # The other end may close an idle connection at any time; that is no failure.
                if kept and isinstance(error, ConnectionError):
                    continue
                raise self._unreachable(parts, origin, error) from None
            self._reached.add(origin)
            return connection, response

    def _connection(self, parts: SplitResult, proxy: SplitResult | None, *, timeout: float | None) -> HTTPConnection:
        """Make a connection, which is opened with its first request."""
        seconds = min(timeout or self._settings.timeout, self._settings.timeout)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "http":
            at = proxy or parts
            return HTTPConnection(at.hostname or "", at.port, timeout=seconds)
        if parts.netloc not in self._contexts:
            self._contexts[parts.netloc] = self._context(parts.netloc)
        context = self._contexts[parts.netloc]
        if proxy is None:
            return HTTPSConnection(host, port, timeout=seconds, context=context)
        tunnel = HTTPSConnection(proxy.hostname or "", proxy.port or 80, timeout=seconds, context=context)
        tunnel.set_tunnel(host, port or 443, headers=_proxy_login(proxy))
        return tunnel

    def _context(self, netloc: str) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self.insecure(netloc):
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        directory = os.path.join(self._settings.certificates, netloc)
        try:
            names = sorted(os.listdir(directory))
        except OSError:
            return context
        try:
            for name in names:
                path = os.path.join(directory, name)
                if name.endswith(".crt"):
                    context.load_verify_locations(path)
                elif name.endswith(".cert"):
                    context.load_cert_chain(path, path.removesuffix(".cert") + ".key")
        except OSError as error:
            raise ConfigError(
                f"cannot use the certificates in {directory}: {_words(error)}; repair or remove them"
            ) from None
        return context

    def _unreachable(self, parts: SplitResult, origin: str, error: Exception) -> _Passing | _Refused:
        """Sort a failure to get an answer: what was reached before may come back, what never was does not exist."""
        where = parts.netloc
        if isinstance(error, ssl.SSLCertVerificationError):
            return _Refused(
                f"the certificate of {where} is not trusted: {error.verify_message}",
                hint=f"put its authority's into {self._settings.certificates}/{where}/ca.crt or list {where} in"
                " insecure-registries",
            )
        if isinstance(error, ssl.SSLError) and origin not in self._reached:
            return _Refused(
                f"{where} does not speak TLS: {_words(error)}",
                hint=f"if it speaks plain HTTP, list {where} in insecure-registries",
            )
        if isinstance(error, socket.gaierror):
            return _Refused(f"no address for {where}: {_words(error)}", hint="check the name, and this host's DNS")
        fleeting = (TimeoutError, ConnectionResetError, RemoteDisconnected, HTTPException)
        if origin not in self._reached and not isinstance(error, fleeting):
            return _Refused(f"cannot connect to {where}: {_words(error)}", hint="is a registry running there?")
        return _Passing(f"no answer from {where}: {_words(error)}")


def _proxy(parts: SplitResult) -> SplitResult | None:
    """Find the proxy that the environment names (HTTPS_PROXY, HTTP_PROXY, NO_PROXY); none for this host."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies_environment, proxy_bypass

    found = getproxies_environment()
    proxy = found.get(parts.scheme) or found.get("all")
    if not proxy or _is_here(parts.hostname or "") or proxy_bypass(parts.netloc):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _proxy_login(proxy: SplitResult) -> dict[str, str]:
    if not proxy.username:
        return {}
    login = Credentials(username=unquote(proxy.username), password=unquote(proxy.password or ""))
    return {"Proxy-Authorization": _basic(login)}


def _is_here(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _basic(login: Credentials) -> str:
    return "Basic " + b64encode(f"{login.username}:{login.password}".encode()).decode()


def _challenges(headers: list[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Read WWW-Authenticate (RFC 9110, 11.6.1), the stronger schemes first."""
    found: list[tuple[str, dict[str, str]]] = []
    for word, quoted, token in _CHALLENGE.findall(", ".join(headers)):
        if not quoted and not token:
            found.append((word.lower(), {}))
        elif found:
            found[-1][1][word.lower()] = re.sub(r"\\(.)", r"\1", quoted[1:-1]) or token
    yield from sorted(found, key=lambda challenge: challenge[0] != "bearer")


def _continues(response: HTTPResponse, offset: int) -> bool:
    """Say whether the content goes on at the offset (RFC 9110, 14.4)."""
    return response.status == 206 and response.getheader("Content-Range", "").startswith(f"bytes {offset}-")


def _body(response: HTTPResponse, *, limit: int) -> bytes:
    body = response.read(limit + 1)
    if len(body) > limit:
        raise _Refused(f"the answer is longer than {limit} bytes")
    announced = response.getheader("Content-Length", "")
    if announced.isdecimal() and len(body) < int(announced):
        raise _Passing(f"the connection ended after {len(body)} of {announced} bytes")
    return body


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


def _reason(response: HTTPResponse) -> str:
    """Say why the registry refused: its own words (distribution-spec, "Error Codes"), else HTTP's."""
    said = response.read(_ANSWER_LIMIT)
    try:
        first = msgspec.json.decode(said, type=_Errors).errors[0]
    except (msgspec.MsgspecError, IndexError):
        return f"HTTP {response.status} {response.reason}".rstrip()
    return ": ".join(part for part in (first.code.lower().replace("_", " "), first.message) if part)


def _refusal(response: HTTPResponse) -> _Passing | _Refused:
    reason = _reason(response)
    if response.status not in _PASSING:
        return _Refused(reason, status=response.status)
    wait = response.getheader("Retry-After", "")
    return _Passing(reason, delay=float(wait) if wait.isdecimal() else 0)


def _words(error: BaseException) -> str:
    return getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
