"""Findings as one page: self-contained HTML, light and dark, no script, no other file, nothing that loads or sends."""

from __future__ import annotations

from html import escape
from string import Template
from typing import Final

from nightjar.loadtests.assessment.findings import BatchRow, Findings
from nightjar.loadtests.assessment.table import acceptance, cells, columns, facts, headline, shipped_profile
from nightjar.loadtests.page import STYLE
from nightjar.policy.planners.base import batch_range

PAGE: Final = Template(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Nightjar: what speculation could gain here</title>
<style>
"""
    + STYLE
    + """table { width: auto; }
.hours { display: grid; grid-template-columns: max-content 1fr max-content; gap: .2rem .8rem; max-width: 46rem; }
.hours span { text-align: right; } .hours i { background: var(--main); height: 1.1em; align-self: center; }
.hours i.off { background: var(--soft); } .stack { display: flex; } .key.off::before { content: "\\25A0 "; color: var(--soft); }
</style>
</head>
<body>
<h1>What speculation could gain here</h1>
<p class="headline">$headline</p>
<p class="dim">$facts</p>
<p>$acceptance</p>
<h4>Busy hours by requests running <small><span class="key main">drafted</span> <span class="key off">not</span></small></h4>
<div class="hours">$bars</div>
<h4>What ran, and what the planner would run</h4>
<div class="wide"><table><thead><tr>$head</tr></thead><tbody>$body</tbody></table></div>
$profiles
<h4>What this cannot know</h4>
<ul>$unknown</ul>
<p class="caption">Read from $prometheus$selector by <code>nightjar assess</code>. Gains are predicted from a profile of step times,
not measured.
The interval holds two standard deviations of acceptance, step times and sampling, and 2.5 % that learning may cost.</p>
</body>
</html>
"""
)


def render_page(found: Findings) -> str:
    """The page."""
    heads = columns(found)
    profiles = "".join(f"<li>{escape(shipped_profile(profile))}</li>" for profile in found.shipped)
    return PAGE.substitute(
        headline=escape(headline(found)),
        facts=escape(facts(found)),
        acceptance=escape(acceptance(found)),
        bars="".join(_bar(row, max(row.hours for row in found.batches)) for row in found.batches),
        head="".join(f"<th>{escape(head)}</th>" for head in heads),
        body="".join(_row(cells(row, len(heads))) for row in found.batches),
        profiles=f"<h4>Profiles to choose from</h4><ul>{profiles}</ul>" if profiles else "",
        unknown="".join(f"<li>{escape(sentence)}</li>" for sentence in found.unknown),
        prometheus=escape(found.prometheus),
        selector=escape(f", {found.selector}" if found.selector else ""),
    )


def _row(texts: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in texts) + "</tr>"


def _bar(row: BatchRow, most_hours: float) -> str:
    width = 100.0 * row.hours / most_hours
    off = sum(one.share for one in row.ran if one.num_speculative_tokens == 0)
    parts = f'<i style="width:{width * (1.0 - off):.1f}%"></i><i class="off" style="width:{width * off:.1f}%"></i>'
    batch = escape(batch_range(row.first_batch_size, row.last_batch_size))
    return f'<span>{batch}</span><div class="stack">{parts}</div><span>{row.hours:.2f} h</span>'
