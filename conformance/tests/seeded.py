"""Drivers that are correct but for one fault each, and the case that must find it.

`FAULTS` has them by kind and name. They are the drivers of a distribution that the tests put together: see
`test_seeded_faults`.
"""

import os
import re
import shutil
import stat
import subprocess
import threading
import time

import msgspec

from transom.contract import Probe
from transom.contract.auth import Identity, Request, UnixPeer
from transom.contract.limits import Resources
from transom.contract.logging import Query, Stream, Writer
from transom.contract.network import Attachment, Network, NetworkCapability, Owned
from transom.contract.storage import Mount, State, StorageCapability, Usage
from transom.errors import Conflict, DriverError
from transom.services import mounts
from transom.services.trees import copy_tree
from transom_auth_peer import Peer
from transom_limits_cgroup1 import Cgroup1
from transom_logging_json_file import JsonFile
from transom_network_bridge import Bridge
from transom_network_none import Null
from transom_storage_vfs import Vfs

replace = msgspec.structs.replace

FAULTS = {}
CORRECT = (Vfs, Null, Bridge, JsonFile, Cgroup1, Peer)
EXAMPLES = {"known": (Request(unix=UnixPeer(pid=1, uid=0, gid=0)), Request(unix=UnixPeer(pid=1, uid=4242, gid=4242)))}


