"""``transom ps``: the containers."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from transom.errors import ConfigError, NotFound, TransomError, choices
from transom_engine.cli import Session, pass_session
from transom_engine.cli.words import filters, has_labels

if TYPE_CHECKING:
    from transom_engine.engine import Engine
    from transom_engine.model import Container

Test = Callable[["Container"], bool]

HEADINGS = {
    "ID": "CONTAINER ID", "Names": "NAMES", "Image": "IMAGE", "Command": "COMMAND", "CreatedAt": "CREATED AT",
    "RunningFor": "CREATED", "Ports": "PORTS", "State": "STATE", "Status": "STATUS", "Size": "SIZE",
    "Labels": "LABELS", "Mounts": "MOUNTS", "LocalVolumes": "LOCAL VOLUMES", "Networks": "NETWORKS",
}  # fmt: skip
_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")
_FILTERS = (
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "label", "name", "network", "publish",
    "since", "status", "volume",
)  # fmt: skip
_STATUSES = ("created", "dead", "exited", "paused", "removing", "restarting", "running")
_HEALTHS = ("healthy", "none", "starting", "unhealthy")


@click.command("ps")
@click.option("-a", "--all", "all", is_flag=True, help="Show all containers (default shows just running)")
@click.option("-q", "--quiet", is_flag=True, help="Only display container IDs")
@click.option("-n", "--last", type=int, default=-1, help="Show n last created containers (includes all states)")
@click.option("-l", "--latest", is_flag=True, help="Show the latest created container (includes all states)")
@click.option("-f", "--filter", "given", multiple=True, help="Filter output based on conditions provided")
@click.option("--no-trunc", is_flag=True, help="Don't truncate output")
@click.option("-s", "--size", is_flag=True, help="Display total file sizes")
@click.option("--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json")
@pass_session
def ps_command(
    session: Session,
    /,
    all: bool,
    quiet: bool,
    last: int,
    latest: bool,
    given: tuple[str, ...],
    no_trunc: bool,
    size: bool,
    format: str,
) -> None:
    """List containers."""
    from transom_engine.cli.tables import render

    engine = session.engine
    wanted = filters(given, *_FILTERS)
    last = 1 if latest else last
    tests = list(_tests(engine, wanted))
    found = [
        container
        for container in engine.containers.list(all=all or last > 0 or "status" in wanted)
        if all_pass(tests, container)
    ]
    found = found[:last] if last > 0 else found
    size = size or ".Size" in format
    images: dict[str, str] = {}
    rows = (_row(engine, container, full=no_trunc, size=size, images=images) for container in found)
    columns = (*_COLUMNS, "Size") if size else _COLUMNS
    print(render(rows, headings=HEADINGS, columns=columns, format=format, quiet="ID" if quiet else ""), end="")


def all_pass(tests: list[Test], container: Container) -> bool:
    """Say whether the container passes every test."""
    return all(test(container) for test in tests)


def _row(engine: Engine, container: Container, *, full: bool, size: bool, images: dict[str, str]) -> dict[str, Any]:
    from transom_engine import reports
    from transom_engine.cli.units import SECOND, ago, human_size, local_time, parse_time

    now = time.time_ns()
    created = parse_time(container.created, now=now) // SECOND * SECOND
    command = " ".join(reports.command(container))
    mounts = [point.name or point.source for point in container.mounts]
    labels = container.config.labels
    row: dict[str, Any] = {
        "ID": container.id if full else container.id[:12],
        "Names": container.name,
        "Image": _image(engine, container, images, full=full),
        "Command": _quoted(command if full else _shortened(command, 20)),
        "CreatedAt": local_time(created),
        "RunningFor": ago(created, now),
        "Ports": reports.ports(container),
        "State": container.state.status,
        "Status": reports.status(container, now=now),
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(labels.items())),
        "Label": lambda name: labels.get(name, ""),
        "Mounts": ",".join(mounts if full else [_shortened(mount, 15) for mount in mounts]),
        "LocalVolumes": str(sum(point.driver == "local" for point in container.mounts)),
        "Networks": ",".join(sorted(container.network_settings.chosen)),
        "Size": "0B",
    }
    if size:
        own, whole = reports.sizes(engine, container)
        row["Size"] = f"{human_size(own, digits=3)} (virtual {human_size(whole, digits=3)})"
    return row


def _image(engine: Engine, container: Container, images: dict[str, str], *, full: bool) -> str:
    """Return the image as the user wrote it; its id where that name means another image by now.

    Args:
        images: the ids of names that were looked up before.
    """
    written = container.config.image
    if written not in images:
        try:
            images[written] = engine.images.resolve(written).id
        except TransomError:
            images[written] = ""
    id = container.image.removeprefix("sha256:")
    if images[written] == container.image and not id.startswith(written.removeprefix("sha256:")):
        return written
    return container.image if full else id[:12]


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _quoted(text: str) -> str:
    """Write a text as Go's strconv.Quote does."""
    named = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b"}
    shown = (named.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)
    return f'"{"".join(shown)}"'


