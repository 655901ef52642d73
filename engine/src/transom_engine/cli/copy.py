"""``transom cp``: files between a container and the host."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from transom.errors import ConfigError, Conflict, DriverError
from transom_engine.cli import Session, pass_session

if TYPE_CHECKING:
    from transom_engine.copying import Place
    from transom_engine.model import Container


@click.command("cp", context_settings={"ignore_unknown_options": False})
@click.option("-a", "--archive", is_flag=True, help="Archive mode (copy all uid/gid information)")
@click.option("-L", "--follow-link", is_flag=True, help="Always follow symbol link in SRC_PATH")
@click.option("-q", "--quiet", is_flag=True, help="Suppress progress output during copy")
@click.argument("source", metavar="CONTAINER:SRC_PATH|SRC_PATH|-")
@click.argument("target", metavar="DEST_PATH|-|CONTAINER:DEST_PATH")
@pass_session
def cp_command(session: Session, /, source: str, target: str, archive: bool, follow_link: bool, quiet: bool) -> None:
    """Copy files and folders between a container and the host.

    A - as SRC_PATH unpacks a tar from standard input into a directory of the container, a - as DEST_PATH writes one
    to standard output.
    """
    from transom_engine.copying import with_root

    for text, what in ((source, "source"), (target, "destination")):
        if not text:
            raise ConfigError(f"{what} can not be empty: write CONTAINER:PATH, a path of the host, or -")
    (inside, path), (other, local) = _split(source), _split(target)
    if inside and other:
        raise ConfigError(
            "copying between containers is not supported: copy to the host first, or pipe one cp into another"
        )
    if not inside and not other:
        raise ConfigError("must specify at least one container source: write CONTAINER:PATH for one of the two")
    container = session.engine.containers.get(inside or other)
    owner = None if archive else (0, 0)
    if other:
        _refuse_readonly(container, local)
    move = _out if inside else _in
    try:
        size = with_root(session.engine, container, lambda root: move(root, container, path, local, follow_link, owner))
    except OSError as error:
        raise DriverError("copying", driver="engine", subject=f"{source} to {target}", cause=error) from error
    if not quiet and local != "-" and sys.stderr.isatty():
        from transom_engine.cli.units import human_size

        print(f"Successfully copied {human_size(size, digits=3)} to {target}", file=sys.stderr)


def _split(text: str) -> tuple[str, str]:
    """Tell ``CONTAINER:PATH`` from a path of the host, which a leading / or . marks where it has a colon."""
    name, colon, path = text.partition(":")
    if not colon or text.startswith(("/", ".")):
        return "", text
    if not name or not path:
        raise ConfigError(
            f"{text!r}: expected CONTAINER:PATH, or a path of the host, ./ before it where it has a colon"
        )
    return name, path


def _refuse_readonly(container: Container, path: str) -> None:
    where = os.path.normpath("/" + path.lstrip("/"))
    points = [p for p in container.mounts if where == p.destination or where.startswith(f"{p.destination}/")]
    point = max(points, key=lambda p: len(p.destination), default=None)
    if point is not None and not point.rw:
        raise Conflict(f"mounted volume {point.destination} of container {container.name} is marked read-only")
    if point is None and container.host_config.readonly_rootfs:
        raise Conflict(f"container {container.name} rootfs is marked read-only")


def _host(path: str) -> Place:
    from transom_engine.copying import Place

    tail = "/" if path.endswith("/") else "/." if path.endswith("/.") or path == "." else ""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return Place(root=root, path=os.path.abspath(path).rstrip("/") + tail or "/", label="on this host")


def _out(root: int, container: Container, path: str, local: str, follow: bool, owner: tuple[int, int] | None) -> int:
    from transom_engine.copying import Place, copy, pack

    place = Place(root=root, path="/" + path.lstrip("/"), label=f"in container {container.name}")
    if local != "-":
        return copy(place, _host(local), follow=follow, owner=owner and (os.getuid(), os.getgid()))
    if os.isatty(1):
        raise ConfigError("refusing to write a tar to a terminal: redirect the output, or name a path")
    pack(place, sys.stdout.buffer, follow=follow)
    return 0


def _in(root: int, container: Container, path: str, target: str, follow: bool, owner: tuple[int, int] | None) -> int:
    from transom_engine.copying import Place, copy, unpack

    place = Place(root=root, path="/" + target.lstrip("/"), label=f"in container {container.name}")
    if path == "-":
        return unpack(sys.stdin.buffer, place)
    return copy(_host(path), place, follow=follow, owner=owner)
