"""macvlan and ipvlan by the command: containers on the network of an interface of the host, and a neighbour on it.

Few kernels of hosts have ipvlan and VLAN interfaces; ``make test-vm`` runs those cases in a guest.
"""

import json
import os
import signal
import socket
import subprocess
from functools import partial

import pytest

from transom.services.netns import create, inside
from transom_conformance.network import UPLINK, dhcp_server, ip_batch, ip_json, talk, unreachable
from transom_conformance.network.dhcp import ADVERTISED, ROUTER, SERVER

NETWORK = "none"
NEIGHBOUR, HOST = "10.88.1.200", "10.88.1.254"
SUBNET = ("--subnet", "10.88.1.0/24")


class Lan:
    """The world's host with an interface, `UPLINK`, and a neighbour at the other end of it."""

    def __init__(self, world):
        self.world, self.transom, self.neighbour = world, world.transom, create()
        self._open, self._servers = [self.neighbour], []
        end = f"/proc/{os.getpid()}/fd/{self.neighbour}"
        self.host(f"link add {UPLINK} type veth peer name lan0 netns {end}", f"link set {UPLINK} up")
        inside(self.neighbour, ip_batch, f"address add {NEIGHBOUR}/24 dev lan0", "link set lan0 up")

    def host(self, *commands):
        inside(self.transom.netns, ip_batch, *commands)

    def links(self):
        """Return the host's interfaces by name, each with its other names."""
        return {link["ifname"]: link.get("altnames", []) for link in inside(self.transom.netns, ip_json, "link")}

    def network(self, name, *words, driver="macvlan", parent=UPLINK):
        return self.transom("network", "create", "-d", driver, "-o", f"parent={parent}", *words, name)

    def run(self, name, *words, network="lan"):
        """Run a container and return its address on the network."""
        self.transom.detached("--name", name, *words, network=network)
        return self.address(name, network)

    def address(self, name, network="lan"):
        return self.transom.inspect(name)["NetworkSettings"]["Networks"][network]["IPAddress"]

    def netns(self, name):
        """Return a descriptor of a running container's namespace."""
        self._open.append(os.open(f"/proc/{self.transom.inspect(name)['State']['Pid']}/ns/net", os.O_RDONLY))
        return self._open[-1]

    def listen(self, netns):
        """Open a server in a namespace."""
        self._servers.append(inside(netns, socket.create_server, ("", 0)))
        return self._servers[-1]

    def listen_at(self, netns, address):
        """Open a server in a namespace at an IPv6 address."""
        self._servers.append(inside(netns, socket.create_server, (address, 0), family=socket.AF_INET6))
        return self._servers[-1]

    def supervisor(self, name):
        """Return the process that watches over a container."""
        engine = self.transom.engine()
        try:
            return engine.state.container(self.transom.inspect(name)["Id"]).shim_pid
        finally:
            engine.close()

    def findings(self, *words):
        """Return what doctor says of what crashes left, whatever it says of the host: by subject."""
        report = json.loads(self.transom.call("doctor", "--format", "json", *words).out)
        return {finding["Subject"]: finding["Text"] for finding in report["Findings"]}

    def repair(self):
        """Have doctor put right what a crash left, and see that it finds nothing more."""
        self.findings("--repair")
        assert self.findings() == {}

    def close(self):
        """Remove what is left; nothing of the networks may stay on the host."""
        names = self.transom("ps", "-aq").split()
        if names:
            self.transom("rm", "-f", *names)
        networks = self.transom("network", "ls", "-q", "-f", "type=custom").split()
        if networks:
            self.transom("network", "rm", *networks)
        left = self.links()
        self.host(f"link delete {UPLINK}")
        for server in self._servers:
            server.close()
        for fd in self._open:
            os.close(fd)
        assert left == {"lo": [], UPLINK: []}


@pytest.fixture
def lan(world):
    lan = Lan(world)
    yield lan
    lan.close()


@pytest.fixture(params=["macvlan", "ipvlan"])
def driver(request, world):
    """A driver that this kernel can run."""
    need(world, request.param)
    return request.param


def need(world, driver):
    probe = probed(world, driver)
    if not probe.usable:
        pytest.skip(probe.reason)


def probed(world, driver):
    engine = world.transom.engine()
    try:
        return inside(world.transom.netns, engine.network_driver(driver).probe)
    finally:
        engine.close()


