"""What users write after the flags of ``docker run``, parsed into the shapes of `transom_engine.model`.

Every function takes the texts as they stand on the command line and raises `transom.errors.ConfigError` with the
flag, the text and the expected form. Grammar and meaning are those of docker-run(1); where Docker has a sentence for
a mistake, ours says the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from transom.errors import ConfigError, nearest
from transom.services.options import LARGEST, parse_size
from transom_engine.model import (
    Device,
    EndpointSettings,
    HugepageLimit,
    MountPoint,
    PortBinding,
    RestartPolicy,
    ThrottleDevice,
    Ulimit,
    WeightDevice,
)

PROTOCOLS = ("tcp", "udp", "sctp")
ULIMITS = (
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
)
"""setrlimit(2)'s resources without RLIMIT_; not ``as``, which would bind the runtime itself."""
RESTARTS = ("no", "always", "unless-stopped", "on-failure")
PROPAGATIONS = ("shared", "rshared", "slave", "rslave", "private", "rprivate")
TMPFS_OPTIONS = (
    "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async", "dirsync", "remount", "mand",
    "nomand", "atime", "noatime", "diratime", "nodiratime", "bind", "rbind", "unbindable", "runbindable", "private",
    "rprivate", "shared", "rshared", "slave", "rslave", "relatime", "norelatime", "strictatime", "nostrictatime",
    "mode", "uid", "gid", "nr_inodes", "nr_blocks", "size", "mpol",
)  # fmt: skip

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
"""What a container or a volume may be called (Docker's RestrictedNamePattern)."""
_PUBLISH = "[[IP:][HOST_PORT]:]CONTAINER_PORT[/PROTOCOL], ports being numbers or ranges such as 8000-8010"
_VOLUME = "[SOURCE:]DESTINATION[:OPTIONS]"


def _bad(flag: str, text: str, reason: str, form: str = "") -> ConfigError:
    return ConfigError(f"{flag} {text!r}: {reason}" + (f"; expected {form}" if form else ""))


# Ports


def ports(
    publish: Iterable[str] = (), expose: Iterable[str] = ()
) -> tuple[dict[str, dict[str, str]], dict[str, list[PortBinding]]]:
    """Read ``-p`` and ``--expose`` into `Config.exposed_ports` and `HostConfig.port_bindings`.

    A range of host ports for one container port stays a range: any one of them will do. What is said twice counts once.

    Raises:
        ConfigError: bad words, or a port of the host for two ports of the container.
    """
    exposed: dict[str, dict[str, str]] = {}
    bindings: dict[str, list[PortBinding]] = {}
    taken: dict[tuple[str, str], list[str]] = {}
    for text in publish:
        for key, binding in _publish(text):
            exposed[key] = {}
            known = bindings.setdefault(key, [])
            if binding in known and binding.host_port:
                continue
            known.append(binding)
            if binding.host_port.isdecimal():
                port, protocol = binding.host_port, key.partition("/")[2]
                addresses = taken.setdefault((port, protocol), [])
                if any(_overlap(address, binding.host_ip) for address in addresses):
                    raise _bad("-p", text, f"port {port}/{protocol} of the host is asked for twice; choose another one")
                addresses.append(binding.host_ip)
    for text in expose:
        container, protocol = _protocol(text, "--expose", "PORT[-PORT][/PROTOCOL]")
        first, last = _range(container, text, "--expose", "PORT[-PORT][/PROTOCOL]", least=1)
        exposed |= {f"{port}/{protocol}": {} for port in range(first, last + 1)}
    return exposed, bindings


