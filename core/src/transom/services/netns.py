"""Network namespaces without names, and functions that run inside one.

setns(2) and unshare(2) concern one thread, so everything here happens in a thread made for it: the caller's own
thread never leaves its namespace, whatever fails. A namespace that only descriptors and processes hold is gone,
with every interface in it, as soon as the last of them is.

Inside, ``/proc/sys/net`` shows the thread's namespace, but ``/proc/net`` that of the process: read
``/proc/thread-self/net``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from transom.services.mounts import CLONE_NEWNET, in_thread, setns, unshare

T = TypeVar("T")

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1  # netdevice(7)


def create() -> int:
    """Make a network namespace and return a descriptor of it (close-on-exec, the caller's to close).

    Its loopback is down; see `loopback_up`.

    Raises:
        OSError: EPERM without CAP_SYS_ADMIN; ENOSPC beyond /proc/sys/user/max_net_namespaces.
    """

    def run() -> int:
        unshare(CLONE_NEWNET)
        return current()

    return in_thread(run)


def current() -> int:
    """Return a descriptor of the calling thread's namespace (close-on-exec, the caller's to close)."""
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def inside(netns: int, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Call `function` in a throw-away thread inside the namespace, and return or raise what it does.

    In a thread that is inside already it is called at once: a thread costs more than most of what is done in one.
    Sockets opened inside stay in the namespace wherever they are used later. Child processes start inside.

    Args:
        netns: a descriptor of a network namespace.

    Raises:
        OSError: EINVAL when the descriptor is of something else, EBADF when it is closed.
    """

    def run() -> T:
        setns(netns, CLONE_NEWNET)
        return function(*args, **kwargs)

    if os.path.samestat(os.fstat(netns), os.stat("/proc/thread-self/ns/net")):
        return function(*args, **kwargs)
    return in_thread(run)


def loopback_up() -> None:
    """Set the loopback of the calling thread's namespace up; the kernel gives it 127.0.0.1 and ::1.

    For another namespace: ``inside(netns, loopback_up)``. Up already is success.
    """
    import socket
    import struct
    from fcntl import ioctl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = bytearray(struct.pack("16sh14x", b"lo", 0) + bytes(8))
        ioctl(sock, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("h", request, 16)
        struct.pack_into("h", request, 16, flags | _IFF_UP)
        ioctl(sock, _SIOCSIFFLAGS, request)
