"""What syslog promises beyond its contract: the RFCs' bytes, TLS, sockets, options."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transom.contract.logging import Chunk, Partial, Stream
from transom.errors import ConfigError, DriverError
from transom_conformance.logging.collector import Collector
from transom_conformance.logging.direct import Direct, container
from transom_conformance.suite import World
from transom_logging_syslog import Syslog
from transom_logging_syslog.examples import RSYSLOG

OUT, ERR = Stream.STDOUT, Stream.STDERR
AT = 1_795_462_080_072_535_290
driver = Direct(Syslog).driver
"""2026-11-23T19:28:00.07253529Z"""


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def world(tmp_path):
    world = World(path=tmp_path, kind="logging", driver="syslog", options={})
    yield world
    world.clean_up()


class Datagrams:
    """A Unix datagram socket that keeps what it gets."""

    def __init__(self, path):
        self.address = f"unixgram://{path}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(30)

    def take(self, count):
        return [self._socket.recv(1 << 16) for _ in range(count)]

    def close(self):
        self._socket.close()


@pytest.fixture
def datagrams(tmp_path):
    found = Datagrams(tmp_path / "log")
    yield found
    found.close()


def sent(tmp_path, datagrams, chunks, count, facts=None, **options):
    """Send chunks; return the datagrams with this process's number as PID."""
    writer = driver(syslog_address=datagrams.address, **options).open(container=container(tmp_path, **(facts or {})))
    writer.write(chunks)
    found = datagrams.take(count)
    writer.close(timeout=10)
    return [data.replace(str(os.getpid()).encode(), b"PID") for data in found]


# The bytes


@pytest.mark.parametrize(
    ("form", "want"),
    [
        ({}, b"<30>Nov 23 19:28:00 c0ffeec0ffee[PID]: hello"),
        ({"syslog_format": "rfc3164"}, b"<30>Nov 23 19:28:00 host c0ffeec0ffee[PID]: hello"),
        ({"syslog_format": "rfc5424"}, b"<30>1 2026-11-23T19:28:00Z host c0ffeec0ffee PID c0ffeec0ffee - hello"),
        (
            {"syslog_format": "rfc5424micro"},
            b"<30>1 2026-11-23T19:28:00.072535Z host c0ffeec0ffee PID c0ffeec0ffee - hello",
        ),
    ],
    ids=lambda value: str(value),
)
def test_a_message_has_the_format_and_the_time_of_the_event(tmp_path, datagrams, form, want):
    assert sent(tmp_path, datagrams, [Chunk(OUT, AT, b"hello\n")], 1, **form) == [want]


def test_times_are_those_of_this_hosts_zone(tmp_path, datagrams, monkeypatch):
    monkeypatch.setenv("TZ", "XYZ+3:30")
    time.tzset()
    early = [Chunk(OUT, AT - 20 * 86400 * 10**9, b"x\n")]
    assert sent(tmp_path, datagrams, early, 1, syslog_format="rfc5424")[0].startswith(
        b"<30>1 2026-11-03T15:58:00-03:30 "
    )
    assert sent(tmp_path, datagrams, early, 1)[0].startswith(b"<30>Nov  3 15:58:00 ")


@pytest.mark.parametrize(("facility", "number"), [("kern", 0), ("daemon", 3), ("ftp", 11), ("local7", 23), ("16", 16)])
def test_priority_is_facility_and_stream(tmp_path, datagrams, facility, number):
    chunks = [Chunk(OUT, AT, b"o\n"), Chunk(ERR, AT, b"e\n")]
    found = sent(tmp_path, datagrams, chunks, 2, syslog_facility=facility)
    assert [data.partition(b">")[0] for data in found] == [b"<%d" % (number * 8 + 6), b"<%d" % (number * 8 + 3)]


