"""The addresses that servers on the network give one interface: obtained when it is joined, kept while it is there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock, Thread

import msgspec

from transom.contract.network import Attachment, Endpoint
from transom.errors import DriverError
from transom.services import interfaces
from transom.services.netlink import Session
from transom.services.netns import inside
from transom_network_macvlan.advertisements import Advertised, Listener
from transom_network_macvlan.dhcp import NONE, Client, Lease


class Keeper:
    """Has an interface's addresses: by DHCP, by router advertisements, or by both.

    Args:
        root: where the driver may keep files.
        netns: a descriptor of the container's namespace.
        bare: what the endpoint is without addresses.
        endpoint: whose addresses were asked for, or are those that it has.
        families: 4 for DHCP, 6 for router advertisements.
        fixed_mtu: that of the interface is the user's choice, whatever a server says.
    """

    def __init__(
        self, root: Path, *, netns: int, bare: Attachment, endpoint: Endpoint, families: set[int], fixed_mtu: bool
    ) -> None:
        self._netns, self._bare, self._endpoint, self._fixed_mtu = netns, bare, endpoint, fixed_mtu
        self._families, self._interface = families, bare.interface or ""
        self._client = Client(root, netns=netns, interface=self._interface, name=endpoint.names[:1])
        self._lease, self._advertised = NONE, Advertised()
        self._lock = Lock()

    def obtain(self) -> Attachment:
        """Return the endpoint with its addresses, which are set.

        Raises:
            DriverError: no server gives any, or not the ones that were asked for; nothing is kept.
        """
        asked = {interfaces.family(address): interfaces.plain(address) for address in self._endpoint.addresses}
        if 4 in self._families:
            lease = self._client.obtain(asked.get(4, ""))
        try:
            if 4 in self._families:
                self._require("the DHCP server does not give", asked.get(4), lease.address)
                self._apply(lease)
            if 6 in self._families:
                with Listener(netns=self._netns, interface=self._interface) as listener:
                    self._advertised = listener.obtain()
                self._require("the routers do not give", asked.get(6), self._advertised.address)
        except BaseException:
            if 4 in self._families:
                self._client.give_back()
            raise
        return self._attachment()

    def _require(self, refusal: str, asked: str | None, given: str) -> None:
        if asked and asked != interfaces.plain(given):
            raise DriverError(
                "attach", driver="network macvlan", subject=self._endpoint.id[:12],
                cause=f"{refusal} {asked} but {interfaces.plain(given)}",
                hint="leave the address out, or reserve it at the server",
            )  # fmt: skip

    def _apply(self, lease: Lease) -> None:
        heeded = msgspec.structs.replace(lease, mtu=0) if self._fixed_mtu else lease
        with inside(self._netns, Session) as inner:
            heeded.apply(inner, self._interface, before=self._lease, most=self._bare.mtu or interfaces.ETHERNET_MTU)
        self._lease = heeded

    def _attachment(self) -> Attachment:
        lease, six = self._lease, self._advertised
        return msgspec.structs.replace(
            self._bare,
            addresses=_said(lease.address, six.address),
            gateways=_said(*lease.routers[:1], six.router),
            dns=(*lease.dns, *six.dns),
            search=tuple(dict.fromkeys((*lease.search, *six.search))),
            mtu=lease.mtu or self._bare.mtu,
        )

    def keep(self, stop: int, tell: Callable[[Attachment], None]) -> None:
        """Renew the lease and follow the routers until `stop` is readable; then release the lease.

        Args:
            tell: is told what the endpoint is, each time that a server has said it or has not said it in time; not
                before both families are known.
        """
        address = next((a for a in self._endpoint.addresses if ":" not in a), "")
        self._lease = Lease(address=address)

        known = set[int]()

        def leased(lease: Lease) -> None:
            with self._lock:
                self._apply(lease)
                heard(4)

        def advertised(found: Advertised) -> None:
            with self._lock:
                self._advertised = found
                heard(6)

        def heard(family: int) -> None:
            known.add(family)
            if known == self._families:
                tell(self._attachment())

        tasks: list[Callable[[], None]] = []
        if 4 in self._families:
            tasks.append(lambda: self._client.keep(stop, address, leased))
        if 6 in self._families:
            tasks.append(lambda: self._follow(stop, advertised))
        together(tasks)

    def _follow(self, stop: int, heed: Callable[[Advertised], None]) -> None:
        with Listener(netns=self._netns, interface=self._interface) as listener:
            listener.follow(stop, heed)


def together(tasks: Iterable[Callable[[], None]]) -> None:
    """Run each task in a thread of its own, and return when all have."""
    threads = [Thread(target=_careful, args=(task,), daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _careful(task: Callable[[], None]) -> None:
    try:
        task()
    except Exception as error:  # one family's trouble is not the other's
        print(f"keeping addresses: {error}", file=sys.stderr, flush=True)


def _said(*words: str) -> tuple[str, ...]:
    return tuple(word for word in words if word)
