"""In the guest: run one suite, unless the kernel lacks what it needs, and say how it went in the last line.

The suite is a JSON file; its keys are those of suites.toml. As a pytest plugin (``-p guest``) this module prints a
failure when it happens and counts the cases.
"""

import json
import os
import subprocess
import sys

RESULT = "guest-result:"
COUNTS = "GUEST_COUNTS"


def main(path):
    """Run the suite of the file at `path`."""
    with open(path) as file:
        suite = json.load(file)
    missing = [need for need in suite["needs"] if not present(need)]
    outcome = f"not run: the guest's kernel {os.uname().release} lacks {', '.join(missing)}" if missing else run(suite)
    print(f"\n{RESULT} {outcome}")


def present(need):
    """Say whether the kernel has ``module:NAME``, ``filesystem:NAME``, ``controller:NAME`` or ``path:NAME``."""
    kind, _, name = need.partition(":")
    if kind in ("module", "filesystem"):
        loaded = subprocess.run(["modprobe", "-q", name], check=False).returncode == 0
        if kind == "module":
            return loaded or os.path.exists(f"/sys/module/{name.replace('-', '_')}")
        with open("/proc/filesystems") as file:
            return name in file.read().split()
    if kind == "controller":
        with open("/sys/fs/cgroup/cgroup.controllers") as file:
            return name in file.read().split()
    if kind == "path":
        return os.path.exists(name)
    raise SystemExit(f"unknown need {need!r}: use module:, filesystem:, controller: or path:")


def run(suite):
    """Run the cases; what fails is tried once more, alone. Return the outcome in words."""
    scratch = os.environ["TMPDIR"]
    os.environ |= {
        "DM_DISABLE_UDEV": "1",  # libdevmapper makes its nodes itself: nobody else does here
        "HYPOTHESIS_STORAGE_DIRECTORY": f"{scratch}/hypothesis",
        "PYTHONPATH": os.path.dirname(os.path.abspath(__file__)),
        "PYTHONDONTWRITEBYTECODE": "1",
        COUNTS: f"{scratch}/counts",
        **suite["env"],
    }
    words = [sys.executable, "-m", "pytest", "-v", "-p", "guest", "-o", f"cache_dir={scratch}/cache", *suite["pytest"]]
    code = subprocess.run(words, check=False).returncode
    counted = counts()
    if code == 1:
        print("== once more, alone: what failed above")
        again = ["--last-failed", "--last-failed-no-failures", "none"]
        code = subprocess.run([*words, *again], check=False).returncode
        second = counts()
        steadied = second.get("passed", 0)
        counted = {
            **counted,
            "passed": counted.get("passed", 0) + steadied,
            "failed": second.get("failed", 0),
            "unsteady": steadied,
        }
    told = ", ".join(f"{number} {what}" for what, number in counted.items() if number)
    if code:
        return f"failed: pytest exits {code}, {told or 'no case ran'}"
    return f"passed: {told}" if counted.get("passed") else f"failed: no case passed, {told or 'none ran'}"


def counts():
    """Return how many cases of the last run came out how."""
    with open(os.environ[COUNTS]) as file:
        return json.load(file)


def pytest_addoption(parser):
    """Have ``--part``, by which a suite too long for one guest is divided."""
    parser.addoption("--part", default="1/1", help="N/M: every M-th case, from the N-th on")


def pytest_collection_modifyitems(config, items):
    """Leave out the cases of the other parts."""
    number, parts = map(int, config.getoption("--part").split("/"))
    left_out = [item for at, item in enumerate(items) if at % parts != number - 1]
    items[:] = items[number - 1 :: parts]
    if left_out:
        config.hook.pytest_deselected(items=left_out)


_counted = {}


def pytest_runtest_logreport(report):
    """Count, and show at once what would otherwise be shown at the end."""
    if report.when == "call" or report.outcome != "passed":
        _counted[report.outcome] = _counted.get(report.outcome, 0) + 1
    if report.failed:
        print(f"\n{report.longreprtext}\n", flush=True)


def pytest_sessionfinish():
    """Leave the counts to the process that started pytest."""
    with open(os.environ[COUNTS], "w") as file:
        json.dump(_counted, file)


if __name__ == "__main__":
    main(sys.argv[1])
