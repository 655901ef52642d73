"""What only the driver systemd does. Most of it needs a host that systemd manages: see make test-vm."""

import os
import subprocess
import sys
import time
import uuid

import pytest

from transom.contract.limits import Resources, Throttle
from transom.drivers import Drivers
from transom.errors import ConfigError, DriverError
from transom_limits_systemd import Options, Systemd, _id_of, _manager, _unit
from transom_limits_systemd._properties import of_group

MANAGED = os.path.exists("/run/systemd/private")
managed = pytest.mark.skipif(not MANAGED, reason="systemd does not manage this host")
INFINITY = (1 << 64) - 1
_NAMES = [
    "dbus-send",
    "--system",
    "--print-reply",
    "--dest=org.freedesktop.DBus",
    "/",
    "org.freedesktop.DBus.ListNames",
]


@pytest.fixture
def driver(tmp_path):
    return Systemd(options=Options(), root=tmp_path / "root", run=tmp_path / "run")


@pytest.fixture
def group(driver):
    """The id of a group that is removed at the end."""
    id = f"test-{uuid.uuid4().hex}"
    yield id
    driver.kill(id=id)
    driver.remove(id=id)
    assert shown(id, "LoadState") == "not-found"


def shown(id, name):
    words = ["systemctl", "show", "--value", "--property", name, _unit(id)]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def value(driver, id, file):
    with open(f"{driver._path(id)}/{file}") as control:
        return control.read().strip()


@pytest.mark.skipif(MANAGED, reason="systemd manages this host")
def test_a_host_without_systemd_is_told_so(driver):
    assert driver.probe().reason == (
        "systemd does not manage this host (no /run/systemd/system): use the limits driver cgroup2 or cgroup1"
    )


@pytest.mark.parametrize("slice", ["", "web", "web/front.slice", "-web.slice", "web-.slice", "a b.slice"])
def test_what_is_no_slice_is_refused(slice, tmp_path):
    with pytest.raises(ConfigError) as caught:
        Drivers(state=tmp_path, run=tmp_path).open("limits", "systemd", {"slice": slice})
    assert f"slice={slice!r} is not the name of a slice, such as system.slice or web-front.slice" in str(caught.value)


@pytest.mark.parametrize(
    ("slice", "parent"),
    [
        ("system.slice", "system.slice/"),
        ("web-front-a.slice", "web.slice/web-front.slice/web-front-a.slice/"),
        ("-.slice", ""),
    ],
)
def test_a_slice_is_below_those_that_its_name_has(driver, slice, parent):
    driver.options = Options(slice=slice)
    assert driver._path("x") == f"{driver.unified.point}/{parent}transom-x.scope"


@pytest.mark.parametrize(
    ("id", "unit"), [("a-1_b", "transom-a-1_b.scope"), ("a @é", r"transom-a\x20\x40\xc3\xa9.scope")]
)
def test_an_id_becomes_a_units_name_and_back(id, unit):
    assert _unit(id) == unit
    assert _id_of(unit) == id


