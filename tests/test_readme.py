"""The README stays short, and every command of README, CONTRIBUTING and docs that can run here is run, or says why not.

A command is run by the project's own check (`.ci/run`), by a test that names it, or by this file, which puts a small case under
the very words of the page. What takes up to an hour has a small case there, and runs whole with `make test-all`.
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
TUTORIAL: Final = "docs/tutorial.md"
"""tests/deployments/live/test_tutorial.py runs all of its commands, in their order."""
PAGES: Final = tuple(
    page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if page != ROOT / TUTORIAL
)

MOST_LINES: Final = 160
MOST_WORDS: Final = 1300
MOST_CHARACTERS_OF_A_LINE: Final = 140
MOST_NUMBERS: Final = 40
"""Of the prose: outside of tables, code blocks and the targets of links."""

IN_THE_CHECKOUT: Final = ("make ", ".venv/")
SMALL_CASE_TIMEOUT_S: Final = 900.0
WHOLE_TIMEOUT_S: Final = 5400.0
BY_HAND: Final = "tests/deployments/live/test_by_hand.py"
CHECK: Final = ".ci/run"
RUN_ELSEWHERE: Final = {
    "make test": CHECK,
    "make test-slow": CHECK,
    "make test-fast": CHECK,
    "make test-chaos": CHECK,
    "make test-serve-llm": CHECK,
    "make lint": CHECK,
    "make contract": CHECK,
    "make chart": CHECK,
    "make site": CHECK,
    "make monitoring": CHECK,
    "make page": CHECK,
    "make test-ids": CHECK,
    "serve deploy serve.yaml": BY_HAND,
    "nightjar status": BY_HAND,
    "nightjar status -o json": BY_HAND,
    "nightjar watch": BY_HAND,
    'nightjar mode pin=3 --for 30m --reason "comparing"': BY_HAND,
    "nightjar mode off": BY_HAND,
    "nightjar mode default": BY_HAND,
    'nightjar freeze --for 2h --reason "release"': BY_HAND,
    "nightjar freeze --end": BY_HAND,
    "nightjar canary --mode pin=3 --share 0.25": BY_HAND,
    "nightjar explain REPLICA": BY_HAND,
    "nightjar explain REPLICA --journal JOURNAL --at 10m": BY_HAND,
    "nightjar replay JOURNAL": BY_HAND,
    "nightjar compare --arm off --arm pin=5 --arm nightjar --arm fleet": BY_HAND,
    "nightjar export learned.json": BY_HAND,
    "nightjar import learned.json": BY_HAND,
    "nightjar migrate serve.yaml --write": BY_HAND,
    "nightjar migrate serve.yaml --remove --write": BY_HAND,
    "nightjar run cluster/configs/local-cpu.yaml": TUTORIAL,
    "make load-trace TRACE=requests.csv PROMPTS=texts.jsonl": "tests/loadtests/load/test_load_trace_target.py",
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
    ".ci/run": "runs this test, too",
    "python -m tests.benchmarks.results keep-paper runs/policy/latest": "writes docs/results; tests/benchmarks/test_paper_page.py",
    "make install": "was run before any test",
    "make test-all": "takes hours, and runs this test, too",
    "make test-upgrade": "its tests are a part of `make test-long`",
    'make test-chaos SEEDS="4 5"': "`.ci/run` has it with one seed",
    "make soak MINUTES=30": "takes half an hour; its parts are tested in tests/chaos",
    "make test-pure PYTHON=python3.13": "needs another Python; `make test-all` runs it",
    "make mutants": "takes up to 30 minutes of two cores; its parts are tested in tests/mutants",
    'make mutants ARGS="step/guard --again"': "the same",
    'make mutants ARGS="--share 0.2 --seed 7"': "the same",
    "pip install --constraint constraints-gpu.txt '.[gpu]'": "a GPU's vLLM does not fit a CPU",
    "pip install --constraint constraints-gpu.txt '.[vllm]'": "the same",
    "nightjar serve Qwen/Qwen3-32B --port 8000 --spec-model Qwen/Qwen3-0.6B --spec-tokens 5": (
        "no GPU; tests/deployments/plain_vllm serves a small model"
    ),
    "NIGHTJAR_EXCHANGE_TOKEN=... nightjar policy --state /state --host 0.0.0.0 --settings auto.yaml": (
        "serves until it is ended; tests/cluster/commands/test_policy.py"
    ),
    "NIGHTJAR_EXCHANGE_TOKEN=... nightjar serve Qwen/Qwen3-32B --nightjar-policy http://policy:8470": "no GPU",
    "pip install '.[grafana]'": "was run before any test, with the other extras",
    "nightjar gpu-proof --target Qwen/Qwen3-1.7B --draft Qwen/Qwen3-0.6B --head AngelSlim/Qwen3-1.7B_eagle3 --out runs/gpu-proof": (
        "no GPU; tests/deployments/proof/kit rehearses it on a CPU"
    ),
    "nightjar dashboards push --url https://grafana.example.com --prometheus http://prometheus:9090": (
        "no Grafana; tests/cluster/dashboards pushes to a fake one"
    ),
    "nightjar dashboards annotate --journal /tmp/ray/session_latest/logs/nightjar/policy-journal.jsonl": "the same",
    "nightjar dashboards annotate --load runs/demo/latest/requests.jsonl": "the same",
    "nightjar assess --prometheus http://prometheus:9090 --hours 168 --selector 'model_name=\"chat\"'": (
        "no Prometheus with a week of vLLM; tests/monitoring/test_assess.py fills one"
    ),
    "nightjar assess --prometheus http://prometheus:9090 --hours 168 --selector 'model_name=\"chat\"' "
    "--profile qwen-32b-0.5b-2xl20 --page assessment.html": "the same",
    "nightjar canary --promote": "no canary wins in so short a time; tests/cluster/operator/test_canary.py",
    "nightjar explain REPLICA --journal JOURNAL --at 2026-11-25T22:05:00Z": "see tests/cluster/commands/test_explain.py",
    "nightjar import learned.json --group qwen3-32b-1a2b3c4d": "no such group here; tests/cluster/commands/test_learned.py",
    "nightjar export before.json": "the same as with another name, above",
    "nightjar export --vllm-table --group qwen3-32b-1a2b3c4d": "no such group here; tests/cluster/commands/test_learned.py",
    "nightjar replay policy-journal.jsonl": "the same",
}
NEEDS_A_CLUSTER: Final = ("kubectl ", "helm ", "docker ")
"""Begin what needs Kubernetes or a container builder; `make chart` renders the chart that they install."""
A_VARIABLE: Final = "export "
"""Begins a line that starts nothing."""


def an_own_file(folder: Path) -> None:
    """What somebody has who runs ray.serve.llm."""
    (folder / "serve.yaml").write_text(SERVE_FILES["comments and blank lines"])


def a_migrated_file(folder: Path) -> None:
    """The same with Nightjar in it."""
    an_own_file(folder)
    done = subprocess.run([BIN / "nightjar", "migrate", "serve.yaml", "--write"], cwd=folder, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def a_rayservice(folder: Path) -> None:
    """The same in a KubeRay manifest."""
    inside = SERVE_FILES["comments and blank lines"]
    indented = "".join(f"    {line}\n" if line else "\n" for line in inside.splitlines())
    head = "apiVersion: ray.io/v1\nkind: RayService\nmetadata:\n  name: chat\nspec:\n  serveConfigV2: |\n"
    (folder / "rayservice.yaml").write_text(head + indented)


def a_trace(folder: Path) -> None:
    """Requests as Azure's public traces have them: one every five seconds for ten minutes."""
    times = [f"2023-11-16 18:{second // 60:02}:{second % 60:02}.0000000" for second in range(0, 600, 5)]
    rows = "".join(f"{time},{300 + 7 * number},{50 + number}\n" for number, time in enumerate(times))
    (folder / "azure_llm_2023_conv.csv").write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")


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
    "nightjar migrate rayservice.yaml --write": (a_rayservice, (), ("import_path: 'nightjar.deployments.app:build'",)),
    "nightjar migrate 'vllm serve Qwen/Qwen3-8B -tp 2' --output serve.yaml --write": (nothing, (), ("tensor_parallel_size: 2",)),
    "nightjar migrate serve.yaml --keep-ray-serve-llm": (an_own_file, (), ("nightjar.deployments.serve_llm:build_openai_app",)),
    "nightjar migrate serve.yaml --keep-ray-serve-llm --write": (
        an_own_file,
        (),
        ("nightjar.deployments.serve_llm:build_openai_app",),
    ),
    "nightjar migrate serve.yaml --remove": (a_migrated_file, (), ("import_path: 'ray.serve.llm:build_openai_app'",)),
    "nightjar check serve.yaml": (a_migrated_file, (), ("draft_model",)),
    "nightjar simulate --quick": (nothing, ("--only", "steady"), ("nothing is judged",)),
    "nightjar simulate --profile my-engine.json --only open-loop": (
        an_engine_profile,
        ("--quick", "--planner", "off"),
        ("Open loop: tokens per busy engine-second",),
    ),
    "nightjar simulate --profile my-engine.json": (
        an_engine_profile,
        ("--quick", "--only", "steady", "--planner", "off"),
        ("Closed loop, once converged",),
    ),
    "nightjar simulate --only pooling": (nothing, ("--quick",), ("Learning by fleet size",)),
    "nightjar simulate --regime surge --regime 'mine:300@2,peak:60@20,after:300@2' --planner fleet --planner oracle": (
        nothing,
        ("--quick", "--only", "open-loop"),
        ("regime-1",),
    ),
    "nightjar simulate --trace azure_llm_2023_conv.csv": (
        a_trace,
        ("--quick", "--only", "open-loop", "--planner", "off"),
        ("trace",),
    ),
    "nightjar simulate --goodput ttft:1000 tpot:50": (nothing, ("--quick", "--planner", "off"), ("are within ttft:1000 tpot:50",)),
    "make bench-policy ARGS='--only paper --only paper-offload --seeds 1 --trace AzureLLMInferenceTrace_conv.csv'": (
        a_trace,
        ("ARGS=--only paper --quick --planner off --trace FOLDER/azure_llm_2023_conv.csv --runs FOLDER",),
        ("until the last answer", "A recorded load"),
    ),
    "make bench-policy ARGS='--only paper-assumptions'": (
        nothing,
        ("ARGS=--only paper-assumptions --quick --planner off --runs FOLDER",),
        ("Other engines",),
    ),
    "make bench-policy ARGS='--only transition'": (
        nothing,
        ("ARGS=--only transition --quick --profile llama-8b-eagle --planner fixed-3 --planner fleet --runs FOLDER",),
        ("SGLang's workload transition",),
    ),
    "make docs": (nothing, (), ()),
    "make figures": (nothing, ("FIGURES=FOLDER",), ("changing-load.svg",)),
    "make bench-scale": (nothing, ("ARGS=--replicas 60 --large 100 --ticks 5 --output FOLDER",), ("Milliseconds per tick",)),
    "make bench-health": (nothing, ("ARGS=--replicas 40 --seconds 4 --output FOLDER",), ("Seconds until the answer",)),
    "make bench-model": (nothing, (), ("nearest measured cell",)),
    "make bench-step": (nothing, ("ARGS=--steps 40 --output FOLDER",), ("Microseconds per scheduler step",)),
    "make demo": (nothing, ("ARGS=--quick --runs FOLDER",), ("no failed request",)),
    "make bench-policy": (nothing, ("ARGS=--quick --only storm --runs FOLDER",), ("Restart storm",)),
    "make bench-latency": (nothing, ("ARGS=--quick --planner off --runs FOLDER",), ("nothing is judged",)),
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


