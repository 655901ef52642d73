"""A container's record as ``config.json`` (OCI runtime specification 1.0.2), equal to what Docker gives it.

The sources of the rules are moby's oci/defaults.go and daemon/oci_linux.go. Where this process lacks a privilege
that Docker takes for granted, the container gets as much as can be had, and a warning says what was lowered.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from transom.contract.limits import DeviceRule
from transom.errors import ConfigError, choices, nearest
from transom_engine.model import Config, Container, HostConfig, MountPoint, Ulimit
from transom_engine.oci import devices, mounts, security
from transom_engine.oci.host import Host, capabilities
from transom_engine.oci.user import User, resolve

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

ULIMITS = tuple(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)
"""getrlimit(2)'s names as ``--ulimit`` takes them."""

_INITS = ("docker-init", "tini-static", "catatonit")
_UNLIMITED = 2**64 - 1
_IPC_SYSCTLS = frozenset(
    f"kernel.{name}" for name in "msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split()
)


class Bundle(msgspec.Struct, frozen=True):
    """What `build` returns.

    Attributes:
        config: the runtime's configuration, to be written by `encode`.
        devices: the same device list for the limits driver.
        warnings: what was asked for and is not given in full, a sentence each.
    """

    config: dict[str, Any]
    devices: tuple[DeviceRule, ...]
    warnings: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the content of ``config.json``."""
        return msgspec.json.encode(self.config)


def build(
    *,
    container: Container,
    rootfs: str,
    netns: str | None,
    own_netns: bool = True,
    hostname: str = "",
    points: Sequence[MountPoint] | None = None,
    files: Mapping[str, str] | None = None,
    join: Mapping[str, str] | None = None,
    shm: str | None = None,
    cgroups_path: str = "",
    default_ulimits: Iterable[Ulimit] = (),
    default_init: bool = False,
    init_path: str = "",
    no_new_privileges: bool = False,
    seccomp_profile: str = "",
    host: Host | None = None,
) -> Bundle:
    """Describe how to run `container` with its root mounted at `rootfs`, which is read and not changed.

    Args:
        netns: the network namespace's path as the runtime will see it; None for the host's.
        own_netns: the namespace was made for this container, so its sysctls may be set.
        hostname: over the record's own; that of the host with ``--uts=host``.
        points: the mounts with sources resolved; None for the record's own.
        files: the engine's files (resolv.conf, hosts, hostname), source by destination.
        join: paths of the namespaces that ``--pid=container:X`` ("pid") and ``--ipc=container:X`` ("ipc") mean.
        shm: what to bind at /dev/shm, with ``--ipc=shareable`` and ``--ipc=container:X``.
        cgroups_path: OCI's ``linux.cgroupsPath``, for a runtime that insists on managing cgroups.
        default_ulimits, default_init, init_path, no_new_privileges, seccomp_profile: the engine's configuration.
        host: what this process may do; None to look.

    Raises:
        ConfigError: words of the user's that do not fit; the text names the option, the value and what does fit.
        NotSupported: a capability asked for by name that the engine does not hold.
    """
    host = host or Host.read()
    config, host_config = container.config, container.host_config
    joined = _namespaces_joined(host_config, join or {})
    options = security.parse(options=host_config.security_opt, host=host, no_new_privileges=no_new_privileges)
    user = resolve(rootfs=rootfs, user=config.user, group_add=host_config.group_add)
    name = hostname or config.hostname or container.id[:12]
    rlimits, warnings = _rlimits(ulimits=_merged(host_config.ulimits, default_ulimits), host=host)
    init = _init(host_config=host_config, default=default_init, path=init_path)
    held = capabilities(
        host=host, add=host_config.cap_add, drop=host_config.cap_drop, privileged=host_config.privileged
    )
    mounted, propagation = mounts.build(
        host_config=host_config,
        points=container.mounts if points is None else points,
        files=files or {},
        shm="/dev/shm" if host_config.ipc_mode == "host" else shm,
        init=init,
    )
    rules = devices.rules(host_config=host_config)
    masked, readonly = _hidden_paths(host_config, options)
    process = _process(
        args=[*([mounts.INIT, "--"] if init else []), *command(config=config)],
        env=environment(config=config, hostname=name, tty=config.tty, home=user.home),
        cwd=config.working_dir or "/",
        tty=config.tty,
        user=user,
        held=held,
        rlimits=rlimits,
        no_new_privileges=options.no_new_privileges,
        apparmor=options.apparmor or ("unconfined" if host_config.privileged and host.apparmor else ""),
    )
    process |= _oom_score(host_config.oom_score_adj, host, warnings)
    linux: dict[str, Any] = {
        "sysctl": _sysctls(container, netns=netns, own_netns=own_netns),
        "resources": {"devices": [devices.to_oci(rule) for rule in rules]},
        "namespaces": _namespaces(host_config, netns=netns, joined=joined),
        "devices": devices.nodes(host_config=host_config),
        "maskedPaths": masked,
        "readonlyPaths": readonly,
    }
    if cgroups_path:
        linux["cgroupsPath"] = cgroups_path
    if propagation:
        linux["rootfsPropagation"] = propagation
    filters = _seccomp(options.seccomp, host_config, seccomp_profile, held, host, warnings)
    if filters:
        linux["seccomp"] = filters
    result: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": rootfs, "readonly": host_config.readonly_rootfs},
        "mounts": mounted,
        "linux": linux,
    }
    if host_config.uts_mode != "host":
        result["hostname"] = name
    return Bundle(config=result, devices=rules, warnings=(*options.warnings, *warnings))


def check(
    *,
    container: Container,
    default_ulimits: Iterable[Ulimit] = (),
    default_init: bool = False,
    init_path: str = "",
    no_new_privileges: bool = False,
) -> list[str]:
    """Refuse, when a container is made, what `build` would refuse when it starts, as far as no image is needed.

    Returns:
        what was asked for and will not be given in full, a sentence each.

    Raises:
        ConfigError, NotSupported: as `build` does.
    """
    host = Host.read()
    host_config = container.host_config
    modes = {"pid": host_config.pid_mode, "ipc": host_config.ipc_mode}
    _namespaces_joined(host_config, modes)
    options = security.parse(options=host_config.security_opt, host=host, no_new_privileges=no_new_privileges)
    capabilities(host=host, add=host_config.cap_add, drop=host_config.cap_drop, privileged=host_config.privileged)
    devices.rules(host_config=host_config)
    _init(host_config=host_config, default=default_init, path=init_path)
    _, warnings = _rlimits(ulimits=_merged(host_config.ulimits, default_ulimits), host=host)
    _oom_score(host_config.oom_score_adj, host, warnings)
    return [*options.warnings, *warnings]


def exec_process(
    *,
    container: Container,
    rootfs: str,
    args: Sequence[str],
    env: Iterable[str] = (),
    cwd: str = "",
    user: str = "",
    tty: bool = False,
    privileged: bool = False,
    hostname: str = "",
    default_ulimits: Iterable[Ulimit] = (),
    no_new_privileges: bool = False,
    host: Host | None = None,
) -> dict[str, Any]:
    """Describe a further process of a running container, as ``exec --process`` of a runtime takes it.

    Args:
        rootfs: the running container's root, ``/proc/PID/root``.
        args: the command; `env`, `cwd` and `user` are over the container's own.
        privileged: all capabilities that the engine holds.

    Raises:
        ConfigError: no such user, a relative working directory.
    """
    host = host or Host.read()
    config, host_config = container.config, container.host_config
    options = security.parse(options=host_config.security_opt, host=host, no_new_privileges=no_new_privileges)
    who = resolve(rootfs=rootfs, user=user or config.user, group_add=host_config.group_add)
    name = hostname or config.hostname or container.id[:12]
    unconfined = privileged or host_config.privileged
    rlimits, _ = _rlimits(ulimits=_merged(host_config.ulimits, default_ulimits), host=host)
    return _process(
        args=list(args),
        env=_override(environment(config=config, hostname=name, tty=tty, home=who.home), env),
        cwd=cwd or config.working_dir or "/",
        tty=tty,
        user=who,
        held=capabilities(host=host, add=host_config.cap_add, drop=host_config.cap_drop, privileged=unconfined),
        rlimits=rlimits,
        no_new_privileges=options.no_new_privileges,
        apparmor=options.apparmor or ("unconfined" if unconfined and host.apparmor else ""),
    )


def command(*, config: Config) -> list[str]:
    """Return the arguments to run: the entry point and the command after it.

    Raises:
        ConfigError: there are none.
    """
    args = [*(config.entrypoint or ()), *(config.cmd or ())]
    if not args:
        raise ConfigError("no command specified: the image names none; add one after the image's name")
    return args


def environment(*, config: Config, hostname: str, tty: bool, home: str) -> list[str]:
    """Return the environment: Docker's PATH, HOSTNAME and TERM, `config`'s over them, HOME where none is set.

    A name without "=" removes the variable.
    """
    defaults = [f"PATH={PATH}", f"HOSTNAME={hostname}", *(["TERM=xterm"] if tty else [])]
    env = _override(defaults, config.env)
    return env if any(entry.startswith("HOME=") for entry in env) else [*env, f"HOME={home}"]


def _override(base: Iterable[str], words: Iterable[str]) -> list[str]:
    env = {entry.partition("=")[0]: entry for entry in base}
    for entry in words:
        name, given, _ = entry.partition("=")
        if given:
            env[name] = entry
        else:
            env.pop(name, None)
    return list(env.values())


def _process(
    *,
    args: list[str],
    env: list[str],
    cwd: str,
    tty: bool,
    user: User,
    held: Sequence[str],
    rlimits: list[dict[str, Any]],
    no_new_privileges: bool,
    apparmor: str,
) -> dict[str, Any]:
    if not cwd.startswith("/"):
        raise ConfigError(f"the working directory '{cwd}' is invalid, it needs to be an absolute path")
    caps: dict[str, Sequence[str]] = {"bounding": held}
    if user.uid == 0:  # another user gets them from the files that it executes, if at all (capabilities(7))
        caps |= {"effective": held, "permitted": held}
    process: dict[str, Any] = {
        "terminal": tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "args": args,
        "env": env,
        "cwd": cwd,
        "capabilities": caps,
        "noNewPrivileges": no_new_privileges,
    }
    if rlimits:
        process["rlimits"] = rlimits
    if apparmor:
        process["apparmorProfile"] = apparmor
    return process


def _merged(ulimits: Iterable[Ulimit], defaults: Iterable[Ulimit]) -> list[Ulimit]:
    return list(({limit.name: limit for limit in defaults} | {limit.name: limit for limit in ulimits}).values())


def _rlimits(*, ulimits: Iterable[Ulimit], host: Host) -> tuple[list[dict[str, Any]], list[str]]:
    found, warnings = [], []
    for limit in ulimits:
        if limit.name not in ULIMITS:
            raise ConfigError(
                f"invalid ulimit type: {limit.name}{nearest(limit.name, ULIMITS)}; known: {choices(ULIMITS)}"
            )
        soft, hard = (_UNLIMITED if value == -1 else value for value in (limit.soft, limit.hard))
        if soft > hard:
            raise ConfigError(
                f"ulimit {limit.name}: soft limit must be less than or equal to hard limit: {limit.soft} > {limit.hard}"
            )
        own = _UNLIMITED if "CAP_SYS_RESOURCE" in host.capabilities else _own_hard_limit(limit.name)
        if hard > own:
            asked = "unlimited" if hard == _UNLIMITED else hard
            warnings.append(
                f"ulimit {limit.name} hard {asked} is above this process's own limit {own} "
                f"and was lowered to it: the engine lacks CAP_SYS_RESOURCE"
            )
            soft, hard = min(soft, own), own
        found.append({"type": f"RLIMIT_{limit.name.upper()}", "soft": soft, "hard": hard})
    return found, warnings


def _own_hard_limit(name: str) -> int:
    import resource

    number = getattr(resource, f"RLIMIT_{name.upper()}", None)
    if number is None:
        number = {"locks": 10}[name]  # <asm-generic/resource.h>; the module leaves it out
    value = resource.getrlimit(number)[1]
    return _UNLIMITED if value == resource.RLIM_INFINITY else value


def _oom_score(asked: int, host: Host, warnings: list[str]) -> dict[str, int]:
    """Lowering it below one's own needs CAP_SYS_RESOURCE (proc(5), oom_score_adj)."""
    if not -1000 <= asked <= 1000:
        raise ConfigError(f"invalid value {asked}, range for oom score adj is [-1000, 1000]")
    if asked >= host.oom_score_adj or "CAP_SYS_RESOURCE" in host.capabilities:
        return {"oomScoreAdj": asked}
    if asked:
        warnings.append(
            f"oom-score-adj {asked} is below this process's own {host.oom_score_adj} and was left at that: "
            f"the engine lacks CAP_SYS_RESOURCE"
        )
    return {}


