"""The configuration: daemon.json, the environment and the command line, in one validated object.

The file has the keys, the types and the meaning of Docker's daemon.json (dockerd(8)), so that an existing one works
unchanged. A key of Docker's that means nothing here is accepted and shown as ignored, with the reason; any other
unknown key is refused. What is Transom's own stands in one object::

    {
      "storage-driver": "overlay2",
      "log-driver": "json-file",
      "log-opts": {"max-size": "10m"},
      "transom": {
        "limits-driver": "cgroup2",
        "network-driver": "bridge",
        "auth-drivers": ["peer"],
        "wrappers": ["audit"],
        "driver-opts": {"auth": {"peer": {"group": "wheel"}}}
      }
    }

Which file: ``--config FILE``, else the environment's TRANSOM_CONFIG, else /etc/transom/daemon.json if it exists.
Over the file stands the environment, TRANSOM_STORAGE_DRIVER for ``storage-driver`` (texts, numbers, truth
values, and lists separated by commas), and over both the command line.

Everything that Transom keeps lies in a directory ``transom`` below ``data-root`` and ``exec-root``: with a
daemon.json that another engine shares, what the two keep there is never mixed.
"""

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import msgspec

from transom.errors import ConfigError, choices, nearest
from transom.services.options import Size, expected, parse, parse_size

DEFAULT_PATH = "/etc/transom/daemon.json"

ORDER: dict[str, tuple[str, ...]] = {
    "storage": ("overlay2", "btrfs", "zfs", "aufs", "devicemapper"),
    "network": ("bridge",),
    "logging": ("json-file",),
    "limits": ("systemd", "cgroup2", "cgroup1"),
    "auth": ("peer",),
}
"""Where the config names no driver, the first of these that is installed and usable on this host.

Not among them: drivers that work everywhere at a price that nobody should pay unasked (vfs copies every layer).
"""

LOG_CACHE = ("local", "json-file")
"""The first of these that is installed keeps what `logs` shows where none of a container's drivers can be read."""

Count = Annotated[int, msgspec.Meta(ge=1)]


