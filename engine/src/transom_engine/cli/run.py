"""``transom run`` and ``transom create``: docker's flags into a container's record, and the container started."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from transom.errors import ConfigError, NotFound, choices
from transom_engine import flags, wire
from transom_engine.cli import Session, pass_session
from transom_engine.model import Config, EndpointSettings, HostConfig, LogConfig
from transom_engine.networks.model import default_network

if TYPE_CHECKING:
    from transom_engine.model import Container

Flag = Callable[[Callable[..., Any]], Callable[..., Any]]


def _text(*names: str, help: str = "", default: str = "") -> Flag:
    return click.option(*names, default=default, help=help)


def _many(*names: str, help: str = "") -> Flag:
    return click.option(*names, multiple=True, help=help)


def _switch(*names: str, help: str = "") -> Flag:
    return click.option(*names, is_flag=True, help=help)


_FLAGS: tuple[Flag, ...] = (
    _text("--name", help="Assign a name to the container"),
    _switch("-i", "--interactive", help="Keep STDIN open even if not attached"),
    _switch("-t", "--tty", help="Allocate a pseudo-TTY"),
    _switch("--rm", help="Automatically remove the container and its anonymous volumes when it exits"),
    _many("-a", "--attach", help="Attach to STDIN, STDOUT or STDERR"),
    _many("-e", "--env", help="Set environment variables"),
    _many("--env-file", help="Read in a file of environment variables"),
    _text("-w", "--workdir", help="Working directory inside the container"),
    _text("-u", "--user", help="Username or UID (format: <name|uid>[:<group|gid>])"),
    _many("--group-add", help="Add additional groups to join"),
    _text("-h", "--hostname", help="Container host name"),
    _text("--domainname", help="Container NIS domain name"),
    click.option("--entrypoint", default=None, help="Overwrite the default ENTRYPOINT of the image"),
    _many("-l", "--label", help="Set meta data on a container"),
    _many("--label-file", help="Read in a line delimited file of labels"),
    _text("--platform", help="Set platform if server is multi-platform capable"),
    click.option(
        "--pull", type=click.Choice(["always", "missing", "never"]), default="missing", help="Pull image before"
    ),
    _text("--cidfile", help="Write the container ID to the file"),
    _many("-v", "--volume", help="Bind mount a volume"),
    _many("--tmpfs", help="Mount a tmpfs directory"),
    _switch("--read-only", help="Mount the container's root filesystem as read only"),
    _text("--shm-size", help="Size of /dev/shm"),
    _text("--storage-driver", help="The storage driver of the container's layer"),
    _many("--storage-opt", help="Storage driver options for the container"),
    _many("-p", "--publish", help="Publish a container's port(s) to the host"),
    _switch("-P", "--publish-all", help="Publish all exposed ports to random ports"),
    _many("--expose", help="Expose a port or a range of ports"),
    _many("--network", "--net", help="Connect a container to a network, or several"),
    _many("--link", help="Add link to another container (NAME[:ALIAS])"),
    _many("--network-alias", help="Add network-scoped alias for the container"),
    _text("--ip", help="IPv4 address (e.g., 172.30.100.104)"),
    _text("--ip6", help="IPv6 address (e.g., 2001:db8::33)"),
    _many("--link-local-ip", help="Container IPv4/IPv6 link-local addresses"),
    _text("--mac-address", help="Container MAC address"),
    _many("--dns", help="Set custom DNS servers"),
    _many("--dns-option", "--dns-opt", help="Set DNS options"),
    _many("--dns-search", help="Set custom DNS search domains"),
    _many("--add-host", help="Add a custom host-to-IP mapping (host:ip)"),
    _many("--log-driver", help="Logging driver for the container; several with independent queues when given again"),
    _many("--log-opt", help="Log driver options"),
    _text("-m", "--memory", help="Memory limit"),
    _text("--memory-swap", help="Swap limit equal to memory plus swap: '-1' to enable unlimited swap"),
    _text("--memory-reservation", help="Memory soft limit"),
    click.option("--memory-swappiness", type=int, default=None, help="Tune container memory swappiness (0 to 100)"),
    _text("--kernel-memory", help="Kernel memory limit"),
    _switch("--oom-kill-disable", help="Disable OOM Killer"),
    click.option("--oom-score-adj", type=int, default=0, help="Tune host's OOM preferences (-1000 to 1000)"),
    _text("--cpus", help="Number of CPUs"),
    click.option("-c", "--cpu-shares", type=int, default=0, help="CPU shares (relative weight)"),
    click.option("--cpu-period", type=int, default=0, help="Limit CPU CFS period, in microseconds"),
    click.option("--cpu-quota", type=int, default=0, help="Limit CPU CFS quota, in microseconds"),
    click.option("--cpu-rt-period", type=int, default=0, help="Limit CPU real-time period in microseconds"),
    click.option("--cpu-rt-runtime", type=int, default=0, help="Limit CPU real-time runtime in microseconds"),
    _text("--cpuset-cpus", help="CPUs in which to allow execution (0-3, 0,1)"),
    _text("--cpuset-mems", help="MEMs in which to allow execution (0-3, 0,1)"),
    click.option("--pids-limit", type=int, default=None, help="Tune container pids limit (-1 for unlimited)"),
    click.option("--blkio-weight", type=int, default=0, help="Block IO (relative weight), between 10 and 1000"),
    _many("--hugetlb-limit", help="Limit the memory in huge pages of one size (format: <page-size>:<bytes>)"),
    _many("--blkio-weight-device", help="Block IO weight (relative device weight)"),
    _many("--device-read-bps", help="Limit read rate (bytes per second) from a device"),
    _many("--device-write-bps", help="Limit write rate (bytes per second) to a device"),
    _many("--device-read-iops", help="Limit read rate (IO per second) from a device"),
    _many("--device-write-iops", help="Limit write rate (IO per second) to a device"),
    _many("--device", help="Add a host device to the container"),
    _many("--device-cgroup-rule", help="Add a rule to the cgroup allowed devices list"),
    _many("--cap-add", help="Add Linux capabilities"),
    _many("--cap-drop", help="Drop Linux capabilities"),
    _switch("--privileged", help="Give extended privileges to this container"),
    _many("--security-opt", help="Security Options"),
    _many("--ulimit", help="Ulimit options"),
    _many("--sysctl", help="Sysctl options"),
    _text("--pid", help="PID namespace to use"),
    _text("--ipc", help="IPC mode to use"),
    _text("--uts", help="UTS namespace to use"),
    _text("--cgroupns", help="Cgroup namespace to use (host|private)"),
    _switch("--init", help="Run an init inside the container that forwards signals and reaps processes"),
    _text("--restart", help="Restart policy to apply when a container exits", default="no"),
    _text("--stop-signal", help="Signal to stop the container"),
    click.option("--stop-timeout", type=int, default=None, help="Timeout (in seconds) to stop a container"),
    _text("--runtime", help="Runtime to use for this container"),
)


def _container_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    for flag in reversed(_FLAGS):
        command = flag(command)
    arguments = click.argument("command", nargs=-1, type=click.UNPROCESSED)
    return click.argument("image")(arguments(command))


_SETTINGS = {"ignore_unknown_options": False, "allow_interspersed_args": False, "help_option_names": ["--help"]}


@click.command("create", context_settings=_SETTINGS)
@_container_flags
@pass_session
def create_command(session: Session, /, image: str, command: tuple[str, ...], **given: Any) -> int:
    """Create a new container."""
    config, host, places = _read(session, image, command, given)
    _have_image(session, image, given)
    container, warnings = session.engine.containers.create(config, host, name=given["name"], endpoints=places)
    _warn(warnings)
    _note_id(given["cidfile"], container)
    print(container.id)
    return 0


@click.command("run", context_settings=_SETTINGS)
@click.option("-d", "--detach", is_flag=True, help="Run container in background and print container ID")
@click.option("--sig-proxy/--no-sig-proxy", default=True, help="Proxy received signals to the process")
@click.option("--detach-keys", default="ctrl-p,ctrl-q", help="Override the key sequence for detaching a container")
@_container_flags
@pass_session
def run_command(
    session: Session,
    /,
    image: str,
    command: tuple[str, ...],
    detach: bool,
    sig_proxy: bool,
    detach_keys: str,
    **given: Any,
) -> int:
    """Create and run a new container from an image."""
    if detach and given["attach"]:
        raise ConfigError("conflicting options: -d and -a")
    if given["tty"] and not detach and given["interactive"] and not os.isatty(0):
        raise ConfigError("the input device is not a TTY; leave -t out, or run it from a terminal")
    config, host, places = _read(session, image, command, given)
    _have_image(session, image, given)
    if detach:
        container, connection, warnings = session.engine.containers.run(
            config, host, name=given["name"], endpoints=places
        )
        connection.close()
        _warn(warnings)
        _note_id(given["cidfile"], container)
        print(container.id)
        return 0
    from transom_engine.cli.streaming import DETACHED, pump, terminal_size

    config.stdin_once = config.open_stdin
    attached = {word.lower() for word in given["attach"]}
    stdin = config.open_stdin and (not attached or "stdin" in attached)
    rows, columns = terminal_size() if config.tty else (0, 0)
    request = wire.Request(do="attach", stdin=stdin, rows=rows, columns=columns)
    container, connection, warnings = session.engine.containers.run(
        config, host, name=given["name"], endpoints=places, attach=request
    )
    _warn(warnings)
    _note_id(given["cidfile"], container)
    try:
        code = pump(
            connection, stdin=stdin, tty=config.tty, sig_proxy=sig_proxy, detach_keys=detach_keys,
            on_signal=lambda number: connection.send(wire.REQUEST, wire.Request(do="signal", signal=number)),
        )  # fmt: skip
    finally:
        connection.close()
    return 0 if code == DETACHED else code


def _have_image(session: Session, image: str, given: dict[str, Any]) -> None:
    """Fetch the image where the user wants it fetched; a missing one by default, as docker does."""
    if given["pull"] != "always":
        try:
            session.engine.images.resolve(image)
            return
        except NotFound:
            if given["pull"] == "never":
                raise
    from transom_engine.cli.image import fetch

    if given["pull"] == "missing":
        print(f"Unable to find image '{image}' locally", file=sys.stderr)
    fetch(session, image, platform=given["platform"], quiet=False, out=sys.stderr)


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)


def _note_id(path: str, container: Container) -> None:
    if path:
        try:
            with open(path, "x") as file:
                file.write(container.id)
        except FileExistsError:
            raise ConfigError(f"--cidfile {path}: the file exists already; remove it or name another") from None


def _read(
    session: Session, image: str, command: tuple[str, ...], given: dict[str, Any]
) -> tuple[Config, HostConfig, dict[str, EndpointSettings]]:
    """Turn the flags into the records' shapes."""
    exposed, bindings = flags.ports(given["publish"], given["expose"])
    places = _places(given, default_network(session.config))
    points = [flags.volume(text) for text in given["volume"]]
    config = Config(
        hostname=given["hostname"],
        domainname=given["domainname"],
        user=given["user"],
        tty=given["tty"],
        open_stdin=given["interactive"],
        exposed_ports=exposed,
        env=flags.env(given["env"], given["env_file"], os.environ),
        cmd=list(command) or None,
        image=image,
        volumes={point.destination: {} for point in points if not point.source and not point.name},
        working_dir=given["workdir"],
        entrypoint=None if given["entrypoint"] is None else [given["entrypoint"]],
        labels=flags.labels(given["label"], given["label_file"]),
        stop_signal=given["stop_signal"],
        stop_timeout=given["stop_timeout"],
    )
    drivers: tuple[str, ...] = given["log_driver"]
    host = HostConfig(
        binds=[text for text, point in zip(given["volume"], points, strict=True) if point.source or point.name],
        tmpfs=flags.tmpfs(given["tmpfs"]),
        network_mode=next(iter(places), "default"),
        port_bindings=bindings,
        publish_all_ports=given["publish_all"],
        restart_policy=flags.restart(given["restart"]),
        auto_remove=given["rm"],
        log_config=LogConfig(type=next(iter(drivers), ""), config=flags.pairs(given["log_opt"], flag="--log-opt")),
        more_log_configs=[LogConfig(type=name) for name in drivers[1:]],
        storage_driver=given["storage_driver"],
        storage_opt=flags.pairs(given["storage_opt"], flag="--storage-opt"),
        cap_add=list(given["cap_add"]),
        cap_drop=list(given["cap_drop"]),
        privileged=given["privileged"],
        readonly_rootfs=given["read_only"],
        security_opt=list(given["security_opt"]),
        dns=list(given["dns"]),
        dns_options=list(given["dns_option"]),
        dns_search=list(given["dns_search"]),
        extra_hosts=[flags.add_host(text) for text in given["add_host"]],
        group_add=list(given["group_add"]),
        pid_mode=given["pid"],
        ipc_mode=given["ipc"],
        uts_mode=given["uts"],
        cgroupns_mode=given["cgroupns"],
        sysctls=flags.pairs(given["sysctl"], flag="--sysctl"),
        init=given["init"] or None,
        runtime=given["runtime"],
        devices=[flags.device(text) for text in given["device"]],
        device_cgroup_rules=[flags.device_cgroup_rule(text) for text in given["device_cgroup_rule"]],
        ulimits=[flags.ulimit(text) for text in given["ulimit"]],
        oom_score_adj=given["oom_score_adj"],
        **limits(given),
    )
    host.shm_size = flags.size(given["shm_size"], flag="--shm-size") if given["shm_size"] else 0  # 0: the config's
    alone = ":" in host.network_mode and len(places) == 1 and _is_plain(places[host.network_mode])
    return config, host, {} if alone else places


