"""A command imports what it uses and nothing else. Counted, not timed: what is imported is what costs time."""

import os
import subprocess
import sys

import pytest

# Each costs 5 to 150 ms, several times what the rest of a start costs.
EXPENSIVE = {
    "asyncio", "concurrent.futures", "dataclasses", "email", "http.client", "importlib.metadata", "logging",
    "multiprocessing", "pluggy", "pyroute2", "rich", "ssl", "stevedore", "subprocess", "tarfile", "tempfile",
    "unittest", "urllib.request", "zstandard",
}  # fmt: skip
WHAT_HELP_NEEDS_OF_US = {"transom", "transom.errors", "transom_engine", "transom_engine.cli"}


def imported(transom, *words, code=0):
    """Run the command and return the names of the modules it imported, those after a fork too."""
    trace = f"{transom.run}/imports.{os.urandom(4).hex()}"
    program = f"""
import sys
class Note:
    def find_spec(self, name, path=None, target=None):
        with open({trace!r}, "a") as file:
            file.write(name + "\\n")
sys.meta_path.insert(0, Note())
sys.argv = ["transom", *{[*map(str, words)]!r}]
from transom_engine.cli import entry
entry()
"""
    os.makedirs(transom.run, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-S", "-c", _with_site_directories() + program],
        env=transom.env, preexec_fn=transom.enter, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    with open(trace) as file:
        return {*file.read().split()}


def _with_site_directories():
    """Give an interpreter without ``site`` the same path: what .pth files import is not the command's doing."""
    return f"import sys; sys.path[:] = {sys.path!r}\n"


def drivers(names):
    return {name for name in names if name.count("_") >= 2 and name.startswith("transom_") and "." not in name}


@pytest.fixture
def warm(transom):
    """The command after its first container: what is found once per boot is known."""
    assert transom("run", "--rm", "--network", "none", "busybox", "echo", "warm") == "warm"
    return transom


def test_help_imports_no_driver_no_engine_and_nothing_expensive(empty_transom):
    names = imported(empty_transom, "--help")
    assert {n for n in names if n.startswith("transom")} <= WHAT_HELP_NEEDS_OF_US
    assert names & EXPENSIVE == set()


def test_the_help_of_a_command_imports_no_driver_and_no_engine(empty_transom):
    names = imported(empty_transom, "run", "--help")
    assert drivers(names) == set()
    assert "transom_engine.engine" not in names


def test_a_container_without_network_imports_its_drivers_only(warm):
    names = imported(warm, "run", "--rm", "--network", "none", "busybox", "true")
    assert drivers(names) == {
        "transom_storage_overlay2", "transom_network_none", "transom_limits_cgroup1", "transom_logging_json_file",
    }  # fmt: skip


def test_a_container_without_network_imports_nothing_expensive(warm):
    names = imported(warm, "run", "--rm", "--network", "none", "busybox", "true")
    assert names & EXPENSIVE == set()


def test_a_container_on_a_bridge_imports_no_other_network_driver(warm):
    warm("run", "--rm", "busybox", "true")
    names = imported(warm, "run", "--rm", "busybox", "true")
    assert {n for n in drivers(names) if "network" in n} == {"transom_network_bridge"}
    assert names & EXPENSIVE == set()


def test_a_container_on_vfs_imports_no_other_storage_driver(warm):
    words = ("run", "--rm", "--network", "none", "--storage-driver", "vfs", "busybox", "true")
    warm(*words)
    assert {n for n in drivers(imported(warm, *words)) if "storage" in n} == {"transom_storage_vfs"}


@pytest.mark.parametrize("words", [["images"], ["ps", "-a"], ["config", "show"]], ids=lambda words: words[0])
def test_a_command_that_needs_no_driver_imports_none(transom, words):
    assert drivers(imported(transom, *words)) == set()
