"""Several hosts: what only they show.

One group of cases, as they share the hosts; each case has its own network, and what it stops it starts again.
"""

import os
import socket
import subprocess
import time
from functools import partial

import msgspec
import pytest

from transom.contract.network import Endpoint, Network, Subnet
from transom.drivers import Drivers
from transom.errors import ConfigError, Conflict, DriverError, NotFound
from transom.services.netns import inside
from transom_conformance.network import ip_batch, ip_json, together
from transom_network_overlay import OverlayOptions, following
from transom_network_overlay.examples import await_etcd
from transom_network_overlay.store import Known, Peer, Store


def test_all_reach_all_by_both_families_and_nothing_is_flooded(world):
    """K10, K12: three hosts, six containers; an address that nobody has is asked for as well."""
    network = world.network(subnets=(Subnet(pool="10.201.0.0/24"), Subnet(pool="fd01:201::/64")))
    containers = [world.join(number % 3, network) for number in range(6)]
    first = containers[0]
    world.eventually(
        lambda: all(first.driver.lookup(network=network, name=c.endpoint.names[0]) for c in containers[1::3])
    )
    frames = world.frames()
    for one in containers:
        for other in containers:
            if one is not other:
                world.eventually(lambda one=one, other=other: one.reaches(other))
                world.eventually(
                    lambda one=one, other=other: one.reaches(other, other.endpoint.addresses[1].partition("/")[0])
                )
    assert not first.reaches(containers[1], "10.201.0.200", seconds=0.5)
    one, many = frames.count()
    assert one > 0
    assert many == 0


def test_a_host_takes_only_its_own_containers_for_its_own(world):
    """However it is connected with the others: namespaces are numbered on the way to the containers in them."""
    network = world.network()
    one, two = world.join(0, network), world.join(1, network)
    place = f"/proc/{os.getpid()}/fd/{one.netns}"
    inside(world.hosts[0].netns, ip_batch, f"link add way0 type veth peer name way1 netns {place}")
    driver = world.hosts[1].driver()
    for _ in range(3):  # by the switch to the other host, and from there to its container
        assert driver.owned().endpoints == {two.endpoint.id}
    nameless = {"network": Network(id="", name=""), "endpoint": Endpoint(id=one.endpoint.id, container="")}
    driver.detach(**nameless)
    assert [key for key in world.cluster.records() if key.endswith(one.endpoint.id)]
    world.hosts[0].driver().detach(**nameless)
    assert not [key for key in world.cluster.records() if key.endswith(one.endpoint.id)]


def test_names_are_known_on_the_other_hosts_and_forgotten_with_their_containers(world):
    """D1, D6: all addresses of a name that several have; those on the host itself are the engine's."""
    network = world.network()
    one = world.join(0, network, names=("web", "alias"))
    two, three = world.join(1, network, names=("db", "alias")), world.join(2, network, names=("alias",))
    lookup = partial(one.driver.lookup, network=network)
    world.eventually(lambda: set(lookup(name="alias")) == {two.address, three.address})
    assert lookup(name="db") == (two.address,)
    assert lookup(name="web") == lookup(name="nobody") == ()
    two.leave()
    world.eventually(lambda: lookup(name="db") == ())
    assert lookup(name="alias") == (three.address,)


def test_a_name_is_gone_from_the_other_hosts_within_a_second_and_its_address_has_the_next_name_alone(world):
    """D6: the best of several, as hosts are busy."""
    network = world.network()
    one, times = world.join(0, network), []
    lookup = partial(one.driver.lookup, network=network)
    leaving = world.join(1, network, names=("name0",))
    for turn in range(5):
        world.eventually(lambda turn=turn: lookup(name=f"name{turn}"))
        addresses, begun = leaving.endpoint.addresses, time.monotonic()
        leaving.leave()
        world.eventually(lambda turn=turn: lookup(name=f"name{turn}") == ())
        times.append(time.monotonic() - begun)
        leaving = world.join(2, network, names=(f"name{turn + 1}",), addresses=addresses, static=True)
        world.eventually(lambda turn=turn: lookup(name=f"name{turn + 1}"))
        assert lookup(name=f"name{turn + 1}") == (leaving.address,)
        assert lookup(name=f"name{turn}") == ()
        if times[-1] < 1.0:
            break
    assert min(times) < 1.0, times


