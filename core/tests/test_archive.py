"""Layer tars: what goes in comes out, nothing gets out of the tree, and damage is told as such."""

import hashlib
import io
import os
import random
import shutil
import stat
import struct
import subprocess
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.contract.storage import Change, ChangeKind
from transom.errors import ConfigError, Conflict, NotSupported
from transom.services import archive
from transom.services.archive import extract, write, write_tree
from transom.services.differ import compare

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices, trusted.* attributes")

ADDED, MODIFIED, DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED
DIR, LINK, SYMLINK, FIFO, CHAR = (
    tarfile.DIRTYPE,
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
)


def entry(name, data=b"", kind=tarfile.REGTYPE, link="", mode=None, **fields):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data)
    info.mode = mode if mode is not None else 0o755 if kind == DIR else 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def tar_of(*entries, form=tarfile.PAX_FORMAT):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def unpack(root, *entries, **options):
    return extract(stream=io.BytesIO(tar_of(*entries)), root=str(root), **options)


def pack(root, changes=None):
    out = io.BytesIO()
    size = write_tree(root=str(root), out=out) if changes is None else write(changes=changes, root=str(root), out=out)
    assert size == len(out.getvalue())
    return out.getvalue()


def members(data):
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        found = list(tar)
    assert len({member.name for member in found}) == len(found)
    return {member.name: member for member in found}


def describe(root):
    """Everything two equal trees have in common, per path."""
    found, first = {}, {}
    todo = [b""]
    while todo:
        path = todo.pop()
        full = os.path.join(os.fsencode(root), path)
        info = os.lstat(full)
        kind = stat.S_IFMT(info.st_mode)
        body = b""
        if kind == stat.S_IFREG:
            with open(full, "rb") as file:
                body = hashlib.sha256(file.read()).digest()
        elif kind == stat.S_IFLNK:
            body = os.readlink(full)
        elif kind == stat.S_IFDIR:
            todo += [os.path.join(path, os.fsencode(name)) for name in sorted(os.listdir(full))]
        names = os.listxattr(full, follow_symlinks=False)
        xattrs = {name: os.getxattr(full, name, follow_symlinks=False) for name in names}
        size = info.st_size if kind == stat.S_IFREG else 0
        rdev = info.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        found[path] = [info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, size, rdev, body, xattrs, path]
        if kind != stat.S_IFDIR:
            first.setdefault((info.st_dev, info.st_ino), []).append(path)
    for names in first.values():
        for path in names:
            found[path][-1] = sorted(names)
    return found


# Random trees: a list of operations makes one; the same list makes an equal one, of other inodes.

