"""What both dashboards show: the choices at their top, and the panels that differ only in whose replicas they are about.

Panels read raw series, never recorded ones, so that they work in a Prometheus without our rules; those about alerts need them.
Every choice starts with All, which matches everything, and vLLM's counters that exist only after their first increment count as
zero before it.
"""

from __future__ import annotations

from typing import Final

from nightjar.cluster.dashboards.panels import Panel, Query, Variable
from nightjar.cluster.dashboards.promql import ANY_RELEASE, CLUSTER, Scope, ratio

OF_CLUSTER: Final = f'{ANY_RELEASE}, {CLUSTER}=~"$cluster"'
"""The policy's own series know neither application nor group."""
CHOSEN: Final = f'{OF_CLUSTER}, application=~"$application", group_id=~"$group"'

STEPS: Final = "ray_nightjar_steps_total"
STEP_SECONDS: Final = "ray_nightjar_step_seconds_total"
GENERATED: Final = "ray_nightjar_generated_tokens_total"
BY_K: Final = "num_speculative_tokens"
K: Final = "K = {{num_speculative_tokens}}"


def choice(name: str, title: str, label: str, narrowed_by: str) -> Variable:
    """A variable over the values of a label of replicas."""
    return Variable(name, title, f"label_values(ray_nightjar_replica_info{{{narrowed_by}}}, {label})")


CHOICES: Final = (
    choice("cluster", "Cluster", CLUSTER, ANY_RELEASE),
    choice("application", "Application", "application", OF_CLUSTER),
    choice("group", "Group", "group_id", f'{OF_CLUSTER}, application=~"$application"'),
)


def goodput_by_k(scope: Scope) -> Panel:
    """Tokens by the engine time that made them."""
    return Panel(
        title="Goodput by K",
        description="Generated tokens per second of engine time that ran with this K. Loads differ between K: this compares what "
        "was run, not what would have been.",
        queries=(Query(ratio(scope.rate(GENERATED, by=BY_K), scope.rate(STEP_SECONDS, by=BY_K)), K),),
    )


def engine_time_by_k(scope: Scope) -> Panel:
    """Where the engine time went."""
    return Panel(
        title="Engine time by K",
        description="Share of busy engine time that ran with this K.",
        queries=(Query(f"{scope.rate(STEP_SECONDS, by=BY_K)} / scalar({scope.rate(STEP_SECONDS)})", K),),
        unit="percentunit",
        is_stacked=True,
        highest=1.0,
    )


def _latency(scope: Scope, title: str, description: str, histogram: str) -> Panel:
    return Panel(
        title=title,
        description=f"{description} vLLM's histogram: the last bucket is as far as it sees.",
        queries=(
            Query(scope.quantile(0.5, histogram, by="application"), "{{application}} median"),
            Query(scope.quantile(0.99, histogram, by="application"), "{{application}} 99 %"),
        ),
        unit="s",
    )


def first_token(scope: Scope) -> Panel:
    """What a user waits before an answer begins."""
    return _latency(scope, "Time to first token", "From arrival to the first token.", "ray_vllm_time_to_first_token_seconds")


def per_token(scope: Scope) -> Panel:
    """How fast an answer goes on."""
    return _latency(
        scope,
        "Time per output token",
        "Mean of each request, over requests that ended.",
        "ray_vllm_request_time_per_output_token_seconds",
    )
