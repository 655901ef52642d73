"""The resolver of one container: its sockets, and what is done with what comes in."""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING

from transom.errors import DriverError
from transom.services.netns import inside
from transom_engine.networks.files import PUBLIC_SERVERS, RESOLVER
from transom_engine.networks.names import lookup
from transom_engine.resolver.forwarding import Forwarder, receive
from transom_engine.resolver.names import Names, canonical
from transom_engine.resolver.questions import SERVFAIL, STREAM, Question
from transom_engine.resolver.workers import MOST, Workers

if TYPE_CHECKING:
    from transom_engine.engine import Engine

_IDLE = 10.0
"""Seconds after which a silent connection is closed."""
_SO_RCVBUFFORCE = 33  # socket(7); the module has no name for it
_BUFFER = 1 << 20
"""Bytes of datagrams that wait for the resolver: a thousand and more."""

_RULES = """
table ip transom {{
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr {address} udp dport 53 dnat to {address}:{udp}
    ip daddr {address} tcp dport 53 dnat to {address}:{tcp}
  }}
}}
"""


class Resolver:
    """The resolver of one container: it listens when it is made, and answers from `start` on until `close`.

    Datagrams are answered in one thread, which also waits for the name servers; a connection has a thread of its own.

    Args:
        netns: a descriptor of the container's network namespace, whose loopback is up.

    Raises:
        DriverError: the address cannot be bound.
    """

    def __init__(self, engine: Engine, id: str, netns: int) -> None:
        self._engine, self._id = engine, id
        try:
            self._udp, self._tcp = inside(netns, _listen)
        except OSError as error:
            raise DriverError("listening", driver="resolver", subject=f"{RESOLVER}:53", cause=error) from error
        self._netns = os.dup(netns)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = Thread(target=self._serve, name="resolver", daemon=True)
        self._workers = Workers(self._complain)
        self._forwarder = Forwarder(self._workers)
        self._closing = False
        self._complained = ""
        self._handing = Lock()
        self._handed: deque[tuple[Question, Callable[[bytes], None]]] = deque()
        """What connections have been asked and others may know."""
        self._reading = Lock()
        self._names: Names | None = None

    def start(self) -> None:
        """Answer, in a thread of its own; what was asked before has waited."""
        self._thread.start()

    def close(self) -> None:
        """Stop answering, end what is under way and close every descriptor."""
        with self._handing:
            self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread.ident is not None:
            self._thread.join(1.0)
        self._forwarder.close()
        for question, reply in self._handed:
            reply(question.failed(SERVFAIL))
        self._workers.close()
        self._names = None
        self._udp.close()
        self._tcp.close()
        os.close(self._wake)
        os.close(self._netns)

    def _complain(self, error: Exception) -> None:
        """Note a failure in the supervisor's log, but not the same one again and again."""
        text = f"resolver: {type(error).__name__}: {error}"
        if not self._closing and text != self._complained:
            self._complained = text
            print(text, file=sys.stderr, flush=True)

    # Questions

    def _serve(self) -> None:
        actions = {
            self._wake: self._on_wake,
            self._udp.fileno(): self._on_datagram,
            self._tcp.fileno(): self._on_connection,
            self._forwarder.fileno(): self._forwarder.step,
        }
        poll = select.poll()
        for fd in actions:
            poll.register(fd, select.POLLIN)
        while not self._closing:
            patience = self._forwarder.patience()
            ready = [fd for fd, _ in poll.poll(None if patience is None else patience * 1000)]
            for action in [actions[fd] for fd in ready] or [self._forwarder.step]:
                try:
                    action()
                except OSError:
                    continue  # the client is gone
                except Exception as error:
                    self._complain(error)

    def _on_datagram(self) -> None:
        data, client = self._udp.recvfrom(STREAM)
        question = Question.read(data, stream=False)
        answer = self._answer(question)
        if answer is None:
            self._forward(question, partial(self._send, client))
        elif answer:
            self._send(client, answer)

    def _send(self, client: tuple[str, int], answer: bytes) -> None:
        try:
            self._udp.sendto(answer, client)
        except OSError:
            pass  # the client is gone

    def _on_connection(self) -> None:
        connection, _ = self._tcp.accept()
        if not self._workers.start(self._converse, connection):
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        with self._workers.opened(connection):
            connection.settimeout(_IDLE)
            try:
                while True:
                    question = Question.read(receive(connection), stream=True)
                    answer = self._answer(question)
                    if answer is None:
                        answer = self._hand_over(question)
                    if not answer:
                        return
                    connection.sendall(struct.pack("!H", len(answer)) + answer)
            except OSError:
                return  # the client is gone, or silent

    def _hand_over(self, question: Question) -> bytes:
        """Have the resolver's own thread ask others, and wait for the answer."""
        answers: SimpleQueue[bytes] = SimpleQueue()
        with self._handing:
            if self._closing:
                return b""
            self._handed.append((question, answers.put))
            os.eventfd_write(self._wake, 1)
        return answers.get()

    def _on_wake(self) -> None:
        os.eventfd_read(self._wake)
        while self._handed:
            self._forward(*self._handed.popleft())

    # Answers

    def _answer(self, question: Question) -> bytes | None:
        """Answer from what is known on this host; empty: nothing is said; None: name servers may know."""
        if question.record is None or question.rcode:
            return question.failed(question.rcode) if question.rcode else b""
        with self._reading:
            names = self._read_names()
            pointer = names.pointer(question.name) if question.type == "PTR" else None
            if pointer:
                return question.answered([pointer])
            found = dict.fromkeys([*names.addresses(question.name), *self._known_elsewhere(names, question.name)])
            if found:
                return question.answered(found, turn=names.turn(question.name, question.type))
            if names.qualified and "." not in question.name and question.type in ("A", "AAAA"):
                return question.answered([])
            return None if names.forwards else question.failed(SERVFAIL)

    def _known_elsewhere(self, names: Names, name: str) -> list[str]:
        """Return the addresses on other hosts, of which the networks' drivers know."""
        found: list[str] = []
        for record, host in names.shared(name):
            try:
                found += lookup(self._engine, record, host)
            except Exception as error:
                self._complain(error)
        return found

    def _read_names(self) -> Names:
        if self._names is None:
            self._names = Names(self._engine, self._id)
        self._names.refresh()
        return self._names

    def _forward(self, question: Question, reply: Callable[[bytes], None]) -> None:
        with self._reading:
            names = self._read_names()
            servers, netns = (names.servers, self._netns) if names.own_servers else (_host_servers(), -1)
        self._forwarder.ask(question, servers, netns, reply)