def test_containers_meet_each_other_and_the_lan(lan, driver):
    """By address and by name; addresses are of the range but for those that are excluded."""
    words = ("--ip-range", "10.88.1.64/26", "--gateway", "10.88.1.1")
    lan.network("lan", *SUBNET, *words, "--aux-address", "a=10.88.1.64", "--aux-address", "b=10.88.1.65", driver=driver)
    one, two = lan.run("one"), lan.run("two")
    assert {one, two} == {"10.88.1.66", "10.88.1.67"}
    assert lan.transom("exec", "two", "ping", "-c", "1", "-w", "30", "one")
    server = lan.listen(lan.neighbour)
    assert [talk(lan.netns(name), server, NEIGHBOUR) for name in ("one", "two")] == [one, two]
    assert talk(lan.neighbour, lan.listen(lan.netns("one")), one) == NEIGHBOUR
    assert "default via 10.88.1.1" in lan.transom("exec", "one", "ip", "route")
    assert unreachable(lan.transom.netns, lan.listen(lan.netns("one")), one)  # no frame passes from a parent to a child


def test_a_running_container_joins_and_leaves_and_comes_back_when_it_is_started_again(lan, driver):
    lan.network("lan", *SUBNET, driver=driver)
    lan.transom("network", "create", "-d", driver, "--subnet", "10.88.2.0/24", "inner")
    lan.run("one", network="inner")
    lan.transom("network", "connect", "--ip", "10.88.1.77", "lan", "one")
    server = lan.listen(lan.neighbour)
    assert talk(lan.netns("one"), server, NEIGHBOUR) == "10.88.1.77"
    lan.transom("restart", "-t", "0", "one")
    assert talk(lan.netns("one"), server, NEIGHBOUR) == "10.88.1.77"
    lan.transom("network", "disconnect", "lan", "one")
    assert "10.88.1.77" not in lan.transom("exec", "one", "ip", "address")
    lan.transom("network", "rm", "lan")
    assert lan.links()[UPLINK] == []


@pytest.mark.parametrize("mode", ["l3", "l3s"])
def test_with_ipvlan_in_mode_l3_the_host_routes(lan, mode):
    """The neighbour needs a route to the containers by the host; they need none but the link."""
    need(lan.world, "ipvlan")
    lan.host(f"address add {HOST}/24 dev {UPLINK}")
    inside(lan.neighbour, ip_batch, f"route add 10.88.3.0/24 via {HOST}")
    lan.network("lan", "--subnet", "10.88.3.0/24", "-o", f"ipvlan_mode={mode}", driver="ipvlan")
    one = lan.run("one")
    assert talk(lan.netns("one"), lan.listen(lan.neighbour), NEIGHBOUR) == one
    assert talk(lan.neighbour, lan.listen(lan.netns("one")), one) == NEIGHBOUR
    assert "default dev eth0" in lan.transom("exec", "one", "ip", "route")


def test_a_network_without_a_parent_leads_nowhere(lan, driver):
    lan.transom("network", "create", "-d", driver, "--internal", *SUBNET, "inner")
    one = lan.run("one", network="inner")
    lan.run("two", network="inner")
    assert talk(lan.netns("two"), lan.listen(lan.netns("one")), one) == lan.address("two", "inner")
    assert "default" not in lan.transom("exec", "one", "ip", "route")
    assert unreachable(lan.netns("one"), lan.listen(lan.neighbour), NEIGHBOUR)


def test_with_host_access_the_host_and_containers_meet(lan):
    lan.network("lan", *SUBNET, "--aux-address", f"host={HOST}", "-o", "host-access=true")
    one = lan.run("one")
    assert talk(lan.transom.netns, lan.listen(lan.netns("one")), one) == HOST
    assert talk(lan.netns("one"), lan.listen(lan.transom.netns), HOST) == one
    lan.transom("rm", "-f", "one")
    assert one not in lan.world.inside("ip", "route")


