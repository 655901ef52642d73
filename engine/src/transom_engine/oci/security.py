"""What ``--security-opt`` says."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from transom.errors import ConfigError, choices, nearest
from transom_engine.oci.host import Host

_KNOWN = ("apparmor", "label", "no-new-privileges", "seccomp", "systempaths")


class Security(msgspec.Struct, frozen=True):
    """The security options of a container.

    Attributes:
        seccomp: "" for the default profile, ``unconfined``, or a profile: a file's path or the JSON text itself.
        apparmor: a profile's name, or "".
        system_paths: /proc and /sys are masked as usual; False with ``systempaths=unconfined``.
        warnings: what was asked for and will not act here.
    """

    no_new_privileges: bool = False
    seccomp: str = ""
    apparmor: str = ""
    system_paths: bool = True
    warnings: tuple[str, ...] = ()


def parse(*, options: Iterable[str], host: Host, no_new_privileges: bool = False) -> Security:
    """Read the options; both Docker's ``key=value`` and its older ``key:value`` are taken.

    Args:
        no_new_privileges: the engine's default, which an option overrides.

    Raises:
        ConfigError: an option or a value that does not exist.
    """
    texts, warnings, system_paths = {"seccomp": "", "apparmor": ""}, [], True
    for option in options:
        separator = "=" if "=" in option else ":"
        key, given, value = option.partition(separator)
        if key == "no-new-privileges":
            no_new_privileges = _boolean(option, value) if given else True
        elif key in texts and value:
            texts[key] = "" if (key, value) == ("seccomp", "builtin") else value
            if key == "apparmor" and value != "unconfined" and not host.apparmor:
                warnings.append(f"security-opt {option} has no effect: this host has no AppArmor")
        elif key == "label" and value:
            if value != "disable" and not host.selinux:
                warnings.append(f"security-opt {option} has no effect: this host has no SELinux")
        elif option in ("systempaths=unconfined", "systempaths:unconfined"):
            system_paths = False
        elif key in _KNOWN:
            raise ConfigError(f'invalid --security-opt "{option}": write {_usage(key)}')
        else:
            raise ConfigError(f'invalid --security-opt "{option}"{nearest(key, _KNOWN)}; known: {choices(_KNOWN)}')
    return Security(
        no_new_privileges=no_new_privileges,
        seccomp=texts["seccomp"],
        apparmor=texts["apparmor"] if host.apparmor else "",
        system_paths=system_paths,
        warnings=tuple(warnings),
    )


def _boolean(option: str, value: str) -> bool:
    word = value.lower()
    if word in ("true", "1", "t"):
        return True
    if word in ("false", "0", "f"):
        return False
    raise ConfigError(f'invalid --security-opt "{option}": write {_usage("no-new-privileges")}')


def _usage(key: str) -> str:
    return {
        "apparmor": "apparmor=PROFILE",
        "label": "label=disable or label=TYPE:VALUE",
        "no-new-privileges": "no-new-privileges, no-new-privileges=true or no-new-privileges=false",
        "seccomp": "seccomp=unconfined, seccomp=builtin or seccomp=FILE",
        "systempaths": "systempaths=unconfined",
    }[key]
