"""Plain vLLM with the table that a group learned: what it schedules, step by step. Run by engine_process.py."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nightjar.policy.evidence.acceptance import AcceptanceEvidence
from nightjar.policy.evidence.cells import Cell, CellEvidence, Evidence
from nightjar.policy.planners.base import GroupView
from nightjar.policy.planners.estimates import replan_alone
from nightjar.policy.status.stock_table import StockTable, seconds_run, stock_table
from nightjar.policy.wire.batch_buckets import FIRST_BATCH_SIZES, buckets_up_to
from nightjar.policy.wire.operator import parse_operator_settings
from nightjar.policy.wire.report import GroupKey
from tests.engine.engine_process import MAX_NUM_SEQS, MAX_NUM_SPECULATIVE_TOKENS, EngineProcess
from tests.engine.requests import mixed_batch
from tests.engine.short_models import DRAFT


def learned_table() -> StockTable:
    """Of a group whose drafts pay most at a small batch and not at a large one: each verified token takes its time."""
    key = GroupKey(
        target="smollm2-135m",
        drafter_kind="draft_model",
        max_num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS,
        max_num_seqs=MAX_NUM_SEQS,
    )
    cells = {}
    for bucket in buckets_up_to(MAX_NUM_SEQS):
        batch = FIRST_BATCH_SIZES[bucket]
        for k in range(MAX_NUM_SPECULATIVE_TOKENS + 1):
            seconds = 0.01 + 0.0004 * k + 0.00024 * batch * (1 + k)
            cells[Cell(bucket, k)] = CellEvidence(500.0, 500.0 * math.log(seconds), 500.0 * batch)
    known = Evidence(cells, AcceptanceEvidence((1e5,) * 4, (8e4, 5e4, 3e4, 2e4)))
    view = GroupView(key, parse_operator_settings({"mode": "auto"}), known)
    return stock_table(view, replan_alone(view), seconds_run(known), taxes_off=True, group_id=key.group_id)


def with_table(models: Path) -> dict[str, Any]:
    """Of each step the requests that it schedules, the K that they are drafted for, and how many drafts each request verifies."""
    speculative = {
        "method": "draft_model",
        "model": str(models / DRAFT),
        "num_speculative_tokens": MAX_NUM_SPECULATIVE_TOKENS,
        "num_speculative_tokens_per_batch_size": learned_table().vllm_rows,
    }
    engine = EngineProcess(models, steered=False, speculative_config=speculative)
    steps: list[dict[str, Any]] = []
    schedule = engine.scheduler.schedule

    def scheduled(*arguments: Any, **named: Any) -> Any:
        output = schedule(*arguments, **named)
        drafts = [len(tokens) for tokens in output.scheduled_spec_decode_tokens.values()]
        requests, k = len(output.num_scheduled_tokens), output.num_spec_tokens_to_schedule
        steps.append({"requests": requests, "num_speculative_tokens": k, "drafts": drafts})
        return output

    engine.scheduler.schedule = scheduled
    engine.run(mixed_batch())
    return {"steps": steps}
