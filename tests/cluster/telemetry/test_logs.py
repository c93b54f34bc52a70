"""What a caught error leaves in the log."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog

from nightjar.cluster.telemetry.logs import log_plain_tracebacks


@pytest.fixture(autouse=True)
def _configuration() -> Iterator[None]:
    before = structlog.get_config()
    structlog.reset_defaults()
    yield
    structlog.configure(**before)


def test_an_error_is_logged_with_its_traceback_and_without_the_values_of_local_variables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log_plain_tracebacks()
    _fail("a prompt of somebody's")
    said = capsys.readouterr().out
    assert "ZeroDivisionError" in said
    assert "in _fail" in said
    assert "a prompt of somebody's" not in said


def test_a_host_that_configured_its_log_keeps_it() -> None:
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    log_plain_tracebacks()
    assert [type(one) for one in structlog.get_config()["processors"]] == [structlog.processors.JSONRenderer]


def _fail(prompt: str) -> None:
    try:
        _ = len(prompt) / 0
    except ZeroDivisionError:
        structlog.get_logger().exception("failed")
