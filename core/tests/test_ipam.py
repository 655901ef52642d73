"""Address management: what is given out, what is refused, and that nothing is given out twice."""

from __future__ import annotations

import ipaddress
import os
import random
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from transom.contract.network import Endpoint, Network, Subnet
from transom.errors import ConfigError, Conflict
from transom.services import netns
from transom.services.ipam import DEFAULT_POOLS, GATEWAY, Ipam, host_routes, parse_subnet


@pytest.fixture
def ipam(tmp_path):
    made = Ipam(tmp_path / "ipam.db")
    yield made
    made.close()


def net(name: str, *pools: str, **subnet) -> Network:
    return Network(id=name.ljust(64, "-"), name=name, subnets=tuple(Subnet(pool=pool, **subnet) for pool in pools))


def end(number: int | str, *addresses: str) -> Endpoint:
    return Endpoint(id=f"{number:0>64}", container="c", addresses=addresses)


def test_a_network_without_a_subnet_gets_one_of_the_default_pools_and_its_first_address_as_gateway(ipam):
    (subnet,) = ipam.settle(net("a")).subnets
    pool = ipaddress.ip_network(subnet.pool)
    assert any(pool.subnet_of(ipaddress.ip_network(base)) for base, _ in DEFAULT_POOLS)
    assert subnet.gateway == str(pool[1])


def test_settling_again_returns_the_same_subnets(ipam):
    first = ipam.settle(net("a"), ipv6=True)
    assert ipam.settle(first, ipv6=True) == first
    assert ipam.settle(net("a"), ipv6=True) == first


def test_default_pools_give_every_part_once_and_then_say_what_to_do(tmp_path):
    ipam = Ipam(tmp_path / "ipam.db", pools=[("10.201.0.0/22", 24), ("10.202.0.0/24", 24)])
    pools = [ipam.settle(net(f"n{i}")).subnets[0].pool for i in range(5)]
    assert len(set(pools)) == 5
    with pytest.raises(Conflict) as caught:
        ipam.settle(net("n5"))
    assert str(caught.value) == (
        "no subnet of the default address pools is free, network n0, network n1, network n2, ... have them; "
        "name one with --subnet, remove networks, or add to default-address-pools in the config"
    )
    ipam.forget(net("n2"))
    assert ipam.settle(net("n5")).subnets[0].pool == pools[2]
    ipam.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs CAP_NET_ADMIN")
def test_default_pools_keep_clear_of_the_routes_of_the_host(tmp_path):
    def inside():
        commands = """
            link set lo up
            link add br0 up type bridge
            addr add 10.203.1.1/24 dev br0
            addr add fd77::1/64 dev br0
            addr add 10.203.4.1/32 dev lo
            route add 10.203.6.0/24 dev br0 table 51820
            route add blackhole 10.203.9.0/26
            route add default dev br0
            route add 0.0.0.0/1 dev br0
            route add 128.0.0.0/1 dev br0
            route add fd77:1::/64 dev br0 table 99
        """
        for command in commands.strip().splitlines():
            subprocess.run(["ip", *(["-6"] if "fd77:1" in command else []), *command.split()], check=True)
        ipam = Ipam(tmp_path / "ipam.db", pools=[("10.203.0.0/20", 23), ("fd77::/62", 64)])
        try:
            pools = [subnet.pool for n in "abc" for subnet in ipam.settle(net(n), ipv6=n != "c").subnets]
            assert pools == ["10.203.2.0/23", "fd77:0:0:1::/64", "10.203.10.0/23", "fd77:0:0:2::/64", "10.203.12.0/23"]
            return host_routes()
        finally:
            ipam.close()
            full = Ipam(tmp_path / "full.db", pools=[("10.203.1.0/24", 25)])
            with pytest.raises(Conflict, match=r"is free, the host's route to 10\.203\.1\.0/24, "):
                full.settle(net("d"))
            full.close()

    world = netns.create()
    try:
        routes = [str(block) for block in netns.inside(world, inside)]
    finally:
        os.close(world)
    assert "10.203.1.0/24" in routes
    assert "fd77::/64" in routes
    assert not {"0.0.0.0/0", "0.0.0.0/1", "128.0.0.0/1", "::/0"} & {*routes}


