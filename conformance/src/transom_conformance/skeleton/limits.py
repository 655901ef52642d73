"""A resource-limit driver that limits nothing: it holds a container's processes together, so that all can be ended."""

import os
import signal
import time
from pathlib import Path

from transom.contract import Probe
from transom.contract.limits import Limits, Resources, Stats
from transom.errors import DriverError, NotFound

HIERARCHIES = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))
"""Where control groups can be made, with cgroup v1 and with v2 (cgroups(7)); nothing else is asked of them."""
_NOTHING = Resources()


class Sample(Limits):
    """A group is a directory below one of ours."""

    name = "sample"
    api = 1

    def probe(self) -> Probe:
        """Some hierarchy must be mounted."""
        if self._top:
            return Probe(usable=True)
        return Probe(usable=False, reason=f"no control groups at {' or '.join(map(str, HIERARCHIES))}: mount them")

    @property
    def _top(self) -> Path | None:
        found = (path for path in HIERARCHIES if (path / "cgroup.procs").exists())
        return next((path / "transom-sample" for path in found), None)

    def unsupported_resources(self, resources: Resources) -> dict[str, str]:
        """Whatever is set, by name, with the reason; the engine warns of it."""
        asked = {name for name in resources.__struct_fields__ if getattr(resources, name) != getattr(_NOTHING, name)}
        return dict.fromkeys(asked, "this driver limits nothing")

    def create(self, id: str, resources: Resources) -> tuple[str, ...]:
        """Make the group, or find it there; return the file by which a process joins it."""
        group = self._group(id)
        try:
            group.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DriverError("create", driver="limits sample", subject=id, cause=error) from error
        return (str(group / "cgroup.procs"),)

    def update(self, id: str, resources: Resources) -> None:
        """Set what is asked for, which is nothing here."""
        self._existing(id)

    def stats(self, id: str) -> Stats:
        """Count what the group has."""
        self._existing(id)
        return Stats(time=time.time_ns(), pids=len(self.processes(id)))

    def processes(self, id: str) -> tuple[int, ...]:
        """List the group's processes and those of groups that the container made inside it."""
        groups = [Path(path) for path, _, _ in os.walk(self._group(id))]
        return tuple(int(pid) for group in groups for pid in _read(group / "cgroup.procs").split())

    def kill(self, id: str) -> None:
        """Kill until none is left: what forked meanwhile is found in the next round."""
        end = time.monotonic() + 10
        while pids := self.processes(id):
            if time.monotonic() > end:
                raise DriverError("kill", driver="limits sample", subject=id, cause=f"process {pids[0]} does not die")
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.005)

    def remove(self, id: str) -> None:
        """Remove the innermost first; rmdir(2) is all that a group needs."""
        for path, _, _ in os.walk(self._group(id), topdown=False):
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise DriverError("remove", driver="limits sample", subject=id, cause=error) from error

    def owned(self) -> frozenset[str]:
        """Every directory below ours."""
        try:
            return frozenset(entry.name for entry in os.scandir(self._group("")) if entry.is_dir())
        except FileNotFoundError:
            return frozenset()

    def _group(self, id: str) -> Path:
        return (self._top or HIERARCHIES[0] / "transom-sample") / id

    def _existing(self, id: str) -> None:
        if not self._group(id).is_dir():
            raise NotFound(f"limits driver sample has no group {id}; `transom ps -a` shows what is there")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # the group is gone
        return ""
