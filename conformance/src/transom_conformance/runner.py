"""Running the suite of a kind against a driver, and noting what each case did.

The suite runs by pytest in this process, with settings of its own: neither the configuration of the directory that
one happens to stand in, nor its plugins, nor ``PYTEST_ADDOPTS`` have a say.

What a suite must be told about a driver, such as requests that an auth driver knows, the driver's distribution can
bring along: an entry point in the group ``transom.conformance``, named KIND.DRIVER, whose object is a mapping of the
suite's attributes. It imports nothing from here::

    [project.entry-points."transom.conformance"]
    "auth.peer" = "transom_auth_peer.examples:EXAMPLES"
"""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from transom.contract import Capability
from transom.drivers import Drivers, contract_of, installed
from transom.errors import ConfigError, ContractError, NotFound
from transom_conformance.plugin import NOT_CLAIMED
from transom_conformance.report import Case, Outcome, Report, count

_PREFIX = "transom-conformance-"

TIMEOUT = 600.0
"""Seconds after which a case has hung: more than any needs on a slow and busy host."""


class NothingSelected(NotFound):
    """`select` fits no case of the suite."""


class Watcher:
    """Is told how a run goes; this one does not listen."""

    def begin(self, total: int) -> None:
        """So many cases will be run."""

    def start(self, name: str) -> None:
        """A case begins."""

    def finish(self, case: Case) -> None:
        """A case is over."""

    def end(self) -> None:
        """The run is over, complete or not; it may never have begun."""


def run(
    kind: str,
    driver: str,
    *,
    options: Mapping[str, str] | None = None,
    select: str = "",
    timeout: float = TIMEOUT,
    watcher: Watcher | None = None,
) -> Report:
    """Run the suite against a driver and return what it proved.

    Args:
        options: the driver's, as a user writes them.
        select: which cases, in pytest's syntax of ``-k``; empty for all.
        timeout: seconds after which a case that has not ended fails.

    Raises:
        ConfigError: no such kind or option, or `select` is no expression.
        NotFound: the driver is not installed, or `select` fits no case of the suite.
        ContractError: the driver breaks its contract.
        KeyboardInterrupt: the run was interrupted.
    """
    subject = _Subject(kind, driver, options or {})
    started, begin = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()
    watcher = watcher or Watcher()
    recorder = _Recorder(kind, watcher, timeout)
    try:
        _pytest(subject, recorder, select)
    finally:
        watcher.end()
    found: dict[str, Any] = {**subject.facts(), **count(recorder.cases)}
    return Report(
        kind=kind,
        driver=driver,
        **found,
        host=host(),
        started=started,
        seconds=round(time.monotonic() - begin, 3),
        cases=recorder.cases,
    )


def listed(kind: str, driver: str, *, options: Mapping[str, str] | None = None, select: str = "") -> list[Case]:
    """Return the cases without running them; `outcome` says nothing. Raises as `run` does."""
    recorder = _Recorder(kind, Watcher())
    _pytest(_Subject(kind, driver, options or {}), recorder, select, "--collect-only")
    return [recorder.case(id, "skipped", 0.0, "not run") for id in recorder.items]


class _Subject:
    """The driver under test; making one raises what `run` raises about it."""

    def __init__(self, kind: str, driver: str, options: Mapping[str, str]) -> None:
        self.kind, self.driver = kind, driver
        contract_of(kind)
        with _workplace() as work:
            drivers = Drivers(state=work, run=work)
            drivers.load(kind, driver)
            self.attributes = examples(kind, driver)
            self.options = {**self.attributes.get("options", {}), **options}
            self.opened = drivers.open(kind, driver, self.options, where="--option")

    def facts(self) -> dict[str, Any]:
        """Return what a report says about the driver."""
        from importlib.metadata import version

        known = next(i for i in installed(self.kind) if i.name == self.driver)
        declared = sorted(self.opened.capabilities)
        return {
            "distribution": known.distribution,
            "version": known.version,
            "options": self.options,
            "capabilities": [str(c) for c in declared],
            "undeclared": [str(c) for c in sorted(capabilities_of(self.kind)) if c not in declared],
            "core": version("transom-core"),
        }

    def module(self) -> str:
        """Return the source of a test module with the one suite."""
        suite = f"{self.kind.capitalize()}Suite"
        name = "Test" + re.sub(r"\W", "", self.driver.title())
        return (
            f"from transom_conformance.{self.kind} import {suite}\n"
            "from transom_conformance.runner import examples\n\n"
            f"attributes = examples({self.kind!r}, {self.driver!r})\n"
            f"attributes |= {{'driver': {self.driver!r}, "
            f"'options': attributes.get('options', {{}}) | {self.options!r}}}\n"
            f"{name} = type({name!r}, ({suite},), attributes)\n"
        )


