"""The measure of the fence: of two versions one is newer, and each counts as far as every reader counts exactly (INV-5)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nightjar.policy.wire.settings import SettingsVersion

counts = st.integers(0, (1 << 53) - 1)
versions = st.builds(SettingsVersion, incarnation=counts, sequence=counts)


@given(versions, versions)
def test_of_two_different_versions_exactly_one_is_newer(one: SettingsVersion, other: SettingsVersion) -> None:
    assert one.is_newer_than(None)
    assert (one.is_newer_than(other) + other.is_newer_than(one)) == (one != other)


@pytest.mark.parametrize("field", ["incarnation", "sequence"])
@pytest.mark.parametrize(("value", "is_allowed"), [(-1, False), (0, True), ((1 << 53) - 1, True), (1 << 53, False)])
def test_a_version_counts_from_0_as_far_as_every_json_reader_counts_exactly(field: str, value: int, is_allowed: bool) -> None:
    fields = {"incarnation": 1, "sequence": 1, field: value}
    if is_allowed:
        assert getattr(SettingsVersion.model_validate(fields), field) == value
    else:
        with pytest.raises(ValidationError, match=field):
            SettingsVersion.model_validate(fields)


@pytest.mark.parametrize(
    ("one", "other", "is_newer"),
    [((2, 0), (1, 9), True), ((1, 9), (2, 0), False), ((1, 2), (1, 1), True), ((1, 1), (1, 1), False), ((0, 1), (1, 0), False)],
)
def test_the_incarnation_comes_before_the_sequence(one: tuple[int, int], other: tuple[int, int], is_newer: bool) -> None:
    newer, older = (SettingsVersion(incarnation=first, sequence=second) for first, second in (one, other))
    assert newer.is_newer_than(older) is is_newer
    assert str(newer) == f"{one[0]}.{one[1]}"
