"""`make bench-step` times whatever the scheduler class calls of ours in a step, and its bars are about the sum."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.benchmarks.bench_step import LOOP_HOOKS, SCHEDULER_HOOKS, judge

SCHEDULER = Path(__file__).parents[2] / "deployments/engine/scheduler/steered.py"
NOT_IN_EACH_STEP = {"add_request", "leave", "restart_clock", "pass_failed"}
ONLY_WITH_LENDING = {"clock"}


def calls_by_method() -> dict[str, set[str]]:
    """What each method of the scheduler class calls on `self.nightjar`."""
    tree = ast.parse(SCHEDULER.read_text(encoding="utf-8"))
    steered = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "SteeredScheduler")
    return {
        method.name: {
            node.func.attr
            for node in ast.walk(method)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and ast.unparse(node.func.value) == "self.nightjar"
        }
        for method in steered.body
        if isinstance(method, ast.FunctionDef)
    }


def test_every_hook_that_the_scheduler_calls_in_a_step_is_timed() -> None:
    calls = calls_by_method()
    timed_whole = set[str]().union(*(calls.pop(method) for method in SCHEDULER_HOOKS))
    called = set[str]().union(*calls.values()) - NOT_IN_EACH_STEP - ONLY_WITH_LENDING
    assert called == set(LOOP_HOOKS)
    assert timed_whole == {"draft_limits"}


def test_the_bar_holds_the_median_sum_of_all_hooks_against_the_limit_of_the_batch() -> None:
    one = {"sleeps_us": 2.0, "before_step_us": 5.0, "verified_us": 4.0, "after_step_us": 6.0, "limit_drafts_us": 3.0}
    rows = [{"batch_size": 32.0, **one, "hooks_us": 20.0 + step % 3, "stock_us": 90.0, "steered_us": 115.0} for step in range(99)]
    (bar,) = judge({32: rows}, seed=0).bars
    assert (bar.name, bar.value, bar.passed) == ("hooks_us_batch_32", 21.0, True)
    assert bar.limit == pytest.approx(20.0 + 0.3 * 32)
    assert bar.interval is not None
    assert bar.interval.kind == "95 % by resampling 99 steps"