def _publish(text: str) -> list[tuple[str, PortBinding]]:
    plain, protocol = _protocol(_short(text) if "=" in text else text, "-p", _PUBLISH)
    front, _, container = plain.rpartition(":")
    address, _, host = front.rpartition(":")
    if not container:
        raise _bad("-p", text, "no port specified", _PUBLISH)
    if address:
        address = _ip(address, text)
    first, last = _range(container, text, "-p", _PUBLISH, least=1)
    if host in ("", "0"):
        return [(f"{port}/{protocol}", PortBinding(host_ip=address)) for port in range(first, last + 1)]
    host_first, host_last = _range(host, text, "-p", _PUBLISH)
    if first == last:
        words = host if host_first != host_last else str(host_first)
        return [(f"{first}/{protocol}", PortBinding(host_ip=address, host_port=words))]
    if host_last - host_first != last - first:
        raise _bad("-p", text, f"the ranges {host} and {container} differ in length", _PUBLISH)
    return [
        (f"{first + step}/{protocol}", PortBinding(host_ip=address, host_port=str(host_first + step)))
        for step in range(last - first + 1)
    ]


def _overlap(one: str, other: str) -> bool:
    """Say whether two addresses of the host that ports are published at have one in common."""
    pair = {one, other}
    six = {":" in address for address in pair}
    return len(pair) == 1 or "" in pair or (len(six) == 1 and bool(pair & {"0.0.0.0", "::"}))


def _short(text: str) -> str:
    """Turn ``published=8080,target=80,protocol=tcp`` into the short form."""
    known = ("published", "target", "protocol", "mode")
    values = dict(part.partition("=")[::2] for part in text.lower().split(","))
    for name in values:
        if name not in known:
            raise _bad("-p", text, f"unknown field {name!r}{nearest(name, known)}", ", ".join(known))
    if not values.get("target"):
        raise _bad("-p", text, "no target port specified", "target=PORT")
    return f"{values.get('published', '')}:{values['target']}/{values.get('protocol') or 'tcp'}".removeprefix(":")


def _protocol(text: str, flag: str, form: str) -> tuple[str, str]:
    port, slash, protocol = text.partition("/")
    if slash and protocol.lower() not in PROTOCOLS:
        raise _bad(flag, text, f"invalid protocol {protocol!r}", f"one of {', '.join(PROTOCOLS)}")
    return port, protocol.lower() or "tcp"


def _range(ports: str, text: str, flag: str, form: str, *, least: int = 0) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", ports)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not least <= first <= last <= 65535:
        raise _bad(flag, text, f"invalid port {ports!r}", form)
    return first, last


def _ip(address: str, text: str) -> str:
    from ipaddress import ip_address

    try:
        bare = address[1:-1] if address[0] == "[" and address[-1] == "]" else address
        if (bare is address and ":" in address) or "%" in address:
            raise ValueError
        return str(ip_address(bare))
    except ValueError:
        raise _bad("-p", text, f"invalid IP address {address!r}, an IPv6 address stands in [ ]", _PUBLISH) from None


# Networks

_PLACE = "NAME or name=NAME,alias=A,ip=IP,ip6=IP,link-local-ip=IP,mac-address=MAC,gw-priority=N,driver-opt=K=V"
ADDRESSES = {"ip": "IPv4Address", "ip6": "IPv6Address", "mac-address": "MacAddress"}


def add_link_local(place: EndpointSettings, addresses: Iterable[str], *, flag: str = "--link-local-ip") -> None:
    """Ask for link-local addresses besides the container's own, each in the kernel's spelling."""
    from ipaddress import ip_address

    for text in addresses:
        try:
            address = ip_address(text)
        except ValueError:
            address = None
        if address is None or not address.is_link_local:
            raise _bad(flag, text, "not a link-local address", "one of 169.254.0.0/16 or fe80::/64")
        asked = place.ipam_config or {}
        place.ipam_config = {**asked, "LinkLocalIPs": [*asked.get("LinkLocalIPs", ()), str(address)]}


def own_addresses(given: Mapping[str, str], *, before: str = "--") -> dict[str, str]:
    """Read ``ip``, ``ip6`` and ``mac-address``, where they say anything, into `EndpointSettings.ipam_config`.

    Args:
        before: what a user writes before those words.
    """
    read = {"ip": _ipv4, "ip6": _ipv6, "mac-address": _mac}
    return {ADDRESSES[word]: read[word](text, before + word) for word, text in given.items() if text}


def _ipv4(text: str, flag: str) -> str:
    from ipaddress import IPv4Address

    try:
        return str(IPv4Address(text))
    except ValueError:
        raise _bad(flag, text, "not an IPv4 address", "one such as 172.28.5.7") from None


