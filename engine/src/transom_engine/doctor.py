"""``transom doctor``: can this host run containers, and what did a crash leave?

A leftover is judged under the lock of whoever could be at work on it, or else looked at twice: what is in use is
passed over. So it may run while containers do and while other commands work, and finds nothing where nothing died.
Repairing a leftover happens under the same lock, and goes on over those that cannot be repaired.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec

from transom.errors import Conflict, NotFound, TransomError
from transom.services.files import Lock
from transom_engine.containers import RUNNING

if TYPE_CHECKING:
    from transom.contract.limits import Limits
    from transom.contract.network import NetworkDriver
    from transom.contract.storage import Change
    from transom.services.ipam import Ipam
    from transom.services.snapshots import Layer, Snapshots
    from transom_engine.engine import Engine
    from transom_engine.model import Container

T = TypeVar("T")

LEAST_FREE = 1 << 30
"""Bytes: with less, an image may not fit."""
_PATIENCE = 1.0
"""Seconds to wait for a lock before what it protects is passed over."""
_SECOND_LOOK = 0.2
"""Seconds between two looks at what no lock protects."""
_ID = re.compile("[0-9a-f]{64}")
_TEMPORARY = re.compile(r".+\.(\d+)\.tmp|chosen-[a-z]+\.(\d+)")
_UNFINISHED = {"creating": "its making was interrupted", "removing": "its removal was interrupted"}
_WANTED = {
    "CAP_SYS_ADMIN": "nothing can be mounted",
    "CAP_NET_ADMIN": "no interface can be made: use --network host",
    "CAP_MKNOD": "containers get no /dev",
    "CAP_SYS_RESOURCE": "limits above the engine's own, and a lower oom-score-adj, are lowered to the engine's",
    "CAP_SETFCAP": "files of an image lose their capabilities",
}
_VITAL = frozenset({"CAP_MKNOD", "CAP_SYS_ADMIN"})


class Check(msgspec.Struct, frozen=True, rename="pascal"):
    """What was found of the host: `status` is "ok", "remark" (it works, but) or "problem"."""

    name: str
    status: str
    text: str


class Finding(msgspec.Struct, frozen=True, rename="pascal"):
    """What a crash left; `repaired` is whether it is put right by now, `failure` why that could not be done."""

    kind: str
    subject: str
    text: str
    repaired: bool = False
    failure: str = ""


class Report(msgspec.Struct, frozen=True, rename="pascal"):
    """What the doctor says; `remarks` are what could not be judged."""

    host: list[Check]
    findings: list[Finding]
    remarks: list[str]

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong, or everything was put right."""
        return all(c.status != "problem" for c in self.host) and all(f.repaired for f in self.findings)


class Fault(msgspec.Struct, frozen=True):
    """A leftover and how it is put right."""

    kind: str
    subject: str
    text: str
    repair: Callable[[], object]


def examine(engine: Engine, *, repair: bool = False, deep: bool = False) -> Report:
    """Look at the host and for leftovers; with `repair` put each right.

    Args:
        deep: compare every layer of an image with the tar it was made of, as long as unpacking them all takes.
    """
    leftovers = _Leftovers(engine, deep=deep)
    findings = []
    for fault in leftovers.faults():
        failure = ""
        if repair:
            try:
                fault.repair()
            except (TransomError, OSError) as error:
                failure = str(error)
        repaired = repair and not failure
        findings.append(Finding(fault.kind, fault.subject, fault.text, repaired=repaired, failure=failure))
    if repair:
        findings += leftovers.recover()
    return Report(host=list(_host(engine)), findings=findings, remarks=leftovers.remarks)


# The host


def _host(engine: Engine) -> Iterator[Check]:
    yield Check("kernel", "ok", f"Linux {os.uname().release}")
    yield _runtime(engine)
    for kind in ("storage", "limits", "network", "logging"):
        yield _driver(engine, kind)
    yield from _limits(engine)
    yield from _capabilities()
    yield _forwarding(engine)
    yield from _firewalls()
    yield _disk(engine)


