"""Networks and the containers on them, by the real command: many at once, a reboot, and nothing is left."""

import os
import shutil
import subprocess
import time

import pytest

from transom.services.netns import create, inside, loopback_up
from transom_conformance.network.site import host_census

SLEEP = ("busybox", "sleep", "1000")
SUBNET = "10.214.0.0/24"


def ended(commands, seconds=120):
    """Wait for commands; return each one's exit code and what it complained."""
    complaints = [process.communicate(timeout=seconds)[1].decode() for process in commands]
    return [(process.returncode, text) for process, text in zip(commands, complaints, strict=True)]


def start(world, *words):
    return world.transom.popen(*words, stdin=subprocess.DEVNULL)


def networks(world):
    return world.transom("network", "ls", "--format", "{{.Name}}", "-f", "type=custom").split()


def bridges(world):
    return [line.split()[1] for line in world.inside("ip", "-o", "link").splitlines() if ": br-" in line]


def test_the_host_is_as_before_after_ten_containers_with_ports_and_names_came_and_went(world):
    before = inside(world.transom.netns, host_census)
    world.transom("network", "create", "--subnet", SUBNET, "n")
    words = ("run", "-d", "--network", "n", "--network-alias", "all", "-p", "127.0.0.1::80")
    assert {code for code, _ in ended([start(world, *words, "--name", f"c{n}", *SLEEP) for n in range(10)])} == {0}
    found = world.transom("exec", "c0", "nslookup", "all")
    assert len({line for line in found.splitlines() if "10.214.0." in line}) == 10
    assert "10.214.0." in world.transom("exec", "c9", "nslookup", "c0")
    world.transom("rm", "-f", *(f"c{n}" for n in range(10)))
    world.transom("network", "rm", "n")
    world.transom.wait_until(lambda: inside(world.transom.netns, host_census) == before)
    assert world.clear() == set()


def test_of_sixteen_that_create_one_network_one_does(world):
    codes = ended([start(world, "network", "create", "only") for _ in range(16)])
    refused = {text for code, text in codes if code}
    assert sorted(code != 0 for code, _ in codes) == [False, *[True] * 15]
    assert refused == {"transom: network with name only already exists; choose another, or remove it first\n"}
    assert networks(world) == ["only"]
    assert len(bridges(world)) == 1
    world.transom("network", "rm", "only")
    assert bridges(world) == []


def test_creations_and_removals_of_the_same_names_at_once_leave_each_network_whole_or_gone(world):
    lines = [("network", word, name) for _ in range(3) for name in ("one", "two") for word in ("create", "rm")]
    known = ("already exists; choose another, or remove it first\n", "no such network: ")
    for code, text in ended([start(world, *words) for words in lines]):
        assert code == 0 or (text.count("\n") == 1 and any(words in text for words in known)), text
    left = networks(world)
    assert len(bridges(world)) == len(left)
    for name in left:
        assert world.transom("run", "--rm", "--network", name, "busybox", "echo", "works") == "works"
    world.transom("network", "rm", *left) if left else None
    assert bridges(world) == []
    assert world.clear() == set()


def test_a_network_is_removed_while_twenty_containers_join_it(world):
    world.transom("network", "create", "--subnet", SUBNET, "n")
    joins = [start(world, "run", "-d", "--network", "n", *SLEEP) for _ in range(20)]
    time.sleep(0.5)
    (removed, said), *outcomes = ended([start(world, "network", "rm", "n"), *joins])
    refused = [text for code, text in outcomes if code]
    if removed == 0:
        assert all(text.startswith("transom: no such network: n") and text.count("\n") == 1 for text in refused)
        assert bridges(world) == []
    else:
        assert refused == []
        assert said.startswith("transom: network n has active endpoints: ")
    running = [name for name, state in world.listed().items() if state == "running"]
    assert len(running) == 20 - len(refused)
    shown = [world.transom.inspect(name)["NetworkSettings"]["Networks"]["n"]["IPAddress"] for name in running]
    assert len({*shown}) == len(running)
    world.repair()
    world.transom("rm", "-f", *world.listed())
    world.transom("network", "rm", *networks(world)) if networks(world) else None
    assert world.clear() == set()


@pytest.mark.parametrize("moment", [0.0, 0.1, 0.2, 0.3])
def test_a_container_is_disconnected_while_it_starts(world, moment):
    world.transom("network", "create", "--subnet", SUBNET, "n")
    world.transom("create", "--name", "box", "--network", "n", "--network", "bridge", *SLEEP)
    starting = start(world, "start", "box")
    time.sleep(moment)
    leaving = start(world, "network", "disconnect", "n", "box")
    assert ended([starting, leaving]) == [(0, ""), (0, "")]
    assert world.listed() == {"box": "running"}
    assert {*world.transom.inspect("box")["NetworkSettings"]["Networks"]} == {"bridge"}
    shown = world.transom("exec", "box", "ip", "address")
    assert "10.214.0." not in shown
    assert "172.17.0." in shown
    assert not [line for line in world.census() if line.startswith("lease 10.214.")]
    world.transom("network", "rm", "n")
    assert world.clear() == set()


def test_after_a_reboot_a_containers_address_and_port_are_anothers(world):
    world.transom("network", "create", "--subnet", SUBNET, "n")
    words = ("run", "-d", "--network", "n", "--ip", "10.214.0.9", "-p", "8080:80", "--name")
    world.transom(*words, "box", *SLEEP)
    reboot(world)
    assert world.listed() == {"box": "exited"}
    world.transom(*words, "next", *SLEEP)
    assert world.transom("exec", "next", "echo", "works") == "works"
    world.transom("rm", "-f", "next")
    world.repair()
    world.transom("start", "box")
    assert world.transom("port", "box", "80/tcp").splitlines()[0] == "0.0.0.0:8080"
    assert world.transom.inspect("box")["NetworkSettings"]["Networks"]["n"]["IPAddress"] == "10.214.0.9"
    world.transom("rm", "-f", "box")
    world.transom("network", "rm", "n")
    assert world.clear() == set()


def reboot(world):
    """End all that runs, and take away what a kernel forgets: mounts, namespaces, control groups, and /run."""
    world.kill()
    world.transom.wait_until(lambda: not world.processes())
    with open("/proc/self/mountinfo") as mounts:
        places = [line.split()[4] for line in mounts if f"{world.transom.run}/" in line]
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=True)
    shutil.rmtree(world.transom.run, ignore_errors=True)
    fresh = create()
    inside(fresh, loopback_up)
    os.dup2(fresh, world.transom.netns)
    os.close(fresh)
