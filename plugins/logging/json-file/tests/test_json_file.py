"""What json-file promises beyond its contract: Docker's bytes, names, options and rules."""

import gzip
import json
import os
import random
import signal
import stat
import tempfile
import time
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.contract.logging import Chunk, LogStats, Query, Stream
from transom.errors import ConfigError, DriverError
from transom.services.logfiles.lock import Holder, holder
from transom_conformance.logging.direct import Direct, container
from transom_conformance.suite import in_child
from transom_logging_json_file import JsonFile
from transom_logging_json_file.records import nanoseconds
from transom_logging_json_file.writing import escape, stamp

OUT, ERR = Stream.STDOUT, Stream.STDERR
AT = 1_795_462_080_072_535_290
direct = Direct(JsonFile)
driver, read, write = direct.driver, direct.read, direct.write


def text(directory, **query):
    return b"".join(chunk.data for chunk in read(directory, **query))


def attrs(directory, facts=None, **options):
    line = write(directory, Chunk(OUT, AT, b"x\n"), facts=facts, **options).read_bytes()
    return json.loads(line).get("attrs")


# Docker's bytes


def test_a_line_has_the_bytes_that_docker_writes(tmp_path):
    data = b'a\0b\xff<>&\\"\t\r\x1b\xe2\x80\xa8\xf0\x9f\x9a\x80\x7f\n'
    path = write(tmp_path, Chunk(OUT, AT, data))
    assert path.name == "c0ffee" * 10 + "-json.log"
    assert path.read_bytes() == (
        rb'{"log":"a\u0000b\ufffd\u003c\u003e\u0026\\\"\u0009\r\u001b\u2028' + b"\xf0\x9f\x9a\x80\x7f"
        rb'\n","stream":"stdout","time":"2026-11-23T19:28:00.07253529Z"}' + b"\n"
    )


def test_a_file_can_be_read_by_its_owner_and_group_only(tmp_path):
    old = os.umask(0)
    try:
        path = write(tmp_path, Chunk(OUT, AT, b"x\n"))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("nanoseconds", "written"),
    [
        (0, b"1970-01-01T00:00:00Z"),
        (1, b"1970-01-01T00:00:00.000000001Z"),
        (AT, b"2026-11-23T19:28:00.07253529Z"),
        (1_795_462_080_500_000_000, b"2026-11-23T19:28:00.5Z"),
        (-1, b"1969-12-31T23:59:59.999999999Z"),
        (253_402_300_799_999_999_999, b"9999-12-31T23:59:59.999999999Z"),
    ],
)
def test_times_are_written_without_zeros_at_the_end(nanoseconds, written):
    assert stamp(nanoseconds) == written


def test_a_year_that_rfc_3339_cannot_write_is_refused():
    with pytest.raises(ValueError) as caught:
        stamp(253_402_300_800_000_000_000)
    assert str(caught.value) == "year 10000 of a log time is not between 0 and 9999"


@given(st.integers(-(10**18), 10**20))
def test_every_time_is_read_back_to_the_nanosecond(time):
    assert nanoseconds(stamp(time).decode()) == time


def test_times_with_an_offset_are_understood():
    assert nanoseconds("2026-11-23T20:28:00.5+01:00") == nanoseconds("2026-11-23T19:28:00.500Z")


@given(st.binary() | st.text().map(str.encode))
def test_what_is_escaped_is_json_and_says_the_same(data):
    data = data.replace(b"\n", b"")
    want = "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in data.decode(errors="surrogateescape"))
    assert json.loads(b'"' + escape(data) + b'"') == want


DOCKERS = (
    b'{"log":"hello\\n","stream":"stdout","time":"2026-11-23T19:28:00.1Z"}\n'
    b'{"log":"\\u003ca\\u003e \\u0026 \\"b\\" \\\\ \\u0009\\r\\n","stream":"stderr","attrs":{"tag":"web"},'
    b'"time":"2026-11-23T19:28:00.123456789Z"}\n'
    b'{"log":"no end","stream":"stdout","time":"2026-11-23T19:28:01Z"}\n'
    b'{"log":"\\ud83d\\ude80 \xf0\x9f\x9a\x80\\n","stream":"stdout","time":"2026-11-23T19:28:02+00:00",'
    b'"later":{"x":[1]}}\n'
    b'{"time":"2026-11-23T19:28:03Z","stream":"stdout","log":"other order\\n"}\n'
)


