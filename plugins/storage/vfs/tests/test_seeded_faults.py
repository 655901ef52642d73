"""The storage suite catches faults: vfs, which is simple enough to be right, with one fault at a time.

Each fault names the case that must find it.
"""

import contextlib
import os
import shutil
import stat

import pytest

from transom.contract.storage import Mount, State, StorageCapability, Usage
from transom.errors import DriverError
from transom.services.trees import copy_tree, remove_tree
from transom_conformance.storage import StorageSuite, fresh_layers
from transom_conformance.suite import World
from transom_storage_vfs import Vfs


class Faulty(Vfs):
    """vfs, whose copies are spoiled by `spoil` where a fault says how."""

    def prepare(self, id, parents, size, idmap):
        super().prepare(id=id, parents=parents, size=size, idmap=idmap)
        if parents:
            self.spoil(self.root / id, self.root / parents[0])

    def spoil(self, copy, source):
        pass


def each(top, wanted=lambda status: True):
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            if wanted(os.lstat(path)):
                yield path


class HeedsTheUmask(Faulty):
    def prepare(self, id, parents, size, idmap):
        os.makedirs(self.root / id) if not parents else super().prepare(id, parents, size, idmap)


class ForgetsTheRoot(Faulty):
    def spoil(self, copy, source):
        os.chmod(copy, 0o755)


class ForgetsAttributes(Faulty):
    def spoil(self, copy, source):
        for path in each(copy):
            for name in os.listxattr(path, follow_symlinks=False):
                os.removexattr(path, name, follow_symlinks=False)


class ForgetsTimes(Faulty):
    def spoil(self, copy, source):
        for path in each(copy):
            os.utime(path, follow_symlinks=False)


class RoundsTimes(Faulty):
    def spoil(self, copy, source):
        for path in each(copy):
            seconds = os.lstat(path).st_mtime_ns // 10**9 * 10**9
            os.utime(path, ns=(seconds, seconds), follow_symlinks=False)


class CutsLinks(Faulty):
    def spoil(self, copy, source):
        for path in each(copy, lambda s: stat.S_ISREG(s.st_mode) and s.st_nlink > 1):
            shutil.copy2(path, path + "~")
            os.rename(path + "~", path)


class FillsHoles(Faulty):
    def spoil(self, copy, source):
        for path in each(copy, lambda s: stat.S_ISREG(s.st_mode) and s.st_size > 1 << 20):
            with open(path, "r+b") as file:
                data = file.read()
                file.seek(0)
                file.write(data)


class SharesFiles(Faulty):
    def prepare(self, id, parents, size, idmap):
        if not parents:
            return super().prepare(id, parents, size, idmap)
        return shutil.copytree(self.root / parents[0], self.root / id, copy_function=os.link, symlinks=True)


class DropsSetId(Faulty):
    def spoil(self, copy, source):
        for path in each(copy, lambda s: stat.S_ISREG(s.st_mode)):
            os.chown(path, os.stat(path).st_uid, -1)


class DropsDevices(Faulty):
    def spoil(self, copy, source):
        for path in each(copy, lambda s: stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode)):
            os.unlink(path)


class WritableViews(Faulty):
    def mounts(self, id, parents, state):
        (found,) = super().mounts(id, parents, state)
        return (Mount(type=found.type, source=found.source, readonly=state is State.COMMITTED),)


class ViewsShowTheFarthest(Faulty):
    def mounts(self, id, parents, state):
        return super().mounts(id, parents[-1:] if state is State.VIEW else parents, state)


class RefusesTheAbsent(Faulty):
    def remove(self, id):
        if not os.path.isdir(self.root / id):
            raise DriverError("remove", driver="storage vfs", subject=id, cause="no such layer")
        super().remove(id=id)


class LeavesRubbish(Faulty):
    def remove(self, id):
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.root / id, self.root / f"{id}.Removed")


class ReportsTooMuch(Faulty):
    def owned(self):
        return frozenset(os.listdir(self.root)) if self.root.exists() else frozenset()


class ReportsTooLittle(Faulty):
    def owned(self):
        return frozenset(id for id in super().owned() if os.listdir(self.root / id))


class RemovesWithABackup(Faulty):
    """Gone from `owned` before it is gone from the disk."""

    def remove(self, id):
        doomed = self.root / f"{id}.Removing"
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.root / id, doomed)
        remove_tree(doomed)


class MeasuresNothing(Faulty):
    def usage(self, id, parents):
        return Usage(size=0, inodes=0)


class NeverSyncs(Faulty):
    def commit(self, id, parents):
        pass


class ClonesByName(Faulty):
    capabilities = Vfs.capabilities | {StorageCapability.CLONE}

    def clone(self, id, source, parents):
        copy_tree(self.root / parents[0], self.root / id)


class ClaimsQuota(Faulty):
    capabilities = Vfs.capabilities | {StorageCapability.QUOTA}


class IgnoresWhatItCannot(Faulty):
    def changes(self, id, parents):
        return iter(())


