"""The driver macvlan proves itself by the suite of its kind."""

from transom_conformance.network import NetworkSuite, OnAParent


class TestMacvlan(NetworkSuite):
    driver = "macvlan"


class TestMacvlanOnAParent(OnAParent, NetworkSuite):
    driver = "macvlan"
