"""The terminal's side of an attachment: standard streams to and from a container's supervisor."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec

from transom.errors import ConfigError
from transom_engine import wire

T = TypeVar("T")

DETACH_KEYS = "ctrl-p,ctrl-q"
_PROXIED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
DETACHED = -1
"""What `pump` returns when the user typed the detach keys."""


def detach_sequence(text: str) -> bytes:
    """Return the bytes of a key sequence such as "ctrl-p,ctrl-q" or "a,ctrl-[".

    Raises:
        ConfigError: not a sequence of single characters and ctrl-KEY.
    """
    keys = bytearray()
    for word in text.split(","):
        key = word.removeprefix("ctrl-")
        if len(key) == 1 and word != key and (key.isalpha() or key in "@[\\]^_"):
            keys.append(ord(key.upper()) & 0x1F)
        elif len(word) == 1:
            keys += word.encode()
        else:
            raise ConfigError(
                f"--detach-keys {text!r}: {word!r} is no key; write single characters or ctrl-KEY, with commas"
            )
    return bytes(keys)


def pump(
    connection: wire.Connection,
    *,
    stdin: bool,
    tty: bool,
    sig_proxy: bool = True,
    detach_keys: str = DETACH_KEYS,
    on_signal: Callable[[int], None] | None = None,
) -> int:
    """Move data until the process has ended; return its exit code.

    Args:
        stdin: send this process's standard input.
        tty: the process has a terminal: the local one is raw meanwhile, and its size is kept the same.
        on_signal: passes a signal on to the process; without it they act on this process as usual.
    """
    keys = detach_sequence(detach_keys) if tty and stdin else b""
    with _raw_terminal(enabled=tty and stdin), _signals(connection, tty, on_signal if sig_proxy and not tty else None):
        return _Pump(connection, stdin=stdin, keys=keys).run()


class _Pump:
    def __init__(self, connection: wire.Connection, *, stdin: bool, keys: bytes) -> None:
        self._connection, self._stdin, self._keys, self._typed = connection, stdin, keys, b""

    def run(self) -> int:
        poll = select.poll()
        poll.register(self._connection.socket.fileno(), select.POLLIN)
        if self._stdin:
            poll.register(0, select.POLLIN)
        while True:
            ready = [] if self._connection.buffered else [fd for fd, _ in poll.poll()]
            if 0 in ready:
                state = self._send_stdin()
                if state is DETACHED:
                    return DETACHED
                if state == 0:
                    poll.unregister(0)
            if self._connection.buffered or self._connection.socket.fileno() in ready:
                code = self._receive()
                if code is not None:
                    return code

    def _receive(self) -> int | None:
        received = self._connection.receive()
        if received is None:
            print("transom: the container's supervisor was killed, the container with it", file=sys.stderr)
            return 137
        kind, payload = received
        if kind in {wire.STDOUT, wire.STDERR}:
            _write(1 if kind == wire.STDOUT else 2, payload)
        elif kind == wire.EXIT:
            ended = msgspec.json.decode(payload, type=wire.Exit)
            if ended.error:
                print(f"transom: {ended.error}", file=sys.stderr)
            return ended.code
        return None

    def _send_stdin(self) -> int:
        """Send what can be read; return how much: 0 at the end, `DETACHED` after the detach keys."""
        try:
            data = os.read(0, 1 << 16)
        except OSError:
            data = b""
        if not data:
            self._connection.send(wire.STDIN_END)
            return 0
        if self._keys:
            self._typed = (self._typed + data)[-len(self._keys) :]
            if self._typed == self._keys:
                return DETACHED
        self._connection.send(wire.STDIN, data)
        return len(data)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextmanager
def _raw_terminal(*, enabled: bool) -> Iterator[None]:
    """Pass every key on as it is typed (termios(3), raw mode), and put the terminal back afterwards."""
    if not enabled or not os.isatty(0):
        yield
        return
    import tty

    saved = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSANOW, saved)


def terminal_size() -> tuple[int, int]:
    """Return rows and columns of the local terminal; zeros without one."""
    for fd in (0, 1, 2):
        try:
            rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8))
        except OSError:
            continue
        return rows, columns
    return 0, 0


@contextmanager
def _signals(connection: wire.Connection, tty: bool, on_signal: Callable[[int], None] | None) -> Iterator[None]:
    """While inside, pass signals on, and a change of the terminal's size."""
    saved: dict[signal.Signals, Any] = {}

    def resize(*_: object) -> None:
        rows, columns = terminal_size()
        connection.send(wire.RESIZE, wire.Request(do="resize", rows=rows, columns=columns))

    if tty:
        saved[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, resize)
    if on_signal is not None:
        for proxied in _PROXIED:
            saved[proxied] = signal.signal(proxied, lambda received, _frame: on_signal(received))
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)
