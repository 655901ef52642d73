"""Mounting what storage drivers describe, with the new mount API (fsopen(2), fsconfig(2), move_mount(2)).

One call for each option means no page-size limit and no escaping: 500 overlay layers, and paths with colons and
commas, mount as they are. Kernels without it (before 5.2, or before 6.8 for ``lowerdir+``) get mount(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from transom.contract.storage import IdMap, Mount
from transom.errors import NotSupported
from transom.services.files import closing

T = TypeVar("T")

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE = 1, 2, 4, 8, 32, 4096, 8192
MS_REC, MS_PRIVATE, MS_SLAVE, MS_SHARED = 16384, 1 << 18, 1 << 19, 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_OPEN_TREE_CLONE, _CLOEXEC, _MOVE_MOUNT_F_EMPTY_PATH = 1, 0o2000000, 4
_SET_FLAG, _SET_STRING, _CMD_CREATE = 0, 1, 6
_ATTR_RDONLY, _ATTR_NODEV, _ATTR_IDMAP = 1, 4, 0x100000
# From here on a system call has the same number on every architecture.
_NR = {"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "mount_setattr": 442}
_FSCONFIG_STRING_MAX = 255
_LAYERS = ("lowerdir+=", "upperdir=", "workdir=")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def libc(name: str, *args: Any, where: str = "") -> int:
    """Call a function of the C library; a failure names `where`, else the function."""
    result: int = getattr(_libc, name)(*args)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), where or name)
    return result


def _syscall(name: str, *args: Any) -> int:
    numbers = [ctypes.c_long(arg) if isinstance(arg, int) else arg for arg in (_NR[name], *args)]
    return libc("syscall", *numbers, where=name)


def syncfs(fd: int) -> None:
    """Call syncfs(2), which `os` lacks."""
    libc("syncfs", fd)


def unshare(flags: int) -> None:
    """Call unshare(2) for the calling thread (`os` has it from Python 3.12 on)."""
    libc("unshare", flags)


def setns(fd: int, flags: int) -> None:
    """Call setns(2) for the calling thread (`os` has it from Python 3.12 on)."""
    libc("setns", fd, flags)


def become_subreaper() -> None:
    """Have orphaned descendants handed to this process (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    libc("prctl", 36, 1, 0, 0, 0)


def in_thread(function: Callable[[], T]) -> T:
    """Call `function` in a throw-away thread, and return or raise what it does: its namespaces end with it.

    A thread without an object of `threading`, whose start alone waits for the new thread: the caller waits once, which
    counts on a busy host.
    """
    from _thread import allocate_lock, start_new_thread

    results: list[T] = []
    errors: list[BaseException] = []
    done = allocate_lock()

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            done.release()

    done.acquire()
    start_new_thread(run, ())
    done.acquire()
    if errors:
        raise errors[0]
    return results[0]


def mount(source: str, target: str, type: str = "", flags: int = 0, data: str = "") -> None:
    """Call mount(2)."""
    encoded = [os.fsencode(text) if text else None for text in (source, target, type)]
    libc("mount", *encoded, ctypes.c_ulong(flags), os.fsencode(data) if data else None, where=target)


def unmount(target: str, *, detach: bool = True) -> bool:
    """Unmount; return whether something was mounted there. `detach` lets go of a busy mount (umount2(2))."""
    try:
        libc("umount2", os.fsencode(target), (MNT_DETACH if detach else 0) | UMOUNT_NOFOLLOW, where=target)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOENT}:
            raise
        return False
    return True


def bind(
    source: str, target: str, *, readonly: bool = False, recursive: bool = False, idmap: IdMap | None = None
) -> None:
    """Bind-mount, read-only and with the id map from the first moment where asked (mount_setattr(2))."""
    with closing(_detached(source, _ATTR_RDONLY if readonly else 0, recursive=recursive)) as tree:
        if idmap:
            _map(tree, idmap, source)
        _move(tree, target)


def _detached(source: str, attributes: int, *, recursive: bool = False) -> int:
    depth = _AT_RECURSIVE if recursive else 0
    tree = _syscall("open_tree", _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | _CLOEXEC | depth)
    try:
        if attributes:
            _set_attributes(tree, attributes, depth=depth)
    except BaseException:
        os.close(tree)
        raise
    return tree