NAMES = st.sampled_from(
    [b"a", b"b", b"a-b", b"\xff\xfe", b"new\nline", "é".encode(), b"n" * 255, b" ", b"x.wh.y", b"100% =", b"\\"]
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
TIMES = st.sampled_from([0, 1, 10**9, -1_500_000_000, 1_700_000_000_123_456_789, 5_000_000_000 * 10**9, -(10**9)])
IDS = st.sampled_from([0, 1000, 65536, 2**31, 2**32 - 2])
XATTRS = st.dictionaries(
    st.sampled_from(["user.a", "user.é", "user.100%=b", "trusted.t"]), st.binary(max_size=40), max_size=2
)
LOOKS = st.tuples(st.sampled_from([0o644, 0o4755, 0o2711, 0o1777, 0o0]), IDS, IDS, TIMES, XATTRS)
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
OPERATION = st.one_of(
    st.tuples(st.just("dir"), PATHS, LOOKS),
    st.tuples(st.just("file"), PATHS, LOOKS, st.binary(max_size=1200)),
    st.tuples(st.just("capable"), PATHS, LOOKS),
    st.tuples(st.just("sparse"), PATHS, LOOKS, st.lists(st.integers(0, 40), max_size=3), st.integers(0, 200_000)),
    st.tuples(st.just("symlink"), PATHS, LOOKS, st.one_of(PATHS, st.just(b"t" * 300), st.just(b"/../x/"))),
    st.tuples(st.just("node"), PATHS, LOOKS, st.sampled_from([stat.S_IFCHR, stat.S_IFBLK]), st.integers(1, 2**20 - 1)),
    st.tuples(st.just("fifo"), PATHS, LOOKS),
    st.tuples(st.just("link"), PATHS, PATHS),
    st.tuples(st.just("remove"), PATHS),
    st.tuples(st.just("rename"), PATHS, PATHS),
    st.tuples(st.just("look"), PATHS, LOOKS),
    st.tuples(st.just("rewrite"), PATHS),
)
OPERATIONS = st.lists(OPERATION, max_size=14)


def perform(root, operations):
    """Do what can be done of it: equal trees take the same operations the same way."""
    for what, path, *rest in operations:
        parents = [
            os.path.dirname(os.path.join(os.fsencode(root), name))
            for name in (path, *rest[:1])
            if isinstance(name, bytes)
        ]
        try:
            if all(os.path.realpath(parent) == parent for parent in parents):
                _perform(os.fsencode(root), what, path, *rest)
        except OSError:
            pass


def _perform(root, what, path, *rest):
    full = os.path.join(root, path)
    if what == "remove":
        shutil.rmtree(full) if os.path.isdir(full) and not os.path.islink(full) else os.unlink(full)
    elif what == "rename":
        os.rename(full, os.path.join(root, rest[0]))
    elif what == "link":
        os.link(os.path.join(root, rest[0]), full, follow_symlinks=False)
    elif what == "look":
        look(full, rest[0])
    elif what == "rewrite":
        before = os.lstat(full)
        if stat.S_ISREG(before.st_mode) and before.st_size:
            with open(full, "r+b") as file:
                byte = file.read(1)
                file.seek(0)
                file.write(bytes([byte[0] ^ 1]))
            os.utime(full, ns=(before.st_mtime_ns,) * 2)
    else:
        if os.path.lexists(full) and not (what == "dir" and os.path.isdir(full)):
            _perform(root, "remove", path)
        if what == "dir":
            os.makedirs(full, exist_ok=True)
        elif what == "symlink":
            os.symlink(rest[1], full)
        elif what == "fifo":
            os.mkfifo(full)
        elif what == "node":
            os.mknod(full, rest[1] | 0o600, os.makedev(rest[2] % 4096, rest[2]))
        else:
            with open(full, "xb") as file:
                if what == "file":
                    file.write(rest[1])
                elif what == "sparse":
                    for block in rest[1]:
                        os.pwrite(file.fileno(), b"data" * 1024, block * 4096)
                    os.ftruncate(file.fileno(), max(rest[2], os.fstat(file.fileno()).st_size))
        look(full, rest[0], capable=what == "capable")


def look(full, looks, *, capable=False):
    mode, uid, gid, mtime, xattrs = looks
    kind = os.lstat(full).st_mode
    os.chown(full, uid, gid, follow_symlinks=False)
    if not stat.S_ISLNK(kind):
        os.chmod(full, mode)
    if capable:
        os.setxattr(full, "security.capability", CAPABILITY)
    for name in os.listxattr(full, follow_symlinks=False):
        if not name.startswith("security."):
            os.removexattr(full, name, follow_symlinks=False)
    for name, value in xattrs.items():
        if name.startswith("trusted.") or stat.S_ISREG(kind) or stat.S_ISDIR(kind):
            os.setxattr(full, name, value, follow_symlinks=False)
    os.utime(full, ns=(mtime, mtime), follow_symlinks=False)


def build(root, operations):
    os.mkdir(root)
    perform(root, operations)
    for directory, _, _ in os.walk(os.fsencode(root)):
        os.utime(directory, ns=(1, 987_654_321))
    return root


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("archive")


def fresh(scratch):
    shutil.rmtree(scratch / "world", ignore_errors=True)
    world = scratch / "world"
    world.mkdir()
    return world


@settings(max_examples=120, deadline=None)
@given(base=OPERATIONS, edits=OPERATIONS)
def test_changes_applied_to_a_copy_of_the_lower_tree_give_the_upper_tree(scratch, base, edits):
    world = fresh(scratch)
    lower, copy, upper = (build(world / name, base) for name in ("lower", "copy", "upper"))
    perform(upper, edits)
    changes = list(compare(lower=str(lower), upper=str(upper)))
    assert changes == sorted(changes)
    data = pack(upper, changes)
    extract(stream=io.BytesIO(data), root=str(copy))
    expected, got = describe(upper), describe(copy)
    if not changes:
        got[b""][3] = expected[b""][3]
    assert got == expected
    assert list(compare(lower=str(upper), upper=str(copy))) == []


@settings(max_examples=60, deadline=None)
@given(base=OPERATIONS)
def test_a_whole_tree_comes_out_as_it_went_in_and_twice_is_once(scratch, base):
    world = fresh(scratch)
    tree = build(world / "tree", base)
    data = pack(tree)
    for _ in range(2):
        (world / "out").mkdir(exist_ok=True)
        extract(stream=io.BytesIO(data), root=str(world / "out"))
        expected, got = describe(tree), describe(world / "out")
        if len(expected) == 1:
            got[b""] = expected[b""]
        assert got == expected
    assert pack(world / "out") == data


# Escapes: after any of them `outside` is as it was.

INSIDE = [entry("etc", kind=DIR), entry("etc/passwd", b"inside")]
ESCAPES = {
    "absolute name": ([entry("/etc/unbroken", b"x")], "etc/unbroken"),
    "name with dots that stays": ([*INSIDE, entry("etc/../etc/./unbroken", b"x")], "etc/unbroken"),
    "name with dots that leaves": ([entry("../outside/new", b"x")], None),
    "name with dots that leaves deep": ([entry("a/../../outside/new", b"x")], None),
    "name that is the parent": ([entry("..", kind=DIR)], None),
    "root that is a file": ([entry("./", b"x"), entry("/", b"x")], None),
    "through an absolute symlink": (
        [*INSIDE, entry("l", kind=SYMLINK, link="/etc"), entry("l/unbroken", b"x")],
        "etc/unbroken",
    ),
    "through a symlink up and out": (
        [*INSIDE, entry("l", kind=SYMLINK, link="../../../../outside"), entry("l/new", b"x")],
        "outside/new",
    ),
    "through a symlink to the parent": (
        [entry("l", kind=SYMLINK, link=".."), entry("l/outside/new", b"x")],
        "outside/new",
    ),
    "through a chain of symlinks": (
        [
            *INSIDE,
            entry("dummy", kind=DIR),
            entry("dummy/etc", kind=SYMLINK, link="/etc"),
            entry("l", kind=SYMLINK, link="./dummy/etc"),
            entry("l/unbroken", b"x"),
        ],
        "etc/unbroken",
    ),
    "through dots behind a symlink": (
        [
            entry("a/b", kind=DIR),
            entry("l", kind=SYMLINK, link="a/b/../.."),
            entry("m", kind=SYMLINK, link="l/../../../outside"),
            entry("m/new", b"x"),
        ],
        "outside/new",
    ),
    "through a symlink loop": (
        [entry("l", kind=SYMLINK, link="m"), entry("m", kind=SYMLINK, link="l"), entry("l/new", b"x")],
        None,
    ),
    "over a symlink to a file outside": (
        [entry("l", kind=SYMLINK, link="{outside}/victim"), entry("l", b"x")],
        "l",
    ),
    "directory over a symlink": (
        [entry("l", kind=SYMLINK, link="{outside}"), entry("l", kind=DIR, mode=0o700), entry("l/new", b"x")],
        "l/new",
    ),
    "symlink over a full directory": (
        [entry("d/e/f", b"x"), entry("d", kind=SYMLINK, link="{outside}"), entry("d/new", b"x")],
        "{outside}/new",
    ),
    "fifo over a symlink": ([entry("l", kind=SYMLINK, link="{outside}/victim"), entry("l", kind=FIFO)], "l"),
    "file below a file": ([entry("f", b"x"), entry("f/g", b"x")], None),
    "hard link absolute": ([*INSIDE, entry("p", kind=LINK, link="/etc/passwd")], "p"),
    "hard link relative out": ([entry("p", kind=LINK, link="../outside/victim")], None),
    "hard link through an absolute symlink": (
        [*INSIDE, entry("l", kind=SYMLINK, link="/etc"), entry("p", kind=LINK, link="l/passwd")],
        "p",
    ),
    "hard link through a symlink up and out": (
        [entry("l", kind=SYMLINK, link="../outside"), entry("p", kind=LINK, link="l/victim")],
        None,
    ),
    "hard link to a symlink that leaves": (
        [entry("l", kind=SYMLINK, link="{outside}/victim"), entry("p", kind=LINK, link="l", mode=0o777, uid=77)],
        "p",
    ),
    "hard link to a symlink, then written": (
        [
            entry("l", kind=SYMLINK, link="{outside}/victim"),
            entry("p", kind=LINK, link="l"),
            entry("p", b"x"),
        ],
        "p",
    ),
    "hard link to a directory": ([*INSIDE, entry("p", kind=LINK, link="etc")], None),
    "hard link to nothing": ([entry("p", kind=LINK, link="no/such")], None),
    "hard link of the root": ([*INSIDE, entry(".", kind=LINK, link="etc/passwd")], None),
    "hard link to itself": ([*INSIDE, entry("etc/passwd", kind=LINK, link="etc/passwd")], "etc/passwd"),
    "hard link in place of its target's directory": (
        [*INSIDE, entry("etc", kind=LINK, link="etc/passwd")],
        None,
    ),
    "whiteout of the root": ([entry(".wh.")], None),
    "whiteout of the root by dot": ([entry(".wh..")], None),
    "whiteout of the root's parent": ([entry(".wh...")], None),
    "whiteout of a directory it is in": ([*INSIDE, entry("etc/.wh..")], None),
    "whiteout of a parent": ([*INSIDE, entry("etc/.wh...")], None),
    "whiteout of a symlink": ([entry(".wh.out")], "out!"),
    "whiteout through a symlink": ([entry("out/.wh.victim")], "out"),
    "whiteout through a dead symlink": ([entry("dead/.wh.victim")], "dead"),
    "whiteout by a name with dots": ([entry("no/../.wh.out")], "out!"),
    "whiteout outside": ([entry("../.wh.outside")], None),
    "opaque through a symlink": ([entry("out/.wh..wh..opq")], "out"),
    "opaque outside": ([entry("../.wh..wh..opq")], None),
    "names below a whiteout": ([entry(".wh.out/file", b"x")], None),
    "names of aufs": ([entry(".wh..wh.plnk/1.2", b"x"), entry(".wh..wh.aufs"), entry("f", b"x")], "f"),
    "device of overlay": ([entry("d", kind=CHAR)], None),
    "unknown type": ([entry("d", kind=b"Z")], None),
    "name with a null": ([entry("a", pax_headers={"path": "a\0b"})], None),
    "name too long": ([entry("n" * 256, b"x")], None),
    "mtime without end": ([entry("a", pax_headers={"mtime": "9" * 40})], None),
    "mtime that is no number": ([entry("a", pax_headers={"mtime": "nan"})], None),
    "owner without end": ([entry("a", pax_headers={"uid": str(2**40)})], None),
    "owner below zero": ([entry("a", pax_headers={"uid": "-1"})], None),
    "device without end": ([entry("a", kind=CHAR, devmajor=2**20, devminor=2**20)], None),
}


@pytest.mark.parametrize("case", ESCAPES)
def test_no_entry_leaves_the_root(tmp_path, case):
    entries, made = ESCAPES[case]
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    os.symlink(outside, root / "out")
    os.symlink("/no/such", root / "dead")
    place = str(outside)
    for info, _ in entries:
        info.linkname = info.linkname.replace("{outside}", place)
    before = describe(outside)
    try:
        if made is None:
            with pytest.raises(ConfigError, match=r"layer tar: entry .*; the layer is refused, make its tar anew"):
                unpack(root, *entries)
        else:
            unpack(root, *entries)
    finally:
        for info, _ in entries:
            info.linkname = info.linkname.replace(place, "{outside}")
    assert describe(outside) == before
    assert os.stat(outside / "victim").st_nlink == 1
    assert sorted(os.listdir(tmp_path)) == ["outside", "root"]
    if made:
        path = str(root / made.rstrip("!").replace("{outside}", place.lstrip("/")))
        assert os.path.lexists(path) is not made.endswith("!")


def test_a_symlink_replaced_on_the_way_leads_where_it_now_points(tmp_path):
    unpack(
        tmp_path,
        entry("d", kind=DIR),
        entry("e", kind=DIR),
        entry("l", kind=SYMLINK, link="d"),
        entry("l/x", b"x"),
        entry("l", kind=SYMLINK, link="e"),
        entry("l/y", b"y"),
    )
    assert sorted(describe(tmp_path)) == [b"", b"d", b"d/x", b"e", b"e/y", b"l"]


def test_an_escape_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError) as caught:
        unpack(tmp_path, entry("../etc/passwd", b"x"))
    assert str(caught.value) == (
        "layer tar: entry '../etc/passwd' would escape the layer ('../etc/passwd');"
        " the layer is refused, make its tar anew"
    )


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([entry("p", kind=LINK, link="no")], "links to 'no', which is not there"),
        ([entry("d", kind=DIR), entry("p", kind=LINK, link="d")], "links to 'd', which is a directory"),
        ([entry("d", kind=CHAR)], "is the character device 0:0, which overlay takes for a deletion"),
        ([entry("d", kind=b"Z")], "has the unknown type b'Z'"),
        ([entry("d/.wh..")], "would remove a directory it is in"),
        ([entry(".wh.a/b")], "lies below a whiteout"),
        ([entry("n" * 256)], "cannot be made: File name too long"),
        ([entry("a", pax_headers={"uid": "-7"})], "is damaged: it belongs to -7:0"),
        ([entry(".", b"x")], "is the layer's root and no directory"),
    ],
)
def test_a_refused_entry_says_why(tmp_path, entries, reason):
    with pytest.raises(ConfigError) as caught:
        unpack(tmp_path, *entries)
    name = entries[-1][0].name
    assert str(caught.value) == f"layer tar: entry {name!r} {reason}; the layer is refused, make its tar anew"


