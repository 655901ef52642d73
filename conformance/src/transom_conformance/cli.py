"""The command ``transom conformance``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from transom_conformance.report import Case, Report
    from transom_conformance.runner import Watcher

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("conformance")
@click.argument("kind", required=False)
@click.argument("driver", required=False)
@click.option("--option", "-o", "options", metavar="KEY=VALUE", multiple=True, help="Set an option of the driver")
@click.option("--select", "-k", metavar="EXPR", default="", help="Run the cases whose names fit ('crash and not disk')")
@click.option("--list", "only_list", is_flag=True, help="List the cases, run none")
@click.option("--all", "-a", "every", is_flag=True, help="Run every driver, of KIND or of all kinds, that can run here")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0, min_open=True),
    help="Fail a case that takes longer (600)",
)
@click.option("--json", "json_file", metavar="FILE", type=_FILE, help="Write the report as JSON (--all: an array)")
@click.option("--junit", "junit_file", metavar="FILE", type=_FILE, help="Write the report as JUnit XML")
@click.option("--html", "html_file", metavar="FILE", type=_FILE, help="Write the report as a page of its own")
@click.option("--badge", "badge_file", metavar="FILE", type=_FILE, help="Write a badge for a README (SVG)")
def conformance_command(
    *,
    kind: str | None,
    driver: str | None,
    options: tuple[str, ...],
    select: str,
    only_list: bool,
    every: bool,
    timeout: float | None,
    json_file: Path | None,
    junit_file: Path | None,
    html_file: Path | None,
    badge_file: Path | None,
) -> int:
    """Prove that a driver works on this host.

    Runs the conformance suite of KIND (storage, network, logging, limits, auth) against the installed DRIVER. The exit
    code is 0 when cases passed and none failed, 1 when one failed or nothing was proved, 125 when nothing could be run.
    """
    from rich.console import Console

    from transom.errors import NotFound, TransomError
    from transom_conformance import report, runner

    _check_arguments(kind, driver, every=every, options=options)
    _check_files(json_file, junit_file, html_file, badge_file)
    given = dict(_pair(text) for text in options)
    console = Console(highlight=False)
    if every:
        chosen = _every(kind, console)
    else:
        assert kind is not None
        assert driver is not None
        chosen = [(kind, driver)]
    reports: list[Report] = []
    broken = False
    for k, d in chosen:
        try:
            if only_list:
                _list(runner.listed(k, d, options=given, select=select), f"{k} {d}" if every else "")
                continue
            show = watcher(console, f"{k} {d}")
            found = runner.run(k, d, options=given, select=select, timeout=timeout or runner.TIMEOUT, watcher=show)
        except TransomError as error:
            if not every:
                raise
            if not isinstance(error, runner.NothingSelected):  # the others have their turn all the same
                broken = True
                console.print(str(error), style="red", markup=False, soft_wrap=True)
        else:
            reports.append(found)
            report.summarize(found, console)
    if only_list:
        return 1 if broken else 0
    if not reports:
        raise NotFound(f"--select {select!r} fits no case of any suite; `transom conformance --all --list` shows them")
    _write(json_file, report.to_json(reports, several=every))
    if junit_file:
        _write(junit_file, report.to_junit(reports))
    if html_file:
        from transom_conformance.page import page

        _write(html_file, page(reports).encode())
    _write(badge_file, report.badge(reports).encode())
    return 0 if all(r.proved for r in reports) and not broken else 1


def _check_arguments(kind: str | None, driver: str | None, *, every: bool, options: tuple[str, ...]) -> None:
    if every and (driver or options):
        raise click.UsageError("--all takes neither DRIVER nor --option")
    if not every and not driver:
        missing = "DRIVER is" if kind else "KIND and DRIVER are"
        raise click.UsageError(f"{missing} missing; `transom drivers ls` shows the installed ones, --all takes each")


def _check_files(*files: Path | None) -> None:
    """Say before a long run that its report could not be written."""
    for file in files:
        if file and not file.absolute().parent.is_dir():
            raise click.UsageError(f"{file}: no such directory: {file.absolute().parent}")


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise click.UsageError(f"--option {text!r} must be KEY=VALUE")
    return key, value


def _every(kind: str | None, console: Console) -> list[tuple[str, str]]:
    """Return the drivers that can run here, and say which cannot."""
    from transom.errors import NotSupported
    from transom_conformance.runner import usable

    chosen = []
    for k, name, reason in usable(kind):
        if reason:
            console.print(f"{k} driver {name} cannot run on this host: {reason}", markup=False, soft_wrap=True)
        else:
            chosen.append((k, name))
    if not chosen:
        raise NotSupported(
            f"no {f'{kind} ' if kind else ''}driver can run on this host; `transom drivers ls` shows all"
        )
    return chosen


def _list(cases: list[Case], title: str) -> None:
    from transom_conformance.report import groups

    if title:
        click.echo(f"\n{title}\n")
    for group, members in groups(cases).items():
        click.echo(group)
        for case in members:
            click.echo(f"  {case.id}")


def _write(file: Path | None, data: bytes) -> None:
    from transom.services.files import write_atomic

    if file:
        write_atomic(file, data, mode=0o644)


def watcher(console: Console, title: str) -> Watcher:
    """Return what shows how a run goes: one line that moves on a terminal, elsewhere a line for each case."""
    from transom_conformance.runner import Watcher

    class Lines(Watcher):
        def finish(self, case: Case) -> None:
            reason = f": {case.reason}" if case.reason else ""
            click.echo(f"{case.outcome:<11} {case.seconds:7.2f} s  {case.name}{reason}")

    if not console.is_terminal:
        return Lines()
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    # No thread of its own: the suite counts threads, and forks.
    progress = Progress(
        TextColumn(title), BarColumn(bar_width=24), MofNCompleteColumn(), TextColumn("{task.description}"),
        console=console, transient=True, auto_refresh=False,
    )  # fmt: skip
    task = progress.add_task("")

    class Moving(Watcher):
        def begin(self, total: int) -> None:
            progress.update(task, total=total)
            progress.start()

        def start(self, name: str) -> None:
            progress.update(task, description=name.replace("[", r"\["), refresh=True)

        def finish(self, case: Case) -> None:
            if case.outcome == "failed":
                progress.console.print(f"failed: {case.name}: {case.reason}", style="red", markup=False)
            progress.advance(task)

        def end(self) -> None:
            progress.stop()  # the cursor shows again

    return Moving()
