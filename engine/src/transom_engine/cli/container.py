"""The life of containers on the command line: start, stop, attach, remove and what goes with these."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

import click

from transom.errors import ConfigError, Conflict
from transom_engine import wire
from transom_engine.cli import Session, pass_session
from transom_engine.cli.words import at_once, confirmed, filters, has_labels, several

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transom_engine.engine import Engine
    from transom_engine.model import Container

_KEYS = "ctrl-p,ctrl-q"
_NAMES = click.argument("names", metavar="CONTAINER...", nargs=-1, required=True)
_TIME = click.option(
    "-t", "--time", "--timeout", "timeout", type=int, help="Seconds to wait before killing the container"
)
_SIGNAL = click.option("-s", "--signal", default="", help="Signal to send to the container")
_DETACH_KEYS = click.option("--detach-keys", default=_KEYS, help="Override the key sequence for detaching a container")


@click.command("start")
@click.option("-a", "--attach", is_flag=True, help="Attach STDOUT/STDERR and forward signals")
@click.option("-i", "--interactive", is_flag=True, help="Attach container's STDIN")
@_DETACH_KEYS
@_NAMES
@pass_session
def start_command(
    session: Session, /, names: tuple[str, ...], attach: bool, interactive: bool, detach_keys: str
) -> int:
    """Start one or more stopped containers."""
    containers = session.engine.containers
    if not attach and not interactive:
        return several(names, lambda name: containers.start(name).close())
    if len(names) > 1:
        raise ConfigError("you cannot start and attach multiple containers at once")
    container = containers.get(names[0])
    request = _attachment(container, stdin=interactive)
    return _follow(
        container, containers.start(container.id, attach=request), request, sig_proxy=True, detach_keys=detach_keys
    )


@click.command("attach")
@click.option("--no-stdin", is_flag=True, help="Do not attach STDIN")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Proxy all received signals to the process")
@_DETACH_KEYS
@click.argument("name", metavar="CONTAINER")
@pass_session
def attach_command(session: Session, /, name: str, no_stdin: bool, sig_proxy: bool, detach_keys: str) -> int:
    """Attach local standard input, output, and error streams to a running container."""
    container = session.engine.containers.get(name)
    refused = {
        "paused": "you cannot attach to a paused container, unpause it first",
        "restarting": "you cannot attach to a restarting container, wait until it is running",
    }
    if container.state.status != "running":
        raise Conflict(refused.get(container.state.status, "you cannot attach to a stopped container, start it first"))
    request = _attachment(container, stdin=not no_stdin)
    connection = session.engine.containers.attach(container.id, request)
    return _follow(container, connection, request, sig_proxy=sig_proxy, detach_keys=detach_keys)


def _attachment(container: Container, *, stdin: bool) -> wire.Request:
    from transom_engine.cli.streaming import terminal_size

    stdin = stdin and container.config.open_stdin
    if stdin and container.config.tty and not os.isatty(0):
        raise ConfigError("the input device is not a TTY; leave standard input out, or call it from a terminal")
    rows, columns = terminal_size() if container.config.tty else (0, 0)
    return wire.Request(do="attach", stdin=stdin, rows=rows, columns=columns)


def _follow(
    container: Container, connection: wire.Connection, request: wire.Request, *, sig_proxy: bool, detach_keys: str
) -> int:
    """Move data until the container has ended or the user detaches; return the exit code."""
    from transom_engine.cli.streaming import DETACHED, pump

    try:
        code = pump(
            connection, stdin=request.stdin, tty=container.config.tty, sig_proxy=sig_proxy, detach_keys=detach_keys,
            on_signal=lambda number: connection.send(wire.REQUEST, wire.Request(do="signal", signal=number)),
        )  # fmt: skip
    finally:
        connection.close()
    return 0 if code == DETACHED else code


@click.command("stop")
@_TIME
@_SIGNAL
@_NAMES
@pass_session
def stop_command(session: Session, /, names: tuple[str, ...], timeout: int | None, signal: str) -> int:
    """Stop one or more running containers."""
    return at_once(
        session, names, lambda engine, name: engine.containers.stop(name, timeout=timeout, signal_name=signal)
    )


@click.command("restart")
@_TIME
@_SIGNAL
@_NAMES
@pass_session
def restart_command(session: Session, /, names: tuple[str, ...], timeout: int | None, signal: str) -> int:
    """Restart one or more containers."""
    return several(names, lambda name: session.engine.containers.restart(name, timeout=timeout, signal_name=signal))


@click.command("kill")
@click.option("-s", "--signal", default="KILL", help="Signal to send to the container")
@_NAMES
@pass_session
def kill_command(session: Session, /, names: tuple[str, ...], signal: str) -> int:
    """Kill one or more running containers."""
    return at_once(session, names, lambda engine, name: engine.containers.kill(name, signal))


@click.command("pause")
@_NAMES
@pass_session
def pause_command(session: Session, /, names: tuple[str, ...]) -> int:
    """Pause all processes within one or more containers."""
    return several(names, session.engine.containers.pause)


@click.command("unpause")
@_NAMES
@pass_session
def unpause_command(session: Session, /, names: tuple[str, ...]) -> int:
    """Unpause all processes within one or more containers."""
    return several(names, session.engine.containers.unpause)


@click.command("rename")
@click.argument("name", metavar="CONTAINER")
@click.argument("new_name")
@pass_session
def rename_command(session: Session, /, name: str, new_name: str) -> None:
    """Rename a container."""
    session.engine.containers.rename(name, new_name.removeprefix("/"))


@click.command("rm")
@click.option("-f", "--force", is_flag=True, help="Force the removal of a running container (uses SIGKILL)")
@click.option("-v", "--volumes", is_flag=True, help="Remove anonymous volumes associated with the container")
@_NAMES
@pass_session
def rm_command(session: Session, /, names: tuple[str, ...], force: bool, volumes: bool) -> int:
    """Remove one or more containers."""

    def remove(engine: Engine, name: str) -> None:
        _warn_of_lost_lines(name, engine.containers.remove(name, force=force, volumes=volumes))

    return at_once(session, names, remove)


def _warn_of_lost_lines(name: str, given_up: Mapping[str, int]) -> None:
    for driver, count in given_up.items():
        print(
            f"WARNING: {name}: {count} lines that log driver {driver} had not delivered are given up;"
            " `transom logs --flush` delivers them before",
            file=sys.stderr,
        )


@click.command("wait")
@_NAMES
@pass_session
def wait_command(session: Session, /, names: tuple[str, ...]) -> int:
    """Block until one or more containers stop, then print their exit codes."""
    return several(names, session.engine.containers.wait)


@click.command("diff")
@click.argument("name", metavar="CONTAINER")
@pass_session
def diff_command(session: Session, /, name: str) -> None:
    """Inspect changes to files or directories on a container's filesystem."""
    from transom_engine.copying import changes

    out = sys.stdout.buffer
    for change in changes(session.engine, session.engine.containers.get(name)):
        out.write(b"%s /%s\n" % (change.kind.encode(), change.path))
    out.flush()


