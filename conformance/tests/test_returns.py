"""A driver that returns something else than its contract says is told so, in the contract's words."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from transom.contract.storage import Mount, Usage
from transom.errors import ContractError
from transom_conformance.returns import fits, watched, words
from transom_storage_vfs import Vfs

MOUNT = Mount(type="bind", source="/")


@pytest.mark.parametrize(
    ("value", "hint", "good"),
    [
        (None, None, True),
        (0, None, False),
        ((MOUNT,), tuple[Mount, ...], True),
        ((), tuple[Mount, ...], True),
        ([MOUNT], tuple[Mount, ...], False),
        (({"type": "bind"},), tuple[Mount, ...], False),
        ((1, "a"), tuple[int, str], True),
        ((1,), tuple[int, str], False),
        (frozenset({"a"}), frozenset[str], True),
        ({"a"}, frozenset[str], False),
        ({"a": "b"}, dict[str, str], True),
        ({"a": 1}, dict[str, str], False),
        ([], Sequence[str] | None, True),
        (None, Sequence[str] | None, True),
        (iter(()), Iterator[int], True),
        ([], Iterator[int], False),
        (1, float, True),
        ("x", Any, True),
    ],
)
def test_a_value_fits_its_type_or_not(value, hint, good):
    assert fits(value, hint) is good


@pytest.mark.parametrize(
    ("operation", "arguments", "value", "text"),
    [
        (
            "mounts",
            {"id": "a", "parents": (), "state": "active"},
            [],
            "mounts must return tuple[Mount, ...], not list []",
        ),
        ("owned", {}, {"a"}, "owned must return frozenset[str], not set {'a'}"),
        ("usage", {"id": "a", "parents": ()}, 7, "usage must return Usage, not int 7"),
        ("remove", {"id": "a"}, True, "remove must return None, not bool True"),
    ],
)
def test_the_error_says_what_must_be_returned_and_what_was(tmp_path, operation, arguments, value, text):
    driver = Vfs(options=Vfs.Options(), root=tmp_path, run=tmp_path)
    setattr(driver, operation, lambda **_: value)
    with pytest.raises(ContractError) as error:
        getattr(watched(driver), operation)(**arguments)
    assert str(error.value) == f"storage driver 'vfs' breaks its contract: {text}"


def test_what_is_right_passes_through(tmp_path):
    driver = watched(Vfs(options=Vfs.Options(), root=tmp_path, run=tmp_path))
    assert driver.owned() == frozenset()
    assert words(frozenset[str] | None) == "frozenset[str] or None"
    assert isinstance(driver.usage(id="a", parents=()), Usage)
