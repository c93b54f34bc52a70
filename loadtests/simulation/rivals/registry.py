"""Every rival by name, how it is run, and the plan that runs it.

`published` mechanics are stock: K = 0 still runs the drafter, so coming back costs nothing and staying off costs the tax. On
equal mechanics a rival has our dormancy, and catches up whenever it likes, without asking for a lease, in chunks as bounded as the
fleet's. A rival that never runs K = 0 is the same on both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from nightjar.loadtests.arms.stock_table import TableRows, tuned_table
from nightjar.loadtests.simulation.planner_names import TETRIS
from nightjar.loadtests.simulation.profiles import Mechanics, Profile
from nightjar.loadtests.simulation.rivals import adaptive_verification, bandit_spec, prior, sglang, tables, tetris, turbo_spec
from nightjar.loadtests.simulation.rivals.prior import MOST_ERROR, StepTimes, measure
from nightjar.loadtests.simulation.step_cost import prepared_cost
from nightjar.policy.planners.local import LocalPlannerFactory
from nightjar.policy.wire.settings import Local

RIVALS: Final[Mapping[str, LocalPlannerFactory]] = {
    "turbospec": turbo_spec.build,
    "banditspec": bandit_spec.build,
    "sglang": sglang.build,
    "tensorrt-llm": tables.build_tensorrt_llm,
    "vllm-table": tables.build_vllm,
    "vllm-adaptive-verification": adaptive_verification.build,
}
"""Published planners, by the name in a `settings.Local` plan."""

FOR_COMPARISON: Final[Mapping[str, LocalPlannerFactory]] = {**RIVALS, "pair": tables.build_pair, TETRIS: tetris.build}
"""They, the static planner that nobody published, and one that only the paper's comparison has."""

DRAFTS_MORE: Final[Mapping[str, int]] = {"vllm-adaptive-verification": 32, TETRIS: 1}
"""Planners whose drafter runs so many tokens more than their K, K_max at most: their K says how many a row are verified."""

SELECTS: Final = frozenset({TETRIS})
"""Those that choose among the drafts of all rows which are verified."""

NOMINAL_CONTEXT: Final = 512
"""Context tokens of a row for which a table is tuned."""

Options = dict[str, float | int | str | bool]


class Inputs(NamedTuple):
    """What may be known of a profile before it serves."""

    prior: StepTimes
    """Step times with the mechanics it runs on, as wrong as all model-based planners have them."""
    prior_drafting_max: StepTimes
    """The same with the drafter at K_max in every step, wrong by the same factors."""
    survival: tuple[float, ...]
    """Nominal probability that more than i draft tokens of a row are accepted."""
    table: TableRows
    """Tuned at nominal acceptance on step times as they are."""


def inputs(
    profile: Profile,
    mechanics: Mechanics,
    *,
    seed: int,
    most_error: float = MOST_ERROR,
    context_tokens_per_row: int = NOMINAL_CONTEXT,
) -> Inputs:
    """What rivals may know of a profile on some mechanics.

    `seed` draws the errors of the prior, at most `most_error` of a time; tables are tuned for `context_tokens_per_row`.
    """
    cost, limits = prepared_cost(profile, profile.mechanics(mechanics)), profile.limits
    longest, survival = profile.max_num_speculative_tokens, profile.mean_survival()

    def drafting_max(decode_rows: int, context_tokens: int, verified: int) -> float:
        return cost.decode_seconds(decode_rows, context_tokens, longest, verified)

    speeds = prior.nominal_speeds(
        cost.steady_seconds,
        survival,
        profile.drafter.arms,
        max_num_seqs=limits.max_num_seqs,
        context_tokens_per_row=context_tokens_per_row,
    )
    priors = [
        measure(seconds, max_num_seqs=limits.max_num_seqs, max_num_speculative_tokens=longest).with_errors(seed, most_error)
        for seconds in (cost.steady_seconds, drafting_max)
    ]
    return Inputs(priors[0], priors[1], survival, tuned_table(speeds, limits.max_num_seqs))


class Entry(NamedTuple):
    """One rival as it appears in tables."""

    name: str
    planner: str
    learns: bool
    """Whether what it decides changes with what it has seen."""
    options: Callable[[Inputs], Options]
    source: str


ENTRIES: Final = (
    Entry("turbospec", "turbospec", True, lambda known: {"step_times": known.prior.to_text()}, "arXiv 2406.14066"),
    Entry("banditspec", "banditspec", True, lambda _: {}, "arXiv 2505.15141"),
    Entry("banditspec-batch", "banditspec", True, lambda _: {"by_batch": True}, "arXiv 2505.15141, ours by batch"),
    Entry(
        "banditspec-ucb-batch",
        "banditspec",
        True,
        lambda _: {"by_batch": True, "per_arm_bonus": True},
        "arXiv 2505.15141, ours by batch",
    ),
    Entry("sglang", "sglang", True, lambda _: {}, "SGLang pull requests 21599, 24055"),
    Entry("sglang-zero", "sglang", True, lambda _: {"zero_tier": True}, "SGLang, later defaults of the same file"),
    Entry(
        "tensorrt-llm",
        "tensorrt-llm",
        False,
        lambda known: {"draft_len_schedule": tables.tensorrt_llm_text(known.table)},
        "TensorRT-LLM pull requests 8194, 10860",
    ),
    Entry(
        "vllm-table",
        "vllm-table",
        False,
        lambda known: {"num_speculative_tokens_per_batch_size": tables.vllm_text(known.table)},
        "vLLM pull request 32374",
    ),
    Entry(
        "vllm-adaptive-verification",
        "vllm-adaptive-verification",
        True,
        lambda known: {
            "step_times": known.prior_drafting_max.to_text(),
            "survival": ",".join(f"{share:.6g}" for share in known.survival),
        },
        "vLLM pull requests 47808, 52228",
    ),
)


def rival_plan(entry: Entry, known: Inputs) -> Local:
    """The plan that runs a rival, its options filled from what may be known."""
    return Local(planner=entry.planner, options=entry.options(known))
