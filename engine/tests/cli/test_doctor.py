"""``transom doctor``: finds what crashes leave, puts it right, and leaves alone what is in use."""

import contextlib
import ctypes
import glob
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import msgspec
import pytest

from transom.contract.network import Endpoint, Network
from transom.services.files import Lock
from transom.services.netns import create, inside

COMMAND = str(Path(sys.executable).with_name("transom"))
STRAY = "5" * 64


@pytest.fixture
def parent(tmp_path):
    """A parent of control groups for this test alone: what other tests run is none of its doctor's business."""
    name = f"transom-doctor-{os.urandom(6).hex()}"
    yield name
    for directory in glob.glob(f"/sys/fs/cgroup/*/{name}"):
        os.rmdir(directory)


@pytest.fixture
def sick(parent, transom, tmp_path):
    """The command with control groups of its own, with helpers to ask the doctor."""
    file = tmp_path / "daemon.json"
    groups = {name: {"parent": parent} for name in ("cgroup1", "cgroup2")}
    file.write_bytes(msgspec.json.encode({"transom": {"driver-opts": {"limits": groups}}}))
    transom.env["TRANSOM_CONFIG"] = str(file)
    return transom


@contextlib.contextmanager
def engine_of(transom):
    engine = transom.engine()
    try:
        yield engine
    finally:
        engine.close()


def ask(transom, *words):
    """Return the exit code, and each finding as a line."""
    done = transom.call("doctor", "--format", "json", *words)
    assert done.err == ""
    report = msgspec.json.decode(done.out)
    lines = [f"{f['Kind']} {f['Subject']}: {f['Text']}" for f in report["Findings"]]
    for finding in report["Findings"]:
        assert finding["Repaired"] is ("--repair" in words and not finding["Failure"])
    return done.code, lines


def heals(transom, *lines):
    """Assert that exactly these lines are found, are still there when nothing was repaired, and then are not."""
    assert ask(transom) == (1, list(lines))
    assert ask(transom) == (1, list(lines)), "looking changes nothing"
    assert ask(transom, "--repair") == (0, list(lines))
    assert ask(transom) == (0, [])


def supervisor_of(transom, name):
    """Return the pid of a container's supervisor, found by its working directory."""
    place = f"{transom.run}/transom/containers/{transom.inspect(name)['Id']}"
    for cwd in glob.glob("/proc/[0-9]*/cwd"):
        try:
            with open(f"{cwd[:-3]}comm") as comm:
                if os.readlink(cwd) == place and comm.read() == "transom-super\n":
                    return int(cwd.split("/")[2])
        except OSError:
            continue
    raise AssertionError("there is no supervisor")


# A healthy system


def test_nothing_is_found_beside_containers_that_run_pause_and_have_ended(sick):
    sick.detached("--name", "web", "-p", "8080:80", "-v", "data:/data", network="bridge")
    sick.detached("--name", "still")
    sick("pause", "still")
    sick("run", "--name", "ended", "--network", "none", "busybox", "true")
    sick("create", "--name", "made", "--network", "none", "busybox")
    sick("network", "create", "net")
    sick("network", "connect", "net", "web")
    sick("volume", "create", "idle")
    for words in ([], ["--repair"], []):
        assert ask(sick, *words) == (0, [])
    assert "172.17.0.2" in sick("exec", "web", "ip", "addr")
    assert sick.inspect("web")["State"]["Running"] is True
    assert sick("doctor").splitlines()[-2:] == ["Left by crashes", "  nothing"]


def test_nothing_is_found_before_first_use(parent, empty_transom):
    assert ask(empty_transom) == (0, [])
    assert ask(empty_transom, "--repair") == (0, [])


def test_nothing_is_found_after_removing_everything(sick):
    sick.detached("--name", "web", network="bridge")
    sick("rm", "-f", "web")
    sick("rmi", "busybox")
    assert ask(sick) == (0, [])


def test_repairing_disturbs_no_command_that_is_at_work(sick):
    sick("run", "--rm", "busybox", "true")
    failures, ended = [], threading.Event()

    def work(number):
        for round in range(3):
            words = ["--rm", "-v", f"v{number}{round}:/etc", "busybox", "sh", "-c", "echo hello; exit 3"]
            done = sick.call("run", *words)
            if (done.code, done.out) != (3, "hello\n"):
                failures.append(done)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for worker in workers:
        worker.start()
    watcher = threading.Thread(target=lambda: ([worker.join() for worker in workers], ended.set()))
    watcher.start()
    asked = 0
    while not ended.is_set() or not asked:
        assert ask(sick, "--repair") == (0, [])
        asked += 1
    watcher.join()
    assert failures == []


