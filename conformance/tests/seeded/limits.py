"""Limits drivers with one fault each, and the case that must find it."""

import os
import signal

import msgspec

from seeded.found import found_by
from transom.contract.limits import Resources, Throttle
from transom.services.cgroups import read
from transom_limits_cgroup1 import Cgroup1
from transom_limits_cgroup2 import Cgroup2

replace = msgspec.structs.replace

CORRECT = (Cgroup1, Cgroup2)


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


@found_by("test_cpu_time_is_split_by_shares_when_groups_compete")
class IgnoresShares(Forgetful):
    def heard(self, resources):
        return replace(resources, cpu_shares=None)


@found_by("test_half_a_cpu_is_half_a_cpu")
class GivesAQuarterLess(Forgetful):
    def heard(self, resources):
        quota = resources.cpu_quota
        return resources if quota is None else replace(resources, cpu_quota=int(quota * 0.75))


@found_by("test_direct_writes_keep_to_their_rate")
class WritesAFifthFaster(Forgetful):
    def heard(self, resources):
        faster = (Throttle(item.device, int(item.rate * 1.2)) for item in resources.device_write_bps)
        return replace(resources, device_write_bps=tuple(faster))


@found_by("test_direct_writes_keep_to_their_number_and_are_freed_by_an_update")
class ThrottlesForGood(Cgroup1):
    def update(self, id, resources):
        super().update(id, replace(resources, device_write_iops=()))


@found_by("test_a_nested_group_does_not_escape_the_limits_of_the_one_around_it")
class LimitsWhoHasNoChildren(Forgetful):
    def heard(self, resources):
        return replace(resources, memory=None, memory_swap=None, pids=None)


@found_by("test_what_is_nested_in_a_frozen_group_stands_still_too")
class FreezesTheTopOnly(Cgroup1):
    def freeze(self, id):
        for pid in read(self._groups(id)[0], "cgroup.procs").split():
            os.kill(int(pid), signal.SIGSTOP)


@found_by("test_whatever_system_call_an_update_dies_at_recovery_leaves_all_of_it_or_nothing")
class UpdatesWithoutANote(Cgroup1):
    def recover(self):
        for note in self.run.glob("update-*"):
            note.unlink()
        return super().recover()


@found_by("test_a_hundred_groups_are_made_changed_and_removed_by_eight_processes")
class UpdatesOneAtATime(Cgroup1):
    """Does as if another's update were its own."""

    def update(self, id, resources):
        os.makedirs(self.root, exist_ok=True)
        busy = self.root / "busy"
        try:
            os.close(os.open(busy, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        super().update(id, resources)
        busy.unlink()


@found_by("test_huge_pages_end_at_their_limit")
class IgnoresHugePages(Forgetful):
    def heard(self, resources):
        return replace(resources, hugepages=())


@found_by("test_swappiness_decides_whether_memory_is_swapped_while_there_is_cache_to_drop")
class SwapsAsTheHostDoes(Forgetful):
    def heard(self, resources):
        return replace(resources, memory_swappiness=None)


@found_by("test_io_is_split_by_weight_when_groups_compete")
class IgnoresWeights(Forgetful):
    def heard(self, resources):
        return replace(resources, blkio_weight=None)


@found_by("test_realtime_processes_get_no_more_than_their_runtime")
class DoublesRealtime(Forgetful):
    def heard(self, resources):
        runtime = resources.cpu_rt_runtime
        return resources if runtime is None else replace(resources, cpu_rt_runtime=2 * runtime)


class ForgetfulUnified(Cgroup2):
    """Forgets some of what it is asked for."""

    def create(self, id, resources):
        return super().create(id, self.heard(resources))


@found_by("test_who_is_below_its_reservation_is_spared_when_memory_is_short")
class ReservesNothing(ForgetfulUnified):
    def heard(self, resources):
        return replace(resources, memory_reservation=None)


@found_by("test_buffered_writes_keep_to_their_rate_when_they_reach_the_device")
class WritesBackAtOnce(ForgetfulUnified):
    def heard(self, resources):
        return replace(resources, device_write_bps=())
