"""The spool keeps what it took, gives it in order, and counts what its bound costs."""

import os
import random
import signal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.contract.logging import Chunk, Partial, Stream
from transom.services.spool import ENTRY, SMALLEST, Full, Spool, remaining
from transom_conformance.suite import in_child

OUT, ERR = Stream.STDOUT, Stream.STDERR


def lines(first, count, width=99):
    return Chunk(OUT, first, b"".join(b"%0*d\n" % (width, first + i) for i in range(count)))


def spool(path, **more):
    return Spool(str(path / "spool"), **{"limit": 64 << 20, **more})


def take(found, *, ack=True):
    """Read to the end; return the chunks."""
    chunks = []
    while (entry := found.next()) is not None:
        chunks += entry.chunks
        if ack:
            found.ack(entry.until)
    return chunks


def numbers(chunks):
    return [int(line) for c in chunks if c.stream is OUT for line in c.data.split()]


def missing(chunks):
    """Return the count of each gap record."""
    return [int(c.data.split()[1]) for c in chunks if c.stream is ERR and c.data.startswith(b"transom: ")]


def test_chunks_come_back_as_they_were(tmp_path):
    batch = [
        Chunk(OUT, 5, b"one\ntwo\n"),
        Chunk(ERR, -7, b"\xff\x00\n"),
        Chunk(OUT, 6, b"x" * 16384, partial=Partial(id="ab12", ordinal=1, last=False)),
        Chunk(OUT, 6, b"y\n", partial=Partial(id="ab12", ordinal=2, last=True)),
        Chunk(OUT, 7, b"no newline"),
    ]
    found = spool(tmp_path)
    found.append(batch)
    assert (found.pending, take(found)) == (5, batch)
    assert (found.pending, found.bytes, found.delivered, found.dropped) == (0, 0, 5, 0)
    found.close()
    assert os.listdir(tmp_path) == []


def test_what_was_not_acknowledged_is_there_after_a_restart(tmp_path):
    found = spool(tmp_path)
    for i in range(50):
        found.append([lines(i * 1000, 1000)])
    entries = [found.next() for _ in range(4)]
    found.ack(entries[1].until)
    acked = sum(entry.lines for entry in entries[:2])
    found.close()
    assert remaining(str(tmp_path / "spool")) == 50_000 - acked
    again = spool(tmp_path)
    assert again.pending == 50_000 - acked
    assert numbers(take(again)) == list(range(acked, 50_000))
    again.close()
    assert os.listdir(tmp_path) == []
    assert remaining(str(tmp_path / "spool")) == 0


def test_rewinding_gives_the_same_entries_again(tmp_path):
    found = spool(tmp_path)
    for i in range(200):
        found.append([lines(i * 100, 100)])
    before = [found.next() for _ in range(5)]
    found.ack(before[0].until)
    found.append([lines(20_000, 10)])
    assert found.rewind() == sum(entry.lines for entry in before[1:])
    assert [found.next() for _ in range(4)] == before[1:]
    found.rewind()
    assert numbers(take(found)) == list(range(before[0].lines, 20_010))
    found.close()


def test_an_entry_has_a_bounded_size(tmp_path):
    found = spool(tmp_path)
    found.append([lines(i * 10, 10) for i in range(5000)])
    while (entry := found.next()) is not None:
        assert entry.size <= ENTRY * 2
    found.close()


def test_a_second_writer_is_refused(tmp_path):
    found = spool(tmp_path)
    found.append([lines(0, 1)])
    with pytest.raises(BlockingIOError):
        spool(tmp_path)
    found.close()


@pytest.mark.parametrize("on_their_way", [0, 3])
def test_the_bound_drops_the_oldest_lines_that_wait_and_counts_them(tmp_path, on_their_way):
    found = spool(tmp_path, limit=SMALLEST)
    sent = []
    for i in range(300):
        found.append([lines(i * 1000, 1000)])
        if i < on_their_way:
            sent += numbers(found.next().chunks)
    assert found.bytes <= SMALLEST
    on_disk = sum(entry.stat().st_size for entry in (tmp_path / "spool").iterdir())
    assert on_disk <= SMALLEST + (2 << 20)
    dropped = found.dropped
    chunks = take(found)
    kept = numbers(chunks)
    assert len(missing(chunks)) == 1
    assert missing(chunks) == [dropped] == [300_000 - len(kept) - len(sent)]
    newest = kept if not on_their_way else [n for n in kept if n > 150_000]
    assert newest == list(range(300_000 - len(newest), 300_000))
    assert kept == sorted({*kept} - {*sent})
    found.ack(10**9)
    assert (found.pending, found.delivered) == (0, len(kept) + len(sent))
    assert found.dropped_ever == dropped
    found.close()


def test_a_dropped_count_survives_a_restart(tmp_path):
    found = spool(tmp_path, limit=SMALLEST)
    for i in range(200):
        found.append([lines(i * 1000, 1000)])
    dropped = found.dropped
    found.close()
    again = spool(tmp_path, limit=SMALLEST)
    assert (again.dropped, again.dropped_ever, again.pending) == (0, dropped, 200_000 - dropped)
    for i in range(200, 300):
        again.append([lines(i * 1000, 1000)])
    chunks = take(again)
    assert missing(chunks) == [dropped + again.dropped]
    assert sum(missing(chunks)) + len(numbers(chunks)) == 300_000
    again.close()
    assert spool(tmp_path).dropped_ever == sum(missing(chunks))


def test_a_spool_that_refuses_drops_nothing(tmp_path):
    found = spool(tmp_path, limit=SMALLEST, refuse=True)
    taken = 0
    with pytest.raises(Full):
        for i in range(1000):
            found.append([lines(i * 1000, 1000)])
            taken += 1000
    assert numbers(take(found)) == list(range(taken))
    found.append([lines(taken, 1000)])
    found.close()


