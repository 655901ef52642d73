"""What a user can get wrong, and the one line that says so: what, where, what next."""

import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess

import pytest

from transom.services.netns import inside

# A group of command lines, each with its exit code and what it complains, all of it.
LINES = {
    "names of things that are not there": """
run --pull never nosuch true
    125 no such image: nosuch; `transom images` lists those here; `transom pull nosuch` fetches it
tag nosuch a:b
    125 no such image: nosuch; `transom images` lists those here; `transom pull nosuch` fetches it
start nosuch
    1 no such container: nosuch; `transom ps -a` lists those here
rm nosuch
    1 no such container: nosuch; `transom ps -a` lists those here
exec nosuch true
    125 no such container: nosuch; `transom ps -a` lists those here
volume rm nosuch
    1 no such volume: nosuch; `transom volume ls` lists those here
run --network nosuch busybox true
    125 no such network: nosuch; networks here: bridge
run --network container:nosuch busybox true
    125 no such container: nosuch; `transom ps -a` lists those here
runn busybox
    125 no such command: runn (did you mean run?); see `transom --help`
run --zzzz busybox
    125 No such option '--zzzz'; see `transom run --help`
run
    125 Missing argument 'IMAGE'; see `transom run --help`
pull UPPER
    125 invalid image name UPPER: repository name (UPPER) must be lowercase; did you mean upper?
""",
    "drivers of each kind": """
run --storage-driver overlay busybox true
    125 no storage driver 'overlay' (did you mean overlay2?); installed: STORAGE; a driver comes with a distribution such as transom-storage-overlay
--storage-driver overlay run busybox true
    125 no storage driver 'overlay' (did you mean overlay2?); installed: STORAGE; a driver comes with a distribution such as transom-storage-overlay
run --log-driver jsonfile busybox true
    125 no logging driver 'jsonfile' (did you mean json-file?); installed: LOGGING; a driver comes with a distribution such as transom-logging-jsonfile
--limits-driver cgroup3 run --network none busybox true
    125 no limits driver 'cgroup3' (did you mean cgroup2?); installed: LIMITS; a driver comes with a distribution such as transom-limits-cgroup3
network create -d brigde n
    125 no network driver 'brigde' (did you mean bridge?); installed: NETWORK; a driver comes with a distribution such as transom-network-brigde
network create -d host n
    125 network driver host has one network only, which is there already: use it by its name
""",  # noqa: E501
    "options of drivers": """
run --log-opt max-sze=1m busybox true
    125 logging driver json-file has no option 'max-sze' (from --log-opt) (did you mean max-size?); it knows: cache-compress, cache-disabled, cache-max-file, cache-max-size, compress, env, env-regex, labels, labels-regex, max-buffer-size, max-file, max-size, mode, on-error, tag
run --log-opt mode=async busybox true
    125 logging driver json-file: mode='async' (from --log-opt): expected one of blocking, non-blocking
run --log-opt max-buffer-size=1m busybox true
    125 logging driver json-file (from --log-opt): max-buffer-size option is only supported with 'mode=non-blocking'
run --log-opt max-size=1x busybox true
    125 logging driver json-file: max-size='1x' (from --log-opt): expected a size such as 10m, or -1
run --storage-opt sze=1G busybox true
    125 --storage-opt sze: a container's storage options are size, such as size=10G, and inodes, such as inodes=100000
run --storage-opt inodes=0 busybox true
    125 --storage-opt inodes=0: expected how many files a container may hold, such as 100000
run --storage-opt inodes=1k busybox true
    125 --storage-opt inodes=1k: expected how many files a container may hold, such as 100000
network create --subnet 10.0.0.0/33 n
    125 '10.0.0.0/33' is not a subnet: write it as 172.18.0.0/16
""",  # noqa: E501
    "units and limits": """
run -m 4m busybox true
    125 memory limit 4m is below the minimum of 6 MB
run -m 6291455 busybox true
    125 memory limit 6291455 is below the minimum of 6 MB
run -m 10q busybox true
    125 --memory '10q': invalid size; expected a size such as 512m or 2g
run --memory-swap 1m -m 10m busybox true
    125 memory-swap 1m is below the memory limit 10m: it counts memory and swap
run --cpus x busybox true
    125 --cpus 'x': invalid number; expected a number such as 1.5
run --memory-swap 100m busybox true
    125 memory-swap needs a memory limit too: set memory
run --memory-swap -2 -m 10m busybox true
    125 --memory-swap '-2': invalid size; expected a size such as 512m or 2g, or -1 for no limit
run --memory-reservation 1m busybox true
    125 memory reservation 1m is below the minimum of 6 MB
run --memory-reservation 100m -m 64m busybox true
    125 memory reservation 100m is above the memory limit 64m
run --kernel-memory 1m busybox true
    125 kernel memory limit 1m is below the minimum of 6 MB
run --memory-swappiness 101 busybox true
    125 memory-swappiness 101 is out of range: use 0 to 100
run --oom-kill-disable=x busybox true
    125 invalid value 'x' for the flag --oom-kill-disable: expected true or false; see `transom run --help`
run --oom-score-adj 2000 busybox true
    125 invalid value 2000, range for oom score adj is [-1000, 1000]
run --cpu-period 10 busybox true
    125 cpu-period 10 us is out of range: use 1000 to 1000000 us
run --cpu-quota 10 busybox true
    125 cpu-quota 10 us is below the minimum of 1000 us, 0.01 CPU of the usual period; -1 is no limit
run --cpus 1 --cpu-quota 1000 busybox true
    125 conflicting options: --cpus and --cpu-quota cannot both be set, --cpus is both at once
run --cpu-shares 1 busybox true
    125 cpu-shares 1 is out of range: use 2 to 262144
run --cpu-rt-period 1000 --cpu-rt-runtime 2000 busybox true
    125 cpu-rt-runtime 2000 us is longer than its period, 1000 us
run --cpuset-cpus 1-0 busybox true
    125 cpuset-cpus '1-0' is not a list such as 0-2,4
run --cpuset-mems x busybox true
    125 cpuset-mems 'x' is not a list such as 0-2,4
run --blkio-weight 5 busybox true
    125 blkio-weight 5 is out of range: use 10 to 1000
run --blkio-weight-device /dev/null:100 busybox true
    125 device '/dev/null' is not a block device; give a block device's path or MAJOR:MINOR
run --device-read-bps /dev/nosuch:1mb busybox true
    125 device '/dev/nosuch': No such file or directory; give a block device's path or MAJOR:MINOR
run --device-write-bps /dev/null:0 busybox true
    125 --device-write-bps '/dev/null:0': invalid rate '0'; expected DEVICE:NUMBER[UNIT], the unit being kb, mb or gb, a path or MAJOR:MINOR
run --device-read-iops 300:300:10 busybox true
    125 device '300:300': no block device has these numbers; `lsblk` lists those here
run --device-write-iops /dev/null:1k busybox true
    125 --device-write-iops '/dev/null:1k': invalid rate '1k'; expected DEVICE:NUMBER, a path or MAJOR:MINOR
run --hugetlb-limit 2MB busybox true
    125 --hugetlb-limit '2MB': invalid limit of huge pages; expected PAGE_SIZE:BYTES such as 2MB:64m
run --device-cgroup-rule nosuch busybox true
    125 --device-cgroup-rule 'nosuch': invalid device cgroup format; expected TYPE MAJOR:MINOR ACCESS
run --pids-limit x busybox true
    125 Invalid value for '--pids-limit': 'x' is not a valid integer; see `transom run --help`
run --ulimit nofile=x busybox true
    125 --ulimit 'nofile=x': invalid ulimit argument; expected NAME=SOFT[:HARD]
run --restart sometimes busybox true
    125 --restart 'sometimes': invalid restart policy 'sometimes'; expected no, always, unless-stopped or on-failure[:MAX_RETRIES]
run --stop-signal NOPE busybox true
    125 invalid signal: NOPE; a name such as TERM or a number from 1 to 64
""",  # noqa: E501
    "places and addresses": """
run -p 80000:80 busybox true
    125 -p '80000:80': invalid port '80000'; expected [[IP:][HOST_PORT]:]CONTAINER_PORT[/PROTOCOL], ports being numbers or ranges such as 8000-8010
run -v relative:/x:rq busybox true
    125 -v 'relative:/x:rq': invalid mode 'rq'; expected ro, rw, z, Z, consistent, cached, delegated, nocopy
run -w relative busybox true
    125 the working directory 'relative' is invalid, it needs to be an absolute path
run --dns x busybox true
    125 --dns 'x': not an IP address; write one such as 192.0.2.53
run --ip 10.0.0.1 busybox true
    125 a fixed address (--ip) is only supported on user-defined networks: `transom network create`
""",  # noqa: E501
    "what shows when it starts": """
run --device /dev/nosuch busybox true
    125 error gathering device information while adding custom device "/dev/nosuch": No such file or directory
run --network none busybox nosuch
    127 exec: "nosuch": executable file not found in the container's $PATH
run --network none busybox /etc/passwd
    126 exec: "/etc/passwd": permission denied: not an executable file
run --network none -u nosuch busybox true
    125 unable to find user nosuch: no matching entries in passwd file; name a numeric uid
""",
}  # fmt: skip


