"""Makes the recording that `nightjar assess --sample` reads, in the form of a Prometheus' answer.

    python -m tests.loadtests.assessment.sample > loadtests/assessment/sample.json

Two simulated engines of the profile `qwen-32b-0.5b-2xl20` under the same changing load, one with K = 3 and one without speculation,
scraped every 30 s: the run of docs/assess.md, shorter. Nothing of it was measured. Deterministic: the same bytes each time.
"""

from __future__ import annotations

import json
import sys
from typing import Final

from nightjar.loadtests.assessment.scrapes import MODEL
from tests.loadtests.assessment.recorded_run import PERIOD_S, labelled, run

PROFILE: Final = "qwen-32b-0.5b-2xl20"
USERS: Final = (4, 10, 20, 28, 56, 80)
PHASE_S: Final = 900.0
BEGIN_S: Final = 1_767_225_600.0
"""2026-01-01, midnight UTC."""
SOURCE: Final = "tests/loadtests/assessment/sample.py"
KEPT: Final = 2
"""Every second scrape."""


def engine_series(planner: str) -> list[dict[str, object]]:
    """What was scraped of one engine."""
    recorded = run(planner, profile=PROFILE, users=USERS, phase_s=PHASE_S)
    return [
        {
            "metric": labels | {MODEL: "simulated-32b"},
            "values": [(round(BEGIN_S + at_s), f"{value:.7g}") for at_s, value in samples[::KEPT]],
        }
        for labels, samples in labelled(recorded, engine=planner)
    ]


def text() -> str:
    """As `/api/v1/query` answers, one series a line, so that a change shows what changed."""
    note = f"Simulated ({PROFILE}, K = 3 and off, a scrape every {PERIOD_S * KEPT:.0f} s), not measured: {SOURCE}"
    lines = [json.dumps(series, separators=(",", ":")) for planner in ("fixed-3", "off") for series in engine_series(planner)]
    head = json.dumps({"status": "success", "note": note, "data": {"resultType": "matrix"}})
    return f'{head[:-2]}, "result": [\n' + ",\n".join(lines) + "\n]}}\n"


if __name__ == "__main__":
    sys.stdout.write(text())
