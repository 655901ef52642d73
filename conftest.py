"""What holds for every test of the workspace."""

import signal
import threading

import pytest

# Tests interrupt what they start. A shell that runs the whole in the background has SIGINT ignored, and what is
# ignored stays so in every child (signal(7)).
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many seeded faults the suites caught; what a worker prints, nobody sees."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, text in report.user_properties:
                if name == "seeded":
                    terminalreporter.write_line(text)