class AddressPool(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Networks without a subnet of their own get one of `size` bits out of `base`, in CIDR notation."""

    base: str
    size: int


class Ulimit(msgspec.Struct, frozen=True, rename="pascal", forbid_unknown_fields=True):
    """A default resource limit of getrlimit(2); -1 is unlimited."""

    hard: int
    soft: int
    name: str = ""


class Runtime(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """An OCI runtime that ``--runtime`` and ``default-runtime`` can name: its program and further arguments."""

    path: str = ""
    runtime_args: tuple[str, ...] = ()
    runtime_type: str = ""
    options: dict[str, Any] = {}


class Proxies(msgspec.Struct, frozen=True, rename="kebab", forbid_unknown_fields=True):
    """Proxies for pulling images, in the syntax of curl's environment variables."""

    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""


class Config(msgspec.Struct, frozen=True, kw_only=True, rename="kebab"):
    """Every key that acts, with dockerd's meaning and default; empty and 0 leave the choice to the engine.

    Attributes:
        origin: for each key that is not at its default where it was set: "file PATH", "environment TRANSOM_MTU",
            "command line --mtu".
        ignored: what was set and has no meaning here: key, value as JSON, and where and why.
    """

    # What runs things
    storage_driver: str = ""
    storage_opts: tuple[str, ...] = ()
    log_driver: str = ""
    log_opts: dict[str, str] = {}
    log_drivers: tuple[str, ...] = msgspec.field(default=(), name="transom.log-drivers")
    limits_driver: str = msgspec.field(default="", name="transom.limits-driver")
    network_driver: str = msgspec.field(default="", name="transom.network-driver")
    auth_drivers: tuple[str, ...] = msgspec.field(default=(), name="transom.auth-drivers")
    wrappers: tuple[str, ...] = msgspec.field(default=(), name="transom.wrappers")
    driver_opts: dict[str, dict[str, dict[str, str]]] = msgspec.field(default={}, name="transom.driver-opts")
    authorization_plugins: tuple[str, ...] = ()
    default_runtime: str = ""
    runtimes: dict[str, Runtime] = {}

    # Where things are kept
    data_root: str = "/var/lib"
    exec_root: str = "/run"
    pidfile: str = ""

    # The default network
    bridge: str = ""
    bip: str = ""
    bip6: str = ""
    fixed_cidr: str = ""
    fixed_cidr_v6: str = ""
    default_gateway: str = ""
    default_gateway_v6: str = ""
    mtu: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 0
    ipv6: bool = False
    icc: bool = True
    ip: str = "0.0.0.0"

    # All networks
    default_address_pools: tuple[AddressPool, ...] = ()
    default_network_opts: dict[str, dict[str, str]] = {}
    ip_forward: bool = True
    ip_masq: bool = True
    dns: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    host_gateway_ip: str = ""
    host_gateway_ips: tuple[str, ...] = ()

    # Defaults of containers
    default_ulimits: dict[str, Ulimit] = {}
    default_shm_size: Size = 64 << 20
    default_ipc_mode: Literal["private", "shareable"] = "private"
    default_cgroupns_mode: Literal["private", "host", ""] = ""
    init: bool = False
    init_path: str = ""
    seccomp_profile: str = "builtin"
    no_new_privileges: bool = False

    # Images
    insecure_registries: tuple[str, ...] = ()
    registry_mirrors: tuple[str, ...] = ()
    proxies: Proxies = Proxies()
    max_concurrent_downloads: Count = 3
    max_download_attempts: Count = 5

    # The engine and its API
    debug: bool = False
    log_level: Literal["", "trace", "debug", "info", "warn", "error", "fatal", "panic"] = "info"
    labels: tuple[str, ...] = ()
    shutdown_timeout: Annotated[int, msgspec.Meta(ge=-1)] = 15
    hosts: tuple[str, ...] = ()
    group: str = "docker"
    tls: bool | None = None
    tlsverify: bool | None = None
    tlscacert: str = ""
    tlscert: str = ""
    tlskey: str = ""

    origin: dict[str, str] = {}
    ignored: tuple[tuple[str, str, str], ...] = ()

    @property
    def state_dir(self) -> str:
        """The directory of everything that survives a reboot."""
        return f"{self.data_root.rstrip('/')}/transom"

    @property
    def run_dir(self) -> str:
        """The directory of everything that is gone after a reboot."""
        return f"{self.exec_root.rstrip('/')}/transom"

    def drivers(self, kind: str) -> tuple[str, ...]:
        """Return the names of the drivers of `kind`: the configured ones, else those of `ORDER` to try in turn.

        Of kind auth, and of ``log-drivers``, all take part; ``authorization-plugins`` join those of ``auth-drivers``.
        """
        if kind == "auth":
            return (self.auth_drivers or ORDER["auth"]) + self.authorization_plugins
        if kind == "logging" and self.log_drivers and not self.origin.get("log-driver", "").startswith("command"):
            return self.log_drivers
        chosen: str = self.log_driver if kind == "logging" else getattr(self, f"{kind}_driver")
        return (chosen,) if chosen else ORDER[kind]

    def options(self, kind: str, name: str) -> tuple[dict[str, str], str]:
        """Return a driver's options as the user wrote them, and where, for an error text.

        Docker's keys ``storage-opts`` and ``log-opts`` speak of the one driver that the config selects;
        ``driver-opts`` can speak of any. ``default-network-opts`` are options of networks, not of their driver.
        """
        key, found = "transom.driver-opts", dict(self.driver_opts.get(kind, {}).get(name, {}))
        if kind == "storage" and self.storage_opts and self.storage_driver in ("", name):
            key, found = "storage-opts", found | dict(text.split("=", 1) for text in self.storage_opts)
        elif kind == "logging" and self.log_opts and name in self.drivers("logging"):
            key, found = "log-opts", found | self.log_opts
        return found, f"{self.origin.get(key, 'default')}: {key}"


_IGNORED = {
    "a network driver publishes and isolates by a firewall table of its own": "iptables ip6tables",
    "ports are published without a proxy": "userland-proxy userland-proxy-path",
    "a limits driver owns its control groups": "cgroup-parent cpu-rt-period cpu-rt-runtime exec-opts",
    "containers never depend on a daemon: they outlive it always": "live-restore",
    "containers share the host's user ids": "userns-remap",
    "devices are given one by one": "cdi-spec-dirs",
    "dockerd itself no longer has it": "api-cors-header deprecated-key-path",
    "images are not built here": "builder",
    "images are not pushed": "max-concurrent-uploads",
    "init-path names the program": "default-init",
    "no AppArmor profile is loaded": "apparmor-profile",
    "no SELinux label is set": "selinux-enabled",
    "nothing is hidden behind it": "experimental features",
    "nothing serves metrics": "metrics-addr",
    "a network says it, by gateway_mode_ipv4 or trusted_host_interfaces": "allow-direct-routing bridge-accept-fwmark",
    "registries no longer know such layers": "allow-nondistributable-artifacts",
    "root runs containers": "rootless",
    "the engine writes plain text": "log-format raw-logs",
    "the host's /etc/resolv.conf is read": "resolv-conf",
    "the network driver never changes the policy of a chain that it did not make": "ip-forward-no-drop",
    "the network driver uses what the kernel offers": "firewall-backend",
    "the service manager's business": "oom-score-adjust",
    "there is no containerd underneath": (
        "containerd containerd-namespace containerd-plugin-namespace containerd-plugins-namespace cri-containerd"
    ),
    "there is no swarm mode": (
        "cluster-advertise cluster-store cluster-store-opts network-control-plane-mtu network-diagnostic-port "
        "node-generic-resources swarm-default-advertise-addr swarm-raft-election-tick "
        "swarm-raft-heartbeat-tick"
    ),
}
IGNORED = {key: reason for reason, keys in _IGNORED.items() for key in keys.split()}
"""dockerd's keys that have no meaning here, with the reason."""

KEYS = frozenset(Config.__struct_encode_fields__) - {"origin", "ignored"}


def load(*, path: str | None, environ: Mapping[str, str], overrides: Mapping[str, object]) -> Config:
    """Read the configuration.

    Args:
        path: the file that the command line names, or None.
        environ: the environment.
        overrides: by key, what the command line says; None where it says nothing. A text is read as from the
            environment.

    Raises:
        ConfigError: with the place, the key and what is allowed.
    """
    values: dict[str, object] = {}
    origin: dict[str, str] = {}
    ignored: list[tuple[str, str, str]] = []
    for key, value in _file(path, environ).items():
        where = f"file {_path(path, environ)}"
        if key in IGNORED:
            ignored.append((key, _text(value), f"{where}; ignored: {IGNORED[key]}"))
        elif value is not None:  # as in Go: null leaves the default
            values[key], origin[key] = value, where
    for key in KEYS:
        variable = "TRANSOM_" + key.removeprefix("transom.").replace("-", "_").upper()
        if variable in environ:
            values[key], origin[key] = _word(key, environ[variable], variable), f"environment {variable}"
    for name, value in overrides.items():
        if value is not None:
            key = name if name in KEYS else f"transom.{name}"
            if key not in KEYS:
                known = [key.removeprefix("transom.") for key in KEYS]
                raise ConfigError(f"--{name}: unknown key {name!r}{nearest(name, known)}")
            value = _word(key, value, f"--{name}") if isinstance(value, str) else value
            values[key], origin[key] = value, f"command line --{name}"
    size = values.get("default-shm-size")
    if isinstance(size, str):
        try:
            values["default-shm-size"] = parse_size(size)
        except ValueError:
            pass  # the conversion refuses it, and `_fault` says what a size is
    try:
        config = msgspec.convert({**values, "origin": origin, "ignored": ignored}, Config)
    except msgspec.ValidationError:
        raise _fault(values, origin) from None
    for key in sorted(_CHECKS.keys() & origin.keys()):
        try:
            _CHECKS[key](values[key])
        except ValueError as error:
            raise _refused(key, origin[key], values[key], str(error)) from None
    return config


def rows(config: Config) -> list[tuple[str, str, str]]:
    """List key, value and origin, for ``transom config show``: texts as they are, other values as JSON."""
    values = msgspec.to_builtins(config)
    shown = [(key, _text(values[key]), config.origin.get(key, "default")) for key in KEYS]
    return sorted(shown + list(config.ignored))


def _path(path: str | None, environ: Mapping[str, str]) -> str:
    return path or environ.get("TRANSOM_CONFIG") or DEFAULT_PATH


def _file(path: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the file's keys, those of the object ``transom`` under ``transom.KEY``."""
    place = _path(path, environ)
    try:
        with open(place, "rb") as file:
            data = file.read().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        if not path and not environ.get("TRANSOM_CONFIG"):
            return {}
        named = "--config" if path else "TRANSOM_CONFIG"
        raise ConfigError(f"{place}: no such file (named by {named})") from None
    except OSError as error:
        raise ConfigError(f"{place}: {error.strerror}") from None
    if not data.strip():
        return {}
    try:
        content = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}{_position(data, str(error))}") from None
    _unique(data.decode(), place)
    if not isinstance(content, dict):
        raise ConfigError(f"{place} must be an object of keys, not {_text(content)}")
    own = content.pop("transom", None) or {}
    if not isinstance(own, dict):
        raise ConfigError(f"{place}: transom must be an object, not {_text(own)}")
    content |= {f"transom.{key}": value for key, value in own.items()}
    for key in content:
        if key not in KEYS and key not in IGNORED:
            ours = key.startswith("transom.")
            known = [name for name in (*KEYS, *IGNORED) if name.startswith("transom.") == ours]
            listed = f"; known are: {choices(known)}" if ours else ""
            raise ConfigError(f"{place}: unknown key {key!r}{nearest(key, known)}{listed}")
    return content


def _position(data: bytes, error: str) -> str:
    """Turn msgspec's "... (byte N)" into ", line L, column C: ..."."""
    text, _, offset = error.removeprefix("JSON is malformed: ").partition(" (byte ")
    end = int(offset.rstrip(")")) if offset else len(data)
    before = data[:end].decode(errors="replace")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    return f", line {line}, column {column}: invalid JSON: {text.lower() if offset else 'it ends too early'}"


def _unique(text: str, place: str) -> None:
    """Refuse a key that is there twice in one object: of two values one would silently win."""
    objects: list[set[str]] = []
    for match in re.finditer(r'("(?:[^"\\]|\\.)*")(\s*:)?|[{}]', text):
        if match[0] == "{":
            objects.append(set())
        elif match[0] == "}":
            objects.pop()
        elif match[2]:
            key = msgspec.json.decode(match[1])
            if key in objects[-1]:
                line = text.count("\n", 0, match.start()) + 1
                raise ConfigError(f"{place}, line {line}: the key {key!r} is there twice")
            objects[-1].add(key)


def _word(key: str, text: str, variable: str) -> Any:
    """Read a value that was written as one text, in the environment or on the command line."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(Config)}
    if isinstance(fields[key].default_factory, type) or key in ("default-address-pools", "proxies"):
        raise ConfigError(f"{variable}: {key} is set in the config file only")
    try:
        return msgspec.to_builtins(parse(fields[key].type, text))
    except ValueError as error:
        raise ConfigError(f"{variable}={text!r}: expected {error}") from None


def _fault(values: Mapping[str, object], origin: Mapping[str, str]) -> ConfigError:
    """Find which key is of the wrong type; `load` converts all of them at once, which is fast and does not say."""
    for field in msgspec.structs.fields(Config):
        key = field.encode_name
        if key in values:
            try:
                msgspec.convert(values[key], field.type)
            except msgspec.ValidationError:
                return _refused(key, origin[key], values[key], _wanted(msgspec.inspect.type_info(field.type)))
    raise AssertionError("every key alone is valid")


def _refused(key: str, origin: str, value: object, wanted: str) -> ConfigError:
    place = origin.removeprefix("file ").removeprefix("environment ").removeprefix("command line ")
    return ConfigError(f"{place}: {key} must be {wanted}, not {_text(value, quoted=True)}")


def _text(value: object, *, quoted: bool = False) -> str:
    if isinstance(value, str) and not quoted:
        return value
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 or not quoted else text[:77] + "..."


def _wanted(kind: Any, *, many: bool = False) -> str:
    """Say in words what a JSON value must be."""
    match type(kind).__name__:
        case "Metadata" if kind.extra:
            return "a size such as 64m or 67108864"
        case "LiteralType":
            return "one of " + ", ".join(repr(value) for value in kind.values if value)
        case "VarTupleType":
            return f"a list of {_wanted(kind.item_type, many=True)}"
        case "DictType":
            return f"{'objects' if many else 'an object'} of {_wanted(kind.value_type, many=True)}"
        case "StructType":
            fields = ", ".join(field.encode_name for field in kind.fields)
            return f"{'objects' if many else 'an object'} with {fields}"
    return "texts" if many else expected(kind)


def _each(check: Callable[[Any], object], wanted: str, *, empty: bool = True) -> Callable[[Any], None]:
    """Make a check of a text or of each in a list; an empty text says nothing, unless `empty` is false."""

    def run(value: Any) -> None:
        items = [value] if isinstance(value, str) else value
        for item in items:
            try:
                if (item or not empty) and check(item) is False:
                    raise ValueError
            except ValueError:
                raise ValueError(wanted if items is not value else f"a list, each {wanted}") from None

    return run


def _address(text: str) -> None:
    from ipaddress import ip_address

    ip_address(text)


def _interface(version: int) -> Callable[[str], bool]:
    def check(text: str) -> bool:
        from ipaddress import ip_interface

        return "/" in text and ip_interface(text).version == version

    return check


def _pools(pools: Any) -> None:
    from ipaddress import ip_network

    for pool in msgspec.convert(pools, tuple[AddressPool, ...]):
        try:
            base = ip_network(pool.base)
            if not base.prefixlen <= pool.size <= base.max_prefixlen:
                raise ValueError
        except ValueError:
            raise ValueError(
                "a list of objects with a network in CIDR notation as base and a longer prefix length as size"
            ) from None


_CHECKS: dict[str, Callable[[Any], None]] = {
    "default-address-pools": _pools,
    "hosts": _each(
        lambda host: re.match(r"(unix|tcp|fd)://", host) is not None, "an address unix://PATH, tcp://HOST:PORT or fd://"
    ),
} | {
    key: check
    for keys, check in {
        "data-root exec-root": _each(lambda path: path.startswith("/"), "an absolute path", empty=False),
        "bip fixed-cidr": _each(_interface(4), "an IPv4 address with prefix length such as 172.17.0.1/16"),
        "bip6 fixed-cidr-v6": _each(_interface(6), "an IPv6 address with prefix length such as fd00::1/64"),
        "default-gateway default-gateway-v6 ip dns host-gateway-ip host-gateway-ips": _each(_address, "an IP address"),
        "storage-opts labels": _each(lambda text: "=" in text.lstrip("="), "a text NAME=VALUE", empty=False),
    }.items()
    for key in keys.split()
}
"""What a type does not say, checked where a key was set; the addresses' module is only imported then."""
