"""The lists of slow modules: a name that is no test's would quietly do nothing."""

from pathlib import Path

import pytest

from tests.conftest import LONGEST_FIRST, SEVERAL_ENGINES, taken_together
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
