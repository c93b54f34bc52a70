"""What `nightjar assess` found: what ran, what the planner would have run, what that gains, and what nobody can know from here.

A record for tables, pages and programs alike. No gain stands in it that is not known: without drafts there is no acceptance, and
without a profile no step time of a K that never ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pydantic import BaseModel, ConfigDict

from nightjar.loadtests.assessment.forecast import Fit, Forecast, Priced, break_even, fit, forecast, priced
from nightjar.loadtests.assessment.history import History, Scraped
from nightjar.loadtests.simulation.profiles import SHIPPED_NAMES, Profile, read_profile
from nightjar.policy.status.stock_table import StockTable
from nightjar.policy.wire.batch_buckets import bucket_range
from nightjar.policy.wire.record import MAX_BATCH_SIZE

HOUR_S: Final = 3600.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class RanK(_Part):
    """A K and its share of a batch bucket's busy time; 0 is off."""

    num_speculative_tokens: int
    share: float


class BatchRow(_Part):
    """One batch bucket. Gains are ratios; `break_even` is the acceptance of the first draft from which some K pays."""

    first_batch_size: int
    last_batch_size: int
    hours: float
    share: float
    """Of all busy hours."""
    ran: tuple[RanK, ...]
    accepted_share: float | None
    """Accepted of verified draft tokens."""
    step_ms: float | None
    """Of the K that ran longest here."""
    planned: int | None = None
    planned_beside_prefill: int | None = None
    gain: float | None = None
    break_even: float | None = None


class ProfileFit(_Part):
    """A profile, and how the engines' steps compare with it: they take `scale` times as long, within `spread` over so many
    cells."""

    name: str
    description: str = ""
    scale: float | None = None
    spread: float | None = None
    cells: int = 0


class GainFound(_Part):
    """Tokens a second over those of what ran, at the same batches in the same hours, with its interval (two deviations)."""

    ratio: float
    low: float
    high: float
    priced_share: float
    """Share of busy hours at batches that the profile reaches."""
    plan: str
    vllm_table: StockTable | None = None
    """The plan as vLLM's own table, and what that loses against steering."""


class Findings(_Part):
    """Everything that was found. Hours are those of single engines, added up."""

    prometheus: str
    selector: str
    model: str
    engines: int
    from_s: float
    to_s: float
    scrape_period_s: float
    busy_hours: float
    idle_hours: float
    missed_hours: float
    batches: tuple[BatchRow, ...]
    acceptance: tuple[float, ...]
    """By draft position: share of drafts of which at least so many tokens were accepted. Empty: nothing was drafted."""
    drafts: float
    prefill_tokens_per_token: float | None
    profile: ProfileFit | None
    shipped: tuple[ProfileFit, ...]
    """Profiles to choose from, where none was named."""
    gain: GainFound | None
    silent: str
    """Why there is no gain; empty where there is one."""
    unknown: tuple[str, ...]
    """What this cannot know, in sentences."""


def find(
    scrapes: Scraped,
    *,
    prometheus: str,
    selector: str,
    model: str,
    engines: int,
    from_s: float,
    to_s: float,
    profile: Profile | None,
    warnings: tuple[str, ...] = (),
) -> Findings:
    """What the scrapes of one model's engines tell, by a profile where one is given. Raises ValueError where a K ran that the
    profile does not know."""
    history = History(scrapes.stretches)
    price = priced(profile, history) if profile is not None else None
    ahead = forecast(price, engines) if price is not None else None
    fitted = fit(price) if price is not None else None
    found_gain = None
    if ahead is not None:
        gain = ahead.gain
        found_gain = GainFound(
            ratio=gain.ratio,
            low=gain.low,
            high=gain.high,
            priced_share=ahead.priced_share,
            plan=ahead.plan,
            vllm_table=ahead.vllm_table,
        )
    return Findings(
        prometheus=prometheus,
        selector=selector,
        model=model,
        engines=engines,
        from_s=from_s,
        to_s=to_s,
        scrape_period_s=scrapes.period_s,
        busy_hours=sum(history.seconds.values()) / HOUR_S,
        idle_hours=history.idle_s / HOUR_S,
        missed_hours=scrapes.missed_s / HOUR_S,
        batches=tuple(_rows(history, price, ahead)),
        acceptance=history.acceptance.measured(),
        drafts=float(history.stretches.drafts.sum()),
        prefill_tokens_per_token=history.prefill_tokens_per_token,
        profile=_fit_of(profile, fitted) if profile is not None else None,
        shipped=() if profile is not None else tuple(_shipped(history)),
        gain=found_gain,
        silent=_silence(history, price, ahead),
        unknown=(*warnings, *_unknown(scrapes, history, price, ahead, fitted)),
    )


