"""What users set of networks and endpoints by ``transom network`` and ``transom run``, tried on the running kernel."""

import json
import select
import socket
import subprocess
import time

import click
import pytest

from transom.services.netns import inside
from transom_conformance.network import ip_batch
from transom_conformance.network.frames import watch
from transom_engine.cli import cli
from transom_engine.cli.booleans import spelled_out

# Announcements

ARP_REQUEST, ADVERTISEMENT = b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01", 136
MAC = "02:42:0a:4d:00:99"


@pytest.fixture
def announced(transom):
    """Make a network with these options; what is called then returns what has been announced on it."""
    open_sockets = []

    def make(**options):
        names = {"n": "com.docker.network.advertise_addr_nmsgs", "ms": "com.docker.network.advertise_addr_ms"}
        words = [word for option, value in options.items() for word in ("-o", f"{names[option]}={value}")]
        subnets = ["--subnet", "10.77.0.0/24", "--ipv6", "--subnet", "fd77::/64"]
        id = transom("network", "create", *subnets, *words, "net")
        transom("run", "-d", "--name", "quiet", "busybox", "sleep", "1000")
        ear = inside(transom.netns, watch, f"br-{id[:12]}")
        open_sockets.append(ear)
        return lambda: [address for frame in arrived(ear) if (address := said(frame))]

    yield make
    for sock in open_sockets:
        sock.close()


def arrived(sock):
    while select.select([sock], [], [], 0)[0]:
        yield sock.recv(2048)


def said(frame):
    """Return the address that the frame announces, if it does."""
    if frame[12:22] == ARP_REQUEST and frame[28:32] == frame[38:42]:
        return socket.inet_ntoa(frame[28:32])
    if frame[12:14] == b"\x86\xdd" and frame[54] == ADVERTISEMENT and frame[38:54] == socket.inet_pton(10, "ff02::1"):
        return socket.inet_ntop(socket.AF_INET6, frame[62:78])
    return None


def test_a_containers_addresses_are_announced_as_often_as_the_network_has_it(transom, announced):
    heard, all_of_it = announced(n=3, ms=300), []
    began = time.monotonic()
    transom("run", "-d", "--network", "net", "--ip", "10.77.0.9", "--ip6", "fd77::9", "--mac-address", MAC,
            "busybox", "sleep", "1000")  # fmt: skip
    returned = time.monotonic() - began
    transom.wait_until(lambda: all_of_it.extend(heard()) or len(all_of_it) >= 6)
    assert time.monotonic() - began >= 0.6, "they came without a pause"
    time.sleep(0.7)
    assert sorted(all_of_it + heard()) == ["10.77.0.9"] * 3 + ["fd77::9"] * 3
    assert returned < 10


def test_the_rest_is_not_announced_once_the_container_has_left_though_the_interface_has_a_successor(transom, announced):
    heard = announced(n=3, ms=500)
    named = ["--driver-opt", "com.docker.network.endpoint.ifname=side"]
    elsewhere = transom("network", "create", "--subnet", "10.78.0.0/24", "other")
    with inside(transom.netns, watch, f"br-{elsewhere[:12]}") as other:
        transom("network", "connect", *named, "--ip", "10.77.0.9", "--ip6", "fd77::9", "net", "quiet")
        transom("network", "disconnect", "net", "quiet")
        transom("network", "connect", *named, "--ip", "10.78.0.9", "other", "quiet")
        time.sleep(1.5)
        assert {said(frame) for frame in arrived(other)} - {None} == {"10.78.0.9"}
    assert sorted(heard()) in ([], ["10.77.0.9", "fd77::9"], ["10.77.0.9"] * 2 + ["fd77::9"] * 2)


def test_neighbours_on_the_lan_hear_of_a_macvlan_containers_address(transom):
    inside(transom.netns, ip_batch, "link add up0 type veth peer name up1", "link set up0 up", "link set up1 up")
    fast = ["-o", "com.docker.network.advertise_addr_ms=100"]
    transom("network", "create", "-d", "macvlan", "-o", "parent=up0", *fast, "--subnet", "10.77.0.0/24", "lan")
    with inside(transom.netns, watch, "up1") as ear:
        transom.detached("--ip", "10.77.0.9", network="lan")
        heard = []
        transom.wait_until(lambda: heard.extend(map(said, arrived(ear))) or heard.count("10.77.0.9") == 3)


