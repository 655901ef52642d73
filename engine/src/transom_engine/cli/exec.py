"""``transom exec``: a command in a running container."""

from __future__ import annotations

import os

import click

from transom.errors import ConfigError
from transom_engine import flags
from transom_engine.cli import Session, pass_session


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("-d", "--detach", is_flag=True, help="Detached mode: run command in the background")
@click.option("-i", "--interactive", is_flag=True, help="Keep STDIN open even if not attached")
@click.option("-t", "--tty", is_flag=True, help="Allocate a pseudo-TTY")
@click.option("-e", "--env", multiple=True, help="Set environment variables")
@click.option("--env-file", multiple=True, help="Read in a file of environment variables")
@click.option("-w", "--workdir", default="", help="Working directory inside the container")
@click.option("-u", "--user", default="", help="Username or UID (format: <name|uid>[:<group|gid>])")
@click.option("--privileged", is_flag=True, help="Give extended privileges to the command")
@click.option("--detach-keys", default="ctrl-p,ctrl-q", help="Override the key sequence for detaching a container")
@click.argument("name", metavar="CONTAINER")
@click.argument("command", metavar="COMMAND [ARG...]", nargs=-1, required=True, type=click.UNPROCESSED)
@pass_session
def exec_command(
    session: Session,
    /,
    name: str,
    command: tuple[str, ...],
    detach: bool,
    interactive: bool,
    tty: bool,
    env: tuple[str, ...],
    env_file: tuple[str, ...],
    workdir: str,
    user: str,
    privileged: bool,
    detach_keys: str,
) -> int:
    """Execute a command in a running container."""
    from transom_engine.cli.streaming import DETACHED, detach_sequence, pump, terminal_size
    from transom_engine.executing import execute

    detach_sequence(detach_keys)
    stdin = interactive and not detach
    if tty and stdin and not os.isatty(0):
        raise ConfigError("the input device is not a TTY; leave -t out, or run it from a terminal")
    connection = execute(
        session.engine,
        name,
        command,
        env=flags.env(env, env_file, os.environ),
        cwd=workdir,
        user=user,
        tty=tty,
        privileged=privileged,
        stdin=stdin,
        detach=detach,
        size=terminal_size() if tty and not detach else (0, 0),
    )
    try:
        if detach:
            return 0
        code = pump(connection, stdin=stdin, tty=tty, detach_keys=detach_keys)
    finally:
        connection.close()
    return 0 if code == DETACHED else code
