"""Moving stopped containers, with what they changed, from one storage driver to another.

The image's layers are unpacked again from its blobs; the container's own is carried over as a layer tar. Its record
names the driver that holds it, so replacing the record is the moment of the move: before it the copy belongs to nobody,
after it the original does. What a killed move left is cleared away by the next one, and by ``transom doctor --repair``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING

from transom.errors import Conflict, NotFound, NotSupported, TransomError

if TYPE_CHECKING:
    from transom.services.snapshots import Snapshots
    from transom_engine.engine import Engine
    from transom_engine.model import Container


def migrate(engine: Engine, to: str, references: tuple[str, ...] = ()) -> Iterator[tuple[Container, str]]:
    """Move the named containers, or all that are stopped, to the storage driver `to`.

    Yields:
        each container that was moved, and the driver that held it before. One that is there already is passed over.

    Raises:
        NotFound: no such driver or container, or a container's image is gone.
        NotSupported: this host cannot run the driver.
        Conflict: a container that was named is running.
        ConfigError: the container holds what no layer tar can, such as a file called .wh.x.
    """
    probe = engine.snapshots(to).driver.probe()
    if not probe.usable:
        raise NotSupported(f"storage driver {to} cannot run on this host: {probe.reason}")
    ids = [engine.state.resolve_container(reference) for reference in references]
    for id in ids or [container.id for container in engine.containers.list(all=True) if not container.state.running]:
        with engine.lock(id):
            container = engine.containers.settled(id)
            if container is None:
                continue
            if engine.containers.alive(id):
                if not ids:  # it was started meanwhile
                    continue
                raise Conflict(f"container {container.name} is {container.state.status}: stop it first")
            before = container.driver
            if before == to:
                _clear_elsewhere(engine, container)
            else:
                _move(engine, container, to)
                yield container, before


def _move(engine: Engine, container: Container, to: str) -> None:
    from transom_engine.layers import init_layer
    from transom_engine.pruning import layers_lock

    source, target = engine.snapshots(container.driver), engine.snapshots(to)
    try:
        image = engine.images.resolve(container.image)
    except NotFound as error:
        raise NotFound(
            f"container {container.name} cannot be moved: its image {container.image} is gone; pull it again"
        ) from error
    parent = init_layer(engine, image, target)
    with layers_lock(engine, to):  # until the record says so, the copy looks as if nobody needed it
        target.remove(container.id)
        bounds, labels = engine.containers.bounds_of(container, target), source.stat(container.id).labels
        target.prepare(container.id, parent, **bounds, labels=labels)
        try:
            _carry(source, target, container.id)
            os.sync()  # the original goes next: the copy must outlast a power loss, on whatever it lies
        except BaseException:
            target.remove(container.id)
            raise
        with engine.state.changing(container.id) as record:
            record.driver = to
            if record.host_config.storage_driver:  # where the user named one, it is this one now
                record.host_config.storage_driver = to
        container.driver = to
        engine.containers.event("migrate", container, driver=to)
    source.remove(container.id)


def _clear_elsewhere(engine: Engine, container: Container) -> None:
    """Remove the original that a killed move left."""
    from transom_engine.pruning import storage_drivers

    for name in storage_drivers(engine):
        if name != container.driver:
            try:
                engine.snapshots(name).remove(container.id)
            except TransomError:
                continue  # the driver is not installed any more, say: doctor tells


def _carry(source: Snapshots, target: Snapshots, key: str) -> None:
    """Apply the layer's diff in one driver to the layer in the other, as it is written."""
    from threading import Thread

    from transom.services.snapshots import Snapshots

    ready, go = os.pipe()
    failures: list[BaseException] = []

    def write(out: IO[bytes]) -> None:
        own = Snapshots(source.driver)  # a thread has a connection of its own
        try:
            with out:
                own.diff(key, out)
        except BrokenPipeError:
            pass  # the other end has failed, and says why
        except BaseException as error:
            failures.append(error)
        finally:
            own.close()

    thread = Thread(target=write, args=(open(go, "wb", buffering=1 << 20),))
    thread.start()
    try:
        with open(ready, "rb", buffering=0) as stream:
            target.apply(key, stream)
    except BaseException:
        thread.join()
        if failures:  # the tar was cut because of it
            raise failures[0] from None
        raise
    thread.join()
    if failures:
        raise failures[0]
