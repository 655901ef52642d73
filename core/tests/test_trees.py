"""Copying, removing and measuring trees, on the real file system."""

import errno
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.contract.storage import Usage
from transom.services.mounts import mount, privately
from transom.services.trees import copy_attributes, copy_tree, measure_tree, remove_tree

DEEP = 2500  # names, so the path is longer than PATH_MAX, the descriptor limit and the recursion limit


def describe(top):
    """Everything about a tree that a copy must keep, but atime and ctime."""
    first, seen = {}, {}
    for directory, names, files in os.walk(os.fsencode(top)):
        for name in [b"", *names, *files] if directory == os.fsencode(top) else [*names, *files]:
            path = os.path.join(directory, name) if name else directory
            found = os.lstat(path)
            relative = os.path.relpath(path, os.fsencode(top))
            content = b""
            if stat.S_ISREG(found.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(found.st_mode):
                content = os.readlink(path)
            attributes = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            link = None
            if not stat.S_ISDIR(found.st_mode):
                link = first.setdefault(found.st_ino, relative)
            owner = (found.st_uid, found.st_gid)
            seen[relative] = (found.st_mode, owner, found.st_mtime_ns, found.st_rdev, content, attributes, link)
    # os.walk comes in an arbitrary order: name each link group by its members.
    groups = {}
    for path, (*_, link) in seen.items():
        groups.setdefault(link, set()).add(path)
    return {path: (*facts, link and frozenset(groups[link])) for path, (*facts, link) in seen.items()}


@pytest.fixture
def deep(tmp_path):
    """A tree of DEEP levels, with a file at the bottom; removed even where the code under test fails."""
    top = tmp_path / "deep"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    yield top
    subprocess.run(["rm", "-rf", top], check=True)


def test_a_copy_keeps_everything(tmp_path):
    source = tmp_path / "source"
    (source / "etc" / "empty").mkdir(parents=True)
    (source / "etc" / "hosts").write_text("127.0.0.1\n")
    os.link(source / "etc" / "hosts", source / "hosts")
    os.link(source / "etc" / "hosts", source / "etc" / "empty" / "third")
    (source / "link").symlink_to("/does/not/exist")
    os.lchown(source / "link", 2**31, 2**32 - 2)
    os.utime(source / "link", ns=(5, 123_456_789_012_345_678), follow_symlinks=False)
    os.mkfifo(source / "fifo")
    os.mknod(source / "device", stat.S_IFCHR | 0o640, os.makedev(4095, 1048575))
    os.mknod(source / "whiteout", stat.S_IFCHR, 0)
    os.mknod(source / "disk", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(source / "socket"))
    listener.close()
    (source / "suid").write_bytes(b"\x7fELF")
    os.chown(source / "suid", 65536, 1)
    os.chmod(source / "suid", 0o6755)
    os.setxattr(source / "suid", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.setxattr(source / "suid", "user.note", b"kept\0too")
    os.setxattr(source / "link", "trusted.note", b"on a link", follow_symlinks=False)
    os.setxattr(source / "etc", "trusted.note", b"on a directory")
    (source / os.fsdecode(b"not\xffutf8\nat all")).write_text("x")
    (source / ".wh.literal").write_text("")
    (source / ("n" * 255)).write_text("long")
    os.utime(source / "etc" / "hosts", ns=(0, -1_000_000_001))
    os.utime(source / "suid", ns=(0, 4_102_444_800_000_000_007))
    os.chmod(source / "etc", 0o1705)
    os.utime(source / "etc", ns=(0, 1_000_000_007))
    os.utime(source, ns=(0, 77))
    copy_tree(source, tmp_path / "copy")
    assert describe(tmp_path / "copy") == describe(source)
    assert os.stat(tmp_path / "copy" / "hosts").st_nlink == 3
    assert len({os.stat(top / "hosts").st_ino for top in (source, tmp_path / "copy")}) == 2


def test_a_copy_leaves_out_what_overlay_keeps_for_itself(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "target").mkdir()
    os.setxattr(tmp_path / "source", "trusted.overlay.opaque", b"y")
    os.setxattr(tmp_path / "source", "user.kept", b"1")
    copy_attributes(str(tmp_path / "source"), str(tmp_path / "target"))
    assert os.listxattr(tmp_path / "target") == ["user.kept"]


def test_a_copy_keeps_holes(tmp_path):
    (tmp_path / "source").mkdir()
    sparse = tmp_path / "source" / "sparse"
    with open(sparse, "wb") as file:
        file.write(b"head")
        file.seek(512 << 20)
        file.write(b"middle")
        file.truncate(1 << 30)
    copy_tree(tmp_path / "source", tmp_path / "copy")
    copy = tmp_path / "copy" / "sparse"
    assert copy.stat().st_size == 1 << 30
    assert copy.stat().st_blocks <= sparse.stat().st_blocks + 16
    with open(copy, "rb") as file:
        assert file.read(4) == b"head"
        file.seek(512 << 20)
        assert file.read(8) == b"middle\0\0"


def test_a_copy_is_independent_of_its_source(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_text("old")
    copy_tree(tmp_path / "source", tmp_path / "copy")
    (tmp_path / "copy" / "file").write_text("new")
    assert (tmp_path / "source" / "file").read_text() == "old"


def test_a_copy_to_another_file_system_is_the_same(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "source" / "data").write_bytes(os.urandom(3 << 20))
    (tmp_path / "source" / "none").write_bytes(b"")
    with open(tmp_path / "source" / "hole", "wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 20)
        file.write(b"end")
    os.setxattr(tmp_path / "source" / "data", "trusted.x", b"1")

    def check():
        mount("tmpfs", str(tmp_path / "other"), "tmpfs")
        copy_tree(tmp_path / "source", tmp_path / "other" / "copy")
        assert describe(tmp_path / "other" / "copy") == describe(tmp_path / "source")

    privately(check)


def test_a_copy_to_a_file_system_without_extended_attributes_says_so(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "ramfs").mkdir()
    (tmp_path / "source" / "data").write_text("x")
    os.setxattr(tmp_path / "source" / "data", "user.x", b"1")

    def check():
        mount("ramfs", str(tmp_path / "ramfs"), "ramfs")
        with pytest.raises(OSError) as caught:
            copy_tree(tmp_path / "source", tmp_path / "ramfs" / "copy")
        assert caught.value.errno == errno.EOPNOTSUPP

    privately(check)


def test_a_very_deep_tree_is_copied_measured_and_removed(deep, tmp_path):
    copy = tmp_path / "copy"
    try:
        copy_tree(deep, copy)
        assert measure_tree(copy) == measure_tree(deep)
        assert measure_tree(copy).inodes == DEEP + 2
    finally:
        remove_tree(copy)
    assert not copy.exists()


def test_hard_links_deeper_than_a_path_can_be_stay_linked(deep, tmp_path):
    fd = os.open(deep, os.O_RDONLY)
    inner = os.dup(fd)
    for _ in range(DEEP):
        below = os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(inner)
        inner = below
    os.link("bottom", "top", src_dir_fd=inner, dst_dir_fd=fd)
    os.link("bottom", "beside", src_dir_fd=inner, dst_dir_fd=inner)
    os.close(inner)
    os.close(fd)
    try:
        copy_tree(deep, tmp_path / "copy")
        assert (tmp_path / "copy" / "top").stat().st_nlink == 3
    finally:
        remove_tree(tmp_path / "copy")


def test_few_descriptors_are_enough(deep, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 16, hard))
    try:
        copy_tree(deep, tmp_path / "copy")
        remove_tree(tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


NAMES = st.sampled_from([b"a", b"b", b"\xff", b"c.d", b"-x", b".wh.a"])
TREES = st.recursive(
    st.one_of(st.binary(max_size=40), st.sampled_from([("link", b"a"), ("link", b"/etc"), ("fifo",)])),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
).filter(lambda tree: isinstance(tree, dict))


def build(path, tree):
    os.mkdir(path)
    for name, node in tree.items():
        inner = os.path.join(path, name)
        if isinstance(node, dict):
            build(inner, node)
        elif isinstance(node, bytes):
            with open(inner, "wb") as file:
                file.write(node)
        elif node[0] == "link":
            os.symlink(node[1], inner)
        else:
            os.mkfifo(inner)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_whatever_the_tree_copy_equals_and_remove_leaves_nothing(tmp_path, tree):
    source, copy = os.fsencode(tmp_path / "source"), os.fsencode(tmp_path / "copy")
    build(source, tree)
    try:
        copy_tree(source, copy)
        assert describe(copy) == describe(source)
        assert measure_tree(copy) == measure_tree(source)
    finally:
        remove_tree(copy)
        remove_tree(source)
    assert not os.listdir(tmp_path)


def test_removing_what_is_absent_succeeds(tmp_path):
    remove_tree(tmp_path / "absent")
    remove_tree(tmp_path / "absent" / "too")


def test_removing_a_file_or_a_link_removes_just_that(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").write_text("x")
    (tmp_path / "link").symlink_to("kept")
    remove_tree(tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == ["kept"]
    remove_tree(tmp_path / "kept" / "file")
    assert os.listdir(tmp_path / "kept") == []


def test_removing_follows_no_link_out_of_the_tree(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("x")
    (tmp_path / "tree" / "d").mkdir(parents=True)
    (tmp_path / "tree" / "d" / "link").symlink_to("../../outside")
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "outside")
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == ["outside"]
    assert os.listdir(tmp_path / "outside") == ["file"]


def test_removing_never_empties_what_is_mounted_inside(tmp_path):
    place = tmp_path / "tree" / "d" / "mounted"
    place.mkdir(parents=True)

    def check():
        mount("tmpfs", str(place), "tmpfs")
        (place / "sub").mkdir()
        (place / "sub" / "precious").write_text("x")
        with pytest.raises(OSError) as caught:
            remove_tree(tmp_path / "tree")
        assert caught.value.errno == errno.EBUSY
        assert (place / "sub" / "precious").read_text() == "x"

    privately(check)
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("after", [0.001, 0.004, 0.01, 0.02])
def test_a_removal_killed_anywhere_is_finished_by_the_next(tmp_path, after):
    for n in range(40):
        inner = tmp_path / "tree" / f"d{n}" / "e"
        inner.mkdir(parents=True)
        for m in range(40):
            (inner / str(m)).touch()
    pid = os.fork()
    if pid == 0:
        remove_tree(tmp_path / "tree")
        os._exit(0)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == []


def test_measuring_agrees_with_du(tmp_path):
    shutil.copytree("/etc", tmp_path / "etc", symlinks=True, ignore_dangling_symlinks=True)
    os.link(tmp_path / "etc" / "passwd", tmp_path / "etc" / "linked")
    ours = measure_tree(tmp_path / "etc")
    du = [["du", "-s", "-B1"], ["du", "-s", "--inodes"]]
    size, inodes = (
        int(subprocess.run([*command, tmp_path / "etc"], check=True, capture_output=True).stdout.split()[0])
        for command in du
    )
    assert ours == Usage(size=size, inodes=inodes)


def test_measuring_what_is_absent_gives_nothing(tmp_path):
    assert measure_tree(tmp_path / "absent") == Usage(size=0, inodes=0)


def test_measuring_a_tree_in_use_stays_inside_it(tmp_path):
    """A directory moved upwards under the walk must not lead it out of the tree."""
    tree = tmp_path / "tree"
    inner = tree / "a" / "b" / "c"
    inner.mkdir(parents=True)
    (tmp_path / "outside").write_bytes(b"x" * (64 << 20))
    for n in range(50):
        (inner / str(n)).mkdir()
    pid = os.fork()
    if pid == 0:
        while True:
            os.rename(inner, tree / "c")
            os.rename(tree / "c", inner)
    try:
        end = time.monotonic() + 1
        while time.monotonic() < end:
            usage = measure_tree(tree)
            assert usage.size < 1 << 20
            assert 3 <= usage.inodes <= 106
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
