import os
import stat

import pytest

from transom.contract.limits import DeviceRule
from transom.errors import ConfigError
from transom_engine.model import Device, HostConfig
from transom_engine.oci import devices


def device(host, container="", permissions="rwm"):
    return Device(path_on_host=str(host), path_in_container=str(container or host), cgroup_permissions=permissions)


def test_all_is_denied_but_what_every_container_has():
    rules = devices.rules(host_config=HostConfig())
    assert rules[0] == DeviceRule(allow=False)
    allowed = {(r.type, r.major, r.minor): r.access for r in rules[1:] if r.allow}
    assert allowed == {
        ("c", None, None): "m",
        ("b", None, None): "m",
        **{("c", 1, minor): "rwm" for minor in (3, 5, 7, 8, 9)},
        **{("c", 5, minor): "rwm" for minor in (0, 1, 2)},
        ("c", 136, None): "rwm",
        ("c", 10, 200): "rwm",
    }


def test_a_device_is_made_and_allowed_as_asked():
    config = HostConfig(devices=[device("/dev/zero", "/dev/nothing", "r")])
    assert devices.rules(host_config=config)[-1] == DeviceRule(allow=True, type="c", major=1, minor=5, access="r")
    assert devices.nodes(host_config=config) == [
        {"path": "/dev/nothing", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666, "uid": 0, "gid": 0}
    ]


def test_a_directory_gives_every_device_below_it(tmp_path):
    (tmp_path / "sub").mkdir()
    os.mknod(tmp_path / "sub/one", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(tmp_path / "two", 0o640 | stat.S_IFBLK, os.makedev(7, 99))
    (tmp_path / "file").touch()
    config = HostConfig(devices=[device(tmp_path, "/dev/mine")])
    found = {node["path"]: (node["type"], node["major"], node["minor"]) for node in devices.nodes(host_config=config)}
    assert found == {"/dev/mine/sub/one": ("c", 1, 3), "/dev/mine/two": ("b", 7, 99)}


def test_a_symbolic_link_gives_the_device_it_leads_to(tmp_path):
    (tmp_path / "link").symlink_to("/dev/null")
    config = HostConfig(devices=[device(tmp_path / "link", "/dev/x")])
    assert devices.nodes(host_config=config)[0]["minor"] == 3


def test_a_rule_is_read_with_its_wildcards():
    config = HostConfig(device_cgroup_rules=["c 10:* rm", "a *:* rwm"])
    assert devices.rules(host_config=config)[-2:] == (
        DeviceRule(allow=True, type="c", major=10, access="rm"),
        DeviceRule(allow=True, type="a", access="rwm"),
    )


def test_privileged_has_all_devices_of_the_host_and_no_limits():
    config = HostConfig(privileged=True)
    assert devices.rules(host_config=config) == (DeviceRule(allow=True),)
    paths = {node["path"] for node in devices.nodes(host_config=config)}
    assert {"/dev/null", "/dev/kmsg"} <= paths
    assert not {path for path in paths if path.startswith(("/dev/pts", "/dev/shm", "/dev/console"))}


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            {"devices": [device("/dev/absent")]},
            'error gathering device information while adding custom device "/dev/absent": No such file or directory',
        ),
        (
            {"devices": [device("/etc/passwd")]},
            'error gathering device information while adding custom device "/etc/passwd": not a device node',
        ),
        (
            {"devices": [device("/dev/null", permissions="rx")]},
            "invalid device mode: rx for /dev/null; use letters out of rwm",
        ),
        (
            {"device_cgroup_rules": ["c 1 r"]},
            "invalid device cgroup rule format: 'c 1 r'; write TYPE MAJOR:MINOR ACCESS, such as 'c 10:200 rwm'",
        ),
    ],
)
def test_a_device_or_rule_that_does_not_fit_is_refused(config, text):
    with pytest.raises(ConfigError) as caught:
        devices.rules(host_config=HostConfig(**config))
    assert str(caught.value) == text
