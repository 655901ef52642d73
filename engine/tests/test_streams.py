"""A stream's bytes as chunks for the log: complete lines, and fragments of long ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.contract.logging import Stream
from transom_engine.streams import FRAGMENT, Splitter


def split(*reads):
    """Return the chunks of a stream that was read in these pieces."""
    splitter = Splitter(Stream.STDOUT)
    chunks = [chunk for data in reads for chunk in splitter.feed(data)]
    return chunks + splitter.finish()


def test_lines_that_were_read_together_are_one_chunk():
    assert [(chunk.data, chunk.partial) for chunk in split(b"one\ntwo\nthr", b"ee\n")] == [
        (b"one\ntwo\n", None),
        (b"three\n", None),
    ]


@pytest.mark.parametrize("size", [16_383, 16_384, 16_385, 32_768, 49_152, 1 << 20])
def test_a_line_of_any_length_comes_in_fragments_of_at_most_the_limit(size):
    """Cases P10, P11 and P14."""
    line = bytes(97 + n % 26 for n in range(size - 1)) + b"\n"
    chunks = split(b"before\n" + line, b"after\n")
    pieces = [chunk for chunk in chunks if chunk.partial]
    assert b"".join(chunk.data for chunk in chunks) == b"before\n" + line + b"after\n"
    assert all(len(chunk.data) <= FRAGMENT for chunk in pieces)
    if size <= FRAGMENT:
        assert pieces == []
    else:
        assert len(pieces) == -(-size // FRAGMENT)
        assert len({(chunk.partial.id, chunk.time) for chunk in pieces}) == 1
        assert [chunk.partial.ordinal for chunk in pieces] == list(range(1, len(pieces) + 1))
        assert [chunk.partial.last for chunk in pieces] == [False] * (len(pieces) - 1) + [True]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(FRAGMENT - 8, FRAGMENT + 8), st.sampled_from(["\U0001f680", "漢", "ß"]), st.lists(st.integers(1, 9000))
)
def test_no_fragment_ends_inside_a_character(lead, character, reads):
    """Case P13."""
    line = b"x" * lead + character.encode() * 6000 + b"\n"
    parts, at = [], 0
    for length in (*reads, len(line)):
        parts.append(line[at : at + length])
        at += length
    chunks = split(*parts)
    assert b"".join(chunk.data for chunk in chunks) == line
    for chunk in chunks:
        chunk.data.decode()  # raises where a character is cut


def test_bytes_that_are_no_utf8_are_cut_at_the_limit():
    chunks = split(b"\x80" * 40_000 + b"\n")
    assert b"".join(chunk.data for chunk in chunks) == b"\x80" * 40_000 + b"\n"
    assert max(len(chunk.data) for chunk in chunks) <= FRAGMENT


def test_the_end_without_a_newline_is_delivered_and_closed():
    """Case P12."""
    assert [(chunk.data, chunk.partial) for chunk in split(b"one\nlast")] == [(b"one\n", None), (b"last", None)]
    *_, last = split(b"x" * 40_000)
    assert last.partial.last
    assert not last.data.endswith(b"\n")
