"""Docker's keys of the default network and of containers do what they say."""

import json
import subprocess


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
