"""Removing what nobody needs: images with their unpacked layers, networks, volumes.

A layer is unpacked, and unpacked layers are judged, under the lock of `layers_lock`: who holds it sees no draft but
those of the dead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from transom.errors import Conflict, NotFound, TransomError
from transom.services.files import Lock

if TYPE_CHECKING:
    from transom.services.snapshots import Layer, Snapshots
    from transom_engine.engine import Engine
    from transom_engine.images.reports import Summary
    from transom_engine.images.store import Removed
    from transom_engine.networks.model import NetworkRecord
    from transom_engine.volumes import Volume


# Layers


def storage_drivers(engine: Engine) -> list[str]:
    """Return the names of the storage drivers that hold layers here, the configured one or not."""
    try:
        names = os.listdir(engine.state_dir / "storage")
    except FileNotFoundError:
        return []
    return sorted(name.removesuffix(".layers") for name in names if name.endswith(".layers"))


def layers_lock(engine: Engine, driver: str) -> Lock:
    """Return the lock under which layers of images are unpacked and removed."""
    return engine.lock(f"unpack-{driver}")


def unneeded_layers(engine: Engine, snapshots: Snapshots) -> list[Layer]:
    """Return the layers that no container and no image needs, children first. The caller holds `layers_lock`."""
    layers = list(snapshots.walk())
    parents = {layer.key: layer.parent for layer in layers}
    chains = engine.images.chain_ids()
    # A container that was moved to another driver needs nothing here.
    roots = {container.id for container in engine.state.containers() if container.driver == snapshots.driver.name}
    roots |= chains | {f"init-{chain}" for chain in chains} | {"init-scratch"}
    needed: set[str] = set()
    for key in roots & parents.keys():
        up: str | None = key
        while up is not None and up not in needed:
            needed.add(up)
            up = parents.get(up)
    return [layer for layer in reversed(layers) if layer.key not in needed]


def sweep_layers(engine: Engine, driver: str) -> list[str]:
    """Remove a driver's layers that nobody needs, and return their keys. The caller holds `layers_lock`."""
    snapshots, removed = engine.snapshots(driver), []
    for layer in unneeded_layers(engine, snapshots):
        try:
            snapshots.remove(layer.key)
        except Conflict:
            continue  # it is mounted, by a command that reads it say: the next sweep takes it
        removed.append(layer.key)
    return removed


# Images


def remove_image(engine: Engine, name: str, *, force: bool = False) -> list[Removed]:
    """Take a name from an image, or delete it, and its layers from every storage driver; see `ImageStore.remove`."""
    containers = engine.containers.list(all=True)
    users = {container.image: container.name for container in containers}
    running = {container.image: container.name for container in containers if container.state.running}
    image = engine.images.resolve(name)
    with _layers_locked(engine) as drivers:
        removed = engine.images.remove(name, force=force, in_use=users.get, running=running.get)
        if any(one.deleted for one in removed):
            for driver in drivers:
                sweep_layers(engine, driver)
    engine.images.collect()  # what only a name that is gone needed
    for one in removed:
        if one.untagged or one.deleted == image.id:
            engine.state.event("image", "untag" if one.untagged else "delete", image.id, name=one.untagged or image.id)
    return removed


@contextmanager
def _layers_locked(engine: Engine) -> Iterator[list[str]]:
    """Hold the locks of all storage drivers that can be opened; gives their names."""
    names = [name for name in storage_drivers(engine) if _opens(engine, name)]
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(layers_lock(engine, name))
        yield names


def _opens(engine: Engine, driver: str) -> bool:
    """Say whether the driver is there: one that was uninstalled keeps its layers until it is back."""
    try:
        engine.snapshots(driver)
    except TransomError:
        return False
    return True


def prune_images(engine: Engine, doomed: Callable[[Summary], bool], *, all: bool = False) -> tuple[list[Removed], int]:
    """Remove the images without a tag, or `all` that no container uses, that `doomed` picks.

    Returns:
        what was done, and the bytes that the images' own layers took.
    """
    from transom_engine.images.reports import images

    removed: list[Removed] = []
    freed = 0
    filters = {} if all else {"dangling": ["true"]}
    used = {container.image for container in engine.state.containers()}
    for summary in images(engine.images, filters=filters, all=all):
        if summary.id in used or not doomed(summary):
            continue
        sizes = {layer.chain_id: engine.images.layer_size(layer) for layer in engine.images.get(summary.id).layers}
        try:
            done = remove_image(engine, summary.id, force=True)
        except (Conflict, NotFound):
            continue  # a container or an image was made of it meanwhile, or it is gone
        freed += sum(sizes.get(one.deleted, 0) for one in done)
        removed += done
    with _layers_locked(engine) as drivers:  # and what containers that are gone had of images that are gone
        for driver in drivers:
            sweep_layers(engine, driver)
    return removed, freed


# Networks and volumes


def unused_networks(engine: Engine) -> Iterator[NetworkRecord]:
    """Yield the networks that users made and no container, running or not, is on."""
    from transom.contract.network import NetworkCapability
    from transom_engine.networks.model import DEFAULT, NetworkRecord

    used = {name for container in engine.state.containers() for name in container.network_settings.networks}
    for record in sorted(engine.state.all("network", NetworkRecord), key=lambda record: record.name):
        if record.name == DEFAULT or record.name in used or record.config_only:
            continue
        try:
            capabilities = engine.network_driver(record.driver).capabilities
        except TransomError:
            continue  # without its driver it can be neither judged nor removed
        if NetworkCapability.SINGLETON not in capabilities:
            yield record


def prune_networks(engine: Engine, doomed: Callable[[NetworkRecord], bool]) -> list[str]:
    """Remove the unused networks that `doomed` picks, and return their names."""
    removed = []
    for record in unused_networks(engine):
        if doomed(record):
            try:
                engine.networks.remove(record.id)
            except (Conflict, NotFound):
                continue  # a container joined it meanwhile, or it is gone
            removed.append(record.name)
    return removed


def unused_volumes(engine: Engine) -> list[Volume]:
    """Return the volumes that no container mounts."""
    used = {point.name for container in engine.state.containers() for point in container.mounts}
    return [volume for volume in engine.volumes.list() if volume.name not in used]


def prune_volumes(engine: Engine, doomed: Callable[[Volume], bool]) -> tuple[list[str], int]:
    """Remove the unused volumes that `doomed` picks; return their names and the bytes in them."""
    removed, freed = [], 0
    for volume in unused_volumes(engine):
        if doomed(volume):
            size = tree_size(volume.mountpoint)
            try:
                engine.volumes.remove(volume.name)
            except (Conflict, NotFound):
                continue
            removed.append(volume.name)
            freed += size
    return removed, freed


def tree_size(root: str) -> int:
    """Return the bytes of all files below a directory, each counted once; what vanishes meanwhile is left out."""
    total, seen = 0, set()
    for directory, _, files in os.walk(root):
        for name in files:
            try:
                status = os.lstat(os.path.join(directory, name))
            except OSError:
                continue
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                total += status.st_size
    return total


def names_of(removed: Sequence[Removed]) -> list[str]:
    """Write what was removed as docker's prune does: "untagged: NAME", "deleted: ID"."""
    return [f"untagged: {one.untagged}" if one.untagged else f"deleted: {one.deleted}" for one in removed]
