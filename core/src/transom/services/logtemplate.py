"""The part of Go's text/template that log tags use: fields, literals, functions, pipes and parentheses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from transom.contract.logging import LogContainer
from transom.errors import choices, nearest

_ACTION = re.compile(r"\{\{(?:-\s)?(.*?)(?:\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r'\s*(?:(?P<field>\.\w+)|(?P<text>"(?:[^"\\]|\\.)*"|`[^`]*`)|(?P<number>-?\d+)'
    r"|(?P<name>\w+)|(?P<sign>[|()]))"
)

_FUNCTIONS: dict[str, tuple[int, Callable[..., Any]]] = {
    "json": (1, lambda value: msgspec.json.encode(value, order="sorted").decode()),
    "split": (2, lambda text, separator: text.split(separator) if separator else list(text)),
    "join": (2, lambda items, separator: separator.join(items)),
    "title": (1, lambda text: re.sub(r"\b\w", lambda found: found[0].upper(), text)),
    "lower": (1, lambda text: text.lower()),
    "upper": (1, lambda text: text.upper()),
    "pad": (3, lambda text, before, after: " " * before + text + " " * after if text else text),
    "truncate": (2, lambda text, length: text[:length]),
    "println": (1, lambda value: f"{value}\n"),
    "print": (1, str),
}


def fields(container: LogContainer, extra: dict[str, str]) -> dict[str, Any]:
    """Return what a tag may name, after moby's daemon/logger.Info."""
    image = container.image_id.rpartition(":")[2]
    return {
        "ID": container.id[:12],
        "FullID": container.id,
        "Name": container.name,
        "Command": " ".join(container.command),
        "ImageID": image[:12],
        "ImageFullID": container.image_id,
        "ImageName": container.image_name,
        "DaemonName": container.engine,
        "Hostname": container.hostname,
        "ExtraAttributes": extra,
    }


def render(template: str, container: LogContainer, extra: dict[str, str]) -> str:
    """Fill the template in.

    Raises:
        ValueError: it is not a template, or names a field or function that does not exist.
    """
    known = fields(container, extra)
    trimmed = re.sub(r"\s+\{\{-\s", "{{- ", re.sub(r"\s-\}\}\s+", " -}}", template))
    text = _ACTION.sub(lambda action: _text(_Action(action[1], known).value()), trimmed)
    if "{{" in _ACTION.sub("", trimmed):
        raise ValueError("an opening {{ has no closing }}")
    return text


def _text(value: object) -> str:
    """Write a value as Go's fmt does."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{name}:{value[name]}" for name in sorted(value)) + "]"
    return "[" + " ".join(value) + "]" if isinstance(value, list) else str(value)


class _Action:
    """What stands between the braces: a pipeline, read from left to right."""

    def __init__(self, source: str, known: dict[str, Any]) -> None:
        self._known, self._tokens, at = known, [], 0
        source = source.strip()
        while at < len(source):
            match = _TOKEN.match(source, at)
            if match is None:
                raise ValueError(f"unexpected {source[at:]!r} in a template")
            self._tokens.append((match.lastgroup or "", match[match.lastgroup or 0]))
            at = match.end()

    def value(self) -> Any:
        value = self._pipeline()
        if self._tokens:
            raise ValueError(f"unexpected {self._tokens[0][1]!r} in a template")
        return value

    def _pipeline(self) -> Any:
        value = self._command([])
        while self._tokens and self._tokens[0][1] == "|":
            self._tokens.pop(0)
            value = self._command([value])
        return value

    def _command(self, piped: list[Any]) -> Any:
        if not self._tokens:
            raise ValueError("an action of the template is empty")
        kind, word = self._tokens[0]
        if kind != "name":
            if piped:
                raise ValueError(f"{word} is not a function, so nothing can be piped into it")
            return self._operand()
        self._tokens.pop(0)
        if word not in _FUNCTIONS:
            raise ValueError(
                f"function {word!r} does not exist{nearest(word, _FUNCTIONS)}; there are: {choices(_FUNCTIONS)}"
            )
        count, function = _FUNCTIONS[word]
        given = []
        while self._tokens and self._tokens[0][1] not in ("|", ")"):
            given.append(self._operand())
        given += piped
        if len(given) != count:
            raise ValueError(f"function {word} takes {count} arguments, not {len(given)}")
        try:
            return function(*given)
        except (AttributeError, TypeError):
            raise ValueError(f"function {word} cannot take {', '.join(map(repr, given))}") from None

    def _operand(self) -> Any:
        kind, word = self._tokens.pop(0)
        if kind == "field":
            if word[1:] not in self._known:
                raise ValueError(
                    f"field {word} does not exist{nearest(word, ['.' + name for name in self._known])}; "
                    f"there are: {choices('.' + name for name in self._known)}"
                )
            return self._known[word[1:]]
        if kind == "text":
            return word[1:-1] if word[0] == "`" else msgspec.json.decode(word)
        if kind == "number":
            return int(word)
        if word == "(":
            value = self._pipeline()
            if not self._tokens or self._tokens.pop(0)[1] != ")":
                raise ValueError("an opening ( has no closing )")
            return value
        raise ValueError(f"unexpected {word!r} in a template")
