"""Go templates (Go's text/template) as far as ``--format`` of Docker's command line uses them.

A `Template` is parsed once and rendered for each row. Data are what JSON has: dicts, lists, texts, numbers,
truth values and null, and msgspec structures, which count as their JSON. A function in a dict is a method,
``{{.Label "x"}}``.

Known are: fields, variables, pipes, literals, comments, ``{{-`` and ``-}}``; if, else if, else, range, with, break,
continue, end; and the functions of `FUNCTIONS` with ``and`` and ``or``. Unlike Go, a field that is not there is an
error that names those that are; ``index`` of a key that is not there is empty, as in Go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import msgspec

from transom.errors import ConfigError, choices, nearest

Node = Callable[["Scope"], None]
"""Writes a part of the output."""
Value = Callable[["Scope"], Any]

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)
      | (?P<char>'(?:[^'\\\n]|\\.)')
      | (?P<number>[+-]?(?:0[xX][0-9a-fA-F]+|[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?|\.[0-9]+))
      | (?P<variable>\$\w*(?:\.[^\W\d]\w*)*)
      | (?P<field>(?:\.[^\W\d]\w*)+|\.)
      | (?P<word>[^\W\d]\w*)
      | (?P<mark>:=|=|\||,|\(|\)(?:\.[^\W\d]\w*)*)
    )""",
    re.VERBOSE,
)
_OPEN = re.compile(r"\s*\{\{-(?=\s)|\{\{")
_CLOSE = re.compile(r"\s+-\}\}\s*|\s*\}\}")
_COMMENT = re.compile(r"\s*/\*.*?\*/(\s+-\}\}\s*|\}\})", re.DOTALL)
_NAMES = re.compile(r"\s*(\$\w+)(?:\s*,\s*(\$\w+))?\s*:=")
_ASSIGNMENT = re.compile(r"\s*(\$\w+)\s*(:?=)")
_PARENTHESIS = re.compile(r"\s*\)((?:\.[^\W\d]\w*)*)")
_WORD = re.compile(r"\s*([^\W\d]\w*)")
_KEYWORDS = ("if", "range", "with", "end", "else", "break", "continue", "define", "template", "block")
_CONSTANTS = {"true": True, "false": False, "nil": None}
_VERB = re.compile(r"%([-+ #0]*)([0-9]*)(?:\.([0-9]*))?(.)", re.DOTALL)


class _Break(Exception):
    """``{{break}}``"""


class _Continue(Exception):
    """``{{continue}}``"""


class Scope:
    """What a template sees while it is rendered: the dot, its variables, the functions; and what it has written."""

    def __init__(self, dot: Any, functions: Mapping[str, Callable[..., Any]]) -> None:
        self.dot, self.functions = dot, functions
        self.variables: list[tuple[str, Any]] = [("$", dot)]
        self.out: list[str] = []

    def run(self, body: Node, dot: Any) -> None:
        """Render a block, whose variables end with it, with its own dot."""
        outer, depth = self.dot, len(self.variables)
        self.dot = dot
        try:
            body(self)
        finally:
            self.dot = outer
            del self.variables[depth:]

    def find(self, name: str) -> int:
        """Return the innermost variable's place; the parser knows that there is one."""
        return next(i for i in range(len(self.variables) - 1, -1, -1) if self.variables[i][0] == name)


class Template:
    """A parsed template.

    Args:
        text: the template.
        flag: the flag it came with, for error texts.

    Raises:
        ConfigError: it cannot be parsed; the place and the reason are named.
    """

    def __init__(self, text: str, *, flag: str = "--format") -> None:
        self._body = _Parser(text, flag).parse()
        self._place = f"{flag} {text!r}"

    def render(self, data: Any, *, functions: Mapping[str, Callable[..., Any]] | None = None) -> str:
        """Return the text for `data`; `functions` stand over the built-in ones.

        Raises:
            ConfigError: a field that is not there, a function that cannot take its arguments.
        """
        scope = Scope(data, {**FUNCTIONS, **functions} if functions else FUNCTIONS)
        try:
            self._body(scope)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise ConfigError(f"{self._place}: {error}") from None
        return "".join(scope.out)


