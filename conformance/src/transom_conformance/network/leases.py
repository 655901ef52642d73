"""Addresses that a DHCP server gives: for drivers whose networks have the options ``dhcp`` and ``parent``."""

from __future__ import annotations

import os
import threading

import msgspec
import pytest

from transom.contract.network import Attachment, Endpoint, Network, Subnet
from transom.services.interfaces import route_by
from transom_conformance.network.cases import NetworkCases
from transom_conformance.network.dhcp import dhcp_server
from transom_conformance.network.site import PATIENCE, UPLINK, Has, Site, requires


class Watch:
    """What the engine does for as long as a container runs: it watches, and routes by what it is told.

    Attributes:
        said: what the driver has told, in order.
    """

    def __init__(self, site: Site, network: Network, endpoint: Endpoint, netns: int, attachment: Attachment) -> None:
        self._netns, self.said = netns, list[Attachment]()
        self._stop, self._signal = os.pipe()
        known = msgspec.structs.replace(endpoint, addresses=attachment.addresses)  # those that are on record
        self._thread = threading.Thread(
            target=site.driver.watch,
            kwargs={
                "network": network, "endpoint": known, "netns": netns, "stop": self._stop, "changed": self._changed
            },
        )  # fmt: skip
        self._thread.start()

    def _changed(self, attachment: Attachment) -> None:
        self.said.append(attachment)
        route_by(self._netns, [(attachment.interface or "", hop) for hop in attachment.gateways])

    def end(self) -> None:
        """Have the driver stop, and wait for it. Twice is harmless."""
        if self._signal >= 0:
            os.close(self._signal)
            self._thread.join(4 * PATIENCE)
            assert not self._thread.is_alive(), "watch goes on after it was told to stop"
            os.close(self._stop)
            self._signal = -1


class Leases(NetworkCases):
    """Addresses that a DHCP server gives."""

    @requires(Has.ADDRESSES, Has.WATCH)
    def test_a_lease_is_given_back_when_its_endpoint_is_left(self, site: Site) -> None:
        """A1: else the server runs out of addresses. However soon that is, and each time."""
        known = {field.encode_name for field in msgspec.structs.fields(type(site.driver.unwrapped).NetworkOptions)}
        if not {"dhcp", "parent"} <= known:
            pytest.skip("not claimed: its networks have no options dhcp and parent")
        with dhcp_server(site.neighbour, "lan0", site.world.path / "dhcp", "--port=0") as server:
            words = {"dhcp": "true", "parent": UPLINK}
            network = site.network(options=words, subnets=(Subnet(pool="0.0.0.0/0"),))
            for _ in range(2):
                container = site.container()
                endpoint, attachment = container.attach(network)
                (address,) = (address.partition("/")[0] for address in attachment.addresses)
                assert server.count(f"DHCPACK(lan0) {address}"), "the address is none of the server's"
                Watch(site, network, endpoint, container.netns, attachment).end()
                site.driver.detach(network=network, endpoint=endpoint)
                site.driver.release(network=network, endpoint=endpoint)
                server.await_(f"DHCPRELEASE(lan0) {address}")