# Whiteouts


def test_a_whiteout_removes_what_was_below_and_spares_what_the_tar_wrote(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "old").write_text("old")
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "deep").write_text("old")
    unpack(tmp_path, entry("d", kind=DIR), entry("d/new", b"new"), entry(".wh.d"), entry(".wh.gone"), entry(".wh.no"))
    assert sorted(describe(tmp_path)) == [b"", b"d", b"d/new"]


def test_a_whiteout_spares_directories_the_tar_only_passed_through(tmp_path):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "sub" / "old").write_text("old")
    unpack(tmp_path, entry("d/sub/.wh.none"), entry("d/sub/new", b"new"), entry(".wh.d"))
    assert sorted(describe(tmp_path)) == [b"", b"d", b"d/sub", b"d/sub/new"]


def test_an_opaque_mark_acts_in_a_directory_whose_name_only_contains_the_prefix(tmp_path):
    (tmp_path / "a.wh.b").mkdir()
    (tmp_path / "a.wh.b" / "lower").touch()
    unpack(tmp_path, entry("a.wh.b/.wh..wh..opq"))
    assert sorted(describe(tmp_path)) == [b"", b"a.wh.b"]


@pytest.mark.parametrize("mark_first", [True, False])
def test_an_opaque_mark_removes_only_what_lower_layers_had(tmp_path, mark_first):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "old").write_text("old")
    (tmp_path / "d" / "sub" / "old").write_text("old")
    rest = [entry("d/new", b"new"), entry("d/sub/new", b"new")]
    mark = [entry("d/.wh..wh..opq")]
    unpack(tmp_path, entry("d", kind=DIR), *(mark + rest if mark_first else rest + mark))
    assert sorted(describe(tmp_path)) == [b"", b"d", b"d/new", b"d/sub", b"d/sub/new"]


