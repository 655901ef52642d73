"""Image records: names, ids, removal as docker does it, and what is told about images."""

import json
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from transom.errors import ConfigError, Conflict, DriverError, NotFound
from transom_engine.images import reports, spec
from transom_engine.images.importer import commit, import_tar
from transom_engine.images.names import parse
from transom_engine.images.store import Image, ImageStore


@pytest.fixture
def add(content, store, tar):
    """Import an image of one file."""
    import io

    def call(reference="", *, data=b"", **options):
        return import_tar(io.BytesIO(tar({"file": data})), content=content, store=store, reference=reference, **options)

    return call


def lines(removed):
    return [str(line) for line in removed]


def put(store, id_digits, **options):
    """Record an image of a chosen id, without content."""
    image_id = f"sha256:{id_digits:0<64}"
    image = Image(id=image_id, manifest=spec.digest_of(id_digits.encode()), layers=(), raw_config=b"{}")
    store.record(image, **options)
    return image


# Names


def test_an_image_is_found_by_name_id_and_the_beginning_of_its_id(add, store):
    image = add("team/app:1")
    digits = image.id[7:]
    for text in (
        "team/app:1",
        "docker.io/team/app:1",
        image.id,
        digits,
        digits[:12],
        digits[:4],
        f"sha256:{digits[:8]}",
    ):
        assert store.resolve(text) == image


def test_an_unknown_image_is_said_with_what_to_do(store):
    with pytest.raises(NotFound) as raised:
        store.resolve("nope:1")
    assert str(raised.value) == (
        "no such image: nope:1; `transom images` lists those here; `transom pull nope:1` fetches it"
    )
    with pytest.raises(NotFound) as raised:
        store.resolve("sha256:" + "0" * 64)
    assert str(raised.value) == f"no such image: sha256:{'0' * 64}; `transom images` lists those here"


def test_an_ambiguous_id_lists_what_it_may_mean(store):
    put(store, "abc1")
    put(store, "abc2")
    with pytest.raises(ConfigError) as raised:
        store.resolve("abc")
    assert str(raised.value) == "ambiguous image id abc: it begins abc100000000, abc200000000; give more digits"
    assert store.resolve("abc2").id.startswith("sha256:abc2")


def test_a_name_goes_before_the_beginning_of_an_id(add, store):
    put(store, "cafe")
    named = add("cafe")
    assert store.resolve("cafe").id == named.id


def test_a_tag_is_given_and_moves(add, store):
    first, second = add("app:1", data=b"1"), add("app:2", data=b"2")
    assert store.tag("app:1", "other").familiar() == "other:latest"
    assert store.resolve("other").id == first.id
    store.tag(second.id, "other")
    assert store.resolve("other").id == second.id
    assert [reference.familiar() for reference in store.references(first.id)] == ["app:1"]


def test_tags_that_cannot_be_are_refused(add, store):
    add("app")
    with pytest.raises(ConfigError) as raised:
        store.tag("app", f"x@sha256:{'0' * 64}")
    assert str(raised.value) == f"cannot tag an image as x@sha256:{'0' * 64}: a digest cannot be chosen; leave it out"
    with pytest.raises(ConfigError) as raised:
        store.tag("app", "sha256:abc")
    assert str(raised.value) == "cannot tag an image as sha256:abc: it would read as an id; choose another name"
    with pytest.raises(NotFound):
        store.tag("absent", "x")


def test_recording_again_changes_nothing(add, store):
    image = add("app")
    assert not store.record(image, reference=parse("app"))
    assert list(store.walk()) == [image]


# Removal


def test_removing_the_last_name_deletes_image_layers_and_blobs(add, store, content):
    image = add("app")
    assert lines(store.remove("app")) == ["Untagged: app:latest", f"Deleted: {image.id}", f"Deleted: {image.chain_id}"]
    assert list(content.walk()) == []
    with pytest.raises(NotFound):
        store.resolve(image.id)


def test_removing_one_name_of_two_keeps_the_image(add, store):
    image = add("app:1")
    store.tag("app:1", "app:2")
    assert lines(store.remove("app:1")) == ["Untagged: app:1"]
    assert store.resolve("app:2") == image


