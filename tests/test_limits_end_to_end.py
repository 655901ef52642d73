"""Limits as a container feels them, and as its record tells them."""

import os
import random
import signal
import sys
import time

import pytest

from transom.contract.limits import LimitsCapability
from transom.services.cgroups import write
from transom_conformance.limits.io import huge_pages
from transom_conformance.limits.site import HUGE

NETWORK = "none"


def events(world, *actions):
    """Return the noted events of those names, oldest first."""
    engine = world.transom.engine()
    try:
        return [event for event in engine.state.events() if event.action in actions]
    finally:
        engine.close()


def seconds_of_cpu(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


EAT = "dd if=/dev/zero of=/dev/null bs=60M count=1"


def test_a_container_that_eats_more_memory_than_it_may_is_killed_and_says_so(world):
    done = world.transom.call(
        "run", "--name", "box", "--network", "none", "-m", "20m", "--memory-swap", "20m", "busybox", *EAT.split()
    )
    assert done.code == 137
    state = world.transom.inspect("box")["State"]
    assert (state["OOMKilled"], state["ExitCode"], state["Status"]) == (True, 137, "exited")
    assert [event.id for event in events(world, "oom")] == [world.transom.inspect("box")["Id"]]


def test_each_kill_for_want_of_memory_is_told_by_record_events_and_list(world):
    for number in range(15):
        name = f"box{number}"
        done = world.transom.call(
            "run", "--name", name, "--network", "none", "-m", "12m", "--memory-swap", "12m", "busybox", *EAT.split()
        )
        assert done.code == 137
        state = world.transom.inspect(name)["State"]
        assert (state["OOMKilled"], state["ExitCode"]) == (True, 137)
        id = world.transom.inspect(name)["Id"]
        assert [event.action for event in events(world, "oom", "die") if event.id == id] == ["oom", "die"]
    shown = world.transom("ps", "-a", "--format", "{{.Names}} {{.Status}}").splitlines()
    assert sorted(line.split(" ")[0] for line in shown if " Exited (137) " in line) == sorted(
        f"box{number}" for number in range(15)
    )


def test_a_kill_of_another_than_the_first_process_is_told_while_the_container_runs(world):
    script = f"for n in 1 2 3; do {EAT}; done; echo on; sleep 1000"
    world.transom.detached(
        "--name", "box", "-m", "20m", "--memory-swap", "20m", command=("sh", "-c", f"trap 'exit 3' TERM; {script}")
    )
    world.transom.wait_until(lambda: world.transom.inspect("box")["State"]["OOMKilled"], seconds=30)
    world.transom.wait_until(lambda: "on" in world.transom("logs", "box"), seconds=30)
    world.transom.wait_until(lambda: len(events(world, "oom")) == 3, seconds=30)
    assert world.listed() == {"box": "running"}
    world.transom("kill", "box")
    assert world.transom.inspect("box")["State"]["OOMKilled"] is True
    assert len(events(world, "oom")) == 3
    world.transom("start", "box")
    world.transom("rm", "-f", "box")


def test_want_of_memory_before_the_process_runs_is_told(world):
    """The group around the container's has too little for the runtime itself."""
    world.transom("create", "--name", "box", "--network", "none", "busybox", "true")
    parents = [path for path, _, _ in os.walk("/sys/fs/cgroup") if os.path.basename(path) == world.groups]
    if not parents:
        pytest.skip("what is around the container's group is a slice, which systemd alone limits")
    for path in parents:
        for file in ("memory.swap.max", "memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
            if os.path.exists(f"{path}/{file}"):
                write(f"{path}/{file}", "0" if "swap" in file else str(1 << 20))
    assert world.transom.fails("start", "box").endswith(
        'out of memory before "true" ran: the memory limit is too low, raise --memory'
    )
    state = world.transom.inspect("box")["State"]
    assert (state["OOMKilled"], state["Status"]) == (True, "created")
    assert events(world, "oom")
    assert groups_of(world.transom.inspect("box")["Id"]) == []


def test_a_container_within_its_memory_is_not_killed(world):
    world.transom("run", "--name", "box", "--network", "none", "-m", "100m", "busybox", *EAT.split())
    assert world.transom.inspect("box")["State"]["OOMKilled"] is False
    assert events(world, "oom") == []


def test_a_container_gets_no_more_cpu_than_it_may(world):
    world.transom.detached("--name", "box", "--cpus", "0.2", command=("sh", "-c", "while :; do :; done"))
    pid = world.transom.inspect("box")["State"]["Pid"]
    begin, used = time.monotonic(), seconds_of_cpu(pid)
    time.sleep(2)
    share = (seconds_of_cpu(pid) - used) / (time.monotonic() - begin)
    assert 0.02 < share < 0.3


def test_a_container_makes_no_more_processes_than_it_may(world):
    script = "for n in 1 2 3 4 5 6 7 8; do sleep 1000 & done; echo all"
    done = world.transom.call("run", "--rm", "--network", "none", "--pids-limit", "5", "busybox", "sh", "-c", script)
    assert done.code != 0
    assert "fork" in done.err
    assert "all" not in done.out


def test_a_container_gets_no_more_huge_pages_than_it_may(world):
    engine = world.transom.engine()
    try:
        if LimitsCapability.HUGETLB not in engine.limits().capabilities:
            pytest.skip("no control group of this host limits huge pages")
    finally:
        engine.close()
    words = ("run", "--rm", "--network", "none", "-v", "/:/host")
    program = ("busybox", "chroot", "/host", sys.executable, "-I", "-S", "-c", HUGE)
    with huge_pages(2):
        assert world.transom(*words, *program).split() == ["one", "two"]
        done = world.transom.call(*words, "--hugetlb-limit", "2MB:2m", *program)
    assert (done.out.split(), done.code) == (["one"], 128 + signal.SIGBUS)
    assert world.transom.fails("create", "--hugetlb-limit", "2MB", "busybox", code=125).startswith(
        "--hugetlb-limit '2MB': invalid limit of huge pages"
    )
    done = world.transom.call("create", "--network", "none", "--hugetlb-limit", "3MB:3m", "busybox", "true")
    assert "hugepages has no effect: no huge pages of 3MB on this host, it has " in done.err


def test_limits_are_changed_while_a_container_runs(world):
    world.transom.detached("--name", "box", "-m", "100m", "--memory-swap", "100m")
    world.transom("exec", "box", *EAT.split())
    assert world.transom("update", "-m", "20m", "--memory-swap", "20m", "box") == "box"
    assert world.transom.call("exec", "box", *EAT.split()).code == 137
    assert world.transom.inspect("box")["HostConfig"]["Memory"] == 20 << 20
    assert world.listed() == {"box": "running"}
    world.transom("stop", "-t", "0", "box")
    world.transom("start", "box")
    assert world.transom.call("exec", "box", *EAT.split()).code == 137


def test_a_change_that_is_refused_changes_nothing(world):
    world.transom.detached("--name", "box", "-m", "64m")
    error = world.transom.fails("update", "-m", "1m", "box")
    assert "6" in error
    assert "minimum" in error.lower()
    assert world.transom.inspect("box")["HostConfig"]["Memory"] == 64 << 20


def test_a_paused_container_does_nothing_until_it_goes_on(world):
    world.transom.detached("--name", "box", command=("sh", "-c", "while :; do echo tick; sleep 0.05; done"))

    def ticks():
        return world.transom("logs", "box").count("tick")

    world.transom.wait_until(lambda: ticks() > 3)
    world.transom("pause", "box")
    assert world.listed() == {"box": "paused"}
    time.sleep(0.2)
    frozen = ticks()
    time.sleep(0.6)
    assert ticks() == frozen
    error = world.transom.fails("exec", "box", "true")
    assert "paused" in error
    world.transom("unpause", "box")
    assert world.listed() == {"box": "running"}
    world.transom.wait_until(lambda: ticks() > frozen)


@pytest.mark.parametrize("end", [("stop", "-t", "1"), ("kill",), ("rm", "-f")], ids=lambda words: words[0])
def test_a_paused_container_can_be_ended(world, end):
    world.transom.detached("--name", "box")
    world.transom("pause", "box")
    begin = time.monotonic()
    world.transom(*end, "box")
    assert time.monotonic() - begin < 5
    assert world.listed() == ({} if end[0] == "rm" else {"box": "exited"})


STRAYS = """
marker=$1
sleep $marker &
(sleep $marker & exit 0)
setsid sleep $marker &
setsid sh -c "setsid sleep $marker & exit 0" &
nohup sh -c "sleep $marker & exec sleep $marker" >/dev/null 2>&1 &
for group in $(find /groups -name cgroup.procs -path "*$(hostname)*" | sed 's/.cgroup.procs//'); do
    mkdir -p $group/own/deeper
    for file in cpuset.cpus cpuset.mems; do
        [ ! -e $group/$file ] || { cat $group/$file > $group/own/$file; cat $group/$file > $group/own/deeper/$file; }
    done
    sh -c "echo 0 > $group/own/deeper/cgroup.procs; exec sleep $marker" &
done
echo ready
exec sleep $marker
"""


@pytest.mark.parametrize("end", [("stop", "-t", "0"), ("kill",), ("rm", "-f")], ids=lambda words: words[0])
def test_nothing_is_left_though_a_container_forks_away_and_makes_groups_of_its_own(world, end):
    marker = str(random.randrange(10**8, 10**9))
    world.transom.detached(
        "--name", "box", "--privileged", "-v", "/sys/fs/cgroup:/groups", command=("sh", "-c", STRAYS, "sh", marker)
    )
    id = world.transom.inspect("box")["Id"]
    world.transom.wait_until(lambda: "ready" in world.transom("logs", "box"), seconds=30)
    world.transom.wait_until(lambda: any("/own/deeper" in path for path in groups_of(id)), seconds=30)
    assert len(sleepers(marker)) >= 6
    world.transom(*end, "box")
    assert sleepers(marker) == []
    assert groups_of(id) == []


def sleepers(marker):
    """Return the pids of processes, zombies not counted, that sleep for so long."""
    found = []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if entry.isdecimal() and file.read() == f"sleep\0{marker}\0".encode():
                    found.append(int(entry))
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            continue
    return found


def groups_of(id):
    """Return the directories of a container's groups and of those nested in them."""
    return [path for path, _, _ in os.walk("/sys/fs/cgroup") if id in path]


OPENS = """
[ -e $1 ] || mknod $1 c $2
(: < $1) && echo read
(: >> $1) && echo written
exit 0
"""


@pytest.mark.parametrize(
    ("flags", "node", "opened"),
    [
        ([], "/dev/mine", []),
        (["--device", "/dev/loop-control:/dev/mine:r"], "/dev/mine", ["read"]),
        (["--device-cgroup-rule", "c {} w"], "/dev/mine", ["written"]),
        (["--privileged"], "/dev/loop-control", ["read", "written"]),
    ],
    ids=["none", "device", "rule", "privileged"],
)
def test_a_container_opens_the_devices_that_it_may_and_no_other(world, flags, node, opened):
    try:
        number = os.stat("/dev/loop-control").st_rdev
    except FileNotFoundError:
        pytest.skip("this kernel has no loop devices")
    major, minor = os.major(number), os.minor(number)
    words = [flag.format(f"{major}:{minor}") for flag in flags]
    script = ("sh", "-c", OPENS, "sh", node, f"{major} {minor}")
    done = world.transom.call("run", "--rm", "--network", "none", *words, "busybox", *script)
    assert (done.out.split(), done.code) == (opened, 0)
    assert done.err.count("Operation not permitted") == 2 - len(opened)


def test_writes_that_are_not_limited_are_said_where_they_are_not(world):
    done = world.transom.call(
        "create", "--network", "none", "--device-write-bps", f"{block_device()}:1mb", "busybox", "true"
    )
    engine = world.transom.engine()
    try:
        limits = engine.limits()
        if LimitsCapability.IO_MAX not in limits.capabilities:
            pytest.skip("the limits driver of this host does not limit I/O")
        buffered = LimitsCapability.IO_BUFFERED in limits.capabilities
    finally:
        engine.close()
    text = "device-write limits hold for direct and synchronous I/O only: cgroup1 cannot limit buffered writes"
    assert (text in done.err) is not buffered


def block_device():
    """Return the path or numbers of some block device."""
    for name in sorted(os.listdir("/sys/block")):
        if os.path.exists(f"/dev/{name}"):
            return f"/dev/{name}"
    pytest.skip("this host has no block device")
