"""What there is to know of the engine as a whole: ``info``, ``version`` and ``system df``.

Names and shapes are those of Docker's Engine API (1.43: SystemInfo, SystemVersion); what is Transom's own has names
beside them. A part that fails is named among the warnings, and the rest is told.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from transom.errors import TransomError
from transom_engine.pruning import tree_size

if TYPE_CHECKING:
    from transom.contract import Driver
    from transom_engine.engine import Engine
    from transom_engine.images.reports import Summary
    from transom_engine.model import Container
    from transom_engine.volumes import Volume

T = TypeVar("T")


def engine_version() -> str:
    """Return the version of the engine's distribution."""
    from importlib.metadata import version

    return version("transom-engine")


def version(engine: Engine) -> dict[str, Any]:
    """Tell the versions of what takes part, in the shape of Docker's SystemVersion."""
    from platform import python_version

    from transom.contract import API
    from transom_engine.images.spec import parse_platform

    warnings: list[str] = []
    runtime = _tried(lambda: engine.runtime, warnings)
    return {
        "Version": engine_version(),
        "ContractVersion": str(API),
        "PythonVersion": python_version(),
        "Os": "linux",
        "Arch": parse_platform("").architecture,
        "KernelVersion": os.uname().release,
        "Components": [{"Name": runtime.name, "Version": runtime.version}] if runtime else [],
    }


def info(engine: Engine) -> dict[str, Any]:
    """Tell how the engine stands, in the shape of Docker's SystemInfo."""
    from transom.drivers import installed
    from transom_engine.reports import memory_total

    warnings: list[str] = []
    statuses = [container.state.status for container in engine.containers.list(all=True)]
    chosen = {
        kind: _tried(lambda kind=kind: engine.default_driver(kind), warnings) or ""  # type: ignore[misc]
        for kind in ("storage", "logging", "limits", "network")
    }
    storage = _status(lambda: engine.snapshots().driver, warnings)
    limits = _status(engine.limits, warnings)
    runtime = _tried(lambda: engine.runtime, warnings)
    names: dict[str, list[str]] = {}
    for driver in installed():
        names.setdefault(driver.kind, []).append(driver.name)
    return {
        "Containers": len(statuses),
        "ContainersRunning": sum(status in {"running", "restarting"} for status in statuses),
        "ContainersPaused": statuses.count("paused"),
        "ContainersStopped": sum(status not in {"running", "restarting", "paused"} for status in statuses),
        "Images": sum(1 for _ in engine.images.walk()),
        "ServerVersion": engine_version(),
        "Driver": chosen["storage"],
        "DriverStatus": list(storage.items()),
        "LoggingDriver": chosen["logging"],
        "LimitsDriver": chosen["limits"],
        "LimitsStatus": list(limits.items()),
        "CgroupDriver": "none",
        "CgroupVersion": limits.get("Cgroup Version", ""),
        "NetworkDriver": chosen["network"],
        "Plugins": {
            "Volume": ["local"],
            "Storage": names.get("storage", []),
            "Network": names.get("network", []),
            "Log": names.get("logging", []),
            "Limits": names.get("limits", []),
            "Authorization": list(engine.config.auth_drivers + engine.config.authorization_plugins) or None,
        },
        "Runtimes": {runtime.name: {"path": runtime.path, "runtimeArgs": list(runtime.flags)}} if runtime else {},
        "DefaultRuntime": runtime.name if runtime else "",
        "RuntimeVersion": runtime.version if runtime else "",
        "KernelVersion": os.uname().release,
        "OperatingSystem": _operating_system(),
        "OSType": "linux",
        "Architecture": os.uname().machine,
        "NCPU": os.cpu_count() or 1,
        "MemTotal": memory_total(),
        "Name": os.uname().nodename,
        "DockerRootDir": str(engine.state_dir),
        "ExecRoot": str(engine.run_dir),
        "RegistryConfig": {
            "InsecureRegistryCIDRs": list(engine.config.insecure_registries),
            "Mirrors": list(engine.config.registry_mirrors),
        },
        "Labels": list(engine.config.labels),
        "Debug": engine.config.debug,
        "Warnings": warnings + missing_limits(engine),
    }


