"""Calls of systemd's manager (org.freedesktop.systemd1(5)), and the keeper of a scope.

They go to its private socket, on which every peer is root's, with no bus in between and no name to ask for; or, where
there is none, over the system bus (D-Bus specification, "Well-known Message Bus Instances").
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import signal
import socket
import termios
from typing import Any

from transom.services.cgroups import wait

SOCKET = "/run/systemd/private"
BUS = "/run/dbus/system_bus_socket"
SECONDS = 30.0
"""The longest that an answer, a start or a stop may take."""

_NAME = "org.freedesktop.systemd1"
_BUS = "org.freedesktop.DBus"
_MANAGER = "/org/freedesktop/systemd1"
_UNKNOWN = ("org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.systemd1.NoSuchUnit")

Property = tuple[str, tuple[str, Any]]
"""A unit property's name, D-Bus signature and value."""


class Answer(OSError):
    """systemd answered with an error; `unknown` when there is no such unit or job."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(errno.EREMOTEIO, f"systemd: {text}")
        self.unknown = name in _UNKNOWN


def reachable() -> str:
    """Return the socket to reach systemd by; empty when this process may write to none."""
    return next((path for path in (SOCKET, BUS) if os.access(path, os.W_OK)), "")


class Manager:
    """A connection to systemd, as a context."""

    def __init__(self) -> None:
        from jeepney.io.blocking import prep_socket
        from jeepney.low_level import Parser

        self._path = reachable() or SOCKET
        self._socket = prep_socket(self._path, timeout=SECONDS)
        self._socket.settimeout(SECONDS)
        # A call that systemd reads together with the end of the authentication lies there until more comes.
        wait(self._all_is_read, seconds=SECONDS)
        self._parser = Parser()
        self._serials = itertools.count(1)
        if self._path == BUS:
            self._call("Hello", None, (), path="/org/freedesktop/DBus", interface=_BUS, name=_BUS)

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def start(self, unit: str, properties: list[Property]) -> None:
        """Start a transient unit and wait for it.

        Raises:
            Answer: it exists, or a property was refused.
        """
        self._finish(self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", (unit, "fail", properties, [])))

    def stop(self, unit: str) -> None:
        """Stop a unit and wait for it. Absent is success."""
        try:
            self._finish(self._call("StopUnit", "ss", (unit, "replace")))
        except Answer as error:
            if not error.unknown:
                raise

    def set(self, unit: str, properties: list[Property]) -> None:
        """Set properties until the next boot.

        Raises:
            Answer: there is no such unit, or a property was refused.
        """
        self._call("SetUnitProperties", "sba(sv)", (unit, True, properties))

    def _finish(self, job: tuple[Any, ...]) -> None:
        def gone() -> bool:
            try:
                self._get(job[0], f"{_NAME}.Job", "State")
            except Answer as error:
                if error.unknown:
                    return True
                raise
            return False

        if not wait(gone, seconds=SECONDS):
            raise OSError(errno.ETIMEDOUT, f"systemd did not finish in {SECONDS:g} s")

    def _get(self, path: str, interface: str, name: str) -> None:
        self._call("Get", "ss", (interface, name), path=path, interface="org.freedesktop.DBus.Properties")

    def _call(
        self,
        member: str,
        signature: str | None,
        body: tuple[Any, ...],
        *,
        path: str = _MANAGER,
        interface: str = f"{_NAME}.Manager",
        name: str = _NAME,
    ) -> tuple[Any, ...]:
        from jeepney import DBusAddress, HeaderFields, MessageType, new_method_call

        address = DBusAddress(path, bus_name=name, interface=interface)
        serial = next(self._serials)
        self._socket.sendall(new_method_call(address, member, signature, body).serialise(serial))
        while True:
            reply = self._receive()
            if reply.header.fields.get(HeaderFields.reply_serial) == serial:
                break
        answer: tuple[Any, ...] = reply.body
        if reply.header.message_type is MessageType.error:
            error = reply.header.fields.get(HeaderFields.error_name, "")
            raise Answer(error, str(answer[0]) if answer else error)
        return answer

    def _all_is_read(self) -> bool:
        unread = fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4))  # SIOCOUTQ by its other name, unix(7)
        return not any(unread)

    def _receive(self) -> Any:
        while (message := self._parser.get_next_message()) is None:
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, f"{self._path} was closed")
            self._parser.add_data(data)
        return message


def start_kept(unit: str, properties: list[Property]) -> None:
    """Start a scope with a process that does nothing but be in it: one without processes ends at once.

    That process asks for the scope itself and names itself by 0, the sender: what its pid is for systemd only the
    kernel knows, which tells who is at the other end of a socket (systemd's PIDs=, unix(7) SO_PEERCRED).

    It inherits the descriptors of this process, locks too, until the scope is there or will never be.

    Raises:
        OSError: the scope was refused.
    """
    # Imported here: the processes forked below share what they need.
    import jeepney.io.blocking  # noqa: F401

    here, there = socket.socketpair()
    with here:
        pid = os.fork()
        if pid == 0:
            _keep(unit, properties, there)
        there.close()
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # who called us waits for any child
        here.settimeout(2 * SECONDS)
        told = b""
        while part := here.recv(1 << 16):
            told += part
    if told != b"up":
        raise OSError(errno.EREMOTEIO, told.decode() or "the process that was to keep the scope has died")


def _keep(unit: str, properties: list[Property], there: socket.socket) -> None:
    """Become the keeper: a child of process 1, without anything of this process but its namespaces."""
    try:
        if os.fork():
            os._exit(0)  # who waits for the keeper is process 1
        os.setsid()
        os.chdir("/")
        with Manager() as manager:
            manager.start(unit, [*properties, ("PIDs", ("au", [0]))])
        with open("/proc/self/cgroup") as file:
            if f"/{unit}\n" not in file.read():
                raise OSError(errno.EREMOTEIO, f"systemd did not put the keeper into {unit}")
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("-1000")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        with open("/dev/null", "r+b", buffering=0) as nothing:
            for target in range(3):
                os.dup2(nothing.fileno(), target)
        there.sendall(b"up")  # a creator that has died takes the scope with it: there is nobody to read
        os.execve("/bin/sleep", [f"{unit}: kept", "infinity"], {})
    except BaseException as error:
        there.sendall(str(getattr(error, "strerror", None) or error).encode())
    finally:
        os._exit(1)
