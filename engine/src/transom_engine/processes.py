"""The processes of a container, as its supervisor sees them, and the commands that are connected to them."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import termios
import time

import msgspec

from transom.contract.logging import Stream
from transom_engine import wire

_DRAIN = 2.0
"""Seconds to wait for the end of a dead process's output, which a stranger may hold open."""


class Client:
    """A connection from a command, with what waits to be sent to it."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket, self.frames, self.out = sock, wire.Frames(), bytearray()
        self.process: Process | None = None
        self.stdin = False
        sock.setblocking(False)

    def send(self, kind: int, payload: bytes | msgspec.Struct = b"") -> None:
        """Queue a frame."""
        self.out += wire.frame(kind, payload)


class Process:
    """The container's first process, or one executed in it later: its streams and who is attached to them."""

    def __init__(self, *, tty: bool) -> None:
        self.tty = tty
        self.exec_id = ""
        self.pid = 0
        self.code: int | None = None
        self.outputs: dict[int, Stream] = {}
        self.stdin = -1
        self.stdin_waiting = bytearray()
        self.stdin_ended = False
        self.clients: list[Client] = []
        self.drain_until = 0.0

    def successor(self, *, tty: bool) -> Process:
        """Make the process of the next run; who is attached to this one stays attached."""
        process = Process(tty=tty)
        process.clients = self.clients
        for client in self.clients:
            client.process = process
        return process

    @property
    def done(self) -> bool:
        """Whether it has ended and its output has been read to the end, or long enough."""
        return self.code is not None and (not self.outputs or time.monotonic() > self.drain_until)

    def ended(self, code: int) -> None:
        """Note the exit code; output is read on for a little while."""
        self.code, self.drain_until = code, time.monotonic() + _DRAIN

    def close(self) -> None:
        """Close every descriptor."""
        for fd in {*self.outputs, self.stdin} - {-1}:
            os.close(fd)
        self.outputs, self.stdin = {}, -1

    def resize(self, rows: int, columns: int) -> None:
        """Tell the terminal its size (TIOCSWINSZ, ioctl_tty(2))."""
        for fd in self.outputs if self.tty else ():
            fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def host_pid(proc: int, supervisor: int, pid: int) -> int:
    """Translate a pid of the supervisor's namespace to the host's; 0 when the process has ended.

    The host's /proc tells the pid behind a descriptor of ours as the host sees it (pidfd_open(2), proc(5): fdinfo).

    Args:
        proc: a descriptor of the host's /proc.
        supervisor: the supervisor's pid on the host.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0
    info = os.open(f"{supervisor}/fdinfo/{pidfd}", os.O_RDONLY, dir_fd=proc)
    try:
        lines = os.read(info, 4096).decode().splitlines()
        return next((max(0, int(line[4:])) for line in lines if line.startswith("Pid:")), 0)
    finally:
        os.close(info)
        os.close(pidfd)
