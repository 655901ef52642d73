"""The places of containers on networks: joined, left, changed while they run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from transom.contract.network import Attachment, Endpoint, NetnsKind, NetworkCapability
from transom.errors import Conflict, DriverError, NotFound
from transom_engine import wire
from transom_engine.model import GATEWAY, LAST, Container, EndpointSettings
from transom_engine.networks.contracts import endpoint_of, network_of, ways_out
from transom_engine.networks.model import MEMBERS, NetworkRecord
from transom_engine.networks.ways import move_ways_out, ports_of, publish, route, spans_hosts

if TYPE_CHECKING:
    from transom.contract.network import Network, NetworkDriver
    from transom_engine.engine import Engine


class Place(msgspec.Struct, frozen=True):
    """A container's network namespace: a descriptor, -1 for the host's; `own` when it was made for this container."""

    fd: int
    own: bool


class Endpoints:
    """See the module's text."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def namespace(self, container: Container, *, proc: int) -> Place:
        """Give the container its network namespace.

        Args:
            proc: a descriptor of the host's /proc, where another container's namespace is found.
        """
        mode, _, reference = container.host_config.network_mode.partition(":")
        driver = mode if reference else self.engine.networks.driver_of(mode)
        endpoint = Endpoint(id=container.id, container=container.id, reference=reference or None)
        # Where the network of the mode has been removed it was one of a user's: those that it is on now say more.
        netns = self.engine.network_driver(driver).netns(endpoint=endpoint) if driver else None
        if netns and netns.kind is NetnsKind.HOST:
            return Place(fd=-1, own=False)
        if netns and netns.kind is NetnsKind.CONTAINER:
            other = self._shared(container, netns.of or "")
            try:
                fd = os.open(f"{other.state.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc)
            except FileNotFoundError:  # it has ended; with no pid on record there is no such path either
                raise Conflict(
                    f"cannot join the network of container {other.name}: it is not running; start it first"
                ) from None
            return Place(fd=fd, own=False)
        from transom.services.netns import create

        return Place(fd=create(), own=True)

    def _shared(self, container: Container, id: str) -> Container:
        try:
            return self.engine.state.container(id)
        except NotFound:
            raise Conflict(
                f"cannot join the network of container {id[:12]}: it has been removed;"
                f" make {container.name} again with --network container:ANOTHER"
            ) from None

    def host_of(self, container: Container) -> Container:
        """Return the container whose network, host name and files about both this one has: itself, or another."""
        other = container.host_config.network_mode.partition(":")[2]
        return self.host_of(self._shared(container, other)) if other else container

    def join(self, container: Container, netns: int) -> None:
        """Join the container to each of its networks and publish its ports; `leave` undoes it, however far it got."""
        places = container.network_settings.networks
        for name in places:
            if not self.engine.networks.driver_of(name):
                raise NotFound(
                    f"container {container.name} is to join network {name}, which has been removed: make it again,"
                    f" or `transom network disconnect {name} {container.name}`"
                )
        for name, place in places.items():
            self._join_one(container, name, place, netns)
        self._lead_out(container, netns)
        route(container, netns)
        container.network_settings.ports = dict.fromkeys(container.config.exposed_ports)
        # Where there is no way out the driver says why nothing can be published.
        ways = ways_out(container) or dict.fromkeys((4, 6), next(iter(places), ""))
        publish(self.engine, container, ways, tuple(ports_of(container)))

    def note(self, container: Container, record: Container, *joined: str) -> None:
        """Copy to a record what `container` has got on its networks and where its ports are.

        What a command has put it on or taken it off meanwhile stays as it is on record, but for what it `joined`.
        """
        places = record.network_settings.networks
        for name, place in container.network_settings.networks.items():
            if name in places or name in joined:
                places[name] = place
        record.network_settings.ports = container.network_settings.ports

    def _join_one(self, container: Container, name: str, place: EndpointSettings, netns: int) -> None:
        with self.engine.lock(MEMBERS, shared=True):
            record = self.engine.networks.get(name)
            driver, network = self.engine.network_driver(record.driver), network_of(self.engine, record)
            driver.create_network(network=network)
            place.network_id, place.endpoint_id = record.id, place.endpoint_id or os.urandom(32).hex()
            # On record before the driver acts: a crash in between is cleared away by what it says.
            with self.engine.state.changing(container.id) as kept:
                self.note(container, kept, name)
        endpoint = self.engine.addresses.allocate(container, record, network, place, driver)
        attachment = driver.attach(network=network, endpoint=endpoint, netns=netns)
        _note(place, attachment)
        self.engine.state.event("network", "connect", record.id, container=container.id, name=name, type=record.driver)

    def _lead_out(self, container: Container, netns: int) -> None:
        """Put the container on `GATEWAY`, or take it off, as its other networks are now."""
        places = container.network_settings.networks
        other = any(name != GATEWAY for name in ways_out(container).values())
        wanted = not other and spans_hosts(self.engine, container)
        if wanted and GATEWAY not in places:
            self.engine.networks.gateway()
            places[GATEWAY] = EndpointSettings(gw_priority=LAST)
            self._join_one(container, GATEWAY, places[GATEWAY], netns)
        elif GATEWAY in places and not wanted:
            self._take_off(container, GATEWAY)

    def _take_off(self, container: Container, name: str) -> None:
        """Take a container off a network wholly, and off its record."""
        place = container.network_settings.networks.pop(name)
        if place.endpoint_id:
            self._leave_one(container, name, place)
            self.engine.addresses.release(container, name, place)
        with self.engine.state.changing(container.id) as kept:
            kept.network_settings.networks.pop(name, None)

    def leave(self, container: Container) -> None:
        """Take the container off its networks. Safe when it never joined, and after its namespace is gone."""
        for name, place in container.network_settings.networks.items():
            if place.endpoint_id:
                self._leave_one(container, name, place)

    def _leave_one(self, container: Container, name: str, place: EndpointSettings) -> None:
        try:
            record = self.engine.networks.get(name)
        except NotFound:
            return
        self.engine.network_driver(record.driver).detach(
            network=network_of(self.engine, record), endpoint=endpoint_of(self.engine, container, record, place)
        )
        self.engine.state.event(
            "network", "disconnect", record.id, container=container.id, name=name, type=record.driver
        )

    def forget(self, container: Container) -> None:
        """Give the container's addresses back and clear what its record says of its run; the caller saves it."""
        settings = container.network_settings
        for name, place in settings.networks.items():
            if place.endpoint_id:
                try:
                    self.engine.addresses.release(container, name, place)
                except DriverError as error:  # where several hosts keep them: the end of a run does not wait for that
                    print(f"addresses of {container.name} on {name}: {error}", file=sys.stderr, flush=True)
        settings.ports = {}
        settings.networks = {
            name: EndpointSettings(
                aliases=place.aliases,
                links=place.links,
                ipam_config=place.ipam_config,
                driver_opts=place.driver_opts,
                network_id=place.network_id,
                gw_priority=place.gw_priority,
                last_addresses=place.addresses or place.last_addresses,
            )
            for name, place in settings.chosen.items()  # each run finds out whether it needs a way out
        }

    def watches(
        self, container: Container, netns: int, changed: Callable[[str, Attachment], None]
    ) -> dict[str, Callable[[int], None]]:
        """Return what is to run beside the container, without its `stop`: by endpoint `NetworkDriver.watch`, and its
        announcements, which end by themselves.

        Args:
            changed: is told, from any thread, the id of an endpoint and what it is now, for `take_over`.
        """
        from transom.services.interfaces import AnnouncingOptions, announce

        found: dict[str, Callable[[int], None]] = {}
        for name, place in container.network_settings.networks.items():
            record = self.engine.networks.get(name)
            driver = self.engine.network_driver(record.driver)
            if not place.endpoint_id:
                continue
            network, endpoint = network_of(self.engine, record), endpoint_of(self.engine, container, record, place)
            if self._is_watched(record):
                told = partial(changed, endpoint.id)
                found[place.endpoint_id] = partial(_watch, driver, network, endpoint, netns, told)
            options = network.options if isinstance(network.options, AnnouncingOptions) else AnnouncingOptions()
            if place.interface and options.announcements:
                found[f"{place.endpoint_id} announced"] = partial(
                    announce, netns=netns, interface=place.interface, addresses=endpoint.addresses, options=options
                )
        return found

    def take_over(self, id: str, endpoint: str, attachment: Attachment, netns: int) -> Container:
        """Record what an endpoint of a running container has become, and route by it; return the container as it is."""
        from transom_engine.networks.files import change_hosts

        container = self.engine.state.container(id)
        place = next((p for p in container.network_settings.networks.values() if p.endpoint_id == endpoint), None)
        if place is not None:
            before, known = ways_out(container), msgspec.structs.replace(place)
            _note(place, attachment)
            if place != known:
                route(container, netns)
                move_ways_out(self.engine, container, before, netns)
                change_hosts(self.engine, container, joined=place, left=known)
                with self.engine.state.changing(id) as kept:
                    self.note(container, kept)
        return container

    def _is_watched(self, record: NetworkRecord) -> bool:
        return NetworkCapability.WATCH in self.engine.network_driver(record.driver).capabilities

    def connect(self, reference: str, container: Container, place: EndpointSettings) -> None:
        """Put a container on one more network, at once when it runs.

        Raises:
            Conflict: it is on it already.
            ConfigError: its network mode, or the network's driver, does not allow it.
        """
        from transom_engine.networks.checking import check_connectable, check_place
        from transom_engine.networks.files import change_hosts

        record = self.engine.networks.for_containers(reference)
        with self.engine.lock(container.id):
            container = self.engine.state.container(container.id)
            check_connectable(self.engine, container, record)
            if record.name in container.network_settings.networks:
                raise Conflict(f"container {container.name} is already on network {record.name}")
            check_place(self.engine, record, place)
            before = ways_out(container)
            container.network_settings.networks[record.name] = place
            if container.state.pid:
                with netns_of(container) as netns:
                    try:
                        self._join_one(container, record.name, place, netns)
                        self._lead_out(container, netns)
                        move_ways_out(self.engine, container, before, netns)
                    except BaseException:
                        self._take_off(container, record.name)
                        self._lead_out(container, netns)
                        raise
                change_hosts(self.engine, container, joined=place)
            with self.engine.state.changing(container.id) as kept:
                self.note(container, kept, record.name)
        if container.state.pid:
            self._reload(container)  # to announce the addresses, to watch, to resolve names

    def _reload(self, container: Container, *, without: str = "") -> None:
        """Tell the supervisor to look at the container's networks again: for the resolver, and what must be watched.

        Args:
            without: the id of an endpoint that is about to leave.
        """
        try:
            connection = self.engine.containers.connect(container)
        except Conflict:
            return  # it has just ended
        try:
            connection.ask(wire.Request(do="reload", id=without))
        except DriverError:
            pass  # likewise
        finally:
            connection.close()

    def disconnect(self, reference: str, container: Container, *, force: bool = False) -> None:
        """Take a container off a network, at once when it runs; with `force` being off it already is no error.

        A network that has been removed since is one that a container can be taken off, too.
        """
        from transom_engine.networks.files import change_hosts
        from transom_engine.networks.records import refuse_gateway

        gone = not self.engine.networks.driver_of(reference) and reference in container.network_settings.networks
        record = None if gone else self.engine.networks.get(reference)
        name = record.name if record else reference
        with self.engine.lock(container.id):
            container = self.engine.state.container(container.id)
            place = container.network_settings.networks.get(name)
            if place is None:
                if force:
                    return
                raise Conflict(f"container {container.name} is not on network {name}")
            refuse_gateway(name)
            before = ways_out(container)
            watched = bool(container.state.pid and record and self._is_watched(record))
            if place.endpoint_id:
                if watched:
                    self._reload(container, without=place.endpoint_id)  # whoever watches takes leave by the interface
                self._leave_one(container, name, place)
                self.engine.addresses.release(container, name, place)
            del container.network_settings.networks[name]
            if container.state.pid:
                with netns_of(container) as netns:
                    self._lead_out(container, netns)
                    move_ways_out(self.engine, container, before, netns)
                change_hosts(self.engine, container, left=place)
            with self.engine.state.changing(container.id) as kept:
                kept.network_settings.networks.pop(name, None)
                self.note(container, kept)
        if watched:
            self._reload(container)


def _watch(
    driver: NetworkDriver,
    network: Network,
    endpoint: Endpoint,
    netns: int,
    changed: Callable[[Attachment], None],
    stop: int,
) -> None:
    driver.watch(network=network, endpoint=endpoint, netns=netns, stop=stop, changed=changed)


def _note(place: EndpointSettings, attachment: Attachment) -> None:
    place.interface, place.mac_address = attachment.interface or "", attachment.mac or ""
    place.dns_servers, place.dns_search = [*attachment.dns], [*attachment.search]
    place.ip_address, place.ip_prefix_len, place.global_ipv6_address, place.global_ipv6_prefix_len = "", 0, "", 0
    for address in attachment.addresses:
        text, _, prefix = address.partition("/")
        if ":" in text:
            place.global_ipv6_address, place.global_ipv6_prefix_len = text, int(prefix)
        else:
            place.ip_address, place.ip_prefix_len = text, int(prefix)
    place.gateway = next((g for g in attachment.gateways if ":" not in g), "")
    place.ipv6_gateway = next((g for g in attachment.gateways if ":" in g), "")


@contextmanager
def netns_of(container: Container) -> Iterator[int]:
    """Open the namespace of a container that runs."""
    fd = os.open(f"/proc/{container.state.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)
