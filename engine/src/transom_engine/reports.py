"""What ``transom inspect`` and ``ps`` tell of containers, volumes and networks, in the shapes of Docker's Engine API.

The source of names and meanings is the API's version 1.43 (ContainerInspect, Volume, Network, ContainerSummary).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from transom.errors import NotFound, TransomError
from transom_engine.model import ZERO_TIME, Container, EndpointSettings
from transom_engine.networks.model import DEFAULT

if TYPE_CHECKING:
    from transom_engine.engine import Engine

KINDS = ("container", "image", "network", "volume")

# Fields of Docker's HostConfig that no record has: empty, so that who reads Docker's JSON finds them.
_HOST_CONFIG = {
    "VolumeDriver": "", "VolumesFrom": None, "ConsoleSize": [0, 0], "Cgroup": "", "Links": None, "Isolation": "",
    "CgroupParent": "", "DeviceRequests": None, "CpuCount": 0, "CpuPercent": 0, "IOMaximumIOps": 0,
    "IOMaximumBandwidth": 0,
}  # fmt: skip
_NETWORK_SETTINGS = {
    "Bridge": "", "SandboxID": "", "HairpinMode": False, "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
    "SandboxKey": "", "SecondaryIPAddresses": None, "SecondaryIPv6Addresses": None,
}  # fmt: skip
_PLACE = (
    "EndpointID", "Gateway", "GlobalIPv6Address", "GlobalIPv6PrefixLen", "IPAddress", "IPPrefixLen", "IPv6Gateway",
    "MacAddress",
)  # fmt: skip


def inspect(engine: Engine, name: str, *, kind: str = "", size: bool = False) -> Any:
    """Describe the object of that name: a container, else an image, a network, a volume; or of that `kind` only.

    Raises:
        NotFound: there is none.
    """
    for each in [kind] if kind else KINDS:
        try:
            return _inspect(engine, name, each, size)
        except NotFound:
            if kind:
                raise
        except TransomError:
            if each != "image" or kind:  # what cannot be an image's name may be that of something else
                raise
    raise NotFound(f"no such object: {name}; `transom ps -a`, `images`, `network ls` and `volume ls` list those here")


def _inspect(engine: Engine, name: str, kind: str, size: bool) -> Any:
    match kind:
        case "container":
            return container(engine, engine.containers.get(name), size=size)
        case "image":
            from transom_engine.images.reports import inspect as inspect_image

            return msgspec.to_builtins(inspect_image(engine.images, name, driver=engine.default_driver("storage")))
        case "network":
            return _network(engine, name)
    volume = msgspec.to_builtins(engine.volumes.get(name))
    del volume["Anonymous"]
    return volume


def _network(engine: Engine, name: str) -> dict[str, Any]:
    record = engine.networks.inspect(name)
    found: dict[str, Any] = msgspec.to_builtins(record)
    subnets = engine.addresses.counts(record)
    return {**found, "Status": {"IPAM": {"Subnets": subnets}}} if subnets else found


def container(engine: Engine, record: Container, *, size: bool = False) -> dict[str, Any]:
    """Describe a container in full; `size` adds SizeRw and SizeRootFs, in bytes."""
    known: dict[str, Any] = msgspec.to_builtins(record)
    directory = engine.container_dir(record.id)
    path, *args = [*(record.config.entrypoint or []), *(record.config.cmd or []), ""]
    found = {
        "Id": record.id,
        "Created": record.created,
        "Path": path,
        "Args": args[:-1],
        "State": known["State"],
        "Image": record.image,
        "ResolvConfPath": str(directory / "resolv.conf"),
        "HostnamePath": str(directory / "hostname"),
        "HostsPath": str(directory / "hosts"),
        "LogPath": record.log_path,
        "LogStatus": msgspec.to_builtins(engine.containers.log_status(record)),
        "Name": f"/{record.name}",
        "RestartCount": record.restart_count,
        "Driver": record.driver,
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": record.exec_ids or None,
        "HostConfig": {**known["HostConfig"], **_HOST_CONFIG},
        "GraphDriver": {"Data": _layer(engine, record), "Name": record.driver},
        "Mounts": [_mount(point) for point in known["Mounts"]],
        "Config": known["Config"],
        "NetworkSettings": _network_settings(record, known["NetworkSettings"]),
    }
    if size:
        found["SizeRw"], found["SizeRootFs"] = sizes(engine, record)
    return found


def sizes(engine: Engine, record: Container) -> tuple[int, int]:
    """Return what a container's own layer takes, and that with its image's, in bytes."""
    own = engine.snapshots(record.driver).usage(record.id).size
    try:
        return own, own + engine.images.size(engine.images.get(record.image))
    except NotFound:
        return own, own


def _layer(engine: Engine, record: Container) -> dict[str, str] | None:
    """Say where the layer is, in Docker's words for an overlay; other layers have none."""
    try:
        mounts = engine.snapshots(record.driver).mounts(record.id)
    except TransomError:
        return None
    if len(mounts) != 1 or mounts[0].type != "overlay":
        return None
    pairs = [option.partition("=")[::2] for option in mounts[0].options]
    options = dict(pairs)
    lower = [value for key, value in pairs if key in {"lowerdir", "lowerdir+"}]
    return {
        "LowerDir": ":".join(lower),
        "MergedDir": str(engine.container_run(record.id) / "rootfs"),
        "UpperDir": options.get("upperdir", ""),
        "WorkDir": options.get("workdir", ""),
    }