def test_the_default_pools_are_dockers_and_enough_for_a_hundred_networks_and_more(ipam):
    start = time.monotonic()
    pools = [parse_subnet(ipam.settle(net(f"n{number}")).subnets[0].pool) for number in range(300)]
    assert time.monotonic() - start < 20
    assert not any(one.overlaps(other) for one, other in pairwise(sorted(pools)))
    dockers = {pool.prefixlen for pool in pools[:20]}
    assert dockers <= {16, 20}
    assert len([pool for pool in pools if pool.prefixlen == 24]) >= 300 - 31
    assert not any(one.overlaps(other) for one in pools for other in host_routes())


def test_a_part_that_is_larger_than_its_pool_is_refused(tmp_path):
    ipam = Ipam(tmp_path / "ipam.db", pools=[("10.0.0.0/16", 8)])
    with pytest.raises(ConfigError) as caught:
        ipam.settle(net("a"))
    assert str(caught.value) == "default address pool 10.0.0.0/16 cannot have parts of /8"
    ipam.close()


@pytest.mark.parametrize(
    ("subnet", "text"),
    [
        (Subnet(pool="10.1.2.3/16"), "subnet 10.1.2.3/16 has bits set beyond its prefix: write 10.1.0.0/16"),
        (Subnet(pool="10.1.0.0"), "'10.1.0.0' is not a subnet: write it as 172.18.0.0/16"),
        (Subnet(pool="10.1.0.0/33"), "'10.1.0.0/33' is not a subnet: write it as 172.18.0.0/16"),
        (Subnet(pool="ten/8"), "'ten/8' is not a subnet: write it as 172.18.0.0/16"),
        (Subnet(pool="10.1.0.0/16", gateway="10.2.0.1"), "gateway 10.2.0.1 is no host's address in subnet 10.1.0.0/16"),
        (
            Subnet(pool="10.1.0.0/16", gateway="10.1.255.255"),
            "gateway 10.1.255.255 is no host's address in subnet 10.1.0.0/16",
        ),
        (Subnet(pool="10.1.0.0/16", gateway="fd00::1"), "gateway fd00::1 is no host's address in subnet 10.1.0.0/16"),
        (Subnet(pool="10.1.0.0/16", gateway="x"), "'x' is not an IP address"),
        (Subnet(pool="10.1.0.0/16", range="10.2.0.0/24"), "range 10.2.0.0/24 is not inside subnet 10.1.0.0/16"),
        (Subnet(pool="10.1.0.0/16", range="10.0.0.0/8"), "range 10.0.0.0/8 is not inside subnet 10.1.0.0/16"),
        (
            Subnet(pool="10.1.0.0/16", reserved={"printer": "10.2.0.9"}),
            "reserved address printer 10.2.0.9 is no host's address in subnet 10.1.0.0/16",
        ),
        (
            Subnet(pool="10.1.0.0/16", reserved={"printer": "10.1.0.1"}),
            "reserved address printer 10.1.0.1 is the gateway of subnet 10.1.0.0/16",
        ),
    ],
)
def test_a_subnet_that_makes_no_sense_is_refused_in_a_line(ipam, subnet, text):
    with pytest.raises(ConfigError) as caught:
        ipam.settle(Network(id="a" * 64, name="a", subnets=(subnet,)))
    assert str(caught.value) == text
    assert ipam.leases(net("a")) == {}


def test_a_subnet_of_another_network_is_refused_by_its_name_and_free_when_that_is_forgotten(ipam):
    ipam.settle(net("one", "10.1.0.0/16"))
    with pytest.raises(Conflict) as caught:
        ipam.settle(net("two", "10.1.128.0/24"))
    assert str(caught.value) == "subnet 10.1.128.0/24 overlaps 10.1.0.0/16 of network one; choose another one"
    ipam.forget(net("one"))
    ipam.forget(net("one"))
    ipam.settle(net("two", "10.1.128.0/24"))


def test_two_subnets_of_one_network_may_not_overlap(ipam):
    with pytest.raises(Conflict, match=r"overlaps 10\.1\.0\.0/16 of the same network"):
        ipam.settle(net("a", "10.1.0.0/16", "10.1.0.0/24"))


