"""The base of the groups of cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from transom_conformance.limits.site import Groups
from transom_conformance.suite import Suite, World


class LimitsCases(Suite):
    """The groups in which each case works."""

    kind = "limits"

    @pytest.fixture
    def groups(self, world: World) -> Iterator[Groups]:
        """The case's groups; ended behind it, and nothing of them may be left."""
        groups = Groups(world)
        try:
            yield groups
        finally:
            groups.close()
