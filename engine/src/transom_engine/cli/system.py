"""The engine as a whole on the command line: info, version, events, disk usage, and removing all that is unused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from transom.errors import ConfigError
from transom_engine.cli import Session, pass_session
from transom_engine.cli.words import confirmed, filters, has_labels

if TYPE_CHECKING:
    from transom_engine.state import Event
    from transom_engine.system import DiskUsage, Part

POLL = 0.05
"""Seconds between looks for new events."""
_FORMAT = click.option("-f", "--format", "format", default="", help="Format output using a Go template, or json")


@click.group("system")
def system_command() -> None:
    """Manage the engine."""


def _show(facts: dict[str, Any], format: str) -> bool:
    """Print by the template, if there is one; say whether there was."""
    if not format:
        return False
    from transom_engine.cli.template import Template, to_json

    print(to_json(facts) if format == "json" else Template(format).render(facts))
    return True


# Info and version

_LINES = (
    ("Default Runtime", "DefaultRuntime"), ("Runtime Version", "RuntimeVersion"), ("Kernel Version", "KernelVersion"),
    ("Operating System", "OperatingSystem"), ("OSType", "OSType"), ("Architecture", "Architecture"), ("CPUs", "NCPU"),
)  # fmt: skip


@click.command("info")
@_FORMAT
@pass_session
def info_command(session: Session, /, format: str) -> None:
    """Display system-wide information."""
    from transom_engine.system import info

    facts = info(session.engine)
    if not _show(facts, format):
        print("\n".join(_info_lines(facts)))


def _info_lines(facts: dict[str, Any]) -> Iterator[str]:
    from transom_engine.cli.units import binary_size

    yield "Server:"
    yield f" Containers: {facts['Containers']}"
    for state in ("Running", "Paused", "Stopped"):
        yield f"  {state}: {facts[f'Containers{state}']}"
    yield f" Images: {facts['Images']}"
    yield f" Server Version: {facts['ServerVersion']}"
    for title, key, status in (("Storage", "Driver", "DriverStatus"), ("Limits", "LimitsDriver", "LimitsStatus")):
        yield f" {title} Driver: {facts[key]}"
        yield from (f"  {name}: {value}" for name, value in facts[status])
    yield f" Logging Driver: {facts['LoggingDriver']}"
    yield f" Network Driver: {facts['NetworkDriver']}"
    yield " Drivers:"
    for kind in ("Storage", "Network", "Log", "Limits"):
        yield f"  {kind}: {' '.join(facts['Plugins'][kind])}"
    for flags in (" ".join(runtime["runtimeArgs"]) for runtime in facts["Runtimes"].values()):
        if flags:
            yield f" Runtime Flags: {flags}"
    yield from (f" {title}: {facts[key]}" for title, key in _LINES)
    yield f" Total Memory: {binary_size(facts['MemTotal'])}"
    yield f" Name: {facts['Name']}"
    yield f" Data Root: {facts['DockerRootDir']}"
    yield f" Exec Root: {facts['ExecRoot']}"
    for title, values in (
        ("Insecure Registries", facts["RegistryConfig"]["InsecureRegistryCIDRs"]),
        ("Registry Mirrors", facts["RegistryConfig"]["Mirrors"]),
        ("Labels", facts["Labels"]),
    ):
        if values:
            yield f" {title}:"
            yield from (f"  {value}" for value in values)
    for warning in facts["Warnings"]:
        yield f"WARNING: {warning}"


@click.command("version")
@_FORMAT
@pass_session
def version_command(session: Session, /, format: str) -> None:
    """Show the version."""
    from transom_engine.system import version

    facts = version(session.engine)
    if _show(facts, format):
        return
    print(f"Transom:\n Version:           {facts['Version']}")
    print(f" Driver contracts:  {facts['ContractVersion']}")
    print(f" Python version:    {facts['PythonVersion']}")
    print(f" OS/Arch:           {facts['Os']}/{facts['Arch']}")
    print(f" Kernel:            {facts['KernelVersion']}")
    for component in facts["Components"]:
        print(f" {component['Name']}:\n  Version:          {component['Version']}")


# Events

_EVENT_FILTERS = ("container", "event", "image", "label", "network", "scope", "type", "volume")


@click.command("events")
@click.option("-f", "--filter", "given", multiple=True, help="Filter output based on conditions provided")
@click.option("--format", "format", default="", help="Format output using a Go template, or json")
@click.option("--since", default="", help="Show all events created since timestamp")
@click.option("--until", default="", help="Stream events until this timestamp")
@pass_session
def events_command(session: Session, /, given: tuple[str, ...], format: str, since: str, until: str) -> None:
    """Get real time events: those since a time, then those that happen, until a time or until interrupted."""
    from transom_engine.cli.template import Template, to_json
    from transom_engine.cli.units import parse_time

    now = time.time_ns()
    begin = parse_time(since, now=now, flag="--since") if since else None
    end = parse_time(until, now=now, flag="--until") if until else None
    wanted = filters(given, *_EVENT_FILTERS)
    template = Template(format) if format not in ("", "json") else None
    for event in _events(session, begin, end):
        if not _passes(event, wanted):
            continue
        if template:
            print(template.render(_fields(event)), flush=True)
        else:
            print(to_json(_fields(event)) if format else _line(event), flush=True)


def _events(session: Session, begin: int | None, end: int | None) -> Iterator[Event]:
    """Yield what happened since `begin`, if that is given, then what happens, until `end`; nanoseconds."""
    state = session.engine.state
    after = state.last_event() if begin is None else 0
    seen = -1
    while True:
        late = end is not None and time.time_ns() > end
        version = state.version()
        if version != seen or late:
            seen = version
            for event in state.events(after=after, since=begin, until=end):
                after = event.number
                yield event
        if late:
            return
        time.sleep(POLL)


def _passes(event: Event, wanted: dict[str, list[str]]) -> bool:
    """Values of one filter are alternatives, labels must all be there, and different filters must all hold."""

    def named(kind: str, words: list[str]) -> bool:
        name = event.attributes.get("name", "")
        if event.type != kind:
            return kind == "container" and event.attributes.get("container", "-") in words
        return any(word in (event.id, name) or (kind != "volume" and event.id.startswith(word)) for word in words)

    tests: dict[str, Callable[[list[str]], bool]] = {
        "type": lambda words: event.type in words,
        "event": lambda words: event.action in words,
        "scope": lambda words: "local" in words,
        "label": lambda words: has_labels(event.attributes, words),
        "image": lambda words: named("image", words) or event.attributes.get("image", "-") in words,
        "container": lambda words: named("container", words),
        "network": lambda words: named("network", words),
        "volume": lambda words: named("volume", words),
    }
    return all(tests[key](words) for key, words in wanted.items())


def _fields(event: Event) -> dict[str, Any]:
    """Write an event as Docker's API does, its older fields included."""
    fields: dict[str, Any] = {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.id, "Attributes": event.attributes},
        "scope": "local",
        "time": event.time // 10**9,
        "timeNano": event.time,
    }
    if event.type in {"container", "image"}:
        fields |= {"status": event.action, "id": event.id}
    if event.type == "container":
        fields["from"] = event.attributes.get("image", "")
    return fields