def limits(given: dict[str, Any]) -> dict[str, Any]:
    """Turn the resource flags, which ``run`` and ``update`` share, into fields of `HostConfig`."""
    sizes = {
        "memory": given["memory"] and flags.size(given["memory"], flag="--memory"),
        "memory_swap": given["memory_swap"] and flags.size(given["memory_swap"], flag="--memory-swap", unlimited=True),
        "memory_reservation": given["memory_reservation"]
        and flags.size(given["memory_reservation"], flag="--memory-reservation"),
        "kernel_memory": given["kernel_memory"] and flags.size(given["kernel_memory"], flag="--kernel-memory"),
    }
    found: dict[str, Any] = {name: value for name, value in sizes.items() if value}
    if given["cpus"] and (nano := flags.cpus(given["cpus"])):  # 0 asks for nothing, as in docker
        found["nano_cpus"] = nano
    throttles = {
        "device_read_bps": ("blkio_device_read_bps", True),
        "device_write_bps": ("blkio_device_write_bps", True),
        "device_read_iops": ("blkio_device_read_iops", False),
        "device_write_iops": ("blkio_device_write_iops", False),
    }
    for flag, (field, unit) in throttles.items():
        if given.get(flag):
            name = "--" + flag.replace("_", "-")
            found[field] = [flags.throttle_device(text, flag=name, unit=unit) for text in given[flag]]
    if given.get("blkio_weight_device"):
        found["blkio_weight_device"] = [flags.weight_device(text) for text in given["blkio_weight_device"]]
    if given.get("hugetlb_limit"):
        found["hugepage_limits"] = [flags.hugepage_limit(text) for text in given["hugetlb_limit"]]
    if given.get("oom_kill_disable"):
        found["oom_kill_disable"] = True
    plain = {
        "cpu_shares": "cpu_shares", "cpu_period": "cpu_period", "cpu_quota": "cpu_quota",
        "cpu_rt_period": "cpu_realtime_period", "cpu_rt_runtime": "cpu_realtime_runtime",
        "cpuset_cpus": "cpuset_cpus", "cpuset_mems": "cpuset_mems", "blkio_weight": "blkio_weight",
    }  # fmt: skip
    found |= {field: given[flag] for flag, field in plain.items() if given.get(flag)}
    for flag in ("pids_limit", "memory_swappiness"):
        if given.get(flag) is not None:
            found[flag] = given[flag]
    return found


