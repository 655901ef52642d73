"""What the command says, writes and leaves behind."""

import importlib.metadata
import json
import os
import pty
import signal
import subprocess
import time
from importlib import import_module
from xml.etree import ElementTree

import pytest

REPAIRS = "test_recovery_of_a_healthy_host_repairs_nothing"
HELP = "; see `python -m transom_conformance --help`"


@pytest.fixture
def small(install, monkeypatch, request):
    """An installation with the drivers of small.py."""
    monkeypatch.syspath_prepend(request.path.parent)
    return install(import_module("small").POINTS)


def find(report, id):
    return next(case for case in report.cases if case.id == id)


# Outcomes


def test_a_correct_driver_is_proven_and_unclaimed_cases_do_not_count_as_passed(small):
    report = small.prove("network", "whole")
    assert report.proved
    assert (report.failed, report.skipped) == (0, 0)
    assert report.passed + report.not_claimed == len(report.cases)
    case = find(report, "test_networks_are_apart[ipv4]")
    assert (case.outcome, case.reason) == ("not claimed", "whole does not declare l2")


def test_a_case_that_fails_is_reported_with_its_reason_and_trace(small):
    report = small.prove("network", "repairs", "-k", "recovery or removal")
    case = find(report, REPAIRS)
    assert (report.passed, report.failed) == (1, 1)
    assert case.name == "recovery of a healthy host repairs nothing"
    assert case.group == "Life cycle"
    assert case.doc == "Recovery is idempotent and leaves what works alone."
    assert case.reason == "assert ['repaired <b...b> was whole'] == []"
    assert "site.open().recover() == []" in case.trace
    assert "\\x1b[31mrepairing\\x1b[0m <script>" in case.trace


def test_a_known_failure_is_listed_as_skipped_and_fails_nothing(small):
    report = small.prove("network", "known", "-k", "recovery or removal")
    assert (find(report, REPAIRS).outcome, find(report, REPAIRS).reason) == ("skipped", "known failure: bug 7")
    assert report.proved


def test_a_known_failure_that_passes_fails(small):
    report = small.prove("network", "mended", "-k", "recovery or removal")
    assert (find(report, REPAIRS).outcome, find(report, REPAIRS).reason) == ("failed", "[XPASS(strict)] bug 7")


def test_a_driver_that_cannot_run_here_proves_nothing(small):
    report = small.prove("network", "elsewhere")
    reason = "network driver elsewhere cannot run on this host: no flux capacitor: install one"
    assert {(case.outcome, case.reason) for case in report.cases} == {("skipped", reason)}
    done = small.run("network", "elsewhere", "-k", "recovery")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == f"network driver elsewhere: nothing was proved: {reason}"


def test_a_case_that_hangs_fails_and_the_next_one_runs(small):
    report = small.prove("network", "hangs", "-k", "recovery or attaching_to or removal", "--timeout", "2")
    assert find(report, REPAIRS).reason == "TimeoutError: it has not ended within 2 s"
    assert find(report, "test_removal_of_what_never_was_succeeds").outcome == "passed"


@pytest.mark.parametrize("what", ["descriptor", "thread", "process", "mount"])
def test_what_leaks_fails_the_case_and_is_taken_away(install, what):
    driver = f"leaks-a-{what}"
    installation = install({"transom.storage": [f"{driver} = seeded.storage:LeaksA{what.title()}"]})
    report = installation.prove("storage", driver, "-k", "an_empty_layer")
    (case,) = report.cases
    assert case.reason.startswith("at teardown: left behind: ")
    assert what in case.reason
    assert os.listdir(installation.temporary) == []
    with open("/proc/self/mountinfo") as mounts:
        assert str(installation.temporary) not in mounts.read()


