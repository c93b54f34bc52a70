"""The demo's bars: counts, never times. Each looks at recorded rows, answers, samples and decisions alone.

The K of a step is judged where it must be certain: in the fixed modes no engine may run a step at another K once it
confirmed the mode; in `auto` every sampled K must follow from the settings that the replica says it runs. A K below the plan counts
as explained where the replica itself says why; how often that is depends on the machine, so it is told and not judged.

Text must be equal whatever speculation does: greedy, token by token, up to a near tie of the reference (arms/texts.py).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from nightjar.loadtests.arms.samples import EngineHistory, StatusSample, WorkByK, all_work, steered_replicas
from nightjar.loadtests.arms.texts import NEAR_TIE, first_difference
from nightjar.loadtests.demo.summary import Check
from nightjar.loadtests.load.openai_stream import Token
from nightjar.loadtests.load.regimes import Regime, arrival_times
from nightjar.loadtests.load.rows import RequestRow
from nightjar.policy.wire.cause import Code
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState, SteeringLevel
from nightjar.policy.wire.settings import IssuedSettings, Settings, SettingsVersion, Table, k_at
from nightjar.policy.wire.status import ReplicaStatus
from nightjar.policy.words import step_codes

ReplicaSettings = Mapping[str, Sequence[IssuedSettings]]
"""Every settings that a replica was ever sent, in the order of their versions."""

STEPS_UNDER_NEW_SETTINGS: Final = 2
"""So many steps after settings were seen in force, the last step was planned by them: one more than can be in flight."""
HOLDING_CAUSES: Final = frozenset({Code.DWELL, Code.MIXED, Code.CHECKING, Code.WORSE_THAN_OFF, Code.AGED})
"""What an engine says when it gives a step a lower K than the plan."""
STATES_WITHOUT_DRAFTS: Final = frozenset(
    {
        DrafterState.DORMANT,
        DrafterState.OFFLOADED,
        DrafterState.CONTRACTING,
        DrafterState.RELOADING,
        DrafterState.CATCHING_UP,
    }
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The tokens generated for one prompt, or why there are none."""

    prompt: str
    tokens: tuple[Token, ...]
    error: str = ""


class Explanation(StrEnum):
    """How a sampled K follows from the settings that its replica runs."""

    TABLE = "as the table says"
    MEASURING = "measuring"
    HELD = "held lower by dwell, prefill or guard"
    ASLEEP = "off while the drafter sleeps or catches up"
    UNKNOWN = "under settings that the journal does not hold"
    UNEXPLAINED = "below the plan for no reason that the replica gives"
    CONTRADICTION = "above the plan"


def check_requests(regime: Regime, seed: int, modes: Sequence[str], rows: Sequence[RequestRow]) -> Check:
    """Every open-loop arrival of every mode has a row, and no row an error."""
    due = sum(1 for _ in arrival_times(regime, seed))
    failed = [row for row in rows if row.error]
    problems = [f"{len(failed)} of {len(rows)} failed, the first: {failed[0].error}"] if failed else []
    for mode in modes:
        sent = len({row.request_id for row in rows if row.mode == mode})
        if sent < due:
            problems.append(f"{mode}: {sent} requests recorded of {due} due")
    return Check(name="no failed request", passed=not problems, detail="; ".join(problems) or f"0 of {len(rows)} failed")


def compare_texts(answers: Mapping[str, Sequence[Answer]], near_tie: float = NEAR_TIE) -> Check:
    """Whether every mode answered as the first one did."""
    (reference_mode, reference), *others = answers.items()
    problems = [f"{mode}: {answer.error}" for mode, given in answers.items() for answer in given if answer.error]
    ties = 0
    for mode, given in others:
        for expected, got in zip(reference, given, strict=True):
            place = first_difference([token.text for token in expected.tokens], [token.text for token in got.tokens])
            if place is None:
                continue
            if _is_near_tie(expected, place, near_tie):
                ties += 1
            else:
                problems.append(f"{mode}: {expected.prompt[:40]!r} differs from {reference_mode} at token {place}")
    counted = sum(len(answer.tokens) for answer in reference)
    told = f"{len(reference)} prompts, {counted} tokens, the same under {', '.join(answers)}"
    if ties:
        told += f" ({ties} from a near tie of the two best tokens on)"
    return Check(name="equal text", passed=not problems, detail="; ".join(problems[:4]) or told)


