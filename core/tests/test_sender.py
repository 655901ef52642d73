"""The sender empties its spool into peers that behave in every way."""

import socket
import threading
import time

import pytest

from transom.contract.logging import Chunk, Stream
from transom.errors import DriverError
from transom.services import endpoints
from transom.services.endpoints import Address, StreamSink
from transom.services.sender import Delivery, RemoteOptions, Retry, SpooledWriter


class Peer:
    """Listens, and gives each connection to a function in a thread; what that returns is what it received."""

    def __init__(self, serve):
        self._serve, self.received = serve, []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = Address(scheme="tcp", host="127.0.0.1", port=self._server.getsockname()[1])
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            connection.settimeout(60)
            thread = threading.Thread(target=self._one, args=[connection])
            thread.start()
            self._threads.append(thread)

    def _one(self, connection):
        with connection:
            self.received.append(bytearray())
            try:
                self._serve(connection, self.received[-1], len(self.received))
            except OSError:
                pass

    def join(self, size=0):
        """Wait until so many bytes have been read, and all that came with them."""
        end = time.monotonic() + 60
        while sum(map(len, self.received)) < size and time.monotonic() < end:
            time.sleep(0.01)
        for thread in self._threads[1:]:
            thread.join()

    def close(self):
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def peer():
    found = []

    def start(serve):
        found.append(Peer(serve))
        return found[-1]

    yield start
    for one in found:
        one.close()


def read_all(connection, received, number):
    while data := connection.recv(1 << 16):
        received += data


def writer(tmp_path, address, **more):
    sink = StreamSink(address, encode=lambda chunks: b"".join(chunk.data for chunk in chunks))
    settings = {"options": RemoteOptions(), "driver": "logging test", "delivery": Delivery(retry=Retry(first=0.05))}
    return SpooledWriter(sink, directory=str(tmp_path / "spool"), **{**settings, **more})


def lines(first, count):
    return [Chunk(Stream.STDOUT, 1, b"".join(b"%08d\n" % i for i in range(first, first + count)))]


def test_a_peer_that_never_closes_its_end_is_believed_in_the_end(tmp_path, peer, monkeypatch):
    monkeypatch.setattr(endpoints, "CONFIRM_TIMEOUT", 0.5)
    done = threading.Event()

    def serve(connection, received, number):
        read_all(connection, received, number)
        done.wait(60)

    found = peer(serve)
    sender = writer(tmp_path, found.address)
    sender.write(lines(0, 1000))
    assert sender.flush(timeout=60)
    sender.write(lines(1000, 10))
    assert sender.flush(timeout=60)
    sender.close(timeout=10)
    done.set()
    wanted = b"".join(c.data for c in lines(0, 1010))
    found.join(len(wanted))
    assert b"".join(map(bytes, found.received)) == wanted
    assert (sender.stats().delivered, sender.resent) == (1010, 0)


def test_a_peer_that_takes_nothing_is_given_up_and_loses_nothing(tmp_path, peer, monkeypatch):
    monkeypatch.setattr(endpoints, "WRITE_TIMEOUT", 0.5)
    gone = threading.Event()

    def serve(connection, received, number):
        if number == 1:
            gone.wait(60)
        else:
            read_all(connection, received, number)

    found = peer(serve)
    sender = writer(tmp_path, found.address)
    for i in range(0, 2_000_000, 50_000):
        sender.write(lines(i, 50_000))
    assert sender.flush(timeout=120)
    gone.set()
    sender.close(timeout=10)
    found.join()
    arrived = b"".join(map(bytes, found.received[1:])).split(b"\n")
    assert {int(line) for line in arrived if line} == set(range(2_000_000))
    assert sender.resent > 0


def test_a_reset_with_bytes_unread_brings_them_again(tmp_path, peer):
    """What the peer's kernel took is not what the peer has read."""

    def serve(connection, received, number):
        if number == 1:
            received += connection.recv(9)
            time.sleep(0.2)  # the rest lies in the socket's queue when it is closed
            received.clear()
        else:
            read_all(connection, received, number)

    found = peer(serve)
    sender = writer(tmp_path, found.address)
    sender.write(lines(0, 5000))
    assert sender.flush(timeout=60)
    sender.close(timeout=10)
    found.join()
    assert b"".join(map(bytes, found.received)) == lines(0, 5000)[0].data
    assert sender.resent == 5000


def test_a_connection_is_made_anew_when_its_time_is_over(tmp_path, peer):
    found = peer(read_all)
    sender = writer(tmp_path, found.address, delivery=Delivery(retry=Retry(first=0.05), lifetime=0.1))
    for i in range(3):
        sender.write(lines(i, 1))
        end = time.monotonic() + 60
        while sender.stats().delivered <= i and time.monotonic() < end:
            time.sleep(0.05)
    sender.close(timeout=10)
    found.join()
    assert len(found.received) == 3
    assert b"".join(map(bytes, found.received)) == b"".join(lines(i, 1)[0].data for i in range(3))


def test_a_full_spool_that_refuses_says_so(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = Address(scheme="tcp", host="127.0.0.1", port=closed.getsockname()[1])
    sender = writer(tmp_path, address, options=RemoteOptions(spool_max_size=8 << 20, spool_full="refuse"))
    with pytest.raises(DriverError) as caught:
        for i in range(200):
            sender.write(lines(i * 10_000, 10_000))
    assert str(caught.value) == (
        f"logging test: write {address} failed: 8m wait for the collector; make it faster, or raise spool-max-size"
    )
    assert sender.stats().dropped == 0
    sender.close(timeout=0.1)


def test_a_spool_that_cannot_be_written_says_where(tmp_path):
    (tmp_path / "spool").write_text("in the way")
    sender = writer(tmp_path, Address(scheme="tcp", host="127.0.0.1", port=9))
    with pytest.raises(DriverError) as caught:
        sender.write(lines(0, 1))
    assert str(caught.value) == (
        f"logging test: write {tmp_path}/spool failed: File exists; free space on the file system"
    )
    sender.close(timeout=0.1)
