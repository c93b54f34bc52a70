"""Mends two faults of Triton 3.9's interpreter that vLLM's kernels meet. Compiled kernels have neither.

Fails loudly: an interpreter without these functions raises AttributeError before the engine starts. Mending twice is mending once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def mend_comparisons() -> None:
    """Give the result of a comparison the type int1, as the compiler does.

    The interpreter gives it the type of its left operand: `n > 0` is then an int32, and `mask & (n > 0)` an int32 mask, which a
    load refuses. vLLM's ngram kernel does that (0.32, v1/worker/gpu/spec_decode/ngram/speculator.py).
    """
    builder = interpreter.InterpreterBuilder
    for name in [name for name in vars(builder) if name.startswith(("create_icmp", "create_fcmp"))]:
        original = getattr(builder, name)
        if not isinstance(original, _Mended):
            setattr(builder, name, _comparison(original))


def mend_loop_indices() -> None:
    """Give the index of a `tl.range` loop the method `to`, which a compiled loop's index has.

    vLLM's top-k and top-p kernel says `row_id.to(tl.int64)` (0.32, v1/sample/ops/topk_topp_triton.py).
    """
    original = interpreter._patch_lang_core
    if isinstance(original, _Mended):
        return

    def patch_lang_core(language: Any, scope: Any) -> None:
        original(language, scope)
        plain_range = language.range

        def indices(*arguments: Any, **options: Any) -> Iterator[LoopIndex]:
            return map(LoopIndex, plain_range(*arguments, **options))

        scope.set_attr(language, "range", indices)

    interpreter._patch_lang_core = _Mended(patch_lang_core)


class LoopIndex(int):
    """An int, as the interpreter has it, that can be cast."""

    def to(self, dtype: Any, *_: Any, **__: Any) -> Any:
        """The index as a scalar tensor of this type."""
        value = np.array([int(self)], dtype=interpreter._get_np_dtype(dtype))
        return tl.tensor(interpreter.TensorHandle(value, dtype), dtype)


class _Mended:
    """A function of ours in place of the interpreter's; it binds to an instance as a function does."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._function(*arguments, **options)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else self._function.__get__(instance, owner)


def _comparison(original: Callable[..., Any]) -> _Mended:
    def compare(builder: Any, left: Any, right: Any) -> Any:
        return interpreter.TensorHandle(original(builder, left, right).data.astype(bool), tl.int1)

    return _Mended(compare)
