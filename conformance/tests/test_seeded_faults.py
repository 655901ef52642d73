"""The suites have power: a driver that is correct but for one fault is found out by the case that is there for it."""

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import chain

import pytest


@pytest.fixture
def seeded(monkeypatch, request):
    monkeypatch.syspath_prepend(request.path.parent)
    return import_module("seeded")


@pytest.fixture
def faulty(install, seeded):
    """An installation of all drivers with a fault."""
    points = {"transom.conformance": ["auth.peer = seeded.auth:EXAMPLES"]}
    for (kind, name), (cls, _) in seeded.FAULTS.items():
        points.setdefault(f"transom.{kind}", []).append(f"{name} = {cls.__module__}:{cls.__qualname__}")
        if example := getattr(cls, "examples", ""):
            points["transom.conformance"].append(f"{kind}.{name} = {example}")
        if kind == "auth":
            points["transom.conformance"].append(f"auth.{name} = seeded.auth:EXAMPLES")
    for cls in seeded.CORRECT:
        if cls.__module__.startswith("seeded."):  # the others are installed
            points.setdefault(f"transom.{cls.kind}", []).append(f"{cls.name} = {cls.__module__}:{cls.__qualname__}")
    return install(points)


def outcomes(report, case):
    """Return how the case ended, with each of its parameters."""
    return {found.outcome for found in report.cases if found.id.partition("[")[0] == case}


@pytest.mark.parametrize("kind", ["storage", "network", "logging", "limits", "auth"])
def test_each_seeded_fault_is_caught_by_the_case_that_is_there_for_it(faulty, seeded, kind, record_property):
    proven = set()
    for cls in (cls for cls in seeded.CORRECT if cls.kind == kind):
        cases = {case for fault, case in seeded.FAULTS.values() if issubclass(fault, cls)}
        report = faulty.prove(kind, cls.name, "-k", " or ".join(sorted(cases)))
        assert [f"{c.id}: {c.reason}" for c in report.cases if c.outcome == "failed"] == [], "without a fault"
        proven |= {(cls, case) for case in cases if outcomes(report, case) & {"passed"}}
    if not proven:
        pytest.skip(f"this host can run no {kind} driver that could be spoiled")
    faults = {
        name: case
        for (of, name), (fault, case) in seeded.FAULTS.items()
        if of == kind and ("Claims" in fault.__name__ or any(issubclass(fault, c) and case == k for c, k in proven))
    }

    def catch(names):
        with faulty.forking(kind, *{cls.name for cls, _ in proven}) as run:
            for name in names:
                # A fault may make a case loop: the suite ends it, and it counts as caught.
                report = faulty.prove(kind, name, "-k", faults[name], "--timeout", "45", run=run)
                if "failed" in outcomes(report, faults[name]):
                    yield name

    with ThreadPoolExecutor(2) as pool:
        caught = {*chain(*pool.map(lambda names: [*catch(names)], ([*faults][::2], [*faults][1::2])))}
    record_property("seeded", f"{kind}: caught {len(caught)} of {len(faults)} seeded faults")
    assert sorted({*faults} - caught) == []
