"""``transom cp``."""

import io
import os
import stat
import tarfile

import pytest


@pytest.fixture
def tree(tmp_path):
    """A directory ``d`` with a file, a link to it, a hard link, a sparse file and a directory with a file."""
    root = tmp_path / "d"
    (root / "sub").mkdir(parents=True)
    (root / "f").write_text("one\n")
    (root / "sub/g").write_text("two\n")
    (root / "l").symlink_to("f")
    os.link(root / "f", root / "hard")
    with open(root / "sparse", "wb") as sparse:
        sparse.truncate(1 << 20)
        sparse.seek(500_000)
        sparse.write(b"middle")
    (root / "exec").write_text("#!/bin/sh\n")
    (root / "exec").chmod(0o4750)
    os.setxattr(root / "f", "user.note", b"\xff\x00kept")
    os.utime(root / "f", ns=(0, 1_234_567_890_123_456_789))
    return root


@pytest.fixture(params=["running", "paused", "stopped", "created"])
def box(transom, request):
    """A container in each of its states; ``look`` shows what is in it by way of a tar."""
    if request.param == "created":
        return transom("create", "--name", "box", "--network", "none", "busybox", "sleep", "1000")
    name = transom.detached("--name", "box")
    if request.param == "stopped":
        transom("stop", "-t", "0", name)
    if request.param == "paused":
        transom("pause", name)
    return name


def members(transom, place):
    """Return what ``cp PLACE -`` has, by name."""
    process = transom.popen("cp", place, "-")
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"")
    with tarfile.open(fileobj=io.BytesIO(out)) as tar:
        return {m.name: (tar.extractfile(m).read() if m.isreg() else m) for m in tar.getmembers()}


def test_a_tree_goes_in_and_comes_out_the_same(transom, box, tree, tmp_path):
    transom("cp", "-a", tree, "box:/tmp")
    transom("cp", "-a", "box:/tmp/d", tmp_path / "back")
    back = tmp_path / "back"
    assert sorted(os.listdir(back)) == ["exec", "f", "hard", "l", "sparse", "sub"]
    assert (back / "sub/g").read_text() == "two\n"
    assert os.readlink(back / "l") == "f"
    assert (back / "f").stat().st_ino == (back / "hard").stat().st_ino
    assert (back / "f").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert os.getxattr(back / "f", "user.note") == b"\xff\x00kept"
    assert (back / "sparse").read_bytes() == (tree / "sparse").read_bytes()
    assert stat.S_IMODE((back / "exec").stat().st_mode) == 0o4750


def test_where_a_copy_goes(transom, tree, tmp_path):
    transom.detached("--name", "box")
    transom("cp", tree, "box:/tmp")  # into a directory that is there
    transom("cp", tree, "box:/new")  # a directory that is not there becomes the copy
    transom("cp", f"{tree}/.", "box:/new2/")  # the contents, into one that is made
    transom("cp", f"{tree}/.", "box:/root")  # the contents, into one that is there
    transom("cp", tree / "f", "box:/root/f2")
    transom("cp", tree / "sub/g", "box:/root/f2")  # a file over a file
    transom("cp", tree / "f", "box:home/")  # no slash before: from the root
    assert transom("exec", "box", "ls", "/tmp").split() == ["d"]
    for place in ("/new", "/new2"):
        assert transom("exec", "box", "ls", place).split() == ["exec", "f", "hard", "l", "sparse", "sub"]
    assert transom("exec", "box", "cat", "/root/sub/g", "/root/f2", "/home/f") == "two\ntwo\none"

    transom("cp", "box:/new/sub", tmp_path / "sub")
    transom("cp", "box:/new/sub", tmp_path / "sub")
    transom("cp", "box:/new/f", f"{tmp_path}/sub/")
    assert sorted(os.listdir(tmp_path / "sub")) == ["f", "g", "sub"]


def test_copying_into_a_directory_leaves_its_own_attributes_alone(transom, tree):
    transom.detached("--name", "box")
    transom("cp", tree / "f", "box:/tmp")
    transom("cp", f"{tree}/.", "box:/tmp")
    assert transom("exec", "box", "stat", "-c", "%a", "/tmp") == "1777"


def test_owners_are_roots_unless_all_is_kept(transom, tree):
    os.chown(tree / "f", 123, 456)
    transom.detached("--name", "box")
    transom("cp", tree / "f", "box:/plain")
    transom("cp", "-a", tree / "f", "box:/kept")
    assert transom("exec", "box", "stat", "-c", "%u:%g", "/plain", "/kept") == "0:0\n123:456"


def test_links_are_copied_as_links_unless_followed(transom, tree, tmp_path):
    transom.detached("--name", "box")
    transom("cp", tree, "box:/d")
    transom("cp", "box:/d/l", tmp_path / "link")
    transom("cp", "-L", "box:/d/l", tmp_path / "file")
    assert os.readlink(tmp_path / "link") == "f"
    assert (tmp_path / "file").read_text() == "one\n"
    transom("cp", "-L", tree / "l", "box:/tmp/")
    assert transom("exec", "box", "stat", "-c", "%F", "/tmp/l") == "regular file"


def test_a_tar_goes_to_standard_output_and_comes_from_standard_input(transom, box, tree):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.add(tree, "d")
    assert transom("cp", "-", "box:/home", input=packed.getvalue()) == ""
    found = members(transom, "box:/home/d/")
    assert found["d/f"] == b"one\n"
    assert found["d/sub/g"] == b"two\n"
    assert members(transom, "box:/home/d/sub/g") == {"g": b"two\n"}