def test_a_container_that_moves_is_reached_at_its_new_host_in_less_than_a_second(world):
    """K10: with the same address; the best of several moves, as hosts are busy."""
    network = world.network()
    client = world.join(0, network)
    moving = world.join(1, network, names=("moving",))
    world.eventually(lambda: client.reaches(moving))
    times = []
    for turn in range(5):
        address = moving.endpoint.addresses
        moving.leave()
        moving = world.join(2 - turn % 2, network, names=("moving",), addresses=address, static=True)
        assert moving.endpoint.addresses == address
        begun = time.monotonic()
        world.eventually(lambda moving=moving: client.reaches(moving, seconds=0.3))
        times.append(time.monotonic() - begun)
        if times[-1] < 1.0:
            break
    assert min(times) < 1.0, times


def test_a_new_container_is_reached_from_the_others_in_less_than_a_second(world):
    """K10: at its first attempt the host that watches has heard of it; the best of several, as hosts are busy."""
    network = world.network()
    client = world.join(0, network)
    times = []
    for turn in range(5):
        new = world.join(1 + turn % 2, network)
        begun = time.monotonic()
        world.eventually(lambda new=new: client.reaches(new, seconds=0.3))
        times.append(time.monotonic() - begun)
        if times[-1] < 1.0:
            break
    assert min(times) < 1.0, times


def test_one_member_of_etcd_less_is_not_noticed(world):
    """K11: also by those who were connected to it."""
    network = world.network()
    one, two = world.join(0, network), world.join(1, network)
    world.hosts[0].stop_member()
    try:
        three = world.join(2, network, names=("late",))
        for container in (one, two):
            world.eventually(lambda container=container: container.reaches(three))
        world.eventually(lambda: one.driver.lookup(network=network, name="late") == (three.address,))
    finally:
        world.hosts[0].start_member()
        inside(world.hosts[0].netns, await_etcd, world.hosts[0].url)


def test_without_etcd_what_works_goes_on_and_everything_is_caught_up_with_later(world):
    """K11: traffic, names and leaving go on; a new network, address or host is refused with the reason."""
    network = world.network()
    one, two, gone = world.join(0, network), world.join(1, network, names=("two",)), world.join(2, network)
    third = world.join(2, network)
    for container in (two, gone):
        world.eventually(lambda container=container: one.reaches(container))
    world.cluster.stop()
    try:
        driver = world.hosts[0].driver()
        with pytest.raises(DriverError, match=r"etcd cannot be reached \(http://10.99.0.1:2379: .*refused") as caught:
            world.network(driver=driver)
        assert "networks that are there go on; make it later" in str(caught.value)
        assert "\n" not in str(caught.value)
        with pytest.raises(DriverError, match="what runs goes on; try again when it is back"):
            driver.allocate(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))
        with pytest.raises(DriverError, match="etcd cannot be reached"):
            driver.networks()
        driver.create_network(network=network)  # which is there
        assert one.reaches(two, seconds=10)
        assert two.reaches(one, seconds=10)
        assert third.reaches(one, seconds=10)
        assert one.driver.lookup(network=network, name="two") == (two.address,)
        gone.leave()
        # Longer than a host's lease lasts: nobody is taken for dead.
        time.sleep(3)
        assert one.reaches(two, seconds=10)
    finally:
        world.cluster.start()
    late = world.join(1, network)
    for container in (one, two, third):
        world.eventually(lambda container=container: container.reaches(late))
    world.eventually(lambda: not [key for key in world.cluster.records() if key.endswith(gone.endpoint.id)])
    assert one.reaches(two, seconds=10)