class _Parser:
    """Turns a template into closures, by recursive descent."""

    def __init__(self, text: str, flag: str) -> None:
        self.text, self.flag, self.at = text, flag, 0
        self.variables = ["$"]
        self.loops = 0
        self.keyword = ""

    def fail(self, reason: str) -> NoReturn:
        raise ConfigError(f"{self.flag} {self.text!r}, column {self.at + 1}: {reason}")

    def parse(self) -> Node:
        body = self.block()
        if self.keyword:
            self.fail(f"unexpected {{{{{self.keyword}}}}}")
        return body

    def block(self) -> Node:
        """Parse up to ``end``, ``else`` or the end of the text, which `keyword` then says."""
        nodes: list[Node] = []
        depth = len(self.variables)
        self.keyword = ""
        while True:
            opening = _OPEN.search(self.text, self.at)
            words = self.text[self.at : opening.start() if opening else None]
            if words:
                nodes.append(_words(words))
            if opening is None:
                self.at = len(self.text)
                break
            self.at = opening.end()
            comment = _COMMENT.match(self.text, self.at)
            if comment:
                self.at = comment.end()
                continue
            self.keyword = self.word(*_KEYWORDS)
            if self.keyword in ("end", "else"):
                break
            nodes.append(self.action())
            self.keyword = ""
        del self.variables[depth:]

        def run(scope: Scope) -> None:
            for node in nodes:
                node(scope)

        return run

    def action(self) -> Node:
        keyword = self.keyword
        if keyword in ("if", "with"):
            return self.branch(keyword)
        if keyword == "range":
            return self.range()
        if keyword in ("break", "continue"):
            if not self.loops:
                self.fail(f"{{{{{keyword}}}}} outside of range")
            self.close()
            return _raiser(_Break if keyword == "break" else _Continue)
        if keyword:
            self.fail(f"{{{{{keyword}}}}} is not supported")
        value, silent = self.declaration()
        self.close()
        return value if silent else lambda scope: scope.out.append(show(value(scope)))

    def branch(self, keyword: str) -> Node:
        """Parse the rest of ``if`` or ``with``, with its ``else``, up to ``end``."""
        depth = len(self.variables)
        test, _ = self.declaration()
        self.close()
        then, otherwise = self.block(), self.otherwise(keyword)
        del self.variables[depth:]
        own_dot = keyword == "with"

        def run(scope: Scope) -> None:
            def inner(scope: Scope) -> None:
                value = test(scope)
                if truth(value):
                    scope.run(then, value if own_dot else scope.dot)
                else:
                    otherwise(scope)

            scope.run(inner, scope.dot)

        return run

    def otherwise(self, keyword: str) -> Node:
        """Parse ``{{else}}``, ``{{else if ..}}`` and ``{{end}}``."""
        if self.keyword == "else":
            if self.word(keyword) and keyword != "range":
                return self.branch(keyword)
            self.close()
            body = self.block()
            if self.keyword != "end":
                self.fail(f"expected {{{{end}}}} of {{{{{keyword}}}}}")
            self.close()
            return lambda scope: scope.run(body, scope.dot)
        if self.keyword != "end":
            self.fail(f"{{{{{keyword}}}}} without {{{{end}}}}")
        self.close()
        return lambda scope: None

    def range(self) -> Node:
        depth = len(self.variables)
        names = self.names()
        items = self.pipeline()
        self.variables += names
        self.close()
        self.loops += 1
        body = self.block()
        self.loops -= 1
        otherwise = self.otherwise("range")
        del self.variables[depth:]

        def run(scope: Scope) -> None:
            found = _pairs(items(scope))
            for key, item in found:
                depth = len(scope.variables)
                if names:
                    scope.variables += zip(names, (key, item) if len(names) == 2 else (item,), strict=True)
                try:
                    scope.run(body, item)
                except _Continue:
                    pass
                except _Break:
                    break
                finally:
                    del scope.variables[depth:]
            if not found:
                otherwise(scope)

        return run

    def names(self) -> list[str]:
        """Parse ``$a :=`` or ``$i, $e :=``."""
        match = _NAMES.match(self.text, self.at)
        if match is None:
            return []
        self.at = match.end()
        return [name for name in match.groups() if name]

    def declaration(self) -> tuple[Value, bool]:
        """Parse a pipeline, or ``$a := pipeline`` or ``$a = pipeline``; return whether it writes nothing."""
        match = _ASSIGNMENT.match(self.text, self.at)
        if match is None:
            return self.pipeline(), False
        self.at = match.end()
        name, new = match[1], match[2] == ":="
        if not new and name not in self.variables:
            self.fail(f"undefined variable {name}")
        value = self.pipeline()
        if new:
            self.variables.append(name)

        def assign(scope: Scope) -> Any:
            result = value(scope)
            if new:
                scope.variables.append((name, result))
            else:
                scope.variables[scope.find(name)] = (name, result)
            return result

        return assign, True

    def pipeline(self) -> Value:
        value = self.command(None)
        while self.mark("|"):
            value = self.command(value)
        return value

    def command(self, piped: Value | None) -> Value:
        """Parse a function or method with its arguments, or one operand; `piped` becomes the last argument."""
        start = self.at
        name = self.word()
        if name in _CONSTANTS:
            self.at, name = start, ""
        if name:
            if name not in FUNCTIONS and name not in ("and", "or"):
                known = (*FUNCTIONS, "and", "or")
                self.fail(f"function {name!r} not defined{nearest(name, known)}; known are: {choices(known)}")
            arguments = self.arguments(piped)
            if name in ("and", "or"):
                return _circuit(name, arguments)
            return lambda scope: _call(name, scope, [argument(scope) for argument in arguments])
        head = self.operand(method=True)
        if head is None:
            self.fail("missing value")
        arguments = self.arguments(piped)
        words = self.text[start : self.at].strip()

        def call(scope: Scope) -> Any:
            value = head(scope)
            if callable(value):
                return value(*[argument(scope) for argument in arguments])
            if arguments:
                raise ValueError(f"{words}: an argument for what is not a function")
            return value

        return call

    def arguments(self, piped: Value | None) -> list[Value]:
        found = []
        while (operand := self.operand()) is not None:
            found.append(operand)
        return [*found, piped] if piped else found

    def operand(self, *, method: bool = False) -> Value | None:
        match = _TOKEN.match(self.text, self.at)
        if match is None or _CLOSE.match(self.text, self.at):
            return None
        kind, token = str(match.lastgroup), match[str(match.lastgroup)]
        if kind == "mark" and token != "(":
            return None
        self.at = match.end()
        if kind in ("string", "char", "number"):
            literal = self.literal(kind, token)
            return lambda scope: literal
        if kind == "word":
            if token in _CONSTANTS:
                return lambda scope: _CONSTANTS[token]
            if token not in FUNCTIONS:
                self.fail(f"function {token!r} not defined{nearest(token, FUNCTIONS)}")
            return lambda scope: _call(token, scope, [])
        if kind == "mark":
            inner = self.pipeline()
            match = _PARENTHESIS.match(self.text, self.at)
            if match is None:
                self.fail("unclosed left parenthesis")
            self.at = match.end()
            return _walker(inner, match[1], "(..)", method=method)
        if kind == "variable":
            name, _, path = token.partition(".")
            if name not in self.variables:
                self.fail(f"undefined variable {name}")
            return _walker(lambda scope: scope.variables[scope.find(name)][1], path, name, method=method)
        return _walker(lambda scope: scope.dot, token, "", method=method)

    def literal(self, kind: str, token: str) -> Any:
        if kind == "number":
            return int(token, 0) if re.fullmatch(r"[+-]?(0[xX][0-9a-fA-F]+|[1-9][0-9]*|0)", token) else float(token)
        if token[0] == "`":
            return token[1:-1]
        try:
            text = unquote(token[1:-1])
        except ValueError as error:
            self.fail(f"{error} in {token}")
        return ord(text) if kind == "char" else text

    def word(self, *known: str) -> str:
        """Take the next word if it is one of `known`, or any word when none is given; else nothing."""
        match = _WORD.match(self.text, self.at)
        if match is None or (known and match[1] not in known):
            return ""
        self.at = match.end()
        return match[1]

    def mark(self, mark: str) -> bool:
        rest = self.text[self.at :].lstrip()
        if not rest.startswith(mark):
            return False
        self.at = len(self.text) - len(rest) + len(mark)
        return True

    def close(self) -> None:
        match = _CLOSE.match(self.text, self.at)
        if match is None:
            rest, end, _ = self.text[self.at :].strip().partition("}}")
            self.fail(f"unexpected {rest.strip()!r}" if end else "unclosed action, expected '}}'")
        self.at = match.end()