def _runtime(engine: Engine) -> Check:
    """Try the runtime: that it worked once does not say that it works now."""
    from transom_engine.oci.runtime import try_run

    try:
        runtime = engine.runtime
    except TransomError as error:
        return Check("runtime", "problem", str(error))
    failure = try_run(runtime=runtime, run_dir=str(engine.run_dir))
    if failure:
        return Check("runtime", "problem", f"{runtime.path} does not run a container any more: {failure}")
    return Check("runtime", "ok", f"{runtime.path} runs a container ({runtime.version})")


def _driver(engine: Engine, kind: str) -> Check:
    try:
        name = engine.default_driver(kind)
        options, where = engine.config.options(kind, name)
        probe = engine.drivers.open(kind, name, options, where=where).probe()
    except TransomError as error:
        return Check(kind, "problem", str(error))
    except Exception as error:  # whatever a driver's probe raises
        return Check(kind, "problem", f"{kind} driver {name}: its probe failed: {type(error).__name__}: {error}")
    if not probe.usable:
        return Check(kind, "problem", f"{name}: {probe.reason}")
    return Check(kind, "remark" if probe.reason else "ok", f"{name}: {probe.reason}" if probe.reason else name)


def _limits(engine: Engine) -> Iterator[Check]:
    from transom_engine.system import missing_limits

    for text in missing_limits(engine):
        yield Check("limits", "remark", text)


def _capabilities() -> Iterator[Check]:
    from transom_engine.oci.host import Host

    have = Host.read().capabilities
    missing = [name for name in _WANTED if name not in have]
    if not missing:
        yield Check("capabilities", "ok", "none that is needed is missing")
    for name in missing:
        yield Check("capabilities", "problem" if name in _VITAL else "remark", f"{name} is missing: {_WANTED[name]}")


def _forwarding(engine: Engine) -> Check:
    try:
        with open("/proc/sys/net/ipv4/ip_forward") as file:
            on = file.read().strip() == "1"
    except OSError:
        return Check("forwarding", "remark", "/proc/sys/net/ipv4/ip_forward cannot be read")
    if on:
        return Check("forwarding", "ok", "IPv4 is forwarded")
    if engine.config.ip_forward:
        return Check("forwarding", "ok", "IPv4 is not forwarded now; a network driver that needs it turns it on")
    return Check(
        "forwarding", "remark", "IPv4 is not forwarded, and ip-forward is off: containers reach this host only"
    )


def _firewalls() -> Iterator[Check]:
    from transom_engine.foreign import obstacles

    for text in obstacles():
        yield Check("firewall", "remark", f'{text}; see "The firewall" in docs/networking.md')


def _disk(engine: Engine) -> Check:
    from transom_engine.cli.units import human_size

    status = os.statvfs(engine.state_dir)
    free = status.f_bavail * status.f_frsize
    text = f"{human_size(free)} are free in {engine.state_dir}"
    if status.f_files and not status.f_favail:
        return Check("disk", "problem", f"no inode is free in {engine.state_dir}")
    return Check("disk", "ok" if free >= LEAST_FREE else "remark", text)


# What a crash left


