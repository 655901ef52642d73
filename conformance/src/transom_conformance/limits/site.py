"""The world of a case: groups, the programs that run in them, and what is asked of both."""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from transom.contract.limits import (
    LimitEvent,
    LimitsCapability,
    Resources,
)
from transom_conformance.suite import World, in_child

MB = 1 << 20
PATIENCE = 30.0
"""Seconds after which a child that says nothing is taken for hung."""

CALLS = 400
"""More calls into the kernel than any operation needs."""

Has = LimitsCapability
requires = pytest.mark.requires

HOLD = "import sys, time; data = b'x' * int(sys.argv[1]); print('held', flush=True); time.sleep(600)"
SLEEP = "import time; print('up', flush=True); time.sleep(600)"
COUNT = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    page = mmap.mmap(file.fileno(), 8)
print("up", flush=True)
number = 0
while True:
    number += 1
    page[:] = number.to_bytes(8, "little")
"""
SPIN = """
import os, sys, time
if len(sys.argv) > 2:
    os.sched_setaffinity(0, [int(sys.argv[2])])
print("up", flush=True)
sys.stdin.readline()
start, used = time.monotonic(), time.process_time()
while time.monotonic() - start < float(sys.argv[1]):
    pass
print((time.process_time() - used) / (time.monotonic() - start), flush=True)
"""
FORKS = """
import os, signal, time
pids = []
try:
    while len(pids) < 200:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        pids.append(pid)
except BlockingIOError:
    pass
print(len(pids), flush=True)
for pid in pids:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""
BOMB = """
import os
print("up", flush=True)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
OPENS = """
import os, sys
for line in sys.stdin:
    try:
        os.close(os.open(line.strip(), os.O_RDWR))
        print("opened", flush=True)
    except OSError as error:
        print(error.strerror, flush=True)