# Words that are off


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("netwrk", "whole"), "no such kind of driver: 'netwrk' (did you mean network?); the kinds are auth, limits,"),
        (("network", "whale"), "no network driver 'whale' (did you mean whole?); installed: bridge, container, "),
        ((), f"KIND and DRIVER are missing; `transom drivers ls` shows the installed ones, --all takes each{HELP}"),
        (("network",), f"DRIVER is missing; `transom drivers ls` shows the installed ones, --all takes each{HELP}"),
        (("network", "painted", "-o", "colour"), f"--option 'colour' must be KEY=VALUE{HELP}"),
        (("network", "painted", "-o", "=blue"), f"--option '=blue' must be KEY=VALUE{HELP}"),
        (
            ("network", "painted", "-o", "color=blue"),
            "network driver painted has no option 'color' (from --option) (did you mean colour?); it knows: colour",
        ),
        (
            ("network", "whole", "-k", "zzz"),
            "--select 'zzz' fits no case of the network suite; `transom conformance network whole --list` shows them",
        ),
        (
            ("--all", "auth", "-k", "zzz"),
            "--select 'zzz' fits no case of any suite; `transom conformance --all --list` shows them",
        ),
        (("network", "whole", "-k", "a b"), "Wrong expression passed to --select: a b: at column 3: expected end of "),
        (("network", "whole", "--json", "/none/x"), f"/none/x: no such directory: /none{HELP}"),
        (("network", "whole", "--html", "."), f"Invalid value for '--html': File '.' is a directory.{HELP}"),
        (("network", "whole", "--timeout", "0"), "Invalid value for '--timeout': 0.0 is not in the range x>0."),
        (("--all", "network", "whole"), f"--all takes neither DRIVER nor --option{HELP}"),
        (("network", "stale"), "TestStale.known_failures names no test of the suite: test_what_never_was"),
        (
            ("network", "odd"),
            "the examples of network driver 'odd' cannot be loaded from small:NOWHERE: AttributeError: module 'small' ",
        ),
        (("network", "partial"), "network driver 'partial' of transom-seeded 1.0 breaks its contract: it must be a "),
    ],
)
def test_what_cannot_be_run_is_refused_in_one_line(small, words, text):
    done = small.run(*words)
    assert done.stderr.startswith(f"transom: {text}")
    assert done.stderr.count("\n") == 1
    assert done.returncode == 125
    assert done.stdout == "" or "--all" in words


# Forms


def test_the_json_has_every_field_and_the_options_reach_the_driver(small):
    small.prove("network", "painted", "-k", "recovery or apart", "-o", "colour=blue")
    report = json.loads((small.place / "network-painted.json").read_text())
    assert list(report) == [
        *("kind", "driver", "distribution", "version", "passed", "failed", "not_claimed", "skipped", "options"),
        *("capabilities", "undeclared", "core", "host", "started", "seconds", "cases"),
    ]
    assert [report[key] for key in ("kind", "driver", "distribution", "version", "core")] == [
        *("network", "painted", "transom-seeded", "1.0", importlib.metadata.version("transom-core"))
    ]
    assert [report[key] for key in ("passed", "failed", "not_claimed", "skipped")] == [1, 0, 2, 0]
    assert report["options"] == {"colour": "blue"}
    assert report["capabilities"] == ["singleton"]
    assert "publish" in report["undeclared"]
    assert list(report["host"]) == ["system", "kernel", "arch", "python", "cgroup", "filesystem"]
    assert all(isinstance(value, str) and value for value in report["host"].values())
    assert report["seconds"] >= sum(case["seconds"] for case in report["cases"])
    for case in report["cases"]:
        assert list(case)[:6] == ["id", "name", "group", "outcome", "seconds", "reason"]


def test_with_all_every_usable_driver_is_run_and_the_others_are_named(small):
    files = {form: small.place / form for form in ("json", "junit", "html", "badge")}
    words = [word for form, file in files.items() for word in (f"--{form}", str(file))]
    done = small.run("--all", "network", "-k", "recovery_of_a_healthy", "--timeout", "2", *words)
    assert done.returncode == 1
    reports = {report["driver"]: report["failed"] for report in json.loads(files["json"].read_text())}
    assert reports["whole"] == reports["none"] == 0
    assert reports["repairs"] == reports["hangs"] == 1  # and not the outcome of the driver before
    assert "elsewhere" not in reports
    assert "network driver elsewhere cannot run on this host: no flux capacitor: install one\n" in done.stdout
    assert "network driver 'partial' of transom-seeded 1.0 breaks its contract: " in done.stdout
    assert "the examples of network driver 'odd' cannot be loaded from small:NOWHERE: " in done.stdout


def test_of_several_drivers_there_is_one_document_each(small):
    files = {form: small.place / form for form in ("json", "junit", "html", "badge")}
    words = [word for form, file in files.items() for word in (f"--{form}", str(file))]
    small.run("--all", "network", "-k", "recovery_of_a_healthy", "--timeout", "2", *words)
    reports = json.loads(files["json"].read_text())
    tried, passed = (sum(r["passed"] + n * r["failed"] for r in reports) for n in (1, 0))
    suites = ElementTree.parse(files["junit"]).getroot()
    assert [suite.get("name") for suite in suites] == [f"network {report['driver']}" for report in reports]
    assert sum(int(suite.get("failures")) for suite in suites) == len(list(suites.iter("failure"))) == tried - passed
    badge = ElementTree.parse(files["badge"]).getroot()
    assert badge.get("aria-label") == f"transom conformance {passed}/{tried}"
    page = files["html"].read_text()
    for report in reports:
        assert f'href="#network-{report["driver"]}"' in page
        assert f'id="network-{report["driver"]}"' in page


