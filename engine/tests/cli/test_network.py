"""``transom network``: make, list, join and remove networks, inside a network namespace of each test's own."""

import os
import re
import socket
import subprocess
import time
from ipaddress import ip_network

import pytest

from transom.contract import NoOptions
from transom.services.netns import inside
from transom_network_ipvlan import Ipvlan


@pytest.fixture
def net(transom):
    """A network ``net`` with a subnet of its own."""
    transom("network", "create", "--subnet", "10.77.0.0/24", "net")
    return transom


def addresses(transom, name):
    return {key: place["IPAddress"] for key, place in transom.inspect(name)["NetworkSettings"]["Networks"].items()}


def test_create_prints_the_id_and_inspect_shows_what_was_asked(transom):
    words = ["--subnet", "10.9.0.0/24", "--ip-range", "10.9.0.128/25", "--gateway", "10.9.0.254", "--label", "a=b"]
    words += ["--aux-address", "printer=10.9.0.200", "-o", "com.docker.network.driver.mtu=1400", "--attachable"]
    id = transom("network", "create", *words, "n1")
    record = transom.inspect("n1", "--type", "network")
    assert (len(id), record["Id"], record["Driver"], record["Labels"]) == (64, id, "bridge", {"a": "b"})
    assert record["IPAM"]["Config"] == [
        {
            "Subnet": "10.9.0.0/24", "IPRange": "10.9.0.128/25", "Gateway": "10.9.0.254",
            "AuxiliaryAddresses": {"printer": "10.9.0.200"},
        }
    ]  # fmt: skip
    assert record["Options"] == {"com.docker.network.driver.mtu": "1400"}
    assert record["Attachable"] is True
    assert transom("network", "inspect", "-f", "{{.Name}} {{.Internal}}", "n1") == "n1 false"


def test_inspect_counts_the_addresses_of_each_subnet(transom):
    words = ["--subnet", "10.9.0.0/24", "--ip-range", "10.9.0.240/29", "--aux-address", "a=10.9.0.200"]
    transom("network", "create", "--ipv6", *words, "--aux-address", "b=10.9.0.241", "--subnet", "fd09::/64", "n1")
    form = "{{json .Status.IPAM.Subnets}}"
    # In use: the network's, the broadcast's, the gateway's and both set aside; of the range one of those.
    assert transom("network", "inspect", "-f", form, "n1") == (
        '{"10.9.0.0/24":{"IPsInUse":5,"DynamicIPsAvailable":7},'
        '"fd09::/64":{"IPsInUse":2,"DynamicIPsAvailable":18446744073709551614}}'
    )
    transom.detached("--name", "one", network="n1")
    transom.detached("--name", "two", "--ip", "10.9.0.77", network="n1")
    counts = transom.inspect("n1")["Status"]["IPAM"]["Subnets"]
    assert counts["10.9.0.0/24"] == {"IPsInUse": 7, "DynamicIPsAvailable": 6}
    assert counts["fd09::/64"] == {"IPsInUse": 4, "DynamicIPsAvailable": 2**64 - 4}
    transom("network", "create", "--ipv6", "--subnet", "10.10.0.0/31", "--subnet", "fd10::/56", "n2")
    assert transom.inspect("n2")["Status"]["IPAM"]["Subnets"] == {
        "10.10.0.0/31": {"IPsInUse": 1, "DynamicIPsAvailable": 1},
        "fd10::/56": {"IPsInUse": 2, "DynamicIPsAvailable": 2**64 - 1},
    }
    assert "Status" not in transom.inspect("none")


def test_inspect_has_a_containers_networks_by_name_with_its_names_there(net):
    net("network", "create", "also")
    net.detached("--name", "db", network="net")
    net.detached("--name", "web", "--hostname", "shop", "--network-alias", "www", "--link", "db:sql", network="net")
    net("network", "connect", "also", "web")
    net("network", "connect", "bridge", "web")
    record = net.inspect("web")
    places = record["NetworkSettings"]["Networks"]
    assert [*places] == ["also", "bridge", "net"]
    assert places["net"]["DNSNames"] == ["web", "www", record["Id"][:12], "shop"]
    assert places["also"]["DNSNames"] == ["web", record["Id"][:12], "shop"]
    assert places["bridge"]["DNSNames"] is None
    assert places["net"]["Links"] == ["db:sql"]
    for name in places["net"]["DNSNames"]:
        assert places["net"]["IPAddress"] in net("exec", "db", "nslookup", name, "127.0.0.11")


def test_an_address_that_another_container_has_is_refused_with_its_name(net):
    net.detached("--name", "web", "--ip", "10.77.0.9", network="net")
    assert net.fails("run", "--network", "net", "--ip", "10.77.0.9", "busybox", code=125) == (
        "address 10.77.0.9 of network net belongs to container web; ask for another one"
    )