def _tried(function: Callable[[], T], warnings: list[str]) -> T | None:
    try:
        return function()
    except TransomError as error:
        if str(error) not in warnings:
            warnings.append(str(error))
        return None


def _status(driver: Callable[[], Driver], warnings: list[str]) -> dict[str, str]:
    return _tried(lambda: driver().status(), warnings) or {}


def missing_limits(engine: Engine) -> list[str]:
    """Say which limits would not act here, by asking for each."""
    from transom.contract.limits import Resources

    asked = Resources(memory=64 << 20, memory_swap=-1, cpu_quota=50_000, cpu_shares=512, cpuset_cpus="0", pids=100)
    try:
        refused = engine.limits().unsupported_resources(resources=asked)
    except TransomError:
        return []  # that there is no driver is said already
    return [f"No {field.replace('_', ' ')} limit support: {reason}" for field, reason in refused.items()]


def _operating_system() -> str:
    """Return the distribution's name (os-release(5))."""
    from platform import freedesktop_os_release

    try:
        return freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        return "Linux"


# Disk


class Part(msgspec.Struct, frozen=True):
    """What one kind of object takes on disk, in bytes; `active` of the `total` are in use."""

    name: str
    total: int
    active: int
    size: int
    reclaimable: int


class ImageUsage(msgspec.Struct, frozen=True):
    """An image and what of its layers other images have too, in bytes."""

    summary: Summary
    shared: int
    containers: int


class DiskUsage(msgspec.Struct, frozen=True):
    """What images, containers and volumes take on disk; sizes in bytes, volumes with how many containers mount them."""

    images: list[ImageUsage]
    containers: list[tuple[Container, int]]
    volumes: list[tuple[Volume, int, int]]
    parts: list[Part]


def disk_usage(engine: Engine) -> DiskUsage:
    """Measure what everything takes."""
    from transom_engine.images.reports import images

    containers = [(container, _own_size(engine, container)) for container in engine.containers.list(all=True)]
    users: dict[str, int] = {}
    links: dict[str, int] = {}
    for container, _ in containers:
        users[container.image] = users.get(container.image, 0) + 1
        for name in {point.name for point in container.mounts if point.type == "volume"}:
            links[name] = links.get(name, 0) + 1
    layers = {image.id: {layer.chain_id: layer for layer in image.layers} for image in engine.images.walk()}
    owners: dict[str, set[str]] = {}
    sizes: dict[str, int] = {}
    for id, chain in layers.items():
        for key, layer in chain.items():
            owners.setdefault(key, set()).add(id)
            sizes[key] = engine.images.layer_size(layer)
    found = [
        ImageUsage(
            summary=summary,
            shared=sum(sizes[key] for key in layers.get(summary.id, ()) if len(owners[key]) > 1),
            containers=users.get(summary.id, 0),
        )
        for summary in images(engine.images, all=True)
    ]
    volumes = [(v, tree_size(v.mountpoint), links.get(v.name, 0)) for v in engine.volumes.list()]
    idle = sum(size for key, size in sizes.items() if not owners[key] & users.keys())
    stopped = [size for container, size in containers if not container.state.running]
    parts = [
        Part("Images", len(found), sum(image.containers > 0 for image in found), sum(sizes.values()), idle),
        Part(
            "Containers",
            len(containers),
            len(containers) - len(stopped),
            sum(size for _, size in containers),
            sum(stopped),
        ),
        Part(
            "Local Volumes",
            len(volumes),
            sum(count > 0 for _, _, count in volumes),
            sum(size for _, size, _ in volumes),
            sum(size for _, size, count in volumes if not count),
        ),
    ]
    return DiskUsage(images=found, containers=containers, volumes=volumes, parts=parts)


def _own_size(engine: Engine, container: Container) -> int:
    try:
        return engine.snapshots(container.driver).usage(container.id).size
    except TransomError:
        return 0  # it is being removed, or its driver was uninstalled
