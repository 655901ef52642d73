"""The suite as an author's own pytest run has it: fifteen lines, and the same rules."""

import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from transom_conformance.network import NetworkSuite
from transom_conformance.suite import census

AUTHOR = """
from transom_conformance.network import NetworkSuite


class TestMine(NetworkSuite):
    driver = "{driver}"
    known_failures = {known}
"""

REPAIRS = "test_recovery_of_a_healthy_host_repairs_nothing"


@pytest.fixture
def author(install):
    """A function that runs an author's file and returns pytest's words about it."""
    names = {"whole": "Whole", "repairs": "Repairs", "elsewhere": "Elsewhere"}
    installation = install({"transom.network": [f"{name} = small:{cls}" for name, cls in names.items()]})

    def run(*words, known="{}", driver="whole"):
        file = installation.place / "test_mine.py"
        file.write_text(AUTHOR.format(driver=driver, known=known))
        command = [sys.executable, "-m", "pytest", "-ra", "-p", "no:cacheprovider", *words, str(file)]
        return subprocess.run(
            command, env=installation.environment, cwd=installation.place, capture_output=True, text=True
        )

    return run


def test_an_author_inherits_the_cases_and_not_the_abstract_suite(author):
    done = author()
    assert done.returncode == 0
    assert "TestMine" not in done.stderr
    assert "not claimed: whole does not declare l2" in done.stdout
    assert "failed" not in done.stdout.splitlines()[-1]


def test_a_known_failure_is_expected(author):
    done = author("-k", REPAIRS, driver="repairs", known=f"{{{REPAIRS!r}: 'bug 7'}}")
    assert done.returncode == 0
    assert "1 xfailed" in done.stdout


def test_a_known_failure_that_passes_fails_the_run(author):
    done = author("-k", REPAIRS, known=f"{{{REPAIRS!r}: 'bug 7'}}")
    assert done.returncode == 1
    assert "[XPASS(strict)] bug 7" in done.stdout


def test_a_known_failure_of_no_case_is_a_usage_error(author):
    done = author(known="{'test_nothing': 'bug 8'}")
    assert done.returncode == 4
    assert "TestMine.known_failures names no test of the suite: test_nothing" in done.stderr


def test_a_driver_that_cannot_run_here_is_skipped_with_the_reason(author):
    done = author("-k", REPAIRS, driver="elsewhere")
    assert "network driver elsewhere cannot run on this host: no flux capacitor: install one" in done.stdout
    assert "1 skipped" in done.stdout


def test_the_census_bears_threads_that_end_meanwhile(tmp_path):
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        for _ in range(500):
            census(tmp_path)
    finally:
        stop.set()
        churning.join()


def test_the_catalogue_of_network_cases_names_cases_and_files_that_are_there():
    root = Path(__file__).parents[2]
    text = (root / "docs/network-cases.md").read_text()
    cases = {name.removeprefix("test_"): getattr(NetworkSuite, name) for name in dir(NetworkSuite) if "test_" in name}
    assert {*re.findall(r"`([a-z_0-9]{12,})`", text)} - cases.keys() == set()
    paths = re.findall(r"(?:core|engine|plugins|tests|bench)/[\w/-]+(?:\.py)?", text)
    assert [path for path in paths if not (root / path).exists()] == []
    numbers = re.findall(r"^\| ([A-Z]\d+) \|", text, re.MULTILINE)
    said = {number for case in cases.values() for number in re.findall(r"\b[LKIPDAVZSB]\d+\b", case.__doc__)}
    assert said <= {*numbers}
    assert len({*numbers}) == len(numbers) == 73
