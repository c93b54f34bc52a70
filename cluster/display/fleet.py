"""The fleet in 80 columns and 24 rows: one view for `status`, `watch` and the demo. Pure: a status in, a renderable out.

Numbers stand in a table, words below it: in a narrow terminal a column of words breaks every word. A group has its plan and at most
two sentences, a replica only what somebody may have to act on; why a K is what it is, is `nightjar explain`'s to say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.constrain import Constrain
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nightjar.cluster.display.times import format_duration
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import DrafterState, Layer, SteeringLevel
from nightjar.policy.wire.settings import TableRow
from nightjar.policy.wire.status import (
    NO_NEW,
    CanaryStatus,
    FleetStatus,
    GainedStatus,
    GroupStatus,
    PolicyStatus,
    ReplicaStatus,
    shown_name,
)

STALE_REPORT_S: Final = 5.0
SHOWN_ADAPTERS: Final = 8
SHOWN_NAMES: Final = 4
"""Of replicas of whom the same is true."""
STUCK_AFTER_S: Final = 60.0
"""Since the last decision; the longest decision period is half of it. The alert NightjarPolicyStuck says the same."""


def fleet_view(fleet: FleetStatus, width: int | None = None, rows: int | None = None) -> RenderableType:
    """Everything that `status` shows: policy, overrides, replicas, groups, and what the signs in it mean.

    At most `width` columns, where one is given, and the first `rows` replicas.
    """
    parts: list[RenderableType] = [*not_known_line(fleet.policy), steering_line(fleet.replicas), policy_line(fleet.policy)]
    parts.extend(policy_notes(fleet.policy))
    parts.extend(override_lines(fleet))
    if fleet.replicas:
        shown = fleet.replicas[:rows]
        parts += [replica_table(shown, fleet.policy.mode), *notes(fleet.replicas)]
        if hidden := len(fleet.replicas) - len(shown):
            parts.append(Text(f"and {hidden} more replicas: nightjar status"))
    else:
        parts.append(Text(_no_replica(fleet.policy), style="yellow"))
    for group in fleet.groups:
        parts.extend(group_lines(group))
    parts.extend(adapter_lines(fleet.replicas))
    parts.extend(journal_lines(fleet.policy))
    parts.extend(legend(fleet))
    return Constrain(Group(*parts), width)


def _no_replica(policy: PolicyStatus) -> str:
    if not policy.reports:
        return "no replica has reported yet"
    return (
        f"no replica reports any more, {policy.reports} reports came before: they ended, cannot reach the policy, or get no "
        "processor time; ray list actors says which are alive"
    )


def not_known_line(policy: PolicyStatus) -> Iterator[Text]:
    """Above everything else, because an emergency `off` may be missing."""
    if policy.not_known_before:
        told = f"what was set by hand before is not known, mode {policy.mode} of the settings holds: {policy.not_known_before}"
        yield Text(told, style="yellow")


def policy_notes(policy: PolicyStatus) -> Iterator[Text]:
    """What an operator did or has to look at, a line each: replicas that Ray killed, a freeze, a canary, settings, imports."""
    if policy.memory_kills:
        told = (
            f"Ray's memory monitor killed {counted(policy.memory_kills)} within the last hour, the last {policy.last_memory_kill}"
        )
        yield Text(told, style="red")
    if policy.freeze is not None:
        yield Text(f"{policy.freeze.in_words()}: {NO_NEW}", style="yellow")
    if policy.canary is not None:
        yield canary_line(policy.canary)
    if policy.settings_error:
        yield Text(f"settings refused, the previous ones hold: {policy.settings_error}", style="red")
    if policy.seed_problem:
        yield Text(policy.seed_problem, style="red")
    if policy.seed_notice:
        yield Text(policy.seed_notice, style="cyan")
    if policy.waiting_groups:
        yield Text(f"imported, waiting for a replica: {', '.join(policy.waiting_groups)}", style="cyan")
    if policy.unknown_applications:
        names = ", ".join(policy.unknown_applications)
        yield Text(f"settings per application: no replica of {names} reports", style="yellow")


def steering_line(replicas: Iterable[ReplicaStatus]) -> Text:
    """How much of the fleet is steered: replicas by level, each reason once, and by layer that works.

    `steering 2 fully, 1 plainly (no such hook); layers: steering 2, sleeping 2`; no layers of replicas that do not report them.
    """
    reasons: dict[SteeringLevel, Counter[str]] = {}
    layers: Counter[Layer] = Counter()
    for replica in replicas:
        reasons.setdefault(replica.steering, Counter())[replica.steering_reason] += 1
        layers.update(replica.layers)
    parts = []
    for level in SteeringLevel:
        if of_level := reasons.get(level):
            words = "; ".join(reason for reason in of_level if reason)
            parts.append(f"{of_level.total()} {level.value.replace('_', ' ')}{f' ({words})' if words else ''}")
    is_less = bool(reasons.keys() & {SteeringLevel.OBSERVING, SteeringLevel.PLAINLY})
    working = ", ".join(f"{layer.value} {layers[layer]}" for layer in Layer if layers[layer])
    return Text.assemble(
        ("steering ", "bold"),
        (", ".join(parts) or "no replica", "yellow" if is_less else ""),
        f"; layers: {working}" if working else "",
    )


def policy_line(policy: PolicyStatus) -> Text:
    """The policy actor on one line."""
    line = Text.assemble(
        ("policy ", "bold"),
        f"mode {policy.mode}, planner {policy.planner}, up {format_duration(policy.uptime_s)}, incarnation {policy.incarnation}",
    )
    if policy.refused_reports:
        line.append(f", {policy.refused_reports} reports refused (last: {policy.last_refusal})", style="yellow")
    if policy.decision_age_s > STUCK_AFTER_S:
        line.append(f", last decided {format_duration(policy.decision_age_s)} ago", style="red")
    return line


def canary_line(canary: CanaryStatus) -> Text:
    """The canary that runs, or what became of the last one."""
    left = f", {format_duration(canary.seconds_left)} left" if canary.seconds_left is not None else ""
    reason = f" ({canary.reason})" if canary.reason else ""
    style = {"rolled back": "red", "better": "green"}.get(canary.phase, "cyan" if canary.members else "")
    return Text(f"{canary.words}{left}{reason}", style=style)


def override_lines(fleet: FleetStatus) -> Iterable[Text]:
    """One line for each mode that somebody set by hand."""
    for override in fleet.overrides:
        whom = " ".join(part for part in (override.scope, override.name) if part)
        left = "until taken back" if override.seconds_left is None else f"for {format_duration(override.seconds_left)} more"
        reason = f" ({override.reason})" if override.reason else ""
        planner = f", planner {override.planner}" if override.planner is not None else ""
        limit = f", steps of up to {override.max_step_ms:g} ms" if override.max_step_ms is not None else ""
        objective = f", objective {override.objective}" if override.objective is not None else ""
        carried = f", carried over from {override.carried_from}" if override.carried_from else ""
        wins = f"; wins over mode {fleet.policy.mode} of the settings" if carried and override.mode != fleet.policy.mode else ""
        yield Text(f"override: {whom} -> {override.mode}{planner}{limit}{objective}, {left}{reason}{carried}{wins}", style="cyan")


def replica_table(replicas: Sequence[ReplicaStatus], mode: Mode) -> Table:
    """One row a replica. In shadow, K reads `runs -> would run`, idle `(ran)`. A mode that is not `mode` has a column."""
    with_mode = any(replica.mode != mode for replica in replicas)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("replica", overflow="fold")
    if with_mode:
        table.add_column("mode", no_wrap=True)
    for name in ("batch", "waiting", "KV", "K", "accepted", "tok/s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("drafter", no_wrap=True)
    for replica in replicas:
        load = replica.load
        cells: list[RenderableType] = [
            Text(short_name(replica)),  # in a string of a table, rich takes brackets for its tags
            *([str(replica.mode)] if with_mode else []),
            str(load.decode_batch_size),
            str(load.num_waiting_reqs),
            f"{load.kv_cache_usage:.0%}",
            speculation(replica),
            acceptance(replica.acceptance),
            f"{replica.generated_tokens_per_s:.1f}",
            in_words(replica.drafter_state),
        ]
        is_doubtful = replica.report_age_s > STALE_REPORT_S or replica.steering is SteeringLevel.PLAINLY
        table.add_row(*cells, style="yellow" if is_doubtful else None)
    return table


def short_name(replica: ReplicaStatus) -> str:
    """Application and the last part of Serve's id (application#deployment#part): our deployments have all the same name."""
    return shown_name(replica.application, replica.replica_id)


