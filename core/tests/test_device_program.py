"""A device list as a program: the kernel decides as the rules say, wherever the unified hierarchy is mounted."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.contract.limits import DeviceRule
from transom.services.device_program import devices_of, instructions, restore_devices, set_devices, supported
from transom.services.unified import Unified
from transom_conformance.suite import in_child

NUMBERS = st.one_of(st.none(), st.integers(0, 2))
ACCESS = ["r", "w", "m", "rw", "rm", "wm", "rwm"]
RULES = st.lists(
    st.builds(DeviceRule, st.booleans(), st.sampled_from("abc"), NUMBERS, NUMBERS, st.sampled_from(ACCESS)), max_size=8
)
BITS = {"m": 1, "r": 2, "w": 4}


def matches(rule: DeviceRule, type_: str, major: int, minor: int) -> bool:
    return rule.type in ("a", type_) and rule.major in (None, major) and rule.minor in (None, minor)


def allowed(rules: list[DeviceRule], type_: str, major: int, minor: int, access: str) -> bool:
    """The contract's words: beginning from "deny all", the last rule that matches decides."""

    def letter_allowed(letter: str) -> bool:
        fitting = (r for r in reversed(rules) if matches(r, type_, major, minor) and letter in r.access)
        return next((rule.allow for rule in fitting), False)

    return all(letter_allowed(letter) for letter in access)


def run(rules: list[DeviceRule], type_: str, major: int, minor: int, access: str) -> bool:
    """Run the program as the kernel would."""
    registers = [0] * 11
    context = {0: sum(BITS[letter] for letter in access) << 16 | {"b": 1, "c": 2}[type_], 4: major, 8: minor}
    code, at = instructions(rules), 0
    while True:
        operation, target, source, offset, number = code[at]
        at += 1
        match operation:
            case 0x61:
                registers[target] = context[offset]
            case 0xBF:
                registers[target] = registers[source]
            case 0xB7:
                registers[target] = number
            case 0x57:
                registers[target] &= number
            case 0x77:
                registers[target] >>= number
            case 0x15:
                at += offset if registers[target] == number else 0
            case 0x55:
                at += offset if registers[target] != number else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"no such operation: {operation:#x}")


@given(RULES)
def test_the_last_rule_that_matches_decides_for_each_letter(rules: list[DeviceRule]) -> None:
    for type_ in "bc":
        for major in range(4):
            for minor in range(4):
                for access in ACCESS:
                    assert run(rules, type_, major, minor, access) == allowed(rules, type_, major, minor, access)


@pytest.fixture
def group() -> Iterator[str]:
    """A group of the unified hierarchy."""
    point = Unified.of_this_host().point
    if not point or not supported():
        pytest.skip("no unified hierarchy with device programs (CONFIG_CGROUP_BPF) is mounted")
    path = f"{point}/transom-test-{os.getpid()}-{random.randrange(1 << 32):08x}"
    os.mkdir(path)
    yield path
    os.rmdir(path)


def opens(group: str, path: str, flags: int) -> bool:
    def attempt() -> None:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write("0")
        try:
            os.close(os.open(path, flags))
        except PermissionError:
            os._exit(7)

    code = in_child(attempt)
    assert code in {0, 7}
    return code == 0


def char(path: str, access: str = "rwm", *, allow: bool = True) -> DeviceRule:
    number = os.stat(path).st_rdev
    return DeviceRule(allow, "c", os.major(number), os.minor(number), access)


def test_the_kernel_opens_what_the_list_allows_and_nothing_else(group: str) -> None:
    set_devices(group, [char("/dev/null"), char("/dev/zero", "r")])
    assert opens(group, "/dev/null", os.O_RDWR)
    assert opens(group, "/dev/zero", os.O_RDONLY)
    assert not opens(group, "/dev/zero", os.O_RDWR)
    assert not opens(group, "/dev/full", os.O_RDONLY)
    set_devices(group, [DeviceRule(True), char("/dev/full", "w", allow=False)])
    assert opens(group, "/dev/full", os.O_RDONLY)
    assert not opens(group, "/dev/full", os.O_RDWR)
    set_devices(group, None)
    assert opens(group, "/dev/full", os.O_RDWR)


def test_a_list_replaces_the_one_before_and_can_be_put_back(group: str) -> None:
    assert devices_of(group) is None
    first = (char("/dev/null"),)
    for _ in range(70):  # the kernel holds 64 programs for a group: none may stay behind
        set_devices(group, first)
        set_devices(group, [char("/dev/full")])
    assert not opens(group, "/dev/null", os.O_RDWR)
    assert devices_of(group) == (char("/dev/full"),)
    import msgspec

    restore_devices(group, msgspec.json.encode(first).decode())
    assert opens(group, "/dev/null", os.O_RDWR)
    assert not opens(group, "/dev/full", os.O_RDWR)
    restore_devices(group, "null")
    restore_devices(group, "null")
    assert opens(group, "/dev/full", os.O_RDWR)


def test_a_nested_group_can_only_take_devices_away(group: str) -> None:
    set_devices(group, [char("/dev/null")])
    nested = f"{group}/nested"
    os.mkdir(nested)
    try:
        set_devices(nested, [DeviceRule(True)])
        assert opens(nested, "/dev/null", os.O_RDWR)
        assert not opens(nested, "/dev/full", os.O_RDWR)
    finally:
        os.rmdir(nested)


def test_a_list_of_many_rules_is_loaded(group: str) -> None:
    set_devices(group, [*(DeviceRule(True, "c", 200, minor) for minor in range(400)), char("/dev/null")])
    assert opens(group, "/dev/null", os.O_RDWR)