def test_fields_keep_the_lengths_and_characters_of_the_rfc(tmp_path, datagrams):
    facts = {"name": "n" * 300, "hostname": "h" * 300}
    (line,) = sent(tmp_path, datagrams, [Chunk(OUT, AT, b"x\n")], 1, facts, tag="{{.Name}}", syslog_format="rfc5424")
    assert line.split(b" ")[2:6] == [b"h" * 255, b"n" * 48, b"PID", b"n" * 32]
    (line,) = sent(tmp_path, datagrams, [Chunk(OUT, AT, b"x\n")], 1, facts, tag="{{.Name}}")
    assert line.endswith(b" " + b"n" * 32 + b"[PID]: x")
    facts = {"labels": {"app": "a b\nä"}}
    options = {"labels": "app", "tag": '{{index .ExtraAttributes "app"}}'}
    options["tag"] = "{{.ExtraAttributes}}"
    (line,) = sent(tmp_path, datagrams, [Chunk(OUT, AT, b"x\n")], 1, facts, **options)
    assert line.endswith(b" map[app:a?b??][PID]: x")
    (line,) = sent(tmp_path, datagrams, [Chunk(OUT, AT, b"x\n")], 1, tag="{{.ImageName}}", syslog_format="rfc5424")
    assert line.endswith(b" host - PID - - x")


def test_every_line_and_fragment_is_a_message_with_its_bytes(tmp_path, datagrams):
    chunks = [
        Chunk(OUT, AT, b"one\n\nthree \xff\x00\t\xe2\x82\xac\n"),
        Chunk(OUT, AT, b"f" * 16384, partial=Partial(id="a", ordinal=1, last=False)),
        Chunk(OUT, AT, b"end\n", partial=Partial(id="a", ordinal=2, last=True)),
        Chunk(ERR, AT, b"no newline"),
    ]
    found = sent(tmp_path, datagrams, chunks, 6)
    texts = [data.partition(b"[PID]: ")[2] for data in found]
    assert texts == [b"one", b"", b"three \xff\x00\t\xe2\x82\xac", b"f" * 16384, b"end", b"no newline"]


@pytest.mark.parametrize(
    ("options", "want"),
    [
        ({}, b"<30>A one\n<30>A \n<30>A two\n"),
        ({"syslog_framing": "octet-counting", "syslog_format": "rfc5424"}, b"9 <30>A one6 <30>A 9 <30>A two"),
    ],
    ids=["newline", "octet-counting"],
)
def test_a_stream_has_framed_messages(tmp_path, options, want):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        writer = driver(syslog_address=address, **options).open(container=container(tmp_path))
        writer.write([Chunk(OUT, AT, b"one\n\ntwo\n")])
        connection, _ = server.accept()
        connection.settimeout(30)
        received = b""
        with connection:
            while received.count(b"two") < 1:
                received += connection.recv(4096)
        writer.close(timeout=0.1)
    messages = received.decode()
    prefix = re.search(r"<30>.*?(\[\d+\]:| - ) ?(?=one)", messages)[0]
    if options:
        lengths = [len(prefix) + 3, len(prefix), len(prefix) + 3]
        texts = [prefix + "one", prefix, prefix + "two"]
        assert messages == "".join(f"{n} {text}" for n, text in zip(lengths, texts, strict=True))
    else:
        assert messages.replace(prefix, "<30>A ").encode() == want


# Transports