def test_a_host_that_is_cut_off_goes_on_by_itself_and_catches_up(world):
    """K11: within the grace nothing of it is removed, and what happened meanwhile is learned at once."""
    network = world.network()
    one, leaving = world.join(0, network), world.join(1, network, names=("leaving",))
    two, three = world.join(2, network), world.join(2, network)
    world.eventually(lambda: two.reaches(leaving))
    world.hosts[2].cable("down")
    try:
        leaving.leave()
        late = world.join(1, network, names=("late",))
        assert two.reaches(three, seconds=10)
        time.sleep(3)  # longer than the lease
        ids = {two.endpoint.id, three.endpoint.id}
        assert ids <= {key.rpartition("/")[2] for key in world.cluster.records()}
    finally:
        world.hosts[2].cable("up")
    world.eventually(lambda: two.reaches(late))
    world.eventually(lambda: one.reaches(three))
    world.eventually(lambda: two.driver.lookup(network=network, name="leaving") == ())


def test_a_host_that_is_gone_for_long_is_forgotten_and_may_come_back(world):
    """Its endpoints and addresses are removed after the grace; when it is heard of again they are recorded anew."""
    network = world.network()
    one = world.join(0, network, driver=world.hosts[0].driver(grace="1s"))
    lost = world.join(2, network, names=("lost",))
    alive = world.join(1, network, names=("alive",))
    world.eventually(lambda: one.reaches(lost))
    lost.kill_watch()
    recorded = lambda: [key for key in world.cluster.records() if "/ep/" in key or "/ipam/" in key]  # noqa: E731
    world.eventually(lambda: len(recorded()) == 4)
    world.eventually(lambda: one.driver.lookup(network=network, name="lost") == ())
    assert one.reaches(alive, seconds=10)
    lost.watch()
    world.eventually(lambda: one.reaches(lost))
    assert len(recorded()) == 6


def test_after_a_reboot_what_a_host_had_is_removed_at_once(world, tmp_path):
    """Z5: by the host itself, at its first word; what the other hosts have stays."""
    network = world.network()
    one = world.join(0, network)
    two = world.join(1, network, names=("two",), watch=False)
    world.eventually(lambda: one.driver.lookup(network=network, name="two"))
    boot = tmp_path / "boot_id"
    boot.write_text("another boot\n")
    driver = world.hosts[1].driver()
    driver.driver.boot_id = str(boot)
    driver.allocate(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))
    world.eventually(lambda: one.driver.lookup(network=network, name="two") == ())
    left = [key.rpartition("/")[2] for key in world.cluster.records() if "/ep/" in key]
    assert left == [one.endpoint.id]
    driver.release(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))
    two.leave()


def test_another_host_of_the_same_name_is_refused(world, tmp_path):
    network = world.network()
    world.join(0, network)
    driver = world.hosts[1].driver(host="h1")
    driver.driver.boot_id = str(tmp_path / "boot_id")
    (tmp_path / "boot_id").write_text("another boot\n")
    world.eventually(lambda: any("host/h1" in key for key in all_keys(world)))
    with pytest.raises(Conflict, match=r"another host at 10.99.0.1 goes by the name h1.*option host"):
        driver.allocate(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))


def all_keys(world):
    host = world.hosts[2]
    store = inside(host.netns, host.driver().driver.store)
    try:
        return [pair.key for pair in inside(host.netns, store.etcd.read, store.key("")).found[0]]
    finally:
        store.etcd.close()