def test_a_vlan_interface_is_made_and_removed_on_demand(lan, driver):
    made = inside(
        lan.transom.netns, subprocess.run, ["ip", *f"link add link {UPLINK} name try type vlan id 9".split()],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        words = ("network", "create", "-d", driver, "-o", f"parent={UPLINK}.50", *SUBNET, "lan")
        assert f"no parent {UPLINK}.50 can be made: the kernel lacks VLANs (CONFIG_VLAN_8021Q)" in lan.transom.fails(
            *words, code=125
        )
        pytest.skip("the kernel has no 802.1q VLANs (CONFIG_VLAN_8021Q)")
    lan.host("link delete try")
    inside(
        lan.neighbour, ip_batch, "link add link lan0 name lan0.50 type vlan id 50", "link set lan0.50 up",
        "address add 10.88.2.200/24 dev lan0.50",
    )  # fmt: skip
    lan.network("lan", "--subnet", "10.88.2.0/24", driver=driver, parent=f"{UPLINK}.50")
    one, server = lan.run("one"), lan.listen(lan.neighbour)
    assert talk(lan.netns("one"), server, "10.88.2.200") == one
    lan.transom("stop", "-t", "0", "one")
    lan.host(f"link delete {UPLINK}.50")  # as by a restart of the host
    lan.transom("start", "one")
    assert talk(lan.netns("one"), server, "10.88.2.200") == lan.address("one")
    lan.transom("rm", "-f", "one")
    lan.transom("network", "rm", "lan")
    assert f"{UPLINK}.50" not in lan.links()


def test_what_a_killed_supervisor_leaves_is_put_right(lan, driver):
    words = ("--aux-address", f"host={HOST}", "-o", "host-access=true") if driver == "macvlan" else ()
    lan.network("lan", *SUBNET, *words, driver=driver)
    one, server = lan.run("one"), lan.listen(lan.neighbour)
    os.kill(lan.supervisor("one"), signal.SIGKILL)
    lan.transom.wait_until(lambda: lan.world.listed() == {"one": "exited"})
    assert lan.address("one") == ""
    lan.repair()
    assert one not in lan.world.inside("ip", "route")
    lan.transom("start", "one")
    assert talk(lan.netns("one"), server, NEIGHBOUR) == lan.address("one")


def test_a_run_killed_at_any_moment_leaves_nothing_on_the_host(lan):
    """The command, with whatever it has started; at the latest doctor puts it right."""
    lan.network("lan", *SUBNET, "--aux-address", f"host={HOST}", "-o", "host-access=true")
    before = lan.world.inside("ip", "route")
    for seconds in (0.1, 0.25, 0.4):
        process = lan.transom.popen("run", "-d", "--name", "one", "--network", "lan", "busybox", "sleep", "1000")
        try:
            process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        lan.repair()
        if "one" in lan.world.listed():
            lan.transom("rm", "-f", "one")
        assert lan.world.inside("ip", "route") == before
        assert len(lan.links()[UPLINK]) == 1


def test_doctor_finds_what_was_spoiled_and_makes_it_whole(lan, driver):
    id = lan.network("lan", *SUBNET, driver=driver)
    one, server = lan.run("one"), lan.listen(lan.neighbour)
    (mark,) = lan.links()[UPLINK]
    inside(lan.netns("one"), ip_batch, "link delete eth0")
    lan.host(f"link property del dev {UPLINK} altname {mark}", f"link set {UPLINK} down")
    found = lan.findings()
    assert ({*found}, found["lan"].partition(" (")[0]) == ({"lan"}, f"parent {UPLINK} is down")
    lan.host(f"link set {UPLINK} up")
    lan.repair()
    assert (lan.links()[UPLINK], id in mark) == ([mark], True)
    assert talk(lan.netns("one"), server, NEIGHBOUR) == one


# DHCP


@pytest.fixture
def server(lan, tmp_path):
    """A DHCP and name server of the neighbour's."""
    options = (
        f"--dhcp-option=option:router,{SERVER}", f"--dhcp-option=option:dns-server,{SERVER}",
        "--dhcp-option=option:domain-search,example.test,corp.test", "--address=/printer.example.test/10.77.0.99",
    )  # fmt: skip
    with dhcp_server(lan.neighbour, "lan0", tmp_path / "journal", *options) as journal:
        yield journal


def resolv_conf(lan, name):
    lines = lan.transom("exec", name, "cat", "/etc/resolv.conf").splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines}


