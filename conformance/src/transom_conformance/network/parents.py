"""The suite on an interface of the host: for drivers whose networks have a parent that users name."""

from __future__ import annotations

import pytest

from transom.errors import ConfigError
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.site import UPLINK, Site


class OnAParent(NetworkCases):
    """Put it before `NetworkSuite`: each network is on `UPLINK`, by the option ``parent``."""

    network_options = {"parent": UPLINK}

    def test_an_internal_network_has_no_way_out(self, site: Site) -> None:
        """I2: on a parent it would have one."""
        with pytest.raises(ConfigError, match=rf"internal.*leave out parent={UPLINK}"):
            site.network(internal=True)