def found_by(case):
    """Make the class a driver under a name of its own, whose fault `case` must find."""

    def register(cls):
        cls.name = re.sub("(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
        FAULTS[cls.kind, cls.name] = (cls, case)
        return cls

    return register


# Storage


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


# Network


@found_by("test_a_namespace_of_its_own_gets_a_loopback_that_is_up")
class LeavesLoopbackDown(Null):
    def attach(self, network, endpoint, netns):
        return Attachment()


@found_by("test_recovery_of_a_healthy_host_repairs_nothing")
class RepairsForEver(Null):
    def recover(self):
        return ["repaired what was whole"]


@found_by("test_undeclared_capabilities_are_refused")
class PublishesWithoutClaim(Null):
    def publish(self, network, endpoint, ports):
        return ports


@found_by("test_networks_are_made_and_removed_any_number_of_times")
class OwnsAGhost(Null):
    def owned(self):
        return Owned(networks=frozenset({"f" * 64}))


@found_by("test_an_attachment_is_what_is_in_the_namespace")
class ReportsAnotherMtu(Bridge):
    def attach(self, network, endpoint, netns):
        return replace(super().attach(network, endpoint, netns), mtu=1234)


@found_by("test_the_wanted_interface_name_and_mac_are_given")
class IgnoresTheMac(Bridge):
    def attach(self, network, endpoint, netns):
        return super().attach(network, replace(endpoint, mac=""), netns)


@found_by("test_an_endpoint_is_attached_once")
class AttachesAgainQuietly(Bridge):
    def attach(self, network, endpoint, netns):
        try:
            return super().attach(network, endpoint, netns)
        except Conflict:
            return Attachment()


@found_by("test_detaching_twice_succeeds_and_the_endpoint_can_be_attached_again")
class LeavesTheInterface(Bridge):
    done = set()

    def detach(self, network, endpoint):
        if endpoint.id in self.done:
            super().detach(network, endpoint)
        self.done.add(endpoint.id)


@found_by("test_what_has_no_record_is_removed_by_its_id_alone")
class NeedsTheRecordToDelete(Bridge):
    def delete_network(self, network: Network):
        if network.name:
            super().delete_network(network)


@found_by("test_an_internal_network_has_no_way_out")
class LetsInternalNetworksOut(Bridge):
    def create_network(self, network):
        super().create_network(replace(network, internal=False))

    def attach(self, network, endpoint, netns):
        return super().attach(replace(network, internal=False), endpoint, netns)


@found_by("test_a_port_published_at_loopback_is_the_hosts_alone")
class PublishesEverywhere(Bridge):
    def publish(self, network, endpoint, ports):
        return super().publish(network, endpoint, tuple(replace(port, address="") for port in ports))


@found_by("test_publishing_again_replaces_and_withdrawing_ends_it")
class KeepsPortsPublished(Bridge):
    def unpublish(self, network, endpoint):
        pass


@found_by("test_undeclared_capabilities_are_refused")
class RefusesWithoutAName(Null):
    def lookup(self, network, name):
        error = self.unsupported(NetworkCapability.LOOKUP)
        raise type(error)("no")


# Logging


class Around(Writer):
    """Stands around a writer and passes everything on."""

    def __init__(self, inner):
        self.inner = inner

    def write(self, batch):
        self.inner.write([c for c in map(self.change, batch) if c is not None])

    def change(self, chunk):
        return chunk

    def flush(self, timeout):
        return self.inner.flush(timeout)

    def rotate(self):
        self.inner.rotate()

    def stats(self):
        return self.inner.stats()

    def close(self, timeout):
        self.inner.close(timeout)


class Tampered(JsonFile):
    """Opens a writer that `Around` stands around, and changes queries."""

    class Writer(Around):
        pass

    def open(self, container):
        return self.Writer(super().open(container))

    def read(self, container, query):
        return super().read(container, self.asked(query))

    def asked(self, query: Query):
        return query


@found_by("test_lines_come_back_in_order_with_their_stream_and_time")
class DropsStandardError(Tampered):
    class Writer(Around):
        def change(self, chunk):
            return None if chunk.stream is Stream.STDERR else chunk


@found_by("test_lines_come_back_in_order_with_their_stream_and_time")
class MergesTheStreams(Tampered):
    class Writer(Around):
        def change(self, chunk):
            return replace(chunk, stream=Stream.STDOUT)


@found_by("test_since_and_until_tell_nanoseconds_apart")
class RoundsToMicroseconds(Tampered):
    class Writer(Around):
        def change(self, chunk):
            return replace(chunk, time=chunk.time // 1000 * 1000)


@found_by("test_empty_lines_and_carriage_returns_are_kept")
class DropsCarriageReturns(Tampered):
    class Writer(Around):
        def change(self, chunk):
            return replace(chunk, data=chunk.data.replace(b"\r", b""))


@found_by("test_fragments_join_to_their_line")
class EndsEveryFragment(Tampered):
    class Writer(Around):
        def change(self, chunk):
            return replace(chunk, data=chunk.data.removesuffix(b"\n") + b"\n")


@found_by("test_logs_of_two_containers_do_not_mix")
class HasOneFileForAll(JsonFile):
    def location(self, container):
        return f"{os.path.dirname(container.directory)}/all.log"


@found_by("test_opening_again_goes_on_at_the_end")
class BeginsAnew(JsonFile):
    def open(self, container):
        if os.path.exists(self.location(container)):
            os.truncate(self.location(container), 0)
        return super().open(container)


@found_by("test_tail_gives_that_many_lines")
class IgnoresTail(Tampered):
    def asked(self, query):
        return replace(query, tail=None)


@found_by("test_since_and_until_are_inclusive")
class StopsBeforeUntil(Tampered):
    def asked(self, query):
        return query if query.until is None else replace(query, until=query.until - 1)


@found_by("test_one_stream_can_be_read_alone")
class ReadsEveryStream(Tampered):
    def asked(self, query):
        return replace(query, streams=frozenset(Stream))


@found_by("test_following_an_empty_log_gives_all_that_comes_and_then_ends")
class DoesNotFollow(Tampered):
    def asked(self, query):
        return replace(query, follow=False)


@found_by("test_a_killed_writer_loses_nothing_that_it_took")
class KeepsBatchesInMemory(Tampered):
    class Writer(Around):
        def __init__(self, inner):
            super().__init__(inner)
            self.kept = []

        def write(self, batch):
            self.kept += batch

        def close(self, timeout):
            if self.kept:
                self.inner.write(self.kept)
                self.kept = []
            super().close(timeout)


@found_by("test_the_counts_of_a_writer_add_up")
class CountsTwice(Tampered):
    class Writer(Around):
        def stats(self):
            found = super().stats()
            return replace(found, taken=2 * found.taken)


@found_by("test_a_writer_frees_all_it_held")
class NeverCloses(Tampered):
    class Writer(Around):
        def close(self, timeout):
            os.dup(self.inner._fd) if self.inner._fd >= 0 else None
            super().close(timeout)


@found_by("test_closing_a_writer_twice_is_harmless")
class ClosesOnce(Tampered):
    class Writer(Around):
        closed = False

        def close(self, timeout):
            if self.closed:
                raise OSError("closed already")
            self.closed = True
            super().close(timeout)


@found_by("test_removing_twice_and_removing_what_never_was_succeed")
class RefusesToRemoveWhatNeverWas(JsonFile):
    def remove(self, container):
        os.unlink(self.location(container))


# Limits


class Forgetful(Cgroup1):
    """Forgets some of what it is asked for."""

    def create(self, id, resources):
        return super().create(id, self.heard(resources))

    def update(self, id, resources):
        super().update(id, self.heard(resources))

    def heard(self, resources: Resources):
        return resources


@found_by("test_a_process_over_its_memory_dies_and_only_it")
class IgnoresMemory(Forgetful):
    def heard(self, resources):
        return replace(resources, memory=None, memory_swap=None)


@found_by("test_half_a_cpu_is_half_a_cpu")
class IgnoresCpuQuota(Forgetful):
    def heard(self, resources):
        return replace(resources, cpu_quota=None, cpu_period=None)


@found_by("test_forks_stop_at_the_limit_and_the_host_goes_on")
class IgnoresPids(Forgetful):
    def heard(self, resources):
        return replace(resources, pids=None)


@found_by("test_a_device_that_is_not_on_the_list_cannot_be_opened")
class AllowsAllDevices(Forgetful):
    def heard(self, resources):
        return replace(resources, devices=None)


@found_by("test_a_frozen_group_stands_still_until_it_is_thawed")
class FreezesNothing(Cgroup1):
    def freeze(self, id):
        self._present(id)


@found_by("test_statistics_agree_with_what_was_used")
class HasUsedNoMemory(Cgroup1):
    def stats(self, id):
        return replace(super().stats(id), memory=0, memory_max=0)


@found_by("test_each_kill_for_want_of_memory_is_reported_and_counted")
class CountsNoKills(Cgroup1):
    def stats(self, id):
        return replace(super().stats(id), oom_kills=0)


@found_by("test_removal_of_an_absent_group_succeeds_and_so_does_its_kill")
class RefusesToRemoveTheAbsentGroup(Cgroup1):
    def remove(self, id):
        self._present(id)
        super().remove(id)


@found_by("test_owned_is_exactly_what_exists")
class OwnsOneOnly(Cgroup1):
    def owned(self):
        return frozenset(sorted(super().owned())[:1])


@found_by("test_an_update_leaves_alone_what_it_does_not_name")
class UpdatesEverything(Cgroup1):
    def update(self, id, resources):
        super().update(id, replace(resources, pids=resources.pids or -1))


@found_by("test_kill_reaches_one_group_only")
class KillsAtTheSecondTime(Cgroup1):
    asked = set()

    def kill(self, id):
        if id in self.asked:
            super().kill(id)
        self.asked.add(id)


# Auth


@found_by("test_a_request_that_carries_nothing_is_left_to_other_drivers")
class KnowsEverybody(Peer):
    def authenticate(self, request):
        return super().authenticate(request) or Identity(name="anybody", method=self.name)


@found_by("test_known_callers_get_an_identity_that_names_them_and_the_driver")
class SpeaksForAnother(Peer):
    def authenticate(self, request):
        found = super().authenticate(request)
        return found and replace(found, method="peer")


@found_by("test_the_same_request_is_the_same_caller_after_a_restart_too")
class NamesAreItsOwn(Peer):
    def authenticate(self, request):
        found = super().authenticate(request)
        return found and replace(found, method=self.name, name=f"{found.name}-{id(self)}")


@found_by("test_no_request_makes_it_fail")
class TripsOverHeaders(Peer):
    def authenticate(self, request):
        dict(header.split("=") for _, header in request.headers[:1])
        return super().authenticate(request)
