"""The files of a container from outside: what it changed, and copies in and out, as ``diff`` and ``cp`` show them.

Paths of a container are resolved by the kernel with the container's root as the root (openat2(2),
RESOLVE_IN_ROOT), so that no symbolic link in it leads out, not even one that is swapped meanwhile. Everything
travels as a tar, unpacked by core, which does not follow the links that it meets either.
"""

from __future__ import annotations

import ctypes
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any, TypeVar

import msgspec

from transom.contract.storage import Change, ChangeKind, StorageCapability
from transom.errors import ConfigError, Conflict, NotFound, TransomError
from transom_engine.rooted import open_rooted

if TYPE_CHECKING:
    from transom.services.snapshots import Snapshots
    from transom_engine.engine import Engine
    from transom_engine.model import Container

T = TypeVar("T")

_CLONE_FS = 0x200
_BLOCK = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)


def changes(engine: Engine, container: Container) -> list[Change]:
    """List what the container changed in its image's tree, by path; directories above a change too, as Docker does."""
    snapshots = engine.snapshots(container.driver)
    if not container.state.pid or StorageCapability.DIFF in snapshots.driver.capabilities:
        found = snapshots.changes(container.id)
    else:
        found = _compare_running(engine, container, snapshots)
    listed = {change.path: change for change in found}
    for path in [change.path for change in found]:
        while path := path.rpartition(b"/")[0]:
            listed.setdefault(path, Change(path=path, kind=ChangeKind.MODIFIED))
    return [listed[path] for path in sorted(listed) if path]


def _compare_running(engine: Engine, container: Container, snapshots: Snapshots) -> list[Change]:
    """Compare trees as `Snapshots.changes` does, the layer's being where its supervisor has it mounted."""
    from transom.services.differ import compare
    from transom.services.mounts import mount_all, privately

    upper = f"/proc/{container.shim_pid}/root{engine.container_run(container.id)}/rootfs"
    parent = snapshots.stat(container.id).parent
    place = f"{snapshots.driver.root}.layers/lower"
    os.makedirs(place, exist_ok=True)

    def run() -> list[Change]:
        if parent:
            mount_all(snapshots.mounts(parent), place)
        return list(compare(lower=place if parent else None, upper=upper))

    return privately(run)


