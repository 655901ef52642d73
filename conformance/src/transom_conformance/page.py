"""The report as a page: one file that needs nothing else, for a screen of any width, in light or dark, or on paper."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from transom_conformance.report import OUTCOMES, Case, Report, count, groups, verdict

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2128; --faint: #59636e; --line: #d8dee4; --panel: #f6f8fa;
  --passed: #1a7f37; --failed: #b42318; --failed-paper: #fff1f0; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f1318; --ink: #e2e7ec; --faint: #9aa5b1; --line: #2c343d;
  --panel: #171c23; --passed: #4ac26b; --failed: #ff8077; --failed-paper: #2b1615; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 62rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }
h1 + table { margin: 1rem 0; }
h2 { margin: 3rem 0 0; padding-top: 1.5rem; border-top: 3px solid var(--ink); font-size: 1.4rem; }
h3 { margin: 2.2rem 0 .6rem; font-size: 1.05rem; }
h3 small { margin-left: .5rem; font-weight: normal; color: var(--faint); }
p { margin: .35rem 0; }
a { color: inherit; }
.faint { color: var(--faint); }
.verdict { margin: .5rem 0 1.25rem; font-size: 1.1rem; font-weight: 600; color: var(--passed); }
.verdict.failed { color: var(--failed); }
.counts { display: grid; grid-template-columns: repeat(4, 1fr); gap: .75rem; margin: 1rem 0; padding: 0; }
.counts div { padding: .6rem .9rem; border: 1px solid var(--line); border-radius: 8px; background: var(--panel); }
.counts dt { font-size: .85rem; color: var(--faint); }
.counts dd { margin: 0; font-size: 1.6rem; font-weight: 600; line-height: 1.25; font-variant-numeric: tabular-nums; }
.counts .passed dd { color: var(--passed); }
.counts .failed dd { color: var(--failed); }
.counts .none dd { color: var(--faint); font-weight: normal; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1.25rem; margin: 1rem 0; }
.facts dt { color: var(--faint); }
.facts dd { margin: 0; }
.facts .words { margin-bottom: .2rem; }
.words { display: flex; flex-wrap: wrap; gap: .35rem; }
.words span { padding: 0 .6rem; border: 1px solid var(--line); border-radius: 1rem; font-size: .875rem; }
.words .yes { background: var(--panel); }
.words .no { border-style: dashed; color: var(--faint); }
table { width: 100%; border-collapse: collapse; }
td, th { padding: .45rem 0; border-top: 1px solid var(--line); vertical-align: baseline; text-align: left; }
th { font-weight: normal; }
td:first-child { width: 6rem; padding-right: .75rem; font-size: .875rem; color: var(--faint); white-space: nowrap; }
td:last-child { width: 5rem; padding-left: .75rem; text-align: right; font-size: .875rem; color: var(--faint);
  white-space: nowrap; font-variant-numeric: tabular-nums; }
tr.passed td:first-child { color: var(--passed); }
tr.failed td:first-child { color: var(--failed); font-weight: 600; }
th p { margin: 0; font-size: .875rem; color: var(--faint); }
th .why { color: var(--failed); }
.failure { margin: .75rem 0; padding: .9rem 1rem; border-left: 4px solid var(--failed); border-radius: 0 8px 8px 0;
  background: var(--failed-paper); }
code { font: .9em ui-monospace, "DejaVu Sans Mono", monospace; }
pre { margin: .75rem 0 0; font: .8125rem/1.45 ui-monospace, "DejaVu Sans Mono", monospace; white-space: pre-wrap; }
footer { margin-top: 3rem; font-size: .875rem; color: var(--faint); }
@media (max-width: 36rem) { body { padding: 1.25rem 1rem 3rem; }
  .counts { grid-template-columns: repeat(2, 1fr); }
  tr { display: grid; grid-template-columns: 1fr auto; padding: .5rem 0; border-top: 1px solid var(--line); }
  td, th { border: 0; padding: 0; } th { grid-column: 1 / 3; grid-row: 1; }
  td:first-child, td:last-child { width: auto; padding: 0; grid-row: 2; } }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } h2 { break-before: page; }
  tr, .failure, .counts { break-inside: avoid; } h3 { break-after: avoid; } }
"""


