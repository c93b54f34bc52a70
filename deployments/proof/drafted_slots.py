"""Whether every slot that a drafter's forward writes belongs to its request: looked at in the worker, forward by forward.

A request's blocks are those that the scheduler gave it, read from what it shipped with each step, as a worker builds its block
table. The worker's own table will not do: past a request's blocks it holds what an earlier request left. Reads tensors back, so
it is for engines on a CPU. Knows shapes of vLLM 0.29 to 0.33 and imports nothing of it until a forward runs.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nightjar.deployments.engine.worker.draft_work import ROWS_ATTRIBUTE, WORK_ATTRIBUTE

BlockIds = list[list[int]]
"""Of one request, a list for each KV cache group."""


class DraftedSlots:
    """Looks at the forwards of a loaded `drafter` of a model runner; `step` comes before each step's forwards."""

    def __init__(self, runner: Any, drafter: Any) -> None:
        self._runner = runner
        self._blocks: dict[str, BlockIds] = {}
        self._rows: list[str] | None = None
        self._wrong = ""
        groups = runner.kv_cache_config.kv_cache_groups
        on_v2 = hasattr(drafter, "_run_model")
        names = drafter.draft_attn_layer_names if on_v2 else drafter._draft_attn_layer_names
        self._layers = {name: index for index, group in enumerate(groups) for name in group.layer_names if name in names}
        self._block_tokens = [group.kv_cache_spec.block_size for group in groups]
        if on_v2:
            drafter._run_model = self._looking(drafter._run_model)
        else:
            drafter.model.register_forward_pre_hook(self._look_at_context)

    @classmethod
    def of(cls, runner: Any) -> DraftedSlots | None:
        """Of a model runner; None where its drafter has no model, or runs on another device than a CPU."""
        drafter = getattr(runner, "speculator", None) or getattr(runner, "drafter", None)  # runner V2's name and V1's
        on_cpu = getattr(drafter, "model", None) is not None and str(getattr(drafter, "device", "")) == "cpu"
        return cls(runner, drafter) if on_cpu else None

    def step(self, scheduler_output: Any) -> None:
        """Take up the blocks that come with a step, before it runs."""
        for finished in scheduler_output.finished_req_ids:
            self._blocks.pop(finished, None)
        for new in scheduler_output.scheduled_new_reqs:
            self._blocks[new.req_id] = [list(of_group) for of_group in new.block_ids]
        cached = scheduler_output.scheduled_cached_reqs
        for request_id, new_block_ids in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if request_id in cached.resumed_req_ids:
                self._blocks[request_id] = [list(of_group) for of_group in new_block_ids]
            elif new_block_ids is not None:
                for mine, added in zip(self._blocks[request_id], new_block_ids, strict=True):
                    mine.extend(added)
        for request_id, moved in getattr(scheduler_output, ROWS_ATTRIBUTE, {}).items():
            self._blocks[request_id] = [list(of_group) for of_group in moved]
        self._scheduled = list(scheduler_output.num_scheduled_tokens)
        self._catches_up = bool(getattr(getattr(scheduler_output, WORK_ATTRIBUTE, None), "recompute", ()))

    def ran(self) -> None:
        """The target has run: the rows of the step are known, in the order of the batch."""
        state = getattr(self._runner, "execute_model_state", None)
        batch = getattr(state, "input_batch", None) or getattr(self._runner, "input_batch", None)
        self._rows = None if batch is None else list(batch.req_ids)

    def taken(self) -> str:
        """The first slot of the step that is wrong, or nothing; it is then forgotten."""
        wrong, self._wrong = self._wrong, ""
        return wrong

    def _looking(self, run_model: Callable[..., Any]) -> Callable[..., Any]:
        """On runner V2, where a compiled model calls no hooks."""
        signature = inspect.signature(run_model)

        def looking(*arguments: Any, **options: Any) -> Any:
            given = signature.bind(*arguments, **options).arguments
            self._look(given.get("attn_metadata"), given.get("slot_mappings"))
            return run_model(*arguments, **options)

        return looking

    def _look_at_context(self, module: Any, arguments: Any) -> None:
        from vllm.forward_context import get_forward_context

        del module, arguments
        context = get_forward_context()
        self._look(context.attn_metadata, context.slot_mapping)

    def _look(self, metadata: Mapping[str, Any] | None, slot_mappings: Mapping[str, Any] | None) -> None:
        """A forward without attention (a warm-up, a head that writes its KV alone) drafts nothing."""
        if not metadata or not slot_mappings or self._wrong or self._rows is None:
            return
        seen: set[int] = set()
        for layer, group in self._layers.items():
            if group in seen or layer not in metadata or layer not in slot_mappings:
                continue
            seen.add(group)
            starts = metadata[layer].query_start_loc.tolist()
            slots = slot_mappings[layer].tolist()
            for row, (first, last) in enumerate(itertools.pairwise(starts)):
                # A row that catches up stands in an order of its own.
                of_row = self._rows[row : row + 1] if not self._catches_up else self._scheduled
                written = [slot for slot in slots[first:last] if slot >= 0]
                if written and not any(self._holds(request_id, group, written) for request_id in of_row):
                    self._wrong = f"row {row} ({', '.join(of_row)}): slots {written} are not all in {self._said(of_row, group)}"
                    return

    def _holds(self, request_id: str, group: int, slots: Sequence[int]) -> bool:
        blocks = set(self._blocks[request_id][group])
        return all(slot // self._block_tokens[group] in blocks for slot in slots)

    def _said(self, request_ids: Sequence[str], group: int) -> str:
        return f"blocks {[self._blocks[request_id][group] for request_id in request_ids]} of {self._block_tokens[group]} tokens"
