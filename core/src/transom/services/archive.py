"""Layer tars: unpack one without ever leaving the layer, and make one from a list of changes.

The form is that of the OCI image-spec (layer.md): a tar in which ``.wh.NAME`` deletes NAME and ``.wh..wh..opq`` hides
all that the lower layers have in its directory. Beyond ustar we write and read PAX records (POSIX.1-2008, pax(1)):
nanosecond times, long and non-UTF-8 names, ``SCHILY.xattr.*``, and GNU's sparse format 1.0 for files with holes.

Nothing here follows a symbolic link on the host's terms: trees are walked with descriptors, one name at a time, so
neither a hostile tar nor a container that renames directories while we work leads us out of the tree.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import IO, TYPE_CHECKING, Any, TypeVar
from zlib import adler32

from transom.contract.storage import Change, ChangeKind
from transom.errors import ConfigError, Conflict, NotSupported, TransomError
from transom.services.files import closing
from transom.services.trees import Tree, carried, data_pieces, join, read_xattrs

if TYPE_CHECKING:
    from transom.services.stacks import Marks, Stack

T = TypeVar("T")

WHITEOUT = b".wh."
META = b".wh..wh."
OPAQUE = b".wh..wh..opq"
XATTR = "SCHILY.xattr."
CHUNK = 1 << 20
HEADERS = 16 << 20
"""The most bytes of headers (PAX records, sparse maps) one entry may have: they are held in memory."""
SYMLINKS = 40
"""As many symbolic links in one name as path_resolution(7) allows."""
ENTRY = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_BAD_ENTRY = frozenset(
    {errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.ENOENT, errno.EEXIST}
    | {errno.EMLINK, errno.EXDEV, errno.EFBIG, errno.ERANGE, errno.E2BIG, errno.EOVERFLOW}
)
"""What the kernel says when the entry is to blame; anything else (no space, no permission) is the host's."""

_SWAPPED = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO})
"""What the kernel says when something else has taken the place of what was there a moment ago."""
_ZEROS = bytes(tarfile.BLOCKSIZE)

_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
_TYPES = {kind: letter for letter, kind in _KINDS.items()}
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE)


def extract(*, stream: IO[bytes], root: str, below: Sequence[str] = (), marks: Marks | None = None) -> int:
    """Unpack an uncompressed layer tar into the directory `root`, over what is there, never outside it.

    Names are taken relative to the root; symbolic links on the way to an entry are resolved as chroot(2) would, and
    directories that are missing are made, ``root:root 0755``. An entry replaces what has its name, except that a
    directory over a directory only changes its metadata. Owners, modes, nanosecond times, extended attributes, hard
    links, devices and holes are kept. Names under ``.wh..wh.`` but `OPAQUE` are aufs' own: skipped.

    Args:
        stream: read to its end, past the end of the archive too, so that a caller can digest it.
        below: the directories of the parents, nearest first, if `root` is a layer's own of a driver that stacks them:
            what is unpacked then replaces and deletes what these have, by the driver's `marks`.

    Returns:
        the sum of the sizes of the regular files, in bytes.

    Raises:
        ConfigError: the tar is damaged or has an entry that would escape. What came before is there.
        NotSupported: the file system under `root` does not keep an extended attribute.
        OSError: the host's fault: no space, no permission.
    """
    from transom.services.stacks import Stack

    with Stack(root, below, marks) if marks else Tree(root) as tree:
        return _Unpacking(tree).run(stream)


def _damaged(reason: object) -> ConfigError:
    return ConfigError(f"layer tar is damaged: {reason}; fetch it or make it again")


