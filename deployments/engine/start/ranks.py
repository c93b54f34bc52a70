"""Data parallelism: the ranks behind one front end, and whether each is steered as an engine of its own.

A dense target of `data_parallel_size` N is N engine cores that know nothing of each other: in its process vLLM makes each a core of
size 1, before it builds scheduler and workers (EngineCoreProc.run_engine_core, 0.29 to 0.33), and the front end sends each request
to one of them. So each is steered, reports and holds leases by itself. Two things of vLLM's stand in the way. Its configuration
drops the table of K wherever the size is above 1, without which a core captures graphs for its maximum K alone:
`restore_table` puts it back between configuration and start. And a utility call is sent to every core and answers for the first:
engine_control.py calls each by its identity.

With a mixture of experts the ranks step together: all must run the same shapes, so their K would have to agree. Such an engine is
served plainly, as is one whose cores another process starts. Fails open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from vllm.config import VllmConfig

OWN_PROCESSES: Final = "mp"
"""vLLM's `data_parallel_backend` whose cores are processes of the front end."""


def why_ranks_plain(*, size: int, size_local: int, one_front_end: bool, backend: str, is_moe: bool) -> str:
    """Why the ranks of an engine are served plainly; empty where each is steered, or there is one.

    `one_front_end` sends to all ranks; else each front end has `size_local` of them, and another balances between front ends.

    >>> why_ranks_plain(size=2, size_local=2, one_front_end=True, backend="mp", is_moe=False)
    ''
    """
    if size == 1:
        return ""
    checks = (
        (is_moe, f"data_parallel_size {size} and a mixture of experts: its ranks step together, and their K would have to agree"),
        (
            backend != OWN_PROCESSES,
            f"data_parallel_backend {backend!r}: ranks that are no processes here have never run steered",
        ),
        (
            one_front_end and size_local < size,
            f"data_parallel_size_local {size_local} of {size}: another command starts the other ranks, with arguments of its own",
        ),
    )
    return next((reason for applies, reason in checks if applies), "")


def why_plain_under_ray(size: int) -> str:
    """The same where ray.serve.llm is the host, whatever its own builder for ranks (build_dp_openai_app) does."""
    return f"data_parallel_size {size}: ranks inside ray.serve.llm have never run steered" if size > 1 else ""


def why_plain_in(config: VllmConfig) -> str:
    """The same of the configuration that vLLM built."""
    parallel: Any = config.parallel_config
    size = parallel.data_parallel_size
    has_balancer = getattr(parallel, "data_parallel_external_lb", False) or getattr(parallel, "data_parallel_hybrid_lb", False)
    return why_ranks_plain(
        size=size,
        size_local=getattr(parallel, "data_parallel_size_local", size),
        one_front_end=not has_balancer,
        backend=str(getattr(parallel, "data_parallel_backend", OWN_PROCESSES)),
        is_moe=bool(getattr(config.model_config, "is_moe", False)),
    )


def restore_table(config: VllmConfig, dropped_table: Sequence[Sequence[int]]) -> None:
    """Give a configuration back the table that vLLM dropped from it; without one nothing changes.

    Each core's process checks the configuration again, of size 1 by then, and keeps it.
    """
    speculative: Any = config.speculative_config
    if dropped_table and speculative is not None and speculative.num_speculative_tokens_per_batch_size is None:
        speculative.num_speculative_tokens_per_batch_size = [tuple(row) for row in dropped_table]
