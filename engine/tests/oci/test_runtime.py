import os
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from transom.errors import ConfigError, NotFound, NotSupported
from transom_engine.oci import runtime as runtimes
from transom_engine.oci.runtime import Runtime, choose, first_error, start_error, try_run

CRUN = Runtime(name="crun", path="/usr/bin/crun", flags=("--cgroup-manager=disabled",))


def script(path, *lines):
    path.write_text("\n".join(["#!/bin/sh", *lines]) + "\n")
    path.chmod(0o755)
    return str(path)


def mounts_on(path):
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if path in line]


def test_a_runtime_that_works_is_found_and_says_what_it_is(runtime):
    assert os.access(runtime.path, os.X_OK)
    assert runtime.name in runtime.version
    assert runtime.manages_cgroups == (runtime.name == "runc")


def test_the_verdict_is_reached_once_and_again_after_an_upgrade(runtime, run_dir, tmp_path):
    calls = tmp_path / "calls"
    path = script(tmp_path / f"{runtime.name}-mine", f"echo x >> {calls}", f'exec {runtime.path} "$@"')
    chosen = choose(run_dir=run_dir, configured=path)
    assert chosen.path == path
    tried = calls.read_text()
    assert choose(run_dir=run_dir, configured=path) == chosen
    assert calls.read_text() == tried
    os.utime(path)
    assert choose(run_dir=run_dir, configured=path) == chosen
    assert len(calls.read_text()) > len(tried)


def test_the_usual_verdict_and_a_configured_one_are_kept_apart(runtime, run_dir):
    usual = choose(run_dir=run_dir, names=(runtime.name,))
    assert choose(run_dir=run_dir, configured=runtime.name) == usual
    assert sorted(os.listdir(run_dir)) == [f"runtime-{runtime.name}.json", "runtime.json", "runtime.lock"]


def test_a_torn_verdict_is_reached_anew(runtime, run_dir):
    for name in os.listdir(run_dir):
        with open(f"{run_dir}/{name}", "w") as file:
            file.write('{"files": [')
    assert choose(run_dir=run_dir, names=(runtime.name,)) == runtime


def test_a_kept_verdict_costs_well_under_a_millisecond(runtime, run_dir):
    def once():
        start = time.perf_counter()
        choose(run_dir=run_dir, names=(runtime.name,))
        return time.perf_counter() - start

    assert min(once() for _ in range(20)) < 0.001


def test_a_trial_leaves_nothing_behind(runtime, run_dir):
    def state():
        return mounts_on(run_dir), sorted(os.listdir(run_dir)), sorted(os.listdir("/proc/self/fd"))

    before = state()
    assert try_run(runtime=runtime, run_dir=run_dir) is None
    assert state() == before
    groups = [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names]
    assert f"transom-trial-{os.stat(run_dir).st_ino}" not in groups


def test_when_none_works_each_says_why_and_the_packages_are_named(run_dir, tmp_path):
    path = script(tmp_path / "runc-broken", "echo 'this kernel is odd' >&2", "echo more >&2", "exit 3")
    with pytest.raises(NotSupported) as caught:
        choose(run_dir=run_dir, configured=path)
    assert str(caught.value) == (
        f"no OCI runtime works on this host ({path}: this kernel is odd); install Debian's package crun or runc"
    )
    assert os.listdir(run_dir) == ["runtime.lock"]


def test_a_runtime_that_says_nothing_is_told_by_its_exit_status(run_dir, tmp_path):
    silent = script(tmp_path / "runc-silent", "exit 3")
    assert try_run(runtime=Runtime(name="runc", path=silent), run_dir=run_dir) == "exit status 3"


def test_a_runtime_that_is_not_installed_is_not_found(run_dir):
    with pytest.raises(NotSupported) as caught:
        choose(run_dir=run_dir, configured="/opt/absent/crun")
    assert str(caught.value) == (
        "no OCI runtime works on this host (/opt/absent/crun: not found); install Debian's package crun or runc"
    )


