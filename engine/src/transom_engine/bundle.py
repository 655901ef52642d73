"""What the OCI runtime is given for one run: ``config.json``, and the files that Docker mounts into a container."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from transom.errors import ConfigError, Conflict
from transom.services.files import write_atomic
from transom_engine.model import Container, Ulimit, learned
from transom_engine.networks.names import linked, resolves

if TYPE_CHECKING:
    from transom.config import Config
    from transom_engine.engine import Engine

_HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
PUBLIC_SERVERS = ("8.8.8.8", "8.8.4.4")
"""Docker's choice where the host has no name server that a container could reach."""
RESOLVER = "127.0.0.11"
"""Where containers find the embedded resolver: docker's choice, which users have in their configurations."""


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


def network_files(engine: Engine, container: Container, *, host_network: bool) -> Mapping[str, str]:
    """Write the container's hostname, hosts and resolv.conf; return source by destination.

    A container that shares another's network has the other's, as docker does.
    """
    host = engine.endpoints.host_of(container)
    directory = engine.container_dir(host.id)
    if host is not container and (directory / "resolv.conf").exists():
        return {f"/etc/{name}": str(directory / name) for name in ("hostname", "hosts", "resolv.conf")}
    directory = engine.container_dir(container.id)
    contents = {
        "hostname": f"{container.config.hostname or os.uname().nodename}\n",
        "hosts": hosts(
            container,
            host_network=host_network,
            host_gateway=engine.config.host_gateway_ip or next(iter(engine.config.host_gateway_ips), ""),
            linked=linked(engine, container),
        ),
    }
    for name, text in contents.items():
        # In place: a restarted container's other mounts of the file keep seeing it.
        with open(directory / name, "w") as file:
            file.write(text)
    write_resolv_conf(engine, container, host_network=host_network)
    return {f"/etc/{name}": str(directory / name) for name in (*contents, "resolv.conf")}


def write_resolv_conf(engine: Engine, container: Container, *, host_network: bool) -> None:
    """Write the container's resolv.conf, in place: a running container sees the change."""
    servers, search = learned(container.network_settings.networks)
    text = resolv_conf(
        _read("/etc/resolv.conf"),
        servers=container.host_config.dns or servers or engine.config.dns,
        search=container.host_config.dns_search or search or engine.config.dns_search,
        options=container.host_config.dns_options or engine.config.dns_opts,
        host_network=host_network,
        embedded=resolves(engine, container),
    )
    with open(engine.container_dir(container.id) / "resolv.conf", "w") as file:
        file.write(text)


def hosts(container: Container, *, host_network: bool, host_gateway: str, linked: Mapping[str, str] = {}) -> str:
    """Return /etc/hosts: the loopback names, the container's own addresses, ``--add-host``, and links.

    Args:
        linked: names by address, where no resolver answers for links.
        host_gateway: what ``host-gateway`` stands for; empty for the gateway of the container's first network.
    """
    text = _read("/etc/hosts") if host_network else _HOSTS
    name = container.config.hostname
    names = f"{name}.{container.config.domainname} {name}" if container.config.domainname else name
    endpoints = container.network_settings.networks.values()
    gateway = next((e.gateway for e in endpoints if e.gateway), "")
    lines = []
    for entry in container.host_config.extra_hosts:
        host, _, address = entry.partition(":")
        if address == "host-gateway":
            address = host_gateway or gateway
            if not address:
                raise ConfigError(f"--add-host {entry}: the container's networks have no gateway; write an address")
        lines.append(f"{address}\t{host}")
    lines += [f"{address}\t{names_of}" for address, names_of in linked.items()]
    for endpoint in endpoints:
        lines += [f"{address}\t{names}" for address in (endpoint.ip_address, endpoint.global_ipv6_address) if address]
    return text + "".join(f"{line}\n" for line in lines)


def resolv_conf(
    host: str,
    *,
    servers: Iterable[str],
    search: Iterable[str],
    options: Iterable[str],
    host_network: bool,
    embedded: bool = False,
) -> str:
    """Return /etc/resolv.conf (resolv.conf(5)): the host's, what was asked for over it.

    The host's name servers on its loopback are left out where the container has another network namespace. With the
    `embedded` resolver that is the only one, and asks the others; it is to see names without a dot as they are.
    """
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in host.splitlines():
        word, *rest = line.split()[:1] + line.split()[1:] or [""]
        if word in found and rest:
            found[word] = found[word] + rest if word == "nameserver" else rest
    own = [s for s in found["nameserver"] if host_network or not (s.startswith("127.") or s == "::1")]
    chosen = [RESOLVER] if embedded else list(servers) or own or list(PUBLIC_SERVERS)
    searched = list(search) or found["search"]
    searched = [] if searched == ["."] else searched
    lines = [f"nameserver {server}" for server in chosen]
    lines += [f"search {' '.join(searched)}"] if searched else []
    opts = list(options) or found["options"]
    if embedded and not any(option.startswith("ndots:") for option in opts):
        opts = [*opts, "ndots:0"]
    lines += [f"options {' '.join(opts)}"] if opts else []
    return "".join(f"{line}\n" for line in lines)


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