def examples(kind: str, driver: str) -> dict[str, Any]:
    """Return what the driver's distribution tells the suite; see the module's text.

    Raises:
        ContractError: it cannot be loaded or is no mapping.
    """
    from importlib.metadata import entry_points

    for point in entry_points(group="transom.conformance", name=f"{kind}.{driver}"):
        try:
            return dict(point.load())
        except Exception as error:
            raise ContractError(
                f"the examples of {kind} driver {driver!r} cannot be loaded from {point.value}: "
                f"{type(error).__name__}: {error}"
            ) from error
    return {}


def capabilities_of(kind: str) -> list[Capability]:
    """Return all capabilities that drivers of the kind can declare."""
    members = vars(sys.modules[contract_of(kind).__module__]).values()
    enums = [m for m in members if isinstance(m, type) and issubclass(m, Capability) and m is not Capability]
    return [capability for enum in enums for capability in enum]


class _Recorder:
    """A pytest plugin that notes cases and keeps pytest itself quiet."""

    def __init__(self, kind: str, watcher: Watcher, timeout: float = TIMEOUT) -> None:
        self.cases: list[Case] = []
        self.items: dict[str, pytest.Item] = {}
        self.broken = ""
        self.interrupted = False
        self._kind, self._watcher, self._timeout = kind, watcher, timeout
        self._phases: list[pytest.TestReport] = []

    @pytest.hookimpl(trylast=True)
    def pytest_configure(self, config: pytest.Config) -> None:
        pytest.register_assert_rewrite(f"transom_conformance.{self._kind}", "transom_conformance.suite")
        config.pluginmanager.unregister(name="terminalreporter")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.broken = report.longreprtext

    def pytest_keyboard_interrupt(self) -> None:
        self.interrupted = True

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = {item.nodeid: item for item in session.items}
        self._watcher.begin(len(self.items))

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._phases = []
        self._watcher.start(_sentence(self.items[nodeid].name))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Iterator[None]:
        with _alarm(self._timeout):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Iterator[None]:
        with _alarm(self._timeout):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self) -> Iterator[None]:
        with _alarm(self._timeout):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._phases.append(report)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        outcome, reason, trace = _settle(self._phases)
        case = self.case(nodeid, outcome, sum(phase.duration for phase in self._phases), reason, trace)
        self.cases.append(case)
        self._watcher.finish(case)

    def case(self, nodeid: str, outcome: Outcome, seconds: float, reason: str, trace: str = "") -> Case:
        """Make the record of a case."""
        item = self.items[nodeid]
        function = getattr(item, "function", None)
        return Case(
            id=item.name,
            name=_sentence(item.name),
            group=_group(function) if function else "",
            outcome=outcome,
            seconds=round(seconds, 3),
            reason=_printable(reason),
            doc=inspect.getdoc(function) or "",
            trace=_printable(_shortened(trace)),
        )


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer, even in a system call. Children of a fork inherit no timer."""
    import signal

    def ring(*_: object) -> None:
        raise TimeoutError(f"it has not ended within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _settle(phases: list[pytest.TestReport]) -> tuple[Outcome, str, str]:
    """Return outcome, reason and trace of a case from the reports on its set-up, call and tear-down."""
    failures = [phase for phase in phases if phase.failed]
    if failures:
        trace = "\n\n".join(text for phase in failures for text in (phase.longreprtext, *_said(phase)))
        return "failed", _why(failures[0]), trace
    for phase in phases:
        if phase.skipped:
            known = getattr(phase, "wasxfail", None)
            if known is not None:
                return "skipped", f"known failure: {known.removeprefix('reason: ')}", ""
            text = phase.longrepr[2] if isinstance(phase.longrepr, tuple) else phase.longreprtext
            reason = text.removeprefix("Skipped: ")
            if reason.startswith(NOT_CLAIMED):
                return "not claimed", reason.removeprefix(f"{NOT_CLAIMED}: "), ""
            return "skipped", reason, ""
    return "passed", "", ""


def _why(phase: pytest.TestReport) -> str:
    """Return one line about a failure."""
    crash = getattr(phase.longrepr, "reprcrash", None)
    text = (crash.message if crash else phase.longreprtext).removeprefix("AssertionError: ")
    line = next((line.strip() for line in text.splitlines() if line.strip()), "failed")
    return line if phase.when == "call" else f"at {phase.when}: {line}"


def _said(phase: pytest.TestReport) -> Iterator[str]:
    for title, text in phase.sections:
        if text.strip():
            yield f"--- {title} ---\n{text.rstrip()}"


def _shortened(text: str, limit: int = 40_000) -> str:
    """Leave out the middle of what is too long to read."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n... {len(text) - limit} characters left out ...\n{text[-limit // 2 :]}"


