"""Log drivers with one fault each, and the case that must find it."""

import os

import msgspec

from seeded.found import found_by
from transom.contract.logging import Query, Reader, Stream, Writer
from transom_logging_json_file import JsonFile

replace = msgspec.structs.replace

CORRECT = (JsonFile,)


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


class Reading(Reader):
    """Stands around a reader and passes everything on."""

    def __init__(self, inner, path):
        self.inner, self.path, self.size = inner, path, 0

    def next(self, timeout):
        return self.inner.next(timeout)

    def close(self):
        self.inner.close()


@found_by("test_following_goes_on_behind_an_emptied_file")
class IsLostBehindAnEmptiedFile(JsonFile):
    class Reader(Reading):
        def next(self, timeout):
            size, self.size = self.size, os.stat(self.path).st_size
            return self.inner.next(timeout) if self.size >= size else None

    def read(self, container, query):
        return self.Reader(super().read(container, query), self.location(container))


@found_by("test_reading_ends_whatever_a_file_holds")
class StumblesOverDamage(JsonFile):
    class Reader(Reading):
        def next(self, timeout):
            batch = self.inner.next(timeout)
            for chunk in batch or ():
                if chunk.data.startswith(b"transom: "):
                    raise ValueError("not a record")
            return batch

    def read(self, container, query):
        return self.Reader(super().read(container, query), self.location(container))