# Containers


def test_a_killed_supervisor_is_found_and_cleared_away(sick):
    id = sick.detached("--name", "web", network="bridge")
    os.kill(supervisor_of(sick, "web"), signal.SIGKILL)
    sick.wait_until(lambda: glob.glob(f"/proc/[0-9]*/cwd/../{id}/control") == [])
    heals(sick, "container web: its supervisor was killed")
    state = sick.inspect("web")["State"]
    assert (state["Status"], state["ExitCode"], state["Error"]) == ("exited", 137, "its supervisor was killed")
    assert inside(sick.netns, lambda: [name for name in os.listdir("/proc/self/net/dev_snmp6") if "veth" in name]) == []
    sick("start", "web")
    assert ask(sick) == (0, [])


def test_a_killed_supervisor_of_a_container_with_rm_takes_it_along(sick):
    sick.detached("--name", "web", "--rm")
    os.kill(supervisor_of(sick, "web"), signal.SIGKILL)
    heals(sick, "container web: its supervisor was killed")
    assert sick("ps", "-aq") == ""


@pytest.mark.parametrize(("status", "text"), [("creating", "making"), ("removing", "removal")])
def test_an_unfinished_container_is_found_and_discarded(sick, status, text):
    sick("create", "--name", "web", "--network", "none", "busybox")
    with engine_of(sick) as engine:
        container = engine.state.containers()[0]
        container.state.status = status
        engine.state.save_container(container)
        with engine.lock(container.id):
            assert ask(sick) == (0, []), "a command is at work on it"
    heals(sick, f"container web: its {text} was interrupted")
    assert sick("ps", "-aq") == ""


@pytest.mark.parametrize("delay", [0.05, 0.12, 0.2, 0.3, 0.45])
@pytest.mark.parametrize(
    "words",
    [
        ("run", "--rm", "-v", "data:/etc", "busybox", "true"),
        ("rmi", "-f", "busybox"),
        ("network", "create", "net"),
    ],
    ids=lambda words: words[0],
)
def test_a_command_killed_at_any_moment_leaves_nothing_that_is_not_repaired(sick, words, delay):
    if words[0] == "rmi":
        sick("run", "--rm", "--network", "none", "busybox", "true")
    process = sick.popen(*words)
    time.sleep(delay)
    process.kill()
    process.communicate(timeout=30)
    with engine_of(sick) as engine:  # a supervisor that was on its way ends what it does
        sick.wait_until(lambda: not any(engine.containers.alive(c.id) for c in engine.state.containers()))
    code, found = ask(sick, "--repair")
    assert code == 0, found
    assert ask(sick) == (0, [])
    with engine_of(sick) as engine:
        groups, owned = engine.limits().owned(), inside(sick.netns, engine.network_driver("bridge").owned)
        assert (groups, owned.endpoints) == (frozenset(), frozenset())


@pytest.mark.parametrize("part", ["run", "data"])
def test_directories_of_no_container_are_found_and_removed(sick, part):
    directory = getattr(sick, part) / "transom/containers" / STRAY
    directory.mkdir(parents=True)
    (directory / "file").write_text("x")
    heals(sick, f"directory {directory}: no container has it")
    assert not directory.exists()


def test_lock_files_of_gone_containers_are_swept_without_a_word(sick):
    locks = sick.run / "transom/locks"
    locks.mkdir(exist_ok=True)
    (locks / STRAY).touch()
    (locks / f"{STRAY}.alive").touch()
    with Lock(locks / ("6" * 64)):
        assert ask(sick, "--repair") == (0, [])
        assert sorted(path.name for path in locks.iterdir() if len(path.name) >= 64) == ["6" * 64]


# Groups


def test_groups_of_no_container_are_found_and_removed_with_their_processes(sick):
    from transom.contract.limits import Resources

    with engine_of(sick) as engine:
        limits = engine.limits()
        joins = limits.create(id=STRAY, resources=Resources())
        process = subprocess.Popen(["sleep", "1000"])
        try:
            for join in joins:
                Path(join).write_text(str(process.pid))
            heals(sick, f"group {limits.name} 555555555555: no container runs in it")
            assert process.wait(10) == -signal.SIGKILL
        finally:
            process.kill()
            process.wait()
        assert limits.owned() == frozenset()


# Networks


