"""Docker's JSON lines: whole chunks at a time."""

from __future__ import annotations

import codecs
import time
from functools import lru_cache

PREFIX = b'{"log":"'

# As moby's daemon/logger/jsonfilelog/jsonlog escapes: four short forms, the rest of the control characters by number,
# and what could end a script or a line in JavaScript. The backslash comes first: the others bring new ones.
_SHORT = {b"\\": b"\\\\", b'"': b'\\"', b"\r": b"\\r"}
_NUMBERED = [bytes([code]) for code in (*range(0x20), *b"<>&") if code not in b"\r\n"]
_ESCAPES = _SHORT | {one: b"\\u%04x" % ord(one) for one in _NUMBERED}
_ORDINARY = bytes(code for code in range(256) if bytes([code]) not in _ESCAPES)

codecs.register_error("transom.json-file", lambda error: _invalid(error))


def _invalid(error: UnicodeError) -> tuple[str, int]:
    """Stand in for bytes that are not UTF-8: one U+FFFD, escaped, for each, as Go decodes."""
    assert isinstance(error, UnicodeDecodeError)
    return "\\ufffd" * (error.end - error.start), error.end


def escape(data: bytes) -> bytes:
    """Return the data as the inside of a JSON string, in Docker's bytes, with its newlines as they are."""
    if special := data.translate(None, _ORDINARY):
        for plain, escaped in _ESCAPES.items():
            if plain in special:
                data = data.replace(plain, escaped)
    if not data.isascii():
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
        try:
            data.decode()
        except UnicodeDecodeError:
            data = data.decode(errors="transom.json-file").encode()
    return data


def stamp(nanoseconds: int) -> bytes:
    """Write a time as Go's RFC3339Nano does: UTC, no zeros at the end of the fraction.

    Raises:
        ValueError: the year is not between 0 and 9999 (RFC 3339, section 1).
    """
    seconds, fraction = divmod(nanoseconds, 1_000_000_000)
    if not fraction:
        return _second(seconds) + b"Z"
    return _second(seconds) + (b".%09d" % fraction).rstrip(b"0") + b"Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> bytes:
    utc = time.gmtime(seconds)
    if not 0 <= utc.tm_year <= 9999:
        raise ValueError(f"year {utc.tm_year} of a log time is not between 0 and 9999")
    return "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}".format(*utc[:6]).encode()
