import os
import subprocess
import sys
import time

import msgspec
import pytest

from transom.errors import ConfigError
from transom_engine.model import MountPoint, Ulimit
from transom_engine.oci import spec
from transom_engine.oci.host import DEFAULT_CAPABILITIES, Host


@pytest.fixture
def build(rootfs, full_host):
    def call(container, **options):
        options = {"rootfs": str(rootfs), "netns": "/proc/1/fd/9", "host": full_host} | options
        return spec.build(container=container, **options)

    return call


def test_the_default_container_is_dockers(record, build, rootfs):
    container = record("sleep", "100")
    config = msgspec.json.decode(build(container).encode())
    filters = config["linux"].pop("seccomp")
    assert filters["defaultAction"] == "SCMP_ACT_ERRNO"
    assert len(config.pop("mounts")) == 7
    assert len(config["linux"].pop("resources")["devices"]) == 13
    short = container.id[:12]
    caps = list(DEFAULT_CAPABILITIES)
    assert config == {
        "ociVersion": "1.0.2",
        "hostname": short,
        "root": {"path": str(rootfs), "readonly": False},
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0, "additionalGids": [0, 44]},
            "args": ["sleep", "100"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                f"HOSTNAME={short}",
                "HOME=/root",
            ],
            "cwd": "/",
            "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
            "noNewPrivileges": False,
            "oomScoreAdj": 0,
        },
        "linux": {
            "devices": [],
            "sysctl": {
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ping_group_range": "0 2147483647",
            },
            "namespaces": [
                {"type": "mount"},
                {"type": "network", "path": "/proc/1/fd/9"},
                {"type": "uts"},
                {"type": "pid"},
                {"type": "ipc"},
            ],
            "maskedPaths": [*spec.MASKED_PATHS, *spec._thermal_paths()],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
        },
    }


def test_masked_paths_are_those_that_tell_of_the_host():
    assert set(spec.MASKED_PATHS) == {
        *("/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats"),
        *("/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats"),
        *("/sys/devices/virtual/powercap", "/sys/firmware"),
    }


def test_privileged_has_no_filter_no_masks_and_every_capability(record, build, full_host):
    config = build(record(privileged=True)).config
    assert "seccomp" not in config["linux"]
    assert not config["linux"]["maskedPaths"]
    assert not config["linux"]["readonlyPaths"]
    assert set(config["process"]["capabilities"]["effective"]) == full_host.capabilities
    assert config["linux"]["resources"]["devices"] == [{"allow": True, "type": "a", "access": "rwm"}]


def test_a_profile_asked_for_by_name_holds_for_privileged_too(record, build):
    profile = '{"defaultAction": "SCMP_ACT_ALLOW"}'
    config = build(record(privileged=True, security_opt=[f"seccomp={profile}"])).config
    assert config["linux"]["seccomp"]["defaultAction"] == "SCMP_ACT_ALLOW"


def test_another_user_has_its_capabilities_in_the_bounding_set_only(record, build):
    process = build(record(config={"user": "svc"})).config["process"]
    assert process["user"] == {"uid": 1000, "gid": 1001, "additionalGids": (1001, 29, 44)}
    assert set(process["capabilities"]) == {"bounding"}
    assert "HOME=/home/svc" in process["env"]


def test_the_environment_is_the_users_over_the_image_over_dockers(record, build):
    words = ["PATH=/bin", "A=1", "HOSTNAME", "HOME=/mine"]
    process = build(record(config={"env": words, "tty": True})).config["process"]
    assert process["env"] == ["PATH=/bin", "TERM=xterm", "A=1", "HOME=/mine"]
    assert process["terminal"] is True


def test_the_entry_point_comes_before_the_command(record, build):
    process = build(record("b", config={"entrypoint": ["a"], "working_dir": "/w"})).config["process"]
    assert (process["args"], process["cwd"]) == (["a", "b"], "/w")


