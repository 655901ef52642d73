"""The suites have power: a driver that is correct but for one fault is found out by the case that is there for it."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from seeded import CORRECT, FAULTS  # noqa: E402  # it stands beside this file

from transom_conformance.report import Report  # noqa: E402

sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Variables with which the faulty drivers are installed, as a distribution of their own."""
    place = tmp_path_factory.mktemp("distribution")
    info = place / "transom_seeded-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transom-seeded\nVersion: 1.0\n")
    points = {}
    for (kind, name), (cls, _) in FAULTS.items():
        points.setdefault(f"transom.{kind}", []).append(f"{name} = seeded:{cls.__qualname__}")
        if kind == "auth":
            points.setdefault("transom.conformance", []).append(f"auth.{name} = seeded:EXAMPLES")
    points["transom.conformance"].append("auth.peer = seeded:EXAMPLES")
    texts = ("[{}]\n{}\n".format(group, "\n".join(lines)) for group, lines in points.items())
    (info / "entry_points.txt").write_text("".join(texts))
    return {**os.environ, "PYTHONPATH": f"{HERE}:{place}", "TMPDIR": str(place)}


def prove(environment, kind, driver, cases):
    """Run these cases against the driver and return the report."""
    file = Path(environment["TMPDIR"]) / f"{kind}-{driver}.json"
    command = [sys.executable, "-m", "transom_conformance", kind, driver, "--json", str(file)]
    done = subprocess.run([*command, "-k", " or ".join(cases)], env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = msgspec.json.decode(file.read_bytes(), type=Report)
    assert done.returncode == (0 if report.proved else 1)
    return report


def outcomes(report, case):
    """Return how the case ended, with each of its parameters."""
    return {found.outcome for found in report.cases if found.id.partition("[")[0] == case}


@pytest.mark.parametrize("kind", sorted({kind for kind, _ in FAULTS}))
def test_each_seeded_fault_is_caught_by_the_case_that_is_there_for_it(environment, kind, capsys):
    claimed = set()
    for cls in CORRECT:
        cases = sorted({case for fault, case in FAULTS.values() if issubclass(fault, cls)})
        if cls.kind == kind and cases:
            report = prove(environment, kind, cls.name, cases)
            wrong = [f"{c.id}: {c.reason}" for c in report.cases if c.outcome == "failed" and c.id in cases]
            assert not wrong, f"without a fault: {wrong}"
            claimed |= {(cls, case) for case in cases if "passed" in outcomes(report, case)}
    faults = {
        name: case
        for (k, name), (fault, case) in FAULTS.items()
        if k == kind
        and ("Claims" in fault.__name__ or any(issubclass(fault, c) and case == known for c, known in claimed))
    }
    if not faults:
        pytest.skip(f"this host runs no {kind} driver without faults")
    with ThreadPoolExecutor(2) as pool:
        reports = pool.map(lambda item: prove(environment, kind, item[0], [item[1]]), faults.items())
        caught = [
            name for name, report in zip(faults, reports, strict=True) if "failed" in outcomes(report, faults[name])
        ]
    with capsys.disabled():
        print(f"\n{kind}: caught {len(caught)} of {len(faults)} seeded faults")
    assert sorted(set(faults) - set(caught)) == []
