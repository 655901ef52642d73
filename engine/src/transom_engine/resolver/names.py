"""What containers are called, and where they are, as the engine's records have it."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import msgspec

from transom_engine.model import EndpointSettings, Pascal, learned
from transom_engine.networks.files import RESOLVER
from transom_engine.networks.model import NetworkRecord
from transom_engine.networks.names import has_names, looks_up
from transom_engine.state import State

if TYPE_CHECKING:
    from transom_engine.engine import Engine


class _Config(Pascal):
    hostname: str = ""
    domainname: str = ""


class _HostConfig(Pascal):
    dns: list[str] = []
    dns_options: list[str] = []


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
        self._turns: defaultdict[tuple[str, str], Iterator[int]] = defaultdict(_from_anywhere)
        self._networks: list[NetworkRecord] = []
        self._found: dict[tuple[str, str], list[_Container]] = {}
        self._links: dict[tuple[str, str], list[_Container]] = {}
        """What only this container calls others (``--link``); such a name goes before everybody's."""
        self._pointers: dict[str, tuple[_Container, str]] = {}
        self.forwards = False
        """Whether others may be asked: the user's servers, or the host's for a network that has a way out."""
        self.qualified = False
        """Whether they are asked for names with a dot alone: the user lets search domains be tried first."""
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
        given = own.host_config.dns or learned(own.network_settings.networks)[0] if own else []
        given = given or [*self._engine.config.dns]
        self.servers = [server for server in given if server != RESOLVER]  # asking itself has no end
        self.own_servers = bool(self.servers)
        self.forwards = self.own_servers or any(not record.internal for record in mine)
        options = (own.host_config.dns_options if own else []) or self._engine.config.dns_opts
        self.qualified = any(option.startswith("ndots:") and option != "ndots:0" for option in options)
        self._turns.clear()
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
        for address in place.addresses:
            self._pointers[canonical(address)] = container, f"{container.name}.{network}"

    def _meant(self, name: str) -> Iterator[tuple[NetworkRecord, str]]:
        """Say on which networks a name is looked for, and as what: "a.b" may be "a" on network "b"."""
        for record in self._networks:
            yield record, name
        for record in self._networks:
            if name.endswith(f".{record.name.lower()}"):
                yield record, name[: -len(record.name) - 1]

    def addresses(self, name: str) -> list[str]:
        """Return the addresses on the first network where the name is known."""
        for record, host in self._meant(name):
            key = record.name, host
            places = [
                container.network_settings.networks[record.name]
                for container in self._links.get(key, self._found.get(key, []))
                if self._alive(container)
            ]
            if places:
                return [address for place in places for address in place.addresses]
        return []

    def turn(self, name: str, type: str) -> int:
        """Count the answers about a name, from anywhere: clients take the first address, and not all of them the same.

        Each type has a count of its own: who asks for A and AAAA by turns would get every other one of them.
        """
        return next(self._turns[name, type])

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
        container, pointer = self._pointers.get(canonical(text), (None, ""))
        return pointer if container is not None and self._alive(container) else None

    def _alive(self, container: _Container) -> bool:
        """Whether its supervisor lives: the record of one that was killed says nothing of that."""
        return self._engine.containers.alive(container.id)


def _linked(own: _Container | None, other: _Container, network: str) -> list[str]:
    """Return what `own` alone calls the other container on a network."""
    place = own.network_settings.networks.get(network) if own else None
    pairs = [link.split(":") for link in (place.links or ())] if place else []
    return [alias.lower() for name, alias in pairs if name in (other.name, other.id) or other.id.startswith(name)]


def _from_anywhere() -> Iterator[int]:
    return count(random.randrange(1 << 16))


def canonical(address: str) -> str:
    """Return an IP address as it is usually written; empty when it is none."""
    from ipaddress import ip_address

    try:
        return str(ip_address(address))
    except ValueError:
        return ""
