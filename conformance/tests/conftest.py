"""Distributions of drivers that exist for one test, and the command run with them installed."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from transom_conformance.report import Report

HERE = Path(__file__).parent


class Installation:
    """An environment with one more distribution, whose entry points the test gives; modules lie in tests/."""

    def __init__(self, place, points):
        self.place, info = place, place / "transom_seeded-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transom-seeded\nVersion: 1.0\n")
        texts = ("[{}]\n{}\n".format(group, "\n".join(lines)) for group, lines in points.items())
        (info / "entry_points.txt").write_text("".join(texts))
        self.temporary = place / "tmp"
        self.temporary.mkdir()
        self.environment = {**os.environ, "PYTHONPATH": f"{HERE}:{place}", "TMPDIR": str(self.temporary)}

    def command(self, *words):
        """Return the words of the command."""
        return [sys.executable, "-m", "transom_conformance", *words]

    def run(self, *words, **more):
        """Run the command to its end."""
        environment = {**self.environment, **more.pop("env", {})}
        return subprocess.run(self.command(*words), env=environment, capture_output=True, text=True, **more)

    def prove(self, kind, driver, *words):
        """Run the suite and return the report; the exit code must fit it."""
        file = self.place / f"{kind}-{driver}.json"
        done = self.run(kind, driver, "--json", str(file), *words)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        report = msgspec.json.decode(file.read_bytes(), type=Report)
        assert done.returncode == (0 if report.proved else 1)
        return report


@pytest.fixture
def install(tmp_path):
    """A function that makes an `Installation` of entry points by group."""
    return lambda points: Installation(tmp_path / "installation", points)
