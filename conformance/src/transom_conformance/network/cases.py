"""The base of the groups of cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from transom.contract.network import Owned
from transom_conformance.network.site import Site
from transom_conformance.suite import Suite, World


class NetworkCases(Suite):
    """The host and its neighbour on which each case works.

    Attributes:
        network_options: those of each network that a case makes, as a user would write them.
    """

    kind = "network"
    network_options: ClassVar[dict[str, str]] = {}

    def prepare(self, site: Site) -> None:
        """Bring up what the driver needs beside the host's kernel, in its namespace; the inherited body: nothing."""

    @pytest.fixture
    def site(self, world: World) -> Iterator[Site]:
        """The host and its neighbour; behind the case the host must be as it was before."""
        site = Site(self, world)
        self.prepare(site)
        before = site.census()
        try:
            yield site
        finally:
            site.sweep()
            owned = site.driver.owned()
            left = site.census() - before
        assert owned == Owned()
        assert not left, f"left behind on the host: {', '.join(sorted(left))}"
