"""From the user's words and an image to a container's record: defaults filled in, contradictions refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from transom.errors import ConfigError
from transom_engine import logplan
from transom_engine.model import Config, Container, EndpointSettings, HostConfig, MountPoint, NetworkSettings, now
from transom_engine.networks.checking import check_networks, shares_host
from transom_engine.networks.model import default_network
from transom_engine.resources import check as check_limits
from transom_engine.resources import usual_swap

if TYPE_CHECKING:
    from transom_engine.engine import Engine
    from transom_engine.images.store import Image


def prepare(
    engine: Engine,
    image: Image,
    config: Config,
    host_config: HostConfig,
    *,
    name: str,
    endpoints: Mapping[str, EndpointSettings],
) -> tuple[Container, list[str]]:
    """Make the record of a new container; nothing is written. See `Containers.create`."""
    from transom_engine.bundle import default_ulimits
    from transom_engine.oci.spec import check

    merged = merge(config, image.container_config())
    if not [*(merged.entrypoint or []), *(merged.cmd or [])]:
        raise ConfigError(f"no command specified: image {config.image} names none; write one after the image's name")
    host = msgspec.structs.replace(host_config)
    if host.auto_remove and host.restart_policy.name not in {"", "no"}:
        raise ConfigError(
            "--rm and --restart contradict each other: a container that is removed when it ends cannot restart"
        )
    host.network_mode = default_network(engine.config) if host.network_mode in {"", "default"} else host.network_mode
    host.ipc_mode = host.ipc_mode or engine.config.default_ipc_mode
    host.shm_size = host.shm_size or engine.config.default_shm_size
    host.memory_swap = host.memory_swap or usual_swap(host.memory)
    host.cgroupns_mode = host.cgroupns_mode or engine.config.default_cgroupns_mode
    _check_words(engine, merged, host)
    limits_driver = engine.default_driver("limits")
    container = Container(
        id=os.urandom(32).hex(),
        name=name.removeprefix("/"),
        created=now(),
        image=image.id,
        config=merged,
        host_config=host,
        driver=host.storage_driver or engine.default_driver("storage"),
        limits_driver=limits_driver,
        mounts=mount_points(merged, host),
        network_settings=NetworkSettings(networks=dict(endpoints)),
    )
    engine.snapshots(container.driver)  # before anything is on record: a driver that is not there fails here
    logplan.settle(engine, container)
    discarded = check_networks(engine, container)
    if (other := engine.endpoints.host_of(container)) is not container:
        merged.hostname, merged.domainname = other.config.hostname, other.config.domainname
    elif not merged.hostname:
        shares = host.uts_mode == "host" or shares_host(engine, host.network_mode)
        merged.hostname = os.uname().nodename if shares else container.id[:12]
    warnings = check(
        container=container,
        default_ulimits=default_ulimits(engine.config),
        default_init=engine.config.init,
        init_path=engine.config.init_path,
        no_new_privileges=engine.config.no_new_privileges,
    )
    return container, warnings + discarded + check_limits(host, engine.limits(limits_driver))


def merge(config: Config, image: Config) -> Config:
    """Fill the user's words with the image's, as Docker does; an entry point of theirs drops the image's command."""
    merged = msgspec.structs.replace(config)
    merged.user = config.user or image.user
    merged.working_dir = config.working_dir or image.working_dir
    merged.stop_signal = config.stop_signal or image.stop_signal
    if merged.stop_timeout is None:
        merged.stop_timeout = image.stop_timeout
    merged.healthcheck = config.healthcheck or image.healthcheck
    named = {entry.partition("=")[0] for entry in config.env}
    merged.env = [entry for entry in image.env if entry.partition("=")[0] not in named] + config.env
    merged.labels = {**image.labels, **config.labels}
    merged.volumes = {**image.volumes, **config.volumes}
    merged.exposed_ports = {**image.exposed_ports, **config.exposed_ports}
    if config.entrypoint is None:
        merged.entrypoint = image.entrypoint
        merged.cmd = config.cmd or image.cmd
    elif config.entrypoint == [""]:  # --entrypoint "" clears the image's
        merged.entrypoint = None
    return merged


def mount_points(config: Config, host: HostConfig) -> list[MountPoint]:
    """Return a container's binds and volumes, those of the image that nothing else takes the place of included."""
    from transom_engine.flags import volume

    points = [volume(text) for text in host.binds]
    seen: set[str] = set()
    for point in points:
        if point.destination in seen:
            raise ConfigError(f"two mounts at {point.destination}: give each -v a place of its own")
        seen.add(point.destination)
    seen |= set(host.tmpfs)
    return points + [MountPoint(type="volume", destination=place) for place in config.volumes if place not in seen]


def _check_words(engine: Engine, config: Config, host: HostConfig) -> None:
    """Refuse single words that could never act."""
    unknown = sorted(host.storage_opt.keys() - {"size", "inodes"})
    if unknown:
        raise ConfigError(
            f"--storage-opt {unknown[0]}: a container's storage options are size, such as size=10G, and inodes,"
            " such as inodes=100000"
        )
    inodes = host.storage_opt.get("inodes", "1")
    if not (inodes.isascii() and inodes.isdigit() and 0 < int(inodes[:20]) < 1 << 63):
        raise ConfigError(
            f"--storage-opt inodes={inodes}: expected how many files a container may hold, such as 100000"
        )
    if config.working_dir and not config.working_dir.startswith("/"):
        raise ConfigError(f"the working directory {config.working_dir!r} is invalid, it needs to be an absolute path")
    if config.stop_signal:
        from transom_engine.signals import number

        number(config.stop_signal)
    for server in host.dns:
        from ipaddress import ip_address

        try:
            ip_address(server)
        except ValueError:
            raise ConfigError(f"--dns {server!r}: not an IP address; write one such as 192.0.2.53") from None
    used = {engine.config.default_runtime, engine.runtime.name, engine.runtime.path} - {""} if host.runtime else set()
    if host.runtime and host.runtime not in used:
        raise ConfigError(
            f"--runtime {host.runtime!r}: this engine runs every container with {engine.runtime.name};"
            " choose another with default-runtime in the config"
        )
