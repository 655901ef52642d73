"""The driver ipvlan proves itself by the suite of its kind; most kernels in small machines lack it."""

import pytest

from transom.errors import ConfigError
from transom_conformance.network import UPLINK, NetworkSuite

ROUTED = "in modes l3 and l3s the kernel routes between all children of one parent (README, Options)"


class TestIpvlan(NetworkSuite):
    driver = "ipvlan"


class TestIpvlanOnAParent(NetworkSuite):
    driver = "ipvlan"
    network_options = {"parent": UPLINK}

    def test_an_internal_network_has_no_way_out(self, site):
        """I2: on a parent it would have one."""
        with pytest.raises(ConfigError, match=r"internal.*leave out parent=uplink0"):
            site.network(internal=True)


class TestIpvlanL3(TestIpvlanOnAParent):
    network_options = {"parent": UPLINK, "ipvlan_mode": "l3"}
    known_failures = {"test_networks_are_apart": ROUTED}


class TestIpvlanL3S(TestIpvlanOnAParent):
    network_options = {"parent": UPLINK, "ipvlan_mode": "l3s"}
    known_failures = {"test_networks_are_apart": ROUTED}
