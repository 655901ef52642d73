"""The command ``transom``: words in, the engine called, words out.

Each command is a module of its own, imported when it is the one that runs: ``transom --help`` imports none.
"""

from __future__ import annotations

import os
import sys
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from transom import __version__
from transom.errors import TransomError

if TYPE_CHECKING:
    from transom.config import Config
    from transom_engine.engine import Engine

# Where each command is, and its line in --help: the modules are not imported to list them.
_COMMANDS = {
    "attach": ("container", "Attach standard input, output and error to a running container"),
    "cp": ("copy", "Copy files and folders between a container and the host"),
    "create": ("run", "Create a new container"),
    "diff": ("container", "Inspect changes to files or directories on a container's filesystem"),
    "events": ("system", "Get real time events"),
    "exec": ("exec", "Execute a command in a running container"),
    "history": ("image", "Show the history of an image"),
    "images": ("image", "List images"),
    "import": ("image", "Import the contents from a tarball or a directory to create an image"),
    "info": ("system", "Display system-wide information"),
    "inspect": ("inspect", "Return low-level information on containers, images, networks and volumes"),
    "kill": ("container", "Kill one or more running containers"),
    "logs": ("logs", "Fetch the logs of a container"),
    "pause": ("container", "Pause all processes within one or more containers"),
    "port": ("container", "List port mappings or a specific mapping for the container"),
    "ps": ("ps", "List containers"),
    "pull": ("image", "Download an image from a registry"),
    "rename": ("container", "Rename a container"),
    "restart": ("container", "Restart one or more containers"),
    "rm": ("container", "Remove one or more containers"),
    "rmi": ("image", "Remove one or more images"),
    "run": ("run", "Create and run a new container from an image"),
    "start": ("container", "Start one or more stopped containers"),
    "stats": ("stats", "Display a live stream of container(s) resource usage statistics"),
    "stop": ("container", "Stop one or more running containers"),
    "tag": ("image", "Create a tag that refers to an image"),
    "top": ("container", "Display the running processes of a container"),
    "unpause": ("container", "Unpause all processes within one or more containers"),
    "update": ("update", "Update configuration of one or more containers"),
    "version": ("system", "Show the version"),
    "wait": ("container", "Block until one or more containers stop, then print their exit codes"),
    "config": ("config", "Show the configuration and where each value comes from"),
    "container": ("groups", "Manage containers"),
    "doctor": ("doctor", "Probe this host and find what a crash left"),
    "drivers": ("drivers", "List and inspect drivers"),
    "image": ("groups", "Manage images"),
    "network": ("network", "Manage networks"),
    "storage": ("storage", "Manage where containers are stored"),
    "system": ("system", "Manage the engine"),
    "volume": ("volume", "Manage volumes"),
}

_ACTS_ON = {"image": "image", "config": "system", "doctor": "system", "storage": "system", "system": "system"}
"""The kind of object that the commands of a module act on, in an auth driver's words; others act on containers."""


class Session:
    """What a command line asks for: its global flags; the configuration and the engine, made when first used."""

    def __init__(self, *, path: str | None, debug: bool, overrides: dict[str, object]) -> None:
        self._path, self.debug, self._overrides = path, debug, overrides

    @cached_property
    def config(self) -> Config:
        """The configuration; raises `ConfigError`."""
        from transom.config import load

        return load(path=self._path, environ=os.environ, overrides=self._overrides)

    @cached_property
    def engine(self) -> Engine:
        """The engine; raises as its constructor does, and `Denied` when an auth driver refuses the caller."""
        from transom_engine.engine import Engine

        engine = Engine(self.config)
        if self.config.auth_drivers or self.config.authorization_plugins:
            _authorize(engine)
        return engine


def _authorize(engine: Engine) -> None:
    """Ask the configured auth drivers whether this user may run this command; raises `Denied`."""
    from transom.contract.auth import Request, Target, UnixPeer
    from transom.services.access import Access

    opened = []
    for name in engine.config.drivers("auth"):
        options, where = engine.config.options("auth", name)
        opened.append(engine.drivers.auth(name, options, where=where))
    caller = UnixPeer(pid=os.getpid(), uid=os.getuid(), gid=os.getgid())
    request = Request(unix=caller, command=tuple(sys.argv))
    words = click.get_current_context().command_path.split()[1:]
    module = _COMMANDS.get(words[0], ("", ""))[0]
    kind = words[0] if len(words) > 1 else _ACTS_ON.get(module, "container")
    access = Access(opened)
    access.authorize(access.authenticate(request), f"{kind}.{words[-1]}", Target(kind=kind), request)


