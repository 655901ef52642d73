"""What fluentd promises beyond its contract: records, authentication, TLS, acknowledgements, options."""

import json
import socket
import ssl
import subprocess
import threading
import time

import msgpack
import pytest

from transom.contract.logging import Chunk, Partial, Stream
from transom.errors import ConfigError, DriverError
from transom_conformance.logging.collector import Collector
from transom_conformance.logging.direct import Direct, container
from transom_conformance.suite import World
from transom_logging_fluentd import Fluentd
from transom_logging_fluentd.examples import EXAMPLES

OUT, ERR = Stream.STDOUT, Stream.STDERR
AT = 1_795_462_080_072_535_290
driver = Direct(Fluentd).driver
LISTEN = {"host": "127.0.0.1", "port": "@PORT@"}
SECURITY = {"serverHostname": "collector", "sharedKey": "secret", "authorize": False, "userDict": {}}


@pytest.fixture
def world(tmp_path):
    world = World(path=tmp_path, kind="logging", driver="fluentd", options={})
    yield world
    world.clean_up()


def server(world, *, listen=LISTEN, address="tcp://127.0.0.1:@PORT@", **settings):
    """Start the collector with settings of its library."""
    text = json.dumps({"listenOptions": listen, "records": True, **settings}).replace('"@PORT@"', "@PORT@")
    base = EXAMPLES["collector"]
    more = {"files": {**base["files"], "options.json": text}, "options": {"fluentd-address": address}}
    if "path" in listen:
        more["socket"] = listen["path"]
    sink = Collector(world, {**base, **more})
    sink.start()
    return sink


def opened(world, sink, facts=None, **options):
    options = {"fluentd_address": sink.options["fluentd-address"], "fluentd_retry_wait": "100ms", **options}
    writer = driver(**options).open(container=container(world.path, **(facts or {})))
    world.defer(writer.close, timeout=1)
    return writer


def records(sink):
    return [json.loads(line) for line in (sink.directory / "records").read_text().splitlines()]


def test_a_record_has_dockers_fields_and_the_time_of_the_event(world):
    sink = server(world)
    facts = {"labels": {"app": "shop"}, "env": {"LEVEL": "3"}}
    writer = opened(world, sink, facts, tag="app.{{.Name}}", labels="app", env="LEVEL")
    long = b"\xc3\xa4" * 8192
    writer.write(
        [
            Chunk(OUT, AT, b"one\n\n"),
            Chunk(ERR, AT + 1, long, partial=Partial(id="ab", ordinal=1, last=False)),
            Chunk(ERR, AT + 1, b"end\n", partial=Partial(id="ab", ordinal=2, last=True)),
            Chunk(OUT, AT + 2, b"no newline"),
        ]
    )
    assert writer.flush(timeout=30), writer.problem
    common = {"app": "shop", "LEVEL": "3", "container_id": "c0ffee" * 10, "container_name": "/web"}
    part = {"partial_message": "true", "partial_id": "ab"}
    found = records(sink)
    assert [record for _, _, record in found] == [
        {**common, "source": "stdout", "log": "one"},
        {**common, "source": "stdout", "log": ""},
        {**common, **part, "partial_ordinal": "1", "partial_last": "false", "source": "stderr", "log": long.decode()},
        {**common, **part, "partial_ordinal": "2", "partial_last": "true", "source": "stderr", "log": "end"},
        {**common, "source": "stdout", "log": "no newline"},
    ]
    assert {tag for tag, _, _ in found} == {"app.web"}
    times = [time for _, time, _ in found]
    assert {(time["_epoch"], time["_nano"]) for time in times[:2]} == {(1795462080, 72535290)}


def test_times_can_be_whole_seconds(world):
    sink = server(world)
    writer = opened(world, sink, fluentd_sub_second_precision="false")
    writer.write([Chunk(OUT, AT, b"x\n")])
    assert writer.flush(timeout=30), writer.problem
    assert [time for _, time, _ in records(sink)] == [1795462080]


@pytest.mark.parametrize("user", [{}, {"fluentd_username": "me", "fluentd_password": "open"}], ids=["key", "user"])
def test_both_ends_prove_that_they_know_the_shared_key(world, user):
    security = {**SECURITY, "authorize": bool(user), "userDict": {"me": "open"}}
    sink = server(world, security=security)
    writer = opened(world, sink, fluentd_shared_key="secret", **user)
    writer.write([Chunk(OUT, AT, b"hello\n")])
    assert writer.flush(timeout=30), writer.problem
    assert sink.wait(b"hello") == [b"hello"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"fluentd_shared_key": "wrong"}, "the collector refuses the shared key, or the user: "),
        ({}, "the collector wants a shared key: set fluentd-shared-key"),
    ],
    ids=["wrong", "none"],
)
def test_a_wrong_key_is_named_and_nothing_is_lost(world, options, reason):
    sink = server(world, security=SECURITY)
    writer = opened(world, sink, **options)
    writer.write([Chunk(OUT, AT, b"hello\n")])
    end = time.monotonic() + 60
    while reason not in writer.problem and time.monotonic() < end:
        time.sleep(0.02)
    assert reason in writer.problem
    writer.close(timeout=1)
    assert not sink.lines()
    again = opened(world, sink, fluentd_shared_key="secret")
    assert again.flush(timeout=30), again.problem
    assert sink.wait(b"hello") == [b"hello"]


