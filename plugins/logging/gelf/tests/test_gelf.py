"""What gelf promises beyond its contract: messages, compression, chunks, options."""

import gzip
import json
import os
import socket
import zlib

import pytest

from transom.contract.logging import Chunk, Stream
from transom.errors import ConfigError
from transom_conformance.logging.direct import Direct, container
from transom_logging_gelf import Gelf

OUT, ERR = Stream.STDOUT, Stream.STDERR
AT = 1_795_462_080_072_535_290
driver = Direct(Gelf).driver
FACTS = {
    "image_id": "sha256:abc",
    "image_name": "busybox",
    "command": ("echo", "hello"),
    "created": AT,
    "labels": {"app": "shop", "a b": "x"},
}


@pytest.fixture
def receiver():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        found.settimeout(30)
        yield found


def sent(tmp_path, receiver, chunks, **options):
    """Send, and return all datagrams of each message."""
    address = f"udp://127.0.0.1:{receiver.getsockname()[1]}"
    writer = driver(gelf_address=address, **options).open(container=container(tmp_path, **FACTS))
    writer.write(chunks)
    assert writer.flush(timeout=30)
    writer.close(timeout=10)
    found = []
    receiver.settimeout(0.2)
    while True:
        try:
            found.append(receiver.recv(1 << 16))
        except TimeoutError:
            return found


def test_a_message_has_dockers_fields_and_the_time_of_the_event(tmp_path, receiver):
    found = sent(
        tmp_path, receiver, [Chunk(OUT, AT, b'a "b" \xff\xe2\x82\xac\n'), Chunk(ERR, AT, b"e\n")], labels="app,a b"
    )
    first, second = (json.loads(gzip.decompress(data)) for data in found)
    assert first == {
        "version": "1.1",
        "host": "host",
        "short_message": 'a "b" \ufffd\u20ac',
        "timestamp": 1795462080.072,
        "level": 6,
        "_container_id": "c0ffee" * 10,
        "_container_name": "web",
        "_image_id": "sha256:abc",
        "_image_name": "busybox",
        "_command": "echo hello",
        "_tag": "c0ffeec0ffee",
        "_created": "2026-11-23T19:28:00.072Z",
        "_app": "shop",
        "_a_b": "x",
    }
    assert (second["level"], second["short_message"]) == (3, "e")


@pytest.mark.parametrize(
    ("kind", "unpack"), [("gzip", gzip.decompress), ("zlib", zlib.decompress), ("none", lambda data: data)]
)
@pytest.mark.parametrize("size", [10, 16_384])
def test_long_messages_come_in_chunks_that_join_to_the_compressed_message(tmp_path, receiver, kind, unpack, size):
    text = os.urandom(size // 2).hex()
    found = sent(tmp_path, receiver, [Chunk(OUT, AT, text.encode() + b"\n")], gelf_compression_type=kind)
    assert max(map(len, found)) <= 1420
    if size > 10:
        assert {data[:2] for data in found} == {b"\x1e\x0f"}
        assert len({data[2:10] for data in found}) == 1
        assert [data[10:12] for data in found] == [bytes((i, len(found))) for i in range(len(found))]
        found = [b"".join(data[12:] for data in found)]
    assert [json.loads(unpack(data))["short_message"] for data in found] == [text]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "gelf-address is missing; expected udp://host:port or tcp://host:port"),
        (
            {"gelf_address": "http://h"},
            "gelf-address='http://h': unsupported scheme 'http'; expected one of tcp, udp",
        ),
        (
            {"gelf_address": "tcp://h", "gelf_compression_type": "gzip"},
            "gelf-compression-type needs a gelf-address that begins with udp://",
        ),
        (
            {"gelf_address": "udp://h", "gelf_tcp_max_reconnect": "3"},
            "gelf-tcp-max-reconnect needs a gelf-address that begins with tcp://",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_value_is_refused_by_name(options, text):
    with pytest.raises(ConfigError) as caught:
        driver(**options)
    assert str(caught.value) == f"logging driver gelf (from --log-opt): {text}"


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("gelf_compression_type", "bzip2", "one of gzip, none, zlib"),
        ("gelf_compression_level", "10", "a whole number, at least -1, at most 9"),
        ("gelf_tcp_max_reconnect", "x", "a whole number, at least 0"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(option, value, text):
    with pytest.raises(ConfigError) as caught:
        driver(gelf_address="udp://h", **{option: value})
    assert str(caught.value).endswith(f"{option.replace('_', '-')}={value!r} (from --log-opt): expected {text}")


def test_a_higher_level_compresses_more(tmp_path, receiver):
    chunks = [Chunk(OUT, AT, b"all the same " * 500 + b"\n")]
    plain, packed = (
        sum(map(len, sent(tmp_path, receiver, chunks, gelf_compression_level=level))) for level in ("0", "9")
    )
    assert plain > 6500
    assert packed < 1000


def test_giving_up_drops_what_waits_and_counts_it(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = {
        "gelf_address": f"tcp://127.0.0.1:{port}",
        "gelf_tcp_max_reconnect": "2",
        "gelf_tcp_reconnect_delay": "0",
    }
    writer = driver(**options).open(container=container(tmp_path, **FACTS))
    writer.write([Chunk(OUT, AT, b"one\ntwo\n")])
    assert writer.flush(timeout=30)
    stats = writer.stats()
    assert (stats.taken, stats.delivered, stats.dropped) == (2, 0, 2)
    assert "Connection refused" in writer.problem
    writer.close(timeout=1)
