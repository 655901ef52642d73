"""What every driver is, whatever its kind.

A driver is a plain class derived from the contract of its kind (`transom.contract.storage.Storage`,
`.network.Network`, `.logging.Logging`, `.limits.Limits`, `.auth.Auth`) and named by an entry point::

    [project.entry-points."transom.storage"]
    overlay2 = "transom_storage_overlay2:Overlay2"

The group is ``transom.`` and the kind; the name is what users write in the config.

Life cycle
    Core imports the class when a user selects its name, checks it against the contract, converts the
    user's options into `Driver.Options`, and makes one instance per set of options. The constructor
    stores what it is given and touches nothing: no file, no kernel. `Driver.probe` says whether this host
    can run the driver. `Driver.recover` is called before first use after a boot or after a crash.

Operations
    A method marked with `operation` is an operation of the contract: it is called with keyword arguments
    only, under exactly the parameter names of the contract, and wrapper plugins can stand around it.
    A method also marked ``@abstractmethod`` must be implemented. One that names a capability
    (``@operation(needs=Capability.X)``) must be implemented by drivers that declare that capability, and
    in all others raises `NotSupported`; the inherited body does so.

Capabilities
    `Driver.capabilities` is a frozenset of the enum of the kind. The engine asks for a capability, never
    for a driver's name. An instance may narrow what its class declares, in its constructor, where that
    depends on its options; it may never widen it.

Faults
    Any operation may be interrupted by SIGKILL at any system call. Every mutating operation is either
    idempotent or fails cleanly, removing what is gone succeeds, and `Driver.recover` brings a half-done
    operation to an end or undoes it. What fails in the kernel or at a remote end is raised as
    `transom.errors.DriverError` with operation, object and errno.
"""

from __future__ import annotations

import enum
from abc import ABC
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import msgspec

from transom.errors import NotSupported

API = 1
"""The version of the contracts in this distribution; a driver states the one it was written for."""

KINDS = ("storage", "network", "logging", "limits", "auth")

F = TypeVar("F", bound=Callable[..., Any])


class Capability(enum.StrEnum):
    """The base of each kind's enum of capabilities; the value is the word that users and reports see."""


class NoOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a driver that has none."""


class Probe(msgspec.Struct, frozen=True):
    """Whether this host can run the driver.

    `reason` is a sentence a person can act on; it is required when not usable ("kernel has no overlay file
    system: load the module overlay") and may carry a remark when usable.
    """

    usable: bool
    reason: str = ""


class Operation(msgspec.Struct, frozen=True):
    """What `operation` notes on a method of a contract."""

    needs: Capability | None = None


def operation(*, needs: Capability | None = None) -> Callable[[F], F]:
    """Mark a method as an operation of the contract, `needs` naming the capability it belongs to."""

    def mark(method: F) -> F:
        method.__transom_operation__ = Operation(needs=needs)  # type: ignore[attr-defined]  # functions take attributes
        return method

    return mark


class Driver(ABC):
    """The base of every contract: see the module's text."""

    kind: ClassVar[str]
    """Set by the contract of the kind."""

    name: ClassVar[str]
    """What users write; equal to the entry point's name."""

    api: ClassVar[int] = API
    """The contract version the driver was written for. Write the number out: ``api = 1``."""

    Options: ClassVar[type[msgspec.Struct]] = NoOptions
    """A frozen msgspec structure; each field has a default and a line of documentation in `option_docs`."""

    option_docs: ClassVar[dict[str, str]] = {}
    """One sentence for each field of `Options`, for ``transom drivers inspect`` and the generated pages."""

    capabilities: frozenset[Capability] = frozenset()

    def __init__(self, *, options: Any, root: Path, run: Path) -> None:
        """Store what core gives; touch nothing.

        Args:
            options: an instance of `Options`, already checked.
            root: a directory of the driver's own that survives a reboot. It may not exist yet.
            run: a directory of the driver's own that is gone after a reboot. It may not exist yet.
        """
        self.options, self.root, self.run = options, root, run

    @operation()
    def probe(self) -> Probe:
        """Say whether this host can run the driver. Changes nothing that outlives the call."""
        return Probe(usable=True)

    @operation()
    def recover(self) -> list[str]:
        """Return to a state from which everything goes on, and say what was repaired, a line each.

        Called under the engine's lock, with no other operation of this driver in progress anywhere.
        Idempotent: a second call repairs nothing and returns an empty list.
        """
        return []

    @operation()
    def status(self) -> dict[str, str]:
        """Return facts for ``transom info``: what the driver found and chose, in words."""
        return {}

    @operation()
    def close(self) -> None:
        """Release descriptors and threads. Closing twice is harmless."""
        return None

    def unsupported(self, needs: Capability) -> NotSupported:
        """Make the error that an operation of an undeclared capability raises."""
        return NotSupported(f"{self.kind} driver {self.name} does not support {needs}")