def test_no_address_is_given_twice_on_three_hosts_at_once(world, tmp_path):
    """A1, A2: and when none is left it says so; one that is given back is given again."""
    network = world.network(subnets=(Subnet(pool="10.202.0.0/27", gateway="10.202.0.1"),))

    def work(worker):
        driver = world.hosts[worker % 3].driver()
        for number in range(5):
            endpoint = Endpoint(id=f"{worker:x}{number:x}" * 32, container="c" * 64)
            given = driver.allocate(network=network, endpoint=endpoint)
            (tmp_path / f"{worker}.{number}").write_text(given.addresses[0])

    codes = together(work, 6)
    given = [file.read_text() for file in tmp_path.iterdir()]
    assert set(codes) <= {0, 2}  # 29 addresses for 30: somebody hears of a conflict
    assert len(given) == len(set(given)) == 29
    driver = world.hosts[1].driver()
    late = Endpoint(id="d" * 64, container="c" * 64)
    with pytest.raises(Conflict, match=r"has no free address in 10.202.0.0/27"):
        driver.allocate(network=network, endpoint=late)
    driver.release(network=network, endpoint=Endpoint(id="10" * 32, container="c" * 64))
    assert driver.allocate(network=network, endpoint=late).addresses[0] in given
    assert driver.allocate(network=network, endpoint=late) == driver.allocate(network=network, endpoint=late)


def test_asked_addresses_are_given_or_refused_in_words(world):
    """A3: in use, reserved, the gateway, outside."""
    subnet = Subnet(pool="10.203.0.0/24", gateway="10.203.0.1", range="10.203.0.128/25", reserved={"nas": "10.203.0.9"})
    network = world.network(subnets=(subnet,))
    one = world.join(0, network)
    assert one.address == "10.203.0.128"
    driver = world.hosts[1].driver()

    def ask(address):
        endpoint = Endpoint(id="e" * 64, container="c" * 64, addresses=(address,), static=True)
        return driver.allocate(network=network, endpoint=endpoint).addresses

    for address, error, words in (
        (one.address, Conflict, f"belongs to endpoint {one.endpoint.id[:12]} on host h1; ask for another one"),
        ("10.203.0.9", Conflict, "is reserved (nas)"),
        ("10.203.0.1", Conflict, "is its gateway"),
        ("10.204.0.7", ConfigError, "is no host's address in the subnets of network"),
        ("10.203.0.255", ConfigError, "is no host's address"),
        ("fd00::7", ConfigError, "fd00::7 is no host's address in the subnets of network"),
        ("nowhere", ConfigError, "'nowhere' is not an IP address"),
    ):
        with pytest.raises(error) as caught:
            ask(address)
        assert words in str(caught.value)
    assert ask("10.203.0.77") == ("10.203.0.77/24",)
    driver.release(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))


def test_networks_are_the_same_on_all_hosts(world):
    """Made on one, listed and used on the others, removed on any of them when nobody is on it."""
    options = OverlayOptions(vni=777, mtu=1400)
    network = world.network(name="shared", options=options, labels={"a": "b"}, internal=True)
    assert network.subnets[0].pool.startswith("10.")
    for host in world.hosts:
        assert network in host.driver().networks()
    user = world.join(2, network, names=("user",))
    assert user.attachment.mtu == 1400
    with pytest.raises(Conflict, match=r"network shared has active endpoints: user on h3; stop or disconnect"):
        world.hosts[0].driver().delete_network(network=network)
    for wrong, words in (
        ({"name": "shared"}, "network shared exists already on these hosts"),
        ({"options": options}, "VNI 777 is that of network shared"),
        ({"subnets": network.subnets}, f"overlaps {network.subnets[0].pool} of network shared"),
    ):
        with pytest.raises(Conflict) as caught:
            world.network(driver=world.hosts[1].driver(), **wrong)
        assert words in str(caught.value)
    user.leave()
    world.hosts[1].driver().delete_network(network=network)
    assert world.hosts[0].driver().networks() == ()
    with pytest.raises(Conflict, match="network shared is on no host any more"):
        world.hosts[0].driver().create_network(network=network)
    with pytest.raises(NotFound, match="it was removed on another host"):
        world.hosts[2].driver().allocate(network=network, endpoint=Endpoint(id="e" * 64, container="c" * 64))


