"""Names come from the user database, rights from one group."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest

from transom.contract.auth import Identity, Request, Target, UnixPeer
from transom.services.mounts import CLONE_NEWNS, MS_PRIVATE, MS_REC, bind, mount, unshare
from transom_auth_peer import Options, Peer
from transom_conformance.suite import in_child

HERE = Path("/nonexistent")
ALICE = Request(unix=UnixPeer(pid=7, uid=5001, gid=5001))


def peer(group: str = "transom") -> Peer:
    return Peer(options=Options(group=group), root=HERE, run=HERE)


def ask(driver: Peer, identity: Identity) -> tuple[bool, str]:
    decision = driver.authorize(
        identity=identity, action="container.create", target=Target(kind="container"), request=Request()
    )
    return decision.allow, decision.reason


def known(driver: Peer, request: Request) -> Identity:
    identity = driver.authenticate(request=request)
    assert identity is not None
    return identity


def with_users(directory: Path, check: object) -> int:
    """Run `check` in a child whose user database has alice, and bob, a member of the groups transom and wheel."""
    (directory / "passwd").write_text(
        "root:x:0:0::/:/bin/sh\nalice:x:5001:5001::/:/bin/sh\nbob:x:5002:5002::/:/bin/sh\n"
    )
    (directory / "group").write_text("root:x:0:\nalice:x:5001:\nbob:x:5002:\ntransom:x:5003:bob\nwheel:x:5004:bob\n")

    def inside() -> None:
        unshare(CLONE_NEWNS)
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        for name in ("passwd", "group"):
            bind(str(directory / name), f"/etc/{name}")
        assert callable(check)
        check()

    return in_child(inside)


def test_the_caller_at_the_other_end_of_a_socket_is_known_by_name() -> None:
    one, other = socket.socketpair()
    with one, other:
        credentials = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    identity = known(peer(), Request(unix=UnixPeer(*struct.unpack("3i", credentials))))
    assert (identity.name, identity.uid, identity.method) == ("root", os.getuid(), "peer")
    assert "root" in identity.groups
    assert identity.claims == {"pid": os.getpid(), "gid": os.getgid()}


def test_a_member_of_the_group_may_and_a_stranger_may_not(tmp_path: Path) -> None:
    def check() -> None:
        bob = known(peer(), Request(unix=UnixPeer(pid=7, uid=5002, gid=5002)))
        assert bob.groups == {"bob", "transom", "wheel"}
        assert ask(peer(), bob) == (True, "")
        assert ask(peer("wheel"), bob) == (True, "")
        assert ask(peer("other"), bob) == (
            False,
            "bob is not in the group other; as root: usermod -aG other bob",
        )
        alice = known(peer(), ALICE)
        assert alice.groups == {"alice"}
        assert ask(peer(), alice) == (
            False,
            "alice is not in the group transom; as root: usermod -aG transom alice",
        )

    assert with_users(tmp_path, check) == 0


def test_membership_counts_from_the_moment_it_is_written(tmp_path: Path) -> None:
    def check() -> None:
        driver = peer()
        assert not ask(driver, known(driver, ALICE))[0]
        with open("/etc/group", "r+", encoding="ascii") as file:
            text = file.read()
            file.seek(0)
            file.write(text.replace("transom:x:5003:bob", "transom:x:5003:bob,alice"))
        assert ask(driver, known(driver, ALICE))[0]

    assert with_users(tmp_path, check) == 0


def test_the_primary_group_of_the_process_counts(tmp_path: Path) -> None:
    def check() -> None:
        assert ask(peer(), known(peer(), Request(unix=UnixPeer(pid=7, uid=5001, gid=5003))))[0]

    assert with_users(tmp_path, check) == 0


def test_with_an_empty_group_root_alone_may() -> None:
    assert ask(peer(""), Identity(name="root", method="peer", uid=0)) == (True, "")
    assert ask(peer(""), Identity(name="bob", method="peer", uid=5002, groups=frozenset({""}))) == (
        False,
        "only root may use transom, not bob; use sudo",
    )


@pytest.mark.parametrize("uid", [3_999_999_999, 1 << 40])
def test_a_user_whom_the_database_lacks_is_named_by_number(uid: int) -> None:
    identity = known(peer(), Request(unix=UnixPeer(pid=7, uid=uid, gid=3_999_999_998)))
    assert (identity.name, identity.groups) == (f"uid:{uid}", {"gid:3999999998"})
    assert not ask(peer(), identity)[0]


def test_it_has_no_opinion_on_those_whom_another_driver_identified() -> None:
    assert ask(peer(), Identity(name="CN=ci", method="tls")) == (
        True,
        "tls vouches for CN=ci, who is no local user",
    )