# Damage

WHOLE = tar_of(
    entry("d", kind=DIR, mtime=1.5),
    entry("d/" + "long" * 60, b"x" * 1500, pax_headers={"SCHILY.xattr.user.a": "b"}),
    entry("s", kind=SYMLINK, link="d"),
    entry("h", kind=LINK, link="d/" + "long" * 60),
    entry("é", b"y" * 512),
)


def test_a_cut_tar_is_damaged_wherever_it_is_cut(tmp_path):
    end = len(WHOLE.rstrip(b"\0"))
    end += -end % 512
    for size in [*range(0, end + 1, 512), *range(100, end, 777)]:
        with pytest.raises(ConfigError, match=r"layer tar is damaged: it ends at byte .*; fetch it or make it again"):
            extract(stream=io.BytesIO(WHOLE[:size]), root=str(tmp_path))


def test_a_bad_header_is_told_from_the_end(tmp_path):
    data = bytearray(tar_of(entry("a", b"x"), entry("b", b"x")))
    data[1024 + 5] ^= 1
    with pytest.raises(ConfigError) as caught:
        extract(stream=io.BytesIO(bytes(data)), root=str(tmp_path))
    assert str(caught.value) == "layer tar is damaged: no header at byte 1024; fetch it or make it again"


def test_a_map_of_holes_that_takes_the_next_header_for_data_is_damage(tmp_path):
    lies = {"GNU.sparse.map": "0,2000", "GNU.sparse.size": "2000"}
    data = tar_of(entry("a", b"x" * 700, pax_headers=lies), entry("b", b"x" * 5000))
    with pytest.raises(ConfigError, match="contradicts itself about its size; fetch it or make it again"):
        extract(stream=io.BytesIO(data), root=str(tmp_path))
    with pytest.raises(ConfigError, match="entry 'a' is damaged: its map of holes does not fit its size"):
        unpack(tmp_path, entry("a", b"x" * 700, pax_headers=lies | {"GNU.sparse.size": "1999"}))