def with_root(engine: Engine, container: Container, function: Callable[[int], T]) -> T:
    """Call `function` with a descriptor of the container's root directory, its volumes in place.

    What the kernel and the runtime show in it (/proc, /sys, /dev) is not there, as with Docker. A stopped container
    is mounted, in a throw-away thread, and cannot be started meanwhile.
    """
    if container.state.pid:
        return _in_running(container, function)
    from transom_engine.layers import mounted

    def run(place: str) -> T:
        _mount_volumes(container, place)
        return _calling(function, os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    with engine.lock(container.id):
        return mounted(engine.snapshots(container.driver), container.id, run)


def _in_running(container: Container, function: Callable[[int], T]) -> T:
    """Let a thread hold a private copy of the container's mounts while `function` works in this one."""
    from threading import Event, Thread

    from transom.services.mounts import CLONE_NEWNS, MS_PRIVATE, MS_REC, mount, unmount, unshare

    try:
        namespace = os.open(f"/proc/{container.state.pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        raise Conflict(f"container {container.name} has just ended; try again") from None
    own = {*(point.destination for point in container.mounts), *container.host_config.tmpfs}
    outcome: list[int | BaseException] = []
    ready, done = Event(), Event()

    def hold() -> None:
        try:
            unshare(_CLONE_FS)  # setns(2) asks for it
            if _libc.setns(namespace, CLONE_NEWNS) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), "setns")
            unshare(CLONE_NEWNS)
            mount("", "/", flags=MS_REC | MS_PRIVATE)
            for place in {"/proc", "/sys", "/dev"} - own:
                unmount(place)
            outcome.append(os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
        except BaseException as error:
            outcome.append(error)
        ready.set()
        done.wait()

    thread = Thread(target=hold, name="container-mounts", daemon=True)
    thread.start()
    ready.wait()
    try:
        if isinstance(outcome[0], BaseException):
            raise outcome[0]
        return _calling(function, outcome[0])
    finally:
        done.set()
        thread.join()
        os.close(namespace)


def _calling(function: Callable[[int], T], root: int) -> T:
    try:
        return function(root)
    finally:
        os.close(root)


def _mount_volumes(container: Container, place: str) -> None:
    """Mount what the runtime would."""
    from transom.services.mounts import MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT, mount

    root = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for point in sorted(container.mounts, key=lambda point: point.destination):
            if not os.path.exists(point.source):
                continue
            _make_place(root, point.destination, directory=os.path.isdir(point.source))
            with opened(root, point.destination) as target:
                mount(point.source, f"/proc/self/fd/{target}", flags=MS_BIND | MS_REC)
            if not point.rw:
                with opened(root, point.destination) as target:
                    mount("", f"/proc/self/fd/{target}", flags=MS_BIND | MS_REMOUNT | MS_RDONLY)
    finally:
        os.close(root)


def _make_place(root: int, path: str, *, directory: bool) -> None:
    """Make what is to be mounted over, and the directories above it, as the runtime does at the first start."""
    names = path.strip("/").split("/")
    for depth in range(1, len(names) + 1):
        with opened(root, "/".join(names[:depth]), missing_ok=True) as there:
            if there >= 0:
                continue
        with opened(root, "/".join(names[: depth - 1])) as above:
            if directory or depth < len(names):
                os.mkdir(names[depth - 1], mode=0o755, dir_fd=above)
            else:
                os.close(os.open(names[-1], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=above))


@contextmanager
def opened(root: int, path: str, *, follow: bool = True, missing_ok: bool = False) -> Iterator[int]:
    """Open (O_PATH) what is at `path` with `root` as the root directory.

    Args:
        follow: what a symbolic link at the end points to, not the link.
        missing_ok: give -1 where there is nothing.

    Raises:
        OSError: as openat2(2).
    """
    try:
        fd = open_rooted(root, path, os.O_PATH | (0 if follow else os.O_NOFOLLOW))
    except (FileNotFoundError, NotADirectoryError):
        if not missing_ok:
            raise
        fd = -1
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


class Place(msgspec.Struct, frozen=True):
    """A path below a root directory: the host's, or a container's, as the user wrote it.

    `label` ends error texts: "in container web".
    """

    root: int
    path: str
    label: str

    @property
    def base(self) -> str:
        """Return the last name, empty for the root and where the path ends in ``.`` or ``..``."""
        name = posixpath.basename(self.path.rstrip("/"))
        return "" if name in {".", ".."} else name

    @property
    def contents(self) -> bool:
        """Whether it means a directory's contents, ``DIR/.``."""
        return self.path == "." or self.path.endswith("/.")

    @property
    def parent(self) -> str:
        """Return the path of the directory that holds it."""
        return posixpath.dirname(self.path.rstrip("/")) or "."

    def kind(self, *, follow: bool) -> int:
        """Return the file type out of st_mode, 0 where there is nothing. A slash at the end follows links."""
        bare = self.path.removesuffix("/.").rstrip("/")
        with opened(self.root, bare, follow=follow or bare != self.path, missing_ok=True) as fd:
            return stat.S_IFMT(os.fstat(fd).st_mode) if fd >= 0 else 0


def copy(source: Place, target: Place, *, follow: bool = False, owner: tuple[int, int] | None = None) -> int:
    """Copy a file or a tree by docker-cp(1)'s rules; return the bytes of the files.

    Args:
        follow: copy what a symbolic link at `source` points to.
        owner: whom the copies belong to; None keeps the numbers.

    Raises:
        NotFound: nothing at `source`, or no directory to put it in.
        ConfigError: a directory over a file, or the other way round.
    """
    kind = _existing(source, follow=follow)
    name, directory = _destination(source, target, is_directory=stat.S_ISDIR(kind))

    def write(out: IO[bytes]) -> None:
        pack(source, out, name=name, follow=follow, owner=owner)

    return _piped(write, lambda stream: unpack(stream, directory))


def _existing(source: Place, *, follow: bool) -> int:
    kind = source.kind(follow=follow)
    if not kind:
        raise NotFound(f"could not find the file {source.path} {source.label}")
    if source.path.endswith(("/", "/.")) and not stat.S_ISDIR(kind):
        raise ConfigError(f"not a directory: {source.path} {source.label}")
    return kind


def _destination(source: Place, target: Place, *, is_directory: bool) -> tuple[str, Place]:
    """Say what the copy is called, empty for contents that are merged, and in which directory it goes."""
    kind = target.kind(follow=True)
    if stat.S_ISDIR(kind):
        return ("" if source.contents else source.base), target
    asserted = target.path.endswith("/") or target.contents
    if kind and is_directory:
        raise ConfigError(f"cannot copy directory {source.path} over the file {target.path} {target.label}")
    if kind and asserted:
        raise ConfigError(f"not a directory: {target.path} {target.label}")
    if asserted and not is_directory:
        raise NotFound(f"no such directory: {target.path} {target.label}; make it first, or leave out the slash")
    parent = Place(root=target.root, path=target.parent, label=target.label)
    above = parent.kind(follow=True)
    if not above:
        raise NotFound(f"no such directory: {parent.path} {target.label}; make it first")
    if not stat.S_ISDIR(above):
        raise ConfigError(f"not a directory: {parent.path} {target.label}")
    if target.kind(follow=False) != stat.S_IFLNK:
        return target.base, parent
    return _through_link(target)


def _through_link(target: Place) -> tuple[str, Place]:
    """A link to a file stays a link: the file it points to is replaced, as docker does."""
    path = target.path.rstrip("/")
    for _ in range(40):
        with opened(target.root, path, follow=False) as fd:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                break
            path = posixpath.join(posixpath.dirname(path), os.readlink("", dir_fd=fd))
    found = Place(root=target.root, path=path, label=target.label)
    return found.base, Place(root=target.root, path=found.parent, label=target.label)


def pack(
    source: Place, out: IO[bytes], *, name: str | None = None, follow: bool = False,
    owner: tuple[int, int] | None = None,
) -> None:  # fmt: skip
    """Write a file or a tree as a tar in which it is called `name`, by default as it is called; "" has no top."""
    from transom.services.archive import write, write_tree

    kind = _existing(source, follow=follow)
    top = (source.base or ("." if stat.S_ISDIR(kind) else "")) if name is None else name
    if stat.S_ISDIR(kind):
        with opened(source.root, source.path) as fd:
            _piped(
                lambda raw: write_tree(root=f"/proc/self/fd/{fd}", out=raw),
                lambda raw: _rewrite(raw, out, lambda inner: _below(top, inner), owner),
            )
        return
    place = source
    if follow:
        base, directory = _through_link(source)
        place = Place(root=source.root, path=posixpath.join(directory.path, base), label=source.label)
    change = Change(path=os.fsencode(place.base), kind=ChangeKind.ADDED)
    with opened(place.root, place.parent) as fd:
        _piped(
            lambda raw: write(changes=[change], root=f"/proc/self/fd/{fd}", out=raw),
            lambda raw: _rewrite(raw, out, lambda inner: top if inner == place.base else None, owner),
        )


def _below(top: str, inner: str) -> str | None:
    inner = inner.removeprefix("./")
    if inner in {"", "."}:
        return top or None
    return f"{top}/{inner}" if top else inner


def unpack(stream: IO[bytes], directory: Place) -> int:
    """Unpack a tar, compressed or not, into an existing directory; return the bytes of the files.

    Raises:
        ConfigError: a damaged tar; a directory where a file is, or the other way round.
    """
    from transom.services.archive import extract

    if not stat.S_ISDIR(directory.kind(follow=True)):
        raise NotFound(f"no such directory: {directory.path} {directory.label}; make it first")
    with opened(directory.root, directory.path) as fd:

        def fitting(name: str, is_directory: bool) -> None:
            with opened(fd, name, follow=False, missing_ok=True) as there:
                if there >= 0 and stat.S_ISDIR(os.fstat(there).st_mode) != is_directory:
                    what = ("non-directory", "directory") if is_directory else ("directory", "non-directory")
                    raise ConfigError(f"cannot overwrite {what[0]} {name} {directory.label} with a {what[1]}")

        return _piped(
            lambda out: _rewrite(stream, out, lambda name: name, None, fitting),
            lambda raw: extract(stream=raw, root=f"/proc/self/fd/{fd}"),
        )


def _rewrite(
    source: IO[bytes],
    out: IO[bytes],
    rename: Callable[[str], str | None],
    owner: tuple[int, int] | None,
    check: Callable[[str, bool], None] = lambda name, is_directory: None,
) -> None:
    """Copy a tar with other names, and another owner; entries named None are left out."""
    import tarfile

    try:
        old: Any = tarfile.open(fileobj=source, mode="r|*", encoding="utf-8", errors="surrogateescape", bufsize=_BLOCK)
        new: Any = tarfile.open(
            fileobj=out,
            mode="w|",
            format=tarfile.PAX_FORMAT,
            encoding="utf-8",
            errors="surrogateescape",
            bufsize=_BLOCK,
        )
        with old, new:
            for member in old:
                name = rename(member.name)
                if name is None:
                    continue
                check(name, member.isdir())
                member.name = name
                if member.islnk():
                    member.linkname = rename(member.linkname) or member.linkname
                member.pax_headers = {k: v for k, v in member.pax_headers.items() if k[:7] == "SCHILY." or k == "mtime"}
                if owner is not None:
                    member.uid, member.gid = owner
                member.uname = member.gname = ""
                data = old.extractfile(member) if member.isreg() else None
                member.sparse = None  # what comes out of it has its holes filled with zeros
                new.addfile(member, data)
                old.members, new.members = [], []  # they would remember each
    except tarfile.TarError as error:
        raise ConfigError(f"the tar is damaged or none: {error}") from None
    while source.read(_BLOCK):
        pass


def _piped(write: Callable[[IO[bytes]], object], read: Callable[[IO[bytes]], T]) -> T:
    """Run `write` in a thread and `read` here, a pipe between them; what failed first is raised."""
    from threading import Thread

    ends = os.pipe2(os.O_CLOEXEC)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            with open(ends[1], "wb", buffering=_BLOCK) as out:
                write(out)
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    result: list[T] = []
    try:
        with open(ends[0], "rb", buffering=_BLOCK) as stream:
            result.append(read(stream))
    except (TransomError, OSError) as error:
        thread.join()
        raise next((e for e in failed if not isinstance(e, BrokenPipeError)), error) from None
    thread.join()
    if failed:
        raise failed[0]
    return result[0]