class _Stream:
    """The tar, forward only: tarfile reads headers with `read`, file data goes past it with `copy`."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._chunk, self._at, self._passed = source, b"", 0, 0
        self.headers = 0
        self.last = self.sound = b""

    def tell(self) -> int:
        return self._passed + self._at

    def _pieces(self, size: int) -> Iterator[memoryview]:
        while size > 0:
            if self._at == len(self._chunk):
                self._passed += self._at
                self._chunk, self._at = self._source.read(CHUNK), 0
                if not self._chunk:
                    raise _damaged(f"it ends at byte {self._passed}, before its end-of-archive mark")
            piece = memoryview(self._chunk)[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def read(self, size: int) -> bytes:
        self.headers += size
        if size < 0 or self.headers > HEADERS:
            raise _damaged(f"the headers of the entry at byte {self.tell()} are out of all proportion")
        self.last = b"".join(self._pieces(size))
        return self.last

    def peek(self, size: int) -> bytes:
        """Return the next bytes if so many are at hand, else what is, and stay before them."""
        return self._chunk[self._at : self._at + size]

    def seek(self, position: int) -> None:
        ahead = position - self._passed
        if self._at <= ahead <= len(self._chunk):
            self._at = ahead
            return
        if position < self.tell():
            raise _damaged(f"the entry before byte {self.tell()} contradicts itself about its size")
        for _ in self._pieces(position - self.tell()):
            pass

    def copy(self, fd: int, offset: int, size: int) -> None:
        for piece in self._pieces(size):
            while piece:
                done = os.pwrite(fd, piece, offset)
                piece, offset = piece[done:], offset + done


def _plain_member(tar: Any, stream: _Stream) -> tarfile.TarInfo | None:
    """Read the header of an ordinary entry as tarfile does, several times as fast.

    None, and nothing is read, for whatever is not an ordinary file, directory or link with at most a time and extended
    attributes of its own: tarfile reads that, and decides what is damage.
    """
    if tar.firstmember is not None or tar.pax_headers or tar.offset < stream.tell():
        return None
    stream.seek(tar.offset)
    head, used, records = stream.peek(3 * tarfile.BLOCKSIZE), tarfile.BLOCKSIZE, {}
    try:
        if head[156:157] == tarfile.XHDTYPE:
            if (found := _plain_records(head, stream)) is None:
                return None
            head, used, records = head[2 * tarfile.BLOCKSIZE :], 3 * tarfile.BLOCKSIZE, found
        name, mode, uid, gid, size, mtime, checksum, kind, link, magic, prefix = _HEADER.unpack_from(head)
        numbers = b"%b%b%b%b%b" % (mode, uid, gid, size, mtime)
        sound = numbers.isdigit() and _is_sound(head[: tarfile.BLOCKSIZE], checksum)
        if not sound or kind not in _PLAIN or magic not in _MAGIC or prefix != b"\0":
            return None
    except (ValueError, struct.error):
        return None
    member = tarfile.TarInfo(name.rstrip(b"\0").decode())
    member.mode, member.uid, member.gid = int(mode, 8), int(uid, 8), int(gid, 8)
    member.size, member.mtime, member.type = int(size, 8), int(mtime, 8), kind
    if kind != tarfile.REGTYPE:
        if member.size:
            return None
        member.linkname = link.rstrip(b"\0").decode()
        if kind == tarfile.DIRTYPE:
            member.name = member.name.rstrip("/")
    member.pax_headers = records
    stream.seek(tar.offset + used)
    tar.offset += used + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return member


_MAGIC = (tarfile.POSIX_MAGIC, tarfile.GNU_MAGIC)
_PLAIN = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)


_HEADER = struct.Struct("100s7sx7sx7sx11sx11sx6s2xc100s8s80xc")
"""Those fields of a header that we read, numbers without the NUL behind them, and the first byte of the prefix."""


def _is_sound(block: bytes, checksum: bytes) -> bool:
    """Compare the checksum; one of a block with more than ASCII in it is left to tarfile."""
    if not (block.isascii() and checksum.isdigit() and len(block) == tarfile.BLOCKSIZE):
        return False
    return int(checksum, 8) == 8 * ord(" ") + _sum(block[:148] + block[156:])


def _plain_records(head: bytes, stream: _Stream) -> dict[str, str] | None:
    """Read a block of PAX records that only say times and extended attributes; None if there is more, or it is odd."""
    size, checksum = _RECORDS.unpack_from(head)
    if (block := head[: tarfile.BLOCKSIZE]) != stream.sound:
        if not size.isdigit() or int(size, 8) > tarfile.BLOCKSIZE or not _is_sound(block, checksum):
            return None
        stream.sound = block
    data = head[tarfile.BLOCKSIZE : tarfile.BLOCKSIZE + int(size, 8)]
    records, at = {}, 0
    while at < len(data):
        length, _, _ = data[at : at + 8].partition(b" ")
        end = at + int(length)
        key, equals, value = data[at + len(length) + 1 : end - 1].partition(b"=")
        if not equals or data[end - 1 : end] != b"\n" or end > len(data):
            return None
        if key == b"mtime" or key.startswith(_XATTR):
            records[key.decode()] = value.decode("utf-8", "surrogateescape")
        elif key not in (b"atime", b"ctime"):  # which nobody asks for
            return None
        at = end
    return records


_RECORDS = struct.Struct("124x11s13x6s")
_XATTR = XATTR.encode()


class _Unpacking:
    """One `extract` at work."""

    def __init__(self, tree: Tree | Stack) -> None:
        self._tree = tree
        self._written: set[bytes] = set()
        """What this tar put or passed through: an opaque mark or whiteout of the same tar spares it."""
        self._resolved: dict[bytes, bytes] = {}
        self._known: dict[str, bytes] = {}
        """Directories as entries name them, and as they were resolved."""
        self._place = (b"/", False)
        """Where we looked last, and whether that directory hands nothing of its own down to new files."""
        self._ids, self._umask = (os.geteuid(), os.getegid()), _umask()
        self._times: dict[bytes, int] = {}

    def run(self, source: IO[bytes]) -> int:
        stream, size = _Stream(source), 0
        try:
            fileobj: Any = stream  # tarfile asks less of a file than its stub does
            tar: Any = tarfile.TarFile(fileobj=fileobj, encoding="utf-8", errors="surrogateescape")
            while (member := _plain_member(tar, stream) or tar.next()) is not None:
                tar.members, stream.headers = [], 0
                if member.sparse is not None:  # tarfile lets a made-up name have the last word if it comes last
                    member.name = member.pax_headers.get("GNU.sparse.name", member.name)
                self._unpack(member, stream)
                size += member.size if member.isreg() else 0
        except (TransomError, OSError):
            raise
        except Exception as error:  # tarfile meets garbage with half of the built-in exceptions
            raise _damaged(str(error) or type(error).__name__) from error
        if any(stream.last):  # tarfile takes a bad header for the end
            raise _damaged(f"no header at byte {stream.tell() - tarfile.BLOCKSIZE}")
        while source.read(CHUNK):
            pass
        for path in sorted(self._times, reverse=True):
            try:
                os.utime(self._tree.directory(path), ns=(self._times[path],) * 2)
            except (FileNotFoundError, NotADirectoryError):
                pass  # a later entry took its place
        return size

    def _look_again(self) -> None:
        """Forget where names lead: something on the way may have gone."""
        self._resolved.clear()
        self._known.clear()
        self._place = (b"/", False)

    def _create(self, path: bytes, make: Callable[[bytes, int], T]) -> T:
        """Call `make` with name and directory of `path`, and again with the way cleared if something is there."""
        try:
            return make(*self._tree.entry(path))
        except FileExistsError:
            self._look_again()
            self._tree.clear(path)
            return make(*self._tree.entry(path))

    def _unpack(self, member: tarfile.TarInfo, stream: _Stream) -> None:
        try:
            if member.type == tarfile.REGTYPE and self._ordinary(member, stream):
                return
            path = _clean(member.name, member)
            if WHITEOUT in path and self._whiteout(path, member):
                return
            parent, _, name = path.rpartition(b"/")
            path = join(self._resolve(parent, create=True), name)
            if member.isdir():
                self._directory(path)
                _dress(self._tree.directory(path), member)
                self._place = (b"/", False)
                self._times[path] = _mtime(member)
            elif not path:
                raise _refused(member, "is the layer's root and no directory")
            elif member.islnk():
                self._link(path, member)
            else:
                with closing(self._create(path, lambda name, fd: _make(name, fd, member))) as fd:
                    if member.isreg():
                        _unpack_data(fd, member, stream)
                    _dress(fd if member.isreg() else f"/proc/self/fd/{fd}", member)
            self._note(path)
            above, _, name_given = member.name.rpartition("/")
            if name_given not in ("", ".", ".."):
                self._known[above] = path.rpartition(b"/")[0]
        except OSError as error:
            if error.errno not in _BAD_ENTRY:
                raise
            raise _refused(member, f"cannot be made: {error.strerror}") from error
        except (ValueError, OverflowError) as error:
            raise _refused(member, f"is damaged: {error}") from error

    def _note(self, path: bytes) -> None:
        while path and path not in self._written:
            self._written.add(path)
            path = path.rpartition(b"/")[0]

    def _ordinary(self, member: tarfile.TarInfo, stream: _Stream) -> bool:
        """Unpack a file with nothing unusual about it, whose place is known, by few calls; or say that it is none."""
        parent, _, name = member.name.rpartition("/")
        real = self._known.get(parent)
        if real is None or name in ("", ".", "..") or name.startswith(".wh.") or member.sparse is not None:
            return False
        if len(member.pax_headers) > ("mtime" in member.pax_headers) or min(member.uid, member.gid, member.size) < 0:
            return False
        if not self._is_plain_place(real):
            return False
        mode, path = member.mode & 0o7777, join(real, name.encode("utf-8", "surrogateescape"))
        owned = (member.uid, member.gid) == self._ids
        exact = owned and not mode & (self._umask | 0o7000)
        fd = self._create(path, lambda name, at: os.open(name, CREATE, mode if exact else 0o600, dir_fd=at))
        try:
            stream.copy(fd, 0, member.size)
            if not owned:
                os.chown(fd, member.uid, member.gid)
            if not exact:
                os.chmod(fd, mode)
            os.utime(fd, ns=(_mtime(member),) * 2)
        finally:
            os.close(fd)
        self._note(path)
        return True

    def _is_plain_place(self, path: bytes) -> bool:
        """Say whether new files in the directory are of our group and get no attributes from it."""
        if path != self._place[0]:
            fd = self._tree.directory(path)
            self._place = path, os.fstat(fd).st_gid == self._ids[1] and not read_xattrs(fd)
        return self._place[1]

    def _resolve(self, path: bytes, *, create: bool) -> bytes:
        """Say which real directory `path` is, symbolic links resolved in the tree; make it, or have it be there."""
        if (known := self._resolved.get(path)) is not None:
            return known
        done, todo, links = b"", path.split(b"/")[::-1], 0
        while todo:
            name = todo.pop()
            if name == b"..":
                done = done.rpartition(b"/")[0]
            if name in (b"", b".", b".."):
                continue
            try:
                target = self._tree.readlink(join(done, name))
            except OSError as error:
                done = join(done, name)
                if error.errno == errno.ENOENT and create:
                    self._directory(done)
                elif error.errno != errno.EINVAL:  # which says that it is no link
                    raise
            else:
                links += 1
                if links > SYMLINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                done = b"" if target.startswith(b"/") else done
                todo += target.split(b"/")[::-1]
        if create:  # what takes its place meets it then
            self._tree.directory(done)
            self._resolved[path] = done
        elif not self._tree.is_directory(done):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return done

    def _whiteout(self, path: bytes, member: tarfile.TarInfo) -> bool:
        """Carry out a whiteout; say whether the entry is done with."""
        parent, _, name = path.rpartition(b"/")
        if b"/" + META in b"/" + parent or (name.startswith(META) and name != OPAQUE):
            return True
        if b"/" + WHITEOUT in b"/" + parent:
            raise _refused(member, "lies below a whiteout")
        if not name.startswith(WHITEOUT):
            return False
        hidden = name.removeprefix(WHITEOUT)
        if hidden in (b"", b".", b".."):
            raise _refused(member, "would remove a directory it is in")
        try:
            real = self._resolve(parent, create=False)
        except FileNotFoundError:
            return True
        self._look_again()
        if name == OPAQUE:
            self._tree.empty(real, self._written)
        else:
            self._tree.remove(join(real, hidden), self._written)
        return True

    def _directory(self, path: bytes) -> None:
        if not self._tree.is_directory(path):
            self._create(path, lambda name, fd: os.mkdir(name, dir_fd=fd))
            os.chmod(self._tree.directory(path), 0o755)  # mkdir(2) heeds the umask
            self._tree.made(path)

    def _link(self, path: bytes, member: tarfile.TarInfo) -> None:
        parent, _, name = _clean(member.linkname, member).rpartition(b"/")
        try:
            real = self._resolve(parent, create=False)
            self._tree.bring(join(real, name))
            with closing(os.dup(self._tree.directory(real))) as at:
                if stat.S_ISDIR(os.lstat(name, dir_fd=at).st_mode):
                    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
                if join(real, name) != path:
                    link = partial(os.link, name, src_dir_fd=at, follow_symlinks=False)
                    self._create(path, lambda new, fd: link(new, dst_dir_fd=fd))
        except (FileNotFoundError, PermissionError) as error:
            what = "not there" if error.errno == errno.ENOENT else "a directory"
            raise _refused(member, f"links to {member.linkname!r}, which is {what}") from None


def _umask() -> int:
    """Read the umask without changing it, as umask(2) would for a moment and for every thread (proc(5))."""
    with open("/proc/self/status", "rb") as status:
        return next((int(line[6:], 8) for line in status if line.startswith(b"Umask:")), 0o7777)


def _unpack_data(fd: int, member: tarfile.TarInfo, stream: _Stream) -> None:
    pieces: Any = member.sparse  # the stub has it wrong
    for offset, size in [(0, member.size)] if pieces is None else pieces:
        if min(offset, size) < 0 or offset + size > member.size:
            raise ValueError("its map of holes does not fit its size")
        stream.copy(fd, offset, size)
    if pieces is not None:
        os.ftruncate(fd, member.size)


def _refused(member: tarfile.TarInfo, reason: str) -> ConfigError:
    return ConfigError(f"layer tar: entry {member.name!r} {reason}; the layer is refused, make its tar anew")


def _clean(name: str, member: tarfile.TarInfo) -> bytes:
    """Make a name relative to the root and free of ``.`` and ``..``, as its letters go."""
    done: list[bytes] = []
    for part in name.encode("utf-8", "surrogateescape").split(b"/"):
        if part == b"..":
            if not done:
                raise _refused(member, f"would escape the layer ({name!r})")
            done.pop()
        elif part not in (b"", b"."):
            done.append(part)
    return b"/".join(done)


def _mtime(member: tarfile.TarInfo) -> int:
    """Say when the entry was last modified, in ns: tarfile's float is too coarse, the record is not."""
    if (text := member.pax_headers.get("mtime")) is None:
        return int(member.mtime) * 10**9
    seconds, _, fraction = text.partition(".")
    sign = -1 if seconds.startswith("-") else 1
    return int(seconds or "0") * 10**9 + sign * int(fraction[:9].ljust(9, "0"))


