"""The life cycle of containers: what every front end calls.

Truth about a running container is its supervisor's ``alive`` lock, which the kernel drops when that process dies,
whatever the record says. `Containers.settle` compares the two, and what a crash left is cleared away by the next
command that looks. Changes of one container are made under its own lock; waiting for a container is not.
"""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING

from transom.errors import ConfigError, Conflict, DriverError, NotFound, TransomError
from transom.services.files import Lock
from transom_engine import logplan, wire
from transom_engine.flags import NAME
from transom_engine.model import Config, Container, EndpointSettings, HostConfig, LogStatus, now

if TYPE_CHECKING:
    from transom.services.snapshots import Snapshots
    from transom_engine.engine import Engine
    from transom_engine.images.store import Image

RUNNING = frozenset({"running", "paused", "restarting"})
_UNFINISHED = frozenset({"creating", "removing"})
_ORDER_PATIENCE, _STATUS_PATIENCE = 30.0, 2.0
"""Seconds in which a supervisor must have done something with its logs, and have said how they are."""
UPDATING = "updating.json"
"""In a container's run directory: what its limits were before an update that is not over; see `updating`."""
KILLED = 137
"""The exit code of what SIGKILL ended: 128 + 9."""


class Containers:
    """See the module's text."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    # Looking

    def get(self, reference: str) -> Container:
        """Return the record of the container with that id, name or beginning of an id, settled."""
        container = self.settle(self.engine.state.container(self.engine.state.resolve_container(reference)))
        if container is None:
            raise NotFound(f"no such container: {reference}; `transom ps -a` lists those here")
        return container

    def list(self, *, all: bool = False) -> list[Container]:
        """Return the records, settled, newest first: of the running ones, or of all."""
        settled = [self.settle(container) for container in self.engine.state.containers()]
        found = [c for c in settled if c is not None and (all or c.state.status in RUNNING)]
        return sorted(found, key=lambda c: c.created, reverse=True)

    def settle(self, container: Container) -> Container | None:
        """Compare the record with what is there, clear away what a crash left, and return the truth.

        None: the container was being made or removed when its command died, and is gone now; or it is being
        made at this moment and cannot be seen yet.
        """
        id, status = container.id, container.state.status
        if self.alive(id):
            if os.path.exists(self.engine.container_run(id) / UPDATING):
                container = self._end_update(container)
            return None if status in _UNFINISHED else container
        if status not in RUNNING | _UNFINISHED and not os.path.isdir(self.engine.container_run(id)):
            return container
        lock = self.engine.lock(id)
        if not lock.acquire(wait=False):  # a command is at work on it: what the record says holds for now
            return None if status in _UNFINISHED else container
        try:
            return self._settle(id)
        finally:
            lock.release()

    def _end_update(self, container: Container) -> Container:
        """End an update whose command died, so that record and kernel agree; return the record."""
        from transom_engine import updating

        lock = self.engine.lock(container.id)
        if not lock.acquire(wait=False):  # it is being updated at this moment
            return container
        try:
            updating.finish(self.engine, container.id)
            return self.engine.state.container(container.id)
        except NotFound:
            return container
        finally:
            lock.release()

    def settled(self, id: str) -> Container | None:
        """Do what `settle` says; the caller holds the container's lock."""
        return self._settle(id)

    def _settle(self, id: str) -> Container | None:
        """Do what `settle` says, under the container's lock and with no supervisor alive."""
        try:
            container = self.engine.state.container(id)
        except NotFound:
            return None
        if self.alive(id):
            return container
        if container.state.status in _UNFINISHED:
            self.discard(container)
            return None
        if container.state.status in RUNNING or os.path.isdir(self.engine.container_run(id)):
            return self._bury(container)
        return container

    def _bury(self, container: Container) -> Container | None:
        """Clear away what a dead supervisor left, and record the death."""
        limits = self.engine.limits(container.limits_driver)
        limits.kill(id=container.id)
        limits.remove(id=container.id)
        self.engine.endpoints.leave(container)
        self.engine.endpoints.forget(container)
        with self.engine.state.changing(container.id) as record:
            self.engine.endpoints.note(container, record)
            if record.state.status in RUNNING:
                state = record.state
                state.status, state.running, state.paused, state.restarting, state.pid = (
                    "exited",
                    False,
                    False,
                    False,
                    0,
                )
                state.exit_code, state.finished_at = KILLED, now()
                state.error = "its supervisor was killed"
                record.shim_pid = 0
                self.event("die", record, exitCode=str(KILLED))
        container = record
        self.clear_run(container.id)
        if container.host_config.auto_remove:
            self.discard(container)
            return None
        return container

    def alive(self, id: str) -> bool:
        """Say whether the container's supervisor lives."""
        lock = self.alive_lock(id, shared=True)  # so that two who ask do not take each other for it
        if not lock.acquire(wait=False):
            return True
        lock.release()
        return False

    def alive_lock(self, id: str, *, shared: bool = False) -> Lock:
        """Return the lock that the container's supervisor holds for as long as it lives."""
        return self.engine.lock(f"{id}.alive", shared=shared)

    def running(self, reference: str) -> Container:
        """Return the record of a running container; others are refused."""
        container = self.get(reference)
        if container.state.status not in RUNNING:
            raise Conflict(
                f"container {reference} is not running (it is {container.state.status});"
                f" `transom start {reference}` starts it"
            )
        return container

    # Making

    def create(
        self,
        config: Config,
        host_config: HostConfig,
        *,
        name: str = "",
        endpoints: Mapping[str, EndpointSettings] | None = None,
    ) -> tuple[Container, builtins.list[str]]:
        """Make a container of an image that is here.

        Args:
            config, host_config: the user's words; what the image says is filled in.
            name: empty for a generated one.
            endpoints: what was asked of the place on each network, by the network's name.

        Returns:
            the record, and warnings: what was asked and cannot act on this host.

        Raises:
            NotFound: no such image, network or driver.
            ConfigError: words that do not fit together, or that no host accepts.
            Conflict: the name is taken.
        """
        from transom_engine.create import prepare

        image = self.engine.images.resolve(config.image)
        container, warnings = prepare(self.engine, image, config, host_config, name=name, endpoints=endpoints or {})
        with self.engine.lock(container.id):
            self._reserve(container, generated=not name)
            try:
                self._build(container, image)
            except BaseException:
                self.discard(container, quietly=True)
                raise
            container.state.status = "created"
            with self.engine.state.transaction():
                self.engine.state.save_container(container)
                self.event("create", container)
        return container, warnings

    def _reserve(self, container: Container, *, generated: bool) -> None:
        """Insert the record, which reserves the name; a generated name that is taken is replaced."""
        container.state.status = "creating"
        if not generated:
            if not NAME.fullmatch(container.name):
                raise _bad_name(container.name)
            self.engine.state.add_container(container)
            return
        from transom_engine.names_generator import generate

        for _ in range(100):
            container.name = generate(taken=self.engine.state.has_container_named)
            try:
                self.engine.state.add_container(container)
            except Conflict:  # another command was faster
                continue
            return
        raise Conflict("no free name was found in 100 tries; name the container with --name")

    def _build(self, container: Container, image: Image) -> None:
        """Make what a container consists of besides its record: the layer, the directory, the volumes."""
        from transom_engine.layers import init_layer

        snapshots = self.engine.snapshots(container.driver)
        parent = init_layer(self.engine, image, snapshots)
        labels = {"transom.container": container.name, "transom.image": container.config.image}
        snapshots.prepare(container.id, parent, **self.bounds_of(container, snapshots), labels=labels)
        directory = self.engine.container_dir(container.id)
        os.makedirs(directory, mode=0o710)
        self.engine.volumes.provide(container)

    @staticmethod
    def bounds_of(container: Container, snapshots: Snapshots) -> dict[str, int | None]:
        """Return the most bytes and files its layer may hold, by its own words or the storage driver's options."""
        from transom.services.options import parse_size

        given = container.host_config.storage_opt
        size = parse_size(given["size"]) if given.get("size") else snapshots.driver.container_size
        return {"size": size, "inodes": int(given["inodes"]) if "inodes" in given else None}

    def run(
        self,
        config: Config,
        host_config: HostConfig,
        *,
        name: str = "",
        endpoints: Mapping[str, EndpointSettings] | None = None,
        attach: wire.Request | None = None,
    ) -> tuple[Container, wire.Connection, builtins.list[str]]:
        """Create and start; returns the record, the supervisor's connection, and warnings. See `create`, `start`."""
        container, warnings = self.create(config, host_config, name=name, endpoints=endpoints)
        try:
            connection = self.start(container.id, attach=attach)
        except BaseException:
            if host_config.auto_remove:
                self.remove(container.id, volumes=True)
            raise
        return container, connection, warnings

    def start(self, reference: str, *, attach: wire.Request | None = None) -> wire.Connection:
        """Start a container that does not run and return the connection to its supervisor, attached as asked.

        Raises:
            TransomError: it did not start; exit code 126 or 127 where its command is the reason.
        """
        id = self.engine.state.resolve_container(reference)
        with self.engine.lock(id):
            container = self._settle(id)
            if container is None:
                raise NotFound(f"no such container: {reference}; `transom ps -a` lists those here")
            if self.alive(id):
                if container.state.paused:
                    raise Conflict(
                        f"cannot start a paused container, try unpause instead: `transom unpause {reference}`"
                    )
                if container.state.status in RUNNING:
                    connection = self.connect(container)
                    if attach is not None:
                        self._checked(container, connection, attach)
                    return connection
                self._wait_for_supervisor(id)
            try:
                from transom_engine.supervisor import launch

                return launch(self.engine, id, own_pids=not container.host_config.pid_mode, attach=attach)
            except BaseException:
                self._wait_for_supervisor(id)
                self._settle(id)
                raise

    def _wait_for_supervisor(self, id: str) -> None:
        """Wait until a supervisor that is on its way out is gone."""
        with self.alive_lock(id):
            pass

    # Talking to the supervisor

    def connect(self, container: Container) -> wire.Connection:
        """Connect to a running container's supervisor."""
        try:
            return wire.Connection.to(str(self.engine.container_run(container.id) / "control"))
        except OSError:
            raise _just_ended(container) from None

    def attach(self, reference: str, request: wire.Request) -> wire.Connection:
        """Attach to a running container."""
        container = self.running(reference)
        connection = self.connect(container)
        self._checked(container, connection, request)
        return connection

    @staticmethod
    def _checked(container: Container, connection: wire.Connection, request: wire.Request) -> wire.Reply:
        try:
            reply = connection.ask(request)
        except TimeoutError:
            raise
        except (DriverError, OSError):  # it took the connection, and was on its way out
            connection.close()
            raise _just_ended(container) from None
        if reply.error:
            connection.close()
            error = TransomError(reply.error)
            error.exit_code = reply.code or 125
            raise error
        return reply

    def wait(self, reference: str) -> int:
        """Wait until the container does not run, and return its exit code."""
        container = self.get(reference)
        if container.state.status in RUNNING:
            try:
                connection = self.connect(container)
                self._checked(container, connection, wire.Request(do="wait"))
            except Conflict:
                return self._exit_code(container.id)
            try:
                ended = connection.wait_exit()
            finally:
                connection.close()
            if ended is not None:
                return ended.code
        return self._exit_code(container.id)

    def _exit_code(self, id: str) -> int:
        """Return the recorded exit code of a container that has ended, however it did."""
        try:
            self._wait_for_supervisor(id)
            while (container := self.get(id)).state.status in RUNNING and not self.alive(id):
                with self.engine.lock(id):  # whoever has it may be recording the death at this moment
                    pass
            return container.state.exit_code
        except NotFound:  # it was removed when it ended: the event tells how
            deaths = [e for e in self.engine.state.events() if e.id == id and e.action == "die"]
            return int(deaths[-1].attributes["exitCode"]) if deaths else KILLED

    def stop(self, reference: str, *, timeout: float | None = None, signal_name: str = "") -> None:
        """Ask the container to end, and kill it after `timeout` seconds (its own, else 10); negative waits for ever."""
        from transom_engine.signals import number

        container = self.get(reference)
        if container.state.status not in RUNNING:
            return
        grace = timeout if timeout is not None else container.config.stop_timeout
        request = wire.Request(
            do="stop",
            signal=number(signal_name or container.config.stop_signal or "SIGTERM"),
            timeout=10 if grace is None else grace,
        )
        self._end(container, request)
        self.event("stop", container)

    def kill(self, reference: str, signal_name: str = "KILL") -> None:
        """Send the container's first process a signal."""
        from transom_engine.signals import number

        container, sent = self.running(reference), number(signal_name)
        if sent == signal.SIGKILL:
            self._end(container, wire.Request(do="stop", signal=sent, timeout=10))
        else:
            connection = self.connect(container)
            try:
                self._checked(container, connection, wire.Request(do="signal", signal=sent))
            finally:
                connection.close()
        self.event("kill", container, signal=str(sent))

    def _end(self, container: Container, request: wire.Request) -> None:
        """Have the supervisor end the container for good, and wait until it has."""
        with self.engine.state.changing(container.id) as record:
            record.manually_stopped = True
        try:
            connection = self.connect(container)
        except Conflict:
            self._wait_for_supervisor(container.id)
            return
        try:
            self._checked(container, connection, request)
            connection.wait_exit()
        except TransomError:
            pass  # the supervisor died meanwhile: the container with it
        finally:
            connection.close()
        self._wait_for_supervisor(container.id)
        try:
            self.get(container.id)
        except NotFound:
            pass  # it was to be removed when it ended

    def restart(self, reference: str, *, timeout: float | None = None, signal_name: str = "") -> None:
        """Stop, where it runs, and start again."""
        container = self.get(reference)
        if container.host_config.auto_remove and container.state.status in RUNNING:
            raise Conflict(f"container {reference} is removed when it ends (--rm): it cannot be restarted")
        self.stop(container.id, timeout=timeout, signal_name=signal_name)
        self.start(container.id).close()
        self.event("restart", container)

    def pause(self, reference: str) -> None:
        """Freeze every process of the container where it is."""
        container = self.running(reference)
        with self.engine.lock(container.id):
            if container.state.paused:
                raise Conflict(f"container {reference} is already paused")
            self.engine.limits(container.limits_driver).freeze(id=container.id)
            self._note_paused(container.id, paused=True)

    def unpause(self, reference: str) -> None:
        """Let a paused container go on."""
        container = self.running(reference)
        with self.engine.lock(container.id):
            if not container.state.paused:
                raise Conflict(f"container {reference} is not paused")
            self.engine.limits(container.limits_driver).thaw(id=container.id)
            self._note_paused(container.id, paused=False)

    def _note_paused(self, id: str, *, paused: bool) -> None:
        with self.engine.state.changing(id) as container:
            if not container.state.running:  # it ended meanwhile: its supervisor has said so
                return
            container.state.paused = paused
            container.state.status = "paused" if paused else "running"
            self.event("pause" if paused else "unpause", container)

    def rename(self, reference: str, name: str) -> None:
        """Give the container another name."""
        if not NAME.fullmatch(name):
            raise _bad_name(name)
        container = self.get(reference)
        with self.engine.state.changing(container.id) as record:
            old, record.name = record.name, name
            self.event("rename", record, oldName=old)

    def update(
        self, reference: str, changes: Mapping[str, object], *, log_opts: Mapping[str, str] | None = None
    ) -> builtins.list[str]:
        """Change limits, the restart policy (fields of `HostConfig` by name) or log options, at once where it runs.

        Args:
            log_opts: put over the container's; ``NAME.option`` speaks of one of several log drivers.

        Returns:
            warnings: what cannot act on this host.

        Raises:
            ConfigError: values that no host accepts; nothing is changed.
            DriverError: the kernel refused, or a log cannot be opened in the new way; nothing is changed.
        """
        from transom_engine import updating
        from transom_engine.resources import check, updated, without_effect

        container = self.get(reference)
        with self.engine.lock(container.id):
            updating.finish(self.engine, container.id)  # of a command that died just now
            container = self.engine.state.container(container.id)
            before, runs = container.host_config, container.state.status in RUNNING
            container.host_config = changed = updated(before, changes)
            if changed.auto_remove and changed.restart_policy.name != "no":
                raise ConfigError(
                    "restart policy cannot be updated because AutoRemove (--rm) is enabled for the container"
                )
            if log_opts:
                logplan.change(self.engine, container, log_opts)
                changed = container.host_config
            limits = self.engine.limits(container.limits_driver)
            known = without_effect(before, limits)  # said when it was made
            warnings = [text for text in check(changed, limits) if text not in known]
            with updating.noted(self.engine, container.id, before) if runs else nullcontext() as note:
                try:
                    self._record_config(container.id, changed)
                    if runs and log_opts:
                        self.order_logs(container, "reopen")
                    if runs and changes.keys() - {"restart_policy"}:
                        updating.limit(self.engine, container)
                except Exception as error:
                    self._record_config(container.id, before)
                    if runs and log_opts and not isinstance(error, Conflict):
                        with suppress(TransomError):  # another of its logs may have been opened in the new way
                            self.order_logs(container, "reopen")
                    if note:
                        note.unlink(missing_ok=True)
                    raise
            with self.engine.state.changing(container.id) as record:
                self.event("update", record)
        return warnings

    def _record_config(self, id: str, config: HostConfig) -> None:
        with self.engine.state.changing(id) as record:
            record.host_config = config

    # Logs

    def order_logs(self, container: Container, do: str, *, timeout: float = 0.0) -> None:
        """Have a running container's supervisor ``rotate``, ``flush`` or ``reopen`` its logs; see `wire.Request`.

        Raises:
            TransomError: a log driver could not, or does not come to it.
        """
        connection = self.connect(container)
        connection.socket.settimeout(timeout + _ORDER_PATIENCE)
        try:
            self._checked(container, connection, wire.Request(do=do, timeout=timeout))
        except TimeoutError:
            raise Conflict(f"a log driver of {container.name} is stuck and did not {do} its log") from None
        finally:
            connection.close()

    def log_status(self, container: Container) -> builtins.list[LogStatus]:
        """Return what became of the container's output; its supervisor says so at once, whatever its sinks do."""
        if container.state.status not in RUNNING:
            return container.log_status
        try:
            connection = self.connect(container)
        except Conflict:
            return container.log_status
        connection.socket.settimeout(_STATUS_PATIENCE)
        try:
            return connection.ask(wire.Request(do="logs")).logs
        except (DriverError, OSError):
            return container.log_status
        finally:
            connection.close()

    # Removing

    def remove(self, reference: str, *, force: bool = False, volumes: bool = False) -> dict[str, int]:
        """Remove a container; with `force` a running one is killed first, with `volumes` its anonymous ones go too.

        Returns:
            by log driver, how many lines are given up that its sink has not got.

        Raises:
            Conflict: it runs.
        """
        id = self.engine.state.resolve_container(reference)
        with self.engine.lock(id):
            container = self._settle(id)
            if container is None:
                return {}
            if self.alive(id):
                if container.state.status in RUNNING and not force:
                    raise Conflict(
                        f"container {reference} is {container.state.status}: stop it first, or use rm --force"
                    )
                if container.state.status in RUNNING:
                    self._end(container, wire.Request(do="stop", signal=int(signal.SIGKILL), timeout=10))
                self._wait_for_supervisor(id)
                container = self._settle(id)
                if container is None:
                    return {}
            container.state.status = "removing"
            self.engine.state.save_container(container)
            return self.discard(container, volumes=volumes)

    def discard(self, container: Container, *, volumes: bool | None = None, quietly: bool = False) -> dict[str, int]:
        """Remove everything of a container that does not run. Idempotent: it may have been interrupted before.

        Args:
            volumes: remove its anonymous volumes; None follows ``--rm``, which does.
            quietly: the container was never seen: no event.

        Returns:
            as `remove`.
        """
        id = container.id
        with_volumes = container.host_config.auto_remove if volumes is None else volumes
        given_up: dict[str, int] = {}
        try:
            plans = logplan.plans(self.engine, container)
            given_up = logplan.undelivered(plans)
            for plan in plans:
                plan.driver.remove(container=plan.container)
        except TransomError:
            pass  # a driver is gone or broken: its files below the container's directory go all the same
        self.engine.endpoints.forget(container)
        self.engine.snapshots(container.driver).remove(id)
        self.clear_run(id)
        from shutil import rmtree

        rmtree(self.engine.container_dir(id), ignore_errors=True)
        if with_volumes:
            self.engine.volumes.remove_anonymous(container)
        with self.engine.state.transaction():
            self.engine.state.remove_container(id)
            for driver, count in given_up.items():
                self.event("log_dropped", container, driver=driver, count=str(count), reason="removed")
            if not quietly:
                self.event("destroy", container)
        for name in (id, f"{id}.alive"):
            try:
                os.unlink(self.engine.run_dir / "locks" / name)
            except FileNotFoundError:
                pass
        return given_up

    def prune(
        self,
        doomed: Callable[[Container], bool],
        *,
        warn: Callable[[Container, dict[str, int]], object] = lambda container, given_up: None,
    ) -> tuple[builtins.list[str], int]:
        """Remove those containers that do not run and that `doomed` picks.

        Args:
            warn: told of each what `remove` returns.

        Returns:
            their ids, and how many bytes their layers took.
        """
        removed, freed = [], 0
        for container in self.list(all=True):
            if container.state.status in RUNNING or not doomed(container):
                continue
            try:
                size = self.engine.snapshots(container.driver).usage(container.id).size
                given_up = self.remove(container.id)
            except (NotFound, Conflict):
                continue  # another command was faster: it is gone, or runs
            warn(container, given_up)
            removed.append(container.id)
            freed += size
        return removed, freed

    def clear_run(self, id: str) -> None:
        """Remove the directory of a run that is over; its mounts went with the supervisor."""
        from shutil import rmtree

        from transom_engine.supervisor import remove_runtime_state

        run = self.engine.container_run(id)
        remove_runtime_state(str(run))
        rmtree(run, ignore_errors=True)

    # Events

    def event(self, action: str, container: Container, **attributes: str) -> None:
        """Note what happened to a container, with its labels, image and name as Docker does."""
        known = {**container.config.labels, "image": container.config.image, "name": container.name}
        self.engine.state.event("container", action, container.id, **{**known, **attributes})


def _just_ended(container: Container) -> Conflict:
    return Conflict(f"container {container.name} has just ended; `transom ps -a` tells how")


def _bad_name(name: str) -> ConfigError:
    return ConfigError(
        f"invalid container name {name!r}: two or more of a-z A-Z 0-9 _ . -, the first a letter or digit"
    )
