"""Dockerfile instructions that change an image's configuration, as ``docker import -c`` and ``commit -c`` take them."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import msgspec

from transom.errors import ConfigError, choices, nearest


def apply_changes(config: dict[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Return the configuration (Docker's container configuration, PascalCase keys) with the changes made.

    Raises:
        ConfigError: an instruction is unknown or malformed.
    """
    made = dict(config)
    # An entry point takes away an inherited command, but not one set beside it (moby, dispatchers.go).
    command_set = any(change.split(None, 1)[:1] and change.split(None, 1)[0].upper() == "CMD" for change in changes)
    for change in changes:
        word, _, rest = change.strip().partition(" ")
        instruction, rest = word.upper(), rest.strip()
        if instruction not in _INSTRUCTIONS:
            raise ConfigError(
                f"unknown instruction {word or change!r} in --change{nearest(instruction, _INSTRUCTIONS)};"
                f" there are {choices(_INSTRUCTIONS)}"
            )
        if not rest:
            raise ConfigError(f"--change {instruction} needs a value, for example {_INSTRUCTIONS[instruction]}")
        _apply(made, instruction, rest)
        if instruction == "ENTRYPOINT" and not command_set:
            made.pop("Cmd", None)
    return made


_INSTRUCTIONS = {
    "CMD": 'CMD ["echo", "hello"]',
    "ENTRYPOINT": 'ENTRYPOINT ["/init"]',
    "ENV": "ENV NAME=value",
    "EXPOSE": "EXPOSE 80/tcp",
    "LABEL": "LABEL key=value",
    "ONBUILD": "ONBUILD RUN true",
    "SHELL": 'SHELL ["/bin/sh", "-c"]',
    "STOPSIGNAL": "STOPSIGNAL SIGTERM",
    "USER": "USER nobody",
    "VOLUME": 'VOLUME ["/data"]',
    "WORKDIR": "WORKDIR /srv",
}


def _apply(config: dict[str, Any], instruction: str, rest: str) -> None:
    match instruction:
        case "CMD":
            config["Cmd"] = _command(rest, config)
        case "ENTRYPOINT":
            config["Entrypoint"] = _command(rest, config)
        case "SHELL":
            shell = _array(rest)
            if shell is None:
                raise ConfigError(f"--change SHELL {rest}: it takes a JSON array of strings, {_INSTRUCTIONS['SHELL']}")
            config["Shell"] = shell
        case "ENV":
            env = dict(entry.partition("=")[::2] for entry in config.get("Env") or [])
            config["Env"] = [f"{key}={value}" for key, value in (env | _pairs(instruction, rest)).items()]
        case "LABEL":
            config["Labels"] = (config.get("Labels") or {}) | _pairs(instruction, rest)
        case "EXPOSE":
            config["ExposedPorts"] = dict(config.get("ExposedPorts") or {}) | {
                port: {} for word in rest.split() for port in _ports(word)
            }
        case "VOLUME":
            config["Volumes"] = dict(config.get("Volumes") or {}) | {path: {} for path in _array(rest) or rest.split()}
        case "WORKDIR":
            import posixpath

            config["WorkingDir"] = posixpath.normpath(posixpath.join("/", config.get("WorkingDir") or "", rest))
        case "STOPSIGNAL":
            config["StopSignal"] = _signal(rest)
        case "USER":
            config["User"] = rest
        case "ONBUILD":
            config["OnBuild"] = [*(config.get("OnBuild") or []), rest]


def _array(text: str) -> list[str] | None:
    """Read a JSON array of strings; anything else is the shell form."""
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError:
        return None


def _command(text: str, config: dict[str, Any]) -> list[str]:
    words = _array(text)
    return [*(config.get("Shell") or ["/bin/sh", "-c"]), text] if words is None else words


def _pairs(instruction: str, text: str) -> dict[str, str]:
    """Read ``key=value key2="a b"``, or the old form ``key all the rest``."""
    first, _, rest = text.partition(" ")
    if "=" not in first:
        if not rest:
            raise ConfigError(f"--change {instruction} {text}: a value is missing, {_INSTRUCTIONS[instruction]}")
        return {first: rest.strip()}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"--change {instruction} {text}: {str(error).lower()}") from None
    for word in words:
        if "=" not in word or word.startswith("="):
            raise ConfigError(f"--change {instruction} {text}: {word} is not KEY=VALUE")
    return dict(word.partition("=")[::2] for word in words)


def _ports(word: str) -> list[str]:
    """Expand ``80``, ``80/udp`` or ``8000-8002/tcp``."""
    numbers, _, protocol = word.partition("/")
    low, _, high = numbers.partition("-")
    if (
        not (low.isdecimal() and (high or low).isdecimal())
        or not 0 < int(low) <= int(high or low) < 65536
        or protocol not in ("", "tcp", "udp", "sctp")
    ):
        raise ConfigError(f"--change EXPOSE {word}: it reads PORT[-PORT][/tcp|udp|sctp], with ports 1 to 65535")
    return [f"{port}/{protocol or 'tcp'}" for port in range(int(low), int(high or low) + 1)]


def _signal(text: str) -> str:
    import signal

    word = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    realtime = word.startswith(("SIGRTMIN", "SIGRTMAX"))
    if not (realtime or word in signal.Signals.__members__ or (text.isdecimal() and 0 < int(text) <= 64)):
        raise ConfigError(f"--change STOPSIGNAL {text}: no such signal; write it as SIGTERM or as its number")
    return text