def test_each_range_and_gateway_goes_to_the_subnet_that_it_is_in(transom):
    subnets = ["--subnet", "10.9.0.0/24", "--subnet", "fd09::/64", "--ipv6"]
    transom("network", "create", *subnets, "--gateway", "fd09::9", "--gateway", "10.9.0.9", "n1")
    form = "{{range .IPAM.Config}}{{.Subnet}} {{.Gateway}};{{end}}"
    assert transom("network", "inspect", "-f", form, "n1") == "10.9.0.0/24 10.9.0.9;fd09::/64 fd09::9;"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["--gateway", "1.2.3.4"],
            "--gateway 1.2.3.4: no matching subnet; those given are none, add one with --subnet",
        ),
        (
            ["--subnet", "10.9.0.0/24", "--ip-range", "10.8.0.0/25"],
            "--ip-range 10.8.0.0/25: no matching subnet; those given are 10.9.0.0/24, add one with --subnet",
        ),
        (
            ["--subnet", "10.9.0.0/24", "--aux-address", "a=10.8.0.1"],
            "--aux-address a=10.8.0.1: no matching subnet; those given are 10.9.0.0/24, add one with --subnet",
        ),
        (
            ["--subnet", "10.9.0.0/24", "--gateway", "10.9.0.1", "--gateway", "10.9.0.2"],
            "--gateway 10.9.0.2: subnet 10.9.0.0/24 has the gateway 10.9.0.1 already",
        ),
        (
            ["--subnet", "10.9.0.0/24", "--ip-range", "10.9.0.0/25", "--ip-range", "10.9.0.128/25"],
            "--ip-range 10.9.0.128/25: subnet 10.9.0.0/24 has the range 10.9.0.0/25 already",
        ),
        (["--gateway", "nonsense"], "--gateway 'nonsense': not an IP address, such as 172.28.5.254"),
        (["--aux-address", "a=b"], "--aux-address 'b': not an IP address, such as 172.28.5.254"),
        (["--subnet", "10.9.0.1/24"], "subnet 10.9.0.1/24 has bits set beyond its prefix: write 10.9.0.0/24"),
        (["--subnet", "x"], "'x' is not a subnet: write it as 172.18.0.0/16"),
        (
            ["--subnet", "127.0.0.0/8"],
            "subnet 127.0.0.0/8 cannot be a network's: 127.0.0.0/8 is for the loopback",
        ),
        (["--subnet", "224.1.0.0/16"], "subnet 224.1.0.0/16 cannot be a network's: 224.0.0.0/4 is for groups"),
        (["--ipv6", "--subnet", "::/0"], "subnet ::/0 cannot be a network's: ::1/128 is for the loopback"),
        (
            ["--ipv6", "--subnet", "fe80::/64"],
            "subnet fe80::/64 cannot be a network's: fe80::/10 is for each link by itself",
        ),
        (["-d", "host"], "network driver host has one network only, which is there already: use it by its name"),
    ],
)  # fmt: skip
def test_create_refuses_words_that_do_not_fit(transom, words, text):
    assert transom.fails("network", "create", *words, "n1", code=125) == text
    assert transom("network", "ls", "--format", "{{.Name}}").split() == ["bridge", "host", "none"]


def test_create_refuses_bad_and_taken_names(net):
    assert net.fails("network", "create", "net") == (
        "network with name net already exists; choose another, or remove it first"
    )
    for name in ("bridge", "host", "none", "default"):
        assert net.fails("network", "create", name, code=125) == (
            f"network {name} is a pre-defined one, which is there already; choose another name"
        )
    assert net("run", "--rm", "--network", "host", "busybox", "hostname") == os.uname().nodename
    assert net.fails("network", "create", "-bad", "x").startswith("No such option")
    assert net.fails("network", "create", "b@d") == (
        "invalid network name 'b@d': only a-z A-Z 0-9 _ . - are allowed, the first not a sign"
    )


def test_ls_prints_docker_s_table_and_filters(net):
    lines = net("network", "ls").splitlines()
    assert lines[0].split() == ["NETWORK", "ID", "NAME", "DRIVER", "SCOPE"]
    assert [line.split()[1:] for line in lines[1:]] == [
        ["bridge", "bridge", "local"], ["host", "host", "local"], ["net", "bridge", "local"], ["none", "none", "local"]
    ]  # fmt: skip
    name = ["network", "ls", "--format", "{{.Name}}"]
    assert net(*name, "-f", "type=custom") == "net"
    assert net(*name, "-f", "driver=bridge").split() == ["bridge", "net"]
    assert net(*name, "-f", "name=^n", "-f", "driver=none") == "none"
    assert net(*name, "-f", "dangling=true") == "net"
    assert net(*name, "-f", "") == net(*name), 'docker\'s command, too, takes "" for no filter'
    form = "{{.Name}} {{.IPv4}} {{.IPv6}} {{.Internal}}"
    assert net("network", "ls", "--format", form, "-f", "name=net") == "net true false false"
    id = net("network", "ls", "-q", "--no-trunc", "-f", "name=net")
    assert len(id) == 64
    assert net("network", "ls", "-q", "-f", f"id={id[:5]}") == id[:12]


def test_ls_refuses_filters_that_make_no_sense(net):
    assert net.fails("network", "ls", "-f", "name=(") == (
        "--filter name='(': invalid regular expression: missing ), unterminated subpattern at position 0"
    )
    assert net.fails("network", "ls", "-f", "type=x") == "--filter type='x': invalid filter; there are builtin, custom"
    assert net.fails("network", "ls", "-f", "dangling=x") == (
        "--filter dangling='x': invalid filter; there are true, false"
    )
    assert net.fails("network", "ls", "-f", "nam=x") == (
        "--filter 'nam=x': invalid filter 'nam' (did you mean name?);"
        " there are dangling, driver, id, label, name, scope, type"
    )


