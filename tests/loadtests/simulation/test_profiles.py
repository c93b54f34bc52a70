"""Profiles: what ships is readable and sourced, what is wrong is named."""

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.simulation.campaign.nominal import Nominal
from nightjar.loadtests.simulation.profiles import (
    PROFILE_NAMES,
    PROFILES_FOLDER,
    PUBLISHED_NAMES,
    Curve,
    Mechanics,
    Profile,
    ProfileError,
    acceptance_curves,
    read_profile,
)
from nightjar.loadtests.simulation.service.lengths import SHAREGPT
from nightjar.loadtests.simulation.step_cost import step_cost


def plain(name: str = "cpu-smollm2") -> dict[str, object]:
    profile: dict[str, object] = json.loads((PROFILES_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return profile


def written(folder: Path, profile: dict[str, object]) -> Path:
    path = folder / "mine.json"
    path.write_text(json.dumps(profile), encoding="utf-8")
    return path


def test_five_profiles_are_benched_and_each_is_named_as_its_file() -> None:
    assert set(PROFILE_NAMES) == {
        "cpu-smollm2",
        "llama-8b-eagle",
        "qwen-32b-0.5b-2xl20",
        "qwen-7b-0.5b-rtx4090",
        "vicuna-13b-68m-a100",
    }
    assert [read_profile(name).name for name in PROFILE_NAMES] == list(PROFILE_NAMES)


def test_profiles_of_published_numbers_run_by_name_and_say_what_they_are() -> None:
    assert set(PUBLISHED_NAMES) == {"deepseek-v4-flash-dspark-8xmi355x", "llama-8b-eagle3-h100", "llama-70b-eagle3-8xh100"}
    for name in PUBLISHED_NAMES:
        profile = read_profile(name)
        assert (profile.name, name in PROFILE_NAMES) == (name, False)
        assert "Published, not measured by us" in profile.description
        assert re.search(r"pull request \d+|issue \d+", profile.sources["step_cost"])


@pytest.mark.parametrize(
    ("name", "length", "published_ms"),
    [
        ("llama-8b-eagle3-h100", 0, 7.07),
        ("llama-8b-eagle3-h100", 2, 4.32 * 2.36),
        ("llama-8b-eagle3-h100", 3, 4.09 * 2.79),
        ("llama-8b-eagle3-h100", 4, 4.05 * 3.08),
        ("llama-8b-eagle3-h100", 5, 4.13 * 3.32),
        ("llama-70b-eagle3-8xh100", 0, 1000.0 / 88.61),
    ],
)
def test_a_step_at_batch_1_takes_as_long_as_was_published(name: str, length: int, published_ms: float) -> None:
    """vLLM issue 20780 (time per token times acceptance length), SGLang pull request 4716."""
    seconds = step_cost(read_profile(name)).seconds(1, 500.0, length, draft="active" if length else "kv")
    assert seconds * 1e3 == pytest.approx(published_ms, rel=0.03)


@pytest.mark.parametrize(
    ("rows", "off", "drafting"),
    [(4, 381.53, 970.33), (32, 2392.99, 4756.32), (128, 6340.78, 8778.87), (256, 8878.57, 7852.42)],
)
def test_tokens_a_second_of_the_dspark_profile_are_the_published_ones(rows: int, off: float, drafting: float) -> None:
    """vLLM pull request 52362: speculation pays at 128 requests in flight, and costs at 256."""
    profile = read_profile("deepseek-v4-flash-dspark-8xmi355x")
    nominal = Nominal(profile, SHAREGPT, profile.mechanics(Mechanics.DORMANT))
    assert [nominal.goodput(rows, 7), rows / step_cost(profile).seconds(rows, 0.0, 0, draft="dormant")] == pytest.approx(
        [drafting, off], rel=1e-3
    )
    assert nominal.best_k(rows) == (7 if drafting > off else 0)


def test_acceptance_of_the_published_eagle3_head_adds_up_to_the_published_lengths() -> None:
    survival = read_profile("llama-8b-eagle3-h100").mean_survival()
    lengths = [1.0 + sum(survival[:length]) for length in (2, 3, 4, 5)]
    assert lengths == pytest.approx([2.36, 2.79, 3.08, 3.32], abs=0.011)


def test_a_profile_of_ones_own_is_read_by_its_path(tmp_path: Path) -> None:
    assert read_profile(written(tmp_path, plain() | {"name": "mine"})).name == "mine"


def test_the_eagle_profile_accepts_on_average_what_the_pull_request_measured() -> None:
    assert read_profile("llama-8b-eagle").mean_survival() == pytest.approx((0.68, 0.39, 0.20, 0.10, 0.05))


def test_a_profile_of_before_in_which_a_head_wrote_several_steps_at_once_is_read_as_one_that_writes_each(tmp_path: Path) -> None:
    eagle = json.loads((PROFILES_FOLDER / "llama-8b-eagle.json").read_text())
    of_before = {**eagle, "drafter": {**eagle["drafter"], "off": "log", "log_steps": 16}}
    assert read_profile(written(tmp_path, of_before)).drafter == read_profile("llama-8b-eagle").drafter


def test_k_0_runs_the_least_that_the_drafter_can_do_with_unless_stock_is_wished() -> None:
    for name, least in (("llama-8b-eagle", Mechanics.KV), ("cpu-smollm2", Mechanics.DORMANT)):
        assert read_profile(name).mechanics(Mechanics.DORMANT) is least
        assert read_profile(name).mechanics(Mechanics.STOCK) is Mechanics.STOCK


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"step_nois": {}}, "step_nois"),
        ({"sources": {"limits": "guessed"}}, "sources says nothing about drafter"),
        ({"step_noise": {"lognormal_sd": -1.0}}, "step_noise.lognormal_sd"),
        ({"acceptance_classes": [{"name": "one", "share": 0.5, "survival": [0.5, 0.4, 0.3, 0.2, 0.1]}]}, "sum to 1"),
        ({"acceptance_classes": [{"name": "one", "share": 1.0, "survival": [0.5, 0.4]}]}, "positions"),
        ({"acceptance_classes": [{"name": "one", "share": 1.0, "survival": [0.5, 0.6, 0.3, 0.2, 0.1]}]}, "must not rise"),
    ],
)
def test_what_is_wrong_with_a_profile_is_named(tmp_path: Path, change: dict[str, object], named: str) -> None:
    with pytest.raises(ProfileError, match=named):
        read_profile(written(tmp_path, plain() | change))