def _places(given: dict[str, Any], default: str) -> dict[str, EndpointSettings]:
    """Return the container's place on each network; flags that name none are about the first."""
    places: dict[str, EndpointSettings] = {}
    for name, place in map(flags.network, given["network"] or ["default"]):
        name = default if name in {"", "default"} else name
        if name in places:
            raise ConfigError(f"--network {name} is given twice")
        places[name] = place
    mode, first = next(iter(places.items()))
    if ":" in mode and given["expose"]:
        raise ConfigError(f"conflicting options: --expose and --network {mode[:30]}: the other container decides")
    said = {"ip": given["ip"], "ip6": given["ip6"], "mac-address": given["mac_address"]}
    asked = flags.own_addresses(said)
    twice = [f"--{word}" for word, text in said.items() if text and flags.ADDRESSES[word] in (first.ipam_config or {})]
    twice += ["--network-alias"] if first.aliases and given["network_alias"] else []
    if twice:
        raise ConfigError(f"conflicting options: {choices(twice)} and what --network says of {mode}: leave one out")
    first.ipam_config = {**(first.ipam_config or {}), **asked} or None
    flags.add_link_local(first, given["link_local_ip"])
    first.aliases = [*(first.aliases or []), *given["network_alias"]] or None
    first.links = [flags.link(text) for text in given["link"]] or None
    return places


def _is_plain(place: EndpointSettings) -> bool:
    return place == EndpointSettings()
