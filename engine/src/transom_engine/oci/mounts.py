"""The mounts of a container, in the order and with the options that Docker gives them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transom.errors import ConfigError, choices
from transom_engine.model import HostConfig, MountPoint

_SHARED, _SLAVE = ("shared", "rshared"), ("slave", "rslave")
_PROPAGATIONS = frozenset({"private", "rprivate", *_SHARED, *_SLAVE})
_TMPFS_VALUES = ("size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol")
_TMPFS_FLAGS = {  # mount(8): words that contradict each other are of one group
    word: group
    for group in (
        "ro rw",
        "suid nosuid",
        "dev nodev",
        "exec noexec",
        "sync async",
        "dirsync",
        "mand nomand",
        "atime noatime relatime norelatime strictatime nostrictatime",
        "diratime nodiratime",
        "private rprivate shared rshared slave rslave",
    )
    for word in group.split()
}

Mount = dict[str, Any]


def default(*, shm_size: int) -> list[Mount]:
    """Return what every container has (moby, oci/defaults.go); `shm_size` in bytes."""
    closed = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", "proc", [*closed]),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts", "devpts", "devpts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mount("/sys", "sysfs", "sysfs", [*closed, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", ["ro", *closed]),
        _mount("/dev/mqueue", "mqueue", "mqueue", [*closed]),
        _mount("/dev/shm", "tmpfs", "shm", [*closed, "mode=1777", f"size={shm_size}"]),
    ]


def build(
    *,
    host_config: HostConfig,
    points: Sequence[MountPoint],
    files: Mapping[str, str],
    shm: str | None,
    init: str | None,
) -> tuple[list[Mount], str]:
    """Return all mounts, and the propagation that the root needs for them ("" for the runtime's own choice).

    Args:
        points: the user's binds, volumes and tmpfs, with absolute sources.
        files: what the engine puts in place (resolv.conf, hosts, hostname), source by destination; a mount of
            the user's at the same place wins.
        shm: a directory to bind at /dev/shm in place of a tmpfs of the container's own.
        init: the static init to bind at `INIT`, or None.

    Raises:
        ConfigError: a destination that is relative, is / or is used twice, an unknown tmpfs option or propagation,
            or a propagation that the source's own mount does not allow.
    """
    user: dict[str, Mount] = {}
    root_propagation = ""
    for point in points:
        _add(user, _tmpfs(point.destination, point.mode) if point.type == "tmpfs" else _bind(point))
        if point.type != "tmpfs":
            root_propagation = _root_propagation(point, root_propagation)
    for destination, options in host_config.tmpfs.items():
        _add(user, _tmpfs(destination, options))

    mounts = [
        mount
        for mount in default(shm_size=host_config.shm_size)
        if mount["destination"] not in user
        and not ("/dev" in user and mount["destination"].startswith("/dev/"))
        and not (mount["destination"] == "/dev/shm" and (shm or host_config.ipc_mode == "none"))
    ]
    own = [_file(destination, source, host_config.readonly_rootfs) for destination, source in files.items()]
    if shm:
        own.append(_mount("/dev/shm", "bind", shm, ["rbind", "rprivate"]))
    for mount in own:
        user.setdefault(mount["destination"], mount)
    if init:
        mounts.append(_mount(INIT, "bind", init, ["bind", "ro"]))
    # A mount must stand before the mounts below it.
    mounts += sorted(user.values(), key=lambda mount: mount["destination"].count("/"))
    if host_config.privileged:
        for mount in mounts:
            if mount["type"] in ("sysfs", "cgroup") and mount["destination"] not in user:
                mount["options"].remove("ro")
    return mounts, root_propagation


INIT = "/sbin/docker-init"
"""Where ``--init`` puts its init: Docker's place, which no image's own init has."""


def _mount(destination: str, type: str, source: str, options: list[str]) -> Mount:
    return {"destination": destination, "type": type, "source": source, "options": options}


def _add(mounts: dict[str, Mount], mount: Mount) -> None:
    if mount["destination"] in mounts:
        raise ConfigError(f"duplicate mount point: {mount['destination']}; mount one thing there")
    mounts[mount["destination"]] = mount


def _destination(path: str) -> str:
    if not path.startswith("/"):
        raise ConfigError(f"invalid mount path: '{path}' mount path must be absolute")
    clean = os.path.normpath("/" + path.lstrip("/"))
    if clean == "/":
        raise ConfigError("invalid mount path: destination can't be '/'; the image is there")
    return clean


def _bind(point: MountPoint) -> Mount:
    if point.propagation and point.propagation not in _PROPAGATIONS:
        raise ConfigError(
            f'invalid propagation "{point.propagation}" for {point.destination}; known: {choices(_PROPAGATIONS)}'
        )
    options = ["rbind"]
    if not point.rw:
        # "rro" makes what is mounted below the source read-only too, as Docker does from Linux 5.12 on. Below a file
        # nothing is mounted, and crun opens what it is asked this of as a directory.
        options += ["ro"] if os.path.exists(point.source) and not os.path.isdir(point.source) else ["ro", "rro"]
    if point.propagation:
        options.append(point.propagation)
    return _mount(_destination(point.destination), "bind", point.source, options)


def _file(destination: str, source: str, readonly: bool) -> Mount:
    return _mount(destination, "bind", source, ["rbind", *(["ro"] if readonly else []), "rprivate"])


def _tmpfs(destination: str, text: str) -> Mount:
    """Docker's defaults with the user's words over them: the last word of a group counts."""
    words: dict[str, str] = {}
    for option in ("noexec", "nosuid", "nodev", "rprivate", *filter(None, text.split(","))):
        key, given, _ = option.partition("=")
        group = key if given and key in _TMPFS_VALUES else _TMPFS_FLAGS.get(option)
        if not group:
            raise ConfigError(
                f'invalid tmpfs option "{option}" for {destination}; '
                f"known: {choices([*_TMPFS_FLAGS, *(f'{name}=' for name in _TMPFS_VALUES)])}"
            )
        words[group] = option
    return _mount(_destination(destination), "tmpfs", "tmpfs", list(words.values()))


def _root_propagation(point: MountPoint, current: str) -> str:
    """A bind that shares, or follows, mounts with the host needs a root that does so too."""
    if point.propagation in _SHARED:
        _check_source(point.source, ("shared:",), "a shared mount")
        return "shared"
    if point.propagation in _SLAVE:
        _check_source(point.source, ("shared:", "master:"), "a shared or slave mount")
        return current or "rslave"
    return current


def _check_source(source: str, wanted: Iterable[str], words: str) -> None:
    path, best, tags = os.path.realpath(source), "", ""
    with open("/proc/thread-self/mountinfo") as file:
        for line in file:
            fields, _, _ = line.partition(" - ")
            place, _, optional = fields.split(" ", 4)[4].partition(" ")
            place = place.replace("\\040", " ").replace("\\134", "\\")
            inside = path == place or path.startswith(place.rstrip("/") + "/")
            if inside and len(place) >= len(best):
                best, tags = place, optional
    if not any(tag.startswith(tuple(wanted)) for tag in tags.split()):
        raise ConfigError(f"path {source} is mounted on {best} but it is not {words}")
