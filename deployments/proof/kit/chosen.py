"""What a run of the proof kit is about: models, seed, sizes. Two runs that share all of it are one, and the later goes on.

Models are local folders or names on the Hugging Face hub; without a target, tiny models made by code, with a draft model and an
EAGLE head that are right often but not always. Fails with ChosenModelError, one line, before anything is started.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from nightjar.deployments.drafter_kinds import SEPARATE_DRAFT_MODEL, kind_of
from nightjar.deployments.proof.model_names import ADAPTER, DRAFT, EAGLE, TARGET

Drafter = Literal["none", "draft", "head"]
BUILT_IN: Final = "mtp"
"""`--head mtp`: the target has the head in it."""
HEAD_METHODS: Final = ("eagle3", "eagle", "mtp", "dflash", "dspark")
"""In the order in which they are looked for in names."""
MADE_BY_CODE: Final = "made by code"


class ChosenModelError(ValueError):
    """A model that cannot be used. The message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much each phase does: enough to tell something on a GPU, little on the rig."""

    batch_sizes: tuple[int, ...]
    """Rows of the phases that go through several."""
    max_num_seqs: int
    max_model_len: int
    random_tokens: int
    """Tokens per request while K changes at random."""
    lags_tokens: tuple[int, ...]
    """Tokens of each row that a draft model misses before it catches up."""
    lending_tokens: int
    lending_cycles: int
    off_rows: tuple[int, ...]
    """Rows of few tokens, at which off is measured against plain vLLM."""
    off_context_tokens: int
    """Of each of `off_context_rows` rows, where both are measured once more; fewer where model or memory end before."""
    off_context_rows: int
    rounds: int
    """Of off and of plain vLLM, in each of their two turns."""
    measured_tokens: int
    """Tokens per request of a measurement."""
    contest_rows: tuple[int, ...]
    contest_rounds: int
    contest_s: float
    """Seconds that a contender is measured at each number of rows."""
    ramp: tuple[int, ...]
    """Rows one after the other, an equal time each."""
    timeout_s: float
    """Of one task."""


ON_A_GPU: Final = Sizes(
    batch_sizes=(1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64),
    max_num_seqs=128,
    max_model_len=4096,
    random_tokens=48,
    lags_tokens=(32, 128, 512),
    lending_tokens=400,
    lending_cycles=3,
    off_rows=(4, 8, 64, 256),
    off_context_tokens=32_000,
    off_context_rows=4,
    rounds=5,
    measured_tokens=128,
    contest_rows=(1, 8, 32, 128),
    contest_rounds=3,
    contest_s=20.0,
    ramp=(1, 4, 16, 64, 128, 64, 16, 4, 1),
    timeout_s=1200.0,
)
ON_THE_RIG: Final = Sizes(
    batch_sizes=(1, 2, 3, 4),
    max_num_seqs=4,
    max_model_len=512,
    random_tokens=24,
    lags_tokens=(8, 24, 48),
    lending_tokens=72,
    lending_cycles=2,
    off_rows=(1, 4),
    off_context_tokens=256,
    off_context_rows=2,
    rounds=3,
    measured_tokens=24,
    contest_rows=(1, 4),
    contest_rounds=2,
    contest_s=4.0,
    ramp=(1, 4, 1),
    timeout_s=400.0,
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Everything that a task needs to know; plain data, handed to its process as JSON."""

    rehearsal: str
    """Module that stands in for a GPU (engines.Rehearsal); empty on a GPU."""
    seed: int
    target: str
    draft: str
    """Empty: no phase that needs a draft model runs."""
    head: str
    """Folder of a head; BUILT_IN where the target has it; empty: none."""
    head_method: str
    names: dict[str, str]
    """What stands on the page of target, draft and head."""
    adapter: str = ""
    work: str = ""
    """Folder for files of the run: models made by code, logs, what tasks gave. No part of what a run is about."""

    def to_plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Chosen:
        """The inverse of `to_plain`."""
        return cls(**plain)

    @property
    def on_rig(self) -> bool:
        """Whether there is no GPU, and the run is a rehearsal."""
        return bool(self.rehearsal)

    @property
    def sizes(self) -> Sizes:
        """Of the phases."""
        return ON_THE_RIG if self.on_rig else ON_A_GPU

    @property
    def dtype(self) -> str:
        """vLLM's own choice for models somebody trained; single precision on the rig, so that texts can be compared exactly."""
        if self.on_rig:
            return "float32"
        return "bfloat16" if self.target_is_made else "auto"

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer that the phase about off asks for at most, within what the target's config.json allows."""
        config: dict[str, Any] = json.loads((Path(self.target) / "config.json").read_text(encoding="utf-8"))
        allowed = (config.get("text_config") or config).get("max_position_embeddings")
        wanted = self.sizes.off_context_tokens + self.sizes.measured_tokens
        return min(wanted, int(allowed)) if allowed else wanted

    @property
    def shorter_tokens(self) -> int:
        """The same where no KV cache of this machine holds so many."""
        return min(self.longest_tokens, self.sizes.max_model_len)

    @property
    def target_is_made(self) -> bool:
        """Whether the models were made by code."""
        return self.names["target"] == MADE_BY_CODE

    @property
    def drafters(self) -> tuple[Drafter, ...]:
        """`draft` and `head`, as far as there are."""
        roles: tuple[tuple[Drafter, str], ...] = (("draft", self.draft), ("head", self.head))
        return tuple(role for role, model in roles if model)

    def method(self, drafter: Drafter) -> str:
        """vLLM's `speculative_config.method` of `draft` or `head`."""
        return SEPARATE_DRAFT_MODEL if drafter == "draft" else self.head_method


