"""What journald promises beyond its contract: the fields of an entry as journalctl shows them, and large ones."""

import json
import subprocess
import time

import pytest

from transom.contract.logging import Chunk, Partial, Stream
from transom.errors import ConfigError
from transom_conformance.logging.collector import Collector
from transom_conformance.logging.direct import Direct, container
from transom_conformance.suite import World
from transom_logging_journald import Journald
from transom_logging_journald.examples import EXAMPLES
from transom_logging_journald.native import field_name

OUT, ERR = Stream.STDOUT, Stream.STDERR
AT = 1_795_462_080_072_535_290
driver = Direct(Journald).driver


@pytest.fixture
def world(tmp_path):
    world = World(path=tmp_path, kind="logging", driver="journald", options={})
    yield world
    world.clean_up()


def entries(sink, wanted):
    """Wait for so many entries of the container; return what journalctl shows of them."""
    words = ["journalctl", "-D", f"{sink.directory}/run/log/journal", "-o", "json", "--all", "CONTAINER_NAME=web"]
    end = time.monotonic() + 60
    while True:
        shown = subprocess.run(words, capture_output=True, text=True, check=False).stdout
        found = [json.loads(line) for line in shown.splitlines()]
        if len(found) >= wanted:
            return found
        assert time.monotonic() < end, f"{len(found)} of {wanted} entries"
        time.sleep(0.1)


def text(entry):
    message = entry["MESSAGE"]
    return message.encode() if isinstance(message, str) else bytes(message)


def test_entries_have_dockers_fields_and_the_bytes_of_the_line(world):
    sink = Collector(world, EXAMPLES["collector"])
    sink.start()
    found = container(world.path, image_name="busybox", labels={"app.name": "shop\ntwo", "_9": "x"})
    writer = driver(
        journald_address=sink.options["journald-address"], tag="{{.Name}}/{{.ID}}", labels="app.name,_9"
    ).open(container=found)
    large = b"x" * 300_000
    writer.write(
        [
            Chunk(OUT, AT, b"hello\n\xff\x00\x1b\n"),
            Chunk(ERR, AT, b"f" * 16384, partial=Partial(id="ab", ordinal=1, last=False)),
            Chunk(ERR, AT, b"end\n", partial=Partial(id="ab", ordinal=2, last=True)),
            Chunk(OUT, AT, large + b"\n"),
        ]
    )
    shown = entries(sink, 5)
    writer.close(timeout=10)
    assert [text(entry) for entry in shown] == [b"hello", b"\xff\x00\x1b", b"f" * 16384, b"end", large]
    assert [entry["PRIORITY"] for entry in shown] == ["6", "6", "3", "3", "6"]
    want = {
        "CONTAINER_ID": "c0ffeec0ffee",
        "CONTAINER_ID_FULL": "c0ffee" * 10,
        "CONTAINER_NAME": "web",
        "CONTAINER_TAG": "web/c0ffeec0ffee",
        "SYSLOG_IDENTIFIER": "web/c0ffeec0ffee",
        "IMAGE_NAME": "busybox",
        "APP_NAME": "shop\ntwo",
        "SYSLOG_TIMESTAMP": "2026-11-23T19:28:00.072535290Z",
    }
    assert [{name: entry.get(name) for name in want} for entry in shown] == [want] * 5
    parts = [name for name in shown[2] if name.startswith("CONTAINER_PARTIAL")]
    assert {name: shown[2][name] for name in parts} == {
        "CONTAINER_PARTIAL_MESSAGE": "true",
        "CONTAINER_PARTIAL_ID": "ab",
        "CONTAINER_PARTIAL_ORDINAL": "1",
        "CONTAINER_PARTIAL_LAST": "false",
    }
    assert shown[3]["CONTAINER_PARTIAL_LAST"] == "true"


@pytest.mark.parametrize(("name", "want"), [("app.name", "APP_NAME"), ("_9", ""), ("ä-b1", "B1"), ("x" * 70, "X" * 64)])
def test_names_of_fields_are_what_the_journal_takes(name, want):
    assert field_name(name) == want


def test_a_bad_address_is_refused_by_name():
    with pytest.raises(ConfigError) as caught:
        driver(journald_address="/run/x")
    assert str(caught.value) == (
        "logging driver journald (from --log-opt): journald-address='/run/x': "
        "expected scheme://address, with a scheme of unixgram"
    )


def test_a_journal_that_is_not_there_is_named(tmp_path):
    found = driver(journald_address=f"unixgram://{tmp_path}/socket").probe()
    assert (found.usable, found.reason) == (
        True,
        f"no journal listens on {tmp_path}/socket: lines wait until systemd-journald is started",
    )
