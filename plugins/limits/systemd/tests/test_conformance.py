"""The driver systemd proves itself by the suite of its kind, where systemd manages a unified hierarchy."""

from transom_conformance.limits import LimitsSuite


class TestSystemd(LimitsSuite):
    driver = "systemd"