def test_subnets_change_only_while_no_endpoint_has_an_address(ipam):
    network = ipam.settle(net("a", "10.1.0.0/24"))
    ipam.allocate(network, end(1))
    with pytest.raises(Conflict) as caught:
        ipam.settle(net("a", "10.2.0.0/24"))
    assert str(caught.value) == "network a has endpoints: its subnets cannot change; disconnect them first"
    ipam.release(network, end(1))
    assert ipam.allocate(ipam.settle(net("a", "10.2.0.0/24")), end(1)).addresses == ("10.2.0.2/24",)


def test_an_endpoint_gets_an_address_of_each_family_ipv4_first_and_keeps_it_when_it_asks_again(ipam):
    network = ipam.settle(net("a", "fd01::/64", "10.1.0.0/24"))
    got = ipam.allocate(network, end(1))
    assert got.addresses == ("10.1.0.2/24", "fd01::2/64")
    assert ipam.allocate(network, end(1)) == got
    assert ipam.allocate(network, got) == got


def test_ipv6_alone_is_possible(ipam):
    network = ipam.settle(net("a"), ipv4=False, ipv6=True)
    (subnet,) = network.subnets
    assert ipaddress.ip_network(subnet.pool).subnet_of(ipaddress.ip_network("fd00::/8"))
    assert len(ipam.allocate(network, end(1)).addresses) == 1


def test_what_was_just_released_is_the_last_to_be_given_again(ipam):
    network = ipam.settle(net("a", "10.1.0.0/29"))
    seen = []
    for number in range(5):
        seen.append(ipam.allocate(network, end(number)).addresses[0])
        ipam.release(network, end(number))
    assert seen == [f"10.1.0.{n}/29" for n in (2, 3, 4, 5, 6)]
    assert ipam.allocate(network, end(9)).addresses == ("10.1.0.2/29",)


def test_exhaustion_is_said_and_release_frees_exactly_that_address(ipam):
    network = ipam.settle(net("a", "10.1.0.0/29", reserved={"printer": "10.1.0.4"}))
    given = {ipam.allocate(network, end(n)).addresses[0] for n in range(4)}
    assert given == {"10.1.0.2/29", "10.1.0.3/29", "10.1.0.5/29", "10.1.0.6/29"}
    with pytest.raises(Conflict) as caught:
        ipam.allocate(network, end(9))
    assert str(caught.value) == (
        "network a has no free address in 10.1.0.0/29; disconnect containers or use another one"
    )
    ipam.release(network, end(1))
    ipam.release(network, end(1))
    assert ipam.allocate(network, end(9)).addresses == ("10.1.0.3/29",)


@pytest.mark.parametrize(
    ("pool", "addresses"),
    [
        ("10.1.0.0/30", {"10.1.0.2/30"}),
        ("10.1.0.0/31", {"10.1.0.1/31"}),
        ("10.1.0.0/32", set()),
        ("fd01::/126", {"fd01::2/126", "fd01::3/126"}),
        ("fd01::/127", {"fd01::1/127"}),
        ("255.255.255.254/31", {"255.255.255.255/31"}),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", {"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/127"}),
    ],
)
def test_the_smallest_subnets_give_what_they_have(ipam, pool, addresses):
    network = ipam.settle(net("a", pool), ipv4=":" not in pool)
    got = {a for number in range(len(addresses)) for a in ipam.allocate(network, end(number)).addresses}
    assert got == addresses
    with pytest.raises(Conflict):
        ipam.allocate(network, end(9))


@pytest.mark.parametrize("pool", ["fd01::/64", "fd00::/8", "::/0"])
def test_huge_subnets_are_no_slower(ipam, pool):
    network = ipam.settle(net("a", pool), ipv4=False)
    start = time.monotonic()
    got = {ipam.allocate(network, end(n)).addresses for n in range(50)}
    assert len(got) == 50
    assert time.monotonic() - start < 5


def test_a_range_bounds_what_is_given_but_not_what_is_asked_for(ipam):
    network = ipam.settle(net("a", "10.1.0.0/16", range="10.1.5.0/30"))
    assert ipam.allocate(network, end(1, "10.1.9.9")).addresses == ("10.1.9.9/16",)
    given = {ipam.allocate(network, end(n)).addresses[0] for n in range(2, 6)}
    assert given == {f"10.1.5.{n}/16" for n in range(4)}
    with pytest.raises(Conflict):
        ipam.allocate(network, end(9))


