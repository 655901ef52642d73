"""What users write after the flags of ``docker run``."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import ConfigError
from transom_engine import flags
from transom_engine.model import (
    Device,
    HugepageLimit,
    MountPoint,
    PortBinding,
    RestartPolicy,
    ThrottleDevice,
    Ulimit,
    WeightDevice,
)

PORTS = "[[IP:][HOST_PORT]:]CONTAINER_PORT[/PROTOCOL], ports being numbers or ranges such as 8000-8010"


def refusal(function, *args, **kwargs):
    with pytest.raises(ConfigError) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)
    return str(error.value)


def one(key, host_port="", host_ip=""):
    return {key: [PortBinding(host_ip=host_ip, host_port=host_port)]}


@pytest.mark.parametrize(
    ("text", "bindings"),
    [
        ("80", one("80/tcp")),
        ("53/udp", one("53/udp")),
        ("80/TCP", one("80/tcp")),
        ("8080:80", one("80/tcp", "8080")),
        ("8080:80/sctp", one("80/sctp", "8080")),
        ("0:80", one("80/tcp")),
        ("127.0.0.1:8080:80", one("80/tcp", "8080", "127.0.0.1")),
        ("127.0.0.1::80", one("80/tcp", "", "127.0.0.1")),
        ("[::1]:8080:80", one("80/tcp", "8080", "::1")),
        ("[2001:db8::1]::80/udp", one("80/udp", "", "2001:db8::1")),
        ("8000-8010:80", one("80/tcp", "8000-8010")),
        ("8000-8001:80-81", {**one("80/tcp", "8000"), **one("81/tcp", "8001")}),
        ("80-81", {**one("80/tcp"), **one("81/tcp")}),
        ("127.0.0.1:8000-8001:80-81/udp", {**one("80/udp", "8000", "127.0.0.1"), **one("81/udp", "8001", "127.0.0.1")}),
        ("target=80,published=8080,protocol=udp", one("80/udp", "8080")),
        ("target=80", one("80/tcp")),
    ],
)
def test_a_published_port_is_read_in_every_form(text, bindings):
    exposed, found = flags.ports([text])
    assert found == bindings
    assert exposed == {key: {} for key in bindings}


def test_one_container_port_can_be_published_several_times():
    _, bindings = flags.ports(["8080:80", "127.0.0.1:9090:80"])
    assert [binding.host_port for binding in bindings["80/tcp"]] == ["8080", "9090"]


def test_exposed_ports_are_not_published():
    assert flags.ports(expose=["80", "8000-8001/udp"]) == ({"80/tcp": {}, "8000/udp": {}, "8001/udp": {}}, {})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no port specified"),
        ("8080:", "no port specified"),
        ("web", "invalid port 'web'"),
        ("70000:80", "invalid port '70000'"),
        ("8080:0", "invalid port '0'"),
        ("8080:81-80", "invalid port '81-80'"),
        ("8000-8002:80-81", "the ranges 8000-8002 and 80-81 differ in length"),
        ("::1:8080:80", "invalid IP address '::1', an IPv6 address stands in [ ]"),
        ("[fe80::1%eth0]:80:80", "invalid IP address '[fe80::1%eth0]', an IPv6 address stands in [ ]"),
        ("localhost:8080:80", "invalid IP address 'localhost', an IPv6 address stands in [ ]"),
        ("1.2.3.4:5:6:7", "invalid IP address '1.2.3.4:5', an IPv6 address stands in [ ]"),
    ],
)
def test_a_bad_port_is_told_with_the_form(text, reason):
    assert refusal(flags.ports, [text]) == f"-p {text!r}: {reason}; expected {PORTS}"


@pytest.mark.parametrize(
    "texts",
    [
        ("8080:80", "8080:81"),
        ("8080:80", "127.0.0.1:8080:80"),
        ("[::]:8080:80", "[::1]:8080:80"),
        ("8080:80/udp", "8079-8081:69-71/udp"),
    ],
)
def test_a_port_of_the_host_is_given_to_one_port_of_the_container(texts):
    protocol = "udp" if "udp" in texts[0] else "tcp"
    for pair in (texts, texts[::-1]):
        assert refusal(flags.ports, pair) == (
            f"-p {pair[1]!r}: port 8080/{protocol} of the host is asked for twice; choose another one"
        )


def test_a_port_of_the_host_may_lead_elsewhere_at_another_address_or_protocol():
    texts = ["8080:80", "8080:80/udp", "127.0.0.1:81:80", "127.0.0.2:81:81", "0.0.0.0:82:80", "[::]:82:82", "80", "81"]
    assert sum(map(len, flags.ports(texts)[1].values())) == len(texts)
    assert flags.ports(["8080:80", "8080:80"])[1] == one("80/tcp", "8080"), "what is said twice counts once"


def test_a_bad_protocol_and_a_bad_field_list_the_known_ones():
    assert refusal(flags.ports, ["80/icmp"]) == "-p '80/icmp': invalid protocol 'icmp'; expected one of tcp, udp, sctp"
    assert refusal(flags.ports, ["tarjet=80"]) == (
        "-p 'tarjet=80': unknown field 'tarjet' (did you mean target?); expected published, target, protocol, mode"
    )
    assert refusal(flags.ports, ["published=80"]) == (
        "-p 'published=80': no target port specified; expected target=PORT"
    )
    assert refusal(flags.ports, [], ["x"]) == "--expose 'x': invalid port 'x'; expected PORT[-PORT][/PROTOCOL]"


@given(st.integers(1, 65535), st.integers(1, 65535), st.sampled_from(flags.PROTOCOLS))
def test_any_port_survives_reading(host, container, protocol):
    assert flags.ports([f"{host}:{container}/{protocol}"])[1] == one(f"{container}/{protocol}", str(host))


def bind(**fields):
    return MountPoint(type="bind", **{"propagation": "rprivate", **fields})


def named(**fields):
    return MountPoint(type="volume", driver="local", **fields)


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("/host:/c", bind(source="/host", destination="/c")),
        ("/host/:/c/", bind(source="/host", destination="/c")),
        ("/host:/c:ro", bind(source="/host", destination="/c", mode="ro", rw=False)),
        (
            "/host:/c:z,ro,rshared",
            bind(source="/host", destination="/c", mode="z,ro,rshared", rw=False, propagation="rshared"),
        ),
        ("/host:/c:Z,cached", bind(source="/host", destination="/c", mode="Z,cached")),
        ("data:/c", named(name="data", destination="/c")),
        ("data:/c:nocopy,ro", named(name="data", destination="/c", mode="nocopy,ro", rw=False)),
        ("/c", named(destination="/c")),
    ],
)
def test_a_volume_is_read_in_every_form(text, mount):
    assert flags.volume(text) == mount


def test_a_source_with_a_dot_is_relative_to_the_working_directory():
    assert flags.volume("./x:/c").source == os.path.join(os.getcwd(), "x")
    assert flags.volume(".:/c").source == os.getcwd()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a:b:c:d", "invalid volume specification; expected [SOURCE:]DESTINATION[:OPTIONS]"),
        (":/c", "invalid volume specification; expected [SOURCE:]DESTINATION[:OPTIONS]"),
        ("data:c", "mount path 'c' must be absolute; expected [SOURCE:]DESTINATION[:OPTIONS]"),
        ("/host:/", "destination can't be '/'; expected [SOURCE:]DESTINATION[:OPTIONS]"),
        ("/host:/..", "destination can't be '/'; expected [SOURCE:]DESTINATION[:OPTIONS]"),
        (
            "x/y:/c",
            "'x/y' includes invalid characters for a volume name, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed; "
            "for a directory of the host write its absolute path",
        ),
        ("x:/c", "volume name is too short, names have at least two characters"),
        ("/host:/c:ro,rw", "'ro' and 'rw' exclude each other"),
        (
            "/host:/c:nocopy",
            "invalid mode 'nocopy'; expected ro, rw, z, Z, consistent, cached, delegated, shared, "
            "rshared, slave, rslave, private, rprivate",
        ),
        ("data:/c:rshared", "invalid mode 'rshared'; expected ro, rw, z, Z, consistent, cached, delegated, nocopy"),
    ],
)
def test_a_bad_volume_is_told(text, told):
    assert refusal(flags.volume, text) == f"-v {text!r}: {told}"


def test_tmpfs_takes_options_of_mount():
    assert flags.tmpfs(["/run", "/tmp/:rw,noexec,size=64m"]) == {"/run": "", "/tmp": "rw,noexec,size=64m"}
    assert refusal(flags.tmpfs, ["run"]) == (
        "--tmpfs 'run': mount path must be absolute and not '/'; expected PATH[:OPTIONS]"
    )
    assert refusal(flags.tmpfs, ["/run:siz=1m"]) == (
        "--tmpfs '/run:siz=1m': invalid option 'siz=1m' (did you mean size?)"
    )


def test_variables_come_from_files_then_flags_and_alone_from_the_environment(tmp_path):
    file = tmp_path / "env"
    file.write_text("\ufeff# a comment\n  A=1\r\nB=two words # kept\n\nHOME\nABSENT\nC=x=y\n")
    found = flags.env(["A=2", "TERM", "D=", "ABSENT"], [str(file)], {"HOME": "/root", "TERM": "xterm"})
    assert found == ["A=2", "B=two words # kept", "HOME=/root", "C=x=y", "TERM=xterm", "D="]


def test_a_bad_variable_is_told(tmp_path):
    assert refusal(flags.env, ["=x"], [], {}) == ("-e '=x': invalid environment variable; expected NAME=VALUE or NAME")
    file = tmp_path / "env"
    for content, told in (("a b=c", "variable 'a b' contains whitespace"), ("=c", "no variable name on line '=c'")):
        file.write_text(content)
        assert refusal(flags.env, [], [str(file)], {}) == (f"--env-file '{file}': {told}; expected NAME=VALUE or NAME")
    file.write_bytes(b"A=\xff")
    assert refusal(flags.env, [], [str(file)], {}) == f"--env-file {file}: invalid UTF-8 at byte 2"
    assert refusal(flags.env, [], [f"{file}x"], {}) == f"--env-file {file}x: No such file or directory"


def test_labels_need_a_name_and_no_value(tmp_path):
    file = tmp_path / "labels"
    file.write_text("x=1\ny\n")
    assert flags.labels(["x=2", "com.example.z"], [str(file)]) == {"x": "2", "y": "", "com.example.z": ""}
    assert refusal(flags.labels, ["=1"]) == "--label '=1': empty name; expected NAME=VALUE"


def test_pairs_name_their_flag():
    assert flags.pairs(["max-size=10m", "a=b=c"], flag="--log-opt") == {"max-size": "10m", "a": "b=c"}
    assert refusal(flags.pairs, ["max-size"], flag="--log-opt") == (
        "--log-opt 'max-size': invalid format; expected NAME=VALUE"
    )


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("db:10.0.0.1", "db:10.0.0.1"),
        ("db=10.0.0.1", "db:10.0.0.1"),
        ("db:::1", "db:::1"),
        ("db:[::1]", "db:::1"),
        ("db=[::1]", "db:::1"),
        ("host.docker.internal:host-gateway", "host.docker.internal:host-gateway"),
    ],
)
def test_a_host_is_added_in_every_form(text, entry):
    assert flags.add_host(text) == entry


def test_a_bad_host_is_told():
    assert refusal(flags.add_host, "db") == "--add-host 'db': bad format; expected HOST:IP or HOST=IP"
    assert refusal(flags.add_host, "db:x") == (
        "--add-host 'db:x': invalid IP address 'x'; expected HOST:IP, or HOST:host-gateway"
    )


def test_the_whole_host_can_be_mounted():
    assert flags.volume("/:/host:ro").source == "/"


def test_sizes_are_binary_and_swap_can_be_unlimited():
    assert flags.size("512m", flag="-m") == 512 << 20
    assert flags.size("-1", flag="--memory-swap", unlimited=True) == -1
    assert refusal(flags.size, "-1", flag="-m") == "-m '-1': invalid size; expected a size such as 512m or 2g"
    assert refusal(flags.size, "x", flag="--memory-swap", unlimited=True) == (
        "--memory-swap 'x': invalid size; expected a size such as 512m or 2g, or -1 for no limit"
    )


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("1.5", 1_500_000_000),
        ("2", 2 * 10**9),
        (".000000001", 1),
        ("0.50", 5 * 10**8),
    ],
)
def test_cpus_are_billionths(text, nano):
    assert flags.cpus(text) == nano


def test_bad_cpus_are_told():
    assert refusal(flags.cpus, "half") == "--cpus 'half': invalid number; expected a number such as 1.5"
    assert refusal(flags.cpus, "1.0000000001") == (
        "--cpus '1.0000000001': value is too precise; expected at most 9 decimal places"
    )


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("nofile=1024", Ulimit(name="nofile", soft=1024, hard=1024)),
        ("nofile=1024:2048", Ulimit(name="nofile", soft=1024, hard=2048)),
        ("core=-1", Ulimit(name="core", soft=-1, hard=-1)),
        ("CORE=0:-1", Ulimit(name="core", soft=0, hard=-1)),
    ],
)
def test_a_ulimit_is_read(text, limit):
    assert flags.ulimit(text) == limit


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("nofile", "invalid ulimit argument; expected NAME=SOFT[:HARD]"),
        ("nofile=a", "invalid ulimit argument; expected NAME=SOFT[:HARD]"),
        ("nofile=2:1", "the soft limit must not be above the hard limit; expected NAME=SOFT[:HARD]"),
        ("nofile=-1:1", "the soft limit must not be above the hard limit; expected NAME=SOFT[:HARD]"),
        ("nofile=-2", "a limit is -1 (unlimited) or a number from 0; expected NAME=SOFT[:HARD]"),
        (
            "nofiles=1",
            "invalid ulimit type 'nofiles' (did you mean nofile?); expected core, cpu, data, fsize, locks, "
            "memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, sigpending, stack",
        ),
    ],
)
def test_a_bad_ulimit_is_told(text, told):
    assert refusal(flags.ulimit, text) == f"--ulimit {text!r}: {told}"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("/dev/fuse", ("/dev/fuse", "/dev/fuse", "rwm")),
        ("/dev/fuse:/dev/x", ("/dev/fuse", "/dev/x", "rwm")),
        ("/dev/fuse:r", ("/dev/fuse", "/dev/fuse", "r")),
        ("/dev/fuse:/dev/x:mr", ("/dev/fuse", "/dev/x", "mr")),
    ],
)
def test_a_device_is_read_in_every_form(text, found):
    host, container, access = found
    assert flags.device(text) == Device(path_on_host=host, path_in_container=container, cgroup_permissions=access)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("fuse", "'fuse' is not an absolute path"),
        ("/dev/fuse:x", "'x' is not an absolute path"),
        ("/dev/fuse:/dev/x:rx", "invalid permissions 'rx'"),
        ("/dev/fuse:/dev/x:rr", "invalid permissions 'rr'"),
        ("/dev/fuse:", "invalid device specification"),
        ("/a:/b:/c:/d", "invalid device specification"),
    ],
)
def test_a_bad_device_is_told(text, reason):
    assert refusal(flags.device, text) == (
        f"--device {text!r}: {reason}; expected HOST_PATH[:CONTAINER_PATH][:PERMISSIONS], permissions out of rwm"
    )


def test_device_rules_weights_and_rates():
    assert flags.device_cgroup_rule("c 42:* rmw") == "c 42:* rmw"
    assert refusal(flags.device_cgroup_rule, "c 42 r") == (
        "--device-cgroup-rule 'c 42 r': invalid device cgroup format; expected TYPE MAJOR:MINOR ACCESS"
    )
    assert flags.weight_device("/dev/sda:100") == WeightDevice(path="/dev/sda", weight=100)
    assert refusal(flags.weight_device, "/dev/sda:5") == (
        "--blkio-weight-device '/dev/sda:5': invalid weight '5'; expected DEVICE:WEIGHT, a path or MAJOR:MINOR "
        "and a weight from 10 to 1000"
    )
    bps = {"flag": "--device-read-bps", "unit": True}
    assert flags.throttle_device("/dev/sda:10mb", **bps) == ThrottleDevice(path="/dev/sda", rate=10 << 20)
    assert flags.throttle_device("8:16:1mb", **bps) == ThrottleDevice(path="8:16", rate=1 << 20)
    assert refusal(flags.throttle_device, "/dev/sda:fast", **bps) == (
        "--device-read-bps '/dev/sda:fast': invalid rate 'fast'; expected DEVICE:NUMBER[UNIT], the unit "
        "being kb, mb or gb, a path or MAJOR:MINOR"
    )
    assert refusal(flags.throttle_device, "sda:1", **bps).startswith(
        "--device-read-bps 'sda:1': bad format for device path; expected"
    )
    iops = {"flag": "--device-read-iops", "unit": False}
    assert flags.throttle_device("/dev/sda:1000", **iops) == ThrottleDevice(path="/dev/sda", rate=1000)
    assert refusal(flags.throttle_device, "/dev/sda:1k", **iops) == (
        "--device-read-iops '/dev/sda:1k': invalid rate '1k'; expected DEVICE:NUMBER, a path or MAJOR:MINOR"
    )


@pytest.mark.parametrize("text", ["2MB:64m", "2m:67108864", "2mb:65536k"])
def test_a_limit_of_huge_pages_is_read(text):
    assert flags.hugepage_limit(text) == HugepageLimit(page_size="2MB", limit=64 << 20)


@pytest.mark.parametrize("text", ["2MB", "2MB:", "2MB:some", "2XB:64m", ":64m", "2MB:-1"])
def test_a_bad_limit_of_huge_pages_is_told(text):
    assert refusal(flags.hugepage_limit, text) == (
        f"--hugetlb-limit {text!r}: invalid limit of huge pages; expected PAGE_SIZE:BYTES such as 2MB:64m"
    )


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("", "no", 0),
        ("no", "no", 0),
        ("always", "always", 0),
        ("unless-stopped", "unless-stopped", 0),
        ("on-failure", "on-failure", 0),
        ("on-failure:5", "on-failure", 5),
    ],
)
def test_a_restart_policy_is_read(text, name, count):
    assert flags.restart(text) == RestartPolicy(name=name, maximum_retry_count=count)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("allways", "invalid restart policy 'allways' (did you mean always?)"),
        ("always:3", "maximum retry count cannot be used with restart policy 'always'"),
        ("on-failure:-1", "maximum retry count must be a number from 0"),
        ("on-failure:", "maximum retry count must be a number from 0"),
    ],
)
def test_a_bad_restart_policy_is_told(text, reason):
    assert refusal(flags.restart, text) == (
        f"--restart {text!r}: {reason}; expected no, always, unless-stopped or on-failure[:MAX_RETRIES]"
    )
