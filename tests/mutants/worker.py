"""Runs the mutants of one module: `python -m tests.mutants.worker SPECIFICATION`, in a copy of the tree.

Prints JSON, a line for the tests as they are and one for each mutant. Fails before the first mutant where the tests fail as they
are, or do not import the module from this copy: then every number would be a lie.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Final

from hypothesis import Phase, settings

from tests.mutants.forking import Limits, Outcome, Run, run_tests
from tests.mutants.mutating import Mutant, mutants_of, sampled

WITHOUT_MUTANT: Final = Limits(processor_s=240.0, clock_s=480.0)
LONGER: Final = 4.0
"""A mutant's tests may take so many times the processor time of the tests as they are, and LEAST_S."""
LEAST_S: Final = 3.0
EXAMPLES: Final = 25
"""Of a property that does not ask for a number itself: a quarter of what the tests run with, so that none is killed here alone."""
CLOCK_PER_PROCESSOR_S: Final = 4.0
"""On a busy machine a run gets a share of a core; tests that wait for what never comes use none at all."""

Change = tuple[int, str, str, str]
"""Line, operator, and the changed lines before and after."""


@dataclasses.dataclass(frozen=True, slots=True)
class Specification:
    """What one worker does. `until_s` is when it stops, on the monotonic clock that processes of one machine share."""

    module: str
    tests: tuple[str, ...]
    only: tuple[str, ...]
    libraries: tuple[str, ...]
    share: float
    seed: int
    until_s: float
    again: tuple[Change, ...] | None = None
    """Only these mutants, for work on what survived."""

    @classmethod
    def parse(cls, text: str) -> Specification:
        """From JSON."""
        values = json.loads(text)
        for name in ("tests", "only", "libraries"):
            values[name] = tuple(values[name])
        if values["again"] is not None:
            values["again"] = tuple((line, operator, before, after) for line, operator, before, after in values["again"])
        return cls(**values)

    def text(self) -> str:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self))


def main() -> None:
    """Run the specification of the command line."""
    specification = Specification.parse(sys.argv[1])
    module = Path(specification.module).resolve()
    source = module.read_text(encoding="utf-8")
    mutants = sampled(mutants_of(source, specification.only), specification.share, specification.seed)
    if specification.again is not None:
        mutants = [
            mutant for mutant in mutants if (mutant.line, mutant.operator, mutant.before, mutant.after) in specification.again
        ]
    _import(specification.libraries)
    # Quick to fail, and the same few examples for every mutant; the tests' own profile builds on this one.
    settings.register_profile(
        "mutants", phases=(Phase.explicit, Phase.generate), max_examples=EXAMPLES, database=None, derandomize=True
    )
    settings.load_profile("mutants")
    limits = _as_they_are(specification, module, source)
    _print(kind="tests", mutants=len(mutants), processor_s=limits.processor_s, clock_s=limits.clock_s)
    try:
        for mutant in mutants:
            is_late = time.monotonic() > specification.until_s
            run = None if is_late else _with(mutant, module, specification.tests, limits)
            _tell(mutant, run)
    finally:
        module.write_text(source, encoding="utf-8")


def _as_they_are(specification: Specification, module: Path, source: str) -> Limits:
    run = _run(specification.tests, WITHOUT_MUTANT, keeps_bytecode=True)
    if run.outcome is not Outcome.PASSED:
        sys.exit(f"{specification.module}: its tests fail as they are, so that they can judge no mutant:\n{run.words}")
    # Twice: the first run compiled what it imported.
    run = _run(specification.tests, WITHOUT_MUTANT, keeps_bytecode=True)
    _forget_bytecode(module)
    module.write_text('raise RuntimeError("this copy is imported")\n', encoding="utf-8")
    with_nothing = _run(specification.tests, WITHOUT_MUTANT, keeps_bytecode=False)
    module.write_text(source, encoding="utf-8")
    if with_nothing.outcome is Outcome.PASSED:
        sys.exit(f"{specification.module}: its tests do not import it from {module.parent}")
    processor_s = LONGER * run.processor_s + LEAST_S
    return Limits(processor_s, max(CLOCK_PER_PROCESSOR_S * processor_s, LONGER * run.clock_s))


def _with(mutant: Mutant, module: Path, tests: tuple[str, ...], limits: Limits) -> Run:
    module.write_text(mutant.code, encoding="utf-8")
    return _run(tests, limits, keeps_bytecode=False)


def _run(tests: tuple[str, ...], limits: Limits, *, keeps_bytecode: bool) -> Run:
    scratch = Path(tempfile.mkdtemp(prefix="mutant-"))
    try:
        return run_tests(tests, scratch, limits, keeps_bytecode=keeps_bytecode)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _forget_bytecode(module: Path) -> None:
    """Compiled code is taken for a source of the same second and length, which a mutant may be."""
    for compiled in (module.parent / "__pycache__").glob(f"{module.stem}.*"):
        compiled.unlink()


def _tell(mutant: Mutant, run: Run | None) -> None:
    failed = [line for line in run.words.split("\n") if line.startswith(("FAILED", "ERROR"))] if run is not None else []
    _print(
        kind="mutant",
        operator=mutant.operator,
        line=mutant.line,
        before=mutant.before,
        after=mutant.after,
        outcome=run.outcome if run is not None else "not run",
        processor_s=round(run.processor_s, 3) if run is not None else 0.0,
        by=failed[0] if failed else "",
    )


def _print(**values: Any) -> None:
    print(json.dumps(values), flush=True)  # noqa: T201 - the caller reads it


def _import(libraries: tuple[str, ...]) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # what libraries deprecate is not ours to mend
        for name in libraries:
            importlib.import_module(name)
    ours = sorted(name for name in sys.modules if name.partition(".")[0] == "nightjar")
    assert not ours, f"imported before the first mutant: {ours}"


if __name__ == "__main__":
    main()
