"""Findings as Markdown and as one page of HTML: a table of batches, the gain or why there is none, and what cannot be known."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final, NamedTuple

from nightjar.loadtests.assessment.findings import BatchRow, Findings, ProfileFit
from nightjar.loadtests.report.page import cell, markdown_table, render
from nightjar.policy.status.stock_table import as_yaml
from nightjar.policy.words import batch_range, speculation

COLUMNS: Final = ("batch", "hours", "of busy", "ran", "accepted", "step ms", "the planner", "tokens/s")
BREAK_EVEN_COLUMNS: Final = (*COLUMNS[:6], "K pays from acceptance")
LEAST_SHARE: Final = 0.005
"""Of a bucket's time, below which a K is not named."""


class _Bar(NamedTuple):
    """A batch's hours, and the parts of its bar as percent of the widest."""

    batch: str
    hours: float
    drafted: float
    off: float


def to_markdown(found: Findings) -> str:
    """The findings for a terminal, an issue or a page."""
    return "\n".join([*_lines(found), ""])


def render_page(found: Findings) -> str:
    """The page."""
    heads = columns(found)
    return render(
        "assess.html",
        found=found,
        headline=headline(found),
        facts=facts(found),
        acceptance=acceptance(found),
        vllm_table=vllm_table(found),
        bars=[_bar(row, max(row.hours for row in found.batches)) for row in found.batches],
        heads=heads,
        rows=[cells(row, len(heads)) for row in found.batches],
        profiles=[shipped_profile(profile) for profile in found.shipped],
    )


def facts(found: Findings) -> str:
    """What was looked at, in one line."""
    spans = f"{_moment(found.from_s)} to {_moment(found.to_s)}"
    hours = f"{found.busy_hours:.1f} busy engine hours, {found.idle_hours:.1f} idle"
    engines = f"{found.engines} engine{'s' if found.engines != 1 else ''}"
    return f"{found.model or 'model without a name'}: {engines}, {spans} UTC, {hours}, scraped every {found.scrape_period_s:.0f} s"


def headline(found: Findings) -> str:
    """The gain with its interval, or why there is none."""
    if found.gain is None:
        return f"No gain is given: {found.silent}."
    gain, profile = found.gain, found.profile
    assert profile is not None
    if gain.low < 1.0 < gain.high:
        ran = sorted({one.num_speculative_tokens for row in found.batches for one in row.ran if one.share >= LEAST_SHARE})
        return (
            f"Not known whether the planner would have given more: {percent(gain.ratio)} tokens a second ({percent(gain.low)} to "
            f"{percent(gain.high)}) at the same batches, by profile {profile.name}: {gain.plan}. Only "
            f"{', '.join(map(speculation, ran))} ever ran here; with Nightjar, `nightjar mode auto --for 5m` finds out."
        )
    return (
        f"The planner would have given {percent(gain.ratio)} tokens a second ({percent(gain.low)} to {percent(gain.high)}) at the "
        f"same batches, by profile {profile.name}: {gain.plan}."
    )


def acceptance(found: Findings) -> str:
    """Acceptance by position; empty where nothing was drafted."""
    if not found.acceptance:
        return ""
    shares = ", ".join(f"{share:.3f}" for share in found.acceptance)
    return f"Accepted by draft position, of {found.drafts:,.0f} drafts: {shares}."


def vllm_table(found: Findings) -> str:
    """vLLM's own table as YAML; empty where it is not known."""
    return as_yaml(found.gain.vllm_table) if found.gain is not None and found.gain.vllm_table is not None else ""


def columns(found: Findings) -> tuple[str, ...]:
    """Heads of the table of batches."""
    if found.profile is not None and not found.acceptance:
        return BREAK_EVEN_COLUMNS
    return COLUMNS if found.gain is not None else COLUMNS[:6]


def cells(row: BatchRow, count: int) -> tuple[str, ...]:
    """A row of the table of batches, as many columns as it has."""
    ran = ", ".join(
        speculation(one.num_speculative_tokens) + ("" if one.share > 1.0 - LEAST_SHARE else f" {one.share:.0%}")
        for one in row.ran
        if one.share >= LEAST_SHARE
    )
    first = (
        batch_range(row.first_batch_size, row.last_batch_size),
        f"{row.hours:.2f}",
        f"{row.share:.1%}",
        ran,
        cell(row.accepted_share, ".1%"),
        cell(row.step_ms, ".1f"),
    )
    if count == len(BREAK_EVEN_COLUMNS):
        return (*first, cell(row.break_even, ".2f"))
    if row.planned is None or row.planned_beside_prefill is None or row.gain is None:
        return (*first, "-", "-")[:count]
    beside = "" if row.planned_beside_prefill == row.planned else f", {speculation(row.planned_beside_prefill)} beside prefill"
    return (*first, speculation(row.planned) + beside, percent(row.gain))[:count]


def shipped_profile(profile: ProfileFit) -> str:
    """A profile to choose, in words."""
    if profile.scale is None or profile.spread is None:
        return f"{profile.name}: {profile.description}"
    return (
        f"{profile.name} (these steps take {profile.scale:.2f} times as long, within {profile.spread:.0%}): {profile.description}"
    )


def percent(ratio: float) -> str:
    """A ratio as an operator reads it.

    >>> percent(1.113), percent(0.98)
    ('+11.3 %', '-2.0 %')
    """
    return f"{(ratio - 1.0) * 100.0:+.1f} %"


def _lines(found: Findings) -> Iterator[str]:
    heads = columns(found)
    yield f"{facts(found)}."
    yield ""
    yield headline(found)
    if told := acceptance(found):
        yield ""
        yield told
    if found.batches:
        yield ""
        yield from markdown_table(heads, [cells(row, len(heads)) for row in found.batches])
    if table := vllm_table(found):
        yield ""
        yield "The same as vLLM's own table, for engines without Nightjar:"
        yield ""
        yield f"```yaml\n{table}\n```"
    if found.shipped:
        yield ""
        yield "Profiles that ship with Nightjar; a file of your own engine tells more:"
        yield ""
        for profile in found.shipped:
            yield f"- {shipped_profile(profile)}"
    yield ""
    yield "What this cannot know:"
    yield ""
    for sentence in found.unknown:
        yield f"- {sentence}"


def _moment(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M")


def _bar(row: BatchRow, most_hours: float) -> _Bar:
    width = 100.0 * row.hours / most_hours
    off = sum(one.share for one in row.ran if one.num_speculative_tokens == 0)
    batch = batch_range(row.first_batch_size, row.last_batch_size)
    return _Bar(batch, row.hours, width * (1.0 - off), width * off)