def test_entries_that_somebody_changes_are_put_right(world, monkeypatch):
    """L10: the kernel's tables are compared now and then with what they should be."""
    monkeypatch.setattr("transom_network_overlay.following.COMPARE", 0.5)
    network = world.network()
    one, two = world.join(0, network), world.join(1, network)
    world.eventually(lambda: one.reaches(two))
    device = f"vx-{network.id[:12]}"
    here, mac = world.hosts[0].netns, two.attachment.mac
    inside(here, subprocess.run, ["bridge", "fdb", "del", mac, "dev", device], check=True)
    world.eventually(lambda: one.reaches(two))
    inside(here, ip_batch, f"neigh del {two.address} dev {device}")
    world.eventually(lambda: one.reaches(two))


def test_entries_that_somebody_changes_are_reported_and_repaired_and_the_others_stay(world):
    """L9, L10: of a forwarding table and a neighbour table, as doctor does it."""
    network = world.network()
    one, two, three = world.join(0, network), world.join(1, network), world.join(2, network)
    for other in (two, three):
        world.eventually(lambda other=other: one.reaches(other))
    device, here = f"vx-{network.id[:12]}", world.hosts[0].netns
    mac, stranger = two.attachment.mac, "02:42:00:00:00:99"

    def check():
        return one.driver.check(network=network, endpoints=(one.endpoint,))

    assert check() == []
    for words in (f"del {mac}", f"add {stranger} dst 10.99.0.3"):
        inside(here, subprocess.run, ["bridge", "fdb", *words.split(), "dev", device], check=True)
    inside(here, ip_batch, f"neigh replace {two.address} lladdr {stranger} dev {device} nud permanent")
    assert check() == [
        f"what is for {stranger} goes to 10.99.0.3, not to none",
        f"what is for {mac} goes to no host, not to 10.99.0.2",
        f"{two.address} is taken for {stranger}, not for {mac}",
    ]
    assert one.reaches(three, seconds=10)
    one.driver.create_network(network=network)
    assert check() == []
    assert one.reaches(two, seconds=10)


def test_of_hosts_that_make_a_network_of_one_name_at_once_one_does(world, tmp_path):
    """S2: the others hear of it; and of different names made at once each gets a VNI and a subnet of its own."""

    def work(worker):
        network = Network(id=f"{worker:x}" * 64, name="contested", options=OverlayOptions())
        world.hosts[worker % 3].driver().settle(network=network)

    assert sorted(together(work, 6)) == [0, 2, 2, 2, 2, 2]  # 2: a conflict
    (winner,) = world.hosts[0].driver().networks()
    world.networks.append(winner)

    def of_its_own(worker):
        network = Network(id=f"{worker + 8:x}" * 64, name=f"own-{worker}", options=OverlayOptions())
        network = world.hosts[worker % 3].driver().settle(network=network)

    assert together(of_its_own, 6) == [0] * 6
    world.networks += [network for network in world.hosts[0].driver().networks() if network != winner]
    store = inside(world.hosts[0].netns, world.hosts[0].driver().driver.store)
    stored = [*inside(world.hosts[0].netns, store.networks).values()]
    store.etcd.close()
    assert len({one.vni for one in stored}) == len({one.subnets[0].pool for one in stored}) == 7


def test_a_device_that_a_network_left_gives_its_vni_up(world):
    """What this engine made and nobody is on; that of somebody else stays, and is named."""
    network = world.network(options=OverlayOptions(vni=4242))
    world.hosts[1].driver().create_network(network=network)
    world.hosts[0].driver().delete_network(network=network)
    again = world.network(options=OverlayOptions(vni=4242))
    there = world.hosts[1].netns
    new = world.join(1, again)
    assert {link["ifname"] for link in inside(there, ip_json, "link")} == {"lo", "up0", f"vx-{again.id[:12]}"}
    new.leave()
    world.hosts[1].driver().delete_network(network=again)
    last = world.network(options=OverlayOptions(vni=4242))
    inside(there, ip_batch, "link add theirs type vxlan id 4242 dstport 4789 local 10.99.0.2 proxy")
    try:
        with pytest.raises(Conflict, match=r"another VXLAN device on this host has VNI 4242 at port 4789; remove it"):
            world.hosts[1].driver().create_network(network=last)
    finally:
        inside(there, ip_batch, "link delete theirs")


