"""Each distribution is complete: it builds, says the truth about itself, and works alone with core."""

import email
import json
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from distributions import ROOT, Environment, build, requirements

import transom

PLUGINS = sorted(path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml"))
ALL = [ROOT / "core", ROOT / "conformance", ROOT / "engine", *PLUGINS]
IMPORT_ALL = """
import importlib, pkgutil, sys
top = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(top.__path__, f"{top.__name__}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""
# A few cases of each kind: that the driver works there at all; its own tests have the rest. `make dist-test` runs all.
SOME = {
    "storage": "life_cycle or owned or usage",
    "network": "loopback or owned or refused",
    "logging": "order or tail",
    "limits": "absent or owned",
}


def label(folder):
    return str(folder.relative_to(ROOT))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Wheels of all distributions by folder."""
    place = tmp_path_factory.mktemp("dist")
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ALL, pool.map(lambda folder: build(folder, place), ALL), strict=True))


@pytest.mark.parametrize("folder", ALL, ids=label)
def test_wheel_and_sdist_have_the_same_version_their_readme_and_their_tests(wheels, folder):
    wheel = wheels[folder]
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (info,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(info))
    assert metadata["Version"] == transom.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert (folder / "README.md").read_text().strip() == metadata.get_payload(decode=True).decode().strip()
    assert any(name.endswith("/py.typed") for name in names)
    assert [name for name in names if "/tests/" in name or "__pycache__" in name] == []
    with tarfile.open(wheel.with_name(f"{wheel.name.split('-py3')[0]}.tar.gz")) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md"} <= inside
    assert any(name.startswith("tests/test_") for name in inside)


@pytest.mark.parametrize("folder", PLUGINS, ids=label)
def test_a_driver_works_alone_with_core_and_imports_only_what_it_declares(wheels, folder, tmp_path):
    kind, name = folder.parent.name, folder.name
    alone = Environment(tmp_path / "alone")
    alone.add(wheels[ROOT / "core"], wheels[folder])
    done = alone.run("-c", IMPORT_ALL, f"transom_{kind}_{name}".replace("-", "_"))
    assert (done.returncode, done.stderr) == (0, "")
    if os.geteuid() != 0:
        pytest.skip("not root: the suites make mounts and namespaces")
    alone.add(wheels[ROOT / "conformance"])
    report = tmp_path / "report.json"
    select = ("-k", SOME[kind]) if kind in SOME and "TRANSOM_WHOLE_SUITES" not in os.environ else ()
    done = alone.run("-m", "transom_conformance", kind, name, "--json", report, *select)
    found = json.loads(report.read_text())
    failed = [f"{case['id']}: {case['reason']}" for case in found["cases"] if case["outcome"] == "failed"]
    assert failed == []
    if found["passed"]:
        assert done.returncode == 0, done.stdout + done.stderr
    else:  # nothing is proved on a host that cannot run it, and that is not success
        assert done.returncode == 1
        assert {case["outcome"] for case in found["cases"]} <= {"skipped", "not claimed"}
        assert "nothing was proved" in done.stdout


def test_core_conformance_and_engine_import_only_what_they_declare(wheels, tmp_path):
    for name, package in (("core", "transom"), ("conformance", "transom_conformance"), ("engine", "transom_engine")):
        alone = Environment(tmp_path / name)
        alone.add(*{wheels[ROOT / "core"], wheels[ROOT / name]})
        done = alone.run("-c", IMPORT_ALL, package)
        assert (name, done.returncode, done.stderr) == (name, 0, "")
    done = alone.run("-m", "transom_engine", "--version")
    assert done.stdout == f"transom {transom.__version__}\n"


def test_requirements_are_read_without_extras():
    texts = ["transom-core<0.2,>=0.1", "pytest>=8; extra == 'test'", "click>=8"]
    assert requirements(texts) == ["transom-core", "click"]
    assert Path(__file__).with_name("distributions.py").is_file()