pass_session = click.make_pass_decorator(Session)


class Commands(click.Group):
    """A group whose commands are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _COMMANDS:
            module = import_module(f"transom_engine.cli.{_COMMANDS[cmd_name][0]}")
            command: click.Command = getattr(module, f"{cmd_name}_command")
            return command
        return _from_distribution(cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        command = self.get_command(ctx, args[0])
        if command is None and not args[0].startswith("-"):
            from transom.errors import nearest

            raise click.UsageError(f"no such command: {args[0]}{nearest(args[0], _COMMANDS)}; see `transom --help`")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(_COMMANDS.items())])
        formatter.write_paragraph()
        formatter.write_text(
            "Other distributions add commands of their own: transom-conformance adds `conformance`, `new`."
        )


def _from_distribution(name: str) -> click.Command | None:
    """Find a command that another distribution adds (entry points in the group ``transom.commands``)."""
    from importlib.metadata import entry_points

    for point in entry_points(group="transom.commands", name=name):
        command: click.Command = point.load()
        return command
    return None


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--config", "path", metavar="FILE", help="Read this daemon.json")
@click.option("--debug", "-D", is_flag=True, help="Show the trace of an error")
@click.option("--data-root", metavar="DIR", help="Keep state in DIR/transom")
@click.option("--exec-root", metavar="DIR", help="Keep the state of runs in DIR/transom")
@click.option("--storage-driver", "-s", metavar="NAME", help="The storage driver of new containers")
@click.option("--log-driver", metavar="NAME", help="The log driver of new containers")
@click.option("--limits-driver", metavar="NAME", help="The resource-limit driver")
@click.option("--network-driver", metavar="NAME", help="The driver of the default network and of new ones")
@click.version_option(version=__version__, prog_name="transom", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, path: str | None, debug: bool, **overrides: object) -> None:
    """A container engine whose every moving part is a driver."""
    ctx.obj = Session(
        path=path, debug=debug, overrides={key.replace("_", "-"): value for key, value in overrides.items()}
    )


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code: 125 for errors of the engine, 126 and 127 as with docker."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if any(word[:1] == "-" and "=" in word for word in arguments):
            from transom_engine.cli.booleans import spelled_out

            arguments = spelled_out(click.Context(cli, info_name="transom", **cli.context_settings), arguments)
        result: Any = cli.main(args=arguments, prog_name="transom", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return 0
    except click.UsageError as error:
        text = error.format_message().rstrip(".")
        return _say(text if "--help" in text else f"{text}; see `{_path(error.ctx)} --help`")
    except click.ClickException as error:
        return _say(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return 130
    except (BrokenPipeError, SystemExit):  # click turns the first into the second
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing more can be said there, not at exit either
        return 141
    except TransomError as error:
        if _debug(arguments):
            raise
        return _say(str(error), error.exit_code)
    except OSError as error:
        if _debug(arguments):
            raise
        return _say(f"{error.filename or 'system call'}: {error.strerror or error}")
    except Exception as error:
        if _debug(arguments):
            raise
        if type(error).__name__ == "OperationalError":  # SQLite's: full, not writable, locked for a minute
            return _say(f"the engine's records below its data root cannot be kept: {error}; see that file system (df)")
        text = " ".join(str(error).split())
        return _say(f"internal error: {type(error).__name__}: {text}; please report it with what --debug shows")
    finally:
        _flush()


def entry() -> NoReturn:
    """Be the command: run and leave at once.

    What the interpreter would tidy up on its way out, the kernel takes away faster; SQLite's files are left as
    another command left them open.
    """
    code = main()
    sys.stderr.flush()
    os._exit(code)


def _path(ctx: click.Context | None) -> str:
    return ctx.command_path if ctx else "transom"


def _say(text: str, code: int = 125) -> int:
    from transom_engine.cli.words import explained

    print(f"transom: {explained(text)}", file=sys.stderr)
    return code


def _debug(arguments: list[str]) -> bool:
    return bool({"--debug", "-D"} & set(arguments[:4]))


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