def test_connect_and_disconnect_act_on_a_running_container(net):
    net.detached("--name", "web", network="bridge")
    assert net("network", "connect", "--ip", "10.77.0.77", "--alias", "www", "net", "web") == ""
    assert addresses(net, "web")["net"] == "10.77.0.77"
    assert "10.77.0.77" in net("exec", "web", "ip", "addr")
    assert net.fails("network", "connect", "net", "web") == "container web is already on network net"
    assert net.inspect("net")["Containers"].popitem()[1]["IPv4Address"] == "10.77.0.77/24"
    net("network", "disconnect", "net", "web")
    assert "net" not in addresses(net, "web")
    assert "10.77.0.77" not in net("exec", "web", "ip", "addr")
    assert net.fails("network", "disconnect", "net", "web") == "container web is not on network net"
    assert net("network", "disconnect", "-f", "net", "web") == ""


def test_connect_refuses_unknown_names(net):
    assert net.fails("network", "connect", "net", "web") == "no such container: web; `transom ps -a` lists those here"
    net("create", "--name", "web", "--network", "net", "busybox")
    assert net.fails("network", "connect", "nett", "web") == (
        "no such network: nett (did you mean net?); networks here: bridge, net"
    )


def test_rm_goes_on_over_errors_and_refuses_what_is_in_use(net):
    net.detached("--name", "web", network="net")
    net("network", "create", "other")
    done = net.call("network", "rm", "nosuch", "net", "bridge", "other")
    assert (done.code, done.out) == (1, "other\n")
    assert done.err.splitlines() == [
        "transom: no such network: nosuch; networks here: bridge, net, other",
        "transom: network net has active endpoints: web; stop or disconnect them first",
        "transom: bridge is a pre-defined network and cannot be removed",
    ]
    assert net("network", "rm", "-f", "nosuch") == ""


def test_prune_leaves_networks_of_containers_even_stopped_ones(net):
    net("create", "--name", "web", "--network", "net", "busybox")
    net("network", "create", "--label", "keep", "kept")
    net("network", "create", "idle")
    asked = net("network", "prune", input=b"\n")
    assert asked == (
        "WARNING! This will remove all custom networks not used by at least one container.\n"
        "Are you sure you want to continue? [y/N] "
    )
    assert net("network", "prune", "-f", "--filter", "until=1h") == ""
    assert net("network", "prune", "-f", "--filter", "label!=keep") == "Deleted Networks:\nidle\n"
    assert net("network", "prune", "-f") == "Deleted Networks:\nkept\n"
    assert net("network", "ls", "-q", "-f", "name=net") != ""


def test_a_container_outlives_the_removal_of_its_network(net):
    net("network", "create", "other")
    net.detached("--name", "web", network="net")
    net("stop", "-t", "0", "web")
    net("network", "rm", "net")
    assert net.fails("start", "web", code=1) == (
        "container web is to join network net, which has been removed: make it again,"
        " or `transom network disconnect net web`"
    )
    assert net("ps", "-a", "--format", "{{.Names}} {{.State}} {{.Networks}}") == "web exited net"
    assert "were not judged" not in net("doctor")
    net("network", "connect", "other", "web")
    net("network", "disconnect", "net", "web")
    net("start", "web")
    assert addresses(net, "web").keys() == {"other"}
    assert net("exec", "web", "cat", "/etc/resolv.conf").startswith("nameserver 127.0.0.11")
    assert net.fails("network", "disconnect", "net", "web").startswith("no such network: net; ")


def test_another_network_whose_id_begins_as_the_name_of_one_that_is_gone_is_not_joined(net):
    other = net("network", "inspect", "-f", "{{.Id}}", "net")
    net("network", "create", other[:4])
    net("create", "--name", "web", "--network", other[:4], "busybox", "sleep", "99")
    net("network", "rm", other[:4])
    assert "has been removed: make it again" in net.fails("start", "web")
    net("network", "disconnect", other[:4], "web")
    assert addresses(net, "web") == {}


def test_a_network_made_again_by_the_same_name_is_joined(net):
    net("create", "--name", "web", "--network", "net", "busybox", "sleep", "99")
    net("network", "rm", "net")
    assert net.fails("start", "web", code=1).startswith("container web is to join network net, which has been removed")
    assert net.inspect("web")["State"]["Status"] == "created", "it never ran"
    net("network", "create", "--subnet", "10.76.0.0/24", "net")
    net("start", "web")
    assert addresses(net, "web") == {"net": "10.76.0.2"}


# Several networks


def routes(transom, name, *words):
    return transom("exec", name, "ip", *words, "route", "show", "default")


@pytest.fixture
def three(transom):
    """Networks ``a`` and ``b`` that lead out, and ``inner`` that does not."""
    for number, name in enumerate(("a", "b", "inner")):
        words = ["--internal"] if name == "inner" else []
        transom("network", "create", "--subnet", f"10.8{number}.0.0/24", *words, name)
    return transom


def test_the_network_with_the_highest_priority_leads_out_and_the_next_takes_over(three):
    three(
        "run",
        "-d",
        "--name",
        "app",
        "--network",
        "a",
        "--network",
        "name=inner,gw-priority=9",
        "busybox",
        "sleep",
        "99",
    )
    assert "via 10.80.0.1 dev eth0" in routes(three, "app")
    three("network", "connect", "--gw-priority", "5", "b", "app")
    assert "via 10.81.0.1 dev eth2" in routes(three, "app")
    three("network", "disconnect", "b", "app")
    assert "via 10.80.0.1 dev eth0" in routes(three, "app")
    three("network", "disconnect", "a", "app")
    assert "default" not in routes(three, "app")


