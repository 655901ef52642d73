"""Which addresses containers get, and keep."""

import os
import signal

import pytest


@pytest.fixture
def net(transom):
    """A network ``net`` of both families, with room for four containers."""
    transom("network", "create", "--ipv6", "--subnet", "10.77.0.0/29", "--subnet", "fd00:77::/125", "net")
    return transom


def addresses(transom, name, network="net"):
    place = transom.inspect(name)["NetworkSettings"]["Networks"][network]
    return place["IPAddress"], place["GlobalIPv6Address"]


def test_a_container_has_the_addresses_again_that_it_had_before_it_was_stopped(net):
    for name in ("first", "second"):
        net.detached("--name", name, network="net")
    before = addresses(net, "first")
    net("stop", "-t", "0", "first")
    assert addresses(net, "first") == ("", "")
    net.detached("--name", "third", network="net")
    assert not {*addresses(net, "third")} & {*before}
    net("start", "first")
    assert addresses(net, "first") == before
    net("restart", "-t", "0", "first")
    assert addresses(net, "first") == before
    assert before[0] in net("exec", "second", "ping", "-4", "-c", "1", "-W", "2", "first")


def test_a_container_has_its_addresses_again_though_its_supervisor_was_killed(net):
    net.detached("--name", "first", network="net")
    before = addresses(net, "first")
    engine = net.engine()
    pid = next(c.shim_pid for c in engine.state.containers() if c.name == "first")
    engine.close()
    os.kill(pid, signal.SIGKILL)
    net.wait_until(lambda: not net.inspect("first")["State"]["Running"])
    net.detached("--name", "second", network="net")
    net("start", "first")
    assert addresses(net, "first") == before


def test_addresses_that_somebody_else_has_by_now_are_no_obstacle(net):
    net.detached("--name", "first", network="net")
    four, _ = addresses(net, "first")
    net("stop", "-t", "0", "first")
    net.detached("--name", "other", "--ip", four, network="net")
    net("start", "first")
    assert addresses(net, "first")[0] not in ("", four)
    assert addresses(net, "other")[0] == four
    net("rm", "-f", "other")
    net("network", "disconnect", "net", "first")
    net("network", "rm", "net")
    net("network", "create", "--subnet", "10.78.0.0/29", "net")  # without IPv6
    net("network", "connect", "net", "first")
    assert addresses(net, "first") == ("10.78.0.2", "")


def test_a_network_that_was_made_anew_gives_addresses_of_its_own(net):
    net.detached("--name", "first", network="net")
    net("stop", "-t", "0", "first")
    net("network", "rm", "net")
    net("network", "create", "--subnet", "10.78.0.0/29", "net")
    net("start", "first")
    assert addresses(net, "first") == ("10.78.0.2", "")


def test_an_address_that_was_asked_for_stays_and_the_other_family_has_its_last_one_again(net):
    net.detached("--name", "first", "--ip", "10.77.0.5", network="net")
    before = addresses(net, "first")
    net("stop", "-t", "0", "first")
    net.detached("--name", "second", network="net")
    net("start", "first")
    assert addresses(net, "first") == before
    assert before[0] == "10.77.0.5"