BEFORE_A_RELEASE: Final = (
    "make bench-policy",
    "make bench-latency",
    "make bench-engine",
    "make bench-live",
    "make bench-scale",
    "make bench-health",
    "make bench-policy ARGS='--only paper --only paper-offload --seeds 1 --trace AzureLLMInferenceTrace_conv.csv'",
    "make bench-policy ARGS='--only paper-assumptions'",
    "make bench-policy ARGS='--only transition'",
)
"""Small cases of benches that take minutes beside others, and run what other tests run as well: `make test-all` has them."""


def commands(text: str) -> list[str]:
    """What stands behind a `$` in the console blocks of a page, without its comment.

    >>> commands("```console\\n$ make test    # all\\n12 passed\\n```")
    ['make test']
    """
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [shlex.join(shlex.split(line[2:], comments=True)) for line in lines if line.startswith("$ ")]


def as_written(command: str) -> str:
    """As `commands` gives it."""
    return shlex.join(shlex.split(command))


def prose(text: str) -> str:
    """A page without code blocks, tables, targets of links and HTML."""
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in without_blocks.splitlines() if not line.startswith("|")]
    return re.sub(r"<[^>]*>", "", re.sub(r"\]\([^)]*\)", "]", "\n".join(lines)))


def test_the_readme_is_read_in_a_few_minutes() -> None:
    lines = README.splitlines()
    assert len(lines) <= MOST_LINES
    assert len(README.split()) <= MOST_WORDS
    assert [line for line in lines if len(line) > MOST_CHARACTERS_OF_A_LINE] == []
    numbers = re.findall(r"\d+(?:[.,:]\d+)*", prose(README))
    assert len(numbers) <= MOST_NUMBERS, numbers