def installed(kind):
    from transom.drivers import installed

    return ", ".join(driver.name for driver in installed(kind))


@pytest.mark.parametrize("group", LINES)
def test_bad_words_are_answered_in_one_line(world, group):
    lines = LINES[group].strip().splitlines()
    for words, answer in zip(lines[::2], lines[1::2], strict=True):
        code, _, text = answer.strip().partition(" ")
        for kind in ("storage", "logging", "limits", "network"):
            text = text.replace(f"installed: {kind.upper()};", f"installed: {installed(kind)};")
        done = world.transom.call(*shlex.split(words))
        assert (done.err, done.code) == (f"transom: {text}\n", int(code)), words
    records = world.listed()
    assert {*records.values()} <= {"created"}, "a container that was refused is on record"
    assert records == {} or group == "what shows when it starts"
    world.transom("run", "--rm", "--network", "none", "busybox", "true")


def test_each_flag_that_limits_has_a_line_here(request):
    page = (request.config.rootpath / "docs/limiting-resources.md").read_text()
    table = page.partition("|---")[2].partition("\n\n")[0]
    flags = set(re.findall(r"^\| .*?\|", table, re.MULTILINE))
    named = {flag for cell in flags for flag in re.findall(r"`(--[a-z-]+)`", cell)}
    shown = set(" ".join(LINES.values()).replace("=", " ").split()) | {"--memory"}  # shown as -m
    assert len(named) > 20
    assert named - shown == set()


