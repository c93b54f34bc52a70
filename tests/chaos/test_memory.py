"""Growth of memory: last third over middle third, by process."""

from __future__ import annotations

import pytest

from tests.chaos.memory import Sample, growth


def test_growth_is_the_mean_of_the_last_third_over_that_of_the_middle_third() -> None:
    samples = [Sample("policy", 0.0, 100), Sample("policy", 9.0, 200), Sample("policy", 10.0, 300), Sample("replica", 1.0, 50)]
    (policy, replica) = growth([*samples, Sample("replica", 19.0, 50)], third_s=10.0)
    assert (policy.middle_bytes, policy.last_bytes, policy.ratio) == (150.0, 300.0, 2.0)
    assert replica.ratio == 1.0


def test_a_process_that_was_replaced_meanwhile_cannot_be_judged() -> None:
    with pytest.raises(ValueError, match="replica: seen in one third alone"):
        growth([Sample("replica", 1.0, 50)], third_s=10.0)