def _make(name: bytes, at: int, member: tarfile.TarInfo) -> int:
    """Make a new file of any type but directory; return a descriptor that reaches it."""
    if member.isreg():
        return os.open(name, CREATE, 0o600, dir_fd=at)
    if member.issym():
        os.symlink(member.linkname.encode("utf-8", "surrogateescape"), name, dir_fd=at)
    elif not member.isdev():
        raise _refused(member, f"has the unknown type {member.type!r}")
    elif member.ischr() and member.devmajor == member.devminor == 0:
        raise _refused(member, "is the character device 0:0, which overlay takes for a deletion")
    else:
        os.mknod(name, _KINDS[member.type] | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=at)
    return os.open(name, ENTRY, dir_fd=at)


def _dress(target: int | str, member: tarfile.TarInfo) -> None:
    """Give a new file or directory its owner, mode, extended attributes and time.

    Owner first: chown(2) clears set-id bits and file capabilities. What a default ACL left is cleared.
    """
    if min(member.uid, member.gid) < 0:
        raise ValueError(f"it belongs to {member.uid}:{member.gid}")
    os.chown(target, member.uid, member.gid)
    if not member.issym():
        os.chmod(target, member.mode & 0o7777)
    wanted = {
        key.removeprefix(XATTR).replace("%3D", "=").replace("%25", "%"): value.encode("utf-8", "surrogateescape")
        for key, value in member.pax_headers.items()
        if key.startswith(XATTR)
    }
    for name in read_xattrs(target):
        if name not in wanted and not name.startswith("security."):
            os.removexattr(target, name)
    for name in filter(carried, wanted):
        try:
            os.setxattr(target, name, wanted[name])
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EPERM):
                raise
            raise NotSupported(
                f"layer tar: entry {member.name!r} has the extended attribute {name!r}, which cannot be kept here:"
                f" {error.strerror}; put the data root on a file system that keeps them (ext4, xfs, btrfs)"
            ) from error
    os.utime(target, ns=(_mtime(member),) * 2)


