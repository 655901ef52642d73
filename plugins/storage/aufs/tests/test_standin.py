"""What the driver makes, reads and unpacks in branches, in the suite, with a stand-in for aufs: for hosts without it.

Each branch of a mount is copied, aufs's marks in the copy become overlay's, and an overlay shows the copies; what was
written is put back into the branch in aufs's form when the layer is unmounted. So the suite judges what the driver
does with branches, as far as aufs's form is understood right. It is no proof for aufs itself.
"""

import os
import shutil
import stat
from pathlib import Path

import pytest

from transom.contract import Probe
from transom.contract.storage import Mount
from transom.services import mounts
from transom.services.trees import copy_attributes, copy_tree, remove_tree
from transom_conformance import plugin
from transom_conformance.returns import watched
from transom_conformance.storage.attributes import Attributes
from transom_conformance.storage.contents import Contents
from transom_conformance.storage.differences import Differences
from transom_conformance.storage.lifecycle import LifeCycle
from transom_conformance.suite import World
from transom_storage_aufs import BASE, ORPHANS, PLINKS, Aufs

with open("/proc/filesystems") as lines:
    HAVE = {line.split()[-1] for line in lines}
if "aufs" in HAVE or "overlay" not in HAVE:
    pytest.skip("aufs itself is here, or no overlay to stand in for it", allow_module_level=True)

OPAQUE = "trusted.overlay.opaque"
mount_all, unmount = mounts.mount_all, mounts.unmount


def branches_of(described):
    words = [word for mount in described for word in mount.options]
    listed = [word[3:].split(":") for word in words if word.startswith("br:")]
    listed += [[word[7:]] for word in words if word.startswith("append:")]
    return [word.rpartition("=")[0] for group in listed for word in group]


def times_of(path):
    found = os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns


def to_overlay(top):
    for directory, names, files in os.walk(top, topdown=False):
        times = times_of(directory)
        for name in files:
            path = os.path.join(directory, name)
            if name == ".wh..wh..opq":
                os.unlink(path)
                os.setxattr(directory, OPAQUE, b"y")
            elif name.startswith(".wh."):
                os.unlink(path)
                if not name.startswith(".wh..wh."):
                    os.mknod(os.path.join(directory, name[4:]), stat.S_IFCHR, 0)
        for name in names:
            if name.startswith(".wh..wh."):
                shutil.rmtree(os.path.join(directory, name))
        os.utime(directory, ns=times)


def to_aufs(top):
    for directory, _, files in os.walk(top, topdown=False):
        times = times_of(directory)
        for name in files:
            path = os.path.join(directory, name)
            found = os.lstat(path)
            if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
                os.unlink(path)
                os.mknod(os.path.join(directory, f".wh.{name}"), stat.S_IFREG | 0o444)
        if OPAQUE in os.listxattr(directory):
            os.removexattr(directory, OPAQUE)
            os.mknod(os.path.join(directory, ".wh..wh..opq"), stat.S_IFREG | 0o444)
        os.utime(directory, ns=times)


def copied(source, target):
    copy_tree(source, target)
    for directory, names, _ in os.walk(source):  # overlay's marks are not among what `copy_tree` carries
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path) and OPAQUE in os.listxattr(path):
                os.setxattr(os.path.join(target, os.path.relpath(path, source)), OPAQUE, b"y")


class StandIn:
    """What replaces `mount_all` and `unmount` of `transom.services.mounts`."""

    def __init__(self, home):
        self._home, self._shown = home, {}

    def mount_all(self, described, target):
        if not described or described[0].type != "aufs":
            mount_all(described, target)
            return
        branches, home = branches_of(described), Path(self._home) / os.urandom(8).hex()
        writable = not described[0].readonly
        if writable:  # as aufs's `au_wh_init` would
            for name in (BASE, PLINKS, ORPHANS):
                assert os.path.lexists(f"{branches[0]}/{name}"), "aufs would change the root of the branch"
        home.mkdir(parents=True)
        mount_all([Mount(type="tmpfs", source="tmpfs")], str(home))
        for n, branch in enumerate(branches):
            copied(branch, home / str(n))
            to_overlay(home / str(n))
        (home / "work").mkdir()
        (home / "none").mkdir()
        lowers = [home / str(n) for n in range(1 if writable else 0, len(branches))]
        options = [f"lowerdir+={lower}" for lower in (*lowers, home / "none")]  # overlay asks for more than one
        if writable:
            options += [f"upperdir={home}/0", f"workdir={home}/work"]
        options += ["index=off", "metacopy=off", "redirect_dir=off"]
        mount_all([Mount(type="overlay", source="overlay", options=tuple(options), readonly=not writable)], target)
        self._shown[target] = (home, branches if writable else [])

    def unmount(self, target, *, detach=True):
        home, branches = self._shown.pop(target, (None, []))
        done = unmount(target, detach=detach)
        if home is None:
            return done
        if branches:
            self._put_back(home / "0", *branches)
        unmount(str(home))
        home.rmdir()
        return done

    def _put_back(self, upper, branch, *lowers):
        to_aufs(upper)
        for directory, names, _ in os.walk(upper):
            # aufs does not keep the time of a directory in which it copies something up. What overlay copies up when it
            # is merely opened aufs does not, so only directories tell.
            path = os.path.relpath(directory, upper)
            inner = [os.path.join(lower, path, name) for lower in lowers for name in names]
            if any(map(os.path.isdir, inner)) and not os.path.exists(os.path.join(branch, path)):
                os.utime(directory)
        for name in os.listdir(branch):
            if name not in (BASE, PLINKS, ORPHANS):
                remove_tree(os.path.join(branch, name))
        copied(upper, branch)
        copy_attributes(str(upper), branch)


class Stood(Aufs):
    """The driver, as on a kernel that has all."""

    _found = frozenset({"attributes"})

    def probe(self):
        return Probe(usable=True)


class StandInWorld(World):
    def open(self, **_options):
        driver = Stood(options=Stood.Options(), root=self.path / "state" / "storage" / "aufs", run=self.path / "run")
        return watched(driver)


class TestAufsStandIn(Attributes, Differences, Contents, LifeCycle):
    driver = "aufs"
    known_failures = dict.fromkeys(
        (
            "test_any_name_that_a_file_can_have_is_kept",
            "test_names_that_mean_deletion_in_a_tar_are_plain_names_in_a_layer",
        ),
        "the stand-in takes names that aufs refuses",
    ) | {
        "test_the_diff_of_a_layer_that_is_written_meanwhile_is_consistent_or_refused": "the stand-in fills the branch"
        " when the layer is unmounted, aufs at once"
    }

    @pytest.fixture
    def world(self, tmp_path, monkeypatch, tmp_path_factory):
        stand_in = StandIn(tmp_path_factory.mktemp("branches"))
        monkeypatch.setattr(mounts, "mount_all", stand_in.mount_all)
        monkeypatch.setattr(mounts, "unmount", stand_in.unmount)
        world = StandInWorld(path=tmp_path, kind="storage", driver="aufs", options={})
        yield world
        world.clean_up()


plugin._drivers[TestAufsStandIn] = Stood(options=Stood.Options(), root=Path("/nowhere"), run=Path("/nowhere"))
