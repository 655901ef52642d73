"""Netlink: what is packed comes back, and the kernel's refusals reach the caller."""

import os
import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyroute2 import IPRoute

from transom.services import netlink
from transom.services.netlink import Route, Session
from transom.services.netns import create, inside


@pytest.fixture
def netns():
    fd = create()
    yield fd
    os.close(fd)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), unique_by=lambda item: item[0]))
def test_attributes_come_back_as_they_were(items):
    assert netlink.attributes(b"".join(netlink.attribute(kind, value) for kind, value in items)) == dict(items)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_no_bytes_are_too_odd_to_be_taken_apart(data):
    netlink.attributes(data)


def test_the_kernels_own_words_reach_the_error():
    with Session() as session, pytest.raises(OSError) as caught:
        session.request(
            netlink.add_veth(name="vtx", master=999_999, mtu=1500, peer="p", mac="02:42:00:00:00:01", netns=99_999)
        )
    assert caught.value.errno


def test_links_addresses_and_routes_are_listed_as_they_were_made(netns):
    with inside(netns, Session) as session:
        session.request(netlink.add_link(name="br0", kind="bridge", mac="02:42:00:00:00:01", mtu=1400))
        session.request(netlink.set_alias("br0", "whose"), netlink.set_up("br0"))
        link = session.link("br0")
        assert (link.kind, link.alias, link.mac, link.mtu, link.up) == (
            "bridge", "whose", "02:42:00:00:00:01", 1400, True,
        )  # fmt: skip
        session.request(
            netlink.add_address(link.index, "10.1.0.1/24"),
            netlink.add_route(link.index, "10.2.0.0/16", "10.1.0.9"),
            netlink.add_route(link.index, "10.3.0.1/32"),
        )
        assert session.addresses(link.index)["10.1.0.1/24"] == netlink.OURS
        made = [route for route in session.routes() if route.static]
        assert made == [
            Route(to="10.2.0.0/16", index=link.index, gateway="10.1.0.9", static=True),
            Route(to="10.3.0.1/32", index=link.index, static=True),
        ]
        session.request(netlink.delete_route(link.index, "10.2.0.0/16", "10.1.0.9"))
        session.request(netlink.rename(link.index, "br1"))
        assert [route.to for route in session.routes() if route.static] == ["10.3.0.1/32"]
        assert session.link("br0") is None
        session.request(netlink.delete_link("br1"))
        assert [found.name for found in session.links()] == ["lo"]


def test_interfaces_of_another_namespace_are_listed_and_removed_by_its_number(netns):
    other = create()
    try:
        with inside(netns, Session) as session, inside(other, Session) as beyond:
            session.request(netlink.add_link(name="br0", kind="bridge"))
            number = session.namespace(other)
            assert session.namespace(other) == number
            assert number in session.namespaces()
            beyond.request(
                netlink.add_link(
                    name="child",
                    kind="macvlan",
                    parent=session.link("br0").index,
                    parent_namespace=beyond.namespace(netns),
                    data=netlink.attribute(1, b"\4\0\0\0"),
                )
            )
            child = next(link for link in session.links(number) if link.name == "child")
            assert child.kind == "macvlan"
            session.request(netlink.delete_link_in(number, child.index))
            assert [link.name for link in beyond.links()] == ["lo"]
    finally:
        os.close(other)


def test_an_interface_goes_by_other_names_too(netns):
    with inside(netns, Session) as session:
        session.request(netlink.add_link(name="br0", kind="bridge"))
        for name in ("a" * 127, "transom-x"):
            session.request(netlink.add_altname("br0", name))
        assert session.link("transom-x").altnames == ("a" * 127, "transom-x")
        session.request(netlink.delete_altname("br0", "a" * 127))
        assert session.link("br0").altnames == ("transom-x",)