@pytest.mark.parametrize(("words", "ipam"), [("-o dhcp=true", "default"), ("--ipam-driver dhcp", "dhcp")])
def test_a_container_has_address_name_servers_and_search_domains_from_the_dhcp_server(lan, server, words, ipam):
    lan.network("lan", *words.split())
    (record,) = json.loads(lan.transom("network", "inspect", "lan"))
    assert (record["Options"]["dhcp"], record["IPAM"]["Driver"]) == ("true", ipam)
    one = lan.run("one")
    assert one.startswith("10.77.0.1")
    assert resolv_conf(lan, "one")["search"] == ["example.test", "corp.test"]
    assert "10.77.0.99" in lan.transom("exec", "one", "nslookup", "-type=a", "printer.example.test")
    assert f"default via {SERVER}" in lan.transom("exec", "one", "ip", "route")
    lan.run("two", "--dns", "192.0.2.53", "--dns-search", "mine.test")
    assert resolv_conf(lan, "two")["search"] == ["mine.test"]
    assert lan.transom.call("exec", "two", "nslookup", "-type=a", "printer.example.test").code != 0
    for _ in range(2):
        server.await_(f"DHCPACK(lan0) {one}", 2)
        lan.transom("restart", "-t", "0", "one")
        assert lan.address("one") == one
    lan.transom("stop", "-t", "0", "one")
    server.await_(f"DHCPRELEASE(lan0) {one}", 3)


def test_a_running_container_that_joins_a_network_with_dhcp_learns_and_forgets(lan, server):
    lan.network("lan", "-o", "dhcp=true")
    lan.transom("network", "create", "-d", "macvlan", "--subnet", "10.88.2.0/24", "inner")
    lan.run("one", network="inner")
    lan.transom("network", "connect", "lan", "one")
    address = lan.address("one")
    server.await_(f"DHCPACK(lan0) {address}", 2)  # the supervisor keeps it
    assert resolv_conf(lan, "one")["search"] == ["example.test", "corp.test"]
    assert "10.77.0.99" in lan.transom("exec", "one", "nslookup", "-type=a", "printer.example.test")
    lan.transom("network", "disconnect", "lan", "one")
    server.await_(f"DHCPRELEASE(lan0) {address}")
    assert resolv_conf(lan, "one").get("search") != ["example.test", "corp.test"]


def test_what_a_renewal_changes_counts_at_once_for_routes_names_and_what_inspect_shows(lan, tmp_path):
    """Another router, name server and search domain, while the container runs."""
    file = tmp_path / "options"

    def say(router, domain, address):
        file.write_text(f"option:router,{router}\noption:dns-server,{SERVER}\noption:domain-search,{domain}\n")
        return f"--dhcp-optsfile={file}", f"--address=/printer.test/{address}"

    with dhcp_server(lan.neighbour, "lan0", tmp_path / "one", *say(SERVER, "one.test", "10.77.0.98")) as server:
        lan.network("lan", "-o", "dhcp=true")
        one = lan.run("one")
        server.await_(f"DHCPACK(lan0) {one}", 2)
        assert resolv_conf(lan, "one")["search"] == ["one.test"]
    with dhcp_server(lan.neighbour, "lan0", tmp_path / "two", *say("10.77.0.4", "two.test", "10.77.0.99")):
        renew(lan)
        lan.transom.wait_until(lambda: resolv_conf(lan, "one")["search"] == ["two.test"])
        place = lan.transom.inspect("one")["NetworkSettings"]["Networks"]["lan"]
        assert (place["IPAddress"], place["Gateway"]) == (one, "10.77.0.4")
        assert "default via 10.77.0.4" in lan.transom("exec", "one", "ip", "route")
        assert "10.77.0.99" in lan.transom("exec", "one", "nslookup", "-type=a", "printer.test")


def renew(lan):
    """Have the client that keeps the one lease prolong it (udhcpc(8): SIGUSR1)."""
    (client,) = [pid for pid, words in lan.world.processes().items() if words.startswith("udhcpc")]
    os.kill(client, signal.SIGUSR1)