def test_the_page_needs_nothing_else_and_shows_text_as_text(small):
    small.prove("network", "repairs", "--html", str(small.place / "page"))
    page = (small.place / "page").read_text()
    for outside in ("<script", "src=", "http:", "https:", "url(", "@import", "<link"):
        assert outside not in page
    assert "assert [&#x27;repaired &lt;b...b&gt; was whole&#x27;] == []" in page
    assert "Recovery of a healthy host repairs nothing" in page
    assert "Recovery is idempotent and leaves what works alone." in page
    assert "transom-seeded 1.0" in page
    assert os.uname().release in page


def test_the_list_names_every_case_and_runs_none(small):
    done = small.run("network", "hangs", "--list")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "Life cycle"
    assert f"  {REPAIRS}" in lines
    assert len([line for line in lines if line.startswith("  test_")]) == len(small.prove("network", "whole").cases)


def test_elsewhere_than_on_a_terminal_each_case_is_a_line_and_the_table_follows(small):
    done = small.run("network", "repairs", "-k", "recovery or removal")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0].startswith("passed ")
    assert lines[0].endswith(" s  removal of what never was succeeds")
    assert ["Life", "cycle", "1", "1"] in [line.split() for line in lines]
    assert lines[-3:] == [
        f"FAILED {REPAIRS}",
        "assert ['repaired <b...b> was whole'] == []",
        "network driver repairs: 1 of 2 cases failed",
    ]


def test_on_a_terminal_one_line_moves_and_failures_stay(small):
    main, side = pty.openpty()
    words = small.command("network", "repairs", "-k", "recovery or removal")
    environment = {**small.environment, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.Popen(words, env=environment, stdin=side, stdout=side, stderr=side)
    os.close(side)
    text = b""
    try:
        while block := os.read(main, 65536):
            text += block
    except OSError:  # the other side was closed
        pass
    finally:
        os.close(main)
    assert done.wait() == 1
    assert b"\x1b[2K" in text
    assert b"failed: recovery of a healthy host repairs nothing" in text
    assert b"1 of 2 cases failed" in text
    assert b"passed         0." not in text


# Surroundings


def test_pytest_settings_of_others_have_no_say(small):
    (small.place / "pytest.ini").write_text("[pytest]\naddopts = --bogus\n")
    (small.place / "conftest.py").write_text("raise RuntimeError\n")
    done = small.run(
        *("network", "whole", "-k", "recovery"),
        cwd=small.place,
        env={"PYTEST_ADDOPTS": "--bogus", "PYTEST_PLUGINS": "no_such_plugin"},
    )
    assert "network driver whole: the one case passed in " in done.stdout
    assert done.returncode == 0


def test_nothing_is_left_in_the_temporary_directory(small):
    small.prove("network", "repairs", "-k", "recovery or removal")
    assert os.listdir(small.temporary) == []


def test_an_interrupted_run_ends_at_once_and_leaves_nothing(small):
    words = small.command("network", "hangs", "-k", "recovery or removal")
    with subprocess.Popen(words, env=small.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout.readline().startswith(b"passed ")
        time.sleep(1)  # now the next case hangs
        running.send_signal(signal.SIGINT)
        assert running.communicate(timeout=20) == (b"", b"\n")
    assert running.returncode == 130
    assert os.listdir(small.temporary) == []


def test_what_a_killed_run_left_is_taken_away_by_the_next_and_a_run_in_progress_is_not(small):
    words = small.command("network", "hangs", "-k", "recovery or removal")
    running = [subprocess.Popen(words, env=small.environment, stdout=subprocess.PIPE) for _ in range(2)]
    for process in running:
        assert process.stdout.readline().startswith(b"passed ")
    running[0].kill()
    running[0].wait()
    assert len(os.listdir(small.temporary)) == 2
    small.prove("network", "whole", "-k", "recovery")
    assert len(os.listdir(small.temporary)) == 1
    running[1].send_signal(signal.SIGINT)
    assert running[1].wait(20) == 130
    assert os.listdir(small.temporary) == []
    for process in running:
        process.stdout.close()


def test_the_engine_finds_the_command_by_its_entry_point():
    (point,) = importlib.metadata.entry_points(group="transom.commands", name="conformance")
    assert point.load().name == "conformance"