def test_networks_and_endpoints_without_a_record_are_found_and_removed(sick):
    netns = create()
    try:
        with engine_of(sick) as engine:
            bridge = engine.network_driver("bridge")
            network = Network(id="7" * 64, name="lost", options=bridge.NetworkOptions())
            endpoint = Endpoint(
                id="8" * 64, container=STRAY, addresses=("10.78.0.2/24",), options=bridge.EndpointOptions()
            )  # fmt: skip

            def make():
                bridge.create_network(network=network)
                bridge.attach(network=network, endpoint=endpoint, netns=netns)

            inside(sick.netns, make)
            heals(
                sick,
                "endpoint bridge 888888888888: no record has this endpoint",
                "network bridge 777777777777: no record has this network",
            )
            owned = inside(sick.netns, bridge.owned)
            assert (owned.networks, owned.endpoints) == (frozenset(), frozenset())
    finally:
        os.close(netns)


def test_a_network_that_was_tampered_with_works_again_and_its_other_containers_notice_nothing(sick):
    sick("network", "create", "--subnet", "10.78.0.0/24", "net")
    words = ["run", "-d", "--network", "net"]
    sick(*words, "--name", "web", "-p", "8080:80", "busybox", "httpd", "-f")
    sick(*words, "--name", "other", "busybox", "httpd", "-f", "-p", "81")

    def reach(*place):
        with inside(sick.netns, socket.create_connection, place, timeout=60) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return b" 404 " in client.recv(99)

    assert reach("127.0.0.1", 8080)
    untouched = inside(sick.netns, socket.create_connection, ("10.78.0.3", 81), timeout=60)
    end = sick.inspect("web")["NetworkSettings"]["Networks"]["net"]["EndpointID"]
    for command in (["nft", "flush", "ruleset"], ["ip", "link", "delete", f"vt{end[:13]}"]):
        inside(sick.netns, partial(subprocess.run, command, check=True))
    heals(sick, f"network net: endpoint {end[:12]} has no interface (and 2 more)")
    assert reach("127.0.0.1", 8080)
    assert reach("10.78.0.2", 80)
    with untouched:
        untouched.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 404 " in untouched.recv(99)


@pytest.mark.parametrize(
    ("command", "said", "joined_anew"),
    [
        ("ip address flush dev eth0", "endpoint {}: eth0 has lost its address 10.78.0.2 (and 1 more)", True),
        ("ip link set eth0 down", "endpoint {}: eth0 is down (and 1 more)", True),
        ("ip route delete default", "endpoint {} has no default IPv4 route", False),
        ("host: sysctl -qw net.ipv4.ip_forward=0", "IPv4 forwarding is off (net.ipv4.ip_forward)", False),
    ],
)
def test_what_a_container_or_the_host_lost_comes_back_and_only_who_must_joins_anew(sick, command, said, joined_anew):
    sick("network", "create", "--subnet", "10.78.0.0/24", "net")
    web = sick.detached("--name", "web", network="net")
    sick.detached("--name", "other", network="net")
    at = lambda: [sick.inspect(name)["NetworkSettings"]["Networks"]["net"] for name in ("web", "other")]  # noqa: E731
    numbers = lambda: [re.findall(r"(\d+): eth0", sick("exec", name, "ip", "link")) for name in ("web", "other")]  # noqa: E731
    places, before = at(), numbers()
    with open(f"/proc/{sick.inspect(web)['State']['Pid']}/ns/net") as netns:
        where = sick.netns if command.startswith("host: ") else netns.fileno()
        inside(where, partial(subprocess.run, command.removeprefix("host: ").split(), check=True))
    heals(sick, f"network net: {said.format(places[0]['EndpointID'][:12])}")
    assert at() == places
    assert "default via 10.78.0.1" in sick("exec", "web", "ip", "route")
    after = numbers()
    assert after[1] == before[1], "the other container's interface is the one that it was"
    assert (after[0] != before[0]) is joined_anew


def test_addresses_that_nobody_has_are_given_back(sick):
    sick("network", "create", "net")
    with engine_of(sick) as engine:
        record = engine.networks.get("net")
        known = Network(id=record.id, name="net")
        engine.addresses.ipam.allocate(known, Endpoint(id="8" * 64, container=STRAY))
        inside(sick.netns, engine.addresses.ipam.settle, Network(id="7" * 64, name="lost"), ipv4=True, ipv6=False)
    code, found = ask(sick)
    assert (code, found[0]) == (1, "addresses the subnets: of network lost, which is gone")
    assert found[1].endswith(": of endpoint 888888888888, which is gone")
    heals(sick, *found)


