"""What holds for every test of the workspace."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from xdist.scheduler import Scheduling

TOGETHER = (
    "plugins/network/overlay/tests/test_encrypted.py",
    "plugins/network/overlay/tests/test_etcd.py",
    "plugins/network/overlay/tests/test_hosts.py",
    "tests/test_author.py",
    "tests/test_distributions.py",
    "tests/test_docs.py",
    "tests/test_overlay_hosts.py",
    "tests/test_vm.py",
)
"""Files each of which runs in one worker, for what its cases share is dear: a cluster, wheels, the site, guests."""


def _interrupt(number: int, frame: object) -> None:
    """End the run as Ctrl-C does, once: neither a second signal nor xdist's SIGINT breaks into the clearing up."""
    for late in (signal.SIGINT, signal.SIGTERM):
        signal.signal(late, lambda *_: None)  # ignored here, and not by what is started meanwhile
    raise KeyboardInterrupt


if threading.current_thread() is threading.main_thread():
    # Tests interrupt what they start. A shell that runs the whole in the background has SIGINT ignored, and what is
    # ignored stays so in every child (signal(7)).
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A cancelled run gets SIGTERM, and Python would end on the spot, with all that fixtures made left behind.
    signal.signal(signal.SIGTERM, _interrupt)
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Hand out `TOGETHER` by file, first, and all else by case, in the order of pyproject's ``testpaths``.

    The mark ``xdist_group`` would say it beside the cases, but goes unheard with pytest 9.2 and xdist 3.8.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFileOrCase(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return file if file in TOGETHER else nodeid

    return ByFileOrCase(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many seeded faults the suites caught; what a worker prints, nobody sees."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == "seeded":
                    terminalreporter.write_line(text)