def test_a_file_that_docker_wrote_is_read(tmp_path):
    (tmp_path / ("c0ffee" * 10 + "-json.log")).write_bytes(DOCKERS)
    second = 1_795_462_080_000_000_000
    assert read(tmp_path) == [
        Chunk(OUT, second + 100_000_000, b"hello\n"),
        Chunk(ERR, second + 123_456_789, b'<a> & "b" \\ \t\r\n', attrs={"tag": "web"}),
        Chunk(OUT, second + 1_000_000_000, b"no end"),
        Chunk(OUT, second + 2_000_000_000, "\U0001f680 \U0001f680\n".encode()),
        Chunk(OUT, second + 3_000_000_000, b"other order\n"),
    ]


def test_a_fragment_that_ends_like_an_escaped_newline_is_no_line(tmp_path):
    chunks = [Chunk(OUT, AT, b"back\\n"), Chunk(OUT, AT, b"slash\n"), Chunk(OUT, AT + 1, b"end\n")]
    write(tmp_path, *chunks)
    assert text(tmp_path) == b"back\\nslash\nend\n"
    assert text(tmp_path, tail=2) == b"back\\nslash\nend\n"


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(Stream), st.integers(0, 3), st.text(max_size=30), st.booleans())),
    st.integers(1, 400),
    st.integers(0, 12),
)
def test_whatever_is_written_is_read_back(pieces, max_size, tail):
    chunks = [Chunk(s, AT + t, (body + "\n" * ends).encode()) for s, t, body, ends in pieces]
    with tempfile.TemporaryDirectory() as directory:
        write(directory, *chunks, max_size=str(max_size), max_file="1000")
        for stream in Stream:
            want = b"".join(chunk.data for chunk in chunks if chunk.stream is stream)
            assert text(directory, streams=frozenset({stream})) == want
            lines = [line + b"\n" for line in want.split(b"\n")]
            lines[-1] = lines[-1][:-1]
            lines = [line for line in lines if line]
            assert text(directory, streams=frozenset({stream}), tail=tail) == b"".join(lines[-tail:] if tail else [])


# Attributes


def test_labels_and_variables_become_sorted_attributes(tmp_path):
    facts = {"labels": {"z": "1", "app.a": "2", "other": "3"}, "env": {"MODE": "x=y", "APP_B": "4", "HOME": "/"}}
    found = attrs(tmp_path, facts, labels="z,absent", labels_regex="^app", env="MODE", env_regex="^APP_")
    assert list(found.items()) == [("APP_B", "4"), ("MODE", "x=y"), ("app.a", "2"), ("z", "1")]


def test_a_variable_goes_over_a_label_of_the_same_name_and_the_tag_over_both(tmp_path):
    facts = {"labels": {"a": "label", "tag": "label"}, "env": {"a": "variable"}}
    assert attrs(tmp_path, facts, labels="a,tag", env="a", tag="it") == {"a": "variable", "tag": "it"}


def test_attributes_have_the_bytes_of_go(tmp_path):
    facts = {"labels": {"b": '\t<>&"\\\u2028\x7f\x01', "a": "\udcff"}}
    path = write(tmp_path, Chunk(OUT, AT, b"x\n"), facts=facts, labels="a,b")
    assert path.read_bytes() == (
        b'{"log":"x\\n","stream":"stdout","attrs":{"a":"\xef\xbf\xbd",'
        b'"b":"\\t\\u003c\\u003e\\u0026\\"\\\\\\u2028\x7f\\u0001"},"time":"2026-11-23T19:28:00.07253529Z"}\n'
    )


def test_options_that_select_nothing_add_no_attributes(tmp_path):
    assert attrs(tmp_path, labels="absent", env_regex="^absent", tag="{{.ImageName}}") is None


FACTS = {
    "id": "0123456789abcdef" * 4,
    "name": "web",
    "image_id": "sha256:" + "fedcba9876543210" * 4,
    "image_name": "busybox:1",
    "command": ("sh", "-c", "true"),
    "hostname": "host",
    "labels": {"k": "v"},
}


