"""Reading a file: what would never end is refused in one line before anything is made of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.deployments.configuration.check.report import check_text
from nightjar.deployments.configuration.check.source import MAX_NODES, SourceError, read_sources
from nightjar.deployments.configuration.migrate.adoption import add_nightjar


def bomb(levels: int, width: int = 10) -> str:
    """Lists of lists, each level of which holds the one before so many times."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join([*lines, f"applications: *a{levels - 1}", ""])


@pytest.mark.parametrize("levels", [6, 9, 60])
def test_aliases_that_expand_to_a_huge_file_are_refused_in_one_line(levels: int) -> None:
    (line,) = check_text(bomb(levels)).findings
    assert line.text("f").startswith("f:1: error: ")
    assert f"values with its aliases written out; at most {MAX_NODES:,} are read: take aliases out, or split the file" in line.text(
        "f"
    )
    with pytest.raises(SourceError, match="at most"):
        add_nightjar(bomb(levels))


def test_an_alias_of_what_holds_it_has_no_end_and_is_refused() -> None:
    with pytest.raises(SourceError, match="endlessly many values"):
        read_sources("applications: &a [*a]\n")


@pytest.mark.parametrize("levels", [300, 5000])
def test_a_long_chain_of_aliases_is_findings_and_no_crash(levels: int) -> None:
    for line in check_text(bomb(levels, 1)).findings:
        assert "\n" not in line.text("f")


def test_a_bomb_inside_a_rayservice_is_told_at_the_manifests_line() -> None:
    config = "".join(f"    {line}\n" for line in bomb(9).splitlines())
    (line,) = check_text(f"kind: RayService\nspec:\n  serveConfigV2: |\n{config}").findings
    assert line.text("f").startswith("f:4: error: 2,345,679,021 values with its aliases")


@given(st.integers(1, 4), st.integers(1, 4))
def test_aliases_of_a_readable_size_are_read(levels: int, width: int) -> None:
    (source,) = read_sources(bomb(levels, width))
    assert source.values["applications"] == source.values[f"a{levels - 1}"]
