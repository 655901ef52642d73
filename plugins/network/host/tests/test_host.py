"""What the suite cannot see of the driver host."""

from __future__ import annotations

from pathlib import Path

import pytest

from transom.contract.network import Endpoint, Netns, NetnsKind, Network
from transom.errors import NotSupported
from transom_network_host import Host


def test_containers_get_the_hosts_namespace_and_nothing_else():
    driver = Host(options=None, root=Path("/nowhere"), run=Path("/nowhere"))
    endpoint = Endpoint(id="e" * 64, container="c" * 64)
    assert driver.netns(endpoint=endpoint) == Netns(kind=NetnsKind.HOST)
    with pytest.raises(NotSupported) as caught:
        driver.attach(network=Network(id="a" * 64, name="host"), endpoint=endpoint, netns=0)
    assert str(caught.value) == "network driver host shares the host's namespace: there is nothing to attach to"
