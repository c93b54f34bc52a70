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
    kv_only_head: Any = importlib.import_module("nightjar.deployments.engine.worker.kv_only_head")
    torch: Any = importlib.import_module("torch")
from nightjar.deployments.engine.worker.draft_work import DRAFTER_FAILURE_ATTRIBUTE
from nightjar.deployments.engine.worker.step_reports import StepReports


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
        (ONE, {"enable_adaptive_verification": True}, ""),
    ],
)
def test_a_head_runs_as_in_vllm_where_its_kv_alone_would_not_be_the_same(
    monkeypatch: pytest.MonkeyPatch, layers: dict[str, Layer], changes: dict[str, Any], reason: str
) -> None:
    found = kv_only_head.why_not(speculator(monkeypatch, layers, **changes))
    assert reason in found
    assert bool(found) is bool(reason)


def block(**changes: Any) -> Any:
    """A drafter of blocks by shape: `propose` writes what it keeps, and then runs its queries."""
    made = type("Block", (), {"_generate_draft": lambda self: self.ran.append("queries")})()
    made.ran = []

    def propose(*given: Any, **named: Any) -> Any:
        made.ran.append((given, named))
        made._generate_draft()
        return torch.ones(2, 3)

    vars(made).update({"method": "dflash", "propose": propose} | changes)
    return made


def test_of_a_block_of_drafts_only_the_queries_are_left_out_at_k_0_and_without_a_graph_which_would_hold_them() -> None:
    made = block()
    head = kv_only_head.QuietBlock(made, StepReports(1))
    assert made.propose(1, 2, num_speculative_tokens=0).tolist() == [[-1] * 3] * 2
    assert made.ran == [((1, 2), {"num_speculative_tokens": 0, "is_profile": True})]
    assert made.propose(num_speculative_tokens=2).tolist() == [[1] * 3] * 2
    assert made.ran[1:] == [((), {"num_speculative_tokens": 2}), "queries"]
    assert not head.runs_as_in_vllm


@pytest.mark.parametrize("options", [{"dummy_run": True}, {"is_profile": True}])
def test_a_warm_up_of_a_block_of_drafts_is_vllms(options: dict[str, Any]) -> None:
    made = block()
    kv_only_head.QuietBlock(made, StepReports(1))
    made.propose(num_speculative_tokens=0, **options)
    assert made.ran == [((), {"num_speculative_tokens": 0, **options}), "queries"]


def test_a_block_of_drafts_whose_context_cannot_be_written_runs_its_queries_from_then_on() -> None:
    made = block()
    whole = made.propose

    def fails(*given: Any, is_profile: bool = False, **named: Any) -> Any:
        if is_profile:
            raise torch.OutOfMemoryError("out of memory")
        return whole(*given, **named)

    made.propose = fails
    reports = StepReports(1)
    head = kv_only_head.QuietBlock(made, reports)
    for _ in range(2):
        assert made.propose(num_speculative_tokens=0).tolist() == [[1] * 3] * 2
    assert made.ran == [((), {"num_speculative_tokens": 0}), "queries"] * 2
    assert head.runs_as_in_vllm
    assert vars(reports.attached(SimpleNamespace())) == {DRAFTER_FAILURE_ATTRIBUTE: "OutOfMemoryError: out of memory"}


def test_a_block_of_several_layers_keeps_its_kv_without_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    several = speculator(monkeypatch, {"a": Layer(within=True), "b": Layer()}, method="dspark")
    assert kv_only_head.why_not(several) == ""
    assert "a KV connector" in kv_only_head.why_not(speculator(monkeypatch, ONE, method="dflash", kv_transfer_config=object()))


def test_another_kind_of_drafter_runs_as_in_vllm() -> None:
    assert kv_only_head.why_not(SimpleNamespace()) == "SimpleNamespace is another kind of drafter"


