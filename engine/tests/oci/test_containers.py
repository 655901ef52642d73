"""The configurations at work: real containers, by each runtime that works on this host."""

import array
import os
import re
import shutil
import socket
import uuid

import msgspec
import pytest

from transom.services import netns
from transom_engine.model import Device, MountPoint, Ulimit
from transom_engine.oci import spec
from transom_engine.oci.host import CAPABILITIES, DEFAULT_CAPABILITIES, Host


def mask(names):
    return f"{sum(1 << CAPABILITIES.index(name) for name in names):016x}"


def held(names):
    return mask(set(names) & Host.read().capabilities)


def status_of(text):
    return dict(re.findall(r"^(\w+):\s*(.*)$", text, re.MULTILINE))


def test_a_process_has_dockers_capabilities_and_filter_and_is_pid_one(place, record):
    status = status_of(place.run(record("cat", "/proc/self/status")))
    assert status["Pid"] == "1"
    assert status["CapEff"] == status["CapPrm"] == status["CapBnd"] == held(DEFAULT_CAPABILITIES)
    assert status["CapInh"] == status["CapAmb"] == mask([])
    assert (status["Seccomp"], status["NoNewPrivs"]) == ("2", "0")


def test_another_user_has_its_groups_and_no_capabilities(place, record):
    out = place.run(record("sh", "-c", "id; pwd; echo $HOME; cat /proc/self/status", config={"user": "svc"}))
    assert "uid=1000(svc) gid=1001(svc)" in out
    assert set(status_of(out)["Groups"].split()) == {"29", "44", "1001"}
    assert "\n/home/svc\n" in out
    assert status_of(out)["CapEff"] == mask([])
    assert status_of(out)["CapBnd"] == held(DEFAULT_CAPABILITIES)


def test_dropped_and_added_capabilities_and_no_new_privileges(place, record):
    container = record(
        "cat", "/proc/self/status", cap_drop=["ALL"], cap_add=["net_raw"], security_opt=["no-new-privileges"]
    )
    status = status_of(place.run(container))
    assert status["CapEff"] == status["CapBnd"] == mask(["CAP_NET_RAW"])
    assert status["NoNewPrivs"] == "1"


def test_privileged_has_all_that_the_engine_has(place, record):
    command = "cat /proc/self/status; ls /dev; mount; head -c1 /proc/keys >/dev/null && echo unmasked"
    out = place.run(record("sh", "-c", command, privileged=True))
    status = status_of(out)
    assert status["CapEff"] == status["CapBnd"] == held(CAPABILITIES)
    assert status["Seccomp"] == "0"
    assert {"kmsg", "null", "pts"} <= set(out.split())
    assert re.search(r" on /sys type sysfs \(rw", out)
    assert "unmasked" in out


def test_the_devices_and_mounts_are_dockers(place, record):
    out = place.run(record("sh", "-c", "ls /dev; mount"))
    devices, table = out.split("mount", 1)[0], out
    nodes = {"fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout"}
    assert set(out.splitlines()[: len(nodes) + 4]) >= nodes | {"tty", "urandom", "zero"}, devices
    for line in (
        r"proc on /proc type proc \(rw,nosuid,nodev,noexec",
        r"tmpfs on /dev type tmpfs \(rw,nosuid,size=65536k,mode=755",
        r"devpts on /dev/pts type devpts \(rw,nosuid,noexec,relatime,gid=5,mode=620,ptmxmode=666",
        r"sysfs on /sys type sysfs \(ro,nosuid,nodev,noexec",
        r"on /sys/fs/cgroup(/\w+)? type cgroup2? \(ro,nosuid,nodev,noexec",
        r"mqueue on /dev/mqueue type mqueue \(rw,nosuid,nodev,noexec",
        r"shm on /dev/shm type tmpfs \(rw,nosuid,nodev,noexec,relatime,size=65536k",
        r"proc on /proc/sys type proc \(ro",
    ):
        assert re.search(line, table), line


def test_the_filter_refuses_what_docker_refuses(place, record):
    command = "unshare -U true 2>&1; unshare -m true 2>&1; mount -t tmpfs x /tmp 2>&1; head -c1 /proc/kcore; echo done"
    out = place.run(record("sh", "-c", command))
    assert out.count("Operation not permitted") == 2
    assert re.search(r"mount: .*(denied|not permitted)", out)
    assert out.endswith("done\n")


def test_a_profile_of_the_users_is_in_force(place, record):
    profile = (
        '{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": '
        '[{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13}]}'
    )
    container = record("sh", "-c", "mkdir /tmp/x 2>&1; echo done", security_opt=[f"seccomp={profile}"])
    assert place.run(container) == "mkdir: can't create directory '/tmp/x': Permission denied\ndone\n"


