"""What log options select of a container's labels and environment, and the tag; the same for every log driver.

A driver derives its options from `AttrOptions` and calls `attributes` in `check`, so that what is wrong is refused
when a container is created, and in `open`.
"""

from __future__ import annotations

import re

import msgspec

from transom.contract.logging import LogContainer
from transom.errors import ConfigError


class AttrOptions(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Docker's options for attributes; their sentences stand in `ATTR_DOCS`."""

    labels: tuple[str, ...] = ()
    labels_regex: str = ""
    env: tuple[str, ...] = ()
    env_regex: str = ""
    tag: str = ""


ATTR_DOCS = {
    "labels": "Labels whose values become attributes of each record.",
    "labels-regex": "The same for each label whose name this regular expression finds.",
    "env": "Environment variables whose values become attributes of each record.",
    "env-regex": "The same for each variable whose name this regular expression finds.",
    "tag": "A template, such as {{.Name}}/{{.ID}}, whose text becomes the attribute tag of each record.",
}


def attributes(container: LogContainer, options: AttrOptions, *, driver: str) -> dict[str, str]:
    """Select, as moby's Info.ExtraAttributes: labels first, variables over them, the tag over all.

    Args:
        driver: the log driver's name, for an error.

    Raises:
        ConfigError: a regular expression or the template is wrong.
    """
    found = extra_attributes(container, options, driver=driver)
    if text := tag(container, options, driver=driver):
        found["tag"] = text
    return found


def extra_attributes(container: LogContainer, options: AttrOptions, *, driver: str) -> dict[str, str]:
    """Select what `attributes` does, without the tag."""
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
                    f"logging driver {driver}: {option}={pattern!r}: {error}; "
                    "expected a regular expression such as ^app"
                ) from None
            found |= {name: value for name, value in pool.items() if regex.search(name)}
    return found


def tag(container: LogContainer, options: AttrOptions, *, driver: str, default: str = "") -> str:
    """Fill the option ``tag`` in, or the driver's `default` template where it is not set.

    Raises:
        ConfigError: the template is wrong.
    """
    template = options.tag or default
    if not template:
        return ""
    from transom.services.logtemplate import render

    try:
        return render(template, container, extra_attributes(container, options, driver=driver))
    except ValueError as error:
        raise ConfigError(f"logging driver {driver}: tag={template!r}: {error}") from None
