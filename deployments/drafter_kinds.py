"""What each of vLLM's drafters is to us: the one table that engine, configuration tools and command line read.

vLLM names a drafter by `speculative_config.method`, and tells several of one method, dflash, by their architectures. Whether a
drafter obeys a K chosen per step, can stop at K = 0, may leave a row without drafts, and on which runner it works are facts of vLLM
(read in 0.29, 0.31, 0.32 and 0.33), not decisions of ours. One that is not here is served plainly: whether it obeys is not known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from nightjar.policy.wire.report import Layer

SEPARATE_DRAFT_MODEL: Final = "draft_model"


@dataclass(frozen=True, slots=True)
class DrafterKind:
    """One of vLLM's drafters.

    obeys_k_on_v1  whether K can be chosen per step on model runner V1
    obeys_k_on_v2  the same on model runner V2, of vLLM 0.32 and later; no drafter of 0.29 and 0.31 obeys there
    is_made_to_obey_on_v2  whether our worker makes it obey there, where vLLM does not
    can_sleep  whether our worker can leave it out at K = 0 and catch up later
    is_head  whether it reads the target's hidden states: vLLM runs it once a step at K = 0, to keep it in step
    drafts_a_block  whether one forward over a block of queries drafts its maximum, so that K only cuts what is verified; what it
                    keeps of a step is projected from the target's hidden states, without a forward
    variant_of  the method of which vLLM tells it by its architecture; empty for a method
    skips_rows_on_v1  whether it leaves rows without drafts on runner V1; on V2 none does
    model  whether the user must, may or cannot name a model of its own
    runs_on_v2, runs_asynchronously  whether vLLM lets it
    """

    method: str
    obeys_k_on_v1: bool = False
    obeys_k_on_v2: bool = False
    is_made_to_obey_on_v2: bool = False
    can_sleep: bool = False
    is_head: bool = False
    drafts_a_block: bool = False
    variant_of: str = ""
    skips_rows_on_v1: bool = False
    model: Literal["required", "optional", "none"] = "required"
    runs_on_v2: bool = True
    runs_asynchronously: bool = True

    @property
    def obeys_k(self) -> bool:
        """Whether it is steered on any runner."""
        return self.obeys_k_on_v1 or self.obeys_k_on_v2 or self.is_made_to_obey_on_v2

    @property
    def layer(self) -> Layer | None:
        """What of Nightjar keeps it from running whole at K = 0; None where it has no model to run."""
        return Layer.SLEEPING if self.can_sleep else Layer.HEADS if self.is_head else None


_ALL: Final = (
    DrafterKind(SEPARATE_DRAFT_MODEL, obeys_k_on_v1=True, is_made_to_obey_on_v2=True, can_sleep=True),
    DrafterKind("eagle", obeys_k_on_v1=True, obeys_k_on_v2=True, is_head=True),
    DrafterKind("eagle3", obeys_k_on_v1=True, obeys_k_on_v2=True, is_head=True),
    DrafterKind("mtp", obeys_k_on_v1=True, obeys_k_on_v2=True, is_head=True, model="optional"),
    DrafterKind("ngram", obeys_k_on_v1=True, obeys_k_on_v2=True, skips_rows_on_v1=True, model="none", runs_asynchronously=False),
    DrafterKind("ngram_gpu", skips_rows_on_v1=True, model="none"),
    DrafterKind("dflash", obeys_k_on_v2=True, is_head=True, drafts_a_block=True),
    DrafterKind("dspark", obeys_k_on_v2=True, is_head=True, drafts_a_block=True, model="optional"),
    DrafterKind("dflash2", variant_of="dflash"),
    DrafterKind("lilicorr", variant_of="dflash"),
    DrafterKind("xpress", variant_of="dflash"),
    DrafterKind("extract_hidden_states", model="optional"),
    DrafterKind("suffix", model="none", runs_on_v2=False, runs_asynchronously=False),
    DrafterKind("medusa", runs_on_v2=False, runs_asynchronously=False),
    DrafterKind("mlp_speculator", runs_on_v2=False, runs_asynchronously=False),
    DrafterKind("custom_class", model="none", runs_on_v2=False, runs_asynchronously=False),
)
KINDS: Final[Mapping[str, DrafterKind]] = {kind.method: kind for kind in _ALL}


def kind_of(method: str) -> DrafterKind:
    """The drafter of this method; `NAME_mtp`, an alias that each model family has, is mtp. One that is not here obeys nothing.

    >>> kind_of("deepseek_mtp").method, kind_of("newest").obeys_k
    ('mtp', False)
    """
    return KINDS.get("mtp" if method.endswith("_mtp") else method, DrafterKind(method))


def drafter_of(method: str, architectures: Iterable[str]) -> str:
    """The drafter's name in the table: the method's, or of a variant that the draft's architectures name (vLLM 0.33,
    v1/worker/gpu/spec_decode/__init__.py: DFlash2DraftModel, LiLiCorrDraftModel, Qwen3XPressModel).

    >>> drafter_of("dflash", ["DFlashDraftModel"]), drafter_of("dflash", ["Qwen3XPressModel"]), drafter_of("eagle", ["DFlash2"])
    ('dflash', 'xpress', 'eagle')
    """
    named = " ".join(architectures).lower()
    variants = (kind.method for kind in _ALL if kind.variant_of == method)
    return next((variant for variant in variants if variant in named), method)


STEERABLE: Final = tuple(sorted(kind.method for kind in _ALL if kind.obeys_k))
