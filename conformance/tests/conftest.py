"""Distributions of drivers that exist for one test, and the command run with them installed."""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
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

    @contextmanager
    def forking(self, kind, *drivers):
        """Give a function that does as `run` does, with what the suite and those drivers need imported already."""
        words = [sys.executable, str(HERE / "forking.py"), kind, *drivers]
        pipes = dict.fromkeys(("stdin", "stdout"), subprocess.PIPE)
        with subprocess.Popen(words, env=self.environment, text=True, **pipes) as server:

            def run(*words):
                with tempfile.NamedTemporaryFile("r", dir=self.temporary) as output:
                    print(json.dumps([output.name, *words]), file=server.stdin, flush=True)
                    code = int(server.stdout.readline())
                    return subprocess.CompletedProcess(words, code, output.read(), "")

            yield run

    def prove(self, kind, driver, *words, run=None):
        """Run the suite and return the report; the exit code must fit it."""
        file = self.place / f"{kind}-{driver}.json"
        done = (run or self.run)(kind, driver, "--json", str(file), *words)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        report = msgspec.json.decode(file.read_bytes(), type=Report)
        assert done.returncode == (0 if report.proved else 1)
        return report


@pytest.fixture
def install(tmp_path):
    """A function that makes an `Installation` of entry points by group."""
    return lambda points: Installation(tmp_path / "installation", points)
