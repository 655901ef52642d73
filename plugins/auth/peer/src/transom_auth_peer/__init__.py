"""The auth driver for local users: the process at the other end of a unix socket, or the one that runs the command.

The kernel vouches for the user id (SO_PEERCRED, unix(7)); names and groups come from the user database, as
nsswitch.conf(5) orders it. Root and the members of one group may do everything, which is Docker's rule for the
members of its group: whoever may make containers is root on this host. Everybody else may do nothing.
"""

from __future__ import annotations

import os

import msgspec

from transom.contract.auth import Auth, AuthCapability, Decision, Identity, Request, Target


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The driver's options; see `Peer.option_docs`."""

    group: str = "transom"


class Peer(Auth):
    """Identifies by user id, authorizes by group; see the module's text."""

    name = "peer"
    api = 1
    capabilities = frozenset({AuthCapability.AUTHENTICATE, AuthCapability.AUTHORIZE})
    Options = Options
    option_docs = {"group": "the group whose members may do what root may; empty for root alone"}

    def status(self) -> dict[str, str]:
        return {"Group": self.options.group or "none, root alone"}

    def authenticate(self, request: Request) -> Identity | None:
        if request.unix is None:
            return None
        peer = request.unix
        name = _user(peer.uid)
        gids = {peer.gid} if name is None else {peer.gid, *os.getgrouplist(name, peer.gid)}
        return Identity(
            name=name or f"uid:{peer.uid}",
            method=self.name,
            uid=peer.uid,
            groups=frozenset(map(_group, gids)),
            claims={"pid": peer.pid, "gid": peer.gid},
        )

    def authorize(self, identity: Identity, action: str, target: Target, request: Request) -> Decision:
        if identity.method != self.name:
            return Decision(allow=True, reason=f"{identity.method} vouches for {identity.name}, who is no local user")
        group = self.options.group
        if identity.uid == 0 or (group and group in identity.groups):
            return Decision(allow=True)
        if not group:
            return Decision(allow=False, reason=f"only root may use transom, not {identity.name}; use sudo")
        return Decision(
            allow=False,
            reason=f"{identity.name} is not in the group {group}; as root: usermod -aG {group} {identity.name}",
        )


def _user(uid: int) -> str | None:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return None


def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return f"gid:{gid}"


__all__ = ["Options", "Peer"]
