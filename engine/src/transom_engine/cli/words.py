"""What several commands have in common: many names at once, ``--filter``, and "are you sure?"."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import click

from transom.errors import ConfigError, TransomError, choices, nearest


def several(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Call `act` for each name and print the name, or what it returns; go on over errors, a line each.

    Returns:
        the exit code: 1 when one failed, as docker's commands do.
    """
    code = 0
    for name in names:
        try:
            said = act(name)
        except TransomError as error:
            sys.stdout.flush()
            print(f"transom: {error}", file=sys.stderr)
            code = 1
        else:
            print(name if said is None else said, flush=True)
    return code


def filters(texts: Iterable[str], *known: str) -> dict[str, list[str]]:
    """Read ``--filter KEY=VALUE`` texts into the values of each key.

    Raises:
        ConfigError: no such key, or none at all.
    """
    found: dict[str, list[str]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip().lower()
        if not equals:
            raise ConfigError(f"--filter {text!r}: invalid format; expected KEY=VALUE, KEY being {choices(known)}")
        if key not in known:
            raise ConfigError(
                f"--filter {text!r}: invalid filter {key!r}{nearest(key, known)}; there are {choices(known)}"
            )
        found.setdefault(key, []).append(value.strip())
    return found


def has_labels(labels: dict[str, str], wanted: Iterable[str]) -> bool:
    """Say whether each of the words, KEY or KEY=VALUE, is among the labels."""
    pairs = [word.partition("=") for word in wanted]
    return all(key in labels and (not equals or labels[key] == value) for key, equals, value in pairs)


def confirmed(warning: str) -> bool:
    """Show a warning and ask as docker does; anything but y or yes is a no."""
    print(f"WARNING! {warning}\nAre you sure you want to continue? [y/N] ", end="", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def many(*names: str, help: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the decorator of a flag that may be given many times."""
    return click.option(*names, multiple=True, help=help)
