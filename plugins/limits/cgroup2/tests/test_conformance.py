"""The driver cgroup2 proves itself by the suite of its kind."""

from transom_conformance.limits import LimitsSuite


class TestCgroup2(LimitsSuite):
    driver = "cgroup2"
