"""The suite of storage drivers: layers keep what was written, stack as the contract says, and survive being killed.

The numbers in the docstrings are those of docs/storage-cases.md, the catalogue of storage cases; they stay the same
from release to release. Every case works through `transom.services.snapshots.Snapshots`, as the engine does, or calls
the driver's own operations, and mounts in a namespace of its own, so that a failed case leaves no mount.
"""

from __future__ import annotations

from transom_conformance.storage.attributes import Attributes
from transom_conformance.storage.concurrency import Concurrency
from transom_conformance.storage.contents import Contents
from transom_conformance.storage.crashes import Crashes
from transom_conformance.storage.differences import Differences
from transom_conformance.storage.idmaps import IdMaps
from transom_conformance.storage.inputs import Inputs
from transom_conformance.storage.layers import (
    Layers,
    Node,
    fresh_layers,
    held_elsewhere,
    inside,
    names_in,
    prepare,
    put,
    tree_of,
)
from transom_conformance.storage.lifecycle import LifeCycle
from transom_conformance.storage.limits import Limits
from transom_conformance.storage.scribbles import scribble

__all__ = [
    "Layers",
    "Node",
    "StorageSuite",
    "fresh_layers",
    "held_elsewhere",
    "inside",
    "names_in",
    "prepare",
    "put",
    "scribble",
    "tree_of",
]


class StorageSuite(Inputs, Crashes, Concurrency, Limits, IdMaps, Attributes, Differences, Contents, LifeCycle):
    """What every storage driver must do. Derive from it and set `driver`, and `options` where it needs some.

    pytest runs the groups from the last base class to the first.
    """
