"""What the engine records of a container, in the shape and with the field names of Docker's API.

``transom inspect`` prints these structures as they are, and a front end that speaks the Docker Engine API can
pass them on: the source of names, meanings and units is the Engine API's ContainerCreate and ContainerInspect
(version 1.43). Sizes are bytes, times in texts are RFC 3339 with nanoseconds in UTC.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import msgspec

ZERO_TIME = "0001-01-01T00:00:00Z"
"""Docker's "never"."""


class Pascal(msgspec.Struct, rename="pascal", kw_only=True):
    """The base: attributes in snake case, JSON keys in Docker's PascalCase."""


class RestartPolicy(Pascal):
    """``no``, ``always``, ``unless-stopped`` or ``on-failure`` with at most `maximum_retry_count` restarts."""

    name: str = "no"
    maximum_retry_count: int = 0


class PortBinding(Pascal):
    """Where a container's port is published; `host_port` empty asks for a free one, "8000-8010" for one of them."""

    host_ip: str = ""
    host_port: str = ""


class LogConfig(Pascal):
    """A container's log driver, by name, with its options as the user wrote them."""

    type: str = ""
    config: dict[str, str] = {}


class LogStatus(Pascal):
    """What became of the lines that a container wrote since it was started: taken = delivered + dropped + pending.

    Lines that waited for their sink when it was started are among them.

    `spooled` is in bytes, on disk. `error` is what keeps the driver from taking more, empty where nothing does.
    """

    driver: str
    taken: int = 0
    delivered: int = 0
    dropped: int = 0
    pending: int = 0
    spooled: int = 0
    error: str = ""


class Ulimit(Pascal):
    """A resource limit of getrlimit(2) by its lower-case name without RLIMIT_ ("nofile"); -1 is unlimited."""

    name: str
    soft: int
    hard: int


class Device(Pascal):
    """A device node to make in the container; permissions out of "rwm"."""

    path_on_host: str
    path_in_container: str
    cgroup_permissions: str = "rwm"


class WeightDevice(Pascal):
    """A device's share of block I/O."""

    path: str
    weight: int


class ThrottleDevice(Pascal):
    """A device's ceiling, per second."""

    path: str
    rate: int


class HugepageLimit(Pascal):
    """At most so many bytes in huge pages of one size, "2MB"."""

    page_size: str
    limit: int


class MountPoint(Pascal):
    """A mount of a container: a bind of a host's path, a named volume, or a tmpfs."""

    type: str
    name: str = ""
    source: str = ""
    destination: str = ""
    driver: str = ""
    mode: str = ""
    rw: bool = msgspec.field(default=True, name="RW")
    propagation: str = ""


class HealthConfig(Pascal):
    """An image's or a container's health check; durations in nanoseconds."""

    test: list[str] = []
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    retries: int = 0


class Config(Pascal):
    """What runs: fields of the image's configuration with the user's words over them."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, str]] = {}
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] = []
    cmd: list[str] | None = None
    healthcheck: HealthConfig | None = None
    image: str = ""
    volumes: dict[str, dict[str, str]] = {}
    working_dir: str = ""
    entrypoint: list[str] | None = None
    labels: dict[str, str] = {}
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] | None = None


class HostConfig(Pascal):
    """What the container may do to and take from the host."""

    binds: list[str] = []
    tmpfs: dict[str, str] = {}
    network_mode: str = "default"
    port_bindings: dict[str, list[PortBinding]] = {}
    publish_all_ports: bool = False
    restart_policy: RestartPolicy = msgspec.field(default_factory=RestartPolicy)
    auto_remove: bool = False
    log_config: LogConfig = msgspec.field(default_factory=LogConfig)
    more_log_configs: list[LogConfig] = []
    """The log drivers beside the first."""
    storage_driver: str = ""
    storage_opt: dict[str, str] = {}
    cap_add: list[str] = []
    cap_drop: list[str] = []
    privileged: bool = False
    readonly_rootfs: bool = False
    security_opt: list[str] = []
    masked_paths: list[str] | None = None
    readonly_paths: list[str] | None = None
    dns: list[str] = []
    dns_options: list[str] = []
    dns_search: list[str] = []
    extra_hosts: list[str] = []
    group_add: list[str] = []
    pid_mode: str = ""
    ipc_mode: str = ""
    uts_mode: str = msgspec.field(default="", name="UTSMode")
    cgroupns_mode: str = ""
    userns_mode: str = ""
    shm_size: int = 67108864
    sysctls: dict[str, str] = {}
    init: bool | None = None
    runtime: str = ""
    devices: list[Device] = []
    ulimits: list[Ulimit] = []
    oom_score_adj: int = 0
    container_id_file: str = msgspec.field(default="", name="ContainerIDFile")
    # Resources
    memory: int = 0
    memory_swap: int = 0
    memory_reservation: int = 0
    memory_swappiness: int | None = None
    kernel_memory: int = 0
    oom_kill_disable: bool = False
    nano_cpus: int = msgspec.field(default=0, name="NanoCpus")
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_realtime_period: int = 0
    cpu_realtime_runtime: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int | None = None
    blkio_weight: int = 0
    blkio_weight_device: list[WeightDevice] = []
    blkio_device_read_bps: list[ThrottleDevice] = []
    blkio_device_write_bps: list[ThrottleDevice] = []
    blkio_device_read_iops: list[ThrottleDevice] = msgspec.field(default=[], name="BlkioDeviceReadIOps")
    blkio_device_write_iops: list[ThrottleDevice] = msgspec.field(default=[], name="BlkioDeviceWriteIOps")
    device_cgroup_rules: list[str] = []
    hugepage_limits: list[HugepageLimit] = []


class State(Pascal):
    """Where a container is in its life.

    `status` is one of created, running, paused, restarting, removing, exited, dead.
    """

    status: str = "created"
    running: bool = False
    paused: bool = False
    restarting: bool = False
    oom_killed: bool = msgspec.field(default=False, name="OOMKilled")
    dead: bool = False
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    started_at: str = ZERO_TIME
    finished_at: str = ZERO_TIME


GATEWAY = "docker_gwbridge"
"""The network, of Docker's name, that leads out whoever is on networks over several hosts, which lead nowhere else."""
LAST = -(2**31)
"""The priority of the way out by `GATEWAY`: any other goes before."""