def test_a_collector_without_a_key_is_refused_when_one_is_wanted(world):
    with socket.create_server(("127.0.0.1", 0)) as fake:
        address = f"tcp://127.0.0.1:{fake.getsockname()[1]}"

        def answer():
            peer, _ = fake.accept()
            with peer:
                peer.sendall(msgpack.packb(["HELO", {"nonce": b"n", "auth": b"", "keepalive": True}]))
                peer.recv(4096)
                peer.sendall(msgpack.packb(["PONG", True, "", "collector", "0" * 128]))

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DriverError) as caught:
            driver(fluentd_address=address, fluentd_shared_key="secret", fluentd_async="false").open(
                container=container(world.path)
            )
        thread.join()
    assert str(caught.value) == (
        f"logging fluentd: open {address} failed: the collector does not know the shared key; "
        "start the collector, or let the container start without it"
    )


def test_a_unix_socket_serves(world):
    path = str(world.path / "s")
    sink = server(world, listen={"path": path}, address=f"unix://{path}")
    writer = opened(world, sink)
    writer.write([Chunk(OUT, AT, b"hello\n")])
    assert writer.flush(timeout=30), writer.problem
    assert sink.wait(b"hello") == [b"hello"]


def test_tls_verifies_the_collector(world):
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out cert -days 30 -subj /CN=x"
    words = [*words.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(["openssl", *words], cwd=world.path, check=True, capture_output=True)
    files = {"key": f"{world.path}/key", "cert": f"{world.path}/cert"}
    sink = server(world, address="tls://127.0.0.1:@PORT@", tlsOptions=files)
    writer = opened(world, sink)
    writer.write([Chunk(OUT, AT, b"hello\n")])
    assert not writer.flush(timeout=0.5)
    writer.close(timeout=0.2)
    assert "certificate verify failed" in writer.problem
    trusting = opened(world, sink, fluentd_tls_ca_cert=files["cert"])
    assert trusting.flush(timeout=30), trusting.problem
    assert sink.wait(b"hello") == [b"hello"]


def chunks_of(peer, unpacker):
    """Read one message; return the id of its chunk and its entries."""
    while True:
        for message in unpacker:
            return message[2]["chunk"], message[1]
        unpacker.feed(peer.recv(1 << 20))


def test_a_chunk_that_is_not_acknowledged_is_sent_again_under_its_id(world):
    with socket.create_server(("127.0.0.1", 0)) as fake:
        fake.settimeout(60)
        address = f"tcp://127.0.0.1:{fake.getsockname()[1]}"
        options = {"fluentd_address": address, "fluentd_read_timeout": "500ms", "fluentd_retry_wait": "50ms"}
        writer = driver(**options).open(container=container(world.path))
        writer.write([Chunk(OUT, AT, b"hello\n")])
        peer, _ = fake.accept()
        with peer:
            first = chunks_of(peer, msgpack.Unpacker())
        peer, _ = fake.accept()
        with peer:
            unpacker = msgpack.Unpacker()
            assert chunks_of(peer, unpacker) == first
            assert writer.stats().delivered == 0
            peer.sendall(msgpack.packb({"ack": first[0]}))
            assert writer.flush(timeout=30)
        assert (writer.stats().delivered, writer.resent > 0) == (1, True)
        writer.close(timeout=1)


def test_without_acknowledgements_what_is_sent_is_delivered(world):
    with socket.create_server(("127.0.0.1", 0)) as fake:
        fake.settimeout(60)
        address = f"tcp://127.0.0.1:{fake.getsockname()[1]}"
        writer = driver(fluentd_address=address, fluentd_request_ack="false").open(container=container(world.path))
        writer.write([Chunk(OUT, AT, b"hello\n")])
        peer, _ = fake.accept()
        with peer:
            assert writer.flush(timeout=30), writer.problem
            assert writer.stats().delivered == 1
            assert b"chunk" not in peer.recv(1 << 20)
        writer.close(timeout=1)


def test_the_connection_is_made_anew_as_often_as_asked_for(world):
    with socket.create_server(("127.0.0.1", 0)) as fake:
        fake.settimeout(60)
        options = {"fluentd_address": f"tcp://127.0.0.1:{fake.getsockname()[1]}", "fluentd_request_ack": "false"}
        writer = driver(**options, fluentd_async_reconnect_interval="100ms").open(container=container(world.path))
        for line in (b"one", b"two"):
            writer.write([Chunk(OUT, AT, line + b"\n")])
            peer, _ = fake.accept()
            peer.settimeout(60)
            with peer:
                received = b""
                while data := peer.recv(1 << 20):  # up to the end that the driver makes
                    received += data
            assert line in received
        writer.close(timeout=1)


def test_a_collector_that_takes_nothing_is_given_up_in_time(world):
    with socket.create_server(("127.0.0.1", 0)) as fake:
        options = {"fluentd_address": f"tcp://127.0.0.1:{fake.getsockname()[1]}", "fluentd_request_ack": "false"}
        writer = driver(**options, fluentd_write_timeout="200ms").open(container=container(world.path))
        for _ in range(16):
            writer.write([Chunk(OUT, AT, b"x" * 16_000 + b"\n") for _ in range(64)])
        end = time.monotonic() + 25  # without the option it would take 30 s
        while "timed out" not in writer.problem and time.monotonic() < end:
            time.sleep(0.05)
        assert "timed out" in writer.problem
        assert writer.stats().dropped == 0
        writer.close(timeout=0.1)


def test_tls_shows_a_certificate_to_a_collector_that_is_trusted_unseen(world):
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout key -out cert -days 30 -subj /CN=me"
    subprocess.run(["openssl", *words.split()], cwd=world.path, check=True, capture_output=True)
    key, cert = f"{world.path}/key", f"{world.path}/cert"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    context.load_verify_locations(cert)
    context.verify_mode = ssl.CERT_REQUIRED
    with socket.create_server(("127.0.0.1", 0)) as fake:
        fake.settimeout(60)
        options = {"fluentd_address": f"tls://127.0.0.1:{fake.getsockname()[1]}", "fluentd_request_ack": "false"}
        options |= {"fluentd_tls_cert": cert, "fluentd_tls_key": key, "fluentd_tls_skip_verify": "true"}
        writer = driver(**options).open(container=container(world.path))
        writer.write([Chunk(OUT, AT, b"hello\n")])
        peer, _ = fake.accept()
        peer.settimeout(60)
        with context.wrap_socket(peer, server_side=True) as secure:
            assert secure.getpeercert()["subject"] == ((("commonName", "me"),),)
            assert b"hello" in secure.recv(1 << 16)
        writer.close(timeout=1)


def test_a_limit_of_lines_drops_the_oldest(world):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    address = f"tcp://127.0.0.1:{port}"
    writer = driver(fluentd_address=address, fluentd_buffer_limit="800").open(container=container(world.path))
    for i in range(200):
        writer.write([Chunk(OUT, AT, b"%d\n" % i * 10)])
    stats = writer.stats()
    assert stats.taken == 2000
    assert 700 <= stats.taken - stats.dropped <= 920
    writer.close(timeout=0.1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"fluentd_address": "udp://h"},
            "fluentd-address='udp://h': unsupported scheme 'udp'; expected one of tcp, tls, unix",
        ),
        ({"fluentd_address": "h:x"}, "fluentd-address='h:x': expected a port between 1 and 65535"),
        ({"fluentd_address": "h/x"}, "fluentd-address='h/x': expected tcp://host:port and nothing behind it"),
        (
            {"fluentd_async_reconnect_interval": "20s"},
            "fluentd-async-reconnect-interval=20s: expected 0, or between 100ms and 10s",
        ),
        ({"fluentd_retry_wait": "0s"}, "fluentd-retry-wait: expected a duration of more than 0"),
        (
            {"fluentd_tls_ca_cert": "/x"},
            "fluentd-tls-ca-cert needs a fluentd-address that begins with tls://",
        ),
        ({"fluentd_username": "x"}, "fluentd-username and fluentd-password need fluentd-shared-key beside them"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_value_is_refused_by_name(options, text):
    with pytest.raises(ConfigError) as caught:
        driver(**options)
    assert str(caught.value) == f"logging driver fluentd (from --log-opt): {text}"


@pytest.mark.parametrize(
    ("option", "value", "text"),
    [
        ("fluentd_retry_wait", "5", "a duration such as 10s"),
        ("fluentd_buffer_limit", "x", "a size such as 10m, at least 1"),
        ("fluentd_max_retries", "0", "a whole number, at least 1"),
        ("fluentd_async", "x", "true or false"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(option, value, text):
    with pytest.raises(ConfigError) as caught:
        driver(**{option: value})
    name = option.replace("_", "-")
    assert str(caught.value) == f"logging driver fluentd: {name}={value!r} (from --log-opt): expected {text}"


@pytest.mark.parametrize("address", ["h", "h:1", ":24224", "[::1]:24224", "tcp://h", "tls://h:1", "unix:///run/f"])
def test_good_addresses_are_taken_without_a_connection(tmp_path, address):
    driver(fluentd_address=address).check(container=container(tmp_path))