def _words(words: str) -> Node:
    return lambda scope: scope.out.append(words)


def _raiser(stop: type[Exception]) -> Node:
    def run(scope: Scope) -> None:
        raise stop

    return run


def _call(name: str, scope: Scope, arguments: list[Any]) -> Any:
    try:
        return scope.functions[name](*arguments)
    except (TypeError, AttributeError):
        given = ", ".join(show(argument, nothing="null") for argument in arguments) or "no argument"
        raise ValueError(f"{name} does not take {given}") from None


def _circuit(name: str, arguments: list[Value]) -> Value:
    """Make ``and`` or ``or``, which evaluate no more arguments than they need."""
    stops = name == "or"

    def run(scope: Scope) -> Any:
        value = None
        for argument in arguments:
            value = argument(scope)
            if truth(value) is stops:
                break
        return value

    return run


def _walker(base: Value, path: str, origin: str, *, method: bool) -> Value:
    """Follow the fields of `path` from `base`; with `method` the last may be a function that is to get arguments."""
    names = [name for name in path.split(".") if name]

    def walk(scope: Scope) -> Any:
        value, walked = base(scope), origin
        for name in names:
            value = _field(value() if callable(value) else value, name, walked or ".")
            walked += f".{name}"
        return value() if callable(value) and not method else value

    return walk


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value) if isinstance(value, msgspec.Struct) else value


