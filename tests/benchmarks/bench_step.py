"""`make bench-step`: what Nightjar adds to one scheduler step, beside vLLM's own scheduler, without an engine.

Two schedulers, stock and steered, run the same pure decode steps alternately in one process, in an order that a seed draws. Timed
are `schedule`, `update_from_output` and `update_draft_token_ids`; the model's output is made up in between. Also timed, inside the
steered one, is every hook that SteeredScheduler calls in a step (lending of the draft's memory, off by default, is off here): the
bars are about those, since differences of whole steps carry the noise of vLLM's part. A missed bar fails the bench with --strict.
"""

from __future__ import annotations

import gc
import random
import statistics
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.progress import track

from nightjar.loadtests.arms.statistics import RESAMPLES, Interval, interval_of_resamples
from nightjar.loadtests.report.machine import Effort
from nightjar.loadtests.simulation.evidence.bars import Bar, StrictOption
from nightjar.loadtests.simulation.evidence.grid import Grid
from tests.benchmarks.measuring.outcome import Outcome
from tests.benchmarks.measuring.run import BenchRun
from tests.policy.step.steering_settings import settings, table

OUTPUT: Final = Path("runs/step/latest")
BATCH_SIZES: Final = (1, 32, 256)
STEPS: Final = 400
MAX_NUM_SPECULATIVE_TOKENS: Final = 5
AIM_FIXED_US: Final = 20.0
AIM_PER_REQUEST_US: Final = 0.3
WARM_UP_STEPS: Final = 50
LOOP_HOOKS: Final = ("sleeps", "before_step", "verified", "after_step")
"""Of the step loop, in the order of a step."""
SCHEDULER_HOOKS: Final = ("_limit_drafts",)
"""Of the scheduler itself: it calls the loop's `draft_limits`, and shortens rows by what that says."""
HOOKS: Final = (*LOOP_HOOKS, *SCHEDULER_HOOKS)