def test_each_family_has_its_own_way_out_and_falls_over_by_itself(three):
    for number, name in ((4, "both"), (5, "other")):
        subnets = ("--subnet", f"10.8{number}.0.0/24", "--subnet", f"fd8{number}::/64")
        three("network", "create", "--ipv6", *subnets, name)
    places = ("--network", "name=a,gw-priority=9", "--network", "name=other,gw-priority=1", "--network", "both")
    three("run", "-d", "--name", "app", *places, "-p", "8080:80", "busybox", "httpd", "-f")

    def ways():
        found = [routes(three, "app", *words) for words in ((), ("-6",))]
        return [line.split()[2] if "via" in line else "" for line in found]

    def answers(address):
        try:
            inside(three.netns, socket.create_connection, (address, 8080), timeout=60).close()
        except ConnectionRefusedError:
            return False
        return True

    assert ways() == ["10.80.0.1", "fd85::1"]
    assert [answers(address) for address in ("127.0.0.1", "::1", "fd84::1")] == [True] * 3
    three("network", "disconnect", "other", "app")
    assert ways() == ["10.80.0.1", "fd84::1"]
    three("network", "disconnect", "a", "app")
    assert ways() == ["10.84.0.1", "fd84::1"]
    assert [answers(address) for address in ("127.0.0.1", "::1", "fd84::1")] == [True] * 3
    three("network", "connect", "a", "app")
    three("network", "disconnect", "both", "app")
    assert ways() == ["10.80.0.1", ""]
    assert [answers(address) for address in ("127.0.0.1", "::1")] == [True, False]


def test_of_networks_with_the_same_priority_the_first_by_name_leads_out(three):
    three("run", "-d", "--name", "app", "--network", "b", "--network", "a", "busybox", "sleep", "99")
    assert "via 10.80.0.1" in routes(three, "app")
    three("stop", "-t", "0", "app")
    three("start", "app")
    assert "via 10.80.0.1" in routes(three, "app")


def test_published_ports_follow_the_network_that_leads_out_and_keep_their_numbers(three):
    three("run", "-d", "--name", "app", "--network", "a", "-p", "80", "busybox", "httpd", "-f")
    port = three("port", "app", "80").splitlines()[0]
    number = port.rpartition(":")[2]
    three("network", "connect", "--gw-priority", "1", "b", "app")
    assert three("port", "app", "80").splitlines()[0] == port
    with inside(three.netns, socket.create_connection, ("10.81.0.1", int(number)), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 404 " in client.recv(99)
    three("network", "disconnect", "b", "app")
    assert three("port", "app", "80").splitlines()[0] == port
    three("network", "disconnect", "a", "app")
    assert three("port", "app") == ""


def test_published_ports_come_back_with_a_network_that_leads_out(three):
    words = ["-p", "8080:80", "-p", "127.0.0.1:8443:443", "-p", "53/udp"]
    three("run", "-d", "--name", "app", "--network", "a", *words, "busybox", "httpd", "-f")
    three("network", "disconnect", "a", "app")
    assert three("port", "app") == ""
    three("network", "connect", "inner", "app")
    assert three("port", "app") == ""
    three("network", "connect", "b", "app")
    assert three("port", "app", "80") == "0.0.0.0:8080"
    assert three("port", "app", "443") == "127.0.0.1:8443"
    assert three("port", "app", "53/udp").startswith("0.0.0.0:")
    with inside(three.netns, socket.create_connection, ("10.81.0.1", 8080), timeout=60) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 404 " in client.recv(99)


def test_a_port_is_published_for_the_other_family_when_a_network_leads_out_for_it(three):
    three("network", "create", "--ipv6", "--subnet", "10.83.0.0/24", "--subnet", "fd83::/64", "both")
    three("run", "-d", "--name", "app", "--network", "a", "-p", "80", "-p", "127.0.0.1:81:81", "busybox", "sleep", "99")
    port = three("port", "app", "80")
    three("network", "connect", "both", "app")
    assert three("port", "app", "80").splitlines() == [port, port.replace("0.0.0.0", "[::]")]
    assert three("port", "app", "81") == "127.0.0.1:81"
    three("network", "disconnect", "both", "app")
    assert three("port", "app", "80") == port


def test_a_port_taken_meanwhile_keeps_a_container_off_the_network(three):
    three("run", "-d", "--name", "app", "--network", "a", "-p", "8080:80", "busybox", "sleep", "99")
    three("network", "disconnect", "a", "app")
    three("run", "-d", "--name", "other", "--network", "a", "-p", "8080:80", "busybox", "sleep", "99")
    assert three.fails("network", "connect", "a", "app", code=125) == (
        "port 8080/tcp is taken: other has it at 0.0.0.0; choose another one"
    )
    assert addresses(three, "app") == {}
    assert "eth0" not in three("exec", "app", "ip", "link")


def netns_of(transom, name):
    """Return a descriptor of a running container's namespace."""
    return os.open(f"/proc/{transom.inspect(name)['State']['Pid']}/ns/net", os.O_RDONLY)


def test_a_routed_network_is_reached_at_published_ports_whichever_network_leads_out(three):
    modes = [word for n in (4, 6) for word in ("--opt", f"com.docker.network.bridge.gateway_mode_ipv{n}=routed")]
    three("network", "create", "--ipv6", "--subnet", "10.84.0.0/24", "--subnet", "fd84::/64", *modes, "routed")
    serve = ("sh", "-c", "httpd -f & exec httpd -f -p 81")
    three.detached("--name", "app", "-p", "8080:80", command=serve, network="name=a,gw-priority=1")
    three.detached("--name", "other", network="b")
    three("network", "connect", "routed", "app")
    other = netns_of(three, "other")

    def reaches(network, port, timeout=60.0):
        place = addresses(three, "app")[network], port
        while True:
            try:
                inside(other, socket.create_connection, place, timeout=timeout).close()
                return True
            except ConnectionRefusedError:
                time.sleep(0.1)  # it is about to listen
            except TimeoutError:
                return False

    try:
        assert reaches("routed", 80)
        assert not any(reaches(*place, timeout=0.6) for place in (("routed", 81), ("a", 80), ("a", 81)))
        assert three("port", "app").splitlines() == ["80/tcp -> 0.0.0.0:8080"]
        inside(three.netns, subprocess.check_call, ["nft", "flush", "ruleset"])
        three("doctor", "--repair")
        assert reaches("routed", 80)
        three("network", "disconnect", "a", "app")
        assert reaches("routed", 80)
        three("network", "connect", "--gw-priority", "2", "a", "app")
        three("restart", "-t", "0", "app")
        assert reaches("routed", 80)
        inside(three.netns, socket.create_connection, ("127.0.0.1", 8080), timeout=60).close()
    finally:
        os.close(other)


def test_what_is_said_of_a_network_is_said_in_its_flag(three):
    words = "name=a,alias=x,alias=y,ip=10.80.0.77,mac-address=02:42:00:00:00:77,gw-priority=3"
    words += ",driver-opt=com.docker.network.endpoint.ifname=lan"
    three("run", "-d", "--name", "app", "--network", words, "busybox", "sleep", "99")
    place = three.inspect("app")["NetworkSettings"]["Networks"]["a"]
    assert (place["IPAddress"], place["MacAddress"], place["Aliases"]) == (
        "10.80.0.77",
        "02:42:00:00:00:77",
        ["x", "y"],
    )
    assert place["GwPriority"] == 3
    assert "lan" in three("exec", "app", "ip", "link")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--ip", "abc"], "--ip 'abc': not an IPv4 address; expected one such as 172.28.5.7"),
        (["--ip", "fd80::7"], "--ip 'fd80::7': not an IPv4 address; expected one such as 172.28.5.7"),
        (["--ip6", "10.80.0.7"], "--ip6 '10.80.0.7': not an IPv6 address; expected one such as 2001:db8::33"),
        (["--ip6", "fe80::1%lo"], "--ip6 'fe80::1%lo': not an IPv6 address; expected one such as 2001:db8::33"),
    ],
)
def test_an_address_of_the_other_family_is_refused(three, words, text):
    assert three.fails("create", "--network", "a", *words, "busybox", code=125) == text
    three("create", "--name", "app", "--network", "a", "busybox")
    assert three.fails("network", "connect", *words, "b", "app", code=125) == text


