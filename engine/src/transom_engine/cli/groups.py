"""``transom container`` and ``transom image``: docker's groups, whose commands are those of the top level too."""

from __future__ import annotations

from importlib import import_module

import click

from transom.errors import nearest

_SECOND = {"list": "ls", "remove": "rm"}
"""Docker's second names of commands."""


class Named(click.Group):
    """A group that takes docker's second names of its commands; who judges a command hears the first one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = _SECOND.get(args[0], args[0])
        known = self.list_commands(ctx)
        if name not in known and not name.startswith("-"):
            raise click.UsageError(
                f"no such command: {ctx.info_name} {name}{nearest(name, known)}; see `transom {ctx.info_name} --help`"
            )
        return super().resolve_command(ctx, [name, *args[1:]])


class Group(Named):
    """A group whose commands are imported when they are used.

    Args:
        commands: for each name the module below this package, the attribute, and the line in --help.
    """

    def __init__(self, name: str, lines: dict[str, tuple[str, str, str]], help: str) -> None:
        super().__init__(name, help=help)
        self._lines = lines

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self._lines)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lines:
            return None
        module, attribute, _ = self._lines[cmd_name]
        command: click.Command = getattr(import_module(f"transom_engine.cli.{module}"), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in sorted(self._lines.items())])


container_command = Group(
    "container",
    {
        "attach": ("container", "attach_command", "Attach standard input, output and error to a running container"),
        "cp": ("copy", "cp_command", "Copy files and folders between a container and the host"),
        "create": ("run", "create_command", "Create a new container"),
        "diff": ("container", "diff_command", "Inspect changes to files or directories on a container's filesystem"),
        "exec": ("exec", "exec_command", "Execute a command in a running container"),
        "inspect": ("inspect", "container_inspect_command", "Display detailed information on one or more containers"),
        "kill": ("container", "kill_command", "Kill one or more running containers"),
        "logs": ("logs", "logs_command", "Fetch the logs of a container"),
        "ls": ("ps", "ps_command", "List containers"),
        "pause": ("container", "pause_command", "Pause all processes within one or more containers"),
        "port": ("container", "port_command", "List port mappings or a specific mapping for the container"),
        "prune": ("container", "prune_command", "Remove all stopped containers"),
        "rename": ("container", "rename_command", "Rename a container"),
        "restart": ("container", "restart_command", "Restart one or more containers"),
        "rm": ("container", "rm_command", "Remove one or more containers"),
        "run": ("run", "run_command", "Create and run a new container from an image"),
        "start": ("container", "start_command", "Start one or more stopped containers"),
        "stats": ("stats", "stats_command", "Display a live stream of container(s) resource usage statistics"),
        "stop": ("container", "stop_command", "Stop one or more running containers"),
        "top": ("container", "top_command", "Display the running processes of a container"),
        "unpause": ("container", "unpause_command", "Unpause all processes within one or more containers"),
        "update": ("update", "update_command", "Update configuration of one or more containers"),
        "wait": ("container", "wait_command", "Block until one or more containers stop, then print their exit codes"),
    },
    help="Manage containers.",
)

image_command = Group(
    "image",
    {
        "history": ("image", "history_command", "Show the history of an image"),
        "import": ("image", "import_command", "Import the contents from a tarball or a directory to create an image"),
        "inspect": ("inspect", "image_inspect_command", "Display detailed information on one or more images"),
        "ls": ("image", "images_command", "List images"),
        "prune": ("image", "prune_command", "Remove unused images"),
        "pull": ("image", "pull_command", "Download an image from a registry"),
        "rm": ("image", "rmi_command", "Remove one or more images"),
        "tag": ("image", "tag_command", "Create a tag that refers to an image"),
    },
    help="Manage images.",
)
