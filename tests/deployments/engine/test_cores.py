"""Engines of one node are pinned to cores that the fewest others hold, whichever application they belong to."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from nightjar.deployments.engine.engine_folder import EngineFolder, make_engine_folder
from nightjar.deployments.engine.environment import engine_environment
from nightjar.deployments.engine.start.launch import claim_cores
from tests.deployments.engine.test_environment import CPU

ALLOWED = (0, 2, 4, 6)


def engine(parent: Path) -> EngineFolder:
    folder = make_engine_folder(parent)
    assert folder is not None
    return folder


def test_engines_of_several_applications_take_cores_that_none_holds(tmp_path: Path) -> None:
    engines = [engine(tmp_path) for _ in range(4)]
    assert [claim_cores(one.path, ALLOWED, 1) for one in engines] == [(0,), (2,), (4,), (6,)]


def test_more_engines_than_cores_share_those_that_the_fewest_hold(tmp_path: Path) -> None:
    engines = [engine(tmp_path) for _ in range(4)]
    assert [claim_cores(one.path, (0, 1), 1) for one in engines] == [(0,), (1,), (0,), (1,)]
    assert claim_cores(engine(tmp_path).path, (0, 1), 9) == (0, 1)


def test_the_cores_of_an_engine_that_ended_are_free_again(tmp_path: Path) -> None:
    first, second = engine(tmp_path), engine(tmp_path)
    assert (claim_cores(first.path, ALLOWED, 2), claim_cores(second.path, ALLOWED, 1)) == ((0, 2), (4,))
    first.remove()
    assert claim_cores(engine(tmp_path).path, ALLOWED, 2) == (0, 2)


def test_an_engine_that_asks_again_gives_its_own_back_first(tmp_path: Path) -> None:
    one, other = engine(tmp_path), engine(tmp_path)
    assert [claim_cores(one.path, ALLOWED, 1), claim_cores(other.path, ALLOWED, 1), claim_cores(one.path, ALLOWED, 1)] == [
        (0,), (2,), (0,),
    ]  # fmt: skip


def test_engines_that_start_at_once_take_different_cores(tmp_path: Path) -> None:
    engines = [engine(tmp_path) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        claimed = list(pool.map(lambda one: claim_cores(one.path, range(16), 1), engines))
    assert Counter(claimed) == Counter((core,) for core in range(16))


@pytest.mark.parametrize("noted", ["", "{", "7", '["x", null]', '{"0": 1}'])
def test_notes_that_are_none_hold_nothing(noted: str, tmp_path: Path) -> None:
    other = engine(tmp_path)
    (other.path / "cores.json").write_text(noted)
    assert claim_cores(engine(tmp_path).path, ALLOWED, 1) == (0,)


def test_where_nothing_can_be_noted_cores_are_counted_by_deployment(tmp_path: Path) -> None:
    assert claim_cores(tmp_path / "gone", ALLOWED, 1) == ()
    assert engine_environment(replace(CPU, claimed_cores=()))["VLLM_CPU_OMP_THREADS_BIND"] == "2"
    assert engine_environment(replace(CPU, claimed_cores=(4,)))["VLLM_CPU_OMP_THREADS_BIND"] == "4"
