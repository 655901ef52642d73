"""What a run found, as a structure, and the forms in which people and programs read it.

`Report` is the JSON; `table` is what the terminal shows, `badge` an image for a README, `transom_conformance.page`
the page to send to a colleague.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Literal

import msgspec

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Outcome = Literal["passed", "failed", "not claimed", "skipped"]
OUTCOMES: tuple[Outcome, ...] = ("passed", "failed", "not claimed", "skipped")


class Case(msgspec.Struct, frozen=True, omit_defaults=True):
    """One case of the suite.

    `id` selects it again (``--select``) and is unique in a report; `name` is the sentence that it proves, `group` the
    section of the suite that it stands in. `reason` is one line: why it failed, was skipped or is not claimed. `doc`
    says more about what it proves, `trace` about why it failed; both are left out where there is nothing to say.
    """

    id: str
    name: str
    group: str
    outcome: Outcome
    seconds: float
    reason: str
    doc: str = ""
    trace: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a driver proved on a host.

    `capabilities` are those that the driver declares, `undeclared` the others of its kind. `host` has facts by name.
    `started` is a time in UTC (RFC 3339), `seconds` how long the run took.
    """

    kind: str
    driver: str
    distribution: str
    version: str
    passed: int
    failed: int
    not_claimed: int
    skipped: int
    options: dict[str, str]
    capabilities: list[str]
    undeclared: list[str]
    core: str
    host: dict[str, str]
    started: str
    seconds: float
    cases: list[Case]

    @property
    def proved(self) -> bool:
        """Whether nothing failed and something passed."""
        return not self.failed and self.passed > 0


def count(cases: Iterable[Case]) -> dict[str, int]:
    """Return how many cases had each outcome, by the report's names of them."""
    outcomes = [case.outcome for case in cases]
    return {outcome.replace(" ", "_"): outcomes.count(outcome) for outcome in OUTCOMES}


def groups(cases: Iterable[Case]) -> dict[str, list[Case]]:
    """Return the cases by group, in the suite's order."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        found.setdefault(case.group, []).append(case)
    return found


def to_json(reports: Sequence[Report], *, several: bool) -> bytes:
    """Return the report as JSON; where a run may have `several`, an array of them."""
    return msgspec.json.format(msgspec.json.encode(list(reports) if several else reports[0]), indent=1) + b"\n"


def to_junit(reports: Sequence[Report]) -> bytes:
    """Return JUnit XML: a suite for each driver; what is not claimed is skipped there."""
    from xml.etree import ElementTree

    root = ElementTree.Element("testsuites", name="transom conformance")
    for report in reports:
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=f"{report.kind} {report.driver}",
            tests=str(len(report.cases)),
            failures=str(report.failed),
            errors="0",
            skipped=str(report.not_claimed + report.skipped),
            time=f"{report.seconds:.3f}",
            timestamp=report.started,
        )
        for case in report.cases:
            place = f"{report.kind}.{report.driver}.{case.group}"
            shown = ElementTree.SubElement(suite, "testcase", classname=place, name=case.id, time=f"{case.seconds:.3f}")
            if case.outcome == "failed":
                ElementTree.SubElement(shown, "failure", message=case.reason).text = case.trace
            elif case.outcome != "passed":
                ElementTree.SubElement(shown, "skipped", message=f"{case.outcome}: {case.reason}")
    ElementTree.indent(root)
    document: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def table(report: Report) -> Table:
    """Return the counts by group."""
    from rich import box
    from rich.table import Table

    shown = Table(box=box.SIMPLE_HEAD, show_footer=True, pad_edge=False)
    shown.add_column(f"{report.kind} {report.driver}", footer="all")
    totals = count(report.cases)
    for outcome, total in totals.items():
        shown.add_column(outcome.replace("_", " "), footer=str(total), justify="right")
    for group, cases in groups(report.cases).items():
        numbers = count(cases)
        style = "red" if numbers["failed"] else ""
        shown.add_row(group, *(str(n or "") for n in numbers.values()), style=style)
    return shown


def summarize(report: Report, console: Console) -> None:
    """Print the table, what failed, and the verdict."""
    console.print(table(report))
    for case in report.cases:
        if case.outcome == "failed":
            console.print(f"FAILED {case.id}", style="red", markup=False, highlight=False)
            console.print(f"       {case.reason}", markup=False, highlight=False, soft_wrap=True)
    line = f"{report.kind} driver {report.driver}: {verdict(report)}"
    console.print(line, style="" if report.proved else "red", markup=False, highlight=False, soft_wrap=True)


def verdict(report: Report) -> str:
    """Return the result in one line."""
    if report.failed:
        return f"{report.failed} of {report.passed + report.failed} cases failed"
    if not report.passed:
        reasons = sorted({case.reason for case in report.cases})
        return f"nothing was proved: {reasons[0] if len(reasons) == 1 else 'no case was run'}"
    what = "the one case" if report.passed == 1 else f"all {report.passed} cases"
    return f"{what} passed in {report.seconds:.0f} s"


def badge(reports: Sequence[Report]) -> str:
    """Return a small SVG: "storage conformance 42/42"."""
    passed = sum(report.passed for report in reports)
    tried = passed + sum(report.failed for report in reports)
    label = f"{reports[0].kind if len(reports) == 1 else 'transom'} conformance"
    value = f"{passed}/{tried}"
    color = "#1a7f37" if passed and passed == tried else "#b42318" if tried else "#6b7280"
    left, right = 7 * len(label) + 12, 8 * len(value) + 12
    width, name = left + right, escape(f"{label} {value}")
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="20" role="img" aria-label="{name}">
<title>{name}</title>
<clipPath id="r"><rect width="{width}" height="20" rx="3"/></clipPath>
<g clip-path="url(#r)"><rect width="{left}" height="20" fill="#444c56"/>
<rect x="{left}" width="{right}" height="20" fill="{color}"/></g>
<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="{left / 2}" y="14" textLength="{left - 12}">{escape(label)}</text>
<text x="{left + right / 2}" y="14" textLength="{right - 12}">{escape(value)}</text></g>
</svg>
"""
