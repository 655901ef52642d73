import os
import time

import pytest

from transom.errors import ConfigError
from transom_engine.oci import seccomp
from transom_engine.oci.host import DEFAULT_CAPABILITIES


def rules(name, *, capabilities=DEFAULT_CAPABILITIES, machine="x86_64"):
    """The rules for one system call, without its name."""
    found = seccomp.default(capabilities=capabilities, machine=machine)["syscalls"]
    return [{key: rule[key] for key in rule if key != "names"} for rule in found if name in rule["names"]]


ALLOWED = [{"action": "SCMP_ACT_ALLOW"}]


def test_what_is_not_listed_fails_with_eperm():
    profile = seccomp.default(capabilities=(), machine="x86_64")
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)


@pytest.mark.parametrize(
    ("machine", "architectures"),
    [
        ("x86_64", ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")),
        ("aarch64", ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")),
        ("unheard-of", ()),
    ],
)
def test_the_machines_narrower_modes_are_filtered_too(machine, architectures):
    assert seccomp.default(capabilities=(), machine=machine)["architectures"] == architectures


@pytest.mark.parametrize("name", "read write openat execve futex clone3 ptrace statx landlock_create_ruleset".split())
def test_ordinary_calls_have_a_rule(name):
    assert rules(name)


@pytest.mark.parametrize(
    "name",
    "mount umount2 unshare setns bpf kexec_load add_key keyctl userfaultfd reboot swapon open_by_handle_at "
    "io_uring_setup io_uring_enter init_module clock_settime iopl mbind move_pages".split(),
)
def test_dangerous_calls_have_none_by_default(name):
    assert not rules(name)


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ("CAP_SYS_ADMIN", "mount umount2 unshare setns bpf fsopen perf_event_open sethostname clone clone3"),
        ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
        ("CAP_SYS_BOOT", "reboot"),
        ("CAP_SYS_CHROOT", "chroot"),
        ("CAP_SYS_MODULE", "init_module finit_module delete_module"),
        ("CAP_SYS_NICE", "mbind set_mempolicy"),
        ("CAP_SYS_PACCT", "acct"),
        ("CAP_SYS_PTRACE", "kcmp pidfd_getfd"),
        ("CAP_SYS_RAWIO", "iopl ioperm"),
        ("CAP_SYS_TIME", "clock_settime settimeofday"),
        ("CAP_SYS_TTY_CONFIG", "vhangup"),
        ("CAP_SYSLOG", "syslog"),
        ("CAP_BPF", "bpf"),
        ("CAP_PERFMON", "perf_event_open"),
    ],
)
def test_a_capability_brings_the_calls_that_it_is_for(capability, names):
    for name in names.split():
        assert rules(name, capabilities=[capability]) == ALLOWED, name
        assert rules(name, capabilities=[]) != ALLOWED, name


def test_clone_makes_no_namespaces_and_clone3_says_it_does_not_exist():
    mask = {"index": 0, "value": 0x7E020000, "op": "SCMP_CMP_MASKED_EQ"}
    assert rules("clone") == [{"action": "SCMP_ACT_ALLOW", "args": [mask]}]
    assert rules("clone", machine="s390x")[0]["args"][0]["index"] == 1
    assert rules("clone3") == [{"action": "SCMP_ACT_ERRNO", "errnoRet": 38}]


def test_sockets_are_of_every_family_but_vsock_and_alg():
    compare = {"SCMP_CMP_LT": int.__lt__, "SCMP_CMP_EQ": int.__eq__, "SCMP_CMP_GT": int.__gt__}
    conditions = [rule["args"][0] for rule in rules("socket")]
    refused = {family for family in range(64) if not any(compare[c["op"]](family, c["value"]) for c in conditions)}
    assert refused == {38, 40}


def test_calls_of_one_machine_stay_there():
    assert rules("arch_prctl") == ALLOWED
    assert not rules("arch_prctl", machine="aarch64")
    assert rules("set_tls", machine="aarch64") == ALLOWED


def test_the_default_takes_less_than_a_millisecond():
    def once():
        start = time.perf_counter()
        seccomp.default(capabilities=DEFAULT_CAPABILITIES, machine="x86_64")
        return time.perf_counter() - start

    assert min(once() for _ in range(20)) < 0.001


PROFILE = """{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13,
 "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
 "syscalls": [
  {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "words", "args": []},
  {"name": "old", "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
  {"names": ["deny"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
  {"names": ["admin"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
  {"names": ["user"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
  {"names": ["intel"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
  {"names": ["not-intel"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["amd64"]}},
  {"names": ["recent"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
  {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "99.0"}},
  {"names": ["past"], "action": "SCMP_ACT_ALLOW", "excludes": {"minKernel": "4.8"}}
 ]}"""


def names_in(profile, **kwargs):
    found = seccomp.custom(profile=profile, **kwargs)["syscalls"]
    return {name for rule in found for name in rule["names"]}


def test_a_profile_is_resolved_by_capability_machine_and_kernel():
    always = {"read", "old", "deny", "recent"}
    assert names_in(PROFILE, capabilities=[], machine="x86_64") == always | {"user", "intel"}
    assert names_in(PROFILE, capabilities=["CAP_SYS_ADMIN"], machine="aarch64") == always | {"admin", "not-intel"}


def test_a_profile_keeps_its_actions_arguments_and_errors(tmp_path):
    (tmp_path / "p.json").write_text(PROFILE)
    found = seccomp.custom(profile=str(tmp_path / "p.json"), capabilities=[], machine="x86_64")
    assert (found["defaultAction"], found["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 13)
    assert found["architectures"] == ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]
    assert found["syscalls"][:3] == [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {
            "names": ["old"],
            "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
        },
        {"names": ["deny"], "action": "SCMP_ACT_ERRNO", "errnoRet": 0},
    ]


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ConfigError) as caught:
        seccomp.custom(profile=str(tmp_path / "absent"), capabilities=[], machine="x86_64")
    assert str(caught.value) == f"opening seccomp profile ({tmp_path}/absent) failed: No such file or directory"
    (tmp_path / "bytes").write_bytes(os.urandom(64) + b"\xff")
    with pytest.raises(ConfigError, match="not a text"):
        seccomp.custom(profile=str(tmp_path / "bytes"), capabilities=[], machine="x86_64")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "decoding seccomp profile (the given text) failed: Input data was truncated"),
        (
            "{}",
            "decoding seccomp profile (the given text) failed: Object missing required field `defaultAction`",
        ),
        (
            '{"defaultAction": "x", "architectures": ["a"], "archMap": [{"architecture": "a"}]}',
            "seccomp profile (the given text): use either 'architectures' or 'archMap'",
        ),
        (
            '{"defaultAction": "x", "syscalls": [{"action": "y", "includes": {"minKernel": "new"}}]}',
            "decoding seccomp profile (the given text) failed: Expected `str` matching regex '^\\\\d+\\\\.\\\\d+$' "
            "- at `$.syscalls[0].includes.minKernel`",
        ),
    ],
)
def test_a_text_that_is_no_profile_is_refused_with_the_reason(text, reason):
    with pytest.raises(ConfigError) as caught:
        seccomp.custom(profile=text, capabilities=[], machine="x86_64")
    assert str(caught.value) == reason
