"""One image on several storage drivers, and what a container writes: where it goes, and where it never does."""

import json
import os

import pytest

DRIVERS = ["overlay2", "vfs"]


def run(world, *words, driver=None, name=None):
    """Run a shell command in a new container that is removed, and return its output."""
    *flags, script = words
    flags += ["--name", name] if name else ["--rm"]
    flags += ["--storage-driver", driver] if driver else []
    return world.transom("run", "--network", "none", *flags, "busybox", "sh", "-c", script)


def storage(world):
    return sorted(os.listdir(f"{world.transom.data}/transom/storage"))


@pytest.mark.parametrize("driver", DRIVERS)
def test_what_a_container_writes_stays_in_it(world, driver):
    run(world, "echo mine >/etc/passwd; rm /bin/true; mkdir /new", driver=driver, name="first")
    assert run(world, "cat /etc/passwd; ls -d /bin/true /new; true", driver=driver).startswith("root:x:0:0")
    assert run(world, "test ! -e /new && test -e /bin/true && echo untouched", driver=driver) == "untouched"
    world.transom("start", "first")
    world.transom("wait", "first")
    assert world.transom("diff", "first").splitlines() == ["C /bin", "D /bin/true", "C /etc", "C /etc/passwd", "A /new"]


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_fresh_container_differs_in_nothing_from_its_image(world, driver):
    run(world, "true", driver=driver, name="box")
    assert world.transom("diff", "box") == ""


def test_an_image_runs_on_when_the_storage_driver_is_changed(world):
    assert run(world, "echo 1") == "1"
    images = world.transom("images", "-q", "--no-trunc")
    config = json.loads(world.config.read_text())
    world.config.write_text(json.dumps({**config, "storage-driver": "vfs"}))
    assert world.transom("images", "-q", "--no-trunc") == images
    assert run(world, "echo 2", name="box") == "2"
    assert world.transom.inspect("box")["Driver"] == "vfs"
    assert {"overlay2", "vfs"} <= {*storage(world)}
    world.config.write_text(json.dumps(config))
    assert run(world, "echo 3") == "3"
    assert world.transom("start", "-a", "box") == "2"


def test_two_storage_drivers_serve_at_once(world):
    for driver in DRIVERS:
        world.transom.detached("--name", driver, "--storage-driver", driver)
    for driver in DRIVERS:
        assert world.transom("exec", driver, "sh", "-c", "echo x >/x; cat /x") == "x"
        assert world.transom.inspect(driver)["Driver"] == driver
        assert world.transom("diff", driver).split() == ["A", "/x"]
    world.transom("rm", "-f", "overlay2")
    assert world.transom("exec", "vfs", "cat", "/x") == "x"


def test_an_image_is_removed_from_every_storage_driver(world):
    for driver in DRIVERS:
        run(world, "true", driver=driver)
    world.transom("rmi", "busybox")
    engine = world.transom.engine()
    try:
        assert {driver: [layer.key for layer in engine.snapshots(driver).walk()] for driver in DRIVERS} == {
            driver: [] for driver in DRIVERS
        }
    finally:
        engine.close()


def test_a_read_only_container_writes_nowhere_but_where_it_may(world):
    error = world.transom.call(
        "run", "--rm", "--network", "none", "--read-only", "--tmpfs", "/scratch:size=1m", "busybox", "sh", "-c",
        "echo 1 >/scratch/a && cat /scratch/a; echo 2 >/b",
    )  # fmt: skip
    assert (error.code, error.out) == (1, "1\n")
    assert "Read-only file system" in error.err


def test_a_tmpfs_has_its_size_and_is_gone_after_the_run(world):
    world.transom(
        "run", "--name", "box", "--network", "none", "--tmpfs", "/scratch:size=1m", "busybox", "sh", "-c",
        "test ! -e /scratch/a && touch /scratch/a; dd if=/dev/zero of=/scratch/b bs=1M count=4; test ! -s /scratch/c",
    )  # fmt: skip
    assert "No space left" in world.transom.call("logs", "box").err
    world.transom("start", "box")
    assert world.transom("wait", "box") == "0"


def test_a_named_volume_is_filled_from_the_image_and_kept(world):
    assert run(world, "-v", "data:/etc", "cat /etc/group; echo more >/etc/more").startswith("root:x:0:")
    assert run(world, "-v", "data:/mnt", "cat /mnt/more") == "more"
    assert world.transom("volume", "ls", "-q") == "data"
    error = world.transom.fails("volume", "rm", "nothing")
    assert "nothing" in error
    world.transom("volume", "rm", "data")
    assert world.transom("volume", "ls", "-q") == ""


def test_a_volume_is_filled_once(world):
    run(world, "-v", "data:/etc", "rm /etc/group")
    assert run(world, "-v", "data:/etc", "test -e /etc/group || echo gone") == "gone"


def test_an_anonymous_volume_goes_with_the_container_that_is_removed_when_it_ends(world):
    run(world, "-v", "/data", "echo x >/data/x")
    assert world.transom("volume", "ls", "-q") == ""


def test_an_anonymous_volume_of_a_kept_container_goes_with_rm_v_only(world):
    for name, words, left in (("one", (), 1), ("two", ("-v",), 1)):
        run(world, "-v", "/data", "echo x >/data/x", name=name)
        world.transom("rm", *words, name)
        assert len(world.transom("volume", "ls", "-q").split()) == left


def test_a_volume_in_use_is_not_removed(world):
    world.transom.detached("--name", "box", "-v", "data:/data")
    error = world.transom.fails("volume", "rm", "data")
    assert "in use" in error
    assert world.transom("volume", "ls", "-q") == "data"


def test_a_directory_of_the_host_is_bound_for_reading_only(world, tmp_path):
    (tmp_path / "file").write_text("from the host")
    done = world.transom.call(
        "run", "--rm", "--network", "none", "-v", f"{tmp_path}:/host:ro", "busybox", "sh", "-c",
        "cat /host/file; echo x >/host/new",
    )  # fmt: skip
    assert done.out == "from the host"
    assert "Read-only file system" in done.err
    assert not (tmp_path / "new").exists()


def test_a_directory_of_the_host_is_bound_for_writing(world, tmp_path):
    run(world, "-v", f"{tmp_path}/made:/host", "echo x >/host/new")
    assert (tmp_path / "made" / "new").read_text() == "x\n"


def test_containers_share_a_volume(world):
    world.transom.detached("--name", "writer", "-v", "data:/data", command=("sh", "-c", "echo hi >/data/x; sleep 1000"))
    assert run(world, "-v", "data:/data", "while ! cat /data/x 2>/dev/null; do sleep 0.05; done") == "hi"


@pytest.mark.parametrize("driver", DRIVERS)
def test_files_are_copied_between_host_and_container(world, tmp_path, driver):
    (tmp_path / "in").write_text("there and back")
    run(world, "true", driver=driver, name="box")
    world.transom("cp", tmp_path / "in", "box:/tmp/in")
    world.transom("cp", "box:/tmp/in", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "there and back"
