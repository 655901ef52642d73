"""Netlink: what is packed comes back, and the kernel's refusals reach the caller."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.services import netlink
from transom.services.netlink import Route, Session
from transom.services.netns import create, inside


@pytest.fixture
def netns():
    fd = create()
    yield fd
    os.close(fd)


@given(st.lists(st.tuples(st.integers(1, 0x3FFF), st.binary(max_size=40)), unique_by=lambda item: item[0]))
def test_attributes_come_back_as_they_were(items):
    assert netlink.attributes(b"".join(netlink.attribute(kind, value) for kind, value in items)) == dict(items)


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