def without_devices(source: str) -> int:
    """Open a directory so that no device below it can be opened by way of the descriptor: by a mount that is nowhere.

    It goes with the last descriptor that leads into it. Where that cannot be had (before Linux 5.12, without
    CAP_SYS_ADMIN, in a foreign mount namespace), it is the directory as it is.
    """
    try:
        return _detached(source, _ATTR_NODEV, recursive=True)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM, errno.EINVAL}:
            raise
        return os.open(source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _set_attributes(tree: int, attributes: int, *, userns: int = 0, depth: int = 0) -> None:
    # struct mount_attr: to set, to clear, propagation, userns_fd
    area = (ctypes.c_uint64 * 4)(attributes, 0, 0, userns)
    _syscall("mount_setattr", tree, b"", _AT_EMPTY_PATH | depth, ctypes.byref(area), ctypes.sizeof(area))


def _map(tree: int, idmap: IdMap, source: str) -> None:
    from transom.services.idmaps import namespace

    with namespace(idmap) as userns:
        try:
            _set_attributes(tree, _ATTR_IDMAP, userns=userns)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
                raise
            raise NotSupported(
                f"{source} cannot be mounted with an id map ({error.strerror}): that needs Linux 5.12, below an overlay"
                " 5.19, and a file system that can, such as ext4, xfs or btrfs"
            ) from error


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
            _mount_one(item, place)
            if not item.remount:
                done.append(place)
    except BaseException:
        for place in reversed(done):
            unmount(place)
        raise


def _mount_one(item: Mount, target: str) -> None:
    # An option that is not `key=value` (aufs: ``br:PATH=rw:...``) has no place in fsconfig(2).
    if item.remount or any(":" in option.partition("=")[0] for option in item.options):
        _mount_classic(item, target)
        return
    if item.type == "bind":
        bind(item.source, target, readonly=item.readonly, idmap=item.idmap)
        return
    if item.idmap:
        _mount_mapped(item, item.idmap, target)
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
    with _made(item, target) as tree:
        _move(tree, target)


def _mount_mapped(item: Mount, idmap: IdMap, target: str) -> None:
    """Mount a file system with an id map; an overlay has none itself, but its layers can.

    They are all reached through one bind mount with the map, since overlay wants upperdir and workdir on the same one;
    it is in the way at `target` only until the overlay is made.
    """
    layers = [o.partition("=") for o in item.options if o.startswith(_LAYERS)]
    if not layers:
        with _made(item, target) as tree:
            _map(tree, idmap, item.source)
            _move(tree, target)
        return
    from transom.services.idmaps import as_mapped_root

    paths = [v if k == "lowerdir+" else re.sub(r"\\(.)", r"\1", v) for k, _, v in layers]
    base = os.path.commonpath(paths)
    bind(base, target, idmap=idmap)
    try:
        with closing(os.open(target, os.O_PATH | os.O_CLOEXEC)) as fd:
            found = iter(paths)
            options = tuple(
                f"{o.partition('=')[0]}=/proc/self/fd/{fd}/{os.path.relpath(next(found), base)}"
                if o.startswith(_LAYERS) else o for o in item.options
            )  # fmt: skip
            moved = Mount(type=item.type, source=item.source, options=options, readonly=item.readonly)
            with _made(moved, target, create=partial(as_mapped_root, idmap)) as tree:
                if not item.readonly and os.fstatvfs(tree).f_flag & os.ST_RDONLY:
                    raise OSError(errno.EROFS, "the kernel made the overlay read-only (see dmesg)", target)
                unmount(target)
                _move(tree, target)
    except BaseException:
        unmount(target)
        raise


@contextmanager
def _made(
    item: Mount, target: str, *, create: Callable[[Callable[[], int]], int] = lambda make: make()
) -> Iterator[int]:
    """Make the file system and yield a descriptor of its mount, which is nowhere yet."""
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
            if len(os.fsencode(value)) > _FSCONFIG_STRING_MAX and os.path.isdir(value):
                borrowed.append(os.open(value, os.O_PATH | os.O_CLOEXEC))
                value = f"/proc/self/fd/{borrowed[-1]}"
            _syscall("fsconfig", fs, _SET_STRING, key.encode(), os.fsencode(value), 0)
        create(lambda: _syscall("fsconfig", fs, _CMD_CREATE, None, None, 0))
        tree = _syscall("fsmount", fs, 1, _ATTR_RDONLY if item.readonly else 0)
    except OSError as error:
        raise OSError(error.errno, _explain(fs) or error.strerror, target) from None
    finally:
        for fd in (fs, *borrowed):
            os.close(fd)
    with closing(tree):
        yield tree


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
    flags = (MS_RDONLY if item.readonly else 0) | (MS_REMOUNT if item.remount else 0)
    mount(item.source or "none", target, item.type, flags, data)


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def once_unmounted(act: Callable[[], bool], mark: str, *, patience: float = 10.0) -> bool:
    """Call `act` until it returns true: the last unmount, in a namespace that ends, may be a moment ago.

    Args:
        mark: what is in the line of every mount that stands in its way: ``" 253:4 "``, ``" - zfs tank/layer "``
            (proc_pid_mountinfo(5)). While a process has one, waiting is no use.
        patience: seconds to wait at most for what no process has mounted.

    Returns:
        Whether it came to that.
    """
    import time

    end, pause = time.monotonic() + patience, 0.001
    while not act():
        if time.monotonic() > end or _mounted_anywhere(mark):
            return False
        time.sleep(pause)
        pause = min(2 * pause, 0.2)
    return True


def _mounted_anywhere(mark: str) -> bool:
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as lines:
                if any(mark in line for line in lines):
                    return True
        except OSError:  # it has ended
            continue
    return False


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

    def run() -> T:
        private_namespace()
        return function()

    return in_thread(run)
