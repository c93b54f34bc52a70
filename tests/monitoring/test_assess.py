"""`nightjar assess` against a real Prometheus, filled from a recorded run: what it tells is what happened.

The run is simulated: three hours of one slow engine with K = 3 in every step and one without speculation, under the same changing
load, and a third that never drafts. The truth is the simulator's own, and the same load under the planner.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from typer.testing import CliRunner

from nightjar.cluster.cli import app
from nightjar.policy.wire.batch_buckets import batch_bucket
from tests.loadtests.assessment.recorded_run import Recorded, run, write_openmetrics
from tests.monitoring.prometheus import PROMTOOL, running_prometheus

PROFILE: Final = "qwen-32b-0.5b-2xl20"
USERS: Final = (5, 10, 28, 56, 80, 20)
PAGE: Final = Path(__file__).parents[2] / "docs/assess.md"
PHASE_S: Final = 1800.0
HOURS: Final = len(USERS) * PHASE_S / 3600.0
RESTARTED_AT_S: Final = 4000.0
"""When the process with the fixed K begins anew, so that its counters fall."""
WITHIN: Final = 0.05
MOST_POINTS: Final = 0.10


@dataclass(frozen=True)
class Filled:
    """A Prometheus with the recorded run in it, and what really happened."""

    url: str
    until_s: float
    fixed: Recorded
    off: Recorded
    planned: Recorded

    def assess(self, *words: str) -> Any:
        command = ["assess", "--prometheus", self.url, "--hours", str(HOURS), "--until", _moment(self.until_s), *words]
        return CliRunner().invoke(app, command)

    def found(self, *words: str) -> Any:
        done = self.assess("--profile", PROFILE, "-o", "json", *words)
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """The run in blocks, as `promtool` writes them; the model `chat` by vLLM's names, `plain` by Ray's."""
    assert PROMTOOL, "no promtool on the path: run `make monitoring`"
    folder = tmp_path_factory.mktemp("assess")
    fixed, off, planned = (run(name, profile=PROFILE, users=USERS, phase_s=PHASE_S) for name in ("fixed-3", "off", "fleet"))
    until_s = float(int(time.time()) - 7200)
    engines = (
        ({"model_name": "chat", "engine": "0", "instance": "a:8000"}, "vllm:", fixed.restarted(RESTARTED_AT_S)),
        ({"model_name": "chat", "engine": "0", "instance": "b:8000"}, "vllm:", off),
        ({"model_name": "plain", "engine": "0", "ReplicaId": "r1", "WorkerId": "w1"}, "ray_vllm_", off),
    )
    write_openmetrics(folder / "metrics.txt", engines, until_s - HOURS * 3600.0)
    written = subprocess.run(
        [PROMTOOL, "tsdb", "create-blocks-from", "openmetrics", folder / "metrics.txt", folder / "data"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert written.returncode == 0, written.stdout + written.stderr
    with running_prometheus(folder) as server:
        yield Filled(server.url, until_s, fixed, off, planned)


def _moment(time_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


CHAT: Final = ("--selector", 'model_name="chat"')
PLAIN: Final = ("--selector", 'model_name="plain"')


def test_the_batch_histogram_is_that_of_the_run(filled: Filled) -> None:
    told = {batch_bucket(row["first_batch_size"]): row["share"] for row in filled.found(*CHAT)["batches"]}
    spent: dict[int, float] = {}
    for recorded in (filled.fixed, filled.off):
        for bucket, seconds in recorded.batch_seconds.items():
            spent[bucket] = spent.get(bucket, 0.0) + seconds
    truth = {bucket: seconds / sum(spent.values()) for bucket, seconds in spent.items()}
    assert sum(abs(told.get(bucket, 0.0) - truth.get(bucket, 0.0)) for bucket in {*told, *truth}) / 2.0 <= WITHIN


def test_acceptance_is_that_of_the_run_though_counters_fell(filled: Filled) -> None:
    shares = [kept / rows for kept, rows in zip(filled.fixed.accepted, filled.fixed.reached, strict=True)]
    assert filled.found(*CHAT)["acceptance"] == pytest.approx(shares, rel=WITHIN)


def test_half_of_the_hours_ran_k_3_and_half_ran_off(filled: Filled) -> None:
    rows = filled.found(*CHAT)["batches"]
    hours = {
        k: sum(row["hours"] * one["share"] for row in rows for one in row["ran"] if one["num_speculative_tokens"] == k)
        for k in (0, 3)
    }
    assert hours == pytest.approx({0: HOURS, 3: HOURS}, rel=WITHIN)


def test_the_interval_of_the_gain_holds_the_measured_ratio_and_is_narrow(filled: Filled) -> None:
    before = filled.fixed.totals + filled.off.totals
    measured = filled.planned.totals.goodput / before.goodput
    gain = filled.found(*CHAT)["gain"]
    assert gain["low"] <= measured <= gain["high"], (measured, gain)
    assert gain["high"] - gain["low"] <= MOST_POINTS


def test_where_nothing_was_drafted_no_gain_is_told(filled: Filled) -> None:
    found = filled.found(*PLAIN)
    assert found["gain"] is None
    assert [row["gain"] for row in found["batches"]] == [None] * len(found["batches"])
    assert "acceptance is unknown" in found["silent"]
    assert all(0.0 < row["break_even"] < 1.0 for row in found["batches"] if row["first_batch_size"] < 32)


def test_a_table_and_a_page_are_written(filled: Filled, tmp_path: Path) -> None:
    done = filled.assess("--profile", PROFILE, "--page", str(tmp_path / "page.html"), *CHAT)
    assert done.exit_code == 0, done.stderr
    assert "The planner would have given +" in done.stdout
    assert "The planner would have given +" in (tmp_path / "page.html").read_text()


def test_the_pages_example_is_rows_of_this_run(filled: Filled) -> None:
    done = filled.assess("--profile", PROFILE, *CHAT)
    example = PAGE.read_text().partition("```text")[2].partition("```")[0]
    printed, shown = table_rows(done.stdout), table_rows(example)
    assert headline_points(example) == pytest.approx(headline_points(done.stdout), abs=1.0), done.stdout
    by_batch = {row[0]: row for row in printed}
    same = [by_batch[row[0]] for row in shown]
    assert [row[:-1] for row in shown] == [row[:-1] for row in same], done.stdout
    assert [points(row[-1]) for row in shown] == pytest.approx([points(row[-1]) for row in same], abs=1.0), done.stdout
    assert len(shown) >= 4


def table_rows(text: str) -> list[list[str]]:
    """Cells of the rows of a Markdown table, without its heads."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")][2:]


def headline_points(text: str) -> list[float]:
    """The gain and its interval."""
    (line,) = (line for line in text.splitlines() if line.startswith("The planner would have given"))
    return [float(number) for number in re.findall(r"([+-][\d.]+) %", line)]


def points(gain: str) -> float:
    return float(gain.removesuffix("%"))


def test_a_prometheus_without_the_metrics_is_one_line(filled: Filled) -> None:
    done = filled.assess("--selector", 'model_name="nobody"')
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "no series vllm:num_requests_running or ray_vllm_num_requests_running" in done.stderr


def test_what_prometheus_refuses_is_one_line_in_its_words(filled: Filled) -> None:
    done = filled.assess("--selector", "model_name=chat")
    assert (done.exit_code, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert "refused the query" in done.stderr