@pytest.mark.parametrize(
    ("configured", "text"),
    [
        ("kata", 'unknown runtime "kata"; known: crun, runc, or the path of one of them'),
        ("/bin/true", "runtime /bin/true: its name begins with none of crun, runc"),
    ],
)
def test_a_runtime_whose_command_line_is_not_known_is_refused(run_dir, configured, text):
    with pytest.raises(ConfigError) as caught:
        choose(run_dir=run_dir, configured=configured)
    assert str(caught.value) == text


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def sleepers(mark):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if mark.encode() in file.read().split(b"\0") and alive(pid):
                    found.append(int(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_runtime_that_hangs_is_given_up_and_killed(run_dir, tmp_path, monkeypatch):
    mark = f"77777.{os.getpid()}1"
    slow = script(tmp_path / "runc-slow", f"sleep {mark} & sleep {mark}")
    monkeypatch.setattr(runtimes, "_SECONDS", 0.5)
    assert try_run(runtime=Runtime(name="runc", path=slow), run_dir=run_dir) == "did not end within 0.5 s"
    wait_for(lambda: not sleepers(mark))


def test_killing_the_caller_in_the_middle_of_a_trial_leaves_nothing(run_dir, tmp_path):
    mark = f"77777.{os.getpid()}2"
    slow = script(tmp_path / "runc-slow", f"sleep {mark} & sleep {mark}")
    code = f"from transom_engine.oci.runtime import choose; choose(run_dir={run_dir!r}, configured={slow!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: len(sleepers(mark)) == 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not sleepers(mark))
    assert not mounts_on(run_dir)
    assert os.listdir(run_dir) == ["runtime.lock"]


def test_commands_have_the_global_arguments_first():
    assert CRUN.create(id="i", root="/r", bundle="/b", pid_file="/p", console_socket="/c", log="/l") == [
        *("/usr/bin/crun", "--cgroup-manager=disabled", "--log", "/l", "--log-format", "json", "--root", "/r"),
        *("create", "--bundle", "/b", "--pid-file", "/p", "--console-socket", "/c", "i"),
    ]
    assert CRUN.kill(id="i", root="/r", signal=9)[2:] == ["--root", "/r", "kill", "i", "9"]
    assert CRUN.delete(id="i", root="/r")[2:] == ["--root", "/r", "delete", "--force", "i"]
    assert CRUN.exec(id="i", root="/r", process="/p", detach=True)[4:] == [
        *("exec", "--process", "/p", "--detach", "i"),
    ]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (b"", ""),
        (b"plain words\nmore", "plain words"),
        (b'{"level":"warning","msg":"w"}\n{"level":"error","msg":"e\\nf"}\n{"level":"error","msg":"g"}', "e"),
        (b'{"level":"err', '{"level":"err'),
    ],
)
def test_the_first_error_of_a_log_is_found(log, message):
    assert first_error(log=log) == message


def test_any_other_failure_is_the_runtimes_own():
    error = start_error(runtime=CRUN, log=b'{"level":"error","msg":"mount: no"}', command="x")
    assert (str(error), error.exit_code) == ("crun: mount: no", 125)
    assert str(start_error(runtime=CRUN, log=b"", command="x")) == "crun: failed without a word; see its log"


@pytest.mark.parametrize(
    ("command", "code", "kind", "text"),
    [
        ("absent", 127, NotFound, 'exec: "absent": executable file not found in the container\'s $PATH'),
        ("/bin/absent", 127, NotFound, 'exec: "/bin/absent": executable file not found in the container\'s $PATH'),
        ("/etc/passwd", 126, ConfigError, 'exec: "/etc/passwd": permission denied: not an executable file'),
        ("/etc", 126, ConfigError, 'exec: "/etc": permission denied: not an executable file'),
    ],
)
def test_a_command_that_cannot_be_executed_is_told_as_docker_tells_it(place, record, command, code, kind, text):
    place.bundle(record(command))
    log = place.directory / "log"
    status, _, _ = place.sh(place.runtime.create(bundle=str(place.directory), log=str(log), **place.options))
    assert status != 0
    error = start_error(runtime=place.runtime, log=log.read_bytes(), command=command)
    assert (type(error), error.exit_code, str(error)) == (kind, code, text)


def test_the_state_of_a_created_container_names_its_pid(place, record):
    place.bundle(record("sleep", "100"))
    pid_file = place.directory / "pid"
    status, out, err = place.sh(
        place.runtime.create(bundle=str(place.directory), pid_file=str(pid_file), **place.options),
        place.runtime.state(**place.options),
    )
    assert status == 0, err
    state = msgspec.json.decode(out)
    assert (state["status"], state["pid"]) == ("created", int(pid_file.read_text()))


def test_deleting_what_is_absent_succeeds(place):
    status, _, err = place.sh(place.runtime.delete(**place.options), place.runtime.delete(**place.options))
    assert status == 0, err
