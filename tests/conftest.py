"""The command over roots of its own, as the engine's tests have it, and a census of what it could leave behind."""

import glob
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from transom.contract.network import Network


def _load(path, name):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


_runner = _load(Path(__file__).resolve().parent.parent / "engine" / "tests" / "conftest.py", "transom_test_runner")
_load(Path(__file__).with_name("distributions.py"), "distributions")  # for the tests that import it
busybox_tree, _images = _runner.busybox_tree, _runner._images
empty_transom, transom = _runner.empty_transom, _runner.transom


@pytest.fixture(autouse=True)
def _needs_root(request):
    if os.geteuid() != 0 and "empty_transom" in request.fixturenames:
        pytest.skip("not root: containers need namespaces, mounts and interfaces")


class World:
    """A command whose control groups have a parent of their own, so that everything of it can be counted."""

    def __init__(self, transom, directory):
        self.transom = transom
        self.groups = f"transomtest{os.urandom(6).hex()}"  # no dash: a slice is below those that its name has
        self.config = directory / "daemon.json"
        parents = {"cgroup1": {"parent": self.groups}, "cgroup2": {"parent": self.groups}}
        options = {"limits": {**parents, "systemd": {"slice": f"{self.groups}.slice"}}}
        self.config.write_text(json.dumps({"transom": {"driver-opts": options}}))
        transom.env["TRANSOM_CONFIG"] = str(self.config)

    def census(self):
        """Describe everything on this host that belongs to this world and is not a record."""
        found = {f"process {pid} {words}" for pid, words in self.processes().items()}
        found |= {f"group {path}" for path in self._groups() if not os.path.basename(path).startswith(self.groups)}
        roots = (str(self.transom.data), str(self.transom.run))
        with open("/proc/self/mountinfo") as mounts:
            found |= {f"mount {line.split()[4]}" for line in mounts if any(root in line for root in roots)}
        for directory in (f"{roots[1]}/transom/containers", f"{roots[0]}/transom/containers"):
            found |= {f"directory {path}" for path in glob.glob(f"{directory}/*")}
        # What looks the same before and after is told by its kind: names carry random ids.
        found |= {f"interface {line.split()[1]}" for line in self.inside("ip", "-o", "link").splitlines()}
        found |= {f"rule {line.strip()}" for line in self._rules().splitlines() if "endpoint" in line}
        return found | self._kept()

    def _rules(self):
        try:
            return self.inside("nft", "list", "ruleset")
        except subprocess.CalledProcessError:
            return ""  # a kernel without nftables has no rules

    def _kept(self):
        engine = self.transom.engine()
        try:
            found = set()
            for record in engine.state.all("network", _record()):
                leases = engine.addresses.ipam.leases(Network(id=record.id, name=record.name))
                found |= {f"lease {address} of {who}" for address, who in leases.items() if not who.startswith("@")}
            ids = {container.id for container in engine.state.containers()}
            for driver in os.listdir(f"{engine.state_dir}/storage"):
                if not driver.endswith(".layers"):
                    keys = {layer.key for layer in engine.snapshots(driver).walk()} - ids
                    images = {key for key in keys if key.startswith(("sha256:", "init-")) and "." not in key}
                    found |= {f"layer {driver} {key}" for key in keys - images}
            return found
        finally:
            engine.close()

    def processes(self):
        """Return the command lines of this world's living processes by pid: commands, supervisors, containers."""
        found = {}
        inside = set()
        for path in self._groups():
            with open(f"{path}/cgroup.procs") as file:
                inside |= {*file.read().split()}
        mark = f"TRANSOM_DATA_ROOT={self.transom.data}\0".encode()
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as environ, open(f"/proc/{pid}/cmdline", "rb") as cmdline:
                    if (pid in inside or mark in environ.read() + b"\0") and not _zombie(pid):
                        found[int(pid)] = cmdline.read().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue  # it has just ended
        return found

    def _groups(self):
        tops = glob.glob(f"/sys/fs/cgroup/*/{self.groups}") + glob.glob(f"/sys/fs/cgroup/{self.groups}*")
        return [root for top in tops for root, _, _ in os.walk(top)]

    def inside(self, *words):
        """Run a program in the world's network namespace and return what it prints."""
        return subprocess.run(words, preexec_fn=self.transom.enter, capture_output=True, text=True, check=True).stdout

    def listed(self):
        """Return the containers of ``ps -a`` by name, and check that they are what the kernel has."""
        listed = {}
        text = self.transom("ps", "-a", "--no-trunc", "--format", "{{.Names}} {{.State}} {{.ID}}")
        for line in text.splitlines():
            name, state, id = line.split()
            listed[name] = state
            found = self.transom.call("inspect", id)
            if found.code:
                continue  # it ended meanwhile, with --rm
            shown = json.loads(found.out)[0]["State"]
            running = shown["Status"] == state and state in ("running", "paused")
            if running and not alive(shown["Pid"]):
                time.sleep(1)  # it ended just now: its supervisor is clearing it away
                found = json.loads(self.transom.call("inspect", id).out or "[]")
                shown = found[0]["State"] if found else {"Pid": 0}
                assert shown["Pid"] == 0, f"{name} is shown running and its process {shown['Pid']} is gone"
                return self.listed()
            if shown["Status"] == state and not running:
                assert shown["Pid"] == 0, f"{name} is {state} and has pid {shown['Pid']}"
        return listed

    def repair(self):
        """Have ``doctor`` put right what a crash left, and check that it finds nothing more."""
        self.transom("doctor", "--repair")
        done = self.transom.call("doctor")
        assert done.code == 0, f"doctor still finds something after --repair: {done.out}{done.err}"

    def clear(self):
        """Remove every container; return what is still there that a new world has not."""
        names = self.transom("ps", "-aq").split()
        if names:
            self.transom("rm", "-f", "-v", *names)
        deadline = time.monotonic() + 30
        while (left := self.census() - self.fresh) and time.monotonic() < deadline:
            time.sleep(0.05)  # the kernel takes interfaces and groups away a moment after their last process
        return left

    def kill(self):
        """End every process of this world, for the end of a test that failed."""
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def alive(pid):
    """Say whether the process exists and is no zombie."""
    return pid > 0 and os.path.exists(f"/proc/{pid}") and not _zombie(pid)


def _zombie(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def _record():
    from transom_engine.networks.model import NetworkRecord

    return NetworkRecord


@pytest.fixture
def world(transom, tmp_path, request):
    """A world with the image ``busybox`` and the default network, where nothing may be left behind at the end.

    A module of tests that need no network says so by ``NETWORK = "none"``: its kernel may have no nftables.
    """
    world = World(transom, tmp_path)
    try:
        transom("run", "--rm", "--network", getattr(request.module, "NETWORK", "bridge"), "busybox", "true")
        world.fresh = world.census()
        yield world
        assert world.clear() == set()
    finally:
        world.kill()
        for path in reversed(world._groups()):
            try:
                os.rmdir(path)
            except OSError:
                continue
