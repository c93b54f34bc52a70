"""What one replica does and why: K and its plan, the drafter's life, memory, and what users notice."""

from __future__ import annotations

from typing import Final

from nightjar.cluster.dashboards.panels import Dashboard, Panel, Query, Row
from nightjar.cluster.dashboards.promql import Scope, ratio
from nightjar.cluster.dashboards.shared_panels import (
    BY_K,
    CHOICES,
    CHOSEN,
    STEP_SECONDS,
    STEPS,
    K,
    choice,
    engine_time_by_k,
    first_token,
    goodput_by_k,
    per_token,
)

REPLICA: Final = Scope(f'ray_nightjar_replica_info{{{CHOSEN}, ReplicaId=~"$replica"}}')
NO_POSITION_YET: Final = 'label_replace(vector(0), "position", "0", "", "")'

SPECULATION: Final = Row(
    "Speculation",
    (
        Panel(
            title="K",
            description="K of the last step, and K chosen for it by mode, plan, guard and dwell; in shadow that does not run.",
            queries=(
                Query(REPLICA.gauge("max", "ray_nightjar_num_speculative_tokens", by="ReplicaId"), "{{ReplicaId}} runs"),
                Query(REPLICA.gauge("max", "ray_nightjar_planned_num_speculative_tokens", by="ReplicaId"), "{{ReplicaId}} chosen"),
            ),
        ),
        Panel(
            title="Decode batch",
            description="Requests in their decode phase in the last step, and the mean over the steps.",
            queries=(
                Query(REPLICA.gauge("max", "ray_nightjar_decode_batch_size", by="ReplicaId"), "{{ReplicaId}} last step"),
                Query(
                    ratio(REPLICA.rate("ray_nightjar_decode_rows_total", by="ReplicaId"), REPLICA.rate(STEPS, by="ReplicaId")),
                    "{{ReplicaId}} mean",
                ),
            ),
        ),
        engine_time_by_k(REPLICA),
        goodput_by_k(REPLICA),
        Panel(
            title="Step time by K",
            description="Mean time between two outputs of the busy engine.",
            queries=(Query(ratio(REPLICA.rate(STEP_SECONDS, by=BY_K), REPLICA.rate(STEPS, by=BY_K)), K),),
            unit="s",
        ),
        Panel(
            title="Acceptance by position",
            description="Share of drafts of which at least this many tokens (position 0: one) were accepted. A draft that is too "
            "short counts as a miss.",
            queries=(
                Query(
                    f"{REPLICA.rate('ray_vllm_spec_decode_num_accepted_tokens_per_pos_total', by='position')} "
                    f"/ scalar({REPLICA.rate('ray_vllm_spec_decode_num_drafts_total')}) or {NO_POSITION_YET}",
                    "position {{position}}",
                ),
            ),
            unit="percentunit",
            highest=1.0,
        ),
    ),
)

DRAFTER: Final = Row(
    "Drafter",
    (
        Panel(
            title="State",
            description="Where the drafter is in its life.",
            queries=(Query(f"{REPLICA.gauge('max', 'ray_nightjar_drafter_state', by='ReplicaId, state')} == 1", "{{state}}"),),
            kind="state-timeline",
        ),
        Panel(
            title="Lag",
            description="Tokens of running requests whose draft KV is missing: what a restart would recompute.",
            queries=(Query(REPLICA.gauge("max", "ray_nightjar_lag_tokens", by="ReplicaId"), "{{ReplicaId}}"),),
        ),
        Panel(
            title="Restarts a second",
            description="Restarts that began, by cause; those that caught up were put to a probe.",
            queries=(
                Query(REPLICA.rate("ray_nightjar_restarts_total", by="cause"), "{{cause}}"),
                Query(REPLICA.rate("ray_nightjar_probes_total"), "probes"),
                Query(REPLICA.rate("ray_nightjar_failed_probes_total"), "failed probes"),
            ),
        ),
        Panel(
            title="Draft tokens recomputed a second",
            description="What catching up recomputes.",
            queries=(Query(REPLICA.rate("ray_nightjar_catch_up_tokens_total", by="ReplicaId"), "{{ReplicaId}}"),),
        ),
        Panel(
            title="Seconds per token caught up",
            description="How much longer steps take for each draft token that they recompute, over K = 0 steps of the same batch.",
            queries=(
                Query(
                    ratio(
                        REPLICA.rate("ray_nightjar_catch_up_seconds_total", by="ReplicaId"),
                        REPLICA.rate("ray_nightjar_catch_up_measured_tokens_total", by="ReplicaId"),
                    ),
                    "{{ReplicaId}}",
                ),
            ),
            unit="s",
        ),
        Panel(
            title="Guard",
            description="Batch buckets that the guard holds off, its trips a second, and steps a second in which K waited to rise.",
            queries=(
                Query(REPLICA.gauge("sum", "ray_nightjar_guard_held_batch_buckets"), "held buckets"),
                Query(REPLICA.rate("ray_nightjar_guard_trips_total"), "trips"),
                Query(REPLICA.rate("ray_nightjar_guard_dwell_steps_total"), "dwell steps"),
            ),
        ),
    ),
)

