"""``transom doctor``: is this host fit, and did a crash leave anything?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from transom.errors import ConfigError
from transom_engine.cli import Session, pass_session

if TYPE_CHECKING:
    from transom_engine.doctor import Report


@click.command("doctor")
@click.option("--repair", is_flag=True, help="Put right what is found")
@click.option("--deep", is_flag=True, help="Compare every layer of an image with its tar")
@click.option("--format", "format", default="", help="json for JSON")
@pass_session
def doctor_command(session: Session, /, repair: bool, deep: bool, format: str) -> int:
    """Probe this host and find what a crash left.

    It may run while containers do. The exit code is 0 when nothing is wrong, or everything was put right, else 1.
    """
    from transom_engine.cli.template import to_json
    from transom_engine.doctor import examine

    if format not in ("", "json"):
        raise ConfigError(f"--format {format!r}: the only one is json")
    report = examine(session.engine, repair=repair, deep=deep)
    print(to_json(report) if format else "\n".join(_lines(report, repair=repair)))
    return 0 if report.healthy else 1


def _lines(report: Report, *, repair: bool) -> Iterator[str]:
    yield "Host"
    for check in report.host:
        yield f"  {check.status:9}{check.name:14}{check.text}"
    yield "Left by crashes"
    for finding in report.findings:
        word = "repaired" if finding.repaired else "failed" if finding.failure else "found"
        failure = f"; it could not be repaired: {finding.failure}" if finding.failure else ""
        yield f"  {word:9}{finding.kind} {finding.subject}: {finding.text}{failure}"
    if not report.findings:
        yield "  nothing"
    elif not repair:
        yield "  `transom doctor --repair` puts this right"
    if report.remarks:
        yield "Not judged"
        yield from (f"  {remark}" for remark in report.remarks)
