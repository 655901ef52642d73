"""The harness of ``make test-vm``: what a guest's suite does decides the outcome, and nothing outlives the harness."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN = Path(__file__).parent / "vm" / "run.py"
KERNEL = "/usr/bin/linux.uml"

CASES = """
import os, pathlib, time

def test_good():
    assert os.uname().nodename == "guest"
    assert os.environ["GREETING"] == "hello"
    pathlib.Path(__file__).with_name("written").write_text("by a guest")

def test_bad():
    assert 6 * 7 == 54, "what a failure says"

def test_unsteady():
    mark = pathlib.Path(os.environ["TMPDIR"], "mark")
    known = mark.exists()
    mark.touch()
    assert known

def test_panics():
    pathlib.Path("/proc/sysrq-trigger").write_text("c")

def test_hangs():
    time.sleep(600)
"""


def harness(*words, **keywords):
    keywords = {"capture_output": True, "text": True, "timeout": 300, "check": False, **keywords}
    return subprocess.run([sys.executable, RUN, *words], **keywords)


def table(directory, **suites):
    """Write a table of suites, each of one case of CASES, and return its path."""
    (directory / "cases.py").write_text(CASES)
    lines = []
    for name, settings in suites.items():
        lines += [f"[{name}]", f'pytest = ["{directory}/cases.py::test_{name.partition("-")[0]}"]', "memory = 512"]
        lines += [f"{key} = {value}" for key, value in settings.items()]
    path = directory / "suites.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """One run of suites that come out differently; its output, exit code and directory."""
    if os.geteuid() != 0:
        pytest.skip("not root: a guest needs a mount and a pid namespace")
    if not os.access(KERNEL, os.X_OK):
        pytest.skip("no user-mode-linux: guests need a user-mode kernel")
    directory = tmp_path_factory.mktemp("guests")
    suites = table(
        directory,
        hangs={"timeout": 30},
        good={"env.GREETING": '"hello"', "needs": '["module:overlay", "filesystem:tmpfs", "controller:memory"]'},
        bad={},
        unsteady={},
        panics={},
        **{"good-elsewhere": {"needs": '["filesystem:nofs", "module:nomodule", "controller:none", "path:/no"]'}},
    )
    return harness("--table", suites), directory


def outcome(ran, name):
    summary = ran[0].stdout.partition("\n== guests\n")[2]
    return re.search(rf"^{name} +(.*?)( \(\d+ s\))?$", summary, re.M)[1]


def test_a_suite_runs_in_a_guest_and_what_it_writes_stays_there(ran):
    assert outcome(ran, "good") == "passed: 1 passed", ran[0].stdout
    assert "test_good PASSED" in ran[0].stdout
    assert sorted(path.name for path in ran[1].iterdir()) == ["cases.py", "suites.toml"]


def test_a_failing_suite_fails_the_run_and_its_failure_is_shown(ran):
    assert ran[0].returncode == 1
    assert outcome(ran, "bad") == "failed: pytest exits 1, 1 failed"
    assert "bad | E       AssertionError: what a failure says" in ran[0].stdout


def test_a_case_that_passes_alone_is_called_unsteady(ran):
    assert outcome(ran, "unsteady") == "passed: 1 passed, 1 unsteady"


def test_a_suite_whose_features_the_kernel_lacks_is_not_run(ran):
    missing = "filesystem:nofs, module:nomodule, controller:none, path:/no"
    assert re.fullmatch(rf"not run: the guest's kernel \S+ lacks {missing}", outcome(ran, "good-elsewhere"))


def test_a_guest_that_panics_is_a_failure_with_the_consoles_last_lines(ran):
    assert outcome(ran, "panics").startswith("failed: the guest ended before its suite did")
    assert "panics: the console's last lines:" in ran[0].stdout
    assert "Kernel panic - not syncing: sysrq triggered crash" in ran[0].stdout


def test_a_guest_that_hangs_is_a_failure(ran):
    assert outcome(ran, "hangs") == "failed: not finished after 30 s"


def test_a_guest_that_never_boots_is_a_failure(ran, tmp_path):
    done = harness("--table", table(tmp_path, good={}), "--kernel", "/bin/false")
    assert done.returncode == 1
    assert "good: failed: the guest ended before its suite did (status 1)" in done.stdout


def test_a_kernel_without_overlay_runs_suites_on_a_read_only_root(ran, tmp_path):
    done = harness("--no-overlay", "--table", table(tmp_path, good={"env.GREETING": '"hello"'}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "good: passed: 1 passed" in done.stdout


def test_a_suite_asked_for_by_name_must_run(ran, tmp_path):
    suites = table(tmp_path, good={"needs": '["filesystem:nofs"]'})
    assert harness("--table", suites).returncode == 0
    assert harness("--table", suites, "good").returncode == 1


def test_a_name_stands_for_all_suites_that_begin_with_it(ran, tmp_path):
    suites = table(tmp_path, **{"good-1": {}, "good-2": {}, "goodness": {}, "bad": {}})
    done = harness("--table", suites, "--kernel", "/bin/false", "good")
    named = [line.split()[0] for line in done.stdout.partition("== guests\n")[2].splitlines()]
    assert named == ["good-1", "good-2"]


def test_a_suite_whose_modules_are_not_built_is_not_run_and_told_how_to_build_them(tmp_path):
    suites = table(tmp_path, good={"kernel": '"qemu"', "built": '"zfs-modules"'})
    done = harness("--table", suites, "good", env={"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path)})
    assert done.returncode == 1, done.stderr
    told = "good: not run: its kernel modules are not built: make zfs-modules builds them, in 10 minutes"
    assert told in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_the_harness_takes_its_guests_with_it_when_interrupted(ran, tmp_path, number, code):
    suites = table(tmp_path, hangs={})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    run = subprocess.Popen([sys.executable, RUN, "--table", suites], **pipes, text=True)
    try:
        assert any("collected 1 item" in line for line in run.stdout), "the guest did not come up"
        below = descendants(run.pid)
        assert any("linux.uml" in words for words in below.values())
    finally:
        run.send_signal(number)
        said = run.communicate(timeout=60)[1]
    assert (run.returncode, said) == (code, "")
    deadline = time.monotonic() + 30
    while (left := {pid for pid in below if os.path.exists(f"/proc/{pid}")}) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left


def descendants(pid):
    """Return the command lines of all processes below one, by pid."""
    found = {}
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        for child in file.read().split():
            with open(f"/proc/{child}/cmdline") as cmdline:
                found[int(child)] = cmdline.read()
            found |= descendants(child)
    return found


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["--kernel", "/no/linux"],
            "no executable user-mode kernel at /no/linux: give VM_KERNEL the path of a kernel built with ARCH=um, "
            "or leave it out for Debian's",
        ),
        (["god"], "no suite 'god' in {table}: did you mean good? there are bad, good"),
        (["else"], "no suite 'else' in {table}: there are bad, good"),
        (["--table", "/no/suites.toml"], "/no/suites.toml: [Errno 2] No such file or directory: '/no/suites.toml'"),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(words, complaint, tmp_path):
    suites = table(tmp_path, good={}, bad={})
    done = harness("--table", suites, *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"test-vm: {complaint.format(table=suites)}\n"


def test_a_full_disk_is_told_in_one_line(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("not root: a file system of the test's own needs to be mounted")
    state = RUN.parent.parent.parent / ".venv" / "vm"
    state.mkdir(exist_ok=True)
    small = (
        f"mount -t tmpfs -o size=64k small {state} && exec {sys.executable} {RUN} --table {table(tmp_path, good={})}"
    )
    command = ["unshare", "--mount", "sh", "-c", small]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"test-vm: cannot copy the checkout to {state}: .*No space left on device.*\n", done.stderr)


def test_a_suite_for_qemu_on_a_host_without_it_is_refused(tmp_path):
    done = harness("--table", table(tmp_path, good={"kernel": '"qemu"'}), "good", env={"PATH": "/no"})
    assert done.returncode == 2
    assert done.stderr == "test-vm: no qemu-system-x86_64 on this host: make test-vm-full installs it\n"


def test_what_a_guest_needs_on_a_processor_with_tiles_cannot_be_built_without_a_compiler(tmp_path):
    if "amx_tile" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the processor has no AMX")
    done = harness("--table", table(tmp_path, good={}), "good", env={"PATH": "/no"})
    assert done.returncode == 2
    assert "'gcc'" in done.stderr
    assert done.stderr.endswith("): install gcc and libc6-dev\n")


def test_a_misspelt_key_of_the_table_is_named(tmp_path):
    suites = table(tmp_path, good={"timeot": 3})
    done = harness("--table", suites)
    assert done.returncode == 2
    assert done.stderr == f"test-vm: {suites}: Object contains unknown field `timeot` - at `$[...]`\n"
