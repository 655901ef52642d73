"""Sizes, durations and times in the words of Docker's command line."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import ConfigError
from transom_engine.cli.units import (
    SECOND,
    ago,
    binary_size,
    human_duration,
    human_size,
    local_time,
    parse_time,
    rfc3339,
)

NOW = 1_700_000_000 * SECOND


@pytest.fixture
def _vienna(monkeypatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("size", "text"),
    [  # go-units, size_test.go
        (1000, "1kB"),
        (1024, "1.024kB"),
        (1000000, "1MB"),
        (1048576, "1.049MB"),
        (2e6, "2MB"),
        (3.42e9, "3.42GB"),
        (5.372e12, "5.372TB"),
        (2.22e15, "2.22PB"),
        (1e22, "10ZB"),
        (0, "0B"),
        (999, "999B"),
        (1e27, "1000YB"),
    ],
)
def test_sizes_are_decimal_with_four_significant_digits(size, text):
    assert human_size(size) == text


def test_the_size_of_an_image_has_three_digits():
    assert human_size(77_812_345, digits=3) == "77.8MB"
    assert human_size(1_234_567, digits=3) == "1.23MB"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1024, "1KiB"),
        (1024**2, "1MiB"),
        (2 * 1024**2, "2MiB"),
        (3.42 * 1024**3, "3.42GiB"),
        (5.372 * 1024**4, "5.372TiB"),
        (1023, "1023B"),
        (1258291, "1.2MiB"),
    ],
)
def test_stats_are_binary(size, text):
    assert binary_size(size) == text


MINUTE, HOUR, DAY = 60, 3600, 86400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [  # go-units, duration_test.go
        (0.45, "Less than a second"),
        (1, "1 second"),
        (45, "45 seconds"),
        (46, "46 seconds"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (90, "About a minute"),
        (3 * MINUTE, "3 minutes"),
        (35 * MINUTE, "35 minutes"),
        (35 * MINUTE + 40, "35 minutes"),
        (45 * MINUTE, "45 minutes"),
        (45 * MINUTE + 40, "45 minutes"),
        (46 * MINUTE, "46 minutes"),
        (59 * MINUTE, "59 minutes"),
        (HOUR, "About an hour"),
        (HOUR + 29 * MINUTE, "About an hour"),
        (HOUR + 31 * MINUTE, "2 hours"),
        (HOUR + 59 * MINUTE, "2 hours"),
        (3 * HOUR, "3 hours"),
        (3 * HOUR + 29 * MINUTE, "3 hours"),
        (3 * HOUR + 31 * MINUTE, "4 hours"),
        (24 * HOUR, "24 hours"),
        (36 * HOUR, "36 hours"),
        (2 * DAY, "2 days"),
        (7 * DAY, "7 days"),
        (13 * DAY + 5 * HOUR, "13 days"),
        (14 * DAY, "2 weeks"),
        (21 * DAY, "3 weeks"),
        (28 * DAY, "4 weeks"),
        (28 * DAY + 1, "4 weeks"),
        (31 * DAY, "4 weeks"),
        (48 * DAY, "6 weeks"),
        (90 * DAY, "3 months"),
        (365 * DAY, "12 months"),
        (394 * DAY, "13 months"),
        (730 * DAY, "2 years"),
        (1095 * DAY, "3 years"),
    ],
)
def test_durations_are_told_roughly(seconds, text):
    assert human_duration(seconds) == text


def test_ago():
    assert ago(NOW - 70 * SECOND, NOW) == "About a minute ago"


def test_times_are_written_in_utc_without_idle_zeros():
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(NOW + 120_000_000) == "2023-11-14T22:13:20.12Z"
    assert rfc3339(NOW, fixed=True) == "2023-11-14T22:13:20.000000000Z"


@pytest.mark.usefixtures("_vienna")
def test_created_at_is_local_with_zone():
    assert local_time(NOW) == "2023-11-14 23:13:20 +0100 CET"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1700000000", "2023-11-14T22:13:20Z"),
        ("1700000000.000000001", "2023-11-14T22:13:20.000000001Z"),
        ("1700000000.5", "2023-11-14T22:13:20.5Z"),
        ("2006-01-02T15:04:05.123456789Z", "2006-01-02T15:04:05.123456789Z"),
        ("2006-01-02T15:04:05.999-07:00", "2006-01-02T22:04:05.999Z"),
        ("2006-01-02T15:04:05+05:30", "2006-01-02T09:34:05Z"),
        ("2006-01-02T15:04Z", "2006-01-02T15:04:00Z"),
        ("2006-01-02T15Z", "2006-01-02T15:00:00Z"),
        ("2006-01-02Z", "2006-01-02T00:00:00Z"),
        ("2006-07-02+01:00", "2006-07-01T23:00:00Z"),
        ("2006-01-02T15:04:05", "2006-01-02T14:04:05Z"),
        ("2006-07-02T15:04", "2006-07-02T13:04:00Z"),
        ("2006-01-02", "2006-01-01T23:00:00Z"),
        ("10m", "2023-11-14T22:03:20Z"),
        ("1h30m", "2023-11-14T20:43:20Z"),
        ("-1s", "2023-11-14T22:13:21Z"),
        ("0", "1970-01-01T00:00:00Z"),
    ],
)
@pytest.mark.usefixtures("_vienna")
def test_a_moment_is_read_in_every_form(text, expected):
    assert rfc3339(parse_time(text, now=NOW)) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2006-13-01", "2006-01-02T25:00:00Z", "2006-1-2", "5 m"])
def test_what_is_no_moment_is_told(text):
    with pytest.raises(ConfigError) as error:
        parse_time(text, now=NOW, flag="--until")
    assert str(error.value) == (
        f"--until {text!r}: failed to parse value as time or duration; expected 2024-05-06T07:08:09Z, seconds since "
        "the epoch, or a duration such as 10m"
    )


@given(st.integers(0, 4_000_000_000 * SECOND), st.booleans())
def test_what_is_written_is_read_again(moment, fixed):
    assert parse_time(rfc3339(moment, fixed=fixed), now=NOW) == moment