def _printable(text: str) -> str:
    """Write out what neither a terminal nor JSON nor XML can carry: control characters, halves of surrogate pairs."""
    return re.sub("[^\t\n\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", lambda m: ascii(m[0])[1:-1], text)


def _sentence(name: str) -> str:
    name, bracket, parameters = name.partition("[")
    return name.removeprefix("test_").replace("_", " ") + (f" [{parameters}" if bracket else "")


def _group(function: Callable[..., Any]) -> str:
    """Return the attribute ``group`` of a case, or the heading above it: a comment in the class that stands alone.

    Without one the class itself is the group: `LifeCycle` is "Life cycle".
    """
    given = getattr(function, "group", None)
    if given is not None:
        return str(given)
    code = inspect.unwrap(function).__code__
    lines = _lines(code.co_filename)
    for number in range(min(code.co_firstlineno, len(lines)) - 1, 0, -1):
        if begun := re.match(r"class (\w+)", lines[number]):
            name = re.sub(r"\w*Suite$", "", begun[1]) or "General"
            return re.sub(r"(?<=[a-z])([A-Z])", lambda match: f" {match[1].lower()}", name)
        heading = re.fullmatch(r"    # (\S.*?)\.?", lines[number])
        if heading and not lines[number - 1].strip() and not lines[number + 1].strip():
            return heading[1]
    return "General"


@cache
def _lines(file: str) -> tuple[str, ...]:
    try:
        return (*Path(file).read_text(encoding="utf-8").splitlines(), "")
    except OSError:
        return ("",)


def _pytest(subject: _Subject, recorder: _Recorder, select: str, *more: str) -> None:
    """Let pytest run; raise what has nothing to do with the driver's cases."""
    with _workplace() as work, _settings(work), redirect_stderr(io.StringIO()) as said:
        (work / "pytest.ini").write_text(
            "[pytest]\nxfail_strict = true\ntmp_path_retention_policy = failed\nverbosity_assertions = 1\n"
        )
        module = work / f"{work.name.replace('-', '_')}.py"  # a name that no earlier run in this process had
        module.write_text(subject.module())
        arguments = [
            *("-c", str(work / "pytest.ini"), "--rootdir", str(work), f"--basetemp={work / 't'}"),
            *("-p", "transom_conformance.plugin", "-p", "no:cacheprovider"),
            *("--import-mode=importlib", "--strict-markers", "--tb=short", "--color=no"),
            *(["-k", select] if select else []),
            *more,
            str(module),
        ]
        try:
            code = pytest.main(arguments, plugins=[recorder])
        except Exception:  # what an interrupted case leaves open fails outside of any case
            if not recorder.interrupted:
                raise
        finally:
            sys.modules.pop(module.stem, None)
    if recorder.interrupted:
        raise KeyboardInterrupt
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise NothingSelected(
            f"--select {select!r} fits no case of the {subject.kind} suite; "
            f"`transom conformance {subject.kind} {subject.driver} --list` shows them"
        )
    if code == pytest.ExitCode.USAGE_ERROR:
        text = said.getvalue().strip().removeprefix("ERROR: ").replace("'-k'", "--select")
        raise ConfigError((text.splitlines() or ["pytest refused its arguments"])[0])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        text = recorder.broken or said.getvalue()
        raise ContractError(
            f"the {subject.kind} suite could not be run: {(text.strip().splitlines() or [f'pytest says {code}'])[-1]}"
        )