def notes(replicas: Iterable[ReplicaStatus]) -> Iterator[RenderableType]:
    """What somebody may have to act on, the same words once for all replicas of whom they are true.

    Warnings, a drafter that is not where the plan wants it or whose probes failed, and settings that are not the newest.
    """
    said: dict[str, list[str]] = {}
    for replica in replicas:
        is_plain = replica.steering is SteeringLevel.PLAINLY
        words = [f"served plainly: {replica.steering_reason}" if is_plain else replica.warning]
        if replica.drafter.reason or replica.failed_probes:
            words.append(f"drafter {drafter_cell(replica)}")
        if not replica.settings_confirmed or replica.report_age_s > STALE_REPORT_S:
            words.append(f"settings {settings_cell(replica)}")
        for text in filter(None, words):
            said.setdefault(text, []).append(short_name(replica))
    for text, names in said.items():
        shown = ", ".join(names[:SHOWN_NAMES])
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        yield Text.assemble((f"{shown}{more}", "bold"), f": {text}")


def in_words(state: DrafterState) -> str:
    """`catching up`."""
    return state.value.replace("_", " ")


def speculation(replica: ReplicaStatus) -> str:
    """K that runs; in shadow also the K that the plan would run. In brackets that of the last step, where nothing decodes now."""
    load = replica.load
    if not load.decode_batch_size:
        return f"({load.num_speculative_tokens})"
    if replica.mode.kind == "shadow":
        return f"{load.num_speculative_tokens} -> {load.planned_num_speculative_tokens}"
    return str(load.num_speculative_tokens)


