"""Following the other hosts: what `Overlay.watch` does, in one thread of each container's supervisor.

Of the threads that watch one network on one host, the one that has a lock does the work; the lock is the kernel's
(flock(2)), so another has it as soon as that one's process is gone. Likewise one of all threads says that the host is
alive, by a lease, and removes what hosts have left that are not heard of any more.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from transom.contract.network import Network
from transom.errors import Conflict, NotFound
from transom.services.files import Lock
from transom.services.netlink import Session
from transom_network_overlay import forwarding
from transom_network_overlay.etcd import Away, Event, Pair
from transom_network_overlay.store import Known, Peer, Store

if TYPE_CHECKING:
    from transom_network_overlay import Overlay

TURN = 0.5
"""Seconds after which a thread that has not got the lock tries again."""
TICK = 1.0
"""Seconds between two signs of life, and until a member of etcd that is silent is found out."""
PAUSES = (0.1, 0.2, 0.5, 1.0, 2.0)
"""Seconds to wait for etcd, longer each time."""
COMPARE = 30.0
"""Seconds between two comparisons of the kernel's tables with what they should be."""


class Follower:
    """Follows one network on behalf of a host."""

    def __init__(self, driver: Overlay, network: Network) -> None:
        self._driver, self._network = driver, network
        self._life: Life | None = None

    def run(self, stop: int) -> None:
        """Follow until `stop` is readable. Trouble is waited out."""
        self._driver.run.mkdir(parents=True, exist_ok=True)
        turn = Lock(self._driver.run / f"{self._network.id}.watch")
        while not turn.acquire(wait=False):
            if _waited(stop, TURN):
                return
        try:
            self._follow_on(stop)
        finally:
            turn.release()
            if self._life:
                self._life.end()

    def _follow_on(self, stop: int) -> None:
        attempt = 0
        while True:
            began = time.monotonic()
            try:
                store = self._driver.store()
                try:
                    if self._follow(store, stop):
                        return
                finally:
                    store.etcd.close()
            except Exception as error:  # whatever it is: a watch that ends leaves the host deaf
                if attempt == 0:
                    print(f"following {self._network.name}: {error}", file=sys.stderr, flush=True)
            if self._life:
                self._life.lost()
            attempt = 0 if time.monotonic() - began > 2 * PAUSES[-1] else attempt + 1
            if _waited(stop, PAUSES[min(attempt, len(PAUSES) - 1)]):
                return

    def _follow(self, store: Store, stop: int) -> bool:
        """Read everything, then hear of changes; True when it is to end."""
        store.present_host()
        self._driver.settle_debts(store)
        self._restore(store)
        found, revision = store.peers(self._network.id)
        # Behind that: what is removed from now on is heard of.
        self._rejoin(store, self._driver.known(self._network.id).peers)
        table = _Table(self._driver, self._network.id, store, found)
        table.write(revision)
        member = store.etcd.urls[0]
        with store.etcd.watch(store.key("ep", self._network.id, ""), revision + 1) as stream:
            ticked = 0.0
            while not stream.wait(stop, max(0.0, ticked + TICK - time.monotonic())):
                self._rejoin(store, table.hear(store, stream.read()))
                if time.monotonic() - ticked >= TICK:
                    self._tick(store)
                    if store.etcd.urls[0] != member:
                        raise Away(f"{member} is silent")
                    table.compare_now_and_then()
                    ticked = time.monotonic()
        return True

    def _restore(self, store: Store) -> None:
        """Record the network anew when etcd has lost everything: what the kernel knows is what is true then.

        Where an older state of etcd was restored, what of this host has left since is removed from it.
        """
        known, id = self._driver.known(self._network.id), self._network.id
        if not self._driver.is_lost(store, known):
            return
        print(f"{self._network.name}: etcd has lost its records; recording it anew", file=sys.stderr, flush=True)
        stored = self._driver.recorded(id)
        if stored:
            store.restore_network(id, stored)
        here = self._here()
        for peer in store.peers(id)[0]:
            if peer.host == store.host and peer.endpoint not in here:
                store.leave(id, peer.endpoint)
                store.release(id, peer.endpoint)

    def _here(self) -> set[str]:
        """Return the network's endpoints that are on this host."""
        with Session() as session:
            return {c.endpoint for c in self._driver.children(session) if c.network == self._network.id}

    def _rejoin(self, store: Store, known: Iterable[Peer]) -> None:
        """Record this host's endpoints anew that others have removed, as it was not heard of for too long."""
        ours = [peer for peer in known if peer.host == store.host and peer.boot == store.member.boot]
        if not ours:
            return
        here = self._here()
        recorded = {peer.endpoint: peer for peer in store.peers(self._network.id)[0]}
        for peer in (peer for peer in ours if peer.endpoint in here):
            current = recorded.get(peer.endpoint)
            if current is None or current.vtep != store.member.vtep:
                try:
                    store.rejoin(self._network, peer)
                except (Conflict, NotFound) as error:  # it has been given to somebody else meanwhile
                    print(f"endpoint {peer.endpoint[:12]} stays alone: {error}", file=sys.stderr, flush=True)

    def _tick(self, store: Store) -> None:
        """Say that the host is alive; find out whether the member that is watched at is, and has what it had."""
        if self._life is None:
            self._life = Life.begin(self._driver)
        before = store.cluster
        store.present_host()
        if store.cluster != before:
            raise Away("etcd has lost its records")
        if self._life:
            self._life.go_on(store)


