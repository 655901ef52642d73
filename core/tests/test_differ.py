"""The naive differ: what it lists, and what it must not list."""

import os
import shutil
import stat
import subprocess
import threading
import time

import pytest

from transom.contract.storage import Change, ChangeKind
from transom.services.differ import compare

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners, devices, trusted.* attributes")

ADDED, MODIFIED, DELETED = ChangeKind.ADDED, ChangeKind.MODIFIED, ChangeKind.DELETED


@pytest.fixture
def trees(tmp_path):
    """A lower tree and an upper one that is its copy, times and links included."""
    lower = tmp_path / "lower"
    (lower / "d" / "deep" / "er").mkdir(parents=True)
    (lower / "d" / "deep" / "er" / "file").write_text("content")
    (lower / "d" / "file").write_text("content")
    (lower / "file").write_text("content")
    os.link(lower / "file", lower / "twin")
    os.symlink("file", lower / "link")
    os.mkfifo(lower / "fifo")
    os.mknod(lower / "dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    subprocess.run(["cp", "-a", lower, tmp_path / "upper"], check=True)
    return lower, tmp_path / "upper"


def changes(trees):
    lower, upper = trees
    return [
        (str(change.kind), os.fsdecode(change.path) + ("!" if change.opaque else ""))
        for change in compare(lower=str(lower), upper=str(upper))
    ]


def test_equal_trees_have_no_changes(trees):
    assert changes(trees) == []


def test_without_a_lower_tree_everything_is_added(trees):
    _, upper = trees
    found = list(compare(lower=None, upper=str(upper)))
    paths = "d d/deep d/deep/er d/deep/er/file d/file dev fifo file link twin".split()
    assert found == [Change(path=path.encode(), kind=ADDED) for path in paths]


def test_an_empty_tree_has_no_additions(tmp_path):
    assert list(compare(lower=None, upper=str(tmp_path))) == []


def test_additions_and_deletions_leave_their_directory_unlisted(trees):
    _, upper = trees
    (upper / "d" / "new").mkdir()
    (upper / "d" / "new" / "file").write_text("x")
    os.unlink(upper / "d" / "file")
    assert changes(trees) == [("D", "d/file"), ("A", "d/new"), ("A", "d/new/file")]


def test_nothing_is_listed_below_a_deleted_directory(trees):
    shutil.rmtree(trees[1] / "d")
    assert changes(trees) == [("D", "d")]


def rewrite(path):
    """Change a byte and put size and mtime back."""
    before = os.stat(path)
    with open(path, "r+b") as file:
        file.write(b"C")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CAPABILITY = bytes.fromhex("0100000200040000" + "00" * 12)


@pytest.mark.parametrize(
    ("what", "change"),
    {
        "content": lambda path: path.write_text("longer content"),
        "content of equal size and mtime": rewrite,
        "mode": lambda path: os.chmod(path, 0o4755),
        "user": lambda path: os.chown(path, 1000, -1),
        "group": lambda path: os.chown(path, -1, 1000),
        "mtime by one ns": lambda path: os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 1)),
        "user attribute": lambda path: os.setxattr(path, "user.a", b"1"),
        "trusted attribute": lambda path: os.setxattr(path, "trusted.a", b"1"),
        "file capability": lambda path: os.setxattr(path, "security.capability", CAPABILITY),
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_change_in_one_respect_alone_is_seen(trees, what, change):
    change(trees[1] / "d" / "file")
    assert changes(trees) == [("C", "d/file")], what


@pytest.mark.parametrize("attribute", ["user.a", "trusted.a"])
def test_an_attribute_that_changes_or_goes_is_seen(trees, attribute):
    for tree, value in zip(trees, (b"1", b"2"), strict=True):
        before = os.stat(tree / "d" / "file")
        os.setxattr(tree / "d" / "file", attribute, value)
        os.utime(tree / "d" / "file", ns=(0, before.st_mtime_ns))
    assert changes(trees) == [("C", "d/file")]
    os.removexattr(trees[1] / "d" / "file", attribute)
    assert changes(trees) == [("C", "d/file")]


def test_a_change_within_the_same_tick_is_seen(trees):
    lower, upper = trees
    for byte in b"abcdefgh":
        for tree, data in ((lower, b"same"), (upper, b"sam" + bytes([byte]))):
            (tree / "file").write_bytes(data)
        now = time.time_ns()
        for tree in trees:
            os.utime(tree / "file", ns=(now, now))
        expected = [] if byte == ord("e") else [("C", "file"), ("C", "twin")]
        assert changes(trees) == expected


@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.chmod(path, 0o700),
        lambda path: os.chown(path, 7, 7),
        lambda path: os.setxattr(path, "user.a", b"1"),
        lambda path: os.utime(path, (1, 1)),
    ],
    ids=["mode", "owner", "attribute", "mtime"],
)
def test_a_directory_is_listed_when_its_own_metadata_changed(trees, change):
    change(trees[1] / "d" / "deep")
    assert changes(trees) == [("C", "d/deep")]


def test_a_directory_is_listed_for_its_mode_beside_what_changed_in_it(trees):
    (trees[1] / "d" / "new").write_text("x")
    os.chmod(trees[1] / "d", 0o700)
    assert changes(trees) == [("C", "d"), ("A", "d/new")]


def test_a_file_replaced_by_rename_leaves_its_directory_unlisted(trees):
    _, upper = trees
    (upper / "d" / "tmp").write_text("CONTENT")
    os.rename(upper / "d" / "tmp", upper / "d" / "file")
    assert changes(trees) == [("C", "d/file")]


