"""What lists print: tables in Docker's look, ``--format`` and ``--quiet``.

A row is a dict of Docker's placeholder names (``{"ID": "0123456789ab", "Names": "web"}``); a function in it is a
method, as ``.Label``. The headings are a dict of the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transom_engine.cli.template import Template

Row = Mapping[str, Any]

PADDING = 3
"""Blanks between columns."""
NARROWEST = 10
"""A column that another follows is at least so wide, its padding included (Docker's tabwriter)."""


def render(
    rows: Iterable[Row],
    *,
    headings: Mapping[str, str],
    columns: Sequence[str],
    format: str = "",
    quiet: str = "",
) -> str:
    r"""Return what a list command prints.

    Args:
        rows: what to list.
        headings: for each placeholder that a template may name, its heading.
        columns: the placeholders of the table that is printed when no format is given.
        format: what ``--format`` says: empty or "table" for that table, "table TEMPLATE" for columns of one's own
            (separated by ``\t``), "json" for one object a line, or a template.
        quiet: a placeholder: only its value, one a line. A format that is not the table wins over it.

    Raises:
        ConfigError: the template's fault, see `transom_engine.cli.template`.
    """
    if format in ("", "table"):
        if quiet:
            return "".join(f"{row[quiet]}\n" for row in rows)
        format = "table " + "\t".join(f"{{{{.{column}}}}}" for column in columns)
    if format == "json":
        format = "{{json .}}"
    table = format.startswith("table ")
    words = format.removeprefix("table").strip(" ") if table else format
    template = Template(words.replace("\\t", "\t").replace("\\n", "\n"))
    lines = [template.render({key: row[key] for key in sorted(row)}) for row in rows]
    if table:
        lines.insert(0, template.render(_Headings(headings), functions=_HEADING_FUNCTIONS))
    text = "".join(f"{line}\n" for line in lines)
    return align(text) if table else text


def align(text: str) -> str:
    """Align cells that end in a tab as Go's text/tabwriter does: lines in a row that have a column share its width."""
    lines = [line.split("\t") for line in text.split("\n")]
    column = 0
    while any(len(cells) > column + 1 for cells in lines):
        run: list[list[str]] = []
        for cells in [*lines, []]:
            if len(cells) > column + 1:
                run.append(cells)
                continue
            width = max([NARROWEST, *(len(cells[column]) + PADDING for cells in run)])
            for each in run:
                each[column] = each[column].ljust(width)
            run = []
        column += 1
    return "\n".join("".join(cells) for cells in lines)


class _Headings(dict[str, Any]):
    """The headings as a row; of ``{{.Label "com.example.role"}}`` it is the last part of the label, as in Docker."""

    def __init__(self, headings: Mapping[str, str]) -> None:
        super().__init__(headings, Label=lambda name: name.rpartition(".")[2].replace("-", " ").replace("_", " "))


_HEADING_FUNCTIONS = {
    name: lambda text, *_: text for name in ("json", "title", "lower", "upper", "pad", "truncate", "split", "join")
}
"""A function of a cell leaves its column's heading alone."""