def test_a_read_only_root_with_a_tmpfs_and_binds(place, record, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    points = [
        MountPoint(type="bind", source=str(shared), destination="/rw", propagation="rprivate"),
        MountPoint(type="bind", source=str(shared), destination="/ro", rw=False, propagation="rprivate"),
        MountPoint(type="bind", source=__file__, destination="/file", rw=False, propagation="rprivate"),
    ]
    command = (
        "for d in / /run /rw /ro; do touch $d/x 2>/dev/null && echo $d; done; touch /file || mount | grep ' /run '"
    )
    out = place.run(record("sh", "-c", command, readonly_rootfs=True, tmpfs={"/run": "size=64k"}, mounts=points))
    assert out.split()[:2] == ["/run", "/rw"]
    assert re.search(r"tmpfs on /run type tmpfs \(rw,nosuid,nodev,noexec,relatime,size=64k", out)
    assert (shared / "x").exists()


def test_names_working_directory_limits_and_devices(place, record):
    container = record(
        "sh",
        "-c",
        "hostname; pwd; ulimit -n; ulimit -Hn; ls -l /dev/nothing; cat /proc/sys/kernel/domainname",
        config={"hostname": "foo", "domainname": "example.org", "working_dir": "/made/for/it"},
        ulimits=[Ulimit(name="nofile", soft=100, hard=200)],
        devices=[Device(path_on_host="/dev/zero", path_in_container="/dev/nothing")],
    )
    lines = place.run(container).splitlines()
    assert lines[:4] == ["foo", "/made/for/it", "100", "200"]
    assert re.match(r"crw-rw-rw- .* 1, +5 ", lines[4])
    assert lines[5] == "example.org"


def test_a_limit_above_the_engines_own_is_lowered_to_what_can_be_had(place, record):
    out = place.run(record("sh", "-c", "ulimit -Hn", ulimits=[Ulimit(name="nofile", soft=100, hard=2**20)]))
    assert 100 <= int(out) <= 2**20


@pytest.mark.skipif(not shutil.which("docker-init") and not shutil.which("tini-static"), reason="no static init")
def test_an_init_is_pid_one_and_passes_the_status_on(place, record):
    assert place.run(record("cat", "/proc/1/cmdline", init=True)).split("\0")[:3] == [
        *("/sbin/docker-init", "--", "cat"),
    ]
    place.bundle(record("sh", "-c", "exit 7", init=True))
    assert place.sh(place.runtime.run(bundle=str(place.directory), **place.options))[0] == 7


def test_a_container_is_created_started_entered_killed_and_deleted(place, record, rootfs):
    container = record("sh", "-c", "echo $$ $MARK; sleep 100", config={"env": ["MARK=main"]})
    place.bundle(container)
    process = spec.exec_process(
        container=container,
        rootfs=str(rootfs),
        args=["sh", "-c", "echo exec $MARK; id -u; pwd; cat /proc/self/status; ps; exit 5"],
        env=["MARK=entered"],
        cwd="/tmp",
        user="svc",
    )
    description, pid = place.directory / "process.json", place.directory / "pid"
    description.write_bytes(msgspec.json.encode(process))
    status, out, err = place.sh(
        place.runtime.create(bundle=str(place.directory), pid_file=str(pid), **place.options),
        place.runtime.start(**place.options),
        ["sleep", "0.2"],
        f"{{ {' '.join(place.runtime.exec(process=str(description), **place.options))}; echo status $?; }}",
        place.runtime.kill(signal=9, **place.options),
        f"while [ -d /proc/$(cat {pid}) ]; do sleep 0.02; done",
        place.runtime.delete(**place.options),
        ["ls", "-A", place.root],
    )
    assert status == 0, err
    assert out.startswith("1 main\nexec entered\n1000\n/tmp\n")
    assert status_of(out)["Seccomp"] == "2"
    assert status_of(out)["CapEff"] == mask([])
    assert "sleep 100" in out
    assert out.endswith("status 5\n")


def test_a_terminal_is_handed_over_through_the_console_socket(place, record):
    place.bundle(record("sh", "-c", "test -t 0 && tty; echo $TERM; id -un", config={"tty": True}))
    path, pid = f"/tmp/{uuid.uuid4().hex}", place.directory / "pid"  # a socket's path is at most 107 bytes
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        listener.settimeout(30)
        try:
            process = place.popen(
                place.runtime.create(
                    bundle=str(place.directory), pid_file=str(pid), console_socket=path, **place.options
                ),
                place.runtime.start(**place.options),
                f"while [ -d /proc/$(cat {pid}) ]; do sleep 0.02; done",
            )
            connection, _ = listener.accept()
            master = array.array("i", connection.recvmsg(4096, socket.CMSG_SPACE(4))[1][0][2])[0]
            connection.close()
        finally:
            os.unlink(path)
        text = b""
        try:
            while chunk := os.read(master, 4096):
                text += chunk
        except OSError:
            pass  # EIO: the last process has closed its side
        os.close(master)
        _, err = process.communicate(timeout=30)
        assert process.returncode == 0, err
    assert text.decode().split() == ["/dev/console", "xterm", "root"] or b"/dev/pts/0" in text


def test_a_network_namespace_is_joined_and_its_sysctls_set(place, record):
    names = ("net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_forward")
    paths = " ".join("/proc/sys/" + name.replace(".", "/") for name in names)
    container = record("sh", "-c", f"cat {paths}; ls /sys/class/net", sysctls={"net.ipv4.ip_forward": "1"})
    descriptor = netns.create()
    try:
        # As a supervisor shows it to the runtime: a descriptor of its own, being pid 1.
        place.bundle(container, netns=f"/proc/1/fd/{descriptor}")
        process = place.popen(place.runtime.run(bundle=str(place.directory), **place.options), pass_fds=[descriptor])
        out, err = process.communicate(timeout=30)
    finally:
        os.close(descriptor)
    assert process.returncode == 0, err
    assert out.split() == ["0", "1", "lo"]