def test_a_bound_of_lines_holds(tmp_path):
    found = spool(tmp_path, lines=800)
    for i in range(500):
        found.append([lines(i * 10, 10)])
    assert found.pending <= 820
    chunks = take(found)
    assert sum(missing(chunks)) + len(numbers(chunks)) == 5000
    assert numbers(chunks)[-1] == 4999
    found.close()


@pytest.mark.parametrize("acked", [0, 3])
def test_giving_up_drops_everything_and_says_so(tmp_path, acked):
    found = spool(tmp_path)
    for i in range(100):
        found.append([lines(i * 1000, 1000)])
    for _ in range(acked):
        found.ack(found.next().until)
    found.next()
    delivered = found.delivered
    found.give_up()
    assert (found.pending, found.dropped) == (0, 100_000 - delivered)
    chunks = take(found)
    assert missing(chunks) == [100_000 - delivered]
    found.append([lines(7, 1)])
    assert numbers(take(found)) == [7]
    found.close()


def test_a_damaged_record_costs_the_rest_of_its_segment_and_says_so(tmp_path):
    found = spool(tmp_path, limit=SMALLEST)
    for i in range(60):
        found.append([lines(i * 1000, 1000)])
    found.close()
    _, second, *_ = sorted(path for path in (tmp_path / "spool").iterdir() if path.name != "state")
    with second.open("r+b") as file:
        file.seek(second.stat().st_size // 2)
        file.write(b"\0" * 100)
    again = spool(tmp_path)
    chunks = take(again)
    assert len(numbers(chunks)) + sum(missing(chunks)) == 60_000
    assert [c.data.endswith(b"the spool is damaged\n") for c in chunks if c.stream is ERR] == [True]
    assert again.pending == 0
    assert again.dropped == sum(missing(chunks)) > 0
    again.close()


def test_a_full_disk_refuses_the_batch_and_keeps_the_file_whole(tmp_path, monkeypatch):
    found = spool(tmp_path)
    found.append([lines(0, 10)])
    real = os.write

    def fails(fd, data):
        real(fd, bytes(data)[:50])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", fails)
    with pytest.raises(OSError, match="No space"):
        found.append([lines(10, 10)])
    monkeypatch.undo()
    found.append([lines(20, 10)])
    assert numbers(take(found)) == [*range(10), *range(20, 30)]
    found.close()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_lines_add_up_whatever_happens_in_between(tmp_path_factory, seed):
    """Appends, sends, acknowledgements, broken connections and restarts in any order."""
    chance = random.Random(seed)
    place = tmp_path_factory.mktemp("spool")
    found, total, dropped, got, last = spool(place, limit=SMALLEST), 0, 0, set(), 0
    entries = []
    for _ in range(150):
        action = chance.choices(["append", "next", "ack", "rewind", "restart", "give up"], [9, 6, 4, 1, 1, 0.1])[0]
        if action == "append":
            count = chance.choice([1, 100, 2000, 9000])
            try:
                found.append([lines(total, count)])
                total += count
            except Full:
                assert found.sent, "only what is on its way must not be dropped"
        elif action == "next" and (entry := found.next()) is not None:
            entries.append(entry)
        elif action == "ack" and entries:
            until = chance.choice(entries).until
            for entry in [entry for entry in entries if entry.until <= until]:
                got.update(numbers(entry.chunks))
                last = max([last, *numbers(entry.chunks)[-1:]])
            entries = [entry for entry in entries if entry.until > until]
            found.ack(until)
        elif action == "rewind":
            found.rewind()
            entries = []
        elif action == "restart":
            dropped += found.dropped
            found.close()
            found, entries = spool(place, limit=SMALLEST), []
        elif action == "give up":
            found.give_up()
            entries = []
        assert len(got) + dropped + found.dropped + found.pending == total
        assert found.bytes <= SMALLEST + 65536
    found.rewind()
    got.update(numbers(take(found)))
    assert len(got) + dropped + found.dropped == total
    assert found.pending == found.bytes == 0
    found.close()


def test_a_kill_at_any_call_loses_nothing_that_was_taken(tmp_path, monkeypatch):
    """Dies before the first, the second ... call that changes a file, until a run gets through."""
    step = 0
    while True:
        place = tmp_path / str(step)
        place.mkdir()
        read, write = os.pipe()

        def victim(place=place, step=step, write=write):
            left = iter(range(step))

            def deadly(call):
                def counted(*args, **kwargs):
                    next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **kwargs)

                return counted

            found = spool(place, limit=SMALLEST)
            real = os.write
            for name in ("open", "write", "rename", "unlink", "pwrite"):
                monkeypatch.setattr(os, name, deadly(getattr(os, name)))
            for i in range(24):
                found.append([lines(i * 10_000, 10_000)])
                real(write, b"t")
                if i in (3, 4):
                    entry = found.next()
                    real(write, b"s%08d" % entry.lines)
                    found.ack(entry.until)

        status = in_child(victim)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            report = pipe.read()
        taken = report.count(b"t") * 10_000
        arrived = sum(int(part[:8]) for part in report.split(b"s")[1:])
        found = spool(place, limit=SMALLEST)
        ever = found.dropped_ever
        chunks = take(found)
        kept = numbers(chunks)
        assert kept == list(range(kept[0], kept[0] + len(kept))) if kept else taken == 0
        assert sum(missing(chunks)) == ever
        total = len(kept) + ever + arrived
        assert taken <= total <= taken + 10_000 + arrived, f"step {step}: {taken} taken, {total} found"
        found.close()
        if status == 0:
            break
        assert status == -signal.SIGKILL
        step += 1
    assert step > 30
