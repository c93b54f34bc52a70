"""The HTML frame of a simulated run's report; policy_report.py fills it in."""

from __future__ import annotations

from typing import Final

from nightjar.loadtests.page import STYLE

PAGE: Final = (
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Nightjar: the planner against its rivals</title>
<style>
"""
    + STYLE
    + """:root { --c0: #1f6f8b; --c1: #111111; --c2: #c8553d; --c3: #8a6d3b;
        --c4: #6a4c93; --c5: #2e7d4f; --c6: #b56576; --c7: #8d99ae; }
@media (prefers-color-scheme: dark) {
  :root { --c0: #6cc4e0; --c1: #ffffff; --c2: #f08a72; --c3: #d9b36c;
          --c4: #b39ddb; --c5: #6fcf97; --c6: #e8a0b4; --c7: #7d8699; } }
.line.c0 { stroke: var(--c0); } .dot.c0 { fill: var(--c0); } .key.c0::before { color: var(--c0); }
.line.c1 { stroke: var(--c1); } .dot.c1 { fill: var(--c1); } .key.c1::before { color: var(--c1); }
.line.c2 { stroke: var(--c2); } .dot.c2 { fill: var(--c2); } .key.c2::before { color: var(--c2); }
.line.c3 { stroke: var(--c3); } .dot.c3 { fill: var(--c3); } .key.c3::before { color: var(--c3); }
.line.c4 { stroke: var(--c4); } .dot.c4 { fill: var(--c4); } .key.c4::before { color: var(--c4); }
.line.c5 { stroke: var(--c5); } .dot.c5 { fill: var(--c5); } .key.c5::before { color: var(--c5); }
.line.c6 { stroke: var(--c6); } .dot.c6 { fill: var(--c6); } .key.c6::before { color: var(--c6); }
.line.c7 { stroke: var(--c7); } .dot.c7 { fill: var(--c7); } .key.c7::before { color: var(--c7); }
.line.c0 { stroke-width: 2.2; } .line.c1 { stroke-dasharray: 5 3; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(360px, 1fr)); gap: .8rem; }
.charts p { margin: 0; color: var(--dim); font-size: .85rem; text-align: center; }
td.missed { color: var(--bad); font-weight: 700; } td.reached { color: var(--good); }
td.left, th.left { text-align: left; white-space: normal; }
</style>
</head>
<body>
<h1>The planner against its rivals</h1>
<p class="headline">$headline</p>
<p class="dim">$facts</p>
<p class="caption">$caption</p>
$body
</body>
</html>
"""
)
