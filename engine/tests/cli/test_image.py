"""Images through the command: pull, import, list, tag, history, remove, prune."""

import importlib.util
import io
import os
import pty
import tarfile
import threading
from pathlib import Path

import msgspec
import pytest

from transom.services.netns import inside


def _registry_server():
    """Load the registry that the tests of pulling have."""
    path = Path(__file__).parents[1] / "images/conftest.py"
    found = importlib.util.spec_from_file_location("transom_tests_registry", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module.RegistryServer


def tar_of(**files):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def registry(empty_transom):
    """A registry inside the command's own network namespace."""
    made = []
    server = inside(empty_transom.netns, _registry_server())
    made.append(server)
    yield server
    server.close()


@pytest.fixture
def scratch(empty_transom):
    """The command with an image of one file: quick, and never unpacked."""
    empty_transom("import", "-", "app:1", input=tar_of(file=b"12345"))
    return empty_transom


def layers_of(transom):
    engine = transom.engine()
    try:
        from transom_engine.pruning import storage_drivers

        return {layer.key for name in storage_drivers(engine) for layer in engine.snapshots(name).walk()}
    finally:
        engine.close()


# Pulling


def test_pull_tells_docker_s_lines_and_ends_with_the_full_name(empty_transom, registry):
    digest = registry.add_image("team/app", "latest", layers=[tar_of(one=b"1"), tar_of(two=b"2")])
    lines = empty_transom("pull", f"{registry.domain}/team/app").splitlines()
    assert lines[:2] == ["Using default tag: latest", "latest: Pulling from team/app"]
    assert [line.split(": ")[-1] for line in lines].count("Download complete") == 2
    assert lines[-3:] == [
        f"Digest: {digest}",
        f"Status: Downloaded newer image for {registry.domain}/team/app:latest",
        f"{registry.domain}/team/app:latest",
    ]
    again = empty_transom("pull", f"{registry.domain}/team/app:latest").splitlines()
    assert again[-2] == f"Status: Image is up to date for {registry.domain}/team/app:latest"
    assert again[0] == "latest: Pulling from team/app"


def test_a_quiet_pull_prints_the_full_name_only(empty_transom, registry):
    registry.add_image("app", "1", layers=[tar_of(one=b"1")])
    assert empty_transom("pull", "-q", f"{registry.domain}/app:1") == f"{registry.domain}/app:1"


def test_pull_takes_the_platform_that_was_asked_for(empty_transom, registry):
    entries = []
    for name in ("amd64", "s390x"):
        digest = registry.add_image("app", "", layers=[tar_of(arch=name.encode())], architecture=name)
        entries.append((digest, {"os": "linux", "architecture": name}))
    registry.add_index("app", "latest", entries)
    empty_transom("pull", "-q", "--platform", "linux/s390x", f"{registry.domain}/app")
    assert empty_transom.inspect(f"{registry.domain}/app")["Architecture"] == "s390x"


def test_pull_shows_bars_on_a_terminal(empty_transom, registry):
    registry.add_image("app", "latest", layers=[tar_of(one=os.urandom(1 << 20))])
    main, side = pty.openpty()
    shown = []

    def read():
        try:
            while data := os.read(main, 65536):
                shown.append(data)
        except OSError:
            pass  # the terminal is closed

    reader = threading.Thread(target=read)
    reader.start()
    process = empty_transom.popen("pull", f"{registry.domain}/app", stdout=side, stdin=side)
    _, errors = process.communicate(timeout=60)
    os.close(side)
    reader.join(10)
    os.close(main)
    text = b"".join(shown).decode()
    assert (process.returncode, errors) == (0, b"")
    assert "Download complete" in text
    assert "Status: Downloaded newer image" in text


def test_pull_of_all_tags_is_refused(empty_transom):
    assert empty_transom.fails("pull", "-a", "app", code=125) == (
        "--all-tags is not supported: a repository may hold thousands; pull the tags you need by name"
    )


def test_pull_says_that_no_registry_is_there(empty_transom):
    text = empty_transom.fails("pull", "-q", "127.0.0.1:1/app", code=125)
    assert text == (
        "registry 127.0.0.1:1: fetch manifest 127.0.0.1:1/app:latest failed: cannot connect to 127.0.0.1:1:"
        " Connection refused; is a registry running there?"
    )


def test_run_pulls_a_missing_image_and_tells_so_on_standard_error(empty_transom, registry, busybox_tree):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        tar.add(busybox_tree, arcname=".")
    registry.add_image("busybox", "latest", layers=[out.getvalue()], config={"Cmd": ["true"], "Env": ["PATH=/bin"]})
    name = f"{registry.domain}/busybox"
    done = empty_transom.call("run", "--rm", "--network", "none", name, "echo", "hello")
    assert (done.code, done.out) == (0, "hello\n")
    lines = done.err.splitlines()
    assert lines[0] == f"Unable to find image '{name}' locally"
    assert lines[-1] == f"Status: Downloaded newer image for {name}:latest"


# Importing


def test_import_takes_a_tar_a_directory_and_standard_input(empty_transom, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_text("x")
    (tmp_path / "file.tar").write_bytes(tar_of(file=b"x"))
    ids = [empty_transom("import", tmp_path / "tree", "tree"), empty_transom("import", tmp_path / "file.tar", "tar")]
    ids.append(empty_transom("import", "-", input=tar_of(other=b"y")))
    assert all(id.startswith("sha256:") and len(id) == 71 for id in ids)
    listed = empty_transom("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines()
    assert sorted(listed) == sorted([f"tree:latest {ids[0]}", f"tar:latest {ids[1]}", f"<none>:<none> {ids[2]}"])


def test_import_applies_changes_message_and_platform(empty_transom):
    words = ["-c", "CMD echo hi", "-c", "ENV a=b", "-m", "by hand", "--platform", "linux/arm64"]
    empty_transom("import", *words, "-", "app", input=tar_of(file=b"x"))
    image = empty_transom.inspect("app")
    assert (image["Config"]["Cmd"], image["Config"]["Env"]) == (["/bin/sh", "-c", "echo hi"], ["a=b"])
    assert (image["Comment"], image["Architecture"]) == ("by hand", "arm64")


def test_import_refuses_urls_terminals_and_what_is_no_tar(empty_transom, tmp_path):
    assert empty_transom.fails("import", "http://127.0.0.1/x.tar") == (
        "cannot import http://127.0.0.1/x.tar: URLs are not fetched; download it and pipe it into `transom import -`"
    )
    main, side = pty.openpty()
    process = empty_transom.popen("import", "-", stdin=side)
    _, errors = process.communicate(timeout=30)
    os.close(main)
    os.close(side)
    assert errors.decode() == (
        "transom: standard input is a terminal: redirect a tar into it, or name a file or directory\n"
    )
    assert empty_transom.fails("import", tmp_path / "none") == (
        f"cannot read {tmp_path}/none: No such file or directory; give a tar or a directory"
    )
    assert empty_transom("images", "-aq") == ""


# Listing


def test_images_prints_docker_s_table(scratch):
    lines = scratch("images").splitlines()
    assert lines[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
    assert lines[1].split()[:2] == ["app", "1"]
    assert len(lines[1].split()[2]) == 12
    digests = scratch("images", "--digests", "--no-trunc").splitlines()
    assert digests[0].split()[:4] == ["REPOSITORY", "TAG", "DIGEST", "IMAGE"]
    assert digests[1].split()[2] == "<none>"
    assert len(scratch("images", "-q", "--no-trunc")) == 71


def test_images_shows_the_digest_that_a_registry_knows(empty_transom, registry):
    digest = registry.add_image("app", "1", layers=[tar_of(one=b"1")])
    empty_transom("pull", "-q", f"{registry.domain}/app:1")
    form = "{{.Repository}} {{.Tag}} {{.Digest}}"
    assert empty_transom("images", "--format", form) == f"{registry.domain}/app 1 {digest}"
    empty_transom("rmi", f"{registry.domain}/app:1")
    empty_transom("pull", "-q", f"{registry.domain}/app@{digest}")
    assert empty_transom("images", "--format", form) == f"{registry.domain}/app <none> {digest}"


def test_images_filters_by_name_label_and_dangling(scratch):
    scratch("import", "-c", "LABEL role=db", "-", "db", input=tar_of(data=b"1"))
    scratch("import", "-", input=tar_of(loose=b"1"))
    form = "{{.Repository}}"
    assert scratch("images", "--format", form, "app") == "app"
    assert scratch("images", "--format", form, "-f", "label=role=db") == "db"
    assert scratch("images", "--format", form, "-f", "dangling=true") == "<none>"
    assert scratch("images", "--format", form, "-f", "reference=d*") == "db"
    assert scratch.fails("images", "-f", "label") == (
        "--filter 'label': invalid format; expected KEY=VALUE, KEY being before, dangling, label, reference, since"
    )
    assert scratch.fails("images", "-f", "lable=x") == (
        "--filter 'lable=x': invalid filter 'lable' (did you mean label?);"
        " there are before, dangling, label, reference, since"
    )


def test_images_as_json_counts_containers(transom):
    transom("create", "--network", "none", "busybox", "true")
    row = msgspec.json.decode(transom("images", "--format", "json"))
    assert (row["Repository"], row["Tag"], row["Containers"]) == ("busybox", "latest", "1")


def test_history_tells_each_step(scratch):
    scratch("import", "-m", "second", "-", "app:2", input=tar_of(file=b"x" * 2000))
    assert scratch("history", "app:2").splitlines()[1].split()[-2:] == ["10.2kB", "second"]
    assert scratch("history", "--no-human", "--format", "{{.Size}} {{.CreatedBy}}", "app:2") == "10240 "
    assert scratch("history", "-q", "--no-trunc", "app:2") == scratch("images", "-q", "--no-trunc", "app:2")
    assert scratch.fails("history", "nosuch") == (
        "no such image: nosuch; `transom images` lists those here; `transom pull nosuch` fetches it"
    )


# Naming and removing


def test_tag_gives_another_name_to_the_same_image(scratch):
    assert scratch("tag", "app:1", "other/app:two") == ""
    assert scratch("images", "-q", "other/app") == scratch("images", "-q", "app")
    assert scratch.fails("tag", "nosuch", "x") == (
        "no such image: nosuch; `transom images` lists those here; `transom pull nosuch` fetches it"
    )
    assert scratch.fails("tag", "app:1", "App") == (
        "invalid image name App: repository name (App) must be lowercase; did you mean app?"
    )


def test_rmi_takes_names_first_and_the_image_with_the_last(scratch):
    scratch("tag", "app:1", "app:2")
    id = scratch("images", "-q", "--no-trunc", "app:1")
    assert scratch("rmi", "app:1") == "Untagged: app:1"
    lines = scratch("rmi", "app:2").splitlines()
    assert lines[:2] == ["Untagged: app:2", f"Deleted: {id}"]
    assert scratch("images", "-aq") == ""


def test_rmi_goes_on_over_errors(scratch):
    done = scratch.call("rmi", "nosuch", "app:1")
    assert (done.code, done.err) == (
        1, "transom: no such image: nosuch; `transom images` lists those here; `transom pull nosuch` fetches it\n"
    )  # fmt: skip
    assert done.out.startswith("Untagged: app:1\nDeleted: sha256:")


def test_rmi_removes_the_unpacked_layers_and_the_blobs_of_an_image(transom):
    transom("run", "--rm", "--network", "none", "busybox", "true")
    assert len(layers_of(transom)) == 2
    transom("rmi", "busybox")
    assert layers_of(transom) == set()
    assert os.listdir(transom.data / "transom/content/blobs/sha256") == []


def test_rmi_of_a_shared_layer_leaves_it_to_the_other_image(transom):
    transom("run", "--rm", "--network", "none", "busybox", "true")
    before = layers_of(transom)
    transom("tag", "busybox", "other")
    transom("rmi", "busybox")
    assert layers_of(transom) == before
    assert transom("run", "--rm", "--network", "none", "other", "echo", "hello") == "hello"


def test_rmi_refuses_an_image_in_use_and_force_takes_that_of_a_stopped_container(transom):
    name = transom("create", "--network", "none", "--name", "user", "busybox", "true")
    id = transom("images", "-q", "busybox")
    assert transom.fails("rmi", "busybox", code=1) == (
        f"cannot remove busybox:latest: container user uses its image {id}; remove that first (transom rm user)"
        " or force it with -f"
    )
    assert transom.fails("rmi", id, code=1) == (
        f"cannot remove image {id}: container user uses it; remove that first (transom rm user) or force it with -f"
    )
    transom("rmi", "-f", "busybox")
    assert name in layers_of(transom), "the layers of a container stay"
    assert transom("start", "-a", "user") == ""


def test_rmi_never_takes_the_image_of_a_running_container(transom):
    transom.detached("--name", "user")
    id = transom("images", "-q", "busybox")
    assert transom.fails("rmi", "-f", id, code=1) == (
        f"cannot remove image {id}: running container user uses it; stop it first (transom stop user)"
    )


def test_image_prune_takes_dangling_images_and_all_takes_unused_ones(transom):
    transom("import", "-", input=tar_of(loose=b"x" * 100))
    transom("import", "-", "unused", input=tar_of(other=b"x" * 100))
    transom("create", "--network", "none", "busybox", "true")
    asked = transom("image", "prune", input=b"n\n")
    assert asked == ("WARNING! This will remove all dangling images.\nAre you sure you want to continue? [y/N] ")
    lines = transom("image", "prune", "-f").splitlines()
    assert lines[0] == "Deleted Images:"
    assert lines[1].startswith("deleted: sha256:")
    assert lines[-1].startswith("Total reclaimed space: ")
    assert lines[-1] != "Total reclaimed space: 0B"
    assert transom("image", "prune", "-a", "--filter", "until=10m", "-f") == "Total reclaimed space: 0B"
    asked = transom("image", "prune", "-a", input=b"y\n")
    assert asked.startswith("WARNING! This will remove all images without at least one container associated to them.")
    assert "untagged: unused:latest" in asked.splitlines()
    assert transom("images", "--format", "{{.Repository}}") == "busybox"


def test_image_prune_filters_by_label(empty_transom):
    empty_transom("import", "-c", "LABEL keep=yes", "-", "one", input=tar_of(a=b"1"))
    empty_transom("import", "-", "two", input=tar_of(b=b"1"))
    empty_transom("image", "prune", "-af", "--filter", "label!=keep")
    assert empty_transom("images", "--format", "{{.Repository}}") == "one"
    assert empty_transom.fails("image", "prune", "-f", "--filter", "before=x") == (
        "--filter 'before=x': invalid filter 'before'; there are label, label!, until"
    )


def test_image_prune_takes_the_layers_that_a_removed_container_had_of_a_removed_image(transom):
    transom("create", "--network", "none", "--name", "user", "busybox", "true")
    transom("rmi", "-f", "busybox")
    transom("rm", "user")
    assert len(layers_of(transom)) == 2
    transom("image", "prune", "-f")
    assert layers_of(transom) == set()


def test_pull_fetches_as_many_layers_at_once_as_the_config_says(empty_transom, registry):
    registry.add_image("app", "latest", layers=[tar_of(one=os.urandom(10)) for _ in range(4)])
    empty_transom.env["TRANSOM_MAX_CONCURRENT_DOWNLOADS"] = "1"
    lines = empty_transom("pull", f"{registry.domain}/app").splitlines()
    assert sum(line.endswith(": Waiting") for line in lines) == 3
