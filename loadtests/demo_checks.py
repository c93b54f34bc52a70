"""The demo's bars: counts, never times. Each looks at recorded rows, samples and decisions alone.

The K of a step is judged where it must be certain: in the fixed modes no engine may run a step at another K once it
confirmed the mode; in `auto` every sampled K must follow from the settings that the replica says it runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from nightjar.loadtests.regimes import Regime, arrival_times
from nightjar.loadtests.rows import RequestRow
from nightjar.loadtests.samples import EngineHistory, StatusSample
from nightjar.loadtests.summary import Check
from nightjar.policy.records import Mode, Settings, Table
from nightjar.policy.status import ReplicaStatus

ReplicaSettings = Mapping[str, Sequence[Settings]]
"""Every settings that a replica was ever sent, in the order of their versions."""


class Explanation(StrEnum):
    """How a sampled K follows from the settings that its replica runs."""

    TABLE = "as the table says"
    MEASURING = "measuring"
    HELD_LOWER = "held lower for now"
    UNKNOWN = "under settings that the journal does not hold"
    CONTRADICTION = "against the plan"


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


def check_fixed_length(mode: Mode, samples: Sequence[StatusSample]) -> Check:
    """Every engine step between the first and the last sample of a fixed mode ran at its K."""
    wanted = mode.num_speculative_tokens or 0
    mine = [sample for sample in samples if sample.mode == str(mode)]
    work = EngineHistory(mine).work(mine[0].time_s, mine[-1].time_s) if mine else {}
    counted = ", ".join(f"{one.steps} steps at K={length}" for length, one in work.items()) or "no step was counted"
    return Check(name=f"K under {mode}", passed=set(work) == {wanted}, detail=counted)


def check_planned_length(mode: str, samples: Sequence[StatusSample], sent: ReplicaSettings) -> Check:
    """Every sampled K of a decoding replica follows from the settings that it confirmed."""
    counts = dict.fromkeys(Explanation, 0)
    examples: list[str] = []
    for replica in _decoding(sample for sample in samples if sample.mode == mode):
        explanation = explain(replica, sent.get(replica.replica_id, ()))
        counts[explanation] += 1
        if explanation is Explanation.CONTRADICTION:
            load = replica.load
            examples.append(f"K={load.num_speculative_tokens} at batch {load.decode_batch_size} under {replica.settings_version}")
    known = sum(counts.values()) - counts[Explanation.UNKNOWN]
    detail = (
        ", ".join(f"{count} {explanation}" for explanation, count in counts.items() if count) or "no decoding replica was sampled"
    )
    passed = not counts[Explanation.CONTRADICTION] and known > counts[Explanation.UNKNOWN]
    return Check(name=f"K under {mode}", passed=passed, detail="; ".join([f"samples: {detail}", *examples[:3]]))


def explain(replica: ReplicaStatus, sent: Sequence[Settings]) -> Explanation:
    """Why the replica's last step ran at its K.

    The last step may have come before the newest settings arrived, so those before them may explain it, too.
    """
    known = [place for place, settings in enumerate(sent) if settings.version == replica.settings_version]
    if not known:
        return Explanation.UNKNOWN
    candidates = sent[max(known[0] - 1, 0) : known[0] + 1]
    found = {_explain(replica, settings) for settings in candidates}
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


def read_decisions(path: Path) -> dict[str, list[Settings]]:
    """The settings in a copy of the policy's journal, by replica id; lines that hold none are skipped."""
    sent: dict[str, list[Settings]] = {}
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            decided = json.loads(line)["decided"]
            for replica_id, values in decided.items():
                sent.setdefault(replica_id, []).append(Settings.model_validate(values))
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError):
            continue
    for settings in sent.values():
        settings.sort(key=lambda one: (one.version.incarnation, one.version.sequence))
    return sent


def _explain(replica: ReplicaStatus, settings: Settings) -> Explanation:
    length, batch = replica.load.num_speculative_tokens, replica.load.decode_batch_size
    if not isinstance(settings.plan, Table):
        return Explanation.UNKNOWN
    planned = _table_length(settings.plan, batch)
    if length == planned:
        return Explanation.TABLE
    for segment in settings.plan.segments:
        if segment.num_speculative_tokens == length and segment.first_batch_size <= batch <= segment.last_batch_size:
            return Explanation.MEASURING
    highest = max(
        [planned, *(s.num_speculative_tokens for s in settings.plan.segments if s.first_batch_size <= batch <= s.last_batch_size)]
    )
    return Explanation.HELD_LOWER if length < highest else Explanation.CONTRADICTION


def _table_length(table: Table, batch: int) -> int:
    """K of a table at a decode batch size, as records.Table defines it."""
    if batch > table.rows[-1].last_batch_size:
        return 0
    covering = [row.num_speculative_tokens for row in table.rows if row.first_batch_size <= batch]
    return covering[-1] if covering else table.rows[0].num_speculative_tokens


def _decoding(samples: Iterable[StatusSample]) -> Iterable[ReplicaStatus]:
    for sample in samples:
        for replica in sample.status.replicas if sample.status else ():
            if replica.settings_confirmed and replica.load.decode_batch_size and not replica.serving_plainly:
                yield replica