def _field(value: Any, name: str, path: str) -> Any:
    value = _plain(value)
    if not isinstance(value, Mapping):
        kind = {list: "a list, see index and range", tuple: "a list, see index and range", type(None): "null"}
        raise ValueError(f"no field {name!r}: {path} is {kind.get(type(value), 'a single value')}")
    if name not in value:
        raise ValueError(f"no field {name!r} in {path}{nearest(name, value)}; it has: {choices(value)}")
    return value[name]


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    value = _plain(value)
    if value is None:
        return []
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return [(number, number) for number in range(value)]
    if isinstance(value, str) or not isinstance(value, list | tuple):
        raise ValueError(f"range can't iterate over {show(value)}")
    return list(enumerate(value))


def truth(value: Any) -> bool:
    """Say whether Go takes it for true: not zero, not empty, not null."""
    return isinstance(value, msgspec.Struct) or bool(value)


def show(value: Any, *, nothing: str = "<no value>") -> str:
    """Write a value as Go's %v does."""
    value = _plain(value)
    if value is None:
        return nothing
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e21 else repr(value)
    if isinstance(value, Mapping):
        items = (f"{key}:{show(item, nothing='<nil>')}" for key, item in sorted(value.items()) if not callable(item))
        return f"map[{' '.join(items)}]"
    if isinstance(value, list | tuple | set | frozenset):
        return f"[{' '.join(show(item, nothing='<nil>') for item in value)}]"
    return str(value)


def unquote(text: str) -> str:
    """Resolve the escapes of Go's interpreted string literals.

    Raises:
        ValueError: an unknown escape.
    """
    named = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))

    def resolve(match: re.Match[str]) -> str:
        escape = match[1]
        if escape in named:
            return named[escape]
        if len(escape) == 1:
            raise ValueError(f"unknown escape \\{escape}")
        return chr(int(escape, 8) if escape.isdecimal() else int(escape[1:], 16))

    return re.sub(r"\\([0-7]{3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", resolve, text)


