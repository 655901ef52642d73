import pytest

from transom.errors import ConfigError
from transom_engine.oci.security import Security, parse


def test_no_options_are_the_defaults(full_host):
    assert parse(options=[], host=full_host) == Security()


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("no-new-privileges", Security(no_new_privileges=True)),
        ("no-new-privileges=true", Security(no_new_privileges=True)),
        ("no-new-privileges:true", Security(no_new_privileges=True)),
        ("seccomp=unconfined", Security(seccomp="unconfined")),
        ("seccomp:unconfined", Security(seccomp="unconfined")),
        ("seccomp=/a=b.json", Security(seccomp="/a=b.json")),
        ("seccomp=builtin", Security()),
        ("systempaths=unconfined", Security(system_paths=False)),
        ("label=disable", Security()),
        ("apparmor=unconfined", Security()),
    ],
)
def test_an_option_is_read_in_both_of_dockers_forms(full_host, option, expected):
    assert parse(options=[option], host=full_host) == expected


def test_an_option_overrides_the_engines_default(full_host):
    said = parse(options=["no-new-privileges=false"], host=full_host, no_new_privileges=True)
    assert not said.no_new_privileges
    assert parse(options=[], host=full_host, no_new_privileges=True).no_new_privileges


def test_what_the_host_does_not_have_is_accepted_with_a_word(full_host):
    said = parse(options=["apparmor=mine", "label=type:svirt_lxc_net_t"], host=full_host)
    assert said.warnings == (
        "security-opt apparmor=mine has no effect: this host has no AppArmor",
        "security-opt label=type:svirt_lxc_net_t has no effect: this host has no SELinux",
    )
    assert said.apparmor == ""


@pytest.mark.parametrize(
    ("option", "text"),
    [
        (
            "secomp=unconfined",
            'invalid --security-opt "secomp=unconfined" (did you mean seccomp?); '
            "known: apparmor, label, no-new-privileges, seccomp, systempaths",
        ),
        (
            "seccomp",
            'invalid --security-opt "seccomp": write seccomp=unconfined, seccomp=builtin or seccomp=FILE',
        ),
        (
            "no-new-privileges=perhaps",
            'invalid --security-opt "no-new-privileges=perhaps": write no-new-privileges, '
            "no-new-privileges=true or no-new-privileges=false",
        ),
        (
            "systempaths=all",
            'invalid --security-opt "systempaths=all": write systempaths=unconfined',
        ),
        ("apparmor=", 'invalid --security-opt "apparmor=": write apparmor=PROFILE'),
        ("label", 'invalid --security-opt "label": write label=disable or label=TYPE:VALUE'),
    ],
)
def test_an_unknown_option_or_value_is_refused_with_what_would_do(full_host, option, text):
    with pytest.raises(ConfigError) as caught:
        parse(options=[option], host=full_host)
    assert str(caught.value) == text