def test_a_name_that_is_taken_is_refused(world):
    id = world.transom("create", "--name", "box", "busybox")
    error = world.transom.fails("create", "--name", "box", "busybox", code=125)
    assert error == (
        f"the container name 'box' is already in use by container {id[:12]};"
        " remove or rename that container, or choose another name"
    )


# Ports


def test_a_port_that_a_process_of_the_host_has_is_refused(world):
    listener = inside(world.transom.netns, socket.create_server, ("127.0.0.1", 0))
    with listener:
        port = listener.getsockname()[1]
        error = world.transom.fails("run", "-d", "-p", f"127.0.0.1:{port}:80", "busybox", "sleep", "1000", code=125)
    assert error == f"port {port}/tcp is taken: a program on this host uses it at 127.0.0.1; choose another one"
    assert {*world.listed().values()} == {"created"}
    world.transom("start", world.transom("ps", "-aq"))


def test_a_port_that_another_container_has_is_refused(world):
    world.transom.detached("--name", "box", "-p", "127.0.0.1:18080:80", network="bridge")
    error = world.transom.fails("run", "-d", "-p", "127.0.0.1:18080:80", "busybox", "sleep", "1000", code=125)
    assert error == "port 18080/tcp is taken: box has it at 127.0.0.1; choose another one"


# Images


def test_a_corrupt_tar_is_refused_and_leaves_nothing(world, tmp_path, busybox_tree):
    whole = tmp_path / "whole.tar"
    subprocess.run(["tar", "-C", busybox_tree, "-cf", whole, "."], check=True)
    before = world.transom("images", "-aq")
    for name, data in (
        ("cut", whole.read_bytes()[:100_000]),
        ("no", b"this is no tar " * 1000),
        ("empty", b""),
        ("flipped", whole.read_bytes()[:512].replace(b"0", b"7") + whole.read_bytes()[512:]),
    ):
        (tmp_path / name).write_bytes(data)
        error = world.transom.fails("import", tmp_path / name, "broken", code=125)
        assert "tar" in error
    assert world.transom("images", "-aq") == before
    world.transom("import", whole, "good")
    assert world.transom("run", "--rm", "--network", "none", "good", "/bin/echo", "works") == "works"


