"""Who a container's process runs as: ``--user`` and ``--group-add``, in the words of the container's own files.

The rules and the errors' first words are Docker's (moby/sys, user/user.go).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import msgspec

from transom.errors import ConfigError
from transom_engine.rooted import open_rooted

_MAX_ID = 2**31 - 1


class User(msgspec.Struct, frozen=True):
    """A user as the kernel knows it; `groups` starts with `gid`, as Docker passes it (CVE-2022-36109)."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def resolve(*, rootfs: str, user: str = "", group_add: Iterable[str] = ()) -> User:
    """Resolve ``NAME|UID[:GROUP|GID]`` by the /etc/passwd and /etc/group below `rootfs`.

    Without a group the user's own and supplementary groups count; with one, it alone. Empty is uid 0. A number
    that no file names is taken as it is, with group 0.

    Raises:
        ConfigError: no such user or group, or a number out of range.
    """
    name, _, group = user.partition(":")
    number = _number(name)
    uid, gid, home, login = number or 0, 0, "/", ""
    for entry in _entries(rootfs, "passwd"):
        if (entry[0] == name) if name and number is None else (entry[0] == name or entry[2] == str(uid)):
            login, uid, gid, home = entry[0], _id(entry[2]), _id(entry[3]), entry[5] or "/"
            break
    else:
        if name and number is None:
            raise ConfigError(f"unable to find user {name}: no matching entries in passwd file; name a numeric uid")
    _check_range(uid)

    supplementary: list[int] = []
    if group:
        gid = _group(rootfs, group)
    elif login:
        supplementary = [_id(entry[2]) for entry in _entries(rootfs, "group") if login in entry[3].split(",")]
    extra = [_group(rootfs, added) for added in group_add]
    return User(uid=uid, gid=gid, groups=tuple(dict.fromkeys([gid, *supplementary, *extra])), home=home)


def _group(rootfs: str, group: str) -> int:
    number = _number(group)
    for entry in _entries(rootfs, "group"):
        if entry[0] == group or (number is not None and entry[2] == str(number)):
            return _id(entry[2])
    if number is None:
        raise ConfigError(f"unable to find group {group}: no matching entries in group file; name a numeric gid")
    return _check_range(number)


def _entries(rootfs: str, name: str) -> Iterator[list[str]]:
    """Give the lines of /etc/passwd or /etc/group that have an id, split; a missing file has none."""
    try:
        descriptor = open_in(rootfs=rootfs, path=f"etc/{name}")
    except (FileNotFoundError, NotADirectoryError):
        return
    with open(descriptor, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            entry = [field.strip() for field in line.split(":")]
            if len(entry) > 2 and entry[2].isdigit():
                yield [*entry, "", "", "", ""]


def open_in(*, rootfs: str, path: str) -> int:
    """Open a file below `rootfs` for reading, with symbolic links resolved as if `rootfs` were the root.

    The kernel resolves them (openat2(2), Linux 5.6), so a container that runs and swaps a link meanwhile leads
    nowhere else. A FIFO in the file's place does not block.

    Raises:
        OSError: as openat2(2).
    """
    root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_rooted(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"{rootfs}/{path}") from None
    finally:
        os.close(root)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _id(text: str) -> int:
    return _number(text) or 0


def _check_range(number: int) -> int:
    if number > _MAX_ID:
        raise ConfigError(f"uids and gids must be in range 0-{_MAX_ID}, and {number} is not")
    return number