@pytest.mark.parametrize("text", ["zz", "02:42:00:00:00", "02:42:00:00:00:07:08", "02-42:00:00:00:07", "0242000000ff"])
def test_what_is_no_mac_address_is_refused(three, text):
    said = f"{text!r}: not a MAC address; expected six bytes such as 02:42:ac:11:00:02, the first one even"
    assert three.fails("create", "--mac-address", text, "busybox", code=125) == f"--mac-address {said}"
    assert (
        three.fails("create", "--network", f"name=a,mac-address={text}", "busybox") == f"--network mac-address {said}"
    )


@pytest.mark.parametrize("text", ["01:42:00:00:00:07", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"])
def test_a_mac_address_that_no_interface_can_have_is_refused(three, text):
    assert three.fails("create", "--mac-address", text, "busybox", code=125) == (
        f"--mac-address {text!r}: no interface can have this MAC address;"
        " expected six bytes such as 02:42:ac:11:00:02, the first one even"
    )


def test_a_mac_address_may_be_written_in_any_of_docker_s_ways(three):
    for text in ("02:42:AC:00:00:07", "02-42-ac-00-00-07", "0242.ac00.0007"):
        shown = three(
            "run", "--rm", "--network", "a", "--mac-address", text, "busybox", "cat", "/sys/class/net/eth0/address"
        )
        assert shown == "02:42:ac:00:00:07"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--network", "name=a,alais=x"], "unknown field 'alais' (did you mean alias?); expected NAME"),
        (["--network", "ip=10.80.0.7"], "--network 'ip=10.80.0.7': no name; expected NAME or name=NAME,"),
        (["--network", "name=a,gw-priority=x"], "gw-priority 'x' is not a whole number"),
        (["--network", "a", "--network", "a"], "--network a is given twice"),
        (["--network", "host", "--network", "a"], "a container cannot be connected to host: network host shares"),
        (["--network", "a", "--link", ":x"], "--link ':x': no container, or no alias; expected NAME[:ALIAS]"),
        (["--network", "container:app", "--expose", "80"], "conflicting options: --expose and --network container:app"),
        (
            ["--network", "name=a,driver-opt=com.docker.network.endpoint.sysctls=net.ipv4.ip_forward=1"],
            "'net.ipv4.ip_forward=1' is not a setting such as net.ipv4.conf.IFNAME.log_martians=1",
        ),
    ],
)  # fmt: skip
def test_bad_words_about_a_place_are_refused(three, words, text):
    assert text in three.fails("create", *words, "busybox", code=125)