Download = Callable[[str], str]
"""From a name on the hub to a local folder."""


def choose(
    *,
    rehearsal: str,
    seed: int,
    target: str,
    draft: str,
    head: str,
    made: Path,
    download: Download,
    build: Callable[[Path], object],
) -> Chosen:
    """Find or make the models. `made` is the folder for those made by code. Raises ChosenModelError."""
    if not target:
        if draft or head:
            raise ChosenModelError(f"--{'draft' if draft else 'head'} needs --target: a drafter follows the model it was made for")
        build(made)
        names = {"target": MADE_BY_CODE, "draft": MADE_BY_CODE, "head": f"{MADE_BY_CODE} (eagle)"}
        folders = {name: str(made / name) for name in (TARGET, DRAFT, EAGLE, ADAPTER)}
        return Chosen(rehearsal, seed, folders[TARGET], folders[DRAFT], folders[EAGLE], "eagle", names, folders[ADAPTER])
    if not draft and not head:
        raise ChosenModelError("--target needs --draft, --head or both: without a drafter there is nothing to steer")
    names = {role: _shown(name) for role, name in (("target", target), ("draft", draft), ("head", head)) if name}
    target_folder = _folder("target", target, download)
    draft_folder = _folder("draft", draft, download) if draft else ""
    head_folder = head if head in {"", BUILT_IN} else _folder("head", head, download)
    method = _head_method(head, head_folder) if head else ""
    return Chosen(rehearsal, seed, target_folder, draft_folder, head_folder, method, names)


def _shown(name: str) -> str:
    """A hub name as it is; of a folder its last part alone."""
    return Path(name).name if Path(name).expanduser().is_dir() else name


def _folder(role: str, name: str, download: Download) -> str:
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ChosenModelError(f"--{role} {name}: the folder holds no config.json; name the folder of a model")
        return str(path.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ChosenModelError(
            f"--{role} {name}: no such folder; name a local folder, or a model of the Hugging Face hub as owner/name"
        )
    try:
        return download(name)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ChosenModelError(
            f"--{role} {name}: cannot be downloaded ({reason}); name a local folder, or log in for a gated model"
        ) from error


def _head_method(name: str, folder: str) -> str:
    """vLLM finds it by the model's name, which a local folder need not have; its configuration says it as well."""
    if name == BUILT_IN:
        return BUILT_IN
    try:
        config: dict[str, Any] = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ChosenModelError(f"--head {name}: config.json cannot be read ({error})") from error
    says = " ".join([Path(name).name, str(config.get("model_type", "")), *map(str, config.get("architectures") or ())]).lower()
    method = next((method for method in HEAD_METHODS if method in says), "")
    if not kind_of(method).obeys_k:
        raise ChosenModelError(
            f"--head {name}: neither its name nor its config.json says {', '.join(HEAD_METHODS)}, the heads that Nightjar steers"
        )
    return method
