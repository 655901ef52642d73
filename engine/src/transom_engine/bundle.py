"""What the OCI runtime is given for one run: ``config.json``, with what is mounted into the container."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from transom.errors import Conflict
from transom.services.files import write_atomic
from transom_engine.model import Container, Ulimit
from transom_engine.networks.files import network_files

if TYPE_CHECKING:
    from transom.config import Config
    from transom_engine.engine import Engine


def write_bundle(
    engine: Engine, container: Container, *, directory: str, rootfs: str, netns: str | None, cgroup: str, proc: str,
    terminal: tuple[int, int] = (0, 0),
) -> None:  # fmt: skip
    """Write ``config.json`` into `directory` and the files it mounts into the container's own directory.

    Args:
        netns: the path of the network namespace; None for the host's.
        cgroup: the group's path, for a runtime that insists on it.
        proc: the path at which the host's /proc can be reached.
        terminal: rows and columns that the container's terminal has from the first moment on; zeros leave it open.

    Raises:
        ConfigError: the user's words do not fit the image (no such user).
        Conflict: a container whose namespace is to be shared does not run.
    """
    from transom_engine.oci.spec import build

    config = engine.config
    bundle = build(
        container=container,
        rootfs=rootfs,
        netns=netns,
        own_netns=not container.host_config.network_mode.startswith("container:"),
        files=network_files(engine, container, host_network=netns is None),
        join=_joined(engine, container, proc),
        cgroups_path=cgroup if engine.runtime.manages_cgroups else "",
        default_ulimits=default_ulimits(config),
        default_init=config.init,
        init_path=config.init_path,
        no_new_privileges=config.no_new_privileges,
        seccomp_profile="" if config.seccomp_profile == "builtin" else config.seccomp_profile,
    )
    if container.config.tty and terminal[0]:
        bundle.config["process"]["consoleSize"] = {"height": terminal[0], "width": terminal[1]}
    write_atomic(os.path.join(directory, "config.json"), bundle.encode(), mode=0o600, durable=False)


def default_ulimits(config: Config) -> list[Ulimit]:
    """Return the config's ulimits in the shape of a container's."""
    return [Ulimit(name=name, soft=limit.soft, hard=limit.hard) for name, limit in config.default_ulimits.items()]


def _joined(engine: Engine, container: Container, proc: str) -> dict[str, str]:
    """Find the namespaces of other containers that ``--pid`` and ``--ipc`` ask for."""
    modes = {"pid": container.host_config.pid_mode, "ipc": container.host_config.ipc_mode}
    found = {}
    for name, mode in modes.items():
        kind, _, reference = mode.partition(":")
        if kind == "container":
            other = engine.containers.get(reference)
            if not other.state.pid:
                raise Conflict(f"--{name} {mode}: container {other.name} is not running; start it first")
            found[name] = f"{proc}/{other.state.pid}/ns/{name}"
    return found