def _ipv6(text: str, flag: str) -> str:
    from ipaddress import IPv6Address

    try:
        if "%" not in text:
            return str(IPv6Address(text))
    except ValueError:
        pass
    raise _bad(flag, text, "not an IPv6 address", "one such as 2001:db8::33")


def _mac(text: str, flag: str) -> str:
    """Read a MAC address as Go's ParseMAC does (``-`` and ``.`` may separate); it must be one interface's own."""
    form = "six bytes such as 02:42:ac:11:00:02, the first one even"
    byte = "[0-9A-Fa-f]{2}"
    if not re.fullmatch(rf"{byte}([:-])(?:{byte}\1){{4}}{byte}|(?:{byte}{byte}\.){{2}}{byte}{byte}", text):
        raise _bad(flag, text, "not a MAC address", form)
    packed = bytes.fromhex(re.sub("[:.-]", "", text))
    if packed[0] & 1 or not any(packed):  # a group's (IEEE 802), or nobody's: the kernel takes neither
        raise _bad(flag, text, "no interface can have this MAC address", form)
    return packed.hex(":")


def network(text: str) -> tuple[str, EndpointSettings]:
    """Read one ``--network``: a name, or fields that say more about the container's place on it."""
    if "=" not in text:
        return text, EndpointSettings()
    name, place, options = "", EndpointSettings(), list[str]()
    for part in _fields(text):
        field, _, value = part.partition("=")
        match field.lower():
            case "name":
                name = value
            case "alias":
                place.aliases = [*(place.aliases or []), value]
            case "driver-opt":
                options.append(value)
            case "gw-priority":
                place.gw_priority = priority(value, text)
            case "link-local-ip":
                add_link_local(place, (value,), flag="--network link-local-ip")
            case other if other in ADDRESSES:
                place.ipam_config = {**(place.ipam_config or {}), **own_addresses({other: value}, before="--network ")}
            case other:
                known = ("name", "alias", "driver-opt", "gw-priority", "link-local-ip", *ADDRESSES)
                raise _bad("--network", text, f"unknown field {other!r}{nearest(other, known)}", _PLACE)
    if not name:
        raise _bad("--network", text, "no name", _PLACE)
    place.driver_opts = pairs(options, flag="--network driver-opt") or None
    return name, place


def _fields(text: str) -> list[str]:
    """Split at commas; a field in double quotes may have some (RFC 4180), as a list of an endpoint's settings has."""
    if '"' not in text:
        return text.split(",")
    import csv

    try:
        return next(csv.reader([text], strict=True))
    except csv.Error as error:
        raise _bad("--network", text, str(error), _PLACE) from None


def priority(value: str, text: str) -> int:
    """Read a ``gw-priority``: any whole number."""
    try:
        return int(value)
    except ValueError:
        raise _bad("--network", text, f"gw-priority {value!r} is not a whole number") from None


def link(text: str) -> str:
    """Read one ``--link``, NAME or NAME:ALIAS, into the latter."""
    name, _, alias = text.partition(":")
    if not name or ":" in alias or text.endswith(":"):
        raise _bad("--link", text, "no container, or no alias", "NAME[:ALIAS]")
    return f"{name}:{alias or name}"


# Volumes


