"""The driver's words to etcd: what it does when a member is silent, and TLS."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import threading
import time
from binascii import b2a_base64
from contextlib import contextmanager

import pytest

from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError
from transom.services.netns import create, inside, loopback_up
from transom_network_overlay.etcd import Away, Etcd, Refused, Tls, absent, delete, put
from transom_network_overlay.examples import await_etcd, start, stop

PATIENCE = 60.0


NOBODY = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def netns():
    """A namespace of the tests' own, for the sake of its ports."""
    fd = create()
    inside(fd, loopback_up)
    yield fd
    os.close(fd)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that is its own authority, and the key to it."""
    if not shutil.which("openssl"):
        pytest.skip("the program openssl is missing: install openssl")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
            "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key.pem",
            "-out", folder / "cert.pem",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder


@contextmanager
def member(netns, folder, certificate, *, address):
    """Run an etcd that shows the certificate and wants to be shown it."""
    if not shutil.which("etcd"):
        pytest.skip("the program etcd is missing: install etcd-server")
    url, peers = f"https://{address}:2379", f"http://{address}:2380"
    process = inside(
        netns,
        subprocess.Popen,
        [
            "etcd", "--name", "one", "--data-dir", folder, "--logger", "zap", "--log-level", "error",
            "--listen-client-urls", url, "--advertise-client-urls", url,
            "--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers, "--initial-cluster", f"one={peers}",
            "--cert-file", certificate / "cert.pem", "--key-file", certificate / "key.pem",
            "--trusted-ca-file", certificate / "cert.pem", "--client-cert-auth",
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                inside(netns, socket.create_connection, (address, 2379), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield url
    finally:
        stop(process)


@pytest.fixture(scope="module")
def secure(certificate, tmp_path_factory, netns):
    with member(netns, tmp_path_factory.mktemp("etcd"), certificate, address="127.0.0.1") as url:
        yield url


def test_what_is_written_over_tls_is_read_and_heard_of(secure, certificate, netns):
    inside(netns, write_and_hear, secure, certificate)


def write_and_hear(secure, certificate):
    pem = str(certificate / "cert.pem")
    etcd = Etcd([secure], Tls(ca=pem, cert=pem, key=str(certificate / "key.pem")))
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            revision = etcd.read("/x/").revision
            break
        except Away:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    stop_read, stop_write = os.pipe()
    with etcd.watch("/x/", revision + 1) as stream:
        assert etcd.transact(when=[absent("/x/a")], then=[put("/x/a", b"\0\xff")]).held
        assert not etcd.transact(when=[absent("/x/a")], then=[put("/x/a", b"no")]).held
        etcd.transact(then=[delete("/x/a")])
        heard = []
        while len(heard) < 2:
            assert not stream.wait(stop_read, 1.0)
            heard += stream.read()
            assert time.monotonic() < deadline
        assert [(event.key, event.value) for event in heard] == [("/x/a", b"\0\xff"), ("/x/a", None)]
        os.close(stop_write)
        assert stream.wait(stop_read, 30.0)
    os.close(stop_read)
    etcd.close()


def test_a_member_that_is_not_trusted_or_trusts_not_is_away(secure, certificate, netns):
    pem = str(certificate / "cert.pem")
    for tls, words in ((Tls(), "certificate verify failed"), (Tls(ca=pem), secure)):
        etcd = Etcd([secure], tls)
        with pytest.raises(Away, match=words):
            inside(netns, etcd.read, "/")
        etcd.close()


def expired(folder):
    """Make a certificate for 127.0.0.3 whose time is over."""
    (folder / "names").write_text("subjectAltName=IP:127.0.0.3\n")
    for words in (
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -keyout key.pem -out request.pem",
        "x509 -req -in request.pem -signkey key.pem -days -1 -extfile names -out cert.pem",
    ):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)


def test_what_etcd_and_a_host_are_not_agreed_on_is_one_line_that_says_where_to_look(
    secure, certificate, netns, tmp_path
):
    """An unknown signer, no certificate to show, one that is over; the same by any command."""
    expired(tmp_path)
    pem, key = certificate / "cert.pem", certificate / "key.pem"
    shown = {"etcd-cert": pem, "etcd-key": key}
    with member(netns, tmp_path / "etcd", tmp_path, address="127.0.0.3") as late:
        for options, words in (
            ({"etcd": secure, **shown}, "certificate verify failed: self-signed certificate"),
            # The server closes behind its alert: whichever is met first.
            ({"etcd": secure, "etcd-ca": pem}, "alert|EOF occurred"),
            ({"etcd": late, "etcd-ca": tmp_path / "cert.pem", **shown}, "certificate has expired"),
        ):
            with pytest.raises(DriverError, match="etcd and this host are not agreed") as caught:
                listed(netns, tmp_path, options)
            assert re.search(words, str(caught.value))
            assert str(caught.value).endswith(
                "what runs goes on; look at etcd-ca, etcd-cert, etcd-user and etcd-password-file in the config, and "
                "at the user's roles"
            )
            assert "\n" not in str(caught.value)


def test_a_file_that_is_none_of_pem_is_named(secure, certificate, netns, tmp_path):
    (tmp_path / "no.pem").write_text("nothing")
    pem, key, wrong, gone = certificate / "cert.pem", certificate / "key.pem", tmp_path / "no.pem", tmp_path / "gone"
    shown = {"etcd-cert": pem, "etcd-key": key}
    for options, words in (
        ({"etcd-ca": gone, **shown}, f"etcd-ca {gone} cannot be used: No such file or directory; name files in PEM"),
        ({"etcd-ca": wrong, **shown}, f"etcd-ca {wrong} cannot be used: "),
        ({"etcd-cert": pem, "etcd-key": gone}, f"etcd-cert and etcd-key {pem}, {gone} cannot be used: No such file"),
        ({"etcd-user": "me", "etcd-password-file": gone}, f"etcd-password-file {gone}: No such file or directory"),
    ):
        with pytest.raises(ConfigError) as caught:
            listed(netns, tmp_path, {"etcd": secure, **options})
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def listed(netns, place, options):
    words = {name: str(value) for name, value in options.items()} | {"address": "127.0.0.9", "host": "x"}
    driver = Drivers(state=place, run=place).open("network", "overlay", words, where="here")
    for path in place.glob("**/away"):
        path.unlink()
    return inside(netns, driver.networks)


def test_a_user_is_known_by_a_password_and_a_wrong_one_is_said_in_a_line(netns, tmp_path):
    """The role may no more than the driver needs: keys below its prefix."""
    if not shutil.which("etcd"):
        pytest.skip("the program etcd is missing: install etcd-server")
    member = inside(netns, start, "two", tmp_path / "etcd", address="127.0.0.2", clients="127.0.0.2")
    url = "http://127.0.0.2:2379"
    try:
        inside(netns, await_etcd, url)
        root, below = Etcd([url], Tls()), {"key": b64(b"/x/"), "range_end": b64(b"/x0")}
        for path, body in (
            ("user/add", {"name": "root", "password": "r"}),
            ("user/add", {"name": "me", "password": "secret"}),
            ("role/add", {"name": "ours"}),
            ("role/grant", {"name": "ours", "perm": {"permType": "READWRITE", **below}}),
            ("user/grant", {"user": "root", "role": "root"}),
            ("user/grant", {"user": "me", "role": "ours"}),
            ("enable", {}),
        ):
            inside(netns, root.call, f"/v3/auth/{path}", body)
        root.close()
        me = Etcd([url], Tls(user="me", password="secret"))
        assert inside(netns, me.transact, when=[absent("/x/a")], then=[put("/x/a", b"1")]).held
        revision = inside(netns, me.read, "/x/").revision
        with inside(netns, me.watch, "/x/", revision + 1) as stream:
            inside(netns, me.transact, then=[delete("/x/a")])
            heard, deadline = [], time.monotonic() + PATIENCE
            while not heard:
                assert time.monotonic() < deadline
                time.sleep(0.02)
                heard += stream.read()
        for tls, words in (
            (Tls(user="me", password="wrong"), "authentication failed, invalid user ID or password"),
            (Tls(), "user name is empty"),
        ):
            other = Etcd([url], tls)
            with pytest.raises(Refused, match=words) as caught:
                inside(netns, other.read, "/x/")
            assert "\n" not in str(caught.value)
            other.close()
        with pytest.raises(Refused, match="permission denied"):
            inside(netns, me.read, "/y/")
        me.close()
    finally:
        stop(member)


def b64(data):
    return b2a_base64(data, newline=False).decode()


def test_a_silent_member_is_left_for_another_and_each_says_why(monkeypatch):
    monkeypatch.setattr("transom_network_overlay.etcd.ANSWER", 0.3)
    silent = socket.create_server(("127.0.0.1", 0))
    urls = [f"http://127.0.0.1:{silent.getsockname()[1]}", NOBODY]
    etcd = Etcd(urls, Tls())
    with pytest.raises(Away) as caught:
        etcd.read("/")
    assert f"{urls[0]}: timed out" in str(caught.value)
    assert f"{urls[1]}: [Errno 111] Connection refused" in str(caught.value)
    silent.close()
    etcd.close()


def test_a_member_that_answers_nonsense_is_away():
    server = socket.create_server(("127.0.0.1", 0))

    def answer():
        peer, _ = server.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nwhat")

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    etcd = Etcd([f"http://127.0.0.1:{server.getsockname()[1]}"], Tls())
    with pytest.raises(Away):
        etcd.read("/")
    etcd.close()
    thread.join(PATIENCE)
    server.close()
