"""User namespaces that exist to carry an id map to a mount (mount_setattr(2), MOUNT_ATTR_IDMAP)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from transom.contract.storage import IdMap, IdRange
from transom.services.files import closing

T = TypeVar("T")

CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 1, 28, 1 << 2


@contextmanager
def namespace(idmap: IdMap) -> Iterator[int]:
    """Make a user namespace with that map, and yield a descriptor of it; it ends with its last descriptor and mount.

    Only a process of one thread can enter a new user namespace (unshare(2)), so a child does, and is killed for it.

    Raises:
        OSError: the kernel has no user namespaces, or not one more (/proc/sys/user/max_user_namespaces).
    """
    ours, (reader, writer) = os.getpid(), os.pipe()
    with closing(reader):
        pid = os.fork()
        if pid == 0:
            _wait_inside(writer, parent=ours)
        try:
            os.close(writer)
            code = os.read(reader, 1)
            if code != b"\0":
                number = code[0] if code else 0
                raise OSError(number, os.strerror(number) if number else "its process ended", "user namespace")
            for name, ranges in (("uid_map", idmap.uids), ("gid_map", idmap.gids)):
                text = "".join(f"{r.container} {r.host} {r.size}\n" for r in ranges)
                with open(f"/proc/{pid}/{name}", "wb", buffering=0) as file:
                    file.write(text.encode())
            found = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    with closing(found) as fd:
        yield fd


def _wait_inside(writer: int, *, parent: int) -> None:
    """Enter a new user namespace, say how that went, and wait to be killed: by our parent or by its death."""
    from transom.services.mounts import libc, unshare

    try:
        libc("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() == parent:
            unshare(CLONE_NEWUSER)
            os.write(writer, b"\0")
            while True:
                signal.pause()
    except OSError as error:
        os.write(writer, bytes([error.errno or 1]))
    finally:
        os._exit(1)


def as_mapped_root(idmap: IdMap, function: Callable[[], T]) -> T:
    """Call `function` in a throw-away thread whose files belong to whom the map makes of root; it keeps its privileges.

    What is made on a mount with an id map must belong to somebody there, and the host's root seldom does.
    """
    from transom.services.mounts import in_thread, libc

    def run() -> T:
        libc("prctl", _PR_SET_SECUREBITS, _NO_SETUID_FIXUP, 0, 0, 0)
        libc("setfsgid", outside(idmap.gids, 0))
        libc("setfsuid", outside(idmap.uids, 0))
        return function()

    return in_thread(run)


def outside(ranges: tuple[IdRange, ...], id: int) -> int:
    """Say how an id in a layer appears outside: as the overflow id, 65534, where the map does not have it."""
    for found in ranges:
        if found.container <= id < found.container + found.size:
            return found.host + id - found.container
    return 65534
