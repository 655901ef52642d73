"""Questions taken to name servers: a thousand at a time in one thread, and a slow one delays no other."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from transom.services.netns import inside
from transom_engine.resolver.questions import REFUSED, SERVFAIL, STREAM, Question, is_answer
from transom_engine.resolver.workers import Workers

SERVERS, PATIENCE = 3, 4.0
"""How many name servers a question is taken to, and seconds that each of them has."""
SHUNNED = 10.0
"""Seconds for which a server that was silent is asked last."""
UNDER_WAY, WAITING = 128, 1024
"""How many questions are under way, each with a socket, and how many wait for that; beyond them it is SERVFAIL.

More would not fit into the buffer of a server's socket, and dnsmasq has 150 under way itself.
"""
_PORT = 53


class _Errand(msgspec.Struct):
    """A question on its way from server to server.

    Attributes:
        servers: those that are still to be asked.
        until: when patience with the present one ends.
    """

    question: Question
    servers: list[str]
    netns: int
    reply: Callable[[bytes], None]
    until: float
    server: str = ""
    sock: socket.socket | None = None
    answer: bytes = b""


class Forwarder:
    """Asks on behalf of clients. All methods are for one thread, which polls `fileno` and calls `step`.

    Args:
        workers: where servers are asked by TCP.
    """

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._poll = select.epoll()
        self._under_way: dict[int, _Errand] = {}
        """By descriptor; as each has the same patience, in the order in which that ends."""
        self._waiting: deque[_Errand] = deque()
        self._silent: dict[str, float] = {}
        """Until when a server is asked last."""

    def fileno(self) -> int:
        """Return the descriptor that is readable when `step` has something to do."""
        return self._poll.fileno()

    def patience(self) -> float | None:
        """Return the seconds after which `step` has something to do anyway; None: never."""
        oldest = [next(iter(queue)) for queue in (self._under_way.values(), self._waiting) if queue]
        return max(0.0, min(errand.until for errand in oldest) - time.monotonic()) if oldest else None

    def ask(self, question: Question, servers: Iterable[str], netns: int, reply: Callable[[bytes], None]) -> None:
        """Take a question to one server after the other until one has an answer.

        Args:
            netns: a descriptor of the namespace to ask from, -1 for the host's.
            reply: called once, from any thread, with an answer that fits the client.
        """
        errand = _Errand(question, [*servers][:SERVERS], netns, reply, time.monotonic() + PATIENCE)
        if len(self._under_way) < UNDER_WAY:
            self._go_on(errand)
        elif len(self._waiting) < WAITING:
            self._waiting.append(errand)
        else:
            reply(question.failed(SERVFAIL))

    def step(self) -> None:
        """Take in what has arrived, turn away from servers that are silent, and let waiting questions go."""
        for fd, _ in self._poll.poll(0):
            self._receive(fd, self._under_way[fd])
        now = time.monotonic()
        while self._under_way:
            fd, errand = next(iter(self._under_way.items()))
            if errand.until > now:
                break
            self._silent[errand.server] = now + SHUNNED
            self._end(fd)
            self._go_on(errand)
        while self._waiting and (self._waiting[0].until <= now or len(self._under_way) < UNDER_WAY):
            errand = self._waiting.popleft()
            if errand.until <= now:
                errand.reply(errand.question.failed(SERVFAIL))
            else:
                self._go_on(errand)

    def close(self) -> None:
        """Answer what is under way with SERVFAIL, and close every descriptor."""
        left = [*self._under_way.values(), *self._waiting]
        for fd in [*self._under_way]:
            self._end(fd)
        self._poll.close()
        for errand in left:
            errand.reply(errand.question.failed(SERVFAIL))

    def _go_on(self, errand: _Errand) -> None:
        """Ask the next server; without one the last answer is passed on, which says why there is no better one."""
        now = time.monotonic()
        while errand.servers:
            errand.servers.sort(key=lambda server: self._silent.get(server, 0.0) > now)
            server = errand.servers.pop(0)
            try:
                sock = _made(server, socket.SOCK_DGRAM, errand.netns)
            except OSError:
                continue
            try:
                sock.setblocking(False)
                sock.connect((server, _PORT))  # so that nothing but its answers arrives here
                sock.send(errand.question.data)
            except OSError:
                sock.close()
                continue
            errand.server, errand.sock, errand.until = server, sock, now + PATIENCE
            self._under_way[sock.fileno()] = errand
            self._poll.register(sock, select.EPOLLIN)
            return
        question = errand.question
        errand.reply(question.fitted(errand.answer) if errand.answer else question.failed(SERVFAIL))

    def _receive(self, fd: int, errand: _Errand) -> None:
        assert errand.sock is not None
        try:
            answer = errand.sock.recv(STREAM)
        except BlockingIOError:
            return
        except OSError:  # nobody is there
            self._end(fd)
            self._go_on(errand)
            return
        if not is_answer(answer, errand.question.data):
            return
        self._end(fd)
        self._silent.pop(errand.server, None)
        errand.answer = answer
        if answer[3] & 15 in (SERVFAIL, REFUSED):
            self._go_on(errand)
        elif not (answer[2] & 2 and self._workers.start(self._ask_by_tcp, errand)):
            errand.reply(errand.question.fitted(answer))

    def _end(self, fd: int) -> None:
        # By hand: a child in between fork and exec has the socket too, and keeps it in the set of those polled.
        self._poll.unregister(fd)
        sock = self._under_way.pop(fd).sock
        assert sock is not None
        sock.close()

    def _ask_by_tcp(self, errand: _Errand) -> None:
        """Ask by TCP, where a server said that its datagram is cut (RFC 1035, 4.2.1)."""
        data, answer = errand.question.data, errand.answer
        try:
            with self._workers.opened(_made(errand.server, socket.SOCK_STREAM, errand.netns)) as sock:
                sock.settimeout(PATIENCE)
                sock.connect((errand.server, _PORT))
                sock.sendall(struct.pack("!H", len(data)) + data)
                whole = receive(sock)
        except OSError:
            whole = b""
        errand.reply(errand.question.fitted(whole if is_answer(whole, data) else answer))


def _made(server: str, kind: int, netns: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    return socket.socket(family, kind) if netns < 0 else inside(netns, socket.socket, family, kind)


def receive(sock: socket.socket) -> bytes:
    """Receive one message of a stream, its length first (RFC 1035, 4.2.2)."""
    return _exactly(sock, struct.unpack("!H", _exactly(sock, 2))[0])


def _exactly(sock: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = sock.recv(length - len(data))
        if not more:
            raise ConnectionResetError("closed in the middle")
        data += more
    return data