def test_a_container_that_shares_anothers_network_is_on_no_other(three):
    box = three.detached("--name", "box")
    assert three.fails("create", "--network", "container:box", "--network", "a", "busybox", code=125) == (
        f"a container cannot be connected to a: network container:{box[:20]} shares or isolates its namespace whole"
    )


def test_a_feature_that_the_kernel_lacks_is_named_when_a_network_is_made(transom, tmp_path):
    probe = Ipvlan(options=NoOptions(), root=tmp_path, run=tmp_path).probe()
    if probe.usable:
        pytest.skip("the kernel has ipvlan")
    assert transom.fails("network", "create", "-d", "ipvlan", "n", code=125) == (
        f"network driver ipvlan cannot run on this host: {probe.reason}"
    )
    assert "n" not in transom("network", "ls", "--format", "{{.Name}}").split()


def test_a_network_has_ipv6_alone_where_ipv4_is_switched_off(transom):
    transom("network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd07::/64", "six")
    transom("run", "-d", "--name", "app", "--network", "six", "busybox", "sleep", "99")
    shown = transom("exec", "app", "ip", "-o", "address", "show", "dev", "eth0")
    assert "fd07::2/64" in shown
    assert "inet " not in shown
    assert "via fd07::1" in routes(transom, "app", "-6")
    bridge = f"br-{transom.inspect('six', '--type', 'network')['Id'][:12]}"
    listed = inside(transom.netns, subprocess.check_output, ["ip", "-o", "-4", "address", "show", "dev", bridge])
    assert listed == b""
    place = transom.inspect("app")["NetworkSettings"]["Networks"]["six"]
    assert (place["IPAddress"], place["Gateway"]) == ("", "")
    assert "10." not in transom("exec", "app", "cat", "/etc/hosts")
    assert transom.fails("network", "create", "--ipv4=false", "none4", code=125) == (
        "--ipv4=false leaves the network without addresses: add --ipv6"
    )


def test_a_network_with_ipv6_gets_a_subnet_of_the_local_range(transom):
    transom("network", "create", "--ipv6", "both")
    pools = [ip_network(c["Subnet"]) for c in transom.inspect("both", "--type", "network")["IPAM"]["Config"]]
    (six,) = [pool for pool in pools if pool.version == 6]
    assert len(pools) == 2
    assert six.subnet_of(ip_network("fd00::/8"))
    assert six.prefixlen == 64
    for name in ("one", "two"):
        transom.detached("--name", name, network="both")
    address = transom.inspect("two")["NetworkSettings"]["Networks"]["both"]["GlobalIPv6Address"]
    assert "1 packets received" in transom("exec", "one", "ping", "-6", "-c1", "-W9", address)


def test_ports_are_said_to_be_published_in_vain_on_the_host(transom):
    done = transom.call("create", "--network", "host", "-p", "80:80", "busybox")
    assert done.err == "WARNING: published ports are discarded: network host does not publish any\n"


def test_published_ports_answer_at_both_loopbacks(transom):
    transom("network", "create", "--ipv6", "both")
    words = ["--network", "both", "-p", "8080:80", "-p", "[::1]:8081:80"]
    transom("run", "-d", "--name", "app", *words, "busybox", "httpd", "-f")
    assert transom("port", "app").splitlines() == [
        "80/tcp -> 0.0.0.0:8080", "80/tcp -> [::]:8080", "80/tcp -> [::1]:8081"
    ]  # fmt: skip
    for place in (("127.0.0.1", 8080), ("::1", 8080), ("::1", 8081)):
        with inside(transom.netns, socket.create_connection, place, timeout=60) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b" 404 " in client.recv(99)
    with pytest.raises(ConnectionRefusedError):
        inside(transom.netns, socket.create_connection, ("127.0.0.1", 8081), timeout=60)


# Another container's network


def test_a_container_that_shares_anothers_network_has_its_host_name_and_files(net):
    net.detached("--name", "web", "--hostname", "shop", "--add-host", "printer:192.0.2.7", network="net")
    assert net("run", "--rm", "--network", "container:web", "busybox", "hostname") == "shop"
    for name in ("hosts", "resolv.conf", "hostname"):
        shown = net("run", "--rm", "--network", "container:web", "busybox", "cat", f"/etc/{name}")
        assert shown == net("exec", "web", "cat", f"/etc/{name}")
    assert "192.0.2.7\tprinter" in net("exec", "web", "cat", "/etc/hosts")


def test_containers_that_share_a_network_share_its_ports(net):
    net.detached("--name", "web", "-p", "8080:80", network="net")
    net.detached("--name", "joined", command=("httpd", "-f"), network="container:web")
    net.wait_until(lambda: "wget: server returned error" in net.call(
        "exec", "web", "wget", "-O-", "http://127.0.0.1/").err)  # fmt: skip
    inside(net.netns, socket.create_connection, ("127.0.0.1", 8080), timeout=60).close()
    net("rm", "-f", "joined")
    assert "refused" in net.call("exec", "web", "wget", "-O-", "http://127.0.0.1/").err


