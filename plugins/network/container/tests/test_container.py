"""What the suite cannot see of the driver container."""

from __future__ import annotations

from pathlib import Path

import pytest

from transom.contract.network import Endpoint, Network
from transom.errors import ConfigError, NotSupported
from transom_network_container import Container

ENDPOINT = Endpoint(id="e" * 64, container="c" * 64)


@pytest.fixture
def driver():
    return Container(options=None, root=Path("/nowhere"), run=Path("/nowhere"))


def test_a_missing_name_is_asked_for(driver):
    with pytest.raises(ConfigError) as caught:
        driver.netns(endpoint=ENDPOINT)
    text = "network driver container needs to know whose network to share: write container:NAME"
    assert str(caught.value) == text


def test_there_is_nothing_to_attach_to(driver):
    with pytest.raises(NotSupported) as caught:
        driver.attach(network=Network(id="a" * 64, name="container"), endpoint=ENDPOINT, netns=0)
    text = "network driver container shares another container's namespace: there is nothing to attach to"
    assert str(caught.value) == text