def volume(text: str) -> MountPoint:
    """Read one ``-v``: a path of the host, a named volume, or an anonymous one (no source).

    A source that starts with a dot is a path relative to the working directory. `MountPoint.mode` keeps the options
    as written.
    """
    parts = text.split(":")
    if len(parts) > 3 or "" in parts[:2]:
        raise _bad("-v", text, "invalid volume specification", _VOLUME)
    source, destination = (parts[0], parts[1]) if len(parts) > 1 else ("", parts[0])
    if not destination.startswith("/"):
        raise _bad("-v", text, f"mount path {destination!r} must be absolute", _VOLUME)
    destination = _clean(destination)
    if destination == "/":
        raise _bad("-v", text, "destination can't be '/'", _VOLUME)
    if source.startswith("."):
        import os

        source = os.path.abspath(source)
    elif len(source) == 1 and source != "/":
        raise _bad("-v", text, "volume name is too short, names have at least two characters")
    elif source and source[0] != "/" and not NAME.fullmatch(source):
        raise _bad(
            "-v", text, f"{source!r} includes invalid characters for a volume name, only [a-zA-Z0-9][a-zA-Z0-9_.-] "
            "are allowed; for a directory of the host write its absolute path",
        )  # fmt: skip
    bind = source.startswith("/")
    mode = parts[2] if len(parts) == 3 else ""
    rw, propagation = _mode(mode, text, bind=bind)
    return MountPoint(
        type="bind" if bind else "volume", name="" if bind else source, source=_clean(source) if bind else "",
        destination=destination, driver="" if bind else "local", mode=mode, rw=rw, propagation=propagation,
    )  # fmt: skip


def _clean(path: str) -> str:
    import posixpath

    return posixpath.normpath(path).replace("//", "/")


def _mode(mode: str, text: str, *, bind: bool) -> tuple[bool, str]:
    """Return whether writable, and the propagation, from the options of one ``-v``."""
    groups = {"ro": "access", "rw": "access", "z": "label", "Z": "label"}
    groups |= dict.fromkeys(("consistent", "cached", "delegated"), "consistency")
    groups |= dict.fromkeys(PROPAGATIONS, "propagation") if bind else {"nocopy": "copy"}
    chosen: dict[str, str] = {}
    for option in mode.split(",") if mode else ():
        group = groups.get(option)
        if group is None:
            raise _bad("-v", text, f"invalid mode {option!r}", ", ".join(groups))
        if group in chosen:
            raise _bad("-v", text, f"{chosen[group]!r} and {option!r} exclude each other")
        chosen[group] = option
    return chosen.get("access") != "ro", chosen.get("propagation", "rprivate" if bind else "")


def tmpfs(texts: Iterable[str]) -> dict[str, str]:
    """Read ``--tmpfs`` into `HostConfig.tmpfs`: destination to options of mount(8)."""
    found = {}
    for text in texts:
        path, _, options = text.partition(":")
        if not path.startswith("/") or _clean(path) == "/":
            raise _bad("--tmpfs", text, "mount path must be absolute and not '/'", "PATH[:OPTIONS]")
        for option in filter(None, options.split(",")):
            name = option.partition("=")[0]
            if name not in TMPFS_OPTIONS:
                raise _bad("--tmpfs", text, f"invalid option {option!r}{nearest(name, TMPFS_OPTIONS)}")
        found[_clean(path)] = options
    return found


# Environment, labels, pairs


