"""The examples in docstrings are true, wherever they stand."""

from __future__ import annotations

import doctest
import importlib
import warnings
from pathlib import Path
from typing import Final

import pytest

from tests.pure import MODULES

ROOT: Final = Path(__file__).parents[1]
ROOMS: Final = {"policy": "nightjar.", "cluster": "nightjar.", "deployments": "nightjar.", "loadtests": "nightjar.", "tests": ""}
WITH_EXAMPLES: Final = sorted(
    prefix + ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for room, prefix in ROOMS.items()
    for path in (ROOT / room).rglob("*.py")
    if "\n    >>> " in (text := path.read_text(encoding="utf-8")) or "\n>>> " in text or "\n        >>> " in text
)


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_are_true(name: str) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what vLLM's dependencies deprecate at import is not ours to mend
            module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (missing := str(error.name).partition(".")[0]) not in MODULES:
            raise
        pytest.skip(f"could not import {missing!r}")
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