def test_what_becomes_of_the_other_container_is_said_in_a_line(net):
    web = net.detached("--name", "web", network="net")
    net.detached("--name", "joined", network="container:web")
    net("restart", "-t", "0", "web")
    assert "eth0" not in net("exec", "joined", "ip", "link"), "the network that it shared went with the first run"
    for _ in range(2):  # whoever joined comes and goes, and the network stays the other's
        net("restart", "-t", "0", "joined")
        assert net("exec", "joined", "ip", "-o", "addr") == net("exec", "web", "ip", "-o", "addr")
    assert "eth0" in net("exec", "joined", "ip", "link")
    net("stop", "-t", "0", "web", "joined")
    assert net.fails("start", "joined") == (
        "cannot join the network of container web: it is not running; start it first"
    )
    net("rm", "web")
    assert net.fails("start", "joined") == (
        f"cannot join the network of container {web[:12]}: it has been removed;"
        " make joined again with --network container:ANOTHER"
    )
    assert net("rm", "joined") == "joined"


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["-p", "80:80"], "--publish"),
        (["-P"], "--publish"),
        (["--hostname", "other"], "--hostname"),
        (["--dns", "192.0.2.1"], "--dns"),
        (["--add-host", "a:192.0.2.1"], "--add-host"),
        (["--network-alias", "other"], "--network-alias"),
        (["--ip", "10.77.0.9"], "--ip"),
        (["--mac-address", "02:42:00:00:00:07"], "--mac-address"),
        (["--link", "web"], "--link"),
    ],
)
def test_what_the_other_container_decides_is_refused(net, words, flag):
    web = net.detached("--name", "web", network="net")
    said = net.fails("create", "--network", "container:web", *words, "busybox", code=125)
    assert said.startswith(f"conflicting options: {flag} and --network container:{web[:10]}")


def test_what_needs_an_address_is_refused_where_there_is_none(net):
    for network in ("host", "none"):
        for words in (["--ip", "10.77.0.9"], ["--mac-address", "02:42:00:00:00:07"], ["--network-alias", "x"]):
            assert net.fails("create", "--network", network, *words, "busybox", code=125) == (
                f"{words[0]} needs a network with addresses: {network} has none"
            )
    assert net.fails("create", "--network", "container:", "busybox", code=125) == (
        "--network container: names no container; write --network container:NAME"
    )


def test_the_host_network_has_the_hosts_name_and_a_lone_container_its_own(transom):

    assert transom("run", "--rm", "--network", "host", "busybox", "hostname") == os.uname().nodename
    assert transom("run", "--rm", "--network", "host", "--hostname", "mine", "busybox", "hostname") == "mine"
    inside(transom.netns, subprocess.check_call, ["ip", "link", "add", "mine0", "type", "bridge"])
    assert "mine0" in transom("run", "--rm", "--network", "host", "busybox", "ip", "-o", "link")
    shown = transom("run", "--rm", "--network", "none", "busybox", "ip", "-o", "link")
    assert [line.split(":")[1].strip() for line in shown.splitlines()] == ["lo"]
    assert "UP" in shown
    assert transom("run", "--rm", "--network", "none", "busybox", "ping", "-c1", "127.0.0.1").startswith("PING")
    inside(transom.netns, subprocess.check_call, ["ip", "link", "delete", "mine0"])


def test_without_ipv6_by_a_setting_a_container_goes_on_with_ipv4_alone(transom):
    transom("network", "create", "--ipv6", "--subnet", "10.78.0.0/24", "--subnet", "fd78::/64", "both")
    setting = "net.ipv6.conf.all.disable_ipv6=1"
    transom.detached("--name", "web", "--sysctl", setting, network="both")
    place = transom.inspect("web")["NetworkSettings"]["Networks"]["both"]
    assert (place["IPAddress"], place["GlobalIPv6Address"], place["IPv6Gateway"]) == ("10.78.0.2", "", "")
    assert "fd78" not in transom("exec", "web", "ip", "addr")
    assert transom("run", "--rm", "--network", "both", "busybox", "ping", "-c1", "-W9", "web").startswith("PING web")
    option = "com.docker.network.endpoint.sysctls=net.ipv6.conf.IFNAME.disable_ipv6=1"
    transom.detached("--name", "one", network=f"name=both,driver-opt={option}")
    assert transom.inspect("one")["NetworkSettings"]["Networks"]["both"]["GlobalIPv6Address"] == ""
    # fd78::2 was that of the container that asked, and is not given again at once; the two before took none.
    transom.detached("--name", "six", network="both")
    assert transom.inspect("six")["NetworkSettings"]["Networks"]["both"]["GlobalIPv6Address"] == "fd78::3"
    transom("network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd79::/64", "only6")
    assert transom.fails("run", "--name", "x6", "--sysctl", setting, "--network", "only6", "busybox", code=125) == (
        "network only6 has IPv6 alone, which container x6 has switched off by a setting"
    )


def test_link_local_addresses_come_besides_the_containers_own(net):
    words = ["--link-local-ip", "169.254.7.7", "--link-local-ip", "fe80::77"]
    net.detached("--name", "web", *words, network="net")
    place = net.inspect("web")["NetworkSettings"]["Networks"]["net"]
    assert (place["IPAddress"], place["IPAMConfig"]) == ("10.77.0.2", {"LinkLocalIPs": ["169.254.7.7", "fe80::77"]})
    shown = net("exec", "web", "ip", "addr")
    assert "169.254.7.7/16" in shown
    assert "fe80::77/64" in shown
    net("network", "disconnect", "net", "web")
    net("network", "connect", "--link-local-ip", "169.254.7.8", "net", "web")
    shown = net("exec", "web", "ip", "addr")
    assert ("169.254.7.7/" in shown, "169.254.7.8/16" in shown) == (False, True)
    assert net.fails("network", "connect", "--link-local-ip", "10.0.0.1", "net", "web", code=125) == (
        "--link-local-ip '10.0.0.1': not a link-local address; expected one of 169.254.0.0/16 or fe80::/64"
    )


