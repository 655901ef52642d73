"""Options: from the words of a user to a driver's typed structure, and back into help."""

from __future__ import annotations

import enum
import ipaddress
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.contract import Driver, NoOptions
from transom.errors import ConfigError
from transom.services.options import (
    LARGEST,
    DecimalSize,
    Duration,
    OptionDoc,
    Size,
    convert,
    describe,
    parse_bool,
    parse_duration,
    parse_size,
)


class Facility(enum.StrEnum):
    DAEMON = "daemon"
    MAIL = "mail"


class Options(msgspec.Struct, frozen=True, rename="kebab"):
    max_size: DecimalSize | None = None
    buffer: Annotated[Size, msgspec.Meta(ge=1024)] = 1 << 20
    retry_wait: Duration = 1.5
    max_file: Annotated[int, msgspec.Meta(ge=1, le=9)] = 1
    ratio: float = 0.5
    compress: bool = False
    mode: Literal["blocking", "non-blocking"] = "blocking"
    facility: Facility = Facility.DAEMON
    labels: tuple[str, ...] = ()
    sizes: list[Size] = []
    streams: frozenset[str] = frozenset({"stdout", "stderr"})
    host_ip: ipaddress.IPv4Address | None = None
    bridge_name: Annotated[str, msgspec.Meta(pattern="^[a-z]+$")] | None = msgspec.field(
        default=None, name="com.docker.network.bridge.name"
    )

    def __post_init__(self) -> None:
        if self.compress and self.max_file < 2:
            raise ValueError("compress=true needs max-file of 2 or more")


class Recorder(Driver):
    kind = "logging"
    name = "recorder"
    Options = Options


def converted(**options):
    return convert(driver=Recorder, options={k.replace("_", "-"): v for k, v in options.items()}, where="--log-opt")


def refusal(name, text, **more):
    with pytest.raises(ConfigError) as error:
        convert(driver=Recorder, options={name: text}, where="--log-opt", **more)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("max-size", "10m", "max_size", 10_000_000),
        ("buffer", "10m", "buffer", 10 << 20),
        ("retry-wait", "1m30s", "retry_wait", 90.0),
        ("max-file", "3", "max_file", 3),
        ("ratio", "0.25", "ratio", 0.25),
        ("mode", "non-blocking", "mode", "non-blocking"),
        ("facility", "mail", "facility", Facility.MAIL),
        ("labels", "a, b,c", "labels", ("a", "b", "c")),
        ("labels", "", "labels", ()),
        ("sizes", "1k,2m", "sizes", [1024, 2 << 20]),
        ("streams", "stderr", "streams", frozenset({"stderr"})),
        ("host-ip", "127.0.0.1", "host_ip", ipaddress.IPv4Address("127.0.0.1")),
        ("com.docker.network.bridge.name", "br", "bridge_name", "br"),
    ],
)
def test_a_text_becomes_a_value_of_the_type_of_its_field(name, text, field, value):
    options = convert(driver=Recorder, options={name: text}, where="--log-opt")
    assert getattr(options, field) == value
    assert type(getattr(options, field)) is type(value)


def test_without_options_every_field_has_its_default():
    assert converted() == Options()


@pytest.mark.parametrize("text", ["true", "True", "1", "yes", "t"])
def test_words_for_true(text):
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["false", "FALSE", "0", "no", "f"])
def test_words_for_false(text):
    assert parse_bool(text) is False


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("max-size", "abc", "a size such as 10m"),
        ("max-size", "-1", "a size such as 10m"),
        ("buffer", "10", "a size such as 10m, at least 1k"),
        ("retry-wait", "5", "a duration such as 10s"),
        ("retry-wait", "-5s", "a duration such as 10s"),
        ("max-file", "0", "a whole number, at least 1, at most 9"),
        ("max-file", "two", "a whole number, at least 1, at most 9"),
        ("ratio", "half", "a number"),
        ("compress", "maybe", "true or false"),
        ("mode", "sometimes", "one of blocking, non-blocking"),
        ("facility", "kern", "one of daemon, mail"),
        ("sizes", "1k,x", "a list, separated by commas, each a size such as 10m"),
        ("host-ip", "localhost", "a value of type IPv4Address"),
        ("host-ip", "null", "a value of type IPv4Address"),
        ("com.docker.network.bridge.name", "BR", "a text that matches ^[a-z]+$"),
    ],
)
def test_a_bad_value_names_driver_option_value_place_and_what_is_allowed(name, text, expected):
    assert refusal(name, text) == f"logging driver recorder: {name}={text!r} (from --log-opt): expected {expected}"


