"""A few threads for connections, which end when they are told to."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread, current_thread
from typing import Any

MOST = 64
"""How many connections there may be at a time."""


class Workers:
    """Threads that `close` ends by shutting their sockets down.

    Args:
        complain: told what a function raised.
    """

    def __init__(self, complain: Callable[[Exception], None]) -> None:
        self._complain = complain
        self._lock = Lock()
        self._closing = False
        self._sockets: set[socket.socket] = set()
        self._threads: set[Thread] = set()

    def start(self, function: Callable[..., None], *args: Any) -> bool:
        """Call the function in a thread; False when there are enough of them, or no more are wanted."""

        def run() -> None:
            try:
                function(*args)
            except Exception as error:
                self._complain(error)
            finally:
                with self._lock:
                    self._threads.discard(current_thread())

        with self._lock:
            if self._closing or len(self._threads) >= MOST:
                return False
            thread = Thread(target=run, name="resolver", daemon=True)
            thread.start()
            self._threads.add(thread)
        return True

    @contextmanager
    def opened(self, sock: socket.socket) -> Iterator[socket.socket]:
        """Let `close` end what a thread does with the socket; close it afterwards."""
        with self._lock:
            self._sockets.add(sock)
        try:
            if self._closing:
                raise ConnectionAbortedError("the resolver is closing")
            yield sock
        finally:
            with self._lock:
                self._sockets.discard(sock)
                sock.close()

    def close(self) -> None:
        """End them all, and wait for that."""
        with self._lock:
            self._closing = True
            threads = list(self._threads)
            for sock in self._sockets:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected, or no longer
        for thread in threads:
            thread.join(1.0)