def waits_for_a_lock(process):
    with open("/proc/locks") as file:
        return any("->" in line and f" {process.pid} " in line for line in file)


def test_a_network_that_is_being_removed_is_joined_no_more(net, monkeypatch):
    net.detached("--name", "web", network="bridge")
    engine, joining = net.engine(), []
    check = engine.networks._refuse_removal

    def pause(record):
        check(record)
        joining.append(net.popen("network", "connect", "net", "web"))
        net.wait_until(lambda: joining[0].poll() is not None or waits_for_a_lock(joining[0]))

    monkeypatch.setattr(engine.networks, "_refuse_removal", pause)
    inside(net.netns, engine.networks.remove, "net")
    engine.close()
    _, err = joining[0].communicate(timeout=60)
    assert (joining[0].returncode, err) == (125, b"transom: no such network: net; networks here: bridge\n")
    assert addresses(net, "web").keys() == {"bridge"}
    assert "10.77." not in inside(net.netns, subprocess.check_output, ["ip", "addr"], text=True)


def test_of_a_removal_and_joins_at_once_either_wins_wholly(net):
    names = ["one", "two", "three"]
    for name in names:
        net.detached("--name", name, network="bridge")
    for turn in range(3):
        words = [["connect", "net", name] for name in names]
        words.insert(2 * turn, ["rm", "net"])
        tries = {tuple(w): net.popen("network", *w) for w in words}
        ends = {w: (p.communicate(timeout=60)[1].decode(), p.returncode) for w, p in tries.items()}
        said, removal = ends.pop(("rm", "net"))
        joined = {name for _, _, name in ends if "net" in addresses(net, name)}
        if removal == 0:
            assert joined == set()
            assert all(text.startswith("transom: no such network: net") for text, _ in ends.values()), ends
            assert "10.77." not in inside(net.netns, subprocess.check_output, ["ip", "addr"], text=True)
            net("network", "create", "--subnet", "10.77.0.0/24", "net")
        else:
            assert said.startswith("transom: network net has active endpoints: "), said
            assert joined == {*names}, ends
            for name in joined:
                net("network", "disconnect", "net", name)


# A host that does not let it


def test_what_the_kernel_refuses_is_said_with_the_missing_capability(net):
    net.detached("--name", "web", network="net")
    (net.program, whole) = (["setpriv", "--bounding-set", "-net_admin", *net.program], net.program)
    lacks = "Operation not permitted; the engine lacks CAP_NET_ADMIN: see `transom doctor`"
    assert net.fails("network", "create", "more", code=125) == (
        "network driver bridge cannot run on this host: the kernel does not let this process have bridges "
        f"(CONFIG_BRIDGE): {lacks}"
    )
    assert net.fails("run", "--rm", "--network", "net", "busybox", code=125).endswith(lacks)
    assert net.fails("network", "rm", "net", "-f", code=1).startswith("network net has active endpoints: web; ")
    shown = net.call("doctor").out
    assert "CAP_NET_ADMIN is missing: no interface can be made: use --network host" in shown
    assert re.search("networks of the driver bridge were not judged: .*Operation not permitted", shown), shown
    assert net("run", "--rm", "--network", "host", "busybox", "echo", "hello") == "hello"
    net.program = whole
    assert net("exec", "web", "cat", "/sys/class/net/eth0/operstate") == "up"
    assert net("network", "ls", "-q", "-f", "name=more") == ""


def test_a_setting_that_cannot_be_written_is_named_and_nothing_is_left(net):
    before = inside(net.netns, subprocess.check_output, ["ip", "-o", "link"], text=True)
    script = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$0" "$@"'
    (net.program, whole) = (["unshare", "-m", "sh", "-c", script, *net.program], net.program)
    said = net.fails("network", "create", "more", code=125)
    assert said.startswith("network bridge: create_network more failed: Read-only file system (/proc/sys/net/ip")
    net.program = whole
    assert net("network", "ls", "-q", "-f", "name=more") == ""
    assert inside(net.netns, subprocess.check_output, ["ip", "-o", "link"], text=True) == before


def test_a_full_disk_is_said_to_be_full(net, tmp_path):
    (tmp_path / "full").mkdir()
    net.env["TRANSOM_DATA_ROOT"] = str(tmp_path / "full")
    # In a mount namespace of its own; what fills it is bounded, should nothing be mounted there.
    script = """mount -t tmpfs -o size=3m tmpfs "$TRANSOM_DATA_ROOT" && "$0" network ls -q >/dev/null || exit 9
        dd if=/dev/zero of="$TRANSOM_DATA_ROOT/fill" bs=64k count=64 2>/dev/null; exec "$0" "$@"
    """
    (net.program, whole) = (["unshare", "-m", "sh", "-c", script, *net.program], net.program)
    assert net.fails("network", "create", "more", code=125) == (
        "the engine's records below its data root cannot be kept: database or disk is full; see that file system (df)"
    )
    net.program, net.env["TRANSOM_DATA_ROOT"] = whole, str(net.data)
