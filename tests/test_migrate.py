"""``transom storage migrate``: stopped containers go to another storage driver with all that they changed."""

import json

import pytest

from transom_conformance import faults

CHANGES = """
echo changed >/etc/passwd; rm /bin/true; mkdir -p /new/deep; echo there >/new/deep/file; ln -s /etc/passwd /new/link
ln /new/deep/file /new/again; chmod 4711 /new/deep/file; mv /new/deep /moved; chown 5:6 /moved; rm -r /home; mkdir /home
"""
SHOW = "cat /etc/passwd /moved/file /new/link; ls -ln /moved /new /home; test ! -e /bin/true && echo gone"


def make(world, name, *, driver="overlay2"):
    world.transom(
        "run", "--name", name, "--network", "none", "--storage-driver", driver, "busybox", "sh", "-c",
        f"test -e /moved || {{ {CHANGES} }}; {SHOW}",
    )  # fmt: skip
    return world.transom("start", "-a", name)


def holders(world, name):
    """Return the drivers that hold a layer of the container."""
    id = world.transom.inspect(name)["Id"]
    engine = world.transom.engine()
    try:
        return {driver for driver in ("overlay2", "vfs") if engine.snapshots(driver).exists(id)}
    finally:
        engine.close()


def test_a_stopped_container_goes_there_and_back_with_its_changes(world):
    shown = make(world, "box")
    changes = world.transom("diff", "box")
    for driver, line in (("vfs", "box: overlay2 -> vfs"), ("overlay2", "box: vfs -> overlay2")):
        assert world.transom("storage", "migrate", "--to", driver, "box") == line
        assert world.transom.inspect("box")["Driver"] == driver
        assert holders(world, "box") == {driver}
        assert sorted(world.transom("diff", "box").split("\n")) == sorted(changes.split("\n"))
        assert world.transom("start", "-a", "box") == shown
        world.transom("wait", "box")
    assert world.transom("storage", "migrate", "--to", "overlay2", "box") == ""


def test_without_names_all_that_are_stopped_go_and_the_running_stay(world):
    for name in ("one", "two"):
        make(world, name)
    world.transom.detached("--name", "running", "--storage-driver", "overlay2")
    config = json.loads(world.config.read_text())
    world.config.write_text(json.dumps({**config, "storage-driver": "vfs"}))
    moved = world.transom("storage", "migrate", "--to", "vfs")
    assert sorted(moved.splitlines()) == ["one: overlay2 -> vfs", "two: overlay2 -> vfs"]
    assert world.transom.inspect("running")["Driver"] == "overlay2"
    error = world.transom.fails("storage", "migrate", "--to", "vfs", "running")
    assert "container running is running: stop it first" in error
    assert world.transom("exec", "running", "echo", "still") == "still"


def test_what_cannot_be_done_is_said(world):
    make(world, "box")
    assert "no storage driver 'vsf'" in world.transom.fails("storage", "migrate", "--to", "vsf", "box")
    assert "no such container: nobody" in world.transom.fails("storage", "migrate", "--to", "vfs", "nobody")
    assert "--to" in world.transom.fails("storage", "migrate", "box")
    world.transom("run", "--name", "odd", "--network", "none", "busybox", "touch", "/.wh.x")
    error = world.transom.fails("storage", "migrate", "--to", "vfs", "odd")
    assert "'.wh.x' cannot be in a layer" in error
    assert holders(world, "odd") == {"overlay2"}
    assert world.transom.inspect("odd")["Driver"] == "overlay2"


def test_killed_anywhere_the_container_is_whole_on_one_driver_and_nothing_stays(world):
    if reason := faults.needs_strace():
        pytest.skip(reason)
    shown = make(world, "box")

    def move():
        from transom_engine.migration import migrate

        engine = world.transom.engine()
        list(migrate(engine, "vfs", ("box",)))
        engine.close()

    def back():
        world.transom("storage", "migrate", "--to", "overlay2", "box")

    calls = faults.system_calls(move, touching=[world.transom.data])
    back()
    for call in faults.sample(calls, 7, seed=6):
        faults.killed_before(move, call)
        driver = world.transom.inspect("box")["Driver"]
        assert world.transom("start", "-a", "box") == shown, f"on {driver}, killed before {call.text}"
        world.transom("wait", "box")
        world.repair()
        assert holders(world, "box") == {driver}, call.text
        back()