def test_the_last_tag_of_a_repository_takes_its_digests_along(store):
    digest = "sha256:" + "d" * 64
    image = put(store, "aa", reference=parse("app:1"), digest=digest)
    store.record(image, reference=parse("app:2"), digest=digest)
    store.record(image, reference=parse("other:1"))
    assert lines(store.remove("app:1")) == ["Untagged: app:1"]
    assert lines(store.remove("app:2")) == ["Untagged: app:2", f"Untagged: app@{digest}"]
    assert lines(store.remove("other:1")) == ["Untagged: other:1", f"Deleted: {image.id}"]


def test_removing_by_id_takes_all_names_of_one_repository(store):
    digest = "sha256:" + "d" * 64
    image = put(store, "aa", reference=parse("app:1"), digest=digest)
    assert lines(store.remove("aa")) == ["Untagged: app:1", f"Untagged: app@{digest}", f"Deleted: {image.id}"]


def test_removing_by_id_with_several_names_needs_force(store):
    image = put(store, "aa", reference=parse("app:1"))
    store.record(image, reference=parse("app:2"))
    with pytest.raises(Conflict) as raised:
        store.remove("aa")
    assert str(raised.value) == (
        "cannot remove image aa0000000000: it has several names (app:1, app:2); remove it by name or force it with -f"
    )
    assert lines(store.remove("aa", force=True)) == ["Untagged: app:1", "Untagged: app:2", f"Deleted: {image.id}"]


def test_an_image_that_a_container_uses_stays_unless_forced(store):
    image = put(store, "aa", reference=parse("app:1"))
    with pytest.raises(Conflict) as raised:
        store.remove("app:1", in_use=lambda image_id: "web" if image_id == image.id else None)
    assert str(raised.value) == (
        "cannot remove app:1: container web uses its image aa0000000000; remove that first (transom rm web) or force it"
        " with -f"
    )
    with pytest.raises(Conflict) as raised:
        store.remove("aa", in_use=lambda image_id: "web")
    assert str(raised.value) == (
        "cannot remove image aa0000000000: container web uses it; remove that first (transom rm"
        " web) or force it with -f"
    )
    assert store.resolve("app:1") == image
    assert lines(store.remove("aa", force=True, in_use=lambda image_id: "web")) == [
        "Untagged: app:1",
        f"Deleted: {image.id}",
    ]


def test_one_name_of_two_goes_although_a_container_uses_the_image(store):
    image = put(store, "aa", reference=parse("app:1"))
    store.record(image, reference=parse("app:2"))
    assert lines(store.remove("app:1", in_use=lambda image_id: "web")) == ["Untagged: app:1"]


def test_not_even_force_deletes_the_image_of_a_running_container(store):
    image = put(store, "aa", reference=parse("app:1"))
    with pytest.raises(Conflict) as raised:
        store.remove("aa", force=True, in_use=lambda image_id: "web", running=lambda image_id: "web")
    assert str(raised.value) == (
        "cannot remove image aa0000000000: running container web uses it; stop it first (transom stop web)"
    )
    assert lines(store.remove("app:1", force=True, in_use=lambda image_id: "web", running=lambda image_id: "web")) == [
        "Untagged: app:1"
    ]
    assert store.get(image.id) == image


def test_an_image_that_another_is_made_from_stays(add, store, content, tar):
    import io

    base = add("base")
    child = commit(
        io.BytesIO(tar({"more": b""})),
        parent=base,
        config={"Cmd": ["sh"]},
        content=content,
        store=store,
        reference="child",
    )
    with pytest.raises(Conflict) as raised:
        store.remove(base.id, force=True)
    assert str(raised.value) == (
        f"cannot remove image {base.id[7:19]}: image {child.id[7:19]} is made from it; remove that one first"
    )
    removed = lines(store.remove("child"))
    assert removed == ["Untagged: child:latest", f"Deleted: {child.id}", f"Deleted: {child.chain_id}"]
    assert content.has(base.layers[0].digest)
    store.remove("base")
    assert list(content.walk()) == []


