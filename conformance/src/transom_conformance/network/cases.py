"""The base of the groups of cases."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
        with kept(self, world) as site:
            yield site


@contextmanager
def kept(suite: NetworkCases, world: World) -> Iterator[Site]:
    """Make a site, sweep it at the end, and see that nothing is left on its host."""
    site = Site(suite, world)
    suite.prepare(site)
    before = site.census()
    try:
        yield site
    finally:
        site.sweep()
        owned = site.driver.owned()
        left = site.census() - before
    assert owned == Owned()
    assert not left, f"left behind on the host: {', '.join(sorted(left))}"


@contextmanager
def own_site(suite: NetworkCases, path: Path) -> Iterator[Site]:
    """Make a site for what a driver has to prove beside the suite, below an empty directory."""
    world = World(path=path, kind=suite.kind, driver=suite.driver, options=suite.options)
    try:
        with kept(suite, world) as site:
            yield site
            site.sweep()
            assert site.driver.recover() == []
    finally:
        world.clean_up()
