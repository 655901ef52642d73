"""A device list in which the last match decides, in terms of a kernel that knows no order."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.contract.limits import DeviceRule
from transom_limits_cgroup1._devices import compiled, current, set_devices

NUMBERS = st.one_of(st.none(), st.integers(0, 2))
RULES = st.lists(
    st.one_of(
        st.builds(DeviceRule, st.booleans()),
        st.builds(
            DeviceRule,
            st.booleans(),
            st.sampled_from("abc"),
            NUMBERS,
            NUMBERS,
            st.sampled_from(["r", "w", "m", "rw", "rwm"]),
        ),
    ),
    max_size=6,
)
DEVICES = [(t, major, minor, letter) for t in "bc" for major in range(4) for minor in range(4) for letter in "rwm"]


def matches(rule: DeviceRule, device: tuple[str, int, int, str]) -> bool:
    type_, major, minor, letter = device
    return (
        rule.type in ("a", type_)
        and rule.major in (None, major)
        and rule.minor in (None, minor)
        and letter in rule.access
    )


def wanted(rules: list[DeviceRule], device: tuple[str, int, int, str]) -> bool:
    """The contract's words: beginning from "deny all", the last rule that matches decides."""
    return next((rule.allow for rule in reversed(rules) if matches(rule, device)), False)


@given(RULES)
def test_the_kernels_form_means_the_same_or_is_refused(rules: list[DeviceRule]) -> None:
    try:
        default, exceptions = compiled(rules)
    except OSError:
        return
    for device in DEVICES:
        excepted = any(
            matches(DeviceRule(True, *pattern, "".join(letters)), device) for pattern, letters in exceptions.items()
        )
        assert (default != excepted) == wanted(rules, device)


@given(st.lists(st.builds(DeviceRule, st.just(True), st.sampled_from("bc"), NUMBERS, NUMBERS), max_size=6))
def test_a_plain_allow_list_is_never_refused(rules: list[DeviceRule]) -> None:
    assert compiled(rules)[0] is False


def test_an_exception_to_an_exception_is_refused_by_name() -> None:
    with pytest.raises(OSError) as caught:
        compiled([DeviceRule(True, "c"), DeviceRule(False, "c", 1, 3, "rw")])
    assert caught.value.strerror == "cgroup v1 cannot deny c 1:3 rw as an exception to c *:* rwm"
    with pytest.raises(OSError) as caught:
        compiled([DeviceRule(True), DeviceRule(False, "b", 8), DeviceRule(True, "b", 8, 1)])
    assert caught.value.strerror == "cgroup v1 cannot allow b 8:1 rwm as an exception to b 8:* rwm"


@pytest.fixture
def group() -> Iterator[str]:
    """A group of the devices hierarchy alone."""
    path = f"/sys/fs/cgroup/devices/transom-test-{os.getpid()}-{random.randrange(1 << 32):08x}"
    if not os.path.exists("/sys/fs/cgroup/devices/devices.list"):
        pytest.skip("the cgroup controller devices is not mounted at /sys/fs/cgroup/devices")
    os.mkdir(path)
    yield path
    os.rmdir(path)


def test_from_any_list_to_any_other_the_kernel_ends_with_what_was_asked(group: str) -> None:
    chance = random.Random(5)
    for _ in range(80):
        rules = [
            DeviceRule(True, chance.choice("bc"), chance.choice([None, 1, 2]), chance.choice([None, 3]), access)
            for access in chance.choices(["r", "w", "rw", "rwm"], k=chance.randrange(5))
        ]
        set_devices(group, rules)
        listed = current(Path(group, "devices.list").read_text())
        assert compiled(listed) == compiled(rules)


def test_the_default_can_be_turned_and_turned_back(group: str) -> None:
    set_devices(group, [DeviceRule(True)])
    assert Path(group, "devices.list").read_text() == "a *:* rwm\n"
    set_devices(group, [DeviceRule(True, "c", 1, 3, "rw")])
    assert Path(group, "devices.list").read_text() == "c 1:3 rw\n"
    set_devices(group, [DeviceRule(True), DeviceRule(False, "c", 1, 7)])
    assert Path(group, "devices.list").read_text() == "a *:* rwm\n"
    set_devices(group, [])
    assert Path(group, "devices.list").read_text() == ""


def test_a_list_can_change_while_groups_are_nested_below(group: str) -> None:
    set_devices(group, [DeviceRule(True, "c", 1, 3)])
    os.mkdir(f"{group}/nested")
    try:
        set_devices(group, [DeviceRule(True, "c", 1, 5)])
        assert Path(group, "nested", "devices.list").read_text() == ""
        assert Path(group, "devices.list").read_text() == "c 1:5 rwm\n"
    finally:
        os.rmdir(f"{group}/nested")
