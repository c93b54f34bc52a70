"""The fleet in 80 columns: the same views for `status`, `watch` and whoever embeds them. Pure: a status in, a renderable out.

Numbers stand in a table, words below it: in a narrow terminal a column of words breaks every word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from nightjar.cluster.durations import format_duration
from nightjar.policy.wire.mode import Mode
from nightjar.policy.wire.report import Layer, SteeringLevel
from nightjar.policy.wire.settings import TableRow
from nightjar.policy.wire.status import NO_NEW, CanaryStatus, FleetStatus, GroupStatus, PolicyStatus, ReplicaStatus, shown_name

STALE_REPORT_S: Final = 5.0
SHOWN_ADAPTERS: Final = 8
SHOWN_NAMES: Final = 4
"""Of replicas of whom the same is true."""
STUCK_AFTER_S: Final = 60.0
"""Since the last decision; the longest decision period is half of it. The alert NightjarPolicyStuck says the same."""


def fleet_view(fleet: FleetStatus) -> RenderableType:
    """Everything that `status` shows: the policy, overrides, replicas and groups."""
    parts: list[RenderableType] = [steering_line(fleet.replicas), policy_line(fleet.policy)]
    if fleet.policy.freeze is not None:
        parts.append(Text(f"{fleet.policy.freeze.in_words()}: {NO_NEW}", style="yellow"))
    if fleet.policy.canary is not None:
        parts.append(canary_line(fleet.policy.canary))
    if fleet.policy.settings_error:
        parts.append(Text(f"settings refused, the previous ones hold: {fleet.policy.settings_error}", style="red"))
    if fleet.policy.seed_problem:
        parts.append(Text(fleet.policy.seed_problem, style="red"))
    if fleet.policy.seed_notice:
        parts.append(Text(fleet.policy.seed_notice, style="cyan"))
    if fleet.policy.waiting_groups:
        parts.append(Text(f"imported, waiting for a replica: {', '.join(fleet.policy.waiting_groups)}", style="cyan"))
    if fleet.policy.unknown_applications:
        names = ", ".join(fleet.policy.unknown_applications)
        parts.append(Text(f"max_step_ms_per_application: no replica of {names} reports", style="yellow"))
    parts.extend(override_lines(fleet))
    if fleet.replicas:
        parts += [replica_table(fleet.replicas, fleet.policy.mode), *notes(fleet.replicas)]
    else:
        parts.append(Text("no replica has reported yet", style="yellow"))
    for group in fleet.groups:
        parts += [Text(), *group_lines(group)]
    parts.extend(adapter_lines(fleet.replicas))
    return Group(*parts)


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
        f"mode {policy.mode}, planner {policy.planner}, incarnation {policy.incarnation}, pid {policy.pid}, "
        f"up {format_duration(policy.uptime_s)}, {policy.reports} reports",
    )
    if policy.refused_reports:
        line.append(f", {policy.refused_reports} refused (last: {policy.last_refusal})", style="yellow")
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
        yield Text(f"override: {whom} -> {override.mode}{planner}{limit}, {left}{reason}", style="cyan")


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
        cells = [
            short_name(replica),
            *([str(replica.mode)] if with_mode else []),
            str(load.decode_batch_size),
            str(load.num_waiting_reqs),
            f"{load.kv_cache_usage:.0%}",
            speculation(replica),
            acceptance(replica.acceptance),
            f"{replica.generated_tokens_per_s:.1f}",
            replica.drafter_state.value,
        ]
        is_doubtful = replica.report_age_s > STALE_REPORT_S or replica.steering is SteeringLevel.PLAINLY
        table.add_row(*cells, style="yellow" if is_doubtful else None)
    return table


def short_name(replica: ReplicaStatus) -> str:
    """Application and the last part of Serve's id (application#deployment#part): our deployments have all the same name."""
    return shown_name(replica.application, replica.replica_id)


def notes(replicas: Iterable[ReplicaStatus]) -> Iterable[RenderableType]:
    """What is to be said of replicas in words, the same words once for all of whom they are true.

    Why K is what it is, what a drafter waits for or has cost, and settings that are not the newest.
    """
    said: dict[str, list[str]] = {}
    for replica in replicas:
        is_plain = replica.steering is SteeringLevel.PLAINLY
        words = [f"served plainly: {replica.steering_reason}" if is_plain else replica.reason]
        if (drafter := drafter_cell(replica)) != replica.drafter_state.value:
            words.append(f"drafter {drafter}")
        if not replica.settings_confirmed or replica.report_age_s > STALE_REPORT_S:
            words.append(f"settings {settings_cell(replica)}")
        for text in filter(None, words):
            said.setdefault(text, []).append(short_name(replica))
    for text, names in said.items():
        shown = ", ".join(names[:SHOWN_NAMES])
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        yield Text.assemble((f"{shown}{more}", "bold"), f": {text}")


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
    parts = [replica.drafter_state.value]
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


def group_lines(group: GroupStatus) -> Iterable[RenderableType]:
    """A group: its plan as K by decode batch, what the plan is predicted to give over off and over what runs, and why."""
    planned, off, present = group.predicted_tokens_per_s, group.predicted_off_tokens_per_s, group.predicted_present_tokens_per_s
    gain = f", predicted {planned:.0f} tok/s, {planned / off:.2f} of off" if planned is not None and off else ""
    if gain and planned is not None and present:
        gain += f", {planned / present:.2f} of what runs"
    yield Text.assemble(("group ", "bold"), f"{group.group_id}: {counted(group.replicas)}, planner {group.planner}{gain}")
    told = [f"K by decode batch  {plan_text(group.rows)}"]
    if group.mixed_rows:
        told.append(f"beside prefill     {plan_text(group.mixed_rows)}")
    told.append(f"accepted           {acceptance(group.acceptance)}")
    for line in (*told, *filter(None, group.reason.split("; "))):
        yield Padding(Text(line), (0, 0, 0, 2))


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
    return "  ".join(f"{span}: {length}" for span, (_, _, length) in zip(spans, joined, strict=True)) or "-"