def test_layers_that_another_image_has_are_not_deleted(add, store, content):
    first, second = add("a", message="one"), add("b", message="two")
    assert first.id != second.id
    assert first.chain_id == second.chain_id
    assert lines(store.remove("a")) == ["Untagged: a:latest", f"Deleted: {first.id}"]
    assert content.has(second.layers[0].digest)
    assert store.chain_ids() == {second.chain_id}


def test_blobs_stay_while_a_pull_is_under_way_and_go_afterwards(add, store, content):
    image = add("app")
    with content.lease():
        store.remove("app")
        assert content.has(image.id)
    assert image.id in store.collect()
    assert list(content.walk()) == []


# Reports


@pytest.fixture
def zoo(add, store):
    """Three images, one of them untagged."""
    made = {
        "old": add("zoo/lion:1", data=b"1", changes=["LABEL kind=cat"]),
        "mid": add("zoo/tiger:1", data=b"2", changes=["LABEL kind=cat loud=yes"]),
        "new": add("", data=b"3"),
    }
    return {name: image.id for name, image in made.items()}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["new", "mid", "old"]),
        ({"dangling": ["true"]}, ["new"]),
        ({"dangling": ["false"]}, ["mid", "old"]),
        ({"label": ["kind"]}, ["mid", "old"]),
        ({"label": ["kind=cat", "loud"]}, ["mid"]),
        ({"label": ["kind=dog"]}, []),
        ({"before": ["zoo/tiger:1"]}, ["old"]),
        ({"since": ["zoo/tiger:1"]}, ["new"]),
        ({"reference": ["zoo/*"]}, ["mid", "old"]),
        ({"reference": ["zoo/*:1", "nothing"]}, ["mid", "old"]),
        ({"reference": ["zoo/[l-m]ion"]}, ["old"]),
        ({"reference": ["*"]}, []),
        ({"reference": ["zoo/*"], "label": ["loud"]}, ["mid"]),
    ],
)
def test_images_are_listed_by_docker_s_filters_the_newest_first(zoo, store, filters, expected):
    names = {image_id: name for name, image_id in zoo.items()}
    assert [names[row.id] for row in reports.images(store, filters=filters)] == expected


def test_an_unknown_filter_is_refused_with_those_there_are(store):
    with pytest.raises(ConfigError) as raised:
        reports.images(store, filters={"danglin": ["true"]})
    assert str(raised.value) == (
        "unknown image filter danglin (did you mean dangling?); there are before, dangling, label, reference, since"
    )
    with pytest.raises(ConfigError) as raised:
        reports.images(store, filters={"dangling": ["perhaps"]})
    assert str(raised.value) == "invalid image filter dangling=perhaps: it is true or false"
    with pytest.raises(NotFound):
        reports.images(store, filters={"since": ["absent"]})


def test_a_line_of_images_is_docker_s_image_summary(add, store):
    import msgspec

    image = add("app:1", changes=["LABEL a=b"])
    store.tag("app:1", "app:2")
    (row,) = json.loads(msgspec.json.encode(reports.images(store)))
    assert row == {
        "Id": image.id,
        "ParentId": "",
        "RepoTags": ["app:1", "app:2"],
        "RepoDigests": [],
        "Created": row["Created"],
        "Size": image.layers[0].size,
        "VirtualSize": image.layers[0].size,
        "SharedSize": -1,
        "Containers": -1,
        "Labels": {"a": "b"},
    }
    assert abs(row["Created"] - time.time()) < 60