def test_more_endpoints_than_the_kernel_keeps_neighbours_are_all_known(world):
    """Entries that are permanent do not count for gc_thresh3, 1024 (ip-sysctl): nothing is to be set on the host."""
    peers = tuple(
        Peer(
            endpoint=f"{number:064x}", addresses=(f"10.210.{number >> 8}.{number & 255}/16",), host="elsewhere",
            mac=f"02:42:0a:d2:{number >> 8:02x}:{number & 255:02x}", vtep="10.99.0.2", boot="b", revision=1,
        )
        for number in range(2000)
    )  # fmt: skip
    network = world.network()
    driver = world.hosts[0].driver()
    driver.create_network(network=network)
    assert driver.apply(network.id, "h1", Known(revision=1, peers=peers))
    told = inside(world.hosts[0].netns, ip_json, "neigh", "show", "dev", f"vx-{network.id[:12]}", "nud", "permanent")
    assert len(told) == 2000
    assert driver.check(network=network, endpoints=()) == []


def test_the_watch_goes_over_to_another_container_when_the_one_is_killed(world):
    """The lock is the kernel's: nobody has to tell."""
    network = world.network()
    one, other = world.join(0, network), world.join(0, network)
    one.kill_watch()
    late = world.join(1, network, names=("late",))
    world.eventually(lambda: other.driver.lookup(network=network, name="late"))
    assert other.reaches(late, seconds=10)
    one.watch()


def test_an_interface_stands_for_its_address(world):
    """Of several the first, IPv4 before IPv6; one that is not there or has none is named."""

    def address(**words):
        return inside(world.hosts[0].netns, world.hosts[0].driver(**words).driver.store).member.vtep

    assert address(address="up0") == address(address="") == "10.99.0.1"
    for name, words in (("up1", "interface up1 is not on this host"), ("bare0", "interface bare0 has no address")):
        inside(world.hosts[0].netns, ip_batch, "link add bare0 type bridge")
        try:
            with pytest.raises(ConfigError) as caught:
                address(address=name)
        finally:
            inside(world.hosts[0].netns, ip_batch, "link delete bare0")
        assert words in str(caught.value)
        assert "set the option address to one of bare0, up0" in str(caught.value)


def test_hosts_that_reach_each_other_by_ipv6_have_as_good_a_network(world):
    drivers = [host.driver(address=f"fd99::{host.number}") for host in world.hosts]
    network = world.network(driver=drivers[0], subnets=(Subnet(pool="10.205.0.0/24"), Subnet(pool="fd01:205::/64")))
    one, two, three = (world.join(number, network, driver=drivers[number]) for number in range(3))
    assert one.attachment.mtu == 1430
    six = one.endpoint.addresses[1].partition("/")[0]
    for container in (two, three):
        world.eventually(lambda container=container: one.reaches(container))
        world.eventually(lambda container=container: container.reaches(one, six))
    for container in (one, two, three):
        container.leave()
    world.hosts[0].driver().delete_network(network=network)


def test_the_largest_packet_fits_and_one_that_is_larger_does_not(world):
    """K7: the hosts' own network carries 1500 bytes."""
    network = world.network()
    one, two = world.join(0, network), world.join(1, network)
    assert one.attachment.mtu == 1450
    world.eventually(lambda: one.reaches(two))
    with udp(one.netns) as out, udp(two.netns) as inward:
        out.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
        inward.settimeout(30)
        out.sendto(bytes(1450 - 28), (two.address, 9999))
        assert len(inward.recv(2000)) == 1450 - 28
        with pytest.raises(OSError, match="Message too long"):
            out.sendto(bytes(1451 - 28), (two.address, 9999))


