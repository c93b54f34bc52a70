"""The system under load for a long time, with a fault now and then: does a process of ours grow? `make soak MINUTES=30`.

In the first third all kinds of faults come; afterwards those alone that leave the policy actor and the replicas the processes that
they are, so that the memory of each can be compared. Exit code 1 where one grew by more than 5 %, was replaced, or something else
that must hold did not (verdict.py). Every sample of memory is kept in the folder of `--runs`.
"""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, Self

import psutil
import typer
from rich.console import Console
from rich.table import Table

from tests.chaos.memory import MIB, MOST_GROWTH, Growth, Sample, growth
from tests.chaos.run import endure
from tests.chaos.schedule import ENDS_A_MEASURED_PROCESS, Fault, FaultKind, schedule
from tests.chaos.system import ChaosSystem, chaos_system
from tests.chaos.table import print_table

SAMPLE_PERIOD_S: Final = 2.0
GENTLE: Final = frozenset(FaultKind) - ENDS_A_MEASURED_PROCESS


class Sampler:
    """Samples the resident memory of processes, by name, while it is entered."""

    def __init__(self, pids: Mapping[str, int]) -> None:
        self.samples: list[Sample] = []
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ends.wait(SAMPLE_PERIOD_S):
            at_s = time.monotonic() - self._began_s
            for name, process in self._processes.items():
                try:
                    self.samples.append(Sample(name, at_s, process.memory_info().rss))
                except psutil.NoSuchProcess:
                    continue


def faults(thirds: int, third_s: float, seed: int, kinds: frozenset[FaultKind], numbers: Iterator[int]) -> Iterator[Fault]:
    """Faults one after the other for so many thirds of the run, each kind about once in each."""
    ends_s = time.monotonic() + thirds * third_s
    while True:
        for fault in schedule(seed, kinds):
            next_s = time.monotonic() + third_s / len(kinds)
            if next_s > ends_s:
                time.sleep(max(ends_s - time.monotonic(), 0.0))
                return
            yield replace(fault, number=next(numbers))
            time.sleep(max(next_s - time.monotonic(), 0.0))
        seed += 1


def our_pids(system: ChaosSystem) -> dict[str, int]:
    """Of the policy actor and of the replicas, which hold agent and client."""
    replicas = {f"replica {name}": started.pid for name, started in sorted(system.reporting().items())}
    return {"policy actor": system.policy().pid, **replicas}


def keep_samples(runs: Path, samples: Sequence[Sample]) -> Path:
    """Write them, one JSON line each, into a new file. Returns it."""
    runs.mkdir(parents=True, exist_ok=True)
    path = runs / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-memory.jsonl"
    path.write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
    return path


def print_growth(console: Console, grown: tuple[Growth, ...]) -> None:
    """A row a process."""
    table = Table(title="resident memory, means of a third", title_justify="left")
    table.add_column("process")
    for name in ("middle third", "last third", "last / middle"):
        table.add_column(name, justify="right")
    for one in grown:
        values = f"{one.middle_bytes / MIB:.1f} MiB", f"{one.last_bytes / MIB:.1f} MiB", f"{one.ratio:.3f}"
        table.add_row(one.process, *values, style="red" if one.ratio > MOST_GROWTH else "")
    console.print(table)


def main(
    minutes: Annotated[float, typer.Option(min=1.0, help="How long, after the start.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the faults.")] = 1,
    runs: Annotated[Path, typer.Option(help="Folder for the samples of memory.")] = Path("runs/soak"),
) -> None:
    """Run the soak and print its tables."""
    console, third_s, numbers = Console(file=sys.__stdout__, width=160), 60.0 * minutes / 3.0, itertools.count(1)

    def say(words: str) -> None:
        console.print(words, highlight=False)

    with redirect_stdout(sys.stderr), chaos_system() as system:  # what Ray prints is not this command's output
        system.deploy()
        flood = schedule(seed, [FaultKind.FLOODED])  # the last of the first third: buffers that it fills keep their size
        first = endure(system, itertools.chain(faults(1, third_s, seed, frozenset(FaultKind), numbers), flood), say)
        print_table(console, f"first third, seed {seed}", first)
        before_s = _processor_seconds()
        with Sampler(our_pids(system)) as sampler:
            rest = endure(system, faults(2, third_s, seed, GENTLE, numbers), say)
        print_table(console, "middle and last third", rest)
        used = (_processor_seconds() - before_s) / (2.0 * third_s)
    console.print(f"samples of memory: {keep_samples(runs, sampler.samples)}")
    grown = growth(sampler.samples, third_s)
    print_growth(console, grown)
    console.print(f"processor time of everything together: {used:.0%} of one core")
    too_large = [one for one in grown if one.ratio > MOST_GROWTH]
    raise typer.Exit(1 if too_large or first.broken() or rest.broken() else 0)


def _processor_seconds() -> float:
    """Of this process and all below it."""
    seconds = 0.0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds += times.user + times.system
    return seconds


if __name__ == "__main__":
    typer.run(main)