def test_networks_of_another_engine_in_the_same_namespace_are_left_alone(sick, tmp_path):
    other = type(sick)(tmp_path / "other-data", tmp_path / "other-run")
    os.dup2(sick.netns, other.netns)
    other.env["TRANSOM_CONFIG"] = sick.env["TRANSOM_CONFIG"]
    try:
        other(
            "import",
            "-",
            "busybox",
            input=subprocess.run(["tar", "-c", "-C", "/bin", "busybox"], check=True, capture_output=True).stdout,
        )
        other("run", "-d", "--name", "theirs", "busybox", "/busybox", "sleep", "1000")
        report = msgspec.json.decode(sick("doctor", "--repair", "--format", "json"))
        assert report["Findings"] == []
        assert report["Remarks"] == [
            f"containers of another engine ({tmp_path}/other-run) use this network namespace:"
            " networks and endpoints without a record may be its own and were not judged"
        ]
        assert other.inspect("theirs")["State"]["Running"] is True
        assert "172.17.0.2" in other("exec", "theirs", "/busybox", "ip", "addr")
    finally:
        other.close()


# Layers


@pytest.fixture
def unpacked(sick):
    """The command with an unpacked image."""
    sick("run", "--rm", "--network", "none", "busybox", "true")
    return sick


def test_a_layer_on_disk_without_a_record_is_found_and_removed(unpacked):
    with engine_of(unpacked) as engine:
        driver = engine.snapshots().driver
        driver.prepare(id="abcdefabcdefabcdef12", parents=(), size=None, idmap=None)
        name = driver.name
    heals(unpacked, f"layer {name}: abcdefabcdefabcdef12 is on disk without a record")


def test_a_layer_that_was_being_made_is_found_and_removed(unpacked):
    with engine_of(unpacked) as engine:
        snapshots = engine.snapshots()
        snapshots.prepare("draft", None)
        snapshots._db().execute("UPDATE layer SET state = 'preparing' WHERE key = 'draft'")
        name = snapshots.driver.name
        with Lock(f"{snapshots.driver.root}.layers/lock", shared=True):
            report = msgspec.json.decode(unpacked("doctor", "--format", "json"))
            assert report["Findings"] == []
            assert report["Remarks"] == [
                f"layers of the storage driver {name} were not judged: one is being made or removed"
            ]
    heals(unpacked, f"layer {name}: layer draft is unfinished (preparing)")


@pytest.mark.parametrize("key", ["unpack-1-2", "init-sha256:1.0011", "sha256:" + "1" * 64, STRAY])
def test_layers_that_nothing_needs_are_found_and_removed(unpacked, key):
    with engine_of(unpacked) as engine:
        snapshots = engine.snapshots()
        snapshots.prepare(key, None)
        claim = snapshots.claim(key)
        assert ask(unpacked) == (0, []), "it is mounted"
        claim.release()
        with engine.lock(f"unpack-{snapshots.driver.name}"):
            report = msgspec.json.decode(unpacked("doctor", "--format", "json"))
            assert report["Remarks"] == [
                f"layers of the storage driver {snapshots.driver.name} were not judged: one is being unpacked"
            ]
            assert report["Findings"] == []
        heals(unpacked, f"layer {snapshots.driver.name} {key}: no container and no image needs it")
        assert not snapshots.exists(key)


def test_a_layer_whose_container_was_forgotten_says_whose_it_was(unpacked):
    id = unpacked("create", "--network", "none", "--name", "web", "busybox")
    with engine_of(unpacked) as engine:
        layer = engine.snapshots().stat(id)
        assert layer.labels == {"transom.container": "web", "transom.image": "busybox"}
        with engine.lock(id):
            engine.snapshots().remove(id)
        engine.snapshots().prepare(STRAY, layer.parent, labels=layer.labels)
        name = engine.snapshots().driver.name
    unpacked("rm", "web")
    made = "it was made for the container web of busybox"
    heals(unpacked, f"layer {name} {STRAY}: no container and no image needs it; {made}")


def test_the_layers_of_an_image_removed_beside_the_engine_go(unpacked):
    with engine_of(unpacked) as engine:
        engine.images.remove("busybox")
        engine.images.collect()
    code, found = ask(unpacked, "--repair")
    assert (code, len(found)) == (0, 2)
    assert all(line.endswith("no container and no image needs it") for line in found)
    assert ask(unpacked) == (0, [])