class EndpointSettings(Pascal):
    """A container's place on one network: what was asked, and, while it runs, what it got."""

    aliases: list[str] | None = None
    links: list[str] | None = None
    """Other containers, NAME:ALIAS: the alias is for this container alone."""
    ipam_config: dict[str, Any] | None = msgspec.field(default=None, name="IPAMConfig")
    """What was asked for: IPv4Address, IPv6Address, MacAddress, each a text, and LinkLocalIPs, a list."""
    driver_opts: dict[str, str] | None = None
    network_id: str = msgspec.field(default="", name="NetworkID")
    endpoint_id: str = msgspec.field(default="", name="EndpointID")
    gateway: str = ""
    ip_address: str = msgspec.field(default="", name="IPAddress")
    ip_prefix_len: int = msgspec.field(default=0, name="IPPrefixLen")
    ipv6_gateway: str = msgspec.field(default="", name="IPv6Gateway")
    global_ipv6_address: str = msgspec.field(default="", name="GlobalIPv6Address")
    global_ipv6_prefix_len: int = msgspec.field(default=0, name="GlobalIPv6PrefixLen")
    mac_address: str = ""
    gw_priority: int = 0
    """The highest one's network leads out; see `Networks`."""
    interface: str = ""
    """Its name in the container."""
    dns_servers: list[str] = msgspec.field(default=[], name="DNSServers")
    """Those that came with its addresses (DHCP), as the search domains did."""
    dns_search: list[str] = msgspec.field(default=[], name="DNSSearch")
    last_addresses: list[str] = []
    """What it had when it ran last, and gets again if nobody has it by then."""

    @property
    def addresses(self) -> list[str]:
        """Those that it has, IPv4 first, without prefix."""
        return [address for address in (self.ip_address, self.global_ipv6_address) if address]


def learned(places: Mapping[str, EndpointSettings]) -> tuple[list[str], list[str]]:
    """Return the name servers and search domains that came with the addresses, those of the network that leads out
    first."""
    ordered = [places[name] for name in sorted(places, key=lambda name: (-places[name].gw_priority, name))]
    servers = [server for place in ordered for server in place.dns_servers]
    return list(dict.fromkeys(servers)), list(dict.fromkeys(word for place in ordered for word in place.dns_search))


class NetworkSettings(Pascal):
    """All of a container's networks, by name, and its ports with where they are published."""

    ports: dict[str, list[PortBinding] | None] = {}
    networks: dict[str, EndpointSettings] = {}

    @property
    def chosen(self) -> dict[str, EndpointSettings]:
        """The networks that the user put it on: all but `GATEWAY`."""
        return {name: place for name, place in self.networks.items() if name != GATEWAY}


class Container(Pascal):
    """A container's record. `name` has no leading slash; Docker's output adds one."""

    id: str = msgspec.field(name="Id")
    name: str
    created: str
    image: str
    """The digest of the image's configuration."""
    config: Config
    host_config: HostConfig
    state: State = msgspec.field(default_factory=State)
    network_settings: NetworkSettings = msgspec.field(default_factory=NetworkSettings)
    mounts: list[MountPoint] = []
    restart_count: int = 0
    driver: str = ""
    """The storage driver that holds the writable layer."""
    limits_driver: str = ""
    log_path: str = ""
    log_status: list[LogStatus] = []
    """What became of the last run's output, for each log driver; while it runs its supervisor knows."""
    exec_ids: list[str] = msgspec.field(default=[], name="ExecIDs")
    manually_stopped: bool = False
    """Stopped by a command: ``unless-stopped`` then does not bring it back."""
    shim_pid: int = 0
    """The supervisor's pid on the host while the container runs."""


def now() -> str:
    """Return the time as Docker writes it: RFC 3339 with nanoseconds, UTC."""
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{nanoseconds:09d}Z"