@pytest.mark.parametrize("scheme", ["udp", "unix"])
def test_other_transports_reach_rsyslog(world, scheme):
    inputs = {
        "udp": 'module(load="imudp")\ninput(type="imudp" port="@PORT@" address="127.0.0.1" ruleset="all")',
        # rsyslog takes datagrams only; its stream of a Unix socket is imptcp's.
        "unix": 'module(load="imptcp")\ninput(type="imptcp" path="@DIRECTORY@/socket" ruleset="all")',
    }
    options = {"udp": "udp://127.0.0.1:@PORT@", "unix": "unix://@DIRECTORY@/socket"}
    text = re.sub(r"(?m)^(module|input).*imtcp.*\n", "", RSYSLOG) + inputs[scheme] + "\n"
    sink = Collector(world, example(text, options[scheme], socket="" if scheme == "udp" else "@DIRECTORY@/socket"))
    if scheme == "udp":
        sink._listens = lambda: str(sink._port) in udp_ports()
    writer = driver(**underscored(sink.options)).open(container=container(world.path))
    for i in range(20):
        writer.write([Chunk(OUT, AT, b"line %d\n" % i)])
    time.sleep(0.3)
    assert writer.stats().delivered <= 1, "nobody listens"
    sink.start()
    for i in range(20, 40):
        writer.write([Chunk(OUT, AT, b"line %d\n" % i)])
    assert writer.flush(timeout=60)
    sink.wait(*[b"line %d" % i for i in range(1, 40)])
    writer.close(timeout=10)


def udp_ports():
    text = Path("/proc/net/udp").read_text()
    return {str(int(line.split()[1].partition(":")[2], 16)) for line in text.splitlines()[1:]}


def underscored(options):
    return {name.replace("-", "_"): value for name, value in options.items()}


def example(text, address, **more):
    return {
        "command": ["rsyslogd", "-n", "-f", "@DIRECTORY@/rsyslog.conf", "-i", "@DIRECTORY@/pid"],
        "files": {"rsyslog.conf": text},
        "options": {"syslog-address": address},
        "output": "received",
        "lines": r"^ ?(.*)\n",
        **more,
    }


def test_a_busy_unix_socket_is_waited_for(tmp_path, datagrams):
    writer = driver(syslog_address=datagrams.address).open(container=container(tmp_path))
    writer.write([Chunk(OUT, AT, b"".join(b"%d\n" % i for i in range(5000)))])
    found = datagrams.take(5000)
    assert [int(data.rpartition(b" ")[2]) for data in found] == list(range(5000))
    assert writer.flush(timeout=30)
    writer.close(timeout=10)


def test_pysyslog_receives_by_tcp(world):
    collector = {
        "command": [f"{Path(sys.executable).parent}/pysyslog", "127.0.0.1", "@PORT@"],
        "options": {"syslog-address": "tcp://127.0.0.1:@PORT@"},
        "output": "log",
        "lines": r"^INFO:127\.0\.0\.1:<30>.*?\]: (.*)\n",
    }
    sink = Collector(world, collector)
    sink.start()
    writer = driver(**underscored(sink.options)).open(container=container(world.path))
    wanted = [b"%040d" % i for i in range(3000)]
    for at in range(0, 3000, 100):
        writer.write([Chunk(OUT, AT, b"\n".join(wanted[at : at + 100]) + b"\n")])
    assert writer.flush(timeout=60), writer.problem
    assert sink.wait(*wanted) == wanted
    writer.close(timeout=10)


