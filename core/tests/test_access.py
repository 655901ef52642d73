"""The chain of auth drivers: the first answer names the caller, one denial denies, and so does a failure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from transom.contract.auth import (
    Auth,
    AuthCapability,
    Decision,
    Identity,
    Request,
    Response,
    Target,
    UnixPeer,
)
from transom.errors import Denied
from transom.services.access import Access

HERE = Path("/nonexistent")
REQUEST = Request(unix=UnixPeer(pid=1, uid=1000, gid=1000))
ALICE = Identity(name="alice", method="first")
TARGET = Target(kind="container")


def driver(name: str, *, known: Any = None, decision: Any = None, response: Any = None, challenge: str = "") -> Auth:
    """Make an auth driver that gives these answers, raising those that are errors, and notes what it was asked."""
    claimed = {
        AuthCapability.AUTHENTICATE: known,
        AuthCapability.AUTHORIZE: decision,
        AuthCapability.RESPONSES: response,
        AuthCapability.CHALLENGE: challenge or None,
    }

    class Scripted(Auth):
        capabilities = frozenset(c for c, answer in claimed.items() if answer is not None)
        asked: list[str] = []

        def answer(self, operation: str, value: Any) -> Any:
            self.asked.append(operation)
            if isinstance(value, BaseException):
                raise value
            return None if value == "nothing" else value

        def authenticate(self, request: Request) -> Identity | None:
            return self.answer("authenticate", known)

        def authorize(self, identity: Identity, action: str, target: Target, request: Request) -> Decision:
            return self.answer("authorize", decision)

        def authorize_response(
            self, identity: Identity, action: str, target: Target, request: Request, response: Response
        ) -> Decision:
            return self.answer("authorize_response", claimed[AuthCapability.RESPONSES])

        def challenge(self, request: Request) -> str:
            return self.answer("challenge", challenge)

    Scripted.name = name
    return Scripted(options=None, root=HERE, run=HERE)


def denied(call: Any, **arguments: Any) -> str:
    with pytest.raises(Denied) as caught:
        call(**arguments)
    return str(caught.value)


YES, NO = Decision(allow=True), Decision(allow=False, reason="not on Sundays")


def test_the_first_answer_wins_and_nobody_after_it_is_asked() -> None:
    drivers = [driver("silent", known="nothing"), driver("first", known=ALICE), driver("late", known=ALICE)]
    assert Access(drivers).authenticate(REQUEST) is ALICE
    assert [d.asked for d in drivers] == [["authenticate"], ["authenticate"], []]  # type: ignore[attr-defined]


def test_wrong_credentials_are_final() -> None:
    late = driver("late", known=ALICE)
    access = Access([driver("token", known=Denied("the token expired yesterday")), late])
    assert denied(access.authenticate, request=REQUEST) == "token: the token expired yesterday"
    assert late.asked == []  # type: ignore[attr-defined]


def test_a_driver_that_fails_to_authenticate_denies_and_is_named() -> None:
    access = Access([driver("ldap", known=OSError("no route\nto host")), driver("late", known=ALICE)])
    assert denied(access.authenticate, request=REQUEST) == "ldap: authenticate failed: OSError: no route"


def test_a_driver_that_answers_something_else_denies_and_is_named() -> None:
    access = Access([driver("sloppy", known=True)])
    assert denied(access.authenticate, request=REQUEST) == "sloppy: authenticate returned bool, not Identity"


def test_a_caller_whom_nobody_knows_is_denied_and_told_who_was_asked() -> None:
    access = Access([driver("peer", known="nothing"), driver("policy", decision=YES), driver("tls", known="nothing")])
    assert denied(access.authenticate, request=Request()) == "nobody knows this caller; auth drivers asked: peer, tls"


def test_without_any_driver_nobody_gets_in() -> None:
    assert denied(Access([]).authenticate, request=REQUEST) == (
        "nobody knows this caller; auth drivers asked: none is configured, see auth-drivers"
    )


def test_every_driver_is_asked_and_one_denial_denies() -> None:
    drivers = [driver("a", decision=NO), driver("b", decision=YES), driver("c", decision=Decision(allow=False))]
    text = denied(Access(drivers).authorize, identity=ALICE, action="container.create", target=TARGET, request=REQUEST)
    assert text == "container.create is denied by a: not on Sundays; c: no reason given"
    assert [d.asked for d in drivers] == [["authorize"]] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ValueError("boom"), "policy: authorize failed: ValueError: boom"),
        (Denied("not you"), "policy: not you"),
        ("nothing", "policy: it gave no decision"),
        (True, "policy: authorize returned bool, not Decision"),
    ],
)
def test_an_error_or_a_wrong_answer_denies_and_is_named(answer: Any, reason: str) -> None:
    access = Access([driver("a", decision=YES), driver("policy", decision=answer)])
    text = denied(access.authorize, identity=ALICE, action="image.pull", target=TARGET, request=REQUEST)
    assert text == f"image.pull is denied by {reason}"


def test_when_all_agree_the_request_passes() -> None:
    access = Access([driver("a", decision=YES), driver("b", known=ALICE), driver("c", decision=YES)])
    access.authorize(ALICE, "image.pull", TARGET, REQUEST)
    access.authorize_response(ALICE, "image.pull", TARGET, REQUEST, Response(status=200))


def test_a_response_can_be_withheld() -> None:
    access = Access([driver("a", decision=YES), driver("secrets", response=NO)])
    text = denied(
        access.authorize_response,
        identity=ALICE,
        action="container.inspect",
        target=TARGET,
        request=REQUEST,
        response=Response(status=200),
    )
    assert text == "the response to container.inspect is denied by secrets: not on Sundays"


def test_each_driver_with_a_challenge_gets_its_word() -> None:
    broken = driver("broken", challenge="x")
    broken.challenge = None  # type: ignore[assignment,method-assign]
    access = Access([driver("a", challenge="Bearer"), broken, driver("b", challenge='Basic realm="transom"')])
    assert access.challenges(REQUEST) == ["Bearer", 'Basic realm="transom"']