def test_a_blob_whose_digest_does_not_match_is_not_run(world):
    blobs = world.transom.data / "transom" / "content" / "blobs" / "sha256"
    layer = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(layer.read_bytes())
    data[len(data) // 2] ^= 0xFF
    layer.chmod(0o644)
    layer.write_bytes(data)
    words = ("--storage-driver", "vfs", "run", "--rm", "--network", "none", "busybox", "true")  # not yet unpacked
    error = world.transom.fails(*words, code=125)
    assert layer.name[:12] in error
    assert hashlib.sha256(data).hexdigest() != layer.name
    assert world.listed() == {}
    world.transom("run", "--rm", "--network", "none", "busybox", "true")


# The host


def test_a_user_who_is_not_root_is_told_so(transom):
    done = subprocess.run(
        ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", _command(), "ps"],
        env=transom.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if "Permission denied" in done.stderr and "transom:" not in done.stderr:
        pytest.skip("the command lies where only root can read")
    assert (done.returncode, done.stderr) == (
        125, "transom: transom must run as root: it makes namespaces, mounts and interfaces; try sudo\n",
    )  # fmt: skip


def _command():
    import sys
    from pathlib import Path

    return str(Path(sys.executable).with_name("transom"))


def configure(world, **keys):
    config = json.loads(world.config.read_text())
    world.config.write_text(json.dumps({**config, **keys}))


def test_a_runtime_that_is_not_there_is_named(world):
    configure(world, **{"default-runtime": "krun"})
    error = world.transom.fails("run", "--network", "none", "busybox", "true", code=125)
    assert error == 'unknown runtime "krun"; known: crun, runc, or the path of one of them'
    configure(world, **{"default-runtime": "/nosuch/runc"})
    error = world.transom.fails("run", "--network", "none", "busybox", "true", code=125)
    assert "/nosuch/runc" in error
    configure(world, **{"default-runtime": ""})
    error = world.transom.fails("run", "--runtime", "krun", "busybox", "true", code=125)
    assert "--runtime 'krun'" in error


def test_a_runtime_that_does_not_work_is_told_with_its_own_words(world, tmp_path):
    broken = tmp_path / "runc"
    broken.write_text("#!/bin/sh\necho it is broken >&2; exit 1\n")
    broken.chmod(0o755)
    configure(world, **{"default-runtime": str(broken)})
    error = world.transom.fails("run", "--network", "none", "busybox", "true", code=125)
    assert str(broken) in error
    assert "it is broken" in error
    configure(world, **{"default-runtime": ""})


def test_a_typo_in_the_configuration_names_the_nearest_key(world):
    configure(world, **{"storage-drivr": "vfs"})
    error = world.transom.fails("ps", code=125)
    assert "'storage-drivr'" in error
    assert "did you mean storage-driver" in error
    assert str(world.config) in error
    world.config.write_text("{}")


@pytest.mark.parametrize("text", ["{", "[]", '{"debug": "yes"}', '{"mtu": -1}', '{"storage-driver": 3}', "\xff"])
def test_a_configuration_that_is_none_is_refused_with_its_place(transom, tmp_path, text):
    (tmp_path / "daemon.json").write_bytes(text.encode("latin-1"))
    error = transom.fails("--config", tmp_path / "daemon.json", "ps", code=125)
    assert str(tmp_path / "daemon.json") in error


@pytest.fixture
def mounted(tmp_path):
    """A function that mounts something at a directory, for as long as the test lasts."""
    places = []

    def mount(*words, at):
        subprocess.run(["mount", *words, at], check=True)
        places.append(at)

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=True)


def test_a_data_root_that_cannot_be_written_is_named(transom, tmp_path, mounted):
    (tmp_path / "ro").mkdir()
    mounted("--bind", tmp_path / "ro", at=tmp_path / "ro")
    subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path / "ro"], check=True)
    error = transom.fails("--data-root", tmp_path / "ro", "ps", code=125)
    assert f"data-root {tmp_path}/ro/transom" in error
    assert "Read-only file system" in error
    error = transom.fails("--data-root", "/proc/nosuch", "ps", code=125)
    assert "data-root /proc/nosuch/transom" in error