def _init(*, host_config: HostConfig, default: bool, path: str) -> str | None:
    """Docker adds an init only to a pid namespace of the container's own."""
    wanted = default if host_config.init is None else host_config.init
    if not wanted or host_config.pid_mode:
        return None
    candidates = [path] if path else [f"/usr/bin/{name}" for name in _INITS] + ["/usr/libexec/podman/catatonit"]
    for candidate in candidates:
        if os.access(candidate, os.X_OK):
            return candidate
    if path:
        raise ConfigError(f"init-path {path} is not an executable file; name a statically linked init")
    raise ConfigError(
        f"--init needs a statically linked init and this host has none of {choices(_INITS)}; "
        f"install Debian's package tini, or name one with init-path"
    )


def _namespaces_joined(host_config: HostConfig, join: Mapping[str, str]) -> dict[str, str]:
    """Check the modes, and find the namespaces that two of them borrow from other containers."""
    modes = {
        "pid": (host_config.pid_mode, ("", "host")),
        "ipc": (host_config.ipc_mode, ("", "host", "none", "private", "shareable")),
        "uts": (host_config.uts_mode, ("", "host")),
        "cgroupns": (host_config.cgroupns_mode, ("", "host", "private")),
        "userns": (host_config.userns_mode, ("", "host")),
    }
    joined = {}
    for name, (mode, known) in modes.items():
        if name in ("pid", "ipc") and mode.startswith("container:"):
            joined[name] = join[name]
        elif mode not in known:
            others = [word for word in known if word] + (["container:NAME"] if name in ("pid", "ipc") else [])
            raise ConfigError(f"--{name}: invalid {name.upper()} mode: {mode}; known: {choices(others)}")
    return joined


