"""The reference pages say what the code says today."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from nightjar.cluster.cli import COMMANDS
from nightjar.policy.wire.operator import OperatorSettings
from tests.reference import command_line, http_api, settings
from tests.reference.__main__ import PAGES

DOCS: Final = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_what_its_generator_writes(name: str) -> None:
    assert (DOCS / f"{name}.md").read_text(encoding="utf-8") == PAGES[name](), "run `make docs`"


def test_every_setting_is_there_with_its_default() -> None:
    page = settings.page()
    assert [name for name in OperatorSettings.model_fields if f"\n| `{name}` |" not in page] == []
    assert "| `switch_margin` | number, 0 to 0.5 | `0.02` |" in page


def test_every_command_is_there_with_its_options() -> None:
    page = command_line.page()
    assert [name for name in COMMANDS if f"\n## nightjar {name}\n" not in page] == []
    assert "\n| `--max-step-ms` FLOAT | no limit of its own |" in page
    assert "\n### nightjar models build\n" in page


def test_every_call_says_what_it_does() -> None:
    page = http_api.page()
    assert "| `POST /nightjar/mode` | the token that writes | " in page
    assert "|  |" not in page
