"""The figures of README and docs are drawn from the rows beside them, and show what their captions say."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from statistics import fmean
from typing import Final

import pytest

from nightjar.loadtests.demo.command import DEMO_REGIME
from nightjar.loadtests.simulation.planner_names import FLEET, OFF
from tests.reference.figures import changing_load, demo_run

FIGURES: Final = Path(__file__).parents[2] / "docs/figures"
ROWS: Final = changing_load.read(FIGURES / changing_load.ROWS_FILE)
DEMO: Final = demo_run.read(FIGURES / demo_run.ROWS_FILE)
PICTURES: Final = {
    name: (FIGURES / name).read_text(encoding="utf-8") for name in (changing_load.PICTURE_FILE, demo_run.PICTURE_FILE)
}


def at(planner: str, users: int, field: str) -> float:
    """Mean of a planner's points in the later half of the phases with so many users."""
    phases = [number for number, count in enumerate(ROWS.users_per_replica) if count == users]
    ends_s = [(number + 1) * ROWS.phase_s for number in phases]
    points = [
        point
        for point in ROWS.points
        if point.planner == planner and any(end_s - ROWS.phase_s / 2 < point.at_s <= end_s for end_s in ends_s)
    ]
    return fmean(getattr(point, field) for point in points)


def test_the_figures_are_drawn_from_their_rows() -> None:
    drawn = {changing_load.PICTURE_FILE: changing_load.draw(ROWS), demo_run.PICTURE_FILE: demo_run.draw(DEMO)}
    assert drawn == PICTURES, "run `make figures`"


@pytest.mark.parametrize("name", PICTURES)
def test_a_figure_is_one_file_that_loads_nothing_and_follows_light_and_dark(name: str) -> None:
    picture = PICTURES[name]
    ET.fromstring(picture)
    assert picture.count("http") == picture.count('xmlns="http://www.w3.org/2000/svg"') == 1
    assert "<script" not in picture
    assert "prefers-color-scheme: dark" in picture


def test_the_demos_figure_is_of_a_whole_run_of_the_load_that_the_demo_sends() -> None:
    assert DEMO.regime == DEMO_REGIME
    assert DEMO.run is not None
    assert DEMO.run.effort == "whole"
    assert DEMO.run.has_ended
    assert [curve.mode for curve in DEMO.curves] == ["off", "pin=5", "auto"]


def test_the_readmes_table_has_the_speeds_of_the_demos_figure() -> None:
    readme = (FIGURES.parents[1] / "README.md").read_text(encoding="utf-8")
    *_, fixed, auto = DEMO.curves
    speeds = [{one.phase: f"{one.speed:.2f}" for one in curve.stretches if one.speed is not None} for curve in (fixed, auto)]
    assert f"| K=5 | {speeds[0]['quiet']} | {speeds[0]['surge']} | - |" in readme
    assert f"| `auto` | {speeds[1]['quiet']} | {speeds[1]['surge']} | {speeds[1]['calm']} |" in readme


def test_the_planner_drafts_at_small_batches_and_is_off_at_large_ones_without_a_loss() -> None:
    few, many = min(ROWS.users_per_replica), max(ROWS.users_per_replica)
    assert at(FLEET, few, "mean_k") > 2.5
    assert at(FLEET, many, "mean_k") < 0.1
    assert at(FLEET, few, "tokens_per_s") > 1.1 * at(OFF, few, "tokens_per_s")
    assert at(FLEET, many, "tokens_per_s") > 0.97 * at(OFF, many, "tokens_per_s")


@pytest.mark.heavy
def test_a_run_gives_a_point_for_every_planner_and_stretch() -> None:
    rows = changing_load.run(seed=1)
    stretches = int(ROWS.phase_s * len(ROWS.users_per_replica)) // changing_load.SPAN_S
    assert len(rows.points) == len(ROWS.points) == stretches * len(changing_load.SHOWN)