def test_every_command_of_the_pages_is_accounted_for_and_nothing_else_is() -> None:
    known = [*RUN_ELSEWHERE, *NOT_HERE, *SMALL_CASES, *SAME_PROGRAM]
    written = {command for page in PAGES for command in commands(page.read_text(encoding="utf-8"))}
    to_account_for = {command for command in written if not command.startswith((*NEEDS_A_CLUSTER, A_VARIABLE))}
    assert to_account_for == set(map(as_written, known))
    assert len(known) == len(set(known))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_shows_commands_in_console_blocks_alone(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"^ *```(?:bash|sh|shell)$", text, re.MULTILINE) == []
    assert [first for first in re.findall(r"^ *```console\n *(.*)$", text, re.MULTILINE) if not first.startswith("$ ")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_variable_of_a_command_is_set_above_it_on_the_page(page: Path) -> None:
    given: set[str] = set()
    for line in re.findall(r"^ *\$ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert set(re.findall(r"\$([A-Z_]+)", line)) <= given, line
        given |= set(re.findall(rf"^{A_VARIABLE}(\w+)=", line))


@pytest.mark.parametrize(("command", "place"), RUN_ELSEWHERE.items(), ids=str)
def test_what_is_run_elsewhere_stands_there_word_for_word(command: str, place: str) -> None:
    within_test = command == "make test-fast" and "test: $(INSTALLED) $(HELM) test-fast" in _makefile()
    assert within_test or command in (ROOT / place).read_text()


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
def test_a_command_of_the_pages_does_what_it_says(command: str, tmp_path: Path) -> None:
    prepare, words, says = SMALL_CASES[command]
    prepare(tmp_path)
    words = tuple(word.replace("FOLDER", str(tmp_path)) for word in words)
    done = run([*shlex.split(command), *words], ROOT if command.startswith(IN_THE_CHECKOUT) else tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [words for words in says if words not in done.stdout] == []


@pytest.mark.long
@pytest.mark.parametrize("command", WHOLE)
def test_a_long_command_of_the_pages_does_what_it_says(command: str) -> None:
    done = run(shlex.split(command), ROOT, WHOLE_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    assert WHOLE[command] in done.stdout


def run(command: list[str], folder: Path, timeout_s: float = SMALL_CASE_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """A command, with the programs of this installation first."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False)


def _makefile() -> str:
    return (ROOT / "Makefile").read_text()