def test_an_empty_layer_is_a_layer(tmp_path):
    assert extract(stream=io.BytesIO(bytes(1024)), root=str(tmp_path)) == 0
    assert pack(tmp_path) == bytes(1024)


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_end_in_a_refusal_or_a_tree(scratch, flips):
    world, data = fresh(scratch), bytearray(WHOLE)
    for position, flip in flips:
        data[position] ^= flip
    (world / "root").mkdir()
    try:
        extract(stream=io.BytesIO(bytes(data)), root=str(world / "root"))
    except (ConfigError, NotSupported):
        pass
    assert os.listdir(world) == ["root"]


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=4096))
def test_garbage_is_damaged(scratch, data):
    if not data.strip(b"\0"):
        data = b"x" + data
    with pytest.raises(ConfigError, match="layer tar is damaged: "):
        extract(stream=io.BytesIO(data), root=str(scratch))


@settings(max_examples=200, deadline=None)
@given(
    fields=st.dictionaries(
        st.sampled_from(
            "size mtime uid path linkpath hdrcharset SCHILY.xattr.user.x GNU.sparse.map GNU.sparse.size"
            " GNU.sparse.major GNU.sparse.minor GNU.sparse.realsize GNU.sparse.name".split()
        ),
        st.one_of(
            st.integers(-5, 5000).map(str), st.text(max_size=12), st.sampled_from(["1", "0", "0,5,3,9", "9" * 30])
        ),
    ),
    kind=st.sampled_from([tarfile.REGTYPE, DIR, LINK, SYMLINK, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE]),
)
def test_records_that_lie_end_in_a_refusal_or_a_tree(scratch, fields, kind):
    world = fresh(scratch)
    (world / "root").mkdir()
    data = tar_of(entry("first", b"x" * 700, kind=kind, link="second", pax_headers=fields), entry("second", b"y" * 600))
    try:
        extract(stream=io.BytesIO(data), root=str(world / "root"))
    except (ConfigError, NotSupported):
        pass
    assert os.listdir(world) == ["root"]


def test_endless_headers_are_refused_before_they_fill_memory(tmp_path):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 1 << 32
    head = info.tobuf(tarfile.GNU_FORMAT)

    class Endless(io.RawIOBase):
        given = 0

        def read(self, size=-1):
            self.given += size
            return head + bytes(size - 512) if self.given == size else bytes(size)

    stream = Endless()
    with pytest.raises(ConfigError, match="layer tar is damaged: the headers of the entry at byte 512"):
        extract(stream=stream, root=str(tmp_path))
    assert stream.given < 64 << 20


def test_headers_nested_without_end_are_damage(tmp_path):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type = tarfile.XHDTYPE
    with pytest.raises(ConfigError, match="layer tar is damaged: "):
        extract(stream=io.BytesIO(info.tobuf(tarfile.PAX_FORMAT) * 20_000 + WHOLE), root=str(tmp_path))


def test_the_stream_is_read_to_its_end(tmp_path):
    stream = io.BytesIO(WHOLE + b"after the end" * 1000)
    extract(stream=stream, root=str(tmp_path))
    assert stream.read() == b""


def test_a_stream_that_gives_a_byte_at_a_time_is_as_good(tmp_path):
    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 7))

    extract(stream=Slow(WHOLE), root=str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["d", "h", "s", "é"]


# What is kept


def test_attributes_of_an_existing_directory_become_those_of_the_entry(tmp_path):
    (tmp_path / "d").mkdir()
    os.setxattr(tmp_path / "d", "user.old", b"1")
    (tmp_path / "d" / "kept").write_text("kept")
    unpack(tmp_path, entry("d", kind=DIR, mode=0o1711, uid=5, gid=6, pax_headers={"SCHILY.xattr.user.new": "2"}))
    found = os.stat(tmp_path / "d")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns) == (0o1711, 5, 6, 0)
    assert os.listxattr(tmp_path / "d") == ["user.new"]
    assert (tmp_path / "d" / "kept").exists()


def test_missing_directories_are_made_whatever_the_umask(tmp_path):
    before = os.umask(0o077)
    try:
        unpack(tmp_path, entry("a/b/c", b"x", mode=0o666))
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(tmp_path / "a" / "b").st_mode) == 0o755
    assert stat.S_IMODE(os.stat(tmp_path / "a" / "b" / "c").st_mode) == 0o666