def _namespaces(host_config: HostConfig, *, netns: str | None, joined: Mapping[str, str]) -> list[dict[str, str]]:
    found = [{"type": "mount"}]
    if netns:
        found.append({"type": "network", "path": netns})
    if host_config.uts_mode != "host":
        found.append({"type": "uts"})
    for name, mode in (("pid", host_config.pid_mode), ("ipc", host_config.ipc_mode)):
        if mode != "host":
            found.append({"type": name} | ({"path": joined[name]} if name in joined else {}))
    if host_config.cgroupns_mode == "private":
        found.append({"type": "cgroup"})
    return found


def _hidden_paths(host_config: HostConfig, options: security.Security) -> tuple[Sequence[str], Sequence[str]]:
    if host_config.privileged or not options.system_paths:
        return (), ()
    masked, readonly = host_config.masked_paths, host_config.readonly_paths
    return (
        (*MASKED_PATHS, *_thermal_paths()) if masked is None else masked,
        READONLY_PATHS if readonly is None else readonly,
    )


def _thermal_paths() -> list[str]:
    """Throttling counters tell of other tenants' load; moby masks them for each processor."""
    path = "/sys/devices/system/cpu/cpu{}/thermal_throttle"
    return [path.format(n) for n in range(os.cpu_count() or 1)] if os.path.exists(path.format(0)) else []


