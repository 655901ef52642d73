"""The suite for log drivers: what `transom.contract.logging` promises, on real files, processes and signals."""

from __future__ import annotations

from transom_conformance.logging.bookkeeping import Bookkeeping
from transom_conformance.logging.faults import Faults
from transom_conformance.logging.following import Following
from transom_conformance.logging.reading import Reading
from transom_conformance.logging.remote import Remote
from transom_conformance.logging.writing import Writing

__all__ = ["LoggingSuite"]


class LoggingSuite(Writing, Reading, Following, Faults, Bookkeeping, Remote):
    """What every log driver must do.

    Attributes:
        rotating: options, as a user writes them, with which the driver rotates after some tens of kilobytes and yet
            keeps a hundred megabytes: for drivers that rotate by themselves.
        collector: how to run a collector and reach it, for drivers that send; `logging.collector` says how.
    """