# TLS


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """An authority, with certificates for a server, another host, one of the past, and a client; another authority."""
    place = tmp_path_factory.mktemp("pki")

    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=place, check=True, capture_output=True)

    for name in ("ca", "other"):
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
        openssl("req", "-x509", *key, "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "3650")
    for name, host, dates in [
        ("server", "IP:127.0.0.1,DNS:localhost", ["-days", "3650"]),
        ("elsewhere", "DNS:elsewhere.example", ["-days", "3650"]),
        ("expired", "IP:127.0.0.1", ["-days", "-1"]),
        ("client", "DNS:client", ["-days", "3650"]),
    ]:
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
        openssl("req", *key, "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (place / "ext").write_text(f"subjectAltName={host}\n")
        files = ["-in", f"{name}.csr", "-out", f"{name}.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-extfile", "ext"]
        openssl("x509", "-req", *files, *dates)
    return place


def tls_collector(world, pki, *, server="server", mode="x509/certvalid", module="gtls"):
    tls = (
        f'defaultNetstreamDriver="{module}" defaultNetstreamDriverCAFile="{pki}/ca.pem" '
        f'defaultNetstreamDriverCertFile="{pki}/{server}.pem" defaultNetstreamDriverKeyFile="{pki}/{server}.key" '
    )
    text = RSYSLOG.replace("global(", f"global({tls}")
    settings = f'StreamDriver.Name="{module}" StreamDriver.Mode="1" StreamDriver.AuthMode="{mode}"'
    text = text.replace('load="imtcp"', f'load="imtcp" {settings}')
    return Collector(world, example(text, "tcp+tls://127.0.0.1:@PORT@"))


@pytest.mark.parametrize("module", ["gtls", "ossl"])
@pytest.mark.parametrize("form", ["rfc5424", "rfc3164"])
def test_tls_with_an_authority_and_a_client_certificate_loses_nothing(world, pki, module, form):
    sink = tls_collector(world, pki, module=module)
    sink.start()
    options = {
        "syslog_tls_ca_cert": f"{pki}/ca.pem",
        "syslog_tls_cert": f"{pki}/client.pem",
        "syslog_tls_key": f"{pki}/client.key",
        "syslog_format": form,
    }
    writer = driver(**underscored(sink.options), **options).open(container=container(world.path))
    wanted = [b"%040d" % i for i in range(30_000)]
    for at in range(0, 30_000, 1000):
        writer.write([Chunk(OUT, AT, b"\n".join(wanted[at : at + 1000]) + b"\n")])
        if at == 15_000:
            sink.wait(wanted[0])
            sink.kill()
            sink.start()
    assert writer.flush(timeout=60), writer.problem
    assert [*dict.fromkeys(sink.wait(*wanted))] == wanted
    writer.close(timeout=10)


@pytest.mark.parametrize(
    ("server", "options", "reason"),
    [
        ("server", {"syslog_tls_ca_cert": "other.pem"}, "certificate verify failed"),
        ("server", {}, "certificate verify failed"),
        ("elsewhere", {"syslog_tls_ca_cert": "ca.pem"}, "IP address mismatch"),
        ("expired", {"syslog_tls_ca_cert": "ca.pem"}, "certificate has expired"),
        ("elsewhere", {"syslog_tls_ca_cert": "ca.pem", "syslog_tls_skip_verify": "false"}, "IP address mismatch"),
    ],
    ids=["unknown authority", "no authority", "another host", "expired", "skip-verify=false"],
)
def test_a_wrong_certificate_is_refused_and_nothing_is_sent(world, pki, server, options, reason):
    sink = tls_collector(world, pki, server=server, mode="anon")
    sink.start()
    options = {name: f"{pki}/{value}" if value.endswith(".pem") else value for name, value in options.items()}
    log = container(world.path)
    with pytest.raises(DriverError) as caught:
        driver(**underscored(sink.options), **options, sink_required="true").open(container=log)
    assert reason in str(caught.value)
    writer = driver(**underscored(sink.options), **options).open(container=log)
    writer.write([Chunk(OUT, AT, b"secret\n")])
    assert not writer.flush(timeout=0.5)
    writer.close(timeout=0.1)
    assert reason in writer.problem
    assert sink.lines() == []
    trusting = driver(**underscored(sink.options), syslog_tls_skip_verify="true").open(container=log)
    assert trusting.flush(timeout=30)
    assert sink.wait(b"secret") == [b"secret"]
    trusting.close(timeout=10)


# Options


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"syslog_address": "http://x"},
            "syslog-address='http://x': unsupported scheme 'http'; expected one of tcp, tcp+tls, udp, unix, unixgram",
        ),
        (
            {"syslog_address": "tpc://x"},
            "syslog-address='tpc://x': unsupported scheme 'tpc' (did you mean tcp?); "
            "expected one of tcp, tcp+tls, udp, unix, unixgram",
        ),
        (
            {"syslog_address": "host:514"},
            "syslog-address='host:514': expected scheme://address, with a scheme of tcp, tcp+tls, udp, unix, unixgram",
        ),
        ({"syslog_address": "udp://h:99999"}, "syslog-address='udp://h:99999': expected a port between 1 and 65535"),
        ({"syslog_address": "tcp://h:0"}, "syslog-address='tcp://h:0': expected a port between 1 and 65535"),
        ({"syslog_address": "tcp://"}, "syslog-address='tcp://': the host is missing"),
        ({"syslog_address": "tcp://h/x"}, "syslog-address='tcp://h/x': expected tcp://host:port and nothing behind it"),
        (
            {"syslog_address": "unix://dev/log"},
            "syslog-address='unix://dev/log': expected unix:///path, absolute and of at most 107 bytes",
        ),
        (
            {"syslog_facility": "loacl0"},
            "syslog-facility='loacl0': expected a number up to 23 or one of auth, authpriv, cron, daemon, ftp, kern, "
            "local0, local1, local2, local3, local4, local5, local6, local7, lpr, mail, news, syslog, user, uucp "
            "(did you mean local0?)",
        ),
        (
            {"syslog_tls_ca_cert": "/x"},
            "syslog-tls-ca-cert needs a syslog-address that begins with tcp+tls://",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_bad_value_is_refused_by_name(options, text):
    with pytest.raises(ConfigError) as caught:
        driver(**options)
    assert str(caught.value) == f"logging driver syslog (from --log-opt): {text}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"syslog_format": "rfc1"},
            "syslog-format='rfc1' (from --log-opt): expected one of rfc3164, rfc5424, rfc5424micro",
        ),
        ({"spool_max_size": "1m"}, "spool-max-size='1m' (from --log-opt): expected a size such as 10m, at least 8m"),
        ({"spool_full": "x"}, "spool-full='x' (from --log-opt): expected one of drop-oldest, refuse"),
        ({"syslog_tls_skip_verify": "x"}, "syslog-tls-skip-verify='x' (from --log-opt): expected true or false"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_value_of_the_wrong_type_is_refused_by_name(options, text):
    with pytest.raises(ConfigError) as caught:
        driver(**options)
    assert str(caught.value) == f"logging driver syslog: {text}"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tag": "{{.Nmae}}"}, "tag='{{.Nmae}}': field .Nmae does not exist (did you mean .Name?)"),
        ({"env_regex": "("}, "env-regex='(': "),
        (
            {"syslog_tls_ca_cert": "/nowhere"},
            "syslog-tls-ca-cert='/nowhere': No such file or directory; expected a file in PEM",
        ),
        (
            {"syslog_tls_ca_cert": "/etc/hostname"},
            "syslog-tls-ca-cert='/etc/hostname': expected a file of certificates in PEM",
        ),
        ({"syslog_tls_cert": "/x"}, "syslog-tls-cert needs syslog-tls-key beside it"),
        (
            {"syslog_tls_cert": "/etc/hostname", "syslog_tls_key": "/etc/hostname"},
            "syslog-tls-cert='/etc/hostname' and syslog-tls-key='/etc/hostname': "
            "expected a certificate and its key, in PEM, unencrypted",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_could_never_work_is_refused_at_create(tmp_path, options, text):
    with pytest.raises(ConfigError) as caught:
        driver(syslog_address="tcp+tls://h", **options).check(container=container(tmp_path))
    assert str(caught.value).startswith("logging")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "address", ["tcp://[::1]:514", "udp://logs.example", "tcp+tls://h:6514", "unixgram:///dev/log", ""]
)
def test_good_addresses_are_taken_without_a_connection(tmp_path, address):
    driver(**({"syslog_address": address} if address else {})).check(container=container(tmp_path))
    assert os.listdir(tmp_path) == []