def test_control_files_are_put_as_properties(tmp_path):
    files = {
        "memory.max": "67108864",
        "memory.swap.max": "max",
        "memory.low": "0",
        "cpu.weight": "39",
        "cpu.max": "50000 100000",
        "cpuset.cpus": "0-2,9",
        "pids.max": "21",
        "io.max": "254:77 rbps=1048576 wbps=max riops=max wiops=20",
        "io.weight": "default 100\n254:77 200",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert of_group(str(tmp_path)) == [
        ("MemoryMax", ("t", 67108864)),
        ("MemorySwapMax", ("t", INFINITY)),
        ("MemoryLow", ("t", 0)),
        ("CPUWeight", ("t", 39)),
        ("CPUQuotaPerSecUSec", ("t", 500_000)),
        ("CPUQuotaPeriodUSec", ("t", 100_000)),
        ("AllowedCPUs", ("ay", b"\x07\x02")),
        ("TasksMax", ("t", 21)),
        *[(name, ("a(st)", [])) for name in ("IOReadBandwidthMax", "IOWriteBandwidthMax")],
        *[(name, ("a(st)", [])) for name in ("IOReadIOPSMax", "IOWriteIOPSMax")],
        ("IOReadBandwidthMax", ("a(st)", [("/dev/block/254:77", 1048576)])),
        ("IOWriteIOPSMax", ("a(st)", [("/dev/block/254:77", 20)])),
        ("IOWeight", ("t", 100)),
        ("IODeviceWeight", ("a(st)", [])),
        ("IODeviceWeight", ("a(st)", [("/dev/block/254:77", 200)])),
    ]


@pytest.mark.parametrize(("weight", "told"), [(10, 10), (100, 100), (500, 4500), (1000, 10000)])
def test_a_weight_of_bfq_is_told_as_what_systemd_turns_into_it(tmp_path, weight, told):
    (tmp_path / "io.bfq.weight").write_text(f"default {weight}")
    assert of_group(str(tmp_path)) == [("IOWeight", ("t", told))]


@managed
def test_a_container_is_a_delegated_unit_of_its_slice(driver, group):
    driver.create(id=group, resources=Resources(memory=64 << 20, memory_swap=64 << 20, cpu_shares=2048, pids=20))
    assert shown(group, "ActiveState") == "active"
    assert shown(group, "Delegate") == "yes"
    assert shown(group, "Slice") == "system.slice"
    assert shown(group, "Description") == f"Transom container {group}"
    assert (shown(group, "MemoryMax"), shown(group, "MemorySwapMax")) == (str(64 << 20), "0")
    assert (shown(group, "CPUWeight"), shown(group, "TasksMax")) == ("79", "21")
    assert driver.stats(id=group).pids_limit == 20


@managed
def test_limits_survive_a_reload_of_systemd(driver, group):
    disk = os.stat(os.environ.get("TMPDIR", "/tmp")).st_dev
    rate = (Throttle(f"{os.major(disk)}:{os.minor(disk)}", 1 << 20),) if os.major(disk) else ()
    driver.create(id=group, resources=Resources())
    driver.update(id=group, resources=Resources(memory=64 << 20, cpu_period=50_000, cpu_quota=20_000, pids=30))
    driver.update(id=group, resources=Resources(cpu_shares=512, device_write_bps=rate))
    files = ("memory.max", "memory.low", "cpu.max", "cpu.weight", "pids.max", "io.max")
    before = {file: value(driver, group, file) for file in files}
    assert before["cpu.max"] == "20000 50000"
    subprocess.run(["systemctl", "daemon-reload"], check=True)
    subprocess.run(["systemctl", "set-property", "--runtime", _unit(group), "CPUWeight=77"], check=True)
    assert {file: value(driver, group, file) for file in files} == {**before, "cpu.weight": "77"}


@managed
def test_limits_survive_a_new_start_of_systemd_and_can_be_changed_after_it(driver, group):
    driver.create(id=group, resources=Resources(memory=64 << 20, cpu_period=50_000, cpu_quota=20_000, pids=30))
    files = ("memory.max", "cpu.max", "pids.max")
    before = [value(driver, group, file) for file in files]
    subprocess.run(["systemctl", "daemon-reexec"], check=True)
    driver.update(id=group, resources=Resources(cpu_shares=512))
    assert [value(driver, group, file) for file in files] == before
    assert (shown(group, "ActiveState"), shown(group, "CPUWeight"), shown(group, "TasksMax")) == ("active", "20", "31")


@managed
def test_systemd_is_reached_over_the_system_bus_where_its_own_socket_is_not_there(driver, group, monkeypatch):
    words = ["systemctl", "start", "--job-mode=ignore-dependencies", "dbus.socket", "dbus.service"]
    subprocess.run(words, check=True, timeout=60)
    try:
        deadline = time.monotonic() + 60
        while b"org.freedesktop.systemd1" not in subprocess.run(_NAMES, capture_output=True, check=False).stdout:
            assert time.monotonic() < deadline, "systemd did not come to the bus"
            time.sleep(0.05)
        monkeypatch.setattr(_manager, "SOCKET", "/nonexistent")
        assert driver.probe().usable
        driver.create(id=group, resources=Resources(memory=64 << 20, pids=20))
        driver.update(id=group, resources=Resources(cpu_shares=512))
        assert (shown(group, "MemoryMax"), shown(group, "CPUWeight")) == (str(64 << 20), "20")
        driver.remove(id=group)
        assert shown(group, "LoadState") == "not-found"
    finally:
        subprocess.run(["systemctl", "stop", "dbus.socket", "dbus.service"], check=True, timeout=60)
    monkeypatch.setattr(_manager, "BUS", "/nonexistent")
    assert driver.probe().reason == (
        "neither /run/systemd/private nor /run/dbus/system_bus_socket can be written: "
        "run as root, in the host's mount namespace"
    )


@managed
def test_stopping_the_unit_ends_the_container(driver, group):
    join = driver.create(id=group, resources=Resources())
    words = ["sh", "-c", f"echo 0 > {join[0]} && echo in && exec sleep 600"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as program:
        assert program.stdout.readline() == b"in\n"
        assert driver.processes(id=group) == (program.pid,)
        subprocess.run(["systemctl", "stop", _unit(group)], check=True)
        assert program.wait(30) == -15
    assert driver.processes(id=group) == ()
    assert group not in driver.owned()


@managed
def test_a_group_is_made_from_inside_another_pid_namespace(driver, group):
    code = (
        "import sys; from pathlib import Path; from transom.contract.limits import Resources\n"
        "from transom_limits_systemd import Options, Systemd\n"
        "run = Path(sys.argv[2])\n"
        "Systemd(options=Options(), root=run, run=run).create(id=sys.argv[1], resources=Resources(pids=9))\n"
        "print('made', flush=True); sys.stdin.readline()\n"
    )
    words = ["unshare", "--pid", "--fork", sys.executable, "-c", code, group, str(driver.run)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == "made\n"
        assert driver.stats(id=group).pids_limit == 9
        assert driver.processes(id=group) == ()
        program.stdin.write("\n")
        program.stdin.flush()
    # Its keeper went with the namespace, and systemd takes away what has no process.


@managed
def test_what_systemd_refuses_is_said_and_leaves_nothing(tmp_path, group):
    slice = f"refused{uuid.uuid4().hex}.slice"
    subprocess.run(["systemctl", "mask", "--runtime", slice], check=True, capture_output=True)
    try:
        refused = Systemd(options=Options(slice=slice), root=tmp_path / "r", run=tmp_path / "s")
        with pytest.raises(DriverError) as caught:
            refused.create(id=group, resources=Resources())
        assert str(caught.value) == f"limits systemd: create {group} failed: systemd: Unit {slice} is masked."
        assert refused.owned() == set()
    finally:
        subprocess.run(["systemctl", "unmask", "--runtime", slice], check=True, capture_output=True)