class _Table:
    """The endpoints of a network as they are heard of, and what is written of them to the kernel.

    What other hosts had when etcd lost everything stays until they have recorded it anew, at most for the grace; such a
    peer has the revision 0, so whoever has its address by now goes before.
    """

    def __init__(self, driver: Overlay, network: str, store: Store, peers: Iterable[Peer]) -> None:
        self._driver, self._network, self._host = driver, network, store.host
        self._cluster = store.cluster
        self._peers = {peer.endpoint: peer for peer in peers}
        known = driver.known(network)
        lost = known.cluster not in {"", self._cluster}
        self._kept = {
            peer.endpoint: msgspec.structs.replace(peer, revision=0)
            for peer in known.peers
            if (lost or peer.revision == 0) and peer.host != self._host
        }
        self._until = time.monotonic() + driver.options.grace
        self._revision, self._compared = -1, time.monotonic()
        self._entries: forwarding.Entries | None = None

    def hear(self, store: Store, events: Iterable[Event]) -> list[Peer]:
        """Take note of changes; return the endpoints of this host that were removed."""
        revision, removed = 0, []
        for event in events:
            endpoint, revision = event.key.rpartition("/")[2], event.revision
            self._kept.pop(endpoint, None)
            if event.value is None:
                gone = self._peers.pop(endpoint, None)
                removed += [gone] if gone and gone.host == self._host else []
            else:
                self._peers[endpoint] = store.peer(Pair(key=event.key, value=event.value, revision=event.revision))
        if revision:
            self.write(revision)
        return removed

    def compare_now_and_then(self) -> None:
        """Put right what somebody else has changed in the kernel's tables."""
        if self._kept and time.monotonic() > self._until:
            self._kept = {}
            self.write(self._revision)
        if time.monotonic() - self._compared > COMPARE:
            self._entries = None
            self._driver.encrypt()
            self.write(self._revision)

    def write(self, revision: int) -> None:
        """Write to the kernel; what is there is known where nobody else has written since."""
        if self._entries is None or self._driver.known(self._network).revision != self._revision:
            self._entries, self._compared = None, time.monotonic()
        peers = tuple({**self._kept, **self._peers}.values())
        new = Known(revision=revision, peers=peers, cluster=self._cluster)
        if self._driver.apply(self._network, self._host, new, before=self._entries):
            self._entries = forwarding.wanted(peers, self._host)
        self._revision = revision


class Life:
    """The host's sign of life, and what is done about those who give none."""

    def __init__(self, driver: Overlay, lock: Lock) -> None:
        self._driver, self._lock, self._lease = driver, lock, 0
        self._missed: dict[str, float] = {}

    @classmethod
    def begin(cls, driver: Overlay) -> Life | None:
        """Return it where no other thread of this host gives it."""
        lock = Lock(driver.run / "alive")
        return cls(driver, lock) if lock.acquire(wait=False) else None

    def end(self) -> None:
        """Leave it to another thread."""
        self._lock.release()

    def lost(self) -> None:
        """Take note that etcd was away: nobody was heard of, and that says nothing about anybody."""
        self._missed.clear()

    def go_on(self, store: Store) -> None:
        """Keep the lease alive, and look after the others."""
        if not self._lease or not store.etcd.keep_alive(self._lease):
            self._lease = store.etcd.grant(int(self._driver.options.lease))
            store.be_heard(self._lease)
        self._driver.look_after_secrets(store)
        known, heard = store.members()
        now = time.monotonic()
        for host in known:
            if host in heard or host == store.host:
                self._missed.pop(host, None)
            elif now - self._missed.setdefault(host, now) >= self._driver.options.grace:
                count, self._missed[host] = store.reap(host), now
                if count:
                    print(f"removed {count} records of host {host}, which is gone", file=sys.stderr, flush=True)


def _waited(stop: int, seconds: float) -> bool:
    return bool(select.select([stop], [], [], seconds)[0])
