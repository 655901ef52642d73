"""The suite of auth drivers: right and wrong callers, requests of every shape, answers that can be relied on.

What a caller must show is the driver's own matter, so its author gives examples::

    from transom_conformance.auth import AuthSuite

    class TestMine(AuthSuite):
        driver = "mine"
        options = {"tokens": "/path/to/tokens"}
        known = (Request(headers=(("authorization", "Bearer good"),)),)
        wrong = (Request(headers=(("authorization", "Bearer bad"),)),)
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import pytest

from transom.contract.auth import (
    AuthCapability,
    Decision,
    Identity,
    Request,
    Response,
    Target,
    TlsPeer,
    UnixPeer,
)
from transom.errors import Denied, NotSupported
from transom.services.access import Access
from transom_conformance.suite import Suite, World, undeclared

Has = AuthCapability
requires = pytest.mark.requires

SECRET = "hunter2-pa55word"
JSON = (("content-type", "application/json"),)


def http(*headers: tuple[str, str], method: str = "GET", uri: str = "/v1.43/info", **more: Any) -> Request:
    """Return a request that came over TCP."""
    return Request(address="192.0.2.7:40000", method=method, uri=uri, headers=headers, **more)


UNVERIFIED = (
    http(tls=TlsPeer(verified=False, subject={"commonName": "root"}, names=("DNS:localhost",), fingerprint="0" * 64)),
    http(tls=TlsPeer(verified=False)),
)
"""Clients whose certificate nobody vouches for."""

SHAPES: dict[str, Request] = {
    "nothing at all": Request(),
    "a command of nobody": Request(command=("ps", "-a")),
    "a user id without a user": Request(unix=UnixPeer(pid=0, uid=0xFFFFFFFE, gid=0xFFFFFFFE)),
    "a user id beyond 32 bits": Request(unix=UnixPeer(pid=-1, uid=1 << 40, gid=1 << 40)),
    "a negative user id": Request(unix=UnixPeer(pid=-1, uid=-1, gid=-1)),
    "plain http": http(),
    "no credentials after the scheme": http(("authorization", "")),
    "a scheme alone": http(("authorization", "Bearer")),
    "an unknown scheme": http(("authorization", f"Rumour {SECRET}")),
    "basic that is no base64": http(("authorization", "Basic !!!!")),
    "basic without a colon": http(("authorization", "Basic aHVudGVyMg==")),
    "basic that is no utf-8": http(("authorization", "Basic /////w==")),
    "a wrong token": http(("authorization", f"Bearer {SECRET}")),
    "a token of three empty parts": http(("authorization", "Bearer ..")),
    "a token with a line break": http(("authorization", "Bearer a\r\nx-user: root")),
    "a token beyond ascii": http(("authorization", "Bearer \udcff\u2603")),
    "64 KiB of token": http(("authorization", "Bearer " + "x" * 65536)),
    "two authorizations": http(("authorization", "Bearer a"), ("authorization", "Basic YTpi")),
    "a thousand headers": http(*((f"x-{n}", "y") for n in range(1000))),
    "docker's registry header": http(("x-registry-auth", "e30=")),
    "a strange method and uri": http(method="\x00", uri="//..%2f..%00?\ud800#"),
    "json": http(*JSON, method="POST", uri="/containers/create", body=b'{"Image": "busybox"}'),
    "json that breaks off": http(*JSON, method="POST", body=b'{"Image": '),
    "json that is no object": http(*JSON, method="POST", body=b"[null]"),
    "json nested deeply": http(*JSON, method="POST", body=b"[" * 100_000),
    "a body of no text": http(*JSON, method="POST", body=bytes(range(256))),
    "a body too large to show": http(*JSON, method="POST", body_withheld=True),
    "a certificate without names": http(tls=TlsPeer(verified=True)),
    "a certificate of noise": http(
        tls=TlsPeer(verified=True, subject={"": ""}, names=(":", ""), certificate=b"\x30\x82")
    ),
    "an unknown authority": UNVERIFIED[0],
}

ACTIONS = ("container.create", "container.ls", "image.pull", "network.connect", "volume.rm", "system.info", "", "x")
TARGETS = (
    Target(kind="container", id="0" * 64, name="web"),
    Target(kind="container", asked={"HostConfig": {"Privileged": True, "Binds": ["/:/host"]}, "Env": [f"P={SECRET}"]}),
    Target(kind="container", asked={"HostConfig": None, "Image": 7, "Cmd": {"a": []}}),
    Target(kind="system"),
    Target(kind=""),
)
IDENTITIES = (
    Identity(name="root", method="peer", uid=0, groups=frozenset({"root"})),
    Identity(name="nobody", method="peer", uid=65534),
    Identity(name="CN=ci", method="tls", groups=frozenset({"ci"}), claims={"exp": 0, "aud": ["a"]}),
    Identity(name="", method=""),
)


class AuthSuite(Suite):
    """What every auth driver must do; see `transom.contract.auth`.

    Attributes:
        known: requests that the driver, with the suite's `options`, gives an identity.
        wrong: requests whose credentials it refuses, where there are such.
    """

    kind = "auth"
    known: ClassVar[tuple[Request, ...]] = ()
    wrong: ClassVar[tuple[Request, ...]] = ()

    # Who is asking

    @requires(Has.AUTHENTICATE)
    def test_known_callers_get_an_identity_that_names_them_and_the_driver(self, world: World) -> None:
        driver = world.open()
        assert self.known, "give the suite `known`: requests that the driver knows"
        for request in self.known:
            identity = driver.authenticate(request=request)
            assert isinstance(identity, Identity)
            assert identity.name
            assert identity.name.isprintable()
            assert identity.method == driver.name
            assert all(isinstance(group, str) and group for group in identity.groups)

    @requires(Has.AUTHENTICATE)
    def test_the_same_request_is_the_same_caller_after_a_restart_too(self, world: World) -> None:
        first, second = world.open(), world.open()
        for request in self.known:
            identities = [driver.authenticate(request=request) for driver in (first, second, first)]
            assert identities[0] == identities[1] == identities[2]

    @requires(Has.AUTHENTICATE)
    def test_wrong_credentials_are_denied_in_one_line_that_does_not_repeat_them(self, world: World) -> None:
        driver = world.open()
        for request in self.wrong:
            with pytest.raises(Denied) as caught:
                driver.authenticate(request=request)
            text = str(caught.value)
            assert text
            assert text.isprintable()
            for _, value in request.headers:
                assert value.split()[-1] not in text

    @requires(Has.AUTHENTICATE)
    def test_a_request_that_carries_nothing_is_left_to_other_drivers(self, world: World) -> None:
        driver = world.open()
        for name in ("nothing at all", "a command of nobody", "plain http"):
            assert driver.authenticate(request=SHAPES[name]) is None

    @requires(Has.AUTHENTICATE)
    def test_a_certificate_that_nobody_vouches_for_is_no_identity(self, world: World) -> None:
        driver = world.open()
        for request in UNVERIFIED:
            assert outcome(partial(driver.authenticate, request=request)) in (None, Denied)

    @requires(Has.AUTHENTICATE)
    @pytest.mark.parametrize("shape", SHAPES)
    def test_no_request_makes_it_fail(self, world: World, shape: str) -> None:
        driver = world.open()
        answer = outcome(partial(driver.authenticate, request=SHAPES[shape]))
        assert answer is None or answer is Denied or isinstance(answer, Identity)

    @requires(Has.AUTHENTICATE)
    def test_hundreds_of_requests_leave_nothing_open(self, world: World) -> None:
        driver = world.open()
        for request in (*self.known, *SHAPES.values()) * 10:
            outcome(partial(driver.authenticate, request=request))

    @requires(Has.AUTHENTICATE)
    def test_requests_at_the_same_time_are_not_mixed_up(self, world: World) -> None:
        driver, requests = world.open(), (*self.known, *SHAPES.values())
        alone = [outcome(partial(driver.authenticate, request=request)) for request in requests]
        assert (
            together(lambda: [outcome(partial(driver.authenticate, request=request)) for request in requests])
            == [alone] * 8
        )

    @requires(Has.AUTHENTICATE)
    def test_the_chain_lets_known_callers_in_and_refuses_strangers(self, world: World) -> None:
        chain = Access([world.open()])
        for request in self.known:
            assert chain.authenticate(request).method == self.driver
        with pytest.raises(Denied) as caught:
            chain.authenticate(Request())
        assert self.driver in str(caught.value)

    # May they

    @requires(Has.AUTHORIZE)
    @pytest.mark.parametrize("action", ACTIONS)
    def test_every_question_gets_a_decision_and_every_denial_a_reason(self, world: World, action: str) -> None:
        driver = world.open()
        for identity, target in ((i, t) for i in IDENTITIES for t in TARGETS):
            for request in (*self.known, *SHAPES.values()):
                check(driver.authorize(identity=identity, action=action, target=target, request=request))

    @requires(Has.AUTHORIZE)
    def test_the_same_question_gets_the_same_answer_whoever_asks_at_the_same_time(self, world: World) -> None:
        driver, other = world.open(), world.open()

        def answers(of: Any) -> list[Decision]:
            return [
                of.authorize(identity=identity, action=action, target=target, request=Request())
                for identity in IDENTITIES
                for action in ACTIONS
                for target in TARGETS
            ]

        expected = answers(driver)
        assert answers(other) == expected
        assert together(lambda: answers(driver)) == [expected] * 8

    @requires(Has.RESPONSES)
    def test_every_response_gets_a_decision(self, world: World) -> None:
        driver = world.open()
        bodies = (None, b"", b"{}", b'[{"Id": 1}]', b"{", bytes(range(256)), b"[" * 100_000)
        for identity, body in ((i, b) for i in IDENTITIES for b in bodies):
            for status in (101, 200, 204, 404, 500):
                check(
                    driver.authorize_response(
                        identity=identity,
                        action="container.inspect",
                        target=TARGETS[0],
                        request=SHAPES["plain http"],
                        response=Response(status=status, headers=JSON, body=body),
                    )
                )

    # And what else

    @requires(Has.CHALLENGE)
    def test_a_challenge_is_a_header_value_for_any_request(self, world: World) -> None:
        driver = world.open()
        for request in SHAPES.values():
            challenge = driver.challenge(request=request)
            # RFC 9110, 11.6.1: a scheme and parameters; what the caller wrote must not break out of the line.
            assert re.match(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+( |$)", challenge)
            assert challenge.isprintable()

    def test_what_is_not_declared_raises_not_supported(self, world: World) -> None:
        driver, question = world.open(), {"identity": IDENTITIES[0], "action": "x", "target": TARGETS[0]}
        request = Request()
        calls: dict[Any, Callable[[], object]] = {
            Has.AUTHENTICATE: lambda: driver.authenticate(request=request),
            Has.AUTHORIZE: lambda: driver.authorize(**question, request=request),
            Has.RESPONSES: lambda: driver.authorize_response(
                **question, request=request, response=Response(status=200)
            ),
            Has.CHALLENGE: lambda: driver.challenge(request=request),
        }
        for capability in undeclared(driver, AuthCapability):
            with pytest.raises(NotSupported):
                calls[capability]()

    def test_it_answers_at_least_one_question(self, world: World) -> None:
        assert world.open().capabilities & {Has.AUTHENTICATE, Has.AUTHORIZE, Has.RESPONSES}


def outcome(call: Callable[[], Any]) -> Any:
    """Return what the call returned, or `Denied` when it denied."""
    try:
        return call()
    except Denied:
        return Denied


def check(decision: object) -> None:
    """Make sure that it is a decision, and that a denial can be shown to the one who is denied."""
    assert isinstance(decision, Decision)
    assert decision.allow or decision.reason
    assert decision.reason.isprintable()
    assert SECRET not in decision.reason


def together(call: Callable[[], Any], *, threads: int = 8) -> list[Any]:
    """Return what `call` returns in each of several threads that begin at the same time."""
    begin, results = threading.Barrier(threads), []

    def work() -> None:
        begin.wait()
        results.append(call())

    running = [threading.Thread(target=work) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return results
