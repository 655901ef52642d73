"""The driver macvlan proves itself by the suite of its kind."""

import pytest

from transom.errors import ConfigError
from transom_conformance.network import UPLINK, NetworkSuite


class TestMacvlan(NetworkSuite):
    driver = "macvlan"


class TestMacvlanOnAParent(NetworkSuite):
    driver = "macvlan"
    network_options = {"parent": UPLINK}

    def test_an_internal_network_has_no_way_out(self, site):
        """I2: on a parent it would have one."""
        with pytest.raises(ConfigError, match=r"internal.*leave out parent=uplink0"):
            site.network(internal=True)
