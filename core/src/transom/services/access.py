"""The chain of auth drivers: who is asking, and may they; see `transom.contract.auth`. Whatever goes wrong denies."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from transom.contract.auth import Auth, AuthCapability, Decision, Identity, Request, Response, Target
from transom.errors import Denied

T = TypeVar("T")


class Access:
    """The chain over opened drivers, in the order of the config."""

    def __init__(self, drivers: Iterable[Auth]) -> None:
        self.drivers = tuple(drivers)

    def authenticate(self, request: Request) -> Identity:
        """Say who is asking: the first answer wins.

        Raises:
            Denied: a driver found wrong credentials or failed, or none knows the caller.
        """
        asked = self._with(AuthCapability.AUTHENTICATE)
        for driver in asked:
            identity = _answer(driver, "authenticate", Identity, partial(driver.authenticate, request=request))
            if identity is not None:
                return identity
        names = ", ".join(driver.name for driver in asked) or "none is configured, see auth-drivers"
        raise Denied(f"nobody knows this caller; auth drivers asked: {names}")

    def challenges(self, request: Request) -> list[str]:
        """Return a WWW-Authenticate value of each driver that has one, for a caller whom nobody knew."""
        found = []
        for driver in self._with(AuthCapability.CHALLENGE):
            try:
                found.append(driver.challenge(request=request))
            except Exception:
                continue  # one that cannot say it leaves the word to the others
        return found

    def authorize(self, identity: Identity, action: str, target: Target, request: Request) -> None:
        """Ask every driver whether `identity` may do `action` to `target`.

        Raises:
            Denied: at least one said no or failed; each is named with its reason.
        """
        self._ask(
            action,
            AuthCapability.AUTHORIZE,
            lambda d: d.authorize(identity=identity, action=action, target=target, request=request),
        )

    def authorize_response(
        self, identity: Identity, action: str, target: Target, request: Request, response: Response
    ) -> None:
        """Ask every driver that looks at responses whether `response` may go back; raises like `authorize`."""
        self._ask(
            f"the response to {action}",
            AuthCapability.RESPONSES,
            lambda d: d.authorize_response(
                identity=identity, action=action, target=target, request=request, response=response
            ),
        )

    def _with(self, capability: AuthCapability) -> list[Auth]:
        return [driver for driver in self.drivers if capability in driver.capabilities]

    def _ask(self, what: str, capability: AuthCapability, question: Callable[[Auth], Decision]) -> None:
        reasons = []
        for driver in self._with(capability):
            try:
                decision = _answer(driver, "authorize", Decision, partial(question, driver))
            except Denied as error:
                reasons.append(str(error))
                continue
            if decision is None:
                reasons.append(f"{driver.name}: it gave no decision")
            elif not decision.allow:
                reasons.append(f"{driver.name}: {decision.reason or 'no reason given'}")
        if reasons:
            raise Denied(f"{what} is denied by {'; '.join(reasons)}")


def _answer(driver: Auth, operation: str, type_: type[T], call: Callable[[], object]) -> T | None:
    """Return the driver's answer or None; a failure, or an answer of another type, is a denial that names it."""
    try:
        answer = call()
    except Denied as error:
        raise Denied(f"{driver.name}: {error}") from error
    except Exception as error:
        raise Denied(f"{driver.name}: {operation} failed: {type(error).__name__}: {error}".splitlines()[0]) from error
    if answer is None or isinstance(answer, type_):
        return answer
    raise Denied(f"{driver.name}: {operation} returned {type(answer).__name__}, not {type_.__name__}")
