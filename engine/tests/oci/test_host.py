import pytest

from transom.errors import ConfigError, NotSupported
from transom_engine.oci.host import CAPABILITIES, DEFAULT_CAPABILITIES, Host, capabilities


@pytest.fixture
def poor_host():
    return Host(capabilities=frozenset(CAPABILITIES) - {"CAP_SYS_RESOURCE", "CAP_MKNOD"}, machine="x86_64")


def test_the_default_is_dockers_fourteen(full_host):
    assert set(capabilities(host=full_host)) == {
        *("CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID"),
        *("CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL"),
        "CAP_AUDIT_WRITE",
    }
    assert len(capabilities(host=full_host)) == 14


def test_names_are_taken_in_any_case_with_and_without_prefix(full_host):
    added = capabilities(host=full_host, add=["sys_admin", "CAP_NET_ADMIN"], drop=["cap_chown", "MKNOD"])
    assert set(added) == {*DEFAULT_CAPABILITIES, "CAP_SYS_ADMIN", "CAP_NET_ADMIN"} - {"CAP_CHOWN", "CAP_MKNOD"}


def test_dropping_all_leaves_what_is_added(full_host):
    assert capabilities(host=full_host, drop=["all"]) == ()
    assert capabilities(host=full_host, add=["net_raw"], drop=["ALL"]) == ("CAP_NET_RAW",)


def test_adding_all_leaves_out_what_is_dropped(full_host):
    assert set(capabilities(host=full_host, add=["ALL"], drop=["SYS_ADMIN"])) == set(CAPABILITIES) - {"CAP_SYS_ADMIN"}


def test_all_and_privileged_mean_all_that_the_engine_holds(poor_host):
    assert set(capabilities(host=poor_host, privileged=True)) == poor_host.capabilities
    assert set(capabilities(host=poor_host, add=["ALL"])) == poor_host.capabilities
    assert "CAP_MKNOD" not in capabilities(host=poor_host)


def test_one_that_the_engine_does_not_hold_is_refused_by_name(poor_host):
    with pytest.raises(NotSupported) as caught:
        capabilities(host=poor_host, add=["sys_resource"])
    assert str(caught.value) == (
        "cap-add CAP_SYS_RESOURCE: the engine's own process does not hold CAP_SYS_RESOURCE and cannot hand it on; "
        "start the engine with it, or leave it out"
    )


def test_an_unknown_one_is_refused_with_the_nearest_and_all_known(full_host):
    with pytest.raises(ConfigError) as caught:
        capabilities(host=full_host, drop=["SYS_ADMN"])
    assert str(caught.value).startswith(
        'invalid capability: "SYS_ADMN" (did you mean CAP_SYS_ADMIN?); known: ALL, CAP_AUDIT_CONTROL, '
    )


def test_the_real_host_says_what_the_kernel_says():
    host = Host.read()
    with open("/proc/self/status") as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith("CapPrm"))
    assert host.capabilities == {name for bit, name in enumerate(CAPABILITIES) if mask >> bit & 1}
    assert -1000 <= host.oom_score_adj <= 1000
    assert host.seccomp
