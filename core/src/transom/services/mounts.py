"""Mounting what storage drivers describe, with the new mount API (fsopen(2), fsconfig(2), move_mount(2)).

One call for each option means no page-size limit and no escaping: 500 overlay layers, and paths with colons and
commas, mount as they are. Kernels without it (before 5.2, or before 6.8 for ``lowerdir+``) get mount(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import TypeVar

from transom.contract.storage import Mount

T = TypeVar("T")

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 16384, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_FS, CLONE_NEWNS = 0x200, 0x20000

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0o2000000, 4
_SET_FLAG, _SET_STRING, _CMD_CREATE, _ATTR_RDONLY = 0, 1, 6, 1
# From here on a system call has the same number on every architecture.
_NR = {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "mount_setattr": 442}
_FSCONFIG_STRING_MAX = 255

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _fail(what: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, os.strerror(code), what)


def _syscall(name: str, *args: int | bytes | None) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in args]
    result: int = _libc.syscall(ctypes.c_long(_NR[name]), *converted)
    if result < 0:
        raise _fail(name)
    return result


def syncfs(fd: int) -> None:
    """Call syncfs(2), which `os` lacks."""
    if _libc.syncfs(fd) < 0:
        raise _fail("syncfs")


def unshare(flags: int) -> None:
    """Call unshare(2) for the calling thread (`os` has it from Python 3.12 on)."""
    if _libc.unshare(flags) < 0:
        raise _fail("unshare")


def become_subreaper() -> None:
    """Have orphaned descendants handed to this process (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    if _libc.prctl(36, 1, 0, 0, 0) < 0:
        raise _fail("prctl")


def mount(source: str, target: str, type: str = "", flags: int = 0, data: str = "") -> None:
    """Call mount(2)."""
    encoded = [os.fsencode(text) if text else None for text in (source, target, type)]
    if _libc.mount(*encoded, ctypes.c_ulong(flags), os.fsencode(data) if data else None) < 0:
        raise _fail(target)


def unmount(target: str, *, detach: bool = True) -> bool:
    """Unmount; return whether something was mounted there. `detach` lets go of a busy mount (umount2(2))."""
    if _libc.umount2(os.fsencode(target), (MNT_DETACH if detach else 0) | UMOUNT_NOFOLLOW) == 0:
        return True
    if ctypes.get_errno() in {errno.EINVAL, errno.ENOENT}:
        return False
    raise _fail(target)


def bind(source: str, target: str, *, readonly: bool = False, recursive: bool = False) -> None:
    """Bind-mount, read-only from the first moment where asked (mount_setattr(2))."""
    depth = _AT_RECURSIVE if recursive else 0
    tree = _syscall("open_tree", _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _CLOEXEC | depth)
    try:
        if readonly:
            attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY, 0, 0, 0)
            if (
                _libc.syscall(
                    ctypes.c_long(_NR["mount_setattr"]),
                    ctypes.c_long(tree),
                    b"",
                    ctypes.c_long(_AT_EMPTY_PATH | depth),
                    ctypes.byref(attributes),
                    ctypes.c_long(ctypes.sizeof(attributes)),
                )
                < 0
            ):
                raise _fail("mount_setattr")
        _move(tree, target)
    finally:
        os.close(tree)


def _move(tree: int, target: str) -> None:
    _syscall("move_mount", tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH)


def mount_all(mounts: Sequence[Mount], target: str) -> None:
    """Mount in order, each at its place below `target`; what was mounted is unmounted again when one fails.

    Raises:
        OSError: the kernel refused; its own explanation is in the text where it gives one.
    """
    done: list[str] = []
    try:
        for item in mounts:
            place = os.path.join(target, item.target) if item.target else target
            mount_one(item, place)
            done.append(place)
    except BaseException:
        for place in reversed(done):
            unmount(place)
        raise


def mount_one(item: Mount, target: str) -> None:
    """Mount one thing; see `mount_all`."""
    if item.type == "bind":
        bind(item.source, target, readonly=item.readonly)
        return
    try:
        _mount_new(item, target)
    except OSError as error:
        # ENOSYS: no such API. EINVAL: an option of the new form is not known; mount(2) has the last word then.
        if error.errno not in {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP}:
            raise
        try:
            _mount_classic(item, target)
        except OSError:
            raise error from None


def _mount_new(item: Mount, target: str) -> None:
    fs = _syscall("fsopen", item.type.encode(), 1)
    borrowed: list[int] = []
    try:
        if item.source:
            _syscall("fsconfig", fs, _SET_STRING, b"source", os.fsencode(item.source), 0)
        for option in item.options:
            key, has_value, value = option.partition("=")
            if not has_value:
                _syscall("fsconfig", fs, _SET_FLAG, key.encode(), None, 0)
                continue
            if len(os.fsencode(value)) > _FSCONFIG_STRING_MAX and value.startswith("/"):
                borrowed.append(os.open(value, os.O_PATH | os.O_CLOEXEC))
                value = f"/proc/self/fd/{borrowed[-1]}"
            _syscall("fsconfig", fs, _SET_STRING, key.encode(), os.fsencode(value), 0)
        _syscall("fsconfig", fs, _CMD_CREATE, None, None, 0)
        tree = _syscall("fsmount", fs, 1, _ATTR_RDONLY if item.readonly else 0)
        try:
            _move(tree, target)
        finally:
            os.close(tree)
    except OSError as error:
        raise OSError(error.errno, _explain(fs) or error.strerror, target) from None
    finally:
        for fd in (fs, *borrowed):
            os.close(fd)


def _explain(fs: int) -> str:
    """Read the kernel's own message from the file-system context (fsopen(2): "e overlay: ...")."""
    messages = []
    try:
        while True:
            messages.append(os.read(fs, 4096).decode(errors="replace")[2:].strip())
    except OSError:
        return "; ".join(messages)


def _mount_classic(item: Mount, target: str) -> None:
    lowers = [o.partition("=")[2] for o in item.options if o.startswith("lowerdir+=")]
    options = [o for o in item.options if not o.startswith("lowerdir+=")]
    if lowers:
        options.insert(0, "lowerdir=" + ":".join(_escape(path) for path in lowers))
    data = ",".join(options)
    if len(os.fsencode(data)) >= os.sysconf("SC_PAGE_SIZE"):  # mount(2) would cut it off without a word
        raise OSError(errno.E2BIG, "mount options exceed one page on this kernel", target)
    mount(item.source or "none", target, item.type, MS_RDONLY if item.readonly else 0, data)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def private_namespace() -> None:
    """Give the calling thread a mount namespace of its own, whose mounts never reach the host's.

    What the host mounts later still arrives (a slave mount, mount_namespaces(7)).
    """
    unshare(CLONE_NEWNS)
    mount("", "/", flags=MS_REC | MS_SLAVE)


def privately(function: Callable[[], T]) -> T:
    """Run `function` in a throw-away thread with a mount namespace of its own, and return what it returns.

    Whatever it mounts is gone when it ends, also by SIGKILL: the kernel drops the namespace.
    """
    from threading import Thread

    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            private_namespace()
            outcome.append(function())
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run, name="private-mounts")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


def is_mount_point(path: str) -> bool:
    """Say whether `path` is the root of a mount: its device differs from its parent's, or it is a bind of it."""
    try:
        here, above = os.lstat(path), os.lstat(os.path.join(path, ".."))
    except FileNotFoundError:
        return False
    if stat.S_ISLNK(here.st_mode):
        return False
    return here.st_dev != above.st_dev or here.st_ino == above.st_ino