def test_a_default_acl_of_the_parent_does_not_rub_off(tmp_path):
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, perm, ident)
        for tag, perm, ident in [
            (1, 7, 2**32 - 1),
            (2, 7, 1000),
            (4, 5, 2**32 - 1),
            (0x10, 7, 2**32 - 1),
            (0x20, 5, 2**32 - 1),
        ]
    )
    (tmp_path / "d").mkdir()
    try:
        os.setxattr(tmp_path / "d", "system.posix_acl_default", acl)
    except OSError:
        pytest.skip("the file system under the tests keeps no POSIX ACLs")
    files = [entry(f"d/{name}", b"x", mode=0o640) for name in "fgh"]
    unpack(tmp_path, *files, entry("d/e", kind=DIR, mode=0o750))
    for name, mode in (("f", 0o640), ("g", 0o640), ("h", 0o640), ("e", 0o750)):
        assert os.listxattr(tmp_path / "d" / name) == []
        assert stat.S_IMODE(os.stat(tmp_path / "d" / name).st_mode) == mode
    out = tmp_path / "out"
    data = pack(tmp_path)
    out.mkdir()
    extract(stream=io.BytesIO(data), root=str(out))
    assert os.getxattr(out / "d", "system.posix_acl_default") == acl


@pytest.mark.parametrize("umask", [0, 0o027, 0o777])
@pytest.mark.parametrize("directory", [{}, {"mode": 0o2755, "gid": 7}, {"gid": 7}, {"mode": 0o1777, "uid": 5}])
def test_files_beside_one_another_are_what_their_entries_say(tmp_path, umask, directory):
    """The first finds its directory, the others go the short way."""
    files = [
        entry("d/a", b"x" * 600, mode=0o666, mtime=5),
        entry("d/b", b"y", mode=0o4711, mtime=6),
        entry("d/c", mode=0o1600, mtime=7, uid=3, gid=4),
        entry("d/e", b"z", mode=0o2755, uid=3, pax_headers={"mtime": "1700000000.000000009"}),
        entry("d/b", b"again", mode=0o600, mtime=8, gid=7),
        entry("d/f", mode=0o644, pax_headers={"SCHILY.xattr.user.a": "v", "mtime": "-3.5"}),
    ]
    before = os.umask(umask)
    try:
        assert unpack(tmp_path, entry("d", kind=DIR, **directory), *files) == 600 + 1 + 1 + 5
    finally:
        os.umask(before)
    found = {path.name: path.stat() for path in (tmp_path / "d").iterdir()}
    assert {name: (stat.S_IMODE(f.st_mode), f.st_uid, f.st_gid, f.st_mtime_ns) for name, f in found.items()} == {
        "a": (0o666, 0, 0, 5 * 10**9),
        "b": (0o600, 0, 7, 8 * 10**9),
        "c": (0o1600, 3, 4, 7 * 10**9),
        "e": (0o2755, 3, 0, 1_700_000_000_000_000_009),
        "f": (0o644, 0, 0, -3_500_000_000),
    }
    assert (tmp_path / "d" / "a").read_bytes() == b"x" * 600
    assert (tmp_path / "d" / "b").read_bytes() == b"again"
    assert [name for name in found if os.listxattr(tmp_path / "d" / name)] == ["f"]


def test_what_overlay_keeps_for_itself_neither_leaves_nor_enters(tmp_path):
    os.setxattr(tmp_path, "trusted.overlay.opaque", b"y")
    (tmp_path / "f").write_text("x")
    assert not any("overlay" in key for member in members(pack(tmp_path)).values() for key in member.pax_headers)
    unpack(tmp_path, entry("d", kind=DIR, pax_headers={"SCHILY.xattr.trusted.overlay.redirect": "/etc"}))
    assert os.listxattr(tmp_path / "d") == []
    assert os.getxattr(tmp_path, "trusted.overlay.opaque") == b"y"


def test_attributes_the_file_system_cannot_keep_are_told(tmp_path):
    (tmp_path / "m").mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", tmp_path / "m"], check=True)
    try:
        with pytest.raises(NotSupported) as caught:
            unpack(tmp_path / "m", entry("a", pax_headers={"SCHILY.xattr.user.a": "x"}))
        assert unpack(tmp_path / "m", entry("b", b"x")) == 1
    finally:
        subprocess.run(["umount", tmp_path / "m"], check=True)
    assert str(caught.value) == (
        "layer tar: entry 'a' has the extended attribute 'user.a', which cannot be kept here:"
        " Operation not supported; put the data root on a file system that keeps them (ext4, xfs, btrfs)"
    )


def test_no_space_is_the_hosts_fault(tmp_path):
    (tmp_path / "m").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path / "m"], check=True)
    try:
        with pytest.raises(OSError, match="No space left on device"):
            unpack(tmp_path / "m", entry("a", b"x" * 200_000))
    finally:
        subprocess.run(["umount", tmp_path / "m"], check=True)


