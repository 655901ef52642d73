"""The run of the tests itself: how it ends when it is cancelled."""

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
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as process:
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
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "test_waiting.py").write_text(WAITING)
    output = tmp_path / "output"
    with output.open("wb") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", "pytest", "--rootdir", str(tmp_path), "-p", "no:cacheprovider", *words, "."],
            cwd=tmp_path, start_new_session=True, stdout=file, stderr=file,
            env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        )  # fmt: skip
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
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
