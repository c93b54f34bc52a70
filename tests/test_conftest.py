"""The lists of slow modules: a name that is no test's would quietly do nothing."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import END_UNTIL, SECONDS, SEVERAL_ENGINES, taken_together
from tests.test_readme import SMALL_CASES

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", [*SECONDS, *SEVERAL_ENGINES])
def test_every_listed_module_and_command_exists(name: str) -> None:
    module, _, test = name.partition("::")
    assert (ROOT / module).is_file()
    assert not test or test in {f"test_a_command_of_the_pages_does_what_it_says[{command}]" for command in SMALL_CASES}


def test_one_worker_takes_all_modules_with_several_engines_and_other_modules_go_one_by_one() -> None:
    several = {taken_together(name if "::" in name else f"{name}::test_it") for name in SEVERAL_ENGINES}
    others = {name for name in SECONDS if name not in SEVERAL_ENGINES and "::" not in name}
    assert len(several) == 1
    assert {taken_together(f"{name}::test_it") for name in others} == others


WORKER = "PYTEST_XDIST_WORKER"
LONG, SHORT = "tests/test_long.py", "tests/test_short.py"
LONG_S, SHORT_S = 2e6, 1e6
"""So far apart that the seconds that pytest takes to begin do not matter."""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A long module and a short one with this project's conftest: two tests each. In the first of the short one the time ends."""
    own = (ROOT / "tests/conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(f"{own}\nSECONDS.update({{{LONG!r}: {LONG_S}, {SHORT!r}: {SHORT_S}}})\n")
    (tmp_path / "tests").mkdir()
    ends = "time.time = lambda: 9e12"
    (tmp_path / LONG).write_text(
        f"import os\ndef test_it(): assert {END_UNTIL!r} not in os.environ or {WORKER!r} not in os.environ\ndef test_more(): pass\n"
    )
    (tmp_path / SHORT).write_text(f"import time\ndef test_it(): {ends}\ndef test_more(): pass\n")
    return tmp_path


def run(suite: Path, until_s: float, *modules: str, workers: int = 0) -> str:
    """What pytest prints of these modules, drawn in this order."""
    options = ("-p", "xdist", "-p", "no:cacheprovider", "--import-mode=importlib", "-n", str(workers), "-v", "-rs")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {END_UNTIL: f"{until_s}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", *options, *modules]
    return subprocess.run(command, cwd=suite, env=environment, capture_output=True, text=True, check=False).stdout


def test_a_module_that_would_not_end_in_time_is_left_out_and_says_so_while_a_shorter_one_runs(suite: Path) -> None:
    shown = run(suite, time.time() + (LONG_S + SHORT_S) / 2, LONG, SHORT)
    assert "2 passed, 2 skipped" in shown
    assert f"left out: {LONG} takes 2000000 s" in shown


def test_a_module_that_was_begun_goes_on_to_its_end_and_none_begins_after_the_time(suite: Path) -> None:
    shown = run(suite, time.time() + 2 * LONG_S, SHORT, LONG)
    assert "2 passed, 2 skipped" in shown
    assert f"left out: {LONG}" in shown


def test_where_the_time_suffices_all_run_in_the_order_that_was_drawn_and_what_they_start_knows_of_no_time(suite: Path) -> None:
    shown = run(suite, 9e9, LONG, SHORT, workers=1)
    assert "4 passed" in shown
    assert shown.index(f"{LONG}::test_it") < shown.index(f"{SHORT}::test_it")


def test_without_a_time_the_longest_begin(suite: Path) -> None:
    shown = run(suite, math.inf, SHORT, LONG)
    assert shown.index(f"{LONG}::test_it") < shown.index(f"{SHORT}::test_it")