@pytest.mark.parametrize(("options", "count"), [({"n": 0}, 0), ({"n": 1, "ms": 100}, 1)])
def test_nothing_more_is_announced_than_was_asked_for(transom, announced, options, count):
    heard = announced(**options)
    transom("run", "-d", "--network", "net", "--ip", "10.77.0.9", "--mac-address", MAC, "busybox", "sleep", "1000")
    time.sleep(1.5)
    assert heard().count("10.77.0.9") == count


# Truth values


def spelled(words):
    return spelled_out(click.Context(cli, info_name="transom", **cli.context_settings), words.split())


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("run --rm=true -it=T box echo --rm=true", "run --rm -i -t box echo --rm=true"),
        ("run --rm -dit --rm=false --tty=0 box", "run -d -i box"),
        ("run --rm=false --rm box", "run --rm box"),
        ("run --sig-proxy=false box", "run --no-sig-proxy box"),
        ("run -e A=1 -e=B=2 --name=true -p=80:80 -d=1 box", "run -e A=1 -eB=2 --name=true -p80:80 -d box"),
        ("run --env --rm=true box", "run --env --rm=true box"),
        ("exec -it=false c ls -a=true", "exec -i c ls -a=true"),
        ("rm -f=TRUE one -v=false two", "rm -f one two"),
        ("-D=true --debug=f network create --internal=false --ipv6=true net", "network create --ipv6 net"),
        ("container run -d=true box", "container run -d box"),
        ("network ls -- --no-trunc=true", "network ls -- --no-trunc=true"),
        ("absent --rm=true", "absent --rm=true"),
    ],
)
def test_flags_take_truth_values_as_docker_s_do(words, meant):
    assert spelled(words) == meant.split()


def test_a_flag_with_a_truth_value_does_what_it_says(transom):
    done = transom(
        "run", "--rm=true", "--network=none", "--read-only=false", "-i=1", "busybox", "sh", "-c", "echo $0 a=b"
    )
    assert done == "sh a=b"
    assert transom("ps", "-a=true", "-q=true") == ""
    transom("network", "create", "--internal=true", "--ipv4=false", "--ipv6=1", "--attachable=false", "net")
    record = transom.inspect("net")
    assert [record[key] for key in ("Internal", "EnableIPv4", "EnableIPv6", "Attachable")] == [True, False, True, False]


def test_a_flag_with_another_value_is_refused_in_a_line(transom):
    assert transom.fails("network", "create", "--internal=maybe", "net", code=125) == (
        "invalid value 'maybe' for the flag --internal: expected true or false; see `transom network create --help`"
    )


# Configurations, and what the engine takes of options


def test_a_configuration_is_kept_and_networks_are_made_by_it(transom):
    words = ["--subnet", "10.76.0.0/24", "--ip-range", "10.76.0.128/25", "-o", "com.docker.network.driver.mtu=1400"]
    id = transom("network", "create", "--config-only", *words, "--label", "a=b", "conf")
    assert transom("network", "ls", "--filter", "name=conf", "--format", "{{.ID}} {{.Driver}} {{.Scope}}") == (
        f"{id[:12]} null local"
    )
    record = transom.inspect("conf")
    assert (record["ConfigOnly"], record["ConfigFrom"]) == (True, {"Network": ""})
    assert (
        "10.76.0"
        not in subprocess.run(
            ["ip", "address"], preexec_fn=transom.enter, capture_output=True, text=True, check=True
        ).stdout
    )  # nothing of it is on the host
    transom("network", "create", "--config-from", "conf", "-d", "bridge", "--scope", "local", "net")
    made = transom.inspect("net")
    assert (made["ConfigOnly"], made["ConfigFrom"], made["Labels"]) == (False, {"Network": "conf"}, {"a": "b"})
    assert made["Options"] == {"com.docker.network.driver.mtu": "1400"}
    assert (made["IPAM"]["Config"][0]["Subnet"], made["IPAM"]["Config"][0]["IPRange"]) == ("10.76.0.0/24", words[3])
    out = transom("run", "--rm", "--network", "net", "busybox", "ip", "-o", "address", "show", "eth0")
    assert "10.76.0.128/24" in out
    assert transom.fails("network", "rm", "conf") == "configuration conf is in use by net; remove them first"
    transom("network", "prune", "-f")
    assert transom("network", "ls", "-q", "--filter", "name=conf") == id[:12]
    transom("network", "rm", "conf")
    assert transom.fails("network", "inspect", "conf").startswith("no such network: conf")


