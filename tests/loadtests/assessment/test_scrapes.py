"""Series become engines, and counters what they counted, however often their process began anew."""

from __future__ import annotations

import importlib.util
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightjar.loadtests.assessment.scrapes import Collector, Metric, Series, increases

increments = st.lists(st.integers(min_value=0, max_value=10_000), min_size=1, max_size=40)


@given(lives=st.lists(increments, min_size=1, max_size=5))
def test_a_counter_that_is_scraped_when_its_process_begins_loses_nothing_over_restarts(lives: list[list[int]]) -> None:
    samples = [float(value) for life in lives for value in accumulate([0, *life])]
    counted = increases(np.array(samples))
    assert counted.min() >= 0.0
    assert counted.sum() == sum(map(sum, lives))


@given(lives=st.lists(increments, min_size=1, max_size=5))
def test_a_counter_never_counts_more_than_there_was_however_late_it_is_scraped(lives: list[list[int]]) -> None:
    samples = [float(value) for life in lives for value in accumulate(life)]
    counted = increases(np.array(samples))
    assert counted.min(initial=0.0) >= 0.0
    assert counted.sum() <= sum(map(sum, lives)) - lives[0][0]


@given(counted=increments, held=st.data())
def test_increases_between_any_times_add_up_to_the_whole(counted: list[int], held: st.DataObject) -> None:
    values = list(accumulate(counted))
    series = Series.of((15.0 * place, float(value)) for place, value in enumerate(values))
    cuts = held.draw(st.lists(st.floats(0.0, 15.0 * len(values)), max_size=10))
    times_s = np.array(sorted([0.0, *cuts, 15.0 * len(values)]))
    assert series.increase_between(times_s).sum() == values[-1] - values[0]


def test_a_series_that_is_not_there_counts_nothing() -> None:
    assert Series.of(()).increase_between(np.array([0.0, 15.0, 30.0])).tolist() == [0.0, 0.0]


def test_samples_that_overlap_or_are_no_number_count_once_or_not() -> None:
    series = Series.of([(30.0, 3.0), (15.0, 2.0), (15.0, 2.0), (45.0, float("nan"))])
    assert (series.times_s.tolist(), series.values.tolist()) == ([15.0, 30.0], [2.0, 3.0])


@pytest.mark.parametrize("prefix", ["vllm:", "ray_vllm_"])
def test_an_engines_series_are_those_with_its_labels_whoever_exports_them(prefix: str) -> None:
    collector = Collector()
    for engine in ("0", "1"):
        labels = {"model_name": "chat", "engine": engine}
        collector.add({"__name__": f"{prefix}num_requests_running", **labels}, [(0.0, 1.0), (15.0, 2.0)])
        for position in ("0", "2"):
            name = f"{prefix}spec_decode_num_accepted_tokens_per_pos_total"
            collector.add({"__name__": name, **labels, "position": position}, [(0.0, 4.0)])
    collector.add({"__name__": f"{prefix}num_requests_waiting", "engine": "2"}, [(0.0, 1.0)])
    collector.add({"__name__": "other:num_requests_running", "engine": "3"}, [(0.0, 1.0)])
    engines = collector.engines()
    assert [engine.labels for engine in engines] == [{"engine": number, "model_name": "chat"} for number in ("0", "1")]
    assert [len(series.values) for series in engines[0].accepted_at] == [1, 0, 1]
    assert engines[0].model == "chat"


def test_every_series_that_is_read_is_one_that_the_installed_vllm_exports() -> None:
    spec = importlib.util.find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("could not import 'vllm'")
    root = Path(spec.submodule_search_locations[0])
    sources = "".join((root / "v1" / file).read_text() for file in ("metrics/loggers.py", "spec_decode/metrics.py"))
    names = {metric.removesuffix(suffix) for metric in Metric for suffix in ("_total", "_sum", "_count") if metric.endswith(suffix)}
    assert {name for name in (*names, str(Metric.RUNNING)) if f'"vllm:{name}"' not in sources} == set()
