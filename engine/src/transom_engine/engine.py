"""The engine: one configuration, its drivers and its records. Front ends make one and call it.

Nothing is opened before it is needed: a command that lists images touches neither the network nor the limits
driver. An engine belongs to one thread of one process; a supervisor, forked from a command, makes its own.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from transom.config import ORDER, Config
from transom.contract.logging import LogContainer
from transom.drivers import Drivers
from transom.errors import DriverError, NotSupported
from transom.services.files import Lock
from transom_engine.model import Container
from transom_engine.state import State

if TYPE_CHECKING:
    from transom.contract.limits import Limits
    from transom.contract.network import NetworkDriver
    from transom.services.snapshots import Snapshots
    from transom_engine.containers import Containers
    from transom_engine.images.content import ContentStore
    from transom_engine.images.store import ImageStore
    from transom_engine.networks.addresses import Addresses
    from transom_engine.networks.endpoints import Endpoints
    from transom_engine.networks.records import Networks
    from transom_engine.oci.runtime import Runtime
    from transom_engine.volumes import Volumes


class Engine:
    """See the module's text.

    Args:
        config: a loaded configuration.

    Raises:
        NotSupported: the caller is not root.
        DriverError: the data root or the exec root cannot be written.
    """

    def __init__(self, config: Config) -> None:
        if os.geteuid() != 0:
            raise NotSupported("transom must run as root: it makes namespaces, mounts and interfaces; try sudo")
        self.config = config
        self.state_dir, self.run_dir = Path(config.state_dir), Path(config.run_dir)
        self._chosen: dict[str, str] = {}
        self._snapshots: dict[str, Snapshots] = {}
        self._networks: dict[str, NetworkDriver] = {}
        self._limits: dict[str, Limits] = {}
        for directory, key in ((self.state_dir, "data-root"), (self.run_dir, "exec-root")):
            try:
                os.makedirs(directory, mode=0o711, exist_ok=True)
                if not os.access(directory, os.W_OK):
                    raise PermissionError(30, "Read-only file system")
            except OSError as error:
                raise DriverError(
                    "opening", driver="engine", subject=f"{key} {directory}", cause=error,
                    hint=f"choose another with --{key} or in the config",
                ) from None  # fmt: skip

    # What the engine consists of

    @cached_property
    def drivers(self) -> Drivers:
        """The installed drivers."""
        return Drivers(state=self.state_dir, run=self.run_dir, wrappers=self.config.wrappers)

    @cached_property
    def state(self) -> State:
        """The records."""
        return State(str(self.state_dir / "state.db"))

    @cached_property
    def content(self) -> ContentStore:
        """The images' blobs."""
        from transom_engine.images.content import ContentStore

        return ContentStore(self.state_dir / "content")

    @cached_property
    def images(self) -> ImageStore:
        """The images' records."""
        from transom_engine.images.store import ImageStore

        return ImageStore(self.state_dir / "images", content=self.content)

    @cached_property
    def containers(self) -> Containers:
        """The life cycle of containers."""
        from transom_engine.containers import Containers

        return Containers(self)

    @cached_property
    def networks(self) -> Networks:
        """The networks there are."""
        from transom_engine.networks.records import Networks

        return Networks(self)

    @cached_property
    def endpoints(self) -> Endpoints:
        """The places of containers on networks."""
        from transom_engine.networks.endpoints import Endpoints

        return Endpoints(self)

    @cached_property
    def addresses(self) -> Addresses:
        """Addresses of networks and endpoints."""
        from transom_engine.networks.addresses import Addresses

        return Addresses(self)

    @cached_property
    def volumes(self) -> Volumes:
        """Named volumes."""
        from transom_engine.volumes import Volumes

        return Volumes(self)

    @cached_property
    def runtime(self) -> Runtime:
        """The OCI runtime that works on this host."""
        from transom_engine.oci.runtime import choose

        name = self.config.default_runtime
        known = self.config.runtimes.get(name)
        return choose(run_dir=str(self.run_dir), configured=known.path if known else name)

    # Drivers by kind

    def default_driver(self, kind: str) -> str:
        """Return the configured driver's name, else that of the first one in the documented order that can run.

        What was found by probing is remembered until the next boot, or until it can no longer be loaded.
        """
        if kind not in self._chosen:
            names = self.config.drivers(kind)
            if len(names) == 1 or (kind == "logging" and self.config.log_drivers):
                self._chosen[kind] = names[0]
            else:
                self._chosen[kind] = self._remembered(kind) or self._probe(kind)
        return self._chosen[kind]

    def _remembered(self, kind: str) -> str:
        """Return the last choice by probing, a link so that reading it is one system call."""
        try:
            name = os.readlink(self.run_dir / f"chosen-{kind}")
        except OSError:
            return ""
        return name if name in ORDER[kind] else ""

    def _probe(self, kind: str) -> str:
        name = self.drivers.first_usable(kind, ORDER[kind])
        link = self.run_dir / f"chosen-{kind}"
        try:
            os.symlink(name, f"{link}.{os.getpid()}")
            os.rename(f"{link}.{os.getpid()}", link)
        except OSError:
            pass  # the next command probes again
        return name

    def snapshots(self, driver: str = "") -> Snapshots:
        """Return the layers of a storage driver, the default one if none is named."""
        from transom.services.snapshots import Snapshots

        name = driver or self.default_driver("storage")
        if name not in self._snapshots:
            options, where = self.config.options("storage", name)
            self._snapshots[name] = Snapshots(self.drivers.storage(name, options, where=where))
        return self._snapshots[name]

    def limits(self, driver: str = "") -> Limits:
        """Return a resource-limit driver, the default one if none is named."""
        name = driver or self.default_driver("limits")
        if name not in self._limits:
            options, where = self.config.options("limits", name)
            self._limits[name] = self.drivers.limits(name, options, where=where)
        return self._limits[name]

    def network_driver(self, name: str) -> NetworkDriver:
        """Return a network driver."""
        if name not in self._networks:
            options, where = self.config.options("network", name)
            known = self.drivers.load("network", name).Options.__struct_encode_fields__
            if not self.config.ip_forward and "ip-forward" in known:
                options = {"ip-forward": "false"} | options
            self._networks[name] = self.drivers.network(name, options, where=where)
        return self._networks[name]

    def log_container(self, container: Container) -> LogContainer:
        """Describe a container to its log driver."""
        from datetime import datetime

        return LogContainer(
            id=container.id,
            name=container.name,
            directory=str(self.container_dir(container.id)),
            image_id=container.image,
            image_name=container.config.image,
            command=(*(container.config.entrypoint or []), *(container.config.cmd or [])),
            created=int(datetime.fromisoformat(container.created[:26].rstrip("Z") + "+00:00").timestamp() * 1e9),
            env=dict(pair.partition("=")[::2] for pair in container.config.env),
            labels=container.config.labels,
            hostname=os.uname().nodename,
        )

    # Places

    def container_dir(self, id: str) -> Path:
        """Return the directory of what a container keeps across a reboot: logs, /etc/hosts and the like."""
        return self.state_dir / "containers" / id

    def container_run(self, id: str) -> Path:
        """Return the directory of what belongs to a container's present run; gone after a reboot."""
        return self.run_dir / "containers" / id

    def lock(self, id: str, *, shared: bool = False) -> Lock:
        """Return the lock under which a container's state is changed."""
        locks = self.run_dir / "locks"
        locks.mkdir(exist_ok=True)
        return Lock(locks / id, shared=shared)

    def close_databases(self) -> None:
        """Close what must not cross a fork(2); it is opened again when it is used again."""
        for name in ("state", "images"):
            if name in self.__dict__:
                self.__dict__.pop(name).close()
        for snapshots in self._snapshots.values():
            snapshots.close()
        if "addresses" in self.__dict__:
            self.addresses.close()

    def close(self) -> None:
        """Close databases and drivers that were opened."""
        self.close_databases()
        drivers = [*self._networks.values(), *self._limits.values(), *(s.driver for s in self._snapshots.values())]
        for driver in drivers:
            driver.close()