def test_no_container_can_be_on_a_configuration(transom):
    transom("network", "create", "--config-only", "conf")
    text = (
        "network conf is a configuration alone, no container can be on it: make a network by it, "
        "`transom network create --config-from conf NAME`"
    )
    assert transom.fails("run", "--network", "conf", "busybox", "true", code=125) == text
    assert transom.fails("run", "--network", "bridge", "--network", "conf", "busybox", "true", code=125) == text
    transom.detached("--name", "one", network="bridge")
    assert transom.fails("network", "connect", "conf", "one") == text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--config-only", "--internal", "--attachable", "--scope=local"],
            "--config-only keeps a configuration alone: leave out --internal, --attachable, --scope",
        ),
        (
            ["--config-from", "bridge"],
            "--config-from bridge: it is no configuration, as --config-only makes, but a network",
        ),
        (
            ["--config-from", "conf", "--subnet", "10.9.0.0/24", "-o", "a=b", "--label", "c", "--ipv6"],
            "--config-from conf has the configuration: leave out --subnet, --opt, --label, --ipv6",
        ),
        (
            ["--config-from", "conf", "--ipam-driver", "dhcp"],
            "--config-from conf has the configuration: leave out --ipam-driver",
        ),
        (["--config-from", "absent"], "no such network: absent; networks here: bridge, conf"),
        (["--config-only", "conf"], "network with name conf already exists; choose another, or remove it first"),
        (
            ["--scope", "swarm"],
            "--scope swarm: networks of driver bridge are local: there is no swarm mode; on each host a configuration "
            "can be kept with --config-only",
        ),
        (["--scope", "global"], "--scope global: networks of driver bridge are local"),
        (["--ingress"], "--ingress: there is no swarm mode, whose routing mesh it is for; leave it out"),
        (
            ["--ipam-opt", "a=b"],
            "IPAM driver default has no option 'a' (from --ipam-opt): it has no options",
        ),
        (["-o", "com.docker.network.enable_ipv6=x"], "com.docker.network.enable_ipv6='x': expected true or false"),
    ],
)  # fmt: skip
def test_create_refuses_what_means_nothing_here(transom, words, text):
    transom("network", "create", "--config-only", "conf")
    names = ["n1"] if words[-1] != "conf" else []
    assert transom.fails("network", "create", *words, *names, code=125) == text


def test_the_families_of_a_network_are_options_too_and_the_flags_win(transom):
    four, six = "com.docker.network.enable_ipv4", "com.docker.network.enable_ipv6"
    transom("network", "create", "-o", f"{four}=0", "-o", f"{six}=true", "six")
    transom("network", "create", "-o", f"{six}=true", "--ipv6=false", "four")
    record = transom.inspect("six")
    assert (record["EnableIPv4"], record["EnableIPv6"], record["Options"]) == (False, True, {})
    assert transom.inspect("four")["EnableIPv6"] is False


def test_default_options_are_those_of_new_networks_of_a_driver(transom, tmp_path):
    config = tmp_path / "daemon.json"
    options = {"com.docker.network.driver.mtu": "1300", "com.docker.network.enable_ipv6": "true"}
    config.write_text(json.dumps({"default-network-opts": {"bridge": options, "macvlan": {"macvlan_mode": "vepa"}}}))
    transom("--config", config, "network", "create", "net")
    transom("--config", config, "network", "create", "-o", "com.docker.network.driver.mtu=1400", "--no-ipv6", "own")
    config.write_text("{}")
    record = transom.inspect("net")
    assert (record["Options"], record["EnableIPv6"]) == ({"com.docker.network.driver.mtu": "1300"}, True)
    record = transom.inspect("own")
    assert (record["Options"], record["EnableIPv6"]) == ({"com.docker.network.driver.mtu": "1400"}, False)
    assert "mtu 1300" in transom("run", "--rm", "--network", "net", "busybox", "ip", "link", "show", "eth0")