def test_a_container_that_lost_its_lease_has_no_address_on_record_and_its_names_follow_the_next(lan, tmp_path):
    """The server refuses to prolong it (DHCPNAK) and gives another one."""
    with dhcp_server(lan.neighbour, "lan0", tmp_path / "one") as server:
        lan.network("lan", "-o", "dhcp=true")
        one, two = lan.run("one"), lan.run("two", "--hostname", "two")
        server.await_("DHCPACK", 4)
    lan.transom("stop", "-t", "0", "two")
    with dhcp_server(lan.neighbour, "lan0", tmp_path / "two", pool="10.77.0.60,10.77.0.61"):
        lan.transom("start", "two")
        two = lan.address("two")
        assert two.startswith("10.77.0.6")
        (client,) = [pid for pid, words in lan.world.processes().items() if words.startswith("udhcpc") and one in words]
        os.kill(client, signal.SIGUSR1)
        lan.transom.wait_until(lambda: lan.address("one") in {"10.77.0.60", "10.77.0.61"} - {two})
        lan.transom.wait_until(lambda: lan.address("one") in lan.transom("exec", "two", "nslookup", "-type=a", "one"))
        assert lan.transom("exec", "two", "ping", "-c", "1", "-w", "30", "one")
        hosts = lan.transom("exec", "one", "cat", "/etc/hosts")
        assert (lan.address("one") in hosts, one in hosts) == (True, False)


def test_ipv6_addresses_come_from_routers_on_the_network(lan, tmp_path):
    """With IPv4 ones by DHCP, and alone; name servers that only routers know are asked."""
    lan.host(f"link set {UPLINK} addrgenmode none")
    words = (*ADVERTISED, f"--dhcp-option=option6:dns-server,[{ROUTER}]", "--address=/printer.test/fd77:1::99")
    with dhcp_server(lan.neighbour, "lan0", tmp_path / "journal", "--dhcp-option=option:dns-server", *words):
        lan.network("lan", "--ipam-driver", "dhcp", "--ipv6")
        lan.network("six", "--ipam-driver", "dhcp", "--ipv6", "--ipv4=false")
        (record,) = json.loads(lan.transom("network", "inspect", "lan"))
        assert [config["Subnet"] for config in record["IPAM"]["Config"]] == ["0.0.0.0/0", "::/0"]
        four = lan.run("one")
        place = lan.transom.inspect("one")["NetworkSettings"]["Networks"]["lan"]
        six = place["GlobalIPv6Address"]
        assert (four[:7], six[:8], place["GlobalIPv6PrefixLen"]) == ("10.77.0", "fd77:1::", 64)
        assert place["IPv6Gateway"].startswith("fe80:")
        server = lan.listen_at(lan.neighbour, ROUTER)
        assert talk(lan.netns("one"), server, ROUTER) == six
        assert "fd77:1::99" in lan.transom("exec", "one", "nslookup", "-type=aaaa", "printer.test")
        lan.run("two", network="six")
        place = lan.transom.inspect("two")["NetworkSettings"]["Networks"]["six"]
        assert (place["IPAddress"], place["GlobalIPv6Address"][:8]) == ("", "fd77:1::")
        for _ in range(2):
            lan.transom("restart", "-t", "0", "one")
            assert lan.transom.inspect("one")["NetworkSettings"]["Networks"]["lan"]["GlobalIPv6Address"] == six
        assert lan.findings() == {}


@pytest.mark.parametrize("pid", ["private", "host"])
def test_no_client_outlives_a_killed_supervisor_and_the_lease_is_had_again(lan, server, pid):
    lan.network("lan", "-o", "dhcp=true")
    one = lan.run("one", *(("--pid", "host") if pid == "host" else ()))
    server.await_(f"DHCPACK(lan0) {one}", 2)
    os.kill(lan.supervisor("one"), signal.SIGKILL)
    lan.transom.wait_until(lambda: lan.world.listed() == {"one": "exited"})
    lan.transom.wait_until(lambda: not any("udhcpc" in words for words in lan.world.processes().values()))
    lan.transom("start", "one")
    assert lan.address("one") == one


# Bad input


BAD = [
    (("-o", "parent=uplink1"), "network bad: no interface uplink1 on this host to be its parent (did you mean"),
    (("-o", "parent=lo"), "network bad: parent lo is the loopback, which can have no children"),
    (("-o", f"parent={UPLINK}.0"), f"network bad: 0 is no VLAN: they are 1 to 4094 ({UPLINK}.0)"),
    (("-o", f"parent={UPLINK}.4095"), f"network bad: 4095 is no VLAN: they are 1 to 4094 ({UPLINK}.4095)"),
    (("-o", "parent=sixteen-letters-"), "(from --opt): expected the name of an interface: 1 to 15"),
    (("-o", f"parent={UPLINK}", "--internal"), "network bad is internal: it has a parent of its own that leads"),
    (("-o", f"parent={UPLINK}", "-o", "com.docker.network.driver.mtu=9000"), "has an MTU of 1500 bytes: 9000 is"),
    (("-o", f"parent={UPLINK}", "--ip-range", "10.9.0.0/25"), "--ip-range 10.9.0.0/25: no matching subnet"),
    (("-o", f"parent={UPLINK}", "--aux-address", "a=10.9.0.1"), "--aux-address a=10.9.0.1: no matching subnet"),
    (("-o", f"parent={UPLINK}", "--aux-address", "a"), "--aux-address"),
    (("-o", "macvlan_mode=brigde"), "macvlan_mode"),
    (("-o", "ipvlan_mode=l2"), "ipvlan_mode"),
    (("-o", f"parent={UPLINK}", "-o", "dhcp=true"), "network bad: with dhcp=true the server has the subnet"),
    (("-o", "host-access=true", "-o", f"parent={UPLINK}"), "host-access needs an address for the host in 10.88"),
]