MEMORY: Final = Row(
    "Memory",
    (
        Panel(
            title="KV cache in use",
            description="As vLLM sees it, blocks lent by a sleeping draft included.",
            queries=(Query(REPLICA.gauge("max", "ray_vllm_kv_cache_usage_perc", by="ReplicaId"), "{{ReplicaId}}"),),
            unit="percentunit",
            highest=1.0,
            alarm_above=0.9,
        ),
        Panel(
            title="Blocks lent by the draft",
            description="KV blocks in the memory of an offloaded draft that hold KV of requests now.",
            queries=(Query(REPLICA.gauge("max", "ray_nightjar_borrowed_kv_blocks", by="ReplicaId"), "{{ReplicaId}}"),),
        ),
        Panel(
            title="The draft's moves a second",
            description="Times that its weights left and came back, and the blocks and requests that made room.",
            queries=(
                Query(REPLICA.rate("ray_nightjar_draft_offloads_total"), "left"),
                Query(REPLICA.rate("ray_nightjar_draft_reloads_total"), "came back"),
                Query(REPLICA.rate("ray_nightjar_relocated_kv_blocks_total"), "blocks relocated"),
                Query(REPLICA.rate("ray_nightjar_contraction_preempted_requests_total"), "requests preempted"),
            ),
        ),
        Panel(
            title="Bytes moved a second",
            description="Draft weights, both ways.",
            queries=(Query(REPLICA.rate("ray_nightjar_draft_moved_bytes_total", by="ReplicaId"), "{{ReplicaId}}"),),
            unit="Bps",
        ),
        Panel(
            title="Time spent moving",
            description="Share of wall time.",
            queries=(Query(REPLICA.rate("ray_nightjar_draft_moving_seconds_total", by="ReplicaId"), "{{ReplicaId}}"),),
            unit="percentunit",
        ),
        Panel(
            title="Preemptions a second",
            description="Requests that vLLM threw out of the KV cache.",
            queries=(Query(REPLICA.rate_or_zero("ray_vllm_num_preemptions_total", by="ReplicaId"), "{{ReplicaId}}"),),
        ),
    ),
)

SERVICE: Final = Row(
    "Service",
    (
        Panel(
            title="Requests",
            description="Requests in the engine and in front of it.",
            queries=(
                Query(REPLICA.gauge("sum", "ray_vllm_num_requests_running", by="ReplicaId"), "{{ReplicaId}} running"),
                Query(REPLICA.gauge("sum", "ray_vllm_num_requests_waiting", by="ReplicaId"), "{{ReplicaId}} waiting"),
            ),
        ),
        first_token(REPLICA),
        per_token(REPLICA),
        Panel(
            title="Tokens a second",
            description="Generated, and of the prompts, as vLLM counts them.",
            queries=(
                Query(REPLICA.rate_or_zero("ray_vllm_generation_tokens_total"), "generated"),
                Query(REPLICA.rate_or_zero("ray_vllm_prompt_tokens_total"), "prompts"),
            ),
        ),
        Panel(
            title="Age of its settings",
            description="Time since the policy last said that they hold. Above settings_max_age_s the engine runs K = 0 only.",
            queries=(Query(REPLICA.gauge("max", "ray_nightjar_settings_age_seconds", by="ReplicaId"), "{{ReplicaId}}"),),
            unit="s",
            alarm_above=60,
        ),
        Panel(
            title="Out of the policy's hands",
            description="1 after a fault of Nightjar's own code in the engine, and 1 where the engine is served as plain vLLM.",
            queries=(
                Query(REPLICA.gauge("max", "ray_nightjar_engine_fault", by="ReplicaId"), "{{ReplicaId}} fault"),
                Query(REPLICA.gauge("max", "ray_nightjar_served_plainly", by="ReplicaId"), "{{ReplicaId}} plainly"),
            ),
            highest=1.0,
        ),
    ),
)

ONE_REPLICA: Final = Dashboard(
    uid="nightjar-replica",
    title="Nightjar: one replica",
    description="What one replica does and why: choose it at the top. With All it shows the sum or the highest of them.",
    variables=(*CHOICES, choice("replica", "Replica", "ReplicaId", CHOSEN)),
    rows=(SPECULATION, DRAFTER, MEMORY, SERVICE),
)
