"""The lists of slow modules: a name that is no test's would quietly do nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import BEGIN_UNTIL, LONGEST_FIRST, SEVERAL_ENGINES, taken_together
from tests.test_readme import SMALL_CASES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", [*LONGEST_FIRST, *SEVERAL_ENGINES])
def test_every_listed_module_and_command_exists(name: str) -> None:
    module, _, test = name.partition("::")
    assert (ROOT / module).is_file()
    assert not test or test in {f"test_a_command_of_the_pages_does_what_it_says[{command}]" for command in SMALL_CASES}


def test_one_worker_takes_all_modules_with_several_engines_and_other_modules_go_one_by_one() -> None:
    several = {taken_together(name if "::" in name else f"{name}::test_it") for name in SEVERAL_ENGINES}
    others = {taken_together(f"{name}::test_it") for name in set(LONGEST_FIRST) - set(SEVERAL_ENGINES)}
    assert len(several) == 1
    assert others == set(LONGEST_FIRST) - set(SEVERAL_ENGINES)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A long module of the list and a short one, with this project's conftest."""
    (tmp_path / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    for module in (LONGEST_FIRST[0], "tests/test_a.py"):
        (tmp_path / module).parent.mkdir(exist_ok=True)
        (tmp_path / module).write_text(f"import os\ndef test_it(): assert {BEGIN_UNTIL!r} not in os.environ\n")
    return tmp_path


def run(suite: Path, until: str, *options: str) -> str:
    """What pytest prints of it in this order of modules."""
    command = [sys.executable, "-m", "pytest", "-p", "no:randomly", "-p", "no:cacheprovider", "--import-mode=importlib", *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")} | {BEGIN_UNTIL: until}
    return subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, check=False).stdout


def test_after_the_time_no_test_begins_and_each_says_so(suite: Path) -> None:
    shown = run(suite, "1", "-n", "2", "-rs")
    assert "2 skipped" in shown
    assert "SKIPPED [2]" in shown
    assert "not begun" in shown


def test_before_it_all_run_in_the_order_that_was_drawn_and_what_they_start_knows_of_no_time(suite: Path) -> None:
    shown = run(suite, "9e9", "-n", "1", "-v")
    assert "2 passed" in shown
    assert shown.index("PASSED tests/test_a.py") < shown.index(f"PASSED {LONGEST_FIRST[0]}")
