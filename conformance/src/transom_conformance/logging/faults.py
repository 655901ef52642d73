"""Kills, full disks and damage."""

from __future__ import annotations

import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from transom.contract.logging import Query, Writer
from transom.errors import DriverError
from transom_conformance.logging.common import (
    ERR,
    OUT,
    READ,
    SECOND,
    START,
    Base,
    Child,
    Log,
    numbered,
    numbers,
    out,
)
from transom_conformance.suite import World


class Faults(Base):
    """Cases of what goes wrong."""

    @READ
    @pytest.mark.parametrize("rotating", [False, True], ids=["one file", "rotating"])
    def test_a_killed_writer_loses_nothing_that_it_took(self, world: World, rotating: bool) -> None:
        """Case K56."""
        if rotating and not self.rotating:
            pytest.skip("the suite's class names no rotating options")
        chance = random.Random()
        log = Log(world, world.open(**self.rotating if rotating else {}))
        begun = 0
        taken: list[int] = []
        for _ in range(10):

            def write(pipe: int, first: int = begun) -> None:
                writer = log.driver.open(container=log.container)
                for i in range(first, first + 10_000):
                    writer.write([out(numbered(i * 40, 40), i)])
                    os.write(pipe, b"%d\n" % i)

            child = Child(world, write)
            child.signalled()
            time.sleep(chance.uniform(0, 0.03))
            report = child.kill().split(b"\n")
            taken += range(begun, begun + len(report) - 1)
            begun += 10_000
            found = numbers(log.read(Query(streams=frozenset({OUT}))))
            assert found == sorted(set(found)), "lines are doubled or out of order"
            lost = {i * 40 + k for i in taken for k in range(40)} - set(found)
            assert not lost, f"{len(lost)} lines of batches that were taken are gone, from {min(lost)} on"
        log.keep([out(numbered(begun * 40, 1), begun)])
        found = numbers(log.read())
        assert found[-1] == begun * 40
        assert found == sorted(set(found))

    @READ
    def test_a_full_disk_refuses_whole_batches_and_writing_goes_on_when_there_is_space(self, world: World) -> None:
        """Case K57."""
        directory = world.path / "small"
        directory.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(directory)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("cannot mount a tmpfs: needs CAP_SYS_ADMIN")
        world.defer(subprocess.run, ["umount", "-l", str(directory)], check=True)
        log = Log(world, world.open(), directory=directory)
        writer = log.open()
        taken, refused = self._fill(writer, range(200))
        if not refused:
            pytest.skip("this driver keeps nothing in the container's directory")
        assert numbers(log.read()) == [i * 100 + k for i in taken for k in range(100)]
        subprocess.run(["mount", "-o", "remount,size=4m", str(directory)], check=True)
        more, refused = self._fill(writer, range(200, 210))
        assert (more, refused) == (list(range(200, 210)), [])
        found = log.read()
        assert [c.data for c in found if c.stream is ERR] == []
        assert numbers(found) == [i * 100 + k for i in taken + more for k in range(100)]

    def _fill(self, writer: Writer, batches: range) -> tuple[list[int], list[int]]:
        taken: list[int] = []
        refused: list[int] = []
        for i in batches:
            try:
                writer.write([out(numbered(i * 100, 100), i)])
                taken.append(i)
            except DriverError:
                refused.append(i)
        return taken, refused

    @READ
    def test_a_torn_end_costs_the_torn_record_only(self, log: Log) -> None:
        """Case K54."""
        chance = random.Random()
        file = log.file()
        kept: list[int] = []
        for round in range(12):
            log.keep([out(numbered(round * 100, 100), round)])
            size = file.stat().st_size
            os.truncate(file, size - chance.randrange(1, 60))
            kept += range(round * 100, round * 100 + 99)
            assert numbers(log.read()) == kept
        log.keep([out(numbered(9999, 1), 99)])
        found = log.read()
        assert numbers(found) == [*kept, 9999]
        assert [c.data for c in found if c.stream is ERR] == [], "the torn end is gone once the log was opened again"
        assert numbers(log.read(Query(tail=100))) == [*kept[-99:], 9999]

    @READ
    @pytest.mark.parametrize(
        "garbage",
        [b"\0" * 300, b"\xff" * 300, b"garbage\n" * 40, b'{"log":"' * 40],
        ids=["zeros", "ones", "lines", "beginnings"],
    )
    def test_a_damaged_region_is_skipped_and_reported(self, log: Log, garbage: bytes) -> None:
        """Case K55."""
        log.keep([out(numbered(i, 1), i * SECOND) for i in range(200)])
        file = log.file()
        middle = file.stat().st_size // 2
        with file.open("r+b") as damaged:
            damaged.seek(middle)
            damaged.write(garbage)
        found = log.read()
        whole = numbers(found)
        assert whole[:90] == list(range(90))
        assert whole[-90:] == list(range(110, 200))
        notices = [c for c in found if c.stream is ERR]
        assert len(notices) == 1, "one STDERR chunk says that a part could not be read"
        assert whole.index(whole[-90]) > 0
        assert numbers(log.read(Query(tail=150))) == whole[-150:]
        assert numbers(log.read(Query(since=START + 150 * SECOND))) == list(range(150, 200))
        log.keep([out(numbered(200, 1), 200 * SECOND)])
        assert numbers(log.read())[-1] == 200

    @READ
    def test_reading_ends_whatever_a_file_holds(self, log: Log) -> None:
        """Case K58."""
        log.keep([out(numbered(0, 10))])
        file = log.file()
        whole = file.read_bytes()
        chance = random.Random(58)
        for _ in range(40):
            noise = bytearray(whole)
            for _ in range(chance.randrange(1, 30)):
                noise[chance.randrange(len(noise))] = chance.randrange(256)
            cut = chance.randrange(len(noise))
            file.write_bytes(bytes(noise[:cut]) + chance.randbytes(chance.randrange(300)) + bytes(noise[cut:]))
            for query in (Query(), Query(tail=3), Query(since=START), Query(until=START)):
                for chunk in log.read(query):
                    assert len(chunk.data) < 10 * len(whole), "a length that noise says is not believed"

    def test_opening_in_a_directory_that_is_gone_raises_driver_error(self, log: Log) -> None:
        if not log.driver.location(container=log.container):
            pytest.skip("this driver keeps no file")
        Path(log.container.directory).rmdir()
        with pytest.raises(DriverError):
            log.driver.open(container=log.container)
