"""Many commands at once: all succeed, none gets what another has, and nothing is left."""

import subprocess

import pytest

from transom.services.netns import inside

MANY = 20


def at_once(transom, lines, seconds=120):
    """Run command lines at the same time; return what each printed, and check that all succeeded."""
    started = [transom.popen(*words, stdin=subprocess.DEVNULL) for words in lines]
    ended = [(process.communicate(timeout=seconds), process.returncode) for process in started]
    failed = [error.decode() for (_, error), code in ended if code != 0]
    assert failed == [], f"{len(failed)} of {len(lines)} failed"
    return [out.decode().strip() for (out, _), _ in ended]


def test_many_containers_are_started_and_removed_at_once(world):
    lines = [("run", "-d", "--name", f"plain{n}", "--network", "none", "busybox", "sleep", "1000") for n in range(8)]
    server = ("sh", "-c", "hostname >/tmp/index.html; exec httpd -f -p 80 -h /tmp")
    lines += [("run", "-d", "--name", f"web{n}", "-p", "127.0.0.1::80", "busybox", *server) for n in range(MANY - 8)]
    ids = at_once(world.transom, lines)
    assert len({*ids}) == MANY
    assert {*world.listed().values()} == {"running"}
    shown = [world.transom.inspect(f"web{n}")["NetworkSettings"] for n in range(MANY - 8)]
    addresses = [place["Networks"]["bridge"]["IPAddress"] for place in shown]
    macs = [place["Networks"]["bridge"]["MacAddress"] for place in shown]
    ports = [place["Ports"]["80/tcp"][0]["HostPort"] for place in shown]
    for given in (addresses, macs, ports):
        assert len({*given}) == MANY - 8
        assert all(given)
    for n in (0, MANY - 9):
        world.transom.wait_until(lambda n=n: inside(world.transom.netns, _ask, ports[n]) == ids[8 + n][:12])
    at_once(world.transom, [("rm", "-f", id) for id in ids])
    assert world.listed() == {}
    assert world.clear() == set()


def _ask(port):
    """Return what the container behind a published port calls itself; "" while it does not answer."""
    from urllib.request import urlopen

    try:
        with urlopen(f"http://127.0.0.1:{port}/index.html", timeout=5) as answer:
            return answer.read().decode().strip()
    except OSError:
        return ""


def test_one_name_asked_for_by_many_at_once_goes_to_one(world):
    words = ("create", "--name", "only", "--network", "none", "busybox")
    started = [world.transom.popen(*words, stdin=subprocess.DEVNULL) for _ in range(8)]
    ended = [(process.communicate(timeout=60), process.returncode) for process in started]
    assert sorted(code for _, code in ended) == [0, *[125] * 7]
    refused = {error.decode() for (_, error), code in ended if code}
    assert all("the container name 'only' is already in use" in text for text in refused), refused
    assert list(world.listed()) == ["only"]


def test_one_container_started_and_removed_by_many_at_once(world):
    world.transom("create", "--name", "only", "busybox", "sleep", "1000")
    at_once(world.transom, [("start", "only")] * 6)
    assert world.listed() == {"only": "running"}
    started = [world.transom.popen("rm", "-f", "only", stdin=subprocess.DEVNULL) for _ in range(6)]
    errors = [process.communicate(timeout=60)[1].decode() for process in started]
    assert all(error == "" or "no such container: only" in error.lower() for error in errors), errors
    assert world.listed() == {}


@pytest.mark.parametrize("driver", ["overlay2", "vfs"])
def test_many_first_starts_unpack_an_image_once(world, driver):
    lines = [("--storage-driver", driver, "run", "-d", "--network", "none", "busybox", "sleep", "1000")] * MANY
    at_once(world.transom, lines[:6] if driver == "vfs" else lines)
    engine = world.transom.engine()
    try:
        ids = {container.id for container in engine.state.containers()}
        keys = [layer.key for layer in engine.snapshots(driver).walk() if layer.key not in ids]
        assert len(keys) == 2, f"the image's layer and the one of mount points over it, not {keys}"
        assert engine.snapshots(driver).check() == []
    finally:
        engine.close()


def test_many_containers_that_end_at_once_are_each_recorded(world):
    lines = [
        ("run", "--rm", "--network", "none", "busybox", "sh", "-c", f"echo {n}; exit {n}") for n in range(1, MANY + 1)
    ]
    started = [world.transom.popen(*words, stdin=subprocess.DEVNULL) for words in lines]
    for n, process in enumerate(started, 1):
        out, error = process.communicate(timeout=120)
        assert (out, error, process.returncode) == (f"{n}\n".encode(), b"", n)
    assert world.listed() == {}


def test_networks_created_at_once_get_subnets_of_their_own(world):
    at_once(world.transom, [("network", "create", f"net{n}") for n in range(6)])
    subnets = [world.transom.inspect(f"net{n}", "--type", "network")["IPAM"]["Config"][0]["Subnet"] for n in range(6)]
    assert len({*subnets}) == 6
    at_once(world.transom, [("network", "rm", f"net{n}") for n in range(6)])


def test_one_command_ends_many_containers_at_once(world):
    for words in (("stop", "-t", "0"), ("kill",), ("rm", "-f")) * 2:
        names = [f"{words[0]}{n}" for n in range(6)]
        at_once(
            world.transom, [("run", "-d", "--name", n, "--network", "none", "busybox", "sleep", "9") for n in names]
        )
        assert world.transom(*words, *names).split() == names
        if words[0] != "rm":
            assert {*world.listed().values()} == {"exited"}
            world.transom("rm", *names)
        assert world.listed() == {}
