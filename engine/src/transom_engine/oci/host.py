"""What this process may pass on to a container, and which security modules the kernel runs."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec

from transom.errors import ConfigError, NotSupported, choices, nearest

CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
        "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
        "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
        "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
        "PERFMON BPF CHECKPOINT_RESTORE"
    ).split()
)
"""By number, after capabilities(7)."""

DEFAULT_CAPABILITIES = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE "
        "SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
)
"""Docker's default set (moby, oci/caps/defaults.go)."""


class Host(msgspec.Struct, frozen=True):
    """The engine's own process, and the kernel it runs on.

    Attributes:
        capabilities: those it holds and may hand on: permitted and in the bounding set.
        machine: as uname(2) says, "x86_64".
        oom_score_adj: of this process; without CAP_SYS_RESOURCE none can go below it.
        seccomp, apparmor, selinux: the kernel has it and it is on.
    """

    capabilities: frozenset[str]
    machine: str
    oom_score_adj: int = 0
    seccomp: bool = True
    apparmor: bool = False
    selinux: bool = False

    @classmethod
    def read(cls) -> Host:
        """Look at this process and its kernel (proc(5))."""
        status = dict(line.split(":", 1) for line in _text("/proc/self/status").splitlines() if ":" in line)
        mask = int(status["CapPrm"], 16) & int(status["CapBnd"], 16)
        return cls(
            capabilities=frozenset(name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1),
            machine=os.uname().machine,
            oom_score_adj=int(_text("/proc/self/oom_score_adj")),
            seccomp="Seccomp" in status,
            apparmor=_text("/sys/module/apparmor/parameters/enabled").startswith("Y"),
            selinux=os.path.exists("/sys/fs/selinux/enforce"),
        )


def capabilities(
    *, host: Host, add: Iterable[str] = (), drop: Iterable[str] = (), privileged: bool = False
) -> tuple[str, ...]:
    """Return a container's capabilities, after Docker's rules for --cap-add, --cap-drop and --privileged.

    Names are taken with or without ``CAP_``, in any case; ``ALL`` means every one that this process holds.

    Raises:
        ConfigError: an unknown name.
        NotSupported: one asked for by name that this process does not hold and so cannot hand on.
    """
    added, dropped = [_normal(name) for name in add], {_normal(name) for name in drop}
    everything = [name for name in CAPABILITIES if name in host.capabilities]
    if privileged:
        return tuple(everything)
    for name in added:
        if name != "ALL" and name not in host.capabilities:
            raise NotSupported(
                f"cap-add {name}: the engine's own process does not hold {name} and cannot hand it on; "
                f"start the engine with it, or leave it out"
            )
    if "ALL" in added:
        return tuple(name for name in everything if name not in dropped)
    base = () if "ALL" in dropped else (name for name in DEFAULT_CAPABILITIES if name in host.capabilities)
    return tuple(dict.fromkeys([*(name for name in base if name not in dropped), *added]))


def _normal(name: str) -> str:
    word = name.upper()
    full = word if word.startswith("CAP_") or word == "ALL" else f"CAP_{word}"
    if full != "ALL" and full not in CAPABILITIES:
        raise ConfigError(
            f'invalid capability: "{name}"{nearest(full, CAPABILITIES)}; known: ALL, {choices(CAPABILITIES)}'
        )
    return full


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except OSError:
        return ""