def test_inspect_has_docker_s_fields(add, store):
    import msgspec

    image = add("app", changes=['CMD ["sh"]', "ENV A=b"], platform="linux/arm64")
    told = json.loads(msgspec.json.encode(reports.inspect(store, "app", driver="overlay2")))
    assert list(told) == [
        "Id",
        "RepoTags",
        "RepoDigests",
        "Parent",
        "Comment",
        "Created",
        "DockerVersion",
        "Author",
        "Config",
        "Architecture",
        "Variant",
        "Os",
        "OsVersion",
        "Size",
        "VirtualSize",
        "GraphDriver",
        "RootFS",
        "Metadata",
    ]
    assert told["Id"] == image.id
    assert told["Config"] == {"Cmd": ["sh"], "Env": ["A=b"]}
    assert (told["Os"], told["Architecture"], told["Comment"]) == ("linux", "arm64", "Imported from -")
    assert told["GraphDriver"] == {"Data": None, "Name": "overlay2"}
    assert told["RootFS"] == {"Type": "layers", "Layers": [image.layers[0].diff_id]}
    assert told["Metadata"]["LastTagTime"][:4] == time.strftime("%Y", time.gmtime())


def test_history_tells_each_step_the_last_first(add, store, content, tar):
    import io

    base = add("base", message="the base")
    commit(
        io.BytesIO(tar({"more": b"x"})),
        parent=base,
        config={},
        content=content,
        store=store,
        reference="app",
        created_by="touch more",
        message="more",
    )
    rows = reports.history(store, "app")
    assert [(row.id[:7], row.created_by, row.comment, row.tags) for row in rows] == [
        ("sha256:", "touch more", "more", ["app:latest"]),
        ("<missin", "", "the base", None),
    ]
    assert all(row.size > 0 for row in rows)


def test_the_size_is_that_of_the_files_once_they_were_unpacked(add, store):
    image = add("app", data=b"x" * 1000)
    assert reports.images(store)[0].size == image.layers[0].size
    store.note_unpacked(image.layers[0].diff_id, 1000)
    assert (
        reports.images(store)[0].size
        == reports.inspect(store, "app").size
        == reports.history(store, "app")[0].size
        == 1000
    )


# The database


def test_resolving_an_image_opens_the_database_and_reads_it_in_a_millisecond_or_so(add, store, content):
    image = add("app")
    fastest = 1.0
    for _ in range(20):
        started = time.perf_counter()
        opened = ImageStore(store.root, content)
        assert opened.resolve("app").chain_id == image.chain_id
        fastest = min(fastest, time.perf_counter() - started)
        opened.close()
    assert fastest < 0.003


def test_the_records_import_nothing_that_is_slow(tmp_path):
    code = (
        "import sys; import transom_engine.images.store;"
        "print([m for m in ('http.client','ssl','tarfile','hashlib','subprocess','tempfile'"
        ",'threading','logging','asyncio',"
        "'dataclasses','zstandard','email','shutil') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_processes_that_make_the_database_at_once_all_succeed(tmp_path):
    code = """
import sys
from transom_engine.images.content import ContentStore
from transom_engine.images.names import parse
from transom_engine.images.store import Image, ImageStore
store = ImageStore(sys.argv[1], ContentStore(sys.argv[1] + "/content"))
for n in range(20):
    image = Image(id=f"sha256:{n:064x}", manifest="sha256:" + "0" * 64, layers=(), raw_config=b"{}")
    store.record(image, reference=parse(f"app:{n}"))
"""
    root = str(tmp_path / "images")
    children = [subprocess.Popen([sys.executable, "-c", code, root]) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0] * 4
    from transom_engine.images.content import ContentStore

    store = ImageStore(root, ContentStore(f"{root}/content"))
    assert len(list(store.walk())) == 20
    store.close()


def test_threads_may_share_a_store(store):
    failures = []

    def work(number):
        try:
            for n in range(20):
                put(store, f"{number}{n:02}", reference=parse(f"app:{number}-{n}"))
                store.resolve(f"app:{number}-{n}")
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []
    assert len(list(store.walk())) == 80


def test_a_damaged_database_is_said(tmp_path, content):
    root = tmp_path / "broken"
    root.mkdir()
    (root / "images.db").write_bytes(b"no database" * 1000)
    with pytest.raises(DriverError) as raised:
        ImageStore(root, content).resolve("app")
    assert str(raised.value) == (
        f"database: opening {root}/images.db failed: file is not a database; restore it from a backup, or move it away"
    )
    assert isinstance(raised.value.__cause__, sqlite3.Error)
