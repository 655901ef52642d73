"""What can go wrong, in one base class and five families.

Every text is one line: what happened, where, and what to do next; where there are alternatives they are
listed. Front ends print ``transom: <text>`` and exit with the family's code, after docker's convention:
125 means that the engine refused or failed, 126 and 127 that the command in the container could not run.
"""

from __future__ import annotations

from collections.abc import Iterable


class TransomError(Exception):
    """The base of every error that a user can meet."""

    exit_code = 125


class ConfigError(TransomError):
    """The user's words are off: an unknown option, a bad value, a missing argument."""


class ContractError(TransomError):
    """A driver breaks the contract of its kind: its author, not its user, must change something."""


class NotSupported(TransomError):
    """This host or this driver cannot do it, and says what is missing."""


class NotFound(TransomError):
    """The named object does not exist."""


class Conflict(TransomError):
    """The object's present state does not allow it: a name taken, a parent with children, a running container."""


class Denied(TransomError):
    """An auth driver refused the caller."""


class DriverError(TransomError):
    """The kernel or a remote end failed.

    Args:
        operation: what was tried, in the contract's words ("mount", "attach").
        driver: kind and name, "storage overlay2".
        subject: the object it was tried on, an id or a path.
        cause: the failure, often an `OSError`; its errno is kept in `errno`.
        hint: what the operator can do about it.
    """

    def __init__(self, operation: str, *, driver: str, subject: str = "", cause: object = "", hint: str = "") -> None:
        self.operation, self.driver, self.subject, self.hint = operation, driver, subject, hint
        self.errno: int | None = getattr(cause, "errno", None)
        where = f" {subject}" if subject else ""
        text = f"{driver}: {operation}{where} failed"
        reason = (getattr(cause, "strerror", None) or str(cause)) if cause != "" else ""
        super().__init__(text + (f": {reason}" if reason else "") + (f"; {hint}" if hint else ""))


def nearest(word: str, known: Iterable[str]) -> str:
    """Say what was probably meant: `` (did you mean X?)``, or nothing when no known word is near."""
    from difflib import get_close_matches

    match = get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]}?)" if match else ""


def choices(known: Iterable[str]) -> str:
    """List alternatives for an error text, sorted: ``a, b, c``, or ``none``."""
    return ", ".join(sorted(known)) or "none"
