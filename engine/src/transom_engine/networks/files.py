"""The files that tell a container its names and name servers, mounted over its own: hostname, hosts, resolv.conf.

They are made anew at each start, and changed in place while the container runs: it sees the change, and keeps what its
user has written there meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from transom.errors import ConfigError
from transom_engine.model import Container, EndpointSettings, learned
from transom_engine.networks.names import linked, resolves

if TYPE_CHECKING:
    from transom_engine.engine import Engine

_HOSTS = "127.0.0.1\tlocalhost\n"
_HOSTS_IPV6 = """::1\tlocalhost ip6-localhost ip6-loopback
fe00::\tip6-localnet
ff00::\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""
PUBLIC_SERVERS = ("8.8.8.8", "8.8.4.4")
"""Docker's choice where the host has no name server that a container could reach."""
RESOLVER = "127.0.0.11"
"""Where containers find the embedded resolver: docker's choice, which users have in their configurations."""
_RESOLV_CONF, _BEHIND_STUB = "/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"
_STUB = ["127.0.0.53"]
"""systemd-resolved's server, which no container reaches; the second file then has those that it asks itself."""


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
            host_gateways=list(filter(None, [engine.config.host_gateway_ip])) or engine.config.host_gateway_ips,
            linked=linked(engine, container),
        ),
    }
    for name, text in contents.items():
        # In place: a restarted container's other mounts of the file keep seeing it.
        with open(directory / name, "w") as file:
            file.write(text)
    write_resolv_conf(engine, container, host_network=host_network)
    return {f"/etc/{name}": str(directory / name) for name in (*contents, "resolv.conf")}


def write_resolv_conf(engine: Engine, container: Container, *, host_network: bool) -> str:
    """Write the container's resolv.conf, in place, and return what it says."""
    servers, search = learned(container.network_settings.networks)
    text = resolv_conf(
        _hosts_own(host_network=host_network),
        servers=container.host_config.dns or servers or engine.config.dns,
        search=container.host_config.dns_search or search or engine.config.dns_search,
        options=container.host_config.dns_options or engine.config.dns_opts,
        host_network=host_network,
        embedded=resolves(engine, container),
    )
    with open(engine.container_dir(container.id) / "resolv.conf", "w") as file:
        file.write(text)
    return text


def rewrite_resolv_conf(engine: Engine, container: Container, *, written: str) -> str:
    """Write the resolv.conf of a container that runs anew, unless its user has changed what was `written` before.

    Returns:
        What is to be given as `written` the next time.
    """
    if _read(str(engine.container_dir(container.id) / "resolv.conf")) != written:
        return written
    return write_resolv_conf(engine, container, host_network=False)


def hosts(
    container: Container, *, host_network: bool, host_gateways: Iterable[str] = (), linked: Mapping[str, str] = {}
) -> str:
    """Return /etc/hosts: the loopback names, the container's own addresses, ``--add-host``, and links.

    Args:
        linked: names by address, where no resolver answers for links.
        host_gateways: what ``host-gateway`` stands for; without any it is the gateway of a network of the container's.
    """
    text = _read("/etc/hosts") if host_network else _HOSTS + ("" if _without_ipv6(container) else _HOSTS_IPV6)
    places = container.network_settings.networks.values()
    gateways = [g for g in (*(p.gateway for p in places), *(p.ipv6_gateway for p in places)) if g]
    lines = []
    for entry in container.host_config.extra_hosts:
        host, _, given = entry.partition(":")
        addresses = [given] if given != "host-gateway" else [*host_gateways] or gateways[:1]
        if not addresses:
            raise ConfigError(f"--add-host {entry}: the container's networks have no gateway; write an address")
        lines += [f"{address}\t{host}" for address in addresses]
    lines += [f"{address}\t{names}" for address, names in linked.items()]
    for place in container.network_settings.chosen.values():
        lines += _own_lines(container, place)
    return text + "".join(f"{line}\n" for line in lines)


def change_hosts(
    engine: Engine,
    container: Container,
    *,
    joined: EndpointSettings | None = None,
    left: EndpointSettings | None = None,
) -> None:
    """Add to /etc/hosts of a container that runs, in place, its addresses where it has `joined`; take away others."""
    path = engine.container_dir(container.id) / "hosts"
    try:
        with open(path, "r+", errors="surrogateescape", newline="") as file:
            gone = _own_lines(container, left) if left else []
            lines = [line for line in file.read().removesuffix("\n").split("\n") if line not in gone]
            lines += [line for line in (_own_lines(container, joined) if joined else []) if line not in lines]
            file.seek(0)
            file.write("".join(f"{line}\n" for line in lines))
            file.truncate()
    except FileNotFoundError:
        pass  # it has just been removed


def _own_lines(container: Container, place: EndpointSettings) -> list[str]:
    name, domain = container.config.hostname, container.config.domainname
    full = f"{name}.{domain}" if domain else name
    names = " ".join(dict.fromkeys((full, name if domain else name.partition(".")[0])))
    return [f"{address}\t{names}" for address in place.addresses]


def _without_ipv6(container: Container) -> bool:
    """Say whether ``::1`` is nobody's: by a setting of the container's (ip-sysctl), or by the kernel."""
    settings = container.host_config.sysctls
    off = any(settings.get(f"net.ipv6.conf.{name}.disable_ipv6", "0") == "1" for name in ("all", "lo"))
    return off or not os.path.exists("/proc/sys/net/ipv6")


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
    found = _words(host)
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


def _words(text: str) -> dict[str, list[str]]:
    """Read resolv.conf(5): of several lines servers and options add up, and the last one with domains counts."""
    found: dict[str, list[str]] = {"nameserver": [], "search": [], "options": []}
    for line in text.splitlines():
        word, *rest = line.split() or [""]
        if word in ("search", "domain"):
            found["search"] = rest
        elif word in found:
            found[word] += rest[:1] if word == "nameserver" else rest
    return found


def _hosts_own(*, host_network: bool) -> str:
    """Return the host's resolv.conf, or what is behind it, where a container has another loopback."""
    text = _read(_RESOLV_CONF)
    if host_network or _words(text)["nameserver"] != _STUB:
        return text
    return _read(_BEHIND_STUB) or text


def _read(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""
