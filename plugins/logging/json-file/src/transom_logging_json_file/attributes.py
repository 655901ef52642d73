"""The attributes of a record: what the options select of labels and environment, and the tag."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from transom.contract.logging import LogContainer
from transom.errors import ConfigError

if TYPE_CHECKING:
    from transom_logging_json_file import JsonFileOptions


def attributes(container: LogContainer, options: JsonFileOptions) -> dict[str, str]:
    """Select, as moby's Info.ExtraAttributes: labels first, variables over them, the tag over all.

    Raises:
        ConfigError: a regular expression or the template is wrong.
    """
    found: dict[str, str] = {}
    for pool, names, option, pattern in (
        (container.labels, options.labels, "labels-regex", options.labels_regex),
        (container.env, options.env, "env-regex", options.env_regex),
    ):
        found |= {name: pool[name] for name in names if name in pool}
        if pattern:
            try:
                regex = re.compile(pattern)
            except re.error as error:
                raise ConfigError(
                    f"logging driver json-file: {option}={pattern!r}: {error}; "
                    "expected a regular expression such as ^app"
                ) from None
            found |= {name: value for name, value in pool.items() if regex.search(name)}
    if options.tag:
        from transom_logging_json_file.template import render

        try:
            tag = render(options.tag, container, found)
        except ValueError as error:
            raise ConfigError(f"logging driver json-file: tag={options.tag!r}: {error}") from None
        if tag:
            found["tag"] = tag
    return found


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