def _mount(point: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in point.items() if value or key not in {"Name", "Driver"}}


def _network_settings(record: Container, known: dict[str, Any]) -> dict[str, Any]:
    """Lift the place on the default network to the top, where Docker has it too."""
    first = known["Networks"].get(DEFAULT) or msgspec.to_builtins(EndpointSettings())
    places = {name: _place(record, name, known["Networks"][name]) for name in sorted(record.network_settings.chosen)}
    sandbox = {"SandboxKey": f"/proc/{record.state.pid}/ns/net"} if record.state.pid else {}
    return {
        **_NETWORK_SETTINGS,
        **sandbox,
        "Ports": known["Ports"],
        **{key: first[key] for key in _PLACE},
        "Networks": places,
    }


def _place(record: Container, network: str, place: dict[str, Any]) -> dict[str, Any]:
    """Add to a place on a network the names that others on it find the container by: none on the default one."""
    if network == DEFAULT:
        return {**place, "Links": None, "DNSNames": None}
    names = (record.name, *(place["Aliases"] or ()), record.id[:12], record.config.hostname)
    return {**place, "DNSNames": [*dict.fromkeys(filter(None, names))]}


def command(record: Container) -> list[str]:
    """Return what the container runs: the entry point and the command."""
    return [*(record.config.entrypoint or []), *(record.config.cmd or [])]


def ports(record: Container) -> str:
    """Write a container's ports as ``ps`` does: "0.0.0.0:8080->80/tcp, 443/tcp", ports in a row as ranges."""
    listed = sorted(
        (int(key.partition("/")[0]), binding.host_ip, int(binding.host_port or 0), key.partition("/")[2])
        for key, bindings in record.network_settings.ports.items()
        for binding in bindings or []
    )
    listed += [
        (int(key.partition("/")[0]), "", 0, key.partition("/")[2])
        for key, bindings in record.network_settings.ports.items()
        if not bindings
    ]
    groups: dict[tuple[str, str], list[list[int]]] = {}
    mapped = []
    for private, address, public, protocol in sorted(listed):
        if address and public != private:
            mapped.append(f"{_bracketed(address)}:{public}->{private}/{protocol}")
            continue
        runs = groups.setdefault((address, protocol), [])
        if runs and runs[-1][1] == private - 1:
            runs[-1][1] = private
        else:
            runs.append([private, private])
    texts = []
    for (address, protocol), runs in groups.items():
        for first, last in runs:
            span = str(first) if first == last else f"{first}-{last}"
            texts.append(f"{_bracketed(address)}:{span}->{span}/{protocol}" if address else f"{span}/{protocol}")
    return ", ".join(texts + mapped)


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def status(record: Container, *, now: int) -> str:
    """Say in words where a container is in its life, as the STATUS column does.

    Args:
        now: nanoseconds since the epoch.
    """
    from transom_engine.cli.units import human_duration, parse_time

    def since(text: str) -> str:
        return human_duration((now - parse_time(text, now=now)) / 1e9)

    state = record.state
    match state.status:
        case "running":
            return f"Up {since(state.started_at)}"
        case "paused":
            return f"Up {since(state.started_at)} (Paused)"
        case "restarting":
            return f"Restarting ({state.exit_code}) {since(state.finished_at)} ago"
        case "removing":
            return "Removal In Progress"
        case "dead":
            return "Dead"
    if state.started_at == ZERO_TIME or state.finished_at == ZERO_TIME:
        return "Created"
    return f"Exited ({state.exit_code}) {since(state.finished_at)} ago"


def memory_total() -> int:
    """Return the host's memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