def acceptance(survival: tuple[float, ...]) -> str:
    """Acceptance of the first and of the last position that was measured."""
    if not survival:
        return "-"
    return f"{survival[0]:.2f}" if len(survival) == 1 else f"{survival[0]:.2f}..{survival[-1]:.2f}"


def drafter_cell(replica: ReplicaStatus) -> str:
    """Where the drafter is in its life, what a restart would recompute, what it lent, and why it waits."""
    drafter = replica.drafter
    parts = [in_words(replica.drafter_state)]
    if drafter.lag_tokens:
        parts.append(f"lag {drafter.lag_tokens}")
    if drafter.borrowed_blocks:
        parts.append(f"{drafter.borrowed_blocks} blocks lent")
    if replica.restarts:
        parts.append(f"{replica.restarts} restarts ({drafter.micro_restarts} micro)")
    if drafter.recomputed_tokens:
        parts.append(f"{drafter.recomputed_tokens} tokens caught up (+{replica.catch_up_seconds:.1f} s)")
    if replica.failed_probes:
        parts.append(f"{replica.failed_probes} of {drafter.probes} probes failed")
    if drafter.offloads:
        parts.append(f"{drafter.offloads} offloads, {drafter.moved_bytes / 1e9:.1f} GB moved")
    if drafter.relocated_blocks or drafter.preempted_requests:
        parts.append(f"{drafter.relocated_blocks} blocks relocated, {drafter.preempted_requests} requests preempted for it")
    return ", ".join(parts) + (f": {drafter.reason}" if drafter.reason else "")


def settings_cell(replica: ReplicaStatus) -> str:
    """Version of the settings in force, whether they are the newest, and the age of the report that says so."""
    version = str(replica.settings_version) if replica.settings_version else "none"
    behind = "" if replica.settings_confirmed else " behind"
    return f"{version}{behind}, {format_duration(replica.report_age_s)} ago"


def adapter_lines(replicas: Iterable[ReplicaStatus]) -> Iterable[Text]:
    """One line for each application with LoRA adapters: the share of draft tokens that was accepted in each adapter's requests,
    over all its replicas, lowest first. A draft knows no adapters, so a low share names one that speculation does not help.
    """
    accepted: dict[str, Counter[str]] = {}
    drafted: dict[str, Counter[str]] = {}
    for replica in replicas:
        for counted in replica.adapters:
            accepted.setdefault(replica.application, Counter())[counted.adapter] += counted.accepted_tokens
            drafted.setdefault(replica.application, Counter())[counted.adapter] += counted.draft_tokens
    for application, drafts in drafted.items():
        shares = sorted((accepted[application][adapter] / max(count, 1), adapter) for adapter, count in drafts.items())
        shown = ", ".join(f"{adapter} {share:.0%} of {drafts[adapter]}" for share, adapter in shares[:SHOWN_ADAPTERS])
        more = len(shares) - SHOWN_ADAPTERS
        rest = f", and {more} more in -o json" if more > 0 else ""
        yield Text(f"LoRA adapters of {application}, accepted draft tokens: {shown}{rest}")


def group_lines(group: GroupStatus) -> Iterator[RenderableType]:
    """A group: its plan as K by decode batch, and at most two sentences: what the plan is predicted to give, what it waits for."""
    yield Text.assemble(("group ", "bold"), f"{group.group_id}: {counted(group.replicas)}, planner {group.planner}")
    told = [f"K by decode batch  {plan_text(group.rows)}"]
    if group.mixed_rows:
        told.append(f"beside prefill     {plan_text(group.mixed_rows)}")
    if group.gained:
        told.append(f"{f'gained in {format_duration(group.gained[0].over_s)}':<18} {gained_text(group.gained)}")
    for line in (*told, *filter(None, (_worth(group), _pending(group)))):
        yield Padding(Text(line), (0, 0, 0, 2))


