"""Faults put into operations: killed, or failed, at any call into the system. For the suites of all kinds.

Two seams. Python's own announcements of what it is about to do (audit events) cost next to nothing, and see neither
the calls inside a library, such as SQLite's, nor those of other programs: `calls_of`, `killed_at`, `faulted_at`, and
`announcements` where only some of them matter. strace(1) sees and spoils every system call of the process, its
threads and its children; a run takes some 50 ms::

    calls = system_calls(operation, touching=[root])
    for call in sample(calls, 40):
        prepare_the_scene()
        killed_before(operation, call)
        recover_and_compare_with_the_model()

`operation` runs in a forked child of the test, so it must not use what a fork does not survive: SQLite connections
and threads are opened in it.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from transom.errors import TransomError

CHANGING = (
    *("open", "openat", "creat", "mkdir", "mkdirat", "mknod", "mknodat", "rmdir", "unlink", "unlinkat", "rename"),
    *("renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "write", "writev", "pwrite64", "pwritev"),
    *("sendto", "sendmsg", "fsync", "fdatasync", "syncfs", "sync_file_range", "truncate", "ftruncate", "fallocate"),
    *("copy_file_range", "sendfile", "chmod", "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat"),
    *("utimensat", "setxattr", "lsetxattr", "fsetxattr", "removexattr", "lremovexattr", "fremovexattr", "ioctl"),
    *("mount", "umount2", "fsopen", "fsconfig", "fsmount", "open_tree", "move_mount", "mount_setattr", "quotactl"),
    *("unshare", "setns", "flock"),
)
"""The system calls that change something outside the process, or fail in a way of their own."""
_ALWAYS = frozenset({"mount", "umount2", "fsconfig", "fsmount", "move_mount", "mount_setattr", "quotactl", "sendto"})
"""Those that say nothing of the place that they act on."""
_FAULT = 86
"""The exit code of a child whose operation failed with an `OSError`, 85 with a `TransomError`."""


def fork(function: Callable[[], object]) -> int:
    """Run `function` in a forked child that leaves nothing of the test run behind; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def wait(pid: int) -> int:
    """Wait for a child: its exit code, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _on_each_call(tell: Callable[[int], object]) -> None:
    """Call `tell` with a running number before each call into the system that this process makes from now on.

    Python announces such calls (audit events, PEP 578): every change to files, and every program started.
    """
    seen = 0

    def count(event: str, _args: object) -> None:
        nonlocal seen
        if event == "open" or event.startswith(_CALLS):
            seen += 1
            tell(seen)

    sys.addaudithook(count)


_CALLS = ("os.", "fcntl.", "subprocess.", "sqlite3.", "ctypes.")


def calls_of(function: Callable[[], object]) -> int:
    """Count the calls into the system that `function` makes, in a child."""
    ready, tell = os.pipe()

    def run() -> None:
        counts = [0]
        _on_each_call(lambda seen: counts.__setitem__(0, seen))
        function()
        os.write(tell, str(counts[0]).encode())

    code = wait(fork(run))
    os.close(tell)
    with os.fdopen(ready) as answer:
        text = answer.read()
    assert code == 0, "the operation failed in the child, see its trace"
    return int(text)


def killed_at(function: Callable[[], object], step: int) -> bool:
    """Run `function` in a child that is killed at its `step`-th call into the system; say whether it got that far."""

    def die(seen: int) -> None:
        if seen == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> None:
        _on_each_call(die)
        function()

    code = wait(fork(run))
    assert code in {0, -signal.SIGKILL}, f"the operation failed in the child (exit code {code}), see its trace"
    return code != 0


def faulted_at(function: Callable[[], object], step: int, code: int) -> tuple[bool, int]:
    """Run `function` in a child in which the `step`-th call into the system fails with errno `code`, once.

    Returns whether it got that far, and how `function` took it: 0 without an error, 2 with a `TransomError`, 3 with
    an `OSError`.
    """
    ready, tell = os.pipe()

    def fail(seen: int) -> None:
        if seen == step:
            os.write(tell, b"!")
            raise OSError(code, os.strerror(code))

    def run() -> None:
        _on_each_call(fail)
        try:
            function()
        except TransomError:
            os._exit(2)
        except OSError:
            os._exit(3)

    outcome = wait(fork(run))
    os.close(tell)
    with os.fdopen(ready, "rb") as answer:
        return answer.read() == b"!", outcome


class SystemCall(msgspec.Struct, frozen=True):
    """A system call of an operation: the `number`-th of its name in its thread; `text` is how strace shows it."""

    name: str
    number: int
    text: str


class Announcement(msgspec.Struct, frozen=True):
    """What Python announces before it does it: the `number`-th of `events`; `text` says what."""

    number: int
    text: str
    events: tuple[str, ...]


C = TypeVar("C")


def needs_strace() -> str:
    """Say why system calls cannot be seen or spoiled on this host; empty when they can."""
    if not shutil.which("strace"):
        return "needs strace(1)"
    try:
        with _traced(lambda: None, "-e", "trace=none"):
            pass
    except OSError as error:
        return f"strace cannot attach to a process: {error}"
    return ""


def system_calls(function: Callable[[], object], *, touching: Iterable[Path] = ()) -> list[SystemCall]:
    """List the calls of `CHANGING` that `function` makes in a child, in their order.

    Args:
        touching: only those whose arguments, descriptors included, are below these paths, and those that change
            mounts, send messages or control devices; all when empty.

    Raises:
        AssertionError: the function failed.
    """
    places = [str(place) for place in touching]
    with _traced(function, "-y", "-e", f"trace={','.join('?' + name for name in CHANGING)}") as (code, lines):
        assert code == 0, "the operation failed in the child, see its trace"
    counts: dict[tuple[str, str], int] = {}
    found = []
    for line in lines:
        match = re.match(r"(\d+) +(\w+)\((.*)", line)
        if match is None:
            continue  # the other half of a call that was interrupted by another thread's, a signal, an exit
        thread, name, rest = match.groups()
        counts[thread, name] = counts.get((thread, name), 0) + 1
        if not places or name in _ALWAYS or any(place in rest for place in places):
            found.append(SystemCall(name=name, number=counts[thread, name], text=f"{name}({rest}"))
    return found


def sample(calls: Sequence[C], most: int, *, seed: int = 0) -> list[C]:
    """Choose at most so many of the calls, the same for the same seed, in their order; the first and last are in."""
    if len(calls) <= most:
        return list(calls)
    chosen = random.Random(seed).sample(range(1, len(calls) - 1), most - 2)
    return [calls[n] for n in (0, *sorted(chosen), len(calls) - 1)]


def announcements(function: Callable[[], object], events: Sequence[str]) -> list[Announcement]:
    """List what `function` does in a child that has one of these names, in order.

    Args:
        events: audit events (PEP 578): ``fcntl.ioctl``, ``subprocess.Popen``, ``os.rename`` ...; of ``open`` only what
            may write.

    Raises:
        AssertionError: the function failed.
    """
    with tempfile.TemporaryFile("w+", errors="replace") as seen:

        def run() -> None:
            _announcing(events, lambda number, text: os.write(seen.fileno(), f"{number} {text}\n".encode()))
            function()

        assert wait(fork(run)) == 0, "the operation failed in the child, see its trace"
        seen.seek(0)
        found = [line.rstrip("\n").split(" ", 1) for line in seen]
    return [Announcement(number=int(number), text=text, events=tuple(events)) for number, text in found]


def _announcing(events: Sequence[str], tell: Callable[[int, str], object]) -> None:
    """Call `tell` with a running number and what it is before each such event of this process from now on."""
    seen, wanted = 0, frozenset(events)

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal seen
        if event in wanted and (event != "open" or (isinstance(args[2], int) and args[2] & _WRITING)):
            seen += 1
            tell(seen, ascii((event, *args))[:200])

    sys.addaudithook(count)


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def killed_before(function: Callable[[], object], call: SystemCall | Announcement) -> bool:
    """Run `function` in a child that is killed when it is about to make `call`; say whether it got that far."""
    if isinstance(call, Announcement):
        code = wait(fork(lambda: _until(call, function, lambda: os.kill(os.getpid(), signal.SIGKILL))))
        assert code in {0, -signal.SIGKILL}, f"the operation failed in the child (exit code {code}), see its trace"
        return code != 0
    spoiled = f"inject={call.name}:signal=KILL:when={call.number}"
    with _traced(function, "-e", f"trace={call.name}", "-e", spoiled) as (code, _):
        assert code in {0, -signal.SIGKILL}, f"the operation failed in the child (exit code {code}), see its trace"
        return code != 0


def _until(call: Announcement, function: Callable[[], object], act: Callable[[], object]) -> None:
    """Call `function`, and `act` when it is about to do what `call` is."""
    _announcing(call.events, lambda number, _: act() if number == call.number else None)
    function()


class Outcome(msgspec.Struct, frozen=True):
    """How an operation bore a fault: whether it `reached` it, and what it raised; both empty when it went on."""

    reached: bool
    error: str
    """The text of the error, empty without one."""
    in_words: bool
    """Whether the error was a `TransomError`."""


def failed_at(function: Callable[[], object], call: SystemCall | Announcement, code: int) -> Outcome:
    """Run `function` in a child in which `call`, once, does nothing but fail with errno `code`."""
    told, tell = os.pipe()

    def run() -> None:
        try:
            function()
        except TransomError as error:
            os.writev(tell, [str(error).encode(errors="replace")[:4000]])  # write(2) may be what fails
            os._exit(_FAULT - 1)
        except OSError as error:
            os.writev(tell, [str(error).encode(errors="replace")[:4000]])  # write(2) may be what fails
            os._exit(_FAULT)

    with os.fdopen(told, errors="replace") as answer:
        try:
            reached, status = _failing(run, call, code)
        finally:
            os.close(tell)
        text = answer.read()
    assert status in {0, _FAULT, _FAULT - 1}, f"{call.text} failed with {errno.errorcode[code]}: exit code {status}"
    return Outcome(reached=reached, error=text if status else "", in_words=status == _FAULT - 1)


def _failing(run: Callable[[], object], call: SystemCall | Announcement, code: int) -> tuple[bool, int]:
    """Say whether a child that does `run` came to the call that fails, and its exit code."""
    if isinstance(call, SystemCall):
        spoiled = f"inject={call.name}:error={errno.errorcode[code]}:when={call.number}"
        with _traced(run, "-e", f"trace={call.name}", "-e", spoiled) as (status, lines):
            return any("(INJECTED)" in line for line in lines), status
    came, tell = os.pipe()

    def fail() -> None:
        os.write(tell, b"!")
        raise OSError(code, os.strerror(code))

    status = wait(fork(lambda: _until(call, run, fail)))
    os.close(tell)
    with os.fdopen(came, "rb") as answer:
        return answer.read() == b"!", status


@contextmanager
def _traced(function: Callable[[], object], *options: str) -> Iterator[tuple[int, list[str]]]:
    """Run `function` in a child under strace; yields its exit code and what strace wrote."""
    import subprocess

    ready, go = os.pipe()

    def run() -> None:
        os.close(go)
        os.read(ready, 1)
        function()

    with tempfile.NamedTemporaryFile("r", prefix="strace-", errors="replace") as log:
        pid = fork(run)
        os.close(ready)
        command = ["strace", "-f", "-s", "60", "-o", log.name, *options, "-p", str(pid)]
        tracer = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            assert tracer.stderr
            said = tracer.stderr.readline()
            if "attached" not in said:
                os.kill(pid, signal.SIGKILL)
                raise OSError(errno.EPERM, said.strip() or "strace ended")
        finally:
            os.close(go)  # the child goes on
            code = wait(pid)
            tracer.communicate()
        yield code, log.read().splitlines()