def test_of_several_subnets_of_a_family_the_next_one_gives_when_the_first_is_used_up(ipam):
    network = ipam.settle(net("a", "10.1.0.0/30", "10.2.0.0/30", "fd01::/126", "fd02::/126"))
    given = [ipam.allocate(network, end(n)).addresses for n in range(2)]
    assert given == [("10.1.0.2/30", "fd01::2/126"), ("10.2.0.2/30", "fd01::3/126")]
    with pytest.raises(Conflict) as caught:
        ipam.allocate(network, end(9))
    assert "no free address in 10.1.0.0/30, 10.2.0.0/30;" in str(caught.value)
    assert {owner for owner in ipam.leases(network).values() if not owner.startswith("@")} == {end(0).id, end(1).id}
    ipam.release(network, end(0))
    assert ipam.allocate(network, end(9)).addresses == ("10.1.0.2/30", "fd01::2/126")


def test_asked_addresses_are_given_and_an_endpoint_that_asks_for_another_one_moves(ipam):
    network = ipam.settle(net("a", "10.1.0.0/24", "fd01::/64"))
    assert ipam.allocate(network, end(1, "10.1.0.7")).addresses == ("10.1.0.7/24", "fd01::2/64")
    assert ipam.allocate(network, end(1, "10.1.0.8", "fd01::9")).addresses == ("10.1.0.8/24", "fd01::9/64")
    assert ipam.allocate(network, end(2, "10.1.0.7")).addresses[0] == "10.1.0.7/24"