def to_json(value: Any) -> str:
    """Write a value as JSON; methods are left out."""
    if isinstance(value, Mapping):
        value = {key: item for key, item in value.items() if not callable(item)}
    return msgspec.json.encode(value).decode()


def _compare(test: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def run(left: Any, right: Any) -> bool:
        kinds = {
            bool if isinstance(side, bool) else float if isinstance(side, int | float) else type(side)
            for side in (left, right)
        }
        if len(kinds) > 1 and type(None) not in kinds:
            raise ValueError(f"incompatible types for comparison: {to_json(left)} and {to_json(right)}")
        return test(left, right)

    return run


_equal = _compare(lambda left, right: left == right)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = _plain(value)
        if isinstance(value, Mapping):
            value = value.get(key)
        elif value is None:
            raise ValueError(f"index {to_json(key)} of nothing")
        elif not isinstance(key, int) or isinstance(key, bool):
            raise ValueError(f"cannot index a list with {to_json(key)}")
        elif not 0 <= key < len(value):
            raise ValueError(f"index out of range: {key}")
        else:
            value = value[key]
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if any(not 0 <= bound <= len(value) for bound in bounds):
        raise ValueError(f"index out of range: {show(list(bounds))}")
    return value[slice(*bounds)] if len(bounds) > 1 else value[bounds[0] if bounds else 0 :]


def _print(*values: Any) -> str:
    text = ""
    for place, value in enumerate(values):
        spaced = place and not isinstance(value, str) and not isinstance(values[place - 1], str)
        text += (" " if spaced else "") + show(value)
    return text


def _printf(pattern: str, *values: Any) -> str:
    """Go's Sprintf: the verbs v s q d x X o b c t e E f F g G with flags, width and precision."""
    given = iter(values)

    def write(match: re.Match[str]) -> str:
        flags, width, precision, verb = match.groups()
        if verb == "%":
            return "%"
        try:
            value = next(given)
        except StopIteration:
            raise ValueError(f"printf: {match[0]} has no argument") from None
        layout = f"%{flags}{width}" + ("" if precision is None else f".{precision}")
        if verb in "vs":
            return (layout + "s") % show(value)
        if verb == "q":
            return (layout + "s") % (repr(chr(value)) if isinstance(value, int) else to_json(show(value)))
        if verb == "t" and isinstance(value, bool):
            return (layout + "s") % show(value)
        if verb in "xX" and isinstance(value, str):
            digits = value.encode().hex()
            return (layout + "s") % (digits.upper() if verb == "X" else digits)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if verb == "c" and number:
            return (layout + "s") % chr(value)
        if verb == "b" and number:
            return (layout + "s") % format(value, "b")
        if (verb in "dxXo" and number and isinstance(value, int)) or (verb in "eEfFgG" and number):
            return str((layout + verb) % value)
        raise ValueError(f"printf: {match[0]} does not take {to_json(value)}")

    text = _VERB.sub(write, pattern)
    left = len(list(given))
    if left:
        raise ValueError(f"printf: {left} arguments too many for {to_json(pattern)}")
    return text


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "not": lambda value: not truth(value),
    "eq": lambda left, *right: any(_equal(left, value) for value in right),
    "ne": lambda left, right: not _equal(left, right),
    "lt": _compare(lambda left, right: left < right),
    "le": _compare(lambda left, right: left <= right),
    "gt": _compare(lambda left, right: left > right),
    "ge": _compare(lambda left, right: left >= right),
    "len": lambda value: len(_plain(value) or ()),
    "index": _index,
    "slice": _slice,
    "print": _print,
    "println": lambda *values: " ".join(show(value) for value in values) + "\n",
    "printf": _printf,
    "json": to_json,
    "join": lambda items, separator: separator.join(show(item) for item in items or ()),
    "split": lambda text, separator: text.split(separator) if separator else list(text),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": lambda text: re.sub(r"(?<!\w)\w", lambda match: match[0].upper(), text),
    "pad": lambda text, before, after: " " * before + text + " " * after if text else text,
    "truncate": lambda text, length: text[:length],
}
"""By name: Go's own functions and those that Docker adds (json, join, split, lower, upper, title, pad, truncate)."""
