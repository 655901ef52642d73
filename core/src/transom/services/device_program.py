"""The device list of a cgroup v2 group: a BPF program that the kernel asks at each open and mknod.

The unified hierarchy has no file for it (admin-guide/cgroup-v2.rst, "Device controller"). A program of the type
BPF_PROG_TYPE_CGROUP_DEVICE is attached to the group by bpf(2), beside those of others: a device is allowed when all
of them agree. The rules are kept in an extended attribute of the group, so that an update can be taken back.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

import msgspec

from transom.contract.limits import DeviceRule
from transom.services.files import closing
from transom.services.mounts import libc

_PROG_LOAD, _PROG_ATTACH, _PROG_DETACH, _PROG_GET_FD_BY_ID, _OBJ_GET_INFO_BY_FD, _PROG_QUERY = 5, 8, 9, 13, 15, 16
_CGROUP_DEVICE_PROGRAM, _CGROUP_DEVICE = 15, 6
_ALLOW_MULTI, _REPLACE = 2, 4
_NAME = b"transom_devices"
_ATTRIBUTE = "trusted.transom.devices"
_RULES = msgspec.json.Decoder(tuple[DeviceRule, ...] | None)

# Of bpf(2), by machine as uname(2) has it; the newer architectures have 280.
_NUMBERS = {"x86_64": 321, "i686": 357, "armv7l": 386, "ppc64le": 361, "s390x": 351}

_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}

# linux/bpf_common.h: class, operation and source of an instruction.
_LOAD_WORD, _MOVE, _MOVE_NUMBER, _AND_NUMBER, _SHIFT_RIGHT_NUMBER = 0x61, 0xBF, 0xB7, 0x57, 0x77
_IF_EQUAL, _IF_NOT_EQUAL, _EXIT = 0x15, 0x55, 0x95
_R0, _CONTEXT, _TYPE, _LEFT, _MAJOR, _MINOR = range(6)

Instruction = tuple[int, int, int, int, int]
"""Operation, destination, source, offset, number (bpf(2): struct bpf_insn)."""


def instructions(rules: Iterable[DeviceRule]) -> list[Instruction]:
    """Return a program for which the last rule that matches decides, for each letter of access by itself.

    It goes through the rules from the last to the first. What is asked for and not decided yet is in `_LEFT`.
    """
    code: list[Instruction] = [
        (_LOAD_WORD, _TYPE, _CONTEXT, 0, 0),
        (_LOAD_WORD, _MAJOR, _CONTEXT, 4, 0),
        (_LOAD_WORD, _MINOR, _CONTEXT, 8, 0),
        (_MOVE, _LEFT, _TYPE, 0, 0),
        (_SHIFT_RIGHT_NUMBER, _LEFT, 0, 0, 16),
        (_AND_NUMBER, _TYPE, 0, 0, 0xFFFF),
    ]
    for rule in reversed(list(rules)):
        code += _of(rule)
    return [*code, (_MOVE_NUMBER, _R0, 0, 0, 0), (_EXIT, 0, 0, 0, 0)]


def _of(rule: DeviceRule) -> list[Instruction]:
    wanted = ((_TYPE, _TYPES.get(rule.type)), (_MAJOR, rule.major), (_MINOR, rule.minor))
    conditions = [(register, number) for register, number in wanted if number is not None]
    letters = sum(_ACCESS[letter] for letter in set(rule.access))
    answer = [(_MOVE_NUMBER, _R0, 0, 0, int(rule.allow)), (_EXIT, 0, 0, 0, 0)]
    if rule.allow:
        decide = [(_AND_NUMBER, _LEFT, 0, 0, 7 & ~letters), (_IF_NOT_EQUAL, _LEFT, 0, 2, 0), *answer]
    else:
        decide = [(_MOVE, _R0, _LEFT, 0, 0), (_AND_NUMBER, _R0, 0, 0, letters), (_IF_EQUAL, _R0, 0, 2, 0), *answer]
    ahead = [len(conditions) - place - 1 + len(decide) for place in range(len(conditions))]
    tests = [(_IF_NOT_EQUAL, reg, 0, skip, number) for (reg, number), skip in zip(conditions, ahead, strict=True)]
    return [*tests, *decide]


def supported() -> bool:
    """Say whether this kernel loads such programs for this process (CONFIG_CGROUP_BPF, CAP_SYS_ADMIN)."""
    try:
        os.close(_load([]))
    except OSError:
        return False
    return True


def set_devices(group: str, rules: Iterable[DeviceRule] | None) -> None:
    """Make the rules hold in `group` in one step; None takes the list away. A second time is harmless.

    Raises:
        OSError: the kernel refused the program.
    """
    rules = None if rules is None else tuple(rules)
    with closing(os.open(group, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as directory:
        old = _attached(directory)
        try:
            if rules is not None:
                with closing(_load(rules)) as program:
                    flags = _ALLOW_MULTI | (_REPLACE if old >= 0 else 0)
                    _bpf(_PROG_ATTACH, struct.pack("=IIIII", directory, program, _CGROUP_DEVICE, flags, max(old, 0)))
            elif old >= 0:
                _bpf(_PROG_DETACH, struct.pack("=III", directory, old, _CGROUP_DEVICE))
        finally:
            if old >= 0:
                os.close(old)
        os.setxattr(directory, _ATTRIBUTE, msgspec.json.encode(rules))


def devices_of(group: str) -> tuple[DeviceRule, ...] | None:
    """Return the rules that hold in `group`; None when it has no list."""
    try:
        rules: tuple[DeviceRule, ...] | None = _RULES.decode(os.getxattr(group, _ATTRIBUTE))
    except OSError:
        return None
    return rules


def restore_devices(group: str, text: str) -> None:
    """Make the rules hold again that `devices_of` returned, given as JSON."""
    set_devices(group, _RULES.decode(text))


def _load(rules: Iterable[DeviceRule]) -> int:
    code = b"".join(
        struct.pack("=BBhi", operation, target | source << 4, offset, number)
        for operation, target, source, offset, number in instructions(rules)
    )
    program, license = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"Apache-2.0")
    attributes = struct.pack(
        "=IIQQIIQII16sII", _CGROUP_DEVICE_PROGRAM, len(code) // 8, ctypes.addressof(program),
        ctypes.addressof(license), 0, 0, 0, 0, 0, _NAME, 0, _CGROUP_DEVICE,
    )  # fmt: skip
    return _bpf(_PROG_LOAD, attributes)


def _attached(directory: int) -> int:
    """Return a descriptor of the program that this module attached to the group; -1 when there is none."""
    ids = (ctypes.c_uint32 * 64)()
    query = ctypes.create_string_buffer(
        struct.pack("=IIIIQII", directory, _CGROUP_DEVICE, 0, 0, ctypes.addressof(ids), len(ids), 0), 64
    )
    _bpf(_PROG_QUERY, query)
    for number in ids[: struct.unpack_from("=I", query, 24)[0]]:
        program = _bpf(_PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))
        if _name(program) == _NAME:
            return program
        os.close(program)
    return -1


def _name(program: int) -> bytes:
    info = ctypes.create_string_buffer(80)  # struct bpf_prog_info up to its name
    _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", program, len(info), ctypes.addressof(info)))
    return info.raw[64:80].rstrip(b"\0")


def _bpf(command: int, attributes: bytes | ctypes.Array[ctypes.c_char]) -> int:
    buffer = ctypes.create_string_buffer(attributes, len(attributes)) if isinstance(attributes, bytes) else attributes
    number = _NUMBERS.get(os.uname().machine, 280)
    numbers = (ctypes.c_long(number), ctypes.c_long(command))
    return libc("syscall", *numbers, ctypes.byref(buffer), ctypes.c_long(ctypes.sizeof(buffer)), where="bpf")