def test_a_route_has_a_metric_and_a_source_address(netns):
    with inside(netns, Session) as session:
        session.request(netlink.add_link(name="br0", kind="bridge"), netlink.set_up("br0"))
        index = session.link("br0").index
        session.request(
            netlink.add_address(index, "10.1.0.1/24"),
            netlink.add_route(index, "10.3.0.1/32", metric=0xFFFFFFF0, source="10.1.0.1"),
        )
        assert Route(to="10.3.0.1/32", index=index, static=True, metric=0xFFFFFFF0) in session.routes()
        session.request(netlink.delete_route(index, "10.3.0.1/32", metric=0xFFFFFFF0))
        assert "10.3.0.1/32" not in {route.to for route in session.routes()}


def as_others_read_it():
    """Return links, addresses and routes of the thread's namespace as pyroute2, which others wrote, reads them."""
    # In a namespace that is not the process's own it takes a socket of datagrams that was opened there.
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.bind((0, 0))
    with IPRoute(use_socket=sock) as ip:
        links = {
            link.get("ifname"): (
                link["index"],
                link.get(("linkinfo", "kind"), ""),
                link.get("address"),
                link.get("mtu"),
                link.get("ifalias", ""),
                link.get("master", 0),
                bool(link["flags"] & 1),
            )
            for link in ip.get_links()
        }
        addresses = {
            f"{address.get('local') or address.get('address')}/{address['prefixlen']}": address.get("proto", 0)
            for address in ip.get_addr()
            if address["scope"] == 0  # those of links come when the kernel likes
        }
        routes = {
            (
                f"{route.get('dst') or ('::' if route['family'] == socket.AF_INET6 else '0.0.0.0')}/{route['dst_len']}",
                route.get("oif"),
                route.get("gateway"),
                route.get("priority", 0),
            )
            for family in (socket.AF_INET, socket.AF_INET6)
            for route in ip.get_routes(family=family, table=254)
            if route["type"] == 1
        }
    return links, addresses, routes


def as_we_read_it():
    """Return the same by a session of ours."""
    with Session() as session:
        links = {
            link.name: (link.index, link.kind, link.mac, link.mtu, link.alias, link.master, link.up)
            for link in session.links()
        }
        routes = {(route.to, route.index, route.gateway, route.metric) for route in session.routes()}
        addresses = {text: owner for text, owner in session.addresses().items() if not text.startswith("fe80:")}
        return links, addresses, routes


def number(digits):
    return st.integers(1, 2**digits - 2)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    mtu=st.integers(1280, 9000),
    mac=st.binary(min_size=5, max_size=5),
    alias=st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), max_size=60),
    host=st.tuples(number(16), number(16)),
    targets=st.lists(st.tuples(st.booleans(), number(8), number(32)), max_size=5, unique_by=lambda item: item[1]),
)
def test_another_library_reads_what_we_made_and_we_read_the_same(mtu, mac, alias, host, targets):
    netns, peer = create(), create()
    try:
        inside(netns, make, peer, mtu, f"02:{mac.hex(':')}", alias, host, targets)
        assert inside(netns, as_others_read_it) == inside(netns, as_we_read_it)
        links, addresses, _ = inside(netns, as_others_read_it)
        assert links["br0"][1:5] == ("bridge", f"02:{mac.hex(':')}", mtu, alias)
        assert links["v0"][5] == links["br0"][0]
        assert set(addresses.values()) == {netlink.OURS}
    finally:
        os.close(netns)
        os.close(peer)


def make(peer, mtu, mac, alias, host, targets):
    """Make a bridge with a port, its addresses, and routes by it, in the thread's namespace."""
    with Session() as session:
        session.request(
            netlink.add_link(name="br0", kind="bridge", mac=mac, mtu=mtu),
            netlink.set_alias("br0", alias),
            netlink.set_up("br0"),
        )
        index = session.link("br0").index
        session.request(
            netlink.add_veth(name="v0", master=index, mtu=mtu, peer="eth0", mac="02:42:00:00:00:02", netns=peer)
        )
        session.request(
            netlink.add_address(index, f"10.1.{host[0] >> 8}.{host[0] & 255}/16"),
            netlink.add_address(index, f"fd00:1::{host[1]:x}/64"),
        )
        for ipv6, block, metric in targets:
            if ipv6:
                session.request(netlink.add_route(index, f"fd00:{block:x}:9::/48", metric=metric))
            else:
                session.request(netlink.add_route(index, f"10.2.{block}.0/24", metric=metric))