def test_an_unknown_option_names_the_nearest_and_all_known():
    assert refusal("maxsize", "1m") == (
        "logging driver recorder has no option 'maxsize' (from --log-opt) (did you mean max-size?); it knows: "
        "buffer, com.docker.network.bridge.name, compress, facility, host-ip, labels, max-file, max-size, mode, "
        "ratio, retry-wait, sizes, streams"
    )


def test_a_driver_without_options_says_so():
    assert refusal("x", "1", struct=NoOptions) == (
        "logging driver recorder has no option 'x' (from --log-opt); it has no options"
    )


def test_a_rule_across_fields_is_told_in_the_words_of_the_driver():
    assert refusal("compress", "true") == (
        "logging driver recorder (from --log-opt): compress=true needs max-file of 2 or more"
    )


def test_a_missing_required_option_is_named():
    class Parent(msgspec.Struct, frozen=True):
        parent: str

    with pytest.raises(ConfigError) as error:
        convert(driver=Recorder, options={}, struct=Parent, where="network create --opt")
    assert str(error.value) == ("logging driver recorder needs the option 'parent' (missing from network create --opt)")
    assert convert(driver=Recorder, options={"parent": "eth0"}, struct=Parent, where="x") == Parent(parent="eth0")


def test_options_are_described_in_the_order_and_words_of_the_user():
    docs = {doc.name: doc for doc in describe(Options, {"max_size": "Rotate at this size."})}
    assert list(docs)[:3] == ["max-size", "buffer", "retry-wait"]
    assert docs["max-size"] == OptionDoc("max-size", "a size such as 10m", "", "Rotate at this size.")
    assert docs["buffer"].default == "1m"
    assert docs["retry-wait"].default == "1.5s"
    assert docs["compress"].default == "false"
    assert docs["facility"].default == "daemon"
    assert docs["streams"].default == "stderr,stdout"
    assert docs["com.docker.network.bridge.name"].default == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [  # go-units, size_test.go
        ("32", 32),
        ("32b", 32),
        ("32B", 32),
        ("32k", 32 << 10),
        ("32K", 32 << 10),
        ("32kb", 32 << 10),
        ("32Kb", 32 << 10),
        ("32KiB", 32 << 10),
        ("32Mb", 32 << 20),
        ("32Gb", 32 << 30),
        ("32Tb", 32 << 40),
        ("32Pb", 32 << 50),
        ("32.3", 32),
        ("32.5kB", int(32.5 * 1024)),
        ("0", 0),
        ("0.", 0),
        ("0 B", 0),
        (".3kB", 307),
        ("32 mb", 32 << 20),
    ],
)
def test_binary_sizes_are_read_as_docker_reads_them(text, value):
    assert parse_size(text) == value


@pytest.mark.parametrize(
    "text", ["", "hello", ".", " ", "-32", "32z", "32  k", "32ib", "k", "1.2.3", "9999999p", "9" * 400 + ".5"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError):
        parse_size(text)


def test_decimal_sizes_count_in_thousands():
    assert parse_size("10m", unit=1000) == 10_000_000
    assert parse_size("1.5kB", unit=1000) == 1500


@given(st.integers(0, LARGEST))
def test_a_size_in_bytes_is_exact(size):
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [  # Go, time/time_test.go
        ("0", 0),
        ("5s", 5),
        ("30s", 30),
        ("1478s", 1478),
        ("-5s", -5),
        ("+5s", 5),
        ("-0", 0),
        ("5.0s", 5),
        ("5.6s", 5.6),
        ("5.s", 5),
        (".5s", 0.5),
        ("10ns", 1e-8),
        ("11us", 11e-6),
        ("12µs", 12e-6),
        ("12μs", 12e-6),
        ("13ms", 0.013),
        ("14s", 14),
        ("15m", 900),
        ("16h", 57600),
        ("3h30m", 12600),
        ("10.5s4m", 250.5),
        ("-2m3.4s", -123.4),
        ("1h2m3s4ms5us6ns", 3723.004005006),
        ("39h9m14.425s", 140954.425),
    ],
)
def test_durations_are_read_as_go_reads_them(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "3", "-", "s", ".", "-.", ".s", "+.s", "3000y", "1d", "5 s", "s5", "--5s", "9" * 400 + "s", "2562048h"]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError):
        parse_duration(text)
