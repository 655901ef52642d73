"""The base of the groups of cases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest

from transom_conformance.storage.layers import Layers, fresh_layers
from transom_conformance.suite import Suite, World


class StorageCases(Suite):
    """The layers that each case works on.

    Attributes:
        filesystem: the kind that the driver's root must be on, for cases that make a file system of their own.
    """

    kind: ClassVar[str] = "storage"
    filesystem: ClassVar[str] = "ext4"

    @pytest.fixture
    def layers(self, world: World) -> Iterator[Layers]:
        """Layers over a fresh root; afterwards all are removed and nothing of them may be left."""
        with fresh_layers(world) as layers:
            yield layers
