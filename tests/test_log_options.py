"""Every option of every log driver has an effect: seen here, or in the test that is named here for it."""

import ast
import socket
import threading
import time
from importlib.metadata import entry_points
from pathlib import Path

import msgspec
import pytest

from transom.contract.logging import Chunk, LogContainer, Stream
from transom.errors import DriverError
from transom.services.options import convert
from transom_engine.logs import Delivery

ROOT = Path(__file__).resolve().parent.parent
DRIVERS = {point.name: point.load() for point in entry_points(group="transom.logging")}
FILES = ("json-file", "local")
SINKS = ("fluentd", "gelf", "journald", "syslog")
ATTRIBUTES = {
    "labels": "test_what_is_told_of_a_container_goes_with_its_lines",
    "labels-regex": "test_what_is_told_of_a_container_goes_with_its_lines",
    "env": "test_what_is_told_of_a_container_goes_with_its_lines",
    "env-regex": "test_what_is_told_of_a_container_goes_with_its_lines",
    "tag": "test_what_is_told_of_a_container_goes_with_its_lines",
}
BOUNDS = ATTRIBUTES | dict.fromkeys(
    ("max-size", "max-file", "compress"), "test_files_are_as_large_and_many_as_asked_for"
)
REMOTE = ATTRIBUTES | {
    "spool-max-size": "test_a_bound_drops_the_oldest_lines_counts_them_and_says_where",
    "spool-full": "test_a_full_spool_refuses_where_it_is_told_to",
    "sink-required": "test_a_collector_that_must_be_there_is_named_when_it_is_not",
}
PROOFS = {
    "json-file": BOUNDS,
    "local": BOUNDS,
    "none": {},
    "syslog": REMOTE
    | {
        "syslog-address": "test_good_addresses_are_taken_without_a_connection",
        "syslog-facility": "test_priority_is_facility_and_stream",
        "syslog-format": "test_a_message_has_the_format_and_the_time_of_the_event",
        "syslog-framing": "test_a_stream_has_framed_messages",
        "syslog-tls-ca-cert": "test_a_wrong_certificate_is_refused_and_nothing_is_sent",
        "syslog-tls-cert": "test_tls_with_an_authority_and_a_client_certificate_loses_nothing",
        "syslog-tls-key": "test_tls_with_an_authority_and_a_client_certificate_loses_nothing",
        "syslog-tls-skip-verify": "test_a_wrong_certificate_is_refused_and_nothing_is_sent",
    },
    "fluentd": REMOTE
    | {
        "fluentd-address": "test_good_addresses_are_taken_without_a_connection",
        "fluentd-async": "test_a_collector_without_a_key_is_refused_when_one_is_wanted",
        "fluentd-async-reconnect-interval": "test_the_connection_is_made_anew_as_often_as_asked_for",
        "fluentd-buffer-limit": "test_a_limit_of_lines_drops_the_oldest",
        "fluentd-retry-wait": "test_pauses_between_attempts_and_their_number_are_those_asked_for",
        "fluentd-max-retries": "test_pauses_between_attempts_and_their_number_are_those_asked_for",
        "fluentd-sub-second-precision": "test_times_can_be_whole_seconds",
        "fluentd-request-ack": "test_without_acknowledgements_what_is_sent_is_delivered",
        "fluentd-read-timeout": "test_a_chunk_that_is_not_acknowledged_is_sent_again_under_its_id",
        "fluentd-write-timeout": "test_a_collector_that_takes_nothing_is_given_up_in_time",
        "fluentd-shared-key": "test_both_ends_prove_that_they_know_the_shared_key",
        "fluentd-username": "test_both_ends_prove_that_they_know_the_shared_key",
        "fluentd-password": "test_both_ends_prove_that_they_know_the_shared_key",
        "fluentd-tls-ca-cert": "test_tls_verifies_the_collector",
        "fluentd-tls-cert": "test_tls_shows_a_certificate_to_a_collector_that_is_trusted_unseen",
        "fluentd-tls-key": "test_tls_shows_a_certificate_to_a_collector_that_is_trusted_unseen",
        "fluentd-tls-skip-verify": "test_tls_shows_a_certificate_to_a_collector_that_is_trusted_unseen",
    },
    "gelf": REMOTE
    | {
        "gelf-address": "test_giving_up_drops_what_waits_and_counts_it",
        "gelf-compression-type": "test_long_messages_come_in_chunks_that_join_to_the_compressed_message",
        "gelf-compression-level": "test_a_higher_level_compresses_more",
        "gelf-tcp-max-reconnect": "test_giving_up_drops_what_waits_and_counts_it",
        "gelf-tcp-reconnect-delay": "test_pauses_between_attempts_and_their_number_are_those_asked_for",
    },
    "journald": REMOTE | {"journald-address": "test_entries_have_dockers_fields_and_the_bytes_of_the_line"},
}
"""By driver and option, the test in which the option has its effect."""
ENGINE = {
    "mode": "test_a_log_driver_that_hangs_costs_neither_the_other_nor_stop_nor_inspect",
    "max-buffer-size": "test_a_log_driver_that_hangs_costs_neither_the_other_nor_stop_nor_inspect",
    "on-error": "test_a_full_disk_stops_the_container_where_its_options_say_so",
} | dict.fromkeys(
    ("cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"),
    "test_the_cache_is_bounded_and_can_be_left_out",
)
"""The same for the options that every driver has of the engine."""


