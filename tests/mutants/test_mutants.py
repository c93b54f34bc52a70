"""The tool behind `make mutants`: which mutants there are, what an explanation must say, and when a run fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.mutants.forking import Outcome
from tests.mutants.mutating import has_definitions, mutants_of, sampled
from tests.mutants.session import updated
from tests.mutants.survivors import FILE, ExplanationError, read_explained
from tests.mutants.targets import TARGETS, Target
from tests.mutants.verdict import Tried, markdown, verdict_on
from tests.mutants.worker import Specification

ROOT = Path(__file__).parents[2]
SOURCE = """
@dataclass(frozen=True)
class Budget:
    share: float | None = 0.5

    def least(self, replicas: int, *, spare: int = 1) -> int | None:
        return replicas - spare if replicas > 3 else None


def other(replicas: int) -> bool:
    return replicas > 5
"""


def changes(source: str, only: Sequence[str] = ()) -> set[tuple[str, str]]:
    return {(mutant.before, mutant.after) for mutant in mutants_of(source, only)}


def test_boundaries_conditions_and_numbers_are_changed() -> None:
    line = "return replicas - spare if replicas > 3 else None"
    assert {after for before, after in changes(SOURCE) if before == line} == {
        "return replicas + spare if replicas > 3 else None",
        "return replicas - spare if replicas >= 3 else None",
        "return replicas - spare if replicas <= 3 else None",
        "return replicas - spare if not replicas > 3 else None",
        "return replicas - spare if replicas > 4 else None",
        "return replicas - spare if replicas > 2 else None",
    }


def test_annotations_the_star_of_a_signature_and_options_of_a_decorator_are_left_alone() -> None:
    changed = changes(SOURCE)
    assert ("share: float | None = 0.5", "share: float | None = 1.5") in changed
    assert not [after for _, after in changed if "float & None" in after or "/" in after or "frozen=False" in after]
    assert ("@dataclass(frozen=True)", "") in changed, "the decorator itself may go"


def test_what_does_not_compile_is_no_mutant() -> None:
    for mutant in mutants_of(SOURCE):
        compile(mutant.code, "mutant", "exec")


def test_only_the_named_definitions_are_mutated() -> None:
    assert {before for before, _ in changes(SOURCE, ["other"])} == {"return replicas > 5"}
    assert not [before for before, _ in changes(SOURCE, ["Budget.least"]) if "share: float" in before]


def test_a_definition_that_is_not_there_is_told() -> None:
    with pytest.raises(LookupError, match=r"Budget\.most: no definition of this name"):
        mutants_of(SOURCE, ["Budget.most"])


def test_a_sample_has_the_asked_share_and_is_the_same_for_the_same_seed() -> None:
    mutants = mutants_of(SOURCE)
    half = sampled(mutants, 0.5, 1)
    assert len(half) == round(len(mutants) / 2)
    assert half == sampled(mutants, 0.5, 1) != sampled(mutants, 0.5, 2)
    assert len(sampled(mutants, 0.001, 1)) == 1
    assert sampled(mutants, 1.0, 3) == mutants


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.module)
def test_every_target_names_files_and_definitions_that_exist(target: Target) -> None:
    assert [test for test in target.tests if not (ROOT / test).is_file()] == []
    assert has_definitions((ROOT / target.module).read_text(encoding="utf-8"), target.only)


def test_every_explanation_quotes_a_line_that_is_still_there() -> None:
    sources = {target.module: " ".join((ROOT / target.module).read_text(encoding="utf-8").split()) for target in TARGETS}
    for entry in read_explained(FILE.read_text(encoding="utf-8")).values():
        assert entry.before in sources[entry.module], f"{entry.module}: {entry.before}"


def test_an_explanation_may_name_several_mutants_of_a_line_and_must_say_why() -> None:
    text = '[[survivor]]\nmodule = "a.py"\nbefore = "x  = 1"\nafter = ["x = 2", "x = 0"]\nwhy = "{}"\n'
    explained = read_explained(text.format("nobody reads x"))
    assert set(explained) == {("a.py", "x = 1", "x = 2"), ("a.py", "x = 1", "x = 0")}
    with pytest.raises(ExplanationError, match="a why that is not empty"):
        read_explained(text.format(" "))
    with pytest.raises(ExplanationError, match="explained twice"):
        read_explained(2 * text.format("nobody reads x"))


def tried(module: str, **outcomes: int) -> list[Tried]:
    return [
        Tried(module, number, "AddNot", f"line {number}", outcome, outcome.replace("_", " "))
        for outcome, many in outcomes.items()
        for number in range(many)
    ]


def test_a_run_passes_where_each_module_and_all_reach_the_bar() -> None:
    verdict = verdict_on(tried("a.py", killed=7, timeout=1), {})
    assert verdict.missed == ()
    assert verdict.total.share == 1.0


def test_a_module_below_the_bar_fails_the_run_though_all_together_reach_it() -> None:
    explained = read_explained(
        "".join(f'[[survivor]]\nmodule = "b.py"\nbefore = "line {n}"\nafter = "survived"\nwhy = "same"\n' for n in range(3))
    )
    verdict = verdict_on([*tried("a.py", killed=100), *tried("b.py", killed=7, survived=3)], explained)
    assert verdict.missed == ("b.py: 70.0% of its mutants were killed, wanted are 80%",), "an explained survivor is no kill"
    assert verdict.total.explained == 3


def test_a_survivor_that_nobody_explained_fails_the_run() -> None:
    verdict = verdict_on(tried("a.py", killed=99, survived=1), {})
    assert verdict.missed == ("a.py: 1 survivors that tests/mutants/explained.toml does not explain",)
    assert [one.before for one in verdict.survivors] == ["line 0"]


def test_mutants_that_were_not_run_fail_the_run_and_count_neither_way() -> None:
    verdict = verdict_on(tried("a.py", killed=9, not_run=91), {})
    assert verdict.total.share == 1.0
    assert verdict.missed[0] == "a.py: 91 of 100 mutants were not run, the time was over; try --share"


def test_an_explanation_of_a_mutant_that_is_killed_is_told_unless_the_run_was_a_sample() -> None:
    explained = read_explained('[[survivor]]\nmodule = "a.py"\nbefore = "line 0"\nafter = "killed"\nwhy = "same"\n')
    rows = tried("a.py", killed=1)
    assert [entry.before for entry in verdict_on(rows, explained).stale] == ["line 0"]
    assert verdict_on(rows, explained, is_sample=True).stale == ()
    assert verdict_on(tried("b.py", killed=1), explained).stale == (), "a module that was not run says nothing"


def test_the_table_has_a_line_for_each_module_and_one_for_all() -> None:
    lines = markdown(verdict_on(tried("a.py", killed=4, survived=1), {})).splitlines()
    assert lines[2:] == ["| `a.py` | 5 | 4 | 0 | 0 | 1 | 80% |", "| all | 5 | 4 | 0 | 0 | 1 | 80% |"]


def test_a_later_run_of_the_survivors_is_put_into_the_earlier_one() -> None:
    before = tried("a.py", killed=1, survived=2)
    now = [Tried("a.py", 1, "AddNot", "line 1", "survived", "killed")]
    assert [one.outcome for one in updated(before, now)] == ["killed", "survived", "killed"]
    assert updated([], now) == now


def test_a_specification_comes_through_the_command_line_as_it_was() -> None:
    specification = Specification("a.py", ("t.py",), (), ("numpy",), 0.5, 2, 10.0, ((3, "AddNot", "if x:", "if not x:"),))
    assert Specification.parse(specification.text()) == specification


def work(folder: Path, test: str) -> subprocess.CompletedProcess[str]:
    """A worker on a module of one function, in a folder of its own."""
    (folder / "thing.py").write_text("def least(replicas):\n    return replicas > 3\n")
    (folder / "test_thing.py").write_text(test)
    specification = Specification("thing.py", ("test_thing.py",), (), (), 1.0, 1, time.monotonic() + 600.0)
    command = [sys.executable, "-m", "tests.mutants.worker", specification.text()]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.heavy
def test_a_worker_tells_which_mutants_its_tests_notice_and_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    done = work(tmp_path, "from thing import least\n\ndef test_least():\n    assert least(9) and not least(3)\n")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows[0]["mutants"] == len(rows) - 1 == 4, done.stderr
    assert {row["after"]: row["outcome"] for row in rows[1:]} == {
        "return replicas >= 3": "failed",
        "return replicas <= 3": "failed",
        "return replicas > 4": "passed",
        "return replicas > 2": "failed",
    }
    assert (tmp_path / "thing.py").read_text() == "def least(replicas):\n    return replicas > 3\n"


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("test", "said"),
    [
        ("def test_it():\n    assert False\n", "its tests fail as they are, so that they can judge no mutant"),
        ("def test_it():\n    pass\n", "its tests do not import it"),
    ],
)
def test_a_worker_does_not_begin_where_its_tests_can_judge_nothing(tmp_path: Path, test: str, said: str) -> None:
    done = work(tmp_path, test)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("body", "processor_s", "clock_s", "outcome"),
    [
        ("pass", 60.0, 600.0, Outcome.PASSED),
        ("assert False", 60.0, 600.0, Outcome.FAILED),
        ("bytearray(1 << 36)", 60.0, 600.0, Outcome.FAILED),
        ("while True: pass", 1.0, 600.0, Outcome.TIMEOUT),
        ("__import__('time').sleep(600)", 60.0, 1.0, Outcome.TIMEOUT),
    ],
)
def test_a_run_in_a_fork_ends_whatever_the_test_does(
    tmp_path: Path, body: str, processor_s: float, clock_s: float, outcome: Outcome
) -> None:
    tests = tmp_path / "test_it.py"
    tests.write_text(f"def test_it():\n    {body}\n")
    # in a process of its own, as the worker is: in a fork of this one, a lock that another test's thread held would stay held
    forks = (
        "import sys; from pathlib import Path; from tests.mutants.forking import Limits, run_tests;"
        "test, limits = sys.argv[1], Limits(*map(float, sys.argv[2:]));"
        "run = run_tests((test,), Path(test).parent, limits, keeps_bytecode=False); print(run.outcome); print(run.words)"
    )
    command = [sys.executable, "-c", forks, str(tests), str(processor_s), str(clock_s)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[:1] == [outcome], done.stdout + done.stderr
