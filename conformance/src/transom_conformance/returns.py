"""What operations return, compared with what the contract says; Python itself would let it pass until it is used."""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping
from functools import wraps
from typing import Any, Union, get_args, get_origin, get_type_hints

from transom.contract import Driver
from transom.drivers import contract_of, operations_of
from transom.errors import ContractError


def watched(driver: Any) -> Any:
    """Return the driver, each operation of which raises `ContractError` when it returns something of another type."""
    contract = contract_of(driver.kind)
    for name, operation in operations_of(contract).items():
        hint = get_type_hints(operation)["return"]
        setattr(driver, name, _watched(driver, name, getattr(driver, name), hint))
    return driver


def _watched(driver: Driver, name: str, method: Any, hint: Any) -> Any:
    @wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        value = method(*args, **kwargs)
        if not fits(value, hint):
            raise ContractError(
                f"{driver.kind} driver {driver.name!r} breaks its contract: {name} must return {words(hint)},"
                f" not {type(value).__name__} {repr(value)[:60]}"
            )
        return value

    return call


def fits(value: object, hint: Any) -> bool:
    """Say whether a value is of the type; what is in an iterator is not looked at."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(fits(value, kind) for kind in args)
    if origin is None:
        return (
            value is None if hint in (None, type(None)) else isinstance(value, (int, float) if hint is float else hint)
        )
    if not isinstance(value, origin):
        return False
    if isinstance(value, Mapping):
        return all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if isinstance(value, tuple) and not (len(args) == 2 and args[1] is ...):
        return len(value) == len(args) and all(map(fits, value, args))
    if isinstance(value, Collection):
        return all(fits(item, args[0]) for item in value)
    return True


def words(hint: Any) -> str:
    """Write a type as its author would."""
    if hint in (None, type(None)):
        return "None"
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(words, args))
    if origin is None:
        return getattr(hint, "__name__", str(hint))
    inner = ", ".join("..." if arg is ... else words(arg) for arg in args)
    return f"{origin.__name__}[{inner}]"