@contextmanager
def _workplace() -> Iterator[Path]:
    """Make a directory for a run, and take away what it holds afterwards; what killed runs left goes first.

    A run holds a lock on its directory: one that is not locked belongs to nobody.
    """
    import tempfile

    for left in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if (fd := _hold(left)) is not None:
            try:
                _clear(left)
            finally:
                os.close(fd)
    fd = None
    while fd is None:  # another run may take it for a leftover before it is locked
        work = Path(tempfile.mkdtemp(prefix=_PREFIX))
        fd = _hold(work)
    try:
        yield work
    finally:
        _clear(work)
        os.close(fd)


def _hold(place: Path) -> int | None:
    """Lock a directory of ours by a descriptor; None where it is another's, in use, or gone."""
    import fcntl

    try:
        fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(fd)
        if mine.st_uid == os.geteuid() and os.path.samestat(mine, os.stat(place)):
            return fd
    except OSError:
        pass
    os.close(fd)
    return None


def _clear(place: Path) -> None:
    """Remove a directory with all in it, mounts first, and never what is mounted."""
    from transom.services.mounts import unmount
    from transom.services.trees import remove_tree

    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for mounted in reversed([line.split()[4] for line in lines]):
        if mounted.startswith(f"{place}/"):
            unmount(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), mounted))
    remove_tree(place)


@contextmanager
def _settings(work: Path) -> Iterator[None]:
    """Keep what others set for pytest away, and temporary files in the run's own directory."""
    import tempfile

    ours = {"PYTEST_ADDOPTS": "", "PYTEST_PLUGINS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    before, place = {name: os.environ.get(name) for name in ours}, tempfile.tempdir
    os.environ.update(ours)
    tempfile.tempdir = str(work)
    try:
        yield
    finally:
        tempfile.tempdir = place
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def host() -> dict[str, str]:
    """Return what of the host decides whether a driver works."""
    import platform
    import tempfile

    try:
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "Linux")
    except OSError:
        system = "Linux"
    return {
        "system": system,
        "kernel": platform.release(),
        "arch": platform.machine(),
        "python": platform.python_version(),
        "cgroup": _cgroup(),
        "filesystem": filesystem(tempfile.gettempdir()),
    }


def _cgroup() -> str:
    if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
        return "v2"
    types = {line.split(" - ")[1].split()[0] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    return " and ".join(v for t, v in (("cgroup", "v1"), ("cgroup2", "v2")) if t in types) or "none"


def filesystem(path: str) -> str:
    """Return the type of the file system that a path is on, "ext4", from the mounts of this process."""
    path, found, best = os.path.realpath(path), "unknown", ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place, type = line.split()[4], line.split(" - ")[1].split()[0]
        if (path == place or path.startswith(place.rstrip("/") + "/")) and len(place) >= len(best):
            found, best = type, place
    return found


def usable(kind: str | None = None) -> list[tuple[str, str, str]]:
    """List the installed drivers, of one kind or of all: kind, name, and why this host cannot run it, or "".

    One that cannot even say is listed as usable: running it brings the reason to light, and is a failure.
    """
    if kind:
        contract_of(kind)
    with _workplace() as work:
        drivers, found = Drivers(state=work, run=work), []
        for known in installed(kind):
            try:
                probe = drivers.open(known.kind, known.name).probe()
            except Exception:
                found.append((known.kind, known.name, ""))
            else:
                found.append((known.kind, known.name, "" if probe.usable else probe.reason))
    return found
