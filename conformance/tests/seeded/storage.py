"""Storage drivers with one fault each, and the case that must find it."""

import io
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import tarfile
import threading
import time

import msgspec

from seeded.found import found_by
from transom.contract import Probe
from transom.contract.storage import ChangeKind, Mount, State, StorageCapability, Usage
from transom.errors import ConfigError, DriverError
from transom.services import mounts
from transom.services.archive import extract
from transom.services.differ import compare
from transom.services.trees import copy_tree, remove_tree
from transom_storage_vfs import Vfs


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


@found_by("test_a_layer_that_will_be_unmounted_stays_as_it_is")
class TidiesUpBeforeUnmounting(Vfs):
    def unmounting(self, id, place):
        (self.root / id / "d" / "b").unlink(missing_ok=True)


@found_by("test_any_name_that_a_file_can_have_is_kept")
class SaysThatNamesAreShorter(Vfs):
    name_max = 200


@found_by("test_names_that_mean_deletion_in_a_tar_are_plain_names_in_a_layer")
class SaysThatNamesAreItsOwn(Vfs):
    reserved_prefix = ".wh."


@found_by("test_extended_attributes_are_kept")
class SaysThatItKeepsNone(Vfs):
    keeps_attributes = False


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


class WritesRecords(Vfs):
    """Writes into core's records, which are beside its root."""

    def close(self):
        path = f"{self.root}.layers/layers.db"
        if os.path.exists(path):
            db = sqlite3.connect(path, timeout=30, isolation_level=None)
            db.execute(f"UPDATE layer SET {self.what}")
            db.close()


@found_by("test_labels_are_kept_and_can_be_changed")
class ForgetsLabelsAtRestart(WritesRecords):
    what = "labels = '{}'"


@found_by("test_nothing_of_a_record_but_its_labels_can_be_changed")
class ChangesALabelAtRestart(WritesRecords):
    what = "labels = json_replace(labels, '$.n', '0')"


@found_by("test_labels_that_a_kill_interrupts_are_the_old_or_the_new")
class LosesOneOfTheLabels(WritesRecords):
    what = "labels = json_remove(labels, '$.same')"


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


@found_by("test_a_layer_that_was_changed_from_outside_is_told_from_its_tar")
class TouchesTheParent(Vfs):
    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        if parents and not list(self.root.glob("*/own")):
            os.utime(self.root / parents[0] / "kept")


@found_by("test_a_layer_that_was_changed_from_outside_is_told_from_its_tar")
class ShowsACopyOfWhatWasCommitted(Vfs):
    def commit(self, id, parents):
        copy_tree(self.root / id, self.root / f"{id}.Copy")
        super().commit(id, parents)

    def mounts(self, id, parents, state):
        return super().mounts(f"{id}.Copy" if state is State.COMMITTED else id, parents, state)

    def remove(self, id):
        remove_tree(self.root / f"{id}.Copy")
        super().remove(id)


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


@found_by("test_a_limit_of_inodes_holds")
class ClaimsALimitOfInodes(Vfs):
    capabilities = Vfs.capabilities | {StorageCapability.QUOTA_INODES}

    def limit_inodes(self, id, inodes):
        pass


@found_by("test_a_limit_of_inodes_and_one_of_bytes_hold_together")
class ClaimsBothLimits(Vfs):
    capabilities = Vfs.capabilities | {StorageCapability.QUOTA_INODES, StorageCapability.QUOTA}

    def limit_inodes(self, id, inodes):
        pass


@found_by("test_an_id_map_shows_a_layer_as_if_it_had_been_chowned")
class ChownsTheParentOfAView(Vfs):
    def view(self, id, parents):
        os.lchown(self.root / parents[0] / "own", 100_005, 200_006)


@found_by("test_what_is_written_through_an_id_map_belongs_to_the_layers_own_ids")
class CommitsMappedIds(Vfs):
    def commit(self, id, parents):
        if (self.root / id / "moved").exists():
            os.lchown(self.root / id / "new", 100_000, 300_000)
        super().commit(id, parents)


@found_by("test_a_host_user_whom_the_map_does_not_have_can_make_nothing")
class MountsMoreWithoutTheMap(Vfs):
    def mounts(self, id, parents, state):
        (self.root / id / "new").touch()
        return super().mounts(id, parents, state)


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


