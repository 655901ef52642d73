"""What the suites of all kinds have in common: a world for each case, the driver under test, and a leak census."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from transom.contract import Capability, Driver
from transom.drivers import Drivers, bind, contract_of
from transom_conformance.returns import watched


class Suite:
    """The base of every suite; authors derive from the suite of a kind and set `driver`.

    Attributes:
        driver: the name under which the driver is installed.
        options: its options, as a user would write them.
        known_failures: test names with the reason why they fail today. Strict both ways: one that passes fails
            the run, and so does a name that no test of the suite has.

    A case that needs a capability says so with ``@pytest.mark.requires(StorageCapability.CLONE)``. For a driver
    that does not declare it the case is reported as *not claimed*, never as passed.

    Every case gets a `world`, and after it the census of the process (descriptors, threads, children), the
    mounts and loop devices below the world's directory, and what the driver still owns must be as before.
    """

    kind: ClassVar[str]
    driver: ClassVar[str] = ""
    options: ClassVar[dict[str, str]] = {}
    known_failures: ClassVar[dict[str, str]] = {}

    @classmethod
    def ground(cls) -> Path | None:
        """Return the directory below which the driver can work, where any will not do (`transom_conformance.disks`)."""
        return None

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[World]:
        """A directory of the case's own, cleaned up behind it; what leaks fails the case."""
        from transom.services.trees import remove_tree

        ground = self.ground()
        path = Path(tempfile.mkdtemp(dir=ground)) if ground else tmp_path
        world = World(path=path, kind=self.kind, driver=self.driver, options=self.options)
        before = census(path)
        try:
            yield world
        finally:
            world.clean_up()
        leaked = census(path) - before
        assert not leaked, f"left behind: {', '.join(sorted(leaked))}"
        if ground:
            remove_tree(path)


class World:
    """A case's place: a directory, drivers opened over it, and things to undo in reverse order.

    Args:
        path: an empty directory.
        kind, driver, options: what `open` opens.
    """

    def __init__(self, *, path: Path, kind: str, driver: str, options: dict[str, str]) -> None:
        self.path, self._kind, self._driver, self._options = path, kind, driver, options
        self._undo: list[Callable[[], object]] = []

    def open(self, **options: str) -> Any:
        """Open the driver over the world's state; each call is a new instance, as after a restart.

        `options`, with ``-`` and ``.`` as ``_``, go over those of the suite.
        """
        drivers = Drivers(state=self.path / "state", run=self.path / "run")
        cls = drivers.load(self._kind, self._driver)
        names = {f.encode_name.replace("-", "_").replace(".", "_"): f.encode_name for f in _fields(cls)}
        given = {names.get(key, key): value for key, value in options.items()}
        driver = watched(drivers.open(self._kind, self._driver, {**self._options, **given}, where="the suite"))
        self.defer(driver.close)
        return driver

    def can(self, attempt: Callable[[str], object]) -> bool:
        """Say whether `attempt` works with a file on the file system of the world: EINVAL and ENOTSUP say no."""
        import errno

        file, path = tempfile.mkstemp(dir=self.path)
        os.close(file)
        try:
            attempt(path)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
                raise
            return False
        finally:
            os.unlink(path)
        return True

    def defer(self, function: Callable[..., object], *args: Any, **kwargs: Any) -> None:
        """Call `function` when the case is over, before what was deferred earlier."""
        self._undo.append(lambda: function(*args, **kwargs))

    def clean_up(self) -> None:
        """Undo everything; the first error is raised after all were tried."""
        errors = []
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]


def _fields(cls: type[Driver]) -> tuple[Any, ...]:
    return msgspec.structs.fields(cls.Options)


def census(path: Path) -> frozenset[str]:
    """Describe what this process holds, and what of the host lies below `path`: the same before and after."""
    tasks = set(os.listdir("/proc/self/task"))
    # Of a thread that `_thread` began, threading may keep a "Dummy" when the thread itself is gone.
    seen = {f"thread {t.name}" for t in threading.enumerate() if str(t.native_id) in tasks}
    for fd in os.listdir("/proc/self/fd"):
        try:
            seen.add(f"descriptor {fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue  # the descriptor of the listing itself
    for task in tasks:
        try:
            children = Path(f"/proc/self/task/{task}/children").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # a thread that was joined takes a moment to end
        seen.update(f"child process {pid}" for pid in children.split())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        place = line.split()[4]
        if place.startswith(f"{path}/"):
            seen.add(f"mount {place}")
    for loop in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = loop.read_text().strip()
        except OSError:
            continue  # detached meanwhile
        if backing.startswith(f"{path}/"):
            seen.add(f"loop device {loop.parts[3]} on {backing}")
    return frozenset(seen)


def in_child(function: Callable[[], object], *, kill_after: float | None = None) -> int:
    """Run `function` in a forked child and return its wait status as `os.waitstatus_to_exitcode` gives it.

    With `kill_after`, the child gets SIGKILL that many seconds after it started. An exception in the child is
    printed and gives 1.
    """
    import signal
    import time
    import traceback

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def wrapped(driver: Any, around: Callable[[Any], Any]) -> Any:
    """Return `driver` with the generator function `around` standing around each operation (fault injection)."""
    from transom.drivers import Wrapper

    class Around(Wrapper):
        def around(self, call: Any) -> Any:
            return (yield from around(call))

    return bind(driver, contract_of(driver.kind), [Around()])


def undeclared(driver: Any, capabilities: type[Capability]) -> list[Capability]:
    """List the capabilities of the kind that the driver does not declare."""
    return [c for c in capabilities if c not in driver.capabilities]
