"""An explanation in 80 columns: the answer, who had a say, and a table of what every K was predicted and measured to give.

Pure: an explanation in, a renderable out.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nightjar.cluster.display.fleet import acceptance
from nightjar.cluster.display.times import format_duration, format_moment
from nightjar.policy.wire.explanation import Explanation, KExplanation
from nightjar.policy.words import NOT_MEASURED, batch_range, has_guesses, predicted, speculation


def explanation_view(explained: Explanation) -> RenderableType:
    """Everything that `explain` shows."""
    guessed = any(one.predicted_tokens_per_s is not None and one.measured_tokens_per_s is None for one in explained.arms)
    marked = guessed or any(has_guesses(one.causes) for one in explained.statements)
    return Group(
        Text.assemble((explained.replica_id, "bold"), f"  {explained.summary}"),
        Text(_state_line(explained), style="dim"),
        _statements(explained),
        Text(_arms_line(explained)),
        _ks(explained),
        *([Text(NOT_MEASURED, style="dim")] if marked else []),
    )


def _state_line(explained: Explanation) -> str:
    """Who and when, on one line."""
    version = explained.settings_version
    confirmed = {True: ", confirmed", False: ", not confirmed", None: ""}[explained.settings_confirmed]
    layers = f", layers {', '.join(explained.layers)}" if explained.layers else ""
    objective = f", objective {explained.objective}" if explained.objective else ""
    of_drafts = " of drafts made" if explained.censored_acceptance else ""
    return (
        f"application {explained.application}, group {explained.group_id}, mode {explained.mode}, "
        f"planner {explained.planner}{objective}, "
        f"drafter {explained.drafter_state.value}{layers}, settings {version or 'none'}{confirmed}, "
        f"{explained.generated_tokens_per_s:.1f} tok/s, acceptance {acceptance(explained.acceptance)}{of_drafts}; "
        f"{format_moment(explained.at_s)}, report {format_duration(explained.report_age_s)} old"
    )


def _statements(explained: Explanation) -> Table:
    """Who says what; the one that decides is marked."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    has_decided = False
    for statement in explained.statements:
        decides = statement.decides and not has_decided
        has_decided |= statement.decides
        table.add_row("=>" if decides else "", statement.who, Text(statement.words), style="bold" if decides else None)
    return table


def _arms_line(explained: Explanation) -> str:
    """What the table is of, and how old what it stands on is."""
    batches = batch_range(explained.first_batch_size, explained.last_batch_size)
    age = f", estimated {format_duration(explained.estimate_age_s)} ago" if explained.estimate_age_s is not None else ""
    return f"at batch {batches}, generated tokens/s of this replica{age}:"


def _ks(explained: Explanation) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("K")
    for name in ("predicted", "against off", "measured", "steps (own)", "age"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for one in explained.arms:
        table.add_row(
            speculation(one.num_speculative_tokens),
            _predicted(one),
            _against_off(one),
            _number(one.measured_tokens_per_s),
            _steps(one),
            format_duration(one.measured_age_s) if one.measured_age_s is not None else "-",
            ", ".join(_marks(explained, one)),
        )
    return table


def _predicted(one: KExplanation) -> str:
    """With a mark where it was not measured here."""
    if one.predicted_tokens_per_s is None:
        return "-"
    return predicted(one.predicted_tokens_per_s, is_measured=one.measured_tokens_per_s is not None)


def _number(tokens_per_s: float | None) -> str:
    return f"{tokens_per_s:.1f}" if tokens_per_s is not None else "-"


def _against_off(one: KExplanation) -> str:
    """Predicted gain with its doubt, two standard deviations; `not known` where the doubt is larger and too little was measured."""
    if one.gain_over_off is None or one.gain_deviation is None:
        return "-"
    doubt = 2.0 * one.gain_deviation
    if not one.is_gain_known:
        return f"not known ±{doubt:.0%}"
    return f"{one.gain_over_off:+.1%} ±{doubt:.1%}" if doubt < 0.1 else f"{one.gain_over_off:+.0%} ±{doubt:.0%}"


def _steps(one: KExplanation) -> str:
    """Clean steps of the group, and in brackets those that this replica measured: `29 (27)`."""
    own = f" ({one.own_steps:.0f})" if one.own_steps >= 1.0 else ""
    return f"{one.clean_steps:.0f}{own}" if one.clean_steps else f"-{own}"


def _marks(explained: Explanation, one: KExplanation) -> Iterator[str]:
    if one.num_speculative_tokens == explained.num_speculative_tokens:
        yield "runs"
    if one.num_speculative_tokens == explained.planned_num_speculative_tokens:
        yield "planned"
    if one.is_imported:
        yield "imported"
    if one.exceeds_limit:
        yield "over limit"