class Lists(Vfs):
    """Correct: lists changes and unpacks by itself, as core would."""

    name = "lists"
    capabilities = Vfs.capabilities | {StorageCapability.DIFF, StorageCapability.APPLY, StorageCapability.CLONE}

    def changes(self, id, parents):
        lower = str(self.root / parents[0]) if parents else None
        return iter(self.listed(list(compare(lower=lower, upper=str(self.root / id)))))

    def listed(self, changes):
        return changes

    def apply(self, id, parents, stream):
        return extract(stream=stream, root=str(self.root / id))

    def clone(self, id, source, parents):
        copy_tree(self.root / source, self.root / id)


@found_by("test_a_diff_against_any_ancestor_makes_the_layer_upon_it")
class ShowsCommittedLayersEmpty(Vfs):
    def mounts(self, id, parents, state):
        (found,) = super().mounts(id, parents, state)
        if state is not State.COMMITTED or len(parents) != 2:
            return (found,)
        return (Mount(type="tmpfs", source="tmpfs", readonly=True),)


@found_by("test_changes_since_an_ancestor_are_those_of_all_layers_between")
class ShowsTheParentOfWhatIsCommitted(Vfs):
    def mounts(self, id, parents, state):
        return super().mounts(parents[0] if state is State.COMMITTED and parents else id, parents, state)


@found_by("test_the_diff_of_a_layer_that_is_written_meanwhile_is_consistent_or_refused")
class ListsWhatItOnceSaw(Lists):
    seen = {}

    def changes(self, id, parents):
        if id not in self.seen:
            self.seen[id] = list(super().changes(id, parents))
        return iter(self.seen[id])


@found_by("test_the_diff_of_a_layer_that_is_written_meanwhile_is_consistent_or_refused")
class ListsNothingRecent(Lists):
    def content(self, id):
        return str(self.root / id)

    def changes(self, id, parents):
        found = list(super().changes(id, parents))
        return iter([change for change in found if not change.path.startswith(b"before-1")])


@found_by("test_changes_are_listed_exactly")
class ListsNoDeletions(Lists):
    def listed(self, changes):
        return [change for change in changes if change.kind is not ChangeKind.DELETED]


@found_by("test_changes_are_listed_exactly")
class ListsBackwards(Lists):
    def listed(self, changes):
        return changes[::-1]


@found_by("test_a_change_of_the_same_size_is_seen_however_soon")
class LooksAtTimesOnly(Lists):
    def changes(self, id, parents):
        def same(change):
            try:
                now, was = (os.lstat(os.path.join(os.fsencode(self.root / i), change.path)) for i in (id, parents[0]))
            except FileNotFoundError:
                return False
            return (now.st_size, now.st_mtime_ns) == (was.st_size, was.st_mtime_ns)

        return iter([change for change in super().changes(id, parents) if not same(change)])


@found_by("test_a_change_of_metadata_alone_is_a_change")
class SeesNoChangedOwners(Lists):
    def changes(self, id, parents):
        def merely_owned(change):
            try:
                now, was = (os.lstat(os.path.join(os.fsencode(self.root / i), change.path)) for i in (id, parents[0]))
            except FileNotFoundError:
                return False
            return now.st_uid != was.st_uid and now.st_mode == was.st_mode and now.st_mtime_ns == was.st_mtime_ns

        return iter([change for change in super().changes(id, parents) if not merely_owned(change)])


@found_by("test_a_diff_is_the_same_bytes_every_time")
class ListsInAnyOrder(Lists):
    def listed(self, changes):
        return random.sample(changes, len(changes))


@found_by("test_no_entry_of_a_tar_leads_out_of_the_layer")
class FollowsLinksWhenUnpacking(Lists):
    def apply(self, id, parents, stream):
        data = io.BytesIO(stream.read())
        try:
            return super().apply(id, parents, data)
        finally:
            data.seek(0)
            with tarfile.open(fileobj=data) as tar:
                for member in tar:
                    path = self.root / id / member.name
                    if member.isreg() and path.parent.is_dir():
                        path.write_bytes(b"x")


@found_by("test_no_entry_of_a_tar_leads_out_by_what_the_parent_has")
class FollowsLinksOfTheParentWhenUnpacking(Lists):
    def apply(self, id, parents, stream):
        data = io.BytesIO(stream.read())
        with tarfile.open(fileobj=data) as tar:
            for member in tar:
                path = self.root / id / member.name
                if parents and member.isreg() and path.parent.is_dir():
                    path.write_bytes(b"x")
        data.seek(0)
        return super().apply(id, parents, data)


@found_by("test_a_damaged_tar_is_refused_in_words_and_the_layer_is_removable")
class TakesWhateverItGets(Lists):
    def apply(self, id, parents, stream):
        try:
            return super().apply(id, parents, stream)
        except ConfigError:
            return 0