# Filters: values of one are alternatives, labels must all be there


def _tests(engine: Engine, wanted: dict[str, list[str]]) -> list[Test]:
    makers: dict[str, Callable[[Engine, list[str]], Test]] = {
        "ancestor": _ancestor, "before": _before, "exited": _exited, "health": _health, "id": _id, "name": _name,
        "label": lambda _, words: lambda c: has_labels(c.config.labels, words), "network": _network,
        "since": _since, "status": _status, "volume": _volume, "is-task": _is_task,
        "publish": lambda _, words: _port(words, "publish"), "expose": lambda _, words: _port(words, "expose"),
    }  # fmt: skip
    return [makers[key](engine, words) for key, words in wanted.items()]


def _matcher(words: list[str], flag: str) -> Callable[[str], bool]:
    try:
        patterns = [re.compile(word) for word in words]
    except re.error as error:
        raise ConfigError(f"--filter {flag}={words[-1]!r}: invalid regular expression: {error}") from None
    return lambda text: any(pattern.search(text) for pattern in patterns)


def _id(_: Engine, words: list[str]) -> Test:
    return lambda c: any(c.id.startswith(word) for word in words)


def _name(_: Engine, words: list[str]) -> Test:
    matches = _matcher(words, "name")
    return lambda c: matches(c.name) or matches(f"/{c.name}")


def _exited(_: Engine, words: list[str]) -> Test:
    for word in words:
        if not re.fullmatch(r"-?\d+", word):
            raise ConfigError(f"--filter exited={word!r}: invalid filter; expected an exit code")
    codes = {int(word) for word in words}
    return lambda c: c.state.exit_code in codes and c.state.status == "exited"


def _one_of(words: list[str], known: tuple[str, ...], key: str) -> None:
    for word in words:
        if word not in known:
            raise ConfigError(f"--filter {key}={word!r}: invalid filter; there are {choices(known)}")


def _status(_: Engine, words: list[str]) -> Test:
    _one_of(words, _STATUSES, "status")
    return lambda c: c.state.status in words


def _health(_: Engine, words: list[str]) -> Test:
    _one_of(words, _HEALTHS, "health")
    return lambda c: "none" in words


def _is_task(_: Engine, words: list[str]) -> Test:
    _one_of(words, ("true", "false", "1", "0"), "is-task")
    return lambda c: "false" in words or "0" in words


def _before(engine: Engine, words: list[str]) -> Test:
    limit = min(engine.containers.get(word).created for word in words)
    return lambda c: c.created < limit


def _since(engine: Engine, words: list[str]) -> Test:
    limit = max(engine.containers.get(word).created for word in words)
    return lambda c: c.created > limit


def _ancestor(engine: Engine, words: list[str]) -> Test:
    """An image that is not here has no containers."""
    wanted = set()
    for word in words:
        try:
            wanted.add(engine.images.resolve(word).id)
        except NotFound:
            continue

    def descends(container: Container) -> bool:
        id = container.image
        while id and id not in wanted:
            try:
                id = engine.images.get(id).parent
            except NotFound:
                return False
        return bool(id)

    return descends


def _volume(_: Engine, words: list[str]) -> Test:
    wanted = set(words)
    return lambda c: any(wanted & {point.name, point.source, point.destination} for point in c.mounts)


def _network(_: Engine, words: list[str]) -> Test:
    def joined(container: Container) -> bool:
        places = container.network_settings.networks.items()
        return any(word == name or (place.network_id.startswith(word)) for name, place in places for word in words)

    return joined


def _port(words: list[str], key: str) -> Test:
    wanted = set()
    for word in words:
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", word)
        if match is None or not 1 <= int(match[1]) <= int(match[2] or match[1]) <= 65535:
            raise ConfigError(f"--filter {key}={word!r}: invalid port; expected PORT[-PORT][/PROTOCOL]")
        wanted |= {f"{port}/{match[3] or 'tcp'}" for port in range(int(match[1]), int(match[2] or match[1]) + 1)}

    def has(container: Container) -> bool:
        if key == "publish":
            # The ports of the host, while there are any, as dockerd has it; its manual speaks of others.
            ports = container.network_settings.ports.items()
            return any(f"{b.host_port}/{p.partition('/')[2]}" in wanted for p, found in ports for b in found or ())
        return bool(wanted & container.config.exposed_ports.keys())

    return has
