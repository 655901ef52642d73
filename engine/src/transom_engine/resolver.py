"""The embedded resolver: containers on a user-defined network find each other by name, as docker's do.

It is a thread of the container's supervisor and listens inside the container's network namespace on 127.0.0.11, on
ports of the kernel's choice to which that namespace translates port 53: the container may serve port 53 itself.

A container has on each of its networks the names that docker gives it: its own name, its short id, its hostname and
its aliases there, and each of them with the network's name behind a dot; besides, for one that has a link to it, the
link's alias. They are read from the engine's records
whenever these have changed, and hold for a second. What nobody here is called is asked of the name servers that the
user gave (from inside the container's namespace) or else of the host's (from the host's); each such question has a
thread of its own, so a slow server delays nobody else's answer. Internal networks ask nobody.

The protocol is RFC 1035's, with RFC 6891 for longer datagrams; dnslib reads and writes it.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread, current_thread
from typing import TYPE_CHECKING, Any

import msgspec

from transom.errors import DriverError
from transom.services.netns import inside
from transom_engine.bundle import PUBLIC_SERVERS, RESOLVER
from transom_engine.model import EndpointSettings, Pascal, learned
from transom_engine.networks.model import NetworkRecord
from transom_engine.networks.names import has_names, looks_up, lookup
from transom_engine.state import State

if TYPE_CHECKING:
    from dnslib import DNSRecord

    from transom_engine.engine import Engine

TTL = 1
"""Seconds that an answer about a container holds."""
_SERVERS, _PATIENCE = 3, 4.0
"""How many name servers a question is taken to, and seconds that each of them has."""
_WORKERS = 64
"""How many questions to others, and connections, may be under way; beyond them the answer is SERVFAIL."""
_IDLE = 10.0
"""Seconds after which a silent connection is closed."""
_DATAGRAM, _OFFERED, _STREAM = 512, 4096, 65535
"""The longest answers, in bytes: as a datagram, as one where RFC 6891 is spoken, and over TCP."""
_FORMERR, _SERVFAIL, _NOTIMP, _REFUSED = 1, 2, 4, 5

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
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._lock = Lock()
        self._closing = False
        self._complained = ""
        self._sockets: set[socket.socket] = set()
        self._threads: set[Thread] = set()
        self._reading = Lock()
        self._names: Names | None = None

    def start(self) -> None:
        """Answer, in a thread of its own; what was asked before has waited."""
        self._work(self._serve)

    def close(self) -> None:
        """Stop answering, end what is under way and close every descriptor."""
        with self._lock:
            self._closing = True
            threads = list(self._threads)
            for sock in self._sockets:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # not connected, or no longer
        os.eventfd_write(self._stop, 1)
        for thread in threads:
            thread.join(1.0)
        self._names = None
        self._udp.close()
        self._tcp.close()
        os.close(self._stop)
        os.close(self._netns)

    # Threads

    def _work(self, function: Callable[..., None], *args: Any) -> bool:
        """Call the function in a thread; False when there are enough of them."""

        def run() -> None:
            try:
                function(*args)
            except Exception as error:
                self._complain(error)
            finally:
                with self._lock:
                    self._threads.discard(current_thread())

        with self._lock:
            if self._closing or len(self._threads) > _WORKERS:
                return False
            thread = Thread(target=run, name="resolver", daemon=True)
            thread.start()
            self._threads.add(thread)
        return True

    @contextmanager
    def _open(self, sock: socket.socket) -> Iterator[socket.socket]:
        """Let `close` end what is being done with the socket; close it afterwards."""
        with self._lock:
            self._sockets.add(sock)
        try:
            if self._closing:
                raise OSError("the resolver is closing")
            yield sock
        finally:
            with self._lock:
                self._sockets.discard(sock)
                sock.close()

    def _complain(self, error: Exception) -> None:
        """Note a failure in the supervisor's log, but not the same one again and again."""
        text = f"resolver: {type(error).__name__}: {error}"
        if not self._closing and text != self._complained:
            self._complained = text
            print(text, file=sys.stderr, flush=True)

    # Questions

    def _serve(self) -> None:
        poll = select.poll()
        for fd in (self._stop, self._udp.fileno(), self._tcp.fileno()):
            poll.register(fd, select.POLLIN)
        while not self._closing:
            for fd, _ in poll.poll():
                try:
                    if fd == self._udp.fileno():
                        self._on_datagram(*self._udp.recvfrom(_STREAM))
                    elif fd == self._tcp.fileno():
                        self._on_connection(self._tcp.accept()[0])
                except OSError:
                    continue  # the client is gone
                except Exception as error:
                    self._complain(error)

    def _on_datagram(self, data: bytes, client: tuple[str, int]) -> None:
        question = Question.read(data, stream=False)
        answer = self._answer(question)
        if answer is None:
            if self._work(self._pass_on, question, client):
                return
            answer = question.failed(_SERVFAIL)
        if answer:
            self._udp.sendto(answer, client)

    def _pass_on(self, question: Question, client: tuple[str, int]) -> None:
        answer = self._ask_others(question)
        try:
            self._udp.sendto(answer, client)
        except OSError:
            pass  # the client is gone

    def _on_connection(self, connection: socket.socket) -> None:
        if not self._work(self._converse, connection):
            connection.close()

    def _converse(self, connection: socket.socket) -> None:
        with self._open(connection):
            connection.settimeout(_IDLE)
            try:
                while True:
                    question = Question.read(_receive(connection), stream=True)
                    answer = self._answer(question)
                    if answer is None:
                        answer = self._ask_others(question)
                    if not answer:
                        return
                    connection.sendall(struct.pack("!H", len(answer)) + answer)
            except OSError:
                return  # the client is gone, or silent

    # Answers

    def _answer(self, question: Question) -> bytes | None:
        """Answer from the records alone; empty: nothing is said; None: others may know."""
        if question.record is None:
            return question.failed(question.rcode) if question.rcode else b""
        with self._reading:
            names = self._read_names()
            pointer = names.pointer(question.name) if question.type == "PTR" else None
            if pointer:
                return question.answered([pointer])
            if names.shared(question.name):
                return None
            found = names.addresses(question.name)
            if found:
                return question.answered(found)
            return None if names.forwards else question.failed(_SERVFAIL)

    def _read_names(self) -> Names:
        if self._names is None:
            self._names = Names(self._engine, self._id)
        self._names.refresh()
        return self._names

    def _ask_others(self, question: Question) -> bytes:
        """Answer with what the networks' drivers know of other hosts, else with a name server's answer."""
        with self._reading:
            names = self._read_names()
            found, shared = list(names.addresses(question.name)), names.shared(question.name)
            servers, theirs, forwards = names.servers, names.own_servers, names.forwards
        for record, name in shared:
            try:
                found += lookup(self._engine, record, name)
            except Exception as error:
                self._complain(error)
        if found:
            return question.answered(dict.fromkeys(found))
        if not forwards:
            return question.failed(_SERVFAIL)
        answer = b""
        for server in servers[:_SERVERS] if theirs else _host_servers()[:_SERVERS]:
            try:
                answer = self._ask(server, question.data, self._netns if theirs else -1)
            except (OSError, struct.error):
                continue
            if answer[3] & 15 not in (_SERVFAIL, _REFUSED):
                break
        return question.fitted(answer) if answer else question.failed(_SERVFAIL)

    def _ask(self, server: str, data: bytes, netns: int) -> bytes:
        """Ask one server, by TCP too when it says that its datagram is cut (RFC 1035, 4.2.1)."""
        until = time.monotonic() + _PATIENCE
        with self._connected(server, socket.SOCK_DGRAM, netns, until) as sock:
            sock.send(data)
            while not _answers((answer := self._datagram(sock, until)), data):
                pass
        if not answer[2] & 2:
            return answer
        try:
            with self._connected(server, socket.SOCK_STREAM, netns, until) as sock:
                sock.sendall(struct.pack("!H", len(data)) + data)
                whole = _receive(sock)
        except OSError:
            return answer
        return whole if _answers(whole, data) else answer

    def _datagram(self, sock: socket.socket, until: float) -> bytes:
        """Wait for a datagram, or for `close`: shutdown(2) does not end a wait for one."""
        poll = select.poll()
        poll.register(sock, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        left = int((until - time.monotonic()) * 1000)
        if left <= 0 or not poll.poll(left) or self._closing:
            raise TimeoutError
        return sock.recv(_STREAM)

    @contextmanager
    def _connected(self, server: str, kind: int, netns: int, until: float) -> Iterator[socket.socket]:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        made = socket.socket(family, kind) if netns < 0 else inside(netns, socket.socket, family, kind)
        with self._open(made) as sock:
            sock.settimeout(max(0.001, until - time.monotonic()))
            sock.connect((server, 53))
            yield sock


class Question(msgspec.Struct, frozen=True):
    """What a client asked, and the answers in the shape it can take.

    Attributes:
        record: the message; None when it cannot be read, or is none to answer.
        rcode: why it is refused, 0 when it is not.
        name: in lower case, without the last dot.
        type: "A", "AAAA", "PTR" and so on.
        limit: the longest answer, in bytes.
    """

    data: bytes
    record: Any = None
    rcode: int = 0
    name: str = ""
    type: str = ""
    limit: int = _DATAGRAM

    @classmethod
    def read(cls, data: bytes, *, stream: bool) -> Question:
        """Read a message; nothing is raised whatever it is."""
        from dnslib import OPCODE, QTYPE, DNSRecord

        if len(data) < 12 or data[2] & 0x80:  # no header, or itself an answer
            return cls(data)
        try:
            record = DNSRecord.parse(data)
            if record.header.opcode != OPCODE.QUERY:
                return cls(data, rcode=_NOTIMP)
            if len(record.questions) != 1:
                return cls(data, rcode=_FORMERR)
            offered = next((extra.rclass for extra in record.ar if extra.rtype == QTYPE.OPT), _DATAGRAM)
            return cls(
                data,
                record=record,
                name=str(record.q.qname).rstrip(".").lower(),
                type=str(QTYPE.get(record.q.qtype)),
                limit=_STREAM if stream else min(max(_DATAGRAM, offered), _OFFERED),
            )
        except Exception:  # of any kind: whatever a stranger sends, the parser may trip over it
            return cls(data, rcode=_FORMERR)

    def answered(self, values: Iterable[str]) -> bytes:
        """Return the answer with those of the values that are of the type in question: none is an answer too."""
        from dnslib import AAAA, EDNS0, PTR, QTYPE, RR, A

        reply = self.record.reply()
        for value in values:
            type = "PTR" if self.type == "PTR" else "AAAA" if ":" in value else "A"
            if self.type in (type, "ANY"):
                rdata = {"PTR": PTR, "AAAA": AAAA, "A": A}[type](value)
                reply.add_answer(RR(self.record.q.qname, getattr(QTYPE, type), rdata=rdata, ttl=TTL))
        if any(extra.rtype == QTYPE.OPT for extra in self.record.ar):
            reply.add_ar(EDNS0(udp_len=_OFFERED))
        return self._cut(reply)

    def failed(self, rcode: int) -> bytes:
        """Return an answer that says no more than that there is none."""
        if self.record is None:
            flags = 0x8080 | (self.data[2] & 0x79) << 8 | rcode  # QR, RA; theirs: opcode, RD
            return self.data[:2] + struct.pack("!HHHHH", flags, 0, 0, 0, 0)
        reply = self.record.reply(aa=0)
        reply.header.rcode = rcode
        return bytes(reply.pack())

    def fitted(self, answer: bytes) -> bytes:
        """Return another server's answer, cut where it is too long for this client."""
        if len(answer) <= self.limit:
            return answer
        from dnslib import DNSRecord

        try:
            return self._cut(DNSRecord.parse(answer))
        except Exception:
            return self.failed(_SERVFAIL)

    def _cut(self, reply: DNSRecord) -> bytes:
        """Leave away what does not fit, and say so (RFC 2181, 9)."""
        data = bytes(reply.pack())
        while len(data) > self.limit and reply.rr:
            reply.header.tc = 1
            reply.rr, reply.auth = reply.rr[: len(reply.rr) // 2], []
            data = bytes(reply.pack())
        return data


class _Config(Pascal):
    hostname: str = ""
    domainname: str = ""


class _HostConfig(Pascal):
    dns: list[str] = []


class _State(Pascal):
    status: str = ""


class _Settings(Pascal):
    networks: dict[str, EndpointSettings] = {}


class _Container(Pascal):
    """The part of a container's record that is read here."""

    id: str = msgspec.field(name="Id")
    name: str
    config: _Config
    host_config: _HostConfig
    state: _State
    network_settings: _Settings

    def names(self, place: EndpointSettings) -> set[str]:
        """Return what the container is called on a network."""
        host, domain = self.config.hostname, self.config.domainname
        full = f"{host}.{domain}" if domain else host
        return {name.lower() for name in (self.name, self.id[:12], host, full, *(place.aliases or ())) if name}


class Names:
    """The names on the networks of one container, as the records have them; used by one thread at a time."""

    def __init__(self, engine: Engine, id: str) -> None:
        self._engine, self._id = engine, id
        # Closed by going away: State.close would take from this process's other connection its lock of the file
        # (fcntl(2): locks end when any descriptor of the file is closed).
        self._state = State(str(engine.state_dir / "state.db"))
        self._version = -1
        self._turn = 0
        self._networks: list[NetworkRecord] = []
        self._found: dict[tuple[str, str], list[_Container]] = {}
        self._links: dict[tuple[str, str], list[_Container]] = {}
        """What only this container calls others (``--link``); such a name goes before everybody's."""
        self._pointers: dict[str, tuple[_Container, str]] = {}
        self.forwards = False
        """Whether the container has a network with a way out."""
        self.servers: list[str] = []
        self.own_servers = False
        """Whether `servers` are the container's own, to be asked from its namespace."""

    def refresh(self) -> None:
        """Read the records again if they have changed."""
        version = self._state.version()
        if version != self._version:
            self._read()
            self._version = version

    def _read(self) -> None:
        containers: list[_Container] = self._state.all("container", _Container)
        records = {r.name: r for r in self._state.all("network", NetworkRecord)}
        own = next((c for c in containers if c.id == self._id), None)
        mine = [records[name] for name in own.network_settings.networks if name in records] if own else []
        self._networks = [record for record in mine if has_names(self._engine, record)]
        self.forwards = any(not record.internal for record in mine)
        given = own.host_config.dns or learned(own.network_settings.networks)[0] if own else []
        given = given or [*self._engine.config.dns]
        self.servers = [server for server in given if server != RESOLVER]  # asking itself has no end
        self.own_servers = bool(self.servers)
        self._found, self._pointers, self._links = {}, {}, {}
        for container in containers:
            if container.state.status in ("running", "paused"):
                for record in self._networks:
                    self._add(container, record.name, _linked(own, container, record.name))

    def _add(self, container: _Container, network: str, private: list[str]) -> None:
        place = container.network_settings.networks.get(network)
        if place is None:
            return
        for name in container.names(place):
            self._found.setdefault((network, name), []).append(container)
        for name in private:
            self._links.setdefault((network, name), []).append(container)
        for address in _addresses(place):
            self._pointers[_canonical(address)] = container, f"{container.name}.{network}"

    def _meant(self, name: str) -> Iterator[tuple[NetworkRecord, str]]:
        """Say on which networks a name is looked for, and as what: "a.b" may be "a" on network "b"."""
        for record in self._networks:
            yield record, name
        for record in self._networks:
            if name.endswith(f".{record.name.lower()}"):
                yield record, name[: -len(record.name) - 1]

    def addresses(self, name: str) -> list[str]:
        """Return the addresses on the first network where the name is known, each time another one first."""
        for record, host in self._meant(name):
            key = record.name, host
            containers = [c for c in self._links.get(key, self._found.get(key, [])) if self._alive(c)]
            if containers:
                self._turn += 1
                turn = self._turn % len(containers)
                places = [c.network_settings.networks[record.name] for c in containers[turn:] + containers[:turn]]
                return [address for place in places for address in _addresses(place)]
        return []

    def shared(self, name: str) -> list[tuple[NetworkRecord, str]]:
        """Return the networks whose drivers may know the name from other hosts, and as what."""
        return [(record, host) for record, host in self._meant(name) if looks_up(self._engine, record)]

    def pointer(self, name: str) -> str | None:
        """Return the name of who has the address in a name below in-addr.arpa or ip6.arpa (RFC 1035, 3596)."""
        labels = name.split(".")[-3::-1]
        if name.endswith(".in-addr.arpa"):
            text = ".".join(labels)
        elif name.endswith(".ip6.arpa"):
            text = ":".join("".join(labels[i : i + 4]) for i in range(0, len(labels), 4))
        else:
            return None
        container, pointer = self._pointers.get(_canonical(text), (None, ""))
        return pointer if container is not None and self._alive(container) else None

    def _alive(self, container: _Container) -> bool:
        """Whether its supervisor lives: the record of one that was killed says nothing of that."""
        return self._engine.containers.alive(container.id)


def _linked(own: _Container | None, other: _Container, network: str) -> list[str]:
    """Return what `own` alone calls the other container on a network."""
    place = own.network_settings.networks.get(network) if own else None
    pairs = [link.split(":") for link in (place.links or ())] if place else []
    return [alias.lower() for name, alias in pairs if name in (other.name, other.id) or other.id.startswith(name)]


def _addresses(place: EndpointSettings) -> list[str]:
    return [address for address in (place.ip_address, place.global_ipv6_address) if address]


def _canonical(address: str) -> str:
    from ipaddress import ip_address

    try:
        return str(ip_address(address))
    except ValueError:
        return ""


def _host_servers() -> list[str]:
    """Return the host's name servers (resolv.conf(5)), as they are now."""
    try:
        with open("/etc/resolv.conf", errors="replace") as file:
            words = [line.split() for line in file]
    except OSError:
        words = []
    found = [w[1] for w in words if len(w) > 1 and w[0] == "nameserver" and _canonical(w[1])]
    return found or list(PUBLIC_SERVERS)


def _answers(answer: bytes, question: bytes) -> bool:
    """Say whether it is an answer to that question: others may have sent it (RFC 5452, 9.1)."""
    end = 12
    while end < len(question) and question[end]:
        end += question[end] + 1
    asked = slice(12, end + 5)
    if len(answer) < 12 or answer[:2] != question[:2] or not answer[2] & 0x80:
        return False
    return answer[4:6] == b"\0\0" or answer[asked].lower() == question[asked].lower()


def _receive(sock: socket.socket) -> bytes:
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


def _listen() -> tuple[socket.socket, socket.socket]:
    """In the container's namespace: open the sockets and let its port 53 lead there, or take that port itself."""
    udp, tcp = _bound(0)
    if not _redirect(udp.getsockname()[1], tcp.getsockname()[1]):
        for sock in (udp, tcp):
            sock.close()
        udp, tcp = _bound(53)
    tcp.listen(_WORKERS)
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