class Repacks(Lists):
    """Unpacks the tar without some of what it says."""

    def apply(self, id, parents, stream):
        out, data = io.BytesIO(), io.BytesIO(stream.read())
        options = {"encoding": "utf-8", "errors": "surrogateescape"}
        with tarfile.open(fileobj=data, **options) as tar, tarfile.open(fileobj=out, mode="w", **options) as new:
            for member in tar:
                if self.keeps(member):
                    new.addfile(member, tar.extractfile(member) if member.isreg() else None)
        return super().apply(id, parents, io.BytesIO(out.getvalue()))


@found_by("test_what_was_deleted_is_deleted_where_its_diff_is_applied")
class UnpacksNoWhiteouts(Repacks):
    def keeps(self, member):
        return not os.path.basename(member.name).startswith(".wh.")


@found_by("test_owners_are_kept_over_the_whole_range")
class UnpacksWithoutOwners(Repacks):
    def keeps(self, member):
        member.pax_headers = {k: v for k, v in member.pax_headers.items() if k not in ("uid", "gid")}
        member.uid = member.gid = 0
        return True


@found_by("test_extended_attributes_are_kept")
class UnpacksWithoutAttributes(Repacks):
    def keeps(self, member):
        member.pax_headers = {k: v for k, v in member.pax_headers.items() if not k.startswith("SCHILY")}
        return True


@found_by("test_times_are_kept_to_the_nanosecond")
class UnpacksWholeSeconds(Repacks):
    def keeps(self, member):
        member.pax_headers = {k: v for k, v in member.pax_headers.items() if k != "mtime"}
        member.mtime = int(member.mtime)
        return True


@found_by("test_a_clone_is_equal_and_independent")
class ClonesByLinks(Lists):
    def clone(self, id, source, parents):
        shutil.copytree(self.root / source, self.root / id, copy_function=os.link, symlinks=True)


@found_by("test_a_clone_is_equal_and_independent")
class ClonesTheParent(Lists):
    def clone(self, id, source, parents):
        self.prepare(id=id, parents=parents, size=None, idmap=None)


@found_by("test_the_deepest_chain_works_and_one_more_is_refused")
class GoesLessDeepThanItSays(Vfs):
    max_depth = 20

    def prepare(self, id, parents, size, idmap):
        if len(parents) > 15:
            raise DriverError("prepare", driver="storage", subject=id, cause="too deep")
        super().prepare(id, parents, size, idmap)


@found_by("test_writing_in_a_child_changes_neither_parent_nor_sibling")
class RemovesTheParentToo(Vfs):
    parents = {}

    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        self.parents[id] = parents[:1]

    def remove(self, id):
        super().remove(id)
        for parent in self.parents.get(id, ()):
            super().remove(parent)


@found_by("test_a_removal_that_was_interrupted_is_finished")
class OwnsOnlyWhatIsWhole(Vfs):
    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        os.chmod(self.root / id, 0o755)
        (self.root / f"{id}.Whole").touch()

    def remove(self, id):
        (self.root / f"{id}.Whole").unlink(missing_ok=True)
        super().remove(id)

    def owned(self):
        return frozenset(id for id in super().owned() if (self.root / f"{id}.Whole").exists())


@found_by("test_a_removal_that_was_interrupted_is_finished")
class ForgetsWhatItIsRemoving(Vfs):
    def remove(self, id):
        doomed = self.root / f"{id}.Removing"
        if (self.root / id).exists():
            os.rename(self.root / id, doomed)
        remove_tree(doomed)


@found_by("test_names_that_mean_deletion_in_a_tar_are_plain_names_in_a_layer")
class TakesNamesForDeletions(Spoiled):
    def spoil_entry(self, path, status):
        if os.path.basename(path).startswith(".wh."):
            os.unlink(path)


@found_by("test_owner_and_mode_alone_can_change")
class ClearsSetuid(Spoiled):
    def spoil_entry(self, path, status):
        if status.st_mode & 0o4000 and not stat.S_ISLNK(status.st_mode):
            os.chmod(path, status.st_mode & 0o777)


@found_by("test_every_way_of_writing_works_on_a_file_of_the_parent")
class CutsFilesShort(Spoiled):
    def spoil_entry(self, path, status):
        if stat.S_ISREG(status.st_mode) and status.st_size > 5000:
            os.truncate(path, 5000)


@found_by("test_fifos_and_sockets_work_in_a_layer")
class MakesFilesOfFifos(Spoiled):
    def spoil_entry(self, path, status):
        if stat.S_ISFIFO(status.st_mode):
            os.unlink(path)
            open(path, "w").close()