def test_every_option_has_a_test_that_speaks_of_it():
    """Case O61. The test stands here, in the driver's folder or in the suite, and has the option's name in it."""
    wrong = amiss("the engine", Delivery, ENGINE, ROOT / "engine/tests/cli/test_log_drivers.py", FAULTS)
    for name, driver in DRIVERS.items():
        own = (ROOT / "plugins/logging" / name / "tests").glob("*.py")
        wrong += amiss(name, driver.Options, PROOFS.get(name, {}), Path(__file__), *own, *SUITE)
    assert wrong == []


FAULTS = ROOT / "tests/test_log_faults.py"
SUITE = sorted((ROOT / "conformance/src/transom_conformance/logging").glob("*.py"))


def amiss(who, struct, proofs, *paths):
    """Say which options have no test, and which tests are not there or do not speak of their option."""
    options = {field.encode_name for field in msgspec.structs.fields(struct)}
    wrong = [f"{who}: no test is named for {option}" for option in options - proofs.keys()]
    wrong += [f"{who}: there is no option {option}" for option in proofs.keys() - options]
    known = code_of(*paths)
    for option, test in proofs.items():
        code = known.get(test, "")
        if option not in code and option.replace("-", "_") not in code:
            wrong.append(f"{who}: {test} does not speak of {option}")
    return wrong


def code_of(*paths):
    """Return the code of each test in those files with its decorators, by name."""
    found = {}
    for path in paths:
        code = path.read_text()
        lines = code.splitlines()
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                found[node.name] = "\n".join(lines[first - 1 : node.end_lineno])
    return found


# What goes out


class Sink:
    """A collector that keeps every byte it gets and answers nothing."""

    def __init__(self, driver, directory):
        self.bytes = bytearray()
        if driver == "journald":
            path = directory / "socket"
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.bind(str(path))
            self.address = f"unixgram://{path}"
        else:
            self._socket = socket.create_server(("127.0.0.1", 0))
            self.address = f"tcp://127.0.0.1:{self._socket.getsockname()[1]}"
        self._socket.settimeout(60)
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self):
        try:
            if self._socket.family == socket.AF_UNIX:
                while True:
                    self.bytes += self._socket.recv(1 << 16)
            peer, _ = self._socket.accept()
            with peer:
                while data := peer.recv(1 << 16):
                    self.bytes += data
        except OSError:
            pass  # closed

    def close(self):
        self._socket.close()


def opened(driver, directory, options, **facts):
    kind = DRIVERS[driver]
    made = kind(options=convert(driver=kind, options=options, where="--log-opt"), root=Path("/x"), run=Path("/x"))
    found = {"id": "c0ffee" * 10, "name": "web", "hostname": "host", "directory": str(directory), **facts}
    return made.open(container=LogContainer(**found))


