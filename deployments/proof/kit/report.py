"""The proof's outcome as one JSON file and one page, in Markdown and HTML, made of the same sentences and tables."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Verdict
from nightjar.deployments.proof.kit.telling import Cleaner

FILE_NAME: Final = "proof"
TITLE: Final = "Nightjar: GPU proof"
TITLE_ON_RIG: Final = "Nightjar: the GPU proof's rehearsal, on a CPU"
_STYLE: Final = """
:root { --ink: #1d2430; --dim: #667085; --paper: #fbfbf9; --rule: #e2e5ea; --good: #2e7d4f; --bad: #b3261e; --measured: #1f6f8b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --dim: #98a2b3; --paper: #14181f; --rule: #2c333f;
          --good: #6fcf97; --bad: #ff8a80; --measured: #6cc4e0; } }
body { margin: 2rem auto; max-width: 66rem; padding: 0 1.2rem; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
p.dim, .seconds { color: var(--dim); }
.wide { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem .25rem 0; text-align: left; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--dim); font-weight: 600; }
.verdict { font-weight: 700; } .proved { color: var(--good); } .failed { color: var(--bad); } .measured { color: var(--measured); }
.left { color: var(--dim); }
"""


@dataclass(frozen=True, slots=True)
class Judged:
    """A phase and what was found."""

    phase: Phase
    found: Found
    seconds: float


def judge_all(
    phases: Sequence[Phase], outcomes: Outcomes, chosen: Chosen, seconds: Mapping[str, float], cleaner: Cleaner
) -> list[Judged]:
    """Verdicts in words that may leave the machine. A verdict that cannot be made is a failed one."""
    judged = []
    for phase in phases:
        try:
            found = phase.judge(outcomes, chosen)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            found = Found(Verdict.FAILED, [f"what its tasks gave cannot be read ({type(error).__name__}: {error})"])
        found.sentences = [cleaner.clean(sentence) for sentence in found.sentences]
        for table in found.tables:
            table.rows = [[cleaner.clean(cell) for cell in row] for row in table.rows]
        judged.append(Judged(phase, found, seconds.get(phase.name, 0.0)))
    return judged


def write(out: Path, judged: Sequence[Judged], outcomes: Outcomes, chosen: Chosen, cleaner: Cleaner) -> list[Path]:
    """The three files, newest verdicts in all."""
    texts = {
        ".json": as_json(judged, outcomes, chosen, cleaner),
        ".md": as_markdown(judged, chosen),
        ".html": as_html(judged, chosen),
    }
    files = []
    for ending, text in texts.items():
        file = out / f"{FILE_NAME}{ending}"
        file.write_text(text, encoding="utf-8")
        files.append(file)
    return files


def as_json(judged: Sequence[Judged], outcomes: Outcomes, chosen: Chosen, cleaner: Cleaner) -> str:
    """Verdicts and what was measured, without texts."""
    plain: dict[str, Any] = {
        "on_rig": chosen.on_rig,
        "seed": chosen.seed,
        "models": chosen.names,
        "phases": [
            {
                "name": each.phase.name,
                "verdict": each.found.verdict.value,
                "seconds": round(each.seconds, 1),
                "sentences": each.found.sentences,
                "tables": [{"headings": list(table.headings), "rows": table.rows} for table in each.found.tables],
            }
            for each in judged
        ],
        "measured": cleaner.cleaned(outcomes),
    }
    return json.dumps(plain, indent=1, ensure_ascii=False) + "\n"


def as_markdown(judged: Sequence[Judged], chosen: Chosen) -> str:
    """For an issue or a mail."""
    lines = [f"# {_title(chosen)}", "", _headline(judged, chosen), ""]
    lines += _markdown_table(("phase", "verdict", "seconds"), [_row(each) for each in judged])
    for each in judged:
        lines += [f"## {each.phase.title}: {each.found.verdict.value}", ""]
        for sentence in each.found.sentences:
            lines += [_escaped(sentence), ""]
        for table in each.found.tables:
            lines += _markdown_table(table.headings, table.rows) if table.rows else []
    return "\n".join(lines).rstrip() + "\n"


def as_html(judged: Sequence[Judged], chosen: Chosen) -> str:
    """One file that loads nothing."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        f"<title>{html.escape(_title(chosen))}</title><style>{_STYLE}</style></head><body>",
        f'<h1>{html.escape(_title(chosen))}</h1><p class="dim">{html.escape(_headline(judged, chosen))}</p>',
        _html_table(("phase", "verdict", "seconds"), [_row(each) for each in judged]),
    ]
    for each in judged:
        parts.append(f"<h2>{html.escape(each.phase.title)}: {_marked(each.found.verdict.value)}</h2>")
        parts += [f"<p>{html.escape(sentence)}</p>" for sentence in each.found.sentences]
        parts += [_html_table(table.headings, table.rows) for table in each.found.tables if table.rows]
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _title(chosen: Chosen) -> str:
    return TITLE_ON_RIG if chosen.on_rig else TITLE


def _headline(judged: Sequence[Judged], chosen: Chosen) -> str:
    counts = {verdict: sum(each.found.verdict is verdict for each in judged) for verdict in Verdict}
    told = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    models = ", ".join(f"{role} {name}" for role, name in chosen.names.items())
    rig = " On the rig times mean nothing, and no graph is captured." if chosen.on_rig else ""
    return f"{told}. Seed {chosen.seed}; {models}.{rig}"


def _row(each: Judged) -> list[str]:
    return [each.phase.title, each.found.verdict.value, f"{each.seconds:.0f}" if each.seconds else "ran before"]


def _markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(map(_escaped, headings)) + " |",
        "| " + " | ".join("---" for _ in headings) + " |",
        *("| " + " | ".join(map(_escaped, row)) + " |" for row in rows),
        "",
    ]


def _escaped(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{_marked(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _marked(text: str) -> str:
    """A verdict in its colour; any other text as it is."""
    if text in {verdict.value for verdict in Verdict}:
        return f'<span class="verdict {text.partition(" ")[0]}">{text}</span>'
    return html.escape(text)
