"""`nightjar check` of `extra_routes`: a misspelt path is told before a replica's log tells it."""

from __future__ import annotations

import pytest

from nightjar.deployments.configuration.check.report import check_text

FILE = """\
applications:
- name: chat
  import_path: nightjar.deployments.app:build
  args:
    llm_configs:
    - model_loading_config: {{model_id: chat, model_source: someone/target}}
      accelerator_type: H100
      extra_routes:
      - /metrics
      - {path}
"""


def told(path: str) -> list[str]:
    lines = [line.text("f") for line in check_text(FILE.format(path=path)).findings]
    return [text for text in lines if "extra_routes" in text]


@pytest.mark.parametrize(
    ("path", "nearest"),
    [("/metricz", "/metrics"), ("/metrics/", "/metrics"), ("/tokenise", "/tokenize"), ("/v1/message", "/v1/messages")],
)
def test_a_misspelt_route_is_a_warning_with_its_line_and_the_nearest_one(path: str, nearest: str) -> None:
    (line,) = told(path)
    assert line == (
        f"f:10: warning: applications.0.args.llm_configs.0.extra_routes.1: no such route of vLLM 0.32.0 (value {path!r}); "
        f"did you mean {nearest}?; replicas would answer 404"
    )


def test_a_route_like_no_other_is_told_without_a_guess() -> None:
    (line,) = told("/of_a_later_vllm")
    assert "take it out, or look its name up; replicas would answer 404" in line


def test_a_route_that_is_answered_anyway_is_advice() -> None:
    (line,) = told("/v1/models")
    assert "f:10: advice: " in line
    assert "/v1/models is answered anyway; take it out" in line


def test_routes_of_this_vllm_are_told_nothing_of() -> None:
    assert told("/tokenize") == []