def _rows(history: History, price: Priced | None, ahead: Forecast | None) -> Iterator[BatchRow]:
    busy_s = sum(history.seconds.values())
    for bucket, seconds in history.bucket_seconds.items():
        here = {k: spent_s for (at, k), spent_s in history.seconds.items() if at == bucket}
        first, last = bucket_range(bucket, MAX_BATCH_SIZE)
        step_s = history.step_seconds(bucket, max(here, key=lambda k: here[k]))
        planned = ahead.buckets.get(bucket) if ahead is not None else None
        is_priced = price is not None and bucket in price.buckets
        yield BatchRow(
            first_batch_size=first,
            last_batch_size=last,
            hours=seconds / HOUR_S,
            share=seconds / busy_s,
            ran=tuple(RanK(num_speculative_tokens=k, share=spent_s / seconds) for k, spent_s in here.items()),
            accepted_share=history.accepted_share(bucket),
            step_ms=None if step_s is None else step_s * 1e3,
            planned=planned.num_speculative_tokens if planned is not None else None,
            planned_beside_prefill=planned.mixed_num_speculative_tokens if planned is not None else None,
            gain=planned.gain if planned is not None else None,
            break_even=break_even(price, bucket) if price is not None and is_priced and not history.acceptance.reached else None,
        )


def _shipped(history: History) -> Iterator[ProfileFit]:
    for name in SHIPPED_NAMES:
        profile = read_profile(name)
        try:
            yield _fit_of(profile, fit(priced(profile, history)))
        except ValueError:  # a K ran that it does not know
            continue


def _fit_of(profile: Profile, fitted: Fit | None) -> ProfileFit:
    if fitted is None:
        return ProfileFit(name=profile.name, description=profile.description)
    return ProfileFit(
        name=profile.name, description=profile.description, scale=fitted.scale, spread=fitted.spread, cells=fitted.cells
    )


def _silence(history: History, price: Priced | None, ahead: Forecast | None) -> str:
    if ahead is not None:
        return ""
    if not history.seconds:
        return "no request ran in this time"
    if not history.drafted:
        return (
            "acceptance is unknown, because no draft was verified in this time. To learn it give one engine a speculative_config "
            "for some hours; with Nightjar in mode shadow it is counted and planned with, and nothing is changed"
        )
    if not history.acceptance.reached:
        return "acceptance is unknown: spec_decode_num_accepted_tokens_per_pos was not scraped, though drafts were verified"
    if price is None:
        return "no profile of step times was named (--profile)"
    return f"no hour ran at a batch that profile {price.profile.name} reaches"


def _unknown(scrapes: Scraped, history: History, price: Priced | None, ahead: Forecast | None, fitted: Fit | None) -> Iterator[str]:
    yield (
        f"Batches between scrapes: there is one sample every {scrapes.period_s:.0f} s, and shorter peaks are not seen. Requests "
        "whose prompt is being computed count as running, so decode batches are a little smaller."
    )
    if scrapes.missed_s:
        yield f"{scrapes.missed_s / HOUR_S:.1f} engine hours in which scrapes are missing: they count nowhere."
    yield from _unknown_of_drafts(history)
    if price is None:
        return
    if fitted is None:
        yield f"Whether profile {price.profile.name} is like these engines: no inter-token latency was scraped to compare it with."
    else:
        yield (
            f"Step times of a K that did not run: they are profile {price.profile.name}'s. Where K ran, these engines' steps take "
            f"{fitted.scale:.2f} times as long as its, within {fitted.spread:.0%} over {fitted.cells} pairs of batch and K."
        )
    if ahead is not None and ahead.priced_share < 1.0 - 1e-9:
        yield (
            f"{1.0 - ahead.priced_share:.1%} of the busy time at batches above the profile's max_num_seqs "
            f"{price.profile.limits.max_num_seqs}: it is in no gain."
        )
    if history.prefill_tokens is None:
        yield "How much of the work is prompts: no counter tells, so gains are those of pure decode steps."
    else:
        yield f"How prompts are mixed: they are priced as steps with one mean prompt of {history.prefill_tokens:.0f} tokens."
    if history.context_tokens is None:
        yield "How long contexts are: no counter tells, 512 tokens a request are assumed."
    yield (
        "What the same arrivals would do: batches are taken as they were. Where requests come no faster than they are answered, a "
        "faster engine answers sooner with smaller batches, and does not generate more."
    )
    yield "The KV cache that a drafter takes: without it more requests fit, which no counter shows."


def _unknown_of_drafts(history: History) -> Iterator[str]:
    if not history.drafted:
        return
    yield (
        "Who was not drafted for: requests that opted out, drafts that a grammar cut and prompts where ngram found nothing count "
        "as rows without drafts, as off does."
    )
    positions = len(history.acceptance.measured())
    yield f"Acceptance beyond draft {positions}: no draft was longer; it is taken to go on falling as before, with more doubt."
    yield "Acceptance by hour and kind of prompt: one mean is used; the planner follows changes within seconds."
    yield (
        "Whether every draft was verified: no counter tells. Under vLLM's adaptive verification (enable_adaptive_verification) "
        "those left out count as not accepted, so acceptance is higher than it seems."
    )
    if any(k == 0 for _, k in history.seconds):
        yield "Whether a drafter ran at K = 0, as vLLM's own table has it: such hours are priced as without one."