def test_host_namespaces_are_left_out(record, build):
    container = record(
        pid_mode="host", ipc_mode="host", uts_mode="host", userns_mode="host", cgroupns_mode="host", sysctls={}
    )
    config = build(container, netns=None).config
    assert config["linux"]["namespaces"] == [{"type": "mount"}]
    assert "hostname" not in config
    assert config["linux"]["sysctl"] == {}
    shm = next(mount for mount in config["mounts"] if mount["destination"] == "/dev/shm")
    assert (shm["type"], shm["source"]) == ("bind", "/dev/shm")


def test_namespaces_of_other_containers_are_joined_by_path(record, build):
    container = record(pid_mode="container:x", ipc_mode="container:x", cgroupns_mode="private")
    config = build(container, join={"pid": "/p", "ipc": "/i"}, shm="/s", own_netns=False).config
    assert config["linux"]["namespaces"] == [
        {"type": "mount"},
        {"type": "network", "path": "/proc/1/fd/9"},
        {"type": "uts"},
        {"type": "pid", "path": "/p"},
        {"type": "ipc", "path": "/i"},
        {"type": "cgroup"},
    ]
    assert config["linux"]["sysctl"] == {}


def test_names_and_sysctls_are_passed_on(record, build):
    container = record(
        config={"hostname": "foo", "domainname": "example.org"},
        sysctls={"net.ipv4.ip_forward": "1", "kernel.msgmax": "1", "net.ipv4.ping_group_range": "1 0"},
    )
    config = build(container).config
    assert config["hostname"] == "foo"
    assert "HOSTNAME=foo" in config["process"]["env"]
    assert config["linux"]["sysctl"] == {
        "net.ipv4.ip_unprivileged_port_start": "0",
        "net.ipv4.ping_group_range": "1 0",
        "kernel.domainname": "example.org",
        "net.ipv4.ip_forward": "1",
        "kernel.msgmax": "1",
    }


def test_a_read_only_root_and_system_paths_unconfined(record, build):
    config = build(record(readonly_rootfs=True, security_opt=["systempaths=unconfined"])).config
    assert config["root"]["readonly"] is True
    assert not config["linux"]["maskedPaths"]
    assert not config["linux"]["readonlyPaths"]


