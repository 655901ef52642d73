"""What is left of a container's output: supervisor killed, disk full, sink dead, container ended at once."""

import os
import re
import shutil
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

COUNT = int(os.environ.get("TRANSOM_TEST_CONTAINERS", "12"))
SINK = Path(__file__).resolve().parent.parent / "engine" / "tests" / "cli"


def numbers(text):
    return [int(line) for line in text.split()]


def supervisor(transom, name):
    engine = transom.engine()
    try:
        return engine.containers.get(name).shim_pid
    finally:
        engine.close()


def status(transom, name):
    (one,) = [one for one in transom.inspect(name)["LogStatus"] if "cache" not in one["Driver"]]
    return one


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_a_killed_supervisor_leaves_every_line_it_had_written(world, driver):
    """Case K56."""
    transom = world.transom
    script = "i=0; while :; do i=$((i+1)); echo $i; done"
    for _ in range(2):
        name = transom.detached("--log-driver", driver, command=("sh", "-c", script))
        path = Path(transom.inspect(name)["LogPath"])
        transom.wait_until(lambda path=path: path.stat().st_size > 300_000, seconds=60)
        os.kill(supervisor(transom, name), signal.SIGKILL)
        transom.wait_until(lambda name=name: transom.inspect(name)["State"]["Status"] == "exited", seconds=60)
        done = transom.call("logs", name)
        assert done.err == "", "nothing in the file is damaged"
        found = numbers(done.out)
        assert len(found) > 2000
        assert found == list(range(1, len(found) + 1))
        transom("rm", name)


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_a_full_disk_costs_lines_and_not_the_container(world, driver, tmp_path):
    """Case K57: the container goes on, no record is torn, what is missing is counted and marked."""
    transom = world.transom
    script = "seq 1 60000; read x; echo end"
    words = ("--network", "none", "-i", "--log-driver", driver, "--log-opt", "max-size=-1")
    name = transom("create", *words, "busybox", "sh", "-c", script)
    place = transom.data / "transom/containers" / name
    kept = tmp_path / "kept"
    shutil.copytree(place, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(place)], check=True)
    try:
        shutil.copytree(kept, place, dirs_exist_ok=True)
        transom("start", name)
        transom.wait_until(lambda: status(transom, name)["Taken"] == 60_000, seconds=60)
        transom.wait_until(lambda: status(transom, name)["Pending"] == 0, seconds=60)
        full = status(transom, name)
        assert full["Dropped"] > 1000
        subprocess.run(["mount", "-o", "remount,size=8m", str(place)], check=True)
        transom.call("attach", name, input=b"go\n")
        assert transom("wait", name) == "0"
        last = status(transom, name)
        assert (last["Taken"], last["Taken"]) == (60_001, last["Delivered"] + last["Dropped"])
        done = transom.call("logs", name)
        *kept_lines, end = done.out.split()
        assert end == "end"
        found = [int(line) for line in kept_lines]
        assert len(found) + 1 == last["Delivered"]
        assert found == sorted(set(found))
        # More than one where a smaller batch found room behind one that did not.
        gaps = [
            re.match(r"transom: (\d+) lines are missing here, .*No space left", line) for line in done.err.splitlines()
        ]
        assert sum(int(gap[1]) for gap in gaps) == last["Dropped"]
    finally:
        transom("rm", "-f", name)
        subprocess.run(["umount", "-l", str(place)], check=False)
        shutil.rmtree(place, ignore_errors=True)


def test_a_full_disk_stops_the_container_where_its_options_say_so(world, tmp_path):
    """Case K57, the other half: it is stopped as by a user, in spite of its restart policy, and says why."""
    transom = world.transom
    flags = ("--network", "none", "--restart", "always", "--log-opt", "max-size=-1", "--log-opt", "on-error=stop")
    script = "trap 'exit 3' TERM; seq 1 60000; while :; do sleep 0.1; done"
    name = transom("create", *flags, "busybox", "sh", "-c", script)
    place = transom.data / "transom/containers" / name
    kept = tmp_path / "kept"
    shutil.copytree(place, kept)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(place)], check=True)
    try:
        shutil.copytree(kept, place, dirs_exist_ok=True)
        transom("start", name)
        assert transom("wait", name) == "3"
        state = transom.inspect(name)["State"]
        assert state["Status"] == "exited"
        assert state["Error"].startswith(
            "stopped, for the log driver json-file refused its output: logging json-file: "
        )
        assert "No space left on device" in state["Error"]
        found = numbers(transom.call("logs", name).out)
        assert found == sorted(set(found))
    finally:
        transom("rm", "-f", name)
        subprocess.run(["umount", "-l", str(place)], check=False)
        shutil.rmtree(place, ignore_errors=True)


def test_containers_that_write_and_end_at_once_lose_nothing(world):
    """Case L43, which asks for five hundred: TRANSOM_TEST_CONTAINERS says how many, a dozen by default."""
    transom = world.transom

    def run(number):
        flags = ("--network", "none", "--name", f"c{number}")
        done = transom.call("run", *flags, "busybox", "sh", "-c", f"seq 1 50; printf {number}")
        assert (done.code, done.out.split()[-1]) == (0, str(number))
        shown = transom("logs", f"c{number}")
        transom("rm", f"c{number}")
        return shown.split()

    with ThreadPoolExecutor(4) as pool:
        for number, shown in enumerate(pool.map(run, range(COUNT))):
            assert shown == [str(n) for n in (*range(1, 51), number)]


@pytest.mark.parametrize("mode", ["blocking", "non-blocking"])
def test_a_dead_sink_costs_a_supervisor_bounded_memory(world, tmp_path, mode):
    """Cases W36, W37 and W39."""
    transom = world.transom
    info = tmp_path / "installed" / "transom_logging_sink-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transom-logging-sink\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[transom.logging]\nsink = sink_driver:Sink\n")
    transom.env["PYTHONPATH"] = f"{SINK}:{info.parent}"
    flags = ("--log-driver", "sink", "--log-opt", "sink-does=stick", "--log-opt", f"mode={mode}")
    flags += ("--log-opt", "cache-disabled=true")
    script = "yes 0123456789012345678901234567890123456789 | head -n 5000000; exec sleep 1000"
    name = transom.detached(*flags, command=("sh", "-c", script))
    pid = supervisor(transom, name)

    def peak():
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) // 1024

    if mode == "blocking":
        taken = -1
        while taken != (taken := status(transom, name)["Taken"]) or not taken:
            transom("exec", name, "sleep", "0.5")
        assert taken < 5_000_000, "the container waits"
        assert status(transom, name)["Dropped"] == 0
    else:
        transom.wait_until(lambda: status(transom, name)["Taken"] == 5_000_000, seconds=120)
        assert status(transom, name)["Dropped"] > 4_000_000
    assert peak() < 100, "MB at the highest"
    transom("rm", "-f", name)


def test_both_streams_keep_their_order_where_they_are_written_apart(world):
    """Stdout and stderr have one reader: what is written in turn, with a pause, is read in turn."""
    script = "i=0; while [ $i -lt 40 ]; do echo o$i; usleep 20000; echo e$i >&2; usleep 20000; i=$((i+1)); done"
    name = world.transom.detached(command=("sh", "-c", script))
    world.transom("wait", name)
    shown = world.transom.call("logs", name, stderr=subprocess.STDOUT).out.split()
    moved = sum(a != b for a, b in zip(shown, [f"{s}{i}" for i in range(40) for s in "oe"], strict=True))
    assert moved <= 4, "a busy machine may keep the reader away for as long as a pause, now and then"
