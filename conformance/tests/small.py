"""Drivers for the tests of the runner: small, and quick to prove."""

import time

import msgspec

from transom.contract import Probe
from transom_network_none import Null

REPAIRS = "test_recovery_of_a_healthy_host_repairs_nothing"


class Whole(Null):
    """Correct."""

    name = "whole"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One option."""

    colour: str = "red"


class Painted(Null):
    """Correct, and has an option."""

    name = "painted"
    Options = Options
    option_docs = {"colour": "The colour."}


class Repairs(Null):
    """Finds something to repair each time."""

    name = "repairs"

    def recover(self):
        print("\x1b[31mrepairing\x1b[0m <script>")
        return ["repaired <b>what</b> was whole"]


class Known(Repairs):
    """The same, and its author knows."""

    name = "known"


class Mended(Null):
    """Correct, and its author does not know."""

    name = "mended"


class Stale(Null):
    """Its author knows of a failure in a case that there is not."""

    name = "stale"


class Odd(Null):
    """Its examples cannot be loaded."""

    name = "odd"


class Elsewhere(Null):
    """Needs what no host has."""

    name = "elsewhere"

    def probe(self):
        return Probe(usable=False, reason="no flux capacitor: install one")


class Hangs(Null):
    """Never answers."""

    name = "hangs"

    def recover(self):
        time.sleep(3600)


class Partial:
    """Is no driver."""


KNOWN = {"known_failures": {REPAIRS: "bug 7"}}
STALE = {"known_failures": {"test_what_never_was": "bug 8"}}

POINTS = {
    "transom.network": [
        f"{cls.__name__.lower()} = small:{cls.__name__}"
        for cls in (Whole, Painted, Repairs, Known, Mended, Stale, Odd, Elsewhere, Hangs, Partial)
    ],
    "transom.conformance": [
        "network.known = small:KNOWN",
        "network.mended = small:KNOWN",
        "network.stale = small:STALE",
        "network.odd = small:NOWHERE",
    ],
}