def _host_servers() -> list[str]:
    """Return the host's name servers (resolv.conf(5)), as they are now."""
    try:
        with open("/etc/resolv.conf", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        words = []
    found = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver" and canonical(w[1])]
    return found or list(PUBLIC_SERVERS)


def _listen() -> tuple[socket.socket, socket.socket]:
    """In the container's namespace: open the sockets and let its port 53 lead there, or take that port itself."""
    udp, tcp = _bound(0)
    if not _redirect(udp.getsockname()[1], tcp.getsockname()[1]):
        for sock in (udp, tcp):
            sock.close()
        udp, tcp = _bound(53)
    udp.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    tcp.listen(MOST)
    for sock in (udp, tcp):
        sock.setblocking(False)
    return udp, tcp


def _bound(port: int) -> tuple[socket.socket, socket.socket]:
    opened: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            opened.append(socket.socket(socket.AF_INET, kind))
            opened[-1].bind((RESOLVER, port))
    except BaseException:
        for sock in opened:
            sock.close()
        raise
    return opened[0], opened[1]


def _redirect(udp: int, tcp: int) -> bool:
    """Translate port 53 of the resolver's address, and the source of the answers with it; False when nothing can."""
    import ctypes

    try:
        library = ctypes.CDLL("libnftables.so.1")
    except OSError:
        return False
    library.nft_ctx_new.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    try:
        library.nft_ctx_buffer_error(context)
        rules = _RULES.format(address=RESOLVER, udp=udp, tcp=tcp)
        return bool(library.nft_run_cmd_from_buffer(context, rules.encode()) == 0)
    finally:
        library.nft_ctx_free(context)