def check_steering(samples: Sequence[StatusSample]) -> Check:
    """Every replica of every sample was steered fully."""
    replicas = [replica for sample in samples if sample.status for replica in sample.status.replicas]
    less = {
        f"{replica.replica_id} {replica.steering.value}: {replica.steering_reason}"
        for replica in replicas
        if replica.steering is not SteeringLevel.FULLY
    }
    detail = "; ".join(sorted(less)) or f"{len(replicas)} samples of replicas, all fully"
    return Check(name="replicas are steered", passed=bool(replicas) and not less, detail=detail)


def check_fixed_k(mode: Mode, samples: Sequence[StatusSample]) -> Check:
    """Every engine step between the first and the last sample of a fixed mode ran at its K.

    A drafter that slept comes back with a lease and a catch-up: where K > 0 steps are judged since its engine's was back.
    """
    wanted = mode.num_speculative_tokens or 0
    mine = [sample for sample in samples if sample.mode == str(mode)]
    back, absent = _since_back(mine) if wanted else (mine, mine[:0])
    judged = _work(back)
    counted = ", ".join(f"{one.steps} steps at K={k}" for k, one in judged.items()) or "no step was counted"
    never = all_work(_work(absent)).steps
    if before := all_work(_work(mine)).steps - all_work(judged).steps - never:
        counted += f"; {before} before the drafters were back"
    if never:
        counted += f"; {never} on engines whose drafter was never back"
    return Check(name=f"K under {mode}", passed=set(judged) == {wanted} and not never, detail=counted)


def check_planned_k(mode: str, samples: Sequence[StatusSample], sent: ReplicaSettings) -> Check:
    """Every sampled K of a decoding replica follows from the settings that it confirmed."""
    counts = dict.fromkeys(Explanation, 0)
    examples: list[str] = []
    drafting = 0
    in_force = _InForce()
    for replica in steered_replicas(samples, mode):
        since = in_force.note(replica)
        if not replica.load.decode_batch_size:
            continue
        explanation = explain(replica, sent.get(replica.replica_id, ()), since)
        load = replica.load
        counts[explanation] += 1
        drafting += load.num_speculative_tokens > 0
        if explanation in {Explanation.UNEXPLAINED, Explanation.CONTRADICTION}:
            examples.append(f"K={load.num_speculative_tokens} at batch {load.decode_batch_size} under {replica.settings_version}")
    total = sum(counts.values())
    problems = examples[:3]
    if counts[Explanation.UNKNOWN] * 2 >= total:
        problems.append("too few samples are known")
    seen = f"{total} samples, {drafting} at K > 0 and {total - drafting} at K = 0"
    detail = ", ".join(f"{count} {explanation}" for explanation, count in counts.items() if count)
    return Check(name=f"K under {mode}", passed=not problems, detail="; ".join([f"{seen}: {detail or 'none'}", *problems]))


def explain(replica: ReplicaStatus, sent: Sequence[IssuedSettings], since: SettingsVersion | None = None) -> Explanation:
    """Why the replica's last step ran at its K: by its newest settings, or by those since `since` (None: the ones before).

    The last step may have come before the newest settings arrived, and while a long one ran, several may have.
    """
    places = {issued.version: place for place, issued in enumerate(sent)}
    if replica.settings_version not in places:
        return Explanation.UNKNOWN
    newest = places[replica.settings_version]
    oldest = places.get(since, newest - 1) if since is not None else newest - 1
    found = {_explain(replica, issued.settings) for issued in sent[max(min(oldest, newest), 0) : newest + 1]}
    return next(explanation for explanation in Explanation if explanation in found)


def check_policy_restart(killed_at_s: float | None, samples: Sequence[StatusSample]) -> Check:
    """After the kill the policy came back with a higher incarnation and replicas that confirm its settings."""
    name = "the policy comes back"
    if killed_at_s is None:
        return Check(name=name, passed=False, detail="the policy actor was not killed")
    before = [s.status.policy.incarnation for s in samples if s.status and s.time_s < killed_at_s]
    after = [s for s in samples if s.status and s.time_s >= killed_at_s and s.status.policy.incarnation > max(before, default=0)]
    steered = [s for s in after if s.status and s.status.replicas and all(one.settings_confirmed for one in s.status.replicas)]
    if not after or not steered or not after[0].status:
        return Check(name=name, passed=False, detail=f"no newer incarnation than {max(before, default=0)} steers every replica")
    detail = (
        f"incarnation {max(before, default=0)} was killed, {after[0].status.policy.incarnation} answered after "
        f"{after[0].time_s - killed_at_s:.0f} s and steered every replica after {steered[0].time_s - killed_at_s:.0f} s"
    )
    return Check(name=name, passed=True, detail=detail)