def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_made(lan):
    for words, text in BAD:
        said = lan.transom.fails("network", "create", "-d", "macvlan", *SUBNET, *words, "bad", code=125)
        assert text in said
    assert lan.links() == {"lo": [], UPLINK: []}
    assert lan.transom("network", "ls", "-q", "-f", "type=custom") == ""


def test_networks_that_do_not_go_together_on_a_parent_are_refused_with_the_other_one_named(lan):
    refused = partial(lan.transom.fails, "network", "create", "-o", f"parent={UPLINK}", "--subnet", "10.88.2.0/24")
    first = lan.network("lan", *SUBNET)
    named = f"(network {first[:12]})"
    assert refused("-d", "macvlan", "-o", "macvlan_mode=passthru", "bad", code=125) == (
        f"network bad: parent {UPLINK} cannot be used in mode passthru: passthru wants it alone {named}"
    )
    if probed(lan.world, "ipvlan").usable:
        assert refused("-d", "ipvlan", "bad", code=125) == (
            f"network bad: parent {UPLINK} cannot be used in mode l2-bridge: macvlan has it {named}"
        )


def test_networks_of_two_ipvlan_modes_on_a_parent_are_refused_with_the_other_one_named(lan):
    words = ("network", "create", "-d", "ipvlan", "-o", f"parent={UPLINK}")
    if not probed(lan.world, "ipvlan").usable:
        said = lan.transom.fails(*words, *SUBNET, "lan", code=125)
        assert "the kernel lacks ipvlan interfaces (CONFIG_IPVLAN)" in said
        return
    first = lan.transom(*words, "-o", "ipvlan_mode=l3", *SUBNET, "lan")
    assert lan.transom.fails(*words, "--subnet", "10.88.2.0/24", "bad", code=125) == (
        f"network bad: parent {UPLINK} cannot be used in mode l2-bridge: it is in mode l3-bridge (network {first[:12]})"
    )


def test_in_passthru_mode_a_second_container_is_refused(lan):
    lan.network("lan", *SUBNET, "-o", "macvlan_mode=passthru")
    lan.run("one")
    said = lan.transom.fails("run", "-d", "--name", "two", "--network", "lan", "busybox", "true", code=125)
    assert said.endswith("in mode passthru: somebody else has it (Invalid argument)") or "somebody else has it" in said


def test_a_parent_that_is_gone_is_said_when_a_container_starts(lan):
    lan.host("link add vx1 type veth peer name vx2", "link set vx1 up", "link set vx2 up")
    lan.network("lan", *SUBNET, parent="vx1")
    lan.host("link delete vx1")
    said = lan.transom.fails("run", "-d", "--name", "one", "--network", "lan", "busybox", "true", code=125)
    assert said.startswith("network lan: no interface vx1 on this host to be its parent; here are ")


BAD_DHCP = [
    (
        ("-d", "bridge", "--ipam-driver", "dhcp"),
        ("--ipam-driver dhcp: network driver bridge takes no addresses by DHCP; those that do: macvlan"),
    ),
    (("-d", "macvlan", "--ipam-driver", "dhpc"), "--ipam-driver dhpc: there are default, dhcp"),
    (("-d", "macvlan", "--ipam-driver", "dhcp"), "dhcp=true needs a parent, whose network has the DHCP server"),
]


def test_what_dhcp_cannot_give_is_refused_in_one_line(lan):
    for words, text in BAD_DHCP:
        assert text in lan.transom.fails("network", "create", *words, "bad", code=125)
    assert lan.links() == {"lo": [], UPLINK: []}