@click.command("port")
@click.argument("name", metavar="CONTAINER")
@click.argument("private", metavar="[PRIVATE_PORT[/PROTO]]", default="")
@pass_session
def port_command(session: Session, /, name: str, private: str) -> None:
    """List port mappings or a specific mapping for the container."""
    ports = session.engine.containers.get(name).network_settings.ports
    found = [(key, binding) for key in sorted(ports, key=_port_number) for binding in ports[key] or ()]
    if private:
        number, _, protocol = private.partition("/")
        if not number.isdecimal() or int(number) > 65535:
            raise ConfigError(f"invalid port {private!r}; expected a number from 1 to 65535, /udp or /sctp after it")
        wanted = f"{number}/{protocol.lower() or 'tcp'}"
        found = [(key, binding) for key, binding in found if key == wanted]
        if not found:
            raise ConfigError(
                f"no public port {wanted!r} published for {name}; `transom port {name}` lists those that are"
            )
    for key, binding in found:
        address = f"[{binding.host_ip}]" if ":" in binding.host_ip else binding.host_ip
        print(f"{address}:{binding.host_port}" if private else f"{key} -> {address}:{binding.host_port}")


def _port_number(key: str) -> tuple[int, str]:
    number, _, protocol = key.partition("/")
    return int(number), protocol


@click.command("top", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("name", metavar="CONTAINER")
@click.argument("options", metavar="[PS OPTIONS]", nargs=-1, type=click.UNPROCESSED)
@pass_session
def top_command(session: Session, /, name: str, options: tuple[str, ...]) -> None:
    """Display the running processes of a container."""
    from transom_engine.top import processes

    titles, rows = processes(session.engine, session.engine.containers.running(name), options or ("-ef",))
    lines = [titles, *rows]
    widths = [max(20, *(len(line[column]) + 3 for line in lines)) for column in range(len(titles) - 1)]
    for line in lines:
        print("".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) + line[-1])


@click.command("prune")
@click.option("-f", "--force", is_flag=True, help="Do not prompt for confirmation")
@click.option("--filter", "given", multiple=True, help="Provide filter values (e.g. until=24h, label=KEY=VALUE)")
@pass_session
def prune_command(session: Session, /, force: bool, given: tuple[str, ...]) -> None:
    """Remove all stopped containers."""
    from transom_engine.cli.units import human_size

    wanted = filters(given, "until", "label", "label!")
    if not force and not confirmed("This will remove all stopped containers."):
        return
    removed, freed = prune(session.engine, wanted)
    if removed:
        print("Deleted Containers:", *removed, sep="\n", end="\n\n")
    print(f"Total reclaimed space: {human_size(freed)}")


def prune(engine: Engine, wanted: dict[str, list[str]]) -> tuple[list[str], int]:
    """Remove the containers that do not run and that the filters pass; return their ids and the bytes gained.

    Warns of lines that go with them and that no sink has got, as ``rm`` does.
    """
    from transom_engine.cli.units import parse_time

    now = time.time_ns()
    untils = [parse_time(text, now=now, flag="--filter until") for text in wanted.get("until", ())]

    def doomed(container: Container) -> bool:
        labels = container.config.labels
        return (
            all(parse_time(container.created, now=now) < until for until in untils)
            and has_labels(labels, wanted.get("label", ()))
            and not any(has_labels(labels, [word]) for word in wanted.get("label!", ()))
        )

    return engine.containers.prune(
        doomed, warn=lambda container, given_up: _warn_of_lost_lines(container.name, given_up)
    )