class _Leftovers:
    """Finds what no command and no container will ever use again."""

    def __init__(self, engine: Engine, *, deep: bool = False) -> None:
        self.engine, self._deep = engine, deep
        self.remarks: list[str] = []
        self._dead: set[str] = set()

    def faults(self) -> Iterator[Fault]:
        """Yield every leftover; what locks are needed to judge it and to repair it are held meanwhile."""
        yield from self._containers()
        yield from self._directories()
        yield from self._groups()
        yield from self._networks()
        yield from self._addresses()
        yield from self._layers()
        yield from self._volumes()
        yield from self._content()
        yield from self._files()

    # Containers

    def _containers(self) -> Iterator[Fault]:
        for container in self.engine.state.containers():
            lock = self.engine.lock(container.id)
            if not lock.acquire(wait=False):
                continue  # a command is at work on it
            try:
                text = self._death_of(container.id)
            finally:
                lock.release()
            if text:
                self._dead.add(container.id)
                yield Fault("container", container.name, text, partial(self._settle, container))

    def _death_of(self, id: str) -> str:
        """Say what a container died of, or nothing; the caller holds its lock."""
        try:
            status = self.engine.state.container(id).state.status
        except NotFound:
            return ""
        if self.engine.containers.alive(id):
            return ""
        if status in RUNNING:
            return "its supervisor was killed"
        if status not in _UNFINISHED and os.path.isdir(self.engine.container_run(id)):
            return "its supervisor was killed when the run had ended"
        return _UNFINISHED.get(status, "")

    def _settle(self, container: Container) -> None:
        self.engine.containers.settle(container)
        self._dead.discard(container.id)

    def _directories(self) -> Iterator[Fault]:
        """Find what is kept of containers without a record: a record is there before anything else."""
        for base in (self.engine.run_dir, self.engine.state_dir):
            for id in _names(f"{base}/containers"):
                if _ID.fullmatch(id) and not self._recorded(id) and self._idle(id):
                    path = f"{base}/containers/{id}"
                    yield Fault("directory", path, "no container has it", partial(_remove, path))

    def _recorded(self, id: str) -> bool:
        try:
            self.engine.state.container(id)
        except NotFound:
            return False
        return True

    def _idle(self, id: str) -> bool:
        """Say whether nobody holds a lock of the container."""
        return all(_free(self.engine.run_dir / "locks" / name) for name in (id, f"{id}.alive"))

    # Groups of processes

    def _groups(self) -> Iterator[Fault]:
        from transom.drivers import installed

        names = {container.limits_driver for container in self.engine.state.containers()}
        names |= {driver.name for driver in installed("limits")}
        for name in sorted(names - {""}):
            try:
                driver = self.engine.limits(name)
                usable = driver.probe().usable
            except TransomError:
                continue  # it was uninstalled: its groups go with the next boot
            for id in sorted(_steady(partial(self._empty_groups, driver))) if usable else ():
                yield Fault("group", f"{name} {id[:12]}", "no container runs in it", partial(_end_group, driver, id))

    def _empty_groups(self, driver: Limits) -> set[str]:
        """Return the groups of no container that runs, here or in another engine on this host, or is worked on."""
        owned = driver.owned()
        living = self._dead | _elsewhere(self.engine).keys()  # the dead have been named already
        return {id for id in owned - living if _ID.fullmatch(id) and self._idle(id)}

    # Networks

    def _networks(self) -> Iterator[Fault]:
        from transom.contract.network import Endpoint, Network, NetworkCapability
        from transom.drivers import installed
        from transom_engine.networks.repair import damaged

        strangers = sorted({where for where, netns in _elsewhere(self.engine).values() if netns == _netns("self")})
        if strangers:
            self.remarks.append(
                f"containers of another engine ({', '.join(strangers)}) use this network namespace:"
                " networks and endpoints without a record may be its own and were not judged"
            )
            return
        try:
            damage = list(damaged(self.engine))
        except (TransomError, OSError) as error:
            self.remarks.append(f"networks in use were not judged: {getattr(error, 'strerror', None) or error}")
            damage = []
        for name, text, repair in damage:
            yield Fault("network", name, text, repair)
        for installation in installed("network"):
            try:
                driver = self.engine.network_driver(installation.name)
                if driver.capabilities & {NetworkCapability.SINGLETON, NetworkCapability.REFERENCE}:
                    continue
                found = _steady(partial(self._orphans, driver))
            except (TransomError, OSError) as error:
                cause = getattr(error, "strerror", None) or error
                self.remarks.append(f"networks of the driver {installation.name} were not judged: {cause}")
                continue
            for kind, id in sorted(found):
                network = Network(id="" if kind == "endpoint" else id, name="")
                act: Callable[[], object] = partial(driver.delete_network, network=network)
                if kind == "endpoint":
                    act = partial(driver.detach, network=network, endpoint=Endpoint(id=id, container=""))
                yield Fault(kind, f"{driver.name} {id[:12]}", f"no record has this {kind}", act)

    def _orphans(self, driver: NetworkDriver) -> set[tuple[str, str]]:
        owned = driver.owned()
        networks, endpoints = self._known()
        return {("endpoint", id) for id in owned.endpoints - endpoints} | {
            ("network", id) for id in owned.networks - networks
        }

    def _known(self) -> tuple[set[str], set[str]]:
        """Return the ids of all networks and of all endpoints on record."""
        from transom_engine.networks.model import NetworkRecord

        places = [
            place
            for container in self.engine.state.containers()
            for place in container.network_settings.networks.values()
        ]
        networks = {record.id for record in self.engine.state.all("network", NetworkRecord)}
        return networks, {place.endpoint_id for place in places if place.endpoint_id}

    def _addresses(self) -> Iterator[Fault]:
        """Find addresses that nobody has: give them all back and see which, and take that back."""
        if not os.path.exists(self.engine.state_dir / "ipam.db"):
            return
        with self.engine.lock("networks"):  # a network's subnets are reserved before its record is made
            ipam = self.engine.addresses.ipam
            for text in self._give_back(ipam, keep=False):
                what, _, whose = text.removeprefix("gave back ").partition(" of ")
                yield Fault("addresses", what, f"of {whose}", partial(self._give_back, ipam, keep=True))

    def _give_back(self, ipam: Ipam, *, keep: bool) -> list[str]:
        said: list[str] = []
        try:
            with ipam._transaction():  # an endpoint is on record before it gets an address
                networks, endpoints = self._known()
                said = ipam.recover(networks=networks, endpoints=endpoints)
                if not keep:
                    raise _Undone
        except _Undone:
            pass
        return said

    # Layers

    def _layers(self) -> Iterator[Fault]:
        from transom_engine.pruning import layers_lock, storage_drivers, unneeded_layers

        for name in storage_drivers(self.engine):
            try:
                snapshots = self.engine.snapshots(name)
            except TransomError as error:
                self.remarks.append(f"layers of the storage driver {name} were not judged: {error}")
                continue
            lock = layers_lock(self.engine, name)
            if not _acquire(lock):
                self.remarks.append(f"layers of the storage driver {name} were not judged: one is being unpacked")
                continue
            try:
                yield from self._broken_layers(snapshots)
                for layer in unneeded_layers(self.engine, snapshots):
                    if self._unclaimed(snapshots, layer):
                        text = f"no container and no image needs it{_made_for(layer)}"
                        yield Fault("layer", f"{name} {layer.key}", text, partial(snapshots.remove, layer.key))
                if self._deep:
                    yield from self._changed_layers(snapshots)
            finally:
                lock.release()

    def _broken_layers(self, snapshots: Snapshots) -> Iterator[Fault]:
        """Find where records and disk differ, at a moment when no process makes or removes a layer."""
        name = snapshots.driver.name
        work = Lock(f"{snapshots.driver.root}.layers/lock")
        if not _acquire(work):
            self.remarks.append(f"layers of the storage driver {name} were not judged: one is being made or removed")
            return
        try:
            lines = snapshots.check()
        finally:
            work.release()
        for line in lines:
            text = line.removeprefix(f"storage {name}: ")
            yield Fault("layer", name, text, partial(_mend, snapshots, line))

    def _changed_layers(self, snapshots: Snapshots) -> Iterator[Fault]:
        """Compare the layers of images with their tars; those over a changed one are judged when it is put right."""
        from transom_engine.images.unpack import open_layer

        good: dict[str, bool] = {}
        for image in self.engine.images.walk():
            for layer in image.layers:
                key = layer.chain_id
                if key not in good:
                    if not snapshots.exists(key):
                        break
                    try:
                        with open_layer(layer, self.engine.content) as stream:
                            changes = snapshots.verify(key, stream)  # type: ignore[arg-type]  # an IO[bytes] but in name
                            stream.finish()
                    except TransomError as error:
                        self.remarks.append(f"layer {snapshots.driver.name} {key} was not compared: {error}")
                        break
                    good[key] = not changes
                    if changes:
                        act = partial(_replace_layer, self.engine, snapshots, key)
                        yield Fault("layer", f"{snapshots.driver.name} {key}", _changed_text(changes), act)
                if not good[key]:
                    break

    @staticmethod
    def _unclaimed(snapshots: Snapshots, layer: Layer) -> bool:
        from transom.contract.storage import State

        if layer.state is not State.ACTIVE:
            return True
        try:
            snapshots.claim(layer.key).release()
        except (Conflict, NotFound):
            return False
        return True

    # Volumes and images

    def _volumes(self) -> Iterator[Fault]:
        root = self.engine.volumes.root
        for name in sorted(_steady(self._unrecorded_volumes)):
            yield Fault("volume", name, "it has no record", partial(self._adopt, name))
        for volume in self.engine.volumes.list():
            if not os.path.isdir(volume.mountpoint):
                act = partial(os.makedirs, volume.mountpoint, exist_ok=True)
                yield Fault("volume", volume.name, "its directory is missing", act)
        if any(not self._idle(c.id) for c in self.engine.state.containers("creating")):
            return  # it may be filling one
        for name in _names(root):
            if os.path.isdir(root / name / "_filling"):
                yield Fault("volume", name, "it was being filled", partial(_remove, root / name / "_filling"))

    def _unrecorded_volumes(self) -> set[str]:
        names = set(_names(self.engine.volumes.root))
        return names - {volume.name for volume in self.engine.volumes.list()}

    def _adopt(self, name: str) -> None:
        """Remove the directory if nothing is in it, else record the volume again: data is never thrown away."""
        directory = self.engine.volumes.root / name
        try:
            for path in (directory / "_data", directory):
                if path.is_dir():
                    path.rmdir()
        except FileNotFoundError:
            pass  # gone meanwhile
        except OSError:
            self.engine.volumes.create(name)

    def _content(self) -> Iterator[Fault]:
        for name in self.engine.images.collect(dry=True):
            what = "no image needs it" if name.startswith("sha256:") else "it was being written"
            yield Fault("blob", name, what, partial(self._collect, name))

    def _collect(self, name: str) -> None:
        self.engine.images.collect()
        if name in self.engine.images.collect(dry=True):
            raise Conflict("an image is being pulled: try again when it is there")

    # Files

    def _files(self) -> Iterator[Fault]:
        """Find half-written files, which have their writer's pid in their name."""
        for base in (self.engine.run_dir, self.engine.state_dir, self.engine.state_dir / "content"):
            for name in _names(base):
                match = _TEMPORARY.fullmatch(name)
                if match and not os.path.exists(f"/proc/{match[1] or match[2]}"):
                    yield Fault("file", f"{base}/{name}", "it was being written", partial(_remove, base / name))

    def recover(self) -> list[Finding]:
        """Let every driver finish what it had begun, at a moment when it has nothing else to do; sweep old locks."""
        said: list[tuple[str, str, str]] = []
        for name in _names(self.engine.run_dir / "locks"):
            id = name.removesuffix(".alive")
            if _ID.fullmatch(id) and not self._recorded(id) and self._idle(id):
                _remove(self.engine.run_dir / "locks" / name)
        from transom_engine.pruning import storage_drivers

        for name in storage_drivers(self.engine):
            try:
                lines = self.engine.snapshots(name).recover()
                said += [("storage driver", name, line.removeprefix(f"storage {name}: ")) for line in lines]
            except TransomError as error:
                self.remarks.append(f"the storage driver {name} could not recover: {error}")
        held = self._quiet()
        try:
            if held:
                said += self._recover_drivers()
        except TransomError as error:
            self.remarks.append(f"a driver could not recover: {error}")
        finally:
            for lock in held:
                lock.release()
        return [Finding(kind=kind, subject=name, text=text, repaired=True) for kind, name, text in said]

    def _quiet(self) -> list[Lock]:
        """Hold everything still: all containers' locks and that of networks; nothing if a container runs."""
        ids = [container.id for container in self.engine.state.containers()]
        locks = [self.engine.lock(name) for name in ("networks", *sorted(ids))]
        if all(lock.acquire(wait=False) for lock in locks) and not any(map(self.engine.containers.alive, ids)):
            return locks
        for lock in locks:
            lock.release()
        return []

    def _recover_drivers(self) -> Iterator[tuple[str, str, str]]:
        for kind in ("limits", "network"):
            name = self.engine.default_driver(kind)
            driver = self.engine.limits(name) if kind == "limits" else self.engine.network_driver(name)
            yield from ((f"{kind} driver", name, text) for text in driver.recover())


