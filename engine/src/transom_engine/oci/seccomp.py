"""The system calls that a container may make, as OCI's ``linux.seccomp`` (seccomp(2), seccomp_rule_add(3)).

The default profile has the meaning of moby's (profiles/seccomp): everything that is not listed fails with EPERM;
what only the holder of a capability can use is listed for containers that hold it. The lists are in
``seccomp.json`` beside this module. A profile of the user's is a file in Docker's own format.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from typing import Annotated, Any

import msgspec

from transom.errors import ConfigError

_ARCHITECTURES = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    "s390x": ("SCMP_ARCH_S390X", "SCMP_ARCH_S390"),
    "ppc64le": ("SCMP_ARCH_PPC64LE",),
    "riscv64": ("SCMP_ARCH_RISCV64",),
    "loongarch64": ("SCMP_ARCH_LOONGARCH64",),
}
_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm", "loongarch64": "loong64"}
"""What Docker's profiles call a machine, where it differs from uname(2)'s word."""

_EPERM, _ENOSYS = 1, 38
_AF_ALG, _AF_VSOCK = 38, 40
# personality(2): PER_LINUX and PER_LINUX32, each also with UNAME26; and the query.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
# CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET of clone(2)
_NEW_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000

Rule = dict[str, Any]


class _Lists(msgspec.Struct, frozen=True):
    """Names of system calls, separated by blanks: for all (in several lines), by capability, by machine."""

    always: list[str]
    capabilities: dict[str, str]
    machines: dict[str, str]


def default(*, capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """Return the default filter of a container that holds `capabilities`."""
    with open(os.path.join(os.path.dirname(__file__), "seccomp.json"), "rb") as file:
        lists = msgspec.json.decode(file.read(), type=_Lists)
    texts = [*lists.always, lists.machines.get(machine, "")]
    texts += [names for capability, names in lists.capabilities.items() if capability in capabilities]
    rules = [_allow(" ".join(texts).split())]
    rules += [_allow(["personality"], (0, value, "SCMP_CMP_EQ")) for value in _PERSONALITIES]
    # Rules for one call are alternatives, so "neither of two families" is said by what lies around them.
    # AF_VSOCK knows no network namespaces, AF_ALG opens much of the kernel for little use.
    rules += [
        _allow(["socket"], (0, _AF_ALG, "SCMP_CMP_LT")),
        _allow(["socket"], (0, _AF_ALG + 1, "SCMP_CMP_EQ")),
        _allow(["socket"], (0, _AF_VSOCK, "SCMP_CMP_GT")),
    ]
    if "CAP_SYS_ADMIN" not in capabilities:
        flags = 1 if machine.startswith("s390") else 0  # clone(2), "C library/kernel differences"
        rules.append(_allow(["clone"], (flags, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ")))
        # Its flags are behind a pointer, out of a filter's reach; ENOSYS sends the C library back to clone.
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        "architectures": _ARCHITECTURES.get(machine, ()),
        "syscalls": rules,
    }


def _allow(names: Iterable[str], *args: tuple[int, int, str]) -> Rule:
    rule: Rule = {"names": list(names), "action": "SCMP_ACT_ALLOW"}
    if args:
        rule["args"] = [{"index": index, "value": value, "op": op} for index, value, op in args]
    return rule


class _Condition(msgspec.Struct):
    caps: list[str] = []
    arches: list[str] = []
    min_kernel: Annotated[str, msgspec.Meta(pattern=r"^\d+\.\d+$")] = msgspec.field(default="", name="minKernel")


class _Call(msgspec.Struct, rename="camel"):
    action: str
    names: list[str] = []
    name: str = ""
    args: list[dict[str, Any]] | None = None
    errno_ret: int | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _Arch(msgspec.Struct, rename="camel"):
    architecture: str
    sub_architectures: list[str] | None = None


class _Profile(msgspec.Struct, rename="camel"):
    default_action: str
    default_errno_ret: int | None = None
    architectures: list[str] | None = None
    arch_map: list[_Arch] | None = None
    flags: list[str] | None = None
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: list[_Call] | None = None


def custom(*, profile: str, capabilities: Collection[str], machine: str) -> dict[str, Any]:
    """Resolve a profile in Docker's format for a container that holds `capabilities` on this machine and kernel.

    Args:
        profile: a file's path, or the JSON text itself, as Docker's API passes it.

    Raises:
        ConfigError: it cannot be read, or is not a profile.
    """
    text, source = profile, "the given text"
    if not profile.lstrip().startswith("{"):
        try:
            with open(profile, encoding="utf-8") as file:
                text, source = file.read(), profile
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a text"
            raise ConfigError(f"opening seccomp profile ({profile}) failed: {reason}") from None
    try:
        parsed = msgspec.json.decode(text, type=_Profile)
    except msgspec.DecodeError as error:
        raise ConfigError(f"decoding seccomp profile ({source}) failed: {error}") from None
    if parsed.architectures and parsed.arch_map:
        raise ConfigError(f"seccomp profile ({source}): use either 'architectures' or 'archMap'")

    result: dict[str, Any] = {
        "defaultAction": parsed.default_action,
        "architectures": parsed.architectures or _architectures(parsed.arch_map or (), machine),
        "syscalls": [_call(call) for call in parsed.syscalls or () if _applies(call, set(capabilities), machine)],
    }
    optional = {
        "defaultErrnoRet": parsed.default_errno_ret,
        "flags": parsed.flags,
        "listenerPath": parsed.listener_path,
        "listenerMetadata": parsed.listener_metadata,
    }
    return result | {key: value for key, value in optional.items() if value is not None}


def _architectures(known: Iterable[_Arch], machine: str) -> list[str]:
    native = _ARCHITECTURES.get(machine, ("",))[0]
    for arch in known:
        if arch.architecture == native:
            return [native, *(arch.sub_architectures or ())]
    return []


def _call(call: _Call) -> Rule:
    rule: Rule = {"names": [call.name] if call.name else call.names, "action": call.action}
    if call.args:
        rule["args"] = call.args
    if call.errno_ret is not None:
        rule["errnoRet"] = call.errno_ret
    return rule


def _applies(call: _Call, capabilities: set[str], machine: str) -> bool:
    arch = _GO_NAMES.get(machine, machine)
    no, yes = call.excludes, call.includes
    if no and (arch in no.arches or capabilities & set(no.caps) or (no.min_kernel and _kernel_is(no.min_kernel))):
        return False
    return not yes or (
        (not yes.arches or arch in yes.arches)
        and set(yes.caps) <= capabilities
        and (not yes.min_kernel or _kernel_is(yes.min_kernel))
    )


def _kernel_is(minimum: str) -> bool:
    return _version(os.uname().release) >= _version(minimum)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.partition("-")[0].split(".")[:2])
