"""Unpacking without a mount gives the tree that unpacking through the mount gives, whatever tar and parents are."""

import io
import os
import stat
import tarfile
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.contract.storage import StorageCapability
from transom.errors import ConfigError
from transom.services.archive import extract
from transom_conformance.storage import Layers, put, scribble
from transom_conformance.suite import World

FILE, DIR, LINK, SYMLINK = tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE
FIFO, CHAR = tarfile.FIFOTYPE, tarfile.CHRTYPE


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    world = World(path=tmp_path_factory.mktemp("apply"), kind="storage", driver="overlay2", options={})
    layers = Layers(world)
    yield layers
    layers.remove_all()
    layers.close()
    world.clean_up()


def entry(name, kind=FILE, data=b"", link="", mode=0o644, mtime=7, **headers):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode, info.mtime = kind, link, len(data), mode, mtime
    if kind == CHAR:
        info.devmajor, info.devminor = 12, 34
    info.pax_headers = headers
    return info, data


def tar_of(entries):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def through_the_mount(layers, key, tar):
    layer = layers.snapshots.stat(key)
    with layers.snapshots.claim(key):
        return layers.snapshots._mounted(layer, lambda upper, _lower: extract(stream=io.BytesIO(tar), root=upper))


def natively(layers, key, tar):
    assert StorageCapability.APPLY in layers.driver.capabilities
    return layers.snapshots.apply(key, io.BytesIO(tar))


def attempt(act, layers, key, tars):
    """Unpack the tars; return the sizes, or the words in which one is refused: what is there then is of no use."""
    try:
        return [act(layers, key, tar) for tar in tars], True
    except ConfigError as error:
        return str(error), False


def a_moment():
    """Return a time after all that was done before, and before all that is done next, by a clock of 10 ms at worst."""
    before = time.time_ns()
    time.sleep(0.03)
    return before + 15_000_000


def seen(layers, key, begin):
    """Describe the layer; a time since the beginning is one that no tar gave."""
    tree = layers.tree(key)
    return {path: msgspec.structs.replace(n, mtime=0) if n.mtime >= begin else n for path, n in tree.items()}


def unpacked_both_ways(layers, parent, tars):
    """Unpack the tars, one after the other, into two layers on one parent; return results and trees, and clean up."""
    begin = a_moment()
    try:
        for key, act in (("native", natively), ("mounted", through_the_mount)):
            layers.snapshots.prepare(key, parent)
            result, taken = attempt(act, layers, key, tars)
            yield result, seen(layers, key, begin) if taken else None
        if not taken:
            yield None, None
            return
        layers.snapshots.prepare("again", parent)
        layers.snapshots.apply("again", io.BytesIO(layers.diff("native")))
        yield None, seen(layers, "again", begin)
    finally:
        for key in ("native", "mounted", "again"):
            layers.snapshots.remove(key)