@pytest.mark.parametrize(
    ("template", "want"),
    [
        ("plain", "plain"),
        ("{{.ID}}", "0123456789ab"),
        ("{{ .FullID }}", "0123456789abcdef" * 4),
        ("{{.Name}}/{{.ImageName}}", "web/busybox:1"),
        ("{{.ImageID}} {{.ImageFullID}}", "fedcba987654 sha256:" + "fedcba9876543210" * 4),
        ("{{.Command}}", "sh -c true"),
        ("{{.DaemonName}} on {{.Hostname}}", "transom on host"),
        ("{{.ExtraAttributes}}", "map[k:v]"),
        ("{{json .ExtraAttributes}}", '{"k":"v"}'),
        ("{{.Name | upper}}", "WEB"),
        ('{{split .ImageName ":" | json}}', '["busybox","1"]'),
        ('{{join (split .ImageName ":") "-"}}', "busybox-1"),
        ("{{lower `ABC`}} {{title .Name}}", "abc Web"),
        ("{{pad .Name 1 2}}|", " web  |"),
        ("{{truncate .ImageName 4}}", "busy"),
        ('{{"a\\"b"}}', 'a"b'),
        ("a  {{- .Name -}}  b", "awebb"),
    ],
)
def test_a_tag_is_a_template(tmp_path, template, want):
    opened = driver(tag=template, labels="k")
    writer = opened.open(container=container(tmp_path, **FACTS))
    writer.write([Chunk(OUT, AT, b"x\n")])
    writer.close(timeout=1)
    found = json.loads(Path(opened.location(container=container(tmp_path, **FACTS))).read_bytes())["attrs"]
    assert found["tag"] == want


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (
            "{{.Nme}}",
            "field .Nme does not exist (did you mean .Name?); there are: .Command, .DaemonName, .ExtraAttributes, "
            ".FullID, .Hostname, .ID, .ImageFullID, .ImageID, .ImageName, .Name",
        ),
        (
            "{{uper .Name}}",
            "function 'uper' does not exist (did you mean upper?); there are: join, json, lower, pad, "
            "print, println, split, title, truncate, upper",
        ),
        ("{{.Name", "an opening {{ has no closing }}"),
        ("{{}}", "an action of the template is empty"),
        ("{{upper}}", "function upper takes 1 arguments, not 0"),
        ("{{.Name | .ID}}", ".ID is not a function, so nothing can be piped into it"),
        ("{{.Name .ID}}", "unexpected '.ID' in a template"),
        ("{{(upper .Name}}", "an opening ( has no closing )"),
        ("{{upper 3}}", "function upper cannot take 3"),
        ("{{%}}", "unexpected '%' in a template"),
        ("{{upper |}}", "function upper takes 1 arguments, not 0"),
    ],
)
def test_a_wrong_tag_is_refused_at_check(tmp_path, template, reason):
    with pytest.raises(ConfigError) as caught:
        driver(tag=template).check(container=container(tmp_path))
    assert str(caught.value) == f"logging driver json-file: tag={template!r}: {reason}"


@pytest.mark.parametrize("option", ["labels-regex", "env-regex"])
def test_a_wrong_regular_expression_is_refused_at_check(tmp_path, option):
    with pytest.raises(ConfigError) as caught:
        driver(**{option: "(a"}).check(container=container(tmp_path))
    assert str(caught.value) == (
        f"logging driver json-file: {option}='(a': missing ), unterminated subpattern at position 0; "
        "expected a regular expression such as ^app"
    )


# Options


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max-size": "0"}, "(from --log-opt): max-size must be a positive number, or -1 for no bound"),
        ({"max-size": "abc"}, ": max-size='abc' (from --log-opt): expected a size such as 10m, or -1"),
        ({"max-size": "-2"}, ": max-size='-2' (from --log-opt): expected a size such as 10m, or -1"),
        ({"max-file": "0"}, ": max-file='0' (from --log-opt): expected a whole number, at least 1"),
        ({"max-file": "x"}, ": max-file='x' (from --log-opt): expected a whole number, at least 1"),
        (
            {"compress": "true", "max-file": "2"},
            "(from --log-opt): compress cannot be true when max-file is less than 2 or max-size is not set",
        ),
        (
            {"compress": "true", "max-size": "1m"},
            "(from --log-opt): compress cannot be true when max-file is less than 2 or max-size is not set",
        ),
        ({"compress": "maybe"}, ": compress='maybe' (from --log-opt): expected true or false"),
        (
            {"max-sise": "1m"},
            "has no option 'max-sise' (from --log-opt) (did you mean max-size?); it knows: compress, env, "
            "env-regex, labels, labels-regex, max-file, max-size, tag",
        ),
    ],
)
def test_a_wrong_option_is_refused_by_name(options, reason):
    with pytest.raises(ConfigError) as caught:
        driver(**options)
    assert str(caught.value).removeprefix("logging driver json-file").lstrip() == reason