def read_decisions(path: Path) -> dict[str, list[IssuedSettings]]:
    """The settings in a copy of the policy's journal, by replica id; lines that hold none are skipped."""
    sent: dict[str, list[IssuedSettings]] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            decided = json.loads(line)["decided"]
            for replica_id, values in decided.items():
                sent.setdefault(replica_id, []).append(IssuedSettings.model_validate(values))
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
            continue
    for issued in sent.values():
        issued.sort(key=lambda one: (one.version.incarnation, one.version.sequence))
    return sent


def _is_near_tie(reference: Answer, place: int, near_tie: float) -> bool:
    best = reference.tokens[place].top_logprobs if place < len(reference.tokens) else ()
    return len(best) > 1 and best[0] - best[1] < near_tie


class _InForce:
    """The newest settings that each engine surely had when it planned its last step."""

    def __init__(self) -> None:
        self._seen: dict[str, list[tuple[int, SettingsVersion]]] = {}

    def note(self, replica: ReplicaStatus) -> SettingsVersion | None:
        """Take a sample in, and tell by the earlier ones; None where those are too few steps ago."""
        steps, seen = sum(total.steps for total in replica.totals), self._seen.setdefault(replica.engine_id, [])
        if replica.settings_version is not None:
            seen.append((steps, replica.settings_version))
        return next((version for at, version in reversed(seen) if steps - at >= STEPS_UNDER_NEW_SETTINGS), None)


def _work(samples: Sequence[StatusSample]) -> WorkByK:
    return EngineHistory(samples).work(samples[0].time_s, samples[-1].time_s) if samples else {}


def _since_back(samples: Sequence[StatusSample]) -> tuple[list[StatusSample], list[StatusSample]]:
    """The samples with each engine from the first one on in which its drafter was awake, and those with engines that never were."""
    awake: set[str] = set()
    seen: set[str] = set()
    back = []
    for sample in samples:
        for replica in sample.status.replicas if sample.status else ():
            seen.add(replica.engine_id)
            if replica.drafter_state not in STATES_WITHOUT_DRAFTS:
                awake.add(replica.engine_id)
        back.append(_only(sample, awake))
    return back, [_only(sample, seen - awake) for sample in samples]


def _only(sample: StatusSample, engine_ids: Collection[str]) -> StatusSample:
    if sample.status is None:
        return sample
    replicas = tuple(replica for replica in sample.status.replicas if replica.engine_id in engine_ids)
    return sample.model_copy(update={"status": sample.status.model_copy(update={"replicas": replicas})})


def _explain(replica: ReplicaStatus, settings: Settings) -> Explanation:
    load, plan = replica.load, settings.plan
    if not isinstance(plan, Table):
        return Explanation.UNKNOWN
    k, batch = load.num_speculative_tokens, load.decode_batch_size
    planned = k_at(plan.rows, batch)
    beside_prefill = k_at(plan.mixed_rows, batch) if plan.mixed_rows else planned
    measured = {one.num_speculative_tokens for one in plan.segments if one.first_batch_size <= batch <= one.last_batch_size}
    if k == planned or (k == beside_prefill and Code.BESIDE_PREFILL in step_codes(replica)):
        return Explanation.TABLE
    if k in measured:
        return Explanation.MEASURING
    if k > max({planned, *measured}):
        return Explanation.CONTRADICTION
    is_held = load.planned_num_speculative_tokens not in {planned, *measured}
    if is_held and not step_codes(replica) & HOLDING_CAUSES:
        return Explanation.UNEXPLAINED
    if k == load.planned_num_speculative_tokens:
        return Explanation.HELD
    return Explanation.ASLEEP if not k and replica.drafter_state in STATES_WITHOUT_DRAFTS else Explanation.UNEXPLAINED
