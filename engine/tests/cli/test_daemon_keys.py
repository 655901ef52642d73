"""Docker's keys of the default network and of containers do what they say."""

import json
import subprocess

import pytest

from transom.services.interfaces import read_setting
from transom.services.netns import inside


@pytest.fixture
def configured(transom, tmp_path):
    """Return a function that runs a command by a daemon.json with these keys."""

    def run(keys, *words):
        config = tmp_path / "daemon.json"
        config.write_text(json.dumps(keys))
        return transom("--config", config, *words)

    return run


def test_keys_of_the_default_network_reach_its_driver(transom, tmp_path):
    config = tmp_path / "daemon.json"
    config.write_text(json.dumps({"icc": False, "bridge": "tkeys0", "ip-masq": False}))
    transom("--config", config, "run", "-d", "busybox", "sleep", "100")
    words = ["nft", "list", "table", "inet", "transom"]
    listed = subprocess.run(words, preexec_fn=transom.enter, capture_output=True, text=True, check=True).stdout
    assert "tkeys0" in listed.partition("set isolated")[2].partition("set ")[0]
    assert "tkeys0" not in listed.partition("set natted")[2].partition("set ")[0]


def test_host_gateway_and_ipc_mode_come_from_the_config(transom, tmp_path):
    config = tmp_path / "daemon.json"
    config.write_text(json.dumps({"host-gateway-ip": "192.0.2.9", "default-ipc-mode": "shareable"}))
    flags = ["--network", "none", "--add-host", "me:host-gateway"]
    assert "192.0.2.9\tme" in transom("--config", config, "run", "--rm", *flags, "busybox", "cat", "/etc/hosts")
    id = transom("--config", config, "create", "--network", "none", "busybox")
    assert transom.inspect(id)["HostConfig"]["IpcMode"] == "shareable"


def test_the_default_network_has_the_subnets_gateway_and_mtu_of_the_config(configured):
    keys = {
        "bip": "10.71.0.1/24", "fixed-cidr": "10.71.0.128/25", "default-gateway": "10.71.0.254", "mtu": 1320,
        "ipv6": True, "bip6": "fd71::1/64", "fixed-cidr-v6": "fd71::8000/113", "default-gateway-v6": "fd71::fe",
    }  # fmt: skip
    shown = "ip -o address show eth0; ip route; ip -6 route; ip link show eth0"
    out = configured(keys, "run", "--rm", "busybox", "sh", "-c", shown)
    assert "10.71.0.128/24" in out
    assert "fd71::8000/64" in out
    assert "default via 10.71.0.254 " in out
    assert "default via fd71::fe " in out
    assert "mtu 1320" in out


def test_name_servers_come_from_the_config_and_the_command_line_wins(configured):
    keys = {"dns": ["192.0.2.53"], "dns-search": ["corp.test"], "dns-opts": ["timeout:3"]}
    out = configured(keys, "run", "--rm", "busybox", "cat", "/etc/resolv.conf")
    assert [line for line in out.splitlines() if not line.startswith("#")] == [
        "nameserver 192.0.2.53", "search corp.test", "options timeout:3",
    ]  # fmt: skip
    out = configured(keys, "run", "--rm", "--dns", "192.0.2.54", "busybox", "cat", "/etc/resolv.conf")
    assert "nameserver 192.0.2.54\nsearch corp.test" in out


def test_networks_get_their_subnets_from_the_default_address_pools(configured, transom):
    keys = {"default-address-pools": [{"base": "10.72.0.0/23", "size": 24}]}
    for name in ("one", "two"):
        configured(keys, "network", "create", name)
    subnets = [transom.inspect(name)["IPAM"]["Config"][0]["Subnet"] for name in ("one", "two")]
    assert subnets == ["10.72.0.0/24", "10.72.1.0/24"]


def bindings(transom, name):
    return transom("port", name).splitlines()


def test_ports_are_published_where_the_config_says_unless_something_nearer_does(configured, transom):
    keys = {"ip": "127.0.0.1"}
    configured(keys, "network", "create", "--subnet", "10.73.0.0/24", "net")
    option = "com.docker.network.bridge.host_binding_ipv4=127.0.0.2"
    configured(keys, "network", "create", "--subnet", "10.74.0.0/24", "-o", option, "own")
    for network, address in {"bridge": "127.0.0.1", "net": "127.0.0.1", "own": "127.0.0.2"}.items():
        words = ["-d", "--name", f"at-{network}", "--network", network, "-P", "--expose", "80", "-p", "8080:81"]
        configured(keys, "run", *words, "-p", "127.0.0.3::82", "busybox", "sleep", "100")
        bound = {
            line.split(" -> ")[0]: line.split(" -> ")[1].rpartition(":")[0]
            for line in bindings(transom, f"at-{network}")
        }
        assert bound == {"80/tcp": address, "81/tcp": address, "82/tcp": "127.0.0.3"}
        transom("rm", "-f", f"at-{network}")


def forwards(transom):
    return inside(transom.netns, read_setting, "ipv4/ip_forward")


def test_the_host_is_not_made_to_forward_where_the_config_says_so(configured, transom):
    configured({"ip-forward": False}, "run", "-d", "--name", "one", "busybox", "sleep", "100")
    assert forwards(transom) == "0"
    report = configured({"ip-forward": False}, "doctor", "--format", "json")
    assert [f for f in json.loads(report)["Findings"] if "forward" in f["Text"]] == []
    configured({}, "run", "--rm", "busybox", "true")
    assert forwards(transom) == "1"


def test_without_a_default_network_a_container_that_names_none_is_alone(configured, transom, tmp_path):
    keys = {"bridge": "none"}
    assert configured(keys, "network", "ls", "--format", "{{.Name}}").split() == ["host", "none"]
    assert "eth0" not in configured(keys, "run", "--rm", "busybox", "ip", "link")
    config = tmp_path / "daemon.json"
    assert transom.fails("--config", config, "run", "--network", "bridge", "busybox", "true", code=125) == (
        "no such network: bridge; networks here: host, none"
    )
    configured(keys, "network", "create", "net")
    assert "eth0" in configured(keys, "run", "--rm", "--network", "net", "busybox", "ip", "link")
    assert "transom0" not in inside(transom.netns, subprocess.check_output, ["ip", "link"], text=True)


def test_default_options_that_no_network_takes_are_named_with_their_place(transom, tmp_path):
    config = tmp_path / "daemon.json"
    mtu = "com.docker.network.driver.mtu"
    good = {"macvlan": {"dhcp": "true"}, "bridge": {mtu: "1400", "com.docker.network.enable_ipv6": "true"}}
    config.write_text(json.dumps({"default-network-opts": good}))
    assert transom("config", "check", config) == f"{config} is valid"
    bad = {"bridge": {mtu: "wide", "antispof": "true"}, "brige": {}}
    config.write_text(json.dumps({"default-network-opts": bad}))
    said = transom.fails("config", "check", config, code=125)
    assert f"network driver bridge: {mtu}='wide': expected a whole number, at least 0, at most 65535" in said
    assert "network driver bridge has no option 'antispof' (did you mean antispoof?)" in said
    assert "'brige'" in said
    assert f"{mtu}='wide' (from --opt, or file {config}: default-network-opts): expected" in transom.fails(
        "--config", config, "network", "create", "net", code=125
    )
