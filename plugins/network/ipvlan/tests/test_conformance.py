"""The driver ipvlan proves itself by the suite of its kind; most kernels in small machines lack it."""

from transom_conformance.network import UPLINK, NetworkSuite, OnAParent

ROUTED = "in modes l3 and l3s the kernel routes between all children of one parent (README, Options)"


class TestIpvlan(NetworkSuite):
    driver = "ipvlan"


class TestIpvlanOnAParent(OnAParent, NetworkSuite):
    driver = "ipvlan"


class TestIpvlanL3(TestIpvlanOnAParent):
    network_options = {"parent": UPLINK, "ipvlan_mode": "l3"}
    known_failures = {"test_networks_are_apart": ROUTED}


class TestIpvlanL3S(TestIpvlanOnAParent):
    network_options = {"parent": UPLINK, "ipvlan_mode": "l3s"}
    known_failures = {"test_networks_are_apart": ROUTED}