def closed_address():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        return f"tcp://127.0.0.1:{closed.getsockname()[1]}"


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def written(driver, directory, options, **facts):
    """Write a line; return the bytes that left the driver."""
    directory.mkdir()
    if driver in FILES:
        writer = opened(driver, directory, options, **facts)
        writer.write([Chunk(Stream.STDOUT, 1, b"the line\n")])
        writer.close(timeout=10)
        return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    sink = Sink(driver, directory)
    more = {"fluentd-request-ack": "false"} if driver == "fluentd" else {}
    writer = opened(driver, directory, {f"{driver}-address": sink.address, **more, **options}, **facts)
    writer.write([Chunk(Stream.STDOUT, 1, b"the line\n")])
    until(lambda: b"the line" in sink.bytes)
    writer.close(timeout=10)
    sink.close()
    return bytes(sink.bytes)


@pytest.mark.parametrize("driver", FILES + SINKS)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("labels", "one"),
        ("labels-regex", "^on"),
        ("env", "two"),
        ("env-regex", "^tw"),
        ("tag", "{{.Name}}-it5elf"),
    ],
)
def test_what_is_told_of_a_container_goes_with_its_lines(tmp_path, driver, option, value):
    facts = {"labels": {"one": "it5elf", "other": "0ther"}, "env": {"two": "it5elf", "more": "0ther"}}
    options = {option: value}
    if driver == "syslog" and option != "tag":  # its messages have no fields: the tag asks for what it wants
        options["tag"] = "{{.ExtraAttributes}}"
    bare = {name: text for name, text in options.items() if name != option}
    assert b"it5elf" not in written(driver, tmp_path / "without", bare, **facts)
    found = written(driver, tmp_path / "with", options, **facts)
    assert b"it5elf" in found
    assert b"0ther" not in found


@pytest.mark.parametrize("driver", FILES)
def test_files_are_as_large_and_many_as_asked_for(tmp_path, driver):
    found = {}
    for number, options in enumerate(
        (
            {"compress": "false"},
            {"max-size": "2k", "max-file": "3", "compress": "false"},
            {"max-size": "8k", "max-file": "3", "compress": "false"},
            {"max-size": "2k", "max-file": "5", "compress": "false"},
            {"max-size": "2k", "max-file": "3", "compress": "true"},
        )
    ):
        directory = tmp_path / str(number)
        directory.mkdir()
        writer = opened(driver, directory, options)
        for _ in range(200):
            writer.write([Chunk(Stream.STDOUT, 1, b"x" * 99 + b"\n")])
        writer.close(timeout=30)
        paths = [path for path in directory.rglob("*") if path.is_file()]
        found[number] = (
            len(paths),
            max(path.stat().st_size for path in paths) // 1000,
            sum(path.suffix == ".gz" for path in paths),
        )
    assert found[0][0] == 1
    assert found[0][1] >= 20
    assert found[1] == (3, 2, 0)
    assert found[2] == (3, 8, 0)
    assert found[3] == (5, 2, 0)
    assert (found[4][0], found[4][2]) == (3, 2)


@pytest.mark.parametrize("driver", SINKS)
def test_a_full_spool_refuses_where_it_is_told_to(tmp_path, driver):
    address = f"unixgram://{tmp_path}/none" if driver == "journald" else closed_address()
    batch = [Chunk(Stream.STDOUT, 1, b"x" * 16_000 + b"\n") for _ in range(64)]
    options = {f"{driver}-address": address, "spool-max-size": "8m"}
    for full in ("drop-oldest", "refuse"):
        directory = tmp_path / full
        directory.mkdir()
        writer = opened(driver, directory, {**options, "spool-full": full})
        refused = 0
        for _ in range(12):
            try:
                writer.write(batch)
            except DriverError:
                refused += 1
        assert (refused > 0, writer.stats().dropped > 0) == (full == "refuse", full == "drop-oldest")
        writer.close(timeout=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"fluentd-retry-wait": "2s", "fluentd-max-retries": "1"},
        {"gelf-tcp-reconnect-delay": "2", "gelf-tcp-max-reconnect": "1"},
    ],
    ids=["fluentd", "gelf"],
)
def test_pauses_between_attempts_and_their_number_are_those_asked_for(tmp_path, options):
    driver = next(iter(options)).partition("-")[0]
    writer = opened(driver, tmp_path, {f"{driver}-address": closed_address(), **options})
    began = time.monotonic()
    writer.write([Chunk(Stream.STDOUT, 1, b"one\ntwo\n")])
    until(lambda: writer.stats().dropped == 2)
    assert time.monotonic() - began >= 2
    writer.close(timeout=0.1)