def _sysctls(container: Container, *, netns: str | None, own_netns: bool) -> dict[str, str]:
    host_config, found = container.host_config, {}
    if netns and own_netns:  # unprivileged users may ping and serve any port: the namespace is the container's own
        for name, value in (
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ):
            if os.path.exists("/proc/sys/" + name.replace(".", "/")):
                found[name] = value
    if container.config.domainname and host_config.uts_mode != "host":
        found["kernel.domainname"] = container.config.domainname
    for name, value in host_config.sysctls.items():
        if name.startswith("net."):
            shared = "network" if netns is None else ""
        elif name in _IPC_SYSCTLS or name.startswith("fs.mqueue."):
            shared = "ipc" if host_config.ipc_mode == "host" else ""
        else:
            raise ConfigError(
                f"sysctl '{name}' is not allowed; those of a container's own namespaces are: fs.mqueue.*, net.*, "
                f"{choices(_IPC_SYSCTLS)}"
            )
        if shared:
            raise ConfigError(f"sysctl '{name}' not allowed in host {shared} namespace; leave out one of the two")
        found[name] = value
    return found


def _seccomp(
    asked: str, host_config: HostConfig, default: str, held: Sequence[str], host: Host, warnings: list[str]
) -> dict[str, Any] | None:
    profile = asked or ("unconfined" if host_config.privileged else default)
    if profile == "unconfined":
        return None
    if not host.seccomp:
        if asked:
            raise ConfigError("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
        warnings.append("no seccomp filter: this kernel has none")
        return None
    from transom_engine.oci import seccomp

    if profile:
        return seccomp.custom(profile=profile, capabilities=held, machine=host.machine)
    return seccomp.default(capabilities=held, machine=host.machine)