class HookTimer:
    """Sums the time spent in each hook since it was last read."""

    def __init__(self, scheduler: Any) -> None:
        self._nanoseconds = dict.fromkeys(HOOKS, 0)
        for owner, hooks in ((scheduler.nightjar, LOOP_HOOKS), (scheduler, SCHEDULER_HOOKS)):
            for hook in hooks:
                setattr(owner, hook, self._timed(hook, getattr(owner, hook)))

    def take_us(self) -> dict[str, float]:
        taken = {hook: nanoseconds / 1e3 for hook, nanoseconds in self._nanoseconds.items()}
        self._nanoseconds = dict.fromkeys(HOOKS, 0)
        return taken

    def _timed(self, hook: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = perf_counter_ns()
            found = call(*arguments, **named)
            self._nanoseconds[hook] += perf_counter_ns() - began
            return found

        return timed


def main(
    steps: Annotated[
        int, typer.Option(help="Measured steps per batch size; fewer than the default are no whole run.", min=10)
    ] = STEPS,
    seed: Annotated[int, typer.Option(help="Draws which scheduler goes first and which drafts are accepted.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for steps.jsonl and summary.json.")] = OUTPUT,
    strict: StrictOption = False,
) -> None:
    """Measure the added time per scheduler step at decode batches of 1, 32 and 256."""
    subject = f"pure decode steps, K = {MAX_NUM_SPECULATIVE_TOKENS}, {steps} steps per batch size, scheduler alone"
    effort: Effort = "whole" if steps >= STEPS else "partial"
    run = BenchRun("step", seeds=[seed], sections=["hooks"], output=output, effort=effort, subject=subject)
    rows = {batch_size: measure(batch_size, steps, random.Random(seed)) for batch_size in BATCH_SIZES}
    run.found("hooks", judge(rows, seed))
    raise typer.Exit(run.end(strict=strict))


def measure(batch_size: int, steps: int, rng: random.Random) -> list[dict[str, float]]:
    """One row a step: microseconds of the stock step, of the steered step, in each of our hooks and in all of them."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from nightjar.deployments.engine.scheduler.steered import SteeredScheduler

    with tempfile.TemporaryDirectory() as folder:
        stock, steered = (_start(cls, batch_size, Path(folder)) for cls in (Scheduler, SteeredScheduler))
    _steer(steered, batch_size)
    timer = HookTimer(steered)
    gc.collect()
    gc.freeze()
    rows = []
    for number in track(range(-WARM_UP_STEPS, steps), description=f"batch {batch_size}", transient=True):
        acceptance = rng.random()
        took: dict[str, float] = {}
        for name, scheduler in rng.sample([("stock_us", stock), ("steered_us", steered)], 2):
            took[name] = _step_us(scheduler, acceptance)
        hooks = timer.take_us()
        if number >= 0:
            took |= {f"{hook.lstrip('_')}_us": spent for hook, spent in hooks.items()}
            rows.append({"batch_size": batch_size, "step": number, **took, "hooks_us": sum(hooks.values())})
    if steered.nightjar.fault:
        raise SystemExit(f"the step loop failed: {steered.nightjar.fault}")
    return rows


def judge(rows: Mapping[int, Sequence[Mapping[str, float]]], seed: int) -> Outcome:
    """A bar a batch size, and the table, from rows by batch size."""
    outcome = Outcome()
    outcome.rows["steps"] = [dict(row) for measured in rows.values() for row in measured]
    columns = [*(f"{hook.lstrip('_')}_us" for hook in HOOKS), "hooks_us", "stock_us", "steered_us"]
    lines = []
    for batch_size, measured in rows.items():
        medians = {column: statistics.median(row[column] for row in measured) for column in columns}
        added = [row["steered_us"] - row["stock_us"] for row in measured]
        hooks = [row["hooks_us"] for row in measured]
        p99 = statistics.quantiles(hooks, n=100)[98]
        bar = Bar(
            name=f"hooks_us_batch_{batch_size}",
            meaning="microseconds that all hooks of a scheduler step take, median over steps",
            direction="at most",
            limit=AIM_FIXED_US + AIM_PER_REQUEST_US * batch_size,
            value=medians["hooks_us"],
            interval=_median_interval(hooks, seed),
            judged="interval",
            at=f"batch {batch_size}, {len(measured)} steps",
            cells=len(measured),
        )
        outcome.bars.append(bar)
        outcome.facts[f"batch {batch_size}"] = {
            **{f"{column}_median": round(median, 2) for column, median in medians.items()},
            "hooks_us_p99": round(p99, 2),
            "added_us_median": round(statistics.median(added), 2),
        }
        lines.append([
            str(batch_size), *(f"{medians[column]:.1f}" for column in columns), f"{statistics.median(added):.1f}", f"{p99:.1f}",
            f"{bar.limit:.1f}",
        ])  # fmt: skip
    heading = ("batch", *(column.removesuffix("_us").replace("_", " ") for column in columns), "added", "hooks p99", "hooks' limit")
    outcome.tables.append(Grid("Microseconds per scheduler step: medians, and a 99th percentile", heading, lines))
    return outcome


def _median_interval(values: Sequence[float], seed: int) -> Interval:
    drawn = np.random.default_rng(seed).choice(np.asarray(values), size=(RESAMPLES, len(values)))
    return interval_of_resamples(np.median(drawn, axis=1), f"{len(values)} steps")


def _start(scheduler_class: type[Any], batch_size: int, folder: Path) -> Any:
    from tests.engine.scheduler.scheduler_harness import BLOCK_TOKENS, make_request, make_scheduler

    scheduler = make_scheduler(
        scheduler_class,
        folder,
        max_num_seqs=batch_size,
        max_num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS,
        max_model_len=4096,
        num_blocks=40_000,
        can_be_dormant=True,
    )
    for index in range(batch_size):  # prompts of different lengths: as in service, rows begin a new block in different steps
        scheduler.add_request(make_request(f"request-{index}", prompt_tokens=8 + index % BLOCK_TOKENS, max_tokens=4000))
    return scheduler


def _steer(scheduler: Any, batch_size: int) -> None:
    every_k = tuple(range(MAX_NUM_SPECULATIVE_TOKENS + 1))
    issued = settings(table((1, batch_size, MAX_NUM_SPECULATIVE_TOKENS)), allowed=every_k, dwell_steps=4)
    scheduler.nightjar.steering.adopt(issued, scheduler.nightjar.clock())


def _step_us(scheduler: Any, acceptance: float) -> float:
    from vllm.v1.outputs import DraftTokenIds

    from tests.engine.scheduler.scheduler_harness import TOKEN, model_output

    began = perf_counter_ns()
    output = scheduler.schedule()
    scheduled = perf_counter_ns()
    answer = model_output(scheduler, output, lambda _, drafts: round(drafts * acceptance))
    answered = perf_counter_ns()
    scheduler.update_from_output(output, answer)
    updated = perf_counter_ns()
    names = list(output.num_scheduled_tokens)
    drafts = DraftTokenIds(names, [[TOKEN] * output.num_spec_tokens_to_schedule for _ in names])
    handed_over = perf_counter_ns()
    scheduler.update_draft_token_ids(drafts)
    limited = perf_counter_ns()
    return (scheduled - began + updated - answered + limited - handed_over) / 1e3


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    typer.run(main)