@found_by("test_many_threads_make_children_of_one_parent")
class HasOneStageForAll(Vfs):
    def prepare(self, id, parents, size, idmap):
        stage = self.root / "Stage"
        if parents:
            copy_tree(self.root / parents[0], stage)
            os.rename(stage, self.root / id)
        else:
            super().prepare(id, parents, size, idmap)


@found_by("test_usage_counts_what_was_written")
class CountsLinksTwice(Vfs):
    def usage(self, id, parents):
        found = [os.lstat(os.path.join(d, n)) for d, names, files in os.walk(self.root / id) for n in (*names, *files)]
        return Usage(size=sum(status.st_blocks for status in found) * 512, inodes=len(found) + 1)


@found_by("test_usage_counts_what_was_written")
class ClaimsToShareTheParent(Vfs):
    capabilities = Vfs.capabilities | {StorageCapability.SHARED_PARENT}


@found_by("test_a_layer_without_a_record_is_removed_and_strangers_are_left_alone")
class RemovesStrangers(Vfs):
    def recover(self):
        for name in os.listdir(self.root):
            if name not in self.owned():
                remove_tree(self.root / name)
        return []


@found_by("test_everything_is_there_after_a_restart")
class AlwaysRepairsSomething(Vfs):
    def recover(self):
        return ["storage: tidied up"]


@found_by("test_everything_is_there_after_a_restart")
class RemembersInMemory(Vfs):
    def __init__(self, **given):
        super().__init__(**given)
        self.made = set()

    def prepare(self, id, parents, size, idmap):
        super().prepare(id, parents, size, idmap)
        self.made.add(id)

    def usage(self, id, parents):
        return super().usage(id, parents) if id in self.made else Usage(size=0, inodes=0)


@found_by("test_odd_owners_and_modes_survive_a_remount")
class TouchesWhatItCommits(Vfs):
    def commit(self, id, parents):
        os.utime(self.root / id)
        super().commit(id, parents)


@found_by("test_what_was_committed_survives_a_power_loss")
class SyncsTooSoon(Vfs):
    def commit(self, id, parents):
        super().commit(id, parents)
        copy_tree(self.root / id, self.root / f"{id}.Copy")
        remove_tree(self.root / id)
        os.rename(self.root / f"{id}.Copy", self.root / id)


@found_by("test_a_file_of_the_parent_can_be_linked_and_its_first_name_removed")
class LosesSmallDirectories(Spoiled):
    def spoil(self, copy):
        for directory, names, files in list(os.walk(copy)):
            if directory != str(copy) and len(names) + len(files) < 2:
                shutil.rmtree(directory)


@found_by("test_killed_before_any_system_call_what_is_there_is_whole")
class LeavesTheStageOfAnotherProgram(Vfs):
    """Python announces that the program is started, and not what it does: only a system call's fault finds it."""

    def prepare(self, id, parents, size, idmap):
        if not parents:
            return super().prepare(id, parents, size, idmap)
        script = 'cp -a "$1" "$2" && mv "$2" "$3"'
        places = [self.root / parents[0], self.root / f"Stage-{id}", self.root / id]
        return subprocess.run(["sh", "-c", script, "sh", *places], check=True)


@found_by("test_whatever_system_call_fails_once_what_is_there_is_whole")
class LocksWhatItBeganToCommit(Vfs):
    """The layer is still active for core, and can no longer be written."""

    def commit(self, id, parents):
        (self.root / f"Final-{id}").touch()
        super().commit(id, parents)

    def mounts(self, id, parents, state):
        found = super().mounts(id, parents, state)
        locked = (self.root / f"Final-{id}").exists()
        return tuple(msgspec.structs.replace(mount, readonly=mount.readonly or locked) for mount in found)

    def remove(self, id):
        (self.root / f"Final-{id}").unlink(missing_ok=True)
        super().remove(id)


@found_by("test_whatever_system_call_fails_once_what_is_there_is_whole")
class SaysNothingOfFailures(Vfs):
    def prepare(self, id, parents, size, idmap):
        try:
            super().prepare(id, parents, size, idmap)
        except DriverError:
            (self.root / id).mkdir(exist_ok=True)


@found_by("test_a_power_loss_at_any_system_call_leaves_what_was_reported")
class ReportsBeforeItSyncs(Vfs):
    def commit(self, id, parents):
        pass


@found_by("test_attributes_that_cannot_be_kept_are_refused_never_dropped")
class DropsWhatItCannotKeep(Repacks):
    def keeps(self, member):
        member.pax_headers = {k: v for k, v in member.pax_headers.items() if not k.startswith("SCHILY")}
        return True


CORRECT = (Vfs, Lists)