def page(reports: Sequence[Report]) -> str:
    """Return the reports as one HTML document; of several, the first lines lead to each."""
    only = len(reports) == 1
    title = f"{_who(reports[0])}: conformance" if only else "Conformance of drivers"
    body = _driver(reports[0], heading="h1", facts=_host(reports[0])) if only else _several(title, reports)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="transom-conformance">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<footer>Made by <code>transom conformance</code>. A case that was skipped or is not claimed proves nothing.</footer>
</body>
</html>
"""


def _who(report: Report) -> str:
    return _upper(f"{report.kind} driver {report.driver}")


def _host(report: Report) -> dict[str, str]:
    """Return the facts that reports of one run share."""
    return {**report.host, "core": report.core, "started": re.sub("[TZ]", " ", report.started) + "UTC"}


def _several(title: str, reports: Sequence[Report]) -> str:
    rows = "".join(
        f'<tr class="{"passed" if r.proved else "failed"}"><td>{"passed" if r.proved else "failed"}</td>'
        f'<th scope="row"><a href="#{_anchor(r)}">{escape(_who(r))}</a></th>'
        f"<td>{r.passed} of {r.passed + r.failed}</td></tr>"
        for r in reports
    )
    drivers = "".join(_driver(report, heading="h2", facts={}) for report in reports)
    return f"<h1>{escape(title)}</h1>\n<table>{rows}</table>\n{_facts(_host(reports[0]))}\n{drivers}"


def _anchor(report: Report) -> str:
    return escape(f"{report.kind}-{report.driver}")


def _driver(report: Report, *, heading: str, facts: dict[str, str]) -> str:
    failures = [case for case in report.cases if case.outcome == "failed"]
    options = ", ".join(f"{key}={value}" for key, value in report.options.items()) or "as they come"
    facts = {"distribution": f"{report.distribution} {report.version}", "options": options, **facts}
    return f"""<section>
<{heading} id="{_anchor(report)}">{escape(_who(report))}</{heading}>
<p class="verdict{"" if report.proved else " failed"}">{escape(_upper(verdict(report)))}</p>
{_counts(report)}
{_facts(facts, _words("claimed", "yes", report.capabilities) + _words("not claimed", "no", report.undeclared))}
{"<h3>Failures</h3>" if failures else ""}
{"".join(map(_failure, failures))}
{"".join(_section(name, cases) for name, cases in groups(report.cases).items())}
</section>
"""


def _words(title: str, css: str, words: Sequence[str]) -> str:
    shown = "".join(f'<span class="{css}">{escape(word)}</span>' for word in words) or "nothing"
    return f'<dt>{title}</dt><dd class="words">{shown}</dd>'


def _counts(report: Report) -> str:
    numbers = count(report.cases)
    return (
        '<dl class="counts">'
        + "".join(
            f'<div class="{outcome if numbers[key] else "none"}"><dt>{outcome}</dt><dd>{numbers[key]}</dd></div>'
            for outcome, key in zip(OUTCOMES, numbers, strict=True)
        )
        + "</dl>"
    )


def _facts(facts: dict[str, str], more: str = "") -> str:
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{more}{rows}</dl>'


def _failure(case: Case) -> str:
    return f"""<article class="failure">
<strong>{escape(_upper(case.name))}</strong>
<p>{escape(case.reason)}</p>
<pre>{escape(case.trace)}</pre>
</article>
"""


def _section(name: str, cases: Sequence[Case]) -> str:
    numbers = "".join(f", {n} {outcome.replace('_', ' ')}" for outcome, n in count(cases).items() if n)
    took = sum(case.seconds for case in cases)
    before = ["", *(case.doc for case in cases)]  # what many parameters share is said once
    rows = "".join(_row(case, "" if case.doc == said else case.doc) for case, said in zip(cases, before, strict=False))
    return f"<h3>{escape(name)}<small>{numbers[2:]} in {took:.1f} s</small></h3>\n<table>{rows}</table>\n"


def _row(case: Case, doc: str) -> str:
    said = re.sub("`([^`]+)`", r"<code>\1</code>", escape(doc))
    why = f"<p{' class=why' if case.outcome == 'failed' else ''}>{escape(case.reason)}</p>" if case.reason else ""
    return (
        f'<tr class="{case.outcome.replace(" ", "-")}"><td>{case.outcome}</td>'
        f'<th scope="row">{escape(_upper(case.name))}{f"<p>{said}</p>" if said else ""}{why}</th>'
        f"<td>{case.seconds:.2f} s</td></tr>\n"
    )


def _upper(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
