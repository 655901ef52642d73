"""The fault harness itself: it lists what an operation does, and kills or fails it exactly there."""

import errno
import os
import threading

import pytest

from transom.errors import ConfigError
from transom_conformance import faults


@pytest.fixture
def place(tmp_path):
    if reason := faults.needs_strace():
        pytest.skip(reason)
    return tmp_path


def make_three(place):
    for name in "abc":
        os.mkdir(place / name)
    os.rename(place / "c", place / "d")


def test_what_touches_a_place_is_listed_in_its_order_with_its_number(place):
    def operation():
        os.mkdir(place.parent / f"{os.getpid()}")
        os.rmdir(place.parent / f"{os.getpid()}")
        make_three(place)

    calls = faults.system_calls(operation, touching=[place])
    assert [(call.name, call.number) for call in calls] == [("mkdir", 2), ("mkdir", 3), ("mkdir", 4), ("rename", 1)]
    assert all(str(place) in call.text for call in calls)


def test_a_process_is_killed_before_the_call_has_any_effect(place):
    calls = faults.system_calls(lambda: make_three(place), touching=[place])
    for call, left in zip(calls, ([], ["a"], ["a", "b"], ["a", "b", "c"]), strict=True):
        for name in os.listdir(place):
            os.rmdir(place / name)
        assert faults.killed_before(lambda: make_three(place), call)
        assert sorted(os.listdir(place)) == left
    never = faults.SystemCall(name="mkdir", number=99, text="mkdir")
    assert not faults.killed_before(lambda: None, never)


def test_a_call_fails_once_and_what_was_raised_is_told(place):
    (call,) = faults.system_calls(lambda: os.mkdir(place / "x"), touching=[place])

    def operation():
        try:
            os.mkdir(place / "y")
        except OSError as error:
            raise ConfigError(f"no {error.filename}") from error

    outcome = faults.failed_at(operation, call, errno.ENOSPC)
    assert outcome == faults.Outcome(reached=True, error=f"no {place / 'y'}", in_words=True)
    outcome = faults.failed_at(lambda: os.mkdir(place / "y"), call, errno.EBUSY)
    assert (outcome.reached, outcome.in_words) == (True, False)
    assert "Device or resource busy" in outcome.error
    assert os.listdir(place) == ["x"]
    assert faults.failed_at(lambda: None, call, errno.EIO) == faults.Outcome(reached=False, error="", in_words=False)


def test_calls_of_threads_and_of_other_programs_are_seen(place):
    def operation():
        thread = threading.Thread(target=os.mkdir, args=(place / "by-thread",))
        thread.start()
        thread.join()
        os.spawnvp(os.P_WAIT, "mkdir", ["mkdir", str(place / "by-program")])

    calls = faults.system_calls(operation, touching=[place])
    assert [call.text.partition('"')[2].partition('"')[0].rpartition("/")[2] for call in calls] == [
        "by-thread", "by-program",
    ]  # fmt: skip


def test_an_operation_that_fails_by_itself_is_no_base_for_faults(place):
    with pytest.raises(AssertionError, match="failed in the child"):
        faults.system_calls(lambda: os.mkdir(place))


def test_a_sample_is_the_same_for_a_seed_and_keeps_order_and_ends():
    calls = [faults.SystemCall(name="write", number=n, text="") for n in range(100)]
    chosen = faults.sample(calls, 10, seed=3)
    assert chosen == faults.sample(calls, 10, seed=3) != faults.sample(calls, 10, seed=4)
    assert chosen == sorted(chosen, key=lambda call: call.number)
    assert (len(chosen), chosen[0], chosen[-1]) == (10, calls[0], calls[-1])
    assert faults.sample(calls[:5], 10) == calls[:5]