def test_sizes_are_decimal_and_the_log_is_bounded_unless_said_otherwise():
    assert driver(max_size="10m").bounds() == (10_000_000, 1, False)
    assert driver(max_size="10m", max_file="3", compress="true").bounds() == (10_000_000, 3, True)
    assert driver().bounds() == (200_000_000, 5, False)
    assert driver(max_size="-1").bounds() == (None, 1, False)


# Rotation


def records(number, size=100):
    """A chunk of one record of exactly `size` bytes in the file."""
    head = len(b'{"log":"\\n","stream":"stdout","time":"1970-01-01T00:00:01Z"}\n')
    return Chunk(OUT, 10**9, b"%0*d\n" % (size - head, number))


def test_a_file_is_rotated_before_the_record_behind_its_bound(tmp_path):
    batch = [records(i) for i in range(25)]
    opened = driver(max_size="1000", max_file="5")
    writer = opened.open(container=container(tmp_path))
    writer.write(batch)
    writer.close(timeout=1)
    path = opened.location(container=container(tmp_path))
    assert {name: os.path.getsize(name) for name in (path, f"{path}.1", f"{path}.2")} == {
        path: 500,
        f"{path}.1": 1000,
        f"{path}.2": 1000,
    }
    assert text(tmp_path) == b"".join(chunk.data for chunk in batch)
    assert writer.stats().delivered == 25


def test_a_restart_goes_on_with_the_size_of_the_file(tmp_path):
    for i in range(25):
        path = write(tmp_path, records(i), max_size="1000", max_file="5")
    assert [os.path.getsize(f"{path}{end}") for end in ("", ".1", ".2")] == [500, 1000, 1000]


def test_no_more_files_are_kept_than_allowed_and_the_oldest_goes(tmp_path):
    path = write(tmp_path, *(records(i) for i in range(95)), max_size="1000", max_file="3")
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.1", f"{path.name}.2"]
    assert text(tmp_path) == b"".join(records(i).data for i in range(70, 95))


def test_one_file_begins_anew_when_it_is_full(tmp_path):
    path = write(tmp_path, *(records(i) for i in range(25)), max_size="1000")
    assert os.listdir(tmp_path) == [path.name]
    assert text(tmp_path) == b"".join(records(i).data for i in range(20, 25))


def test_rotated_files_are_compressed_whole(tmp_path):
    path = write(tmp_path, *(records(i) for i in range(25)), max_size="1000", max_file="3", compress="true")
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.1.gz", f"{path.name}.2.gz"]
    packed = gzip.decompress(Path(f"{path}.2.gz").read_bytes())
    assert [json.loads(line)["log"] for line in packed.splitlines()] == [records(i).data.decode() for i in range(10)]
    assert text(tmp_path) == b"".join(records(i).data for i in range(25))
    assert text(tmp_path, tail=18) == b"".join(records(i).data for i in range(7, 25))


def test_a_damaged_compressed_file_is_read_as_far_as_it_goes(tmp_path):
    path = write(tmp_path, *(records(i) for i in range(25)), max_size="1000", max_file="3", compress="true")
    packed = Path(f"{path}.2.gz")
    packed.write_bytes(packed.read_bytes()[:-30])
    found = read(tmp_path)
    assert next(c.data for c in found if c.stream is ERR).startswith(b"transom: ")
    assert b"".join(c.data for c in found if c.stream is OUT).endswith(b"".join(records(i).data for i in range(10, 25)))


def test_output_goes_on_where_rotation_fails(tmp_path):
    obstacle = tmp_path / ("c0ffee" * 10 + "-json.log.1")
    obstacle.mkdir()
    path = write(tmp_path, *(records(i) for i in range(25)), max_size="1000", max_file="2")
    assert path.stat().st_size == 2500
    obstacle.rmdir()
    write(tmp_path, records(25), max_size="1000", max_file="2")
    assert text(tmp_path) == b"".join(records(i).data for i in range(26))
    assert sorted(os.listdir(tmp_path)) == [path.name, f"{path.name}.1"]


def test_a_rotation_that_fails_is_told_until_one_succeeds(tmp_path):
    path = tmp_path / ("c0ffee" * 10 + "-json.log")
    obstacle = Path(f"{path}.1")
    obstacle.mkdir()
    writer = driver(max_size="1000", max_file="2").open(container=container(tmp_path))
    writer.write([records(i) for i in range(10)])
    assert writer.stats().problem == ""
    for times in (1, 2):
        writer.write([records(9 + times)])
        told = f"rotate {path} failed: Is a directory (attempts: {times}); it grows beyond max-size, no line is lost"
        assert writer.stats() == LogStats(taken=10 + times, delivered=10 + times, problem=told)
    obstacle.rmdir()
    writer.write([records(12)])
    assert writer.stats() == LogStats(taken=13, delivered=13)
    writer.close(timeout=1)
    assert text(tmp_path) == b"".join(records(i).data for i in range(13))


