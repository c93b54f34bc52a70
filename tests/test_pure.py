"""`make test-pure`: it fails without its Python, and its list of what is left out names files and tests that exist."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import pure

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("entry", pure.NEEDS)
def test_an_entry_of_the_list_is_a_file_or_a_test_of_one(entry: str) -> None:
    path, _, test = entry.partition("::")
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert not test or test in functions


def test_every_file_that_asks_for_a_module_is_listed() -> None:
    asking = re.compile(rf"^(?:\w+ = )?pytest\.importorskip\(\"(?:{'|'.join(pure.MODULES)})\b", re.MULTILINE)
    elsewhere = ("tests/helm/", "tests/monitoring/")  # never part of the run
    files = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    found = {name for name, text in files.items() if asking.search(text) and not name.startswith(elsewhere)}
    assert len(found) > 20
    assert found - pure.NEEDS.keys() == set()


def test_a_python_that_is_not_there_is_one_line_and_a_failure() -> None:
    alone = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL"}}
    command = ["make", "test-pure", "PYTHON=python3.99"]
    done = subprocess.run(command, cwd=ROOT, env=alone, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stdout.splitlines() == [
        "python3.99 does not run here: install it, or name one that does, PYTHON=/path/to/python3.13"
    ]
