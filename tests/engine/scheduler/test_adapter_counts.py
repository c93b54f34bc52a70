"""Acceptance by LoRA adapter."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from nightjar.deployments.engine.scheduler.step_note import AdapterCounts
from nightjar.policy.wire.report import MAX_ADAPTERS, AdapterCounters


def request(name: str, adapter: str | None = None) -> Any:
    lora = None if adapter is None else SimpleNamespace(lora_name=adapter)
    return SimpleNamespace(request_id=name, lora_request=lora)


def test_rows_of_an_adapter_are_counted_and_others_are_not() -> None:
    counts = AdapterCounts()
    for name, adapter in (("a", "sql"), ("b", None), ("c", "sql")):
        counts.add_request(request(name, adapter))
    rows = {"a": 0, "b": 1, "c": 2}
    counts.count({"a": [1, 2, 3], "b": [1, 2, 3]}, [[5, 6], [5, 6, 7], [8]], rows, rows)
    assert counts.snapshot() == (AdapterCounters(adapter="sql", rows=1, draft_tokens=3, accepted_tokens=1),)


def test_requests_that_are_gone_are_forgotten() -> None:
    counts = AdapterCounts()
    preempted, finished = request("a", "sql"), request("b", "sql")
    preempted.is_finished, finished.is_finished = (lambda: False), (lambda: True)
    for one in (preempted, finished):
        counts.add_request(one)
        counts.leave(one)
    rows = {"a": 0, "b": 1}
    counts.count({"a": [1], "b": [1]}, [[5, 6], [5, 6]], rows, rows)
    assert counts.snapshot() == (AdapterCounters(adapter="sql", rows=1, draft_tokens=1, accepted_tokens=1),)


def test_no_more_adapters_are_kept_than_a_report_holds() -> None:
    counts = AdapterCounts()
    rows = {}
    for index in range(MAX_ADAPTERS + 5):
        counts.add_request(request(f"r{index}", f"adapter-{index:03d}"))
        rows[f"r{index}"] = index
    counts.count({name: [1] for name in rows}, [[5, 6] for _ in rows], rows, rows)
    assert len(counts.snapshot()) == MAX_ADAPTERS
