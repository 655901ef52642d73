"""Which ports of the host a publication gets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from contextlib import ExitStack

from transom.contract.network import Port
from transom.errors import ConfigError, Conflict, choices
from transom_network_bridge.firewall import PROTOCOLS

_TRIES = 32
_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_STREAM}
_WILDCARDS = {"0.0.0.0", "::"}


class Chooser:
    """Settles ports one after the other, as a context: what it chose stays bound until its end.

    Args:
        holder: says who has a port at an address, or at one that overlaps it; empty: nobody.
    """

    def __init__(self, holder: Callable[[str, str, int], str]) -> None:
        self._holder = holder
        self._chosen: dict[tuple[str, int], dict[str, str]] = {}
        self._bound = ExitStack()

    def __enter__(self) -> Chooser:
        return self

    def __exit__(self, *_: object) -> None:
        self._bound.close()

    def settle(self, port: Port, addresses: tuple[str, ...], name: str) -> list[Port]:
        """Return the port at each of the addresses, the same one at all; none when there are none.

        Raises:
            Conflict: it is taken, or all of its range are.
            ConfigError: an unknown protocol, a port out of range, an address that is not the host's.
        """
        last = port.host_end or port.host
        if port.protocol not in PROTOCOLS:
            raise ConfigError(f"no such protocol: {port.protocol!r}; ports are of {choices(PROTOCOLS)}")
        if not (1 <= port.container <= 65535 and 0 <= port.host <= last <= 65535):
            raise ConfigError(f"port {port.host}-{last}:{port.container} is off: ports are 1 to 65535, in order")
        if not addresses:
            return []
        reasons = {}
        for candidate in range(port.host, last + 1) if port.host else [0] * _TRIES:
            chosen, reason = self._try(port.protocol, addresses, candidate)
            if chosen:
                self._chosen.setdefault((port.protocol, chosen), {}).update(dict.fromkeys(addresses, name))
                return [
                    Port(container=port.container, protocol=port.protocol, host=chosen, address=address)
                    for address in addresses
                ]
            reasons[candidate] = reason
        if port.host and port.host == last:
            raise Conflict(f"port {port.host}/{port.protocol} is taken: {reasons[last]}; choose another one")
        wanted = f"{port.host}-{last}" if port.host else "of the ephemeral range"
        raise Conflict(f"no port {wanted} is free for {port.protocol} (the last one: {reasons[last]})")

    def _try(self, protocol: str, addresses: tuple[str, ...], port: int) -> tuple[int, str]:
        """Bind the port at all of the addresses; 0 lets the kernel choose, which minds ip_local_reserved_ports."""
        with ExitStack() as attempt:
            for address in addresses:
                if port and (reason := self._held(protocol, address, port)):
                    return 0, reason
                try:
                    sock = attempt.enter_context(_bind(protocol, address, port))
                except OSError as error:
                    if error.errno == errno.EADDRNOTAVAIL:
                        raise ConfigError(f"cannot publish at {address}: it is not an address of this host") from None
                    if error.errno == errno.EADDRINUSE:
                        return 0, f"a program on this host uses it at {address}"
                    if error.errno not in {errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT}:  # no SCTP sockets here
                        raise
                    port = port or _bind_port("tcp", address)
                    continue
                port = sock.getsockname()[1]
                if reason := self._held(protocol, address, port):
                    return 0, reason
            self._bound.enter_context(attempt.pop_all())
        return port, ""

    def _held(self, protocol: str, address: str, port: int) -> str:
        for other, holder in self._chosen.get((protocol, port), {}).items():
            if _overlap(address, other):
                return f"{holder} has it at {other}"
        return self._holder(protocol, address, port)


def _bind(protocol: str, address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    number = socket.IPPROTO_SCTP if protocol == "sctp" else 0
    sock = socket.socket(family, _TYPES[protocol] | socket.SOCK_CLOEXEC, number)
    try:
        if protocol != "udp":  # connections that end do not hold the port; with UDP the option would share it
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, port))
    except BaseException:
        sock.close()
        raise
    return sock


def _bind_port(protocol: str, address: str) -> int:
    with _bind(protocol, address, 0) as sock:
        port: int = sock.getsockname()[1]
        return port


def _overlap(one: str, other: str) -> bool:
    return one == other or ((":" in one) == (":" in other) and bool({one, other} & _WILDCARDS))