def write(*, changes: Iterable[Change], root: str, out: IO[bytes]) -> int:
    """Write the layer tar of these changes, in their order, with what the mounted tree `root` holds now.

    Same tree, same bytes: no user names, no access times, nothing of the moment. Directories above a change are
    written before it, the root as ``./``, for layers that are applied where their parents cannot be seen. Of names
    that are one file the first holds the data, the others are links to it. Sockets are left out. A file that shrinks
    while it is read is filled up with zeros.

    Returns:
        how many bytes were written.

    Raises:
        ConfigError: a name begins with ``.wh.``: a layer tar cannot hold it.
        Conflict: a changed file vanished.
    """
    from transom.services.mounts import without_devices

    # A device may take the place of a file in the moment between looking and opening.
    with closing(without_devices(root)) as fd, Tree(f"/proc/self/fd/{fd}") as tree:
        packing = _Packing(tree=tree, out=out)
        for change in changes:
            packing.add(change)
        return packing.end()


def write_tree(*, root: str, out: IO[bytes]) -> int:
    """Write the whole tree as a layer tar without whiteouts; see `write`."""
    from transom.services.differ import compare

    return write(changes=compare(lower=None, upper=root), root=root, out=out)


class _Packing:
    def __init__(self, *, tree: Tree, out: IO[bytes]) -> None:
        self._tree, self._out, self._size = tree, out, 0
        self._held, self._used = memoryview(bytearray(CHUNK)), 0
        self._written: set[bytes] = set()
        self._links: dict[tuple[int, int], str] = {}

    def add(self, change: Change) -> None:
        path = change.path
        if WHITEOUT in path and b"/" + WHITEOUT in b"/" + path:
            raise ConfigError(
                f"layer tar: {os.fsdecode(path)!r} cannot be in a layer: names that begin with .wh. mean deletions"
                " there; rename it"
            )
        parent, _, name = path.rpartition(b"/")
        if parent not in self._written:
            above = parent.split(b"/") if parent else []
            for depth in range(len(above) + 1):
                self._entry(b"/".join(above[:depth]))
        if change.kind is ChangeKind.DELETED:
            self._header(tarfile.TarInfo(_text(join(parent, WHITEOUT + name))))
            return
        self._entry(path)
        if change.opaque:
            self._header(tarfile.TarInfo(_text(join(path, OPAQUE))))

    def end(self) -> int:
        self._put(bytes(2 * tarfile.BLOCKSIZE))
        self._flush()
        return self._size

    def _put(self, data: bytes) -> None:
        """Write, small pieces many at a time."""
        if len(data) > CHUNK - self._used:
            self._flush()
            if len(data) > CHUNK:
                self._size += self._out.write(data)
                return
        self._held[self._used : self._used + len(data)] = data
        self._used += len(data)

    def _flush(self) -> None:
        self._out.write(self._held[: self._used])
        self._size += self._used
        self._used = 0

    def _header(self, info: tarfile.TarInfo) -> None:
        try:
            self._put(_plain_header(info) or info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        except UnicodeEncodeError:
            raise ConfigError(
                f"layer tar: {info.name!r} has an extended attribute whose name is not UTF-8; remove it"
            ) from None

    def _entry(self, path: bytes) -> None:
        if path in self._written:
            return
        try:
            name, at = self._tree.entry(path)
            regular = stat.S_ISREG(os.lstat(name, dir_fd=at).st_mode)
            opened = os.open(name, READ if regular else ENTRY, dir_fd=at)
        except OSError as error:
            if error.errno not in _SWAPPED:
                raise
            raise _vanished(path) from None
        try:
            found = os.fstat(opened)
            if not regular:
                self._describe(path, opened, found)
            elif not stat.S_ISREG(found.st_mode):
                raise _vanished(path)
            elif not self._ordinary(path, opened, found):
                info = self._info(path, found, opened)
                if info.type == tarfile.REGTYPE:
                    self._file(info, opened, found)
                else:
                    self._header(info)
        finally:
            os.close(opened)

    def _ordinary(self, path: bytes, fd: int, found: os.stat_result) -> bool:
        """Write a file with one name, no holes and nothing that a plain header cannot say; or say that it is none."""
        size = found.st_size
        if found.st_nlink != 1 or found.st_blocks * 512 < size or os.listxattr(fd):
            return False
        seconds, fraction = divmod(found.st_mtime_ns, 10**9)
        header = _block(
            path, b"", tarfile.REGTYPE, found.st_mode & 0o7777, found.st_uid, found.st_gid, size, seconds, fraction
        )
        if not header:
            return False
        self._put(header)
        self._copy(fd, 0, size)
        self._put(_ZEROS[: -size % tarfile.BLOCKSIZE])
        return True

    def _describe(self, path: bytes, fd: int, found: os.stat_result) -> None:
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFREG:
            raise _vanished(path)
        if kind != stat.S_IFSOCK:
            info = self._info(path, found, f"/proc/self/fd/{fd}")
            if kind == stat.S_IFDIR:
                self._written.add(path)
            elif info.type == tarfile.SYMTYPE:
                info.linkname = _text(os.readlink(b"", dir_fd=fd))
            elif info.type in _DEVICES:
                info.devmajor, info.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
            self._header(info)

    def _info(self, path: bytes, found: os.stat_result, target: int | str) -> tarfile.TarInfo:
        """Describe an entry; one whose file is in the tar already under another name is a link to it."""
        info = tarfile.TarInfo(_text(path) or ".")
        kind = stat.S_IFMT(found.st_mode)
        if kind != stat.S_IFDIR and found.st_nlink > 1:
            first = self._links.setdefault((found.st_dev, found.st_ino), info.name)
            if first != info.name:
                info.type, info.linkname = tarfile.LNKTYPE, first
        headers: dict[str, str] = {}
        if info.type != tarfile.LNKTYPE:
            info.type = _TYPES[kind]
            for name, value in read_xattrs(target).items():
                key = XATTR + name.replace("%", "%25").replace("=", "%3D")
                headers[key] = value.decode("utf-8", "surrogateescape")
        info.mode, info.uid, info.gid = stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid
        info.mtime, fraction = divmod(found.st_mtime_ns, 10**9)
        if fraction and info.type != tarfile.LNKTYPE:
            whole, fraction = divmod(abs(found.st_mtime_ns), 10**9)
            headers["mtime"] = f"{'-' if found.st_mtime_ns < 0 else ''}{whole}.{fraction:09d}"
        info.pax_headers = headers
        return info

    def _file(self, info: tarfile.TarInfo, fd: int, found: os.stat_result) -> None:
        pieces, holes = _pieces(fd, found), b""
        stored = sum(size for _, size in pieces)
        # tarfile loses its place behind a larger one, and we refuse a longer map
        if stored < min(found.st_size, 8**11) and len(pieces) < HEADERS // 64:
            holes = b"%d\n" % len(pieces) + b"".join(b"%d\n%d\n" % piece for piece in pieces)
            holes += bytes(-len(holes) % tarfile.BLOCKSIZE)
            marks = {"major": "1", "minor": "0", "name": info.name, "realsize": str(found.st_size)}
            sparse = {f"GNU.sparse.{key}": value for key, value in marks.items()}
            info.pax_headers = {**info.pax_headers, **sparse}
            info.name = "GNUSparseFile.0"
        else:
            pieces, stored = [(0, found.st_size)], found.st_size
        info.size = len(holes) + stored
        self._header(info)
        self._put(holes)
        for offset, size in pieces:
            self._copy(fd, offset, size)
        self._put(_ZEROS[: -stored % tarfile.BLOCKSIZE])

    def _copy(self, fd: int, offset: int, size: int) -> None:
        end = offset + size
        while offset < end:
            if self._used == CHUNK:
                self._flush()
            room = self._held[self._used : self._used + end - offset]
            done = os.preadv(fd, [room], offset)
            if not done:  # it shrank
                done = len(room)
                room[:] = bytes(done)
            self._used += done
            offset += done


def _vanished(path: bytes) -> Conflict:
    return Conflict(
        f"layer tar: {os.fsdecode(path)!r} vanished while the layer was read; pause the container and try again"
    )


def _pieces(fd: int, found: os.stat_result) -> list[tuple[int, int]]:
    """List where the file has data; one whose blocks hold all of it has no holes, and is not asked."""
    if found.st_blocks * 512 >= found.st_size:
        return [(0, found.st_size)] if found.st_size else []
    return data_pieces(fd, found.st_size)


@cache
def _mtime_header() -> bytes:
    """Return the header before a record of a time with nanoseconds: of today's the same every time."""
    info = tarfile.TarInfo("x")
    info.pax_headers = {"mtime": "1700000000.123456789"}
    return info.tobuf(tarfile.PAX_FORMAT)[: tarfile.BLOCKSIZE]


def _plain_header(info: tarfile.TarInfo) -> bytes:
    """Make the header of an ordinary entry as tarfile does, several times as fast; empty for one that needs more."""
    name, link, headers = _bytes(info.name), _bytes(info.linkname), info.pax_headers
    mtime, seconds, fraction = headers.get("mtime", ""), int(info.mtime), 0
    if len(headers) > bool(mtime) or info.type in _DEVICES:
        return b""
    if mtime:
        whole, _, rest = mtime.partition(".")
        if whole != str(seconds) or len(rest) != 9 or not (fraction := int(rest)):
            return b""
    if info.type == tarfile.DIRTYPE and not name.endswith(b"/"):
        name += b"/"
    return _block(name, link, info.type, info.mode & 0o7777, info.uid, info.gid, info.size, seconds, fraction)


def _block(
    name: bytes, link: bytes, kind: bytes, mode: int, uid: int, gid: int, size: int, seconds: int, fraction: int
) -> bytes:
    """Make a header whose modification time is `seconds` and `fraction` nanoseconds; empty if one does not fit."""
    if size >= 8**11 or uid >= 8**7 or gid >= 8**7 or not 0 <= seconds < 8**11 or not (name + link).isascii():
        return b""
    if len(name) > 100 or len(link) > 100 or (fraction and not 10**9 <= seconds < 10**10):
        return b""
    block = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0        %b%bustar\x0000%b" % (
        name.ljust(100, b"\0"), mode, uid, gid, size, seconds, kind, link.ljust(100, b"\0"), _ZEROS[:247]
    )  # fmt: skip
    head, total, tail = block[:148], _sum(block), block[155:]
    if fraction:
        return b"%b30 mtime=%d.%09d\n%b%b%06o\0%b" % (
            _mtime_header(), seconds, fraction, _ZEROS[:482], head, total, tail
        )  # fmt: skip
    return b"%b%06o\0%b" % (head, total, tail)


def _sum(block: bytes) -> int:
    """Add up the bytes of a header of ASCII: as one half of a checksum that C computes, which wraps beyond 65,521."""
    return (adler32(block) & 0xFFFF) - 1


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
