"""The proof's outcome as one JSON file and one page, in Markdown and HTML, made of the same sentences and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nightjar.deployments.proof.kit.chosen import Chosen
from nightjar.deployments.proof.kit.phases.off import OFF
from nightjar.deployments.proof.kit.tasks import Found, Outcomes, Phase, Verdict
from nightjar.deployments.proof.kit.telling import Cleaner
from nightjar.loadtests.report.page import render

FILE_NAME: Final = "proof"
TITLE: Final = "Nightjar: GPU proof"
TITLE_ON_RIG: Final = "Nightjar: the GPU proof's rehearsal, on a CPU"
HEADS: Final = ("phase", "verdict", "seconds")


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
    lines += [part for answer in _first_answer(judged) for part in (f"**{_escaped(answer)}**", "")]
    lines += _markdown_table(HEADS, [_row(each) for each in judged])
    for each in judged:
        lines += [f"## {each.phase.title}: {each.found.verdict.value}", ""]
        for sentence in each.found.sentences:
            lines += [_escaped(sentence), ""]
        for table in each.found.tables:
            lines += _markdown_table(table.headings, table.rows) if table.rows else []
    return "\n".join(lines).rstrip() + "\n"


def as_html(judged: Sequence[Judged], chosen: Chosen) -> str:
    """One file that loads nothing."""
    return render(
        "proof.html",
        title=_title(chosen),
        headline=_headline(judged, chosen),
        answers=_first_answer(judged),
        heads=HEADS,
        overview=[_row(each) for each in judged],
        judged=judged,
        verdicts=set(Verdict),
    )


def _title(chosen: Chosen) -> str:
    return TITLE_ON_RIG if chosen.on_rig else TITLE


def _headline(judged: Sequence[Judged], chosen: Chosen) -> str:
    counts = {verdict: sum(each.found.verdict is verdict for each in judged) for verdict in Verdict}
    told = ", ".join(f"{count} {verdict.value}" for verdict, count in counts.items() if count)
    models = ", ".join(f"{role} {name}" for role, name in chosen.names.items())
    rig = " On the rig times mean nothing, and no graph is captured." if chosen.on_rig else ""
    return f"{told}. Seed {chosen.seed}; {models}.{rig}"


def _first_answer(judged: Sequence[Judged]) -> list[str]:
    """What decides whether the rest matters to a reader: what off costs, or why that is not known. None where it was not asked."""
    return [sentence for each in judged if each.phase is OFF for sentence in each.found.sentences[:1]]


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
