"""What local promises beyond its contract: Docker's bytes, any bytes kept, its options and rules."""

import random
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.contract.logging import Chunk, Partial, Stream
from transom.errors import ConfigError, DriverError
from transom_conformance.logging.direct import Direct, container
from transom_logging_local import Local

OUT, ERR = Stream.STDOUT, Stream.STDERR
AT = 1_795_462_080_072_535_290
direct = Direct(Local)
driver, read, write = direct.driver, direct.read, direct.write
TIME = bytes.fromhex("10 fa 99 a1 93 fc e7 b0 f5 18")


def entry(message):
    size = len(message).to_bytes(4, "big")
    return size + message + size


def test_records_have_the_bytes_that_docker_writes(tmp_path):
    facts = {"labels": {"role": "db"}}
    fragment = Chunk(ERR, AT, b"part", partial=Partial(id="ab", ordinal=1, last=False))
    last = Chunk(ERR, AT, b"end\n", partial=Partial(id="ab", ordinal=2, last=True))
    chunks = (Chunk(OUT, AT, b"hello\n\n"), fragment, last, Chunk(OUT, AT, b"no end"))
    path = write(tmp_path, *chunks, facts=facts, labels="role")
    attrs = b"\x32\x0a\x0a\x04role\x12\x02db"
    assert str(path).endswith("/local-logs/container.log")
    assert path.read_bytes() == b"".join(
        map(
            entry,
            [
                b"\x0a\x06stdout" + TIME + b"\x1a\x05hello" + attrs,
                b"\x0a\x06stdout" + TIME + attrs,
                b"\x0a\x06stderr" + TIME + b"\x1a\x04part" + b"\x20\x01\x2a\x06\x12\x02ab\x18\x01" + attrs,
                b"\x0a\x06stderr" + TIME + b"\x1a\x03end" + b"\x20\x01\x2a\x08\x08\x01\x12\x02ab\x18\x02" + attrs,
                b"\x0a\x06stdout" + TIME + b"\x1a\x06no end" + b"\x20\x01\x2a\x02\x18\x01" + attrs,
            ],
        )
    )
    found = read(tmp_path)
    assert {tuple((chunk.attrs or {}).items()) for chunk in found} == {(("role", "db"),)}
    assert b"".join(chunk.data for chunk in found) == b"hello\n\npartend\nno end"
    assert [chunk.partial for chunk in found if chunk.stream is ERR] == [fragment.partial, last.partial]


def test_a_fragment_says_which_line_it_belongs_to(tmp_path):
    pieces = [Chunk(OUT, AT, b"x" * 9, partial=Partial(id="l", ordinal=n, last=False)) for n in (1, 2)]
    write(tmp_path, *pieces)
    assert read(tmp_path) == pieces


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(Stream), st.integers(0, 3), st.binary(max_size=30), st.booleans())),
    st.integers(1, 400),
    st.integers(0, 12),
)
def test_whatever_is_written_is_read_back_byte_for_byte(pieces, max_size, tail):
    chunks = [Chunk(s, AT + t, body + b"\n" * ends) for s, t, body, ends in pieces]
    with tempfile.TemporaryDirectory() as directory:
        write(directory, *chunks, max_size=str(max_size), max_file="1000", compress="false")
        for stream in Stream:
            want = b"".join(chunk.data for chunk in chunks if chunk.stream is stream)
            found = b"".join(chunk.data for chunk in read(directory, streams=frozenset({stream})))
            assert found == want
            lines = [line + b"\n" for line in want.split(b"\n")]
            lines[-1] = lines[-1][:-1]
            lines = [line for line in lines if line]
            last = b"".join(chunk.data for chunk in read(directory, streams=frozenset({stream}), tail=tail))
            assert last == b"".join(lines[-tail:] if tail else [])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=400), st.booleans())
def test_whatever_bytes_a_file_holds_reading_ends_and_says_what_was_damaged(data, entries):
    with tempfile.TemporaryDirectory() as directory:
        path = write(directory, Chunk(OUT, AT, b"one\n"), Chunk(OUT, AT, b"two\n"))
        whole = path.read_bytes()
        path.write_bytes(whole + data + (whole if entries else b""))
        found = read(directory)
        text = b"".join(chunk.data for chunk in found if chunk.stream is OUT)
        assert text.startswith(b"one\ntwo\n")
        if entries:
            assert text.endswith(b"one\ntwo\n")
        read(directory, tail=3)
        read(directory, since=AT)


def test_a_torn_record_is_removed_at_every_place_where_it_can_be_torn(tmp_path):
    path = write(tmp_path, Chunk(OUT, AT, b"one\n"))
    size = path.stat().st_size
    whole = write(tmp_path, Chunk(OUT, AT, b"two\n")).read_bytes()
    for cut in range(size, len(whole)):
        path.write_bytes(whole[:cut])
        write(tmp_path, Chunk(OUT, AT, b"three\n"))
        assert b"".join(chunk.data for chunk in read(tmp_path)) == b"one\nthree\n"


def test_random_bytes_come_back_exactly(tmp_path):
    data = random.Random(3).randbytes(50_000)
    write(tmp_path, Chunk(OUT, AT, data))
    assert b"".join(chunk.data for chunk in read(tmp_path)) == data


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max-size": "0"}, "(from --log-opt): max-size must be a positive number, or -1 for no bound"),
        ({"max-file": "0"}, ": max-file='0' (from --log-opt): expected a whole number, at least 1"),
        ({"max-file": "1", "compress": "true"}, "(from --log-opt): compress cannot be true when max-file is 1"),
        (
            {"max-sise": "1m"},
            "has no option 'max-sise' (from --log-opt) (did you mean max-size?); it knows: compress, env, "
            "env-regex, labels, labels-regex, max-file, max-size, tag",
        ),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, reason):
    with pytest.raises(ConfigError) as caught:
        driver(**options)
    assert str(caught.value).removeprefix("logging driver local").lstrip() == reason


def test_the_log_is_bounded_and_compressed_by_default():
    assert driver().bounds() == (20 << 20, 5, True)
    assert driver(max_file="1").bounds() == (20 << 20, 1, False)
    assert driver(max_size="-1").bounds() == (None, 5, False)
    assert driver(max_size="10m", max_file="3", compress="false").bounds() == (10_000_000, 3, False)


def test_a_directory_that_is_gone_is_named(tmp_path):
    with pytest.raises(DriverError) as caught:
        driver().open(container=container(tmp_path / "gone"))
    assert str(caught.value) == f"logging local: open {tmp_path}/gone/local-logs failed: No such file or directory"


def test_a_second_writer_is_refused(tmp_path):
    first = driver().open(container=container(tmp_path))
    with pytest.raises(DriverError) as caught:
        driver().open(container=container(tmp_path))
    assert str(caught.value).endswith("another process is writing it; stop the container first")
    first.close(timeout=1)