def test_an_unknown_name_lists_those_that_ship() -> None:
    with pytest.raises(ProfileError, match="name one of cpu-smollm2, llama-8b-eagle"):
        read_profile("gpt-9")


def test_every_curve_of_inferencex_is_an_acceptance_that_any_profile_may_take() -> None:
    known = acceptance_curves()
    assert {curve.file for curve in known.curves.values()} == set(CURVE_FILES)
    assert (known.licence, len(known.curves)) == ("Apache-2.0", 14)
    for name, curve in known.curves.items():
        profile = read_profile(f"llama-70b-eagle3-8xh100+{name}")
        again = Profile.model_validate(profile.model_dump())
        assert (again.name, again.drafter.arms) == (f"llama-70b-eagle3-8xh100.{name}", tuple(range(9)))
        assert known.source in again.sources["acceptance_classes"]
        survival = again.mean_survival()
        assert 1.0 + sum(survival[:1]) == pytest.approx(curve.lengths[0])
        assert 1.0 + sum(survival) >= max(curve.lengths) - 0.1
        assert 1.0 + sum(survival) <= max(curve.lengths) + 0.01


@given(st.lists(st.floats(1.0, 9.0), min_size=2, max_size=8))
def test_an_acceptance_never_rises_with_the_position_whatever_curve_it_comes_from(lengths: list[float]) -> None:
    survival = Curve(model="m", file="f", run="1", lengths=tuple(lengths)).survival()
    assert len(survival) == len(lengths)
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(survival))
    assert min(survival) >= 0.0
    assert max(survival) <= 1.0


def test_a_curve_reaches_no_further_than_a_table_of_step_times() -> None:
    assert read_profile("llama-8b-eagle+qwen3.5-mtp").drafter.arms == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize(
    ("name", "arms"),
    [("deepseek-v4-flash-dspark-8xmi355x", (0, 7)), ("cpu-smollm2", (0, 1, 2, 3, 5)), ("vicuna-13b-68m-a100", range(9))],
)
def test_a_curve_runs_no_k_whose_step_times_nobody_has(name: str, arms: Sequence[int]) -> None:
    """Between off and a block's K = 7 a line would price drafting at K = 1 at a seventh of the one forward that it takes."""
    profile = read_profile(f"{name}+kimik3-dspark")
    assert profile.drafter.arms == tuple(arms)
    assert Profile.model_validate(profile.model_dump(exclude_unset=True)) == profile


def test_a_curve_that_is_none_is_one_line_with_those_that_are() -> None:
    with pytest.raises(ProfileError, match=r"llama-8b-eagle\+gpt-9: no such acceptance, allowed are dsv4-pro-0813-dspark, "):
        read_profile("llama-8b-eagle+gpt-9")


CURVE_FILES = (
    "dsv4-pro-0813-dspark.yaml",
    "dsv4_mtp.yaml",
    "glm5.2_mtp.yaml",
    "kimik2.5_eagle3.yaml",
    "kimik3_dspark.yaml",
    "kimik3_dspark_probabilistic_sample_method_block_rejection_sample_method.yaml",
    "minimaxm3_eagle3.yaml",
    "minimaxm3_eagle3_gqa.yaml",
    "qwen3.5_mtp.yaml",
)