@pytest.mark.parametrize(
    ("words", "both"),
    [
        (["--network", "name=net,ip=10.9.0.2", "--ip", "10.9.0.3"], "--ip"),
        (
            ["--network", "name=net,mac-address=02:42:00:00:00:01", "--mac-address", "02:42:00:00:00:02"],
            "--mac-address",
        ),
        (["--network", "name=net,alias=a", "--network-alias", "b"], "--network-alias"),
    ],
)
def test_what_is_said_twice_of_a_place_is_refused(transom, words, both):
    transom("network", "create", "--subnet", "10.9.0.0/24", "net")
    assert transom.fails("run", *words, "busybox", "true", code=125) == (
        f"conflicting options: {both} and what --network says of net: leave one out"
    )


# What is reached from outside


def test_exposed_lists_every_way_in_and_no_other(transom):
    inside(transom.netns, ip_batch, "link add up0 type veth peer name up1", "link set up0 up", "link set up1 up")
    mode, trusted = "com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.trusted_host_interfaces"
    for number, (name, words) in enumerate({
        "inner": ["--internal"],
        "lan": ["-d", "macvlan", "-o", "parent=up0"],
        "open": ["-o", f"{mode}=nat-unprotected"],
        "routed": ["-o", f"{mode}=routed"],
        "trusting": ["-o", f"{trusted}=up0"],
    }.items()):  # fmt: skip
        transom("network", "create", "--subnet", f"10.7{number}.0.0/24", *words, name)
    transom.detached("--name", "web", "-p", "8080:80", "-p", "127.0.0.1:8081:81", "-p", "127.0.0.2:53:53/udp",
                     network="bridge")  # fmt: skip
    for network in ("inner", "lan", "open", "routed", "trusting", "host", "none"):
        ports = ["-p", "9090:90"] if network == "routed" else []
        transom.detached("--name", f"on-{network}", *ports, network=network)
    form = "{{.Address}} {{.Port}} {{.Container}} {{.Target}} {{.Network}} {{.Reason}}"
    assert sorted(transom("network", "exposed", "--format", form).splitlines()) == sorted([
        "0.0.0.0 8080/tcp web 80/tcp bridge published",
        "0.0.0.0 all on-host all host host",
        "10.71.0.2 all on-lan all lan neighbour",
        "10.72.0.2 all on-open all open routed",
        "10.73.0.2 90/tcp on-routed 90/tcp routed routed",
        "10.74.0.2 all on-trusting all trusting trusted",
    ])  # fmt: skip
    transom("rm", "-f", *(f"on-{name}" for name in ("lan", "open", "routed", "trusting", "host")), "web")
    assert transom("network", "exposed").split() == ["ADDRESS", "PORT", "CONTAINER", "TARGET", "NETWORK", "REASON"]


def test_a_field_of_a_place_may_have_commas_in_quotes(transom):
    transom("network", "create", "--subnet", "10.9.0.0/24", "net")
    option = "driver-opt=com.docker.network.endpoint.sysctls"
    settings = "net.ipv4.conf.IFNAME.log_martians=1,net.ipv4.conf.IFNAME.forwarding=0"
    shown = ["cat", "/proc/sys/net/ipv4/conf/eth0/log_martians", "/proc/sys/net/ipv4/conf/eth0/forwarding"]
    assert (
        transom("run", "--rm", "--network", f'name=net,"{option}={settings}",ip=10.9.0.7', "busybox", *shown) == "1\n0"
    )
    assert transom.fails("run", "--network", 'name=net,"alias=a', "busybox", "true", code=125).startswith(
        "--network 'name=net,\"alias=a': unexpected end of data; expected NAME or name=NAME,alias=A,"
    )


# What other firewalls do


def test_doctor_names_the_firewalls_that_stand_in_the_way(transom):
    def remarks():
        report = json.loads(transom.call("doctor", "--format", "json").out)
        return [check["Text"].partition(";")[0] for check in report["Host"] if check["Name"] == "firewall"]

    transom("network", "create", "net")
    assert remarks() == []
    for rules in (
        "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; }",
        "table inet mine { chain pass { type filter hook forward priority 0; policy accept; drop; }; }",
        "table inet firewalld { chain filter_FORWARD { type filter hook forward priority 10; policy accept; }; }",
    ):
        inside(transom.netns, subprocess.run, ["nft", rules], check=True)
    assert remarks() == [
        "firewalld runs: bridges reach nothing unless they are in a zone with the target ACCEPT",
        "table ip filter, chain FORWARD drops what no rule of it lets through (policy drop), containers' packets too",
    ]
