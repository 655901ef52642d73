"""A daemon.json that was written for Docker works unchanged."""

import importlib.util
import json
from pathlib import Path

CORE = Path(__file__).resolve().parent.parent / "core" / "tests" / "test_config.py"


def documented():
    """Return the full example of Docker's reference, which core's own tests hold."""
    spec = importlib.util.spec_from_file_location("transom_core_config_tests", CORE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DOCKERD


def documented_keys():
    return json.loads(documented())


def written(tmp_path, config):
    path = tmp_path / "docker.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def shown(transom, path):
    """Return what ``config show`` says of each key: value and origin."""
    rows = transom("--config", path, "config", "show", "--format", "{{.Key}}\t{{.Origin}}").splitlines()
    return dict(row.split("\t") for row in rows)


def test_the_full_example_of_dockers_reference_is_accepted(transom, tmp_path):
    path = written(tmp_path, documented())
    origins = shown(transom, path)
    assert {*documented_keys()} - {*origins} == set(), "each key is shown, those that have no meaning here too"
    assert origins["default-address-pools"] == f"file {path}"


def test_a_container_runs_with_what_a_typical_file_says(world, tmp_path):
    config = json.loads(world.config.read_text())
    typical = {
        "exec-opts": ["native.cgroupdriver=systemd"],
        "live-restore": True,
        "storage-driver": "overlay2",
        "log-driver": "json-file",
        "log-opts": {"max-size": "100m", "max-file": "3", "labels": "team"},
        "default-ulimits": {"nofile": {"Name": "nofile", "Hard": 512, "Soft": 256}},
        "default-shm-size": "8M",
        "default-address-pools": [{"base": "10.199.0.0/16", "size": 24}],
        "dns": ["192.0.2.53"],
        "dns-search": ["example.org"],
        "insecure-registries": ["registry.example.org:5000"],
        "registry-mirrors": ["https://mirror.example.org"],
        "no-new-privileges": True,
        "userland-proxy": False,
        "metrics-addr": "127.0.0.1:9323",
        "features": {"buildkit": True},
    }
    world.config.write_text(json.dumps({**config, **typical}))
    script = "ulimit -n; ulimit -Hn; grep -c . /etc/resolv.conf; cat /etc/resolv.conf; df -k /dev/shm | tail -1"
    world.transom("network", "create", "n")
    lines = world.transom("run", "--name", "box", "--network", "n", "busybox", "sh", "-c", script).splitlines()
    assert lines[:2] == ["256", "512"]
    assert any("example.org" in line for line in lines)
    assert lines[-1].split()[1] == "8192"
    box = world.transom.inspect("box")
    assert box["HostConfig"]["LogConfig"] == {"Type": "json-file", "Config": typical["log-opts"]}
    assert world.transom.inspect("n", "--type", "network")["IPAM"]["Config"][0]["Subnet"].startswith("10.199.")
    world.transom("rm", "box")
    world.transom("network", "rm", "n")


def test_the_command_line_stands_over_the_environment_over_the_file(transom, tmp_path):
    path = written(tmp_path, {"storage-driver": "overlay2", "log-driver": "json-file", "mtu": 1400})
    transom.env["TRANSOM_MTU"] = "1300"
    rows = transom(
        "--config", path, "--storage-driver", "vfs", "config", "show", "--format", "{{.Key}}={{.Value}} {{.Origin}}"
    ).splitlines()
    assert "storage-driver=vfs command line --storage-driver" in rows
    assert "mtu=1300 environment TRANSOM_MTU" in rows
    assert f"log-driver=json-file file {path}" in rows


def test_what_has_no_meaning_here_is_told_and_not_refused(transom, tmp_path):
    path = written(tmp_path, {"live-restore": True, "swarm-default-advertise-addr": "192.0.2.1"})
    checked = transom("config", "check", path)
    assert "live-restore" in checked
    assert "swarm-default-advertise-addr" in checked
    assert checked.endswith(f"{path} is valid")