def test_records_that_are_corrupt_are_said_in_one_line(world):
    database = world.transom.data / "transom" / "state.db"
    for path in database.parent.glob("state.db*"):
        shutil.copy(path, f"{path}.kept")
    for path in (f"{database}-wal", f"{database}-shm"):
        if os.path.exists(path):
            os.unlink(path)
    database.write_bytes(b"SQLite format 3\0" + os.urandom(8192))
    for words in (("ps", "-a"), ("run", "--rm", "--network", "none", "busybox", "true"), ("inspect", "x")):
        error = world.transom.fails(*words)
        assert str(database) in error
        assert "Traceback" not in error
    for path in (f"{database}-wal", f"{database}-shm"):
        if os.path.exists(path):
            os.unlink(path)
    for path in list(database.parent.glob("state.db*.kept")):
        os.rename(path, str(path).removesuffix(".kept"))
    world.transom("run", "--rm", "--network", "none", "busybox", "true")


# A full disk


@pytest.fixture
def tight(transom, tmp_path, mounted):
    """A function that gives the command a data root of its own, a tmpfs of so many bytes."""

    def make(size):
        place = tmp_path / "tight"
        place.mkdir()
        mounted("-t", "tmpfs", "-o", f"size={size}", "tmpfs", at=place)
        transom.env["TRANSOM_DATA_ROOT"] = str(place)
        return place

    wide = transom.env["TRANSOM_DATA_ROOT"]
    yield make
    names = transom("ps", "-aq").split()
    if names:
        transom("rm", "-f", *names)
    transom.env["TRANSOM_DATA_ROOT"] = wide


def test_an_import_onto_a_full_disk_is_refused_whole(transom, tight, busybox_tree):
    place = tight("1m")
    error = transom.fails("import", busybox_tree, "busybox", code=125)
    assert "No space left on device" in error
    assert transom("images", "-q") == ""
    subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
    transom("import", busybox_tree, "busybox")
    assert transom("run", "--rm", "--network", "none", "busybox", "/bin/echo", "works") == "works"


@pytest.mark.parametrize("driver", ["overlay2", "vfs"])
def test_a_full_disk_while_an_image_is_unpacked_or_a_container_made_is_survived(transom, tight, busybox_tree, driver):
    place = tight("32m")
    transom.env["TRANSOM_STORAGE_DRIVER"] = driver
    transom("import", busybox_tree, "busybox")
    stuffing = place / "stuffing"
    used = shutil.disk_usage(place).used
    run = ("run", "--rm", "--network", "none", "busybox", "/bin/echo", "works")
    failed = 0
    for free in (0, 4 << 10, 64 << 10, 256 << 10, 1 << 20, 3 << 20):
        stuffing.write_bytes(b"x" * ((32 << 20) - used - free))
        done = transom.call(*run)
        stuffing.unlink()
        assert "Traceback" not in done.err
        if done.code:
            failed += 1
            assert done.err.count("\n") == 1, done.err
            assert "No space left on device" in done.err or "disk is full" in done.err, done.err
        assert transom("ps", "-aq") == ""
        assert transom("images", "-q") != ""
    assert failed
    assert transom(*run) == "works"


def test_records_outlive_a_full_disk(transom, tight, busybox_tree):
    place = tight("32m")
    transom("import", busybox_tree, "busybox")
    transom("run", "-d", "--name", "box", "--network", "none", "busybox", "/bin/sh", "-c", "/bin/sleep 1000")
    stuffing = os.open(place / "stuffing", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError, match="No space left"):
        while os.write(stuffing, b"x" * 4096):
            pass
    os.close(stuffing)
    assert transom("ps", "--format", "{{.Names}} {{.State}}") == "box running"
    for words in (("stop", "-t", "0", "box"), ("rename", "box", "other"), ("create", "--name", "more", "busybox")):
        done = transom.call(*words)
        assert "Traceback" not in done.err
        assert done.err.count("\n") <= 1
    (place / "stuffing").unlink()
    names = transom("ps", "-a", "--format", "{{.Names}}").split()
    assert names in (["box"], ["other"])
    transom("rm", "-f", *names)
