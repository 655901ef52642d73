"""Attributes in the bytes of Docker's records."""

from __future__ import annotations

import re

import msgspec


def encode(attrs: dict[str, str]) -> bytes:
    """Write attributes as Go's encoding/json writes a map: keys sorted, nothing that could end a script."""
    if not attrs:
        return b""
    clean = {_clean(name): _clean(value) for name, value in attrs.items()}
    data = msgspec.json.encode(clean, order="sorted")
    for plain, escaped in (("<", "003c"), (">", "003e"), ("&", "0026"), ("\u2028", "2028"), ("\u2029", "2029")):
        data = data.replace(plain.encode(), b"\\u" + escaped.encode())
    return data


def _clean(text: str) -> str:
    """Bytes that are not UTF-8 arrive as surrogates (PEP 383): one U+FFFD for each."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
