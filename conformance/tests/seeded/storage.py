"""Storage drivers with one fault each, and the case that must find it."""

import os
import shutil
import stat
import subprocess
import threading
import time

from seeded.found import found_by
from transom.contract import Probe
from transom.contract.storage import Mount, State, StorageCapability, Usage
from transom.errors import DriverError
from transom.services import mounts
from transom.services.trees import copy_tree
from transom_storage_vfs import Vfs

CORRECT = (Vfs,)


class Spoiled(Vfs):
    """Spoils the copy of the parent."""

    def prepare(self, id, parents, size, idmap):
        super().prepare(id=id, parents=parents, size=size, idmap=idmap)
        if parents:
            self.spoil(self.root / id)

    def spoil(self, copy):
        for directory, names, files in os.walk(copy):
            for name in (*names, *files):
                path = os.path.join(directory, name)
                self.spoil_entry(path, os.lstat(path))

    def spoil_entry(self, path, status):
        pass


@found_by("test_an_empty_layer_is_an_empty_directory_of_root")
class HeedsTheUmask(Vfs):
    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        if not parents:
            os.rmdir(self.root / id)
            os.mkdir(self.root / id)


@found_by("test_a_child_begins_equal_to_its_parent")
class ForgetsTheModeOfTheRoot(Spoiled):
    def spoil(self, copy):
        os.chmod(copy, 0o755)


@found_by("test_a_child_begins_equal_to_its_parent")
class BeginsEmpty(Spoiled):
    def spoil(self, copy):
        for name in os.listdir(copy):
            path = copy / name
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


@found_by("test_extended_attributes_are_kept")
class LosesAttributes(Spoiled):
    def spoil_entry(self, path, status):
        for name in os.listxattr(path, follow_symlinks=False):
            os.removexattr(path, name, follow_symlinks=False)


@found_by("test_times_are_kept_to_the_nanosecond")
class RoundsTheTimesOfFiles(Spoiled):
    def spoil_entry(self, path, status):
        seconds = status.st_mtime_ns // 10**9 * 10**9
        os.utime(path, ns=(seconds, seconds), follow_symlinks=False)


@found_by("test_hard_links_stay_one_file")
class CutsHardLinks(Spoiled):
    def spoil_entry(self, path, status):
        if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
            shutil.copy2(path, f"{path}~")
            os.rename(f"{path}~", path)


@found_by("test_holes_stay_holes")
class FillsHoles(Spoiled):
    def spoil_entry(self, path, status):
        if stat.S_ISREG(status.st_mode) and status.st_size > 1 << 20:
            with open(path, "r+b") as file:
                data = file.read()
                file.seek(0)
                file.write(data)


@found_by("test_devices_are_kept_with_their_numbers")
class LosesDevices(Spoiled):
    def spoil_entry(self, path, status):
        if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            os.unlink(path)


@found_by("test_writing_in_a_child_changes_neither_parent_nor_sibling")
class SharesFilesWithTheParent(Vfs):
    def prepare(self, id, parents, size, idmap):
        if not parents:
            return super().prepare(id, parents, size, idmap)
        return shutil.copytree(self.root / parents[0], self.root / id, copy_function=os.link, symlinks=True)


@found_by("test_views_and_committed_layers_refuse_every_write")
class LetsViewsBeWritten(Vfs):
    def mounts(self, id, parents, state):
        (found,) = super().mounts(id, parents, state)
        return (Mount(type=found.type, source=found.source, readonly=state is State.COMMITTED),)


@found_by("test_views_and_committed_layers_refuse_every_write")
class LetsTheCommittedBeWritten(Vfs):
    def mounts(self, id, parents, state):
        (found,) = super().mounts(id, parents, state)
        return (Mount(type=found.type, source=found.source, readonly=state is State.VIEW),)


@found_by("test_removing_what_is_absent_succeeds")
class RefusesToRemoveTheAbsent(Vfs):
    def remove(self, id):
        if id not in self.owned():
            raise DriverError("remove", driver="storage", subject=id, cause="no such layer")
        super().remove(id)


@found_by("test_a_parent_is_not_removable_and_names_are_reusable")
class ForgetsToRemove(Vfs):
    def remove(self, id):
        if (self.root / id).exists():
            os.rename(self.root / id, self.root / f"{id}.Forgotten")


@found_by("test_a_layer_without_a_record_is_removed_and_strangers_are_left_alone")
class OwnsEverything(Vfs):
    def owned(self):
        return frozenset(os.listdir(self.root)) if self.root.exists() else frozenset()


@found_by("test_a_layer_without_a_record_is_removed_and_strangers_are_left_alone")
class OwnsNothing(Vfs):
    def owned(self):
        return frozenset()


@found_by("test_usage_counts_what_was_written")
class MeasuresNothing(Vfs):
    def usage(self, id, parents):
        return Usage(size=0, inodes=0)


@found_by("test_what_was_committed_survives_a_power_loss")
class CommitsWithoutSyncing(Vfs):
    def commit(self, id, parents):
        pass


@found_by("test_killed_at_any_step_a_layer_is_absent_or_whole")
class LeavesItsStage(Vfs):
    def prepare(self, id, parents, size, idmap):
        os.makedirs(self.root / "Stage", exist_ok=True)
        if parents:
            copy_tree(self.root / parents[0], self.root / "Stage")
        os.rename(self.root / "Stage", self.root / id)


@found_by("test_a_driver_tells_failures_in_words")
class LetsSystemErrorsThrough(Vfs):
    def _failed(self, operation, id, error):
        return error


@found_by("test_a_quota_holds")
class ClaimsQuota(Vfs):
    capabilities = Vfs.capabilities | {StorageCapability.QUOTA}


@found_by("test_capabilities_are_honest")
class AnswersWhatItDoesNotClaim(Vfs):
    def changes(self, id, parents):
        return iter(())


@found_by("test_the_probe_answers_and_changes_nothing")
class MakesItsRootToProbe(Vfs):
    def probe(self):
        self.root.mkdir(parents=True)
        return Probe(usable=True)


@found_by("test_status_and_errors_are_texts")
class HasNumbersAsStatus(Vfs):
    def status(self):
        return {"Layers": 7}


@found_by("test_an_empty_layer_is_an_empty_directory_of_root")
class LeaksADescriptor(Vfs):
    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        os.open(self.root / id, os.O_RDONLY)


@found_by("test_an_empty_layer_is_an_empty_directory_of_root")
class LeaksAThread(Vfs):
    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()


@found_by("test_an_empty_layer_is_an_empty_directory_of_root")
class LeaksAProcess(Vfs):
    children = []

    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        self.children.append(subprocess.Popen(["sleep", "5"]))


@found_by("test_an_empty_layer_is_an_empty_directory_of_root")
class LeaksAMount(Vfs):
    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        place = self.root.parent / "leak"
        place.mkdir(exist_ok=True)
        mounts.mount("tmpfs", str(place), "tmpfs")
