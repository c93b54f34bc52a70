"""What `nightjar run` says while an application is not there yet, and once it serves."""

import io
import sys
from pathlib import Path

import pytest

from nightjar.cluster.local.cluster import announce, summarize
from nightjar.cluster.serve_config import Application, ServeFile

NOT_PLACED = (
    "Deployment 'LLM' in application 'chat' has 2 replicas that have taken more than 30s to be scheduled. "
    "This may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. "
    'Resources required for each replica: {"CPU": 8}, total resources available: {"CPU": 2.0}. Use `ray status` for more details.'
)
LOADING = (
    "Deployment 'LLM' in application 'chat' has 1 replicas that have taken more than 30s to initialize.\n"
    "This may be caused by a slow __init__ or reconfigure method."
)
REFUSED = """A replica failed to start with exception. Retrying 2 more time(s). Error:
Traceback (most recent call last):
pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig
  Value error, User-specified max_model_len (100000) is greater than the derived max_model_len
    For further information visit https://errors.pydantic.dev/2.14/v/value_error
"""


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (NOT_PLACED, '2 not placed after 30s: each replica needs {"CPU": 8}, available are {"CPU": 2.0}'),
        (LOADING, "1 still loading after 30s"),
        ("one line", "one line"),
        ("", ""),
    ],
)
def test_a_slow_start_is_told_by_what_it_waits_for(message: str, said: str) -> None:
    assert summarize(message) == said


def test_a_failure_is_told_by_its_last_line_with_a_point() -> None:
    assert summarize(REFUSED) == (
        "A replica failed to start with exception. Retrying 2 more time(s). Error: ... "
        "Value error, User-specified max_model_len (100000) is greater than the derived max_model_len"
    )


@pytest.mark.parametrize(
    ("port", "instead_of", "first", "with_url"),
    [
        (8000, None, "serving at http://127.0.0.1:8000", False),
        (8123, None, "serving at http://127.0.0.1:8123", True),
        (46923, 8000, "serving at http://127.0.0.1:46923 (port 8000 is in use)", True),
    ],
)
def test_when_it_serves_it_says_where_and_how_other_commands_find_it(
    monkeypatch: pytest.MonkeyPatch, port: int, instead_of: int | None, first: str, with_url: bool
) -> None:
    url = f"http://127.0.0.1:{port}"
    file = ServeFile(Path("serve.yaml"), {}, (Application("chat", "m:build", "/"),), "127.0.0.1", instead_of or port)
    out = io.StringIO()
    monkeypatch.setattr(sys, "__stdout__", out)
    announce(file, url, Path("logs"), as_json=False, instead_of=instead_of)
    lines = out.getvalue().splitlines()
    assert lines[0] == first
    assert any(line.endswith(f"export NIGHTJAR_URL={url}") for line in lines) == with_url
