"""Networks that are not as they should be, put right while containers run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from transom_engine.model import Container
from transom_engine.networks.contracts import endpoint_of, family, network_of, routed_families, ways_out
from transom_engine.networks.endpoints import netns_of
from transom_engine.networks.ways import publish_again, route

if TYPE_CHECKING:
    from transom_engine.engine import Engine


def damaged(engine: Engine) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """Yield each network of containers that run that is not as it should be: name, what is off, how to repair."""
    places = [place for c in engine.state.containers() for place in c.network_settings.networks.items()]
    for name in sorted({name for name, place in places if place.endpoint_id}):
        while said := _differences(engine, name, containers := _members(engine, name)):
            if [c.id for c in containers] == [c.id for c in _members(engine, name)]:  # else one came or went meanwhile
                more = f" (and {len(said) - 1} more)" if said[1:] else ""
                yield name, said[0] + more, partial(_repair, engine, name)
                break


def _members(engine: Engine, name: str) -> list[Container]:
    """Return the containers that are on the network and stay there: no command changes them, none is ending."""
    found = []
    for container in engine.state.containers():
        place = container.network_settings.networks.get(name)
        lock = engine.lock(container.id)
        if place is not None and place.endpoint_id and _lives(container.state.pid) and lock.acquire(wait=False):
            lock.release()
            found.append(container)
    return found


def _differences(engine: Engine, name: str, containers: list[Container]) -> list[str]:
    said = _checked(engine, name, *containers)
    return said + [line for container in containers for line in _lost_ways(container, name)]


def _checked(engine: Engine, name: str, *containers: Container) -> list[str]:
    record = engine.networks.get(name)
    ends = [endpoint_of(engine, c, record, c.network_settings.networks[name]) for c in containers]
    driver = engine.network_driver(record.driver)
    return driver.check(network=network_of(engine, record), endpoints=tuple(ends))


def _harmed(engine: Engine, name: str, container: Container) -> bool:
    """Say whether something is off with the container's place; if it is with the network, no join anew helps."""
    return not {*_checked(engine, name, container)} <= {*_checked(engine, name)}


def _lost_ways(container: Container, name: str) -> Iterator[str]:
    """Say which default routes by the network are gone; one that somebody else made in the container will do."""
    from transom.services.interfaces import ANY
    from transom.services.netlink import Session
    from transom.services.netns import inside

    lost = {number for number, way in ways_out(container).items() if way == name}
    try:
        with netns_of(container) as netns, inside(netns, Session) as inner:
            lost -= {family(route.to) for route in inner.routes() if route.to in ANY.values()}
    except OSError:
        return  # it has just ended
    for number in sorted(lost):
        yield f"endpoint {container.network_settings.networks[name].endpoint_id[:12]} has no default IPv{number} route"


def _repair(engine: Engine, name: str) -> None:
    """Make the network anew where it is broken; join anew, and publish, only those that it does not help."""
    record = engine.networks.get(name)
    driver, network = engine.network_driver(record.driver), network_of(engine, record)
    driver.create_network(network=network)
    for container in _members(engine, name):
        with engine.lock(container.id):
            if not _lives(container.state.pid):
                continue
            ways = ways_out(container)
            if routed_families(engine, record) or (name in ways.values() and _harmed(engine, name, container)):
                publish_again(engine, container, ways)
            with netns_of(container) as netns:
                if _harmed(engine, name, container):
                    endpoint = endpoint_of(engine, container, record, container.network_settings.networks[name])
                    driver.detach(network=network, endpoint=endpoint)
                    driver.attach(network=network, endpoint=endpoint, netns=netns)
                    if routed_families(engine, record) or name in ways.values():
                        publish_again(engine, container, ways)
                route(container, netns)


def _lives(pid: int) -> bool:
    """Say whether the process is there and has not ended; 0 is none."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return pid > 0 and file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
