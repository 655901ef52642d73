"""What holds for every test of the workspace."""

import os
import signal
import threading

import pytest


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many seeded faults the suites caught; what a worker prints, nobody sees."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == "seeded":
                    terminalreporter.write_line(text)
