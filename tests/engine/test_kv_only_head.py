"""Which heads may write their KV alone at K = 0, and what stays vLLM's."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what vLLM's dependencies deprecate at import is not ours to mend
    kv_only_head: Any = importlib.import_module("nightjar.deployments.engine.kv_only_head")


class Layer:
    """An attention layer, whose backend writes KV apart from attention or within it, and which may share another's KV."""

    def __init__(self, *, within: bool = False, shares: str | None = None) -> None:
        self.kv_sharing_target_layer_name = shares
        self.impl = SimpleNamespace()
        self._backend = SimpleNamespace(forward_includes_kv_cache_update=within)

    def get_attn_backend(self) -> Any:
        return self._backend


def speculator(monkeypatch: pytest.MonkeyPatch, layers: dict[str, Layer], **changes: Any) -> Any:
    parallel = {
        "data_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1,
        "enable_eplb": False,
    }
    config = SimpleNamespace(
        parallel_config=SimpleNamespace(**parallel | changes.pop("parallel", {})),
        kv_transfer_config=changes.pop("kv_transfer_config", None),
        compilation_config=SimpleNamespace(static_forward_context=layers),
    )
    monkeypatch.setattr(kv_only_head, "get_layers_from_vllm_config", lambda _config, _kind: layers)
    made: Any = object.__new__(type("Head", (kv_only_head.TargetDependentARSpeculator,), {"load_draft_model": None}))
    fields = {"vllm_config": config, "draft_attn_layer_names": set(layers), "supports_mm_inputs": False, **changes}
    for name, value in fields.items():
        setattr(made, name, value)
    return made


ONE = {"layer": Layer()}


@pytest.mark.parametrize(
    ("layers", "changes", "reason"),
    [
        (ONE, {}, ""),
        ({"own": Layer(), "shared": Layer(shares="target")}, {}, ""),
        ({"a": Layer(), "b": Layer()}, {}, "the head has 2 attention layers of its own"),
        ({"shared": Layer(shares="target")}, {}, ""),
        ({"layer": Layer(within=True)}, {}, "its attention backend writes KV within attention"),
        (ONE, {"parallel": {"data_parallel_size": 2}}, "data parallelism"),
        (ONE, {"parallel": {"enable_eplb": True}}, "expert load balancing"),
        (ONE, {"parallel": {"decode_context_parallel_size": 2}}, "context parallelism"),
        (ONE, {"supports_mm_inputs": True}, "multimodal inputs"),
        (ONE, {"share_mtp_topk_indices": True}, "a sparse-attention indexer"),
        (ONE, {"kv_transfer_config": object()}, "a KV connector"),
        (ONE, {"enable_adaptive_verification": True}, "adaptive verification"),
    ],
)
def test_a_head_runs_as_in_vllm_where_its_kv_alone_would_not_be_the_same(
    monkeypatch: pytest.MonkeyPatch, layers: dict[str, Layer], changes: dict[str, Any], reason: str
) -> None:
    found = kv_only_head.why_not(speculator(monkeypatch, layers, **changes))
    assert reason in found
    assert bool(found) is bool(reason)


def test_another_kind_of_drafter_runs_as_in_vllm() -> None:
    assert kv_only_head.why_not(SimpleNamespace()) == "SimpleNamespace is another kind of drafter"


@pytest.mark.parametrize(
    "options", [{"num_speculative_tokens": 2}, {"num_speculative_tokens": 0, "dummy_run": True}, {"num_speculative_tokens": None}]
)
def test_every_call_but_a_step_of_k_0_is_vllms(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    calls: list[tuple[Any, ...]] = []
    made = speculator(monkeypatch, ONE, propose=lambda *given, **named: calls.append((given, named)))
    kv_only_head.KVOnlyHead(made)
    given = tuple(range(11))
    made.propose(*given, **options)
    assert calls == [(given, options)]


def test_a_head_without_kv_of_its_own_runs_nothing_at_k_0(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = importlib.import_module("torch").ones(4, 3)
    head = speculator(monkeypatch, {"shared": Layer(shares="target")}, propose=None, draft_tokens=drafts)
    kv_only_head.KVOnlyHead(head)
    given = (SimpleNamespace(num_reqs=2, num_tokens=5), *range(2), *range(8))
    assert head.propose(*given, num_speculative_tokens=0).tolist() == [[-1] * 3] * 2


def test_what_stops_a_pass_is_taken_away_again_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    head = kv_only_head.KVOnlyHead(speculator(monkeypatch, {"layer": layer}, propose=None))
    with head._stopping_at_attention():
        layer.impl.forward()
    assert not hasattr(layer.impl, "forward")
    with pytest.raises(ValueError, match="other"), head._stopping_at_attention():
        raise ValueError("other")
    assert not hasattr(layer.impl, "forward")