def test_paths_to_mask_can_be_given(record, build):
    linux = build(record(masked_paths=["/proc/x"], readonly_paths=[])).config["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == (["/proc/x"], [])


def test_ulimits_are_the_users_over_the_engines(record, build):
    container = record(ulimits=[Ulimit(name="nofile", soft=10, hard=20)])
    defaults = [Ulimit(name="nofile", soft=1, hard=2), Ulimit(name="core", soft=0, hard=-1)]
    built = build(container, default_ulimits=defaults)
    assert built.config["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 2**64 - 1},
    ]
    assert built.warnings == ()
    assert b'"hard":18446744073709551615' in built.encode()


LOWERED = """
import resource, sys
from conftest import record_of as record
from transom_engine.model import Ulimit
from transom_engine.oci import spec
from transom_engine.oci.host import Host
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
host = Host(capabilities=frozenset(), machine="x86_64", oom_score_adj=10)
for soft, hard in ((150, 300), (400, -1), (5, 200)):
    container = record(ulimits=[Ulimit(name="nofile", soft=soft, hard=hard)], oom_score_adj=5)
    built = spec.build(container=container, rootfs="/", netns=None, host=host)
    print(built.config["process"]["rlimits"], "oomScoreAdj" in built.config["process"], *built.warnings, sep="|")
"""


def test_without_the_capability_limits_are_lowered_to_the_engines_own_with_a_warning():
    done = subprocess.run(
        [sys.executable, "-c", LOWERED], capture_output=True, text=True, cwd=os.path.dirname(__file__), check=True
    )
    oom = "oom-score-adj 5 is below this process's own 10 and was left at that: the engine lacks CAP_SYS_RESOURCE"
    text = (
        "ulimit nofile hard {} is above this process's own limit 200 and was lowered to it: "
        "the engine lacks CAP_SYS_RESOURCE"
    )
    limit = "[{{'type': 'RLIMIT_NOFILE', 'soft': {}, 'hard': 200}}]"
    assert done.stdout.splitlines() == [
        "|".join([limit.format(150), "False", text.format(300), oom]),
        "|".join([limit.format(200), "False", text.format("unlimited"), oom]),
        "|".join([limit.format(5), "False", oom]),
    ]


def test_a_score_that_the_engine_may_set_is_set(record, build):
    assert build(record(oom_score_adj=-500)).config["process"]["oomScoreAdj"] == -500


def test_a_kernel_without_seccomp_gives_a_warning_by_default_and_refuses_a_profile(record, build):
    host = Host(capabilities=frozenset(), machine="x86_64", seccomp=False)
    built = build(record(), host=host)
    assert "seccomp" not in built.config["linux"]
    assert built.warnings == ("no seccomp filter: this kernel has none",)
    with pytest.raises(ConfigError) as caught:
        build(record(security_opt=["seccomp=/p.json"]), host=host)
    assert str(caught.value) == "seccomp is not enabled in your kernel, cannot run a custom seccomp profile"


def test_an_init_stands_before_the_command_in_a_pid_namespace_of_its_own(record, build, tmp_path):
    init = tmp_path / "init"
    init.touch(mode=0o755)
    built = build(record("x", init=True), init_path=str(init)).config
    assert built["process"]["args"] == ["/sbin/docker-init", "--", "x"]
    assert {"destination": "/sbin/docker-init", "type": "bind", "source": str(init), "options": ["bind", "ro"]} in (
        built["mounts"]
    )
    for container in (record("x", init=True, pid_mode="host"), record("x", init=False)):
        assert build(container, init_path=str(init), default_init=True).config["process"]["args"] == ["x"]


def test_a_host_without_an_init_says_what_to_install(record, build, monkeypatch):
    monkeypatch.setattr(spec, "_INITS", ("transom-no-such-init",))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigError) as caught:
        build(record(init=True))
    assert str(caught.value) == (
        "--init needs a statically linked init and this host has none of transom-no-such-init; "
        "install Debian's package tini, or name one with init-path"
    )


def test_the_cgroup_path_is_for_the_runtime_that_wants_it(record, build):
    assert build(record(), cgroups_path="/x").config["linux"]["cgroupsPath"] == "/x"
    assert "cgroupsPath" not in build(record()).config["linux"]


def test_the_mounts_resolved_by_the_engine_are_over_the_records(record, build):
    point = MountPoint(type="volume", source="/v", destination="/data")
    container = record(mounts=[MountPoint(type="volume", name="v", destination="/data")])
    assert build(container, points=[point]).config["mounts"][-1]["source"] == "/v"


