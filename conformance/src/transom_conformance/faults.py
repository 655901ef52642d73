"""Faults put into operations: killed, or failed, at any call into the system. For the suites of all kinds."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from transom.errors import TransomError


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