def _line(event: Event) -> str:
    from datetime import datetime

    moment = datetime.fromtimestamp(event.time // 10**9).astimezone()
    zone = moment.strftime("%z")
    at = f"{moment:%Y-%m-%dT%H:%M:%S}.{event.time % 10**9:09d}{zone[:3]}:{zone[3:]}"
    known = ", ".join(f"{key}={value}" for key, value in sorted(event.attributes.items()))
    return f"{at} {event.type} {event.action} {event.id}" + (f" ({known})" if known else "")


# Disk usage

_DF = {"Type": "TYPE", "TotalCount": "TOTAL", "Active": "ACTIVE", "Size": "SIZE", "Reclaimable": "RECLAIMABLE"}
_DF_IMAGES = {
    "Repository": "REPOSITORY", "Tag": "TAG", "ID": "IMAGE ID", "CreatedSince": "CREATED", "Size": "SIZE",
    "SharedSize": "SHARED SIZE", "UniqueSize": "UNIQUE SIZE", "Containers": "CONTAINERS",
}  # fmt: skip
_DF_CONTAINERS = {
    "ID": "CONTAINER ID", "Image": "IMAGE", "Command": "COMMAND", "LocalVolumes": "LOCAL VOLUMES", "Size": "SIZE",
    "RunningFor": "CREATED", "Status": "STATUS", "Names": "NAMES",
}  # fmt: skip
_DF_VOLUMES = {"Name": "VOLUME NAME", "Links": "LINKS", "Size": "SIZE"}


@system_command.command("df")
@click.option("-v", "--verbose", is_flag=True, help="Show detailed information on space usage")
@click.option("--format", "format", default="", help="Format output using a Go template, 'table TEMPLATE' or json")
@pass_session
def df_command(session: Session, /, verbose: bool, format: str) -> None:
    """Show disk usage."""
    from transom_engine.cli.tables import render
    from transom_engine.system import disk_usage

    if verbose and format:
        raise ConfigError("--verbose and --format contradict each other: leave one out")
    usage = disk_usage(session.engine)
    if verbose:
        print("\n\n".join(_details(usage)))
    else:
        print(render(map(_part, usage.parts), headings=_DF, columns=tuple(_DF), format=format), end="")


def _part(part: Part) -> dict[str, Any]:
    from transom_engine.cli.units import human_size

    share = f" ({part.reclaimable * 100 // part.size}%)" if part.size else ""
    return {
        "Type": part.name,
        "TotalCount": str(part.total),
        "Active": str(part.active),
        "Size": human_size(part.size),
        "Reclaimable": human_size(part.reclaimable) + share,
    }


def _details(usage: DiskUsage) -> Iterator[str]:
    from transom_engine import reports
    from transom_engine.cli.image import rows_of
    from transom_engine.cli.tables import render
    from transom_engine.cli.units import ago, human_size, parse_time

    now = time.time_ns()
    images = [
        row
        | {
            "SharedSize": human_size(image.shared),
            "UniqueSize": human_size(image.summary.size - image.shared),
            "Containers": str(image.containers),
        }
        for image in usage.images
        for row in rows_of(image.summary, digests=False, full=False, users={})
    ]
    containers = [
        {
            "ID": container.id[:12],
            "Image": container.config.image,
            "Command": '"' + " ".join(reports.command(container))[:20] + '"',
            "LocalVolumes": str(sum(point.type == "volume" for point in container.mounts)),
            "Size": human_size(size),
            "RunningFor": ago(parse_time(container.created, now=now), now),
            "Status": reports.status(container, now=now),
            "Names": container.name,
        }
        for container, size in usage.containers
    ]
    volumes = [{"Name": v.name, "Links": str(links), "Size": human_size(size)} for v, size, links in usage.volumes]
    for title, rows, headings in (
        ("Images", images, _DF_IMAGES),
        ("Containers", containers, _DF_CONTAINERS),
        ("Local Volumes", volumes, _DF_VOLUMES),
    ):
        table = render(rows, headings=headings, columns=tuple(headings))
        yield f"{title} space usage:\n\n{table.removesuffix(chr(10))}"


# Removing all that is unused


@system_command.command("prune")
@click.option("-a", "--all", "all", is_flag=True, help="Remove all unused images, not just dangling ones")
@click.option("--volumes", is_flag=True, help="Prune anonymous volumes")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.option("--filter", "given", multiple=True, help="Provide filter values (e.g. until=24h, label=KEY=VALUE)")
@pass_session
def prune_command(session: Session, /, all: bool, volumes: bool, force: bool, given: tuple[str, ...]) -> None:
    """Remove unused data."""
    from transom_engine.cli import container, image, network, volume
    from transom_engine.cli.units import human_size
    from transom_engine.pruning import names_of

    wanted = filters(given, "until", "label", "label!")
    if volumes and "until" in wanted:
        raise ConfigError("--filter until is not supported with --volumes: volumes have no last use")
    if not force and not confirmed(_warning(all=all, volumes=volumes)):
        return
    engine = session.engine
    containers, freed = container.prune(engine, wanted)
    deleted = {"Containers": containers, "Networks": network.prune(engine, wanted)}
    if volumes:
        deleted["Volumes"], size = volume.prune(engine, wanted, all=False)
        freed += size
    images, size = image.prune(engine, wanted, all=all)
    deleted["Images"] = names_of(images)
    for title, names in deleted.items():
        if names:
            print(f"Deleted {title}:", *names, sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human_size(freed + size)}")


def _warning(*, all: bool, volumes: bool) -> str:
    doomed = ["all stopped containers", "all networks not used by at least one container"]
    if volumes:
        doomed.append("all anonymous volumes not used by at least one container")
    doomed.append("all images without at least one container associated to them" if all else "all dangling images")
    return "This will remove:\n" + "".join(f"  - {line}\n" for line in doomed)


system_command.add_command(info_command)
system_command.add_command(events_command)