def test_the_root_is_listed_for_its_mode_and_never_for_its_mtime(trees):
    os.utime(trees[1], (1, 1))
    assert changes(trees) == []
    os.chmod(trees[1], 0o700)
    assert changes(trees) == [("C", "")]


def test_a_file_in_place_of_a_directory_is_modified(trees):
    shutil.rmtree(trees[1] / "d")
    (trees[1] / "d").write_text("file")
    assert changes(trees) == [("C", "d")]


def test_a_directory_in_place_of_a_file_is_modified_and_opaque(trees):
    os.unlink(trees[1] / "file")
    (trees[1] / "file").mkdir()
    (trees[1] / "file" / "new").write_text("x")
    assert changes(trees) == [("C", "file!"), ("A", "file/new")]


@pytest.mark.parametrize("old", ["link", "fifo", "dev", "d/file"])
@pytest.mark.parametrize("new", ["symlink", "fifo", "device", "file"])
def test_a_path_that_changes_its_type_or_target_is_modified(trees, old, new):
    path = trees[1] / old
    before = os.lstat(path)
    os.unlink(path)
    if new == "symlink":
        os.symlink("elif", path)
    elif new == "fifo":
        os.mkfifo(path, 0o600)
    elif new == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    else:
        path.write_text("CONTENT")
    os.utime(path, ns=(0, before.st_mtime_ns), follow_symlinks=False)
    if old == "fifo" and new == "fifo":
        os.chmod(path, stat.S_IMODE(before.st_mode))
        assert changes(trees) == []
    else:
        assert changes(trees) == [("C", old)]


def test_a_new_link_to_an_old_file_lists_both_names(trees):
    os.link(trees[1] / "d" / "file", trees[1] / "d" / "hard")
    assert changes(trees) == [("C", "d/file"), ("A", "d/hard")]


def test_names_that_part_are_listed_once_apart(trees):
    _, upper = trees
    subprocess.run(["cp", "-a", upper / "twin", upper / "copy"], check=True)
    os.rename(upper / "copy", upper / "twin")
    assert changes(trees) == [("C", "twin")]


def test_a_deleted_name_of_a_file_leaves_the_other_unlisted(trees):
    os.unlink(trees[1] / "twin")
    assert changes(trees) == [("D", "twin")]


def test_names_that_swap_their_partners_are_listed(tmp_path):
    for tree, pairs in (("lower", ("ab", "cd")), ("upper", ("ac", "bd"))):
        (tmp_path / tree).mkdir()
        for first, second in pairs:
            (tmp_path / tree / first).write_text("same")
            os.utime(tmp_path / tree / first, (1, 1))
            os.link(tmp_path / tree / first, tmp_path / tree / second)
    assert changes((tmp_path / "lower", tmp_path / "upper")) == [("C", name) for name in "abcd"]


def test_paths_are_sorted_bytewise_and_raw(trees):
    _, upper = trees
    names = [b"d-e", b"\xff", b"new\nline", "é".encode(), b"d/x"]
    for name in names:
        with open(os.path.join(os.fsencode(upper), name), "w"):
            pass
    assert [change.path for change in compare(lower=str(trees[0]), upper=str(upper))] == sorted(names)


def test_an_overlay_is_compared_without_reading_what_it_did_not_copy_up(trees, tmp_path):
    lower, _ = trees
    for name in ("diff", "work", "merged", "view"):
        (tmp_path / name).mkdir()
    (lower / "big").write_bytes(b"x" * 5_000_000)
    upper_options = f"lowerdir={lower},upperdir={tmp_path}/diff,workdir={tmp_path}/work"
    mounted = []
    try:
        for target, options in (("merged", upper_options), ("view", f"lowerdir={lower}:{tmp_path}/upper")):
            subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, tmp_path / target], check=True)
            mounted.append(tmp_path / target)
        view, merged = tmp_path / "view", tmp_path / "merged"
        assert changes((view, merged)) == []
        before = int(_read_io("rchar"))
        assert changes((view, merged)) == []
        assert int(_read_io("rchar")) - before < 1_000_000
        rewrite(merged / "d" / "file")
        os.rename(merged / "file", merged / "d" / "moved")
        assert changes((view, merged)) == [("C", "d/file"), ("A", "d/moved"), ("D", "file")]
    finally:
        for target in reversed(mounted):
            subprocess.run(["umount", target], check=True)


def _read_io(field):
    with open("/proc/self/io") as file:
        return dict(line.split(": ") for line in file.read().splitlines())[field]


def test_a_link_in_place_of_a_directory_is_not_followed(trees, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("x")
    shutil.rmtree(trees[1] / "d")
    os.symlink(outside, trees[1] / "d")
    assert changes(trees) == [("C", "d")]


def test_a_tree_that_changes_meanwhile_is_compared_as_it_is_met(trees):
    _, upper = trees
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            os.rename(upper / "d" / "deep", upper / "away")
            os.rename(upper / "twin", upper / "twin2")
            os.rename(upper / "away", upper / "d" / "deep")
            os.rename(upper / "twin2", upper / "twin")

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(300):
            assert {"dev", "fifo", "link"}.isdisjoint(path for _, path in changes(trees))
    finally:
        stop.set()
        thread.join()


def test_no_descriptor_is_left_open(trees):
    before = len(os.listdir("/proc/self/fd"))
    rewrite(trees[1] / "file")
    assert changes(trees)
    with pytest.raises(FileNotFoundError):
        compare(lower="/no/such/tree", upper=str(trees[1]))
    assert len(os.listdir("/proc/self/fd")) == before
