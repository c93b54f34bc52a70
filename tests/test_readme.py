"""Every command of the README that can run here is run, and none is left out of account.

A command is run by the project's own check (`.ci/run`), by a test that names it, or by this file, which puts a small case under
the very words of the README. What takes up to an hour has a small case there, and runs whole with `make test-all`. What does not
run here says why.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.deployments.configuration.samples import SERVE_FILES

ROOT: Final = Path(__file__).parents[1]
BIN: Final = Path(sys.executable).parent
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")

IN_THE_CHECKOUT: Final = ("make ", ".venv/")
SMALL_CASE_TIMEOUT_S: Final = 900.0
WHOLE_TIMEOUT_S: Final = 5400.0
BY_HAND: Final = "tests/deployments/test_by_hand.py"
CHECK: Final = ".ci/run"
RUN_ELSEWHERE: Final = {
    "make test": CHECK,
    "make test-fast": CHECK,
    "make test-serve-llm": CHECK,
    "make lint": CHECK,
    "make contract": CHECK,
    "make chart": CHECK,
    "make monitoring": CHECK,
    "make page": CHECK,
    "make test-ids": CHECK,
    "serve deploy cluster/configs/local-cpu.yaml": BY_HAND,
    "nightjar status": BY_HAND,
    "nightjar watch": BY_HAND,
    'nightjar mode pin=3 --for 30m --reason "comparing"': BY_HAND,
    "nightjar mode off": BY_HAND,
    "nightjar mode default": BY_HAND,
    "nightjar explain REPLICA": BY_HAND,
    "nightjar replay JOURNAL": BY_HAND,
    "nightjar export learned.json": BY_HAND,
    "nightjar import learned.json": BY_HAND,
}
"""Where the very words of a command are run."""

WHOLE: Final = {
    "make demo": "no failed request",
    "make bench-policy": "fleet_over_off_min",
    ".venv/bin/python -m tests.benchmarks.engine --quick": "adaptive_over_best_min",
    "make bench-engine": "adaptive_over_best_min",
    ".venv/bin/python -m tests.benchmarks.live --quick": "fleet_over_best_min",
    "make bench-live": "fleet_over_best_min",
}
"""What takes from ten minutes to sixty, and what its output must hold."""

SAME_PROGRAM: Final = {
    ".venv/bin/python -m tests.benchmarks.engine --quick": ("make bench-engine", "ARGS=--quick"),
    ".venv/bin/python -m tests.benchmarks.live --quick": ("make bench-live", "ARGS=--quick"),
}
"""What a target of make runs word for word: each starts a whole system, and the target has a small case."""

NOT_HERE: Final = {
    "make test-all": "takes hours, and runs this test, too",
    "make test-pure PYTHON=python3.13": "needs another Python; `make test-all` runs it",
    "make mutants": "takes up to 30 minutes of two cores; its parts are tested in tests/mutants",
    "pip install --constraint constraints-gpu.txt '.[gpu]'": "a GPU's vLLM does not fit a CPU",
    "docker build --target gpu --tag registry.example.com/nightjar-serve-gpu:0.1.0 .": "no container builder",
    "helm upgrade --install nightjar helm/nightjar --values helm/nightjar/examples/gpu.yaml"
    " --set image.repository=registry.example.com/nightjar-serve-gpu"
    " --set toolsImage.repository=registry.example.com/nightjar-serve-load": "no Kubernetes cluster; rendered by `make chart`",
    "kubectl create secret generic hugging-face --from-literal=token=...": "no Kubernetes cluster",
}


def an_own_file(folder: Path) -> None:
    """What somebody has who runs ray.serve.llm."""
    (folder / "serve.yaml").write_text(SERVE_FILES["comments and blank lines"])


def a_migrated_file(folder: Path) -> None:
    """The same with Nightjar in it."""
    an_own_file(folder)
    done = subprocess.run([BIN / "nightjar", "migrate", "serve.yaml", "--write"], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def an_engine_profile(folder: Path) -> None:
    """A profile as `make bench-engine` writes one: any of those that come along."""
    shipped = ROOT / "loadtests/simulation/profiles"
    (folder / "my-engine.json").write_text(min(shipped.glob("*.json")).read_text())


def a_prompts_file(folder: Path) -> None:
    """One prompt of one category."""
    (folder / "prompts.jsonl").write_text('{"category": "math", "turns": ["What is two and two?"]}\n')


def nothing(folder: Path) -> None:
    """Asks for nothing; targets of make run in this checkout, and write only what it holds already or what git ignores."""


SMALL_CASES: Final[dict[str, tuple[Callable[[Path], None], tuple[str, ...], tuple[str, ...]]]] = {
    "nightjar migrate serve.yaml": (an_own_file, (), ("import_path: 'nightjar.deployments.app:build'",)),
    "nightjar check serve.yaml": (a_migrated_file, (), ("draft_model",)),
    "nightjar simulate --quick": (nothing, (), ("fleet_over_off_min",)),
    "nightjar simulate --profile my-engine.json --only open-loop": (an_engine_profile, ("--quick",), ("fleet_over_static_min",)),
    "make docs": (nothing, (), ()),
    "make bench-scale": (nothing, ("ARGS=--replicas 60 --large 100 --ticks 5 --output FOLDER",), ("Milliseconds per tick",)),
    "make bench-model": (nothing, (), ("nearest measured cell",)),
    "make bench-step": (nothing, (), ("Microseconds per scheduler step",)),
    "make demo": (nothing, ("ARGS=--quick --runs FOLDER",), ("no failed request",)),
    "make bench-policy": (nothing, ("ARGS=--quick --only storm --runs FOLDER",), ("storm_floor",)),
    "make bench-engine": (
        nothing,
        ("ARGS=--quick --only off --only pressure --output FOLDER",),
        ("off_over_plain", "pressure_tokens"),
    ),
    "make bench-live": (
        a_prompts_file,
        ("ARGS=--quick --only categories --prompts FOLDER/prompts.jsonl --output FOLDER",),
        ("acceptance_math", "failed_requests"),
    ),
}
"""By command: what lies in the folder, words that keep it short (FOLDER is where it may write), and what its output must hold."""


BEFORE_A_RELEASE: Final = ("make bench-engine", "make bench-live")
"""Small cases that take minutes all the same, and start real engines that other tests start as well: `make test-all` runs them."""


def commands() -> list[str]:
    """What stands behind a `$` in the README, without its comment."""
    lines = [line for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]
    return [shlex.join(shlex.split(line[2:], comments=True)) for line in lines if line.startswith("$ ")]


def as_written(command: str) -> str:
    """As `commands` gives it."""
    return shlex.join(shlex.split(command))


def test_every_command_of_the_readme_is_accounted_for_and_nothing_else_is() -> None:
    known = [*RUN_ELSEWHERE, *NOT_HERE, *SMALL_CASES, *SAME_PROGRAM]
    assert set(commands()) == set(map(as_written, known))
    assert len(known) == len(set(known))


@pytest.mark.parametrize(("command", "place"), RUN_ELSEWHERE.items(), ids=str)
def test_what_is_run_elsewhere_stands_there_word_for_word(command: str, place: str) -> None:
    assert command in (ROOT / place).read_text() or (command == "make test-fast" and "test: $(INSTALLED) test-fast" in _makefile())


@pytest.mark.parametrize(("command", "target"), SAME_PROGRAM.items(), ids=str)
def test_a_target_of_make_runs_the_same_program(command: str, target: tuple[str, ...]) -> None:
    make, *words = shlex.split(target[0])
    shown = subprocess.run([make, "--dry-run", *words, *target[1:]], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert target[0] in SMALL_CASES
    assert command in shown


@pytest.mark.command
@pytest.mark.parametrize(
    "command", [pytest.param(one, marks=pytest.mark.long) if one in BEFORE_A_RELEASE else one for one in SMALL_CASES]
)
def test_a_command_of_the_readme_does_what_it_says(command: str, tmp_path: Path) -> None:
    prepare, words, says = SMALL_CASES[command]
    prepare(tmp_path)
    words = tuple(word.replace("FOLDER", str(tmp_path)) for word in words)
    done = run([*shlex.split(command), *words], ROOT if command.startswith(IN_THE_CHECKOUT) else tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [words for words in says if words not in done.stdout] == []


@pytest.mark.long
@pytest.mark.parametrize("command", WHOLE)
def test_a_long_command_of_the_readme_does_what_it_says(command: str) -> None:
    done = run(shlex.split(command), ROOT, WHOLE_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert WHOLE[command] in done.stdout


def run(command: list[str], folder: Path, timeout_s: float = SMALL_CASE_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """A command, with the programs of this installation first."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)


def _makefile() -> str:
    return (ROOT / "Makefile").read_text()
