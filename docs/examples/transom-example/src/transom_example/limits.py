"""A resource-limit driver that limits one thing, the number of processes (cgroup-v1/pids.rst)."""

import os
import signal
import time
from pathlib import Path

from transom.contract import Probe
from transom.contract.limits import Limits, LimitsCapability, Resources, Stats
from transom.errors import DriverError, NotFound

TOP = Path("/sys/fs/cgroup/pids/transom-example")
_NOTHING = Resources()


class Pids(Limits):
    """A group is a directory of the pids controller."""

    name = "pids"
    api = 1
    capabilities = frozenset({LimitsCapability.PIDS})

    def probe(self) -> Probe:
        """The controller must be there."""
        if TOP.parent.is_dir():
            return Probe(usable=True)
        return Probe(usable=False, reason=f"no cgroup v1 controller pids at {TOP.parent}")

    def unsupported_resources(self, resources: Resources) -> dict[str, str]:
        """Whatever is set and is not `pids`."""
        asked = {name for name in resources.__struct_fields__ if getattr(resources, name) != getattr(_NOTHING, name)}
        return dict.fromkeys(asked - {"pids"}, "this driver limits the number of processes only")

    def create(self, id: str, resources: Resources) -> tuple[str, ...]:
        """Make the group, or find it there; without a limit asked for, an earlier one does not stay."""
        try:
            (TOP / id).mkdir(parents=True, exist_ok=True)
            self._limit(id, -1 if resources.pids is None else resources.pids)
        except OSError as error:
            raise DriverError("create", driver="limits pids", subject=id, cause=error) from error
        return (str(TOP / id / "cgroup.procs"),)

    def update(self, id: str, resources: Resources) -> None:
        """Set the limit where one is asked for."""
        self._existing(id)
        if resources.pids is not None:
            self._limit(id, resources.pids)

    def stats(self, id: str) -> Stats:
        """Count, which is all that this controller does."""
        limit = _read(self._existing(id) / "pids.max")
        return Stats(
            time=time.time_ns(),
            pids=int(_read(TOP / id / "pids.current")),
            pids_limit=None if limit == "max" else int(limit),
        )

    def processes(self, id: str) -> tuple[int, ...]:
        """List the group's processes and those of groups that the container made inside it."""
        groups = [Path(path) for path, _, _ in os.walk(TOP / id)]
        return tuple(int(pid) for group in groups for pid in _read(group / "cgroup.procs").split())

    def kill(self, id: str) -> None:
        """Kill until none is left: what forked meanwhile is found in the next round."""
        end = time.monotonic() + 10
        while pids := self.processes(id):
            if time.monotonic() > end:
                raise DriverError("kill", driver="limits pids", subject=id, cause=f"process {pids[0]} does not die")
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.005)

    def remove(self, id: str) -> None:
        """Remove the innermost first; rmdir(2) is all that a group needs."""
        for path, _, _ in os.walk(TOP / id, topdown=False):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DriverError("remove", driver="limits pids", subject=id, cause=error) from error

    def owned(self) -> frozenset[str]:
        """Every directory below ours."""
        try:
            return frozenset(entry.name for entry in os.scandir(TOP) if entry.is_dir())
        except FileNotFoundError:
            return frozenset()

    def _existing(self, id: str) -> Path:
        if not (TOP / id).is_dir():
            raise NotFound(f"limits driver pids has no group {id}; `transom ps -a` shows what is there")
        return TOP / id

    def _limit(self, id: str, pids: int) -> None:
        (TOP / id / "pids.max").write_text("max" if pids < 0 else str(pids))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the group is gone
        return ""