"""
HUGE = """
import mmap
pages = mmap.mmap(-1, 2 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
pages[0] = 1
print("one", flush=True)
pages[1 << 21] = 1
print("two", flush=True)
"""
BUFFERED = """
import sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for _ in range(int(sys.argv[2]) // 65536):
        file.write(bytes(65536))
print("written", flush=True)
sys.stdin.readline()
"""
DIRECT = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
page = mmap.mmap(-1, 65536)
start = time.monotonic()
for _ in range(int(sys.argv[2]) // 65536):
    os.write(fd, page)
print(time.monotonic() - start, flush=True)
"""
READS = """
import os, sys
data = os.urandom(int(sys.argv[2]))
print("up", flush=True)
for line in sys.stdin:
    fd = os.open(sys.argv[1], os.O_RDONLY)
    while os.read(fd, 1 << 20):
        pass
    os.close(fd)
    print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmSwap")][0], flush=True)
"""
WRITES = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_DIRECT)
page = mmap.mmap(-1, 1 << 18)
print("up", flush=True)
sys.stdin.readline()
start, number = time.monotonic(), 0
while time.monotonic() - start < float(sys.argv[3]):
    os.pwrite(fd, page, int(sys.argv[2]) + (number << 18) % (16 << 20))
    number += 1
print(number, flush=True)
"""
REALTIME = """
import os, sys, time
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
start, used = time.monotonic(), time.process_time()
while time.monotonic() - start < float(sys.argv[1]):
    pass
print((time.process_time() - used) / (time.monotonic() - start), flush=True)
"""


NESTED = "nested"


class Group:
    """A group that the case made, and the programs running in it."""

    def __init__(self, driver: Any, id: str, resources: Resources) -> None:
        self.driver, self.id = driver, id
        self.programs: list[subprocess.Popen[str]] = []
        self.join: tuple[str, ...] = driver.create(id=id, resources=resources)

    def run(self, code: str, *args: object, join: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Run a Python program that is in the group, or in `join`, before its first instruction."""
        if not self.join:
            pytest.skip("the driver has no file to join a group by: it holds no process")
        program = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *map(str, args)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: enter(join or self.join),
        )
        self.programs.append(program)
        return program

    def start(self, code: str, *args: object, join: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        """Run a program and wait for its first line."""
        program = self.run(code, *args, join=join)
        assert line(program), f"the program ended with {program.wait()} before it was up"
        return program

    def end(self) -> None:
        """Kill what was started, then remove the group."""
        try:
            self.driver.kill(id=self.id)
            self.driver.remove(id=self.id)
        finally:
            for program in self.programs:
                program.kill()
                program.wait()
                for pipe in (program.stdin, program.stdout):
                    try:
                        if pipe:
                            pipe.close()
                    except BrokenPipeError:
                        pass


class Groups:
    """The groups of one case; their ids begin with `prefix`, which no other case has."""

    def __init__(self, world: World) -> None:
        self.world, self.prefix = world, f"case-{os.getpid()}-{random.randrange(1 << 32):08x}-"
        self.driver: Any = world.open()
        self.made: list[Group] = []
        self.ids = 0

    def id(self) -> str:
        """Return a new id."""
        self.ids += 1
        return f"{self.prefix}{self.ids}"

    def make(self, resources: Resources | None = None, driver: Any = None) -> Group:
        """Make a group, by the case's driver unless another is given."""
        group = Group(driver or self.driver, self.id(), resources or Resources())
        self.made.append(group)
        return group

    def owned(self) -> set[str]:
        """Return what a driver opened anew finds of this case's groups."""
        return {id for id in self.world.open().owned() if id.startswith(self.prefix)}

    def close(self) -> None:
        """End all groups and look for what is left, in the kernel's own view too."""
        errors = []
        for group in self.made:
            try:
                group.end()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        for id in self.owned():
            self.driver.kill(id=id)
            self.driver.remove(id=id)
        assert left(self.prefix) == []
        notes = [str(path) for path in self.world.path.rglob("*") if self.prefix in path.name]
        assert not notes, f"left behind: {', '.join(notes)}"


def enter(files: tuple[str, ...]) -> None:
    """Join a group: what a contract's caller does between fork and exec."""
    for file in files:
        fd = os.open(file, os.O_WRONLY)
        os.write(fd, b"0")
        os.close(fd)


def left(prefix: str) -> list[str]:
    """Return the directories of groups in any mounted hierarchy whose names begin with `prefix`."""
    points = {
        words[4]
        for words in (mount.split(" ") for mount in Path("/proc/self/mountinfo").read_text().splitlines())
        if words[words.index("-") + 1].startswith("cgroup")
    }
    return [
        f"{place}/{name}" for point in points for place, names, _ in os.walk(point) for name in names if prefix in name
    ]


def line(program: subprocess.Popen[str], *, seconds: float = PATIENCE) -> str:
    """Return the program's next line; empty when it ended."""
    assert program.stdout is not None
    ready, _, _ = select.select([program.stdout], [], [], seconds)
    assert ready, f"the program said nothing for {seconds} s"
    return program.stdout.readline().strip()


def say(program: subprocess.Popen[str], text: str) -> str:
    """Write a line to the program and return the one it answers with."""
    tell(program, text)
    return line(program)


def tell(program: subprocess.Popen[str], text: str = "") -> None:
    """Write a line to the program."""
    assert program.stdin is not None
    program.stdin.write(f"{text}\n")
    program.stdin.flush()


def die_at(number: int, function: Callable[[str], object], id: str) -> bool:
    """Run `function` in a child that gets SIGKILL before its call `number` into the kernel; say whether it ended.

    Counted are those calls of `os` by which a driver changes or looks at a host.
    """

    def run() -> None:
        numbers = itertools.count()

        def counted(call: Callable[..., Any]) -> Callable[..., Any]:
            def step(*args: Any, **keywords: Any) -> Any:
                if next(numbers) == number:
                    signal.raise_signal(signal.SIGKILL)
                return call(*args, **keywords)

            return step

        for name in ("open", "write", "mkdir", "rmdir", "rename", "unlink", "kill", "scandir"):
            setattr(os, name, counted(getattr(os, name)))
        function(id)

    code = in_child(run)
    assert code in {0, -9}
    return code == 0


def until(true: Callable[[], object], *, seconds: float = PATIENCE) -> bool:
    """Wait for a condition; say whether it came."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def alive(pid: int) -> bool:
    """Say whether a process runs, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


def first_cpu() -> int:
    """Return the lowest number of a CPU that this process may use."""
    return min(os.sched_getaffinity(0))


def memory(megabytes: int, **more: Any) -> Resources:
    """Return a memory limit that swap cannot soften."""
    return Resources(memory=megabytes * MB, memory_swap=megabytes * MB, **more)


def events(watch: Any, *, seconds: float = 5.0) -> tuple[LimitEvent, ...]:
    """Poll as an event loop does and return the first events."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ready, _, _ = select.select([watch], [], [], max(0.0, deadline - time.monotonic()))
        found: tuple[LimitEvent, ...] = watch.read() if ready else ()
        if found:
            return found
    return ()


def loop_device(world: World, name: str = "disk", *, megabytes: int = 32) -> str:
    """Attach a file in the world's directory as a block device."""
    image = world.path / name
    with image.open("wb") as file:
        file.truncate(megabytes * MB)
    made = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device to be had: {made.stderr.strip()}")
    device = made.stdout.strip()
    world.defer(subprocess.run, ["losetup", "--detach", device], check=True)
    return device


def swap_space(world: World) -> None:
    """Have 64 MB of swap on the host while the case lasts."""
    device = loop_device(world, "swap", megabytes=64)
    subprocess.run(["mkswap", device], check=True, capture_output=True)
    made = subprocess.run(["swapon", device], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no swap to be had: {made.stderr.strip()}")
    world.defer(subprocess.run, ["swapoff", device], check=True)


def weighing_device(world: World) -> str:
    """Attach a block device that heeds weights strictly: by the I/O scheduler bfq, which sees a slow disk."""
    device = loop_device(world, megabytes=64)
    queue = Path("/sys/block", os.path.basename(device), "queue")
    subprocess.run(["modprobe", "-q", "bfq"], check=False)
    try:
        (queue / "scheduler").write_text("bfq")
    except OSError:
        pytest.skip("this kernel has no I/O scheduler bfq")
    (queue / "rotational").write_text("1")
    (queue / "iosched/low_latency").write_text("0")
    (queue / "iosched/strict_guarantees").write_text("1")
    return device


def numbers_of(device: str) -> str:
    """Return "major:minor" of a device."""
    number = os.stat(device).st_rdev
    return f"{os.major(number)}:{os.minor(number)}"


def nest(group: Group) -> tuple[str, ...]:
    """Make a group nested in `group` in each hierarchy, as its processes could; return the files to join it by.

    Whatever limits the nested one has of its own are lifted as far as the kernel lets one.
    """
    joins = []
    for file in group.join:
        place = os.path.dirname(file)
        switch = Path(place, "cgroup.subtree_control")
        if switch.exists() and not Path(place, "cgroup.procs").read_text():  # beside processes no controller can be on
            for name in Path(place, "cgroup.controllers").read_text().split():
                switch.write_text(f"+{name}")
        nested = Path(place, NESTED)
        nested.mkdir()
        for inherited in ("cpuset.cpus", "cpuset.mems"):  # without them a v1 cpuset takes no process
            if (nested / inherited).exists():
                (nested / inherited).write_text(Path(place, inherited).read_text())
        for limit, most in (
            ("memory.memsw.limit_in_bytes", "-1"),
            ("memory.limit_in_bytes", "-1"),
            ("pids.max", "max"),
        ):
            if (nested / limit).exists():
                (nested / limit).write_text(most)
        joins.append(str(nested / os.path.basename(file)))
    return tuple(joins)