class _Undone(Exception):
    """Rolls a transaction back."""


def _changed_text(changes: list[Change]) -> str:
    """Name what was changed, in the letters of ``transom diff``."""
    shown = ", ".join(f"{c.kind} {ascii(os.fsdecode(b'/' + c.path))[1:-1]}" for c in changes[:3])
    more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
    return f"it was changed by something else than transom: {shown}{more}"


def _replace_layer(engine: Engine, snapshots: Snapshots, key: str) -> None:
    """Remove a layer, and those over it; they are unpacked again when they are needed.

    Raises:
        Conflict: a container is made over it.
    """
    over = {key}
    for layer in snapshots.walk():  # parents come first
        if layer.parent in over:
            over.add(layer.key)
    if names := sorted(c.name for c in engine.state.containers() if c.id in over):
        raise Conflict(f"made over it are the containers {', '.join(names)}: remove them, then repair again")
    _drop(snapshots, key)


def _made_for(layer: Layer) -> str:
    """Say whose layer it was, where its labels do."""
    name, image = (layer.labels.get(f"transom.{what}", "") for what in ("container", "image"))
    return f"; it was made for the container {name} of {image}" if name else ""


def _mend(snapshots: Snapshots, line: str) -> None:
    """Repair what `Snapshots.check` said; a lost layer of an image goes, and is unpacked again when it is needed."""
    if line not in snapshots.check():
        return
    snapshots.recover()
    if line in snapshots.check():
        _drop(snapshots, line.removeprefix(f"storage {snapshots.driver.name}: layer ").partition(" ")[0])


