"""What the suite cannot see of the driver none."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from transom.contract.network import Attachment, Endpoint, Network
from transom.errors import DriverError
from transom.services.netns import create, inside
from transom_network_none import Null

NETWORK, ENDPOINT = Network(id="a" * 64, name="none"), Endpoint(id="e" * 64, container="c" * 64)


@pytest.fixture
def driver():
    return Null(options=None, root=Path("/nowhere"), run=Path("/nowhere"))


def test_a_container_has_no_interface_but_its_loopback(driver):
    netns = create()
    try:
        before = inside(netns, socket.if_nameindex)
        assert driver.attach(network=NETWORK, endpoint=ENDPOINT, netns=netns) == Attachment()
        assert inside(netns, socket.if_nameindex) == before
    finally:
        os.close(netns)


def test_what_is_no_namespace_is_named(driver, tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(DriverError) as caught:
            driver.attach(network=NETWORK, endpoint=ENDPOINT, netns=fd)
    finally:
        os.close(fd)
    assert str(caught.value) == f"network none: attach {'e' * 64} failed: Invalid argument"