def gained_text(gained: Sequence[GainedStatus]) -> str:
    """`+12% (+7 to +17%) of K=5's engine time; of off's not known`, or `not known`."""
    parts = []
    for one in gained:
        whose = f"K={one.num_speculative_tokens}'s" if one.num_speculative_tokens else "off's"
        if one.share is None or one.low is None or one.high is None:
            parts.append(f"of {whose} not known")
        else:
            parts.append(f"{one.share:+.0%} ({100 * one.low:+.0f} to {one.high:+.0%}) of {whose}{'' if parts else ' engine time'}")
    return "; ".join(parts) if any(one.share is not None for one in gained) else "not known"


def _worth(group: GroupStatus) -> str:
    """What the plan is predicted to give now, over off and what runs, or why that is not known; empty before the first step."""
    planned, off, present = group.predicted_tokens_per_s, group.predicted_off_tokens_per_s, group.predicted_present_tokens_per_s
    if group.not_known or planned is None or not off or not group.cells:
        return group.not_known
    over_present = f", {_ratio(planned / present, group.predicted_present_deviation)} of what runs" if present else ""
    over_off = _ratio(planned / off, group.predicted_off_deviation)
    return f"The plan is predicted to give {planned:.0f} tok/s now: {over_off} of off{over_present}."


def _ratio(value: float, deviation: float | None) -> str:
    """`1.29 (1.10 to 1.51)`, with two deviations on either side; without them where none is told, or both are the same K."""
    if not deviation:
        return f"{value:.2f}"
    return f"{value:.2f} ({value * math.exp(-2.0 * deviation):.2f} to {value * math.exp(2.0 * deviation):.2f})"


def _pending(group: GroupStatus) -> str:
    """What the group waits for: leases, a freeze after failed probes, measurements of its own; empty where for nothing."""
    granted, waiting = len(group.restarts.open_leases), len(group.restarts.waiting)
    parts = []
    if granted or waiting:
        parts.append(f"{granted} of {granted + waiting} restarts of speculation may run")
    if group.restarts.frozen_seconds_left:
        parts.append(f"failed probes stop restarts for {format_duration(group.restarts.frozen_seconds_left)} more")
    if group.imported_cells:
        parts.append(f"{group.imported_cells} of {len(group.cells)} cells are imported, not measured here")
    words = "; ".join(parts)
    return f"{words[:1].upper()}{words[1:]}." if words else ""


def journal_lines(policy: PolicyStatus) -> Iterator[Text]:
    """How far back the journal goes at the present pace, and how far a replay: at most one line."""
    kept = []
    if policy.journal_holds_s is not None:
        kept.append(f"keeps about {format_duration(policy.journal_holds_s)}")
    if policy.replay_problem:
        kept.append(f"nothing for a replay: {policy.replay_problem}")
    elif policy.replay_holds_s is not None:
        kept.append(f"{format_duration(policy.replay_holds_s)} of inputs for a replay")
    if kept:
        yield Text(f"journal {', '.join(kept)}", style="dim")


def legend(fleet: FleetStatus) -> Iterator[Text]:
    """What the signs mean that stand in the view, and where the reasons are."""
    if not fleet.replicas:
        return
    meanings = ["accepted: how often the first .. last draft token was"]
    if any(group.censored_acceptance for group in fleet.groups):
        meanings.append("under adaptive verification: of drafts made, since how many were verified stays on the GPU")
    if any(replica.mode.kind == "shadow" and replica.load.decode_batch_size for replica in fleet.replicas):
        meanings.append("K: what runs -> what the plan would run")
    if any(not replica.load.decode_batch_size for replica in fleet.replicas):
        meanings.append("(K): of the last step, idle now")
    if any(not replica.acceptance for replica in fleet.replicas):
        meanings.append("-: not measured yet")
    yield Text("; ".join(meanings), style="dim")
    yield Text(f"Why this K: nightjar explain {short_name(fleet.replicas[0])}", style="dim")


def counted(replicas: int) -> str:
    """`1 replica`, `3 replicas`."""
    return f"{replicas} replica{'' if replicas == 1 else 's'}"


def plan_text(rows: Iterable[TableRow]) -> str:
    """A plan in one line, neighbours of equal K joined: `1-5: 3  6-16: 0`."""
    joined: list[tuple[int, int, int]] = []
    for row in rows:
        if joined and joined[-1][2] == row.num_speculative_tokens and joined[-1][1] + 1 == row.first_batch_size:
            joined[-1] = (joined[-1][0], row.last_batch_size, row.num_speculative_tokens)
        else:
            joined.append((row.first_batch_size, row.last_batch_size, row.num_speculative_tokens))
    spans = (f"{first}" if first == last else f"{first}-{last}" for first, last, _ in joined)
    return "  ".join(f"{span}: {k}" for span, (_, _, k) in zip(spans, joined, strict=True)) or "-"
