"""Named volumes: directories below the state directory that outlive containers."""

from __future__ import annotations

import builtins
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from transom.errors import ConfigError, Conflict, DriverError, NotFound
from transom_engine.model import Container, MountPoint, Pascal, now

if TYPE_CHECKING:
    from transom_engine.engine import Engine


class Volume(Pascal):
    """A volume's record, in the shape of Docker's API. Anonymous ones go with their container when it says so."""

    name: str
    mountpoint: str
    created_at: str
    driver: str = "local"
    scope: str = "local"
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    anonymous: bool = False


msgspec.json.Decoder(Volume)  # now: msgspec crashes when two threads meet a type for the first time at once


class Volumes:
    """See the module's text."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.root = engine.state_dir / "volumes"

    def list(self) -> list[Volume]:
        """Return all volumes by name."""
        return sorted(self.engine.state.all("volume", Volume), key=lambda v: v.name)

    def get(self, name: str) -> Volume:
        """Return the volume of that name, or raise `NotFound`."""
        volume = self.engine.state.find("volume", Volume, name=name)
        if volume is None:
            raise NotFound(f"no such volume: {name}; `transom volume ls` lists those here")
        assert isinstance(volume, Volume)
        return volume

    def create(self, name: str = "", *, labels: dict[str, str] | None = None, anonymous: bool = False) -> Volume:
        """Return the volume of that name, made if it is not there; without a name a new one."""
        name = name or os.urandom(32).hex()
        if not name[0].isalnum() or not all(c.isalnum() or c in "_.-" for c in name) or not name.isascii():
            raise ConfigError(f"invalid volume name {name!r}: only a-z A-Z 0-9 _ . - are allowed, the first not a sign")
        directory = self.root / name / "_data"
        volume = Volume(
            name=name, mountpoint=str(directory), created_at=now(), labels=labels or {}, anonymous=anonymous
        )  # fmt: skip
        os.makedirs(directory, mode=0o755, exist_ok=True)
        if not self.engine.state.add("volume", volume, name=name):
            return self.get(name)
        self.engine.state.event("volume", "create", name, driver="local")
        return volume

    def users(self, name: str) -> builtins.list[str]:
        """Return the names of the containers that mount the volume."""
        return [c.name for c in self.engine.state.containers() if any(m.name == name for m in c.mounts)]

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove a volume and what is in it; with `force` an absent one is no error.

        Raises:
            Conflict: a container uses it.
        """
        try:
            self.get(name)
        except NotFound:
            if force:
                return
            raise
        users = self.users(name)
        if users:
            raise Conflict(f"volume {name} is in use by {', '.join(users)}: remove the container first")
        from shutil import rmtree

        rmtree(self.root / name, ignore_errors=True)
        self.engine.state.delete("volume", name=name)
        self.engine.state.event("volume", "destroy", name, driver="local")

    def remove_anonymous(self, container: Container) -> None:
        """Remove the anonymous volumes of a container that no other one uses."""
        for point in container.mounts:
            if point.type != "volume" or not point.name:
                continue
            volume = self.engine.state.find("volume", Volume, name=point.name)
            if volume is not None and volume.anonymous and set(self.users(point.name)) <= {container.name}:
                from shutil import rmtree

                rmtree(self.root / point.name, ignore_errors=True)
                self.engine.state.delete("volume", name=point.name)

    def provide(self, container: Container) -> None:
        """Make the volumes of a new container; an empty one gets what the image has at its place, as with Docker."""
        fresh = []
        for point in container.mounts:
            if point.type == "bind" and not os.path.lexists(point.source):
                os.makedirs(point.source, exist_ok=True)
            if point.type != "volume":
                continue
            volume = self.create(point.name, anonymous=not point.name)
            point.name, point.source, point.driver = volume.name, volume.mountpoint, volume.driver
            if "nocopy" not in point.mode.split(",") and not os.listdir(volume.mountpoint):
                fresh.append(point)
        if fresh:
            self._fill(container, fresh)

    def _fill(self, container: Container, points: Iterable[MountPoint]) -> None:
        from transom_engine.layers import mounted

        def copy(rootfs: str) -> None:
            for point in points:
                self._copy(rootfs, point)

        mounted(self.engine.snapshots(container.driver), container.id, copy)

    def _copy(self, rootfs: str, point: MountPoint) -> None:
        """Copy beside the volume and rename, so that a killed command leaves it empty and not half full."""
        from transom.services.trees import copy_tree, remove_tree
        from transom_engine.oci.user import open_in

        try:
            fd = open_in(rootfs=rootfs, path=point.destination)
        except OSError:
            return  # the image has nothing there
        draft = self.root / point.name / "_filling"
        try:
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                remove_tree(draft)
                copy_tree(Path(os.readlink(f"/proc/self/fd/{fd}")), draft)
                os.rename(draft, point.source)
        except OSError as error:
            raise DriverError("filling", driver="volume", subject=point.name, cause=error) from error
        finally:
            os.close(fd)