def _drop(snapshots: Snapshots, key: str) -> None:
    """Remove a layer without data, and those made over it, unless a container's is among them.

    Raises:
        Conflict: a container is made over it.
    """
    if _ID.fullmatch(key):
        raise Conflict(f"the data of container {key[:12]} is lost; remove it: transom rm {key[:12]}")
    for layer in list(snapshots.walk()):
        if layer.parent == key:
            _drop(snapshots, layer.key)
    snapshots.remove(key)


def _elsewhere(engine: Engine) -> dict[str, tuple[str, int]]:
    """Find the running containers of other engines: a supervisor's working directory is its container's.

    Returns:
        by the container's id, the other engine's exec root and the inode of the supervisor's network namespace.
    """
    found: dict[str, tuple[str, int]] = {}
    here = os.path.realpath(engine.run_dir)
    for pid in _names("/proc"):
        if not pid.isdecimal():
            continue
        try:
            root, _, id = os.readlink(f"/proc/{pid}/cwd").rpartition("/containers/")
        except OSError:
            continue
        if _ID.fullmatch(id) and root != here:
            found[id] = (root.removesuffix("/transom"), _netns(pid))
    return found


def _netns(pid: str) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def _end_group(driver: Limits, id: str) -> None:
    driver.kill(id=id)
    driver.remove(id=id)


def _steady(look: Callable[[], set[T]]) -> set[T]:
    """Return what two looks have in common: what is being made or removed is in one of them only."""
    found = look()
    if found:
        time.sleep(_SECOND_LOOK)
        found &= look()
    return found


def _acquire(lock: Lock) -> bool:
    end = time.monotonic() + _PATIENCE
    while not lock.acquire(wait=False):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _free(path: os.PathLike[str]) -> bool:
    """Say whether nobody holds the lock; a file that is not there is not made."""
    if not os.path.exists(path):
        return True
    lock = Lock(path)
    if not lock.acquire(wait=False):
        return False
    lock.release()
    return True


def _names(directory: str | os.PathLike[str]) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except FileNotFoundError:
        return []


def _remove(path: str | os.PathLike[str]) -> None:
    from shutil import rmtree

    try:
        if os.path.isdir(path) and not os.path.islink(path):
            rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass  # gone meanwhile