def test_a_lost_layer_of_an_image_is_unpacked_again_after_the_repair(unpacked):
    with engine_of(unpacked) as engine:
        snapshots = engine.snapshots()
        base = next(layer for layer in snapshots.walk() if layer.parent is None)
        snapshots.driver.remove(id=base.id)
    heals(unpacked, f"layer {snapshots.driver.name}: layer {base.key} has a record but no data")
    assert unpacked("run", "--rm", "--network", "none", "busybox", "echo", "hello") == "hello"


def changed_from_outside(snapshots, key):
    """Change the image's layer behind the engine's back, on disk, and return its words about it."""
    layer = snapshots.stat(key)
    content = Path(snapshots.driver.content(id=layer.id) or f"{snapshots.driver.root}/{layer.id}")
    (content / "added").write_text("1")
    (content / "bin" / "busybox").chmod(0o4755)
    what = "A /added, C /bin/busybox"
    return f"layer {snapshots.driver.name} {key}: it was changed by something else than transom: {what}"


def test_a_layer_that_was_changed_from_outside_is_found_when_looked_at_deeply_and_replaced(unpacked):
    assert ask(unpacked, "--deep") == (0, [])
    with engine_of(unpacked) as engine:
        snapshots = engine.snapshots()
        base = next(layer for layer in snapshots.walk() if layer.parent is None)
        line = changed_from_outside(snapshots, base.key)
        owned = snapshots.driver.owned()
    assert ask(unpacked) == (0, []), "nobody asked to compare"
    assert ask(unpacked, "--deep") == (1, [line])
    id = unpacked("create", "--network", "none", "--name", "web", "busybox")
    done = unpacked.call("doctor", "--deep", "--repair")
    failure = "made over it are the containers web: remove them, then repair again"
    assert f"  failed   {line}; it could not be repaired: {failure}" in done.out.splitlines()
    unpacked("rm", "web")
    with engine_of(unpacked) as engine:
        assert not engine.snapshots().exists(id)
        assert engine.snapshots().driver.owned() == owned, "nothing of what was unpacked to compare is left"
    assert ask(unpacked, "--deep", "--repair") == (0, [line])
    assert "added" not in unpacked("run", "--rm", "--network", "none", "busybox", "ls", "/").split()
    assert ask(unpacked, "--deep") == (0, [])


def test_a_layer_whose_tar_is_gone_is_said_not_to_be_compared(unpacked):
    with engine_of(unpacked) as engine:
        (image,) = engine.images.walk()
        os.unlink(engine.content.path(image.layers[0].digest))
    report = msgspec.json.decode(unpacked("doctor", "--deep", "--format", "json"))
    (remark,) = report["Remarks"]
    assert re.fullmatch(rf"layer \w+ {image.layers[0].chain_id} was not compared: .*{image.layers[0].digest}.*", remark)


def test_a_container_whose_data_is_lost_is_named_and_stays(unpacked):
    id = unpacked("create", "--network", "none", "--name", "web", "busybox")
    with engine_of(unpacked) as engine:
        snapshots = engine.snapshots()
        snapshots.driver.remove(id=snapshots.stat(id).id)
    done = unpacked.call("doctor", "--repair")
    assert done.code == 1
    name = snapshots.driver.name
    assert (
        f"  failed   layer {name}: layer {id} has a record but no data; it could not be repaired:"
        f" the data of container {id[:12]} is lost; remove it: transom rm {id[:12]}"
    ) in done.out.splitlines()
    unpacked("rm", "web")
    assert ask(unpacked) == (0, [])


def test_layers_of_a_driver_that_is_gone_are_said_not_to_be_judged(sick):
    (sick.data / "transom/storage/zfs9.layers").mkdir(parents=True)
    report = msgspec.json.decode(sick("doctor", "--format", "json"))
    assert len(report["Remarks"]) == 1
    assert report["Remarks"][0].startswith(
        "layers of the storage driver zfs9 were not judged: no storage driver 'zfs9'"
    )


# Volumes and images


def test_volumes_without_a_record_are_removed_when_empty_and_recorded_when_not(sick):
    root = sick.data / "transom/volumes"
    (root / "empty/_data").mkdir(parents=True)
    (root / "full/_data").mkdir(parents=True)
    (root / "full/_data/file").write_text("precious")
    heals(sick, "volume empty: it has no record", "volume full: it has no record")
    assert sick("volume", "ls", "-q") == "full"
    assert sick("run", "--rm", "--network", "none", "-v", "full:/v", "busybox", "cat", "/v/file") == "precious"


