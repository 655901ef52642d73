"""A collector's process for the cases of remote drivers, run as the driver's examples describe it.

The attribute `collector` of a suite is a mapping, all of it data::

    {
        "command": ["rsyslogd", "-n", "-f", "@DIRECTORY@/rsyslog.conf", "-i", "@DIRECTORY@/pid"],
        "files": {"rsyslog.conf": "..."},
        "options": {"syslog-address": "tcp://127.0.0.1:@PORT@"},
        "output": "received",
        "lines": r"^(.*)\n",
    }

``@DIRECTORY@`` is the collector's own directory, ``@PORT@`` a free TCP port. The command's first word must be
installed, and it runs in the foreground. It appends to the file `output`; each match of `lines` there, in multi-line
mode, is one line that it received: the container's bytes, without the newline. Also understood are `needs`, paths that
must be there, each with what to do about it; `read`, a command that prints what `output` would have; `socket`, a path
that is there when the collector listens, in place of the port; `nowhere`, options whose host has no name; and
`unacknowledged`, which says that the protocol cannot know what arrived.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from transom_conformance.suite import World


class Collector:
    """A collector that a case starts, stops and kills.

    Args:
        world: the case's; the collector is gone behind it.
        example: the driver's description; see the module's text.
    """

    def __init__(self, world: World, example: Mapping[str, Any]) -> None:
        # Not below the case's directory: a socket's path has at most 107 bytes (unix(7)).
        self.directory = Path(tempfile.mkdtemp(prefix="collector-"))
        world.defer(shutil.rmtree, self.directory, ignore_errors=True)
        self._port = free_port()
        self._words = [self._fill(word) for word in example["command"]]
        if shutil.which(self._words[0]) is None:
            pytest.skip(f"{self._words[0]} is not installed")
        for path, advice in example.get("needs", {}).items():
            if not os.path.exists(path):
                pytest.skip(f"{path} is not there: {advice}")
        for name, text in example.get("files", {}).items():
            (self.directory / name).write_text(self._fill(text))
        self.options = {name: self._fill(value) for name, value in example["options"].items()}
        self.nowhere = example.get("nowhere", {})
        self.acknowledged = not example.get("unacknowledged", False)
        self._socket = self._fill(example.get("socket", ""))
        self._output = self.directory / example.get("output", "log")
        self._read = [self._fill(word) for word in example.get("read", [])]
        self._lines = re.compile(example["lines"].encode(), re.MULTILINE)
        self._process: subprocess.Popen[bytes] | None = None
        world.defer(self.kill)

    def _fill(self, text: str) -> str:
        return text.replace("@DIRECTORY@", str(self.directory)).replace("@PORT@", str(self._port))

    def start(self) -> None:
        """Start it; return when it listens."""
        if self._socket:
            Path(self._socket).unlink(missing_ok=True)
        with (self.directory / "log").open("ab") as log:
            # A pid file of one that was killed must not keep the next from starting.
            (self.directory / "pid").unlink(missing_ok=True)
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self._listens():
            assert self._process.poll() is None, (self.directory / "log").read_text()
            assert time.monotonic() < end, f"the collector does not listen: {(self.directory / 'log').read_text()}"
            time.sleep(0.02)

    def _listens(self) -> bool:
        if self._socket:
            return os.path.exists(self._socket)
        with socket.socket() as trial:
            return trial.connect_ex(("127.0.0.1", self._port)) == 0

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it, by SIGKILL unless told otherwise; one that does not run is left alone."""
        if self._process is not None:
            self._signal(number)
            self._process.wait()
            if number != signal.SIGKILL:
                self._signal(signal.SIGKILL)  # processes of its own that it left
            self._process = None

    def _signal(self, number: int) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            pass

    def pause(self) -> None:
        """Stop it from running: it keeps its connections and reads nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def lines(self) -> list[bytes]:
        """Return the lines that it received, in order, those among them that came twice."""
        data = b""
        if self._read:
            data = subprocess.run(self._read, capture_output=True, check=False).stdout
        elif self._output.exists():
            data = self._output.read_bytes()
        return [match[1] for match in self._lines.finditer(data)]

    def wait(self, *wanted: bytes, seconds: float = 25) -> list[bytes]:
        """Wait until it has received the lines; return all that it received. Fail when nothing comes for long."""
        end = time.monotonic() + seconds
        awaited, count = {*wanted}, -1
        while True:
            found = self.lines()
            if len(found) != count:
                count, end = len(found), time.monotonic() + seconds
                missing = awaited - {*found}
                if not missing:
                    return found
            assert time.monotonic() < end, f"{len(missing)} lines did not arrive, among them {min(missing)!r}"
            self._grow()

    def _grow(self) -> None:
        """Wait until there is more, or for a moment."""
        size = os.stat(self._output).st_size if self._output.exists() else 0
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            time.sleep(0.05)
            if self._output.exists() and os.stat(self._output).st_size != size:
                return


def free_port() -> int:
    """Return a TCP port that nobody listens on, and that nobody is given who asks for any (ip(7)).

    It must stay free while the collector is down, again and again.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in (*random.sample(range(lowest // 2, lowest), 50), 0):
        with socket.socket() as trial:
            try:
                trial.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(trial.getsockname()[1])
    raise OSError("no port is free")