NAMES = st.sampled_from(["a", "b", "c", "d-e", "f.g"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
MODES = st.sampled_from([0o600, 0o755, 0o4711, 0o1777])
ENTRIES = st.lists(
    st.one_of(
        st.builds(entry, PATHS, data=st.sampled_from([b"", b"x", b"y" * 700]), mode=MODES),
        st.builds(entry, PATHS, st.sampled_from([DIR, DIR, FIFO, CHAR]), mode=MODES),
        st.builds(entry, PATHS, st.just(DIR), mtime=st.just(99), **{"SCHILY.xattr.user.x": st.just("v")}),
        st.builds(entry, PATHS, st.just(SYMLINK), link=st.one_of(PATHS, PATHS.map("/".__add__), st.just("../a"))),
        st.builds(entry, PATHS, st.just(LINK), link=PATHS),
        st.builds(lambda path: entry(os.path.join(os.path.dirname(path), ".wh." + os.path.basename(path))), PATHS),
        st.builds(lambda path: entry(path + "/.wh..wh..opq"), PATHS),
        st.just(entry(".wh..wh..opq")),
        st.just(entry(".", DIR, mode=0o711)),
    ),
    max_size=10,
)
SEEDS = st.integers(0, 10**6)


@settings(max_examples=60, deadline=None)
@given(lower=SEEDS, upper=SEEDS, tars=st.lists(ENTRIES, min_size=1, max_size=2))
def test_a_tar_unpacked_without_the_mount_gives_the_tree_that_the_mount_gives(layers, lower, upper, tars):
    layers.committed("lower", None, lambda top: scribble(top, lower, steps=25))
    layers.committed("upper", "lower", lambda top: scribble(top, upper, steps=20))
    parents = layers.tree("upper")
    try:
        packed = [tar_of(entries) for entries in tars]
        (native, tree), (mounted, wanted), (_, again) = unpacked_both_ways(layers, "upper", packed)
        assert native == mounted
        assert tree == wanted
        assert again == wanted
        assert layers.tree("upper") == parents
    finally:
        layers.snapshots.remove("upper")
        layers.snapshots.remove("lower")


def some_parents(top):
    put(etc__passwd="lower", d__e__f="1", d__g="2", file="content")(top)
    (top / "private").mkdir(mode=0o700)
    os.chown(top / "private", 5, 6)
    os.setxattr(top / "private", "user.kept", b"v")
    put(private__old="1")(top)
    os.utime(top / "private", ns=(1, 987_654_321))
    (top / "link").symlink_to("/etc")
    (top / "up").symlink_to("../../../../../../etc")


CASES = {
    "through an absolute symlink of the parent": [entry("link/passwd", data=b"inside")],
    "through a symlink of the parent that climbs": [entry("up/passwd", data=b"inside")],
    "a whiteout through a symlink of the parent": [entry("link/.wh.passwd")],
    "an opaque mark through a symlink of the parent": [entry("link/.wh..wh..opq")],
    "a hard link through a symlink of the parent": [entry("p", LINK, link="link/passwd"), entry("p", data=b"x")],
    "a hard link to a symlink of the parent": [entry("p", LINK, link="link")],
    "a hard link to a file of the parent": [entry("private/p", LINK, link="d/e/f"), entry("q", LINK, link="d/e/f")],
    "a hard link to a directory of the parent": [entry("p", LINK, link="d")],
    "a hard link of a directory of the parent to itself": [entry("d", LINK, link="d")],
    "a hard link to what a whiteout deleted": [entry(".wh.file"), entry("p", LINK, link="file")],
    "a hard link over its own directory": [entry("etc", LINK, link="etc/passwd")],
    "a directory that only the parent has": [entry("private/new", data=b"x")],
    "a directory over a file": [entry("file", DIR), entry("file/new")],
    "a file over a directory": [entry("d", data=b"x")],
    "a file over a directory, and a directory again": [entry("d", data=b"x"), entry("d", DIR), entry("d/e/new")],
    "a whiteout, and the directory again": [entry(".wh.d"), entry("d/new", data=b"x")],
    "the directory, and a whiteout": [entry("d/e/new", data=b"x"), entry(".wh.d")],
    "an opaque mark first": [entry("d/.wh..wh..opq"), entry("d/e/new", data=b"x")],
    "an opaque mark last": [entry("d/e/new", data=b"x"), entry("d/.wh..wh..opq")],
    "an opaque root": [entry("etc", DIR), entry("etc/new"), entry(".wh..wh..opq")],
    "a whiteout of nothing": [entry(".wh.none"), entry("d/.wh.none"), entry("none/.wh.none")],
    "a symlink over a directory looked at before": [
        entry("d/.wh.none"),
        entry("p", LINK, link="d/g"),
        entry("d/e/.wh.none"),
        entry("d", SYMLINK, link="etc"),
        entry("d/passwd", data=b"x"),
    ],
    "a symlink over a directory only looked at": [
        entry("d/e/.wh.none"),
        entry("d", SYMLINK, link="etc"),
        entry("d/e/new", data=b"x"),
    ],
    "a file over a directory only looked at, and below it": [entry("d/.wh.none"), entry("d"), entry("d/e/new")],
    "a symlink over a directory, and through it": [entry("d", SYMLINK, link="etc"), entry("d/passwd", data=b"x")],
}


@pytest.mark.parametrize("case", CASES)
def test_a_tar_that_leans_on_the_parent_is_unpacked_as_through_the_mount(layers, case):
    layers.committed("parent", None, some_parents)
    try:
        tar = tar_of(CASES[case])
        for tars in ([tar], [tar, tar]):
            (native, tree), (mounted, wanted), (_, again) = unpacked_both_ways(layers, "parent", tars)
            assert (native, tree) == (mounted, wanted)
            assert again == wanted
    finally:
        layers.snapshots.remove("parent")


def test_the_upper_directory_has_the_marks_of_overlay(layers):
    layers.committed("parent", None, some_parents)
    layers.active("child", "parent")
    upper = layers.driver.root / layers.snapshots.stat("child").id / "diff"
    try:
        tar = tar_of([entry(".wh.file"), entry("d/.wh..wh..opq"), entry("private/new"), entry("etc", data=b"x")])
        assert natively(layers, "child", tar) == 1
        whiteout = os.lstat(upper / "file")
        assert stat.S_ISCHR(whiteout.st_mode)
        assert whiteout.st_rdev == 0
        assert os.getxattr(upper / "d", "trusted.overlay.opaque") == b"y"
        assert os.listdir(upper / "d") == []
        private = os.stat(upper / "private")
        assert (stat.S_IMODE(private.st_mode), private.st_uid, private.st_gid) == (0o700, 5, 6)
        assert os.getxattr(upper / "private", "user.kept") == b"v"
        assert sorted(os.listdir(upper)) == ["d", "etc", "file", "private"]
        assert os.listdir(upper.parent / "work") == []
    finally:
        layers.snapshots.remove("child")
        layers.snapshots.remove("parent")


def test_more_parents_than_are_held_open_are_looked_through(layers):
    top = None
    for n in range(130):
        top = layers.committed(f"n{n}", top, put(**{f"d__f{n}": str(n)}))
    before = len(os.listdir("/proc/self/fd"))
    layers.active("child", top)
    natively(layers, "child", tar_of([entry("p", LINK, link="d/f0"), entry("d/.wh.f1"), entry("d/.wh..wh..opq")]))
    assert len(os.listdir("/proc/self/fd")) == before
    assert sorted(layers.tree("child")) == [b".", b"d", b"p"]
    layers.snapshots.remove("child")
    for n in reversed(range(130)):
        layers.snapshots.remove(f"n{n}")
