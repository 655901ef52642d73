"""The pytest plugin of the suites: capabilities decide what applies, known failures are strict both ways.

It changes nothing for tests that do not derive from `transom_conformance.suite.Suite`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transom.contract import Driver
    from transom_conformance.suite import Suite

NOT_CLAIMED = "not claimed"
"""What the reason of a case begins with that needs an undeclared capability."""


def _suite_of(item: pytest.Item) -> type[Suite] | None:
    from transom_conformance.suite import Suite

    cls = getattr(item, "cls", None)
    return cls if isinstance(cls, type) and issubclass(cls, Suite) and cls.driver else None


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, so that ``--strict-markers`` knows it."""
    config.addinivalue_line(
        "markers", "requires(*capabilities): the case applies to drivers that declare these capabilities"
    )


def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> list[pytest.Item] | None:
    """Keep pytest from collecting a suite itself, imported into an author's module: it has no driver yet."""
    from transom_conformance.suite import Suite

    if isinstance(obj, type) and issubclass(obj, Suite) and not obj.driver:
        return []
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark known failures, and refuse names of cases that the suite does not have."""
    names: dict[type[Suite], set[str]] = {}
    for item in items:
        suite = _suite_of(item)
        if suite is None:
            continue
        case = getattr(item, "originalname", item.name)
        names.setdefault(suite, set()).add(case)
        reason = suite.known_failures.get(case)
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
    for suite in names:
        strange = [name for name in suite.known_failures if not hasattr(suite, name)]
        if strange:
            raise pytest.UsageError(f"{suite.__name__}.known_failures names no test of the suite: {', '.join(strange)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what the driver does not claim, and everything when it cannot run on this host."""
    suite = _suite_of(item)
    if suite is None:
        return
    driver = _opened(suite)
    probe = driver.probe()
    if not probe.usable:
        pytest.skip(f"{suite.kind} driver {suite.driver} cannot run on this host: {probe.reason}")
    for mark in item.iter_markers("requires"):
        missing = [str(c) for c in mark.args if c not in driver.capabilities]
        if missing:
            pytest.skip(f"{NOT_CLAIMED}: {suite.driver} does not declare {', '.join(missing)}")


_drivers: dict[type, Driver] = {}


def _opened(suite: type[Suite]) -> Driver:
    """Open the suite's driver, once, only to ask it: over a directory that nothing else uses."""
    if suite not in _drivers:
        import atexit
        import shutil
        import tempfile

        from transom.drivers import Drivers

        place = Path(tempfile.mkdtemp(prefix="transom-probe-", dir=suite.ground()))
        owner = os.getpid()

        def forget() -> None:
            if os.getpid() == owner:  # not in a forked child
                shutil.rmtree(place, ignore_errors=True)

        atexit.register(forget)
        drivers = Drivers(state=place, run=place)
        _drivers[suite] = drivers.open(suite.kind, suite.driver, suite.options, where=f"{suite.__name__}.options")
    return _drivers[suite]
