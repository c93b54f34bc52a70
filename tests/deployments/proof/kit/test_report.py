"""The page and the JSON: the same verdicts in all three, and nothing in them that may not leave the machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from nightjar.deployments.proof.kit import report
from nightjar.deployments.proof.kit.plan import PHASES
from nightjar.deployments.proof.kit.report import Judged, as_html, as_markdown, judge_all, write
from nightjar.deployments.proof.kit.telling import Cleaner
from tests.deployments.proof.kit.outcomes import ON_RIG, good_run

SECRET = "sEcReT-of-theirs"


def judged(run: Mapping[str, Any]) -> tuple[list[Judged], Cleaner]:
    cleaner = Cleaner([], {"HF_TOKEN": SECRET})
    return judge_all(PHASES, run, ON_RIG, {"facts": 7.0}, cleaner), cleaner


def test_all_three_files_hold_every_phase_with_its_verdict(tmp_path: Path) -> None:
    found, cleaner = judged(good_run())
    files = write(tmp_path, found, good_run(), ON_RIG, cleaner)
    assert [file.name for file in files] == ["proof.json", "proof.md", "proof.html"]
    plain = json.loads(files[0].read_text())
    assert [(phase["name"], phase["verdict"]) for phase in plain["phases"]] == [
        (each.phase.name, each.found.verdict.value) for each in found
    ]
    for each in found:
        assert f"## {each.phase.title}: {each.found.verdict.value}\n" in files[1].read_text()
        assert f"<h2>{escape(each.phase.title)}: <span" in files[2].read_text()
    assert "8 proved, 2 measured. Seed 0;" in files[1].read_text()


def test_what_off_costs_is_asked_first_and_stands_above_all_verdicts() -> None:
    found, _ = judged(good_run())
    assert found[0].phase.name == "off"
    answer = found[0].found.sentences[0]
    assert "least 0.980 (0.980 to 0.980) (draft, 2 rows of 256 tokens)" in answer
    for page, words in ((as_markdown(found, ON_RIG), answer), (as_html(found, ON_RIG), str(escape(answer)))):
        assert page.index(words) < page.index(PHASES[-1].title)
        assert page.count(words) == 2
    assert answer not in as_markdown(found[1:], ON_RIG)


def test_no_answer_and_no_secret_is_in_any_file(tmp_path: Path) -> None:
    run = good_run()
    run["correctness.draft"] = {"error": f"OSError: no access with {SECRET}"}
    run["start-up.draft"]["notice"] = f"said {SECRET}"
    run["catch-up.draft"]["lags"]["catch-up-8"]["answers"]["a"]["text"] = "an answer"
    found, cleaner = judged(run)
    for file in write(tmp_path, found, run, ON_RIG, cleaner):
        text = file.read_text()
        assert SECRET not in text
        assert "an answer" not in text
        assert "no access with ***" in text


def test_what_a_table_or_a_sentence_holds_can_break_no_page() -> None:
    run = good_run()
    run["start-up.draft"]["notice"] = "a <b>bold</b> | bar\nand a line"
    found, _ = judged(run)
    assert "a &lt;b&gt;bold&lt;/b&gt; | bar" in as_html(found, ON_RIG)
    assert "a &lt;b>bold&lt;/b> \\| bar and a line" in as_markdown(found, ON_RIG)


def test_a_phase_whose_files_cannot_be_read_is_a_failed_one_and_the_others_are_judged() -> None:
    run = good_run()
    del run["off.draft"]["places"]
    found, _ = judged(run)
    assert {each.phase.name: each.found.verdict.value for each in found if each.found.verdict.value == "failed"} == {
        "off": "failed"
    }


@pytest.mark.parametrize("make", [report.as_markdown, report.as_html])
def test_a_run_on_the_rig_says_so_in_its_title(make: Any) -> None:
    found, _ = judged(good_run())
    assert "rehearsal, on a CPU" in make(found, ON_RIG)
