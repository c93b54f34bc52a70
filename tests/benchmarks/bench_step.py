"""`make bench-step`: what Nightjar adds to one scheduler step, beside vLLM's own scheduler, without an engine.

Two schedulers, stock and steered, run the same pure decode steps alternately in one process, in an order that a seed draws.
Timed are `schedule` and `update_from_output`; the model's output is made up in between. Also timed, inside the steered
one, is the time in our own hooks, which is what the aim is about: differences of whole steps carry the noise of vLLM's part.
Prints against the aim and never fails on timing.
"""

from __future__ import annotations

import gc
import json
import random
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter_ns
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table as RichTable

from nightjar.policy.records import Mode, Settings, SettingsVersion, Table, TableRow

OUTPUT: Final = Path("runs/step/latest")
BATCH_SIZES: Final = (1, 32, 256)
MAX_NUM_SPECULATIVE_TOKENS: Final = 5
AIM_FIXED_US: Final = 20.0
AIM_PER_REQUEST_US: Final = 0.3
WARM_UP_STEPS: Final = 50
HOOKS: Final = ("before_step", "verified", "after_step")


class HookTimer:
    """Sums the time spent in a step loop's hooks since it was last read."""

    def __init__(self, loop: Any) -> None:
        self._nanoseconds = 0
        for hook in HOOKS:
            setattr(loop, hook, self._timed(getattr(loop, hook)))

    def take_us(self) -> float:
        taken, self._nanoseconds = self._nanoseconds, 0
        return taken / 1e3

    def _timed(self, hook: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            began = perf_counter_ns()
            found = hook(*arguments)
            self._nanoseconds += perf_counter_ns() - began
            return found

        return timed


def main(
    steps: Annotated[int, typer.Option(help="Measured steps per batch size.", min=10)] = 400,
    seed: Annotated[int, typer.Option(help="Draws which scheduler goes first and which drafts are accepted.")] = 0,
    output: Annotated[Path, typer.Option(help="Folder for steps.jsonl and summary.json.")] = OUTPUT,
) -> None:
    """Measure the added time per scheduler step at decode batches of 1, 32 and 256."""
    console = Console()
    console.print(f"seed {seed}, {steps} steps per batch size, K = {MAX_NUM_SPECULATIVE_TOKENS}, Python {sys.version.split()[0]}")
    rows = [row for batch_size in BATCH_SIZES for row in measure(batch_size, steps, random.Random(seed))]
    summary = [summarize(batch_size, [row for row in rows if row["batch_size"] == batch_size]) for batch_size in BATCH_SIZES]
    output.mkdir(parents=True, exist_ok=True)
    (output / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (output / "summary.json").write_text(json.dumps({"seed": seed, "steps": steps, "batches": summary}, indent=2) + "\n")
    console.print(as_table(summary))
    console.print(f"rows and summary: {output}")


def measure(batch_size: int, steps: int, rng: random.Random) -> list[dict[str, float]]:
    """One row a step: microseconds of the stock step, of the steered step, and in our hooks."""
    from vllm.v1.core.sched.scheduler import Scheduler

    from nightjar.deployments.engine.scheduler import SteeredScheduler

    with tempfile.TemporaryDirectory() as folder:
        stock, steered = (_start(cls, batch_size, Path(folder)) for cls in (Scheduler, SteeredScheduler))
    _steer(steered, batch_size)
    timer = HookTimer(steered.nightjar)
    gc.collect()
    gc.freeze()
    rows = []
    for number in track(range(-WARM_UP_STEPS, steps), description=f"batch {batch_size}", transient=True):
        acceptance = rng.random()
        took: dict[str, float] = {}
        for name, scheduler in rng.sample([("stock_us", stock), ("steered_us", steered)], 2):
            took[name] = _step_us(scheduler, acceptance)
        took["hooks_us"] = timer.take_us()
        if number >= 0:
            rows.append({"batch_size": batch_size, "step": number, **took})
    if steered.nightjar.fault:
        raise SystemExit(f"the step loop failed: {steered.nightjar.fault}")
    return rows


def summarize(batch_size: int, rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians and 99th percentiles in microseconds, beside the aim."""
    summary: dict[str, float] = {"batch_size": batch_size, "aim_us": AIM_FIXED_US + AIM_PER_REQUEST_US * batch_size}
    for name in ("stock_us", "steered_us", "hooks_us"):
        values = [row[name] for row in rows]
        summary[f"{name}_median"] = statistics.median(values)
        summary[f"{name}_p99"] = statistics.quantiles(values, n=100)[98]
    added = [row["steered_us"] - row["stock_us"] for row in rows]
    summary["added_us_median"] = statistics.median(added)
    summary["added_us_p99"] = statistics.quantiles(added, n=100)[98]
    return summary


def as_table(summary: Sequence[dict[str, float]]) -> RichTable:
    """The summary for people."""
    table = RichTable(title="Microseconds per scheduler step: medians, and 99th percentiles where they are named")
    columns = ("batch", "stock", "steered", "hooks", "hooks p99", "added", "added p99", "aim", "hooks")
    for column in columns:
        table.add_column(column, justify="right")
    for entry in summary:
        measured = ("stock_us_median", "steered_us_median", "hooks_us_median", "hooks_us_p99", "added_us_median", "added_us_p99")
        keys = (*measured, "aim_us")
        verdict = "within" if entry["hooks_us_median"] <= entry["aim_us"] else "above"
        table.add_row(f"{entry['batch_size']:.0f}", *(f"{entry[key]:.1f}" for key in keys), verdict)
    return table


def _start(scheduler_class: type[Any], batch_size: int, folder: Path) -> Any:
    from tests.engine.scheduler_harness import make_request, make_scheduler

    scheduler = make_scheduler(
        scheduler_class,
        folder,
        max_num_seqs=batch_size,
        max_num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS,
        max_model_len=4096,
        can_be_dormant=True,
    )
    for index in range(batch_size):
        scheduler.add_request(make_request(f"request-{index}", max_tokens=4000))
    return scheduler


def _steer(scheduler: Any, batch_size: int) -> None:
    rows = (TableRow(first_batch_size=1, last_batch_size=batch_size, num_speculative_tokens=MAX_NUM_SPECULATIVE_TOKENS),)
    settings = Settings(
        version=SettingsVersion(incarnation=1, sequence=1),
        mode=Mode.parse("auto"),
        plan=Table(rows=rows),
        allowed_num_speculative_tokens=tuple(range(MAX_NUM_SPECULATIVE_TOKENS + 1)),
        dwell_steps=4,
    )
    scheduler.nightjar.steering.adopt(settings, scheduler.nightjar.clock())


def _step_us(scheduler: Any, acceptance: float) -> float:
    from tests.engine.scheduler_harness import hand_over_drafts, model_output

    began = perf_counter_ns()
    output = scheduler.schedule()
    scheduled = perf_counter_ns()
    answer = model_output(scheduler, output, lambda _, drafts: round(drafts * acceptance))
    answered = perf_counter_ns()
    scheduler.update_from_output(output, answer)
    updated = perf_counter_ns()
    hand_over_drafts(scheduler, output)
    return (scheduled - began + updated - answered) / 1e3


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    typer.run(main)
