"""The driver cgroup1 proves itself by the suite of its kind."""

from transom_conformance.limits import LimitsSuite


class TestCgroup1(LimitsSuite):
    driver = "cgroup1"
