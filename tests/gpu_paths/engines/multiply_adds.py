"""What a step of K = 0 multiplies and adds in the matrices of target and head: the formula of docs/drafter.md, and a count.

Counted on the rig (off_process.py), on an engine whose linear layers are torch's own. Synchronous engines alone: their steps return
before the next one begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from nightjar.deployments.proof.driven_engine import GenerationRequest
from nightjar.deployments.proof.stepped_engine import SteppedEngine
from nightjar.deployments.proof.tiny_models import HEADS, HIDDEN, INTERMEDIATE, LAYER_SHARES, VOCABULARY

STEPS: Final = 12
COUNTED_AFTER: Final = 6
"""Steps; by then every row decodes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Of a target of Llama's kind, and of a head of one such layer."""

    hidden: int
    queries: int
    """Heads times their size."""
    keys: int
    """The same of keys, and of values."""
    intermediate: int
    layers: int
    vocabulary: int

    @property
    def attention_inputs(self) -> int:
        """Columns of queries, keys and values together, which vLLM computes at once."""
        return self.queries + 2 * self.keys

    def target(self) -> int:
        """Of a decoded token: every layer, and the vocabulary's logits."""
        layer = self.hidden * (self.attention_inputs + self.queries + 3 * self.intermediate)
        return self.layers * layer + self.hidden * self.vocabulary

    def kv_part(self, drafter: str) -> int:
        """Of a token whose KV a head writes: what leads to its layer's input, and that layer's queries, keys and values.

        EAGLE and MTP project the embedding beside the hidden state to one; EAGLE-3 projects three hidden states to one, and its
        layer reads both side by side.

        >>> llama = LLAMA_3_1_8B
        >>> [round(1 + llama.kv_part(drafter) / llama.target(), 4) for drafter in ("eagle", "eagle3")]
        [1.0078, 1.0134]
        """
        if drafter == "eagle3":
            return 3 * self.hidden * self.hidden + 2 * self.hidden * self.attention_inputs
        return 2 * self.hidden * self.hidden + self.hidden * self.attention_inputs

    def whole_head(self, drafter: str, vocabulary: int) -> int:
        """Of a token that a head runs as in vLLM: the same, the rest of its layer, and the logits of its own vocabulary.

        vLLM 0.33 computes no logits at K = 0 where it replays no full graph, in which they are.

        >>> llama = LLAMA_3_1_8B
        >>> heads = {"eagle": 128256, "eagle3": 32000}
        >>> [round(1 + llama.whole_head(drafter, size) / llama.target(), 3) for drafter, size in heads.items()]
        [1.104, 1.057]
        >>> [round(1 + llama.whole_head(drafter, vocabulary=0) / llama.target(), 3) for drafter in heads]
        [1.034, 1.039]
        """
        rest_of_layer = self.hidden * (self.queries + 3 * self.intermediate)
        return self.kv_part(drafter) + rest_of_layer + self.hidden * vocabulary

    def block_context(self, layers: int, read: int) -> int:
        """Of a token whose KV a block's drafter of so many layers keeps: `read` hidden states projected to one, keys and values.

        >>> round(1 + QWEN_3_8B.block_context(5, 5) / QWEN_3_8B.target(), 3)
        1.017
        """
        return read * self.hidden * self.hidden + layers * 2 * self.hidden * self.keys

    def block(self, layers: int, read: int, num_drafts: int) -> int:
        """Of a row for which such a drafter, DFlash, runs its queries as well: the bonus token and each draft, and their logits.

        >>> [round(1 + QWEN_3_8B.block(5, 5, drafts) / QWEN_3_8B.target(), 2) for drafts in (7, 15)]
        [2.61, 4.29]
        """
        layer = self.hidden * (self.attention_inputs + self.queries + 3 * self.intermediate)
        queries = (1 + num_drafts) * layers * layer + num_drafts * self.hidden * self.vocabulary
        return self.block_context(layers, read) + queries


LLAMA_3_1_8B: Final = Shape(hidden=4096, queries=4096, keys=1024, intermediate=14336, layers=32, vocabulary=128256)
QWEN_3_8B: Final = Shape(hidden=4096, queries=4096, keys=1024, intermediate=12288, layers=36, vocabulary=151936)
"""Its DFlash draft has five layers of its shape, and reads five hidden states."""
VOCABULARY_PADDING: Final = 64
"""vLLM computes logits of a multiple of it."""
TINY: Final = Shape(
    HIDDEN, HIDDEN, HIDDEN, INTERMEDIATE, len(LAYER_SHARES), -(-VOCABULARY // VOCABULARY_PADDING) * VOCABULARY_PADDING
)
assert HIDDEN % HEADS == 0


def multiply_by_torch() -> None:
    """In this process, before an engine starts: vLLM's packed multiplications on a CPU are no operations that torch counts."""
    from vllm import _custom_ops
    from vllm.model_executor.layers import utils

    _custom_ops._supports_onednn = False
    utils.check_cpu_sgl_kernel = lambda *_: False


def count_multiply_adds(engine: SteppedEngine) -> list[list[int]]:
    """[tokens, multiply-adds of the target, multiply-adds of the drafter] of steps at K = 0."""
    from torch.utils.flop_counter import FlopCounterMode

    speculator, runner = engine.runner.speculator, engine.runner
    propose, execute, compute_logits = speculator.propose, runner.execute_model, runner.model.compute_logits
    counted: list[list[int]] = []

    def counting(call: Any, given: Any, options: Any) -> tuple[Any, int]:
        with FlopCounterMode(display=False) as counter:
            result = call(*given, **options)
        return result, counter.get_total_flops() // 2

    def executing(scheduler_output: Any, *given: Any, **options: Any) -> Any:
        result, target = counting(execute, (scheduler_output, *given), options)
        counted.append([scheduler_output.total_num_scheduled_tokens, target, 0])
        return result

    def proposing(*given: Any, **options: Any) -> Any:
        result, head = counting(propose, given, options)
        counted[-1][2] = head
        return result

    def of_logits(*given: Any, **options: Any) -> Any:
        result, logits = counting(compute_logits, given, options)
        counted[-1][1] += logits
        return result

    runner.execute_model, speculator.propose, runner.model.compute_logits = executing, proposing, of_logits
    engine.pin(0)
    options = {"temperature": 0.0, "ignore_eos": True, "max_tokens": STEPS}
    engine.run([GenerationRequest(f"row-{row}", "one two", options) for row in range(3)])
    runner.execute_model, speculator.propose, runner.model.compute_logits = execute, propose, compute_logits
    return counted[COUNTED_AFTER:-2]