def udp(netns):
    sock = inside(netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    inside(netns, sock.bind, ("", 9999))
    return sock


def test_of_hosts_that_ask_for_one_address_at_once_one_gets_it(world, tmp_path):
    """A1: whoever is second hears who has it."""
    network = world.network(subnets=(Subnet(pool="10.206.0.0/24"),))

    def work(worker):
        endpoint = Endpoint(id=f"{worker:x}" * 64, container="c" * 64, addresses=("10.206.0.9",), static=True)
        world.hosts[worker % 3].driver().allocate(network=network, endpoint=endpoint)
        (tmp_path / str(worker)).touch()

    codes = together(work, 6)
    assert sorted(codes) == [0, 2, 2, 2, 2, 2]  # 2: a conflict
    (winner,) = tmp_path.iterdir()
    world.hosts[0].driver().release(network=network, endpoint=Endpoint(id=winner.name * 64, container="c" * 64))


def test_an_outage_of_etcd_makes_nobody_dead(world):
    """The time for which a host was not heard of begins anew with each."""
    network = world.network()
    dead = world.join(2, network, watch=False)
    host = world.hosts[0]
    driver = host.driver(grace="1s").driver
    recorded = lambda: [key for key in world.cluster.records() if key.endswith(dead.endpoint.id)]  # noqa: E731
    driver.run.mkdir(parents=True, exist_ok=True)
    life, store = following.Life.begin(driver), inside(host.netns, driver.store)

    def go_on():
        inside(host.netns, life.go_on, store)

    try:
        world.eventually(lambda: "h3" not in inside(host.netns, store.members)[1])
        go_on()
        time.sleep(1.1)
        life.lost()
        go_on()
        assert recorded()
        time.sleep(1.1)
        go_on()
        assert not recorded()
    finally:
        life.end()
        store.etcd.close()


def test_an_etcd_that_was_set_back_is_told_from_one_that_is_ahead_of_what_is_known(world):
    """What runs counts: what has left since the snapshot is removed from it, and what came since is recorded again."""
    network = world.network()
    one, two = world.join(0, network), world.join(1, network)
    world.eventually(lambda: one.reaches(two))
    host = world.hosts[0]
    driver, store = host.driver().driver, inside(host.netns, host.driver().driver.store)
    inside(host.netns, store.present_host)
    known = driver.known(network.id)
    store.revision = known.revision - 1  # as of before the watch heard of it
    before = store.cluster
    assert not inside(host.netns, driver.is_lost, store, known)
    assert store.cluster == before
    ahead = msgspec.structs.replace(known, revision=known.revision + 1000)
    assert inside(host.netns, driver.is_lost, store, ahead)
    assert store.cluster != before
    gone = msgspec.structs.replace(known.peers[0], endpoint="f" * 64, addresses=(), host="h1")
    inside(host.netns, store.join, network, gone)
    world.eventually(lambda: not [key for key in world.cluster.records() if key.endswith("f" * 64)])
    world.eventually(lambda: one.reaches(two) and two.reaches(one))
    store.etcd.close()


def test_a_host_that_was_taken_for_dead_and_is_alive_records_itself_anew(world):
    """It hears of it by its watch, and nobody has to start anything."""
    network = world.network()
    one, alive = world.join(0, network), world.join(2, network, names=("alive",))
    world.eventually(lambda: one.reaches(alive))
    store = inside(world.hosts[1].netns, world.hosts[1].driver().driver.store)
    recorded = lambda: [key for key in world.cluster.records() if key.endswith(alive.endpoint.id)]  # noqa: E731
    (before,) = recorded()
    removed = inside(world.hosts[1].netns, store._remove_of, "h3")
    store.etcd.close()
    assert removed == 2  # the endpoint and its address
    world.eventually(lambda: recorded() == [before])
    world.eventually(lambda: one.reaches(alive) and one.driver.lookup(network=network, name="alive"))


def test_what_is_removed_while_a_watch_begins_is_recorded_anew_too(world, monkeypatch):
    """Before each of its readings: there is no moment at which nobody would notice."""
    network = world.network()
    real, store = Store.peers, inside(world.hosts[1].netns, world.hosts[1].driver().driver.store)
    readings = []

    def peers(self, id):
        readings.append(id)
        if len(readings) < 3:
            inside(world.hosts[1].netns, store._remove_of, "h1")
        return real(self, id)

    one = world.join(0, network, watch=False)
    (before,) = one.driver.known(network.id).peers
    monkeypatch.setattr(Store, "peers", peers)
    one.watch()
    monkeypatch.undo()
    world.eventually(
        lambda: [p for p in inside(world.hosts[1].netns, store.peers, network.id)[0] if p.revision > before.revision]
    )
    store.etcd.close()


def test_a_watch_whose_beginning_etcd_has_forgotten_begins_anew(world, monkeypatch):
    """What happened before a compaction is read, not heard of."""
    network = world.network()
    other = world.join(1, network)
    store = inside(world.hosts[0].netns, world.hosts[0].driver().driver.store)
    late = world.join(2, network)
    revision = inside(world.hosts[0].netns, store.peers, network.id)[1]
    store.etcd.call("/v3/kv/compaction", {"revision": str(revision)})
    store.etcd.close()
    real, asked = Store.peers, []

    def peers(self, id):
        asked.append(id)
        return ([], 1) if len(asked) == 1 else real(self, id)

    monkeypatch.setattr(Store, "peers", peers)
    one = world.join(0, network)
    monkeypatch.undo()
    for container in (other, late):
        world.eventually(lambda container=container: container.reaches(one))
    show = ["bridge", "fdb", "show", "dev", f"vx-{network.id[:12]}"]

    def known():
        told = inside(world.hosts[0].netns, subprocess.run, show, capture_output=True, text=True, check=True)
        return other.attachment.mac in told.stdout and late.attachment.mac in told.stdout

    world.eventually(known)


def test_a_list_of_the_networks_waits_no_longer_than_it_must(world):
    """Two hosts whose cables are pulled do not answer at all."""
    world.network()
    driver = world.hosts[0].driver(etcd="http://10.99.0.2:2379,http://10.99.0.3:2379,http://10.99.0.4:2379")
    for host in world.hosts[1:]:
        host.cable("down")
    try:
        begun = time.monotonic()
        with pytest.raises(DriverError, match="etcd cannot be reached"):
            driver.networks()
        assert time.monotonic() - begun < 10  # 1.5 s on a host that has nothing else to do
        with pytest.raises(DriverError, match="etcd could not be reached a moment ago"):
            driver.networks()
    finally:
        for host in world.hosts[1:]:
            host.cable("up")
    world.eventually(lambda: _lists(driver))


def _lists(driver):
    try:
        return bool(driver.networks())
    except DriverError:
        return False


def test_words_of_the_config_that_cannot_be_are_refused(world, tmp_path):
    for options, words in (
        ({"etcd": "10.0.0.1:2379"}, "is not a member such as http://10.0.0.1:2379"),
        ({"address": "no:where"}, "'no:where' is neither an IP address nor the name of an interface"),
        ({"port": "4793"}, "port and encrypted-port differ"),
        ({"key-interval": "1s"}, "key-interval is at least 2s"),
        ({"etcd-cert": "a.pem"}, "etcd-cert and etcd-key go together"),
        ({"etcd-user": "me"}, "etcd-user and etcd-password-file go together"),
        ({"lease": "1s"}, "lease is at least 2s"),
    ):
        with pytest.raises(ConfigError) as caught:
            world.hosts[0].driver(**options)
        assert words in str(caught.value)
    place = Drivers(state=tmp_path, run=tmp_path)
    bare = place.open("network", "overlay", {}, where="here")
    assert bare.networks() == ()
    with pytest.raises(ConfigError, match=r"overlay needs etcd: set transom.driver-opts.network.overlay.etcd"):
        bare.settle(network=Network(id="a" * 64, name="n"))