class CannotBeBelowAColon(Faulty):
    def mounts(self, id, parents, state):
        (found,) = super().mounts(id, parents, state)
        return (Mount(type="bind", source=found.source.partition(":")[0], readonly=found.readonly),)


class CommitsUnderAnotherName(Faulty):
    """Whole only at the end of two steps that a crash can come between."""

    def commit(self, id, parents):
        super().commit(id=id, parents=parents)
        os.rename(self.root / id, self.root / f"{id}-new")
        os.chmod(self.root / f"{id}-new", 0o755)
        os.rename(self.root / f"{id}-new", self.root / id)


class ReusesWhatIsHalfDone(Faulty):
    """Takes the first layer found in its way: two at once get one."""

    def prepare(self, id, parents, size, idmap):
        stage = self.root / "stage"
        os.makedirs(stage, exist_ok=True)
        if parents:
            copy_tree(self.root / parents[0], stage)
        os.rename(stage, self.root / id)


class LeaksDescriptors(Faulty):
    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        os.open(self.root / id, os.O_RDONLY)


FAULTS = [
    (HeedsTheUmask, "test_an_empty_layer_is_an_empty_directory_of_root"),
    (ForgetsTheRoot, "test_a_child_begins_equal_to_its_parent"),
    (ForgetsAttributes, "test_extended_attributes_are_kept"),
    (ForgetsTimes, "test_times_are_kept_to_the_nanosecond"),
    (RoundsTimes, "test_times_are_kept_to_the_nanosecond"),
    (CutsLinks, "test_hard_links_stay_one_file"),
    (FillsHoles, "test_holes_stay_holes"),
    (SharesFiles, "test_every_way_of_writing_works_on_a_file_of_the_parent"),
    (SharesFiles, "test_writing_in_a_child_changes_neither_parent_nor_sibling"),
    (DropsSetId, "test_owner_and_mode_alone_can_change"),
    (DropsDevices, "test_devices_are_kept_with_their_numbers"),
    (WritableViews, "test_views_and_committed_layers_refuse_every_write"),
    (ViewsShowTheFarthest, "test_views_and_committed_layers_refuse_every_write"),
    (RefusesTheAbsent, "test_removing_what_is_absent_succeeds"),
    (LeavesRubbish, "test_a_parent_is_not_removable_and_names_are_reusable"),
    (ReportsTooMuch, "test_a_layer_without_a_record_is_removed_and_strangers_are_left_alone"),
    (ReportsTooLittle, "test_an_empty_layer_is_an_empty_directory_of_root"),
    (RemovesWithABackup, "test_a_removal_that_was_interrupted_is_finished"),
    (MeasuresNothing, "test_usage_counts_what_was_written"),
    (NeverSyncs, "test_what_was_committed_survives_a_power_loss"),
    (ClonesByName, "test_a_clone_is_equal_and_independent"),
    (ClaimsQuota, "test_a_quota_holds"),
    (IgnoresWhatItCannot, "test_capabilities_are_honest"),
    (CommitsUnderAnotherName, "test_killed_at_any_step_a_layer_is_absent_or_whole"),
    (ReusesWhatIsHalfDone, "test_many_threads_make_children_of_one_parent"),
    (LeaksDescriptors, "test_an_empty_layer_is_an_empty_directory_of_root"),
]


class FaultyWorld(World):
    def __init__(self, path, driver):
        super().__init__(path=path, kind="storage", driver="vfs", options={})
        self._faulty = driver

    def open(self, **options):
        state, run = self.path / "state" / "storage" / "vfs", self.path / "run" / "storage" / "vfs"
        return self._faulty(options=self._faulty.Options(), root=state, run=run)


def run_case(case, path, driver):
    """Run one case of the suite as pytest would, the census included."""
    suite, make = StorageSuite(), StorageSuite.world.__wrapped__
    StorageSuite.driver = "vfs"
    worlds = make(suite, path)
    next(worlds)
    world = FaultyWorld(path, driver)
    try:
        function = getattr(suite, case)
        if "layers" in function.__code__.co_varnames[: function.__code__.co_argcount]:
            with fresh_layers(world) as layers:
                function(layers)
        else:
            function(world)
        world.clean_up()
    finally:
        StorageSuite.driver = ""
    with contextlib.suppress(StopIteration):
        next(worlds)


@pytest.mark.parametrize(
    "case", sorted({case for _, case in FAULTS} - {"test_a_clone_is_equal_and_independent", "test_a_quota_holds"})
)
def test_without_a_fault_the_case_passes(tmp_path, case):
    run_case(case, tmp_path, Vfs)


@pytest.mark.parametrize(("fault", "case"), FAULTS, ids=[f"{fault.__name__}-{case}" for fault, case in FAULTS])
def test_the_suite_catches(tmp_path, capfd, fault, case):
    before = set(os.listdir("/proc/self/fd"))
    try:
        with pytest.raises(BaseException) as caught:
            run_case(case, tmp_path, fault)
        assert not isinstance(caught.value, (KeyboardInterrupt, pytest.skip.Exception))
    finally:
        for fd in set(os.listdir("/proc/self/fd")) - before:
            with contextlib.suppress(OSError):
                os.close(int(fd))
