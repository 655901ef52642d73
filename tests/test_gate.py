"""The run of the tests itself: who runs what, and how it ends when it is cancelled."""

import ast
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WAITING = """
import os, pathlib, subprocess, time, pytest
here = pathlib.Path(__file__).parent

@pytest.fixture(scope="session")
def server():
    with subprocess.Popen(["sleep", "1000"]) as process:
        yield
        time.sleep(0.3)
        process.kill()
    (here / f"cleared-{process.pid}").touch()

@pytest.mark.parametrize("number", range(2))
def test_waits(server, number):
    if (child := os.fork()) == 0:
        time.sleep(1000)
        os._exit(0)
    (here / f"started-{child}").touch()
    try:
        time.sleep(1000)
    finally:
        os.kill(child, 15)  # what a test forks ends by SIGTERM, as ever
        assert os.waitpid(child, 0)[1] == 15
        (here / f"ended-{child}").touch()
"""

WHO = """
import os, pathlib, pytest

@pytest.mark.parametrize("number", range(12))
def test_tells_its_worker(number):
    with pathlib.Path(__file__).with_suffix(".workers").open("a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + " ")
"""


def together():
    """Return the files that the root's conftest keeps together."""
    for node in ast.parse((ROOT / "conftest.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "TOGETHER":
            return ast.literal_eval(node.value)
    raise AssertionError("there is no TOGETHER")


def command(place, *words):
    """Return what runs the tests of a place with the root's conftest, and how."""
    shutil.copy(ROOT / "conftest.py", place)
    words = [sys.executable, "-m", "pytest", "--rootdir", str(place), "-p", "no:cacheprovider", *words, "."]
    return words, {
        "cwd": place,
        "env": {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
    }


def test_the_cases_of_a_file_with_a_dear_fixture_run_in_one_worker_and_others_in_any(tmp_path):
    files = together()
    assert [name for name in files if not (ROOT / name).is_file()] == []
    kept, spread = tmp_path / files[-1], tmp_path / "tests" / "test_others.py"
    kept.parent.mkdir(parents=True)
    for file in (kept, spread):
        file.write_text(WHO)
    words, where = command(tmp_path, "-n2", "--import-mode=importlib")
    done = subprocess.run(words, **where, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    one, others = (file.with_suffix(".workers").read_text().split() for file in (kept, spread))
    assert (len(one), len(others), len({*one})) == (12, 12, 1)
    assert {*others} - {*one}, "what could run beside waited"


@pytest.mark.parametrize(
    ("words", "workers", "send"),
    [
        ([], 1, os.kill),
        (["-n2"], 2, os.kill),
        (["-n2"], 2, os.killpg),
    ],
    ids=["one process", "the first of several", "all of several"],
)
def test_a_run_ended_by_sigterm_clears_up_as_after_ctrl_c(tmp_path, words, workers, send):
    (tmp_path / "test_waiting.py").write_text(WAITING)
    words, where = command(tmp_path, *words)
    output = tmp_path / "output"
    with output.open("wb") as file:
        run = subprocess.Popen(words, **where, start_new_session=True, stdout=file, stderr=file)
    try:
        deadline = time.monotonic() + 60
        while len([*tmp_path.glob("started-*")]) < workers:
            assert run.poll() is None, output.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        send(run.pid, signal.SIGTERM)
        time.sleep(0.1)
        run.send_signal(signal.SIGTERM)  # impatience changes nothing
        assert run.wait(timeout=60) == pytest.ExitCode.INTERRUPTED, output.read_text()
        ended = {*tmp_path.glob("ended-*")}
        assert len(ended) == len([*tmp_path.glob("cleared-*")]) == workers, output.read_text()
        with pytest.raises(ProcessLookupError):
            os.killpg(run.pid, 0)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.wait()
