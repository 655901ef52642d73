"""What lists print: tables in Docker's look."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import ConfigError
from transom_engine.cli.tables import align, render

HEADINGS = {"ID": "CONTAINER ID", "Image": "IMAGE", "Status": "STATUS", "Ports": "PORTS", "Names": "NAMES"}
COLUMNS = ("ID", "Image", "Status", "Ports", "Names")
LABELS = {"com.example.role": "db"}
ROWS = [
    {
        "ID": "4c01db0b339c",
        "Image": "ubuntu:22.04",
        "Status": "Up 16 seconds",
        "Ports": "3300-3310/tcp",
        "Names": "webapp",
        "Label": lambda name: LABELS.get(name, ""),
    },
    {
        "ID": "d7886598dbe2",
        "Image": "crosbymichael/redis:latest",
        "Status": "Up 33 minutes",
        "Ports": "",
        "Names": "redis,webapp/db",
        "Label": lambda name: "",
    },
]


def listed(format="", rows=ROWS, **more):
    return render(rows, headings=HEADINGS, columns=COLUMNS, format=format, **more)


def test_the_table_of_docker_ps():
    assert listed() == (
        "CONTAINER ID   IMAGE                        STATUS          PORTS           NAMES\n"
        "4c01db0b339c   ubuntu:22.04                 Up 16 seconds   3300-3310/tcp   webapp\n"
        "d7886598dbe2   crosbymichael/redis:latest   Up 33 minutes                   redis,webapp/db\n"
    )
    assert listed("table") == listed()


def test_an_empty_table_keeps_its_headings():
    assert listed(rows=[]) == "CONTAINER ID   IMAGE     STATUS    PORTS     NAMES\n"


@pytest.mark.parametrize(
    "format",
    [
        "table {{.ID}}\t{{.Names}}",
        r"table {{.ID}}\t{{.Names}}",
        r"table  {{.ID}}\t{{.Names}} ",
    ],
)
def test_a_table_of_ones_own_columns(format):
    assert listed(format) == "CONTAINER ID   NAMES\n4c01db0b339c   webapp\nd7886598dbe2   redis,webapp/db\n"


def test_functions_leave_headings_alone_and_labels_give_their_last_part():
    assert listed(r'table {{upper .Names}}\t{{truncate .ID 3}}\t{{json .Ports}}\t{{.Label "com.example.role"}}') == (
        "NAMES             CONTAINER ID   PORTS             role\n"
        'WEBAPP            4c0            "3300-3310/tcp"   db\n'
        'REDIS,WEBAPP/DB   d78            ""                \n'
    )


def test_a_template_prints_a_line_for_each_row_without_headings():
    assert listed("{{.ID}}: {{.Names}}") == "4c01db0b339c: webapp\nd7886598dbe2: redis,webapp/db\n"
    assert listed(r"{{.ID}}\n") == "4c01db0b339c\n\nd7886598dbe2\n\n"
    assert listed(r"{{.ID}}\t{{.Names}}", rows=ROWS[:1]) == "4c01db0b339c\twebapp\n"
    assert listed("{{.ID}}", rows=[]) == ""


def test_json_prints_an_object_a_line_with_sorted_keys_and_without_methods():
    lines = listed("json").splitlines()
    assert [json.loads(line)["Names"] for line in lines] == ["webapp", "redis,webapp/db"]
    assert list(json.loads(lines[0])) == ["ID", "Image", "Names", "Ports", "Status"]
    assert listed("{{json .}}") == listed("json")


def test_quiet_prints_one_value_a_line_unless_a_format_says_otherwise():
    assert listed(quiet="ID") == "4c01db0b339c\nd7886598dbe2\n"
    assert listed("table", quiet="ID") == "4c01db0b339c\nd7886598dbe2\n"
    assert listed("{{.Names}}", quiet="ID") == "webapp\nredis,webapp/db\n"


def test_an_unknown_column_is_told_even_for_an_empty_table():
    with pytest.raises(ConfigError) as error:
        listed("table {{.Name}}", rows=[])
    assert str(error.value) == (
        "--format '{{.Name}}': no field 'Name' in . (did you mean Names?); it has: ID, Image, Label, Names, "
        "Ports, Status"
    )


def test_lines_without_a_column_part_the_columns_above_from_those_below():
    assert align("a\tb\nalone\nlonger cell\tc\n") == "a         b\nalone\nlonger cell   c\n"


@given(st.lists(st.lists(st.text("abc ", max_size=15), min_size=3, max_size=3), min_size=1, max_size=6))
def test_columns_start_at_the_same_place_in_every_line(cells):
    lines = align("\n".join("\t".join(row) for row in cells)).split("\n")
    widths = [max([10] + [len(row[column]) + 3 for row in cells]) for column in (0, 1)]
    for line, row in zip(lines, cells, strict=True):
        assert line == row[0].ljust(widths[0]) + row[1].ljust(widths[1]) + row[2]