def test_holes_stay_holes_and_cost_nothing(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    with open(root / "sparse", "wb") as file:
        for offset in (0, 512 << 20, (1 << 30) - 4096):
            os.pwrite(file.fileno(), b"data" * 1024, offset)
        os.ftruncate(file.fileno(), 2 << 30)
    with open(root / "hole", "wb") as file:
        os.ftruncate(file.fileno(), 1 << 40)
    data = pack(root)
    assert len(data) < 1 << 17
    (tmp_path / "out").mkdir()
    assert extract(stream=io.BytesIO(data), root=str(tmp_path / "out")) == (2 << 30) + (1 << 40)
    for name in ("sparse", "hole"):
        found = os.stat(tmp_path / "out" / name)
        assert found.st_size == os.stat(root / name).st_size
        assert found.st_blocks <= 64
    with open(tmp_path / "out" / "sparse", "rb") as file:
        for offset in (0, 512 << 20, (1 << 30) - 4096):
            assert os.pread(file.fileno(), 4097, offset) == b"data" * 1024 + b"\0"


@pytest.mark.parametrize(
    "form",
    [
        "--format=gnu",
        "--format=pax --sparse-version=0.0",
        "--format=pax --sparse-version=0.1",
        "--format=pax --sparse-version=1.0",
    ],
)
def test_sparse_files_of_gnu_tar_are_understood(tmp_path, form):
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    name = "sparse-é" + "x" * 120
    with open(root / name, "wb") as file:
        for block in range(0, 600, 20):
            os.pwrite(file.fileno(), bytes([65 + block % 26]) * 4096, block * 4096)
        os.ftruncate(file.fileno(), 4 << 20)
    (root / "z").write_text("after")
    data = subprocess.run(["tar", "-C", root, "-S", *form.split(), "-cf-", "."], check=True, capture_output=True).stdout
    extract(stream=io.BytesIO(data), root=str(out))
    assert (out / name).read_bytes() == (root / name).read_bytes()
    assert (out / "z").read_text() == "after"
    assert os.stat(out / name).st_blocks <= os.stat(root / name).st_blocks


def test_gnu_tar_understands_what_we_write(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    root.mkdir()
    out.mkdir()
    perform(
        root,
        [
            (
                "file",
                b"f\xff",
                (0o4755, 2**32 - 2, 70000, 1_700_000_000_123_456_789, {"user.a=%b": b"\xff\0"}),
                b"data",
            ),
            ("link", b"hard", b"f\xff"),
            ("symlink", b"sym", (0, 7, 7, -1_500_000_000, {}), b"t" * 200),
            ("sparse", b"sparse", (0o600, 0, 0, 5, {}), [0, 20], 1 << 20),
            ("node", b"dev", (0o660, 0, 6, 5, {}), stat.S_IFBLK, 7),
            ("capable", b"cap", (0o755, 0, 0, 5, {})),
            ("dir", b"d", (0o1777, 9, 9, 1, {"trusted.t": b"v"})),
        ],
    )
    data = pack(root)
    subprocess.run(
        ["tar", "-C", out, "--xattrs", "--xattrs-include=*", "-xpf-", "--numeric-owner"], input=data, check=True
    )
    assert describe(out) == describe(root)


def test_old_tars_are_understood(tmp_path):
    for form in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        root = tmp_path / str(form)
        root.mkdir()
        long = "d/" + "/".join(["p" * 60] * 3)
        assert extract(stream=io.BytesIO(tar_of(entry(long, b"x"), form=form)), root=str(root)) == 1
        assert (root / long).read_text() == "x"


# Writing


def test_the_tar_holds_the_directories_above_a_change_and_nothing_else(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "other").write_text("x")
    (tmp_path / "a" / "b" / "c").write_text("x")
    changes = [
        Change(path=b"a/b/c", kind=ADDED),
        Change(path=b"a/b/gone", kind=DELETED),
        Change(path=b"a/b", kind=MODIFIED, opaque=True),
    ]
    assert list(members(pack(tmp_path, changes))) == [".", "a", "a/b", "a/b/c", "a/b/.wh.gone", "a/b/.wh..wh..opq"]


def test_the_same_tree_gives_the_same_bytes_whenever_it_is_read(tmp_path):
    build(tmp_path / "t", [("file", b"f", (0o644, 1, 2, 3, {"user.b": b"1", "user.a": b"2"}), b"x")])
    first = pack(tmp_path / "t")
    (tmp_path / "t" / "f").read_bytes()
    os.setxattr(tmp_path / "t" / "f", "user.a", b"2")
    assert pack(tmp_path / "t") == first


def test_hard_links_to_names_outside_the_changes_hold_their_own_data(tmp_path):
    (tmp_path / "a").write_text("data")
    os.link(tmp_path / "a", tmp_path / "b")
    os.link(tmp_path / "a", tmp_path / "c")
    found = members(pack(tmp_path, [Change(path=b"b", kind=ADDED), Change(path=b"c", kind=ADDED)]))
    assert found["b"].isreg()
    assert (found["c"].type, found["c"].linkname) == (LINK, "b")


def test_sockets_are_left_out(tmp_path):
    os.mknod(tmp_path / "s", stat.S_IFSOCK | 0o600)
    (tmp_path / "f").write_text("x")
    assert list(members(pack(tmp_path))) == [".", "f"]


@pytest.mark.parametrize("name", [b".wh.x", b".wh..wh..opq", b".wh.d/f"])
def test_a_name_that_means_a_deletion_is_refused(tmp_path, name):
    full = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(full), exist_ok=True)
    with open(full, "w"):
        pass
    with pytest.raises(ConfigError) as caught:
        pack(tmp_path, [Change(path=name, kind=ADDED)])
    assert str(caught.value) == (
        f"layer tar: {name.decode()!r} cannot be in a layer: names that begin with .wh. mean deletions there; rename it"
    )


def test_a_device_that_takes_the_place_of_a_file_is_not_opened(tmp_path, monkeypatch):
    """Opening one can do things: a tape winds, a watchdog begins to count."""
    (tmp_path / "f").write_text("x")
    os.mknod(tmp_path / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    looked = os.lstat
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lambda name, **where: looked(b"f" if name == b"device" else name, **where))
        with pytest.raises(PermissionError):
            pack(tmp_path, [Change(path=b"device", kind=ADDED)])
    assert members(pack(tmp_path))["device"].type == CHAR


def test_what_is_mounted_inside_is_written_too(tmp_path):
    (tmp_path / "d").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "d"], check=True)
    try:
        (tmp_path / "d" / "f").write_text("x")
        assert sorted(members(pack(tmp_path))) == [".", "d", "d/f"]
    finally:
        subprocess.run(["umount", tmp_path / "d"], check=True)


