"""The device list of cgroup v1 (admin-guide/cgroup-v1/devices.rst).

The kernel knows a default, deny or allow, and exceptions to it; it has no order and no exception to an exception.
Rules in which the last match decides are turned into that form; those that have none are refused.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable

from transom.contract.limits import DeviceRule
from transom.services.cgroups import read, write

Pattern = tuple[str, int | None, int | None]
"""Type, major, minor; None stands for all."""


def compiled(rules: Iterable[DeviceRule]) -> tuple[bool, dict[Pattern, set[str]]]:
    """Return the default (True: allow) and the exceptions to it with their access letters.

    Raises:
        OSError: EOPNOTSUPP, a rule takes back a part of an earlier one.
    """
    default: bool = False
    exceptions: dict[Pattern, set[str]] = {}
    for rule in rules:
        access = set(rule.access)
        if rule.type == "a" and rule.major is None and rule.minor is None and access == set("rwm"):
            default, exceptions = rule.allow, {}
            continue
        for type_ in "bc" if rule.type == "a" else rule.type:
            pattern = (type_, rule.major, rule.minor)
            if rule.allow != default:
                exceptions.setdefault(pattern, set()).update(access)
                continue
            for other, letters in exceptions.items():
                if not letters & access or not _overlap(pattern, other):
                    continue
                if not _covers(pattern, other):
                    raise OSError(
                        errno.EOPNOTSUPP,
                        f"cgroup v1 cannot {'allow' if rule.allow else 'deny'} {_text(pattern, access)} "
                        f"as an exception to {_text(other, letters)}",
                    )
                letters -= access
    return default, {pattern: letters for pattern, letters in exceptions.items() if letters}


def current(listed: str) -> list[DeviceRule]:
    """Read ``devices.list``. A group that allows by default does not list its exceptions."""
    rules = []
    for line in listed.splitlines():
        type_, numbers, access = line.split()
        major, minor = (None if part == "*" else int(part) for part in numbers.split(":"))
        rules.append(DeviceRule(allow=True, type=type_, major=major, minor=minor, access=access))
    return rules


def set_devices(group: str, rules: Iterable[DeviceRule]) -> None:
    """Make the rules hold, beginning from "deny all"; a device allowed before and after is never denied between."""
    default, wanted = compiled(rules)
    old_default, old = compiled(current(read(group, "devices.list")))
    to_exceptions, to_default = ("deny", "allow") if default else ("allow", "deny")
    if default or old_default:
        # From an allowing default there is no way without a moment of denial; only an empty group can take it.
        write(f"{group}/devices.{to_default}", "a")
        old = {}
    for pattern, access in wanted.items():
        write(f"{group}/devices.{to_exceptions}", _text(pattern, access))
    for pattern, access in old.items():
        gone = access - wanted.get(pattern, set())
        if gone:
            write(f"{group}/devices.{to_default}", _text(pattern, gone))


def _overlap(one: Pattern, other: Pattern) -> bool:
    return one[0] == other[0] and all(
        None in pair or pair[0] == pair[1] for pair in zip(one[1:], other[1:], strict=True)
    )


def _covers(one: Pattern, other: Pattern) -> bool:
    return one[0] == other[0] and all(a is None or a == b for a, b in zip(one[1:], other[1:], strict=True))


def _text(pattern: Pattern, access: set[str]) -> str:
    numbers = ":".join("*" if part is None else str(part) for part in pattern[1:])
    return f"{pattern[0]} {numbers} {''.join(letter for letter in 'rwm' if letter in access)}"