def test_rotation_on_demand_says_why_it_failed(tmp_path):
    path = tmp_path / ("c0ffee" * 10 + "-json.log")
    opened = driver(max_file="2")
    writer = opened.open(container=container(tmp_path))
    Path(f"{path}.1").mkdir()
    with pytest.raises(DriverError) as caught:
        writer.rotate()
    assert str(caught.value) == f"logging json-file: rotate {path} failed: Is a directory"
    fd = os.open(path, os.O_RDONLY)
    assert holder(fd) == Holder(generation=0, rotating=False)
    os.close(fd)
    writer.write([records(0)])
    writer.close(timeout=1)


@pytest.mark.parametrize(
    "options", [{"max_file": "3"}, {"max_file": "1"}, {"max_file": "3", "compress": "true"}], ids=str
)
def test_a_kill_at_any_step_of_a_rotation_loses_no_line(tmp_path, monkeypatch, options):
    """Dies before the first, the second ... call that changes the directory, until a run gets through."""
    for step in count():
        directory = tmp_path / str(step)
        directory.mkdir()

        def victim(directory=directory, step=step):
            left = iter(range(step))

            def deadly(call):
                def counted(*args, **kwargs):
                    if call is not os.open or args[1] & os.O_CREAT:
                        next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL)
                    return call(*args, **kwargs)

                return counted

            write(directory, *(records(i) for i in range(28)), max_size="1000", **options)
            for name in ("open", "link", "rename", "unlink", "fsync"):
                monkeypatch.setattr(os, name, deadly(getattr(os, name)))
            write(directory, *(records(i) for i in range(28, 40)), max_size="1000", **options)

        status = in_child(victim)
        before = text(directory)
        first = int(before[:40].split()[0])
        count_before = before.count(b"\n")
        assert before == b"".join(records(first + i).data for i in range(count_before)), f"step {step}"
        path = write(directory, records(first + count_before), max_size="1000", **options)
        after = text(directory)
        newest = first + count_before
        assert after == b"".join(records(i).data for i in range(newest + 1 - after.count(b"\n"), newest + 1))
        assert not [name for name in os.listdir(directory) if name.endswith(".new")]
        assert path.stat().st_nlink == 1
        if status == 0:
            assert first + count_before == 40
            break
        assert status == -signal.SIGKILL
        assert first + count_before >= 28, "lines that were taken before are gone"
    assert step > 4


# Faults


def test_a_log_has_one_writer(tmp_path):
    opened = driver()
    writer = opened.open(container=container(tmp_path))
    with pytest.raises(DriverError) as caught:
        opened.open(container=container(tmp_path))
    path = opened.location(container=container(tmp_path))
    assert str(caught.value) == (
        f"logging json-file: open {path} failed: another process is writing it; stop the container first"
    )
    writer.close(timeout=1)
    opened.open(container=container(tmp_path)).close(timeout=1)


def test_readers_never_hinder_a_writer(tmp_path):
    write(tmp_path, records(0))
    reader = driver().read(container=container(tmp_path), query=Query(follow=True))
    assert reader.next(1)
    write(tmp_path, records(1))
    reader.close()


def test_a_directory_that_is_gone_is_named(tmp_path):
    with pytest.raises(DriverError) as caught:
        driver().open(container=container(tmp_path / "gone"))
    assert str(caught.value).startswith(f"logging json-file: open {tmp_path}/gone/c0ffee")
    assert "failed: No such file or directory; " in str(caught.value)


def test_a_closed_writer_refuses_a_batch(tmp_path):
    writer = driver().open(container=container(tmp_path))
    writer.close(timeout=1)
    with pytest.raises(DriverError) as caught:
        writer.write([records(0)])
    assert str(caught.value).endswith("-json.log failed: the log is closed")


def test_a_torn_end_is_trimmed_when_the_log_is_opened(tmp_path):
    path = write(tmp_path, records(0), records(1))
    with path.open("ab") as file:
        file.write(b'{"log":"torn' + bytes(200_000))
    found = read(tmp_path)
    assert found[-1].data == (
        b"transom: 200012 bytes of the log are damaged and were skipped (from byte 200 of the file)\n"
    )
    write(tmp_path, records(2))
    assert text(tmp_path) == b"".join(records(i).data for i in range(3))


