"""What several commands have in common: many names at once, ``--filter``, and "are you sure?"."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from transom.errors import ConfigError, TransomError, choices, nearest

if TYPE_CHECKING:
    from transom_engine.cli import Session
    from transom_engine.engine import Engine

_AT_ONCE = 32
"""How many threads `at_once` has at most."""


_NEEDED = {"CAP_NET_ADMIN", "CAP_SYS_ADMIN"}


def explained(text: str) -> str:
    """Add to what the kernel refused which capabilities this process lacks, if it lacks any that all of it needs."""
    if os.strerror(errno.EPERM) not in text:
        return text
    from transom_engine.oci.host import Host

    lacking = _NEEDED - Host.read().capabilities
    return f"{text}; the engine lacks {choices(lacking)}: see `transom doctor`" if lacking else text


def several(names: Iterable[str], act: Callable[[str], object]) -> int:
    """Call `act` for each name and print the name, or what it returns if that is any; go on over errors, a line each.

    Returns:
        the exit code: 1 when one failed, as docker's commands do.
    """
    code = 0
    for name in names:
        try:
            said = act(name)
        except TransomError as error:
            sys.stdout.flush()
            print(f"transom: {explained(str(error))}", file=sys.stderr)
            code = 1
        else:
            if said != "":
                print(name if said is None else said, flush=True)
    return code


def at_once(session: Session, names: Sequence[str], act: Callable[[Engine, str], object]) -> int:
    """Do as `several` does, for all names at once: each in a thread with an engine of its own.

    Not for what starts containers: a supervisor is forked, and only from a process that has no other threads.
    """
    if len(names) == 1:
        return several(names, lambda name: act(session.engine, name))
    from concurrent.futures import ThreadPoolExecutor

    from transom_engine.engine import Engine

    def alone(name: str) -> object:
        engine = Engine(session.config)
        try:
            return act(engine, name)
        finally:
            engine.close()

    assert session.engine  # what refuses this caller is said once, not for each name
    with ThreadPoolExecutor(min(len(names), _AT_ONCE)) as pool:
        results = {name: pool.submit(alone, name) for name in dict.fromkeys(names)}
        return several(names, lambda name: results[name].result())


def filters(texts: Iterable[str], *known: str) -> dict[str, list[str]]:
    """Read ``--filter KEY=VALUE`` texts into the values of each key.

    Raises:
        ConfigError: no such key, or none at all.
    """
    found: dict[str, list[str]] = {}
    for text in filter(None, texts):  # docker's command, too, takes "" for no filter: --filter "$FILTER"
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
