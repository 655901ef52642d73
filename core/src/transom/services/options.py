"""From the words of a user to the typed options of a driver.

A driver declares its options as a frozen msgspec structure; users write them as texts, ``--log-opt max-size=10m``
or ``"log-opts": {"max-size": "10m"}``. The name a user writes is the field's encoded name, so a driver keeps the
field's standard names with ``rename="kebab"`` or ``msgspec.field(name="overlay2.size")``::

    class JsonFileOptions(msgspec.Struct, frozen=True, rename="kebab"):
        max_size: DecimalSize | None = None
        max_file: Annotated[int, msgspec.Meta(ge=1)] = 1
        compress: bool = False
        mode: Literal["blocking", "non-blocking"] = "blocking"
        env: tuple[str, ...] = ()

What can be a field: `str`, `int`, `float`, `bool`, `Size`, `DecimalSize`, `DecimalBound`, `Duration`, `Literal`, an
enum, a list, tuple or set of any of these (separated by commas), a class that is made from one text
(`ipaddress.IPv4Address`), and each of them with ``| None``; bounds by `msgspec.Meta`. A rule across fields goes into
``__post_init__`` and raises `ValueError` with what is allowed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import inspect

from transom.contract import Driver
from transom.errors import ConfigError, choices, nearest

Size = Annotated[int, msgspec.Meta(extra={"transom": "size"})]
"""Bytes; the user writes "10m" with binary units, 1k = 1024 (go-units' RAMInBytes)."""

DecimalSize = Annotated[int, msgspec.Meta(extra={"transom": "decimal-size"})]
"""Bytes; the user writes "10m" with decimal units, 1k = 1000 (go-units' FromHumanSize), as json-file's max-size."""

DecimalBound = Annotated[int, msgspec.Meta(extra={"transom": "decimal-bound"})]
"""As `DecimalSize`, or -1 for no bound."""

Duration = Annotated[float, msgspec.Meta(extra={"transom": "duration"})]
"""Seconds; the user writes "1m30s" (the syntax of Go's time.ParseDuration)."""

BOOLEANS = {"true": True, "t": True, "1": True, "yes": True, "false": False, "f": False, "0": False, "no": False}
SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
LARGEST = 2**63 - 1
"""The kernel's and Go's int64: what is larger is a slip of the pen."""

_SIZE = re.compile(r"(\d+\.?\d*|\.\d+) ?(?:([kmgtp])i?)?b?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d+\.?\d*|\.\d+)([a-zµμ]+)", re.ASCII)


class OptionDoc(msgspec.Struct, frozen=True):
    """An option as help shows it: what the user writes, what is allowed, the default, a sentence."""

    name: str
    type: str
    default: str
    text: str


def parse_size(text: str, *, unit: int = 1024) -> int:
    """Return bytes from "512", "10m", "1.5 GiB"; with `unit` 1000 the letters are decimal, with or without "i".

    Raises:
        ValueError: not a size, or larger than 2**63 - 1.
    """
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 10m")
    number, letter = match.groups()
    factor: int = unit ** ("kmgtp".index(letter.lower()) + 1) if letter else 1
    size = (int(number) if number.isdigit() else float(number)) * factor
    if size > LARGEST:
        raise ValueError(f"{text!r} is too large for a size")
    return int(size)


def write_size(count: int, *, unit: int = 1024) -> str:
    """Write bytes as a user would: ``4m``, ``1g``, ``1000``; see `parse_size`."""
    letters, letter = iter("kmgtp"), ""
    while count and count % unit == 0:
        count, letter = count // unit, next(letters)
    return f"{count}{letter}"


def parse_duration(text: str) -> float:
    """Return seconds from "300ms", "-1.5h", "2h45m" or "0": the syntax of Go's time.ParseDuration.

    Raises:
        ValueError: not a duration, as a number without a unit, or longer than 2**63 - 1 nanoseconds.
    """
    sign, body = (-1.0, text[1:]) if text[:1] == "-" else (1.0, text.removeprefix("+"))
    if body == "0":
        return 0.0
    parts = _DURATION.findall(body)
    if not parts or "".join(n + u for n, u in parts) != body or any(u not in SECONDS for _, u in parts):
        raise ValueError(f"{text!r} is not a duration such as 10s or 1m30s")
    seconds = sum(float(number) * SECONDS[unit] for number, unit in parts)
    if seconds > LARGEST / 1e9:
        raise ValueError(f"{text!r} is too long for a duration")
    return sign * seconds


def parse_bool(text: str) -> bool:
    """Return what true, t, 1, yes / false, f, 0, no say, in either case.

    Raises:
        ValueError: another word.
    """
    try:
        return BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(f"{text!r} is neither true nor false") from None


def _seconds(text: str) -> float:
    value = parse_duration(text)
    if value < 0:
        raise ValueError(f"{text!r} is negative")
    return value


_FIRST_SIGHT = threading.Lock()
"""msgspec crashes when two threads meet a type for the first time at once; `rm` of several opens drivers in threads."""


def _bound(text: str) -> int:
    return -1 if text == "-1" else parse_size(text, unit=1000)


def parse(hint: Any, text: str) -> Any:
    """Return the value of the type `hint`, annotations included, that a user wrote as `text`.

    Raises:
        ValueError: with what is expected in its place ("a size such as 10m").
    """
    kind = inspect.type_info(hint)
    try:
        with _FIRST_SIGHT:
            value = msgspec.convert(_read(kind, text), hint, strict=False, dec_hook=lambda cls, value: cls(value))
        if value is not None:  # "null" is not a word of ours
            return value
    except ValueError:  # msgspec.ValidationError is one
        pass
    raise ValueError(expected(kind))


_UNITS: dict[str, tuple[Callable[[str], Any], str]] = {
    "size": (parse_size, "a size such as 10m"),
    "decimal-size": (partial(parse_size, unit=1000), "a size such as 10m"),
    "decimal-bound": (_bound, "a size such as 10m, or -1"),
    "duration": (_seconds, "a duration such as 10s"),
}


def convert(
    *, driver: type[Driver], options: Mapping[str, str], struct: type[msgspec.Struct] | None = None, where: str
) -> Any:
    """Return an instance of `struct`, by default the driver's `Options`, from what the user wrote.

    Args:
        driver: whose options they are; errors name its kind and name.
        where: where the user wrote them, "--log-opt" or "daemon.json: log-opts".

    Raises:
        ConfigError: an option that the driver does not know, a value it does not take, a required one missing.
    """
    struct = struct or driver.Options
    fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
    who = f"{driver.kind} driver {driver.name}"
    values = {}
    for name, text in options.items():
        field = fields.get(name)
        if field is None:
            known = f"it knows: {choices(fields)}" if fields else "it has no options"
            raise ConfigError(f"{who} has no option {name!r} (from {where}){nearest(name, fields)}; {known}")
        try:
            values[field.name] = parse(field.type, text)
        except ValueError as error:
            raise ConfigError(f"{who}: {name}={text!r} (from {where}): expected {error}") from None
    missing = [name for name, field in fields.items() if field.required and field.name not in values]
    if missing:
        raise ConfigError(f"{who} needs the option {missing[0]!r} (missing from {where})")
    try:
        return struct(**values)
    except ValueError as error:
        raise ConfigError(f"{who} (from {where}): {error}") from None


def words_of(options: msgspec.Struct) -> dict[str, str]:
    """Return what a user would have written: the opposite of `convert`, without what is as the default."""
    found = {}
    for field in msgspec.structs.fields(options):
        default = field.default_factory() if callable(field.default_factory) else field.default
        value = getattr(options, field.name)
        if field.required or value != default:
            found[field.encode_name] = _write(inspect.type_info(field.type), value)
    return found


def describe(struct: type[msgspec.Struct], docs: Mapping[str, str]) -> list[OptionDoc]:
    """List the options of a driver in the order of its structure; `docs` is its `option_docs`."""
    found = []
    for field in msgspec.structs.fields(struct):
        kind = inspect.type_info(field.type)
        default = field.default_factory() if callable(field.default_factory) else field.default
        written = "required" if field.required else _write(kind, default)
        text = docs.get(field.name, docs.get(field.encode_name, ""))
        found.append(OptionDoc(name=field.encode_name, type=expected(kind), default=written, text=text))
    return found


def _core(kind: inspect.Type) -> tuple[inspect.Type, str]:
    """Strip ``| None`` and metadata off a type; return it with the unit that our annotation named."""
    if isinstance(kind, inspect.Metadata):
        inner, unit = _core(kind.type)
        return inner, unit or (kind.extra or {}).get("transom", "")
    if isinstance(kind, inspect.UnionType):
        parts = [part for part in kind.types if not isinstance(part, inspect.NoneType)]
        return _core(parts[0]) if len(parts) == 1 else (kind, "")
    return kind, ""


def _read(kind: inspect.Type, text: str) -> Any:
    core, unit = _core(kind)
    if unit:
        return _UNITS[unit][0](text)
    if isinstance(core, inspect.BoolType):
        return parse_bool(text)
    item = getattr(core, "item_type", None)  # of a collection
    if item is not None:
        return [_read(item, part.strip()) for part in text.split(",") if part.strip()]
    return text


def _write(kind: inspect.Type, value: Any) -> str:
    """Write a default as a user would write it."""
    core, unit = _core(kind)
    if value is None or value is msgspec.NODEFAULT:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if unit.endswith(("size", "bound")):
        return str(value) if value < 0 else write_size(value, unit=1024 if unit == "size" else 1000)
    if unit == "duration":
        return f"{value:g}s"
    item = getattr(core, "item_type", None)  # of a collection
    if item is None:
        return str(getattr(value, "value", value))
    words = [_write(item, part) for part in value]
    return ",".join(sorted(words) if isinstance(value, set | frozenset) else words)


def expected(kind: inspect.Type) -> str:
    """Say in words what a user may write."""
    core, unit = _core(kind)
    if isinstance(core, inspect.IntType | inspect.FloatType):
        words = "a whole number" if isinstance(core, inspect.IntType) else "a number"
        words = _UNITS[unit][1] if unit else words
        bounds = {"at least": core.ge, "more than": core.gt, "at most": core.le, "less than": core.lt}
        return words + "".join(f", {say} {_write(kind, at)}" for say, at in bounds.items() if at is not None)
    if isinstance(core, inspect.BoolType):
        return "true or false"
    if isinstance(core, inspect.LiteralType):
        return "one of " + ", ".join(str(value) for value in core.values if value != "")
    if isinstance(core, inspect.EnumType):
        return "one of " + ", ".join(str(member.value) for member in core.cls)
    if isinstance(core, inspect.StrType):
        parts = getattr(kind, "types", (kind,))
        said = [(getattr(part, "extra_json_schema", None) or {}).get("description", "") for part in parts]
        return "".join(said) or (f"a text that matches {core.pattern}" if core.pattern else "a text")
    item = getattr(core, "item_type", None)  # of a collection
    if item is not None:
        return f"a list, separated by commas, each {expected(item)}"
    return f"a value of type {getattr(getattr(core, 'cls', None), '__name__', type(core).__name__)}"