def test_a_damaged_region_is_named_by_size_and_place(tmp_path):
    path = write(tmp_path, *(records(i) for i in range(5)))
    with path.open("r+b") as file:
        file.seek(150)
        file.write(b"\0" * 100)
    found = read(tmp_path)
    assert [c.data for c in found if c.stream is ERR] == [
        b"transom: 200 bytes of the log are damaged and were skipped (from byte 100 of the file)\n"
    ]
    assert b"".join(c.data for c in found if c.stream is OUT) == b"".join(records(i).data for i in (0, 3, 4))


def test_a_huge_region_without_lines_costs_no_memory_and_is_passed(tmp_path):
    path = write(tmp_path, records(0))
    os.truncate(path, 100 + (64 << 20))
    with path.open("ab") as file:
        file.write(b"\n")
    write(tmp_path, records(1))
    found = read(tmp_path)
    assert [c.data for c in found if c.stream is OUT] == [records(0).data, records(1).data]
    assert len([c for c in found if c.stream is ERR]) == 1
    assert text(tmp_path, tail=2) == records(0).data + found[1].data + records(1).data


@settings(deadline=None, max_examples=40)
@given(st.binary(min_size=1, max_size=300), st.integers(0, 3000))
def test_no_damage_stops_a_reader(garbage, place):
    with tempfile.TemporaryDirectory() as directory:
        path = write(directory, *(records(i) for i in range(30)))
        with path.open("r+b") as file:
            file.seek(place)
            file.write(garbage)
        found = [c.data for c in read(directory) if c.stream is OUT]
        whole = {records(i).data for i in range(30) if (i + 1) * 100 <= place or i * 100 > place + len(garbage)}
        assert whole <= {line + b"\n" for data in found for line in data.split(b"\n")}
        read(directory, tail=5)
        read(directory, since=10**9)


def test_a_follower_that_fell_behind_says_how_many_files_it_missed(tmp_path):
    opened = driver(max_size="1000", max_file="2")
    writer = opened.open(container=container(tmp_path))
    writer.write([records(0)])
    reader = opened.read(container=container(tmp_path), query=Query(follow=True))
    assert reader.next(1)
    writer.write([records(i) for i in range(1, 65)])
    found = []
    while batch := reader.next(0.05):
        found += batch
    writer.close(timeout=1)
    assert reader.next(5) is None
    assert [c.data for c in found if c.stream is ERR] == [
        b"transom: 4 rotated files of the log were removed before they were read\n"
    ]
    seen = [int(line) for c in found if c.stream is OUT for line in c.data.split()]
    assert seen == [*range(1, 10), *range(50, 65)]


def test_following_goes_on_where_someone_empties_the_file(tmp_path):
    opened = driver()
    writer = opened.open(container=container(tmp_path))
    writer.write([records(i) for i in range(50)])
    reader = opened.read(container=container(tmp_path), query=Query(follow=True, tail=0))
    os.truncate(opened.location(container=container(tmp_path)), 0)
    writer.write([records(99)])
    assert [c.data for c in reader.next(5) or ()] == [records(99).data]
    reader.close()
    writer.close(timeout=1)


def test_concurrent_followers_of_a_rotating_compressed_log_see_every_line(tmp_path):
    opened = driver(max_size="20000", max_file="1000", compress="true")
    writer = opened.open(container=container(tmp_path))
    readers = [opened.read(container=container(tmp_path), query=Query(follow=True)) for _ in range(3)]
    found = [b""] * 3
    chance = random.Random(1)
    for i in range(300):
        writer.write([records(i * 20 + k) for k in range(20)])
        number = chance.randrange(3)
        found[number] += b"".join(c.data for c in readers[number].next(1) or ())
    writer.close(timeout=10)
    for number, reader in enumerate(readers):
        while batch := reader.next(5):
            found[number] += b"".join(c.data for c in batch)
    want = b"".join(records(i).data for i in range(6000))
    assert [data == want for data in found] == [True] * 3


def test_opening_takes_less_than_a_millisecond(tmp_path):
    opened = driver()
    best = 1.0
    for i in range(20):
        spot = tmp_path / str(i)
        spot.mkdir()
        begin = time.perf_counter()
        writer = opened.open(container=container(spot))
        best = min(best, time.perf_counter() - begin)
        writer.close(timeout=1)
    assert best < 0.001
