"""The devices of a container: which nodes it has, and which it may open.

The lists are those of Docker and the runtimes below it (moby, oci/defaults.go; runc, specconv.AllowedDevices).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import Any

from transom.contract.limits import DeviceRule
from transom.errors import ConfigError
from transom_engine.model import Device, HostConfig

_ALLOWED = (
    DeviceRule(allow=True, type="c", access="m"),
    DeviceRule(allow=True, type="b", access="m"),
    *(
        DeviceRule(allow=True, type="c", major=major, minor=minor)
        # null, zero, full, random, urandom, tty, console, ptmx, pts/*, net/tun
        for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None), (10, 200))
    ),
)
# Made anew in the container by the runtime, or not devices at all (containerd, oci.HostDevices).
_NOT_FROM_HOST = frozenset({"pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"})


def rules(*, host_config: HostConfig) -> tuple[DeviceRule, ...]:
    """Return the device list for the limits driver: the last rule that matches decides.

    Raises:
        ConfigError: a device that the host does not have, or a --device-cgroup-rule that does not parse.
    """
    if host_config.privileged:
        return (DeviceRule(allow=True),)
    asked = [
        DeviceRule(
            allow=True, type=node["type"], major=node["major"], minor=node["minor"], access=device.cgroup_permissions
        )
        for device in host_config.devices
        for node in _nodes_of(device)
    ]
    return (DeviceRule(allow=False), *_ALLOWED, *asked, *(_parse(rule) for rule in host_config.device_cgroup_rules))


def nodes(*, host_config: HostConfig) -> list[dict[str, Any]]:
    """Return the nodes to make beside those that every container has, as OCI's ``linux.devices``.

    Raises:
        ConfigError: a device that the host does not have, or permissions out of something else than "rwm".
    """
    found = list(_host_nodes()) if host_config.privileged else []
    for device in host_config.devices:
        if not host_config.privileged or device.path_in_container != device.path_on_host:
            found += _nodes_of(device)
    return list({node["path"]: node for node in found}.values())


def to_oci(rule: DeviceRule) -> dict[str, Any]:
    """Render a rule as an element of OCI's ``linux.resources.devices``."""
    entry: dict[str, Any] = {"allow": rule.allow, "type": rule.type, "access": rule.access}
    if rule.major is not None:
        entry["major"] = rule.major
    if rule.minor is not None:
        entry["minor"] = rule.minor
    return entry


def _parse(rule: str) -> DeviceRule:
    import re

    match = re.fullmatch(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})", rule, re.ASCII)
    if not match:
        raise ConfigError(
            f"invalid device cgroup rule format: '{rule}'; write TYPE MAJOR:MINOR ACCESS, such as 'c 10:200 rwm'"
        )
    kind, major, minor, access = match.groups()
    return DeviceRule(allow=True, type=kind, major=_number(major), minor=_number(minor), access=access)


def _number(text: str) -> int | None:
    return None if text == "*" else int(text)


def _nodes_of(device: Device) -> list[dict[str, Any]]:
    """Describe a device, or every device below a directory."""
    if not device.cgroup_permissions or set(device.cgroup_permissions) - set("rwm"):
        raise ConfigError(
            f"invalid device mode: {device.cgroup_permissions} for {device.path_on_host}; use letters out of rwm"
        )
    source, target = os.path.realpath(device.path_on_host), device.path_in_container or device.path_on_host
    try:
        if os.path.isdir(source):
            found = [
                node
                for top, _, files in os.walk(source)
                for file in sorted(files)
                if (node := _node(os.path.join(top, file), target + os.path.join(top, file)[len(source) :]))
            ]
        else:
            found = [node] if (node := _node(source, target)) else []
    except OSError as error:
        raise ConfigError(
            f'error gathering device information while adding custom device "{device.path_on_host}": {error.strerror}'
        ) from None
    if not found:
        raise ConfigError(
            f'error gathering device information while adding custom device "{device.path_on_host}": not a device node'
        )
    return found


def _host_nodes(top: str = "/dev") -> Iterator[dict[str, Any]]:
    for entry in sorted(os.scandir(top), key=lambda entry: entry.name):
        if top == "/dev" and entry.name in _NOT_FROM_HOST:
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _host_nodes(entry.path)
            elif not entry.is_symlink() and (node := _node(entry.path, entry.path)):
                yield node
        except FileNotFoundError:
            continue  # unplugged meanwhile


def _node(source: str, target: str) -> dict[str, Any] | None:
    status = os.stat(source)
    kind = "b" if stat.S_ISBLK(status.st_mode) else "c" if stat.S_ISCHR(status.st_mode) else ""
    if not kind:
        return None
    return {
        "path": target,
        "type": kind,
        "major": os.major(status.st_rdev),
        "minor": os.minor(status.st_rdev),
        "fileMode": stat.S_IMODE(status.st_mode),
        "uid": status.st_uid,
        "gid": status.st_gid,
    }
