"""The reports' HTML: the style that all of them share, and the frame of a recorded run's report, which report.py fills in."""

from __future__ import annotations

from typing import Final

COLOURS: Final = """:root { --ink: #1d2430; --dim: #6b7686; --paper: #fbfbf9; --rule: #e2e5ea; --band: #eef1f6;
        --main: #1f6f8b; --second: #c8553d; --soft: #9fb8c8; --good: #2e7d4f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --dim: #98a2b3; --paper: #14181f; --rule: #2c333f; --band: #1d232d;
          --main: #6cc4e0; --second: #f08a72; --soft: #4a6375; --good: #6fcf97; --bad: #ff8a80; } }
"""
"""As variables, in their light and dark variants."""

CHARTS: Final = """.grid { stroke: var(--rule); } .band { fill: var(--band); }
.tick, .phase { fill: var(--dim); font-size: 9px; } .tick.y { text-anchor: end; } .tick.x, .phase { text-anchor: middle; }
.line { fill: none; stroke-width: 1.6; } .line.main { stroke: var(--main); } .line.second { stroke: var(--second); }
.dot { fill-opacity: .65; } .dot.main, .bar.main { fill: var(--main); } .dot.soft, .bar.soft { fill: var(--soft); }
.dot.second { fill: var(--second); }
.forest text { fill: var(--ink); font-size: 9.5px; }
.forest .group { font-weight: 600; paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
.forest .value { fill: var(--dim); }
.forest .middle { text-anchor: middle; } .forest .axis { stroke: var(--dim); stroke-dasharray: 2 2; }
.forest .whisker { stroke: var(--dim); stroke-width: 1.6; } .forest .point { fill: var(--dim); }
.forest .faster .whisker { stroke: var(--good); } .forest .faster .point { fill: var(--good); }
.forest .slower .whisker { stroke: var(--bad); } .forest .slower .point { fill: var(--bad); }
.marker { stroke: var(--bad); stroke-dasharray: 4 3; stroke-width: 1.4; }
"""
"""What charts.py draws."""

STYLE: Final = (
    COLOURS
    + """body { margin: 2rem auto; max-width: 1240px; padding: 0 1.2rem; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; }
h3 { text-align: center; margin: 1.5rem 0 0; }
h4 { margin: 1.1rem 0 .2rem; }
h4 small { font-weight: normal; color: var(--dim); }
.headline { font-size: 1.1rem; }
.dim, .caption { color: var(--dim); }
.caption { max-width: 62rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--dim); font-weight: 600; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
tr.total td { border-bottom: 2px solid var(--dim); font-weight: 600; }
.wide { overflow-x: auto; }
li.held i { color: var(--good); } li.failed i { color: var(--bad); font-weight: 700; }
svg { width: 100%; height: auto; display: block; }
"""
    + CHARTS
    + """.key { margin-left: .9em; } .key::before { content: "\\25A0 "; }
.key.main::before { color: var(--main); } .key.second::before { color: var(--second); } .key.soft::before { color: var(--soft); }
"""
)
"""Colours, tables and charts; no `$`, so it may stand in a string.Template."""

PAGE: Final = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Nightjar: speculation under load</title>
<style>
"""
    + STYLE
    + """.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(280px, 100%), 1fr)); gap: .8rem; }
.story { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr)); gap: 0 2rem; align-items: start; }
.story h4 { margin-top: .4rem; } .of { color: var(--dim); font-size: .85rem; text-align: center; }
p, li { overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>Nightjar: speculation under load</h1>
<p class="dim">$facts</p>
<p class="headline">$headline</p>
<div class="story">$story</div>
<p class="caption">$learning</p>
<h2>What was checked</h2>
<ul>$checks</ul>
<h2>What was measured</h2>
<div class="wide"><table><thead><tr>$head</tr></thead><tbody>$body</tbody></table></div>
<p class="caption">$caption</p>
<p class="caption">Requests count in the phase in which they arrived, engine steps in the phase during which they ran;
the last phase ends with the last answer. A phase without arrivals has no row: what ran in it was asked for before, and counts in
all. A mode that is behind after the surge answers the rest of it in the phases that follow, and its numbers there tell of both.
Engine ms per token is the step time of all engines over their generated tokens; its inverse over that of off is the column of off.
TTFT includes connecting. TPOT is the time from a request's first text to its last over the tokens after the first.
Medians are shown with the maximum, because requests are few.
A dashed red line marks the moment at which the policy actor was killed.</p>
<p class="caption">$run</p>
$charts
</body>
</html>
"""
)
