"""`nightjar simulate`: what a bad command line gets, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nightjar.cluster.cli import app
from nightjar.loadtests.simulation.campaign.efforts import FULL
from nightjar.loadtests.simulation.command import Asked, effort_of
from nightjar.loadtests.simulation.experiments.catalogue import SUITE
from nightjar.loadtests.simulation.profiles import PROFILES_FOLDER
from tests.benchmarks.policy.suite import SUITE as BENCH

PROFILE = PROFILES_FOLDER / "vicuna-13b-68m-a100.json"


def refused(*arguments: str) -> str:
    """The one line on standard error of a command that must be refused."""
    result = CliRunner().invoke(app, ["simulate", *arguments])
    assert result.exit_code == 2, result.output
    assert "Plan" not in result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_an_unknown_profile_is_refused_with_the_names_that_exist() -> None:
    assert "llama-8b-eagle" in refused("--quick", "--profile", "llama-80b")


def test_a_broken_profile_file_is_refused_with_the_field_named(tmp_path: Path) -> None:
    profile = json.loads(PROFILE.read_text())
    profile["limits"]["max_num_seqs"] = 0
    path = tmp_path / "broken.json"
    path.write_text(json.dumps(profile))
    line = refused("--quick", "--profile", str(path))
    assert str(path) in line
    assert "limits.max_num_seqs" in line


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text("no profile")
    assert str(path) in refused("--quick", "--profile", str(path))


def test_two_profiles_of_the_same_name_are_refused() -> None:
    assert "more than once" in refused("--quick", "--profile", str(PROFILE), "--profile", PROFILE.stem)


@pytest.mark.parametrize(
    ("option", "value", "hint"),
    [
        ("--planner", "turbo-spec", "did you mean turbospec"),
        ("--planner", "fixed-x", "fixed-K"),
        ("--regime", "surges", "did you mean surge"),
        ("--regime", "mine:60@many", "is not a number"),
        ("--only", "steaddy", "did you mean steady"),
        ("--only", "storm", 'left this command: in a checkout of the repository, make bench-policy ARGS="--only storm"'),
    ],
)
def test_an_unknown_name_is_refused_with_what_there_is(option: str, value: str, hint: str) -> None:
    assert hint in refused("--quick", option, value)


def test_a_trace_without_the_columns_is_refused_with_their_names(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time,prompt\n1,2\n")
    line = refused("--quick", "--trace", str(path))
    assert "TIMESTAMP" in line
    assert "GeneratedTokens" in line


def test_every_experiment_that_left_the_command_is_one_of_the_bench() -> None:
    assert SUITE.elsewhere.keys() | SUITE.experiments.keys() == BENCH.experiments.keys()
    assert not SUITE.elsewhere.keys() & SUITE.experiments.keys()


def test_a_run_of_a_users_command_is_no_evidence_and_one_of_the_bench_is_where_it_is_whole() -> None:
    whole = Asked((), (), (), (), None, None, effort=FULL)
    assert effort_of(whole, BENCH) == "whole"
    assert effort_of(whole, SUITE) == "partial"


def test_quick_and_full_exclude_each_other() -> None:
    assert "--quick and --full" in refused("--quick", "--full")


def test_a_number_of_seeds_below_one_is_refused() -> None:
    assert CliRunner().invoke(app, ["simulate", "--seeds", "0"]).exit_code == 2