def test_an_attribute_name_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "f").write_text("x")
    os.setxattr(tmp_path / "f", b"user.\xff", b"x")
    with pytest.raises(ConfigError) as caught:
        pack(tmp_path)
    assert str(caught.value) == "layer tar: 'f' has an extended attribute whose name is not UTF-8; remove it"


def test_a_file_that_vanished_is_a_conflict(tmp_path):
    with pytest.raises(Conflict) as caught:
        pack(tmp_path, [Change(path=b"d/f", kind=ADDED)])
    assert str(caught.value) == ("layer tar: 'd' vanished while the layer was read; pause the container and try again")


def test_a_directory_swapped_for_a_link_is_not_followed(tmp_path):
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "f").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    os.symlink(tmp_path / "secret", root / "d")
    with pytest.raises(Conflict, match="'d/f' vanished"):
        pack(root, [Change(path=b"d/f", kind=ADDED)])


def test_a_tree_deeper_than_any_path_goes_in_and_out(tmp_path):
    root, out = tmp_path / "root", tmp_path / "out"
    out.mkdir()
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("directory", dir_fd=fd)
        deeper = os.open("directory", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    try:
        data = pack(root)
        extract(stream=io.BytesIO(data), root=str(out))
        assert pack(out) == data
        assert list(compare(lower=str(root), upper=str(out))) == []
        unpack(out, entry(".wh.directory"))
        assert os.listdir(out) == []
    finally:
        subprocess.run(["rm", "-rf", root, out], check=True)


def test_no_descriptor_is_left_open(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    extract(stream=io.BytesIO(WHOLE), root=str(tmp_path))
    pack(tmp_path)
    for entries in ([entry("p", kind=LINK, link="no")], [entry("../x")], [entry("a", b"x"), entry("a/b", b"x")]):
        with pytest.raises(ConfigError):
            unpack(tmp_path, *entries)
    assert len(os.listdir("/proc/self/fd")) == before


# Ordinary headers, which have a way of their own through here


def some_info(dice):
    kinds = [tarfile.REGTYPE, DIR, SYMLINK, LINK, FIFO, CHAR]
    info = tarfile.TarInfo(dice.choice(["a", f"d/{'x' * dice.randrange(40, 120)}", "d/\u00e9", ".", "d/"]))
    info.type, info.mode = dice.choice(kinds), dice.randrange(0o10000)
    info.uid, info.gid = dice.choice([0, 0, 1000, 8**7 - 1, 8**7, 2**31]), dice.choice([0, 5])
    info.size = dice.choice([0, 5, 700]) if info.isreg() else 0
    info.mtime = dice.choice([0, 1, 1_700_000_000, 1_700_000_000, -5, 8**11])
    info.linkname = "l" * dice.randrange(1, 110) if info.type in (SYMLINK, LINK) else ""
    headers = {}
    if dice.random() < 0.6:
        headers["mtime"] = f"{dice.choice([info.mtime, 17])}.{dice.randrange(10**9):09d}"
    if dice.random() < 0.2:
        headers[f"SCHILY.xattr.user.{dice.choice('ab')}"] = dice.choice(["v", "x=\n", "w" * 600])
    if dice.random() < 0.1:
        headers["comment"] = "odd"
    info.pax_headers = headers
    return info


def test_an_ordinary_header_is_the_one_that_tarfile_makes():
    dice, ordinary = random.Random(1), 0
    for _ in range(3000):
        info = some_info(dice)
        made = archive._plain_header(info)
        ordinary += bool(made)
        assert made in (b"", info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
    assert ordinary > 300


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("chunk", [700, 5000, 1 << 20])
def test_an_ordinary_header_is_read_as_tarfile_reads_it(monkeypatch, chunk, form):
    monkeypatch.setattr(archive, "CHUNK", chunk)
    dice, out, ordinary = random.Random(2), io.BytesIO(), 0
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for _ in range(400):
            info = some_info(dice)
            info.pax_headers = info.pax_headers if form == tarfile.PAX_FORMAT else {}
            info.mtime = max(info.mtime, 0)
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    facts = ("name", "mode", "uid", "gid", "size", "type", "linkname", "pax_headers")
    with tarfile.open(fileobj=io.BytesIO(out.getvalue())) as tar:
        wanted = [[getattr(member, fact) for fact in facts] for member in tar]
    stream = archive._Stream(io.BytesIO(out.getvalue()))
    tar, found = tarfile.TarFile(fileobj=stream, encoding="utf-8", errors="surrogateescape"), []
    while True:
        member = archive._plain_member(tar, stream)
        ordinary += member is not None
        member = member or tar.next()
        if member is None:
            break
        stream.headers = 0
        found.append([getattr(member, fact) for fact in facts])
    assert found == wanted
    assert ordinary > 50 or chunk < 1536
