"""Drivers of remote collectors with one fault each, and the case that must find it."""

import uuid

import msgspec

from seeded.found import found_by
from seeded.logging import Around
from transom.services.sender import Delivery, SpooledWriter
from transom_logging_syslog import Syslog

CORRECT = (Syslog,)

replace = msgspec.structs.replace


class Tampered(Syslog):
    """Opens a writer that `Around` stands around."""

    examples = "transom_logging_syslog.examples:EXAMPLES"

    class Writer(Around):
        pass

    def open(self, container):
        return self.Writer(super().open(container))


@found_by("test_lines_reach_the_collector_once_and_in_order")
class SendsEveryBatchTwice(Tampered):
    class Writer(Around):
        def write(self, batch):
            super().write(batch)
            super().write(batch)


@found_by("test_a_collector_that_is_down_at_the_start_gets_everything_later")
class WaitsForTheCollector(Tampered):
    class Writer(Around):
        def write(self, batch):
            super().write(batch)
            self.flush(timeout=0.6)


@found_by("test_a_collector_that_must_be_there_is_named_when_it_is_not")
class StartsWithoutTheCollector(Tampered):
    def __init__(self, *, options, root, run):
        super().__init__(options=replace(options, sink_required=False), root=root, run=run)


@found_by("test_a_collector_killed_and_restarted_twenty_times_loses_nothing")
class BelievesTheKernel(Tampered):
    def _sink(self, container):
        sink = super()._sink(container)
        asked = sink.arrived
        sink.arrived = lambda: max(asked(), sink._until)
        return sink


@found_by("test_nothing_waits_for_a_collector_that_has_stopped")
class ClosesWhenAllHasArrived(Tampered):
    class Writer(Around):
        def close(self, timeout):
            super().close(timeout=15)


@found_by("test_a_bound_drops_the_oldest_lines_counts_them_and_says_where")
class CountsNoDrops(Tampered):
    class Writer(Around):
        def stats(self):
            return replace(super().stats(), dropped=0)


@found_by("test_a_supervisor_killed_at_any_time_loses_no_line_that_was_taken")
class KeepsLinesForLater(Tampered):
    class Writer(Around):
        kept = ()

        def write(self, batch):
            if self.kept:
                super().write(self.kept)
            self.kept = batch


@found_by("test_memory_does_not_grow_with_what_waits")
class KeepsACopy(Tampered):
    class Writer(Around):
        def __init__(self, inner):
            super().__init__(inner)
            self.kept = []

        def change(self, chunk):
            self.kept.append(bytes(bytearray(chunk.data)))
            return chunk


@found_by("test_two_writers_of_one_container_are_refused")
class HasASpoolForEachWriter(Tampered):
    def open(self, container):
        return SpooledWriter(
            self._sink(container),
            directory=f"{container.directory}/{uuid.uuid4().hex}",
            options=self.options,
            driver="logging",
            delivery=Delivery(),
        )


@found_by("test_a_closed_log_refuses_a_batch")
class TakesBatchesWhenClosed(Tampered):
    class Writer(Around):
        closed = False

        def write(self, batch):
            if not self.closed:
                super().write(batch)

        def close(self, timeout):
            self.closed = True
            super().close(timeout)