@pytest.mark.parametrize(
    "options", [{"num_speculative_tokens": 2}, {"num_speculative_tokens": 0, "dummy_run": True}, {"num_speculative_tokens": None}]
)
def test_every_call_but_a_step_of_k_0_is_vllms(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    calls: list[tuple[Any, ...]] = []
    made = speculator(monkeypatch, ONE, propose=lambda *given, **named: calls.append((given, named)))
    kv_only_head.KVOnlyHead(made, StepReports(1))
    given = tuple(range(11))
    made.propose(*given, **options)
    assert calls == [(given, options)]


def test_a_head_without_kv_of_its_own_runs_nothing_at_k_0(monkeypatch: pytest.MonkeyPatch) -> None:
    drafts = torch.ones(4, 3)
    head = speculator(monkeypatch, {"shared": Layer(shares="target")}, propose=None, draft_tokens=drafts)
    kv_only_head.KVOnlyHead(head, StepReports(1))
    given = (SimpleNamespace(num_reqs=2, num_tokens=5), *range(2), *range(8))
    assert head.propose(*given, num_speculative_tokens=0).tolist() == [[-1] * 3] * 2


def test_what_stops_a_pass_is_taken_away_again_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer()
    head = kv_only_head.KVOnlyHead(speculator(monkeypatch, {"layer": layer}, propose=None), StepReports(1))
    with head._stopping_at_attention():
        layer.impl.forward()
    assert not hasattr(layer.impl, "forward")
    with pytest.raises(ValueError, match="other"), head._stopping_at_attention():
        raise ValueError("other")
    assert not hasattr(layer.impl, "forward")


class BrokenHead:
    """A head whose pass for its KV alone raises `error`; `whole` are the K of vLLM's own forwards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: Exception, *, num_ranks: int = 1) -> None:
        self.whole: list[int] = []
        self.passes = 0
        self.reports = StepReports(num_ranks)
        self.error = error
        drafts = torch.zeros(4, 3, dtype=torch.int64)
        buffers = SimpleNamespace(input_ids=torch.zeros(8, dtype=torch.int32), positions=torch.zeros(8, dtype=torch.int64))
        self._speculator = speculator(
            monkeypatch,
            {"layer": Layer()},
            propose=self._whole,
            draft_tokens=drafts,
            input_buffers=buffers,
            hidden_states=torch.zeros(8, 2),
            last_token_indices=None,
            current_draft_step=None,
            max_num_reqs=4,
            kv_cache_config=SimpleNamespace(kv_cache_groups=["only"]),
            _run_model=self._pass,
        )
        monkeypatch.setattr(kv_only_head, "prepare_prefill_inputs", lambda *_: None)
        self.head = kv_only_head.KVOnlyHead(self._speculator, self.reports)

    def propose(self, num_speculative_tokens: int) -> Any:
        batch = SimpleNamespace(num_reqs=2, num_tokens=2)
        slots = {"layer": torch.tensor([3, 4])}
        given = (batch, None, slots, torch.ones(2, 2), None, *range(4))
        return self._speculator.propose(*given, num_speculative_tokens=num_speculative_tokens)

    def told(self) -> str:
        return getattr(self.reports.attached(SimpleNamespace()), DRAFTER_FAILURE_ATTRIBUTE, "")

    def _whole(self, *_: Any, num_speculative_tokens: int, **__: Any) -> Any:
        self.whole.append(num_speculative_tokens)
        return "vLLM's"

    def _pass(self, *_: Any) -> None:
        self.passes += 1
        raise self.error


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_a_head_whose_pass_breaks_off_runs_as_in_vllm_from_that_step_on_and_the_scheduler_hears_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = BrokenHead(monkeypatch, OUT_OF_MEMORY)
    assert broken.propose(0) == "vLLM's"
    assert broken.told() == f"OutOfMemoryError: {OUT_OF_MEMORY}"
    assert [broken.propose(length) for length in (0, 2, 0)] == ["vLLM's"] * 3
    assert broken.whole == [0, 0, 2, 0]
    assert broken.passes == 1
    assert broken.told() == ""


@pytest.mark.parametrize(
    ("error", "num_ranks"),
    [(RuntimeError("CUDA error: an illegal memory access was encountered"), 1), (OUT_OF_MEMORY, 2)],
    ids=["the device is lost", "other ranks wait"],
)
def test_an_engine_ends_where_it_could_not_go_on_after_a_pass_that_broke_off(
    monkeypatch: pytest.MonkeyPatch, error: Exception, num_ranks: int
) -> None:
    with pytest.raises(type(error), match=str(error)[:12]):
        BrokenHead(monkeypatch, error, num_ranks=num_ranks).propose(0)
