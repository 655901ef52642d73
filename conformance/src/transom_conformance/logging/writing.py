"""What is written comes back: every byte, every line, its stream, time and place."""

from __future__ import annotations

import random

import pytest

from transom_conformance.logging.common import (
    ERR,
    LIMIT,
    OUT,
    READ,
    SECOND,
    Base,
    Log,
    err,
    fragments,
    lines,
    numbered,
    numbers,
    out,
)
from transom_conformance.suite import World


class Writing(Base):
    """Cases of what a driver that can be read keeps."""

    @READ
    def test_lines_come_back_in_order_with_their_stream_and_time(self, log: Log) -> None:
        """Case F2."""
        chunks = [out(b"one\ntwo\n", 1), err(b"three\n", 2), out(b"four\n", 1_000), err(b"five\nsix\n", 123_456_789)]
        log.keep(chunks)
        found = log.read()
        assert lines(found) == lines(chunks)
        assert [(c.stream, c.time) for c in found] == [(c.stream, c.time) for c in chunks]

    @READ
    def test_a_batch_of_many_chunks_is_kept_whole_and_in_order(self, log: Log) -> None:
        batch = [(out if i % 3 else err)(b"chunk %d\n" % i * 3, i) for i in range(500)]
        log.keep(batch, each=False)
        assert lines(log.read()) == lines(batch)

    @READ
    def test_a_batch_of_a_megabyte_is_kept(self, log: Log) -> None:
        log.keep([out(numbered(0, 20_000))])
        assert numbers(log.read()) == list(range(20_000))

    @READ
    def test_an_empty_batch_and_an_empty_chunk_write_nothing(self, log: Log) -> None:
        writer = log.open()
        writer.write([])
        writer.write([out(b"")])
        writer.write([out(b"line\n")])
        writer.close(timeout=5)
        assert lines(log.read()) == [(OUT, b"line\n")]

    @READ
    def test_empty_lines_and_carriage_returns_are_kept(self, log: Log) -> None:
        """Case F5."""
        log.keep([out(b"\n\n"), err(b"\n"), out(b"dos\r\n\r\nbar\rfoo\n"), out(b" \n\t\n")])
        assert lines(log.read()) == [
            (OUT, b"\n"),
            (OUT, b"\n"),
            (ERR, b"\n"),
            (OUT, b"dos\r\n"),
            (OUT, b"\r\n"),
            (OUT, b"bar\rfoo\n"),
            (OUT, b" \n"),
            (OUT, b"\t\n"),
        ]

    @READ
    @pytest.mark.parametrize("size", [LIMIT - 1, LIMIT, LIMIT + 1, 2 * LIMIT, 1 << 20])
    def test_fragments_join_to_their_line(self, log: Log, size: int) -> None:
        """Cases P10 and P14."""
        line = bytes(random.Random(size).choices(b'abcdefghijklmnopqrstuvwxyz"\\<>', k=size)) + b"\n"
        log.keep([out(b"before\n"), *fragments(OUT, line, 5), out(b"after\n", 6)])
        assert lines(log.read()) == [(OUT, b"before\n"), (OUT, line), (OUT, b"after\n")]

    @READ
    def test_fragments_of_two_streams_do_not_mix(self, log: Log) -> None:
        """Case P11."""
        first, second = b"o" * 50_000 + b"\n", b"e" * 60_000 + b"\n"
        pairs = zip(fragments(OUT, first), fragments(ERR, second), strict=True)
        log.keep([chunk for pair in pairs for chunk in pair])
        assert lines(log.read()) == [(OUT, first), (ERR, second)]

    @READ
    def test_output_without_a_newline_at_the_end_is_kept(self, log: Log) -> None:
        """Case P12."""
        log.keep([out(b"whole\nlast words")])
        assert lines(log.read()) == [(OUT, b"whole\n"), (OUT, b"last words")]

    @READ
    def test_text_in_every_script_comes_back_exactly(self, log: Log) -> None:
        """Case B19."""
        text = 'åß 漢字 \U0001f680 \u2028\u2029 \ufeff \ufffd <b>&"\\/\x7f\x1b[31m {"log":"x\\n"} \\n\n'.encode()
        log.keep([out(text), err(text * 3)])
        assert lines(log.read()) == [(OUT, text)] + [(ERR, text)] * 3

    @READ
    def test_every_byte_value_comes_back_or_is_replaced_one_for_one(self, log: Log) -> None:
        """Case B17."""
        data = bytes(b for b in range(256) if b != 10) + b"|\xe2\x82|\xed\xa0\x80|\xc0\xaf|\xf4\x90\x80\x80\n"
        log.keep([out(data)])
        ((_, found),) = lines(log.read())
        replaced = "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in data.decode(errors="surrogateescape"))
        assert found in (data, replaced.encode())

    @READ
    def test_random_bytes_keep_their_lines(self, log: Log) -> None:
        """Case B17."""
        chance = random.Random(7)
        data = [chance.randbytes(chance.randrange(200)).replace(b"\n", b"") + b"\n" for _ in range(500)]
        log.keep([out(b"".join(data))])
        found = lines(log.read())
        assert len(found) == 500
        ascii_only = [bytes(b for b in line if b < 128) for line in data]
        assert [bytes(b for b in line if b < 128) for _, line in found] == ascii_only

    @READ
    def test_a_clock_that_is_set_back_loses_and_moves_nothing(self, log: Log) -> None:
        """Case T31."""
        chunks = [out(b"a\n", 10 * SECOND), out(b"b\n", 2 * SECOND), out(b"c\n", 11 * SECOND)]
        log.keep(chunks)
        assert [(c.time, c.data) for c in log.read()] == [(c.time, c.data) for c in chunks]

    @READ
    def test_logs_of_two_containers_do_not_mix(self, world: World, log: Log) -> None:
        other = Log(world, log.driver)
        first, second = log.open(), other.open()
        first.write([out(b"mine\n")])
        second.write([out(b"yours\n")])
        assert (lines(log.read()), lines(other.read())) == ([(OUT, b"mine\n")], [(OUT, b"yours\n")])

    @READ
    def test_opening_again_goes_on_at_the_end(self, world: World, log: Log) -> None:
        for i in range(5):
            log.driver = world.open()
            log.keep([out(numbered(i * 10, 10), i)])
        assert numbers(log.read()) == list(range(50))
