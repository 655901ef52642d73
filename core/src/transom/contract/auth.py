"""The auth contract: who is asking, and may they.

A request reaches Transom through a front end: the command run by a local user, or HTTP over a unix socket or
TLS. The front end describes it as a `Request`; which fields are set depends on how it came, and a driver
looks at those it understands.

Chain
    Several auth drivers serve at once, in the order of the config (``authorization-plugins``).
    `authenticate` is asked of each in turn until one returns an identity: the first answer wins. A driver
    that finds nothing it understands returns None; one that finds credentials that are wrong raises
    `Denied`, and nobody else is asked. When none knows the caller, the request is refused.
    `authorize` is asked of every one: one denial denies, and an error denies. `authorize_response` lets a
    driver see what would go back, and withhold it. `transom.services.access` is this chain.

Actions
    ``KIND.VERB`` with the words of the command line: ``container.create``, ``image.pull``,
    ``network.connect``, ``system.info``. An object is the thing acted on, with the request's decoded body
    where there is one, so that a policy can look into what is asked ("no privileged containers").

A worked example, a driver that lets root do everything and others only look::

    class LookOnly(Auth):
        name = "look-only"
        api = 1
        capabilities = frozenset({AuthCapability.AUTHORIZE})

        def authorize(self, identity, action, target, request):
            verb = action.partition(".")[2]
            if identity.uid == 0 or verb in {"ls", "inspect", "logs"}:
                return Decision(allow=True)
            return Decision(allow=False, reason=f"{identity.name} may only look")
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

from transom.contract import Capability, Driver, operation


class AuthCapability(Capability):
    """Which of the questions a driver answers."""

    AUTHENTICATE = "authenticate"
    AUTHORIZE = "authorize"
    RESPONSES = "responses"
    """`Auth.authorize_response` is asked too."""
    CHALLENGE = "challenge"
    """`Auth.challenge`: tells an unknown HTTP caller how to identify itself."""


class UnixPeer(msgspec.Struct, frozen=True):
    """The process at the other end of a unix socket (SO_PEERCRED, unix(7)), or the one that runs the command."""

    pid: int
    uid: int
    gid: int


class TlsPeer(msgspec.Struct, frozen=True):
    """What TLS proved of the client.

    Attributes:
        verified: the certificate chains to the configured authority.
        subject: the certificate's subject, by attribute ("commonName").
        names: its subject alternative names, as "DNS:host", "URI:spiffe://...".
        fingerprint: SHA-256 of the certificate, hexadecimal.
        certificate: in DER, for what the fields above leave out.
    """

    verified: bool
    subject: dict[str, str] = {}
    names: tuple[str, ...] = ()
    fingerprint: str = ""
    certificate: bytes = b""


class Request(msgspec.Struct, frozen=True):
    """A request as it arrived.

    Attributes:
        unix: set when it came from a local process.
        tls: set when it came over TLS with a client certificate.
        address: "ADDRESS:PORT" of a remote caller.
        method, uri: of an HTTP request; empty for a command.
        headers: of an HTTP request, in order and with repeats, names in lower case.
        body: of an HTTP request whose content type is JSON; None when there is none, when it is of another
            type or when it is larger than 1 MiB (`body_withheld` then says so).
        command: of a command, its words; empty for HTTP.
    """

    unix: UnixPeer | None = None
    tls: TlsPeer | None = None
    address: str = ""
    method: str = ""
    uri: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None
    body_withheld: bool = False
    command: tuple[str, ...] = ()

    def header(self, name: str) -> str | None:
        """Return the first header of that name, in any case (RFC 9110, 5.1)."""
        wanted = name.lower()
        return next((value for key, value in self.headers if key == wanted), None)


class Response(msgspec.Struct, frozen=True):
    """What would go back: status and headers of an HTTP response, and a JSON body up to 1 MiB."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes | None = None


class Identity(msgspec.Struct, frozen=True):
    """Who is asking.

    Attributes:
        name: what shows in logs and events, "root", "CN=ci", "token:deploy".
        method: the driver that vouches for it.
        uid: of a local user.
        groups: names of groups, roles or scopes, for policies.
        claims: anything else the driver learned (of a token, of a certificate).
    """

    name: str
    method: str
    uid: int | None = None
    groups: frozenset[str] = frozenset()
    claims: dict[str, Any] = {}


class Target(msgspec.Struct, frozen=True):
    """What is acted on: `kind` as in the action, `id` and `name` where it exists already, and what is asked."""

    kind: str
    id: str = ""
    name: str = ""
    asked: dict[str, Any] = {}


class Decision(msgspec.Struct, frozen=True):
    """Yes or no; `reason` is shown to a caller who is refused, so it must help and not tell too much."""

    allow: bool
    reason: str = ""


class Auth(Driver):
    """The contract of an auth driver; see the module's text."""

    kind: ClassVar[str] = "auth"

    @operation(needs=AuthCapability.AUTHENTICATE)
    def authenticate(self, request: Request) -> Identity | None:
        """Say who is asking, or None when the request carries nothing this driver understands.

        Raises:
            Denied: it carries credentials, and they are wrong or out of date.
        """
        raise self.unsupported(AuthCapability.AUTHENTICATE)

    @operation(needs=AuthCapability.AUTHORIZE)
    def authorize(self, identity: Identity, action: str, target: Target, request: Request) -> Decision:
        """Say whether `identity` may do `action` to `target`."""
        raise self.unsupported(AuthCapability.AUTHORIZE)

    @operation(needs=AuthCapability.RESPONSES)
    def authorize_response(
        self, identity: Identity, action: str, target: Target, request: Request, response: Response
    ) -> Decision:
        """Say whether `response` may go back to `identity`."""
        raise self.unsupported(AuthCapability.RESPONSES)

    @operation(needs=AuthCapability.CHALLENGE)
    def challenge(self, request: Request) -> str:
        """Return a WWW-Authenticate value (RFC 9110, 11.6.1) for a caller whom nobody knew."""
        raise self.unsupported(AuthCapability.CHALLENGE)