@pytest.mark.parametrize(
    ("address", "error", "text"),
    [
        ("10.1.0.9", Conflict, "address 10.1.0.9 of network a belongs to endpoint 000000000000; ask for another one"),
        ("10.1.0.1", Conflict, "address 10.1.0.1 of network a is its gateway; ask for another one"),
        ("10.1.0.4", Conflict, "address 10.1.0.4 of network a is reserved (printer); ask for another one"),
        ("10.2.0.4", ConfigError, "10.2.0.4 is no host's address in the subnets of network a (10.1.0.0/24)"),
        ("10.1.0.0", ConfigError, "10.1.0.0 is no host's address in the subnets of network a (10.1.0.0/24)"),
        ("10.1.0.255", ConfigError, "10.1.0.255 is no host's address in the subnets of network a (10.1.0.0/24)"),
        ("fd01::1", ConfigError, "fd01::1 is no host's address in the subnets of network a (10.1.0.0/24)"),
        ("ten", ConfigError, "'ten' is not an IP address"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused_in_a_line_and_nothing_is_taken(ipam, address, error, text):
    network = ipam.settle(net("a", "10.1.0.0/24", reserved={"printer": "10.1.0.4"}))
    ipam.allocate(network, end(1, "10.1.0.9"))
    before = ipam.leases(network)
    with pytest.raises(error) as caught:
        ipam.allocate(network, end(2, address))
    assert str(caught.value) == text
    assert ipam.leases(network) == before


def test_recovery_gives_back_what_belongs_to_nobody_and_the_second_one_nothing(ipam):
    kept, gone = ipam.settle(net("kept", "10.1.0.0/24")), ipam.settle(net("gone", "10.2.0.0/24"))
    ipam.allocate(kept, end(1))
    ipam.allocate(kept, end(2))
    ipam.allocate(gone, end(3))
    living = {"networks": [kept.id], "endpoints": [end(1).id]}
    assert ipam.recover(**living) == [
        "gave back the subnets of network gone, which is gone",
        "gave back 10.1.0.3 of endpoint 000000000000, which is gone",
    ]
    assert ipam.recover(**living) == []
    assert ipam.leases(kept) == {"10.1.0.1": GATEWAY, "10.1.0.2": end(1).id}
    assert ipam.leases(gone) == {}


def test_another_process_sees_what_was_given(tmp_path):
    first, second = Ipam(tmp_path / "ipam.db"), Ipam(tmp_path / "ipam.db")
    network = first.settle(net("a", "10.1.0.0/24"))
    assert first.allocate(network, end(1)).addresses == ("10.1.0.2/24",)
    assert second.allocate(network, end(2)).addresses == ("10.1.0.3/24",)
    first.close()
    first.close()
    second.close()


def allocate_many(path: Path, network: Network, worker: int, out: int) -> None:
    """Allocate and now and then release, writing down each before it is released."""
    ipam = Ipam(path)
    for number in range(1000):
        endpoint = end(f"{worker}e{number}")
        got = ipam.allocate(network, endpoint).addresses[0]
        os.write(out, f"{endpoint.id} {got}\n".encode())
        if number >= 25:
            break
    ipam.close()


def fork(function, *args) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function(*args)
            code = 0
        finally:
            os._exit(code)
    return pid


def test_sixteen_processes_never_get_the_same_address_even_when_they_make_the_database_together(tmp_path):
    out = os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    network = net("a", "10.1.0.0/16")

    def work(worker: int) -> None:
        ipam = Ipam(tmp_path / "ipam.db")
        ipam.settle(network)
        ipam.close()
        allocate_many(tmp_path / "ipam.db", network, worker, out)

    pids = [fork(work, worker) for worker in range(16)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 16
    os.close(out)
    given = [line.split()[1] for line in (tmp_path / "out").read_text().splitlines()]
    assert len(given) == 16 * 26
    assert len(set(given)) == len(given)


def test_processes_killed_anywhere_leave_a_database_that_gives_no_address_twice(tmp_path):
    out = os.open(tmp_path / "out", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    ipam = Ipam(tmp_path / "ipam.db")
    network = ipam.settle(net("a", "10.1.0.0/16"))
    ipam.close()
    chance = random.Random(7)
    for round_ in range(12):
        pids = [fork(allocate_many, tmp_path / "ipam.db", network, 10 * round_ + w, out) for w in range(4)]
        time.sleep(chance.uniform(0.002, 0.05))
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    os.close(out)
    lines = [line.split() for line in (tmp_path / "out").read_text().splitlines()]
    assert len({address for _, address in lines}) == len(lines)
    ipam = Ipam(tmp_path / "ipam.db")
    leases = ipam.leases(network)
    assert {owner: leases[address.partition("/")[0]] for owner, address in lines} == {
        owner: owner for owner, _ in lines
    }
    repairs = ipam.recover(networks=[network.id], endpoints=[])
    assert len(repairs) == len(leases) - 1
    assert ipam.leases(network) == {"10.1.0.1": GATEWAY}
    ipam.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prefix=st.integers(26, 31),
    steps=st.lists(st.tuples(st.sampled_from(["take", "ask", "drop"]), st.integers(0, 9), st.integers(0, 63))),
)
def test_any_history_gives_each_address_to_one_endpoint_at_a_time(tmp_path_factory, prefix, steps):
    ipam = Ipam(tmp_path_factory.mktemp("ipam") / "ipam.db")
    network = ipam.settle(net("a", f"10.1.0.0/{prefix}"))
    block = parse_subnet(network.subnets[0].pool)
    usable = {str(address) for address in block.hosts()} - {network.subnets[0].gateway}
    held: dict[int, str] = {}
    for action, who, where in steps:
        free = usable - set(held.values())
        if action == "drop":
            ipam.release(network, end(who))
            held.pop(who, None)
            continue
        asked = (str(block[0] + where),) if action == "ask" else ()
        try:
            (got,) = ipam.allocate(network, end(who, *asked)).addresses
        except (ConfigError, Conflict):
            assert (asked[0] not in free and held.get(who) != asked[0]) if asked else not free
            continue
        address = got.partition("/")[0]
        if action == "take" and who in held:
            assert address == held[who]
        else:
            assert address in free | {held.get(who)}
        held[who] = address
    assert {a: o for a, o in ipam.leases(network).items() if o != GATEWAY} == {
        address: end(who).id for who, address in held.items()
    }
    ipam.close()


def test_subnets_of_networks_settled_at_once_do_not_overlap(tmp_path):
    def work(worker: int) -> None:
        ipam = Ipam(tmp_path / "ipam.db", pools=[("10.204.0.0/16", 24)])
        ipam.settle(net(f"n{worker}"))
        ipam.close()

    pids = [fork(work, worker) for worker in range(16)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 16
    ipam = Ipam(tmp_path / "ipam.db")
    blocks = sorted(parse_subnet(ipam.settle(net(f"n{worker}")).subnets[0].pool) for worker in range(16))
    assert not any(one.overlaps(other) for one, other in pairwise(blocks))
    ipam.close()