def test_no_link_leads_out_of_the_container(transom, box, tree, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, target in (
            ("abs", str(outside)),
            ("up", "../../../../../.." + str(outside)),
            ("passwd", "/etc/passwd"),
        ):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
    transom("cp", "-", "box:/tmp", input=packed.getvalue())
    for name in ("abs", "up"):
        assert transom.fails("cp", tree / "f", f"box:/tmp/{name}/x", code=125) == (
            f"no such directory: /tmp/{name} in container box; make it first"
        )
    assert members(transom, "box:/../../../etc/passwd")["passwd"].startswith(b"root:x:0:0:root:/root:/bin/sh\nnobody")
    transom("cp", "-L", "box:/tmp/passwd", tmp_path / "passwd")
    assert b"nobody:x:65534" in (tmp_path / "passwd").read_bytes()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("abs/new"))
    packed.seek(0)
    transom.call("cp", "-", "box:/tmp", input=packed.getvalue())
    assert os.listdir(outside) == []


def test_volumes_are_where_the_container_has_them(transom, tree):
    words = ["-v", "kept:/deep/data", "-v", "fixed:/fixed:ro"]
    name = transom("create", "--name", "box", "--network", "none", *words, "busybox", "sleep", "1000")
    transom("cp", tree / "f", "box:/deep/data/")
    assert (transom.data / "transom/volumes/kept/_data/f").read_text() == "one\n"
    for _ in range(2):
        assert members(transom, "box:/deep/data/f") == {"f": b"one\n"}
        assert transom.fails("cp", tree / "f", "box:/fixed", code=125) == (
            "mounted volume /fixed of container box is marked read-only"
        )
        transom("start", name)


def test_a_read_only_root_takes_nothing(transom, tree):
    transom("create", "--name", "box", "--read-only", "--network", "none", "busybox", "sleep", "1000")
    assert transom.fails("cp", tree / "f", "box:/tmp", code=125) == "container box rootfs is marked read-only"


def test_cp_says_what_is_wrong(transom, tree):
    transom.detached("--name", "box")
    transom("exec", "box", "sh", "-c", "mkdir /tmp/f; echo x > /tmp/sub")
    for source, target, error in (
        (tree, tree, "must specify at least one container source: write CONTAINER:PATH for one of the two"),
        ("a:/x", "b:/y", "copying between containers is not supported: copy to the host first, or pipe one cp into"
                         " another"),
        ("box:", tree, "'box:': expected CONTAINER:PATH, or a path of the host, ./ before it where it has a colon"),
        ("", "box:/", "source can not be empty: write CONTAINER:PATH, a path of the host, or -"),
        ("box:/etc", "", "destination can not be empty: write CONTAINER:PATH, a path of the host, or -"),
        ("nosuch:/x", tree, "no such container: nosuch; `transom ps -a` lists those here"),
        ("box:/nope", tree, "could not find the file /nope in container box"),
        (f"{tree}/nope", "box:/", f"could not find the file {tree}/nope on this host"),
        (f"{tree}/f/", "box:/", f"not a directory: {tree}/f/ on this host"),
        (f"{tree}/f", "box:/nodir/", "no such directory: /nodir/ in container box; make it first, or leave out the"
                                     " slash"),
        (f"{tree}/f", "box:/no/dir", "no such directory: /no in container box; make it first"),
        (f"{tree}/f", "box:/tmp/sub/", "not a directory: /tmp/sub/ in container box"),
        (f"{tree}/f", "box:/tmp/sub/x", "not a directory: /tmp/sub in container box"),
        (f"{tree}/f", "box:/tmp", "cannot overwrite directory f in container box with a non-directory"),
        (tree, "box:/tmp/sub", f"cannot copy directory {tree} over the file /tmp/sub in container box"),
        (f"{tree}/.", "box:/tmp", "cannot overwrite directory f in container box with a non-directory"),
        (f"{tree}/sub", "box:/tmp", "cannot overwrite non-directory sub in container box with a directory"),
        ("-", "box:/tmp/sub", "no such directory: /tmp/sub in container box; make it first"),
        ("-", "box:/tmp", "the tar is damaged or none: empty file"),
    ):  # fmt: skip
        assert transom.fails("cp", source, target, code=125) == error, (source, target)
    assert transom.fails("cp", "-", "box:/tmp", input=os.urandom(5000), code=125).startswith(
        "the tar is damaged or none: "
    )


def test_a_copy_that_does_not_fit_says_so(transom, tmp_path):
    transom.detached("--name", "box", "--tmpfs", "/small:size=64k")
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20))
    assert transom.fails("cp", big, "box:/small/", code=125) == (
        f"engine: copying {big} to box:/small/ failed: No space left on device"
    )


def test_a_large_file_passes_whole(transom, tmp_path):
    transom.detached("--name", "box")
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 20)
    transom("cp", big, "box:/tmp/")
    transom("cp", "box:/tmp/big", tmp_path / "back")
    assert big.read_bytes() == (tmp_path / "back").read_bytes()


def test_what_the_kernel_shows_in_a_container_is_not_copied(transom, box, tmp_path):
    transom("cp", "box:/", tmp_path / "all")
    assert "bin" in os.listdir(tmp_path / "all")
    for place in ("proc", "sys"):
        assert os.listdir(tmp_path / "all" / place) == []


def test_a_tmpfs_of_the_users_is_copied(transom, tree):
    transom.detached("--name", "box", "--tmpfs", "/dev/shm", "--tmpfs", "/here")
    transom("cp", tree / "f", "box:/here/")
    assert transom("exec", "box", "cat", "/here/f") == "one"
    assert members(transom, "box:/here/f") == {"f": b"one\n"}