def test_a_volume_without_a_directory_gets_one(sick):
    sick("volume", "create", "data")
    (sick.data / "transom/volumes/data/_data").rmdir()
    heals(sick, "volume data: its directory is missing")


def test_a_volume_that_was_being_filled_is_cleaned(sick):
    sick("volume", "create", "data")
    filling = sick.data / "transom/volumes/data/_filling"
    filling.mkdir()
    (filling / "half").write_text("x")
    heals(sick, "volume data: it was being filled")
    assert not filling.exists()


def test_blobs_that_no_image_needs_and_dead_partials_are_found_and_removed(sick):
    content = sick.data / "transom/content"
    digest = "sha256:" + "a" * 64
    (content / "blobs/sha256" / ("a" * 64)).write_text("x")
    partial = content / "ingest/anonymous-1.partial"
    partial.write_text("half")
    (content / "ingest" / f"sha256-{'b' * 64}.partial").write_text("worth continuing")
    with engine_of(sick) as engine, engine.content.lease():
        assert ask(sick) == (0, []), "a pull is under way"
    with Lock(partial):
        assert ask(sick) == (1, [f"blob {digest}: no image needs it"]), "it is being written"
    heals(sick, f"blob {digest}: no image needs it", "blob anonymous-1.partial: it was being written")
    assert len(os.listdir(content / "ingest")) == 1
    assert sick("run", "--rm", "--network", "none", "busybox", "echo", "hello") == "hello"


def test_half_written_files_of_dead_processes_are_found_and_removed(sick):
    living = subprocess.Popen(["sleep", "1000"])
    try:
        (sick.run / f"transom/drivers.json.{living.pid}.tmp").touch()
        file, link = sick.run / "transom/drivers.json.9999999.tmp", sick.run / "transom/chosen-storage.9999999"
        file.touch()
        link.symlink_to("overlay2")
        heals(sick, f"file {link}: it was being written", f"file {file}: it was being written")
        assert (sick.run / f"transom/drivers.json.{living.pid}.tmp").exists()
    finally:
        living.kill()
        living.wait()


# The host, and what is printed


def test_the_host_is_probed(sick):
    report = msgspec.json.decode(sick("doctor", "--format", "json"))
    found = {check["Name"]: check for check in report["Host"]}
    assert found["kernel"]["Text"] == f"Linux {os.uname().release}"
    assert found["runtime"]["Status"] == "ok"
    assert " runs a container (" in found["runtime"]["Text"]
    assert found["storage"]["Text"].startswith("overlay2")
    assert found["disk"]["Text"].endswith(f" are free in {sick.data}/transom")
    assert {"limits", "network", "logging", "capabilities", "forwarding"} <= found.keys()


def test_problems_of_the_host_are_told_and_fail(sick):
    sick.env |= {"TRANSOM_DEFAULT_RUNTIME": "/nowhere/crun", "TRANSOM_STORAGE_DRIVER": "overlay3"}
    done = sick.call("doctor")
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert lines[0] == "Host"
    assert (
        "  problem  runtime       no OCI runtime works on this host (/nowhere/crun: not found);"
        " install Debian's package crun or runc"
    ) in lines
    assert any(line.startswith("  problem  storage       no storage driver 'overlay3'") for line in lines)


def test_missing_capabilities_are_remarks_with_what_they_cost(sick):
    libc = ctypes.CDLL(None)

    def drop():
        sick.enter()
        libc.prctl(24, 24, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SYS_RESOURCE

    done = subprocess.run([COMMAND, "doctor"], env=sick.env, preexec_fn=drop, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (
        "  remark   capabilities  CAP_SYS_RESOURCE is missing: limits above the engine's own,"
        " and a lower oom-score-adj, are lowered to the engine's"
    ) in done.stdout.splitlines()


def test_findings_are_printed_with_what_to_do(sick):
    sick("volume", "create", "data")
    (sick.data / "transom/volumes/data/_data").rmdir()
    assert sick.call("doctor").out.splitlines()[-3:] == [
        "Left by crashes",
        "  found    volume data: its directory is missing",
        "  `transom doctor --repair` puts this right",
    ]
    assert sick("doctor", "--repair").splitlines()[-1] == "  repaired volume data: its directory is missing"


def test_the_only_format_is_json(sick):
    assert sick.fails("doctor", "--format", "xml", code=125) == "--format 'xml': the only one is json"
