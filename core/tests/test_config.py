"""The configuration: where values come from, what they may be, and how a slip is told."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.config import IGNORED, KEYS, ORDER, AddressPool, Config, Runtime, Ulimit, load, rows
from transom.errors import ConfigError


@pytest.fixture
def written(tmp_path):
    """Write a daemon.json and return its path."""

    def write(content):
        path = tmp_path / "daemon.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return str(path)

    return write


def loaded(path=None, environ=None, **overrides):
    return load(path=path, environ=environ or {}, overrides={k.replace("_", "-"): v for k, v in overrides.items()})


def refusal(path=None, environ=None, **overrides):
    with pytest.raises(ConfigError) as error:
        loaded(path, environ, **overrides)
    return str(error.value).replace(str(path), "FILE")


DOCKERD = """{
  "authorization-plugins": [], "bip": "", "bip6": "", "bridge": "",
  "builder": {"gc": {"enabled": true, "defaultKeepStorage": "10GB", "policy": [{"keepStorage": "10GB"}]}},
  "cgroup-parent": "", "containerd": "/run/containerd/containerd.sock", "containerd-namespace": "docker",
  "containerd-plugins-namespace": "docker-plugins", "data-root": "/var/lib/docker", "debug": true,
  "default-address-pools": [{"base": "172.30.0.0/16", "size": 24}, {"base": "172.31.0.0/16", "size": 24}],
  "default-cgroupns-mode": "private", "default-gateway": "", "default-gateway-v6": "",
  "default-network-opts": {"overlay": {"com.docker.network.driver.mtu": "1442"}}, "default-runtime": "runc",
  "default-shm-size": "64M", "default-ulimits": {"nofile": {"Hard": 64000, "Name": "nofile", "Soft": 64000}},
  "dns": [], "dns-opts": [], "dns-search": [], "exec-opts": [], "exec-root": "/run/docker", "experimental": false,
  "features": {"cdi": true, "containerd-snapshotter": true}, "firewall-backend": "", "fixed-cidr": "",
  "fixed-cidr-v6": "", "group": "", "host-gateway-ip": "", "hosts": [],
  "proxies": {"http-proxy": "http://proxy.example.com:80", "https-proxy": "", "no-proxy": "*.test.example.com"},
  "icc": false, "init": false, "init-path": "/usr/libexec/docker-init", "insecure-registries": [], "ip": "0.0.0.0",
  "ip-forward": false, "ip-masq": false, "iptables": false, "ip6tables": false, "ipv6": false, "labels": [],
  "live-restore": true, "log-driver": "json-file", "log-format": "text", "log-level": "",
  "log-opts": {"cache-disabled": "false", "env": "os,customer", "labels": "somelabel", "max-file": "5",
               "max-size": "10m"},
  "max-concurrent-downloads": 3, "max-concurrent-uploads": 5, "max-download-attempts": 5, "mtu": 0,
  "no-new-privileges": false, "node-generic-resources": ["NVIDIA-GPU=UUID1"], "pidfile": "", "raw-logs": false,
  "registry-mirrors": [], "runtimes": {"custom": {"path": "/usr/local/bin/my-runc", "runtimeArgs": ["--debug"]}},
  "seccomp-profile": "", "selinux-enabled": false, "shutdown-timeout": 15, "storage-driver": "", "storage-opts": [],
  "swarm-default-advertise-addr": "", "tls": true, "tlscacert": "", "tlscert": "", "tlskey": "", "tlsverify": true,
  "userland-proxy": false, "userland-proxy-path": "/usr/libexec/docker-proxy", "userns-remap": ""
}"""


def test_dockers_full_example_is_accepted_as_it_is(written):
    config = loaded(written(DOCKERD))
    assert config.default_address_pools[1] == AddressPool("172.31.0.0/16", 24)
    assert config.default_ulimits == {"nofile": Ulimit(name="nofile", soft=64000, hard=64000)}
    assert config.runtimes == {"custom": Runtime(path="/usr/local/bin/my-runc", runtime_args=("--debug",))}
    assert config.default_shm_size == 64 << 20
    assert config.proxies.no_proxy == "*.test.example.com"
    assert config.icc is False
    assert config.debug is True


def test_what_has_no_meaning_here_is_shown_as_ignored_with_the_reason(written):
    path = written({"live-restore": True, "cgroup-parent": "/x"})
    shown = {key: (value, origin) for key, value, origin in rows(loaded(path))}
    assert shown["live-restore"] == (
        "true",
        f"file {path}; ignored: containers never depend on a daemon: they outlive it always",
    )
    assert shown["cgroup-parent"] == ("/x", f"file {path}; ignored: a limits driver owns its control groups")


def test_no_key_is_both_meaningful_and_ignored():
    assert not KEYS & set(IGNORED)


def test_without_a_file_everything_has_its_default():
    config = loaded()
    assert config == Config()
    assert {origin for _, _, origin in rows(config)} == {"default"}
    assert len(rows(config)) == len(KEYS)


def test_command_line_wins_over_environment_wins_over_file(written):
    path = written({"storage-driver": "vfs", "log-driver": "local", "mtu": 1400, "debug": True})
    environ = {"TRANSOM_LOG_DRIVER": "syslog", "TRANSOM_MTU": "1450"}
    config = loaded(path, environ, mtu=1460, debug=None)
    assert (config.storage_driver, config.log_driver, config.mtu, config.debug) == ("vfs", "syslog", 1460, True)
    assert config.origin == {
        "storage-driver": f"file {path}",
        "log-driver": "environment TRANSOM_LOG_DRIVER",
        "mtu": "command line --mtu",
        "debug": f"file {path}",
    }


def test_the_environment_names_the_file_and_the_command_line_another(written, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"mtu": 9000}')
    assert loaded(None, {"TRANSOM_CONFIG": str(other)}).mtu == 9000
    assert loaded(written({"mtu": 1280}), {"TRANSOM_CONFIG": str(other)}).mtu == 1280


def test_the_environment_is_read_as_words():
    environ = {
        "TRANSOM_DNS": "10.0.0.1,10.0.0.2",
        "TRANSOM_ICC": "no",
        "TRANSOM_DEFAULT_SHM_SIZE": "1g",
        "TRANSOM_LIMITS_DRIVER": "cgroup1",
        "TRANSOM_WRAPPERS": "audit, tracing",
    }
    config = loaded(None, environ)
    assert config.dns == ("10.0.0.1", "10.0.0.2")
    assert config.icc is False
    assert config.default_shm_size == 1 << 30
    assert config.limits_driver == "cgroup1"
    assert config.wrappers == ("audit", "tracing")


def test_our_own_keys_stand_in_the_object_transom(written):
    config = loaded(
        written(
            {
                "transom": {
                    "limits-driver": "cgroup1",
                    "network-driver": "macvlan",
                    "auth-drivers": ["peer", "tls"],
                    "driver-opts": {"auth": {"tls": {"ca": "/ca.pem"}}},
                }
            }
        )
    )
    assert config.drivers("limits") == ("cgroup1",)
    assert config.drivers("network") == ("macvlan",)
    assert config.drivers("auth") == ("peer", "tls")
    assert config.options("auth", "tls")[0] == {"ca": "/ca.pem"}


def test_the_command_line_says_our_own_keys_without_the_prefix():
    config = loaded(limits_driver="cgroup2")
    assert config.limits_driver == "cgroup2"
    assert config.origin == {"transom.limits-driver": "command line --limits-driver"}


@pytest.mark.parametrize("kind", ORDER)
def test_a_kind_without_a_configured_driver_has_an_order_to_try(kind):
    assert Config().drivers(kind) == ORDER[kind]


def test_vfs_is_never_chosen_by_itself():
    assert "vfs" not in ORDER["storage"]
    assert loaded(storage_driver="vfs").drivers("storage") == ("vfs",)


def test_authorization_plugins_join_the_auth_drivers(written):
    assert loaded(written({"authorization-plugins": ["opa"]})).drivers("auth") == ("peer", "opa")


def test_options_reach_the_driver_they_speak_of_and_no_other(written):
    path = written(
        {
            "storage-driver": "overlay2",
            "storage-opts": ["overlay2.size=1g", "x=a=b"],
            "log-opts": {"max-size": "10m"},
            "default-network-opts": {"bridge": {"mtu": "1442"}},
            "transom": {"driver-opts": {"storage": {"vfs": {"size": "5g"}, "overlay2": {"y": "2"}}}},
        }
    )
    config = loaded(path)
    assert config.options("storage", "overlay2") == (
        {"y": "2", "overlay2.size": "1g", "x": "a=b"},
        f"file {path}: storage-opts",
    )
    assert config.options("storage", "vfs") == ({"size": "5g"}, f"file {path}: transom.driver-opts")
    assert config.options("logging", "json-file") == ({"max-size": "10m"}, f"file {path}: log-opts")
    assert config.options("logging", "syslog")[0] == {}
    assert config.options("network", "bridge")[0] == {}  # they are its networks'
    assert config.default_network_opts == {"bridge": {"mtu": "1442"}}
    assert config.options("limits", "cgroup2")[0] == {}


def test_our_directories_lie_below_the_roots_and_never_are_the_roots(written):
    assert (Config().state_dir, Config().run_dir) == ("/var/lib/transom", "/run/transom")
    config = loaded(written({"data-root": "/srv/docker/", "exec-root": "/"}))
    assert (config.state_dir, config.run_dir) == ("/srv/docker/transom", "/transom")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ({"storage-opts": 5}, "FILE: storage-opts must be a list of texts, not 5"),
        ({"storage-opts": ["size"]}, 'FILE: storage-opts must be a list, each a text NAME=VALUE, not ["size"]'),
        ({"log-opts": {"max-file": 3}}, 'FILE: log-opts must be an object of texts, not {"max-file":3}'),
        ({"debug": "yes"}, 'FILE: debug must be true or false, not "yes"'),
        ({"mtu": -1}, "FILE: mtu must be a whole number, at least 0, at most 65535, not -1"),
        ({"shutdown-timeout": 1.5}, "FILE: shutdown-timeout must be a whole number, at least -1, not 1.5"),
        ({"max-concurrent-downloads": 0}, "FILE: max-concurrent-downloads must be a whole number, at least 1, not 0"),
        (
            {"log-level": "loud"},
            "FILE: log-level must be one of 'debug', 'error', 'fatal', 'info', 'panic', 'trace', 'warn', not \"loud\"",
        ),
        ({"default-ipc-mode": "host"}, "FILE: default-ipc-mode must be one of 'private', 'shareable', not \"host\""),
        ({"default-shm-size": "big"}, 'FILE: default-shm-size must be a size such as 64m or 67108864, not "big"'),
        (
            {"default-ulimits": {"nofile": 5}},
            'FILE: default-ulimits must be an object of objects with Hard, Soft, Name, not {"nofile":5}',
        ),
        (
            {"default-address-pools": [{"base": "10.0.0.0/16"}]},
            'FILE: default-address-pools must be a list of objects with base, size, not [{"base":"10.0.0.0/16"}]',
        ),
        (
            {"default-address-pools": [{"base": "10.0.0.0/16", "size": 8}]},
            "FILE: default-address-pools must be a list of objects with a network in CIDR notation as base and a "
            'longer prefix length as size, not [{"base":"10.0.0.0/16","size":8}]',
        ),
        (
            {"bip": "172.17.0.1"},
            'FILE: bip must be an IPv4 address with prefix length such as 172.17.0.1/16, not "172.17.0.1"',
        ),
        ({"dns": ["localhost"]}, 'FILE: dns must be a list, each an IP address, not ["localhost"]'),
        ({"data-root": "var"}, 'FILE: data-root must be an absolute path, not "var"'),
        (
            {"hosts": ["/run/x"]},
            'FILE: hosts must be a list, each an address unix://PATH, tcp://HOST:PORT or fd://, not ["/run/x"]',
        ),
        ({"tls": 1}, "FILE: tls must be true or false, not 1"),
        (
            {"proxies": {"ftp": "x"}},
            'FILE: proxies must be an object with http-proxy, https-proxy, no-proxy, not {"ftp":"x"}',
        ),
        ({"transom": {"auth-drivers": "peer"}}, 'FILE: transom.auth-drivers must be a list of texts, not "peer"'),
        ({"transom": ["x"]}, 'FILE: transom must be an object, not ["x"]'),
        ({"storage-drvier": "x"}, "FILE: unknown key 'storage-drvier' (did you mean storage-driver?)"),
        (
            {"transom": {"limit-driver": "x"}},
            "FILE: unknown key 'transom.limit-driver' (did you mean transom.limits-driver?); known are: "
            "transom.auth-drivers, transom.driver-opts, transom.limits-driver, transom.log-drivers, "
            "transom.network-driver, transom.wrappers",
        ),
        ([], "FILE must be an object of keys, not []"),
        ('{\n  "mtu": 1500,\n  debug: true\n}', "FILE, line 3, column 3: invalid JSON: object keys must be strings"),
        ('{"mtu": 1500', "FILE, line 1, column 13: invalid JSON: it ends too early"),
        ('{"mtu": 1,\n "log-opts": {"a": "1"},\n "mtu": 2}', "FILE, line 3: the key 'mtu' is there twice"),
        ('{"log-opts": {"a": "1",\n "a": "1"}}', "FILE, line 2: the key 'a' is there twice"),
    ],
)
def test_a_slip_in_the_file_is_told_with_file_key_and_what_is_allowed(written, content, text):
    assert refusal(written(content)) == text


def test_a_slip_in_the_environment_names_the_variable():
    assert refusal(None, {"TRANSOM_MTU": "wide"}) == (
        "TRANSOM_MTU='wide': expected a whole number, at least 0, at most 65535"
    )
    assert refusal(None, {"TRANSOM_BIP": "x"}) == (
        'TRANSOM_BIP: bip must be an IPv4 address with prefix length such as 172.17.0.1/16, not "x"'
    )
    assert refusal(None, {"TRANSOM_LOG_OPTS": "a=b"}) == "TRANSOM_LOG_OPTS: log-opts is set in the config file only"


def test_a_slip_on_the_command_line_names_the_flag():
    assert refusal(log_level="loud") == (
        "--log-level='loud': expected one of debug, error, fatal, info, panic, trace, warn"
    )
    assert refusal(mtu=-5) == "--mtu: mtu must be a whole number, at least 0, at most 65535, not -5"
    assert refusal(storage_drvier="x") == (
        "--storage-drvier: unknown key 'storage-drvier' (did you mean storage-driver?)"
    )


def test_a_file_that_was_named_must_exist(tmp_path):
    path = str(tmp_path / "none.json")
    assert refusal(path) == "FILE: no such file (named by --config)"
    assert refusal(None, {"TRANSOM_CONFIG": path}) == f"{path}: no such file (named by TRANSOM_CONFIG)"
    assert refusal(str(tmp_path)) == "FILE: Is a directory"


@pytest.mark.parametrize("content", ["", " \n", "{}", "\ufeff{}", '{"mtu": null, "transom": null}'])
def test_an_empty_file_and_null_say_nothing(written, content):
    assert loaded(written(content)).origin == {}


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        ),
        max_size=4,
    )
)
def test_whatever_the_values_are_the_answer_is_a_config_or_one_line(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("config") / "daemon.json"
    path.write_text(json.dumps(dict(zip(sorted(KEYS), values.values(), strict=False))))
    text = ""
    try:
        loaded(str(path))
    except ConfigError as error:
        text = str(error)
    assert "\n" not in text
    assert not text or text.startswith(str(path))


def test_loading_imports_nothing_that_costs():
    program = (
        "import sys, transom.config as c; c.load(path=None, environ={}, overrides={});"
        "print([m for m in ('json', 'tempfile', 'subprocess', 'difflib', 'dataclasses') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