def env(texts: Iterable[str], files: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """Read ``--env-file``, then ``-e``: a later one of a name wins; a name alone takes its value from `environ`."""
    found: dict[str, str] = {}
    for file in files:
        for line in _lines(file, "--env-file"):
            name, equals, value = line.partition("=")
            if not name:
                raise _bad("--env-file", file, f"no variable name on line {line!r}", "NAME=VALUE or NAME")
            if re.search(r"\s", name):
                raise _bad("--env-file", file, f"variable {name!r} contains whitespace", "NAME=VALUE or NAME")
            _set(found, name, value if equals else environ.get(name))
    for text in texts:
        name, equals, value = text.partition("=")
        if not name:
            raise _bad("-e", text, "invalid environment variable", "NAME=VALUE or NAME")
        _set(found, name, value if equals else environ.get(name))
    return [f"{name}={value}" for name, value in found.items()]


def _set(found: dict[str, str], name: str, value: str | None) -> None:
    if value is not None:
        found[name] = value


def labels(texts: Iterable[str], files: Iterable[str] = ()) -> dict[str, str]:
    """Read ``--label-file``, then ``--label``: NAME=VALUE, or NAME alone for an empty value."""
    found = {}
    given = [(line, "--label-file") for file in files for line in _lines(file, "--label-file")]
    for text, flag in given + [(text, "--label") for text in texts]:
        name, _, value = text.partition("=")
        if not name.strip():
            raise _bad(flag, text, "empty name", "NAME=VALUE")
        found[name] = value
    return found


def pairs(texts: Iterable[str], *, flag: str, bare: bool = False) -> dict[str, str]:
    """Read NAME=VALUE texts, as of ``--log-opt``, ``--storage-opt``, ``--sysctl``, ``--opt``.

    Args:
        bare: a NAME alone is one with an empty value, as in Docker's ``--opt encrypted``.
    """
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not (equals or bare):
            raise _bad(flag, text, "invalid format", "NAME=VALUE")
        found[name] = value
    return found


def _lines(file: str, flag: str) -> list[str]:
    """Return the lines of an env file that say something, without leading white space."""
    try:
        with open(file, encoding="utf-8-sig", newline="\n") as lines:
            trimmed = [line.lstrip().rstrip("\r\n") for line in lines]
    except OSError as error:
        raise ConfigError(f"{flag} {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{flag} {file}: invalid UTF-8 at byte {error.start}") from None
    return [line for line in trimmed if line and not line.startswith("#")]


# Hosts


def add_host(text: str) -> str:
    """Read one ``--add-host``, HOST:IP or HOST=IP, into an entry of `HostConfig.extra_hosts` (``HOST:IP``).

    The address may be ``host-gateway`` and may stand in brackets.
    """
    from ipaddress import ip_address

    name, _, address = text.partition("=" if "=" in text else ":")
    if not name or not address:
        raise _bad("--add-host", text, "bad format", "HOST:IP or HOST=IP")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if address != "host-gateway":
        try:
            ip_address(address)
        except ValueError:
            raise _bad("--add-host", text, f"invalid IP address {address!r}", "HOST:IP, or HOST:host-gateway") from None
    return f"{name}:{address}"


# Limits and devices


def size(text: str, *, flag: str, unlimited: bool = False) -> int:
    """Read bytes with binary units; with `unlimited`, "-1" is accepted and returned (``--memory-swap``)."""
    if unlimited and text == "-1":
        return -1
    try:
        return parse_size(text)
    except ValueError:
        form = "a size such as 512m or 2g" + (", or -1 for no limit" if unlimited else "")
        raise _bad(flag, text, "invalid size", form) from None


def cpus(text: str) -> int:
    """Read ``--cpus`` into `HostConfig.nano_cpus`, billionths of a CPU."""
    match = re.fullmatch(r"([0-9]*)\.?([0-9]*)", text)
    if match is None or not any(match.groups()):
        raise _bad("--cpus", text, "invalid number", "a number such as 1.5")
    if len(match[2].rstrip("0")) > 9:
        raise _bad("--cpus", text, "value is too precise", "at most 9 decimal places")
    return int(match[1] or 0) * 10**9 + int(match[2][:9].ljust(9, "0"))


def ulimit(text: str) -> Ulimit:
    """Read one ``--ulimit``, NAME=SOFT[:HARD]; -1 is unlimited."""
    form = "NAME=SOFT[:HARD]"
    match = re.fullmatch(r"([^=]+)=(-?[0-9]+)(?::(-?[0-9]+))?", text)
    if match is None:
        raise _bad("--ulimit", text, "invalid ulimit argument", form)
    name, soft = match[1].lower(), int(match[2])
    hard = int(match[3]) if match[3] else soft
    if name not in ULIMITS:
        raise _bad("--ulimit", text, f"invalid ulimit type {name!r}{nearest(name, ULIMITS)}", ", ".join(ULIMITS))
    if min(soft, hard) < -1 or max(soft, hard) > LARGEST:
        raise _bad("--ulimit", text, "a limit is -1 (unlimited) or a number from 0", form)
    if hard != -1 and (soft == -1 or soft > hard):
        raise _bad("--ulimit", text, "the soft limit must not be above the hard limit", form)
    return Ulimit(name=name, soft=soft, hard=hard)


def device(text: str) -> Device:
    """Read one ``--device``, HOST_PATH[:CONTAINER_PATH][:PERMISSIONS]."""
    form = "HOST_PATH[:CONTAINER_PATH][:PERMISSIONS], permissions out of rwm"
    host, *rest = text.split(":")
    access = rest.pop() if rest and _access(rest[-1]) else "rwm"
    target = rest.pop(0) if rest else host
    if rest or not target:
        reason = f"invalid permissions {rest[-1]!r}" if len(rest) == 1 else "invalid device specification"
        raise _bad("--device", text, reason, form)
    for path in (host, target):
        if not path.startswith("/"):
            raise _bad("--device", text, f"{path!r} is not an absolute path", form)
    return Device(path_on_host=host, path_in_container=target, cgroup_permissions=access)


def _access(text: str) -> bool:
    return bool(text) and set(text) <= set("rwm") and len(set(text)) == len(text)


def device_cgroup_rule(text: str) -> str:
    """Check one ``--device-cgroup-rule``, "c 42:* rwm"."""
    if not re.fullmatch(r"[acb] ([0-9]+|\*):([0-9]+|\*) [rwm]{1,3}", text):
        raise _bad("--device-cgroup-rule", text, "invalid device cgroup format", "TYPE MAJOR:MINOR ACCESS")
    return text


def hugepage_limit(text: str) -> HugepageLimit:
    """Read one ``--hugetlb-limit``, PAGE_SIZE:BYTES; the page size as the kernel has it, "2MB"."""
    page, _, limit = text.partition(":")
    match = re.fullmatch(r"([0-9]+[KMG])B?", page.upper())
    try:
        if match:
            return HugepageLimit(page_size=f"{match[1]}B", limit=parse_size(limit))
    except ValueError:
        pass
    raise _bad("--hugetlb-limit", text, "invalid limit of huge pages", "PAGE_SIZE:BYTES such as 2MB:64m")


def weight_device(text: str) -> WeightDevice:
    """Read one ``--blkio-weight-device``, PATH:WEIGHT; the weight is 10 to 1000, 0 takes one back."""
    flag, form = "--blkio-weight-device", "DEVICE:WEIGHT, a path or MAJOR:MINOR and a weight from 10 to 1000"
    path, value = _device_value(text, flag, form)
    if not re.fullmatch("[0-9]{1,4}", value) or not (int(value) == 0 or 10 <= int(value) <= 1000):
        raise _bad(flag, text, f"invalid weight {value!r}", form)
    return WeightDevice(path=path, weight=int(value))


def throttle_device(text: str, *, flag: str, unit: bool) -> ThrottleDevice:
    """Read one ``--device-read-bps`` (with `unit`) or ``--device-read-iops`` (a plain number), PATH:RATE."""
    form = f"DEVICE:{'NUMBER[UNIT], the unit being kb, mb or gb' if unit else 'NUMBER'}, a path or MAJOR:MINOR"
    path, value = _device_value(text, flag, form)
    try:
        rate = parse_size(value) if unit or value.isdecimal() else 0
    except ValueError:
        rate = 0
    if rate <= 0:
        raise _bad(flag, text, f"invalid rate {value!r}", form)
    return ThrottleDevice(path=path, rate=rate)


def _device_value(text: str, flag: str, form: str) -> tuple[str, str]:
    path, _, value = text.rpartition(":")
    if not path.startswith("/dev/") and not re.fullmatch("[0-9]+:[0-9]+", path):
        raise _bad(flag, text, "bad format for device path", form)
    return path, value


# Life


def restart(text: str) -> RestartPolicy:
    """Read ``--restart``: no, always, unless-stopped, on-failure[:MAX_RETRIES]."""
    form = "no, always, unless-stopped or on-failure[:MAX_RETRIES]"
    name, colon, count = text.partition(":")
    if (name or "no") not in RESTARTS:
        raise _bad("--restart", text, f"invalid restart policy {name!r}{nearest(name, RESTARTS)}", form)
    if colon and name != "on-failure":
        raise _bad("--restart", text, f"maximum retry count cannot be used with restart policy {name!r}", form)
    if colon and not count.isdecimal():
        raise _bad("--restart", text, "maximum retry count must be a number from 0", form)
    return RestartPolicy(name=name or "no", maximum_retry_count=int(count or 0))