@pytest.mark.parametrize(
    ("config", "host_config", "text"),
    [
        ({"cmd": []}, {}, "no command specified: the image names none; add one after the image's name"),
        (
            {"working_dir": "x"},
            {},
            "the working directory 'x' is invalid, it needs to be an absolute path",
        ),
        ({}, {"oom_score_adj": 1001}, "invalid value 1001, range for oom score adj is [-1000, 1000]"),
        ({}, {"pid_mode": "hots"}, "--pid: invalid PID mode: hots; known: container:NAME, host"),
        (
            {},
            {"ipc_mode": "x"},
            "--ipc: invalid IPC mode: x; known: container:NAME, host, none, private, shareable",
        ),
        ({}, {"uts_mode": "x"}, "--uts: invalid UTS mode: x; known: host"),
        ({}, {"cgroupns_mode": "x"}, "--cgroupns: invalid CGROUPNS mode: x; known: host, private"),
        ({}, {"userns_mode": "x"}, "--userns: invalid USERNS mode: x; known: host"),
        (
            {},
            {"ulimits": [Ulimit(name="nofiles", soft=1, hard=1)]},
            "invalid ulimit type: nofiles (did you mean nofile?); known: core, cpu, data, fsize, locks, memlock, "
            "msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack",
        ),
        (
            {},
            {"ulimits": [Ulimit(name="core", soft=-1, hard=1)]},
            "ulimit core: soft limit must be less than or equal to hard limit: -1 > 1",
        ),
        (
            {},
            {"sysctls": {"kernel.panic": "1"}},
            "sysctl 'kernel.panic' is not allowed; those of a container's own namespaces are: fs.mqueue.*, net.*, "
            "kernel.msgmax, kernel.msgmnb, kernel.msgmni, kernel.sem, kernel.shm_rmid_forced, kernel.shmall, "
            "kernel.shmmax, kernel.shmmni",
        ),
        (
            {},
            {"sysctls": {"kernel.sem": "1"}, "ipc_mode": "host"},
            "sysctl 'kernel.sem' not allowed in host ipc namespace; leave out one of the two",
        ),
    ],
)
def test_words_that_do_not_fit_are_refused(record, build, config, host_config, text):
    container = record(config={key: value for key, value in config.items() if key != "cmd"}, **host_config)
    if "cmd" in config:
        container.config.cmd = config["cmd"]
    with pytest.raises(ConfigError) as caught:
        build(container)
    assert str(caught.value) == text


def test_a_network_sysctl_needs_a_network_of_ones_own(record, build):
    with pytest.raises(ConfigError) as caught:
        build(record(sysctls={"net.core.somaxconn": "1"}), netns=None)
    assert str(caught.value) == (
        "sysctl 'net.core.somaxconn' not allowed in host network namespace; leave out one of the two"
    )


def test_an_init_path_that_is_no_program_is_named(record, build):
    with pytest.raises(ConfigError) as caught:
        build(record(init=True), init_path="/etc/passwd")
    assert str(caught.value) == ("init-path /etc/passwd is not an executable file; name a statically linked init")


def test_a_further_process_has_the_containers_limits_and_its_own_user_and_words(record, rootfs, full_host):
    container = record("main", config={"user": "svc", "env": ["A=1"], "working_dir": "/w"}, cap_drop=["ALL"])
    common = {"container": container, "rootfs": str(rootfs), "args": ["x"], "host": full_host}
    plain = spec.exec_process(**common)
    assert plain == {
        "terminal": False,
        "user": {"uid": 1000, "gid": 1001, "additionalGids": (1001, 29, 44)},
        "args": ["x"],
        "env": [f"PATH={spec.PATH}", f"HOSTNAME={container.id[:12]}", "A=1", "HOME=/home/svc"],
        "cwd": "/w",
        "capabilities": {"bounding": ()},
        "noNewPrivileges": False,
    }
    other = spec.exec_process(**common, user="0", env=["A=2"], cwd="/", tty=True, privileged=True)
    assert set(other["capabilities"]["effective"]) == full_host.capabilities
    assert other["env"][2:] == ["TERM=xterm", "A=2", "HOME=/root"]
    assert other["cwd"] == "/"


def test_a_description_takes_about_a_millisecond(record, build):
    container = record("true")

    def once():
        start = time.perf_counter()
        build(container).encode()
        return time.perf_counter() - start

    assert min(once() for _ in range(20)) < 0.002


def test_nothing_heavy_is_imported():
    code = (
        "import sys; import transom_engine.oci.spec, transom_engine.oci.seccomp, transom_engine.oci.runtime; "
        "print(sorted({'subprocess', 'tempfile', 'dataclasses', 'logging', 're', 'difflib'} & set(sys.modules)))"
    )
    bare = "import sys, msgspec; print(sorted({'re', 'dataclasses', 'logging'} & set(sys.modules)))"
    done = [
        subprocess.run([sys.executable, "-I", "-c", text], capture_output=True, text=True, check=True).stdout
        for text in (code, bare)
    ]
    assert done[0] == done[1]
